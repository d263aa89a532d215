"""Search over forked episodes: what a call was worth (credit), and which is best (improvement).

`tree.py` holds what was played, `backup.py` turns it into values, `select.py` says where to play
next, `searches.py` drives many searches side by side. This core knows no language models and no
tensors (`language.py`, `evidence.py` and `playing.py` do).
"""

from journeyman.agents.search.backup import ActionValue, NodeValue, expected_backup, shrink
from journeyman.agents.search.searches import (
    Budget,
    CreditSearch,
    ImprovementSearch,
    Request,
    Search,
    World,
    run_searches,
)
from journeyman.agents.search.tree import Continuation, Edge, Kind, Move, Node, NodeKey, Path, Tree

__all__ = [
    "ActionValue",
    "Budget",
    "Continuation",
    "CreditSearch",
    "Edge",
    "ImprovementSearch",
    "Kind",
    "Move",
    "Node",
    "NodeKey",
    "NodeValue",
    "Path",
    "Request",
    "Search",
    "Tree",
    "World",
    "expected_backup",
    "run_searches",
    "shrink",
]
