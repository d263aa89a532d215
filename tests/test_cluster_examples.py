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
TIMEOUT = 240
"""Seconds; forty, if nothing else works."""
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
    "scontrol": '[[ "$*" == "show hostnames n[2-3]" ]] && echo n2 && echo n3',
    "hostname": "echo 127.0.0.1 10.9.8.7",
    # A worker would listen beyond loopback: it is written down, and stays until it is ended.
    "ray": f"""
if [[ $1 == start && $2 != --head ]]; then
    echo "$@" >"$WORKER_ASKED"
    exec sleep 600
fi
exec "{sys.executable}" -m ray.scripts.scripts "$@"
""",
    "python": f'exec "{sys.executable}" "$@"',
    "journeyman": f'exec "{sys.executable}" -P -m journeyman.agents.cli "$@"',
}
"""What a node of the cluster has, as far as the script asks."""


@pytest.mark.ray
@pytest.mark.timeout(TIMEOUT + 20)
def test_the_script_starts_a_cluster_and_plays_on_it(tmp_path: Path) -> None:
    """With stubs for Slurm: the head is real, on loopback; what a worker is told is read."""
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
        "SLURM_JOB_NODELIST": "n[2-3]",
        "SLURM_CPUS_PER_TASK": "2",
        "NODES_ASKED": str(asked),
        "WORKER_ASKED": str(tmp_path / "worker"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray stays on loopback
        "OMP_NUM_THREADS": "1",
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
    assert asked.read_text().split() == ["n2", "n2", "n3"]  # the address, the head, the worker
    worker = (tmp_path / "worker").read_text().split()
    (address,) = (it for it in worker if it.startswith("--address=127.0.0.1:"))
    assert (
        address.endswith(f":{20000 + number % 10000}") and "--node-ip-address=127.0.0.1" in worker
    )
    assert "--num-cpus=2" in worker
    lines = (tmp_path / "run/episodes.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["row"] == "student" for line in lines) == 6
