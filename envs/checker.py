"""What every environment must keep to, as checks with a name each: `journeyman envs check ID`.

A search forks episodes and a trainer replays them: an environment that forgets part of its state,
or draws a number from elsewhere than its seed, gives wrong values without any error. This finds it.
"""

from __future__ import annotations

import itertools
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

from gymnasium.utils.env_checker import check_env
from tqdm import tqdm

from journeyman.envs.core import ToolEnv
from journeyman.envs.hashing import digest
from journeyman.envs.nearmiss import near_misses, program
from journeyman.envs.registry import env_class, make
from journeyman.envs.task import ANSWER, Task, answer_text
from journeyman.envs.types import SPLITS
from journeyman.tools import ToolCall, render_hermes

NO_OP = f"{ANSWER} done"
"""The answer of someone who did nothing."""

_TURNS = 6

_THREADS = 4
"""Episodes played side by side where tools wait for something outside this process."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check came to."""

    name: str
    passed: bool
    detail: str
    """What was played, or what went wrong and where."""


class _Failed(Exception):
    """A check does not hold; the message says where."""


@dataclass(frozen=True)
class _Subject:
    """The environment under check and how much of it to play."""

    env_id: str
    episodes: int
    prefixes: int
    seed: int
    progress: bool
    kwargs: dict[str, Any]

    def make(self) -> ToolEnv:
        return make(self.env_id, **self.kwargs)

    def rng(self, episode: object) -> random.Random:
        return random.Random(f"{self.seed}/{episode}")

    def reset(self, env: ToolEnv, episode: int) -> Any:
        """Begin an episode: one level and split after the other."""
        pools = _pools(type(env))
        options = {"split": pools[episode % len(pools)]}
        return env.reset(seed=self.seed + episode, options=options)


