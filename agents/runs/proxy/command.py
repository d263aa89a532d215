"""`journeyman serve proxy`: a student behind an OpenAI-compatible server, and what it plays there.

Config -> student -> host and conversations -> server, until it is interrupted. The episodes are in
the run's folder like those of an evaluation: `journeyman show` tells them, and
`trainer.episodes=RUN` learns from them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from journeyman.agents.errors import MissingExtraError, SettingError
from journeyman.agents.evaluation.records import EPISODES
from journeyman.agents.networks.addresses import secret_in
from journeyman.agents.runs.config import ProxyConfig, make, read
from journeyman.agents.runs.folder import RunFolder
from journeyman.agents.runs.measuring import fingerprint
from journeyman.agents.runs.places import check_names
from journeyman.agents.runs.proxy.hosts import Host, StudentHost
from journeyman.agents.runs.proxy.talks import Talks
from journeyman.agents.runs.proxy.upstream import UpstreamHost
from journeyman.agents.students.openai import OpenAIPlayer
from journeyman.agents.students.player import Player

if TYPE_CHECKING:
    from journeyman.agents.runs.proxy.gateway import Gateway

_WAYS = ("host", "port", "allow", "key", "timeout", "idle")
"""Settings by which no turn becomes another: with others the folder is gone on with."""


def serve_proxy(composed: DictConfig) -> None:
    """Answer until interrupted.

    Raises:
        MissingExtraError: The server's packages are not installed.
    """
    config = read(ProxyConfig, composed)
    try:
        from journeyman.envs.serving import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"serve proxy needs {error.name}: pip install 'journeyman[proxy]'"
        ) from error
    names = [str(name) for name in composed if name not in _WAYS]
    folder = RunFolder(OmegaConf.masked_copy(composed, names), keeps=[EPISODES])
    gateway = open_gateway(config, folder)
    print(f"http://{config.host}:{config.port}/v1 until interrupted; episodes: {folder.path}")
    serve(gateway.app, config.host, config.port, config.allow)


def open_gateway(config: ProxyConfig, folder: RunFolder) -> Gateway:
    """What is served, in a folder that belongs to it from here on.

    Raises:
        SettingError: The student cannot be asked for a turn of somebody else's conversation.
        StudentServerError: The upstream is not there.
    """
    from journeyman.agents.runs.proxy.gateway import Gateway

    secret = "" if config.key is None else secret_in(config.key)
    check_names(config.student)
    host = _host(make(config.student, "student"), config)
    folder.claim()
    talks = Talks(folder.path, fingerprint(host.player), config.seed, time.monotonic)
    return Gateway(host, talks, config.idle, config.timeout, secret)


def _host(student: Player, config: ProxyConfig) -> Host:
    if isinstance(student, OpenAIPlayer):
        return UpstreamHost(student, config.temperature)
    if not hasattr(student, "sampling"):
        raise SettingError(
            f"student: {type(student).__name__} plays environments of ours, and cannot be asked "
            f"for a turn of another conversation: expected a model, or student=openai"
        )
    name = config.student.get("model")
    return StudentHost(student, str(name or config.name), config.temperature)  # type: ignore[arg-type]
