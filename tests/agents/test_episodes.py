"""What was played is on disk: written, read, shown, and not played again."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from journeyman.agents.cli import main
from journeyman.agents.errors import AgentError
from journeyman.agents.evaluation.records import (
    EPISODES,
    TRAINING,
    VISITED,
    EpisodeFile,
    Played,
    metrics_of,
    rows_of,
)
from journeyman.agents.learning.trainers.recording import TrainingLog
from journeyman.agents.networks.catalogue import resolve
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import TaskRef
from journeyman.agents.runs.measuring import fingerprint
from journeyman.agents.search.playing import SearchPlayer
from journeyman.agents.students.dialect import Dialect, Llama3
from journeyman.agents.students.hf import HFPlayer
from journeyman.agents.students.scripted import ScriptedPlayer, no_op, oracle
from journeyman.envs import Episode, StopReason, env_class
from journeyman.envs.origin import env_digest

from .tiny import BUILTIN, chat, llama, tokenizer

BANK = "journeyman/Bank-v0"
REFS = [TaskRef(BANK, f"test/{i}", seed=i) for i in range(4)]


def episodes(script: Any = oracle) -> list[Episode]:
    return rollout(ScriptedPlayer(chat(), script), REFS)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two rows and training episodes."""
    file = EpisodeFile(tmp_path)
    file.append(Played("no-op", e, "lost") for e in episodes(no_op))
    file.append(Played(TRAINING, e, "lost", step=1) for e in episodes(no_op)[:2])
    file.append(Played("oracle", e, "gold") for e in episodes())
    return tmp_path


# --- the file -------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = EpisodeFile(tmp_path)
    assert file.read() == []
    written = [Played("a", e, "k", attempt=i) for i, e in enumerate(episodes())]
    file.append(written[:3])
    file.append(written[3:])
    assert file.read() == written
    assert [p.episode.seed for p in file.read()] == [0, 1, 2, 3]
    (line, *_) = (tmp_path / EPISODES).read_text().splitlines()
    record = json.loads(line)
    assert isinstance(record["version"], str)
    assert record["opening"][-1]["content"] == episodes()[0].opening[-1].content
    assert record["steps"][0]["calls"][0]["status"] == "ok"


def test_the_package_and_the_weights_have_a_version_each(tmp_path: Path) -> None:
    first, second, *_ = episodes()
    EpisodeFile(tmp_path).append([Played("a", first), Played("a", replace(second, version=7))])
    assert [p.episode.version for p in EpisodeFile(tmp_path).read()] == [None, 7]
    lines = map(json.loads, (tmp_path / EPISODES).read_text().splitlines())
    assert all(isinstance(line["version"], str) for line in lines)


def test_a_line_cut_short_is_not_read_and_goes_with_the_next(tmp_path: Path) -> None:
    file = EpisodeFile(tmp_path)
    first, second, third, _ = (Played("a", e) for e in episodes())
    file.append([first, second])
    text = file.path.read_text()
    file.path.write_text(text[:-20])
    assert file.read() == [first]
    file.append([third])
    assert file.read() == [first, third]
    file.path.write_text(text[:20])  # even the first line
    file.append([third])
    assert file.read() == [third]


def test_a_spoilt_line_is_named(run: Path) -> None:
    file = EpisodeFile(run)
    file.path.write_text(file.path.read_text().replace('{"row"', "row", 1))
    with pytest.raises(AgentError, match=r"episodes\.jsonl, line 1 is no JSON .* delete the line"):
        file.read()


def test_arguments_that_are_no_json_are_written_all_the_same(tmp_path: Path) -> None:
    (episode, *_) = episodes()
    arguments: Any = episode.steps[0].results[0].call.arguments
    arguments["odd"] = {1}
    EpisodeFile(tmp_path).append([Played("a", episode)])
    (read,) = EpisodeFile(tmp_path).read()
    assert read.episode.calls[0].call.arguments["odd"] == "{1}"


def test_a_broken_episode_has_not_been_played(tmp_path: Path) -> None:
    sound = episodes()
    broken = Episode(BANK, "test/0", (), (), (), (), StopReason.INFRA_ERROR)
    file = EpisodeFile(tmp_path)
    file.append([Played("a", broken), Played("a", sound[1]), Played("b", sound[2])])
    assert list(file.of_row("a")) == [(BANK, "test/1", 0)]
    file.append([Played("a", sound[0])])
    (row,) = (r for n, r in rows_of(file.read()).items() if n == "a")
    assert metrics_of(row).infra_failures == 0
    assert metrics_of(row).success.value == 1


