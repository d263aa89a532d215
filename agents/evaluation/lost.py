"""At which turn an episode was lost, as `journeyman why` finds it and a run folder keeps it.

`searches.jsonl` has a line for each search of an episode. It says which by a digest of what was
played, so that an episode that is played anew is not taken for the one that was searched.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from journeyman.agents.errors import RunFileError
from journeyman.agents.evaluation.files import json_lines, mend
from journeyman.agents.evaluation.intervals import wilson
from journeyman.agents.evaluation.scores import TreeNode
from journeyman.agents.evaluation.tables import aligned
from journeyman.envs import Episode

SEARCHES = "searches.jsonl"
FORMAT = 1
"""Of its lines."""
STUDENT, ORACLE = "student", "oracle"
"""Who plays on: the student, by its own dice; or the gold calls."""
DOUBT = 0.05
"""One less the confidence of what is said of no wins."""


class Chance(NamedTuple):
    """What came of playing on from one place of an episode."""

    turn: int
    """Index of the turn that is played anew first; 0 is from the task's beginning."""
    wins: int
    tries: int
    """Continuations that came to their end; 0 where none did."""

    @property
    def value(self) -> float | None:
        """Share of wins: V of the place, if the student played on; None without a try."""
        return self.wins / self.tries if self.tries else None

    @property
    def interval(self) -> tuple[float, float]:
        """95% for the chance to win: Wilson's; without a win from 0 to `most`."""
        return wilson(self.wins, self.tries) if self.wins else (0.0, self.most)

    @property
    def most(self) -> float:
        """What a chance with no wins is below, with 95% confidence: 1 - 0.05^(1/tries).

        A larger one would have shown a win with more than 95% (Clopper and Pearson 1934).
        """
        return 1.0 - DOUBT ** (1 / self.tries) if self.tries else 1.0


