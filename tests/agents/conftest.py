"""The `journeyman` command in processes of its own, without their start-up time."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Imports once and computes nothing. A child forked from it starts at once, and is as much a process
# as any: it can be killed.
FORK_SERVER = """
import contextlib, gc, io, json, os, sys, traceback
import matplotlib.figure
import transformers.models.smollm3.modeling_smollm3
import journeyman.agents.students.hf
import journeyman.agents.runs.evaluate
import journeyman.agents.runs.train
import journeyman.agents.learning.trainers.distill
import journeyman.agents.learning.trainers.sft
from journeyman.agents.cli import main

with contextlib.redirect_stdout(io.StringIO()):
    main(["train", "--cfg", "job"])  # the grammar and the files of configurations are known by then
gc.freeze()  # a child need not look through all that
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.chdir(job["folder"])
            for number, name in (1, "stdout"), (2, "stderr"):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            exec(job["before"], {})
            status = main(job["arguments"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    status: int
    """Negative: the signal that ended it."""
    stdout: str
    stderr: str


class ForkServer:
    """Runs command lines, one after the other.

    Call it for a command that runs to its end, or start it, do something to its process, and wait.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", FORK_SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )

    def __call__(self, *arguments: object, before: str = "") -> Finished:
        """Run `journeyman <arguments>`; `before` is Python that the child executes first."""
        self.start(*arguments, before=before)
        return self.wait()

    def start(self, *arguments: object, before: str = "") -> int:
        """Like a call, without its end; returns the number of the process."""
        assert self._process.stdin is not None
        job = {
            "arguments": [str(a) for a in arguments],
            "before": before,
            "folder": str(self._folder),
        }
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return self._answer()

    def wait(self) -> Finished:
        """The end of what was started."""
        status = self._answer()
        out, err = ((self._folder / name).read_text() for name in ("stdout", "stderr"))
        return Finished(status, out, err)

    def _answer(self) -> int:
        assert self._process.stdout is not None
        try:
            answer = self._process.stdout.readline()
        except BaseException:  # such as a test's time being up
            # The next command must not get the answer to this one, which runs on in a child.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = self._start()
            raise
        if not answer:
            self._log.seek(0)
            raise RuntimeError(f"the fork server ended: {self._log.read().decode()}")
        return int(answer)

    def close(self) -> None:
        self._process.communicate()
        self._log.close()


@pytest.fixture(scope="session")
def journeyman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Call it with a command line; see `ForkServer`."""
    server = ForkServer(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded student with noise in its weights: a teacher that differs from it."""
    import torch
    from transformers import AutoTokenizer

    from journeyman.agents.networks.catalogue import resolve
    from journeyman.agents.networks.loading import load_model

    folder = tmp_path_factory.mktemp("models") / "other"
    model = load_model("embedded-student", device="cpu")
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=noise)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve("embedded-student")).save_pretrained(folder)
    return folder
