"""What the tests of the round loop share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .lanes import Clock, Lanes, Seconds
from .linear import clients


@pytest.fixture
def lanes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Lanes]:
    """Makes a transport with a clock of its own, which is the round loop's too."""

    def make(seconds: Seconds, nodes: str = "ABC") -> Lanes:
        clock = Clock()
        monkeypatch.setattr("manyeyes.federation.rounds.time", clock)
        return Lanes(clients(tmp_path / "nodes", nodes=nodes), clock, seconds)

    return make
