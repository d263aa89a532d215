"""Episodes as logs of inspect-ai, for its viewer and whatever else reads them.

inspect-ai's own classes hold them and its library writes them; it is an extra, asked for when it is
needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from journeyman.agents.errors import CommandError
from journeyman.agents.evaluation.metrics import Rate
from journeyman.agents.evaluation.records import Played, rows_of
from journeyman.envs import Message, Step
from journeyman.tools import UNREAD, CallStatus

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.model import ChatMessage, ModelUsage
    from inspect_ai.tool import ToolCall as InspectCall
    from inspect_ai.tool import ToolCallError


def write_logs(folder: Path, shown: Sequence[Played], about: Mapping[str, Any]) -> list[Path]:
    """Write a log a row of the table, such as `student.eval`; one that is there is replaced.

    Args:
        folder: Where to; it is made if it is not there.
        shown: The episodes; of one that was played again the last counts.
        about: The run's config and machine, as far as they are known.

    Returns:
        The files.

    Raises:
        CommandError: inspect-ai is not installed.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise CommandError(
            "logs of inspect-ai are written by its library: pip install 'journeyman[inspect]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for row, played in rows_of(shown).items():
        file = folder / f"{re.sub('[^A-Za-z0-9]+', '-', row).strip('-')}.eval"
        write_eval_log(as_log(row, played, about), str(file))
        files.append(file)
    return files


def as_log(row: str, played: Sequence[Played], about: Mapping[str, Any]) -> EvalLog:
    """One row as a log: a sample an episode, with the verdict as its score.

    Episodes that infrastructure broke are samples with an error; they have no score.
    """
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalResults,
        EvalScore,
        EvalSpec,
    )

    sound = [p for p in played if not p.broken]
    tasks = {(p.episode.env_id, p.episode.task_id) for p in played}
    rate = Rate(
        sum(p.episode.success for p in sound),
        len(sound),
        len({(p.episode.env_id, p.episode.task_id) for p in sound}),
    )
    low, high = rate.interval
    figures = {"success": rate.value, "low": low, "high": high} if sound else {}
    machine = about.get("machine") or {}
    score = EvalScore(
        name="success",
        scorer="journeyman",
        scored_samples=len(sound),
        unscored_samples=len(played) - len(sound),
        metrics={
            name: EvalMetric(name=name, value=value)
            for name, value in figures.items()
            if value is not None
        },
    )
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=machine.get("date", "1970-01-01T00:00:00+00:00"),
            task=", ".join(sorted({env_id for env_id, _ in tasks})),
            dataset=EvalDataset(name="journeyman", samples=len(tasks), shuffled=False),
            model=row,
            config=EvalConfig(epochs=len({p.attempt for p in played}) or 1),
            packages=machine.get("versions", {}),
            metadata={"config": about.get("config")},
        ),
        results=EvalResults(
            total_samples=len(played), completed_samples=len(sound), scores=[score]
        ),
        samples=list(map(_sample, played)),
    )


def _sample(played: Played) -> EvalSample:
    from inspect_ai.log import EvalError, EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import CORRECT, INCORRECT, Score

    episode = played.episode
    messages = [message for step in _told(played) for message in step]
    last = episode.steps[-1].said if episode.steps else ""
    usage = _usage(episode.steps)
    error = EvalError(message=episode.error or "", traceback="", traceback_ansi="")
    return EvalSample(
        id=f"{episode.env_id} {episode.task_id}",
        epoch=played.attempt + 1,
        input=[_message(message) for message in episode.opening],
        target=_target(played),
        messages=messages,
        output=ModelOutput.from_content(played.row, last),
        scores=None
        if played.broken
        else {
            "success": Score(
                value=CORRECT if episode.success else INCORRECT,
                answer=last,
                explanation=episode.stop.replace("_", " "),
                metadata={} if episode.score is None else {"score": episode.score},
            )
        },
        model_usage={} if usage is None else {played.row: usage},
        error=error if played.broken else None,
        turn_count=len(episode.steps),
        metadata={
            "env_id": episode.env_id,
            "task_id": episode.task_id,
            "kind": played.kind,
            "stop": episode.stop.value,
            "reward": episode.reward,
            "seed": episode.seed,
            "training_step": played.step,
        },
    )


def _target(played: Played) -> str:
    """The answers that are asked for, a line each; empty where only what was done matters."""
    lacking = played.episode.shortfall
    wanted = [a.wanted for a in lacking.answers if a.wanted is not None] if lacking else []
    return "\n".join(wanted)


def _told(played: Played) -> Iterator[list[ChatMessage]]:
    """The conversation: the opening, then each turn with what came of it."""
    yield [_message(message) for message in played.episode.opening]
    for turn, step in enumerate(played.episode.steps):
        yield _turn(turn, step)


def _turn(turn: int, step: Step) -> list[ChatMessage]:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageTool
    from inspect_ai.tool import ToolCall

    calls: list[InspectCall] = []
    for i, result in enumerate(step.results):
        call = result.call
        calls.append(
            ToolCall(
                id=f"call-{turn}-{i}",
                function=call.name,
                arguments=_plain(call.arguments),
                parse_error=call.error if call.status in UNREAD else None,
            )
        )
    said: list[ChatMessage] = [
        ChatMessageAssistant(content=step.text, tool_calls=calls or None, source="generate")
    ]
    said += [
        ChatMessageTool(
            content=result.content,
            tool_call_id=f"call-{turn}-{i}",
            function=result.call.name or None,
            error=_error(result.call.status, result.content),
        )
        for i, result in enumerate(step.results)
    ]
    return said + [_message(message) for message in step.reply if message.role != "tool"]


def _error(status: CallStatus, content: str) -> ToolCallError | None:
    from inspect_ai.tool import ToolCallError

    if status is CallStatus.OK:
        return None
    if status is CallStatus.TIMEOUT:
        return ToolCallError(type="timeout", message=content)
    refused = status is CallStatus.TOOL_ERROR
    return ToolCallError(type="unknown" if refused else "parsing", message=content)


def _message(message: Message) -> ChatMessage:
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageTool,
        ChatMessageUser,
    )

    if message.role == "tool":
        return ChatMessageTool(content=message.content, function=message.name)
    kinds = {
        "system": ChatMessageSystem,
        "user": ChatMessageUser,
        "assistant": ChatMessageAssistant,
    }
    made: ChatMessage = kinds[message.role](content=message.content)
    return made


def _usage(steps: Sequence[Step]) -> ModelUsage | None:
    """What a server counted; None where none did."""
    from inspect_ai.model import ModelUsage

    used = [step.usage for step in steps if step.usage is not None]
    if not used:
        return None
    read = sum(usage.prompt or 0 for usage in used)
    wrote = sum(usage.completion or 0 for usage in used)
    costs = [usage.cost for usage in used if usage.cost is not None]
    return ModelUsage(
        input_tokens=read,
        output_tokens=wrote,
        total_tokens=read + wrote,
        total_cost=sum(costs) if costs else None,
    )


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as JSON has them; not every one that a model writes is JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(arguments), default=str))
    return plain
