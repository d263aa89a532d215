"""Why an episode failed, in a word or a few: the first of a list of rules that holds."""

from __future__ import annotations

from journeyman.envs.types import Episode, StopReason


def failure(episode: Episode) -> str | None:
    """The name of what an episode failed by; None if it succeeded."""
    if episode.stop is StopReason.INFRA_ERROR:
        return "infrastructure"
    if episode.success:
        return None
    return "unexplained"
