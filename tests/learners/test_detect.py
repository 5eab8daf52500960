from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from manyeyes.datasets import load_dataset
from manyeyes.datasets.classes import relabel
from manyeyes.datasets.detections import Detections
from manyeyes.datasets.sample import Dataset
from manyeyes.errors import DataError
from manyeyes.learners.average_precision import box_iou
from manyeyes.learners.detector import MAX_DETECTIONS, DetectorLearner
from manyeyes.learners.learner import Template
from manyeyes.learners.pictures import PictureCache, read_picture, resize_long_side
from manyeyes.runtime.vision import decode

from .conftest import small_plan


def street_pictures(streets: Dataset, count: int) -> list[Path]:
    """Of several shapes: a tall one among wide ones."""
    samples = sorted(streets.split("train"), key=lambda s: (s.width / s.height, s.image.name))
    return [samples[i].image for i in np.linspace(0, len(samples) - 1, count).astype(int)]


def assert_same_finds(a: Detections, b: Detections, pixels: float = 0.05, score: float = 1e-4) -> None:
    assert len(a) == len(b)
    np.testing.assert_allclose(a.xyxy, b.xyxy, atol=pixels)
    np.testing.assert_allclose(a.score, b.score, atol=score)
    np.testing.assert_array_equal(a.class_id, b.class_id)


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "16 bits, three channels", "16 bits, TIFF"])
def test_a_grey_or_infrared_picture_is_seen_in_three_channels_with_its_whole_contrast(
    tmp_path: Path, kind: str
) -> None:
    ramp = np.linspace(0, 1, 64)[None].repeat(48, axis=0)
    made: dict[str, tuple[str, Any]] = {
        "8 bits": ("png", (255 * ramp).astype(np.uint8)),
        # A scene of a few degrees, as a camera of 14 bits writes it.
        "16 bits": ("png", (7200 + 300 * ramp).astype(np.uint16)),
        "16 bits, three channels": ("png", (7200 + 300 * ramp).astype(np.uint16)[:, :, None].repeat(3, axis=2)),
        "16 bits, TIFF": ("tiff", (7200 + 300 * ramp).astype(np.uint16)),
    }
    suffix, values = made[kind]
    path = tmp_path / f"x.{suffix}"
    assert cv2.imwrite(str(path), values)
    picture = read_picture(path)
    assert (picture.shape, picture.dtype) == ((48, 64, 3), np.uint8)
    assert (picture.min(), picture.max()) == (0, 255)
    assert (np.diff(picture[0, :, 0].astype(int)) >= 0).all()
    np.testing.assert_array_equal(picture[..., 0], picture[..., 2])
    np.testing.assert_array_equal(decode(path.read_bytes()).picture, picture)


def test_a_picture_gives_the_same_boxes_alone_and_in_company(
    official: Template, official_learner: DetectorLearner, streets: Dataset
) -> None:
    pictures = street_pictures(streets, 6)
    together = official_learner.detect(official.weights, pictures, 320, min_score=0.2)
    assert sum(len(found) for found in together) > 10
    for picture, found in zip(pictures, together, strict=True):
        assert_same_finds(official_learner.detect(official.weights, [picture], 320, min_score=0.2)[0], found)
    turned = official_learner.detect(official.weights, pictures[::-1], 320, min_score=0.2, batch=2)[::-1]
    for a, b in zip(together, turned, strict=True):
        assert_same_finds(a, b)


@pytest.mark.shared
def test_boxes_lie_inside_the_picture_best_first(
    official: Template, official_learner: DetectorLearner, streets: Dataset
) -> None:
    samples = streets.split("train")[:4]
    for sample, found in zip(
        samples, official_learner.detect(official.weights, [s.image for s in samples], 320), strict=True
    ):
        assert 0 < len(found) <= MAX_DETECTIONS
        assert (found.xyxy >= 0).all()
        assert (found.xyxy <= [sample.width, sample.height] * 2).all()
        assert (found.xyxy[:, 2:] >= found.xyxy[:, :2]).all()
        assert (np.diff(found.score) <= 0).all()
        assert found.score.min() >= 0.001
        assert (found.xyxy.dtype, found.class_id.dtype) == (np.float32, np.int64)
        for class_id in np.unique(found.class_id):
            boxes = found.xyxy[found.class_id == class_id].astype(np.float64)
            overlap = box_iou(boxes, boxes) - np.eye(len(boxes))
            free = (boxes > 1).all(axis=1) & (boxes < np.array([sample.width, sample.height] * 2) - 1).all(axis=1)
            assert overlap[np.ix_(free, free)].max(initial=0) <= 0.7 + 1e-3  # what is cut at the border was wider


@pytest.mark.shared
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_picture_lying_on_its_side_is_seen_upright(
    official: Template, official_learner: DetectorLearner, streets: Dataset, tmp_path: Path, orientation: int
) -> None:
    images = [s.image for s in streets.split("train")[:12]]
    counts = [len(found) for found in official_learner.detect(official.weights, images, 320, min_score=0.4)]
    upright = np.asarray(Image.open(images[int(np.argmax(counts))]).convert("RGB"))
    turns = {3: 2, 6: 1, 8: 3}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(upright).save(tmp_path / "upright.jpg", quality=95)
    lying = np.ascontiguousarray(np.rot90(upright, turns))
    Image.fromarray(lying).save(tmp_path / "lying.jpg", quality=95, exif=exif)
    paths = [tmp_path / "upright.jpg", tmp_path / "lying.jpg"]
    expected, found = official_learner.detect(official.weights, paths, 320, min_score=0.4)
    assert len(expected) > 2
    assert_same_finds(expected, found, pixels=4, score=0.1)
    assert read_picture(paths[1]).shape == upright.shape


