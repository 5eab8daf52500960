"""The guarded front door: what a coordinator shows to the network.

Flower's SuperLink serves its fleet, control and runtime interfaces on one port, and only the fleet's can be guarded by
keys: whoever reaches the others can start programs. So the SuperLink listens on loopback, and this door, over TLS,
passes on the twelve requests that nodes make and nothing else, and these only with the signature of a key that was
admitted and not revoked. One it answers itself, under the same condition: whether a node may come in. What is refused
is logged with its reason and sender, never with what it carried.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import uvicorn
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from manyeyes.errors import ResourceError
from manyeyes.federation.admission import Member, Members
from manyeyes.federation.keys import SERVER
from manyeyes.federation.messages import PROTOCOL_VERSION
from manyeyes.federation.presence import Presence

__all__ = ["FLEET_PATHS", "HELLO_PATH", "KEY_HEADER", "SIGNATURE_HEADER", "TIME_HEADER", "Door", "serve_door"]

FLEET_PATHS = tuple(
    f"/v1/fleet/{name}"
    for name in (
        "register-node",
        "activate-node",
        "deactivate-node",
        "unregister-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""All that a node of Flower 1.41 asks for."""

HELLO_PATH = "/v1/manyeyes/hello"
"""Answered by the door: by which name it knows the node that asks, and the protocol version it follows."""

# As Flower names and signs them: the signature is of the time, which may be this far from ours.
KEY_HEADER, SIGNATURE_HEADER, TIME_HEADER = "flwr-public-key", "flwr-signature", "flwr-timestamp"
_OLDEST_SECONDS, _NEWEST_SECONDS = 305.0, 5.0
_PASSED_ON = frozenset({"content-type", "accept"})
_LONGEST_HEADER = 2000

_log = logging.getLogger(__name__)


