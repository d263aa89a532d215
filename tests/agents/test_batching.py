import random

import pytest

from journeyman.agents.networks.batching import LEAST_FILL, similar_lengths


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_full_and_hold_each_row_once(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(0, 700) for _ in range(rng.randint(1, 80))]
    groups = list(similar_lengths(lengths, most=16))
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        assert 1 <= len(group) <= 16
        longest = lengths[group[0]]
        assert all(LEAST_FILL * longest <= lengths[row] <= longest for row in group)


def test_groups_are_few() -> None:
    lengths = list(range(64, 640))
    groups = list(similar_lengths(lengths))
    assert len(groups) == 8  # 640 * 0.75**8 = 64
    padded = sum(len(group) * lengths[group[0]] for group in groups)
    assert padded < 1.25 * sum(lengths)


def test_equal_rows_keep_their_order() -> None:
    assert list(similar_lengths([5, 5, 5])) == [[0, 1, 2]]
    assert list(similar_lengths([5, 5, 5], most=2)) == [[0, 1], [2]]
    assert list(similar_lengths([])) == []
