"""The turn that lost an episode, where it is known: money that is sent cannot be had back."""

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from immutables import Map
from scipy.stats import binomtest

from journeyman.agents.cli import main
from journeyman.agents.errors import NoSnapshotError, RunFileError
from journeyman.agents.evaluation.lost import (
    SEARCHES,
    Chance,
    Lost,
    SearchFile,
    episode_key,
    in_words,
)
from journeyman.agents.evaluation.records import EpisodeFile, Played
from journeyman.agents.evaluation.scores import TreeNode
from journeyman.agents.evaluation.transcript import as_text
from journeyman.agents.rollouts.replay import replayed
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.search.deciding import DecidingSearch, gold_counts
from journeyman.agents.search.language import LanguageWorld
from journeyman.agents.search.searches import run_searches
from journeyman.agents.students.scripted import ScriptedPlayer
from journeyman.agents.students.spoken import SpokenPlayer, plain_dialect
from journeyman.envs import Episode, Message, StopReason, Task, ToolEnv, UserTurn, register
from journeyman.envs.errors import StateChangedError
from journeyman.tools import ToolCall, ToolError, ToolSpec, render_hermes, tool

TILL = "acme/Till-v0"
TURNS = 6
"""That an episode may have."""


@tool
def look(state: Map) -> tuple[Map, dict]:
    """See what there is."""
    return state, dict(state)


@tool
def send(state: Map, to: str) -> tuple[Map, str]:
    """Send all of the money.

    Args:
        to: Whom.
    """
    if not state["purse"]:
        raise ToolError("the purse is empty")
    return state.set("purse", 0).set(to, state["purse"]), "sent"


class Till(ToolEnv):
    """Ten coins for Ada, and for nobody else."""

    toolset = (look, send)

    @classmethod
    def generate(cls, rng: random.Random, split: Any, level: Any) -> Task:
        state = Map(purse=10, ada=0, bo=0, number=rng.randrange(10**9))
        return Task("", "send", "Send all to ada.", state, (ADA,), None)


class Twice(Till):
    """A second wish, after the first."""

    @classmethod
    def generate(cls, rng: random.Random, split: Any, level: Any) -> Task:
        task = super().generate(rng, split, level)
        return replace(task, prompt="Look.", gold=(LOOK,), then=(UserTurn("Send.", (ADA,), None),))


class Unbranched(Till):
    """One that takes no snapshots."""

    def snapshot(self) -> Any:
        raise NotImplementedError


LOOK = ToolCall("look", {})
ADA, BO = (ToolCall("send", {"to": name}) for name in ("ada", "bo"))
END = "Answer: done"
CHANCES = {"look": 0.4, "ada": 0.3, "bo": 0.2, "end": 0.1}
"""What the student does while the purse is full; then it is done."""


class Careless(SpokenPlayer):
    """Throws dice until it has sent the money."""

    def at(self, temperature: float) -> "Careless":
        return self

    def turn(self, messages: Sequence[Message], tools: Sequence[ToolSpec], seed: int) -> str:
        if any(m.role == "tool" and m.content == "sent" for m in messages):
            return END
        (done,) = random.Random(seed).choices(list(CHANCES), list(CHANCES.values()))
        acts = {"look": LOOK, "ada": ADA, "bo": BO}
        return END if done == "end" else render_hermes(acts[done])


def load_careless() -> Careless:
    return Careless(plain_dialect())


def exact(turn: int) -> float:
    """V before a turn with the purse full: to send to Ada in time for a last word."""
    return sum(CHANCES["look"] ** k * CHANCES["ada"] for k in range(TURNS - turn - 1))


@pytest.fixture(autouse=True)
def _registered(scratch_registry: None) -> None:
    register(TILL, Till)
    register("acme/Twice-v0", Twice)
    register("acme/Unbranched-v0", Unbranched)


KWARGS = {"max_turns": TURNS}


