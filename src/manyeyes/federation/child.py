"""Processes of our own, begun afresh: they leave signals to the main process, and do not outlive it.

What is large is sent to such a process when it says that it has begun, never handed to it as an argument: arguments
go through a pipe that its parent can read too, so that the parent would wait for ever for one that died meanwhile.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread

__all__ = ["begin", "how_it_ended", "settle"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Of a thousand: where memory runs out, the kernel shall take the child before its parent.
_OOM_SCORE = "500"


def begin(process: SpawnProcess) -> None:
    """Start a process whose first act is `settle`. What it is handed must be small."""
    # Started by the process itself, Python's tracker would let signals through again.
    resource_tracker.ensure_running()
    # Ctrl-C reaches every process of a terminal: this one must not hear it before it has said that it will not.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def settle() -> None:
    """In the process: signals are its parent's, which lets what is at hand be finished; its end is the parent's."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    with suppress(OSError):  # there is such a file on Linux alone
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    Thread(target=_end_with_parent, name="end with parent", daemon=True).start()


def how_it_ended(exit_code: int | None) -> str:
    """An exit code as people say it; negative for the signal that ended a process."""
    return signal.Signals(-exit_code).name if exit_code and exit_code < 0 else f"exit code {exit_code}"


def _end_with_parent() -> None:
    """Whatever is at hand is for nobody any more; what is on disk is whole, since files are written atomically."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
