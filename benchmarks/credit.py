"""Credit against exact values and exact policy gradients, from 8 trajectories of a student.

    python benchmarks/credit.py [--json FILE] [--png FILE] [--quick] [--mdps N]

On finite MDPs whose Q and V are known (`envs/exact.py`), every estimator in `conf/values/`, and
`tree` without the adaptive half of its budget (`tree_even`), may spend a budget beside the
trajectories, given in multiples of their own steps. Two things are measured.

Values: EV = 1 - MSE / E[A^2] over the trajectories' steps in all MDPs of a family; advantages of 0
score 0. And the gradient that training would form of the rows (`gradient`), for a tabular softmax
policy, against the exact one: cosine, and squared error over its squared length. For it the budget
is counted twice: in sampled tokens, all turns being equally long, of which a continuation from
inside takes no more than its own; and in environment steps where there are no snapshots, so that a
continuation is replayed from the start. (With snapshots, environment steps are as tokens.)

A rival that plays from inside is taken in the form of rows that serves it best in the family
(`FORMS`), since papers differ. Intervals are 95%, by bootstrap over MDPs. Ends with status 1 if a
bound that must hold does not (`bounds`); a quick run, with few MDPs, only prints.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf

from journeyman.agents.runs.folder import machine
from journeyman.agents.search import Budget, Kind, NodeKey, Tree, run_searches
from journeyman.agents.search import Path as Played
from journeyman.agents.search.estimators import StepEstimator, StepValue
from journeyman.agents.search.reach import sample_weights
from journeyman.agents.search.tabular import TabularWorld
from journeyman.envs.exact import FAMILIES, MDP, make_mdp

Array = NDArray[np.float64]

TRAJECTORIES = 8
OURS, EVEN, TEACHES, PUBLISHED = "tree", "tree_even", "gradient", "vineppo"
"""For values, and that without its adaptive half; for the gradient; VinePPO as published."""
GRID = (0, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Budgets, in multiples of the trajectories' own steps."""
OURS_UP_TO = 16
"""The tree estimators need no more; their searches cost more time per step than the others."""
SHOWN = (0, 1, 4, 16, 32)
LEVEL = 0.5
AT = 4
"""The budget at which gradients are compared."""
FORMS = ("own", "all", "reach")
"""Rows a gradient is made of: the trajectories alone; all rows as played; all rows, weighted by how
likely the student comes to each step (what training does by default)."""
UNITS = {"tokens": False, "steps": True}
"""What a budget is counted in, and whether a continuation is replayed from the start then."""
RATIOS = {"tree": 4.0, "critical": 4.0, "wide_peaked": 2.0, "wide_flat": 1.0}
"""Lower bounds of the interval of VinePPO's budget, as published, to EV >= LEVEL over ours."""
CEILINGS = {"graph_6": 6.0, "graph_40": 6.0}
"""Upper bounds of the interval of our own budget to EV >= LEVEL."""
ENOUGH = 9
"""Families of twelve in which our gradient may not be below the best rival's."""
MINE = (OURS, EVEN, TEACHES)
SSE, SSA, SPEARMAN, SPENT = range(4)

Results = dict[str, dict[str, dict[str, Array]]]
"""By family, estimator and part (see `measure`), with MDPs in front."""


def estimators() -> dict[str, StepEstimator]:
    """Every file of `conf/values/`, and ours without the adaptive half."""
    folder = importlib.resources.files("journeyman.conf") / "values"
    found = {file.name.removesuffix(".yaml"): file.read_text() for file in folder.iterdir()}
    every = {name: instantiate(OmegaConf.create(text)) for name, text in sorted(found.items())}
    return {**every, EVEN: instantiate(OmegaConf.create(found[OURS]), adaptive=0.0)}


def ways() -> list[dict[str, StepEstimator]]:
    """The estimators, those together that spend a budget alike: they see the same rollouts."""
    found: dict[object, dict[str, StepEstimator]] = {}
    for name, estimator in estimators().items():
        way = name if name in (OURS, EVEN, TEACHES) else type(estimator).search
        found.setdefault(way, {})[name] = estimator
    return list(found.values())


