"""Checks of what happens when an environment is played: tools, seeds, attempts, branches."""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

from gymnasium.utils.env_checker import check_env
from tqdm import tqdm

from journeyman.envs.checker.subject import Finding, Subject, cause_of, found, told
from journeyman.envs.checker.turns import Probes, difference, play, random_turns, tour
from journeyman.envs.core import ToolEnv
from journeyman.envs.errors import EpisodeOverError, StateChangedError
from journeyman.envs.hashing import digest
from journeyman.envs.nearmiss import program
from journeyman.envs.task import Task
from journeyman.tools import CallStatus, ToolCall
from journeyman.tools.errors import ToolsError

_THREADS = 4
"""Episodes played side by side where tools wait for something outside this process."""

_PROBES = 6
"""Calls of each tool and task that are made up from its schema."""


def gymnasium(subject: Subject) -> str:
    """Gymnasium's own checker, whose warnings count as failures."""
    with subject.make() as env, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        env.action_space.seed(subject.seed)
        try:
            check_env(env)
        except (AssertionError, UserWarning) as error:
            raise found(f"Gymnasium's checker: {error}") from error
    return "Gymnasium's checker has no objection"


def tools(subject: Subject) -> str:
    """Every tool, called alone: it answers or refuses, changes nothing in place, prints nothing."""
    count, names = 0, set()
    wrong: dict[tuple[str, str], Finding] = {}
    with subject.make() as env:
        samples = subject.samples()
        for task in samples:
            for call in _probes(subject, env, task, samples):
                if any(name == call.name for name, _ in wrong):
                    continue  # one finding a tool is enough to mend it
                count += 1
                names.add(call.name)
                kind, finding = _try(env, task, call)
                if finding is not None:
                    wrong[call.name, kind] = finding
    if wrong:
        raise found(*wrong.values())
    return f"{len(names)} tools took or refused {count} calls made up from their schemas"


def _probes(subject: Subject, env: ToolEnv, task: Task, samples: list[Task]) -> Iterator[ToolCall]:
    env.begin(task)
    probes = Probes(env, samples)
    rng = subject.rng("tools", task.id)
    for name in probes.names:
        # Where a call may cost a session, fewer must do.
        for i in range(2 if env.waits else _PROBES):
            yield probes.call(name, rng, odd=i % 3 == 2)


def _try(env: ToolEnv, task: Task, call: ToolCall) -> tuple[str, Finding | None]:
    """Make one call at the start of an episode; what was wrong with it, if anything."""
    where = f"task {task.id}, {call.canonical()[:200]}"
    printed = io.StringIO()
    try:
        env.begin(task)
        with contextlib.redirect_stdout(printed):
            _, _, _, _, info = env.step([call])
        env.state_hash()
    except StateChangedError as error:
        return "state", Finding(f"{error} ({where})", cause_of(error))
    except Exception as error:
        what = f"tool {call.name!r} raised {told(error)}"
        if not isinstance(error, ToolsError | TypeError):
            what += "; raise ToolError where a model can mend it, else its episode is thrown away"
        return "raised", Finding(f"{what} ({where})", cause_of(error))
    if printed.getvalue():
        return "printed", Finding(
            f"tool {call.name!r} prints {printed.getvalue()[:60]!r}: return it; no model sees what "
            f"is printed, and a server talks over its output ({where})"
        )
    (result,) = info["calls"]
    if result.call.status is CallStatus.TIMEOUT:
        return "hangs", Finding(f"tool {call.name!r} does not end: {result.content} ({where})")
    content = result.content
    if not isinstance(content, str):
        return "content", Finding(f"tool {call.name!r} answers with {content!r:.80}, no text")
    return "", None


