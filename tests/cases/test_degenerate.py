"""Runs that show nothing say so: they are refused, or a remark names the setting to change."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from omegaconf import OmegaConf

from journeyman.agents.cli import main
from journeyman.agents.errors import ModelNotFoundError, SettingError
from journeyman.agents.evaluation.entries import read_entries
from journeyman.agents.evaluation.metrics import summarise
from journeyman.agents.evaluation.overview import in_words
from journeyman.agents.evaluation.records import EpisodeFile, Played, rows_of
from journeyman.agents.evaluation.remarks import NO_SIGNAL, remarks
from journeyman.agents.evaluation.report import table
from journeyman.agents.learning.trainers.sft import _check_room
from journeyman.agents.rollouts.tasks import MOST_TASKS, deal, shortage
from journeyman.agents.runs.application import _check_choices
from journeyman.agents.runs.config import check_node
from journeyman.agents.runs.measuring import fingerprint
from journeyman.agents.runs.places import check_names
from journeyman.agents.students.dialect import Dialect
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.player import Conversation, Sampling, Stream
from journeyman.envs import Episode, Step, StopReason, env_class
from journeyman.envs.errors import UnknownTaskError
from journeyman.tools import CallStatus, ToolCall, ToolResult

from ..agents.conftest import ForkServer
from ..agents.tiny import chat, llama, tokenizer

BANK, ORDERS = "journeyman/Bank-v0", "journeyman/Orders-v0"


@pytest.fixture(scope="module")
def journeyman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Runs a command line in a process of its own."""
    server = ForkServer(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


# --- remarks --------------------------------------------------------------------------------------


def episode(
    number: int = 0,
    statuses: Sequence[CallStatus] = (CallStatus.OK,),
    stop: StopReason = StopReason.ANSWERED,
    success: bool = False,
    truncated: bool = False,
    turns: int = 1,
) -> Episode:
    results = tuple(ToolResult(ToolCall("f", status=status), "{}") for status in statuses)
    step = Step((1, 2), "", results, {}, truncated)
    steps = (step,) * turns
    return Episode(
        BANK, f"test/{number}", (1, 2), (0.0, 0.0), (False, True), steps, stop, 0.0, success
    )


def row(count: int = 3, **changes: Any) -> Any:
    return summarise([episode(number, **changes) for number in range(count)])


LATE, FULL = StopReason.MAX_TURNS, StopReason.CONTEXT_FULL


@pytest.mark.parametrize(
    ("name", "changes", "setting"),
    [
        ("student", {"statuses": [CallStatus.INVALID_JSON]}, "student.dialect"),
        ("student", {"statuses": [CallStatus.UNCLOSED, CallStatus.MISSING_NAME]}, "could be read"),
        ("student before", {"statuses": []}, "student.dialect"),
        ("student", {"statuses": [CallStatus.UNKNOWN_TOOL]}, "student.render"),
        ("student", {"truncated": True}, "student.max_turn_tokens"),
        ("student", {"stop": LATE}, "env.kwargs.max_turns"),
        ("student", {"stop": FULL}, "student.max_context"),
        ("student", {"stop": FULL, "turns": 0}, "3 of 3 prompts leave no room"),
        ("teacher", {}, "teacher.model"),
        ("teacher", {"statuses": [CallStatus.INVALID_JSON]}, "student.dialect"),
        ("oracle", {"stop": LATE}, "3 of 3 gold solutions are longer than env.kwargs.max_turns"),
        ("oracle", {}, "journeyman envs check"),
        ("no-op", {"success": True}, "they measure nothing"),
    ],
)
def test_a_remark_names_the_setting(name: str, changes: dict[str, Any], setting: str) -> None:
    (words,) = remarks({name: row(**changes)})  # once, whatever else is wrong
    assert words.startswith(f"{name}: ")
    assert setting in words
    assert words in in_words({name: row(**changes)}, False, [words])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("student", {"success": True, "statuses": [CallStatus.INVALID_JSON]}),
        ("student", {}),  # it called, was heard, and was wrong: a result
        ("student", {"statuses": [CallStatus.OK, CallStatus.INVALID_JSON]}),
        ("oracle", {"success": True}),
        ("teacher", {"success": True}),
        ("no-op", {"statuses": []}),
        ("student", {"count": 0}),
        ("oracle", {"stop": StopReason.INFRA_ERROR}),
    ],
)
def test_a_result_has_no_remark(name: str, changes: dict[str, Any]) -> None:
    assert remarks({name: row(**changes)}) == []


