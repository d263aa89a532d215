"""Checks of what counts as success: gold does, nothing less, nothing else."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from journeyman.envs.checker.subject import Finding, Subject, found
from journeyman.envs.core import ToolEnv
from journeyman.envs.nearmiss import near_misses as play_near_misses
from journeyman.envs.nearmiss import program
from journeyman.envs.task import ANSWER, Task, answer_text
from journeyman.tools import CallStatus, ToolResult

NO_OP = f"{ANSWER} done"
"""The answer of someone who did nothing."""


@dataclass
class _Tally:
    """Tasks in which one thing is wrong."""

    first: str = ""
    tasks: list[str] = field(default_factory=list)

    def add(self, task: Task, text: str) -> None:
        self.first = self.first or text
        self.tasks.append(task.id)


def gold(subject: Subject) -> str:
    """Gold calls are accepted but where declared otherwise, and the gold programs succeed."""
    wrong: dict[tuple[str, ...], _Tally] = defaultdict(_Tally)
    count = declared = 0
    excuse = ""
    with subject.make() as env:
        for task in subject.tasks():
            count += 1
            for key, text in _play_gold(env, task):
                if key[0] == "declared":
                    declared += 1
                elif key[0] == "refused" and "refused" in env.harmless:
                    declared += 1
                    excuse = f": {env.harmless['refused']}"
                else:
                    wrong[key].add(task, text)
                    subject.faulty.add(task.id)
    if wrong:
        raise found(
            *(
                Finding(f"{tally.first} ({len(set(tally.tasks))} of {count} tasks)")
                for tally in wrong.values()
            )
        )
    note = f", {declared} calls refused as declared{excuse}" if declared else ""
    return f"{count}/{count} gold programs succeeded{note}"


def _play_gold(env: ToolEnv, task: Task) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is to be said of a gold program: a key by what it is, and words."""
    env.begin(task)
    said: list[str] = []
    refused = False
    turns = list(program(task.turns))
    for _, action in turns:
        _, reward, terminated, truncated, info = env.step(action)
        for result in info["calls"]:
            said.append(f"{result.call.canonical()} -> {result.content[:200]}")
            wanted = action[0].status  # type: ignore[index,union-attr]
            verdict = _verdict(task, result, wanted)
            if verdict is not None:
                refused = refused or verdict[0][0] == "refused"
                yield verdict
        if not info["calls"]:
            said.append(str(action))
        if truncated:
            yield ("limit",), f"task {task.id}: {len(said)} gold turns reach the turn limit"
            return
        if terminated:
            break
    if not refused and not (env.over and info["success"] and reward == 1.0):
        yield (
            ("failed",),
            f"task {task.id} ({task.kind}): the gold program got reward {reward}; "
            f"{'; '.join(said)}",
        )


def _verdict(
    task: Task, result: ToolResult, wanted: CallStatus
) -> tuple[tuple[str, ...], str] | None:
    """What is to be said of a gold call's result; None if it was accepted as it should be."""
    call = result.call
    what = f"task {task.id} ({task.kind}): the gold call {call.canonical()}"
    if wanted is CallStatus.PARSED:
        if result.ok:
            return None
        return ("refused", call.name, call.status), (
            f"{what} is turned down ({call.status}): {result.content[:200]}; mend it, or declare "
            f"that the student should try it: refused(call)"
        )
    if call.status is wanted:
        return ("declared",), ""
    return ("accepted", call.name), (
        f"{what} is declared to end in {wanted}, but it ended in {call.status}"
    )


def no_op(subject: Subject) -> str:
    """Answers without a call never succeed."""
    count = passed = 0
    with subject.make() as env:
        attempts = ((t, said) for t in subject.tasks() for said in answers_alone(t))
        for task, answers in attempts:
            env.begin(task)
            for answer in answers:
                _, reward, _, _, info = env.step(answer)
            count += 1
            if task.id not in subject.faulty and (info["success"] or reward > 0.0):
                passed += 1
                if "no_op" not in env.harmless:
                    said = " then ".join(map(repr, answers))
                    raise found(f"task {task.id} ({task.kind}): {said} at once got {reward}")
        excuse = f"; harmless: {env.harmless['no_op']}" if passed else ""
    return f"{passed}/{count} empty attempts succeeded{excuse}"


_RULE = re.compile(r"\banswer(?: instead)?: (.+)")


def answers_alone(task: Task) -> Iterator[list[str]]:
    """What may be said without any call, an answer for each user turn; none of it may succeed.

    "done", and every word that the task's rules say to answer: who obeys a rule blindly has not
    found out that it holds. Where a user turn calls for no call, the right answer is no offence.
    """
    if not any(turn.gold for turn in task.turns):
        yield [NO_OP for _ in task.turns]
        return
    for guess in (NO_OP, *(f"{ANSWER} {word}" for word in _RULE.findall(task.policy))):
        yield [guess if turn.gold else answer_text(turn) for turn in task.turns]


def near_misses(subject: Subject) -> str:
    """What is nearly the gold program fails, unless it is harmless."""
    count = 0
    harmless: Counter[str] = Counter()
    with subject.make() as env:
        # Every near-miss is a branch: where a branch is a session to rebuild, fewer must do.
        tasks = list(subject.tasks(4 if env.waits else 1))
        donors = [call for task in tasks for turn in task.turns for call in turn.gold]
        for task in tasks:
            if task.id in subject.faulty:
                continue
            for near_miss in play_near_misses(env, task, donors, subject.rng(task.id)):
                count += 1
                if near_miss.harmless is not None:
                    harmless[f"{near_miss.edit}: {near_miss.harmless}"] += 1
                elif near_miss.success:
                    raise found(f"{near_miss} succeeds all the same")
    left = count - harmless.total()
    listed = "".join(f"; {edit} ({n})" for edit, n in sorted(harmless.items()))
    return f"0/{left} near-misses succeeded, and {harmless.total()} harmless ones{listed}"
