"""Mistakes of the user and of the machine: one or two clear lines, exit status 2, no traceback."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from transformers import Lfm2Config, Lfm2ForCausalLM

from journeyman.agents.errors import DiskFullError, RunDirError
from journeyman.agents.learning.trainers.callbacks import COMPLETE, complete, read_metrics
from journeyman.agents.rollouts.tasks import deal
from journeyman.agents.runs.folder import RunFolder, explaining_full_disk
from journeyman.agents.students.hf import load_student
from journeyman.envs import env_class
from journeyman.envs.errors import UnknownTaskError

TINY = ("debug=tiny", "teacher.model=embedded-student")
LONGEST_LINE = 400
BANK = "journeyman/Bank-v0"


def refused(result: Any) -> str:
    """The last line of stderr, after checking that the rest is no nuisance."""
    lines = result.stderr.strip().splitlines()
    assert result.status == 2, result.stderr
    assert 1 <= len(lines) <= 2, result.stderr
    assert "Traceback" not in result.stderr
    assert lines[-1].startswith("journeyman: error: ")
    assert len(lines[-1]) <= LONGEST_LINE
    return str(lines[-1])


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("stps=3", ["Could not override 'stps'", "+stps=3"]),
        ("student.modle=x", ["Could not override 'student.modle'"]),
        ("studnet=embedded", ["'studnet'"]),
        ("student=foo", ["'student/foo'", "embedded", "qwen3-0.6b", "smollm2"]),
        ("experiment=foo", ["'experiment/foo'", "demo", "qwen3", "smollm2"]),
        ("env.ids=[journeyman/Bonk-v0]", ["'journeyman/Bonk-v0'; did you mean 'journeyman/Bank"]),
        ("env=journeyman/Bonk-v0", ["'journeyman/Bonk-v0'; did you mean 'journeyman/Bank-v0'?"]),
        ("env=acme/Xyzzy-v9", ["no environment 'acme/Xyzzy-v9'"]),
        ("trainer.args.bf16=no", ["trainer.args.bf16=no: expected true or false"]),
        ("trainer.args.learning_rate=null", ["trainer.args.learning_rate=None: expected a number"]),
        ("trainer.rollout_batch=1.5", ["trainer.rollout_batch=1.5: expected a whole number"]),
        ("student.model=???", ["student.model is not set: write student.model=…"]),
        ("credit._target_=builtins.dict", ["builtins.dict gives dict, expected Credit"]),
        ("evaluation.search=gumbel", ["evaluation.search=gumbel: that is for `journeyman eval`"]),
        ("credit=gated", ["credit=Gated reads what a search finds: add search=credit"]),
        ("steps=[1", ["'[1'"]),
        ("steps={a:", ["'{a:'"]),
        ("steps", ["Error parsing override 'steps'"]),
        ("steps=0", ["steps=0: expected a whole number above zero"]),
        ("steps=-3", ["steps=-3"]),
        ("steps=three", ["steps=three"]),
        ("+trainer.args.lerning_rate=1", ["unexpected keyword argument 'lerning_rate'"]),
        ("student.model=embedded-studnet", ["did you mean 'embedded-student'?"]),
        ("student=smollm2", ["run: journeyman models pull smollm2-135m"]),
        ("student=smollm2_dropout", ["run: journeyman models pull smollm2-135m"]),
        ("teacher.model=/nowhere/model", ["no model and no folder '/nowhere/model'"]),
        ("student.model=acme/nowhere", ["'acme/nowhere'", "hub's cache", "HF_HUB_OFFLINE"]),
        ("student.render=everything", ["render 'everything'"]),
        ("seed=abc", ["seed=abc: expected a whole number, 0 or more"]),
        ("threads=0", ["threads=0: expected a whole number, 1 or more"]),
        ("evaluation.tasks=-1", ["evaluation.tasks=-1: expected a whole number, 0 or more"]),
        ("evaluation.batch_size=0", ["evaluation.batch_size=0"]),
        ("trainer.rollout_batch=0", ["trainer.rollout_batch=0"]),
        ("student.max_turn_tokens=0", ["student.max_turn_tokens=0"]),
        ("student.temperature=-1", ["student.temperature=-1: expected a number, 0 or more"]),
        ("trainer.args.learning_rate=abc", ["trainer.args.learning_rate=abc: expected a number"]),
        ("split=test", ["split=test: expected train or train/<level>"]),
        (
            ["split=test", "train_on_tests=true", "evaluation.tasks=2"],
            ["split=test: 2 of the tasks that evaluation plays are trained on", "-v0 test/0"],
        ),
        ("split=train/hardd", ["no level 'hardd' in BankEnv; there are: easy, medium, hard"]),
        ("env.ids=[]", ["env.ids is empty"]),
        ("env.kwargs.max_turns=0", ["env.kwargs: journeyman/Bank-v0: max_turns=0"]),
        ("student.dialect=foo", ["no dialect 'foo'; there are: hermes"]),
        (
            "+env.kwargs.foo=3",
            ["env.kwargs.foo: journeyman/Bank-v0 takes no 'foo'; it takes: split, max_turns"],
        ),
        ("sandbox=namespace", ["sandbox=namespace: no environment of this run (journeyman/Bank"]),
        ("student=hf", ["student.model is not set: write student.model=…"]),
        ("student.top_p=0.9", ["student.top_p, top_k, min_p and stops are for `journeyman eval`"]),
        ("student.top_k=20", ["student.top_p, top_k, min_p and stops are for `journeyman eval`"]),
        ("student.min_p=0.1", ["student.top_p, top_k, min_p and stops are for `journeyman eval`"]),
        ("student.stops=[x]", ["student.top_p, top_k, min_p and stops are for `journeyman eval`"]),
        ("student.top_p=0", ["student.top_p=0: expected above 0 and at most 1"]),
        ("loss=foo", ["'loss/foo'", "reverse_kl", "top_k"]),
        ("loss.beta=2", ["loss.beta=2: expected 0 to 1"]),
        (
            "+trainer.args.beta=0.5",
            ["trainer.args.beta=0.5: that is the loss's; write loss=jsd loss.beta=0.5"],
        ),
        ("trainer.lmbda=2", ["trainer.lmbda=2: expected 0 (the teacher plays) to 1"]),
    ],
)
def test_a_mistake_is_named(
    override: str | list[str], fragments: list[str], tmp_path: Path, journeyman: Any
) -> None:
    run = tmp_path / "run"
    empty_cache = f"import os; os.environ['JOURNEYMAN_CACHE'] = {str(tmp_path / 'cache')!r}"
    given = [override] if isinstance(override, str) else override
    line = refused(journeyman("train", *TINY, f"run_dir={run}", *given, before=empty_cache))
    for fragment in fragments:
        assert fragment in line
    assert "Config search path" not in line
    assert not (run / "config.yaml").exists(), "the folder should stay free for the mended command"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student=foo", "foo"),
        ("env=journeyman/Bonk-v0", "journeyman/Bonk-v0"),
        ("seeed=1", "seeed"),
        ("evaluation.tasks=abc", "evaluation.tasks=abc: expected a whole number"),
        ("evaluation.tasks=", "evaluation.tasks=: expected a whole number"),
        ("evaluation.tasks=0", "evaluation.tasks=0: expected a whole number above zero"),
        ("evaluation.tasks=all", "never run out: give a number"),
        (
            "evaluation.search=gumble",
            "evaluation.search=gumble: rule='gumble': expected 'gumbel' or",
        ),
        ("+teacher=embedded", "no setting teacher: there are: name, seed"),
    ],
)
def test_eval_names_mistakes_too(
    override: str, message: str, tmp_path: Path, journeyman: Any
) -> None:
    run = tmp_path / "run"
    assert message in refused(journeyman("eval", f"run_dir={run}", override))
    assert not (run / "summary.json").exists()


def test_an_environment_without_training_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(split: str, level: str) -> int:
        return 5 if split == "test" else 0

    monkeypatch.setattr(env_class(BANK), "task_count", count)
    with pytest.raises(UnknownTaskError, match=f"{BANK} has no train tasks, only test tasks"):
        deal([BANK], "train", 0, 1)
    with pytest.raises(UnknownTaskError, match="cannot give so many tasks"):
        deal([BANK], "test", 0, 6)
    assert len(deal([BANK], "test", 0, 5)) == 5


# --- run folders ----------------------------------------------------------------------------------


def run_config(run: Path, **more: Any) -> DictConfig:
    return OmegaConf.create({"run_dir": str(run), "threads": None, "seed": 0, **more})


def test_one_run_a_folder(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    first = RunFolder(config)
    with pytest.raises(RunDirError, match=r"another run is at work there; wait .* name=…"):
        RunFolder(config)
    RunFolder(config, first=False)  # another process of the same job
    del first
    RunFolder(config)


def test_a_second_process_is_kept_out(tmp_path: Path, journeyman: Any) -> None:
    held = RunFolder(run_config(tmp_path))
    for app in ("train", "eval"):
        assert "another run is at work" in refused(journeyman(app, f"run_dir={held.path}"))


def test_a_folder_belongs_to_a_run_once_it_holds_work(tmp_path: Path) -> None:
    shorter, longer = run_config(tmp_path), run_config(tmp_path, steps=1)
    RunFolder(longer).claim()
    (tmp_path / "metrics.jsonl").touch()
    RunFolder(shorter).claim()  # nothing was done yet
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(RunDirError, match=r"there 'nothing', now 'steps: 1'.*choose another name="):
        RunFolder(longer)
    RunFolder(shorter)
    (tmp_path / "metrics.jsonl").unlink()
    RunFolder(longer).claim()
    mark = tmp_path / "checkpoints" / "checkpoint-1" / COMPLETE
    mark.parent.mkdir(parents=True)
    mark.touch()
    with pytest.raises(RunDirError, match="there 'steps: 1', now 'nothing'"):
        RunFolder(shorter)


def test_a_failed_start_leaves_the_folder_free(tmp_path: Path, journeyman: Any) -> None:
    run = tmp_path / "run"
    command = ("train", *TRAINING, "trainer.args.save_steps=1", "steps=1", f"run_dir={run}")
    line = refused(journeyman(*command, "trainer.args.report_to=wandb"))
    assert "trainer: WandbCallback requires wandb to be installed" in line
    assert not (run / "config.yaml").exists()
    mended = journeyman(*command)
    assert mended.status == 0, mended.stderr


# --- broken environments --------------------------------------------------------------------------

BROKEN = """
from journeyman.envs.tasks.bank import BankEnv

