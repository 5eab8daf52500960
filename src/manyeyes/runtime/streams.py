"""Several cameras share one engine: of each the newest frame is looked at, in turn, and nothing is queued."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from manyeyes.errors import ConfigError, DataError, ManyeyesError
from manyeyes.runtime.engine import Found
from manyeyes.runtime.sources import Capture, Frame, LiveStream, is_live, open_capture, redacted
from manyeyes.runtime.vision import Decoded

__all__ = ["Looker", "StreamResult", "StreamStatus", "Streams"]

State = Literal["connecting", "running", "silent"]

# Seconds over which rates and latencies are told, and how many pictures of them are kept at most.
_WINDOW = 10.0
_KEPT = 1000
# A camera that was heard within so many seconds is running.
_SILENT_AFTER = 3.0
_MOST_WORKERS = 5


class Looker(Protocol):
    """What finds objects in frames.

    Attributes:
        at_once: as many frames are worth asking for at the same time.
    """

    @property
    def at_once(self) -> int: ...

    def look(self, picture: Decoded, *, min_score: float) -> Found:
        """Find objects in one frame."""


@dataclass(frozen=True, slots=True, eq=False)
class StreamResult:
    """What was found in one frame.

    Attributes:
        name: of the stream.
        number: of the frame; numbers grow, and those of frames that were left out are missing.
        time: when the frame arrived, in seconds since 1970.
        found: what was found; nobody writes into its picture.
        latency: seconds from the frame's arrival, decoded, to this result.
    """

    name: str
    number: int
    time: float
    found: Found
    latency: float


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """How a stream fares.

    Attributes:
        name: of the stream.
        source: its address without user name, password and query.
        state: "connecting" while its camera is not open, "silent" when it is and nothing has come for three seconds.
        looked_at: frames since it was added.
        skipped: frames that a newer one took the place of.
        frames_per_second: looked at, over the last ten seconds.
        mean_ms, p95_ms: latency over the last ten seconds; None where nothing was looked at.
        error: what is wrong at present, or None.
    """

    name: str
    source: str
    state: State
    looked_at: int
    skipped: int
    frames_per_second: float
    mean_ms: float | None
    p95_ms: float | None
    error: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(slots=True, eq=False)
class _Stream:
    """A camera and what was found in its frames; all but the camera belongs to the lock of `Streams`.

    Attributes:
        added: when, by `time.monotonic`.
        turn: the higher, the later it had its last turn.
        busy: one of its frames is being looked at; a second one beside it could overtake it.
        recent: when a result was there, and its latency.
    """

    name: str
    source: str
    camera: LiveStream
    added: float = field(default_factory=time.monotonic)
    turn: int = 0
    busy: bool = False
    looked_at: int = 0
    latest: StreamResult | None = None
    error: str | None = None
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def status(self, now: float) -> StreamStatus:
        """At a time by `time.monotonic`."""
        seconds = [latency for when, latency in self.recent if now - when <= _WINDOW]
        heard = self.camera.heard
        state: State = "connecting" if heard is None else "running" if now - heard < _SILENT_AFTER else "silent"
        return StreamStatus(
            name=self.name,
            source=redacted(self.source),
            state=state,
            looked_at=self.looked_at,
            skipped=self.camera.skipped,
            frames_per_second=round(len(seconds) / min(_WINDOW, max(now - self.added, 1.0)), 1),
            mean_ms=round(1000 * float(np.mean(seconds)), 1) if seconds else None,
            p95_ms=round(1000 * float(np.quantile(seconds, 0.95)), 1) if seconds else None,
            error=self.error or self.camera.error,
        )


class Streams:
    """Looks at several cameras with one engine, always at the newest frame of the one that waited longest.

    Threads are few however many cameras there are: one that reads each, and as many that look as the processor has use
    for. What one camera or one picture does wrong ends nothing but itself.

    Args:
        looker: gives what looks, an engine or a host; asked at each picture, so that the model can change.
        min_score: lowest score kept.
        most: so many streams at most.
        on_result: called with each result, from the thread that looked, which waits for it.
        opener: opens a camera.
    """

    def __init__(
        self,
        looker: Callable[[], Looker],
        *,
        min_score: float = 0.25,
        most: int = 16,
        on_result: Callable[[StreamResult], None] | None = None,
        opener: Callable[[str], Capture] = open_capture,
    ) -> None:
        self._looker, self._min_score, self._most = looker, min_score, most
        self._on_result, self._opener = on_result, opener
        self._streams: dict[str, _Stream] = {}
        self._lock = threading.Lock()
        self._frame_came = threading.Condition(self._lock)
        self._result_came = threading.Condition(self._lock)
        self._closed = False
        # Turns taken; frames looked at just now; how many at a time are worth it, as the engine said last.
        self._turns, self._busy, self._at_once = 0, 0, 1
        workers = min(len(os.sched_getaffinity(0)) + 1, _MOST_WORKERS)
        self._workers = [
            threading.Thread(target=self._work, name=f"manyeyes-look-{n}", daemon=True) for n in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, name: str, source: str) -> None:
        """Begin to look at a camera; one that cannot be opened now is tried again, and its status says why.

        Args:
            name: by which it is asked for.
            source: the number of a camera of this machine or its /dev/videoN; an address such as rtsp://HOST/PATH.

        Raises:
            DataError: it is no camera or network stream.
            ConfigError: the name is in use, there are too many streams, or all were closed.
        """
        if not is_live(source):
            raise DataError(
                "is no camera or network stream",
                file=redacted(source),
                cure="Give the number of a camera, /dev/videoN, or an address such as rtsp://HOST/PATH.",
            )
        with self._lock:
            if self._closed:
                raise ConfigError("streams were closed, and none can be added", key=name)
            if name in self._streams:
                raise ConfigError("is the name of another stream", key=name, cure="Take another name.")
            if len(self._streams) >= self._most:
                raise ConfigError(
                    f"there are {len(self._streams)} streams, and no more are allowed", key=name, cure="Remove one."
                )
            camera = LiveStream(source, patient=True, on_frame=self._wake, opener=self._opener)
            self._streams[name] = _Stream(name, source, camera, turn=self._turns)

    def remove(self, name: str) -> None:
        """Stop looking at a camera; nobody waits for it to let go.

        Raises:
            DataError: there is no such stream.
        """
        with self._lock:
            stream = self._known(name)
            del self._streams[name]
            self._result_came.notify_all()
        stream.camera.close(wait=False)

    def status(self) -> list[StreamStatus]:
        """Of all streams, in the order they were added."""
        now = time.monotonic()
        with self._lock:
            return [stream.status(now) for stream in self._streams.values()]

    def latest(self, name: str) -> StreamResult | None:
        """The newest result; None before the first.

        Raises:
            DataError: there is no such stream.
        """
        with self._lock:
            return self._known(name).latest

    def wait_newer(self, name: str, after: int, timeout: float) -> StreamResult | None:
        """The newest result of a frame after a number; None when none came in time, or the stream was removed.

        Args:
            name: of the stream.
            after: number of the last frame that was seen; -1 for none.
            timeout: in seconds.

        Raises:
            DataError: there is no such stream.
        """
        with self._lock:
            stream = self._known(name)

            def newer() -> bool:
                return bool(stream.latest and stream.latest.number > after)

            def ended() -> bool:
                return self._closed or self._streams.get(name) is not stream

            self._result_came.wait_for(lambda: newer() or ended(), timeout)
            return stream.latest if newer() and not ended() else None

    def close(self) -> None:
        """End all threads and let all cameras go."""
        with self._lock:
            self._closed = True
            streams = list(self._streams.values())
            self._streams.clear()
            self._frame_came.notify_all()
            self._result_came.notify_all()
        for wait in (False, True):  # all are told before the first is waited for
            for stream in streams:
                stream.camera.close(wait=wait)
        for worker in self._workers:
            if worker is not threading.current_thread():
                worker.join()

    def _known(self, name: str) -> _Stream:
        if name not in self._streams:
            raise DataError("there is no such stream", key=name)
        return self._streams[name]

    def _wake(self) -> None:
        with self._lock:
            self._frame_came.notify()

    def _work(self) -> None:
        while taken := self._next():
            stream, frame = taken
            result, error = self._look(stream.name, frame)
            with self._lock:
                self._busy -= 1
                stream.busy, stream.error = False, error
                if result:
                    stream.latest = result
                    stream.looked_at += 1
                    stream.recent.append((time.monotonic(), result.latency))
                self._result_came.notify_all()

    def _next(self) -> tuple[_Stream, Frame] | None:
        """The stream whose turn it is and its newest frame; None when all is closed."""
        with self._lock:
            while not self._closed:
                ready = [stream for stream in self._streams.values() if stream.camera.fresh and not stream.busy]
                if ready and self._busy < self._at_once:
                    stream = min(ready, key=lambda stream: stream.turn)
                    if frame := stream.camera.take():
                        self._turns += 1
                        self._busy += 1
                        stream.busy, stream.turn = True, self._turns
                        return stream, frame
                self._frame_came.wait()
        return None

    def _look(self, name: str, frame: Frame) -> tuple[StreamResult | None, str | None]:
        """The result, and what went wrong."""
        result = None
        try:
            looker = self._looker()
            self._at_once = looker.at_once
            size = frame.picture.shape[0], frame.picture.shape[1]
            found = looker.look(Decoded(frame.picture, size), min_score=self._min_score)
            latency = time.monotonic() - frame.arrived
            result = StreamResult(name, frame.number, time.time() - latency, found, latency)
            if self._on_result:
                self._on_result(result)
        except ManyeyesError as error:
            return result, str(error)
        except Exception as error:  # noqa: BLE001 - whatever one picture or its listener does, the others go on
            return result, f"could not be looked at ({type(error).__name__}: {error})"
        return result, None
