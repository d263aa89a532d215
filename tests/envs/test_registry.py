"""Ids, Gymnasium's registry, and plugins that may be broken."""

import importlib.metadata
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from journeyman.envs import (
    constructor_arguments,
    env_class,
    env_ids,
    load_plugins,
    make,
    make_for_run,
    register,
    registry,
)
from journeyman.envs.core import ToolEnv
from journeyman.envs.errors import EnvError, InvalidEnvError, UnknownEnvError
from journeyman.envs.tasks.bank import BankEnv
from journeyman.sandbox import Sandbox

from .conftest import BUILTIN, SumEnv


def test_builtin_ids() -> None:
    assert set(BUILTIN) <= set(env_ids())
    assert env_ids() == sorted(env_ids())


@pytest.mark.parametrize("env_id", BUILTIN)
def test_make(env_id: str) -> None:
    env = make(env_id, split="test", max_turns=3)
    assert type(env) is env_class(env_id)
    assert (env.split, env.max_turns) == ("test", 3)
    assert env.spec is not None
    assert env.spec.id == env_id
    assert env.spec.kwargs == {"split": "test", "max_turns": 3}
    assert gymnasium.spec(env_id).kwargs == {}  # what is registered is nobody's to change


@pytest.mark.parametrize("env_id", BUILTIN)
def test_gymnasium_make(env_id: str) -> None:
    load_plugins()
    env: gymnasium.Env[Any, Any] = gymnasium.make(env_id, max_turns=3)
    assert isinstance(env.unwrapped, ToolEnv)
    env.reset(seed=1)
    assert env.step("Answer: done")[1:4] == (0.0, True, False)
    env.close()


def test_in_a_fresh_process_the_plugins_need_loading() -> None:
    program = (
        "import gymnasium, journeyman.envs as e; e.load_plugins(); "
        "print(gymnasium.make('journeyman/Bank-v0').unwrapped)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "BankEnv" in run.stdout, run.stderr


@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("journeyman/Bnak-v0", "; did you mean 'journeyman/Bank-v0'?"),
        ("journeyman/bank-v0", "; did you mean 'journeyman/Bank-v0'?"),
        ("journeyman/Orders-v1", "; did you mean 'journeyman/Orders-v0'?"),
        ("Bank-v0", "; did you mean 'journeyman/Bank-v0'?"),
        ("calender", "; did you mean 'journeyman/Calendar-v0'?"),
        ("CartPole-v1", "; `journeyman envs list` names"),
        ("", "; `journeyman envs list` names"),
    ],
)
def test_unknown_id(env_id: str, says: str) -> None:
    for attempt in (env_class, make):
        with pytest.raises(UnknownEnvError) as caught:
            attempt(env_id)
        assert str(caught.value).startswith(f"no environment {env_id!r}{says}")
        assert isinstance(caught.value, KeyError)
        assert isinstance(caught.value, EnvError)


@pytest.mark.usefixtures("scratch_registry")
def test_register() -> None:
    register("acme/Sum-v0", SumEnv, max_turns=5)
    assert "acme/Sum-v0" in env_ids()
    assert env_class("acme/Sum-v0") is SumEnv
    assert make("acme/Sum-v0").max_turns == 5
    assert make("acme/Sum-v0", max_turns=6).max_turns == 6
    made: Any = gymnasium.make("acme/Sum-v0").unwrapped
    assert made.max_turns == 5


@pytest.mark.usefixtures("scratch_registry")
def test_register_by_name_imports_nothing_yet() -> None:
    register("acme/Later-v0", "journeyman.envs.tasks.bank:BankEnv")
    register("acme/Never-v0", "no.such.module:Env")
    assert env_class("acme/Later-v0") is BankEnv
    with pytest.raises(ModuleNotFoundError, match="No module named"):
        make("acme/Never-v0")


GARDEN = """
from journeyman.envs import register
from journeyman.envs.tasks.bank import BankEnv

class GardenEnv(BankEnv):
    pass

register("acme/Garden-v0", GardenEnv)
register("Shed-v0", "garden:GardenEnv", max_turns=5)
"""


