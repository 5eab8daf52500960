"""How much each node's updates are worth to the others, measured on the nodes' own validation pictures.

The gain of a node is what the round's model would win in mAP50 if its update counted for more: for as much as all the
others together. That is the influence of a part of the data, as Koh and Liang (2017, arXiv:1703.04730) define it by
giving it more weight, over a finite step. The more usual value is what the model loses without the update (Wang et al.
2020, arXiv:2009.06192). Measured beside each other on real detectors, that one hardly tells a wrong site: one update
of n moves the mean by an n-th, the others make up for it, and in the first rounds a mean of more updates is better
whatever one of them has learned (docs/deviations.md).

To let every node test every such model would cost n² models a round. So each node is handed *one* more model than it
tests anyway, in which one node counts for more. It tests both on the same pictures, so what its pictures are
like cancels out. Whose update it is moves on by one place a round: after n rounds every node has judged every other
once, and itself once. A site that is unlike the others is of use to itself, if to nobody else, and that counts in the
mean as well.

A judge can tell another's update from the two models it holds. The coordinator sees every update in any case; that the
nodes see some is the price of letting them judge.

From the gains g (differences of mAP50) of the rounds follow a score z and a weight w, with smoothing ρ, scale s, floor
φ and v, what the judge's own updates count by:

    u = clip(g / s, −1, 1)    a = max |u| of the round    z ← z + (1 − ρ) v (u − a z)    w = φ^clip(median z − z, 0, 1)

A round forgets as much of the score as it tells: with a = 1 this is exponential smoothing by ρ, and one in which no
update made a difference leaves all scores where they are. Updates become smaller as the rate falls and the model gets
better, so most rounds are like that in the end; a site that did harm while it was still to be seen must not come
back because nothing is to be seen any more.

Half of the nodes count in full, and one that is always worse than they are counts φ. The median, since what several
sites know nobody wins by hearing one of them more: most gains of good sites are about zero, and a rare good one must
not make the others look bad. Whose updates hardly count hardly counts as a judge: a site with wrong labels finds its
own updates good, and the others' bad. A single judgement, by a node with few pictures or by one that lies, moves a
score by 2 (1 − ρ) at most.

>>> scores = updated({}, {"A": 0.0, "B": -0.2, "C": 0.025}, {}, smoothing=0.5, scale=0.05)
>>> scores, weights(scores, ["A", "B", "D"], floor=0.04)
({'A': 0.0, 'B': -0.5, 'C': 0.25}, {'A': 1.0, 'B': 0.2, 'D': 1.0})
>>> updated(scores, {"B": 0.01, "C": 0.0}, {"B": 0.2}, smoothing=0.5, scale=0.05)["B"]
-0.47
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from statistics import median

__all__ = ["judges", "updated", "weights"]


def judges(contributors: Collection[str], testers: Collection[str], round: int) -> dict[str, str]:
    """Who tests the model of a round in which whose update counts for more: contributor → tester.

    Args:
        contributors: nodes whose updates were merged.
        testers: nodes that have tested the round's model.
        round: index of the round, from 0; moves everybody on by one place.
    """
    ring = sorted({*contributors, *testers})
    pairs = {node: ring[(place + 1 + round) % len(ring)] for place, node in enumerate(ring)}
    return {node: judge for node, judge in pairs.items() if node in contributors and judge in testers}


def updated(
    scores: Mapping[str, float],
    gains: Mapping[str, float],
    trust: Mapping[str, float],
    *,
    smoothing: float,
    scale: float,
) -> dict[str, float]:
    """Scores after a round, in [-1, 1]; those of nodes that were not judged stay.

    Args:
        scores: node → z; a node that was never judged has 0.
        gains: node → mAP50 of the model in which it counts for more, minus that of the round's model.
        trust: node → v in [0, 1], what the updates of its judge count by; 1 where none is stated.
        smoothing: ρ in [0, 1).
        scale: s, the gain or loss in mAP50 from which on a judgement counts in full.
    """
    found = {node: min(1.0, max(-1.0, gain / scale)) for node, gain in gains.items()}
    loudest = max(map(abs, found.values()), default=0.0)
    moved = dict(scores)
    for node, value in found.items():
        before = scores.get(node, 0.0)
        moved[node] = before + (1 - smoothing) * trust.get(node, 1.0) * (value - loudest * before)
    return moved


def weights(scores: Mapping[str, float], nodes: Iterable[str], *, floor: float) -> dict[str, float]:
    """What an update of each node counts by, in [floor, 1]."""
    middle = median(scores.values()) if scores else 0.0
    return {node: float(floor ** min(1.0, max(0.0, middle - scores.get(node, 0.0)))) for node in nodes}
