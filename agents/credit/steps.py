"""Step values joined with distillation: three forms, as pure functions.

With l_t = log p_teacher - log p_student of a sampled token and A_k its step's shrunk advantage:

(i)   additive: the token's advantage is beta clip(l_t, -c, c) + lambda A_k.
(ii)  gated: its divergence weighs w_k g_k and its advantage is lambda A_k. w_k grows with what
      hangs on the step (`criticality`); g_k is how surely the teacher's own call is better than the
      student's policy here (`reliability`).
(iii) policy target: cross-entropy to prior exp(Q / tau) over a node's candidates. With the teacher
      as prior this is the closed form of (i): the best policy under beta KL to the teacher and
      reward lambda Q is p_teacher exp(lambda Q / beta).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from journeyman.agents.credit.episodes import TokenCredit
from journeyman.agents.search.backup import Advantage, NodeValue
from journeyman.agents.search.tree import Action, NodeKey, Path


@dataclass(frozen=True)
class StepSignals:
    """What a search says of the S steps of one episode."""

    advantage: Tensor
    """[S] shrunk Q - V of what the student did; 0 where nothing is known."""
    deviation: Tensor
    """[S] standard deviation of Q over the student's own choices there; 0 where unknown."""
    teacher_advantage: Tensor
    """[S] Q - V of the teacher's call there; NaN where it was not played."""
    teacher_error: Tensor
    """[S] standard error of `teacher_advantage`; NaN likewise."""


def step_signals(
    values: Mapping[NodeKey, NodeValue],
    path: Path,
    teacher: Mapping[NodeKey, Action] | None = None,
    kappa: float = 1.0,
) -> StepSignals:
    """Read one trajectory's signals off the values of its tree.

    Args:
        values: From `expected_backup`.
        path: The trajectory.
        teacher: The teacher's call by node, where it was asked; it may be the student's own.
        kappa: Shrinks advantages by n / (n + kappa).
    """
    rows = []
    for key, step in zip(path.keys, path.steps, strict=False):
        node = values[key]
        own = _advantage(node, step.action)
        theirs = _advantage(node, teacher[key]) if teacher and key in teacher else None
        rows.append(
            (
                own.shrunk(kappa) if own else 0.0,
                math.sqrt(node.spread),
                theirs.mean if theirs else math.nan,
                math.sqrt(theirs.variance) if theirs else math.nan,
            )
        )
    return StepSignals(*torch.tensor(rows).reshape(len(rows), 4).unbind(1))


def _advantage(node: NodeValue, action: Action) -> Advantage | None:
    known = node.value is not None and action in node.actions
    return node.advantage(action) if known else None


def criticality(deviation: Tensor, epsilon: float = 0.05) -> Tensor:
    """w_k = epsilon + deviation, scaled to mean 1: distillation goes where the outcome is decided.

    Args:
        deviation: [S] of one episode, or [N] of a batch's steps: what shares one mean.
        epsilon: In units of reward, above 0; the larger, the nearer to all equal.
    """
    if epsilon <= 0:
        raise ValueError(f"epsilon={epsilon}: expected above 0, or steps without values weigh 0")
    weights = epsilon + deviation
    return weights / weights.mean() if len(weights) else weights


def reliability(advantage: Tensor, error: Tensor) -> Tensor:
    """g_k = Phi(advantage / error): how surely the teacher's call beats the student's policy.

    1 where the teacher's call was not played (NaN): nothing speaks against the teacher. Without any
    error, 0, 1/2 or 1 by the advantage's sign.

    Args:
        advantage: [S] Q(s, teacher's call) - V(s).
        error: [S] its standard error, at least 0.
    """
    exact = (advantage.sign() + 1) / 2
    likely = torch.special.ndtr(advantage / error.clamp(min=1e-12))
    return torch.where(error > 0, likely, exact).where(~advantage.isnan(), 1.0)


def additive(
    log_ratio: Tensor,
    turns: Tensor,
    signals: StepSignals,
    beta: float = 1.0,
    clip: float = 5.0,
    scale: float = 1.0,
) -> TokenCredit:
    """Form (i): no divergence, one advantage a token.

    Args:
        log_ratio: [T] log p_teacher - log p_student.
        turns: [T] index of the token's step, -1 outside of steps.
        signals: Of the episode's S steps.
        beta: Of the teacher's part.
        clip: Largest |log_ratio| that counts, in nats.
        scale: Of the measured advantage (lambda).
    """
    inside = turns >= 0
    pull = beta * log_ratio.clamp(-clip, clip) * inside
    return TokenCredit(
        torch.zeros_like(log_ratio), pull + scale * to_tokens(signals.advantage, turns)
    )


def gated(
    turns: Tensor,
    signals: StepSignals,
    epsilon: float = 0.05,
    scale: float = 1.0,
    gate: bool = True,
) -> TokenCredit:
    """Form (ii): divergence where it matters and the teacher is right, and the measured advantage.

    Args:
        turns: [T] index of the token's step, -1 outside of steps.
        signals: Of the episode's S steps.
        epsilon: See `criticality`.
        scale: Of the measured advantage (lambda).
        gate: False trusts the teacher everywhere.
    """
    weights = criticality(signals.deviation, epsilon)
    if gate:
        weights = weights * reliability(signals.teacher_advantage, signals.teacher_error)
    return TokenCredit(to_tokens(weights, turns), scale * to_tokens(signals.advantage, turns))


def to_tokens(steps: Tensor, turns: Tensor) -> Tensor:
    """Spread [S] step values over [T] tokens; 0 where `turns` is -1.

    Raises:
        ValueError: A token belongs to a step beyond S.
    """
    if len(turns) and int(turns.max()) >= len(steps):
        raise ValueError(f"a token of step {int(turns.max())}, but values of {len(steps)} steps")
    padded = torch.cat([steps, steps.new_zeros(1)])  # index -1
    return padded[turns]


def policy_target(log_prior: Tensor, q: Tensor, temperature: float) -> Tensor:
    """Form (iii): [C] probabilities, prior exp(Q / temperature) over a node's candidates.

    Args:
        log_prior: [C] log-probabilities, any constant added.
        q: [C] values of the candidates.
        temperature: In units of reward, above 0; the larger, the closer to the prior.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: expected above 0")
    return torch.softmax(log_prior + q / temperature, dim=-1)


def target_cross_entropy(log_student: Tensor, target: Tensor) -> Tensor:
    """0-d loss: - sum target log p_student, the student renormalised over the candidates.

    Args:
        log_student: [C] the student's log-probabilities of the whole candidates; with gradient.
        target: [C] from `policy_target`.
    """
    return -(target * torch.log_softmax(log_student, dim=-1)).sum()