def test_training_that_learned_nothing_is_told() -> None:
    silent, learned = {"step": 1, NO_SIGNAL: 1.0}, {"step": 2, NO_SIGNAL: 0.5}
    assert "nothing was learned" in remarks({}, [silent, silent])[0]
    assert remarks({}, [silent, learned]) == remarks({}, [{"step": 1}]) == remarks({}, []) == []


def test_the_table_says_how_episodes_were_cut_short() -> None:
    rows = {"a": row(stop=LATE, count=2), "b": row(stop=FULL, count=4), "c": row()}
    header, _, *lines = table(rows).splitlines()
    assert header.split()[-4:] == ["max", "turns", "context", "full"]
    assert [line.split()[-2:] for line in lines] == [["2", "0"], ["0", "4"], ["0", "0"]]
    assert "turns" not in table({"c": row()})


# --- few tasks ------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six tasks of the bank in each split, ten of the orders."""
    for env_id, count in ((BANK, 6), (ORDERS, 10)):
        sizes = lambda split, level, count=count: count  # noqa: E731
        monkeypatch.setattr(env_class(env_id), "task_count", sizes)


def numbers(refs: Sequence[Any], env_id: str) -> list[int]:
    return [int(ref.task_id.rpartition("/")[2]) for ref in refs if ref.env_id == env_id]


@pytest.mark.usefixtures("few")
def test_an_evaluation_plays_what_there_is() -> None:
    refs = deal([BANK], "test", 0, 300, short="cap")
    assert numbers(refs, BANK) == list(range(6))
    refs = deal([BANK, ORDERS], "test", 0, 300, short="cap")
    assert (numbers(refs, BANK), numbers(refs, ORDERS)) == (list(range(6)), list(range(10)))
    assert [ref.seed for ref in refs] == list(range(16))
    refs = deal([BANK, ORDERS], "test", 0, 14, short="cap")
    assert (numbers(refs, BANK), numbers(refs, ORDERS)) == (list(range(6)), list(range(8)))
    # Where there are enough, they are dealt as ever.
    refs = deal([BANK, ORDERS], "test", 0, 5, short="cap")
    assert refs == deal([BANK, ORDERS], "test", 0, 5)
    assert [ref.env_id for ref in refs] == [BANK, ORDERS, BANK, ORDERS, BANK]
    endless = "journeyman/Calendar-v0"
    refs = deal([BANK, endless], "test", 0, 100, short="cap")
    assert (len(numbers(refs, BANK)), numbers(refs, endless)) == (6, list(range(94)))


@pytest.mark.usefixtures("few")
def test_whole_lists_of_unequal_length() -> None:
    refs = deal([BANK, ORDERS], "test", 0, "all")
    assert (numbers(refs, BANK), numbers(refs, ORDERS)) == (list(range(6)), list(range(10)))
    assert refs == deal([BANK, ORDERS], "test", 0, 16, short="cap")
    endless = "journeyman/Calendar-v0"
    with pytest.raises(SettingError, match=f"those of {endless} never run out: give a number"):
        deal([BANK, endless], "test", 0, "all")


@pytest.mark.usefixtures("few")
def test_a_training_begins_again() -> None:
    refs = deal([BANK, ORDERS], "train", 4, 12, short="cycle")
    assert numbers(refs, BANK) == [4, 5, 4, 5, 4, 5]
    assert numbers(refs, ORDERS) == [4, 5, 6, 7, 8, 9]
    with pytest.raises(UnknownTaskError, match=rf"{BANK} cannot give so many tasks: .*'train/6'"):
        deal([BANK], "train", 6, 1, short="cycle")
    with pytest.raises(UnknownTaskError, match=rf"{BANK} cannot give so many tasks: .*'test/9'"):
        deal([BANK], "test", 0, 10)


