"""The simulation engine: virtual nodes on one machine, several at work at a time, each in a process of its own.

A node exists while it works: a process is handed its name and a request, makes it, lets it answer and forgets it. So
memory depends on the number of processes, not on how many nodes there are; what a node keeps from round to round lies
in its folder. Merging does not depend on the order of answers, so with pinned threads a run ends in the bits of the
local engine, with however many processes.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from manyeyes.datasets.sample import Dataset
from manyeyes.errors import ManyeyesError, ProtocolError, RunError
from manyeyes.federation.client import Client
from manyeyes.federation.transport import Record, Reply, Request
from manyeyes.learners.learner import Learner

__all__ = ["OpenNode", "SimulationTransport", "SiteNodes", "VirtualNodes"]

OpenNode = Callable[[str], Client]
"""Makes a node by its name, in another process; can be pickled."""

_log = logging.getLogger(__name__)


class SimulationTransport:
    """A transport over virtual nodes; a context manager that holds the processes they work in.

    Args:
        nodes: their names.
        open_node: makes one when it has something to do.
        processes: nodes at work at a time.
    """

    def __init__(self, nodes: Sequence[str], open_node: OpenNode, *, processes: int) -> None:
        self._nodes = sorted(nodes)
        self._known = frozenset(nodes)
        self._open_node, self._processes = open_node, processes
        self._context = multiprocessing.get_context("spawn")
        self._waiting: dict[str, Request] = {}
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, _Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in [*self._idle, *self._busy.values()]:
            worker.kill()

    def nodes(self) -> Sequence[str]:
        """Names of the nodes, sorted."""
        return self._nodes

    def send(self, requests: Sequence[Request]) -> None:
        """Queue requests. A new one replaces one that its node has not begun: nobody waits for that any more.

        Raises:
            ProtocolError: a request is for a node that does not exist.
        """
        for request in requests:
            if request.node_id not in self._known:
                raise ProtocolError(f"there is no node {request.node_id!r} here")
            self._waiting.pop(request.node_id, None)
            self._waiting[request.node_id] = request

    def receive(self, timeout: float | None) -> list[Reply]:
        """Let nodes work, and return the answers that came; empty when the time is up, or when none will come."""
        self._hand_out()
        replies = []
        for connection in wait(list(self._busy), timeout) if self._busy else ():
            assert isinstance(connection, Connection)
            worker = self._busy.pop(connection)
            replies.append(worker.take())
            if worker.alive:
                self._idle.append(worker)
        self._hand_out()
        return replies

    def cancel(self, request_ids: Sequence[str]) -> list[str]:
        """Take back what no node has begun."""
        asked = frozenset(request_ids)
        unbegun = [request.request_id for request in self._waiting.values() if request.request_id in asked]
        self._waiting = {n: request for n, request in self._waiting.items() if request.request_id not in asked}
        return unbegun

    def _hand_out(self) -> None:
        at_work = {worker.node for worker in self._busy.values()}
        # A node does one thing at a time, as a real one does.
        ready = [request for node, request in self._waiting.items() if node not in at_work]
        ready = ready[: self._processes - len(self._busy)]
        # All begin before the first is handed anything: they need seconds to be ready, side by side.
        while len(self._idle) < len(ready):
            self._idle.append(_Worker(self._context, self._open_node))
        for request in ready:
            worker = self._idle.pop()
            worker.give(self._waiting.pop(request.node_id))
            self._busy[worker.connection] = worker


class _Worker:
    """A process in which one node after the other works, seen from outside."""

    def __init__(self, context: SpawnContext, open_node: OpenNode) -> None:
        self.connection, theirs = context.Pipe()
        self.alive = True
        self._process: SpawnProcess = context.Process(
            target=_work, args=(open_node, theirs), name="manyeyes node", daemon=True
        )
        self._process.start()
        theirs.close()  # so that the pipe ends when the process does
        self._request = Request("", "", "", Record())
        self._bytes_down = 0

    @property
    def node(self) -> str:
        """Whose request it is at."""
        return self._request.node_id

    def give(self, request: Request) -> None:
        data = request.record.to_bytes()
        # The arrays of a round's model need not stay in memory once for each that works on them.
        self._request = Request(request.request_id, request.node_id, request.kind, Record())
        self._bytes_down = len(data)
        try:
            self.connection.send((request.request_id, request.node_id, request.kind))
            self.connection.send_bytes(data)
        except OSError:
            _log.warning("a process of the simulation ended before its request was sent")

    def take(self) -> Reply:
        """What came of the request."""
        try:
            failure = self.connection.recv()
            data = b"" if failure else self.connection.recv_bytes()
        except (EOFError, OSError):
            self.kill()
            failure = f"its process ended without a word (exit code {self._process.exitcode})"
        if failure:
            return self._reply(None, failure, 0)
        return self._reply(Record.from_bytes(data), None, len(data))

    def kill(self) -> None:
        self.alive = False
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _reply(self, record: Record | None, error: str | None, bytes_up: int) -> Reply:
        request = self._request
        return Reply(
            request.request_id,
            request.node_id,
            record,
            error=error,
            bytes_down=self._bytes_down,
            bytes_up=bytes_up,
        )


def _work(open_node: OpenNode, connection: Connection) -> None:
    """A process of the simulation. Signals of the terminal reach it too, but the main process decides when to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            request_id, node, kind = connection.recv()
            record = Record.from_bytes(connection.recv_bytes())
            failure, data = _answer(open_node, Request(request_id, node, kind, record))
            connection.send(failure)
            if failure is None:
                connection.send_bytes(data)
        except (EOFError, OSError):
            return


