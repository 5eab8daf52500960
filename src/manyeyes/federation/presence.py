"""Who was at the door: when each node was last there, how many bytes passed, and how much was refused.

The door writes it from its own thread; status and metrics read it from theirs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["ONLINE_SECONDS", "Presence", "Seen"]

ONLINE_SECONDS = 30.0
"""A node counts as online for so long after its last request; it makes one every ten seconds, also while it trains."""

_LEAVING = ("/deactivate-node", "/unregister-node")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the door knows of one node since the coordinator was started.

    Attributes:
        at: its last request, seconds since 1970.
        left: whether that request said goodbye.
        away: and for how long, in the node's words; "" if it did not say.
        bytes_up, bytes_down: bodies of its requests and of their answers.
    """

    at: float
    left: bool = False
    away: str = ""
    bytes_up: int = 0
    bytes_down: int = 0

    def online(self, now: float) -> bool:
        """Whether it is there, as far as can be told from its requests."""
        return not self.left and now - self.at <= ONLINE_SECONDS


class Presence:
    """Counts what passes the door. Only admitted nodes have an entry, so it cannot grow by strangers.

    Args:
        now: seconds since 1970.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self._lock = threading.Lock()
        self._seen: dict[str, Seen] = {}
        self._refused: dict[int, int] = {}

    def came(self, node_id: str, path: str) -> None:
        """A node made a request."""
        with self._lock:
            seen = self._seen.get(node_id, Seen(0.0))
            self._seen[node_id] = replace(seen, at=self.now(), left=path.endswith(_LEAVING), away="")

    def went(self, node_id: str, away: str) -> None:
        """A node said goodbye, and perhaps for how long."""
        with self._lock:
            seen = self._seen.get(node_id, Seen(0.0))
            self._seen[node_id] = replace(seen, at=self.now(), left=True, away=away)

    def carried(self, node_id: str, direction: Literal["up", "down"], num_bytes: int) -> None:
        """A part of a request or of its answer passed; a long one shows that the node is there."""
        with self._lock:
            seen = self._seen.get(node_id, Seen(0.0))
            name = f"bytes_{direction}"
            self._seen[node_id] = replace(seen, at=self.now(), **{name: getattr(seen, name) + num_bytes})

    def refused(self, status: int) -> None:
        """A request was answered with an HTTP status in place of being passed on."""
        with self._lock:
            self._refused[status] = self._refused.get(status, 0) + 1

    def nodes(self) -> dict[str, Seen]:
        """Every node that was there."""
        with self._lock:
            return dict(self._seen)

    def refusals(self) -> dict[int, int]:
        """HTTP status → how often."""
        with self._lock:
            return dict(self._refused)
