"""Nodes that work at the same time, each at its own pace, on a clock that stands still between events."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence

from manyeyes.federation.client import Client
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.transport import Reply, Request

Seconds = Callable[[Request], float]


def fit_takes(**nodes: float) -> Seconds:
    """A second for everything but the training of some nodes."""
    return lambda request: nodes.get(request.node_id, 1.0) if request.kind == "fit" else 1.0


class Clock:
    """Stands in for the time module where only `monotonic` is used."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Lanes:
    """A transport whose nodes work in lanes of their own, one request after the other, as real ones do.

    Args:
        clients: the nodes.
        clock: is put forward to the next answer, or by the time that is waited.
        seconds: how long a node takes for a request; infinity if it is lost.
    """

    def __init__(self, clients: Mapping[str, Client], clock: Clock, seconds: Seconds) -> None:
        self.inner, self.clock, self.seconds = LocalTransport(clients), clock, seconds
        self.free_at = dict.fromkeys(clients, 0.0)
        self.under_way: list[tuple[float, str, Request]] = []
        self.asked: list[Request] = []
        self.away: set[str] = set()

    def nodes(self) -> Sequence[str]:
        return [node for node in self.inner.nodes() if node not in self.away]

    def send(self, requests: Sequence[Request]) -> None:
        self.asked += requests
        for request in requests:
            seconds = self.seconds(request)
            ends = max(self.clock.now, self.free_at[request.node_id]) + seconds
            if math.isfinite(seconds):
                self.free_at[request.node_id] = ends
            heapq.heappush(self.under_way, (ends, request.request_id, request))

    def cancel(self, request_ids: Sequence[str]) -> list[str]:
        return []

    def receive(self, timeout: float | None) -> list[Reply]:
        if not self.under_way:
            return []
        assert timeout is not None
        if self.under_way[0][0] > self.clock.now + timeout:
            self.clock.now += timeout
            return []
        ends, _, request = heapq.heappop(self.under_way)
        self.clock.now = max(self.clock.now, ends)
        self.inner.send([request])
        return self.inner.receive(None)

    def cohorts(self) -> list[str]:
        """Who was asked to train, round by round: ["ABC", "AC", …]."""
        rounds: dict[int, str] = {}
        for request in self.asked:
            if request.kind == "fit":
                number = int(request.request_id.split("-")[1])
                rounds[number] = rounds.get(number, "") + request.node_id
        return list(rounds.values())
