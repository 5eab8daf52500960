"""The simulation engine: virtual nodes on one machine, several at work at a time, each in a process of its own.

A node exists while it works: a process is handed its name and a request, makes it, lets it answer and forgets it. So
memory depends on the number of processes, not on how many nodes there are; what a node keeps from round to round lies
in its folder. Merging does not depend on the order of answers, so with pinned threads a run ends in the bits of the
local engine, with however many processes.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from manyeyes.datasets.sample import Dataset
from manyeyes.errors import ManyeyesError, ProtocolError, RunError
from manyeyes.federation.child import begin, how_it_ended, settle
from manyeyes.federation.client import Client
from manyeyes.federation.messages import EVALUATE
from manyeyes.federation.transport import Record, Reply, Request
from manyeyes.learners.learner import Learner

__all__ = ["OpenNode", "SimulationTransport", "SiteNodes", "VirtualNodes"]

OpenNode = Callable[[str], Client]
"""Makes a node by its name, in another process; can be pickled."""

# A crash may be chance, and the round need not miss this node for it. Twice is no chance.
_ATTEMPTS = 2

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
        self._workers: dict[Connection, _Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self._workers.values():
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
        ends = None if timeout is None else time.monotonic() + timeout
        replies: list[Reply] = []
        self._hand_out()
        while not replies and self._at_work():
            left = None if ends is None else max(0.0, ends - time.monotonic())
            heard = wait(list(self._workers), left)
            if not heard:
                break
            for connection in heard:
                assert isinstance(connection, Connection)
                # An idle one that has ended may be gone by now: it was offered the request of one before it.
                if worker := self._workers.get(connection):
                    replies += self._hear(worker)
            self._hand_out()
        return replies

    def cancel(self, request_ids: Sequence[str]) -> list[str]:
        """Take back what no node has begun."""
        asked = frozenset(request_ids)
        unbegun = [request.request_id for request in self._waiting.values() if request.request_id in asked]
        self._waiting = {n: request for n, request in self._waiting.items() if request.request_id not in asked}
        return unbegun

    def _at_work(self) -> set[str]:
        return {worker.request.node_id for worker in self._workers.values() if worker.request}

    def _hand_out(self) -> None:
        at_work = self._at_work()
        if not self._waiting or len(at_work) >= self._processes:
            return
        # A node does one thing at a time, as a real one does.
        ready = [request for node, request in self._waiting.items() if node not in at_work]
        # Everything waits for a round's tests, whereas fits may be for rounds yet to come.
        ready.sort(key=lambda request: request.kind != EVALUATE)
        for request in ready[: self._processes - len(at_work)]:
            self._give(self._waiting.pop(request.node_id), attempt=1)

    def _give(self, request: Request, attempt: int) -> None:
        for worker in [worker for worker in self._workers.values() if worker.request is None]:
            try:
                worker.give(request, attempt)
            except OSError:
                self._end(worker)
            else:
                return
        worker = _Worker(self._context, self._open_node)
        self._workers[worker.connection] = worker
        worker.give(request, attempt)

    def _hear(self, worker: _Worker) -> list[Reply]:
        """The answer, if it is one that a process has to say."""
        try:
            reply = worker.hear()
        except (EOFError, OSError):
            return self._lost(worker)
        return [reply] if reply else []

    def _lost(self, worker: _Worker) -> list[Reply]:
        """A process has ended: another begins its request anew, if there was one and it is worth it."""
        how = self._end(worker)
        if worker.request is None:
            return []
        if worker.attempt < _ATTEMPTS:
            _log.warning("%s is asked again: its process ended without a word (%s)", worker.request.node_id, how)
            self._give(worker.request, worker.attempt + 1)
            return []
        cure = "where memory is short, lower federation.simulation.processes"
        return [worker.reply(None, f"its process ended without a word, twice ({how}); {cure}", 0)]

    def _end(self, worker: _Worker) -> str:
        how = worker.kill()
        del self._workers[worker.connection]
        return how


class _Worker:
    """A process in which one node after the other works, seen from outside.

    Attributes:
        connection: to it; what comes is for `hear`.
        request: what it is at, or will be when it is ready; None while it is idle.
        attempt: which one at that request, from 1.
    """

    def __init__(self, context: SpawnContext, open_node: OpenNode) -> None:
        self.connection, theirs = context.Pipe()
        self.request: Request | None = None
        self.attempt = 0
        self._open_node, self._ready, self._bytes_down = open_node, False, 0
        self._process: SpawnProcess = context.Process(target=_work, args=(theirs,), name="manyeyes node", daemon=True)
        begin(self._process)
        theirs.close()  # so that the pipe ends when the process does

    def give(self, request: Request, attempt: int) -> None:
        """Send a request, now or as soon as the process is ready, which takes it seconds.

        Raises:
            OSError: the process has ended.
        """
        if self._ready:
            self._send(request)
        self.request, self.attempt = request, attempt

    def hear(self) -> Reply | None:
        """Take what the process says; returns the answer if it is that.

        Raises:
            EOFError, OSError: the process has ended.
        """
        kind, content = self.connection.recv()
        if kind == "begun":
            self.connection.send(self._open_node)
            return None
        if kind == "ready":
            self._ready = True
            if self.request:
                self._send(self.request)
            return None
        if kind == "failed":
            reply = self.reply(None, content, 0)
        else:
            reply = self.reply(Record.from_bytes(content), None, len(content))
        self.request = None
        return reply

    def reply(self, record: Record | None, error: str | None, bytes_up: int) -> Reply:
        """The reply to the request that it is at."""
        assert self.request
        return Reply(
            self.request.request_id,
            self.request.node_id,
            record,
            error=error,
            bytes_down=self._bytes_down,
            bytes_up=bytes_up,
        )

    def kill(self) -> str:
        """End it; returns how it ended."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        return how_it_ended(self._process.exitcode)

    def _send(self, request: Request) -> None:
        data = request.record.to_bytes()
        self._bytes_down = len(data)
        self.connection.send((request.request_id, request.node_id, request.kind, data))


def _work(connection: Connection) -> None:
    """A process of the simulation, which asks for what it needs: a parent that sent it at once would have to wait."""
    settle()
    with suppress(EOFError, OSError):
        connection.send(("begun", None))
        open_node: OpenNode = connection.recv()
        connection.send(("ready", None))
        while True:
            request_id, node, kind, data = connection.recv()
            connection.send(_answer(open_node, Request(request_id, node, kind, Record.from_bytes(data))))


def _answer(open_node: OpenNode, request: Request) -> tuple[str, Any]:
    try:
        return "answer", open_node(request.node_id).handle(request).to_bytes()
    except ManyeyesError as error:
        return "failed", str(error)
    except Exception as error:  # noqa: BLE001 - one node's defect must not end the others' round; it is told and logged
        _log.error("%s", traceback.format_exc())
        return "failed", f"{type(error).__name__}: {error}"


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
