"""What the driver costs as workers become many: milliseconds and bytes an episode, and places kept.

    python benchmarks/scale.py [--quick] [--json FILE] [--png FILE]

The real scheduler (`agents/rollouts/workers/leases.py`) hands tasks to simulated workers with
places, whose episodes take as long as was drawn (lognormal), in virtual time. Each result is a real
episode as a worker sends it: the driver unpickles it and writes it to a run folder as an evaluation
does, and only what the driver does is on its clock. Throughput is told as a share of the ideal: one
queue from which every place takes its next task at no cost. Then bytes: of episodes, of what is
handed out, and of a push of weights. Prints Markdown, with MISSED at a bound that does not hold;
minutes. With `--quick` it takes seconds, and its figures mean little.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import logging
import math
import pickle
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.crews import SimulatedCrew
from harness.handling import Book, as_sent, handing, handled, lengthened, pushes, session_mb

from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import deal
from journeyman.agents.rollouts.workers.leases import Terms, play_out
from journeyman.agents.runs.folder import machine
from journeyman.agents.students.scripted import load_oracle

ENV_IDS = ("journeyman/Bank-v0", "journeyman/Orders-v0", "journeyman/Calendar-v0")
PLACES = 8
MEDIAN, SIGMA, LIMIT = 20.0, 0.8, 400.0
"""Seconds of an episode: lognormal, and no longer than its turns and context allow."""
DELAY = 0.01
"""Seconds from the driver to a worker."""
BACK = 60.0
"""Seconds until a worker that died is replaced."""
LONG = 4096
"""Tokens of an episode of a larger model."""
AT_MOST_MS, AT_LEAST = 2.0, 0.9
"""Bounds: driver's milliseconds an episode, and throughput as a share of the ideal."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    episodes: int = 20_000
    workers: int = 64
    crowds: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    each: int = 320
    """Episodes a worker, where only the scheduler is measured."""
    looks: tuple[int, ...] = (2_000, 10_000, 20_000)
    """Results after which memory is looked at."""
    templates: int = 300
    repeats: int = 1000
    sessions: int = 16


QUICK = Scale(600, 8, (1, 4, 16), 40, (60, 300, 600), 12, 20, 2)


def durations(count: int, seed: int = 0) -> list[float]:
    """Seconds of so many episodes."""
    dice = random.Random(seed)
    return [min(LIMIT, dice.lognormvariate(math.log(MEDIAN), SIGMA)) for _ in range(count)]


def ideal(seconds: Sequence[float], places: int) -> float:
    """When the last episode ends if each place takes the next one at no cost."""
    free = [0.0] * places
    for it in seconds:
        heapq.heapreplace(free, free[0] + it)
    return max(free)


def deaths(share: float, workers: int, end: float, seed: int = 1) -> list[tuple[float, int]]:
    """Moments at which workers die: a share of them (each once, if it is 1), at random."""
    dice = random.Random(seed)
    return [(dice.uniform(0, end), i) for i in dice.sample(range(workers), round(share * workers))]


@dataclass
class Outcome:
    """One simulated rollout."""

    share: float
    """Of the ideal's throughput. One queue is not the best order there is: it may be above 1."""
    busy: float
    """Of all places' time, to the end of the last episode."""
    ms: float
    """Of the driver's processor, an episode."""
    leases: int
    lost: int
    """Episodes that were under way when their worker died."""
    digest: str
    """Tells results, in order, from others."""
    hours: float
    """That it would have taken."""


def simulate(
    workers: int,
    jobs: Sequence[Any],
    *,
    refills: bool = True,
    dying: float = 0.0,
    result: Callable[[Any], Any] = lambda job: job,
    take: Callable[[int, Any], Any] = lambda place, result: result,
) -> Outcome:
    """Play jobs with simulated workers, and measure."""
    lasts = dict(zip(jobs, durations(len(jobs)), strict=True))
    best = ideal(list(lasts.values()), workers * PLACES)
    crew = SimulatedCrew(
        workers,
        PLACES,
        lasts.__getitem__,
        result,
        refills=refills,
        delay=DELAY,
        deaths=deaths(dying, workers, best),
        back=BACK,
    )
    started = time.process_time()
    kept = play_out(crew, jobs, take, terms=Terms(places=PLACES, refills=refills))
    spent = time.process_time() - started - crew.own
    digest = hashlib.sha256(repr(kept).encode()).hexdigest()[:16]
    ms = 1000 * spent / len(jobs)
    busy = sum(lasts.values()) / (workers * PLACES * crew.now)
    return Outcome(best / crew.now, busy, ms, crew.leases, crew.lost, digest, crew.now / 3600)


