"""What mctx, DeepMind's search library, says on random nodes and bandits.

    python tests/agents/search/oracle.py     writes golden/mctx/cases.json

    python tests/agents/search/oracle.py -   prints it instead

`test_select.py` holds our rules against that file; a slow test holds the file against mctx, in a
process of its own: jax starts threads, and after that a test process can fork no sandbox any more.
"""

import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

FILE = Path(__file__).parent / "golden" / "mctx" / "cases.json"
ACTIONS = 6
SCHEDULES = [(m, n) for m in (1, 2, 3, 5, 8, 16) for n in (1, 7, 32, 100)]
SEARCHES = [("gumbel", 8, 16), ("gumbel", 40, 4), ("puct", 30, 16)]


def ask_mctx() -> dict[str, Any]:
    """All cases with mctx's answers, values taken as they are (`rescale_values=False`)."""
    import mctx

    rng = np.random.default_rng(0)
    halving = mctx._src.seq_halving.get_sequence_of_considered_visits
    return {
        "nodes": [_node(rng) for _ in range(20)],
        "schedules": [
            {"candidates": m, "simulations": n, "visits": list(halving(m, n))} for m, n in SCHEDULES
        ],
        "searches": [_search(rng, *search) for search in SEARCHES],
    }


def _node(rng: np.random.Generator) -> dict[str, Any]:
    """One node: every rule's answer."""
    import jax
    import mctx
    from mctx._src import action_selection, seq_halving

    logits, q, gumbel = rng.normal(size=(3, ACTIONS)).astype(np.float32)
    visits, value = rng.integers(0, 4, size=ACTIONS), float(rng.normal())
    tree = SimpleNamespace(
        children_visits=visits[None],
        node_visits=np.array([1 + visits.sum()]),
        children_prior_logits=logits[None],
        raw_values=np.array([value]),
        qvalues=lambda index: q,
        num_actions=ACTIONS,
        root_invalid_actions=np.zeros(ACTIONS),
    )
    key = jax.random.PRNGKey(0)
    transform = functools.partial(mctx.qtransform_completed_by_mix_value, rescale_values=False)
    scaled = transform(tree, 0)
    scores = seq_halving.score_considered(1, gumbel, logits, scaled, visits)
    return {
        "logits": logits.tolist(),
        "q": q.tolist(),
        "gumbel": gumbel.tolist(),
        "visits": visits.tolist(),
        "value": value,
        "sigma": np.asarray(scaled).tolist(),
        "puct": int(
            action_selection.muzero_action_selection(
                key, tree, 0, 0, qtransform=lambda tree, node: tree.qvalues(node)
            )
        ),
        # JSON knows no infinity: those of other visits are null.
        "halving": [float(x) if np.isfinite(x) else None for x in np.asarray(scores)],
    }


def _search(rng: np.random.Generator, rule: str, simulations: int, top: int) -> dict[str, Any]:
    """Whole searches on four bandits: an action's reward, then a worthless end."""
    import jax
    import mctx

    jnp = jax.numpy
    logits, rewards = rng.normal(size=(2, 4, ACTIONS)).astype(np.float32)
    values = rng.normal(size=4).astype(np.float32)

    def step(rewards: Any, key: Any, action: Any, embedding: Any) -> Any:
        nothing = jnp.zeros(4)
        reward = jnp.take_along_axis(rewards, action[:, None], axis=1)[:, 0]
        return mctx.RecurrentFnOutput(
            reward=reward, discount=nothing, prior_logits=jnp.zeros((4, ACTIONS)), value=nothing
        ), embedding

    root = mctx.RootFnOutput(prior_logits=logits, value=values, embedding=jnp.zeros((4, 1)))
    if rule == "gumbel":
        policy = functools.partial(
            mctx.gumbel_muzero_policy,
            qtransform=functools.partial(
                mctx.qtransform_completed_by_mix_value, rescale_values=False
            ),
            max_num_considered_actions=top,
        )
    else:
        policy = functools.partial(
            mctx.muzero_policy,
            qtransform=lambda tree, node: tree.qvalues(node) * (tree.children_visits[node] > 0),
            dirichlet_fraction=0.0,
        )
    run = jax.jit(
        lambda: policy(
            rewards, jax.random.PRNGKey(1), root, step, num_simulations=simulations, max_depth=1
        )
    )
    done = run()
    gumbel = done.search_tree.extra_data.root_gumbel if rule == "gumbel" else np.zeros((4, ACTIONS))
    return {
        "rule": rule,
        "simulations": simulations,
        "top": top,
        "logits": logits.tolist(),
        "rewards": rewards.tolist(),
        "values": values.tolist(),
        "gumbel": np.asarray(gumbel).tolist(),
        "visits": np.asarray(done.search_tree.summary().visit_counts).tolist(),
        "actions": np.asarray(done.action).tolist(),
        "weights": np.asarray(done.action_weights).tolist(),
    }


if __name__ == "__main__":
    answers = json.dumps(ask_mctx(), indent=1) + "\n"
    if sys.argv[1:] == ["-"]:
        sys.stdout.write(answers)
    else:
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(answers)