def gradient(
    mdp: MDP,
    paths: Sequence[Played],
    values: Sequence[Sequence[StepValue]],
    weights: Mapping[NodeKey, float] | None = None,
) -> Array:
    """The gradient of a tabular softmax policy that training forms of these rows, for an episode.

    A step adds its advantage times the gradient of log p(a), which is 1 - p at the action's logit
    and -p at the others; a first action that was not the student's own is masked. The sum is
    divided by the count of steps, as a loss is, and times the steps of an episode.

    Args:
        mdp: Layers are put one after the other.
        paths: The rows.
        values: What is known of each step.
        weights: Of a step's advantage, by node: `sample_weights`, which training brings to a mean
            of 1. None weighs all alike.
    """
    found = [np.zeros_like(policy) for policy in mdp.policy]
    count, total = 0, 0.0
    for path, row in zip(paths, values, strict=True):
        for i, (key, step, value) in enumerate(zip(path.keys, path.steps, row, strict=False)):
            if i or path.kind is Kind.SAMPLED:
                weight = 1.0 if weights is None else weights.get(key, 0.0)
                count, total = count + 1, total + weight
                state, action = int(str(key.state)), int(str(step.action))
                push = weight * value.advantage
                found[key.depth][state, action] += push
                found[key.depth][state] -= push * mdp.policy[key.depth][state]
    flat = np.concatenate([layer.ravel() for layer in found])
    return flat * (mdp.horizon / (total if weights is not None else count))


def exact_gradient(mdp: MDP) -> Array:
    """sum_s rho(s) sum_a p(a) A(s, a) grad log p(a), by layers (Sutton et al. 2000)."""
    layers = zip(mdp.reach, mdp.policy, mdp.q, mdp.v, strict=False)
    parts = [rho[:, None] * p * (q - v[:, None]) for rho, p, q, v in layers]
    return np.concatenate([part.ravel() for part in parts])


def compared(found: Array, exact: Array) -> tuple[float, float]:
    """Cosine (0 with a gradient of 0), and squared error over squared length."""
    norm = float(np.linalg.norm(found) * np.linalg.norm(exact))
    cosine = float(found @ exact) / norm if norm else 0.0
    return cosine, float(((found - exact) ** 2).sum() / (exact @ exact))


def measure(family: str, index: int, budgets: tuple[float, ...]) -> dict[str, dict[str, Array]]:
    """One MDP, for each estimator.

    Returns:
        "values": [budget, (SSE, SSA, SPEARMAN, SPENT)]; and by unit of the budget, which is `AT`,
        "tokens" and "steps": [form, (cosine, relative squared error)].
    """
    found: dict[str, dict[str, Array]] = {name: {} for name in estimators()}
    for group in ways():
        for unit, replay in UNITS.items():
            world = TabularWorld(make_mdp(family, index), replay)
            limit = max(budgets) if not replay else AT
            if group.keys() & {OURS, EVEN, TEACHES}:
                limit = min(limit, OURS_UP_TO)
            wanted = tuple(b for b in budgets if b <= limit) if not replay else (AT,)
            if TEACHES in group and not replay:
                wanted = tuple(b for b in wanted if b <= AT)
            _spend(found, group, world, index, wanted, unit, len(budgets))
    return found


def _spend(
    found: dict[str, dict[str, Array]],
    group: dict[str, StepEstimator],
    world: TabularWorld,
    index: int,
    budgets: tuple[float, ...],
    unit: str,
    places: int,
) -> None:
    """Measure estimators of one way, at rising budgets."""
    tree = Tree(0)
    paths = world.trajectories(tree, TRAJECTORIES, seed=index)
    own = tree.env_steps
    exact = np.array(
        [
            world.exact_q(key, int(str(step.action))) - world.exact_v(key)
            for path in paths
            for key, step in zip(path.keys, path.steps, strict=False)
        ]
    )
    truth = exact_gradient(world.mdp)
    search = next(iter(group.values())).search(tree, paths, Budget(0), index)
    rows = {name: np.full((places, 4), np.nan) for name in group}
    for i, budget in enumerate(budgets):
        search.budget = Budget(int(budget * own))
        run_searches(world, [search])
        weights = sample_weights(tree)
        for name, estimator in group.items():
            if unit == "tokens":
                values = [s.advantage for row in estimator.steps(tree, paths) for s in row]
                rows[name][i] = score(np.array(values), exact, (tree.env_steps - own) / own)
            if budget == AT:
                every = estimator.steps(tree, tree.paths, paths)
                form = partial(gradient, world.mdp)
                forms = {
                    "own": form(tree.paths[:TRAJECTORIES], every[:TRAJECTORIES]),
                    "all": form(tree.paths, every),
                    "reach": form(tree.paths, every, weights),
                }
                found[name][unit] = np.array([compared(forms[it], truth) for it in FORMS])
    if unit == "tokens":
        for name in group:
            found[name]["values"] = rows[name]


