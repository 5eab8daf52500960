"""Decoding, scaling and reading of outputs, each against another library or a closed form."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import batched_nms

from manyeyes.errors import DataError
from manyeyes.runtime.vision import Canvas, Geometry, decode, find_boxes


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without sharp edges, which JPEG keeps nearly as it is."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [128 + 100 * np.sin(rows / 40 + shift) * np.cos(columns / 55 - shift) for shift in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def encoded(picture: np.ndarray, suffix: str = ".jpg") -> bytes:
    return cv2.imencode(suffix, picture)[1].tobytes()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_every_kind_of_picture_is_decoded(suffix: str) -> None:
    picture = smooth(60, 90)
    found = decode(encoded(picture, suffix))
    assert found.size == (60, 90)
    assert np.abs(found.picture.astype(int) - picture).mean() < 3


@pytest.mark.parametrize(
    ("side", "shape"), [(None, (720, 1280)), (640, (360, 640)), (641, (720, 1280)), (320, (180, 320))]
)
def test_a_large_jpeg_is_decoded_no_larger_than_needed(side: int | None, shape: tuple[int, int]) -> None:
    picture = smooth(720, 1280)
    found = decode(encoded(picture), side)
    assert found.size == (720, 1280)
    assert found.picture.shape[:2] == shape
    scaled = cv2.resize(picture, shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(found.picture.astype(int) - scaled).mean() < 2


def test_a_turned_picture_is_shown_as_its_camera_meant() -> None:
    tall = Image.fromarray(smooth(60, 90)[:, :, ::-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    tall.save(file, "JPEG", exif=exif)
    found = decode(file.getvalue())
    assert found.size == found.picture.shape[:2] == (90, 60)


def huge_png() -> bytes:
    """A header of 100,000 × 100,000 pixels with nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is not a JPEG"),
        (b"GIF89a" + bytes(50), "is not a JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a JPEG"),
        (huge_png(), r"100000 × 100000 pixels, and more than 100 million are not decoded|is not a JPEG"),
        (encoded(smooth(600, 900), ".png")[:200], "is damaged"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        decode(data)


def test_more_pixels_than_allowed_are_not_decoded() -> None:
    with pytest.raises(DataError, match=r"90 × 60 pixels, and more than 0\.005 million"):
        decode(encoded(smooth(60, 90)), most_pixels=5000)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([64, 320, 640, 1280]))
def test_a_picture_fits_on_its_canvas(height: int, width: int, imgsz: int) -> None:
    geometry = Geometry.of((height, width), imgsz)
    assert all(side % 32 == 0 for side in geometry.canvas)
    assert max(geometry.inner) == imgsz
    left, top = geometry.offset
    assert 0 <= top <= geometry.canvas[0] - geometry.inner[0] < 32
    assert 0 <= left <= geometry.canvas[1] - geometry.inner[1] < 32


def test_a_canvas_is_used_again_without_traces_of_the_last_picture() -> None:
    wide, tall = smooth(90, 160), smooth(160, 100)
    canvas = Canvas((128, 128))
    for picture in (wide, tall, wide):
        geometry = Geometry.of(picture.shape[:2], 128)
        fresh = Canvas((128, 128))
        fresh.show(picture, geometry)
        canvas.show(picture, geometry)
        np.testing.assert_array_equal(canvas.pixels, fresh.pixels)
        (height, width), (left, top) = geometry.inner, geometry.offset
        outside = np.ones((128, 128), bool)
        outside[top : top + height, left : left + width] = False
        assert (canvas.pixels[0][outside] == 114).all()


@pytest.mark.parametrize("min_score", [0.25, 0.001])
def test_boxes_are_those_that_torchvision_keeps(min_score: float) -> None:
    rng = np.random.default_rng(0)
    geometry = Geometry.of((360, 640), 320)
    raw = np.empty((4 + 5, 700), np.float32)
    raw[:2] = rng.uniform(0, 300, (2, 700))
    raw[2:4] = rng.uniform(5, 120, (2, 700))
    raw[4:] = rng.uniform(0, 1, (5, 700)) ** 6
    found = find_boxes(raw, geometry, (360, 640), min_score=min_score, most=10_000)

    class_id, anchor = (torch.from_numpy(index) for index in np.nonzero(raw[4:] > min_score))
    score, xywh = torch.from_numpy(raw[4:])[class_id, anchor], torch.from_numpy(raw[:4].T)[anchor]
    xyxy = torch.cat((xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2), 1)
    kept = batched_nms(xyxy, score, class_id, 0.7)
    np.testing.assert_array_equal(found.class_id, class_id[kept].numpy())
    np.testing.assert_allclose(found.score, score[kept].numpy())
    left, top = geometry.offset
    expected = (xyxy[kept].numpy() - [left, top, left, top]) * 2
    np.testing.assert_allclose(found.xyxy, np.clip(expected, 0, [640, 360, 640, 360]), atol=1e-3)
    assert len(find_boxes(raw, geometry, (360, 640), min_score=min_score, most=3)) == 3
    assert len(find_boxes(raw, geometry, (360, 640), min_score=1.0)) == 0
