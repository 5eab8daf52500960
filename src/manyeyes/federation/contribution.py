"""How much each node's updates are worth to the others, measured on the nodes' own validation pictures.

The gain of an update is what the round's model loses without it: the leave-one-out value (Wang et al. 2020,
arXiv:2009.06192, who compare it with the Shapley value; that one is fairer and needs exponentially many models). To let
every node test every such model would cost n² models a round. So each node is handed *one* more model than it tests
anyway: that of the round without the update of one node. It tests both on the same pictures, so what its pictures are
like cancels out. Whose update it is moves on by one place a round: after n rounds every node has judged every other
once, and itself once. A site that is unlike the others is of use to itself, if to nobody else, and that counts in the
mean as well; one with wrong labels cannot even tell that it is.

An update that hardly counts (by less than a half) does little harm any more, and would seem good to have. So the other
model is then the one in which it counts in full, and its gain is what that has more than the round's model.

A judge can tell another's update from the two models it holds. The coordinator sees every update in any case; that the
nodes see some is the price of letting them judge.

From the gains g (differences of mAP50) of the rounds follow a score z and a weight w, with smoothing ρ, scale s and
floor φ:

    z ← ρ z + (1 − ρ) · clip(g / s, −1, 1)             w = φ^clip(median z − z, 0, 1)

Half of the nodes count in full, and one that is worth s less than they are for some rounds counts φ. The median, since
what several sites know nobody loses with one of them: most gains of good sites are about zero, and a rare good one must
not make the others look bad. A single judgement, by a node with few pictures or by one that lies, moves a score by
1 − ρ at most.

>>> scores = updated({}, {"A": 0.0, "B": -0.2, "C": 0.025}, smoothing=0.5, scale=0.05)
>>> scores, weights(scores, ["A", "B", "D"], floor=0.04)
({'A': 0.0, 'B': -0.5, 'C': 0.25}, {'A': 1.0, 'B': 0.2, 'D': 1.0})
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from statistics import median

__all__ = ["judges", "updated", "weights"]


def judges(contributors: Collection[str], testers: Collection[str], round: int) -> dict[str, str]:
    """Who tests the model of a round without whose update: contributor → tester.

    Args:
        contributors: nodes whose updates were merged.
        testers: nodes that have tested the round's model.
        round: index of the round, from 0; moves everybody on by one place.
    """
    ring = sorted({*contributors, *testers})
    pairs = {node: ring[(place + 1 + round) % len(ring)] for place, node in enumerate(ring)}
    return {node: judge for node, judge in pairs.items() if node in contributors and judge in testers}


def updated(
    scores: Mapping[str, float], gains: Mapping[str, float], *, smoothing: float, scale: float
) -> dict[str, float]:
    """Scores after a round; those of nodes that were not judged stay.

    Args:
        scores: node → z; a node that was never judged has 0.
        gains: node → mAP50 with its update minus mAP50 without it.
        smoothing: ρ in [0, 1).
        scale: s, the gain or loss in mAP50 from which on a judgement counts in full.
    """
    moved = {
        node: smoothing * scores.get(node, 0.0) + (1 - smoothing) * min(1.0, max(-1.0, gain / scale))
        for node, gain in gains.items()
    }
    return {**scores, **moved}


def weights(scores: Mapping[str, float], nodes: Iterable[str], *, floor: float) -> dict[str, float]:
    """What an update of each node counts by, in [floor, 1]."""
    middle = median(scores.values()) if scores else 0.0
    return {node: float(floor ** min(1.0, max(0.0, middle - scores.get(node, 0.0)))) for node in nodes}
