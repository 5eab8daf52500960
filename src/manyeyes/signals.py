"""Ctrl-C and SIGTERM as a question that long work asks itself, so that nothing ends in the middle."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Stop", "stop_signals"]

Stop = Callable[[], str | None]
"""The name of the signal that asks the work to stop, or None."""


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Within the block Ctrl-C and SIGTERM are remembered, not obeyed; a second Ctrl-C ends at once.

    Yields a function that returns the name of the signal, or None.
    """
    caught: list[str] = []

    def remember(number: int, frame: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
