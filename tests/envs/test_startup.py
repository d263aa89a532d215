"""Commands that only look something up do not wait for the learning stack."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "command",
    [["--help"], ["envs", "list"], ["tools", "list"]],
    ids=" ".join,
)
def test_a_listing_imports_no_learning_stack(command: list[str]) -> None:
    program = (
        "import sys\n"
        "from journeyman.agents.cli import main\n"
        f"assert main({command!r}) == 0\n"
        "print({'torch', 'transformers', 'trl', 'hydra'} & set(sys.modules), file=sys.stderr)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) > 10
    assert run.stderr == "set()\n"