@pytest.mark.usefixtures("few")
def test_the_short_are_known_by_name() -> None:
    assert shortage([BANK, ORDERS], "test", 0, 300) == {BANK: 6, ORDERS: 10}
    assert shortage([BANK, ORDERS], "test", 0, 14) == {BANK: 6}
    assert shortage([BANK, ORDERS], "test", 0, 12) == {}
    assert shortage(["journeyman/Calendar-v0"], "test", 0, 10**9) == {}


def test_a_mistake_is_seen_before_a_list_is_made() -> None:
    with pytest.raises(SettingError, match=f"expected at most {MOST_TASKS}"):
        deal([BANK], "test", 0, 10**12)
    with pytest.raises(UnknownTaskError, match="no level 'hardd'"):
        deal([BANK], "test/hardd", 0, MOST_TASKS)


# --- whole runs -----------------------------------------------------------------------------------

SHORT = ("threads=1", f"env.ids=[{BANK}]")


@pytest.mark.parametrize(
    "command", [("eval", "evaluation.tasks=4"), ("train", "debug=tiny", "evaluation.tasks=0")]
)
def test_a_run_in_which_no_prompt_fits_is_refused(
    command: tuple[str, ...], tmp_path: Path, journeyman: ForkServer
) -> None:
    run = tmp_path / "run"
    done = journeyman(*command, *SHORT, "student.max_context=20", f"run_dir={run}")
    assert done.status == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "prompts leaves room for a turn: the shortest has " in last
    assert "student.max_context is 20: raise it, or show less in the prompt" in last
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr
    assert not (run / "summary.json").exists()
    assert not (run / "model").exists()


FEW = """
from journeyman.envs.tasks.bank import BankEnv

BankEnv.task_count = classmethod(lambda cls, split, level: 2)
"""


def test_an_evaluation_that_shows_nothing_says_so_once(
    tmp_path: Path, journeyman: ForkServer
) -> None:
    """Two tasks where three are asked, one turn where several are needed, a form nobody writes."""
    run = tmp_path / "run"
    done = journeyman(
        "eval",
        "threads=1",
        f"env.ids=[{BANK},{ORDERS}]",
        "env.kwargs.max_turns=1",
        "student.dialect=glm45",
        "evaluation.tasks=6",
        f"run_dir={run}",
        before=FEW,
    )
    assert done.status == 0, done.stderr
    assert f"{BANK} has 2 tasks in test, fewer than its share of evaluation.tasks=6" in done.stdout
    assert "max turns" in done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith("Mind: ")]
    assert [line.split(":")[1].strip() for line in told] == ["oracle", "student"]
    assert "env.kwargs.max_turns" in told[0]
    rows = rows_of(EpisodeFile(run).read())
    assert [len(played) for played in rows.values()] == [6, 6, 6]
    counts = [sum(p.episode.env_id == BANK for p in played) for played in rows.values()]
    assert counts == [2, 2, 2]


def test_a_training_without_a_signal_says_so(tmp_path: Path, journeyman: ForkServer) -> None:
    run = tmp_path / "run"
    done = journeyman(
        "train",
        "debug=tiny",
        *SHORT,
        "steps=2",
        "teacher=none",
        "loss=none",
        "credit=outcome",
        "env.kwargs.max_turns=1",
        "student.max_turn_tokens=4",
        "evaluation.tasks=1",
        f"run_dir={run}",
    )
    assert done.status == 0, done.stderr
    assert (done.stdout + done.stderr).count("nothing is learned here") == 1
    table_text = (run / "table.txt").read_text()
    for text in (done.stdout, table_text):
        assert text.count("Mind: training: nothing was learned") == 1
        assert text.count("Mind: oracle: ") == 1


def test_a_demonstration_nobody_could_play(caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_dict({"input_ids": [[1] * 5, [1] * 9]})
    _check_room(rows, 9)
    assert not caplog.records
    _check_room(rows, 8)
    assert "1 of 2 demonstrations are longer" in caplog.text
    with pytest.raises(SettingError, match=r"2 of 2 demonstrations .* raise student\.max_context"):
        _check_room(rows, 4)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["null", "NULL", "~", "", "3", "-1", "{}", "0.5", "[]"])
@pytest.mark.parametrize("group", ["loss", "student", "search", "experiment"])
def test_a_group_wants_a_name(group: str, value: str) -> None:
    with pytest.raises(SettingError, match=f"^{group}=.*: expected the name of an option, such as"):
        _check_choices(["steps=3", f"{group}={value}"])