def broken(self, task):
    raise ConnectionError("the bank is gone")

BankEnv.open_state = broken
"""
BREAKS = f"""
from transformers import Trainer

save = Trainer._save_checkpoint

def then_break(*args, **kwargs):
    save(*args, **kwargs)
    exec({BROKEN!r}, {{}})

Trainer._save_checkpoint = then_break
"""


def told(result: Any) -> str:
    """The last line of stderr, after warnings and bars."""
    assert result.status == 2, result.stderr
    assert "Traceback" not in result.stderr
    return str(result.stderr.strip().splitlines()[-1])


@pytest.mark.parametrize("app", ["train", "eval"])
def test_a_broken_environment_stops_a_run_at_once(
    app: str, tmp_path: Path, journeyman: Any
) -> None:
    tasks = (f"env={BANK}", "evaluation.tasks=2", f"run_dir={tmp_path / 'run'}")
    assert (
        "every oracle episode broke (ConnectionError: the bank is gone): mend the environment"
        in told(journeyman(app, *tasks, before=BROKEN))
    )
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    "way", [(), ("search=credit", "credit=additive", "search.rows=2", "search.trajectories=1")]
)
def test_an_environment_that_breaks_on_the_way_stops_training(
    way: tuple[str, ...], tmp_path: Path, journeyman: Any
) -> None:
    run = tmp_path / "run"
    command = ("train", *TRAINING, *way, "env.ids=[journeyman/Bank-v0]", f"run_dir={run}")
    assert "every episode of a rollout broke" in told(journeyman(*command, before=BREAKS))
    assert [f.name for f in complete(run / "checkpoints")] == ["checkpoint-2"]
    mended = journeyman(*command)
    assert mended.status == 0, mended.stderr
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl")] == [1, 2, 3, 4]


def test_different_vocabularies(tmp_path: Path, journeyman: Any) -> None:
    player = load_student("embedded-student", render="names")
    student = tmp_path / "student"
    tokenizer = player.dialect.tokenizer
    tokenizer.add_tokens(["<another>"])  # which only the student could write
    tokenizer.save_pretrained(student)
    player.model.save_pretrained(student)
    run = f"run_dir={tmp_path / 'run'}"
    line = refused(journeyman("train", "debug=tiny", run, f"student.model={student}"))
    assert "different vocabularies" in line
    assert "'<another>'" in line


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that scores, but cannot play in this process."""
    folder = tmp_path_factory.mktemp("models") / "recurrent"
    tokenizer = load_student("embedded-student", render="names").dialect.tokenizer
    config = Lfm2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        layer_types=["conv", "full_attention"],
    )
    Lfm2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("trainer", ["distill", "sft"])