def play(*turns: ToolCall | str, env: str = TILL, number: int = 0) -> Episode:
    """An episode of these turns, without branch points, as a file has it."""

    def script(env: ToolEnv) -> Iterator[ToolCall | str]:
        yield from turns

    player = ScriptedPlayer(plain_dialect(), script)
    (episode,) = rollout(player, [TaskRef(env, f"test/{number}")], env_kwargs=KWARGS)
    assert len(episode.steps) == len(turns) and not episode.branch_points
    return episode


def search(episode: Episode, tries: int, bisect: bool, seed: int) -> dict[int, tuple[int, int]]:
    world = LanguageWorld(load_careless(), 512, KWARGS)
    tree = world.plant([replayed(episode, KWARGS)])
    found = DecidingSearch(tree, tree.paths[0], tries, bisect, seed)
    run_searches(world, [found])
    return found.counts


LOST = [
    ((LOOK, BO, LOOK, END), 1),  # wrong and not to be undone, then a look that loses nothing
    ((BO, END), 0),
    ((LOOK, LOOK, BO, ADA, END), 2),  # what the tool refuses is not what lost it
    ((LOOK, LOOK, END), 2),  # nothing sent: looks lost nothing, the answer came too soon
    ((LOOK, LOOK, LOOK, LOOK, LOOK, LOOK), 4),  # a look too many: no turn left to answer in
]


@pytest.mark.parametrize("bisect", [False, True])
@pytest.mark.parametrize(("turns", "lost"), LOST)
def test_the_turn_that_lost_is_named(
    turns: tuple[ToolCall | str, ...], lost: int, bisect: bool
) -> None:
    for seed in range(3):
        counts = search(play(*turns, number=seed), 16, bisect, seed)
        chances = tuple(Chance(turn, *count) for turn, count in counts.items())
        assert Lost("", "student", {}, chances).turn == lost
        assert all(it.tries == 16 for it in chances)
        for it in chances:
            v = exact(it.turn) if it.turn <= lost else 0.0
            assert binomtest(it.wins, 16, v).pvalue > 1e-4
        if bisect:
            assert len(chances) <= math.ceil(math.log2(len(turns) + 1))
            assert {lost, lost + 1} - {len(turns)} <= counts.keys()
        else:
            assert list(counts) == list(range(len(turns)))


def test_equal_seeds_find_the_same_and_places_do_not_share_dice() -> None:
    episode = play(LOOK, LOOK, BO, END)
    one = search(episode, 16, False, 1)
    assert one == search(episode, 16, False, 1)
    assert one != search(episode, 16, False, 2)
    # The dice of a place are the same, whichever other places are tried.
    by_halves = search(episode, 16, True, 1)
    assert by_halves.items() <= one.items()


@pytest.mark.parametrize(("turns", "lost"), LOST)
def test_gold_calls_name_it_too(turns: tuple[ToolCall | str, ...], lost: int) -> None:
    counts = gold_counts(replayed(play(*turns), KWARGS), KWARGS)
    assert [wins for wins, _ in counts.values()] == [int(k <= lost) for k in range(len(turns))]


def test_gold_calls_go_on_where_the_user_is() -> None:
    episode = play(LOOK, END, LOOK, BO, END, env="acme/Twice-v0")
    counts = gold_counts(replayed(episode, KWARGS), KWARGS)
    assert [wins for wins, _ in counts.values()] == [1, 1, 1, 1, 0]


# --- played again ---------------------------------------------------------------------------------


def test_a_record_is_played_again_to_the_same_states() -> None:
    broken = "<tool_call>\n{"
    turns = (LOOK, ToolCall("lend", {}), ToolCall("send", {}), broken, BO, END)
    episode = Episode.from_dict(json.loads(json.dumps(play(*turns).to_dict())))
    again = replayed(episode, KWARGS)
    assert again == episode and len(again.branch_points) == len(turns)
    assert [it.name for it in again.tools] == ["look", "send"]


def test_a_record_that_leads_elsewhere_by_now_is_refused() -> None:
    episode = play(LOOK, BO, END)
    for changed, what in (
        (replace(episode, state_hash="0"), "the last of them leads to another state"),
        (replace(episode, task_id="test/1"), "the last of them leads to another state"),
        (replace(episode, steps=episode.steps + episode.steps[:1]), "over before turn 4"),
        (
            replace(episode, steps=(episode.steps[0], episode.steps[1], episode.steps[1])),
            "calls of turn 3 end otherwise",
        ),
    ):
        with pytest.raises(StateChangedError, match=f"acme/Till-v0 test/.: .*{what}"):
            replayed(changed, KWARGS)


