"""What a page is told of changes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from manyeyes.web.access import Role
from manyeyes.web.events import Events

from .conftest import OWN, Server

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


def until_closed(there: ClientConnection) -> None:
    while True:
        there.recv(timeout=15)


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


def test_whose_session_or_pass_has_ended_is_told_no_more(server: Server) -> None:
    access = server.edge.access
    access.set_password(Role.viewer, "only looking here")
    name = f"manyeyes={access.begin_session(Role.viewer)}"
    session, pass_ = {"cookie": name}, {"authorization": f"Bearer {access.make_token('robot', Role.viewer)}"}
    other = {"cookie": f"manyeyes={access.begin_session(Role.viewer)}"}
    with ExitStack() as stack:

        def opened(path: str, headers: dict[str, str]) -> ClientConnection:
            address = f"{server.address.replace('http', 'ws')}{API}/{path}"
            return stack.enter_context(connect(address, proxy=None, additional_headers=headers))

        ending = [opened(path, headers) for path in ("events", "live") for headers in (session, pass_)]
        staying = opened("live", other)
        server.client.post(f"{API}/logout", headers={**session, **OWN}).raise_for_status()
        access.revoke_token("robot")
        for there in ending:
            with pytest.raises(ConnectionClosed):
                until_closed(there)
            assert there.close_code == 1008
        with pytest.raises(TimeoutError):
            staying.recv(timeout=3)


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
