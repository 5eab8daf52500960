"""Pictures that leave the server: always encoded anew, so that of the bytes that came nothing is passed on."""

from __future__ import annotations

import cv2
import numpy as np

from manyeyes.report.pictures import draw_detections
from manyeyes.runtime.engine import Found
from manyeyes.runtime.vision import Picture

__all__ = ["drawn", "encoded"]

_JPEG_QUALITY = 90
# ITU-T T.81 writes sides in 16 bits; encoders stop a little earlier.
_JPEG_SIDE = 65_000


def drawn(found: Found) -> bytes:
    """A JPEG of a picture with its boxes, as large as it was looked at."""
    picture, boxes = found.picture, found.detections
    scale = picture.shape[1] / found.size[1], picture.shape[0] / found.size[0]
    rows = [
        (x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1], score, class_id)
        for (x1, y1, x2, y2), score, class_id in zip(boxes.xyxy, boxes.score, boxes.class_id, strict=True)
    ]
    return encoded(draw_detections(picture, rows, found.engine.names))


def encoded(picture: Picture) -> bytes:
    """A JPEG of (h, w, 3) uint8 BGR pixels; smaller where JPEG cannot hold its sides."""
    if max(picture.shape) > _JPEG_SIDE:
        height, width = (max(1, side * _JPEG_SIDE // max(picture.shape)) for side in picture.shape[:2])
        picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1])
