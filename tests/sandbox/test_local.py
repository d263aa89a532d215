import sys
import time

import pytest

from journeyman.sandbox import KilledReason, Limits, Sandbox, SandboxError, UnsafeSandboxWarning


def test_it_warns_and_runs_the_projects_python() -> None:
    with pytest.warns(UnsafeSandboxWarning, match="isolates nothing") as caught:
        session = Sandbox("unsafe_local", packages=["pytest"]).session()
    assert caught[0].filename == __file__
    with session:
        assert session.exec("import sys; sys.executable").value_repr == repr(sys.executable)
        assert session.exec("'pytest' in sys.modules").value_repr == "True"


def test_children_die_with_the_session() -> None:
    with pytest.warns(UnsafeSandboxWarning):
        session = Sandbox("unsafe_local", Limits(wall_s=10)).session()
    child = session.exec(
        "import os, time\npid = os.fork()\nif not pid:\n    time.sleep(30)\n    os._exit(0)\npid"
    )
    got = session.exec("while True: pass", timeout=0.1)
    assert got.killed_reason is KilledReason.WALL
    assert child.value_repr is not None
    # Killed is killed, though whoever adopts the orphan may not have reaped it yet.
    deadline = time.monotonic() + 10
    while state(int(child.value_repr)) not in ("gone", "Z", "X"):
        assert time.monotonic() < deadline


def test_a_package_that_is_not_there() -> None:
    with (
        pytest.warns(UnsafeSandboxWarning),
        pytest.raises(SandboxError, match="importing no_such_package: ModuleNotFoundError"),
    ):
        Sandbox("unsafe_local", packages=["no_such_package"]).session()


def state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
