"""A node's place in a federation: greet, let Flower's SuperNode in, answer, and stay whatever happens meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from manyeyes.errors import ConfigError, ResourceError, RunError
from manyeyes.federation.audit import AuditLog
from manyeyes.federation.deployment import supernode
from manyeyes.federation.flower import deactivation
from manyeyes.federation.flower_node import Answer, serve_requests
from manyeyes.federation.hello import Greeter, Work
from manyeyes.federation.keys import NODE_KEY
from manyeyes.one_process import one_process

__all__ = ["Place", "Watcher", "claimed", "serve"]

_REST_SECONDS = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Whose place it is, and where.

    Attributes:
        node_id: what the node calls itself.
        host, port: of the coordinator.
        authority: certificate of the coordinator's authority.
        folder: the node's state folder, which holds its key.
        patience: seconds without anything of a request coming in after which it is given up.
    """

    node_id: str
    host: str
    port: int
    authority: Path
    folder: Path
    patience: float = 60.0

    @property
    def address(self) -> str:
        """host:port of the coordinator."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _nothing(_: object) -> None:
    """Nobody looks."""


@dataclass(frozen=True, slots=True)
class Watcher:
    """What a site wants to know of its node, and may decide.

    Attributes:
        waits: told what keeps the node out, in words for the site's own people; None when it is in.
        away: asked between requests; while it says until when, the node asks for no more of them, and tells the
            coordinator these words.
        received: told the length of each request before it is looked at; what it raises is the answer.
        refused: told why a request is refused.
    """

    waits: Callable[[str | None], None] = _nothing
    away: Callable[[], str | None] = lambda: None
    received: Callable[[int], None] = _nothing
    refused: Callable[[Exception], None] = _nothing


@contextmanager
def claimed(place: Place) -> Iterator[AuditLog]:
    """The audit log of a node; within the block no other process of this machine serves its folder.

    Raises:
        ConfigError: no key.
        ResourceError: another process serves this folder, or it cannot be written.
        RunError: the audit log was changed.
    """
    if not (place.folder / NODE_KEY).exists():
        raise ConfigError(
            "this node has no key",
            file=place.folder / NODE_KEY,
            cure=f"manyeyes node init --node-id {place.node_id} --folder {place.folder}",
        )
    with one_process(
        place.folder, otherwise="another process serves this node already", cure="Stop it first: one key, one process."
    ):
        yield AuditLog(place.folder)


def serve(
    place: Place,
    audit: AuditLog,
    answer: Answer,
    stop: Callable[[], str | None],
    *,
    ready: Callable[[], None],
    watcher: Watcher | None = None,
) -> None:
    """Join a coordinator and answer what it asks until `stop` names a signal.

    Args:
        place: of the node; `claimed`.
        audit: told of everything before it leaves.
        answer: called with each request.
        stop: asked several times a second.
        ready: called when the node is about to join.
        watcher: told what happens.

    Raises:
        ConfigError: key or authority cannot be used; or, before the coordinator was met once, it is not of this
            authority, its certificate is for other names, or it knows this node by another name.
        ProtocolError: before it was met once, it follows another version.
        ResourceError: others can read the key.
    """
    watcher = watcher or Watcher()
    work = Work()
    greeter = Greeter(place.node_id, place.host, place.port, place.authority, place.folder, work)
    node = _Node(place, audit, answer, stop, greeter, work, watcher)
    ready()
    while not stop():
        node.join_once()
        _rest(stop)
    greeter.goodbye()


@dataclass(frozen=True, slots=True)
class _Node:
    place: Place
    audit: AuditLog
    answer: Answer
    stop: Callable[[], str | None]
    greeter: Greeter
    work: Work
    watcher: Watcher

    def join_once(self) -> None:
        """Join and serve while it lasts; returns at once where that is not possible now."""
        if self.watcher.away():
            return
        joined = self.greeter.joined()
        # Without a number Flower does not know this node yet: the coordinator is about to tell it.
        if joined and self.greeter.number is not None:
            self._serve_while_it_lasts(self.greeter.number)
        else:
            self.watcher.waits(self.greeter.complaint or "the coordinator has not taken this node in yet")

    def _serve_while_it_lasts(self, number: int) -> None:
        place, greeter, began = self.place, self.greeter, time.monotonic()

        def over() -> bool:
            # Another number is that of another database: to this one the SuperNode that runs is a stranger. And one
            # that was cut off in the middle of a handshake gives up, but does not end.
            lost = greeter.number != number or greeter.unheard(began)
            return lost or self.stop() is not None or self.watcher.away() is not None

        try:
            # A SuperNode that was killed counts as online for a minute, and nobody else is let in meanwhile.
            greeter.post(*deactivation(number))
            with supernode(place.folder, place.address, place.authority) as address, greeter.watching():
                self.watcher.waits(None)
                serve_requests(
                    address,
                    self.answer,
                    self.audit,
                    over,
                    self.work,
                    patience=place.patience,
                    received=self.watcher.received,
                    refused=self.watcher.refused,
                )
        except (RunError, ResourceError) as error:
            # Flower's process ends when it is refused, and the disk may be full for a while; the node stays.
            _log.warning("%s; trying again", error)
            self.watcher.waits(str(error))
        if away := self.watcher.away():
            greeter.goodbye(away)


def _rest(stop: Callable[[], str | None]) -> None:
    ends = time.monotonic() + _REST_SECONDS
    while time.monotonic() < ends and not stop():
        time.sleep(0.2)
