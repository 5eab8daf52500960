"""Who may use a network when: one picture alone, or several side by side, in the order they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turns"]


class _Turn:
    def __init__(self, insists: bool) -> None:
        self.insists, self.alone = insists, False
        self.granted = threading.Event()


class Turns:
    """Grants turns in the order they are asked for.

    Who finds nobody else gets the network alone, which is the quickest for one picture. Where several wait they get it
    side by side, which is the quickest for all.

    Args:
        side_by_side: how many may have it together; 1 for one after the other.
    """

    def __init__(self, side_by_side: int) -> None:
        self._most = side_by_side
        self._lock = threading.Lock()
        self._waiting: deque[_Turn] = deque()
        self._alone, self._beside = False, 0

    @contextmanager
    def turn(self, *, alone: bool = False) -> Iterator[bool]:
        """Wait for a turn and have it; whether it is alone.

        Args:
            alone: it must be.
        """
        turn = _Turn(alone)
        with self._lock:
            self._waiting.append(turn)
            self._grant()
        try:
            turn.granted.wait()
            yield turn.alone
        finally:
            with self._lock:
                self._end(turn)
                self._grant()

    def _grant(self) -> None:
        while self._waiting and not self._alone and self._beside < self._most:
            turn = self._waiting[0]
            turn.alone = self._beside == 0 and (turn.insists or self._most == 1 or len(self._waiting) == 1)
            if turn.insists and not turn.alone:
                return
            self._alone = turn.alone
            self._beside += not turn.alone
            self._waiting.popleft()
            turn.granted.set()

    def _end(self, turn: _Turn) -> None:
        if not turn.granted.is_set():  # interrupted while it waited
            self._waiting.remove(turn)
        elif turn.alone:
            self._alone = False
        else:
            self._beside -= 1
