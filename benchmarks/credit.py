"""Credit against exact values: how well each estimator finds the advantages of 8 trajectories.

    python benchmarks/credit.py [--json FILE] [--png FILE] [--quick]

On finite MDPs whose Q and V are known (`journeyman/ExactMDP-v0`), every estimator in
`conf/values/`, and ours without the adaptive half of its budget (`tree_even`), values every step of
8 trajectories of the student, and may spend a budget of further environment steps on it, given in
multiples of the trajectories' own. EV = 1 - MSE / E[A^2], over all steps of all MDPs of a family;
advantages of 0 score 0. Intervals are 95%, by bootstrap over MDPs. Ends with status 1 if a bound
that must hold does not (`RATIOS`, `CEILINGS`); a quick run, with few MDPs, only prints.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf

from journeyman.agents.runs.folder import machine
from journeyman.agents.search import Budget, Tree, run_searches
from journeyman.agents.search.estimators import StepEstimator
from journeyman.agents.search.tabular import TabularWorld
from journeyman.envs.exact import FAMILIES, make_mdp

Array = NDArray[np.float64]

TRAJECTORIES = 8
OURS, EVEN, RIVAL = "tree", "tree_even", "vineppo"
GRID = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Budgets, in multiples of the trajectories' own steps."""
OURS_UP_TO = 16
"""The tree estimators need no more; their searches cost more time per step than the others."""
SHOWN = (0, 0.5, 1, 2, 4, 8, 16, 32, 64)
LEVEL = 0.5
RATIOS = {"tree": 4.0, "critical": 4.0, "wide_peaked": 2.0, "wide_flat": 1.0}
"""Lower bounds of the interval of VinePPO's budget to EV >= LEVEL over ours."""
CEILINGS = {"graph_6": 6.0, "graph_40": 6.0}
"""Upper bounds of the interval of our own budget to EV >= LEVEL."""
SSE, SSA, SPEARMAN, SPENT = range(4)


def estimators() -> dict[str, StepEstimator]:
    """Every file of `conf/values/`, and ours without the adaptive half."""
    folder = importlib.resources.files("journeyman.conf") / "values"
    found = {file.name.removesuffix(".yaml"): file.read_text() for file in folder.iterdir()}
    every = {name: instantiate(OmegaConf.create(text)) for name, text in sorted(found.items())}
    return {**every, EVEN: instantiate(OmegaConf.create(found[OURS]), adaptive=0.0)}


def measure(family: str, index: int, budgets: tuple[float, ...]) -> dict[str, Array]:
    """One MDP: [budget, (SSE, SSA, SPEARMAN, SPENT)] for each estimator.

    Estimators that spend their budget in the same way look at the same rollouts.
    """
    world = TabularWorld(make_mdp(family, index))
    ways: dict[object, dict[str, StepEstimator]] = {}
    for name, estimator in estimators().items():
        way = EVEN if name == EVEN else type(estimator).search
        ways.setdefault(way, {})[name] = estimator
    found = {}
    for group in ways.values():
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
        search = next(iter(group.values())).search(tree, paths, Budget(0), index)
        rows = {name: np.full((len(budgets), 4), np.nan) for name in group}
        for i, budget in enumerate(budgets):
            if group.keys() & {OURS, EVEN} and budget > OURS_UP_TO:
                break
            search.budget = Budget(int(budget * own))
            run_searches(world, [search])
            for name, estimator in group.items():
                values = [s.advantage for row in estimator.steps(tree, paths) for s in row]
                rows[name][i] = score(np.array(values), exact, (tree.env_steps - own) / own)
        found.update(rows)
    return found


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


def summarise(results: dict[str, dict[str, Array]], resamples: int = 1000) -> dict[str, Any]:
    """Figures with intervals, from [MDP, budget, 4] rows by family and estimator."""
    rng = np.random.default_rng(0)
    summary: dict[str, Any] = {}
    for family, by_name in results.items():
        count = len(by_name[OURS])
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)
        once = np.ones((1, count))
        last = max(GRID)
        budgets = {name: needed(rows, drawn) for name, rows in by_name.items()}
        points = {name: needed(rows, once)[0] for name, rows in by_name.items()}
        rival, ours = np.minimum(budgets[RIVAL], last), budgets[OURS]
        summary[family] = {
            "estimators": {
                name: {
                    "ev": explained(rows, once)[0].tolist(),
                    "ev_interval": [interval(column) for column in explained(rows, drawn).T],
                    "spearman": rows[:, :, SPEARMAN].mean(axis=0).tolist(),
                    "spent": rows[:, :, SPENT].mean(axis=0).tolist(),
                    "needed": float(points[name]),
                    "needed_interval": interval(budgets[name]),
                }
                for name, rows in by_name.items()
            },
            "ratio": float(min(points[RIVAL], last) / points[OURS]),
            "ratio_interval": interval(rival / ours),
            "ratio_with_own": float((min(points[RIVAL], last) + 1) / (points[OURS] + 1)),
            "ratio_with_own_interval": interval((rival + 1) / (ours + 1)),
            "rival_reached": bool(np.isfinite(points[RIVAL])),
        }
    return summary


