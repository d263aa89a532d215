import warnings
from collections.abc import Mapping

import pytest

from journeyman.sandbox import (
    Backend,
    IsolationUnavailable,
    Limits,
    Session,
    UnsafeSandboxWarning,
    conformance,
    resolve_backend,
)
from journeyman.sandbox.local import UnsafeLocalBackend
from journeyman.sandbox.namespace import NamespaceBackend


def failure(backend: str | Backend, name: str) -> str:
    (result,) = conformance.check(backend, only=name)
    assert result.name == name
    assert result.passed == (not result.detail)
    return result.detail


@pytest.mark.parametrize("name", conformance.names())
def test_namespace_conforms(bwrap: str, name: str) -> None:
    assert failure("namespace", name) == ""


def test_unsafe_local_behaves_but_isolates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # The canary of the environment check must be there to be found.
    monkeypatch.setenv("JOURNEYMAN_CANARY", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsafeSandboxWarning)
        results = conformance.check("unsafe_local")
    failed = {result.name for result in results if not result.passed}
    families = {result.name: result.family for result in results}
    assert {families[name] for name in failed} <= {"isolation", "limits"}
    # The checks have teeth: without walls they do fail.
    held = {name for name in families if families[name] == "isolation"} - failed
    assert held <= {
        "sessions do not see each other's files",
        # What an ordinary user, or a machine without these, has no access to anyhow:
        "kernel settings cannot be opened for writing",
        "socket families other than unix and inet do not exist",
        "no capability is held or can be gained",
        "the root is read-only",
        "the host's environment is not visible",
    }


def test_a_backend_that_cannot_run_says_so_at_once() -> None:
    class Nowhere:
        name = "nowhere"

        def session(self, limits: Limits, packages: tuple[str, ...]) -> Session:
            raise IsolationUnavailable("anything at all", "nothing")

    with pytest.raises(IsolationUnavailable, match="anything at all"):
        conformance.check(Nowhere())


def test_a_check_that_breaks_is_a_finding() -> None:
    class Flaky:
        name = "flaky"
        lacks: Mapping[str, str] = {}
        calls = 0

        def session(self, limits: Limits, packages: tuple[str, ...]) -> Session:
            self.calls += 1
            if self.calls > 1:
                raise OSError("out of order")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnsafeSandboxWarning)
                return UnsafeLocalBackend().session(limits, packages)

    assert failure(Flaky(), "input is empty") == "OSError: out of order"


def test_what_a_backend_lacks_is_skipped_and_said(bwrap: str) -> None:
    class Lacking(NamespaceBackend):
        lacks: Mapping[str, str] = {"input is empty": "no reason"}

    (result,) = conformance.check(Lacking(), only="input is empty")
    assert result.passed and result.skipped == "no reason"


def test_names_are_unique_and_backends_resolve() -> None:
    assert len(set(conformance.names())) == len(conformance.names()) >= 30
    assert resolve_backend("namespace").name == "namespace"