def test_a_teacher_that_cannot_play_has_no_row(
    trainer: str, recurrent: Path, tmp_path: Path, journeyman: Any
) -> None:
    run = tmp_path / "run"
    command = (*TRAINING, "steps=1", "evaluation.tasks=2", f"trainer={trainer}")
    done = journeyman("train", *command, f"run_dir={run}", f"teacher.model={recurrent}")
    assert done.status == 0, done.stderr
    assert "The teacher is left out of the table" in done.stdout
    assert "has conv" in done.stdout
    assert list(json.loads((run / "summary.json").read_text())["rows"]) == [
        "no-op",
        "oracle",
        "student before",
        "student after",
    ]


@pytest.mark.parametrize("override", ["trainer.lmbda=0.5", "search=credit"])
def test_a_teacher_that_must_play_and_cannot(
    override: str, recurrent: Path, tmp_path: Path, journeyman: Any
) -> None:
    run = tmp_path / "run"
    command = ("debug=tiny", f"run_dir={run}", f"teacher.model={recurrent}", override)
    line = refused(journeyman("train", *command))
    assert f"{override} lets the teacher play, and it cannot" in line
    assert "has conv" in line
    assert not (run / "config.yaml").exists()


@pytest.mark.parametrize(
    ("override", "asks"),
    [
        ("loss=reverse_kl", "the loss"),
        ("credit=trace", "the loss"),
        ("trainer.lmbda=0", "the loss"),
        ("loss=none", "credit=Trace"),
    ],
)
def test_a_run_that_asks_for_a_teacher_and_has_none(
    override: str, asks: str, tmp_path: Path, journeyman: Any
) -> None:
    run = tmp_path / "run"
    more = ("credit=trace",) if override == "loss=none" else ()
    command = ("train", "debug=tiny", "teacher=none", override, *more, f"run_dir={run}")
    line = refused(journeyman(*command))
    assert f"teacher=none: {asks} asks for a teacher; choose one, or learn from rewards" in line
    assert "loss=none credit=outcome" in line
    assert not (run / "config.yaml").exists()