def measure(scale: Scale, folder: Path) -> dict[str, Any]:
    """All figures."""
    logging.getLogger("journeyman").setLevel(logging.ERROR)  # not a line for each simulated death
    refs = deal(ENV_IDS, "test", 0, scale.episodes)
    real = rollout(load_oracle(), deal(ENV_IDS, "validation", 0, scale.templates))
    templates: dict[str, list[bytes]] = {}
    for it in real:
        plain = pickle.dumps(it, pickle.HIGHEST_PROTOCOL)
        templates.setdefault(it.env_id, []).append(plain)
    sent = partial(as_sent, templates)
    driver: dict[str, Any] = {}
    for name, dying in {"nobody dies": 0.0, "5% die": 0.05}.items():
        book = Book(folder / name, scale.looks)
        outcome = simulate(scale.workers, refs, dying=dying, result=sent, take=book.take)
        parts = {part: 1000 * s / len(refs) for part, s in book.seconds.items()}
        schedule = outcome.ms - sum(parts.values())
        driver[name] = {
            **asdict(outcome),
            "parts": {"hand out, and count": schedule} | parts,
            "memory": book.memory,
        }
    driver["each dies once"] = asdict(simulate(scale.workers, refs, dying=1.0))
    driver["no place is refilled"] = asdict(simulate(scale.workers, refs, refills=False))
    crowds = {}
    for workers in scale.crowds:
        jobs = range(workers * scale.each)
        ways = {"refills": {}, "5% die": {"dying": 0.05}, "no refills": {"refills": False}}
        crowds[workers] = {
            name: asdict(simulate(workers, jobs, **how))  # type: ignore[arg-type]
            for name, how in ways.items()
        }
    return {
        "scale": asdict(scale),
        "driver": driver,
        "crowds": crowds,
        "mean seconds": sum(sample := durations(scale.episodes)) / len(sample),
        "episodes": {
            "scripted": handled(real, scale.repeats, folder / "short"),
            f"of {LONG:,} tokens": handled(
                [lengthened(it, LONG) for it in real[:20]], scale.repeats, folder / "long"
            ),
        },
        "handing": handing(refs[:64]),
        "pushes": pushes(),
        "session MB": session_mb(scale.sessions),
        "machine": machine(),
    }


def verdicts(found: dict[str, Any]) -> dict[str, bool]:
    """Which bounds hold."""
    plain, dying = found["driver"]["nobody dies"], found["driver"]["5% die"]
    first, *_, last = plain["memory"].values()
    return {
        f"driver: {plain['ms']:.2f} ms an episode, at most {AT_MOST_MS:g}": plain["ms"]
        <= AT_MOST_MS,
        f"throughput: {plain['share']:.1%} of the ideal, at least {AT_LEAST:.0%}": plain["share"]
        >= AT_LEAST,
        f"memory: {first:.0f} MB, then {last:.0f} MB; it stays within 5%": last <= 1.05 * first,
        f"5% die: {dying['share']:.1%} of the ideal": dying["share"] >= AT_LEAST,
        "5% die: the same results": dying["digest"] == plain["digest"],
    }


