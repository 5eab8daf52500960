"""What has changed at a server, so that a page need not ask again and again.

Nobody has to tell it: it looks at what the parts of a server say of themselves, a few times a second.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Mapping

__all__ = ["Events", "State"]

State = Callable[[], Hashable]
"""What a part of the server looks like now; another value is a change."""

_LOOK_SECONDS = 0.4
_SEND_SECONDS = 0.1

_log = logging.getLogger(__name__)


class Events:
    """Follows the parts of a server from the first that somebody wants to know; within a `with` block.

    Args:
        states: name of each part → what it looks like; asked in a thread of its own.
    """

    def __init__(self, states: Mapping[str, State]) -> None:
        self._states = dict(states)
        self._known: dict[str, Hashable] = {}
        self._changes: Counter[str] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="manyeyes-events", daemon=True)

    def __enter__(self) -> Events:
        self._known = {name: self._state(name) for name in self._states}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Tell nobody any more: whoever listens is left, and may ask anew what there is."""
        self._ended.set()
        self._thread.join(timeout=5)

    async def changed(self) -> AsyncIterator[str]:
        """Names of parts that have changed, each time they do, until it is closed."""
        seen = Counter(self._changes)
        while not self._ended.is_set():
            await asyncio.sleep(_SEND_SECONDS)
            for name, count in list(self._changes.items()):
                if count != seen[name]:
                    seen[name] = count
                    yield name

    def _follow(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            for name, before in self._known.items():
                now = self._state(name)
                if now != before:
                    self._known[name] = now
                    self._changes[name] += 1

    def _state(self, name: str) -> Hashable:
        try:
            return self._states[name]()
        except Exception:  # noqa: BLE001 - one part that cannot be asked now says nothing of the others
            _log.exception("what has changed of %s cannot be told", name)
            return self._known.get(name)