def test_an_evaluation_replaces_another_but_no_training(tmp_path: Path, journeyman: Any) -> None:
    run = tmp_path / "run"
    command = ("eval", "evaluation.tasks=1", f"run_dir={run}")
    for env_id, *more in (
        ("journeyman/Bank-v0",),
        ("journeyman/Orders-v0",),
        ("journeyman/Python-v0", "sandbox=namespace"),  # a place that the others' configs lack
    ):
        done = journeyman(*command, f"env={env_id}", *more)
        assert done.status == 0, done.stderr
        summary = json.loads((run / "summary.json").read_text())
        assert summary["config"]["env"]["ids"] == [env_id]
        assert env_id in (run / "config.yaml").read_text()
    mistaken = refused(journeyman(*command, "env=journeyman/Mail-v0", "student.render=all"))
    assert "render 'all'" in mistaken
    assert (run / "summary.json").exists()  # a mistake takes nothing away

    trained = journeyman("train", *TRAINING, "trainer=sft", "steps=1", f"run_dir={tmp_path}/t")
    assert trained.status == 0, trained.stderr
    for command in (("eval", f"run_dir={tmp_path}/t"), ("train", *TINY, f"run_dir={run}")):
        assert "holds a run with another config" in refused(journeyman(*command))


def test_the_process_itself_says_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "journeyman.agents.cli", "train", "stps=3"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("journeyman: error: Could not override 'stps'")
    assert done.stdout == ""


# --- a full disk ----------------------------------------------------------------------------------

