import dataclasses
import math
from collections.abc import Mapping
from typing import cast

import pytest

import journeyman.sandbox as package
from journeyman.sandbox import (
    Backend,
    ExecResult,
    IsolationUnavailable,
    KilledReason,
    Limits,
    Sandbox,
    SandboxDied,
    SandboxError,
    Session,
)


def result(**changes: object) -> ExecResult:
    plain = ExecResult(
        stdout="",
        stderr="",
        value_repr=None,
        exit_status=0,
        signal=None,
        duration_s=0.0,
        cpu_s=0.0,
        truncated=False,
        killed_reason=None,
    )
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize("name", package.__all__)
def test_public_names_exist_and_are_documented(name: str) -> None:
    assert getattr(package, name).__doc__


@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(Limits) if field.name != "network"]
)
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "1"])
def test_limits_must_be_positive_numbers(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}="):
        Limits(**{field: value})


def test_counts_must_be_whole() -> None:
    with pytest.raises(ValueError, match=r"pids=1\.5: expected a whole number"):
        Limits(pids=1.5)  # type: ignore[arg-type]
    assert Limits(wall_s=0.5).wall_s == 0.5


def test_network_can_only_be_none() -> None:
    with pytest.raises(ValueError, match="network='host'"):
        Limits(network="host")  # type: ignore[arg-type]


def test_ok_means_the_code_ran_to_its_end() -> None:
    assert result().ok
    assert not result(exit_status=1).ok
    assert not result(exit_status=None, signal=9).ok
    assert not result(killed_reason=KilledReason.DISK).ok


def test_errors_refine_the_standard_ones() -> None:
    error = IsolationUnavailable("no bwrap", "apt-get install bubblewrap")
    assert isinstance(error, SandboxError) and isinstance(error, RuntimeError)
    assert "no bwrap" in str(error) and "apt-get install bubblewrap" in str(error)
    assert issubclass(SandboxDied, ChildProcessError)


def test_a_backend_of_ones_own() -> None:
    class Fake:
        name = "fake"
        lacks: Mapping[str, str] = {}

        def describe(self) -> dict[str, str]:
            return {}

        def session(self, limits: Limits, packages: tuple[str, ...]) -> Session:
            assert limits.pids == 5 and packages == ("numpy",)
            return FakeSession()

    class FakeSession:
        alive = True
        fork = spare = snapshot = lambda self: FakeSession()

        restore = put = get = lambda self, *_: None

        def exec(self, code: str, timeout: float | None = None) -> ExecResult:
            return result(stdout=f"{code} {timeout}")

        def close(self) -> None:
            self.alive = False

        def __enter__(self) -> "FakeSession":
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

    assert isinstance(Fake(), Backend)
    assert isinstance(FakeSession(), Session)
    sandbox = Sandbox(Fake(), Limits(pids=5), ["numpy"])
    assert sandbox.exec("x", 2.0).stdout == "x 2.0"


def test_what_died_with_one_program_is_not_given_to_the_next() -> None:
    class Mortal:
        name = "mortal"
        lacks: Mapping[str, str] = {}

        def __init__(self) -> None:
            self.sessions: list[MortalSession] = []

        def describe(self) -> dict[str, str]:
            return {}

        def session(self, limits: Limits, packages: tuple[str, ...]) -> Session:
            self.sessions.append(MortalSession())
            return cast(Session, self.sessions[-1])

    class MortalSession:
        def __init__(self, fresh: "MortalSession | None" = None) -> None:
            self.alive = True
            self.fresh = fresh or self

        def spare(self) -> "MortalSession":
            return MortalSession(self)

        def exec(self, code: str, timeout: float | None = None) -> ExecResult:
            assert self.fresh.alive
            self.fresh.alive = code != "hang"
            return result(killed_reason=None if self.fresh.alive else KilledReason.WALL)

        def close(self) -> None:
            self.alive = False

    backend = Mortal()
    sandbox = Sandbox(backend)
    assert sandbox.exec("hang").killed_reason is KilledReason.WALL  # and its whole container
    assert sandbox.exec("1").ok and sandbox.exec("2").ok
    assert len(backend.sessions) == 2
    backend.sessions[-1].alive = False  # while it waits for the next call
    assert sandbox.exec("3").ok
    assert len(backend.sessions) == 3