def score(values: Array, exact: Array, spent: float) -> tuple[float, float, float, float]:
    """Squared error, squared truth, rank correlation, budget."""
    ranks, truth = _ranks(values), _ranks(exact)
    norm = np.sqrt((ranks**2).sum() * (truth**2).sum())
    spearman = float((ranks * truth).sum() / norm) if norm else 0.0
    return float(((values - exact) ** 2).sum()), float((exact**2).sum()), spearman, spent


def _ranks(values: Array) -> Array:
    """Centred ranks; ties share their mean."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    ranks = (ends - (counts - 1) / 2)[where]
    return np.asarray(ranks - ranks.mean())


def explained(rows: Array, weights: Array) -> Array:
    """[B, budget] EV; rows [MDP, budget, 4], weights [B, MDP] say how often an MDP counts."""
    return np.asarray(1 - (weights @ rows[:, :, SSE]) / (weights @ rows[:, :, SSA]))


def needed(rows: Array, weights: Array) -> Array:
    """[B] budget at which EV first reaches LEVEL, between budgets by a line; infinite if never."""
    curves, spent = explained(rows, weights), weights @ rows[:, :, SPENT]
    spent /= weights.sum(axis=1, keepdims=True)
    found = np.full(len(weights), np.inf)
    for b, (curve, cost) in enumerate(zip(curves, spent, strict=True)):
        above = np.nonzero(curve >= LEVEL)[0]  # NaN, where it was not run, is not above
        if len(above):
            i = int(above[0])
            share = (LEVEL - curve[i - 1]) / (curve[i] - curve[i - 1]) if i else 0.0
            # Less than the first budget cannot be told from none: counted as that budget.
            found[b] = max(cost[i - 1] + share * (cost[i] - cost[i - 1]), GRID[1]) if i else GRID[1]
    return found


def interval(samples: Array) -> list[float]:
    """95%; infinities stay at their end."""
    return [float(x) for x in np.quantile(samples, (0.025, 0.975), method="nearest")]


def summarise(results: Results, resamples: int = 1000) -> dict[str, Any]:
    """Figures with intervals."""
    rng = np.random.default_rng(0)
    summary: dict[str, Any] = {}
    for family, by_name in results.items():
        rows = {name: parts["values"] for name, parts in by_name.items()}
        count = len(rows[OURS])
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
        once = np.ones((1, count))
        budgets = {name: needed(it, drawn) for name, it in rows.items()}
        points = {name: float(needed(it, once)[0]) for name, it in rows.items()}
        rivals = {name: point for name, point in points.items() if name not in MINE}
        best = min(rivals, key=lambda name: (rivals[name], -_reached(rows[name], once)))
        summary[family] = {
            "estimators": {
                name: {
                    "ev": explained(it, once)[0].tolist(),
                    "ev_interval": [interval(column) for column in explained(it, drawn).T],
                    "spearman": it[:, :, SPEARMAN].mean(axis=0).tolist(),
                    "spent": it[:, :, SPENT].mean(axis=0).tolist(),
                    "needed": points[name],
                    "needed_interval": interval(budgets[name]),
                }
                for name, it in rows.items()
            },
            "ratios": {
                which: _ratio(budgets, points, name)
                for which, name in (("best", best), ("published", PUBLISHED))
            },
            **{unit: gradients(by_name, unit, drawn) for unit in UNITS},
        }
    return summary


def _reached(rows: Array, once: Array) -> float:
    """The highest EV."""
    return float(np.nanmax(explained(rows, once)))


def _ratio(budgets: dict[str, Array], points: dict[str, float], rival: str) -> dict[str, Any]:
    """A rival's budget to EV >= LEVEL over ours; one that never gets there counts as the last."""
    last = max(GRID)
    return {
        "rival": rival,
        "ratio": min(points[rival], last) / points[OURS],
        "interval": interval(np.minimum(budgets[rival], last) / budgets[OURS]),
        "reached": bool(np.isfinite(points[rival])),
    }