def check(
    env_id: str,
    episodes: int = 20,
    prefixes: int = 20,
    seed: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> list[CheckResult]:
    """Check an environment.

    Args:
        env_id: A registered id.
        episodes: Episodes a check plays (and tasks of a split and level that it looks at).
        prefixes: Random prefixes after which an episode is branched and replayed.
        seed: Another seed plays other tasks and other turns.
        progress: Show a bar while the prefixes are played, if stderr is a terminal.
        kwargs: Passed to the environment's constructor.

    Returns:
        One result a check, in a fixed order. A check that meets an exception has failed.

    Raises:
        UnknownEnvError: No such id.
    """
    env_class(env_id)
    subject = _Subject(env_id, episodes, prefixes, seed, progress, kwargs)
    return [_run(name, run, subject) for name, run in CHECKS.items()]


def _run(name: str, run: Callable[[_Subject], str], subject: _Subject) -> CheckResult:
    try:
        return CheckResult(name, True, run(subject))
    except _Failed as failure:
        return CheckResult(name, False, str(failure))
    except Exception as error:
        return CheckResult(name, False, f"raised {type(error).__name__}: {error}")


def _gymnasium(subject: _Subject) -> str:
    """Gymnasium's own checker, whose warnings count as failures."""
    with subject.make() as env, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            check_env(env)
        except (AssertionError, UserWarning) as error:
            raise _Failed(f"Gymnasium's checker: {error}") from error
    return "Gymnasium's checker has no objection"


def _seeds(subject: _Subject) -> str:
    """The same seed and actions give the same observations and hashes in another env."""
    with subject.make() as one, subject.make() as other:
        for i in range(subject.episodes):
            seed = subject.seed + i
            opening, again = subject.reset(one, i), subject.reset(other, i)
            if opening != again:
                raise _Failed(f"reset(seed={seed}) gave {opening!r}, then {again!r}")
            actions = _actions(one, subject.rng(i))
            where = f"seed {seed}, task {one.task.id}, same actions in two envs"
            _compare(where, _play(one, actions), _play(other, actions))
    return f"{subject.episodes} episodes played in two envs were equal"


def _prefixes(subject: _Subject) -> str:
    """After a random prefix: play on, restore and play on again; and replay all from the start."""
    workers = _THREADS if env_class(subject.env_id).waits else 1
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


def _branch(subject: _Subject, number: int, one: ToolEnv, other: ToolEnv) -> None:
    rng = subject.rng(number)
    subject.reset(one, number)
    task_id = one.task.id
    actions = _actions(one, rng)
    cut = rng.randrange(len(actions))
    head = _play(one, actions[:cut])
    snapshot, before = one.snapshot(), one.state_hash()
    tail = _play(one, actions[cut:])
    restored, where = (other, ", in another env") if number % 2 else (one, "")
    where = f"task {task_id}, snapshot after {cut} turns{where}"
    restored.restore(snapshot)
    if restored.state_hash() != before:
        raise _Failed(f"{where}: restore gave hash {restored.state_hash()}, not {before}")
    _compare(f"{where}, after restore", tail, _play(restored, actions[cut:]))
    other.reset(options={"task_id": task_id})
    _compare(f"task {task_id}, replayed by its id", [*head, *tail], _play(other, actions))


def _gold(subject: _Subject) -> str:
    """The gold calls and the gold answers succeed, in every split at every level."""
    with subject.make() as env:
        tasks = list(_tasks(subject, env))
        for task in tasks:
            _play_gold(env, task)
    return f"{len(tasks)}/{len(tasks)} gold programs succeeded"


def _play_gold(env: ToolEnv, task: Task) -> None:
    env.begin(task)
    said: list[str] = []
    for _, action in program(task.turns):
        _, reward, _, truncated, info = env.step(action)
        said += [f"{r.call.canonical()} -> {r.content[:200]}" for r in info["calls"]] or [
            str(action)
        ]
        if truncated:
            raise _Failed(f"task {task.id}: {len(said)} gold turns reach the turn limit")
    if not info["success"] or reward != 1.0:
        raise _Failed(
            f"task {task.id} ({task.kind}): the gold program got reward {reward}; {'; '.join(said)}"
        )


def _no_op(subject: _Subject) -> str:
    """Answers without a call never succeed."""
    count = passed = 0
    with subject.make() as env:
        attempts = ((t, said) for t in _tasks(subject, env) for said in answers_alone(t))
        for task, answers in attempts:
            env.begin(task)
            for answer in answers:
                _, reward, _, _, info = env.step(answer)
            count += 1
            if info["success"] or reward > 0.0:
                passed += 1
                if "no_op" not in env.harmless:
                    said = " then ".join(map(repr, answers))
                    raise _Failed(f"task {task.id} ({task.kind}): {said} at once got {reward}")
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


def _near_misses(subject: _Subject) -> str:
    """What is nearly the gold program fails, unless it is harmless."""
    count = 0
    harmless: Counter[str] = Counter()
    with subject.make() as env:
        # Every near-miss is a branch: where a branch is a session to rebuild, fewer must do.
        share = 4 if env.waits else 1
        tasks = list(_tasks(subject, env, share))
        donors = [call for task in tasks for turn in task.turns for call in turn.gold]
        for task in tasks:
            for near_miss in near_misses(env, task, donors, subject.rng(task.id)):
                count += 1
                if near_miss.harmless is not None:
                    harmless[f"{near_miss.edit}: {near_miss.harmless}"] += 1
                elif near_miss.success:
                    raise _Failed(f"{near_miss} succeeds all the same")
    left = count - harmless.total()
    listed = "".join(f"; {edit} ({n})" for edit, n in sorted(harmless.items()))
    return f"0/{left} near-misses succeeded, and {harmless.total()} harmless ones{listed}"


def _tasks(subject: _Subject, env: ToolEnv, share: int = 1) -> Iterator[Task]:
    """The first tasks of every split at every level, or a share of them."""
    count = -(-subject.episodes // share)
    for where in _pools(type(env)):
        for task_id in itertools.islice(env.tasks(where), count):
            yield env.load_task(task_id)


def _pools(env_type: type[ToolEnv]) -> list[str]:
    """Every split at every level, but for those without a task."""
    pools = [f"{split}/{level}" for level in env_type.levels for split in SPLITS]
    return [where for where in pools if next(env_type.tasks(where), None) is not None]


def _splits(subject: _Subject) -> str:
    """No task of one split is also in another, and an id names one task."""
    env_type = env_class(subject.env_id)
    seen: dict[str, str] = {}
    for where in _pools(env_type):
        split = where.partition("/")[0]
        for task_id in itertools.islice(env_type.tasks(where), 10 * subject.episodes):
            task = env_type.load_task(task_id)
            content = _content(task)
            again = env_type.load_task(task_id)
            if _content(again) != content:
                raise _Failed(f"task {task_id} is another task when it is loaded again")
            other = seen.setdefault(content, task_id)
            if other.partition("/")[0] != split:
                raise _Failed(f"task {task_id} is also task {other}: {task.prompt!r}")
    return f"{len(seen)} different tasks, none in two splits"


def _content(task: Task) -> str:
    return digest((task.state, [(t.prompt, t.answer) for t in task.turns]))


CHECKS: dict[str, Callable[[_Subject], str]] = {
    "gymnasium": _gymnasium,
    "seeds": _seeds,
    "prefixes": _prefixes,
    "gold": _gold,
    "no_op": _no_op,
    "near_misses": _near_misses,
    "splits": _splits,
}
"""The checks by name, in the order `check` runs them; each returns what it did or raises."""


def _actions(env: ToolEnv, rng: random.Random) -> list[str]:
    """Turns that go right, go wrong in several ways, and now and then end the episode."""
    gold = env.oracle()
    env.action_space.seed(rng.randrange(2**31))
    turns = []
    for i in range(rng.randint(2, _TURNS)):
        dice = rng.random()
        if not gold or dice < 0.1:
            turns.append(str(env.action_space.sample()))
        elif dice < 0.5:
            turns.append(render_hermes(gold[i % len(gold)]))
        elif dice < 0.7:
            turns.append(render_hermes(rng.choice(gold)))
        elif dice < 0.8:
            turns.append(render_hermes(_spoil(rng.choice(gold), rng)))
        elif dice < 0.9:
            turns.append(f"{render_hermes(rng.choice(gold))}\n{render_hermes(rng.choice(gold))}")
        else:
            text = render_hermes(rng.choice(gold))
            turns.append(text[: rng.randrange(len("<tool_call>"), len(text))])
    return turns


def _spoil(call: ToolCall, rng: random.Random) -> ToolCall:
    """The call with one argument changed or dropped."""
    if not call.arguments:
        return replace(call, name=call.name + "s")
    name = rng.choice(sorted(call.arguments))
    value = call.arguments[name]
    changed = value + rng.choice((-1, 1)) if isinstance(value, int) else f"{value}0"
    kept = {n: v for n, v in call.arguments.items() if n != name}
    return replace(call, arguments=rng.choice(({**kept, name: changed}, kept)))


def _play(env: ToolEnv, actions: Sequence[str]) -> list[dict[str, Any]]:
    """Play until the actions or the episode end; what was seen after each turn."""
    trace: list[dict[str, Any]] = []
    if env.snapshot().over:
        return trace
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        trace.append(
            {
                "action": action,
                "observation": observation,
                "reward": reward,
                "ends": (terminated, truncated),
                "info": info,
                "hash": env.state_hash(),
            }
        )
        if terminated or truncated:
            break
    return trace


def _compare(where: str, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    for turn, (one, other) in enumerate(zip(first, second, strict=False)):
        for key, value in one.items():
            if value != other[key]:
                raise _Failed(
                    f"{where}: turn {turn} ({one['action'][:200]!r}) gave {key} "
                    f"{str(value)[:300]}, then {str(other[key])[:300]}"
                )
    if len(first) != len(second):
        raise _Failed(f"{where}: the episode ended after {len(first)} turns, then {len(second)}")
