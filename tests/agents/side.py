"""A venv of its own for a package from outside, which borrows all other packages from this one."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path


def run(*command: object, cwd: Path | None = None) -> str:
    """What a command prints, after checking that it ends well."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(package: Path, venv: Path) -> Path:
    """Install a package into a new venv; returns its interpreter."""
    python = venv / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    site = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    # Unlike a bare path, this follows the path files there: Journeyman may be installed by one.
    (site / "borrowed.pth").write_text(
        "\n".join(f"import site; site.addsitedir({path!r})" for path in borrowed)
    )
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "install", *offline, "--editable", package)
    return python


def journeyman(python: Path, *arguments: object) -> str:
    """What a `journeyman` command prints in that venv."""
    return run(python, "-m", "journeyman.agents.cli", *arguments, cwd=python.parents[1])
