"""Pictures that were added over a site's own folder."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manyeyes.datasets import load_dataset
from manyeyes.datasets.classes import relabel
from manyeyes.datasets.overlay import MarkedBox, Overlay

ID, OTHER = "0" * 16, "f" * 16


def jpeg(folder: Path, size: tuple[int, int] = (64, 48)) -> bytes:
    path = folder / "made.jpg"
    Image.new("RGB", size, (200, 10, 10)).save(path)
    return path.read_bytes()


def box(name: str, *xyxy: float) -> MarkedBox:
    x1, y1, x2, y2 = xyxy
    return MarkedBox(name=name, xyxy=(x1, y1, x2, y2))


@pytest.fixture
def overlay(tmp_path: Path) -> Overlay:
    return Overlay(tmp_path / "overlay")


def test_without_added_pictures_a_dataset_is_itself(overlay: Overlay, scenes: Path) -> None:
    data = load_dataset(scenes / "a_office")
    assert overlay.over(data) is data
    assert overlay.count == 0


def test_added_pictures_are_trained_on_and_tested_on_by_nobody(overlay: Overlay, scenes: Path, tmp_path: Path) -> None:
    data = load_dataset(scenes / "a_office")
    files = sorted(scenes.rglob("*"))
    overlay.add(ID, jpeg(tmp_path), (64, 48), [box("car", 1, 2, 30, 40)], ("person", "car"))
    overlay.add(OTHER, jpeg(tmp_path), (64, 48), [], ("person", "car"))
    added = overlay.over(data)
    assert [len(added.split(split)) - len(data.split(split)) for split in ("train", "val", "test")] == [2, 0, 0]
    sample, background = added.split("train")[-2:]
    assert [added.names[i] for i in sample.class_id] == ["car"]
    assert sample.xyxy.tolist() == [[1, 2, 30, 40]]
    assert sample.image.read_bytes() == jpeg(tmp_path)
    assert len(background.xyxy) == 0
    assert sorted(scenes.rglob("*")) == files, "the site's folder is untouched"


def test_a_class_that_only_an_added_picture_knows_is_looked_for_there_alone(
    overlay: Overlay, scenes: Path, tmp_path: Path
) -> None:
    data = load_dataset(scenes / "a_office", annotates=["person"])
    overlay.add(ID, jpeg(tmp_path), (64, 48), [box("dog", 1, 2, 30, 40), box("cat", 5, 5, 9, 9)], ("dog", "cat"))
    # The model knows no cat; the site marks persons alone.
    known = relabel(overlay.over(data), ("dog", "person", "car"))
    *own, sample = known.split("train")
    assert (sample.class_id.tolist(), sample.annotates) == ([0], {0})
    assert known.annotates == {"person"}
    assert all(one.annotates is None and set(one.class_id.tolist()) <= {1} for one in own)


def test_the_version_tells_what_changed(overlay: Overlay, tmp_path: Path) -> None:
    versions = [overlay.version]
    overlay.add(ID, jpeg(tmp_path), (64, 48), [], ("car",))
    versions.append(overlay.version)
    assert overlay.version == versions[-1]
    overlay.add(ID, jpeg(tmp_path), (64, 48), [box("car", 1, 1, 2, 2)], ("car",))
    versions.append(overlay.version)
    overlay.add(OTHER, jpeg(tmp_path), (64, 48), [], ("car",))
    versions.append(overlay.version)
    overlay.remove(ID)
    overlay.remove(ID)
    versions.append(overlay.version)
    assert len(set(versions)) == 5
    assert [picture.image.stem for picture in overlay.pictures()] == [OTHER]
    assert not list((tmp_path / "overlay").glob(f"{ID}*"))


def test_what_is_damaged_is_named_and_passed_over(
    overlay: Overlay, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overlay.add(ID, jpeg(tmp_path), (64, 48), [], ("car",))
    about = (tmp_path / "overlay" / f"{ID}.json").read_text()
    for number, text in enumerate(("", "{}", "[1]", about.replace('"car"', ""), about.replace("64", "0"))):
        (tmp_path / "overlay" / f"{number:016x}.json").write_text(text)
    (tmp_path / "overlay" / "notes.json").write_text(about)
    unmarked = about.replace('"boxes": []', '"boxes": [{"class": "dog", "xyxy": [1, 1, 2, 2]}]')
    (tmp_path / "overlay" / f"{9:016x}.json").write_text(unmarked)
    (tmp_path / "overlay" / f"{10:016x}.json").write_text(about)  # its picture is missing
    (tmp_path / "overlay" / f"{0:016x}.json").write_text(about)
    with caplog.at_level(logging.WARNING):
        assert [picture.image.stem for picture in overlay.pictures()] == [ID]
    assert f"{9:016x}.json" in caplog.text
    assert np.array_equal(overlay.pictures()[0].sample(("car",)).xyxy, np.zeros((0, 4)))
