"""A site's server with all that belongs to it: models, history, jobs, cameras, and who may do what."""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.exceptions import HTTPException

from manyeyes.datasets.overlay import OVERLAY, Overlay
from manyeyes.errors import ConfigError, DataError, ManyeyesError
from manyeyes.federation.hours import DayHours
from manyeyes.one_process import one_process
from manyeyes.registry import MODELS, Held, Registry
from manyeyes.runtime.archive import ArchiveLimits
from manyeyes.runtime.engine import Engine, Found, open_engine
from manyeyes.runtime.host import Host, Night
from manyeyes.runtime.streams import StreamResult, Streams
from manyeyes.runtime.vision import MAX_IOU
from manyeyes.web.access import Access, Door
from manyeyes.web.answers import found_values
from manyeyes.web.counting import StreamCounts
from manyeyes.web.events import Events, State
from manyeyes.web.history import History, Seen
from manyeyes.web.jobs import Job, Jobs
from manyeyes.web.metrics import EdgeMetrics
from manyeyes.web.review import Review
from manyeyes.web.settings import MODEL_HASH, ServeConfig

__all__ = ["Edge", "Wanted", "open_edge"]

T = TypeVar("T")

# A camera is remembered when what it shows has changed, and not more often than this, in seconds.
_REMEMBER_EVERY = 1.0
_MOST_REMEMBERED = 1000
_FOLLOW_SECONDS = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a picture is to be looked at.

    Attributes:
        min_score: lowest score kept.
        max_iou: of two boxes of a class that overlap by more, the better one is kept.
        model: hash of another model than the one in use, to compare.
    """

    min_score: float
    max_iou: float = MAX_IOU
    model: str | None = None


class Edge(Door):
    """What the routes of a server share.

    Args:
        config: as it was started.
        registry, host, history: its parts.
        stack: ends what is begun here.
        also: what else changes that is shown here; see `Events`.
        second: hash of the model whose disagreement is looked for.

    Attributes:
        began: when, in seconds since 1970.
    """

    def __init__(
        self,
        config: ServeConfig,
        registry: Registry,
        host: Host,
        history: History,
        stack: ExitStack,
        also: Mapping[str, State],
        second: str | None = None,
    ) -> None:
        super().__init__(config.state, config.limits.guesses, public=config.public)
        self.config, self.registry, self.host, self.history = config, registry, host, history
        self.metrics = EdgeMetrics()
        self.began = time.time()
        self._looking = anyio.CapacityLimiter(1 + (config.threads or len(os.sched_getaffinity(0))))
        self.watching = anyio.CapacityLimiter(config.limits.connections)
        self._remembered: OrderedDict[str, tuple[float, Counter[str] | None]] = OrderedDict()
        self.overlay = Overlay(config.state / OVERLAY)
        opened = cache(partial(_open, config, registry, second)) if second else None
        self.review = Review(config.state / "review", self.overlay, config.review, opened)
        stack.callback(self.review.close)
        self.counting = StreamCounts(config.state)
        limits = config.limits
        packed = ArchiveLimits(limits.zip_entries, limits.picture_bytes, limits.zip_unpacked, limits.zip_ratio)
        self.jobs = Jobs(config.state / "jobs", self._look_for_job, packed, limits.jobs)
        stack.callback(self.jobs.close)
        self.streams = stack.enter_context(
            Streams(lambda: host, min_score=config.min_score, most=limits.streams, on_result=self._seen_by_stream)
        )
        for name, source in config.streams.items():
            self.streams.add(name, source)
        self.events = stack.enter_context(Events({**self._states(), **also}))
        self._ended = threading.Event()
        follower = threading.Thread(target=self._follow, name="manyeyes-registry", daemon=True)
        follower.start()
        stack.callback(follower.join, _FOLLOW_SECONDS)
        stack.callback(self._ended.set)

    async def look(
        self, data: bytes | None, wanted: Wanted, *, source: str, name: str, then: Callable[[Found, str | None], T]
    ) -> T:
        """Find objects in a picture that somebody sent; remembered and counted.

        What is wanted of it is made by `then`, from what was found and the id under which the picture is offered for
        review, before the next picture has its turn: no picture outlives it.

        Raises:
            HTTPException: too many wait already.
            DataError: it is no picture, or too large.
            ManyeyesError: a model that is asked for cannot be opened.
        """
        limits = self.config.limits
        if data is None:
            raise DataError(f"is larger than {limits.picture_bytes / 1e6:g} MB")
        if self.metrics.waiting >= limits.waiting:
            self.metrics.turned_away += 1
            raise HTTPException(503, "too many pictures wait already", {"Retry-After": "1"})

        def look() -> T:
            return then(*self._look(data, wanted, source=source, name=name))

        self.metrics.waiting += 1
        try:
            return await anyio.to_thread.run_sync(look, limiter=self._looking)
        finally:
            self.metrics.waiting -= 1

    def latest(self, stream: str) -> Found | None:
        """The newest frame of a camera and what was found in it; None before the first."""
        result = self.streams.latest(stream)
        return result.found if result else None

    def _states(self) -> dict[str, Callable[[], Hashable]]:
        """What each part looks like, for `Events`; figures that change with every picture are not among it."""
        host, registry = self.host, self.registry
        return {
            "model": lambda: (host.changes, host.taken_back, host.scene, host.forced, registry.version),
            "jobs": lambda: tuple(self.jobs.all()),
            "streams": lambda: (
                self.counting.version,
                *((stream.name, stream.state, stream.error) for stream in self.streams.status()),
            ),
            "history": lambda: self.history.version,
            "review": lambda: self.review.version,
        }

    def _follow(self) -> None:
        """The node of this site is another process: what it puts to use is seen in the registry."""
        seen: tuple[int, ...] = ()
        told: set[str] = set()
        while True:
            try:
                if seen != (seen := self.registry.version):
                    told |= self._tell_damage(told)
                self.host.follow()
            except ManyeyesError as error:
                _log.warning("the registry: %s", error)
            except Exception:  # noqa: BLE001 - whatever lies in that folder, a later model must be seen
                _log.exception("the registry cannot be followed; it is tried again")
            if self._ended.wait(_FOLLOW_SECONDS):
                return

    def _tell_damage(self, told: Set[str]) -> set[str]:
        """Name in the log what was tampered with, each once."""
        found = {str(error) for error in self.registry.damage()}
        for text in sorted(found - told):
            _log.warning("the registry: %s", text)
        return found

    def _look(self, data: bytes, wanted: Wanted, *, source: str, name: str) -> tuple[Found, str | None]:
        try:
            found = self.host.look(
                data,
                min_score=wanted.min_score,
                max_iou=wanted.max_iou,
                most_pixels=self.config.limits.picture_pixels,
                model=wanted.model,
            )
        except DataError:
            self.metrics.refused += 1
            raise
        if wanted.model is not None:  # the same picture again, to compare: what it shows was seen once
            self.metrics.count("comparison", found.seconds)
            return found, None
        self._remember(source, name, found, found.seconds)
        return found, self.review.consider(found, source, name)

    def _look_for_job(self, name: str, data: bytes, job: Job) -> dict[str, Any]:
        wanted = Wanted(job.min_score, job.max_iou, job.model)
        return found_values(*self._look(data, wanted, source=f"job {job.id}", name=name))

    def _seen_by_stream(self, result: StreamResult) -> None:
        found, source = result.found, f"stream {result.name}"
        self._remember(source, str(result.number), found, result.latency)
        counted = self.counting.see(result)
        self.review.consider(found, source, str(result.number), broken_track=counted is not None and counted.broken)

    def _remember(self, source: str, name: str, found: Found, seconds: float) -> None:
        kind, now = source.partition(" ")[0], time.time()
        self.metrics.count(kind, seconds)
        # A page asks for all down to a low score, and leaves out by itself; that is no reason to count them as seen.
        sure = found.detections.above(self.config.min_score)
        counts = Counter(found.engine.names[class_id] for class_id in sure.class_id)
        if kind in ("live", "stream") and not self._is_news(source, counts, now):
            return
        self.history.add(Seen(now, source, name, found.engine.model_hash, dict(counts), round(1000 * seconds, 2)))

    def _is_news(self, source: str, counts: Counter[str], now: float) -> bool:
        last, before = self._remembered.get(source, (-math.inf, None))
        if counts == before or now - last < _REMEMBER_EVERY:
            return False
        self._remembered[source] = now, counts
        self._remembered.move_to_end(source)
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return True


@contextmanager
def open_edge(config: ServeConfig, also: Mapping[str, State] = MappingProxyType({})) -> Iterator[Edge]:
    """Within the block a server's parts are at work.

    Args:
        config: of the server.
        also: what else changes that is shown here; see `Events`.

    Raises:
        ConfigError: no model is named, and none was used before; or a public address without a password.
        ManyeyesError: a model, the history or the state folder cannot be used.
    """
    if config.public and not Access(config.state).guarded:
        raise ConfigError(
            f"{config.host} can be reached by other machines, and there is no password",
            key="host",
            cure=f"Set one with `manyeyes access password --state {config.state}`, or listen on 127.0.0.1.",
        )
    with one_process(
        config.state,
        otherwise="another server uses this state folder already",
        cure="Stop it first, or name another folder with --state.",
    ):
        yield from _opened(config, also)


def _opened(config: ServeConfig, also: Mapping[str, State]) -> Iterator[Edge]:
    registry = Registry(config.state / MODELS)
    chosen = [registry.add(config.model).hash] if config.model else _last_used(registry)
    night, second = _night(config, registry), _second(config, registry)
    models: dict[Held, str | None] = {"night": night.model if night else None, "second opinion": second}
    registry.hold({what: name for what, name in models.items() if name})
    host = Host(registry, partial(_open, config, registry), chosen[0], night, or_else=chosen[1:])
    with ExitStack() as stack:
        history = History(config.state, config.limits.history)
        stack.callback(history.close)
        yield Edge(config, registry, host, history, stack, also, second)


def _last_used(registry: Registry) -> list[str]:
    """The model in use, and those used before it."""
    if used := registry.used:
        return used
    registry.check_used()
    raise next(
        iter(registry.damage()),
        ConfigError("no model is named, and none was used before", key="model", cure="manyeyes serve MODEL"),
    )


def _night(config: ServeConfig, registry: Registry) -> Night | None:
    if config.night is None:
        return None
    hours = DayHours.parse(config.night.hours) if config.night.hours else None
    is_night = (lambda: hours.closes(datetime.now()) is not None) if hours else None
    return Night(registry.add(config.night.model).hash, is_night, config.night.darker_than)


def _second(config: ServeConfig, registry: Registry) -> str | None:
    """The model whose disagreement is looked for."""
    wanted = config.review.second_model
    if wanted is None:
        return None
    return registry.entry(wanted).hash if re.fullmatch(MODEL_HASH, wanted) else registry.add(Path(wanted)).hash


def _open(config: ServeConfig, registry: Registry, model: str) -> Engine:
    return open_engine(
        registry.path(model),
        backend=config.backend,
        precision=config.precision,
        threads=config.threads,
        imgsz=config.imgsz,
        measured=registry.measured,
    )
