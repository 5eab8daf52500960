"""A coordinator's figures for Prometheus, on a listener of their own that only this machine reaches.

    manyeyes_run_info{name, version}              1
    manyeyes_state{manyeyes_state}                1 for what the run is at, 0 for the others
    manyeyes_round, manyeyes_rounds               round that runs or was finished last; rounds of the whole run
    manyeyes_rounds_finished                      rounds that are finished, those of earlier processes included
    manyeyes_round_seconds                        histogram of whole rounds
    manyeyes_phase_seconds{phase}                 seconds and count of fit, merge, evaluate, checkpoint
    manyeyes_nodes_admitted                       nodes that may take part
    manyeyes_node_online{node}                    1 or 0
    manyeyes_node_last_seen_timestamp_seconds{node}
    manyeyes_bytes_total{direction, node}         bodies of requests ("up") and of their answers ("down") at the door
    manyeyes_updates_total{node}                  updates that were merged
    manyeyes_updates_refused_total{node}          answers that were not
    manyeyes_update_seconds{node}                 from the last request to train to its update
    manyeyes_map50{node}, manyeyes_map50_95{node} last test on the node's validation pictures
    manyeyes_loss{node}                           of its last update
    manyeyes_warnings_total
    manyeyes_door_refused_total{status}           requests that were not passed on
    manyeyes_certificate_expiry_timestamp_seconds
    process_*                                     of the coordinator's process

Counters begin at 0 with each process. Labels take few values: nodes that were admitted, and fixed words.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    Summary,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric, StateSetMetricFamily
from prometheus_client.registry import Collector

from manyeyes.errors import ManyeyesError, ResourceError
from manyeyes.federation.admission import Members
from manyeyes.federation.coordinator_config import CoordinatorConfig
from manyeyes.federation.keys import SERVER, read_certificate
from manyeyes.federation.presence import Presence
from manyeyes.report.runlog import Event, losses_of_update

__all__ = ["CoordinatorMetrics", "serve_metrics"]

_log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_PHASES = ("fit", "merge", "evaluate", "checkpoint")
_STATES = ("starting", "waiting", "running", "finished", "stopped", "failed")
# A round takes seconds with a toy and hours with a site that computes on a slow processor.
_BUCKETS = (5, 10, 20, 40, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800)


class CoordinatorMetrics:
    """A listener for `RunLog` that counts, and what the door has seen.

    Args:
        config: of the coordinator.
        presence: what the door has seen.
        state: what the run is at.

    Raises:
        ConfigError: the coordinator's certificate cannot be read.
    """

    def __init__(self, config: CoordinatorConfig, presence: Presence, state: Callable[[], str]) -> None:
        # When each series was first counted is of no use to anybody here, and doubles the page.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        Info("manyeyes_run", "The run that is held.", registry=registry).info(
            {"name": config.name, "version": version("manyeyes")}
        )
        self._round = Gauge("manyeyes_round", "Round that runs or was finished last.", registry=registry)
        rounds = Gauge("manyeyes_rounds", "Rounds of the whole run.", registry=registry)
        rounds.set(config.federation.rounds)
        self._finished = Gauge("manyeyes_rounds_finished", "Rounds that are finished.", registry=registry)
        self._round_seconds = Histogram(
            "manyeyes_round_seconds", "Seconds of a whole round.", buckets=_BUCKETS, registry=registry
        )
        self._phase_seconds = Summary(
            "manyeyes_phase_seconds", "Seconds of each part of a round.", ["phase"], registry=registry
        )
        node = ["node"]
        self._updates = Counter("manyeyes_updates", "Updates that were merged.", node, registry=registry)
        self._refused = Counter("manyeyes_updates_refused", "Answers that were not merged.", node, registry=registry)
        self._update_seconds = Gauge(
            "manyeyes_update_seconds", "From the last request to train to its update.", node, registry=registry
        )
        self._map50 = Gauge(
            "manyeyes_map50", "mAP at IoU 0.5 on the node's validation pictures.", node, registry=registry
        )
        self._map50_95 = Gauge(
            "manyeyes_map50_95", "mAP over IoU 0.50:0.95 on the node's validation pictures.", node, registry=registry
        )
        self._loss = Gauge("manyeyes_loss", "Loss of the last update.", node, registry=registry)
        self._warnings = Counter("manyeyes_warnings", "Warnings of the run.", registry=registry)
        # The one that is served: a new one is taken when the coordinator is started again.
        expires = Gauge(
            "manyeyes_certificate_expiry_timestamp_seconds", "Of the certificate that is served.", registry=registry
        )
        expires.set(read_certificate(config.state / SERVER).not_valid_after_utc.timestamp())
        registry.register(_Door(Members(config.state), presence, state))
        ProcessCollector(registry=registry)

    def __call__(self, event: Event) -> None:
        """Count one event; never raises into the run."""
        try:
            self._count(event)
        except Exception:  # noqa: BLE001 - hours of training must not end because a figure could not be told
            _log.warning("A figure for Prometheus could not be told; the run goes on.", exc_info=True)

    def _count(self, event: Event) -> None:
        kind = event["event"]
        if kind == "row_started":
            self._round.set(event.get("resumed_from") or 0)
            self._finished.set(event.get("resumed_from") or 0)
        elif kind == "round_started":
            self._round.set(event["round"])
        elif kind == "round_finished":
            self._finish(event)
        elif kind == "update_received":
            self._receive(event)
        elif kind == "update_refused":
            self._refused.labels(event["node"]).inc()
        elif kind == "evaluated" and event["metrics"]["ap50"]:
            self._map50.labels(event["where"]).set(event["metrics"]["map50"])
            self._map50_95.labels(event["where"]).set(event["metrics"]["map50_95"])
        elif kind == "warning":
            self._warnings.inc()

    def _finish(self, event: Event) -> None:
        self._finished.set(event["round"])
        seconds = event["seconds"]
        self._round_seconds.observe(seconds["total"])
        for phase in _PHASES:
            if phase in seconds:
                self._phase_seconds.labels(phase).observe(seconds[phase])

    def _receive(self, event: Event) -> None:
        self._updates.labels(event["node"]).inc()
        self._update_seconds.labels(event["node"]).set(event["seconds"])
        losses = losses_of_update(event)
        if "loss" in losses:
            self._loss.labels(event["node"]).set(losses["loss"])


class _Door(Collector):
    """What is read at the moment somebody asks."""

    def __init__(self, members: Members, presence: Presence, state: Callable[[], str]) -> None:
        self._members, self._presence, self._state = members, presence, state

    def collect(self) -> Iterator[Metric]:
        """The families, each with the values of now."""
        now = self._state()
        yield StateSetMetricFamily("manyeyes_state", "What the run is at.", {state: state == now for state in _STATES})
        yield from self._nodes()
        refused = CounterMetricFamily("manyeyes_door_refused", "Requests that were not passed on.", labels=["status"])
        for status, count in sorted(self._presence.refusals().items()):
            refused.add_metric([str(status)], count)
        yield refused

    def _nodes(self) -> Iterator[Metric]:
        try:
            admitted = sorted(member.node_id for member in self._members if member.revoked is None)
        except ManyeyesError:
            # A register that is damaged lets nobody in, which is what the figures then say.
            admitted = []
        seen = self._presence.nodes()
        yield GaugeMetricFamily("manyeyes_nodes_admitted", "Nodes that may take part.", len(admitted))
        online = GaugeMetricFamily("manyeyes_node_online", "Whether a node is there.", labels=["node"])
        last = GaugeMetricFamily(
            "manyeyes_node_last_seen_timestamp_seconds", "Its last request; absent before the first.", labels=["node"]
        )
        carried = CounterMetricFamily(
            "manyeyes_bytes", "Bodies of requests and of their answers at the door.", labels=["direction", "node"]
        )
        for node in sorted({*admitted, *seen}):
            at_door = seen.get(node)
            there = at_door is not None and node in admitted and at_door.online(self._presence.now())
            online.add_metric([node], float(there))
            if at_door:
                last.add_metric([node], at_door.at)
                carried.add_metric(["up", node], at_door.bytes_up)
                carried.add_metric(["down", node], at_door.bytes_down)
        yield from (online, last, carried)


@contextmanager
def serve_metrics(metrics: CoordinatorMetrics, port: int) -> Iterator[int]:
    """Serve them at ``http://127.0.0.1:port/metrics`` until the block is left; yields the port.

    Raises:
        ResourceError: the port is in use.
    """
    try:
        server, thread = start_http_server(port, addr=_LOOPBACK, registry=metrics.registry)
    except OSError as error:
        raise ResourceError(
            f"cannot listen on {_LOOPBACK}:{port} ({os.strerror(error.errno or 0)})",
            key="metrics_port",
            cure="Choose another port, or stop what uses this one.",
        ) from error
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5.0)
