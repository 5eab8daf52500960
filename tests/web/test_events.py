"""What a page is told of changes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.sync.client import ClientConnection, connect

from manyeyes.web.events import Events

from .conftest import Server

API = "/api/v1"


@contextmanager
def listening(server: Server) -> Iterator[ClientConnection]:
    with connect(f"{server.address.replace('http', 'ws')}{API}/events", proxy=None) as there:
        assert json.loads(there.recv(timeout=10))["event"] == "hello"
        yield there


def told(there: ClientConnection, name: str) -> None:
    """Wait for an event; others may come before it."""
    until = time.monotonic() + 20
    while json.loads(there.recv(timeout=until - time.monotonic()))["event"] != name:
        pass


def test_a_page_is_told_what_changes(server: Server, another_model: Path, pictures: list[Path]) -> None:
    with listening(server) as one, listening(server) as other:
        server.client.post(f"{API}/detect", content=pictures[0].read_bytes()).raise_for_status()
        for there in (one, other):
            told(there, "history")
        second = server.edge.registry.add(another_model).hash
        told(one, "model")
        server.client.post(f"{API}/models/{second}/use").raise_for_status()
        told(one, "model")
        server.client.post(f"{API}/jobs", content=b"no archive")
        server.client.post(f"{API}/streams", json={"name": "gate", "source": "7"}).raise_for_status()
        told(one, "streams")
        server.client.delete(f"{API}/history?before={time.time() + 1}").raise_for_status()
        told(one, "history")


def test_where_nothing_changes_nothing_is_told(server: Server) -> None:
    server.edge.history.flush()
    time.sleep(1)
    with listening(server) as there, pytest.raises(TimeoutError):
        there.recv(timeout=1.5)


def test_a_part_that_cannot_be_asked_silences_no_other(caplog: pytest.LogCaptureFixture) -> None:
    numbers = iter(range(10**6))

    def fails() -> int:
        raise OSError("gone")

    with Events({"broken": fails, "good": lambda: next(numbers)}) as events:
        time.sleep(1.2)
        assert set(events._changes) == {"good"}
