"""What teacher and credit said of an episode: by part, on disk, in text and on a page."""

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from journeyman.agents.cli import main
from journeyman.agents.credit import Credit, Outcome, TokenCredit, Trace
from journeyman.agents.credit.episodes import outcome_advantages
from journeyman.agents.evaluation.records import EPISODES, TRAINING, EpisodeFile, Played
from journeyman.agents.evaluation.scores import PartScore, Scores, StepScores
from journeyman.agents.evaluation.transcript import as_text
from journeyman.agents.evaluation.viewer.story import Texts, story
from journeyman.agents.learning.judgements import Judgement
from journeyman.agents.learning.losses import JSD, Loss, NoLoss
from journeyman.agents.learning.trainers import distill
from journeyman.agents.learning.trainers.recording import TrainingLog
from journeyman.agents.teachers import Annotations, Detail, Signal, Teacher
from journeyman.envs import Episode, Step, StopReason
from journeyman.tools import ToolResult

from .test_trainers import babbler, distillation, make_parts, model_of
from .tiny import chat, episode, token_logprobs, tokenizer

BANK = "journeyman/Bank-v0"
THOUGHT = '<think>\nIgor pays; is "amount": 5 right?\n</think>\n'
FIRST = (
    '<tool_call>\n{"name": "transfer", "arguments": {"source": "A1", "amount": 5}}\n</tool_call>'
)
SECOND = '<tool_call>\n{"name": "balance", "arguments": {"source": "A1"}}\n</tool_call>'
BROKEN = '<tool_call>\n{"name": "transfer"'
TURNS = (f"{THOUGHT}{FIRST}\n{SECOND}", f"{THOUGHT}Answer: 5", BROKEN)
"""Three turns; the last one's end was forced."""


def played(turns: Sequence[str] = TURNS, **changes: Any) -> Episode:
    """An episode of these turns, with random log-probabilities that float32 has."""
    dialect, rng = chat(), random.Random(0)
    tokens, mask, steps = [5, 6, 7], [False] * 3, []
    for number, text in enumerate(turns, 1):
        body, start = tokenizer().encode(text), len(tokens)
        assert dialect.decode(body) == text
        forced = text == BROKEN
        tokens += [*body, dialect.eos_id, 9, 9]
        mask += [True] * len(body) + [not forced, False, False]
        read = dialect.read(text)
        results = tuple(ToolResult(call, "{}") for call in read.calls)
        span = start, start + len(body) + 1
        steps.append(Step(span, text, results, truncated=forced and number == len(turns)))
    logprobs = [-rng.randint(1, 640) / 128 if chosen else 0.0 for chosen in mask]
    fields: dict[str, Any] = {
        "env_id": BANK,
        "task_id": "train/0",
        "tokens": tuple(tokens),
        "logprobs": tuple(logprobs),
        "mask": tuple(mask),
        "steps": tuple(steps),
        "stop": StopReason.MAX_TURNS,
    }
    return Episode(**(fields | changes))


def judged(episode: Episode, taught: bool = True) -> Judgement:
    """Numbers of every token, on those that the student did not choose too."""
    rng = random.Random(1)
    rows = [[rng.randint(-640, 0) / 128 for _ in episode.tokens] for _ in range(3)]
    weights, advantages, teacher = (torch.tensor(row) for row in rows)
    return Judgement(episode, TokenCredit(weights, advantages), teacher if taught else None)


def overlapping(episode: Episode, turn: int, piece: str, after: str = "") -> list[int]:
    """Tokens of a turn with a character of the first such piece after another, one by one."""
    step = episode.steps[turn]
    begin = step.text.index(piece, step.text.index(after) + len(after))
    wanted = set(range(begin, begin + len(piece)))
    found, place = [], 0
    for token in range(step.span[0], step.span[1] - 1):
        width = len(chat().decode(episode.tokens[token : token + 1]))
        if wanted & set(range(place, place + width)):
            found.append(token)
        place += width
    return found


def expected(judgement: Judgement, tokens: Sequence[int]) -> PartScore:
    """By hand, in float64."""
    it = judgement.episode
    assert judgement.logprobs is not None
    ratio = [judgement.logprobs.tolist()[t] - it.logprobs[t] for t in tokens if it.mask[t]]
    return PartScore(fmean(ratio), fmean(map(abs, ratio)), len(ratio))


