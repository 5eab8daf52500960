"""WebSockets: a browser's camera in, boxes out; what the site's own cameras see, always the newest; what changes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from manyeyes.errors import ConfigError, DataError
from manyeyes.runtime.counting import ObjectCounter
from manyeyes.runtime.engine import Found
from manyeyes.web.access import Door, Role
from manyeyes.web.answers import found_values
from manyeyes.web.counting import CountingBody, counted_values
from manyeyes.web.edge import Edge, Wanted
from manyeyes.web.events import Events
from manyeyes.web.jpeg import drawn, encoded
from manyeyes.web.routing import PREFIX, role_of

__all__ = ["events_router", "live_router"]

_POLICY, _RESTARTS, _NOT_FOUND = 1008, 1012, 4404
_BARRED = "needs a password or a token"
# How long to wait before looking whether the other side is still there, and may still be, in seconds.
_PATIENCE = 2.0
_LONGEST_TEXT = 50_000
_sequence = itertools.count(1)


def events_router(door: Door, events: Events) -> APIRouter:
    """The WebSocket that tells what changes."""
    router = APIRouter(prefix=PREFIX)

    @router.websocket("/events")
    async def tell(socket: WebSocket) -> None:
        """`{"event": NAME}` whenever something changes that a page may show, a few times a second at most."""
        if role_of(door, socket) is None:
            await socket.close(_POLICY, _BARRED)
            return
        await socket.accept()
        telling, leaving = asyncio.create_task(_tell(events, socket)), asyncio.create_task(_until_left(socket))
        try:
            async with _while_allowed(door, socket):
                await asyncio.wait((telling, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not leaving.done():
                await socket.close(_RESTARTS, "there is more to see: ask again")
        except RuntimeError:
            pass  # it was closed already
        finally:
            for task in (telling, leaving):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                    await task

    return router


def live_router(edge: Edge) -> APIRouter:
    """The WebSockets of a site's server."""
    router = APIRouter(prefix=PREFIX)

    @router.websocket("/live")
    async def live(socket: WebSocket) -> None:
        """Each binary message is a picture; each answer JSON, with the number of its picture and how many were skipped.

        A text message `{"min_score": 0.4, "max_iou": 0.6}` changes the lowest score and the overlap from then on;
        `"counting": {"lines": …, "zones": …}` in it follows objects and counts them, null counts no more.
        """
        if role_of(edge, socket) is None:
            await socket.close(_POLICY, _BARRED)
            return
        await socket.accept()
        newest = _Newest(Wanted(edge.config.min_score))
        reader = asyncio.create_task(_read(socket, newest))
        try:
            async with _while_allowed(edge, socket):
                await _answer(edge, socket, newest, f"live {next(_sequence)}")
        except (WebSocketDisconnect, RuntimeError):
            pass  # the other side has gone while it was being answered
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await reader

    @router.websocket("/streams/{name}/live")
    async def watch(socket: WebSocket, name: str, picture: bool = False, plain: bool = False) -> None:
        """What a camera sees: JSON for the newest frame; after it, with `picture=true`, a JPEG with its boxes.

        With `plain=true` the JPEG is as the camera sent it, for a page that draws the boxes itself.
        """
        if (role_of(edge, socket) or 0) < Role.viewer:
            await socket.close(_POLICY, _BARRED)
            return
        if all(stream.name != name for stream in edge.streams.status()):
            await socket.close(_NOT_FOUND, "there is no such camera")
            return
        await socket.accept()
        leaving = asyncio.create_task(_until_left(socket))
        try:
            async with _while_allowed(edge, socket):
                await _show(edge, socket, name, leaving, picture=_as_it_is if plain else drawn if picture else None)
        except (WebSocketDisconnect, RuntimeError):
            pass  # the other side has gone while it was being answered
        except DataError:
            await socket.close(_NOT_FOUND, "the camera is not watched any more")
        finally:
            leaving.cancel()

    return router


@contextlib.asynccontextmanager
async def _while_allowed(door: Door, socket: WebSocket) -> AsyncIterator[None]:
    """Within the block the socket is closed as soon as its session or pass has ended: it was asked for only once."""

    async def watch() -> None:
        while role_of(door, socket) is not None:
            await asyncio.sleep(_PATIENCE)
        await socket.close(_POLICY, _BARRED)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError, RuntimeError):
            await watching