def test_a_resumed_run_forgets_what_it_will_play_again(run: Path) -> None:
    file = EpisodeFile(run)
    log = TrainingLog(file, 1)
    log.record(3, episodes())
    args = TrainingArguments(output_dir=str(run), use_cpu=True)
    log.on_train_begin(args, TrainerState(global_step=2), TrainerControl())
    log.record(3, episodes()[1:])
    trained = [p for p in file.read() if p.row == TRAINING]
    assert [(p.step, p.episode.task_id) for p in trained] == [
        (1, "test/0"),
        (1, "test/1"),
        (3, "test/1"),
    ]
    assert len(file.of_row("oracle")) == len(REFS)
    TrainingLog(file, 0).record(4, episodes())
    assert [p.step for p in file.read() if p.step] == [1, 1, 3]


def test_what_another_program_played_is_learned_from(tmp_path: Path) -> None:
    """It is in no environment that we have: there is neither a kind nor a code of it."""
    file = EpisodeFile(tmp_path)
    TrainingLog(file, 1).record(1, [replace(episodes()[0], env_id=VISITED, task_id="a3f")])
    (found,) = file.read()
    assert (found.episode.env_id, found.kind, found.env_digest) == (VISITED, "", "")


def test_looking_at_episodes_needs_no_learning_stack() -> None:
    """Else each look would wait for torch."""
    modules = ("cli.show", "cli.compare", "evaluation.transcript", "evaluation.comparison")
    imports = "".join(f"import journeyman.agents.{name}\n" for name in modules)
    check = "import sys\nsys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", imports + check], check=False).returncode == 0


# --- `journeyman show` ----------------------------------------------------------------------------


def test_show_prints_conversations(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run), "--failed", "--limit", "1"]) == 0
    out = capsys.readouterr().out
    prompt = episodes()[0].opening[-1].content
    for line in (
        f"training, step 1 | {BANK} test/0 (lost)",  # what the no-op fails by comes last
        f"[user] {prompt}",
        "[assistant] Answer: done",
        "Reward 0 (not solved, answered; 6 tokens, seed 0).",
        "Failed by: missing calls.",
        "  answer: 'done', wanted '3943'",
        "One way to solve it:",
        "1 of 6 episodes; --limit 0 shows all",
    ):
        assert line in out.splitlines()
    assert main(["show", str(run), "--row", "oracle", "--task", "1", "--env", BANK]) == 0
    out = capsys.readouterr().out
    assert "[tool find_account] " in out
    assert "Reward 1 (solved;" in out
    assert "One way" not in out
    assert out.endswith("1 of 1 episodes\n")


def test_show_finds_what_failed_by_one_thing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    EpisodeFile(run).append(
        Played("student", e, "k")
        for e in episodes(lambda env: iter([*env.task.gold, f"Answer: it is {env.task.answer}"]))
    )
    assert main(["show", str(run), "--failure", "missing calls", "--limit", "0"]) == 0
    shown = capsys.readouterr().out
    heads = [line.split(" | ")[0] for line in shown.splitlines() if f" | {BANK} test/" in line]
    assert heads == ["training, step 1"] * 2 + ["no-op"] * 4
    assert main(["show", str(run), "--failure", "answer in other words", "--row", "student"]) == 0
    shown = capsys.readouterr().out
    assert "  answer: 'it is 3943', wanted '3943'" in shown.splitlines()
    assert "no-op" not in shown
    assert main(["show", str(run), "--failure", "bad luck"]) == 2
    message = "no failure 'bad luck'; it has answer in other words, missing calls"
    assert message in capsys.readouterr().err


