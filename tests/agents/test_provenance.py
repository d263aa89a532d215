"""Where the environments of a run come from."""

import shutil
import subprocess
from pathlib import Path

import pytest

from journeyman.agents.runs.provenance import _commit as commit_of
from journeyman.agents.runs.provenance import environments
from journeyman.envs import env_class
from journeyman.envs.origin import env_digest


def test_what_a_package_brings_is_named_with_its_version() -> None:
    (found,) = environments(["journeyman/Bank-v0"]).values()
    assert found["digest"] == env_digest(env_class("journeyman/Bank-v0"))
    assert found["package"] == "journeyman"
    assert found["version"]
    assert "file" not in found


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_file_under_gits_control_has_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # of a hook that runs the suite
        monkeypatch.delenv(name, raising=False)

    def git(*arguments: str) -> str:
        known = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        return subprocess.check_output(["git", "-C", str(tmp_path), *known, *arguments], text=True)

    file = tmp_path / "garden.py"
    file.write_text("X = 1\n")
    git("init", "--quiet")
    assert commit_of(file) == {}  # nobody added it
    git("add", "garden.py")
    git("commit", "--quiet", "--message", "m")
    commit = git("rev-parse", "HEAD").strip()
    assert commit_of(file) == {"commit": commit, "dirty": False}
    file.write_text("X = 2\n")
    assert commit_of(file) == {"commit": commit, "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(file) == {}  # there is no git
