"""Trees for people."""

from xml.etree import ElementTree

from journeyman.agents.search.draw import as_svg, as_text, deciding_step
from journeyman.agents.search.tree import Continuation, Kind, Move, NodeKey, Tree
from journeyman.tools import ToolCall

READ = ToolCall("get_order", {"order": "A<1>"}).canonical()
SEND = ToolCall("refund_order", {"order": "A<1>", "note": "x" * 80}).canonical()


def tree() -> Tree:
    """Read, then answer; the second choice decides."""
    tree = Tree("s0")
    for answer, reward in (("yes", 1.0), ("no", 0.0)):
        steps = (
            Move(READ, 0.0, "s1"),
            Move(f'{{"answer": "{answer}"}}', reward, "end" + answer, terminal=True),
        )
        tree.add(tree.root, Continuation(steps))
    tree.add(tree.root, Continuation((Move(SEND, 0.0, "lost", terminal=True),)), Kind.TEACHER)
    tree.add(tree.root, Continuation((Move("garbled", 0.0, "s2"),), failure="broke"), Kind.FORCED)
    return tree


def test_text_shows_visits_values_and_what_decided() -> None:
    lines = as_text(tree()).splitlines()
    assert lines[0].startswith("V 0.50  (2 samples")
    assert lines[1].startswith("get_order(order=A<1>)  [2s]  Q 0.50  A +0.00")
    assert lines[2] == "  Answer: yes  [1s]  Q 1.00  A +0.50  <== decided"
    assert lines[4].startswith("refund_order(note=xxxx")
    assert "…  [0s 1t]  Q 0.00  A -0.50" in lines[4]
    assert lines[5].startswith("garbled  [0s 1f]  Q ?  A ?")
    key, action = deciding_step(tree()) or (None, None)
    assert key == NodeKey(1, "s1")
    assert action == '{"answer": "yes"}'


def test_svg_is_well_formed() -> None:
    root = ElementTree.fromstring(as_svg(tree()))
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "get_order(order=A<1>)" in texts
    assert sum("#c0392b" in ElementTree.tostring(e, "unicode") for e in root) == 1


def test_nothing_decides_where_all_is_equal() -> None:
    same = Tree("s")
    same.add(same.root, Continuation((Move("a", 1.0, "end", terminal=True),)))
    assert deciding_step(same) is None
    assert "decided" not in as_text(same)
