"""The rollout loop against its peers: what is measured, the targets, and the table.

Arms play the same conversations in turns, each first as often as the others, and new ones in every
repeat: nothing that one of them may keep helps it the next time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from harness.lookups import NAP, Script, lookups, spoken, tasks
from harness.peers import Reencoding, TRLLoop, ours, student
from harness.statistics import Figure, ratio
from harness.widened import widened
from journeyman.agents.networks.loading import load_model
from journeyman.agents.rollouts.occupancy import Occupancy
from journeyman.agents.rollouts.rollout import rollout
from journeyman.agents.rollouts.tasks import deal
from journeyman.agents.students.hf import load_student
from journeyman.envs import Episode

ENV_IDS = ("journeyman/Bank-v0", "journeyman/Orders-v0", "journeyman/Calendar-v0")
POSITIONS = 16_384
"""Of the models: room for eight results of 750 tokens."""
PEERS = {"TRL": "TRL's environment loop", "generate": "`generate`, all of it again each turn"}
AHEAD, IDEAL, SOONER, FULL = 3.0, 1.3, 10.0, 0.9
"""Targets: tokens a second against each peer, an episode against the ideal one, naps side by side
against one after the other, places taken."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    students: tuple[str, ...] = ("embedded", "28M")
    batches: tuple[int, ...] = (16, 64)
    results: tuple[int, ...] = (50, 500)
    """Mean tokens of a tool's result."""
    turns: int = 8
    repeats: int = 3
    asleep: int = 64
    """Episodes whose tools sleep."""
    queue: int = 4
    """Tasks for each place where occupancy is measured."""
    alone: int = 24
    """Greedy episodes that are also played alone."""
    width: int = 512
    """Of the widened student."""
    layers: int = 8


QUICK = Scale(
    batches=(4,),
    results=(20, 60),
    turns=2,
    repeats=2,
    asleep=4,
    queue=2,
    alone=3,
    width=128,
    layers=4,
)
"""Shows that everything runs; its figures mean nothing."""


@dataclass
class Results:
    """Everything measured; seconds of each repeat."""

    tokens: dict[str, list[int]]
    """Sampled tokens of a cell, "student/batch/results", in each repeat."""
    seconds: dict[str, dict[str, list[float]]]
    """Of each cell and arm."""
    episode: dict[str, dict[str, list[float]]]
    """Of an episode alone with the longest results, by student: ours, and the ideal one."""
    asleep: dict[str, float]
    """Of all the episodes whose tools sleep: side by side, and one after the other."""
    occupancy: dict[str, dict[str, float]]
    """By batch: ticks, share of places taken while there were tasks left, and to the end."""
    greedy: dict[str, int]
    """Episodes compared, and those with the tokens of one that is played alone."""


def measure(scale: Scale) -> Results:
    """Run everything."""
    script = Script(spoken(), scale.turns)
    small = load_model(
        "embedded-student", device="cpu", model_config={"max_position_embeddings": POSITIONS}
    )
    models = {"embedded": small}
    if "28M" in scale.students:
        models["28M"] = widened(small, scale.width, 3 * scale.width, scale.layers)
    envs = {mean: lookups(mean) for mean in scale.results}
    results = Results({}, {}, {}, {}, {}, {})
    _race(scale, script, {name: models[name] for name in scale.students}, envs, results)
    _nap(scale, script, small, results)
    _fill(scale, results)
    return results


