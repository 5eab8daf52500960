"""Which nodes take part in a round, and how many updates end one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable

from manyeyes.config import FederationSection
from manyeyes.errors import AbsentNodesError, ConfigError

__all__ = ["buffer_size", "check_buffer", "cohort_size", "sample_cohort"]


def cohort_size(num_nodes: int, fraction: float, min_nodes: int) -> int:
    """⌈fraction · num_nodes⌉, at least `min_nodes`."""
    # 0.1 · 30 is 3.0000000000000004 in floating point, which must not become 4.
    return max(min_nodes, math.ceil(fraction * num_nodes - 1e-9))


def buffer_size(federation: FederationSection, num_nodes: int) -> int:
    """Updates that end a round of mode async: those stated, or half as many as nodes are at work, rounded up."""
    at_work = cohort_size(num_nodes, federation.fraction, federation.min_nodes)
    return federation.buffer or max(federation.min_nodes, -(-at_work // 2))


def check_buffer(federation: FederationSection, num_nodes: int) -> None:
    """Check that updates of mode async come early enough to be merged.

    Where nodes are alike, as many updates come while one of them works as nodes are at work; if so many fill the buffer
    more than `max_staleness` times, the same nodes' updates come too late in every round.

    Raises:
        ConfigError: they do.
    """
    at_work = cohort_size(num_nodes, federation.fraction, federation.min_nodes)
    buffer, most = buffer_size(federation, num_nodes), federation.max_staleness
    rounds = -(-at_work // buffer) - 1
    if federation.mode == "async" and rounds > most:
        raise ConfigError(
            f"a round ends with {buffer} of the updates of {at_work} nodes at work, so some come {rounds} rounds late,"
            f" and at most {most} are merged (max_staleness)",
            key="federation.buffer",
            cure=f"Set it to at least {-(-at_work // (most + 1))}, or lower federation.fraction.",
        )


def sample_cohort(
    nodes: Iterable[str],
    fraction: float,
    min_nodes: int,
    seed: int,
    round: int,
    busy: Collection[str] = (),
    *,
    places_taken: int = 0,
) -> tuple[str, ...]:
    """Draw the cohort of one round: ⌈fraction · nodes⌉ of them, at least `min_nodes`, sorted.

    Every node draws a number from (seed, round, node id) and the smallest win. The draw is uniform, does not depend on
    the order of `nodes`, and is the same on every machine and with every version of NumPy.

    Args:
        nodes: ids of the nodes that can be reached.
        fraction: share of them to ask, in (0, 1].
        min_nodes: least size of a cohort.
        seed: seed of the run.
        round: index of the round, from 0.
        busy: nodes that are not asked, because they are still at work on an earlier request. They count among those
            that can be reached; the cohort is smaller if the others are too few.
        places_taken: how much smaller the cohort is, because so many others work for the same round.

    Raises:
        AbsentNodesError: fewer than `min_nodes` nodes can be reached.
    """
    known = set(nodes)
    if len(known) < min_nodes:
        raise AbsentNodesError(
            f"round {round + 1} needs at least {min_nodes} nodes, but {len(known)} can be reached"
            f" ({', '.join(sorted(known)) or 'none'})",
            key="federation.min_nodes",
            cure="Start the missing nodes, or lower it.",
        )
    size = max(0, cohort_size(len(known), fraction, min_nodes) - places_taken)
    return tuple(sorted(sorted(known - set(busy), key=lambda node: _draw(seed, round, node))[:size]))


def _draw(seed: int, round: int, node: str) -> bytes:
    return hashlib.sha256(f"cohort/{seed}/{round}/{node}".encode()).digest()
