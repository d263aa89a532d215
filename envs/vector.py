"""`ThreadVectorEnv`: many environments stepped at once, for tools that wait.

`gymnasium.make_vec("journeyman/Python-v0", num_envs=64)` makes one. A tool that waits (a sandbox, a
server, a database) lets other threads run, so 64 such environments take about as long as one.
Environments that never wait (`ToolEnv.waits` is False) are stepped in the caller's thread, where
threads would only cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from journeyman.envs.core import Action, Observation, ToolEnv
from journeyman.envs.errors import EpisodeOverError, VectorError
from journeyman.envs.registry import make

Observations = tuple[Observation, ...]
_Played = tuple[Observation, float, bool, bool, dict[str, Any]]


class ThreadVectorEnv(VectorEnv[Observations, Sequence[Action], NDArray[Any]]):
    """Steps N tool environments at once, those that wait in threads of their own.

    Observations and actions are tuples with one entry an environment; rewards, terminations and
    truncations are arrays of shape (N,); infos have Gymnasium's vector form (an array a key and a
    mask under "_key"; "calls" is an array of tuples).
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], ToolEnv]],
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        """Make the environments.

        Args:
            env_fns: One a environment.
            autoreset_mode: When an environment whose episode has ended is reset: "NextStep" (its
                next step is the reset), "SameStep" (at once; the last messages and info are under
                "final_obs" and "final_info"), "Disabled" (the caller does it, with
                `reset(options={"reset_mask": …})`).

        Raises:
            ValueError: No environment, or no such mode.
        """
        if not env_fns:
            raise ValueError("env_fns is empty: a vector needs at least one environment")
        with ExitStack() as stack:  # if one cannot be made, those before it are closed
            self.envs: list[ToolEnv] = []
            for make_env in env_fns:
                self.envs.append(make_env())
                stack.callback(self.envs[-1].close)
            stack.pop_all()
        self.num_envs = len(self.envs)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.envs[0].metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = self.envs[0].render_mode
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._observations: list[Observation] = [()] * self.num_envs
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        self._playing = False
        self._pool = ThreadPoolExecutor(self.num_envs, "journeyman-vector")  # threads start late

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Observations, dict[str, Any]]:
        """Start an episode in every environment.

        Args:
            seed: One an environment; a single number counts up from the first environment on.
            options: Passed to each environment; "reset_mask", a boolean array of shape (N,),
                resets only where it is True.

        Raises:
            ValueError: Another number of seeds, or a mask of another shape or type.
            VectorError: An environment could not be reset; its own error is the cause.
        """
        seeds = self._seeds(seed)
        passed = dict(options or {})
        mask = self._mask(passed.pop("reset_mask", None))
        jobs: dict[int, Callable[[], Any]] = {
            i: partial(self.envs[i].reset, seed=seeds[i], options=passed)
            for i in np.flatnonzero(mask).tolist()
        }
        infos: dict[str, Any] = {}
        for i, (observation, info) in self._run(jobs).items():
            self._observations[i] = observation
            infos = self._add_info(infos, info, i)
        self._ended[mask] = False
        self._playing = self._playing or bool(mask.all())
        return tuple(self._observations), infos

    def step(
        self, actions: Sequence[Action]
    ) -> tuple[Observations, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Play one turn in every environment.

        Args:
            actions: One an environment; in mode "NextStep" it is not used where the last step ended
                the episode.

        Raises:
            ValueError: Another number of actions.
            EpisodeOverError: `reset()` was not called, or not since a step failed.
            VectorError: An environment broke; its own error is the cause. The others have played
                their turn, but what came of it is lost: start anew with `reset()`.
        """
        if isinstance(actions, str) or len(actions) != self.num_envs:
            given = "one text" if isinstance(actions, str) else f"{len(actions)} actions"
            raise ValueError(f"expected a sequence of {self.num_envs} actions, not {given}")
        if not self._playing:
            raise EpisodeOverError("no episodes are running: call reset() before step()")
        played = self._run({i: partial(self._play, i, action) for i, action in enumerate(actions)})
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        terminations = np.zeros(self.num_envs, dtype=np.bool_)
        truncations = np.zeros(self.num_envs, dtype=np.bool_)
        infos: dict[str, Any] = {}
        for i, (observation, reward, terminated, truncated, info) in played.items():
            self._observations[i] = observation
            rewards[i], terminations[i], truncations[i] = reward, terminated, truncated
            infos = self._add_info(infos, info, i)
        self._ended = terminations | truncations
        return tuple(self._observations), rewards, terminations, truncations, infos

    def _play(self, i: int, action: Action) -> _Played:
        env = self.envs[i]
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and self._ended[i]:
            observation, info = env.reset()
            return observation, 0.0, False, False, info
        observation, reward, terminated, truncated, info = env.step(action)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and (terminated or truncated):
            final = {"final_obs": observation, "final_info": info}
            observation, info = env.reset()
            info = info | final
        return observation, reward, terminated, truncated, info

    def _run(self, jobs: Mapping[int, Callable[[], Any]]) -> dict[int, Any]:
        """Run a job an environment; all have ended when it returns or raises."""
        waiting: dict[int, Future[Any]] = {
            i: self._pool.submit(job) for i, job in jobs.items() if self.envs[i].waits
        }
        done, failed = {}, {}
        for i, job in jobs.items():
            try:
                done[i] = waiting[i].result() if i in waiting else job()
            except Exception as error:
                failed[i] = error
        if failed:
            self._playing = False
            i, first = next(iter(failed.items()))
            more = f" (and {len(failed) - 1} more failed)" if len(failed) > 1 else ""
            raise VectorError(
                f"environment {i} of {self.num_envs}: {type(first).__name__}: {first}{more}"
            ) from first
        return done

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int):
            return range(seed, seed + self.num_envs)
        if len(seed) != self.num_envs:
            raise ValueError(f"seed: expected {self.num_envs} seeds, not {len(seed)}")
        return seed

    def _mask(self, mask: Any) -> NDArray[np.bool_]:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        given = np.asarray(mask)
        if given.shape != (self.num_envs,) or given.dtype != np.bool_:
            raise ValueError(
                f"reset_mask: expected {self.num_envs} booleans, not {given.dtype} of shape "
                f"{given.shape}"
            )
        return given

    def render(self) -> tuple[str, ...] | None:
        """The transcript of each environment, in render mode "ansi"."""
        if self.render_mode != "ansi":
            return None
        return tuple(str(env.render()) for env in self.envs)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """An attribute of each environment, called with the arguments if it is a method."""
        found = (getattr(env, name) for env in self.envs)
        return tuple(f(*args, **kwargs) if callable(f) else f for f in found)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment."""
        return tuple(getattr(env, name) for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments and end the threads."""
        with ExitStack() as stack:  # one that cannot be closed keeps no other from it
            for env in self.envs:
                stack.callback(env.close)
            self._pool.shutdown(cancel_futures=True)


def make_vector(env_id: str, num_envs: int = 1, **kwargs: Any) -> ThreadVectorEnv:
    """What `gymnasium.make_vec` calls for every id registered here.

    Args:
        env_id: A registered id.
        num_envs: How many environments.
        kwargs: "autoreset_mode"; the rest goes to each environment's constructor.

    Raises:
        UnknownEnvError: No such id; the message suggests the nearest.
    """
    mode = kwargs.pop("autoreset_mode", AutoresetMode.NEXT_STEP)
    return ThreadVectorEnv([lambda: make(env_id, **kwargs)] * num_envs, mode)