def gradients(by_name: dict[str, dict[str, Array]], unit: str, drawn: Array) -> dict[str, Any]:
    """Each estimator's gradient, and ours less the best rival's, MDP by MDP."""
    share = drawn / drawn.sum(axis=1, keepdims=True)
    chosen, found = {}, {}
    for name, parts in by_name.items():
        forms = parts[unit]  # [MDP, form, 2]
        best = FORMS.index("reach") if name in MINE else int(forms[:, :, 0].mean(axis=0).argmax())
        chosen[name] = forms[:, best]
        cosine, error = chosen[name].mean(axis=0).tolist()
        found[name] = {
            "form": FORMS[best],
            "cosine": cosine,
            "cosine_interval": interval(share @ chosen[name][:, 0]),
            "relative_mse": error,
            "forms": {f: forms[:, i].mean(axis=0).tolist() for i, f in enumerate(FORMS)},
        }
    rival = max((n for n in found if n not in MINE), key=lambda n: float(found[n]["cosine"]))
    gap = chosen[TEACHES][:, 0] - chosen[rival][:, 0]
    gap = gap.round(9) + 0.0  # rounding is no difference, and none has no sign
    low, high = interval((share @ gap).round(9) + 0.0)
    return {
        "estimators": found,
        "rival": rival,
        "difference": float(gap.mean()),
        "interval": [low, high],
        "verdict": "above" if low > 0 else "below" if high < 0 else "level",
    }


def bounds(summary: dict[str, Any]) -> list[tuple[str, float, str, float, bool]]:
    """(what, figure, relation, bound, holds)."""
    found = []
    for family, least in RATIOS.items():
        low = summary[family]["ratios"]["published"]["interval"][0]
        found.append((f"{family}: ratio to {PUBLISHED}, lower end", low, ">=", least, low >= least))
    for family, most in CEILINGS.items():
        high = summary[family]["estimators"][OURS]["needed_interval"][1]
        found.append((f"{family}: our budget, upper end", high, "<=", most, high <= most))
    for unit in UNITS:
        held = sum(part[unit]["verdict"] != "below" for part in summary.values())
        what = f"gradient at equal {unit}: families not below the best rival"
        found.append((what, held, ">=", ENOUGH, held >= ENOUGH))
    return found


