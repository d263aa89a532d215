"""`journeyman/BFCL-<category>-v0`: the Berkeley Function Calling Leaderboard, version 4.

The data and the checkers are those of the package `bfcl-eval` (Apache-2.0); dispatch, snapshots and
isolation are ours. See docs/benchmarks.md for what is covered and what is known to be wrong.
"""

from journeyman.envs.bfcl.multi_turn import BFCLMultiTurn
from journeyman.envs.bfcl.single_turn import BFCLSingleTurn

MULTI_TURN = ("base", "miss_func", "miss_param", "long_context")
SINGLE_TURN = (
    "simple_python",
    "simple_java",
    "simple_javascript",
    "multiple",
    "parallel",
    "parallel_multiple",
    "irrelevance",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
    "live_irrelevance",
    "live_relevance",
)


def _category(base: type[BFCLMultiTurn] | type[BFCLSingleTurn], name: str) -> type:
    body = {"category": name, "__doc__": f"BFCL v4, category {name}.", "__module__": __name__}
    return type(f"BFCL_{name}", (base,), body)


CATEGORIES: dict[str, type] = {
    **{f"multi_turn_{name}": _category(BFCLMultiTurn, f"multi_turn_{name}") for name in MULTI_TURN},
    **{name: _category(BFCLSingleTurn, name) for name in SINGLE_TURN},
}
"""The environments by the benchmark's name of the category."""

globals().update({cls.__name__: cls for cls in CATEGORIES.values()})  # so that they can be pickled
