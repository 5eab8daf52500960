"""HTTP servers that run beside the work of a command, in threads of their own."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from manyeyes.errors import ResourceError

__all__ = ["LOOPBACK", "listen", "serving"]

LOOPBACK = "127.0.0.1"


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
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
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