@pytest.fixture
def folder(
    scratch_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The current folder, which is not on sys.path, with a script that registers environments."""
    (tmp_path / "garden.py").write_text(GARDEN)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "ends.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "needy.py").write_text("import acme_missing\n")
    (tmp_path / "empty.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield tmp_path
    for name in ("garden", "empty"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("folder")
def test_an_environment_in_a_script() -> None:
    with pytest.raises(UnknownEnvError, match="for one in a script write module:ID"):
        make("acme/Garden-v0")
    env = make("garden:acme/Garden-v0", max_turns=3)
    assert type(env) is env_class("garden:acme/Garden-v0") is sys.modules["garden"].GardenEnv
    assert env.max_turns == 3
    assert env.spec is not None and env.spec.id == "acme/Garden-v0"
    assert env.spec.kwargs == {"max_turns": 3}
    assert make_for_run("garden:acme/Garden-v0", {"sandbox": None}).spec is not None
    assert "max_turns" in constructor_arguments("garden:acme/Garden-v0")
    assert type(make("acme/Garden-v0")) is type(env)  # now that it is imported
    assert "acme/Garden-v0" in env_ids()


@pytest.mark.usefixtures("folder")
def test_an_id_without_a_namespace() -> None:
    assert make("garden:Shed-v0").max_turns == 5
    assert make("Shed-v0").max_turns == 5
    with pytest.raises(UnknownEnvError, match="did you mean 'garden:Shed-v0'"):
        make("garden:Shet-v0")


@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("gardn:acme/Garden-v0", ": there is no module 'gardn'; go to the folder"),
        ("acme.garden:acme/Garden-v0", ": there is no module 'acme'; go to the folder"),
        ("garden:acme/Gardn-v0", "; did you mean 'garden:acme/Garden-v0'?"),
        ("empty:acme/Zoo-v0", ": module 'empty' does not register 'acme/Zoo-v0'; it has to call"),
        ("broken:acme/Zoo-v0", ": importing 'broken' raised ZeroDivisionError: division by zero; "),
        ("ends:acme/Zoo-v0", ": importing 'ends' raised SystemExit: 0; `python -c 'import ends'`"),
        ("needy:acme/Zoo-v0", ": importing 'needy' raised ModuleNotFoundError: No module named "),
        ("garden.py:acme/Garden-v0", ": 'garden.py' is no module; write its name as after"),
        ("./garden:acme/Garden-v0", ": './garden' is no module; write its name as after"),
        (":acme/Garden-v0", ": '' is no module; write its name as after"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_script_that_does_not_give_the_environment(env_id: str, says: str) -> None:
    for attempt in (env_class, make, constructor_arguments):
        with pytest.raises(UnknownEnvError) as caught:
            attempt(env_id)
        assert str(caught.value).startswith(f"no environment {env_id!r}{says}")


def test_another_process_loads_it_again(folder: Path) -> None:
    command = [str(Path(sys.executable).parent / "journeyman"), "envs", "show"]
    shown = subprocess.run(
        [*command, "garden:acme/Garden-v0"], cwd=folder, capture_output=True, text=True
    )
    assert shown.stdout.startswith("garden:acme/Garden-v0: "), shown.stderr
    failed = subprocess.run([*command, "broken:acme/Zoo-v0"], cwd=folder, capture_output=True)
    assert failed.returncode == 2
    assert failed.stderr.decode().startswith(
        "journeyman: error: no environment 'broken:acme/Zoo-v0'"
    )


@pytest.mark.usefixtures("scratch_registry")
def test_an_id_has_no_colon() -> None:
    with pytest.raises(ValueError, match="'garden:acme/Garden-v0': an id has no colon"):
        register("garden:acme/Garden-v0", SumEnv)


@pytest.mark.usefixtures("scratch_registry")
def test_only_tool_envs() -> None:
    register("acme/Cart-v0", "gymnasium.envs.classic_control:CartPoleEnv")
    with pytest.raises(InvalidEnvError, match=r"registered as .*CartPole.*expected a ToolEnv"):
        make("acme/Cart-v0")


@pytest.mark.usefixtures("scratch_registry")
def test_a_bad_id_registers_nothing() -> None:
    with pytest.raises(gymnasium.error.Error):
        register("not an id", SumEnv)
    assert "not an id" not in env_ids()


def test_the_error_of_an_empty_message() -> None:
    assert str(EnvError()) == ""


@pytest.fixture
def plugins(
    scratch_registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[EntryPoint]:
    """Entry points: one plugin that works, around two that do not."""
    good = "from journeyman.envs import register\nregister('acme/Good-v0', 'acme_good:Env')\n"
    (tmp_path / "acme_good.py").write_text(good)
    (tmp_path / "acme_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        EntryPoint(name, value, registry.ENTRY_POINTS)
        for name, value in (
            ("broken", "acme_broken"),
            ("missing", "acme_missing"),
            ("good", "acme_good"),
        )
    ]

    def entry_points(group: str) -> list[EntryPoint]:
        return points if group == registry.ENTRY_POINTS else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(registry, "load_plugins", registry.load_plugins.__wrapped__)
    return points


def test_a_broken_plugin_takes_no_other_down(plugins: list[EntryPoint]) -> None:
    with pytest.warns(UserWarning, match="environment plugin '(broken|missing)'") as caught:
        assert registry.load_plugins() == ("broken", "missing")
    assert "acme/Good-v0" in registry._ids
    broken = str(caught[0].message)
    assert broken == (
        "environment plugin 'broken' (acme_broken) failed to load: "
        "ZeroDivisionError('division by zero')"
    )


def test_no_plugin_no_warning(plugins: list[EntryPoint], monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.load_plugins() == ()


def test_the_builtin_entry_point_is_installed() -> None:
    points = importlib.metadata.entry_points(group=registry.ENTRY_POINTS)
    assert "journeyman.envs.tasks" in {p.value for p in points}


def test_what_a_constructor_takes_and_hands_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Warm(BankEnv):
        def __init__(self, heat: int = 1, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.heat = heat

    class Inherits(Warm):
        pass

    monkeypatch.setattr(registry, "env_class", {"warm": Inherits}.__getitem__)
    assert constructor_arguments("warm") == ("heat", "split", "max_turns", "render_mode")


def test_a_runs_sandbox_is_for_those_that_take_one() -> None:
    sandbox = Sandbox()
    kwargs = {"max_turns": 3, "sandbox": sandbox}
    for name in ("Bank", "Python"):
        with make_for_run(f"journeyman/{name}-v0", kwargs) as env:
            assert env.max_turns == 3
            assert env.spec is not None
            assert ("sandbox" in env.spec.kwargs) is (name == "Python")
    with pytest.raises(TypeError, match="foo"):
        make_for_run("journeyman/Bank-v0", {"foo": 1})
