"""What needs no model does not wait for torch; a model that is not there is told at once."""

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import close_session, constants
from omegaconf import OmegaConf

from journeyman.agents.errors import ModelNotFoundError
from journeyman.agents.networks import hub
from journeyman.agents.networks.catalogue import check, resolve
from journeyman.agents.runs import threads
from journeyman.agents.runs.places import check_names

COMMANDS = """\
0 train --help
0 eval --help
0 collect --help
0 serve proxy --help
0 train --cfg job
2 train stpes=3
2 train steps=abc
2 train student=embeded
2 train student.model=embeded-student
2 train env=journeyman/Bnak-v0
2 eval student=hf student.model=no/such/folder
0 envs list
0 envs show journeyman/Bank-v0
0 tools list
0 metrics list
0 models list
0 teacher serve --help
2 why nope
2 show nope
2 compare nope nowhere
"""
"""Exit status, and command line."""
SCRIPT = """
import contextlib, io, os, sys
from journeyman.agents.cli import main

def light(what):
    heavy = {"torch", "transformers", "trl"} & set(sys.modules)
    if heavy:
        sys.exit(f"{what} imports {heavy}")

for line in sys.stdin:
    expected, *command = line.split()
    with contextlib.redirect_stdout(io.StringIO()):
        status = main(command)
    if status != int(expected):
        sys.exit(f"{command}: status {status}")
    light(command)

from journeyman.envs import make

env = make("journeyman/Bank-v0")
env.reset(seed=0)
before = env.snapshot()
for turn in env.oracle():
    env.step(turn if isinstance(turn, str) else [turn])
env.restore(before)
light("a mock API")
print(os.environ["GOMP_SPINCOUNT"])
"""


def test_what_needs_no_model_does_not_wait_for_torch(tmp_path: Path) -> None:
    """A fresh interpreter, many commands: the first that imports it is named."""
    env = {key: value for key, value in os.environ.items() if key not in threads.VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=COMMANDS,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=env,
    )
    assert (done.returncode, done.stdout) == (0, "2000\n"), done.stderr
    assert "did you mean 'embedded-student'?" in done.stderr
    assert "steps=abc: expected a whole number" in done.stderr


@pytest.mark.parametrize(
    ("given", "ours"),
    [({}, True), ({"GOMP_SPINCOUNT": "5"}, False), ({"OMP_WAIT_POLICY": "active"}, False)],
)
def test_how_threads_wait_is_the_users_to_say(
    given: dict[str, str], ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = {key: value for key, value in os.environ.items() if key not in threads.VARIABLES}
    monkeypatch.setattr(os, "environ", fresh | given)
    threads.wait_briefly()
    assert os.environ == fresh | given | ({"GOMP_SPINCOUNT": "2000"} if ours else {})


# --- models that are not there --------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a run with a model in it, an empty cache of the hub, no hub."""
    model = tmp_path / "runs" / "demo" / "model"
    model.mkdir(parents=True)
    (model / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JOURNEYMAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("runs/demo/modle", "runs/demo/model"),
        ("./rusn/dem/model", "runs/demo/model"),
        ("runs/demo2", "runs/demo/model"),
        ("runs/demo/model/model.safetensors", "runs/demo/model"),
        ("embeded-student", "embedded-student"),
        ("smollm2-153m", "smollm2-135m"),
    ],
)
def test_what_may_have_been_meant(here: Path, name: str, meant: str) -> None:
    with pytest.raises(ModelNotFoundError) as refused:
        check(name)
    assert f"{name!r}" in str(refused.value)
    assert f"did you mean {meant!r}?" in str(refused.value)


def test_an_absolute_path(here: Path) -> None:
    with pytest.raises(ModelNotFoundError) as refused:
        resolve(str(here / "runs" / "dmeo" / "model"))
    assert f"did you mean {str(here / 'runs' / 'demo' / 'model')!r}?" in str(refused.value)


def test_a_hub_id_without_a_hub(here: Path) -> None:
    with pytest.raises(ModelNotFoundError) as refused:
        check("Qwen/Qwen3-0.6B")
    told = str(refused.value)
    assert "'Qwen/Qwen3-0.6B': it is not in the hub's cache" in told and "OFFLINE is set" in told
    assert "journeyman models pull smollm2-135m" in told


def cached(here: Path, name: str = "Qwen/Qwen3-0.6B") -> None:
    """Lay a model into the hub's cache, as the hub's client does."""
    place = here / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123")


def test_a_cached_model_needs_no_hub_and_is_suggested(here: Path) -> None:
    cached(here)
    check("Qwen/Qwen3-0.6B")
    assert hub.cached() == ["Qwen/Qwen3-0.6B"]
    with pytest.raises(ModelNotFoundError, match=r"did you mean 'Qwen/Qwen3-0\.6B'\?"):
        check("Qwen/Qwen3-06B")


def at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let the hub be there, as `HF_ENDPOINT` does before its client is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()  # an earlier one has the proxies of its time
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that has the models of "there", and keeps those of "gated"; what it was asked for."""
    paths: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            paths.append(self.path)
            owner = self.path.split("/")[1]
            self.send_response(
                {"there": 200, "gated": 403, "moved": 307, "ill": 500}.get(owner, 404)
            )
            codes = {"gated": "GatedRepo", "bare": "EntryNotFound", "acme": "RepoNotFound"}
            if owner in codes:
                self.send_header("X-Error-Code", codes[owner])
            if owner == "moved":
                self.send_header("Location", "/there/model/resolve/main/config.json")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        yield paths
        server.shutdown()
        thread.join()


def test_the_hub_is_asked_once(asked: list[str]) -> None:
    for name in ("there/model", "moved/model", "bare/adapter", "ill/model"):
        check(name)
    for name, reason in (("acme/nothing", "has no such model"), ("gated/model", "HF_TOKEN")):
        with pytest.raises(ModelNotFoundError, match=reason):
            check(name)
    names = ["there/model", "moved/model", "there/model"]  # where it has moved to
    names += ["bare/adapter", "ill/model", "acme/nothing", "gated/model"]
    assert asked == [f"/{name}/resolve/main/config.json" for name in names]


def test_a_hub_out_of_reach(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        free = f"http://127.0.0.1:{server.server_port}"  # nobody listens there any more
    at(monkeypatch, free)
    with pytest.raises(ModelNotFoundError, match=rf"'acme/model': .*{free} cannot be reached"):
        check("acme/model")


def test_models_of_all_parts_are_looked_for(here: Path) -> None:
    ours = "journeyman.agents.teachers.local.load_teacher"
    run = {
        "teacher": {
            "_target_": "acme.Router",
            "experts": {"bank": {"_target_": ours, "model": "x/y"}},
        },
        "student": {"_target_": ours, "model": "???"},
    }
    with pytest.raises(ModelNotFoundError, match="'x/y'"):
        check_names(OmegaConf.create(run))
    served = {"_target_": ours, "model": "x/y", "base_url": "http://127.0.0.1:1/v1"}
    check_names(OmegaConf.create({"teacher": served}))