def seeds(subject: Subject) -> str:
    """The same seed and actions give the same observations and hashes in another env."""
    with subject.make() as one, subject.make() as other:
        for i in range(subject.episodes):
            seed = subject.seed + i
            opening, again = subject.reset(one, i), subject.reset(other, i)
            if opening != again:
                raise found(f"reset(seed={seed}) gave {opening!r}, then {again!r}")
            actions = random_turns(one, subject.rng(i))
            parted = difference(play(one, actions), play(other, actions))
            if parted:
                raise found(
                    f"seed {seed}, task {one.task.id}, same actions in two envs: {parted}; "
                    f"{_ELSEWHERE}"
                )
    return f"{subject.episodes} episodes played in two envs were equal"


_ELSEWHERE = (
    "the seed decides all: no random, time, uuid or id() in a tool, and nothing kept in a module, "
    "a class or a default argument"
)


def attempts(subject: Subject) -> str:
    """What one attempt does shows neither in the next one of its env nor in another env."""
    count = 0
    for task in subject.samples():
        with subject.make() as first, subject.make() as used, subject.make() as neighbour:
            actions = _toured(subject, first, task)
            fresh = play(first, actions)
            # An attempt is broken off after other calls, and another one is still going on.
            for env in (used, neighbour):
                env.begin(task)
                probes = Probes(env)
                for name in probes.names:
                    rng = subject.rng("attempts", task.id, name)
                    for _ in range(2):
                        if not env.over:
                            env.step([probes.call(name, rng)])
                    count += 1
            for env, mend in ((subject.make(), _ELSEWHERE), (used, _FROM_THE_TASK)):
                with env:
                    env.begin(task)
                    parted = difference(fresh, play(env, actions))
                if parted:
                    which = "the same env" if env is used else "a new env"
                    raise found(f"task {task.id}, a second attempt in {which}: {parted}; {mend}")
    return f"{count} calls in other attempts left nothing behind"


_FROM_THE_TASK = "begin() must start from the task alone, and forget the attempt before"


def _toured(subject: Subject, env: ToolEnv, task: Task) -> list[list[ToolCall]]:
    env.begin(task)
    return list(tour(env, task, subject.rng("tour", task.id)))


def episode(subject: Subject) -> str:
    """Rewards lie in [0, 1], and an episode ends when it says so and not before or after."""
    with subject.make() as env:
        try:
            env.step("Answer: done")
        except EpisodeOverError:
            pass
        else:
            raise found("step() before reset() is not refused: raise EpisodeOverError")
        samples = subject.samples()
        for task in samples:
            observation, _ = env.begin(task)
            _look_at_observation(env, task, observation)
            for _, action in program(task.turns):
                if env.over:
                    break
                _look_at(env, task, *env.step(action))
            if env.over:
                _look_after(env, task)
        _look_at_limit(env, samples[0])
    return f"{len(samples)} episodes ended in time, with rewards from 0 to 1"


def _look_at_observation(env: ToolEnv, task: Task, observation: Any) -> None:
    if not env.observation_space.contains(observation):
        raise found(
            f"task {task.id}: the observation {observation!r:.200} is not in the space: write a "
            f"tuple of Message"
        )


def _look_at(
    env: ToolEnv,
    task: Task,
    observation: Any,
    reward: Any,
    terminated: Any,
    truncated: Any,
    info: Any,
) -> None:
    _look_at_observation(env, task, observation)
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not 0.0 <= reward <= 1.0:
        raise found(f"task {task.id}: reward {reward!r}, expected a number from 0 to 1")
    missing = {"calls", "success", "task_id"} - set(info)
    if missing:
        raise found(f"task {task.id}: step()'s info has no {', '.join(sorted(missing))}")
    if env.over != (terminated or truncated):
        says = "the end" if terminated or truncated else "no end"
        raise found(f"task {task.id}: step() says {says}, and `over` is {env.over}")


def _look_after(env: ToolEnv, task: Task) -> None:
    try:
        env.step("Answer: done")
    except EpisodeOverError:
        return
    raise found(f"task {task.id}: step() after the end is not refused: raise EpisodeOverError")


