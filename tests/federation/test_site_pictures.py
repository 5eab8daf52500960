from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from manyeyes.datasets.overlay import Overlay
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


def test_what_was_added_at_the_site_is_trained_on_without_a_restart(folder: Path, tmp_path: Path) -> None:
    overlay = Overlay(tmp_path / "overlay")
    pictures = SitePictures(folder, overlay=overlay)
    own = pictures.current()
    jpeg = own.split("train")[0].image.read_bytes()
    overlay.add("0" * 16, jpeg, (128, 128), [], own.names)
    added = pictures.current()
    assert len(added.split("train")) == len(own.split("train")) + 1
    assert pictures.current() is added
    own.split("train")[0].image.unlink()
    assert len(pictures.current().split("train")) == len(own.split("train"))
    overlay.remove("0" * 16)
    assert len(pictures.current().split("train")) == len(own.split("train")) - 1
