"""The guarded front door: what a coordinator shows to the network.

Flower's SuperLink serves its fleet, control and runtime interfaces on one port, and only the fleet's can be guarded by
keys: whoever reaches the others can start programs. So the SuperLink listens on loopback, and this door, over TLS,
passes on the twelve requests that nodes make and nothing else, and these only with the signature of a key that was
admitted and not revoked. One request it answers itself: a node's greeting. What is refused is logged with its reason
and sender, never with what it carried.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import httpx
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from manyeyes.errors import ProtocolError, ResourceError
from manyeyes.federation.admission import Member, Members
from manyeyes.federation.hello import HELLO, KEY_HEADER, LEASE_SECONDS, SIGNATURE_HEADER, TIME_HEADER, Greeting
from manyeyes.federation.keys import SERVER
from manyeyes.federation.messages import PROTOCOL_VERSION
from manyeyes.federation.peers import digest_of, listed
from manyeyes.federation.presence import Presence
from manyeyes.web.serving import serving

__all__ = ["FLEET_PATHS", "HELLO", "KEY_HEADER", "SIGNATURE_HEADER", "TIME_HEADER", "Door", "open_door"]

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

# The signature is of the time, which may be this far from ours.
_OLDEST_SECONDS, _NEWEST_SECONDS = 305.0, 5.0
_PASSED_ON = frozenset({"content-type", "accept"})
_LONGEST_HEADER = 2000
_LONGEST_HELLO = 1000
_PIECE = 2**20
_GATHER_SECONDS = 0.1
_PULL, _PUSH, _HEARTBEAT = "/v1/fleet/pull-messages", "/v1/fleet/push-object", "/v1/fleet/send-node-heartbeat"
_PUSHES = ("/v1/fleet/push-", "/v1/fleet/deactivate-", "/v1/fleet/activate-")
# What is cut off on its way is sent again.
_ATTEMPTS = 2
# Flower's node waits 30 s for an answer, and 3 s after an empty one.
_HOLD_SECONDS = 20.0

# One line for each sender and reason in so many seconds, and so many lines in all.
_LOG_SECONDS, _MOST_LOGGED = 60.0, 100

_UNKNOWN = "this key was not admitted, or was revoked"

_log = logging.getLogger(__name__)


class _RefusedError(Exception):
    """A request that is not passed on; `status` and reason are told to its sender."""

    def __init__(self, status: int, reason: str, member: Member | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.member = status, reason, member


class Door:
    """An ASGI application that passes fleet requests of admitted nodes on to a SuperLink.

    A node's question whether there is something to do is kept waiting while there is nothing, until `ring` or for some
    seconds, so that it hears at once and not when it asks next.

    Args:
        members: who may take part; looked up at each request.
        upstream: URL of the SuperLink on loopback; it, too, has the coordinator's certificate, since without one
            Flower does not look at keys.
        authority: certificate of the authority that signed it.
        max_body: most bytes that one request may carry; Flower sends an update in objects of five megabytes.
        most_bytes: length of the longest answer that one request to a node can have; None for no limit. A node that
            sends more than twice that (for what is sent again) before it is asked again is refused.
        presence: told who came, how many bytes passed, and what was refused.
    """

    def __init__(
        self,
        members: Members,
        upstream: str,
        authority: Path,
        *,
        max_body: int = 16 * 2**20,
        most_bytes: int | None = None,
        presence: Presence | None = None,
    ) -> None:
        self._members, self._max_body, self._most_bytes = members, max_body, most_bytes
        self._presence = presence or Presence()
        self._sent: dict[str, int] = {}
        self._excess: set[str] = set()
        self._leases: dict[str, Greeting] = {}
        self._numbers: dict[str, int] = {}
        # A SuperNode's threads may die one by one: when it last said that it is there, and when it last asked or sent.
        self._beaten: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._opened = time.monotonic()
        self._logged: dict[tuple[str, str], float] = {}
        self._came = threading.Event()
        self._bells: dict[str, asyncio.Event] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        trusted = ssl.create_default_context(cafile=str(authority))
        # The authority has signed this one coordinator alone, whose certificate need not name the loopback address.
        trusted.check_hostname = False
        # Never through a proxy of the environment: the SuperLink is on this machine.
        self._client = httpx.AsyncClient(
            base_url=upstream, verify=trusted, trust_env=False, timeout=httpx.Timeout(60.0, connect=5.0)
        )
        routes = [Route(path, self._pass_on, methods=["POST"]) for path in FLEET_PATHS]
        routes.append(Route(HELLO, self._hello, methods=["POST"]))
        self.app = Starlette(routes=routes, lifespan=self._closing)
        self.app.router.redirect_slashes = False

    def ring(self, node_id: str) -> None:
        """Something was sent to a node; may be called from any thread.

        Nobody else is woken: with many nodes, each asking the SuperLink whenever something is sent to one of them would
        be most of a round.
        """
        self._soon(lambda: self._ring(node_id))

    def close(self) -> None:
        """Keep nobody waiting any more; may be called from any thread."""
        self._closed = True
        self._soon(self._ring_all)

    def _soon(self, what: Callable[[], None]) -> None:
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what)

    def heard(self, node_id: str) -> Greeting | None:
        """What a node said of itself when it was last heard."""
        return self._leases.get(node_id)

    def met(self, numbers: Mapping[str, int]) -> None:
        """What Flower calls the nodes."""
        self._numbers = dict(numbers)

    def too_long(self, node_id: str) -> bool:
        """Whether a node has sent more, since this was last asked, than an answer can hold."""
        excess = node_id in self._excess
        self._excess.discard(node_id)
        return excess

    def passed(self, node_id: str) -> int:
        """Bytes of answers that a node has sent since it was last asked."""
        return self._sent.get(node_id, 0)

    def wait(self, timeout: float) -> None:
        """Until a node has sent something, or for so many seconds; for another thread than the door's."""
        if self._came.wait(timeout):
            # An answer comes in several parts: one look for all of them.
            time.sleep(min(timeout, _GATHER_SECONDS))
        self._came.clear()

    def _ring_all(self) -> None:
        for node_id in list(self._bells):
            self._ring(node_id)

    def _ring(self, node_id: str) -> None:
        if bell := self._bells.pop(node_id, None):
            bell.set()

    @asynccontextmanager
    async def _closing(self, _: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        async with self._client:
            yield

    async def _pass_on(self, request: Request) -> Response:
        member: Member | None = None
        try:
            member = self._sender(request)
            self._presence.came(member.node_id, request.url.path)
            beats = self._beaten if request.url.path == _HEARTBEAT else self._asked
            beats[member.node_id] = time.monotonic()
            if request.url.path == _PULL:
                return await self._pull(request, member)
            return await self._forward(request, member)
        except _RefusedError as refusal:
            return self._refuse(request, refusal, member)
        except ClientDisconnect:
            return Response(status_code=400)
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
            raise _RefusedError(403, _UNKNOWN)
        age = (datetime.now(UTC) - (signed if signed.tzinfo else signed.replace(tzinfo=UTC))).total_seconds()
        if not -_NEWEST_SECONDS < age < _OLDEST_SECONDS:
            raise _RefusedError(401, f"this node's clock differs from the coordinator's by {abs(age):.0f} s", member)
        return member

    async def _pull(self, request: Request, member: Member) -> Response:
        """Ask for a node whether there is something to do, and wait a while if there is not."""
        body = b"".join([part async for part in self._limited(request, member)])
        ends = time.monotonic() + _HOLD_SECONDS
        while True:
            bell = self._bells.setdefault(member.node_id, asyncio.Event())
            answer = await self._client.post(_PULL, headers=_headers(request), content=body)
            self._check_upstream(answer, member)
            if answer.content and answer.status_code == 200:
                # It was asked for something, so it may send an answer.
                self._sent[member.node_id] = 0
            left = ends - time.monotonic()
            if answer.content or answer.status_code != 200 or left <= 0 or self._closed:
                if answer.content:
                    self._carried(member, "down", len(answer.content))
                return Response(answer.content, answer.status_code, _kind(answer))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(bell.wait(), left)
            if await request.is_disconnected():
                # What is fetched for a node that is gone is lost.
                return Response(status_code=204)
            if self._members.find(member.key) is None:
                raise _RefusedError(403, _UNKNOWN)

    async def _forward(self, request: Request, member: Member) -> Response:
        body = self._counted(request, member) if request.url.path == _PUSH else self._limited(request, member)
        headers = _headers(request) | _length(request)
        answer = await self._client.send(
            self._client.build_request("POST", request.url.path, headers=headers, content=_gathered(body)), stream=True
        )
        try:
            self._check_upstream(answer, member)
        except _RefusedError:
            await answer.aclose()
            raise
        if request.url.path.startswith(_PUSHES):
            self._came.set()
        return StreamingResponse(
            self._passed_down(answer, member),
            answer.status_code,
            _kind(answer),
            background=BackgroundTask(answer.aclose),
        )

    async def _passed_down(self, answer: httpx.Response, member: Member) -> AsyncIterator[bytes]:
        async for part in answer.aiter_raw(_PIECE):
            self._carried(member, "down", len(part))
            yield part

    def _carried(self, member: Member, direction: Literal["up", "down"], num_bytes: int) -> None:
        self._asked[member.node_id] = time.monotonic()
        self._presence.carried(member.node_id, direction, num_bytes)

    def _check_upstream(self, answer: httpx.Response, member: Member) -> None:
        if answer.status_code == 500:
            # To Flower's node this number means that all is lost; 503 means what is true: try again.
            raise _RefusedError(503, "the coordinator's SuperLink is in trouble: see its log", member)

    async def _limited(self, request: Request, member: Member) -> AsyncIterator[bytes]:
        length = 0
        async for part in request.stream():
            length += len(part)
            self._carried(member, "up", len(part))
            if length > self._max_body:
                raise _RefusedError(413, f"a request may carry at most {self._max_body} bytes")
            yield part

    async def _counted(self, request: Request, member: Member) -> AsyncIterator[bytes]:
        """The part of an answer that a request carries, as long as the answer is not longer than one can be."""
        async for part in self._limited(request, member):
            sent = self._sent[member.node_id] = self._sent.get(member.node_id, 0) + len(part)
            if self._most_bytes is not None and sent > _ATTEMPTS * self._most_bytes:
                self._excess.add(member.node_id)
                raise _RefusedError(
                    413, f"the answer is longer than the {self._most_bytes} bytes that one about this model can have"
                )
            yield part

    async def _hello(self, request: Request) -> Response:
        member: Member | None = None
        try:
            member = self._sender(request)
            said = await self._greeting(request, request.client.host if request.client else "?")
            self._lease(member, said)
        except _RefusedError as refusal:
            return self._refuse(request, refusal, member)
        except ClientDisconnect:
            return Response(status_code=400)
        if not said.leaving:
            self._presence.came(member.node_id, request.url.path)
        elif self._leases.get(member.node_id) is None:
            self._presence.went(member.node_id, said.away)
        everybody = listed((m.node_id, m.public_key) for m in self._members if m.revoked is None)
        return JSONResponse(
            {
                "protocol": PROTOCOL_VERSION,
                "peers": None if said.peers == digest_of(everybody) else everybody,
                "node_id": member.node_id,
                "number": self._numbers.get(member.node_id),
                "unbeaten": self._since(self._beaten, member),
                "unasked": self._since(self._asked, member),
            }
        )

    def _since(self, times: Mapping[str, float], member: Member) -> float:
        return time.monotonic() - times.get(member.node_id, self._opened)

    async def _greeting(self, request: Request, host: str) -> Greeting:
        text = b""
        async for part in request.stream():
            text += part
            if len(text) > _LONGEST_HELLO:
                raise _RefusedError(413, f"a greeting may carry at most {_LONGEST_HELLO} bytes")
        try:
            return Greeting.read(text, host)
        except ProtocolError as error:
            raise _RefusedError(400, str(error)) from error

    def _lease(self, member: Member, said: Greeting) -> None:
        """One key, one process: the first keeps the place until it leaves or is not heard for a while.

        Raises:
            _RefusedError: 409, another process has it.
        """
        held = self._leases.get(member.node_id)
        # Of the processes in one folder only one runs, so another one there means that the first has ended.
        if held and held.place != said.place and said.heard - held.heard < LEASE_SECONDS:
            if said.leaving:
                return
            raise _RefusedError(
                409, f"a process with the same key is at {held.host}; it has the place while it is heard", member
            )
        if said.leaving:
            self._leases.pop(member.node_id, None)
        else:
            self._leases[member.node_id] = said

    def _refuse(self, request: Request, refusal: _RefusedError, member: Member | None) -> Response:
        self._presence.refused(refusal.status)
        known = member or refusal.member
        who = known.node_id if known else "somebody unknown"
        where = request.client.host if request.client else "?"
        self._log_sometimes(f"{who} at {where}", refusal.reason, request.url.path)
        return PlainTextResponse(refusal.reason, status_code=refusal.status)

    def _log_sometimes(self, who: str, reason: str, path: str) -> None:
        """Who asks every few seconds is refused as often; once a minute is enough to know of it."""
        now = time.monotonic()
        self._logged = {key: when for key, when in self._logged.items() if now - when < _LOG_SECONDS}
        if (who, reason) not in self._logged and len(self._logged) < _MOST_LOGGED:
            self._logged[who, reason] = now
            _log.warning("refused %s of %s: %s", path, who, reason)


def _headers(request: Request) -> dict[str, str]:
    kept = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
    return kept | {name: request.headers[name] for name in request.headers if name.startswith("flwr-")}


def _length(request: Request) -> dict[str, str]:
    """So that a body is one to the SuperLink, not many small ones."""
    return {name: request.headers[name] for name in ("content-length",) if name in request.headers}


async def _gathered(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in larger pieces: each passes through half a dozen layers of the SuperLink's."""
    gathered = bytearray()
    async for part in parts:
        gathered += part
        if len(gathered) >= _PIECE:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _kind(answer: httpx.Response) -> dict[str, str]:
    return {"content-type": answer.headers["content-type"]} if "content-type" in answer.headers else {}


@contextlib.contextmanager
def open_door(door: Door, folder: Path, listener: socket.socket) -> Iterator[Door]:
    """Within the block a door is served; yields it.

    Args:
        door: what is served.
        folder: the coordinator's state folder, which holds its certificate.
        listener: the socket it is served on.

    Raises:
        ResourceError: the certificate cannot be used.
    """
    with serving(door.app, listener, "manyeyes-door", tls=_tls(folder / SERVER), grace=5):
        try:
            yield door
        finally:
            door.close()


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
