"""A node's small HTTP server, on loopback alone: is it alive, can it take part, and its numbers for Prometheus.

    GET /healthz   200 while the process lives
    GET /readyz    200 if the node can take part now; else 503 and why not, in one line
    GET /metrics   Prometheus' text format

It knows the node by the plain object that it is handed, and imports nothing that trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from manyeyes.federation.node_status import NodeStatus
from manyeyes.web.serving import LOOPBACK, listen, serving

__all__ = ["node_app", "node_page"]


def node_app(status: NodeStatus) -> Starlette:
    """The application that shows a node's status as it is at each request."""
    registry = CollectorRegistry()
    registry.register(_NodeCollector(status))

    def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    def readyz(_: Request) -> Response:
        reason = status.not_ready
        return PlainTextResponse(f"{reason or 'ready'}\n", status_code=503 if reason else 200)

    def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    routes = [Route(f"/{view.__name__}", view) for view in (healthz, readyz, metrics)]
    # A page of somewhere else whose name is made to point here must not read it through a browser of this machine.
    own_names = Middleware(TrustedHostMiddleware, allowed_hosts=[LOOPBACK, "localhost"])
    return Starlette(routes=routes, middleware=[own_names])


@contextmanager
def node_page(status: NodeStatus, port: int | None) -> Iterator[int | None]:
    """Within the block a node's status is served on loopback.

    Args:
        status: of the node.
        port: where; 0 takes a free one, None serves nothing.

    Yields the port.

    Raises:
        ResourceError: the port is in use, or may not be used.
    """
    if port is None:
        yield None
        return
    with (
        listen(LOOPBACK, port, key="port") as listener,
        serving(node_app(status), listener, "manyeyes-page"),
    ):
        yield int(listener.getsockname()[1])


class _NodeCollector(Collector):
    """Reads the status when Prometheus asks."""

    def __init__(self, status: NodeStatus) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        status = self._status
        down, up = status.today()
        ready, training = float(status.not_ready is None), float(status.training)
        yield self._gauge("ready", "1 if the node can take part now", ready)
        yield self._gauge("training", "1 while it trains", training)
        yield self._gauge("pictures", "training pictures of this site", status.pictures)
        if status.round is not None:
            yield self._gauge("round", "round it trained in last, from 1", status.round)
        if status.last_seen is not None:
            text = "when the coordinator was last heard from, seconds since 1970"
            yield self._gauge("coordinator_last_seen_timestamp_seconds", text, status.last_seen)
        today = GaugeMetricFamily("manyeyes_node_bytes_today", "bytes of messages since midnight", labels=["direction"])
        today.add_metric(["down"], down)
        today.add_metric(["up"], up)
        yield today
        yield CounterMetricFamily(
            "manyeyes_node_training_seconds", "spent in training since the start", value=status.training_seconds
        )
        yield self._counter("answers", "requests answered", "kind", dict(status.answered))
        yield self._counter("refusals", "requests refused", "reason", dict(status.refused))

    @staticmethod
    def _gauge(name: str, text: str, value: float) -> Metric:
        return GaugeMetricFamily(f"manyeyes_node_{name}", text, value=value)

    @staticmethod
    def _counter(name: str, text: str, label: str, counts: dict[str, int]) -> Metric:
        family = CounterMetricFamily(f"manyeyes_node_{name}", text, labels=[label])
        for value, count in sorted(counts.items()):
            family.add_metric([value], count)
        return family