class Fall(NamedTuple):
    """A difference of two chances to win, with Newcombe's 95% interval (1998, method 10)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Lost:
    """What playing on from inside one failed episode showed."""

    episode: str
    """Whose: see `episode_key`."""
    player: str
    """Who played on: `STUDENT` or `ORACLE`."""
    asked: Mapping[str, Any]
    """The settings of the search; with others it is made anew."""
    chances: tuple[Chance, ...]
    """Places that were tried, from the beginning on."""
    tree: TreeNode | None = None
    """All that was played on; None of the gold calls."""

    @property
    def turn(self) -> int | None:
        """Index of the turn that lost the episode; None if nothing won from its beginning either.

        It is the last turn from before which a continuation won: whoever wins from there could have
        won from every place before, by the very turns of the episode; and after it none won. One
        that was begun earlier, and came by there on the episode's own way, is proof as well.
        """
        won = [it.turn for it in self.chances if it.wins]
        place = self.tree
        while place is not None and place.stop is None:
            won += [place.turn] if place.success else []
            place = next((it for it in place.children if it.own), None)
        return max(won, default=None)

    def fall(self, turn: int, turns: int) -> Fall | None:
        """By how much the chance to win fell at a turn; None where a side of it was not tried.

        Args:
            turn: Its index.
            turns: Of the episode; what comes after the last of them is lost for sure.
        """
        before, after = self.at(turn), self.at(turn + 1)
        if before is None or before.value is None:
            return None
        low, high = wilson(before.wins, before.tries)
        if turn + 1 == turns:
            return Fall(before.value, low, high)
        if after is None or after.value is None:
            return None
        least, most = wilson(after.wins, after.tries)
        value = before.value - after.value
        return Fall(
            value,
            value - math.hypot(before.value - low, most - after.value),
            value + math.hypot(high - before.value, after.value - least),
        )

    def deciding(self, turns: int) -> int | None:
        """The turn (index) of `turns` at which the chance to win fell most.

        None where no fall is beyond doubt, or nobody measured chances: gold calls win or do not.
        It need not be the turn that lost: what is left of a chance may go later.
        """
        falls = [(it, -k) for k in range(turns) if (it := self.fall(k, turns)) and it.low > 0]
        return -max(falls)[1] if falls and self.player == STUDENT else None

    def at(self, turn: int) -> Chance | None:
        """What came of playing on from before a turn; None where that was not tried."""
        return next((it for it in self.chances if it.turn == turn), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: one line of the file."""
        return {
            "format": FORMAT,
            "episode": self.episode,
            "player": self.player,
            "asked": dict(self.asked),
            "chances": [it._asdict() for it in self.chances],
            **({} if self.tree is None else {"tree": self.tree.to_dict()}),
        }

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> Lost:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: A value is none that `to_dict` writes.
        """
        chances = tuple(Chance(it["turn"], it["wins"], it["tries"]) for it in line["chances"])
        if any(not 0 <= it.wins <= it.tries or it.turn < 0 for it in chances):
            raise ValueError("chances of fewer tries than wins")
        tree = TreeNode.from_dict(line["tree"]) if "tree" in line else None
        return cls(line["episode"], line["player"], line["asked"], chances, tree)


_LINE = {
    "format": int,
    "episode": str,
    "player": frozenset((STUDENT, ORACLE)),
    "asked": {},
    "chances": [{"turn": int, "wins": int, "tries": int}],
    "tree?": {},
}


class SearchFile:
    """Searches are appended to it; of two for one episode and player the later counts."""

    def __init__(self, run: Path) -> None:
        """The file of a run folder; it need not exist."""
        self.path = run / SEARCHES

    def append(self, found: Lost) -> None:
        """Write a search down.

        Raises:
            OSError: It could not be written.
        """
        mend(self.path)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found.to_dict(), separators=(",", ":")) + "\n")

    def read(self) -> dict[str, tuple[Lost, ...]]:
        """By episode, the last search of each player: the student's before that by gold calls.

        Raises:
            RunFileError: A line is none that was written here, or one of a later version.
        """
        known = {(it.episode, it.player): it for it in self.all()}
        found: dict[str, tuple[Lost, ...]] = {}
        for (episode, _), lost in sorted(known.items(), key=lambda it: it[0][1] != STUDENT):
            found[episode] = (*found.get(episode, ()), lost)
        return found

    def all(self) -> Iterator[Lost]:
        """Every search, in the order they were made.

        Raises:
            RunFileError: A line is none that was written here, or one of a later version.
        """
        for number, line in enumerate(json_lines(self.path, _LINE), 1):
            try:
                if line["format"] != FORMAT:
                    raise ValueError(f"format {line['format']}, expected {FORMAT}")
                lost = Lost.from_dict(line)
            except ValueError as error:
                raise RunFileError(
                    f"{self.path}, line {number} is no search ({error}): delete the line"
                ) from error
            yield lost


def episode_key(episode: Episode) -> str:
    """Tells an episode from others by what was played and where that led, in hex."""
    digest = hashlib.blake2b(array("Q", episode.tokens).tobytes(), digest_size=16)
    digest.update(repr((episode.env_id, episode.task_id, episode.state_hash)).encode())
    return digest.hexdigest()


def in_words(lost: Lost, episode: Episode) -> str:
    """What a search says of an episode, in a sentence or two."""
    turns = len(episode.steps)
    words = _lost_in_words(lost, episode)
    deciding = lost.deciding(turns)
    if deciding is None or deciding == lost.turn:
        return words
    fall = lost.fall(deciding, turns)
    assert fall is not None
    return (
        f"{words} The chance fell most at turn {deciding + 1}: by {fall.value:.2f} "
        f"[{fall.low:.2f}, {fall.high:.2f}]."
    )


def _lost_in_words(lost: Lost, episode: Episode) -> str:
    gold = lost.player == ORACLE
    if lost.turn is None:
        first = lost.at(0)
        if first is None or not first.tries:
            return "Where it was lost is not known: nothing that was played on came to its end."
        if gold:
            return f"Lost before it began: none of {first.tries} ways with the gold calls wins."
        never = f"the student wins 0 of {first.tries} times (below {first.most:.0%})"
        return f"Lost before it began: from its beginning {never}."
    before, after = lost.at(lost.turn), lost.at(lost.turn + 1)
    who = "from before it the gold calls still win"
    if before is None or not before.wins:
        own = f" (0 of {before.tries} from here did)" if before is not None else ""
        who = f"a try from before an earlier turn came by here and won{own}"
    elif not gold:
        low, high = before.interval
        times = f"{before.wins} of {before.tries} times ({low:.0%} to {high:.0%})"
        who = f"from before it the student wins {times}"
    words = f"Lost at turn {lost.turn + 1}: {who}"
    if lost.turn + 1 == len(episode.steps):
        return f"{words}; then it ended ({episode.stop.replace('_', ' ')})."
    if after is None or not after.tries:
        return f"{words}; what comes after it is not known."
    if gold:
        return f"{words}, after it none of {after.tries} ways to go on with them does."
    return f"{words}, after it 0 of {after.tries} (below {after.most:.0%})."


def chance_in_words(chance: Chance, player: str) -> str:
    """What came of one place, for a line before its turn."""
    if not chance.tries:
        return "nothing that was played on from here came to its end"
    if player == ORACLE:
        return "from here the gold calls " + ("win" if chance.wins else "do not win")
    low, high = chance.interval
    told = f"from here the student wins {chance.wins} of {chance.tries}: {chance.value:.0%}"
    return f"{told} [{low:.0%}, {high:.0%}]"


def chance_cells(chance: Chance, player: str) -> tuple[str, str, str]:
    """Wins, share and interval of a place, for a row of a table; the gold calls win or do not."""
    if not chance.tries:
        return "-", "-", "-"
    if player == ORACLE:
        return ("yes" if chance.wins else f"no ({chance.tries} ways)"), "", ""
    low, high = (f"{100 * it:.1f}" for it in chance.interval)
    return f"{chance.wins} of {chance.tries}", f"{chance.value:.2f}", f"{low} - {high}"


def breakdown(episodes: Iterable[tuple[Episode, Lost]]) -> str:
    """At which turns, and at calls of which tools, a run's episodes are lost: two tables."""
    turns: Counter[str] = Counter()
    acts: Counter[str] = Counter()
    number: dict[str, int] = {}
    total = 0
    for episode, lost in episodes:
        total += 1
        place = _NOT_WINNABLE if lost.turn is None else f"turn {lost.turn + 1}"
        number[place] = -1 if lost.turn is None else lost.turn
        turns[place] += 1
        if lost.turn is not None:
            results = episode.steps[lost.turn].results
            names = list(dict.fromkeys(it.call.name or "(malformed)" for it in results))
            acts[" + ".join(names) or "(answer)"] += 1
    ordered = sorted(turns.items(), key=lambda it: number[it[0]])
    by_act = sorted(acts.items(), key=lambda it: (-it[1], it[0]))
    tables = [_table("lost at", ordered, total), _table("at a call of", by_act, total)]
    return "\n\n".join(it for it in tables if it)


_NOT_WINNABLE = "(no win from its beginning)"


def _table(head: str, counts: Sequence[tuple[str, int]], total: int) -> str:
    if not counts:
        return ""
    rows = [(name, str(count), f"{count / total:.0%}") for name, count in counts]
    return aligned([(head, "episodes", "share"), *rows])