@pytest.mark.shared
def test_the_coco_model_finds_what_is_in_the_streets(
    official: Template, official_learner: DetectorLearner, streets: Dataset
) -> None:
    some = replace(streets, splits={"val": streets.split("test")[:15]})
    metrics = official_learner.evaluate(official.weights, some, "val", 416)
    assert metrics.ap50["car"] > 0.5
    assert metrics.num_images == 15


@pytest.mark.shared
def test_a_score_limit_only_leaves_out_what_is_below(
    official: Template, official_learner: DetectorLearner, streets: Dataset
) -> None:
    images = street_pictures(streets, 3)
    everything = official_learner.detect(official.weights, images, 320)
    limited = official_learner.detect(official.weights, images, 320, min_score=0.2)
    for found, fewer in zip(everything, limited, strict=True):
        assert 0 < len(fewer) < len(found)
        assert_same_finds(found.above(0.2), fewer)


def test_nothing_found_is_an_empty_result(learner: DetectorLearner, template: Template, site: Dataset) -> None:
    found = learner.detect(template.weights, [s.image for s in site.split("val")], 64, min_score=0.99)
    assert [(f.xyxy.shape, len(f)) for f in found] == [((0, 4), 0)] * 5
    assert learner.detect(template.weights, [], 64) == []


def test_weights_are_not_mixed_up_between_tests(learner: DetectorLearner, template: Template, site: Dataset) -> None:
    louder = template.weights.replace({f"model.22.cv3.{i}.2.bias": np.zeros(3, np.float32) for i in range(3)})
    images = [site.split("val")[0].image]
    quiet = learner.detect(template.weights, images, 64)[0]
    loud = learner.detect(louder, images, 64)[0]
    assert loud.score.max() > quiet.score.max(initial=0)
    assert_same_finds(learner.detect(template.weights, images, 64)[0], quiet)


def test_a_test_after_training_sees_the_given_weights(
    learner: DetectorLearner, template: Template, site: Dataset
) -> None:
    images = [s.image for s in site.split("val")]
    before = learner.detect(template.weights, images, 64)
    learner.fit(template.weights, site, small_plan(lr=0.05))
    for a, b in zip(before, learner.detect(template.weights, images, 64), strict=True):
        assert_same_finds(a, b)


def test_sites_are_tested_each_for_its_classes_and_mixed(
    learner: DetectorLearner, template: Template, site: Dataset
) -> None:
    people = relabel(replace(site, annotates=frozenset({"person"})), site.names)
    sites = {"A": people, "B": site, "empty": replace(site, splits={})}
    metrics = learner.test_sites(dict.fromkeys(sites, template.weights), sites, "val", 64)
    assert set(metrics) == {"A", "B", "mixed"}
    assert set(metrics["A"].ap50) == {"person"}
    assert metrics["A"] == learner.evaluate(template.weights, people, "val", 64)
    assert metrics["mixed"].num_objects == {"person": 10, "car": 5}


def test_a_picture_that_cannot_be_read_is_named(learner: DetectorLearner, template: Template, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    for path in (tmp_path / "x.jpg", tmp_path / "missing.jpg"):
        with pytest.raises(DataError, match=path.name):
            learner.detect(template.weights, [path], 64)


# -- decoded pictures -------------------------------------------------------------------------------------------------


def _all(cache: PictureCache, paths: Sequence[Path]) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    return [cache.get(path, side) for path in paths for side in (64, 32, 64)]


def test_a_cache_without_room_gives_the_same_pictures(site: Dataset) -> None:
    paths = [s.image for s in site.split("train")]
    roomy, full = PictureCache(), PictureCache(share=0.0)
    for a, b in zip(_all(roomy, paths), _all(full, paths), strict=True):
        np.testing.assert_array_equal(a, b)
    assert roomy.get(paths[0], 64) is roomy.get(paths[0], 64)
    assert full.get(paths[0], 64) is not full.get(paths[0], 64)
    assert [full.original_size(s.image) for s in site.split("train")] == [
        (s.height, s.width) for s in site.split("train")
    ]


def test_a_cached_picture_cannot_be_written_to(site: Dataset) -> None:
    picture = PictureCache().get(site.split("train")[0].image, 64)
    with pytest.raises(ValueError, match="read-only"):
        picture[0, 0] = 0


@pytest.mark.parametrize("size", [(100, 37), (37, 100), (64, 64), (1, 500), (640, 360), (3, 3)])
@pytest.mark.parametrize("side", [32, 64, 640])
def test_the_long_side_is_what_was_asked_for(size: tuple[int, int], side: int) -> None:
    resized = resize_long_side(np.zeros((*size, 3), dtype=np.uint8), side)
    assert max(resized.shape[:2]) == side
    assert min(resized.shape[:2]) == max(1, round(min(size) * side / max(size)))


def test_grey_and_transparent_pictures_become_three_channels(tmp_path: Path) -> None:
    grey = np.full((8, 9), 77, dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    Image.fromarray(np.full((8, 9, 4), 77, dtype=np.uint8), "RGBA").save(tmp_path / "rgba.png")
    Image.fromarray(np.full((8, 9), 77 * 257, dtype=np.uint16)).save(tmp_path / "deep.png")
    for name in ("grey", "rgba", "deep"):
        picture = read_picture(tmp_path / f"{name}.png")
        assert (picture.shape, picture.dtype) == ((8, 9, 3), np.uint8)
        assert (picture == 77).all()


@pytest.mark.shared
def test_each_street_site_loads_for_the_model(shared_data: Path, official: Template) -> None:
    data = relabel(load_dataset(shared_data / "streets" / "c_night", annotates=["car"]), official.names)
    assert {int(i) for s in data.split("train") for i in s.class_id} == {1}