def _answer(open_node: OpenNode, request: Request) -> tuple[str | None, bytes]:
    try:
        return None, open_node(request.node_id).handle(request).to_bytes()
    except ManyeyesError as error:
        return str(error), b""
    except Exception as error:  # noqa: BLE001 - one node's defect must not end the others' round; it is told and logged
        _log.error("%s", traceback.format_exc())
        return f"{type(error).__name__}: {error}", b""


@dataclass(frozen=True)
class SiteNodes:
    """The sites themselves as nodes; an `OpenNode`.

    Attributes:
        sites: node id → dataset.
        learner: trains and tests; can be pickled.
        folder: where nodes keep what outlives a round.
    """

    sites: Mapping[str, Dataset]
    learner: Learner
    folder: Path

    def __call__(self, node_id: str) -> Client:
        """The node of that name."""
        return Client(node_id, self.learner, self.sites[node_id], self.folder / node_id)


@dataclass(frozen=True)
class VirtualNodes:
    """Many small nodes made of the pictures of a few sites; an `OpenNode`.

    Node number i draws its pictures from site i mod n, by the seed and its own name alone, so each holds the same ones
    in every round and on every machine. Several may hold the same picture.

    Attributes:
        sites: node id → dataset.
        learner: trains and tests; can be pickled.
        folder: where nodes keep what outlives a round.
        count: how many there are.
        pictures: training pictures of each; of a site that has fewer, all. As many to test on, at most.
        seed: of the run.
    """

    sites: Mapping[str, Dataset]
    learner: Learner
    folder: Path
    count: int
    pictures: int
    seed: int

    def names(self) -> list[str]:
        """v00000, v00001, …"""
        return [f"v{number:05d}" for number in range(self.count)]

    def __call__(self, node_id: str) -> Client:
        """The node of that name."""
        return Client(node_id, self.learner, self.data(node_id), self.folder / node_id)

    def data(self, node_id: str) -> Dataset:
        """Its pictures.

        Raises:
            RunError: there is no such node.
        """
        number = int(node_id.removeprefix("v")) if node_id.removeprefix("v").isdecimal() else self.count
        if number >= self.count:
            raise RunError(f"there is no virtual node {node_id!r}")
        site = self.sites[sorted(self.sites)[number % len(self.sites)]]
        draw = np.random.default_rng([self.seed, number])
        splits: dict[str, Any] = {}
        for split in ("train", "val"):
            samples = site.split(split)
            chosen = np.sort(draw.permutation(len(samples))[: self.pictures])
            splits[split] = tuple(samples[index] for index in chosen)
        return Dataset(site.root, site.names, splits, site.annotates)