def test_each_part_has_the_means_of_its_own_tokens() -> None:
    it = played()
    judgement = judged(it)
    found = judgement.scores(chat())
    of_call, of_answer, of_broken = (step.parts for step in found.steps)
    whole = [range(*step.span) for step in it.steps]
    tokens = {
        "turn": list(whole[0]),
        "reasoning": overlapping(it, 0, THOUGHT.rstrip()),
        "call 1": overlapping(it, 0, FIRST),
        "call 1 tool": overlapping(it, 0, "transfer"),
        "call 1 argument source": overlapping(it, 0, '"source": "A1"'),
        "call 1 argument amount": overlapping(it, 0, '"amount": 5', after=THOUGHT),
        "call 2": overlapping(it, 0, SECOND),
        "call 2 tool": overlapping(it, 0, "balance"),
        "call 2 argument source": overlapping(it, 0, '"source": "A1"', after=FIRST),
        "stop": [whole[0][-1]],
    }
    assert of_call.keys() == tokens.keys()
    for name, own in tokens.items():
        assert of_call[name] == pytest.approx(expected(judgement, own), abs=1e-4), name
        assert of_call[name].tokens == len(own)

    reasoning = overlapping(it, 1, THOUGHT.rstrip())
    rest = [t for t in whole[1][:-1] if t not in reasoning]
    tokens = {"turn": list(whole[1]), "reasoning": reasoning, "answer": rest}
    tokens["stop"] = [whole[1][-1]]
    assert of_answer.keys() == tokens.keys()
    for name, own in tokens.items():
        assert of_answer[name] == pytest.approx(expected(judgement, own), abs=1e-4), name

    # What was forced is nobody's choice; of what cannot be read there is the attempt alone.
    assert of_broken.keys() == {"turn", "call 1"}
    assert of_broken["turn"].tokens == len(whole[2]) - 1


def test_weights_and_advantages_are_means_over_chosen_tokens() -> None:
    it = played()
    judgement = judged(it)
    found = judgement.scores(chat())
    weights, advantages = judgement.credit.weights.tolist(), judgement.credit.advantages.tolist()
    for step, told in zip(it.steps, found.steps, strict=True):
        own = [t for t in range(*step.span) if it.mask[t]]
        assert told.weight == pytest.approx(fmean(weights[t] for t in own), abs=1e-4)
        assert told.advantage == pytest.approx(fmean(advantages[t] for t in own), abs=1e-4)
    assert judgement.logprobs is not None
    for t, chosen in enumerate(it.mask):
        assert found.weights[t] == (weights[t] if chosen else 0)
        assert found.advantages[t] == (advantages[t] if chosen else 0)
        ratio = judgement.logprobs.tolist()[t] - it.logprobs[t]
        assert found.log_ratio is not None
        assert found.log_ratio[t] == (pytest.approx(ratio, abs=1e-6) if chosen else 0)


def test_widths_spell_the_turns() -> None:
    it = played([f"{THOUGHT}Grüße, 東京 👩‍👩‍👧", "Answer: é"])
    found = judged(it).scores(chat())
    for step in it.steps:
        assert sum(found.widths[slice(*step.span)]) == len(step.text)
    inside = {t for step in it.steps for t in range(step.span[0], step.span[1] - 1)}
    assert not any(width for t, width in enumerate(found.widths) if t not in inside)


def test_without_a_teacher_there_is_credit_alone() -> None:
    found = judged(played(), taught=False).scores(chat())
    assert found.log_ratio is None
    assert [dict(step.parts) for step in found.steps] == [{}, {}, {}]
    assert found.steps[0].weight != 0


def test_of_what_the_teacher_says_nothing_there_is_no_score() -> None:
    it = played()
    whole = judged(it)
    second = torch.zeros(len(it.tokens), dtype=torch.bool)
    second[slice(*it.steps[1].span)] = True
    found = replace(whole, spoken=second).scores(chat())
    assert [bool(step.parts) for step in found.steps] == [False, True, False]
    assert found.steps[1] == whole.scores(chat()).steps[1]
    assert found.steps[0].weight == whole.scores(chat()).steps[0].weight
    start, end = it.steps[0].span
    second[start : start + 4] = True
    some = replace(whole, spoken=second).scores(chat()).steps[0].parts
    assert some["turn"] == pytest.approx(expected(whole, range(start, start + 4)), abs=1e-4)
    assert end > start + 4 and "stop" not in some


