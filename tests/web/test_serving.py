"""Connections that keep a place which others need."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from manyeyes.web.serving import LOOPBACK, listen, serving

PATIENCE = 0.6
HEAD = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
ended = threading.Event()


async def small(_: Request) -> Response:
    return Response(b"small")


async def endless(_: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1 << 20)
                await asyncio.sleep(0)
        finally:
            ended.set()

    return StreamingResponse(pieces())


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    app = Starlette(routes=[Route("/", small, methods=["GET", "POST"]), Route("/endless", endless)])
    with listen(LOOPBACK, 0, key="port") as listener, serving(app, listener, "test", patience=PATIENCE, connections=20):
        yield int(listener.getsockname()[1])


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection((LOOPBACK, port), timeout=5) as connection:
        yield connection


def everything(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def test_whoever_says_nothing_is_not_waited_for(port: int) -> None:
    with connected(port) as connection:
        began = time.monotonic()
        assert everything(connection) == b""
        assert PATIENCE * 0.8 < time.monotonic() - began < PATIENCE + 2


def test_whoever_says_a_letter_at_a_time_is_not_waited_for(port: int) -> None:
    with connected(port) as connection:
        sent = 0
        with suppress(ConnectionError):
            for letter in HEAD:
                connection.sendall(bytes([letter]))
                sent += 1
                time.sleep(0.1)
        assert PATIENCE * 8 <= sent <= PATIENCE * 10 + 5


def test_a_connection_is_used_again_and_again(port: int) -> None:
    with connected(port) as connection:
        for _ in range(6):
            connection.sendall(HEAD % b"")
            assert connection.recv(4096).endswith(b"small")
            time.sleep(PATIENCE / 3)


def test_several_requests_at_once_are_answered_one_after_the_other(port: int) -> None:
    with connected(port) as connection:
        connection.sendall(HEAD % b"" * 3)
        time.sleep(0.2)
        assert connection.recv(65536).count(b"small") == 3


def test_a_body_that_nobody_reads_is_let_pass_for_a_while_and_the_answer_is_read(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with connected(port) as connection:
        connection.sendall(head % 500_000 + bytes(500_000))
        time.sleep(0.2)
        assert connection.recv(4096).endswith(b"small")
        connection.sendall(HEAD % b"")
        assert connection.recv(4096).endswith(b"small")
    with connected(port) as connection:
        connection.sendall(head % 500_000 + b"a")
        began = time.monotonic()
        assert everything(connection).endswith(b"small")
        assert time.monotonic() - began < PATIENCE + 2


def test_whoever_does_not_read_the_answer_is_let_go(port: int) -> None:
    ended.clear()
    with connected(port) as connection:
        connection.sendall(HEAD % b"endless")
        assert connection.recv(1000)
        assert ended.wait(PATIENCE + 5)
        with suppress(ConnectionError):
            assert not everything(connection).endswith(b"0\r\n\r\n")  # it was not served to its end


def test_whoever_reads_slowly_is_served(port: int) -> None:
    ended.clear()
    with connected(port) as connection:
        connection.sendall(HEAD % b"endless")
        until = time.monotonic() + 3 * PATIENCE
        while time.monotonic() < until:
            assert connection.recv(1 << 20)
            time.sleep(0.01)
        assert not ended.is_set()


def test_places_that_were_kept_are_free_again(port: int) -> None:
    held = [socket.create_connection((LOOPBACK, port), timeout=5) for _ in range(30)]
    with connected(port) as connection:
        connection.sendall(HEAD % b"")
        assert connection.recv(4096).startswith(b"HTTP/1.1 503 ")
    time.sleep(PATIENCE + 0.5)
    with connected(port) as connection:
        connection.sendall(HEAD % b"")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    for each in held:
        each.close()
