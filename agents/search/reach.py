"""How likely the student comes to a node: what makes a tree's rows sum to the policy gradient.

The policy gradient is a sum over states by how often the student comes there (Sutton et al. 2000):

    grad J = sum_s rho(s) sum_a p(a) A(s, a) grad log p(a)

What a search plays from inside is not drawn from rho: late states come too often. With n(s) samples
of the student's own in s, each weighted by rho(s) / n(s), what is summed is that sum over the
student's own choices in each node, all of those that were tried (the samples of one action share
its advantage). For whole episodes alone every weight is one over their number.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from journeyman.agents.search.tree import Action, Kind, NodeKey, Tree


def reaches(tree: Tree) -> dict[NodeKey, float]:
    """The student's probability to come to each node, by its own frequencies; 1 at the root.

    Dynamics do not care who chose an action: all outcomes of an edge count, as in the backup. Where
    only a candidate leads, such as the teacher's call, it is 0.
    """
    found: dict[NodeKey, float] = defaultdict(float, {tree.root: 1.0})
    for level in tree.levels:
        for node in level:
            samples = node.samples
            for edge in node.edges.values():
                if edge.sampled:
                    flow = found[node.key] * edge.sampled / samples / edge.visits
                    for key, outcome in edge.outcomes.items():
                        found[key] += flow * outcome.visits
    return found


def sample_weights(tree: Tree) -> dict[NodeKey, float]:
    """rho(s) / n(s), for each of the student's own samples in a node that has some.

    n(s) leaves out what broke later: no such row is trained on, and its part falls to the others.
    """
    reach = reaches(tree)
    counts = Counter(
        key
        for path in tree.paths
        if path.failure is None
        for key in path.keys[path.kind is not Kind.SAMPLED : -1]
    )
    return {key: reach.get(key, 0.0) / n for key, n in counts.items()}


def squared_reach(tree: Tree) -> dict[tuple[NodeKey, Action], float]:
    """Of each of the student's own choices, the squared probability that it comes to make it.

    The squared error of the gradient counts the squared error of the choice's advantage so often.
    """
    return {
        (key, action): (reach / tree.nodes[key].samples * edge.sampled) ** 2
        for key, reach in reaches(tree).items()
        if reach
        for action, edge in tree.nodes[key].edges.items()
        if edge.sampled
    }