TRAINING = (
    "threads=1",
    "steps=4",
    "evaluation.tasks=0",
    "env.kwargs.max_turns=2",
    "student.max_turn_tokens=16",
    "trainer.args.per_device_train_batch_size=2",
    "trainer.args.save_steps=2",
)

FILL = """
import os

from transformers import Trainer

saves, save = 0, Trainer._save_checkpoint

def filled(*args, **kwargs):
    global saves
    saves += 1
    if saves == {save}:
        place = os.statvfs({folder!r})
        with open({folder!r} + "/ballast", "wb") as ballast:
            ballast.write(bytes(place.f_bavail * place.f_frsize - {left}))
    return save(*args, **kwargs)

Trainer._save_checkpoint = filled
"""

FAIL = """
import errno, os
from transformers import Trainer

def fail(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

Trainer._save_optimizer_and_scheduler = fail
"""

NO_ROOM = """
import shutil

shutil.disk_usage = lambda path: shutil._ntuple_diskusage(1 << 30, (1 << 30) - 1, 1)
"""


def test_too_little_room_is_seen_before_the_run(tmp_path: Path, journeyman: Any) -> None:
    run = f"run_dir={tmp_path / 'run'}"
    line = refused(journeyman("train", *TINY, run, before=NO_ROOM))
    assert "the disk is full" in line
    assert "MB for checkpoints" in line


def test_what_a_run_holds_already_counts_as_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = object.__new__(RunFolder)
    folder.path, folder._first = tmp_path, True
    (tmp_path / "checkpoint").write_bytes(bytes(3_000_000))
    usage = shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    folder.need_space(5_000_000)
    with pytest.raises(DiskFullError, match=r"needs about 4\.8 MB .* has room for 4\.8 MB"):
        folder.need_space(5_010_000)


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="CUDA"), explaining_full_disk(tmp_path):
        raise RuntimeError("CUDA out of memory")


def test_a_failed_write_is_explained_and_the_run_goes_on(
    tmp_path: Path, journeyman: Any, other_model: Path
) -> None:
    run = tmp_path / "run"
    command = ("train", *TRAINING, f"teacher.model={other_model}", f"run_dir={run}")
    assert_full(journeyman(*command, before=FAIL), run)
    assert complete(run / "checkpoints") == []
    mended = journeyman(*command)
    assert mended.status == 0, mended.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            yield place
            subprocess.run(["umount", str(place)], check=True)
            return
    pytest.skip("mounting a small disk needs root")


def test_the_disk_fills_up_on_the_way(
    small_disk: Path, tmp_path: Path, journeyman: Any, other_model: Path
) -> None:
    run, ballast = small_disk / "run", small_disk / "ballast"
    command = ("train", *TRAINING, f"teacher.model={other_model}")
    unbroken = journeyman(*command, f"run_dir={tmp_path / 'unbroken'}")
    assert unbroken.status == 0, unbroken.stderr

    # Room for nothing, half the weights, half the optimiser's state: each fails in its own way.
    for save, left in ((2, 0), (1, 2_000_000), (1, 5_000_000)):
        fill = FILL.format(folder=str(small_disk), save=save, left=left)
        assert_full(journeyman(*command, f"run_dir={run}", before=fill), run)
        assert [f.name for f in complete(run / "checkpoints")] == ["checkpoint-2"], left
        ballast.unlink()
    mended = journeyman(*command, f"run_dir={run}")
    assert mended.status == 0, mended.stderr
    weights = Path("model", "model.safetensors")
    assert (run / weights).read_bytes() == (tmp_path / "unbroken" / weights).read_bytes()


def test_the_disk_is_full_from_the_start(small_disk: Path, journeyman: Any) -> None:
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free))
    line = refused(journeyman("train", *TINY, f"run_dir={small_disk / 'run'}"))
    assert "No space left on device" in line or "the disk is full" in line


def assert_full(result: Any, run: Path) -> None:
    assert result.status == 2, result.stderr
    assert "Traceback" not in result.stderr
    # Progress bars rewrite their line; what matters is what follows them.
    told = [line for line in result.stderr.replace("\r", "\n").splitlines() if "error:" in line]
    assert told == [
        f"journeyman: error: {run}: the disk is full; make room and run the same command to go on"
    ]
