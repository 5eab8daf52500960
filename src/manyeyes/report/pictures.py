"""Detections drawn on pictures, so that they can be read at the size of a postcard."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["class_colour", "draw_detections", "found_and_false"]

Picture = NDArray[np.uint8]
Box = Sequence[float]
Point = tuple[int, int]
Line = tuple[Point, Point]

# Okabe and Ito's palette, told apart by colour-blind people; (red, green, blue), the best visible first.
_COLOURS = (
    (255, 176, 0),
    (86, 190, 245),
    (240, 228, 66),
    (226, 134, 190),
    (0, 190, 140),
    (255, 112, 40),
    (70, 140, 255),
    (235, 235, 235),
)
_INK = (20, 20, 20)
_DASH = 4.0


def class_colour(class_id: int) -> tuple[int, int, int]:
    """The colour a class is drawn in: (red, green, blue), 0 to 255. Eight classes differ, then it starts again."""
    return _COLOURS[class_id % len(_COLOURS)]


def draw_detections(
    image_bgr: NDArray[Any], boxes: Sequence[Box], names: Sequence[str], *, missed: Sequence[Box] = ()
) -> Picture:
    """Draw boxes with a chip "person 0.87" each; the given picture is not changed.

    Args:
        image_bgr: (h, w, 3) uint8, as OpenCV reads it; (h, w) is drawn on as grey.
        boxes: each (x1, y1, x2, y2, score, class_id) in pixels.
        names: class names; a class id without one is shown by its number.
        missed: true objects that were not found, each (x1, y1, x2, y2, class_id); drawn dashed and without a chip.

    Returns:
        (h, w, 3) uint8.
    """
    image: Any = cv2.cvtColor(image_bgr, cv2.COLOR_GRAY2BGR) if image_bgr.ndim == 2 else image_bgr.copy()
    ordered = sorted(boxes, key=lambda box: box[4])
    lines = [(line, int(box[4])) for box in missed for line in _dashes(_corners(image, box), _stroke(image))]
    lines += [(line, int(box[5])) for box in ordered for line in _sides(_corners(image, box))]
    if not lines:
        return np.asarray(image, np.uint8)
    shadow = image.copy()
    for (start, end), _ in lines:
        cv2.line(shadow, start, end, _INK, _stroke(image) + 2, cv2.LINE_AA)
    # Half a shadow: enough to tell a bright frame from a bright ground, too little to be seen as a frame itself.
    image = cv2.addWeighted(image, 0.5, shadow, 0.5, 0.0)
    for (start, end), class_id in lines:
        cv2.line(image, start, end, _bgr(class_colour(class_id)), _stroke(image), cv2.LINE_AA)
    return _with_chips(image, ordered, names)


def found_and_false(truth: Sequence[Box], boxes: Sequence[Box], iou: float = 0.5) -> tuple[list[bool], int]:
    """Which true objects were found, and how many detections meet none.

    The best scored detection chooses first; class and overlap (intersection over union) must fit.

    Args:
        truth: each (x1, y1, x2, y2, class_id).
        boxes: each (x1, y1, x2, y2, score, class_id).

    Returns:
        one bool for each true object, and the number of detections left over.
    """
    found = [False] * len(truth)
    false = 0
    for box in sorted(boxes, key=lambda box: -box[4]):
        free = [i for i, true in enumerate(truth) if not found[i] and int(true[4]) == int(box[5])]
        best = max(free, key=lambda i: _iou(truth[i], box), default=None)
        if best is None or _iou(truth[best], box) < iou:
            false += 1
        else:
            found[best] = True
    return found, false


def _iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def _stroke(image: Any) -> int:
    return 1 + round(int(min(image.shape[:2])) / 400)


def _bgr(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    return colour[2], colour[1], colour[0]


def _corners(image: Any, box: Box) -> tuple[Point, Point]:
    """Whole pixels, so that lines are crisp, and inside the picture by half a stroke, so that they are seen."""
    height, width = image.shape[:2]
    margin = _stroke(image) // 2
    xs = np.clip([box[0], box[2]], margin, max(margin, width - 1 - margin))
    ys = np.clip([box[1], box[3]], margin, max(margin, height - 1 - margin))
    return (round(xs[0]), round(ys[0])), (round(xs[1]), round(ys[1]))


def _sides(corners: tuple[Point, Point]) -> list[Line]:
    (x1, y1), (x2, y2) = corners
    return list(itertools.pairwise([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]))


def _dashes(corners: tuple[Point, Point], stroke: int) -> list[Line]:
    """An odd number of equal parts a side, every other one drawn: all four corners are there."""
    dashes = []
    for (x1, y1), (x2, y2) in _sides(corners):
        count = max(1, round(max(abs(x2 - x1), abs(y2 - y1)) / (_DASH * stroke))) | 1
        points = [(round(x1 + (x2 - x1) * i / count), round(y1 + (y2 - y1) * i / count)) for i in range(count + 1)]
        dashes += list(itertools.pairwise(points))[::2]
    return dashes


def _with_chips(image: Any, boxes: Sequence[Box], names: Sequence[str]) -> Picture:
    """Labels are set with Pillow: OpenCV's own letters are strokes that fall apart at small sizes."""
    canvas = Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    draw = ImageDraw.Draw(canvas)
    size = max(10, 6 + min(image.shape[:2]) // 48)
    taken: list[tuple[float, float, float, float]] = []
    for box in reversed(boxes):
        class_id = int(box[5])
        name = names[class_id] if 0 <= class_id < len(names) else str(class_id)
        text, font = _text_and_font(f"{name} {box[4]:.2f}", size)
        place = _chip_place(box, draw.textlength(text, font=font) + size * 0.7, size * 1.35, canvas.size, taken)
        if place is None:
            continue
        taken.append(place)
        draw.rounded_rectangle(place, radius=size * 0.25, fill=class_colour(class_id))
        draw.text((place[0] + size * 0.35, (place[1] + place[3]) / 2), text, fill=_INK, font=font, anchor="lm")
    return np.asarray(cv2.cvtColor(np.asarray(canvas), cv2.COLOR_RGB2BGR), np.uint8)


def _chip_place(
    box: Box, width: float, height: float, size: tuple[int, int], taken: Sequence[tuple[float, float, float, float]]
) -> tuple[float, float, float, float] | None:
    """Above the box, else inside its top, else below it: the first place that is in the picture and free.

    None if there is none: in a crowd, a chip over another tells less than the colour of the frame alone.
    """
    x = min(max(box[0], 0.0), max(size[0] - width, 0.0))
    tops = [y for y in (box[1] - height, box[1], box[3]) if 0 <= y <= size[1] - height]
    free = [y for y in tops if not any(_overlap((x, y, x + width, y + height), other) for other in taken)]
    return (x, free[0], x + width, free[0] + height) if free else None


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _text_and_font(text: str, size: int) -> tuple[str, Any]:
    """Pillow's own font knows plain letters only; other names need a font of the system, or lose their marks."""
    if text.isascii():
        return text, _font(size)
    wide = _system_font(size)
    if wide is not None:
        return text, wide
    plain = unicodedata.normalize("NFKD", text)
    return "".join(c if c.isascii() else "?" for c in plain if not unicodedata.combining(c)), _font(size)


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


@lru_cache(maxsize=8)
def _system_font(size: int) -> Any:
    for name in ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf"):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None
