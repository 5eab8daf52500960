"""Where pictures come from: files, folders, ZIP archives, videos, cameras and network streams, all read alike."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit, urlunsplit

import cv2
import numpy as np

from manyeyes.datasets.pictures import find_pictures, is_picture
from manyeyes.errors import DataError
from manyeyes.runtime.archive import PackedPictures
from manyeyes.runtime.vision import Decoded, Picture

__all__ = ["Capture", "Frame", "LiveStream", "Shown", "is_live", "open_capture", "read_sources", "redacted"]

_VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
_LIVE_SCHEMES = ("rtsp", "rtsps", "http", "https")

_CAMERA = re.compile(r"[0-9]{1,2}|/dev/video[0-9]{1,2}")
# Seconds: how long a camera may take to answer or to send the next frame; how long reads may fail before it is opened
# again; how long `frames` waits for that to help; from where to where pauses between attempts grow.
_PATIENCE = 10.0
_SILENCE = 3.0
_LONGEST_SILENCE = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_CURE = "Is the camera there, and the address right?"


@dataclass(frozen=True, slots=True)
class Shown:
    """One picture of a source, or why it cannot be had.

    Attributes:
        name: of the file, or of the archive or video and the place in it.
        picture: the bytes of its file, or the decoded frame of a video; None with an error.
        frame: number in its video, from 0; None for a picture.
        seconds: time in its video, or since a camera was opened.
        video: of which video it is a frame.
        rate: frames a second of that video.
        error: why it cannot be had.
    """

    name: str
    picture: bytes | Decoded | None = None
    frame: int | None = None
    seconds: float | None = None
    video: str | None = None
    rate: float | None = None
    error: str | None = None


def is_live(source: str) -> bool:
    """Whether a source has no end: a camera of this machine, or a network stream."""
    return bool(_CAMERA.fullmatch(source)) or urlsplit(source).scheme in _LIVE_SCHEMES


def redacted(source: str) -> str:
    """An address without user name, password and query, which may hold a key.

    >>> redacted("rtsp://admin:secret@10.0.0.7:554/live?token=1")
    'rtsp://…@10.0.0.7:554/live?…'
    """
    parts = urlsplit(source)
    if not parts.netloc:
        return source
    place = f"…@{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else parts.netloc
    return urlunsplit((parts.scheme, place, parts.path, "…" if parts.query else "", ""))


def read_sources(sources: Sequence[str], *, every: int = 1) -> Iterator[Shown]:
    """The pictures of all sources, one source after the other.

    All are looked at before the first picture is read, so that a wrong name is told at once.

    Args:
        sources: files, folders (searched to any depth), ZIP archives, videos; the number of a camera of this machine or
            its /dev/videoN; an address such as rtsp://HOST/PATH.
        every: of a video or camera only every so many frames.

    Raises:
        DataError: a source does not exist, holds no picture, or is of no known kind.
    """
    readers = [_reader_of(source, every) for source in sources]
    return (shown for reader in readers for shown in reader)


def _reader_of(source: str, every: int) -> Iterator[Shown]:
    if is_live(source):
        return _live(source, every)
    path = Path(source)
    if not path.exists():
        raise DataError("does not exist", file=path, cure="Name pictures, folders, ZIP archives, videos or cameras.")
    if path.is_dir():
        pictures = find_pictures(path)
        if not pictures:
            raise DataError("holds no picture", file=path)
        return (_read_file(picture) for picture in pictures)
    if path.suffix.lower() in _VIDEO_SUFFIXES:
        return _video(path, every)
    if path.suffix.lower() == ".zip":
        return _archive(path)
    if is_picture(path):
        return (_read_file(each) for each in (path,))
    raise DataError(
        "is not a picture, video or archive of a known kind",
        file=path,
        cure="Pictures: JPEG, PNG, WebP, BMP, TIFF. Videos: MP4, AVI, MKV, MOV, WebM. Archives: ZIP.",
    )


def _read_file(path: Path) -> Shown:
    try:
        return Shown(str(path), path.read_bytes())
    except OSError as error:
        return Shown(str(path), error=f"cannot be read ({error.strerror})")


def _archive(path: Path) -> Iterator[Shown]:
    """Its pictures; their names are shown and never used as paths.

    Raises:
        DataError: it is no ZIP archive, or holds no picture.
    """
    with closing(PackedPictures(path)) as archive:
        pictures = 0
        for packed in archive.read():
            if packed.data is not None or is_picture(Path(packed.name)):
                pictures += 1
                yield Shown(f"{path}/{packed.name}", packed.data, error=packed.error)
        if not pictures:
            raise DataError("holds no picture", file=path)


def _video(path: Path, every: int) -> Iterator[Shown]:
    """Frames of a video file.

    Raises:
        DataError: it cannot be decoded.
    """
    capture = cv2.VideoCapture(str(path))
    with ExitStack() as stack:
        stack.callback(capture.release)
        if not capture.isOpened():
            raise DataError("cannot be decoded as a video", file=path)
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        number = 0
        while capture.grab():
            if number % every == 0:
                there, picture = capture.retrieve()
                if there:
                    decoded = Decoded(np.asarray(picture, dtype=np.uint8), (picture.shape[0], picture.shape[1]))
                    name = f"{path}#{number}"
                    yield Shown(name, decoded, number, number / rate, str(path), rate / every)
            number += 1
        if number == 0:
            raise DataError("holds no frame that can be decoded", file=path)


def _live(source: str, every: int) -> Iterator[Shown]:
    with closing(LiveStream(source)) as stream:
        began = time.monotonic()
        for index, (number, picture, arrived) in enumerate(stream.frames()):
            if index % every == 0:
                name = f"{redacted(source)}#{number}"
                decoded = Decoded(picture, (picture.shape[0], picture.shape[1]))
                yield Shown(name, decoded, number, max(0.0, arrived - began), redacted(source))


class Capture(Protocol):
    """What frames are read from: `cv2.VideoCapture`, or what stands in for it."""

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        """Whether it could be opened."""

    def read(self) -> tuple[bool, Any]:
        """Whether there is a frame, and the frame (h, w, 3) uint8 BGR; waits for it."""

    def release(self) -> None:
        """Let it go."""


class Frame(NamedTuple):
    """One frame of a camera.

    Attributes:
        number: from 0, over all times that the camera was opened.
        picture: (h, w, 3) uint8 BGR.
        arrived: when it was read and decoded, by `time.monotonic`.
    """

    number: int
    picture: Picture
    arrived: float


def open_capture(source: str) -> Capture:
    """Open a camera of this machine or a network stream; one that does not answer is given up after some seconds.

    It is decoded by one thread: FFmpeg's others each hold a frame back, a fifth of a second at five frames a second.
    """
    if source.isdigit():
        return cv2.VideoCapture(int(source))
    if urlsplit(source).scheme not in _LIVE_SCHEMES:
        return cv2.VideoCapture(source)
    patience = round(1000 * _PATIENCE)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, patience, cv2.CAP_PROP_READ_TIMEOUT_MSEC, patience]
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, [*limits, cv2.CAP_PROP_N_THREADS, 1])


class LiveStream:
    """A camera or network stream of which only the newest frame is kept; it is opened again when it falls silent.

    A thread reads as fast as frames come, so that nobody ever waits for old ones and nothing grows.

    Args:
        source: see `read_sources`.
        patient: a camera that cannot be opened is tried again and again, with growing pauses, instead of refused; the
            constructor waits for nothing.
        on_frame: called from the thread that reads when there is a new frame.
        opener: opens it.

    Attributes:
        skipped: frames that a newer one took the place of.
        error: why there are no frames at present, or None.
        heard: when the last frame came, by `time.monotonic`; None while it is not open.

    Raises:
        DataError: it cannot be opened.
    """

    def __init__(
        self,
        source: str,
        *,
        patient: bool = False,
        on_frame: Callable[[], None] = lambda: None,
        opener: Callable[[str], Capture] = open_capture,
    ) -> None:
        self._source, self._on_frame, self._opener = source, on_frame, opener
        self._fresh = threading.Condition()
        self._newest: Frame | None = None
        self._closed, self.skipped, self._count = False, 0, 0
        self.error: str | None = None
        self.heard: float | None = None
        capture = None if patient else self._opener(source)
        if capture and not capture.isOpened():
            raise DataError("cannot be opened", file=redacted(source), cure=_CURE)
        self._thread = threading.Thread(target=self._stay, args=(capture,), name="manyeyes-camera", daemon=True)
        self._thread.start()

    @property
    def fresh(self) -> bool:
        """Whether there is a frame that nobody took."""
        return self._newest is not None

    def take(self) -> Frame | None:
        """The newest frame, if nobody took it."""
        with self._fresh:
            newest, self._newest = self._newest, None
        return newest

    def frames(self) -> Iterator[Frame]:
        """The newest frame, again and again; ends when the stream is closed.

        Raises:
            DataError: nothing has come for half a minute, and opening it again did not help.
        """
        while not self._closed:
            with self._fresh:
                if not self._fresh.wait_for(lambda: self._newest or self._closed, timeout=_LONGEST_SILENCE):
                    raise DataError("sends nothing any more", file=redacted(self._source))
            if newest := self.take():
                yield newest

    def close(self, *, wait: bool = True) -> None:
        """End the thread and let the camera go; a camera that does not answer holds its thread for some seconds more.

        Args:
            wait: for the thread, at most five seconds.
        """
        with self._fresh:
            self._closed = True
            self._fresh.notify_all()
        if wait:
            self._thread.join(timeout=5)

    def _stay(self, capture: Capture | None) -> None:
        """Read; open it again when it falls silent, with pauses that grow until a frame comes."""
        pause = _FIRST_PAUSE
        while not self._closed:
            before = self._count
            # What OpenCV says may hold the address with its password, and is not repeated.
            with suppress(cv2.error):
                capture = capture or self._opener(self._source)
                if capture.isOpened():
                    self._read(capture)
            self.error = "sends nothing any more; it is opened again" if self.heard else f"cannot be opened. {_CURE}"
            if capture:
                capture.release()
            capture, self.heard = None, None
            pause = _FIRST_PAUSE if self._count > before else min(2 * pause, _LONGEST_PAUSE)
            with self._fresh:
                self._fresh.wait_for(lambda: self._closed, timeout=pause)

    def _read(self, capture: Capture) -> None:
        """Until it is closed, or nothing has come for a while."""
        self.heard = time.monotonic()
        while not self._closed and time.monotonic() - self.heard < _SILENCE:
            there, picture = capture.read()
            if not there:
                time.sleep(0.05)
                continue
            self.heard = time.monotonic()
            with self._fresh:
                self.skipped += self._newest is not None
                self._newest = Frame(self._count, np.asarray(picture, dtype=np.uint8), self.heard)
                self._count += 1
                self.error = None
                self._fresh.notify_all()
            self._on_frame()