def _look_at_limit(env: ToolEnv, task: Task) -> None:
    limit, env.max_turns = env.max_turns, 3
    try:
        env.begin(task)
        turns = itertools.count(1)
        while not env.over and next(turns) <= 3:
            *_, truncated, _ = env.step([ToolCall("no such tool")])
        if not env.over or not truncated:
            raise found(f"task {task.id}: max_turns=3, and the episode goes on after 3 turns")
    finally:
        env.max_turns = limit


def prefixes(subject: Subject) -> str:
    """After a random prefix: play on, restore and play on again; and replay all from the start."""
    workers = _THREADS if subject.env_type.waits else 1
    pairs: SimpleQueue[tuple[ToolEnv, ToolEnv]] = SimpleQueue()

    def branch(number: int) -> None:
        pair = pairs.get()
        try:
            _branch(subject, number, *pair)
        finally:
            pairs.put(pair)

    # Envs are made and used anew: what an episode leaves behind in one shows in the next.
    with ExitStack() as stack:
        for _ in range(workers):
            pairs.put((stack.enter_context(subject.make()), stack.enter_context(subject.make())))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        stack.callback(pool.shutdown, cancel_futures=True)  # the first failure is enough
        played = pool.map(branch, range(subject.prefixes))
        bar = tqdm(
            played,
            subject.env_id,
            subject.prefixes,
            unit="prefix",
            leave=False,
            disable=None if subject.progress else True,
        )
        for _ in bar:
            pass
    return f"{subject.prefixes} prefixes led to the same hashes after restore and after replay"


def _branch(subject: Subject, number: int, one: ToolEnv, other: ToolEnv) -> None:
    rng = subject.rng(number)
    subject.reset(one, number)
    task_id = one.task.id
    actions = random_turns(one, rng)
    cut = rng.randrange(len(actions))
    head = play(one, actions[:cut])
    snapshot, before = one.snapshot(), one.state_hash()
    tail = play(one, actions[cut:])
    restored, where = (other, ", in another env") if number % 2 else (one, "")
    where = f"task {task_id}, snapshot after {cut} turns{where}"
    _restore(restored, snapshot, before, where)
    _same(f"{where}, after restore", tail, play(restored, actions[cut:]))
    _restore(restored, snapshot, before, f"{where}, a second time")
    other.reset(options={"task_id": task_id})
    _same(f"task {task_id}, replayed by its id", [*head, *tail], play(other, actions))


def _restore(env: ToolEnv, snapshot: Any, wanted: str, where: str) -> None:
    env.restore(snapshot)
    if env.state_hash() != wanted:
        raise found(
            f"{where}: restore gave hash {env.state_hash()}, not {wanted}; all that an episode "
            f"changes belongs in snapshots, as values that are not changed in place"
        )


def _same(where: str, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    parted = difference(first, second)
    if parted:
        raise found(f"{where}: {parted}; all that an episode remembers belongs in its snapshots")


def hashes(subject: Subject) -> str:
    """Different states have different hashes, and a hash changes with nothing else."""
    count = 0
    rerolls = subject.env_type.reroll is not ToolEnv.reroll  # its dice are hidden on purpose
    with subject.make() as env:
        samples = subject.samples()
        for task in [] if rerolls else samples:
            states: dict[str, dict[str, ToolCall]] = defaultdict(dict)
            for call in _probes(subject, env, task, samples):
                env.begin(task)
                env.step([call])
                try:
                    state = digest(env.snapshot().state)
                except TypeError:  # objects that change in place: only the env can tell them apart
                    break
                states[env.state_hash()].setdefault(state, call)
                count += 1
            for same in states.values():
                if len(same) > 1:
                    one, other = list(same.values())[:2]
                    raise found(
                        f"task {task.id}: the states after {one.canonical()} and after "
                        f"{other.canonical()} differ, and their hashes do not: state_hash() leaves "
                        f"a part of the state out"
                    )
    return f"{count} states, told apart by their hashes"
