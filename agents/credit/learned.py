"""Credit that reads the student's own network: a learned value of its states, and its attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from journeyman.agents.credit.episodes import outcome_advantages
from journeyman.agents.credit.interface import Credit, Experience, TokenCredit, spread
from journeyman.agents.errors import SettingError
from journeyman.agents.networks.reading import Layers, step_attention
from journeyman.envs import Episode, StopReason


class Critic:
    """A small head on the student's frozen states, which learns what they are worth.

    A linear layer, or two with a tanh in between, in float32 on the CPU. States are brought to mean
    0 and variance 1 first, since models differ in scale. It says 0 of everything until it has
    learned. Processes of a job have the same critic, since each learns from the episodes of all.
    """

    def __init__(
        self, hidden: int = 0, learning_rate: float = 3e-3, updates: int = 32, seed: int = 0
    ) -> None:
        """Nothing is built before the width of the states is known.

        Args:
            hidden: Width of the hidden layer; 0 for a linear critic.
            learning_rate: Of its own AdamW.
            updates: Gradient steps a batch, each over the whole batch.
            seed: Of the hidden layer's first weights; other generators are left alone.
        """
        if hidden < 0:
            raise SettingError(f"hidden={hidden}: expected a width, or 0 for a linear critic")
        if not learning_rate > 0:
            raise SettingError(f"learning_rate={learning_rate}: expected above 0")
        if updates < 1:
            raise SettingError(f"updates={updates}: expected at least 1")
        self._hidden = hidden
        self._learning_rate = learning_rate
        self._updates = updates
        self._seed = seed
        self._head: nn.Sequential | None = None

    @torch.no_grad()
    def values(self, states: Tensor) -> Tensor:
        """Values [N] of states [N, H]."""
        if self._head is None:
            return torch.zeros(len(states))
        values: Tensor = self._head(states)[:, 0]
        return values

    def fit(self, states: Tensor, targets: Tensor) -> None:
        """Descend the mean squared error.

        Args:
            states: [N, H], N at least 1.
            targets: [N].
        """
        head = self._head if self._head is not None else self._build(states.shape[1])
        for _ in range(self._updates):
            loss = nn.functional.mse_loss(head(states)[:, 0], targets)
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()

    def state_dict(self) -> dict[str, Any]:
        """Width of the states, weights, optimiser; empty as long as nothing was learned."""
        if self._head is None:
            return {}
        return {
            "width": self._width,
            "head": self._head.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._build(state["width"]).load_state_dict(state["head"])
        self._optimiser.load_state_dict(state["optimiser"])

    def _build(self, width: int) -> nn.Sequential:
        # Made without torch's own initialisation, which would draw from the global generator.
        layers: list[nn.Module] = [nn.LayerNorm(width, elementwise_affine=False)]
        if self._hidden:
            first = nn.utils.skip_init(nn.Linear, width, self._hidden)
            noise = torch.Generator().manual_seed(self._seed)
            nn.init.xavier_uniform_(first.weight, generator=noise)
            nn.init.zeros_(first.bias)
            layers += [first, nn.Tanh()]
        last = nn.utils.skip_init(nn.Linear, self._hidden or width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self._width = width
        self._head = nn.Sequential(*layers, last)
        self._optimiser = torch.optim.AdamW(self._head.parameters(), lr=self._learning_rate)
        return self._head


@dataclass(frozen=True)
class _Judged:
    """A critic's view of an episode of S steps."""

    values: Tensor
    """[S] of the states before the steps."""
    advantages: Tensor
    """[S]."""
    returns: Tensor
    """[S], discounted: what the values should have been."""