def _timed(play: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = play()
    return time.perf_counter() - started, found


def _race(
    scale: Scale,
    script: Script,
    models: Mapping[str, PreTrainedModel],
    envs: Mapping[int, str],
    results: Results,
) -> None:
    """Conversations of equal tokens by each arm, and one of them by itself."""
    loops = {
        (name, mean): TRLLoop(model, script, env_id)
        for name, model in models.items()
        for mean, env_id in envs.items()
    }
    first = 0
    for repeat in range(scale.repeats):
        for batch in scale.batches:
            for (name, mean), loop in loops.items():
                cell = f"{name}/{batch}/{mean}"
                refs = tasks(envs[mean], first, batch)
                first += batch
                rows, known = loop.rows(refs), loop.known(refs)
                arms: dict[str, Callable[[], Any]] = {
                    "ours": lambda m=models[name], r=refs: ours(m, script, r, len(r)),
                    "TRL": lambda it=loop, r=rows, k=known: it(r, k),
                    "generate": lambda m=models[name], r=refs: Reencoding(m, script)(r),
                }
                said = [[t for turn in script.of(ref.seed) for t in turn] for ref in refs]
                results.tokens.setdefault(cell, []).append(sum(map(len, said)))
                order = list(arms)
                for arm in order[repeat % 3 :] + order[: repeat % 3]:
                    seconds, sampled = _timed(arms[arm])
                    if sampled != said:
                        raise RuntimeError(f"{arm} did not sample the tokens of the script")
                    times = results.seconds.setdefault(cell, {})
                    times.setdefault(arm, []).append(seconds)
        longest = max(envs)
        for name, model in models.items():
            (ref,) = tasks(envs[longest], first, 1)
            first += 1
            with script.dictated():
                player = student(model, script)
                seconds, (episode,) = _timed(
                    lambda p=player, r=ref: rollout(p, [r], 1, {"max_turns": 99})
                )
            found = results.episode.setdefault(name, {"ours": [], "ideal": []})
            found["ours"].append(seconds)
            found["ideal"].append(_timed(lambda m=model, e=episode: _ideal(m, e))[0])


@torch.inference_mode()
def _ideal(model: PreTrainedModel, episode: Episode) -> None:
    """All that was said to the student in one forward pass, then a pass for each sampled token."""
    told = [t for t, own in zip(episode.tokens, episode.mask, strict=True) if not own]
    written = [t for t, own in zip(episode.tokens, episode.mask, strict=True) if own]
    output: Any = model(input_ids=torch.tensor([told]), use_cache=True, logits_to_keep=1)
    for token in written:
        output = model(
            input_ids=torch.tensor([[token]]),
            past_key_values=output.past_key_values,
            use_cache=True,
            logits_to_keep=1,
        )


def _nap(scale: Scale, script: Script, model: PreTrainedModel, results: Results) -> None:
    """Episodes whose tools sleep, side by side and one after the other."""
    refs = tasks(lookups(min(scale.results), NAP), 0, scale.asleep)
    for name, places in {"side by side": len(refs), "one after the other": 1}.items():
        results.asleep[name], _ = _timed(lambda p=places: ours(model, script, refs, p))


def _fill(scale: Scale, results: Results) -> None:
    """The embedded student's own episodes: places taken, and greedy tokens."""
    player = load_student("embedded-student", render="names", max_turn_tokens=48, max_context=640)
    for batch in scale.batches:
        seen = Occupancy()
        rollout(player, deal(ENV_IDS, "train", 0, scale.queue * batch), batch, occupancy=seen)
        figures = {"ticks": seen.ticks, "share": seen.share, "overall": seen.overall}
        results.occupancy[str(batch)] = figures
    greedy = player.at(temperature=0.0)
    refs = deal(ENV_IDS, "validation", 0, scale.alone)
    together = rollout(greedy, refs, max(scale.batches))
    alone = rollout(greedy, refs, 1)
    same = sum(a.tokens == b.tokens for a, b in zip(together, alone, strict=True))
    results.greedy = {"compared": len(refs), "same": same}


def shown(figure: Figure) -> str:
    """A ratio as it stands in the table; of a single repeat without an interval."""
    if math.isinf(figure.high):
        return f"{figure.value:.2f}"
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"


def _judged(good: bool, target: str) -> str:
    return f"{target}: holds" if good else f"**{target}: MISSED**"


def rates(results: Results, cell: str, arm: str) -> str:
    """Sampled tokens a second of an arm: the median and the range."""
    found = [
        tokens / seconds
        for tokens, seconds in zip(results.tokens[cell], results.seconds[cell][arm], strict=True)
    ]
    return f"{statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f})"


def table(results: Results, scale: Scale) -> str:
    """All of it in Markdown."""
    lines = [
        f"Sampled tokens a second, median (range) of {scale.repeats} interleaved repeats; "
        f"{scale.turns} turns, results ±50%.",
        "",
        "| student | batch | result | ours | TRL | generate | ours / TRL | ours / generate | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell, seconds in results.seconds.items():
        name, batch, mean = cell.split("/")
        leads = [ratio(seconds[peer], seconds["ours"]) for peer in PEERS]
        cells = [name, batch, mean, *(rates(results, cell, arm) for arm in seconds_order(seconds))]
        good = all(lead.value >= AHEAD for lead in leads)
        cells += [*map(shown, leads), _judged(good, f"≥ {AHEAD:g}")]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| what | measured | target |", "|---|---|---|"]
    for name, found in results.episode.items():
        lead = ratio(found["ours"], found["ideal"])
        said = f"{statistics.median(found['ours']):.2f} s / "
        said += f"{statistics.median(found['ideal']):.2f} s = {shown(lead)}"
        what = f"{name}: an episode, results of {max(scale.results)}, / ideal"
        lines.append(f"| {what} | {said} | {_judged(lead.value <= IDEAL, f'≤ {IDEAL:g}')} |")
    near, far = results.asleep["side by side"], results.asleep["one after the other"]
    what = f"{scale.asleep} episodes, tools sleep {1000 * NAP:.0f} ms: one by one / at once"
    said = f"{far:.1f} s / {near:.1f} s = {far / near:.1f}"
    lines.append(f"| {what} | {said} | {_judged(far / near >= SOONER, f'≥ {SOONER:g}')} |")
    for batch, seen in results.occupancy.items():
        what = f"places taken, batch {batch}, {scale.queue} tasks a place"
        said = f"{seen['share']:.1%} while tasks are left, {seen['overall']:.1%} to the end "
        said += f"({seen['ticks']:.0f} ticks)"
        lines.append(f"| {what} | {said} | {_judged(seen['share'] >= FULL, f'≥ {FULL:.0%}')} |")
    same, compared = results.greedy["same"], results.greedy["compared"]
    said = f"{same} of {compared} episodes"
    what = f"greedy tokens, batch {max(scale.batches)}, are those played alone"
    lines.append(f"| {what} | {said} | {_judged(same == compared, 'all')} |")
    return "\n".join(lines)


def seconds_order(seconds: Mapping[str, Any]) -> list[str]:
    """The arms of a cell as the table has them, whichever was first."""
    return ["ours", *(peer for peer in PEERS if peer in seconds)]


def as_dict(results: Results, scale: Scale) -> dict[str, Any]:
    """The same for `--json`, with the ratios."""
    leads = {
        cell: {peer: ratio(seconds[peer], seconds["ours"])._asdict() for peer in PEERS}
        for cell, seconds in results.seconds.items()
    }
    return {"scale": asdict(scale), **asdict(results), "leads": leads}