def _times(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "never"


def _span(pair: list[float], digits: int = 1) -> str:
    return " - ".join(_times(x, digits) for x in pair)


def report(summary: dict[str, Any]) -> str:
    """Markdown tables."""
    lines = []
    for unit in UNITS:
        lines += [
            f"\n### Gradient at {AT}x, equal {unit}: `{TEACHES}` against the best rival\n",
            "| family | ours | best rival | its rows | its cosine | difference | 95% | "
            "| relative MSE, ours | rival's |",
            "|" + "---|" * 10,
        ]
        for family, part in summary.items():
            it = part[unit]
            ours, rival = it["estimators"][TEACHES], it["estimators"][it["rival"]]
            lines.append(
                f"| {family} | {ours['cosine']:.3f} | {it['rival']} | {rival['form']} "
                f"| {rival['cosine']:.3f} | {it['difference']:+.3f} "
                f"| {it['interval'][0]:+.3f} - {it['interval'][1]:+.3f} | {it['verdict']} "
                f"| {ours['relative_mse']:.2f} | {rival['relative_mse']:.2f} |"
            )
    for unit in UNITS:
        lines += ["", f"### Cosine at {AT}x, equal {unit}\n", *_across(summary, unit)]
    lines += [f"\n### Budget to EV {LEVEL}\n", *_across(summary, "needed")]
    lines += [f"\n### Spearman at {AT}x\n", *_across(summary, "spearman")]
    lines += [
        f"\n### A rival's budget to EV {LEVEL} over that of `{OURS}`\n",
        f"| family | best rival | ratio | 95% | {PUBLISHED} as published | 95% |",
        "|---|---|---|---|---|---|",
    ]
    for family, part in summary.items():
        best, published = part["ratios"]["best"], part["ratios"]["published"]
        lines.append(
            f"| {family} | {best['rival']} | {_ratio_cell(best)} | {_span(best['interval'])} "
            f"| {_ratio_cell(published)} | {_span(published['interval'])} |"
        )
    lines += ["\n| must hold | figure | bound | |", "|---|---|---|---|"]
    for what, figure, relation, bound, holds in bounds(summary):
        verdict = "holds" if holds else "FAILS"
        lines.append(f"| {what} | {_times(figure, 2)} | {relation} {bound:g} | {verdict} |")
    return "\n".join(lines)


def _ratio_cell(it: dict[str, Any]) -> str:
    return ("" if it["reached"] else "above ") + f"{it['ratio']:.1f}"


def _across(summary: dict[str, Any], what: str) -> list[str]:
    """A row an estimator, a column a family."""
    lines = [f"| estimator | {' | '.join(summary)} |", "|" + "---|" * (len(summary) + 1)]
    for name in next(iter(summary.values()))["estimators"]:
        cells = []
        for part in summary.values():
            if what in UNITS:
                cells.append(f"{part[what]['estimators'][name]['cosine']:.2f}")
            elif what == "needed":
                cells.append(_times(part["estimators"][name]["needed"]))
            else:
                cells.append(f"{part['estimators'][name]['spearman'][GRID.index(AT)]:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def draw(summary: dict[str, Any], file: Path) -> None:
    """EV against budget, and cosines of gradients below: a panel a family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(4, 6, figsize=(20, 13))
    names = list(next(iter(summary.values()))["estimators"])
    colours = {name: f"C{i % 10}" for i, name in enumerate(names)}
    for i, (family, part) in enumerate(summary.items()):
        curves, bars = panels[2 * (i // 6), i % 6], panels[2 * (i // 6) + 1, i % 6]
        for name, it in part["estimators"].items():
            ours = name == OURS
            x, y = np.array(it["spent"], float), np.array(it["ev"], float)
            curves.plot(x, y, color=colours[name], linewidth=2.5 if ours else 1, zorder=2 + ours)
            low, high = np.array(it["ev_interval"], float).T
            curves.fill_between(x, low, high, color=colours[name], alpha=0.15, linewidth=0)
        curves.axhline(LEVEL, color="black", linewidth=0.8, linestyle="--")
        curves.set_xscale("symlog", base=2, linthresh=GRID[1])
        curves.set_xticks(SHOWN, [f"{b:g}" for b in SHOWN])
        curves.set(title=f"{family}: EV", ylim=(-1, 1), xlim=(0, max(GRID)))
        cosines = {name: it for name, it in part["tokens"]["estimators"].items() if name != EVEN}
        ranked = sorted(cosines, key=lambda name: float(cosines[name]["cosine"]))
        for y, name in enumerate(ranked):
            low, high = cosines[name]["cosine_interval"]
            bars.barh(y, cosines[name]["cosine"], color=colours[name])
            bars.plot([low, high], [y, y], color="black", linewidth=0.8)
        bars.set_yticks(range(len(ranked)), ranked, fontsize=7)
        bars.set(title=f"cosine at {AT}x, equal tokens", xlim=(0, 1))
    figure.tight_layout()
    figure.savefig(file, dpi=60)


def run(mdps: int, budgets: tuple[float, ...], processes: int) -> Results:
    """[MDP, …] rows of `measure`, by family, estimator and part."""
    jobs = [(family, i, budgets) for i in range(mdps) for family in FAMILIES]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        done = pool.starmap(measure, jobs, chunksize=3)
    return {
        family: {
            name: {
                part: np.stack(
                    [it[name][part] for (f, *_), it in zip(jobs, done, strict=True) if f == family]
                )
                for part in ("values", *UNITS)
            }
            for name in estimators()
        }
        for family in FAMILIES
    }


def _plain(value: Any) -> Any:
    """For JSON, which knows neither infinity (never reached) nor NaN (not run): both null."""
    if isinstance(value, dict):
        return {name: _plain(it) for name, it in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(it) for it in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--png", type=Path, help="draw the curves here")
    parser.add_argument("--quick", action="store_true", help="8 MDPs a family")
    parser.add_argument("--mdps", type=int, default=100, help="MDPs a family")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    started = time.perf_counter()
    mdps = 8 if options.quick else options.mdps
    summary = summarise(run(mdps, GRID, options.processes))
    seconds = time.perf_counter() - started
    ran = sum(os.times()[:4])  # this process and the pool's, which has ended
    print(report(summary))
    print(
        f"\n{mdps} MDPs a family, {TRAJECTORIES} trajectories each, {seconds / 60:.1f} minutes "
        f"({ran / 60:.1f} of CPU time)"
    )
    if options.json:
        it = {
            "mdps": mdps,
            "grid": GRID,
            "families": summary,
            "seconds": seconds,
            "machine": machine(),
        }
        options.json.write_text(json.dumps(_plain(it), indent=1, allow_nan=False))
    if options.png:
        draw(summary, options.png)
    return 0 if options.quick or all(holds for *_, holds in bounds(summary)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
