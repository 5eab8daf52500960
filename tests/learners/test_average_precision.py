from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.config import ModelSection
from manyeyes.datasets import load_dataset
from manyeyes.datasets.detections import Detections
from manyeyes.datasets.sample import Sample
from manyeyes.learners.average_precision import IOU_THRESHOLDS, average_precision, box_iou
from manyeyes.learners.learner import Metrics

NAMES = ("person", "car", "tv")


def reference(found: Sequence[Detections], samples: Sequence[Sample], names: Sequence[str]) -> Metrics:
    """What the authors of the protocol compute; `maxDets` as many as we keep, no areas."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    images = [{"id": i, "width": s.width, "height": s.height} for i, s in enumerate(samples)]
    truth = [_entry(i, c, box) for i, s in enumerate(samples) for c, box in zip(s.class_id, s.xyxy, strict=True)]
    guesses = [
        {**_entry(i, c, box), "score": float(score)}
        for i, f in enumerate(found)
        for c, box, score in zip(f.class_id, f.xyxy, f.score, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": images,
            "categories": categories,
            "annotations": [{**entry, "id": n + 1} for n, entry in enumerate(truth)],
        }
        coco.createIndex()
        results = COCO()
        results.dataset = {**coco.dataset, "annotations": [{**e, "id": n + 1} for n, e in enumerate(guesses)]}
        results.createIndex()
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.params.maxDets = [1, 10, 300]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # (IoU, recall, class)
    present = [i for i in range(len(names)) if (precision[:, :, i] > -1).all()]
    ap50 = {names[i]: float(precision[0, :, i].mean()) for i in present}
    return Metrics(ap50, {names[i]: float(precision[:, :, i].mean()) for i in present}, len(samples))


def _entry(image: int, class_id: int, box: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(v) for v in box)
    area = (x2 - x1) * (y2 - y1)
    return {
        "image_id": image,
        "category_id": int(class_id),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": area,
        "iscrowd": 0,
        "ignore": 0,
    }


def boxes(rng: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    corner, size = rng.uniform(0, 60, (count, 2)), rng.uniform(5, 40, (count, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def scene(seed: int, pictures: int = 8, ties: bool = False) -> tuple[list[Detections], list[Sample]]:
    """Objects, and finds that are some of them moved a little, some twice, some nowhere."""
    rng = np.random.default_rng(seed)
    found, samples = [], []
    for index in range(pictures):
        truth, classes = boxes(rng, n := int(rng.integers(0, 7))), rng.integers(0, 2, n)
        if n > 2:
            truth[1], classes[1] = truth[0], classes[0]  # an object marked twice is overlapped equally twice
            truth[2], classes[2] = truth[0] + [1, 0, 1, 0], classes[0]
        again = rng.integers(0, n, int(rng.integers(0, 2 * n + 1))) if n else np.zeros(0, dtype=int)
        near = truth[again] + rng.normal(0, rng.choice([0.3, 2, 5]), (len(again), 4)).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        stray = boxes(rng, int(rng.integers(0, 4)))
        label = np.concatenate([classes[again], rng.integers(0, 3, len(stray))]).astype(np.int64)
        score = rng.uniform(size=len(label))
        score = (np.round(score * 3) / 3 if ties else score).astype(np.float32)
        order = np.argsort(-score, kind="stable")
        found.append(Detections(np.concatenate([near, stray])[order], score[order], label[order]))
        samples.append(Sample(Path(f"{index}.jpg"), 100, 100, truth, classes.astype(np.int64)))
    return found, samples


def assert_same(ours: Metrics, theirs: Metrics, tolerance: float = 1e-9) -> None:
    assert ours.ap50 == pytest.approx(theirs.ap50, abs=tolerance)
    assert ours.ap == pytest.approx(theirs.ap, abs=tolerance)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_it_is_what_the_reference_computes_with_and_without_equal_scores(seed: int, ties: bool) -> None:
    found, samples = scene(seed, ties=ties)
    assert_same(average_precision(found, samples, NAMES), reference(found, samples, NAMES))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.sets(st.sampled_from([0, 1, 2])), min_size=8, max_size=8))
def test_a_class_counts_only_in_pictures_it_was_looked_for_in(seed: int, looked_for: list[set[int]]) -> None:
    found, samples = scene(seed)
    marked = [
        Sample(s.image, s.width, s.height, s.xyxy, s.class_id, frozenset(classes))
        for s, classes in zip(samples, looked_for, strict=True)
    ]
    ours = average_precision(found, marked, NAMES)
    for class_id, name in enumerate(NAMES):
        subset = [i for i, classes in enumerate(looked_for) if class_id in classes]
        theirs = reference([found[i] for i in subset], [samples[i] for i in subset], NAMES)
        assert ours.ap50.get(name) == pytest.approx(theirs.ap50.get(name), abs=1e-9)
        assert ours.ap.get(name) == pytest.approx(theirs.ap.get(name), abs=1e-9)


def test_what_the_site_looks_for_holds_where_a_picture_does_not_say() -> None:
    found, samples = scene(3)
    assert "car" in average_precision(found, samples, NAMES).ap50
    only = average_precision(found, samples, NAMES, frozenset({0}))
    assert only.ap50 == {"person": average_precision(found, samples, NAMES).ap50["person"]}


def test_a_class_without_objects_has_no_score() -> None:
    found, samples = scene(4)
    metrics = average_precision(found, samples, NAMES)
    assert "tv" not in metrics.ap50
    assert metrics.num_objects == {
        name: sum(int((s.class_id == i).sum()) for s in samples) for i, name in enumerate(NAMES[:2])
    }


def test_no_pictures_and_no_finds_are_no_crash() -> None:
    empty = average_precision([], [], NAMES)
    assert (empty.ap50, empty.map50, empty.map50_95, empty.num_images) == ({}, 0.0, 0.0, 0)
    _, samples = scene(5)
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert set(average_precision([nothing] * len(samples), samples, NAMES).ap.values()) == {0.0}


def test_finding_every_object_is_one_and_a_stray_below_costs_nothing() -> None:
    _, samples = scene(6)
    perfect = [Detections(s.xyxy, np.full(len(s.class_id), 0.9, np.float32), s.class_id) for s in samples]
    assert average_precision(perfect, samples, NAMES).map50_95 == pytest.approx(1.0)
    stray = Detections(
        np.concatenate([samples[0].xyxy, [[0, 0, 1, 1]]]).astype(np.float32),
        np.append(np.full(len(samples[0].class_id), 0.9), 0.1).astype(np.float32),
        np.append(samples[0].class_id, 0),
    )
    assert average_precision([stray, *perfect[1:]], samples, NAMES).map50 == pytest.approx(1.0)


@given(st.integers(0, 10**6), st.floats(0.1, 10), st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_overlap_does_not_depend_on_order_place_or_unit(seed: int, unit: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = boxes(rng, 4).astype(np.float64), boxes(rng, 3).astype(np.float64)
    iou = box_iou(a, b)
    assert iou.shape == (4, 3)
    assert ((iou >= 0) & (iou <= 1)).all()
    np.testing.assert_allclose(iou, box_iou(b, a).T, atol=1e-12)
    np.testing.assert_allclose(iou, box_iou(a * unit + shift, b * unit + shift), atol=1e-9)
    np.testing.assert_allclose(np.diag(box_iou(a, a)), 1, atol=1e-12)


def test_the_thresholds_are_those_of_coco() -> None:
    np.testing.assert_allclose(IOU_THRESHOLDS, np.arange(50, 100, 5) / 100)


def test_metrics_survive_json_and_can_be_restricted() -> None:
    metrics = average_precision(*scene(7), NAMES)
    assert Metrics.from_dict(metrics.to_dict()) == metrics
    assert metrics.restricted_to(["car"]).map50 == metrics.ap50["car"]
    assert metrics.map50 == pytest.approx(np.mean(list(metrics.ap50.values())))


@pytest.mark.shared
def test_it_is_what_the_reference_computes_on_real_pictures(shared_data: Path) -> None:
    from manyeyes.learners.detector import DetectorLearner
    from manyeyes.learners.models import build_template

    data = load_dataset(shared_data / "streets" / "b_day")
    template = build_template(ModelSection(weights=str(shared_data / "weights" / "yolov8n.pt")), data.names)
    learner = DetectorLearner(template, device="cpu", threads=1)
    samples = data.split("test")
    found = learner.detect(template.weights, [s.image for s in samples], 320)
    ours = average_precision(found, samples, data.names)
    assert ours == learner.evaluate(template.weights, data, "test", 320)
    assert ours.ap50["car"] > 0.3
    assert_same(ours, reference(found, samples, data.names), 0.001)
