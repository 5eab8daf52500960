"""A site's HTTP server: what it is for, is said by what it is handed.

    GET /          the page for people, see page.py
    GET /healthz   200 while the process lives
    GET /readyz    200 if it can do its work now; else 503 and why not, in one line
    GET /metrics   Prometheus' text format
    /api/v1/…      where it has a model: find objects, see api.py and live.py

A node of a federation hands its status; `manyeyes serve` hands models, history, jobs and cameras. It imports nothing
that trains.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from manyeyes.errors import ConfigError, DataError, ManyeyesError, ResourceError, RunError, WeightsError
from manyeyes.federation.node_status import NodeStatus
from manyeyes.registry import MODELS, Registry
from manyeyes.web.access import Door
from manyeyes.web.api import body_limits, edge_router, node_router, on_disk
from manyeyes.web.edge import Edge, open_edge
from manyeyes.web.events import Events, State
from manyeyes.web.guard import Guard, Rules, problem
from manyeyes.web.live import events_router, live_router
from manyeyes.web.page import add_page
from manyeyes.web.routing import PREFIX, role_of
from manyeyes.web.serving import LOOPBACK, listen, serving
from manyeyes.web.settings import LimitSection, ServeConfig, load_serve_config

__all__ = ["node_app", "node_page"]

_FIRST_MODEL_SECONDS = 2.0
# What a page may say to a node that finds no objects yet: nothing to speak of.
_NODE_MESSAGE = 1000

_log = logging.getLogger(__name__)

# What an error of ours means to whoever asked.
_STATUS: tuple[tuple[type[ManyeyesError], int], ...] = (
    (DataError, 422),
    (WeightsError, 409),
    (ConfigError, 409),
    (ResourceError, 503),
    (RunError, 409),
)


def node_app(
    status: NodeStatus | None = None,
    edge: Edge | None = None,
    *,
    door: Door | None = None,
    events: Events | None = None,
) -> Guard:
    """The application, guarded.

    Args:
        status: of a node that takes part in a federation.
        edge: of a server that finds objects.
        door, events: where there is a status and no edge: who may enter, and what changes.
    """
    described = f"{PREFIX}/openapi.json" if edge else None
    app = FastAPI(title="manyeyes", version=version("manyeyes"), docs_url=None, redoc_url=None, openapi_url=described)
    _add_probes(app, status, edge)
    add_page(app)
    _add_errors(app)
    if edge is None:
        if status and door and events:
            app.include_router(node_router(door, status))
            app.include_router(events_router(door, events))
        return Guard(app, Rules())
    app.include_router(edge_router(edge, status))
    app.include_router(events_router(edge, edge.events))
    app.include_router(live_router(edge))
    config = edge.config
    return Guard(
        app,
        Rules(
            names=frozenset(name.lower() for name in (*config.names, config.host)),
            secure=config.certificate is not None,
            body_bytes=body_limits(edge),
            on_disk=on_disk(),
            memory_bytes=config.limits.body_memory,
            patience=config.limits.patience,
            any_address=_is_any(config.host),
        ),
    )


def _add_probes(app: FastAPI, status: NodeStatus | None, edge: Edge | None) -> None:
    registry = CollectorRegistry()
    if status:
        registry.register(_NodeCollector(status))
    if edge:
        registry.register(edge.metrics)

    @app.get("/healthz", include_in_schema=False)
    def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @app.get("/readyz", include_in_schema=False)
    def readyz() -> Response:
        reason = status.not_ready if status else None
        return PlainTextResponse(f"{reason or 'ready'}\n", status_code=503 if reason else 200)

    @app.get("/metrics", include_in_schema=False)
    def metrics(request: Request) -> Response:
        if edge and role_of(edge, request) is None:
            raise HTTPException(401, "needs a password or a token", {"WWW-Authenticate": "Bearer"})
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI) -> None:
    """Each error as a reason and a cure; none of them with a path of this machine or a traceback."""

    @app.exception_handler(HTTPException)
    def refused(_: Request, error: HTTPException) -> Response:
        return _problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    def misread(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _problem(422, f"{where}: {first['msg']}")

    @app.exception_handler(ManyeyesError)
    def ours(_: Request, error: ManyeyesError) -> Response:
        code = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
        return _problem(code, error.reason, error.cure)

    @app.exception_handler(OSError)
    def disk(_: Request, error: OSError) -> Response:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error
        return _problem(507, "there is no room on the disk")


def _problem(code: int, reason: str, cure: str | None = None, headers: dict[str, str] | None = None) -> Response:
    return Response(problem(reason, cure), code, headers, "application/json")


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


@contextmanager
def node_page(
    status: NodeStatus, port: int | None, state: Path | None = None, threads: int | None = None
) -> Iterator[int | None]:
    """Within the block a node's status is served on loopback, and its models, as soon as there is one.

    Args:
        status: of the node.
        port: where; 0 takes a free one, None serves nothing.
        state: folder of the server that the node's models are for; a file serve.yaml in it is read. None: no server.
        threads: that finding objects may take.

    Yields the port.

    Raises:
        ConfigError: serve.yaml cannot be used.
        ResourceError: the port is in use, or may not be used.
    """
    if port is None:
        yield None
        return
    config = _config_of(state, port, threads) if state else None
    events = Events(_states(status))
    page = _Page(node_app(status, door=_door(status, config), events=events))
    with (
        events,
        listen(LOOPBACK, port, key="port") as listener,
        serving(
            page, listener, "manyeyes-page", message_bytes=config.limits.picture_bytes if config else _NODE_MESSAGE
        ),
        _finding(status, page, config, events),
    ):
        yield int(listener.getsockname()[1])


class _Page:
    """The application that answers now; another takes its place when there is more to show."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def _states(status: NodeStatus) -> dict[str, State]:
    return {"federation": lambda: status.progress}


def _door(status: NodeStatus, config: ServeConfig | None) -> Door | None:
    """The same before the first model as after it."""
    if config:
        return Door(config.state, config.limits.guesses, public=config.public)
    return Door(status.folder, LimitSection().guesses) if status.folder else None


def _config_of(state: Path, port: int, threads: int | None) -> ServeConfig:
    file = state / "serve.yaml"
    # Others reach it through `manyeyes serve`, which asks for a password.
    given = {"state": state, "host": LOOPBACK, "port": port, "threads": threads}
    return load_serve_config(file if file.exists() else None, given)


@contextmanager
def _finding(status: NodeStatus, page: _Page, config: ServeConfig | None, events: Events) -> Iterator[None]:
    """Within the block the page finds objects too, from the first model on."""
    if config is None:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(
        target=_find, args=(status, page, config, events, ended), name="manyeyes-serve", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=30)


def _find(status: NodeStatus, page: _Page, config: ServeConfig, events: Events, ended: threading.Event) -> None:
    registry, plain = Registry(config.state / MODELS), page.app
    tried: tuple[int, ...] | None = None
    while True:
        try:
            # A model that cannot be used is followed by one that can, which another version of the registry tells.
            version = registry.version
            if (registry.used or config.model) and version != tried:
                tried = version
                with open_edge(config, _states(status)) as edge:
                    page.app = node_app(status, edge)
                    events.close()  # whoever listens comes again, and finds the model
                    ended.wait()
                    page.app = plain
        except ManyeyesError as error:  # `manyeyes serve` may have the folder; the node trains all the same
            _log.warning("objects are not looked for here: %s", error)
        if ended.wait(_FIRST_MODEL_SECONDS):
            return


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