class GAE(Credit):
    """Reinforcement with a learned baseline: generalised advantage estimation over steps.

    A_k is the sum over l of (gamma lam)^l d_{k+l}, with d_k = r_k + gamma V(s_{k+1}) - V(s_k)
    (Schulman et al. 2016, arXiv:1506.02438). A step is a turn of the student and its state what the
    student knows when the turn begins; the reward comes with the last step, after which there is
    nothing. An episode that ran out of turns or context has ended like any other: that is a way to
    fail. One that broke teaches nothing. The critic learns A + V, after the batch was judged.
    """

    def __init__(
        self,
        critic: Critic,
        gamma: float = 1.0,
        lam: float = 0.95,
        scale: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        """Judge steps by `critic`.

        Args:
            critic: Says what states are worth.
            gamma: Discount a step.
            lam: 0 trusts the critic at the next step, 1 waits for the outcome.
            scale: Multiplies advantages.
            weight: Multiplies the divergence (0: no teacher at all).
        """
        for name, value in (("gamma", gamma), ("lam", lam)):
            if not 0 <= value <= 1:
                raise SettingError(f"{name}={value}: expected 0 to 1")
        self._critic = critic
        self._gamma = gamma
        self._lam = lam
        self._scale = scale
        self._weight = weight

    def assign(self, experience: Experience) -> list[TokenCredit]:
        """Constant weights; advantages by the critic as it is."""
        judged = self._judge(experience)
        experience.figures.update(_figures(list(judged.values())))
        credit = []
        for i, episode in enumerate(experience.episodes):
            count = len(episode.steps)
            advantages = judged[i].advantages if i in judged else torch.zeros(count)
            weights = torch.full((count,), self._weight)
            credit.append(spread(episode, weights, self._scale * advantages))
        return credit

    def learn(self, experience: Experience) -> None:
        """Fit the critic to A + V; of an episode that was forked off another, to its own steps.

        Of the episodes of all processes, in the order of their rows.
        """
        states, targets = [], []
        for i, it in self._judge(experience).items():
            first = experience.episodes[i].first_step
            states.append(experience.states[i][first:])
            targets.append((it.advantages + it.values)[first:])
        states, targets = experience.job.share(states), experience.job.share(targets)
        if sum(map(len, targets)):
            self._critic.fit(torch.cat(states), torch.cat(targets))

    def state_dict(self) -> dict[str, Any]:
        """The critic's."""
        return self._critic.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The critic's."""
        self._critic.load_state_dict(state)

    def _judge(self, experience: Experience) -> dict[int, _Judged]:
        """By index, the episodes that have steps and did not break."""
        judged = {}
        for i, (episode, states) in enumerate(
            zip(experience.episodes, experience.states, strict=True)
        ):
            if episode.steps and episode.stop is not StopReason.INFRA_ERROR:
                values, rewards = self._critic.values(states), torch.zeros(len(states))
                rewards[-1] = episode.reward
                advantages = gae(rewards, values, self._gamma, self._lam)
                returns = gae(rewards, torch.zeros(len(states)), self._gamma, 1.0)
                judged[i] = _Judged(values, advantages, returns)
        return judged


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Advantages [S] of an episode's steps.

    Args:
        rewards: [S], S at least 1, after each step.
        values: [S] of the states before each step; the state after the last is worth 0.
        gamma: Discount.
        lam: Lambda.
    """
    deltas = rewards - values
    deltas[:-1] += gamma * values[1:]
    for step in range(len(deltas) - 2, -1, -1):
        deltas[step] += gamma * lam * deltas[step + 1]
    return deltas


def _figures(judged: list[_Judged]) -> dict[str, float]:
    """How well the critic foretold returns that it has not learned from yet."""
    if not judged:
        return {}
    returns = torch.cat([it.returns for it in judged])
    errors = returns - torch.cat([it.values for it in judged])
    figures = {"critic/loss": float(errors.square().mean())}
    if variance := float(returns.var(correction=0)):  # else there is nothing to explain
        figures["critic/explained_variance"] = 1 - float(errors.var(correction=0)) / variance
    return figures


class Attention(Credit):
    """The outcome spread over steps by the attention that the last step pays them.

    The advantage of step k is that of `Outcome` times S a_k / (a_1 + ... + a_S), with a_k the
    attention to the tokens of step k by those of the last one (see `step_attention`): in the mean
    over steps as much as if all got the same. After attention-based credit (Chan et al. 2024,
    arXiv:2402.00782), in the form that takes the generator's own attention (ABC-D), with turns in
    the place of tokens.
    """

    def __init__(self, layers: Layers = "last", scale: float = 1.0, weight: float = 1.0) -> None:
        """`layers` is "last" or "all" (their mean); `scale` and `weight` are those of `Outcome`."""
        if layers not in ("last", "all"):
            raise SettingError(f"layers={layers!r}: expected 'last' or 'all'")
        self._layers: Layers = layers
        self._scale = scale
        self._weight = weight

    def assign(self, experience: Experience) -> list[TokenCredit]:
        """Constant weights; the outcome's advantage, redistributed.

        Raises:
            UnsupportedModelError: The student gives no attention weights.
        """
        credit = []
        advantages = outcome_advantages(experience.episodes, experience.job)
        for episode, advantage in zip(experience.episodes, advantages, strict=True):
            weights = torch.full((len(episode.steps),), self._weight)
            factors = self._factors(experience, episode)
            credit.append(spread(episode, weights, self._scale * advantage * factors))
        return credit

    def _factors(self, experience: Experience, episode: Episode) -> Tensor:
        """[S], of mean 1; 0 if the episode broke."""
        if not episode.steps or episode.stop is StopReason.INFRA_ERROR:
            return torch.zeros(len(episode.steps))
        attention = step_attention(experience.network, episode, self._layers)
        return attention / attention.mean()
