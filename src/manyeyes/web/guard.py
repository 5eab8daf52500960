"""What every request goes through before a page of ours sees it: where it comes from, how large it is, how slow it is.

A plain ASGI middleware. It asks for no secrets: who somebody is, `access.py` knows, and each route says what it needs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CSRF_HEADER", "Guard", "Rules", "problem"]

CSRF_HEADER = "x-manyeyes"
"""A page sends it with whatever changes something; a form of another site cannot."""

_DIGITS = 20
# RFC 9110, section 7.2; nothing else that some parser of addresses would read as one.
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::[0-9]{0,5})?")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_JSON_BYTES = 64 * 1024
# Whoever sends less in a second, when all of a body is looked at, keeps a place that others need.
_SLOWEST = 10_000
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Rules:
    """What is let through.

    Attributes:
        names: host names and addresses it is reached by, beside those of this machine's loopback.
        secure: whether it speaks TLS.
        body_bytes: most bytes of a body, by path; others may have 64 KiB.
        on_disk: paths whose bodies are written to the disk as they come.
        memory_bytes: most bytes of all other bodies that are there at a time; None for any number.
        patience: seconds without anything coming in after which a request ends; 10 kB of its body allow one more.
        any_address: whether every IP address is a name of it: it listens on all of this machine's.
    """

    names: Collection[str] = ()
    secure: bool = False
    body_bytes: Mapping[str, int] = field(default_factory=dict)
    on_disk: Collection[str] = ()
    memory_bytes: int | None = None
    patience: float = 30.0
    any_address: bool = False

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server. A page elsewhere can make its own name point here."""
        name = _host_name(host)
        if name is None:
            return False
        return name in _LOOPBACK_NAMES or name in self.names or (self.any_address and _is_address(name))


class Guard:
    """The middleware.

    Args:
        app: what it guards.
        rules: what it lets through.
    """

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refused = self._refused(scope)
        if scope["type"] == "websocket":
            if refused:
                await send({"type": "websocket.close", "code": 1008, "reason": refused[1]})
            else:
                await self._app(scope, receive, send)
            return
        headed = _with_headers(send, secure=self._rules.secure)
        if refused:
            await _answer(headed, *refused)
            return
        body = _Body(receive)
        try:
            await self._app(scope, self._counted(scope, body), headed)
        finally:
            if scope["path"] not in self._rules.on_disk:
                self._held -= body.seen

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._rules.knows(hosts[0]):
            return 421, "is not a name of this server; start it with --name NAME to be reached by it"
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, hosts[0]):
            return 403, "comes from a page of another server"
        if scope["type"] == "websocket" or scope["method"] in _READING:
            return None
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "comes from a page of another server"
        from_browser = origin is not None or "cookie" in headers or "sec-fetch-site" in headers
        if from_browser and CSRF_HEADER not in headers:
            return 403, f"needs the header {CSRF_HEADER}, which a page of another server cannot send"
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            return 400, "has no sensible Content-Length"
        if len(length) > _DIGITS or int(length) > self._most(scope):
            return 413, _too_large(self._most(scope))
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        scheme = "https" if self._rules.secure else "http"
        return origin == f"{scheme}://{host}"

    def _most(self, scope: Scope) -> int:
        return self._rules.body_bytes.get(scope["path"], _JSON_BYTES)

    def _counted(self, scope: Scope, body: _Body) -> Receive:
        most, patience = self._most(scope), self._rules.patience
        in_memory = scope["path"] not in self._rules.on_disk

        async def counted() -> Message:
            if body.arrived:  # what comes now is that the other side has gone, and may take as long as the answer
                return await body.receive()
            left = min(patience, body.began + patience + body.seen / _SLOWEST - time.monotonic())
            try:
                message = await asyncio.wait_for(body.receive(), left)
            except TimeoutError as error:
                raise HTTPException(408, f"comes too slowly: it was waited for {patience:g} seconds") from error
            piece = len(message.get("body", b""))
            body.seen += piece
            body.arrived = not message.get("more_body", False)
            if in_memory:
                self._held += piece
                if self._rules.memory_bytes is not None and self._held > self._rules.memory_bytes:
                    raise HTTPException(503, "too much comes in at a time", {"Retry-After": "1"})
            if body.seen > most:
                raise HTTPException(413, _too_large(most))
            return message

        return counted


@dataclass(slots=True)
class _Body:
    """What has come of a request's body."""

    receive: Receive
    began: float = field(default_factory=time.monotonic)
    seen: int = 0
    arrived: bool = False


def problem(reason: str, cure: str | None = None) -> bytes:
    """The body of every answer that is an error."""
    return json.dumps({"reason": reason, "cure": cure}, ensure_ascii=False).encode("utf-8", "replace")


def _too_large(most: int) -> str:
    return f"is larger than {most / 1e6:g} MB"


def _with_headers(send: Send, *, secure: bool) -> Send:
    async def headed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if secure:
                headers.setdefault("strict-transport-security", "max-age=31536000")
        await send(message)

    return headed


async def _answer(send: Send, status: int, reason: str) -> None:
    body = problem(reason)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _host_name(host: str) -> str | None:
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
