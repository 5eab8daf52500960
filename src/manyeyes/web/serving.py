"""HTTP servers that run beside the work of a command, in threads of their own."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from manyeyes.errors import ResourceError

__all__ = ["LOOPBACK", "listen", "serving"]

LOOPBACK = "127.0.0.1"
_HEAD_BYTES = 64 * 1024


class _Protocol(H11Protocol):
    """HTTP that waits only so long: for the head of a request, for the rest of a body that nobody wants, for a reader.

    Of uvicorn's two parsers it is the one that is always there, and the one that limits how long a head may be.
    """

    patience = 30.0
    _timer: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        before = self.conn.their_state
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            if before is not h11.IDLE:
                self._wait_no_more()
            self._wait()
        elif self.cycle is None or not self.cycle.response_complete:
            self._wait_no_more()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        if self._reader is not None:
            self._reader.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.patience, self.transport.close)

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def listen(host: str, port: int, *, key: str) -> socket.socket:
    """The socket that a server is given; port 0 takes a free one.

    Args:
        host: address of this machine to listen on.
        port: there.
        key: of the configuration, that the port comes from.

    Raises:
        ResourceError: the address is in use, not this machine's, or may not be used.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ResourceError(
            f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)})",
            key=key,
            cure="Choose another port, or stop what uses this one.",
        ) from error


@contextmanager
def serving(
    app: Any,
    listener: socket.socket,
    name: str,
    *,
    tls: ssl.SSLContext | None = None,
    grace: int = 2,
    connections: int | None = None,
    message_bytes: int | None = None,
    patience: float = _Protocol.patience,
) -> Iterator[None]:
    """Within the block an ASGI application answers on a socket.

    Args:
        app: what answers.
        listener: from `listen`; closed at the end.
        name: of the thread.
        tls: with which certificate; None speaks plainly.
        grace: seconds that requests may take to end when the block is left.
        connections: so many at a time; None for any number.
        message_bytes: largest message of a WebSocket; None speaks none.
        patience: seconds that the head of a request may take, and that an answer may wait until some of it is read.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        http=type("Protocol", (_Protocol,), {"patience": patience}),
        h11_max_incomplete_event_size=_HEAD_BYTES,
        # Of the two that the library websockets has, this one lets a sender wait.
        ws="none" if message_bytes is None else "websockets-sansio",
        ws_max_size=message_bytes or 0,
        ws_per_message_deflate=False,
        # Whoever is near may say that it speaks for another: guesses are counted by address.
        proxy_headers=False,
        limit_concurrency=connections,
        timeout_graceful_shutdown=grace,
        ssl_context_factory=(lambda *_: tls) if tls else None,
    )
    server = uvicorn.Server(config)
    # uvicorn takes signals over only in the main thread, and there they are the command's.
    thread = threading.Thread(target=server.run, args=([listener],), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(2.0 * grace)