def test_show_says_where_the_state_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    EpisodeFile(tmp_path).append(Played("student", e) for e in episodes(no_op)[1:2])
    assert main(["show", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Task test/1 of the bank: to unfreeze A7907 and transfer 793 to it.
    for line in (
        "  state: accounts/A4346.balance is 6748, wanted 5955",
        "  state: accounts/A7907.status is 'frozen', wanted 'active'",
        "  state: transfers/T3209 is absent, wanted "
        "Transfer(source='A4346', target='A7907', amount=793)",
    ):
        assert line in lines


def test_show_names_failed_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = ("<tool_call>{", '<tool_call>{"name": "nope", "arguments": {}}</tool_call>')
    EpisodeFile(tmp_path).append(
        Played("a", e) for e in episodes(lambda env: iter((*bad, "Answer: <b>")))
    )
    page = tmp_path / "page.html"
    assert main(["show", str(tmp_path), "--limit", "1"]) == 0
    assert main(["show", str(tmp_path), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "(status: unclosed)" in out
    assert "(status: unknown_tool)" in out
    assert f"page: {page} (4 of 4 episodes)" in out
    text = page.read_text()
    assert text.count('"status":"unknown_tool"') == text.count('"status":"unclosed"') == 4
    assert text.count("Answer: \\u003cb>") == 4
    assert "<b>" not in text
    assert "://" not in text  # it needs nothing else


def test_show_summary(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run), "--summary"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["no-op", "4", "0.0%"] in [line[:3] for line in lines]
    assert [BANK, "4", "0.0%", "0.0%", "100.0%"] in lines
    assert ["gold", "4", "-", "-", "100.0%"] in lines
    assert ["oracle:", "find_account"] in [line[:2] for line in lines]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--row", "studnet"], "no row 'studnet'; it has no-op, oracle, training"),
        (["--kind", "x"], "no kind 'x'; it has gold, lost"),
        (["--env", "x"], f"no env 'x'; it has {BANK}"),
        (["--row", "oracle", "--failed"], "no episode matches (row oracle, failed)"),
        (["--limit", "-1"], "'-1' is not a whole number"),
    ],
)
def test_show_says_why_there_is_nothing(
    arguments: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_show_needs_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show", "nowhere"]) == 2
    assert "no run folder 'nowhere', nor runs/nowhere" in capsys.readouterr().err
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    assert main(["show", "empty"]) == 2
    assert f"runs/empty has no {EPISODES}" in capsys.readouterr().err
    for seed in (1, 2):
        EpisodeFile(tmp_path / "runs" / "sweep" / f"seed={seed}").path.parent.mkdir(parents=True)
        EpisodeFile(tmp_path / "runs" / "sweep" / f"seed={seed}").append([])
    assert main(["show", "sweep"]) == 2
    assert "several runs: name one, such as runs/sweep/seed=1" in capsys.readouterr().err


# --- evaluations ----------------------------------------------------------------------------------

EVAL = (
    "eval",
    "threads=1",
    "evaluation.tasks=10",
    "evaluation.batch_size=4",
    "env.kwargs.max_turns=4",
    "student.max_turn_tokens=32",
)
KILL = """
import os, signal
from journeyman.agents.evaluation import records

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
append, calls = records.EpisodeFile.append, 0

def counted(self, played):
    global calls
    played = list(played)
    calls += bool(played)
    append(self, played)
    if played and calls == {call}:
        with self.path.open("rb+") as file:
            file.truncate(file.seek(0, 2) - {torn})
        os.kill(os.getpid(), signal.{signal})

records.EpisodeFile.append = counted
"""
COUNT = """
from journeyman.agents.rollouts import rollout

play = rollout.played

def counting(player, tasks, *rest):
    if tasks:
        print("played", len(tasks))
    return play(player, tasks, *rest)

rollout.played = counting
"""


def table_of(stdout: str) -> list[str]:
    lines = stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("policy"))
    return lines[start : start + 5]


def rows(run: Path) -> Any:
    return json.loads((run / "summary.json").read_text())["rows"]


def test_an_eval_goes_on_where_it_was_cut_short(tmp_path: Path, journeyman: Any) -> None:
    unbroken, run = tmp_path / "unbroken", tmp_path / "run"
    whole = journeyman(*EVAL, f"run_dir={unbroken}")
    assert whole.status == 0, whole.stderr
    command = (*EVAL, f"run_dir={run}")
    # After the oracle's second batch, the last line torn; after the student's first; its second.
    for call, torn, how in ((5, 50, "SIGKILL"), (3, 0, "SIGKILL"), (1, 0, "SIGINT")):
        before = KILL.format(call=call, torn=torn, signal=how)
        cut = journeyman(*command, before=before)
        assert cut.status == (-signal.SIGKILL if how == "SIGKILL" else 130), cut.stderr
    ended = journeyman(*command, before=COUNT)
    assert ended.status == 0, ended.stderr
    assert ended.stdout.count("played") == 1
    assert "played 2" in ended.stdout
    assert table_of(ended.stdout) == table_of(whole.stdout)
    assert rows(run) == rows(unbroken)
    ours, theirs = ({(p.row, p.place): p for p in EpisodeFile(r).read()} for r in (run, unbroken))
    assert ours == theirs

    again = journeyman(*command, before=COUNT)
    assert "played" not in again.stdout
    assert f"student: 10 of 10 episodes are in {run / EPISODES}: delete it" in again.stdout
    assert table_of(again.stdout) == table_of(whole.stdout)

    # What infrastructure broke is played again, and counts.
    lines = [json.loads(line) for line in (run / EPISODES).read_text().splitlines()]
    lines[-1]["stop"] = "infra_error"
    (run / EPISODES).write_text("".join(json.dumps(line) + "\n" for line in lines))
    mended = journeyman(*command, before=COUNT)
    assert "played 1" in mended.stdout
    assert rows(run) == rows(unbroken)

    # What another code of the environment had played is played anew, and counts.
    lines = [json.loads(line) for line in (run / EPISODES).read_text().splitlines()]
    env_ids = {line["env_id"] for line in lines}
    for line in lines:
        if line["row"] == "oracle":
            assert line["env_digest"] == env_digest(env_class(line["env_id"]))
            line |= {"env_digest": "0" * 16, "success": False}
    (run / EPISODES).write_text("".join(json.dumps(line) + "\n" for line in lines))
    anew = journeyman(*command, before=COUNT)
    for env_id in env_ids:
        assert f"oracle: the code of {env_id} has changed: " in anew.stdout
    assert "no-op: 10 of 10 episodes are" in anew.stdout
    assert rows(run) == rows(unbroken)
    told = json.loads((run / "machine.json").read_text())["environments"]
    assert {i: it["digest"] for i, it in told.items()} == {
        i: env_digest(env_class(i)) for i in env_ids
    }


def test_other_weights_play_anew(tmp_path: Path, journeyman: Any, other_model: Path) -> None:
    """A model that was trained further in its place is not given the figures it had before."""
    model, run = tmp_path / "model", tmp_path / "run"
    shutil.copytree(resolve("embedded-student"), model)
    command = (*EVAL, f"run_dir={run}", f"student.model={model}")
    first = journeyman(*command)
    assert first.status == 0, first.stderr
    shutil.copytree(other_model, model, dirs_exist_ok=True)
    second = journeyman(*command, before=COUNT)
    assert second.status == 0, second.stderr
    assert second.stdout.count("played") == 3  # batches of the student; the others have no weights
    assert "oracle: 10 of 10 episodes are" in second.stdout
    fresh = journeyman(*EVAL, f"run_dir={tmp_path / 'fresh'}", f"student.model={other_model}")
    assert table_of(second.stdout) == table_of(fresh.stdout)
    assert main(["show", str(run), "--summary"]) == 0


def test_the_fingerprint_is_that_of_weights_dialect_and_dice() -> None:
    player = HFPlayer(llama(len(tokenizer())), chat())
    known = fingerprint(player)
    again = HFPlayer(player.model, chat(), player.sampling, player.max_context)
    assert fingerprint(again) == fingerprint(SearchPlayer(player)) == known != ""
    others = (
        player.at(temperature=0.0),
        player.at(seed=1),
        HFPlayer(player.model, chat(), max_context=100),
        HFPlayer(player.model, Dialect(tokenizer(), "signature")),
        HFPlayer(player.model, Llama3(tokenizer(), "names")),
    )
    assert len({known, *map(fingerprint, others)}) == 1 + len(others)
    with torch.no_grad():
        list(player.model.parameters())[-1][0] += 1e-3
    assert fingerprint(player) != known
    assert fingerprint(ScriptedPlayer(chat(), oracle)) == ""


def test_attempts(tmp_path: Path, journeyman: Any) -> None:
    run = tmp_path / "run"
    command = (*EVAL, f"run_dir={run}", "evaluation.attempts=3", "evaluation.breakdown=true")
    refused = journeyman(*command)
    assert refused.status == 2
    assert "evaluation.attempts=3 at evaluation.temperature=0: all attempts" in refused.stderr
    none = journeyman(*command, "evaluation.attempts=0")
    assert "evaluation.attempts=0: expected a whole number, 1 or more" in none.stderr
    assert not (run / "config.yaml").exists()

    done = journeyman(*command, "evaluation.temperature=1.0")
    assert done.status == 0, done.stderr
    assert "pass^3" in table_of(done.stdout)[0]
    assert "pass@3" in table_of(done.stdout)[0]
    for env_id in BUILTIN:
        assert env_id in done.stdout
    assert "oracle: find_account" in done.stdout
    student = rows(run)["student"]
    assert student["success"]["episodes"] == 30
    assert student["tasks"] == 10
    assert student["pass_hat"]["1"] == pytest.approx(student["success"]["rate"])
    assert student["pass_hat"]["3"] <= student["pass_hat"]["1"] <= student["pass_at"]["3"]
    played = [p for p in EpisodeFile(run).read() if p.row == "student"]
    of_first = [p for p in played if p.episode.task_id == "test/0" and p.episode.env_id == BANK]
    assert [p.attempt for p in of_first] == [0, 1, 2]
    assert len({p.episode.seed for p in played}) == 30
    assert len({p.episode.tokens for p in played}) > 10  # other dice, other words


def test_a_training_run_writes_its_rows_and_the_first_of_each_rollout(
    tmp_path: Path, journeyman: Any
) -> None:
    weights = []
    for count in (3, 0):
        run = tmp_path / str(count)
        command = ("train", "debug=tiny", "threads=1", f"run_dir={run}", f"log_episodes={count}")
        done = journeyman(*command)
        assert done.status == 0, done.stderr
        by_row = rows_of(EpisodeFile(run).read())
        names = ["no-op", "oracle", "student before", "teacher", "student after"]
        assert [name for name in by_row if name != TRAINING] == names
        assert {len(by_row[name]) for name in names} == {6}
        assert [p.step for p in by_row.get(TRAINING, [])] == [1] * count + [2] * count
        weights.append((run / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