def test_what_was_played_before_a_fork_and_what_broke_have_nothing() -> None:
    it = played()
    first = range(*it.steps[0].span)
    forked = replace(it, mask=tuple(m and t not in first for t, m in enumerate(it.mask)))
    found = judged(forked).scores(chat())
    assert found.steps[0] == StepScores()
    assert found.steps[1] == judged(it).scores(chat()).steps[1]
    broken = judged(replace(it, stop=StopReason.INFRA_ERROR), taught=False).scores(chat())
    assert {(step.weight, step.advantage) for step in broken.steps} == {(0, 0)}
    assert not any(broken.weights)
    nothing = Episode(BANK, "train/0", (), (), (), (), StopReason.INFRA_ERROR)
    assert judged(nothing, taught=False).scores(chat()) == Scores((), (), (), ())


# --- on disk --------------------------------------------------------------------------------------


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    it = played()
    judgement = judged(it)
    assert judgement.logprobs is not None
    judgement.logprobs[it.steps[0].span[0] + 1] = -math.inf
    written = [
        Played(TRAINING, it, step=1, scores=judgement.scores(chat())),
        Played(TRAINING, it, step=1, scores=judged(it, taught=False).scores(chat())),
        Played("student after", it),
    ]
    file = EpisodeFile(tmp_path)
    file.append(written)
    assert file.read() == written
    assert written[0].scores is not None
    assert written[0].scores.steps[0].parts["turn"].log_ratio == -math.inf
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [("scores" in line, "log_ratio" in line.get("scores", ())) for line in lines] == [
        (True, True),
        (True, False),
        (False, False),
    ]
    file.forget_after(1)
    file.append(written[:1])
    file.forget_after(0)
    assert file.read() == written[2:]
    assert "-inf" in as_text(written[0], scores=True)
    shades = story(written[0], "0.1", 0, Texts())["turns"][0]["shades"]
    assert min(shades["ratio"]) == -1e9  # JSON has no number without end


def test_only_episodes_that_are_kept_are_looked_into(tmp_path: Path) -> None:
    def told() -> Iterator[Scores]:
        yield judged(played()).scores(chat())
        pytest.fail("of an episode that nobody keeps")

    TrainingLog(EpisodeFile(tmp_path), 1).record(1, [played(), played()], told())
    TrainingLog(EpisodeFile(tmp_path), 0).record(2, [played()], told())
    (kept,) = EpisodeFile(tmp_path).read()
    assert (kept.step, kept.scores) == (1, judged(played()).scores(chat()))


def test_nobody_is_asked_for_the_sake_of_scores() -> None:
    class Listening(Teacher):
        asked = 0

        def annotate(self, rows: Sequence[Episode], detail: Detail) -> list[Signal]:
            self.asked += len(rows)
            return [Signal(torch.zeros(len(row.tokens))) for row in rows]

    teacher, rng = Listening(), random.Random(0)
    one, other = episode(rng), episode(rng)
    annotations = Annotations(teacher)
    (signal,) = annotations.of([one])
    assert annotations.known(one) is signal
    assert annotations.known(other) is None
    assert annotations.known(replace(one)) is None  # equal, and another row all the same
    assert teacher.asked == 1


@pytest.mark.parametrize(
    ("credit", "loss"), [(Trace(), JSD(1.0)), (Trace(), NoLoss()), (Outcome(), NoLoss())]
)
def test_a_run_writes_what_its_parts_said(credit: Credit, loss: Loss, tmp_path: Path) -> None:
    file = EpisodeFile(tmp_path)
    parts = replace(make_parts(babbler(), credit, loss), record=TrainingLog(file, 3).record)
    distill.build(parts, distillation(tmp_path / "run", max_steps=1)).train()
    kept = file.read()
    assert len(kept) == 3
    assert max(len(p.episode.steps) for p in kept) > 1
    rows = [p.episode for p in kept]
    reference = token_logprobs(model_of(parts.teacher), [e.tokens for e in rows])
    for p, said in zip(kept, reference, strict=True):
        it, found = p.episode, p.scores
        assert found is not None
        if isinstance(credit, Outcome):  # which asks no teacher; and all failed alike
            assert found.log_ratio is None
            assert set(found.advantages) == {0.0} == set(outcome_advantages(rows))
            continue
        assert found.log_ratio is not None
        for t, chosen in enumerate(it.mask):
            ratio = float(said[t]) - it.logprobs[t] if chosen else 0.0
            assert found.log_ratio[t] == pytest.approx(ratio, abs=1e-4)
        for step, told in zip(it.steps, found.steps, strict=True):
            start, end = step.span
            trace = 1.0
            traces = []
            for t in range(start, end):
                traces.append(trace)
                trace *= math.exp(min(0.0, float(said[t]) - it.logprobs[t]) * it.mask[t])
            mine = [w for w, t in zip(traces, range(start, end), strict=True) if it.mask[t]]
            assert told.weight == pytest.approx(fmean(mine), abs=1e-3)


