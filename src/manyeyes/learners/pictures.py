"""Decoded pictures, kept in memory as far as they fit: a session reads each of them several times."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import psutil
from numpy.typing import NDArray

from manyeyes.datasets.pictures import to_eight_bits
from manyeyes.errors import DataError

__all__ = ["PictureCache", "picture_bytes", "read_picture", "resize_long_side"]

Picture = NDArray[np.uint8]


def read_picture(path: Path) -> Picture:
    """Decode a picture as (h, w, 3) uint8 BGR, rotated as its EXIF data says.

    A grey or infrared picture of one channel has it three times: the form of the model stays one for all sites.

    Raises:
        DataError: the file cannot be decoded.
    """
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if picture is None:
        raise DataError("cannot be decoded as a picture", file=path, cure="Mend it, or leave it out: --skip-broken.")
    return to_eight_bits(picture)


def picture_bytes(path: Path) -> bytes:
    """What is in a picture's file.

    Raises:
        DataError: it is gone, or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"a picture cannot be read ({error.strerror})", file=path) from error


def resize_long_side(picture: Picture, side: int) -> Picture:
    """Scale so that the longer side has `side` pixels; never beyond it by rounding."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale == 1:
        return picture
    size = (min(round(width * scale), side) or 1, min(round(height * scale), side) or 1)
    interpolation = cv2.INTER_AREA if scale < 0.7 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size, interpolation=interpolation), dtype=np.uint8)


class PictureCache:
    """Pictures decoded and scaled once; many threads may ask for them.

    Args:
        share: share of the memory available now that the cache may fill; what does not fit is decoded each time.
        most: bytes that it may fill at most.
    """

    def __init__(self, share: float = 0.25, most: int | None = None) -> None:
        self._kept: dict[tuple[Path, int], Picture] = {}
        self._sizes: dict[Path, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._room = int(psutil.virtual_memory().available * share)
        if most is not None:
            self._room = min(self._room, most)
        self.room = self._room
        """Bytes that it may fill, when it is empty."""

    def get(self, path: Path, side: int) -> Picture:
        """The picture with its longer side scaled to `side` pixels, (h, w, 3) uint8 BGR; must not be written to."""
        key = (path, side)
        picture = self._kept.get(key)
        if picture is None:
            whole = read_picture(path)
            self._sizes[path] = (whole.shape[0], whole.shape[1])
            picture = resize_long_side(whole, side)
            picture.setflags(write=False)
            with self._lock:
                if key not in self._kept and picture.nbytes <= self._room:
                    self._kept[key] = picture
                    self._room -= picture.nbytes
        return picture

    def original_size(self, path: Path) -> tuple[int, int]:
        """(height, width) in pixels of a picture that was got before, as it lies on disk."""
        return self._sizes[path]
