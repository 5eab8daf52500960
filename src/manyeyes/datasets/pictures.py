"""What is a picture, and how large it is."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manyeyes.datasets.sample import Reporter

__all__ = [
    "PICTURE_ERRORS",
    "PICTURE_SUFFIXES",
    "find_pictures",
    "is_picture",
    "picture_size",
    "readable_size",
    "shown_size",
    "to_eight_bits",
]

PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
PICTURE_ERRORS = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)

_EXIF_ORIENTATION = 0x0112
# Of the values of a picture; what is hotter or colder than nearly all of it does not decide how the rest is seen.
_DARKEST, _BRIGHTEST = 0.5, 99.5
_SIDEWAYS = frozenset({5, 6, 7, 8})


def is_picture(path: Path) -> bool:
    """Whether the name is that of a picture; macOS' `._x.jpg` companions are not."""
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def find_pictures(folder: Path) -> list[Path]:
    """All pictures under a folder, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if is_picture(path) and path.is_file())


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as the picture is shown, from its header alone.

    Follows EXIF orientation as OpenCV does when it decodes: values 5 to 8 swap the sides (EXIF 2.32, tag 0x0112).

    Raises:
        OSError and the others of `PICTURE_ERRORS`: the header cannot be read.
    """
    with Image.open(path) as image:
        return shown_size(image)


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened picture, as `picture_size` says them.

    Raises:
        OSError and the others of `PICTURE_ERRORS`: the header is damaged.
    """
    width, height = image.size
    # Pillow has turned a TIFF already; of the others it reports the size as stored.
    sideways = image.format != "TIFF" and _orientation(image) in _SIDEWAYS
    return (height, width) if sideways else (width, height)


def _orientation(image: Image.Image) -> int:
    # Not image.getexif(): it decodes a whole PNG and also believes XMP, which OpenCV ignores.
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
    except PICTURE_ERRORS:
        return 1
    value = exif.get(_EXIF_ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def to_eight_bits(picture: NDArray[Any]) -> NDArray[np.uint8]:
    """A picture with 256 values; one that has them already stays as it is.

    Infrared and other measuring cameras write 16 bits, of which a scene fills a narrow part: to divide by 256 would
    leave a grey area. The values that half a percent of it is below, and above, become 0 and 255, as in
    the displays of such cameras.

    Args:
        picture: (h, w) or (h, w, channels), whole numbers; channels are stretched alike. One without any contrast is
            divided.
    """
    if picture.dtype == np.uint8:
        return np.asarray(picture, dtype=np.uint8)
    low, high = np.percentile(picture, (_DARKEST, _BRIGHTEST))
    if low == high:
        low, high = 0, np.iinfo(picture.dtype).max
    scaled = (picture - np.float64(low)) * (255 / (high - low))
    return np.asarray(scaled.clip(0, 255).round(), dtype=np.uint8)


def readable_size(path: Path, report: Reporter) -> tuple[int, int] | None:
    """`picture_size`, or None and the problem "unreadable"."""
    try:
        return picture_size(path)
    except PICTURE_ERRORS as error:
        Reporter(report.handler, path, report.split).error("unreadable", f"the picture cannot be opened: {error}")
        return None
