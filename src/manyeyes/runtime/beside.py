"""Engines that are opened beside those in use, so that somebody can see what another model would find."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from manyeyes.runtime.engine import Engine

__all__ = ["Beside"]

_MOST = 2


class Beside:
    """At most two engines; the one that was asked for least recently makes room.

    Args:
        opener: opens a model by its hash; raises `ManyeyesError` where it cannot.
    """

    def __init__(self, opener: Callable[[str], Engine]) -> None:
        self._opener = opener
        self._engines: OrderedDict[str, Engine] = OrderedDict()
        self._lock = threading.Lock()

    def engine(self, model: str) -> Engine:
        """The engine of a model; others wait while it is opened.

        Raises:
            ManyeyesError: it cannot be opened.
        """
        with self._lock:
            engine = self._engines.pop(model, None)
            if engine is None:
                if len(self._engines) >= _MOST:  # before, so that there are never three
                    self._engines.popitem(last=False)
                engine = self._opener(model)
            self._engines[model] = engine
            return engine