def table(found: dict[str, Any]) -> str:
    """All figures as Markdown."""
    where, scale = found["machine"], found["scale"]
    lines = [
        f"{scale['episodes']:,} episodes on {scale['workers']} simulated workers with {PLACES} "
        f"places each; an episode takes {MEDIAN:g} s (median), "
        f"{found['mean seconds']:.1f} s (mean)",
        f"{where['date']}, {where['cpus']} CPUs, {where['threads']} threads, {where['device']}",
        "",
        "| the driver, an episode | ms of its processor |",
        "|:---|---:|",
    ]
    driver = found["driver"]
    lines += [f"| {name} | {ms:.3f} |" for name, ms in driver["nobody dies"]["parts"].items()]
    lines += [f"| all | {driver['nobody dies']['ms']:.3f} |", "", "| results | MB |", "|---:|---:|"]
    lines += [f"| {count:,} | {mb:.0f} |" for count, mb in driver["nobody dies"]["memory"].items()]
    lines += [
        "",
        "| workers | of the ideal | places taken | leases | episodes lost |",
        "|:---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {it['share']:.1%} | {it['busy']:.1%} | {it['leases']:,} | {it['lost']} |"
        for name, it in driver.items()
    ]
    ms, mean = driver["nobody dies"]["ms"], found["mean seconds"]
    lines += [
        "",
        "| workers | episodes | episodes/s | of the ideal | 5% die | no refills | scheduler, ms "
        "| driver's processor |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for workers, ways in found["crowds"].items():
        rate = int(workers) * PLACES / mean
        shares = " | ".join(
            f"{ways[name]['share']:.1%}" for name in ("refills", "5% die", "no refills")
        )
        lines.append(
            f"| {int(workers):,} | {int(workers) * scale['each']:,} | {rate:.1f} | {shares} "
            f"| {ways['refills']['ms']:.4f} | {rate * ms / 1000:.1%} |"
        )
    lines += [
        "",
        "| an episode | tokens | ms | bytes sent | bytes on disk |",
        "|:---|" + "---:|" * 4,
    ]
    lines += [
        f"| {name} | {it['tokens']:,.0f} | {it['ms']:.2f} | {it['bytes']:,.0f} "
        f"| {it['bytes on disk']:,.0f} |"
        for name, it in found["episodes"].items()
    ]
    lines += ["", "| what is sent to a worker | bytes |", "|:---|---:|"]
    lines += [f"| {name} | {size:,.0f} |" for name, size in found["handing"].items()]
    weights = {k: v for k, v in found["pushes"].items() if k != "parameters"}
    count = found["pushes"]["parameters"]
    lines += [
        f"| a push of the embedded student ({count:,.0f} parameters), {name} | {size:,.0f} |"
        for name, size in weights.items()
    ]
    each = found["session MB"]
    told = "not measured here (it takes root and bubblewrap)" if each is None else f"{each:.1f} MB"
    lines += ["", f"a live session of the namespace sandbox: {told}"]
    lines += ["", "| bound | |", "|:---|:---|"]
    lines += [f"| {it} | {'holds' if ok else 'MISSED'} |" for it, ok in verdicts(found).items()]
    return "\n".join(lines)


def draw(found: dict[str, Any], path: Path) -> None:
    """Throughput, and the driver's load, against workers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    crowds = found["crowds"]
    workers = [int(it) for it in crowds]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name, words in {
        "refills": "places are refilled from the next lease",
        "5% die": "the same, and 5% of the workers die",
        "no refills": "the next lease begins when the last has ended",
    }.items():
        left.plot(workers, [it[name]["share"] for it in crowds.values()], marker="o", label=words)
    left.axhline(AT_LEAST, color="grey", linestyle=":", linewidth=1)
    left.set(xlabel="workers", ylabel="share of the ideal throughput", ylim=(0, 1.05))
    left.legend(loc="lower left", fontsize=8, frameon=False)
    ms = {
        "scripted episodes": found["driver"]["nobody dies"]["ms"],
        f"episodes of {LONG:,} tokens": found["episodes"][f"of {LONG:,} tokens"]["ms"],
    }
    for name, each in ms.items():
        load = [it * PLACES / found["mean seconds"] * each / 1000 for it in workers]
        right.plot(workers, load, marker="o", label=f"{name}: {each:.2f} ms each")
    right.axhline(1.0, color="grey", linestyle=":", linewidth=1)
    right.annotate("one core", (workers[0], 1.0), fontsize=8, color="grey", va="bottom")
    right.set(xlabel="workers", ylabel="the driver's processor, seconds a second", yscale="log")
    right.legend(loc="lower right", fontsize=8, frameon=False)
    for ax in (left, right):
        ax.set_xscale("log", base=4)
        ax.set_xticks(workers, [f"{it:,}" for it in workers])
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="next to nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--table", type=Path, help="of an earlier --json; nothing is measured")
    options = parser.parse_args()
    if options.table:
        found = json.loads(options.table.read_text())
    else:
        with tempfile.TemporaryDirectory() as name:
            found = measure(QUICK if options.quick else Scale(), Path(name))
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))
    if options.png:
        draw(found, options.png)


if __name__ == "__main__":
    main()
