"""WebSockets: frames of a browser's camera in, boxes out; and what the site's own cameras see. Always the newest."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.exceptions import HTTPException

from manyeyes.errors import DataError
from manyeyes.web.access import Role
from manyeyes.web.answers import found_values
from manyeyes.web.api import PREFIX, drawn, role_of
from manyeyes.web.edge import Edge

__all__ = ["live_router"]

_POLICY, _NOT_FOUND = 1008, 4404
# How long to wait for a camera's next frame before looking whether the other side is still there, in seconds.
_PATIENCE = 2.0
_sequence = itertools.count(1)


def live_router(edge: Edge) -> APIRouter:
    """The WebSockets of a site's server."""
    router = APIRouter(prefix=PREFIX)

    @router.websocket("/live")
    async def live(socket: WebSocket) -> None:
        """Each binary message is a picture; each answer JSON, with the number of its picture and how many were skipped.

        A text message `{"min_score": 0.4}` changes the lowest score from then on.
        """
        if role_of(edge, socket) is None:
            await socket.close(_POLICY, "needs a password or a token")
            return
        await socket.accept()
        newest = _Newest(edge.config.min_score)
        reader = asyncio.create_task(_read(socket, newest))
        try:
            await _answer(edge, socket, newest, f"live {next(_sequence)}")
        except (WebSocketDisconnect, RuntimeError):
            pass  # the other side has gone while it was being answered
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await reader

    @router.websocket("/streams/{name}/live")
    async def watch(socket: WebSocket, name: str, picture: bool = False) -> None:
        """What a camera sees: JSON for the newest frame, and with `picture=true` a JPEG with its boxes after it."""
        if (role_of(edge, socket) or 0) < Role.viewer:
            await socket.close(_POLICY, "needs a password or a token")
            return
        if all(stream.name != name for stream in edge.streams.status()):
            await socket.close(_NOT_FOUND, "there is no such camera")
            return
        await socket.accept()
        leaving = asyncio.create_task(_until_left(socket))
        try:
            await _show(edge, socket, name, leaving, picture=picture)
        except (WebSocketDisconnect, RuntimeError):
            pass  # the other side has gone while it was being answered
        except DataError:
            await socket.close(_NOT_FOUND, "the camera is not watched any more")
        finally:
            leaving.cancel()

    return router


class _Newest:
    """The frame that is looked at next; a newer one takes its place."""

    def __init__(self, min_score: float) -> None:
        self.min_score = min_score
        self.number = self.skipped = 0
        self.left = False
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
                newest.min_score = _wanted_score(message.get("text") or "", newest.min_score)
    finally:
        newest.leave()


def _wanted_score(text: str, before: float) -> float:
    try:
        score = json.loads(text[:1000])["min_score"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return before
    fits = isinstance(score, (int, float)) and not isinstance(score, bool) and 0.01 <= score <= 1
    return float(score) if fits else before


async def _answer(edge: Edge, socket: WebSocket, newest: _Newest, source: str) -> None:
    while taken := await newest.take():
        number, frame = taken
        answer: dict[str, Any] = {"frame": number, "skipped": newest.skipped}
        try:
            answer |= await edge.look(frame, newest.min_score, source=source, name=str(number), then=found_values)
        except DataError as error:
            answer["error"] = str(error)
        except HTTPException as error:  # too many wait
            answer["error"] = error.detail
        await socket.send_text(json.dumps(answer, ensure_ascii=False))


async def _until_left(socket: WebSocket) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass


async def _show(edge: Edge, socket: WebSocket, name: str, leaving: asyncio.Task[None], *, picture: bool) -> None:
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
        await socket.send_text(json.dumps(answer, ensure_ascii=False))
        if picture:
            await socket.send_bytes(await anyio.to_thread.run_sync(drawn, result.found))
