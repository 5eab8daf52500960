"""Keeps the report of a run up to date while the run goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from manyeyes.report.runlog import Event

__all__ = ["ReportKeeper"]

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN = 60.0
# Drawing may take no more than a twentieth of one core.
_REST = 20.0


class ReportKeeper:
    """A listener for `RunLog` that writes the results again after a round, and a context manager that ends with it.

    It writes in a thread of its own, at most once a minute, so that no round waits for it. It never raises into the
    run: what cannot be written is logged, and the next round tries again.

    Args:
        folder: the run's.
        write: writes everything that is made of the folder's run log.
        every: least seconds between two reports.
    """

    def __init__(self, folder: Path, write: Callable[[Path], object], every: float = _SECONDS_BETWEEN) -> None:
        self._folder, self._write, self._every = folder, write, every
        self._due_at = 0.0
        self._began = False
        self._wanted = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._keep_writing, name="manyeyes-report", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._wanted.set()
        self._thread.join()
        if self._began:
            self._write_guarded()

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        self._began = True
        if event["event"] == "round_finished" and time.monotonic() >= self._due_at:
            self._wanted.set()

    def _keep_writing(self) -> None:
        while self._wanted.wait() and not self._ended:
            self._wanted.clear()
            began = time.monotonic()
            self._write_guarded()
            ended = time.monotonic()
            self._due_at = ended + max(self._every, _REST * (ended - began))

    def _write_guarded(self) -> None:
        try:
            self._write(self._folder)
        except Exception:  # noqa: BLE001 - hours of training must not end because a page could not be drawn
            _log.warning("The report could not be written; the run goes on.", exc_info=True)