def test_an_environment_without_snapshots_is_refused() -> None:
    with pytest.raises(NoSnapshotError, match="Unbranched takes no snapshots"):
        replayed(play(BO, END, env="acme/Unbranched-v0"), KWARGS)


# --- in words and on disk -------------------------------------------------------------------------


def test_what_no_wins_show() -> None:
    """The bound that Clopper and Pearson's one-sided interval has by another implementation."""
    for tries in (1, 8, 16, 100):
        test = binomtest(0, tries, alternative="less")
        assert Chance(0, 0, tries).most == pytest.approx(test.proportion_ci(0.95).high)
        assert Chance(0, 0, tries).interval == (0.0, Chance(0, 0, tries).most)
    some = Chance(0, 5, 16)
    wilson = binomtest(5, 16).proportion_ci(0.95, "wilson")
    assert some.interval == pytest.approx((wilson.low, wilson.high))
    assert Chance(0, 0, 0).value is None and Chance(0, 0, 0).interval == (0.0, 1.0)


@pytest.mark.parametrize(
    ("player", "counts", "words"),
    [
        (
            "student",
            [(8, 16), (4, 16), (0, 16), (0, 16)],
            "Lost at turn 2: from before it the student wins 4 of 16 times (10% to 49%), after it "
            "0 of 16 (below 17%).",
        ),
        (
            "student",
            [(13, 16), (12, 16), (3, 16), (0, 16)],
            "Lost at turn 3: from before it the student wins 3 of 16 times (7% to 43%), after it "
            "0 of 16 (below 17%). The chance fell most at turn 2: by 0.56 [0.22, 0.75].",
        ),
        (
            "student",
            [(0, 16), (0, 16), (0, 16), (1, 16)],
            "Lost at turn 4: from before it the student wins 1 of 16 times (1% to 28%); then it "
            "ended (answered).",
        ),
        (
            "student",
            [(0, 16)] * 4,
            "Lost before it began: from its beginning the student wins 0 of 16 times (below 17%).",
        ),
        (
            "student",
            [(0, 0)] * 4,
            "Where it was lost is not known: nothing that was played on came to its end.",
        ),
        (
            "oracle",
            [(1, 1), (0, 3), (0, 3), (0, 3)],
            "Lost at turn 1: from before it the gold calls still win, after it none of 3 ways to "
            "go on with them does.",
        ),
        ("oracle", [(0, 2)] * 4, "Lost before it began: none of 2 ways with the gold calls wins."),
    ],
)
def test_it_is_said_with_its_uncertainty(
    player: str, counts: list[tuple[int, int]], words: str
) -> None:
    chances = tuple(Chance(turn, *count) for turn, count in enumerate(counts))
    assert in_words(Lost("", player, {}, chances), play(LOOK, BO, LOOK, END)) == words


@pytest.mark.parametrize(
    ("tried", "told"),
    [
        ((Chance(2, 0, 4),), " (0 of 4 from here did); then it ended (answered)."),
        ((), "; then it ended (answered)."),  # by bisection it was not tried
    ],
)
def test_a_win_that_came_by_later_places_is_proof_for_them(
    tried: tuple[Chance, ...], told: str
) -> None:
    """From before the first turn: the episode's first two turns, and then another last one."""
    won = TreeNode(3, 1.0, 0.0, 1, 1.0, "Answer: 17", stop="answered")
    own = TreeNode(3, 0.0, 0.0, 2, 0.0, END, stop="answered", own=True)
    second = TreeNode(2, 0.3, 0.1, 3, 0.3333, own=True, children=(own, won))
    first = TreeNode(1, 0.3, 0.1, 3, 0.3333, own=True, children=(second,))
    tree = TreeNode(0, 0.3, 0.1, 3, 0.3333, own=True, children=(first,))
    lost = Lost("", "student", {}, (Chance(0, 1, 4), Chance(1, 0, 4), *tried), tree)
    assert lost.turn == 2 and replace(lost, tree=None).turn == 0
    words = "Lost at turn 3: a try from before an earlier turn came by here and won"
    assert in_words(lost, play(LOOK, LOOK, END)) == words + told


