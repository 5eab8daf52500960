"""Pictures come from files, archives, videos and streams; what is wrong is named, and nothing secret is shown."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from manyeyes.errors import DataError
from manyeyes.runtime.engine import open_engine
from manyeyes.runtime.predict import predict
from manyeyes.runtime.sources import LiveStream, is_live, open_capture, read_sources, redacted


def picture(shade: int = 90, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), shade, np.uint8)


def jpeg(shade: int = 90) -> bytes:
    return cv2.imencode(".jpg", picture(shade))[1].tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.jpg").write_bytes(jpeg())
    (tmp_path / "deep" / "a.png").write_bytes(cv2.imencode(".png", picture())[1].tobytes())
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    for shade in range(20, 220, 20):
        writer.write(picture(shade))
    writer.release()
    return path


def names(sources: list[str], **options: Any) -> list[str]:
    return [shown.name for shown in read_sources(sources, **options)]


def test_files_and_folders_are_read_in_order(folder: Path) -> None:
    assert names([str(folder / "b.jpg"), str(folder)]) == [
        str(path) for path in (folder / "b.jpg", folder / "b.jpg", folder / "deep" / "a.png")
    ]


def test_entries_of_an_archive_are_read_and_never_written(folder: Path) -> None:
    path = folder / "all.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one.jpg", jpeg())
        archive.writestr("../../evil.jpg", jpeg())
        archive.writestr("inner.zip", b"PK")
        archive.writestr("__MACOSX/._one.jpg", b"")
        archive.writestr("bomb.png", bytes(300_000_000))
    before = sorted(folder.rglob("*"))
    shown = list(read_sources([str(path)]))
    assert [Path(each.name).name for each in shown] == ["one.jpg", "evil.jpg", "bomb.png"]
    assert [each.error for each in shown] == [
        None,
        "has a name that leads out of the archive",
        "is larger than 200 MB when it is unpacked",
    ]
    assert sorted(folder.rglob("*")) == before


def test_an_entry_that_is_damaged_is_named_and_the_others_are_read(folder: Path) -> None:
    path = folder / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.jpg", jpeg())
        archive.writestr("two.jpg", jpeg(30))
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xd8") + 10] ^= 0xFF
    path.write_bytes(bytes(data))
    one, two = read_sources([str(path)])
    assert "Bad CRC-32" in str(one.error)
    assert two.picture == jpeg(30)


def test_damage_that_the_method_of_an_entry_finds_itself_is_named_too(folder: Path) -> None:
    path = folder / "all.zip"
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("one.jpg", bytes(range(256)) * 200)
            archive.writestr("two.jpg", jpeg(30))
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo("one.jpg").compress_size
        data = bytearray(path.read_bytes())
        start = data.index(b"one.jpg") + len("one.jpg")
        data[start + size // 3 : start + 2 * size // 3] = b"\xff" * (2 * size // 3 - size // 3)
        path.write_bytes(bytes(data))
        one, two = read_sources([str(path)])
        assert "cannot be unpacked" in str(one.error), method
        assert two.picture == jpeg(30)


def test_a_video_is_read_frame_by_frame_with_times(video: Path) -> None:
    shown = list(read_sources([str(video)], every=4))
    assert [(each.frame, each.seconds, each.rate) for each in shown] == [(0, 0.0, 1.25), (4, 0.8, 1.25), (8, 1.6, 1.25)]
    shades = [int(each.picture.picture.mean()) for each in shown]  # type: ignore[union-attr]
    assert np.abs(np.array(shades) - [20, 100, 180]).max() < 8


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.jpg", None, "does not exist"),
        ("notes.txt", b"x", "is not a picture, video or archive of a known kind"),
        ("broken.mp4", b"x" * 100, "cannot be decoded as a video"),
        ("broken.zip", b"x" * 100, "cannot be opened as a ZIP archive"),
    ],
)
def test_a_wrong_source_is_named(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*{said}"):
        list(read_sources([str(tmp_path / name)]))


def test_a_wrong_name_is_told_before_the_first_picture(folder: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        read_sources([str(folder), str(folder / "nowhere")])
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no picture"):
        read_sources([str(folder / "empty")])


def test_secrets_of_an_address_are_not_shown() -> None:
    assert redacted("rtsp://a:b@host:554/x?key=1") == "rtsp://…@host:554/x?…"
    assert redacted("ftp://a:b@host/x") == "ftp://…@host/x"
    assert redacted("clip.mp4") == "clip.mp4"
    assert [is_live(s) for s in ("0", "/dev/video1", "rtsp://h/x", "1.jpg", "clip.mp4", "/dev/sda")] == [
        *[True] * 3,
        *[False] * 3,
    ]
    with pytest.raises(DataError) as caught:
        LiveStream("rtsp://user:secret@127.0.0.1:9/live")
    assert "secret" not in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)


class Camera(BaseHTTPRequestHandler):
    """Sends a frame every few milliseconds, each a shade brighter, as IP cameras do."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            for number in range(120):
                data = cv2.imencode(".jpg", picture(20 + number))[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                time.sleep(0.02)
        except OSError:
            return

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def camera() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/live.mjpg"
    server.shutdown()


def test_of_a_stream_the_newest_frame_is_looked_at_and_old_ones_are_left_out(camera: str) -> None:
    stream = LiveStream(camera)
    try:
        frames = stream.frames()
        seen = []
        for _ in range(5):
            seen.append(next(frames)[0])
            time.sleep(0.25)
        assert seen == sorted(set(seen))
        assert seen[-1] - seen[0] > 10, "who is slow gets new frames, not a queue of old ones"
        assert stream.skipped > 5
    finally:
        stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "manyeyes-camera"]


@pytest.fixture
def film(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The address of a stream whose frames are told as differences, and the number of frames; then it falls silent."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    for shade in range(20, 220, 2):
        writer.write(picture(shade))
    writer.release()
    data = path.read_bytes()
    frames = data.count(b"00dc", data.index(b"movi"), data.rindex(b"idx1"))
    done = threading.Event()

    class Film(Camera):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data[: data.rindex(b"idx1")])
            done.wait(20)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Film)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/film.avi", frames
    done.set()
    server.shutdown()


def test_a_frame_is_there_when_it_came_and_not_when_the_next_comes(film: tuple[str, int]) -> None:
    """FFmpeg's decoding threads each hold a frame back, which at five frames a second is a fifth of a second."""
    address, sent = film
    capture = open_capture(address)
    assert sent == 100
    # Its last frame can be told from a longer one only by what follows it.
    for number in range(sent - 1):
        began = time.monotonic()
        assert capture.read()[0], number
        assert time.monotonic() - began < 5, number
    capture.release()


def test_predictions_come_in_order_and_failures_are_passed_over(onnx_file: Path, folder: Path, scenes: Path) -> None:
    (folder / "c.jpg").write_bytes(b"broken")
    engine = open_engine(onnx_file, backend="openvino", precision="fp32", threads=1)
    sources = [str(folder), str(scenes / "b_crossroads")]
    expected = [shown.name for shown in read_sources(sources)]
    for ahead in (0, 2):
        found = list(predict(engine, read_sources(sources), min_score=0.3, ahead=ahead))
        assert [each.shown.name for each in found] == expected
        assert [each.shown.name for each in found if each.error] == [str(folder / "c.jpg")]
        assert sum(len(each.detections) for each in found if each.detections) > 5