# --- for people -----------------------------------------------------------------------------------


def run_of(folder: Path) -> Path:
    it = played(["Answer: <b>", "Answer: two"], reward=0.0)
    start = it.steps[0].span[0]
    judgement = judged(it)
    judgement.credit.weights[:] = 0.25
    judgement.credit.advantages[:] = -1.5
    ratios = [0.0625, -0.125, -3.0, 0.75]
    teacher = torch.tensor(it.logprobs)
    teacher[start : start + 4] += torch.tensor(ratios)
    judgement = replace(judgement, logprobs=teacher)
    file = EpisodeFile(folder)
    file.append([Played("student before", it, "k")])
    file.append([Played(TRAINING, it, "k", step=1, scores=judgement.scores(chat()))])
    return folder


def test_show_prints_scores_of_what_has_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(run_of(tmp_path))
    assert main(["show", run, "--scores"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("1 of 1 episodes\n")  # that of the evaluation has none
    lines = [line.split() for line in out.splitlines()]
    assert lines.count(["(weight", "0.25,", "advantage", "-1.5)"]) == 2
    body = len(tokenizer().encode("Answer: <b>"))
    mean, distance = -2.3125 / (body + 1), 3.9375 / (body + 1)
    assert ["turn", f"{mean:+.3f}", f"{distance:.3f}", str(body + 1)] in lines
    assert main(["show", run]) == 0
    assert "weight" not in capsys.readouterr().out


def test_show_says_why_there_are_no_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path)
    assert main(["show", str(run), "--scores", "--summary"]) == 2
    assert "--summary shows no scores: leave out" in capsys.readouterr().err
    assert main(["show", str(run), "--scores", "--row", "student before"]) == 2
    assert "no episode matches (row student before, scores)" in capsys.readouterr().err
    file = run / EPISODES
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    assert main(["show", str(run), "--scores"]) == 2
    assert "has no scores: `journeyman train` writes them" in capsys.readouterr().err


def test_a_page_shades_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    run = run_of(tmp_path)
    assert main(["show", str(run), "--html", str(page), "--row", "training"]) == 0
    text = page.read_text()
    for shade in (f"{kind}{level}" for kind in ("less", "more") for level in range(1, 5)):
        assert f".{shade} {{" in text
    pieces = [chat().decode([t]) for t in tokenizer().encode("Answer: <b>")]
    assert len(pieces) >= 4
    judged = [turn for turn in turns_of(text) if "shades" in turn]
    shades = next(turn["shades"] for turn in judged if turn["text"] == "Answer: <b>")
    assert shades["widths"] == [len(piece) for piece in pieces]
    assert shades["ratio"][:4] == [0.0625, -0.125, -3.0, 0.75]
    assert set(shades["weight"]) == {0.25} and set(shades["advantage"]) == {-1.5}
    means = [(turn["score"]["weight"], turn["score"]["advantage"]) for turn in judged]
    assert means == [(0.25, -1.5)] * 2
    assert "<b>" not in text
    assert "://" not in text
    assert main(["show", str(run), "--html", str(page), "--row", "student before"]) == 0
    turns = turns_of(page.read_text())
    assert not [turn for turn in turns if "shades" in turn or "score" in turn]
    assert "Answer: <b>" in [turn["text"] for turn in turns]


def turns_of(page: str) -> list[dict[str, Any]]:
    """All turns in the data of a page."""
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    return [turn for it in data["episodes"] for turn in it["turns"]]