def bounds(summary: dict[str, Any]) -> list[tuple[str, float, str, float, bool]]:
    """(family, figure, relation, bound, holds)."""
    found = []
    for family, least in RATIOS.items():
        low = summary[family]["ratio_interval"][0]
        found.append((family, low, ">=", least, low >= least))
    for family, most in CEILINGS.items():
        high = summary[family]["estimators"][OURS]["needed_interval"][1]
        found.append((family, high, "<=", most, high <= most))
    return found


def _times(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "never"


def _span(pair: list[float], digits: int = 1) -> str:
    return " - ".join(_times(x, digits) for x in pair)


def report(summary: dict[str, Any]) -> str:
    """Markdown tables."""
    lines = []
    for family, part in summary.items():
        lines += [f"\n### {family}\n"]
        head = " | ".join(f"{b:g}x" for b in SHOWN)
        lines += [
            f"| estimator | budget to EV {LEVEL} | 95% | EV at {head} | Spearman at 4x |",
            "|" + "---|" * (len(SHOWN) + 4),
        ]
        ranked = sorted(part["estimators"].items(), key=lambda item: item[1]["needed"])
        for name, it in ranked:
            at = [it["ev"][GRID.index(b)] for b in SHOWN]
            cells = " | ".join("" if np.isnan(ev) else f"{ev:.2f}" for ev in at)
            lines.append(
                f"| {name} | {_times(it['needed'], 2)} | {_span(it['needed_interval'], 2)} "
                f"| {cells} | {it['spearman'][GRID.index(4)]:.2f} |"
            )
        lines.append(f"| A = 0 | never | | {' | '.join('0.00' for _ in SHOWN)} | 0.00 |")
    lines += [
        f"\n### {RIVAL}'s budget over ours\n",
        "| family | ratio | 95% | with the trajectories' own steps | 95% |",
        "|---|---|---|---|---|",
    ]
    for family, part in summary.items():
        least = "" if part["rival_reached"] else "above "
        lines.append(
            f"| {family} | {least}{part['ratio']:.1f} | {_span(part['ratio_interval'])} "
            f"| {least}{part['ratio_with_own']:.1f} | {_span(part['ratio_with_own_interval'])} |"
        )
    lines += ["\n| must hold | figure | bound | |", "|---|---|---|---|"]
    for family, figure, relation, bound, holds in bounds(summary):
        what = "our budget, upper end" if relation == "<=" else "ratio, lower end"
        verdict = "holds" if holds else "FAILS"
        lines.append(
            f"| {family}: {what} | {_times(figure, 2)} | {relation} {bound:g} | {verdict} |"
        )
    return "\n".join(lines)


def draw(summary: dict[str, Any], file: Path) -> None:
    """EV against budget, a panel a family."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 3, figsize=(13, 7.5), sharey=True)
    for panel, (family, part) in zip(panels.flat, summary.items(), strict=True):
        for name, it in part["estimators"].items():
            ours = name == OURS
            x, y = np.array(it["spent"], float), np.array(it["ev"], float)
            (line,) = panel.plot(
                x, y, label=name, linewidth=2.5 if ours else 1.2, zorder=3 if ours else 2
            )
            low, high = np.array(it["ev_interval"], float).T
            panel.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        panel.axhline(0, color="black", linewidth=0.8, linestyle=":")
        panel.axhline(LEVEL, color="black", linewidth=0.8, linestyle="--")
        panel.set_xscale("symlog", base=2, linthresh=GRID[1])
        panel.set_xticks(SHOWN, [f"{b:g}" for b in SHOWN])
        panel.set(title=family, ylim=(-1, 1), xlim=(0, max(GRID)))
    for panel in panels[:, 0]:
        panel.set_ylabel("EV = 1 - MSE / E[A^2]")
    for panel in panels[1]:
        panel.set_xlabel("budget / the trajectories' own steps")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(file, dpi=90)


def run(mdps: int, budgets: tuple[float, ...], processes: int) -> dict[str, dict[str, Array]]:
    """[MDP, budget, 4] rows by family and estimator."""
    jobs = [(family, i, budgets) for family in FAMILIES for i in range(mdps)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        done = pool.starmap(measure, jobs, chunksize=5)
    return {
        family: {
            name: np.stack(
                [rows[name] for (f, _, _), rows in zip(jobs, done, strict=True) if f == family]
            )
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
    parser.add_argument("--quick", action="store_true", help="10 MDPs a family instead of 100")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    started = time.perf_counter()
    mdps = 10 if options.quick else 100
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
