from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from PIL import Image

from manyeyes.datasets.pictures import picture_size


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_picture_as_opencv_shows_it(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{suffix}"
    Image.new("RGB", (30, 20)).save(file, exif=exif)
    decoded = cv2.imread(str(file))
    assert decoded is not None
    assert picture_size(file) == (decoded.shape[1], decoded.shape[0])
