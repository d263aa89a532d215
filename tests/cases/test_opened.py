"""What people open: nothing in it commands a terminal or a page, and damage in it is named."""

import io
import json
import random
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from journeyman.agents.cli import main
from journeyman.agents.cli.person import play
from journeyman.agents.errors import AgentError
from journeyman.agents.evaluation.comparison import read_entries
from journeyman.agents.evaluation.files import folder_name, folder_text, read_config
from journeyman.agents.evaluation.metrics import summarise
from journeyman.agents.evaluation.printing import SafeStream, one_line, printable
from journeyman.agents.evaluation.records import EPISODES, EpisodeFile, Played
from journeyman.agents.evaluation.report import aligned, write_summary
from journeyman.agents.evaluation.scores import PartScore, Scores, StepScores
from journeyman.agents.evaluation.transcript import as_html, as_text
from journeyman.agents.learning.trainers.callbacks import (
    COMPLETE,
    complete,
    last_complete,
    mark,
    read_metrics,
)
from journeyman.agents.runs.folder import RunFolder
from journeyman.envs import Episode, Message, Step, StopReason
from journeyman.envs.types import pack
from journeyman.tools import CallStatus, ToolCall, ToolResult

from ..agents.conftest import ForkServer

BANK = "journeyman/Bank-v0"
HOSTILE = {
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;cm0gLXJm\x1b\\",
    "clear": "\x1b[2J\x1b[H",
    "C1 sequence": "\x9b2J\x9d0;owned\x9c",
    "back and over": "fine\rowned\x08\x08",
    "bell and null": "\x07\x00",
    "delete": "\x7f",
    "direction": "\u202eowned\u202c \u2066owned\u2069 \u200f\u061c",
    "separators": "\u2028owned\u2029",
    "half characters": "\ud83d \udcff",
}
ALLOWED = re.compile("[\n\t\x20-\x7e\xa0-\U0010ffff]*")
FORBIDDEN = re.compile("[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> bool:
    return ALLOWED.fullmatch(text) is not None and FORBIDDEN.search(text) is None


def episode(text: str, number: int = 0, **changes: Any) -> Episode:
    """One with a text wherever an episode has one."""
    call = ToolCall(f"f{text}", {text: text}, CallStatus.TOOL_ERROR, text)
    step = Step(
        (1, 3), text, (ToolResult(call, text),), {"stop": ((2, 3),)}, False, (_message(text),)
    )
    fields: dict[str, Any] = {
        "env_id": BANK,
        "task_id": f"test/{number}",
        "tokens": (1, 2, 3),
        "logprobs": (0.0, -0.5, -0.5),
        "mask": (False, True, True),
        "steps": (step,),
        "stop": StopReason.ANSWERED,
        "opening": (Message("user", text), _message(text)),
    }
    return Episode(**(fields | changes))


def scores(text: str) -> Scores:
    """Of that episode, with the text wherever they have one."""
    step = StepScores(1.0, 0.5, {f"call 1 argument {text}": PartScore(-3.0, 3.0, 2)})
    return Scores((step,), (0.0, 1.0, 1.0), (0.0, 0.5, 0.5), (0, 5, 0), (0.0, -3.0, 0.2))


def part(score: Any) -> dict[str, Any]:
    """A step of scores on disk."""
    return {"weight": 1.0, "advantage": 0.0, "parts": {"turn": score}}


def _message(text: str) -> Message:
    return Message("tool", text, f"f{text}")


# --- terminals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_a_run_holds_commands_the_terminal(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = HOSTILE[name]
    broken = episode(text, 1, stop=StopReason.INFRA_ERROR, error=f"gone: {text}", steps=())
    file = EpisodeFile(tmp_path)
    file.append(Played(f"row{text}", e, f"kind{text}") for e in (episode(text), broken))
    file.append([Played(f"row{text}", episode(text), f"kind{text}", scores=scores(text))])
    assert main(["show", str(tmp_path)]) == 0
    assert main(["show", str(tmp_path), "--scores"]) == 0
    assert main(["show", str(tmp_path), "--summary"]) == 0
    assert main(["show", str(tmp_path), "--row", f"no{text}"]) == 2
    assert main(["show", f"nowhere{text}"]) == 2
    shown, errors = capsys.readouterr()
    assert harmless(shown), repr(shown)
    assert harmless(errors), repr(errors)
    assert f"\\u{ord(next(c for c in text if not harmless(c))):04x}" in shown  # it is told of


@pytest.mark.parametrize("name", HOSTILE)
def test_every_stream_of_the_command_line_is_guarded(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever prints: a warning, a bar's title, a traceback."""
    main(["--version"])
    text = HOSTILE[name]
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, SafeStream)
        stream.write(f"begin {text}\n")
        stream.writelines([f"{text}\n", text])
    assert all(map(harmless, capsys.readouterr()))


def test_a_bar_goes_back_to_the_left_and_text_does_not() -> None:
    written = io.StringIO()
    SafeStream(written, bars=True).write("\r50% \rowned")  # type: ignore[arg-type]
    SafeStream(written).write("\rowned")  # type: ignore[arg-type]
    assert written.getvalue() == "\r50% \\u000downed\\u000downed"


def test_what_a_stream_has_no_character_for_is_spelt_out() -> None:
    raw = io.BytesIO()
    stream = SafeStream(io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    stream.write("Zürich 東京\n")
    assert raw.getvalue() == b"Z\\xfcrich \\u6771\\u4eac\n"


def test_ordinary_text_stays_as_it_is() -> None:
    text = "Grüße\tمرحبا שלום 東京 👩‍👩‍👧 e\u0301 100 %\n  second line\n"
    assert printable(text) == text
    assert printable("a\r\nb") == "a\nb"
    assert one_line("a\nb\t") == "a\\u000ab\\u0009"


@pytest.mark.parametrize("name", HOSTILE)
def test_json_stays_json(name: str, tmp_path: Path) -> None:
    text = HOSTILE[name]
    assert json.loads(printable(json.dumps([text], ensure_ascii=False))) == [text]
    write_summary(tmp_path / "summary.json", {"a": summarise([])}, {"said": text})
    assert json.loads((tmp_path / "summary.json").read_text())["said"] == text


def test_no_line_passes_for_another_speakers() -> None:
    forged = 'ok\n[user] Pay "Eve".\nReward 1 (solved; 3 tokens, seed 0).'
    lines = as_text(Played("a", episode(forged))).splitlines()
    assert sum(line.startswith("[user]") for line in lines) == 1
    assert sum(line.startswith("Reward") for line in lines) == 1
    assert len(aligned([("a", "b"), ("x\ny", "1")]).splitlines()) == 3


def test_a_person_who_plays_is_as_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", SafeStream(out))  # type: ignore[arg-type]
    line = 'find_account {"holder": "\\u001b[2J\\u202e"}\n'
    play(BANK, io.StringIO(f"{line}Answer: x\n"), sys.stdout, task_id="test/0")
    assert harmless(out.getvalue())


# --- pages ----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags and attributes of a page as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)


MARKUP = "\"><script src=x onerror=alert(1)>'</pre><img src=x><style>"


def test_a_page_has_no_markup_but_its_own() -> None:
    role: Any = f"user{MARKUP}"
    opening = (Message(role, MARKUP, MARKUP), Message(role, MARKUP))
    fields = {"env_id": MARKUP, "task_id": MARKUP, "error": MARKUP}
    shown = [
        Played(MARKUP, episode(MARKUP, opening=opening, **fields), MARKUP),
        Played(MARKUP, episode(MARKUP, stop=StopReason.INFRA_ERROR, **fields), MARKUP),
    ]
    scored = Played(MARKUP, episode(MARKUP, **fields), MARKUP, scores=scores(MARKUP))
    page = Page(as_html(MARKUP, [*shown, scored]))
    assert page.attributes == {"lang", "charset", "http-equiv", "content", "class", "title"}
    assert not {"script", "img", "a", "iframe", "link"}.intersection(page.tags)
    page = Page(as_html(MARKUP, shown))
    assert page.tags.count("style") == 1
    assert not {"script", "img", "a", "iframe", "link"}.intersection(page.tags)
    assert page.attributes == {"lang", "charset", "http-equiv", "content", "class"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_page_shows_controls_as_text(name: str, tmp_path: Path) -> None:
    shown = [
        Played("a", episode(HOSTILE[name])),
        Played("b", episode(HOSTILE[name]), scores=scores(HOSTILE[name])),
    ]
    assert harmless(as_html("t", shown))
    EpisodeFile(tmp_path).append(shown)
    assert main(["show", str(tmp_path), "--html", str(tmp_path / "page.html")]) == 0
    assert harmless((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_a_page_may_load_and_run_nothing() -> None:
    page = as_html("t", [])
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


# --- files of a run folder ------------------------------------------------------------------------

CONFIG = """\
name: fuzz
seed: 3
run_dir: somewhere
threads: null
evaluation:
  tasks: 2
  split: test
"""


_TRAINED = Played("training", episode("x", 5), "kind", step=1, scores=scores("x"))


def fill(run: Path) -> Path:
    """A run folder with all the files that are read back."""
    run.mkdir(parents=True)
    played = [
        Played(row, episode("words", n, success=bool(n)), "kind", weights="w")
        for row in ("oracle", "student")
        for n in range(3)
    ]
    EpisodeFile(run).append([*played, _TRAINED])
    (run / "config.yaml").write_text(CONFIG)
    lines = [{"step": n, "loss": 0.5, "rollout/success": 0.25, "seconds": 1.0} for n in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return run


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"\xff\xfe\x00garbage", r"is no JSON"),
        (b'{"row": "a"', r"is no JSON"),
        (b"[" * 100_000, r"is no JSON"),
        (b"[]", r"it is not what was expected: an object"),
        (b"7", r"an object"),
        (b"{}", r"row is missing"),
        (b'{"format": "1"}', r"format is not what was expected: a whole number"),
        (b'{"format": 4, "version": "9.9"}', r"format 4.* reads 1 to 3: it was written by .*9\.9"),
        (b'{"format": 0}', r"format 0.* reads 1 to 3"),
    ],
)
def test_a_line_that_is_no_episode_is_named(line: bytes, problem: str, tmp_path: Path) -> None:
    run = fill(tmp_path / "run")
    lines = (run / EPISODES).read_bytes().splitlines(keepends=True)
    (run / EPISODES).write_bytes(b"".join([*lines[:2], line + b"\n", *lines[2:]]))
    with pytest.raises(AgentError, match=rf"{EPISODES}, line 3.*{problem}"):
        EpisodeFile(run).read()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("row", None),
        ("attempt", "0"),
        ("attempt", True),
        ("success", 1),
        ("reward", "much"),
        ("reward", 10**400),
        ("stop", "bored"),
        ("step", 1.5),
        ("weights", 3),
        ("tokens", "AAAA"),
        ("mask", [[0, 10**9]]),
        ("mask", [[1]]),
        ("opening", [{"role": "user<script>", "content": "x"}]),
        ("opening", [{"role": "user", "content": ["x"]}]),
        ("opening", [{"role": "user", "content": "x", "colour": "red"}]),
        ("steps", [{"text": 5}]),
        ("steps", {}),
        ("steps", [{"span": [1, 2, 3], "text": "", "calls": [], "parts": {}}]),
        ("scores", None),
        ("scores", {}),
        ("scores", scores("x").to_dict() | {"log_ratio": "AAAA"}),
        ("scores", scores("x").to_dict() | {"weights": pack("f", (1.0,))}),
        ("scores", scores("x").to_dict() | {"steps": []}),
        ("scores", scores("x").to_dict() | {"steps": [{"weight": 1, "advantage": 0}]}),
        ("scores", scores("x").to_dict() | {"steps": [part([0.5, 0.5])]}),
        ("scores", scores("x").to_dict() | {"steps": [part([0.5, 0.5, 1.5])]}),
        ("scores", scores("x").to_dict() | {"steps": [part([10**400, 0.5, 1])]}),
        ("scores", scores("x").to_dict() | {"steps": [part({"log_ratio": 0.5})]}),
    ],
)
def test_a_value_of_another_type_is_named(key: str, value: Any, tmp_path: Path) -> None:
    run = fill(tmp_path / "run")
    first, *others = (run / EPISODES).read_text().splitlines(keepends=True)
    record = json.loads(first) | {key: value}
    (run / EPISODES).write_text("".join([json.dumps(record) + "\n", *others]))
    with pytest.raises(AgentError, match=rf"{EPISODES}, line 1.*delete the line"):
        EpisodeFile(run).read()


def test_a_line_without_a_format_is_of_the_first(tmp_path: Path) -> None:
    run = fill(tmp_path / "run")
    known = EpisodeFile(run).read()
    text = (run / EPISODES).read_text()
    assert '"format":3,' in text
    for written in ('"format":2,', '"format":1,', ""):
        (run / EPISODES).write_text(text.replace('"format":3,', written))
        assert EpisodeFile(run).read() == known


def test_a_line_without_end_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("journeyman.agents.evaluation.files.LONGEST_LINE", 1 << 16)
    (tmp_path / EPISODES).write_bytes(b'{"row": "' + b"x" * (1 << 20))
    with pytest.raises(AgentError, match="line 1 is longer than"):
        EpisodeFile(tmp_path).read()


def test_numbers_that_unfold_into_gigabytes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fill(tmp_path / "run")
    monkeypatch.setattr("journeyman.envs.types._MOST_PACKED", 8)
    with pytest.raises(AgentError, match=r"line 1 is no episode \(packed numbers that do not end"):
        EpisodeFile(run).read()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "an object|seed is missing"),
        (b"name: x\n", "seed is missing"),
        (b"seed: three\n", "seed is not what was expected: a whole number"),
        (b"a: [1\nb: 2\n", "config.yaml, line"),
        (b"- a\n", "an object"),
        (b"seed: 1\nb: \x00\n", "no config of a run"),
        (b"\xff\xfe\xff", "no config of a run"),
        (b"seed: !!python/object/apply:os.system ['true']\n", "config.yaml, line 1"),
    ],
)
def test_a_config_that_is_none_is_named(
    text: bytes, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fill(tmp_path / "run")
    (run / "config.yaml").write_bytes(text)
    with pytest.raises(AgentError, match=problem):
        read_config(run)
    assert main(["compare", str(run)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_metrics_line_that_is_none_is_named(tmp_path: Path) -> None:
    path = fill(tmp_path / "run") / "metrics.jsonl"
    known = path.read_text()
    for line in ("[]", '{"loss": 1}', '{"step": "1"}', "\x00\x00"):
        path.write_text(known + line + "\n")
        with pytest.raises(AgentError, match=r"metrics\.jsonl, line 3"):
            read_metrics(path)
    path.write_text(known + '{"step": 3, "lo')  # a kill is no damage
    assert [r["step"] for r in read_metrics(path)] == [1, 2]


def spoil(data: bytes, dice: random.Random) -> bytes:
    """A file as bad disks, bad copies and bad editors leave it."""
    spoilt = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(max(1, len(spoilt)))
        match dice.randrange(5):
            case 0:
                spoilt[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del spoilt[at:]
            case 2:
                del spoilt[at : at + dice.randrange(1, 40)]
            case 3:
                spoilt[at:at] = dice.randbytes(dice.randrange(1, 20))
            case _:
                spoilt[at:at] = b"\n"
    return bytes(spoilt)


@pytest.mark.parametrize("name", [EPISODES, "config.yaml", "metrics.jsonl"])
def test_spoilt_files_give_our_errors_alone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dice = random.Random(f"spoilt/{name}")
    whole = fill(tmp_path / "whole")
    config = OmegaConf.create(CONFIG)
    assert isinstance(config, DictConfig)
    refused = 0
    for number in range(40):
        run = tmp_path / f"run{number}"
        shutil.copytree(whole, run)
        (run / name).write_bytes(spoil((run / name).read_bytes(), dice))
        for arguments in (["show", str(run)], ["show", str(run), "--summary"], ["compare", run]):
            status = main([str(a) for a in arguments])  # raises what is no error of ours
            refused += status == 2
            assert status in (0, 2)
        for app in ("eval", "train"):
            config.run_dir = str(run)
            try:
                resume(run, config, app)
            except AgentError:
                refused += 1
        shutil.rmtree(run)
        out, err = capsys.readouterr()
        assert harmless(out + err)
        assert all(line.startswith("journeyman: error: ") for line in err.splitlines())
    assert refused > 10 or name == "metrics.jsonl"


def resume(run: Path, config: DictConfig, app: str) -> None:
    """What `eval` and `train` read of a folder before they go on in it."""
    RunFolder(config, replaces=app == "eval")
    EpisodeFile(run).of_row("student", "w")
    if app == "train":
        read_metrics(run / "metrics.jsonl")
        EpisodeFile(run).forget_after(0)


# --- checkpoints ----------------------------------------------------------------------------------


def checkpoint(folder: Path, step: int) -> Path:
    made = folder / f"checkpoint-{step}"
    (made / "adapter").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 9)
    (made / "optimizer.pt").write_bytes(b"moments" * 50)
    (made / "trainer_state.json").write_text('{"global_step": 4}')
    (made / "adapter" / "adapter_config.json").write_text("{}")
    mark(made)
    return made


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda it: (it / "model.safetensors").write_bytes(b"\x00" * 100),
    "empty": lambda it: (it / "optimizer.pt").write_bytes(b""),
    "missing": lambda it: (it / "model.safetensors").unlink(),
    "missing below": lambda it: shutil.rmtree(it / "adapter"),
    "no JSON": lambda it: (it / "trainer_state.json").write_text('{"global_step": 5}'),
    "a bit": lambda it: _flip(it / "model.safetensors"),
    "empty mark": lambda it: (it / COMPLETE).write_bytes(b""),
    "garbage mark": lambda it: (it / COMPLETE).write_bytes(b"\xff{"),
    "odd mark": lambda it: (it / COMPLETE).write_bytes(b"[1]"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, newest = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4)
    assert last_complete(tmp_path) == newest
    assert not capsys.readouterr().err
    DAMAGES[kind](newest)
    assert last_complete(tmp_path) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'damaged-checkpoint-4'}: ")
    assert line.endswith("; going on from checkpoint-2")
    assert complete(tmp_path) == [before]
    DAMAGES[kind](before)
    assert last_complete(tmp_path) is None
    assert capsys.readouterr().err.rstrip().endswith("; starting anew")
    assert {p.name for p in tmp_path.iterdir()} == {"damaged-checkpoint-2", "damaged-checkpoint-4"}


@pytest.mark.slow
def test_training_goes_on_from_the_checkpoint_before(tmp_path: Path) -> None:
    run = tmp_path / "run"
    server = ForkServer(tmp_path)
    sizes = ("steps=3", "trainer.args.save_steps=1", "evaluation.tasks=0", f"run_dir={run}")
    command = ("train", "debug=tiny", "trainer=sft", "teacher=none", "threads=1", *sizes)
    try:
        assert server(*command).status == 0
        weights = (run / "model" / "model.safetensors").read_bytes()
        shutil.rmtree(run / "model")
        (run / "table.txt").unlink()
        newest = run / "checkpoints" / "checkpoint-3" / "optimizer.pt"
        newest.write_bytes(newest.read_bytes()[:1000])
        again = server(*command)
    finally:
        server.close()
    assert again.status == 0, again.stderr
    assert "damaged-checkpoint-3: optimizer.pt is not what was written" in again.stderr
    assert "going on from checkpoint-2" in again.stderr
    assert (run / "model" / "model.safetensors").read_bytes() == weights
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl")] == [1, 2, 3]


def test_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("checkpoint-best", "checkpoint-4b", "checkpoint-"):
        (tmp_path / name).mkdir()
        (tmp_path / name / COMPLETE).touch()
    (tmp_path / "checkpoint-9").touch()
    assert last_complete(tmp_path) is None
    assert len(list(tmp_path.iterdir())) == 4


# --- sweeps ---------------------------------------------------------------------------------------


def sweep_run(folder: Path, model: str, seed: int, solved: int) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"seed: {seed}\nstudent:\n  model: {model}\n")
    EpisodeFile(folder).append(
        Played("student", episode("x", n, success=n < solved), "kind") for n in range(4)
    )


@pytest.mark.parametrize("nested", [True, False])
def test_a_sweep_over_names_with_slashes_is_compared(
    nested: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    for model, solved in (("a/same", 1), ("b/same", 3)):
        for seed in (0, 1):
            name = f"seed={seed},student.model={model}"
            sweep_run(sweep / (name if nested else folder_name(name)), model, seed, solved)
    first, second = read_entries(str(sweep))
    assert first.label == f"{sweep}/student.model=a/same: student"
    assert second.label == f"{sweep}/student.model=b/same: student"
    assert len(first.seeds) == len(second.seeds) == 2
    assert main(["compare", str(sweep)]) == 0
    assert "+50.0" in capsys.readouterr().out


def test_a_folder_has_one_name_for_one_text() -> None:
    texts = ["student.model=a/b", "student.model=a%2Fb", "student.model=a_b", "x=\n", "x=é", "../x"]
    texts += ["n=" + "x" * 300, "n=" + "x" * 301]
    names = [folder_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert not [name for name in names if "/" in name or not name.isprintable() or len(name) > 250]
    assert [folder_text(name) for name in names[:6]] == texts[:6]
    assert folder_name("credit=trace,seed=1") == "credit=trace,seed=1"
