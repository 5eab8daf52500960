"""Pictures in, boxes out: decode, scale onto a canvas, read a detector's output. OpenCV and NumPy alone.

It is what `learners/detector.py` does in torch, so that a model finds the same at training, in tests and in use.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manyeyes.datasets.detections import Detections
from manyeyes.datasets.pictures import PICTURE_ERRORS, shown_size, to_eight_bits
from manyeyes.errors import DataError

__all__ = ["MAX_IOU", "MOST_PIXELS", "Canvas", "Decoded", "Geometry", "decode", "find_boxes"]

MAX_DETECTIONS = 300
MOST_PIXELS = 100_000_000
STRIDE = 32
_GREY = 114
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_IOU = 0.7
"""Two boxes of a class that overlap by more than this are taken for one object found twice."""
# Of more candidates the best are looked at; only a threshold near zero gives so many.
_MOST_CANDIDATES = 30_000

Picture = NDArray[np.uint8]


class Decoded(NamedTuple):
    """A decoded picture.

    Attributes:
        picture: (h, w, 3) uint8 BGR; perhaps smaller than it lies in the file, but no smaller than was asked for.
        size: (height, width) in pixels as it lies in the file, turned as its EXIF data says.
    """

    picture: Picture
    size: tuple[int, int]


def decode(data: bytes, side: int | None = None, *, most_pixels: int = MOST_PIXELS) -> Decoded:
    """Decode a picture; a JPEG that is twice as large as needed or more is decoded at half the size or less.

    Args:
        data: of a JPEG, PNG, WebP, BMP or TIFF file.
        side: how many pixels its longer side needs; None for all.
        most_pixels: the header of a larger one is not believed to be worth decoding.

    Raises:
        DataError: it is none of these, is damaged, or is larger than `most_pixels`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = shown_size(image)
            kind = image.format
    except PICTURE_ERRORS as error:
        raise DataError("is not a JPEG, PNG, WebP, BMP or TIFF picture, or is damaged") from error
    if width * height > most_pixels:
        raise DataError(
            f"has {width} × {height} pixels, and more than {most_pixels / 1e6:g} million are not decoded",
            cure="Make it smaller.",
        )
    deep = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    flag = _reduced(max(width, height), side) if kind == "JPEG" else deep
    picture = _imdecode(data, flag)
    if picture is None:
        raise DataError("is damaged: its header can be read, and its pixels cannot")
    # Where OpenCV and the header disagree about how it is turned, boxes must fit what was looked at.
    if (picture.shape[0] > picture.shape[1]) != (height > width):
        height, width = width, height
    return Decoded(to_eight_bits(picture), (height, width))


def _imdecode(data: bytes, flag: int) -> NDArray[Any] | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        return None


def _reduced(long_side: int, side: int | None) -> int:
    """How OpenCV is to decode a JPEG: its blocks can be read at 1/2, 1/4 or 1/8 for a fraction of the time."""
    if side is None:
        return cv2.IMREAD_COLOR
    for factor, flag in (
        (8, cv2.IMREAD_REDUCED_COLOR_8),
        (4, cv2.IMREAD_REDUCED_COLOR_4),
        (2, cv2.IMREAD_REDUCED_COLOR_2),
    ):
        if long_side >= factor * side:
            return flag
    return cv2.IMREAD_COLOR


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where on a canvas a picture lies, and how it was scaled.

    Attributes:
        canvas: (height, width) in pixels, multiples of 32.
        inner: (height, width) of the picture in it.
        offset: (left, top) of the picture in it.
    """

    canvas: tuple[int, int]
    inner: tuple[int, int]
    offset: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], imgsz: int) -> Geometry:
        """For a picture whose longer side becomes `imgsz` pixels; the shorter is padded to a multiple of 32.

        Args:
            size: (height, width) of the picture as it lies in its file.
            imgsz: in pixels.
        """
        height, width = size
        scale = imgsz / max(size)
        inner = (min(round(height * scale), imgsz) or 1, min(round(width * scale), imgsz) or 1)
        canvas = (-(-inner[0] // STRIDE) * STRIDE, -(-inner[1] // STRIDE) * STRIDE)
        return cls(canvas, inner, ((canvas[1] - inner[1]) // 2, (canvas[0] - inner[0]) // 2))


class Canvas:
    """What a network reads: one picture of one shape, scaled into the same memory again and again.

    Args:
        shape: (height, width) in pixels.

    Attributes:
        pixels: (1, height, width, 3) uint8 BGR.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.pixels: NDArray[np.uint8] = np.full((1, *shape, 3), _GREY, np.uint8)
        self._shown: Geometry | None = None

    def show(self, picture: Picture, geometry: Geometry) -> None:
        """Scale a picture to its place; the border is painted anew only when the place changes."""
        if geometry != self._shown:
            self.pixels[:] = _GREY
            self._shown = geometry
        (height, width), (left, top) = geometry.inner, geometry.offset
        place = self.pixels[0, top : top + height, left : left + width]
        if picture.shape[:2] == geometry.inner:
            place[:] = picture
            return
        shrinks = max(geometry.inner) < 0.7 * max(picture.shape[:2])
        cv2.resize(picture, (width, height), dst=place, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def find_boxes(
    raw: NDArray[np.float32],
    geometry: Geometry,
    size: tuple[int, int],
    *,
    min_score: float,
    max_iou: float = MAX_IOU,
    most: int = MAX_DETECTIONS,
) -> Detections:
    """The boxes in a network's output: those above `min_score`, without doubles of their class (greedy NMS).

    Args:
        raw: (4 + classes, anchors): centre, width and height in pixels of the canvas, then a score for each class.
        geometry: of the picture on the canvas.
        size: (height, width) of the picture that boxes are to be given for.
        min_score: lowest score kept; a box may be kept for several classes.
        max_iou: of two boxes of a class that overlap by more, the better one is kept.
        most: at most so many.
    """
    scores = raw[4:]
    anchors = np.flatnonzero(scores.max(axis=0) > min_score)
    class_id, place = np.nonzero(scores[:, anchors] > min_score)
    score = scores[class_id, anchors[place]]
    if len(score) > _MOST_CANDIDATES:
        best = np.argpartition(score, -_MOST_CANDIDATES)[-_MOST_CANDIDATES:]
        class_id, place, score = class_id[best], place[best], score[best]
    boxes = raw[:4, anchors[place]].T.astype(np.float64)
    boxes[:, :2] -= boxes[:, 2:] / 2
    # Its types ask for lists; it reads arrays without making any.
    nms: Any = cv2.dnn.NMSBoxesBatched
    kept = np.asarray(nms(boxes, score, class_id, 0.0, max_iou), dtype=np.int64).reshape(-1)
    kept = kept[np.argsort(-score[kept], kind="stable")][:most]
    boxes = boxes[kept]
    boxes[:, 2:] += boxes[:, :2]
    (height, width), (left, top) = size, geometry.offset
    scale = np.array([width / geometry.inner[1], height / geometry.inner[0]] * 2)
    xyxy = np.clip((boxes - [left, top, left, top]) * scale, 0, [width, height, width, height])
    return Detections(xyxy.astype(np.float32), score[kept], class_id[kept].astype(np.int64))