async def _tell(events: Events, socket: WebSocket) -> None:
    await socket.send_json({"event": "hello", "version": version("manyeyes")})
    async for name in events.changed():
        await socket.send_json({"event": name})


class _Newest:
    """The frame that is looked at next; a newer one takes its place."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.number = self.skipped = 0
        self.left = False
        self.counter: ObjectCounter | None = None
        self.complaint: str | None = None
        self._frame: bytes | None = None
        self._there = asyncio.Event()

    def put(self, frame: bytes) -> None:
        self.number += 1
        self.skipped += self._frame is not None
        self._frame = frame
        self._there.set()

    def leave(self) -> None:
        self.left = True
        self._there.set()

    async def take(self) -> tuple[int, bytes] | None:
        """Number and bytes of the newest frame; None when no more will come."""
        await self._there.wait()
        self._there.clear()
        frame, self._frame = self._frame, None
        return None if self.left or frame is None else (self.number, frame)


async def _read(socket: WebSocket, newest: _Newest) -> None:
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("bytes") is not None:
                newest.put(message["bytes"])
            else:
                await _change(newest, message.get("text") or "")
    finally:
        newest.leave()


async def _change(newest: _Newest, text: str) -> None:
    """What a text message asks for; what cannot be understood changes nothing."""
    try:
        values = json.loads(text[:_LONGEST_TEXT])
    except (ValueError, RecursionError):
        return
    if not isinstance(values, dict):
        return
    before = newest.wanted
    newest.wanted = replace(
        before,
        min_score=_number(values.get("min_score"), 0.01, 1, before.min_score),
        max_iou=_number(values.get("max_iou"), 0.1, 0.95, before.max_iou),
    )
    if "counting" not in values:
        return
    try:
        counting = CountingBody.model_validate(values["counting"] or {}).counting()
        # The first takes a second to import what follows objects.
        newest.counter = await anyio.to_thread.run_sync(ObjectCounter, counting) if counting else None
        newest.complaint = None
    except ValidationError as error:
        newest.counter, newest.complaint = None, f"counting: {error.errors()[0]['msg']}"
    except ConfigError as error:
        newest.counter, newest.complaint = None, str(error)


def _number(value: Any, low: float, high: float, before: float) -> float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    return float(value) if fits else before


async def _answer(edge: Edge, socket: WebSocket, newest: _Newest, source: str) -> None:
    while taken := await newest.take():
        number, frame = taken
        answer: dict[str, Any] = {"frame": number, "skipped": newest.skipped}
        if newest.complaint:
            answer["counting_error"] = newest.complaint
        counted = partial(_counted, newest.counter)
        try:
            answer |= await edge.look(frame, newest.wanted, source=source, name=str(number), then=counted)
        except DataError as error:
            answer["error"] = str(error)
        except HTTPException as error:  # too many wait
            answer["error"] = error.detail
        await socket.send_text(json.dumps(answer, ensure_ascii=False))


def _counted(counter: ObjectCounter | None, found: Found, review: str | None) -> dict[str, Any]:
    """The answer to a frame, with what it adds to the counts."""
    counts = counter.update(found.detections, found.engine.names, found.size) if counter else None
    return {**found_values(found, review), **counted_values(counts)}


async def _until_left(socket: WebSocket) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass


def _skipped(edge: Edge, name: str) -> int:
    return next((stream.skipped for stream in edge.streams.status() if stream.name == name), 0)


def _as_it_is(found: Found) -> bytes:
    return encoded(found.picture)


async def _show(
    edge: Edge,
    socket: WebSocket,
    name: str,
    leaving: asyncio.Task[None],
    *,
    picture: Callable[[Found], bytes] | None,
) -> None:
    after = -1
    while not leaving.done():
        wait = partial(edge.streams.wait_newer, name, after, _PATIENCE)
        result = await anyio.to_thread.run_sync(wait, limiter=edge.watching)
        if result is None:
            latest = edge.streams.latest(name)
            if latest and latest.number < after:  # it was removed and added again, and counts anew
                after = -1
            continue
        after = result.number
        answer = {"frame": after, "time": result.time, **found_values(result.found)}
        answer |= {"skipped": _skipped(edge, name), **counted_values(edge.counting.of_frame(name, after))}
        await socket.send_text(json.dumps(answer, ensure_ascii=False))
        if picture:
            await socket.send_bytes(await anyio.to_thread.run_sync(picture, result.found))