def test_names_of_options_pass() -> None:
    names = ("loss=jsd", "loss=jsd,none", "env=journeyman/Bank-v0", "loss=choice(jsd,none)")
    others = ("~search", "+x=null", "steps=null", "-m", "env=[office]", "env.ids=[]", "loss.beta=0")
    _check_choices([*names, *others])


def test_a_text_of_a_part_is_a_text() -> None:
    node = OmegaConf.create(
        {"_target_": "journeyman.agents.students.hf.load_student", "model": None}
    )
    with pytest.raises(SettingError, match=r"student\.model=None: expected text"):
        check_node(node, "student")


def test_models_are_looked_for_by_name_before_one_is_loaded() -> None:
    ours = "journeyman.agents.teachers.local.load_teacher"
    there = OmegaConf.create({"_target_": ours, "model": "embedded-student"})
    foreign = OmegaConf.create({"_target_": "acme.Remote", "model": "/nowhere/model"})
    check_names(there, foreign, OmegaConf.create({"_target_": "acme.NoModel"}))
    with pytest.raises(ModelNotFoundError, match="/nowhere/model"):
        check_names(there, OmegaConf.create({"_target_": ours, "model": "/nowhere/model"}))


SPY = """
import journeyman.agents.students.hf as hf

def loaded(*args, **kwargs):
    raise SystemExit("a model was loaded")

hf.load_model = loaded
"""


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("teacher.model=/nowhere/model", "no model and no folder '/nowhere/model'"),
        ("trainer.args=null", "trainer.args=None: expected TRL's arguments"),
        ("trainer.args.report_to=wandb", "wandb"),
        ("evaluation.split=test/hardd", "no level 'hardd'"),
    ],
)
def test_a_mistake_shows_before_a_model_is_loaded(
    override: str, fragment: str, tmp_path: Path, journeyman: ForkServer
) -> None:
    done = journeyman("train", "debug=tiny", f"run_dir={tmp_path}", override, before=SPY)
    assert done.status == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert fragment in line


# --- whose figures --------------------------------------------------------------------------------


class Engine:
    """A player with a model in another engine."""

    def __init__(self, model: Any, dialect: Dialect, **more: Any) -> None:
        self.dialect, self.max_context, self.sampling = dialect, 100, Sampling()
        if model is not None:
            self.model = model
        vars(self).update(more)

    def open(self, conversations: Sequence[Conversation]) -> Stream:
        raise NotImplementedError


class OtherEngine(Engine):
    """Another."""


def test_figures_of_one_model_are_never_anothers(tmp_path: Path) -> None:
    """Whatever plays it, and wherever in its weights it differs."""
    model = llama(len(tokenizer()))
    known = fingerprint(Engine(model, chat()))
    assert known == fingerprint(Engine(model, chat())) != ""
    weights = max(model.parameters(), key=lambda it: it.numel())
    weights.data.view(-1)[-1] += 1e-3  # a row of the vocabulary, say
    files = tmp_path / "model"
    files.mkdir()
    (files / "model.safetensors").write_bytes(b"1")
    on_disk = fingerprint(Engine(None, chat(), weights=str(files)))
    (files / "model.safetensors").write_bytes(b"2")
    others = [
        fingerprint(Engine(model, chat())),
        fingerprint(OtherEngine(model, chat())),
        fingerprint(HFPlayer(model, chat())),
        fingerprint(Engine(llama(len(tokenizer()), seed=1), chat())),
        on_disk,
        fingerprint(Engine(None, chat(), weights=str(files))),
        fingerprint(Engine(None, chat())),
        fingerprint(OtherEngine(None, chat())),
    ]
    assert len({known, *others}) == 1 + len(others)


def test_a_row_is_of_its_last_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second model's evaluation was cut short: the first one's outcomes do not fill it up."""
    file = EpisodeFile(tmp_path)
    file.append(Played("student", episode(n, success=True), weights="old") for n in range(4))
    file.append(Played("student", episode(n), weights="new") for n in range(2))
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (entry,) = read_entries(str(tmp_path))
    assert entry.success()[0] == 0
    assert len(entry.tasks) == 2
    assert main(["show", str(tmp_path), "--summary"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[:3] == ["student", "2", "0.0%"]