def test_searches_are_read_with_the_episodes_they_are_of(tmp_path: Path) -> None:
    one, other = play(LOOK, BO, END), play(BO, END, number=1)
    file, searches = EpisodeFile(tmp_path), SearchFile(tmp_path)
    file.append([Played("student", one, "send"), Played("student", other, "send")])
    first = Lost(episode_key(one), "oracle", {}, (Chance(0, 1, 1), Chance(1, 0, 2)))
    searches.append(first)
    second = Lost(episode_key(one), "student", {"tries": 4}, (Chance(0, 1, 4),))
    searches.append(replace(second, chances=(Chance(0, 0, 4),)))
    with (tmp_path / SEARCHES).open("a") as opened:
        opened.write('{"form')  # a kill
    searches.append(second)
    assert [p.lost for p in file.read()] == [(second, first), ()]
    text = as_text(file.read()[0])
    assert "(from here the student wins 1 of 4: 25% [5%, 70%])\n(from here the gold" in text
    assert in_words(first, one) in text.splitlines()
    for cut, put, told in (
        ('"wins":0', '"wins":9', "line 1 is no search .chances of fewer"),
        ('"format":1', '"format":2', "line 1 is no search .format 2, expected 1"),
        ('"player":"oracle"', '"player":"me"', "line 1: player is not"),
    ):
        whole = (tmp_path / SEARCHES).read_text()
        (tmp_path / SEARCHES).write_text(whole.replace(cut, put, 2))
        with pytest.raises(RunFileError, match=told):
            file.read()
        (tmp_path / SEARCHES).write_text(whole)


