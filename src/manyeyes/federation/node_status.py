"""What a node knows of itself, as a plain object: written by the node, read by whoever shows it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["NodeStatus"]


@dataclass(slots=True)
class NodeStatus:
    """Written by one thread and read by others, one value at a time.

    Attributes:
        node_id: its name in the federation.
        not_ready: why it cannot take part at the moment, in words for the site's own people; None if it can.
        pictures: training pictures.
        round: of the request it was last asked to train for, from 1; None before the first.
        training: whether it trains now.
        last_seen: when the coordinator was last heard from, in seconds since 1970; None if not yet.
        answered: requests answered, by kind (fit, evaluate).
        refused: requests refused, by the key of the limit in node.yaml, or data, protocol, resource, defect, other.
        training_seconds: spent in training since the node was started.
        today: bytes that came in and bytes that were sent today.
    """

    node_id: str
    not_ready: str | None = "is starting"
    pictures: int = 0
    round: int | None = None
    training: bool = False
    last_seen: float | None = None
    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    training_seconds: float = 0.0
    today: Callable[[], tuple[int, int]] = lambda: (0, 0)

    def heard(self) -> None:
        """The coordinator was heard from just now."""
        self.last_seen = time.time()