class _RefusedError(Exception):
    """A request that is not passed on; `status` and reason are told to its sender."""

    def __init__(self, status: int, reason: str, member: Member | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.member = status, reason, member


class Door:
    """An ASGI application that passes fleet requests of admitted nodes on to a SuperLink.

    Args:
        members: who may take part; looked up at each request.
        upstream: URL of the SuperLink on loopback; it, too, has the coordinator's certificate, since without one
            Flower does not look at keys.
        authority: certificate of the authority that signed it.
        max_body: most bytes that one request may carry; Flower sends an update in objects of a few megabytes.
        presence: told who came, how many bytes passed, and what was refused.
    """

    def __init__(
        self,
        members: Members,
        upstream: str,
        authority: Path,
        *,
        max_body: int = 64 * 2**20,
        presence: Presence | None = None,
    ) -> None:
        self._members, self._max_body = members, max_body
        self._presence = presence or Presence()
        trusted = ssl.create_default_context(cafile=str(authority))
        # The authority has signed this one coordinator alone, whose certificate need not name the loopback address.
        trusted.check_hostname = False
        # Never through a proxy of the environment: the SuperLink is on this machine.
        self._client = httpx.AsyncClient(
            base_url=upstream, verify=trusted, trust_env=False, timeout=httpx.Timeout(60.0, connect=5.0)
        )
        routes = [Route(path, self._pass_on, methods=["POST"]) for path in FLEET_PATHS]
        routes.append(Route(HELLO_PATH, self._greet, methods=["POST"]))
        self.app = Starlette(routes=routes, lifespan=self._closing)
        self.app.router.redirect_slashes = False

    @asynccontextmanager
    async def _closing(self, _: Starlette) -> AsyncIterator[None]:
        async with self._client:
            yield

    async def _greet(self, request: Request) -> Response:
        try:
            member = self._sender(request)
        except _RefusedError as refusal:
            return self._refuse(request, refusal, None)
        return JSONResponse({"node_id": member.node_id, "protocol": PROTOCOL_VERSION})

    async def _pass_on(self, request: Request) -> Response:
        member: Member | None = None
        try:
            member = self._sender(request)
            self._presence.came(member.node_id, request.url.path)
            return await self._forward(request, member)
        except _RefusedError as refusal:
            return self._refuse(request, refusal, member)
        except httpx.TransportError:
            return self._refuse(request, _RefusedError(503, "the coordinator is starting or was stopped"), member)

    def _sender(self, request: Request) -> Member:
        """The admitted node that signed a request.

        Raises:
            _RefusedError: 401 if it is not signed rightly, 403 if its key may not take part.
        """
        try:
            values = {name: request.headers[name] for name in (KEY_HEADER, SIGNATURE_HEADER, TIME_HEADER)}
            if max(map(len, values.values())) > _LONGEST_HEADER:
                raise ValueError("a header is too long")
            key = serialization.load_pem_public_key(base64.b64decode(values[KEY_HEADER], validate=True))
            signature = base64.b64decode(values[SIGNATURE_HEADER], validate=True)
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise ValueError("the key is of another kind")
            key.verify(signature, values[TIME_HEADER].encode("ascii"), ec.ECDSA(hashes.SHA256()))
            signed = datetime.fromisoformat(values[TIME_HEADER])
        except (KeyError, ValueError, TypeError, binascii.Error, InvalidSignature, UnsupportedAlgorithm) as error:
            raise _RefusedError(401, "the request is not signed by a node") from error
        member = self._members.find(key)
        if member is None:
            raise _RefusedError(403, "this key was not admitted, or was revoked")
        age = (datetime.now(UTC) - (signed if signed.tzinfo else signed.replace(tzinfo=UTC))).total_seconds()
        if not -_NEWEST_SECONDS < age < _OLDEST_SECONDS:
            raise _RefusedError(401, f"this node's clock differs from the coordinator's by {abs(age):.0f} s", member)
        return member

    async def _forward(self, request: Request, member: Member) -> Response:
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers |= {name: request.headers[name] for name in request.headers if name.startswith("flwr-")}
        body = self._limited(request, member)
        answer = await self._client.send(
            self._client.build_request("POST", request.url.path, headers=headers, content=body), stream=True
        )
        kind = {"content-type": answer.headers["content-type"]} if "content-type" in answer.headers else {}
        return StreamingResponse(
            self._counted(answer, member),
            status_code=answer.status_code,
            headers=kind,
            background=BackgroundTask(answer.aclose),
        )

    async def _counted(self, answer: httpx.Response, member: Member) -> AsyncIterator[bytes]:
        async for part in answer.aiter_raw():
            self._presence.carried(member.node_id, "down", len(part))
            yield part

    async def _limited(self, request: Request, member: Member) -> AsyncIterator[bytes]:
        length = 0
        async for part in request.stream():
            length += len(part)
            self._presence.carried(member.node_id, "up", len(part))
            if length > self._max_body:
                raise _RefusedError(413, f"a request may carry at most {self._max_body} bytes")
            yield part

    def _refuse(self, request: Request, refusal: _RefusedError, member: Member | None) -> Response:
        self._presence.refused(refusal.status)
        known = member or refusal.member
        who = known.node_id if known else "somebody unknown"
        where = request.client.host if request.client else "?"
        _log.warning("refused %s of %s at %s: %s", request.url.path, who, where, refusal.reason)
        return PlainTextResponse(refusal.reason, status_code=refusal.status)


def serve_door(door: Door, folder: Path, host: str, port: int) -> tuple[uvicorn.Server, socket.socket]:
    """A server for a door and the socket it is to listen on: ``server.run([socket])``.

    Args:
        door: what is served.
        folder: the coordinator's state folder, which holds its certificate.
        host, port: where to listen; port 0 takes a free one.

    Raises:
        ResourceError: the address is in use or not this machine's, or the certificate cannot be used.
    """
    context = _tls(folder / SERVER)
    config = uvicorn.Config(
        door.app,
        ssl_context_factory=lambda *_: context,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=5,
    )
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ResourceError(
            f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)})",
            key="coordinator.port",
            cure="Choose another port, or stop what uses this one.",
        ) from error
    return uvicorn.Server(config), listener


def _tls(path: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(path)
    except (OSError, ssl.SSLError) as error:
        raise ResourceError(
            f"cannot be used as a certificate ({error.strerror or error})",
            file=path,
            cure="Make one with `manyeyes coordinator init` or `renew`.",
        ) from error
    return context