def test_the_fall_of_a_chance_is_newcombes() -> None:
    """His examples of 1998, table II, method 10."""
    for (a, m), (b, n), low, high in (
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0),
    ):
        found = Lost("", "student", {}, (Chance(0, a, m), Chance(1, b, n))).fall(0, 3)
        assert found is not None
        assert found == pytest.approx((a / m - b / n, low, high), abs=1e-4)
    known = Lost("", "student", {}, (Chance(0, 8, 16), Chance(1, 4, 16)))
    assert known.fall(1, 3) is None and known.fall(2, 3) is None
    assert known.deciding(3) is None  # 8 and 4 of 16 may be the same chance
    end = known.fall(1, 2)
    assert end is not None and end.value == 0.25 and known.deciding(2) == 1
    assert replace(known, player="oracle").deciding(2) is None


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three episodes that failed, one that did not, and one of no interest."""
    config = {
        "name": "till",
        "seed": 0,
        "run_dir": str(tmp_path),
        "threads": None,
        "env": {"ids": [TILL], "kwargs": KWARGS},
        "student": {"_target_": f"{__name__}.load_careless"},
        "sandbox": None,
        "evaluation": {
            "tasks": 4,
            "split": "test",
            "attempts": 1,
            "temperature": 0.0,
            "batch_size": 8,
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    played = [(LOOK, BO, LOOK, END), (ADA, END), (BO, END), (LOOK, LOOK, END)]
    rows = [
        Played("student", play(*turns, number=i), "send", weights="other")
        for i, turns in enumerate(played)
    ]
    gone = replace(rows[0].episode, stop=StopReason.INFRA_ERROR, error="gone")
    EpisodeFile(tmp_path).append(
        [
            Played("no-op", play(END), "send"),
            *rows,
            Played("student", replace(gone, task_id="test/9"), "send", weights="other"),
        ]
    )
    return tmp_path


def lines_of(run: Path) -> list[str]:
    return (run / SEARCHES).read_text().splitlines()


def test_why_says_where_episodes_were_lost_and_keeps_it(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ["why", str(run), "--tries", "24"]
    assert main([*ask, "--limit", "1"]) == 0
    out, err = capsys.readouterr()
    first = lines_of(run)
    assert len(first) == 1
    assert next(line for line in out.splitlines() if "<== lost here" in line).startswith("2 ")
    assert "after it 0 of 24 (below 12%)." in out
    assert out.endswith("1 of 3 failed episodes of 'student'; --limit 0 takes all\n")
    assert err.count("Mind: another student plays on") == 1
    assert main(ask) == 0
    whole = capsys.readouterr().out
    assert whole.startswith(out.rpartition("\n1 of 3")[0])
    assert lines_of(run)[:1] == first and len(lines_of(run)) == 3
    assert [line.split()[0] for line in whole.splitlines() if "<==" in line] == ["2", "1", "3"]

    def play_on(*_: Any) -> None:
        pytest.fail("it was found before")

    with monkeypatch.context() as patched:
        patched.setattr(LanguageWorld, "expand", play_on)
        assert main(ask) == 0
        assert capsys.readouterr().out == whole
    # Other settings are another search, and the last is shown; the first is not made anew.
    assert main([*ask, "--seed", "1", "--task", "0"]) == 0
    assert f"\n{capsys.readouterr().out.splitlines()[2]}" not in whole
    with monkeypatch.context() as patched:
        patched.setattr(LanguageWorld, "expand", play_on)
        assert main(ask) == 0
        assert capsys.readouterr().out == whole
    assert len(lines_of(run)) == 5 and lines_of(run)[4] == first[0]
    (run / SEARCHES).unlink()  # however it was cut short, the same is found
    assert main(ask) == 0
    assert capsys.readouterr().out == whole
    assert main([*ask[:2], "--player", "oracle"]) == 0
    assert "after it none of 2 ways" in capsys.readouterr().out
    kept = [p for p in EpisodeFile(run).read() if p.lost]
    assert [[(it.player, it.turn) for it in p.lost] for p in kept] == [
        [("student", k), ("oracle", k)] for k in (1, 0, 2)
    ]
    tree = kept[0].lost[0].tree
    assert tree is not None and tree.visits == 25
    assert [it.text for it in own_way(tree)] == [s.text for s in kept[0].episode.steps]

    assert main([*ask[:2], "--summary"]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert told[0] == ["3", "of", "3", "failed", "episodes", "of", "'student'"]
    for row in ("turn 1 1 33%", "turn 2 1 33%", "turn 3 1 33%", "send 2 67%", "(answer) 1 33%"):
        assert row.split() in told
    assert main(["show", str(run), "--task", "0", "--row", "student"]) == 0
    shown = capsys.readouterr().out
    assert "(from here the student wins 0 of 24: 0% [0%, 12%])" in shown
    assert "Lost at turn 2" in shown


def own_way(tree: Any) -> Iterator[Any]:
    while tree.children:
        (tree,) = [child for child in tree.children if child.own]
        yield tree


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--row", "student after"], "has no row 'student after' of an evaluation; --row names"),
        (["--tries", "0"], "--tries 0: expected 1 or more"),
        (["--temperature", "0"], "--temperature 0: expected above 0"),
        (["--task", "1"], "no failed episode of row 'student' (task_id test/1)"),
        (["env=other"], "'env=other': expected student=… or student.…=…"),
        (["student.model=x"], "no setting student.model: there are: _target_"),
        (["student=oracle"], "its student plays a script and cannot play on"),
        (["--summary"], "none of 3 failed episodes of row 'student' was searched yet"),
    ],
)
def test_what_why_refuses(
    arguments: list[str], told: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["why", str(run), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (run / SEARCHES).exists()


def test_an_episode_of_another_environment_is_left_out(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["env"]["kwargs"] = {"max_turns": 2}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    told = "the turns of the record do not lead where they led"
    assert main(["why", str(run), "--player", "oracle"]) == 0
    out, err = capsys.readouterr()
    assert err.count("Mind: left out") == err.count(told) == 2
    assert out.endswith("1 of 3 failed episodes of 'student'\n")
    assert main(["why", str(run), "--task", "0"]) == 2
    assert told in capsys.readouterr().err
