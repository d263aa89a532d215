"""A person plays the agent: the quickest way to see what an environment asks of a model."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from journeyman.agents.errors import CallSyntaxError
from journeyman.agents.evaluation.transcript import said
from journeyman.envs import Message, ToolEnv, make
from journeyman.envs.task import solution
from journeyman.tools import CallStatus, ToolCall, ToolSpec

HELP = """\
Call a tool:  name {"key": value, ...}   or   name key=value key="two words"
Answer:       any other text, or   Answer: text
Tools again:  ? or help  Leave: Ctrl-D"""

_CALL = re.compile(r"\s*([A-Za-z_][\w.-]*)(?:\s+(.*))?", re.DOTALL)
_PARENTHESIS = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\(")
_ARGUMENTS = re.compile(r"\{|[A-Za-z_]\w*=")


def read_action(line: str, tools: Sequence[ToolSpec]) -> ToolCall | str:
    """A typed line as an action: a call, or an answer.

    A line is a call if it starts with a tool's name, or with any word and then arguments (so that a
    mistyped name gets the environment's own error). Values of `key=value` are JSON where they can
    be, text otherwise, and always text where the tool's schema says "string".

    Args:
        line: `name {json}`, `name key=value ...`, `name`, or free text.
        tools: What the environment offers.

    Raises:
        CallSyntaxError: The arguments cannot be read.
    """
    schemas = {tool.name: tool.parameters.get("properties", {}) for tool in tools}
    opened = _PARENTHESIS.match(line)
    if opened is not None and opened[1] in schemas:  # as the list of tools shows it
        pairs = (f"{key}=…" for key in schemas[opened[1]])
        raise CallSyntaxError(f"write: {' '.join((opened[1], *pairs))}")
    match = _CALL.fullmatch(line.strip())
    if match is None:
        return line.strip()
    name, rest = match[1], match[2] or ""
    if name not in schemas and not _ARGUMENTS.match(rest):
        return line.strip()
    if rest.startswith("{"):
        return ToolCall(name, _read_json(rest))
    return ToolCall(name, _read_pairs(rest, schemas.get(name, {})))


def _read_json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CallSyntaxError(f"not JSON: {error}") from error
    assert isinstance(value, dict)  # it starts with a brace
    return value


def _read_pairs(text: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise CallSyntaxError(f"{error} in {text!r}") from error
    arguments = {}
    for word in words:
        key, found, value = word.partition("=")
        if not found:
            raise CallSyntaxError(f"expected key=value or {{json}}, not {word!r}")
        is_text = properties.get(key, {}).get("type") == "string"
        arguments[key] = value if is_text else _read_value(value)
    return arguments


def _read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def play(
    env_id: str,
    stdin: TextIO,
    stdout: TextIO,
    split: str | None = None,
    task_id: str | None = None,
) -> bool:
    """Let a person play one episode.

    Args:
        env_id: A registered id.
        stdin: Where the person's lines come from.
        stdout: Where the conversation goes.
        split: Where a random task is drawn from; by default where the environment draws them from.
        task_id: A certain task instead, such as "test/0".

    Returns:
        True if the episode was played to its end, False if the person left.

    Raises:
        UnknownEnvError: No such environment.
        UnknownTaskError: No such split or task.
    """
    env = make(env_id)
    try:
        options = {"task_id": task_id} if split is None else {"task_id": task_id, "split": split}
        messages, info = env.reset(options=options)
        stdout.write(f"{env_id}, task {info['task_id']}\n\n{_list_tools(env)}\n\n{HELP}\n\n")
        _show(messages, stdout)
        return _converse(env, stdin, stdout)
    finally:
        env.close()


def _converse(env: ToolEnv, stdin: TextIO, stdout: TextIO) -> bool:
    """Take turns until the episode is over or the input ends."""
    while (line := _ask(stdin, stdout)) is not None:
        if not line.strip():
            continue
        if line.strip() in ("?", "help"):
            stdout.write(f"{_list_tools(env)}\n{HELP}\n")
            continue
        try:
            action = read_action(line, env.tools)
        except CallSyntaxError as error:
            stdout.write(f"{error}\n")
            continue
        messages, reward, terminated, truncated, info = env.step(
            action if isinstance(action, str) else [action]
        )
        _show(messages, stdout)
        for result in info["calls"]:
            if result.call.status is not CallStatus.OK:
                stdout.write(f"(status: {result.call.status})\n")
        if terminated or truncated:
            stdout.write(_verdict(env, reward, info["success"], truncated))
            return True
    stdout.write("\nLeft before the end.\n")
    return False


def _ask(stdin: TextIO, stdout: TextIO) -> str | None:
    stdout.write("> ")
    stdout.flush()
    return stdin.readline() or None


def _list_tools(env: ToolEnv) -> str:
    return "\n".join(("Tools", *(f"  {t.signature()}: {t.description}" for t in env.tools)))


def _show(messages: Sequence[Message], stdout: TextIO) -> None:
    for message in messages:
        stdout.write(f"{said(message)}\n")


def _verdict(env: ToolEnv, reward: float, success: bool, truncated: bool) -> str:
    ending = "out of turns" if truncated else "solved" if success else "not solved"
    lines = [f"Reward {reward:g} ({ending})."]
    if not success:
        lines.append("One way to solve it:")
        lines += (f"  {line}" for line in solution(env.task))
    return "\n".join(lines) + "\n"
