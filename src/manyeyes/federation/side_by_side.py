"""Rows of a run trained at the same time, each in a process of its own.

Two threads on one small step wait for each other more than they work; two processes with a thread each do not. The
rows of a table need nothing of each other, so they are the natural parts. A process is begun afresh (never forked:
torch's threads do not survive that), is handed its job as bytes, and sends back its events in order over one pipe.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event as Flag
from typing import Any

from manyeyes.errors import Interrupted, ManyeyesError, RunError
from manyeyes.federation.child import begin, how_it_ended, settle
from manyeyes.report.runlog import Emit
from manyeyes.signals import Stop

__all__ = ["Job", "run_side_by_side"]

Job = Callable[[Emit, Stop], None]
"""Trains one row: ``job(emit, stop)``. It can be pickled; it raises Interrupted soon after `stop` names a signal."""

# How long one wait for events lasts before the signals are looked at again, in seconds.
_POLL = 0.2


def run_side_by_side(jobs: Mapping[str, Job], at_once: int, emit: Emit, stop: Stop) -> None:
    """Run every job, at most `at_once` at the same time, begun in the order they are given.

    Where one fails the others are asked to stop, so that all that is finished is kept. No process outlives the call.

    Args:
        jobs: name of a row → what trains it.
        at_once: most processes at a time.
        emit: told of every event of every job, those of one job in order.
        stop: asked several times a second.

    Raises:
        Interrupted: `stop` named a signal, which is the error's reason.
        ManyeyesError: what a job refused.
        RunError: a process ended without a word; the system does that where memory runs out.
        RuntimeError: a defect of ours in a job; holds its traceback.
    """
    context = multiprocessing.get_context("spawn")
    asked = context.Event()
    waiting = dict(jobs)
    running: dict[Connection, _Worker] = {}
    failures: list[Exception] = []
    signal_name: str | None = None
    try:
        while running or (waiting and not asked.is_set()):
            while waiting and len(running) < at_once and not asked.is_set():
                row = next(iter(waiting))
                worker = _Worker(context, row, waiting.pop(row), asked)
                running[worker.events] = worker
            for events in wait(list(running), timeout=_POLL):
                assert isinstance(events, Connection)
                failure = running[events].take(emit)
                if running[events].ended:
                    del running[events]
                if failure:
                    failures.append(failure)
            signal_name = signal_name or stop()
            if signal_name or failures:
                asked.set()
    finally:
        for worker in running.values():
            worker.kill()
    defects = [failure for failure in failures if not isinstance(failure, Interrupted)]
    if defects:
        raise defects[0]
    if signal_name:
        raise Interrupted(signal_name)


class _Worker:
    """A process that runs one job, seen from outside."""

    def __init__(self, context: multiprocessing.context.SpawnContext, row: str, job: Job, asked: Flag) -> None:
        self.events, theirs = context.Pipe()
        self.ended = False
        self._row, self._job = row, job
        self._process: SpawnProcess = context.Process(
            target=_work, args=(theirs, asked), name=f"manyeyes {row}", daemon=True
        )
        begin(self._process)
        theirs.close()  # so that the pipe ends when the process does

    def take(self, emit: Emit) -> Exception | None:
        """Pass on what it sent; returns what it failed with."""
        try:
            kind, content = self.events.recv()
        except (EOFError, OSError):
            self._close()
            return self._lost()
        if kind == "begun":
            # One that has ended meanwhile is found out when more is waited for.
            with suppress(OSError):
                self.events.send(self._job)
            return None
        if kind == "event":
            name, fields = content
            emit(name, **fields)
            return None
        self._close()
        if kind == "done":
            return None
        return content if isinstance(content, ManyeyesError) else RuntimeError(f"row {self._row} failed\n{content}")

    def kill(self) -> None:
        """End it at once; what it has on disk is whole, since files are written atomically."""
        self._process.kill()
        self._close()

    def _close(self) -> None:
        self.ended = True
        self._process.join()
        self.events.close()

    def _lost(self) -> RunError:
        return RunError(
            f"the process of row {self._row} ended without a word ({how_it_ended(self._process.exitcode)})",
            key="rows_at_once",
            cure="Where memory is short the system ends processes: set rows_at_once to 1 and resume.",
        )


def _work(events: Connection, asked: Flag) -> None:
    """The process of one row. Signals of the terminal reach it too, but whether to stop is the main process's word."""
    settle()

    def tell(kind: str, content: Any) -> None:
        try:
            events.send((kind, content))
        except OSError as error:
            raise Interrupted("the main process of the run is gone") from error

    def emit(event: str, **fields: Any) -> None:
        tell("event", (event, fields))

    try:
        tell("begun", None)
        job: Job = events.recv()
        job(emit, lambda: "stop" if asked.is_set() else None)
        tell("done", None)
    except ManyeyesError as error:
        tell("failed", error)
    except Exception:  # noqa: BLE001 - the main process raises it, with this traceback
        tell("failed", traceback.format_exc())
