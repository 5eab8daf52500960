"""Several cameras, one engine: the newest frames, in turn, whatever befalls a camera, a model or a listener."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from manyeyes.errors import ConfigError, DataError
from manyeyes.runtime import sources
from manyeyes.runtime import streams as streams_module
from manyeyes.runtime.engine import Engine
from manyeyes.runtime.model_file import ModelInfo
from manyeyes.runtime.streams import StreamResult, Streams, StreamStatus
from manyeyes.runtime.vision import Canvas
from mjpeg import camera

SIDE = 64


class Brightness:
    """A small real network: one box, whose score is how bright the picture is.

    Args:
        seconds: that it takes.
        refused: brightness in [0, 1] below which it fails.
    """

    backend, precision = "numpy", "fp32"

    def __init__(self, seconds: float = 0.0, refused: float = 0.0) -> None:
        self.info = ModelInfo(names=("light",), imgsz=SIDE, weights="0" * 16, precision="fp32")
        self.seconds, self.refused = seconds, refused

    def shot(self, shape: tuple[int, int]) -> BrightnessShot:
        return BrightnessShot(shape, self)


class BrightnessShot:
    def __init__(self, shape: tuple[int, int], network: Brightness) -> None:
        self.canvas, self._network = Canvas(shape), network

    def run(self) -> NDArray[np.float32]:
        time.sleep(self._network.seconds)
        bright = float(self.canvas.pixels[0, SIDE // 2, SIDE // 2, 0]) / 255
        if bright < self._network.refused:
            raise RuntimeError("too dark")
        return np.array([[32], [32], [10], [10], [bright]], np.float32)


def engine(name: str = "model", **options: float) -> Engine:
    return Engine(Brightness(**options), name)


class Clip:
    """Stands in for a camera: so many frames a second, each of one brightness that tells its number.

    Args:
        rate: frames a second; 0 for one that is open and sends nothing.
        shade: of all frames; None for shades that grow from 100.
    """

    def __init__(self, rate: float = 50.0, shade: int | None = None) -> None:
        self.rate, self.shade, self.number, self.released = rate, shade, 0, False

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def read(self) -> tuple[bool, NDArray[np.uint8]]:
        time.sleep(1 / (self.rate or 100))
        if not self.rate:
            return False, np.empty(0, np.uint8)
        shade = 100 + self.number % 100 if self.shade is None else self.shade
        self.number += 1
        return True, np.full((SIDE, SIDE, 3), shade, np.uint8)

    def release(self) -> None:
        self.released = True


def of(clips: dict[str, Clip]) -> Callable[[str], Clip]:
    return lambda source: clips[source]


def by_name(streams: Streams) -> dict[str, StreamStatus]:
    return {status.name: status for status in streams.status()}


def until(true: Callable[[], object], seconds: float = 15.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.01)


def ours() -> list[str]:
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("manyeyes-camera", "manyeyes-look"))
    ]


def test_the_newest_frame_is_looked_at_and_the_others_are_left_out() -> None:
    results: list[StreamResult] = []
    slow = engine(seconds=0.1)
    with Streams(lambda: slow, on_result=results.append, opener=of({"0": Clip(rate=100)})) as streams:
        streams.add("door", "0")
        until(lambda: len(results) >= 8)
        (status,) = streams.status()
    for result in results:
        assert result.found.size == result.found.picture.shape[:2] == (SIDE, SIDE)
        assert abs(result.found.detections.score[0] * 255 - (100 + result.number % 100)) < 1.5
        assert abs(time.time() - result.time) < 60
    # Of every ten frames one; each is at most one frame old when the network begins.
    assert all(later.number - earlier.number > 4 for earlier, later in pairwise(results))
    assert float(np.median([result.latency for result in results])) < 0.19
    assert status.skipped > 4 * status.looked_at
    assert (status.name, status.source, status.state, status.error) == ("door", "0", "running", None)
    assert status.mean_ms is not None
    assert status.p95_ms is not None
    assert 90 < status.mean_ms <= status.p95_ms + 1e-6
    assert 3 < status.frames_per_second < 12
    assert set(status.to_dict()) >= {"name", "source", "state", "looked_at", "skipped", "frames_per_second"}


def test_a_camera_with_many_frames_takes_no_turns_from_the_others() -> None:
    clips = {"0": Clip(rate=300), "1": Clip(rate=15), "2": Clip(rate=15), "3": Clip(rate=15)}
    slow = engine(seconds=0.03)
    with Streams(lambda: slow, opener=of(clips)) as streams:
        for source in clips:
            streams.add(f"camera {source}", source)
        until(lambda: sum(status.looked_at for status in streams.status()) >= 60)
        looked_at = [status.looked_at for status in streams.status()]
    assert min(looked_at) > 0.5 * max(looked_at), looked_at


def test_a_model_is_changed_while_streams_run() -> None:
    engines = [engine("old")]
    with Streams(lambda: engines[-1], opener=of({"0": Clip()})) as streams:
        streams.add("door", "0")
        first = streams.wait_newer("door", -1, 15)
        assert first
        assert first.found.engine.model_hash == "old"
        engines.append(engine("new"))
        until(lambda: (latest := streams.latest("door")) and latest.found.engine.model_hash == "new")
        latest = streams.latest("door")
    assert latest
    assert latest.number > first.number


def test_what_fails_for_one_stream_ends_no_other() -> None:
    picky = engine(refused=0.2)
    with Streams(lambda: picky, opener=of({"0": Clip(shade=10), "1": Clip(shade=200)})) as streams:
        streams.add("dark", "0")
        streams.add("light", "1")
        until(lambda: by_name(streams)["dark"].error and by_name(streams)["light"].looked_at > 10)
        dark, light = streams.status()
        assert dark.error == "could not be looked at (RuntimeError: too dark)"
        assert dark.looked_at == 0
        assert (light.error, streams.latest("dark")) == (None, None)


def test_streams_outlive_the_lack_of_a_model_and_a_listener_that_fails() -> None:
    engines: list[Engine] = []

    def current() -> Engine:
        if not engines:
            raise DataError("no model is loaded")
        return engines[-1]

    def listener(result: StreamResult) -> None:
        if result.number % 2:
            raise ValueError("the listener is broken")

    with Streams(current, on_result=listener, opener=of({"0": Clip()})) as streams:
        streams.add("door", "0")
        until(lambda: by_name(streams)["door"].error == "no model is loaded")
        engines.append(engine())
        until(lambda: by_name(streams)["door"].looked_at > 10)
        until(lambda: by_name(streams)["door"].error is None)
        until(lambda: "the listener is broken" in str(by_name(streams)["door"].error))


def test_a_camera_that_is_open_and_sends_nothing_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams_module, "_SILENT_AFTER", 0.1)
    quick = engine()
    with Streams(lambda: quick, opener=of({"0": Clip(rate=0)})) as streams:
        streams.add("door", "0")
        until(lambda: by_name(streams)["door"].state == "silent")
        (status,) = streams.status()
        assert (status.frames_per_second, status.mean_ms, status.p95_ms) == (0.0, None, None)
        assert streams.latest("door") is None


def test_who_waits_gets_a_newer_result_or_none() -> None:
    clip, quick = Clip(), engine()
    with Streams(lambda: quick, opener=of({"0": clip, "1": Clip(rate=0)})) as streams:
        streams.add("door", "0")
        streams.add("silent", "1")
        last = -1
        for _ in range(5):
            result = streams.wait_newer("door", last, 15)
            assert result
            assert result.number > last
            last = result.number
        assert streams.wait_newer("door", 1_000_000, 0.05) is None
        assert streams.wait_newer("silent", -1, 0.05) is None
        threading.Timer(0.1, streams.remove, args=("door",)).start()
        began = time.monotonic()
        assert streams.wait_newer("door", 1_000_000, 30) is None
        assert time.monotonic() - began < 10
        for ask in (streams.latest, streams.remove, lambda name: streams.wait_newer(name, -1, 1)):
            with pytest.raises(DataError, match="door: there is no such stream"):
                ask("door")
        until(lambda: clip.released)
        streams.add("door", "1")
        assert [status.name for status in streams.status()] == ["silent", "door"]


def test_names_and_numbers_of_streams_are_bounded() -> None:
    quick = engine()
    with Streams(lambda: quick, most=2, opener=of({"0": Clip()})) as streams:
        streams.add("a", "0")
        with pytest.raises(ConfigError, match="a: is the name of another stream"):
            streams.add("a", "0")
        with pytest.raises(DataError, match=r"clip\.mp4: is no camera or network stream"):
            streams.add("b", "clip.mp4")
        streams.add("b", "0")
        with pytest.raises(ConfigError, match="there are 2 streams, and no more are allowed"):
            streams.add("c", "0")
    with pytest.raises(ConfigError, match="were closed"):
        streams.add("d", "0")
    streams.close()


def test_closing_ends_every_thread_at_once() -> None:
    before = ours()
    clips = {str(number): Clip() for number in range(8)}
    slow = engine(seconds=0.05)
    streams = Streams(lambda: slow, opener=of(clips))
    for source in clips:
        streams.add(source, source)
    until(lambda: all(status.looked_at for status in streams.status()))
    began = time.monotonic()
    streams.close()
    assert time.monotonic() - began < 3
    assert ours() == before
    assert all(clip.released for clip in clips.values())
    assert streams.status() == []


def test_a_password_is_never_told_and_a_camera_that_is_not_there_blocks_nobody(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    quick = engine()
    with Streams(lambda: quick) as streams:
        began = time.monotonic()
        streams.add("gate", "rtsp://admin:secret@127.0.0.1:9/live?key=hidden")
        with pytest.raises(DataError) as refused:
            streams.add("other", "ftp://admin:secret@127.0.0.1:9/live?key=hidden")
        assert time.monotonic() - began < 1
        until(lambda: by_name(streams)["gate"].error)
        status = by_name(streams)["gate"]
    assert (status.state, status.looked_at) == ("connecting", 0)
    assert status.source == "rtsp://…@127.0.0.1:9/live?…"
    assert str(status.error).startswith("cannot be opened")
    shown = f"{status} {refused.value} {refused.value!r} {caplog.text} {''.join(capfd.readouterr())}"
    assert "secret" not in shown
    assert "hidden" not in shown


LIGHT = cv2.imencode(".jpg", np.full((SIDE, SIDE, 3), 200, np.uint8))[1].tobytes()


def test_a_camera_that_dies_and_returns_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_SILENCE", 0.3)
    monkeypatch.setattr(sources, "_FIRST_PAUSE", 0.1)
    quick = engine()
    with Streams(lambda: quick) as streams:
        with camera([LIGHT]) as port:
            streams.add("gate", f"http://admin:secret@127.0.0.1:{port}/live.mjpg")
            until(lambda: by_name(streams)["gate"].looked_at > 3)
            assert by_name(streams)["gate"].state == "running"
        until(lambda: by_name(streams)["gate"].state == "connecting" and by_name(streams)["gate"].error)
        assert "secret" not in str(streams.status())
        died = streams.latest("gate")
        assert died, "the last picture stays to be seen"
        with camera([LIGHT], port=port):
            back = streams.wait_newer("gate", died.number, 30)
            assert back
            assert back.number > died.number
            until(lambda: by_name(streams)["gate"].error is None)
            assert by_name(streams)["gate"].state == "running"
