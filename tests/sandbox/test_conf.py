import dataclasses
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

import journeyman.conf
from journeyman.sandbox import Limits, Sandbox

NODES = sorted((Path(journeyman.conf.__file__).parent / "sandbox").glob("*.yaml"))


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.stem)
def test_every_limit_can_be_set_from_the_node(node: Path) -> None:
    config = OmegaConf.load(node)
    assert set(config.limits) == {"_target_", *(field.name for field in dataclasses.fields(Limits))}
    sandbox = instantiate(config)
    assert isinstance(sandbox, Sandbox)
    assert sandbox.backend.name == node.stem
    assert sandbox.limits == Limits()
    config.limits.pids = 7
    assert instantiate(config).limits.pids == 7
