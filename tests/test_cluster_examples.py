"""docs/cluster: a script for Slurm, a manifest for KubeRay, as far as one machine can try them."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "cluster"
SCRIPT = FOLDER / "slurm.sh"
TIMEOUT = 180
"""Seconds; twenty, if nothing else works."""
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no checkout beside the tests")


def manifest(kind: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((FOLDER / "rayjob.yaml").read_text())
    (found,) = (it for it in documents if it["kind"] == kind)
    assert isinstance(found, dict)
    return found


def test_the_script_is_a_script() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    checker = shutil.which("shellcheck")
    if checker is not None:
        subprocess.run([checker, SCRIPT], check=True)


def test_the_manifest_has_what_kuberay_asks_for() -> None:
    """All of it was held against KubeRay's own schema once; this is what hangs on our names."""
    job = manifest("RayJob")
    assert job["apiVersion"] == "ray.io/v1"
    cluster = job["spec"]["rayClusterSpec"]
    version = cluster["rayVersion"]
    (base,) = re.findall(r"^FROM rayproject/ray:(\S+)$", (FOLDER / "Dockerfile").read_text(), re.M)
    assert base == f"{version}-py311"
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        # `ray start` is given these as options, so each must be text.
        assert all(isinstance(it, str) for it in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == "REGISTRY/journeyman"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    room = workers["replicas"] * int(container["resources"]["limits"]["cpu"])
    (asked,) = re.findall(r"rollouts\.workers=(\d+)", job["spec"]["entrypoint"])
    assert int(asked) <= room
    (volume,) = cluster["headGroupSpec"]["template"]["spec"]["volumes"]
    claim = volume["persistentVolumeClaim"]["claimName"]
    assert claim == manifest("PersistentVolumeClaim")["metadata"]["name"]


STUBS = {
    # All options of srun have their value in one word; then comes a command, which is run here.
    "srun": """
while [[ $1 == --* ]]; do
    [[ $1 == --nodelist=* ]] && echo "${1#*=}" >>"$NODES_ASKED"
    shift
done
exec "$@"
""",
    "scontrol": '[[ "$*" == "show hostnames n[1-2]" ]] && echo n1 && echo n2',
    "hostname": "echo 127.0.0.1 10.9.8.7",
    "ray": f'exec "{sys.executable}" -m ray.scripts.scripts "$@"',
    "python": f'exec "{sys.executable}" "$@"',
    "journeyman": f'exec "{sys.executable}" -P -m journeyman.agents.cli "$@"',
}
"""What a node of the cluster has, as far as the script asks."""


@pytest.mark.ray
@pytest.mark.timeout(TIMEOUT + 20)
def test_the_script_starts_a_cluster_and_plays_on_it(tmp_path: Path) -> None:
    """With stubs for Slurm: head and workers are two of Ray's nodes on this machine's loopback."""
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name, text in STUBS.items():
        (stubs / name).write_text(f"#!/bin/bash\n{text}\n")
        (stubs / name).chmod(0o755)
    asked = tmp_path / "asked"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    told = {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
        "NODES_ASKED": str(asked),
        "OMP_NUM_THREADS": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    }
    run = ("eval", "student=oracle", "evaluation.tasks=6", "rollouts.workers=2")
    said = tmp_path / "said"
    with said.open("wb") as file:
        done = subprocess.run(
            ["bash", SCRIPT, *run, f"run_dir={tmp_path / 'run'}"],
            env={**os.environ, **told},
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
        )
    shutil.rmtree(f"/tmp/ray-{number}", ignore_errors=True)
    assert done.returncode == 0, said.read_text()
    assert asked.read_text().split() == ["n1", "n1", "n2"]  # the address, the head, the worker
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["rollouts"]["address"].startswith("127.0.0.1:")
    lines = (tmp_path / "run/episodes.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["row"] == "student" for line in lines) == 6
