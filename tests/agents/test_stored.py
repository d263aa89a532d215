"""Episodes in little room, and what is made of a file of many."""

import csv
import io
import json
import pickle
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from journeyman.agents.cli import main
from journeyman.agents.errors import RunFileError
from journeyman.agents.evaluation import stored
from journeyman.agents.evaluation.files import fitting, misfit
from journeyman.agents.evaluation.intervals import wilson
from journeyman.agents.evaluation.records import EPISODES, EpisodeFile, Played
from journeyman.agents.evaluation.stored import StoredEpisode
from journeyman.envs import Episode, Message, Step, StopReason
from journeyman.tools import CallStatus, ToolCall, ToolResult

BANK = "journeyman/Bank-v0"


def episode(number: int = 0, length: int = 6) -> Episode:
    result = ToolResult(ToolCall("freeze", {"account": "A1"}, CallStatus.OK), "done", 0.5)
    step = Step((2, length), "text", (result,), {"stop": ((length - 1, length),)})
    mask = (False, False, *[True] * (length - 3), False)
    return Episode(
        BANK,
        f"test/{number}",
        tokens=tuple(range(300, 300 + length)),
        logprobs=(0.0, 0.0, *[-0.5] * (length - 3), 0.0),
        mask=mask,
        steps=(step,),
        stop=StopReason.ANSWERED,
        success=True,
        reward=1.0,
        state_hash="h",
        opening=(Message("user", "do it"),),
        seed=number,
    )


def test_a_stored_episode_is_the_episode() -> None:
    whole = episode()
    for packed in (StoredEpisode.of(whole), StoredEpisode.from_dict(whole.to_dict())):
        assert packed == whole and whole == packed
        assert (packed.tokens, packed.logprobs, packed.mask) == (
            whole.tokens,
            whole.logprobs,
            whole.mask,
        )
        assert packed.to_dict() == whole.to_dict()
        assert pickle.loads(pickle.dumps(packed)) == whole
        changed = replace(packed, tokens=(1,), logprobs=(0.0,), mask=(True,))
        assert (changed.tokens, changed.to_dict()["mask"]) == ((1,), [[0, 1]])
        assert changed != packed and packed != episode(1)
        assert StoredEpisode.of(packed) == packed


def test_it_needs_little_room() -> None:
    whole = episode(length=5000)
    held = StoredEpisode.of(whole).__dict__
    assert not {"tokens", "logprobs", "mask"} & held.keys()
    assert sum(map(sys.getsizeof, held["_packed"].values())) < sys.getsizeof(whole.tokens) / 2


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokens", episode(length=9).to_dict()["tokens"], "9 tokens and 6 logprobs"),
        ("tokens", "AAAA", "cannot be unpacked"),
        ("logprobs", "eJwDAAAAAAE=", "6 tokens and 0 logprobs"),
        ("mask", [[0, 99]], r"mask 0\.\.99 of an episode of 6 tokens"),
        ("mask", [[4, 2]], r"mask 4\.\.2"),
    ],
)
def test_damage_shows_when_it_is_read(tmp_path: Path, key: str, value: Any, words: str) -> None:
    line = Played("student", episode()).to_dict() | {key: value}
    (tmp_path / EPISODES).write_text(json.dumps(line) + "\n")
    with pytest.raises(RunFileError, match=f"line 1 is no episode .*{words}"):
        EpisodeFile(tmp_path).read()


def many(folder: Path, count: int) -> Path:
    EpisodeFile(folder).append(Played("student", episode(i), kind="k") for i in range(count))
    return folder


def test_show_makes_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = many(tmp_path, 50)
    made: list[str] = []
    from_dict = StoredEpisode.from_dict
    unpacked: list[int] = []
    unpack = stored.unpack

    def counted(line: Any) -> StoredEpisode:
        made.append(line["task_id"])
        return from_dict(line)

    def looked(code: Any, text: str) -> Sequence[Any]:
        unpacked.append(1)
        return unpack(code, text)

    monkeypatch.setattr(StoredEpisode, "from_dict", counted)
    monkeypatch.setattr(stored, "unpack", looked)
    assert main(["show", str(run), "--limit", "3"]) == 0
    assert made == ["test/0", "test/1", "test/2"]
    assert "3 of 50 episodes; --limit 0 shows all" in capsys.readouterr().out
    assert main(["compare", str(run)]) != 0  # it has no config
    made.clear()
    (run / "config.yaml").write_text("seed: 0\n")
    assert main(["compare", str(run)]) == 0
    assert made == []
    assert main(["compare", str(run), "--metric", "valid_calls"]) == 0
    assert len(made) == 50
    assert unpacked == []  # a figure of calls looks at no token


SHAPES: list[Any] = [
    int,
    float,
    str,
    bool,
    (int, None),
    (str, None),
    frozenset({"a", "b"}),
    [int],
    {},
    {"a": int, "b?": [str]},
    {"a": {"c": (float, None)}},
]
VALUES: list[Any] = [
    *(None, True, False, 0, 7, 1 << 64, -(1 << 64), 0.5, "", "a", "c", [], [1], [1, "x"], [True]),
    *({}, {"a": 1}, {"a": 1, "b": ["x"]}, {"a": 1, "b": [1]}, {"b": []}, {"a": {}}),
    *({"a": {"c": None}}, {"a": {"c": 2}}, {"a": {"c": "x"}}),
]


@pytest.mark.parametrize("shape", SHAPES)  # a set says itself in another order each time
def test_what_fits_is_what_nothing_is_said_of(shape: Any) -> None:
    fits = fitting(shape)
    assert [fits(value) for value in VALUES] == [misfit(value, shape) is None for value in VALUES]


def test_show_writes_its_tables_in_any_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, output = many(tmp_path, 4), tmp_path / "tables.md"
    assert main(["show", str(run), "--summary", "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["table"] for line in lines] == ["policy", "environment", "kind", "policy: tool"]
    assert (lines[0]["policy"], lines[0]["tasks"], lines[0]["success"]) == ("student", "4", "1.0")
    assert float(lines[0]["95% interval low"]) == pytest.approx(wilson(4, 4)[0])
    assert (lines[1]["environment"], lines[1]["student"]) == (BANK, "1.0")
    asked = ["--summary", "--format", "markdown", "--output", str(output)]
    assert main(["show", str(run), *asked]) == 0
    assert output.read_text().count("| :--- |") == 4
    capsys.readouterr()
    assert main(["show", str(run), "--format", "latex"]) == 2
    assert "add --summary" in capsys.readouterr().err
