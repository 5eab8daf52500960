from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from manyeyes.errors import DataError
from manyeyes.federation.site_pictures import SitePictures


@pytest.fixture
def folder(scenes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scenes / "a_office", tmp_path / "secret_place"))


def test_pictures_that_are_away_are_refused_without_their_place_and_taken_again_when_they_are_back(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = SitePictures(folder)
    data = pictures.current()
    folder.rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            pictures.current()
        assert caught.value.reason == "this site's pictures cannot be read at the moment"
    assert str(folder) in caplog.text
    (tmp_path / "away").rename(folder)
    assert pictures.current() is data


def test_an_empty_mount_point_is_no_data_set(folder: Path) -> None:
    pictures = SitePictures(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(DataError, match="cannot be read at the moment"):
        pictures.current()


def test_without_a_picture_that_was_taken_out_the_site_goes_on(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = SitePictures(folder)
    before = pictures.current().split("train")
    with caplog.at_level(logging.WARNING):
        before[0].image.unlink()
        after = pictures.current()
    assert len(after.split("train")) == len(before) - 1
    assert f"{len(before) - 1} are left" in caplog.text
    assert pictures.current() is after
