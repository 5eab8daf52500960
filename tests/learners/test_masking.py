"""A class that a site does not mark must not be unlearnt from its pictures: the reason this project exists."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from manyeyes.config import AugmentSection
from manyeyes.datasets.classes import pool, relabel
from manyeyes.datasets.sample import Dataset
from manyeyes.learners import yolo
from manyeyes.learners.augmentation import Augmentation
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import Template
from manyeyes.learners.training import Batch
from manyeyes.weights import Update, Weights

from .conftest import NAMES, small_plan

PERSON, CAR, TV = range(3)
ROWS = [f"model.22.cv3.{scale}.2.{kind}" for scale in range(3) for kind in ("weight", "bias")]
BIASES = ROWS[1::2]


def sees_cars(template: Template) -> Weights:
    """Weights that take a third of everything for a car: each picture without a marked car argues against it."""
    changed = {}
    for name in BIASES:
        changed[name] = template.weights[name].copy()
        changed[name][CAR] = -0.7
    return template.weights.replace(changed)


def marks(site: Dataset, *names: str) -> Dataset:
    return relabel(replace(site, annotates=frozenset(names)), NAMES)


def only_persons(sample: Any) -> Any:
    keep = sample.class_id == PERSON
    return replace(sample, xyxy=sample.xyxy[keep], class_id=sample.class_id[keep])


def forgot_cars(site: Dataset) -> Dataset:
    """The same pictures and boxes as `marks(site, "person")`, but claimed to have been searched for all classes."""
    splits = {split: [only_persons(s) for s in samples] for split, samples in site.splits.items()}
    return replace(site, splits=splits, annotates=frozenset(NAMES))


def fit(learner: DetectorLearner, weights: Weights, data: Dataset, **asked: Any) -> Update:
    return learner.fit(weights, data, small_plan(**{"weight_decay": 0.0, "epochs": 2, **asked}))


def rows(update: Update, class_id: int) -> list[np.ndarray[Any, Any]]:
    return [update.delta[name][class_id] for name in ROWS]


# -- after training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_class_the_site_does_not_mark_keeps_its_rows_bit_by_bit(
    learner: DetectorLearner, template: Template, site: Dataset, optimizer: str
) -> None:
    update = fit(learner, sees_cars(template), marks(site, "person"), optimizer=optimizer)
    assert all(not row.any() for row in rows(update, CAR))
    assert all(not row.any() for row in rows(update, TV))
    assert all(row.any() for row in rows(update, PERSON))


def test_without_the_mask_unmarked_cars_are_unlearnt(
    learner: DetectorLearner, template: Template, site: Dataset
) -> None:
    update = fit(learner, sees_cars(template), forgot_cars(site))
    assert all(update.delta[name][CAR] < 0 for name in BIASES)


def test_a_site_that_marks_cars_teaches_them(learner: DetectorLearner, template: Template, site: Dataset) -> None:
    update = fit(learner, template.weights, marks(site, "person", "car"))
    assert all(row.any() for row in rows(update, CAR))
    assert all(not row.any() for row in rows(update, TV))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_is_all_that_reaches_an_unmarked_class(
    learner: DetectorLearner, template: Template, site: Dataset, optimizer: str
) -> None:
    asked: dict[str, Any] = {"weight_decay": 0.01, "lr": 0.05, "schedule": "constant", "steps": 4, "momentum": 0.9}
    start = sees_cars(template)
    update = fit(learner, start, marks(site, "person"), optimizer=optimizer, **asked)
    assert all(update.delta[name][CAR] == 0 for name in BIASES)
    for name in ROWS[0::2]:
        row = torch.nn.Parameter(torch.from_numpy(start[name][CAR].copy()))
        alone: torch.optim.Optimizer = torch.optim.SGD([row], 0.05, 0.9, weight_decay=0.01, nesterov=True)
        if optimizer == "adamw":
            alone = torch.optim.AdamW([row], 0.05, (0.9, 0.999), weight_decay=0.01)
        for _ in range(4):
            row.grad = torch.zeros_like(row)
            alone.step()
        expected = row.detach().numpy() - start[name][CAR]
        np.testing.assert_allclose(update.delta[name][CAR], expected, atol=1e-7)


def test_boxes_of_a_class_the_site_does_not_mark_are_no_positives(
    learner: DetectorLearner, template: Template, site: Dataset
) -> None:
    """Some cars are boxed, but the site does not vouch for cars: the boxes teach nothing, foreground included."""
    with_boxes = fit(learner, template.weights, replace(site, annotates=frozenset({"person"})))
    without = fit(learner, template.weights, marks(site, "person"))
    assert with_boxes.delta.value_hash == without.delta.value_hash
    assert [s.class_id.tolist() for s in marks(site, "person").split("train")] == [[PERSON]] * 5


def test_pooled_pictures_teach_each_only_what_was_looked_for_in_it(
    learner: DetectorLearner, template: Template, site: Dataset
) -> None:
    people, screens = marks(site, "person"), marks(site, "person", "tv")
    both = pool({"A": people, "B": screens})
    assert both.annotates == {"person", "tv"}
    update = fit(learner, sees_cars(template), both, batch=5)
    assert all(not row.any() for row in rows(update, CAR))
    assert all(row.any() for row in rows(update, TV))
    assert all(not row.any() for row in rows(fit(learner, template.weights, pool({"A": people})), TV))


def test_the_mask_holds_for_batches_in_parts_and_in_bf16(
    learner: DetectorLearner, template: Template, site: Dataset
) -> None:
    asked = {"batch": 4, "accumulate": 2, "precision": "bf16", "gradient_checkpointing": True}
    update = fit(learner, sees_cars(template), marks(site, "person"), **asked)
    assert all(not row.any() for row in rows(update, CAR))
    assert all(row.any() for row in rows(update, PERSON))


# -- gradients --------------------------------------------------------------------------------------------------------


def logits_gradient(annotated: list[list[float]], boxes: bool = True) -> Tensor:
    """Gradient of the loss at the class scores (picture, class, anchor) of two pictures with a person each."""
    module = yolo.build_module("yolov8n", 64, 3, seed=0).train()
    targets = {
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.zeros(2, 1),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.6]] * 2),
        "annotated": torch.tensor(annotated),
    }
    if not boxes:
        targets |= {"batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    torch.manual_seed(0)
    batch = Batch(torch.rand(2, 3, 64, 64), targets)
    outputs = module(batch.images)
    outputs["scores"].retain_grad()
    yolo.DetectionCriterion(module)(outputs, batch).total.backward()
    gradient: Tensor = outputs["scores"].grad
    return gradient


def test_the_gradient_at_the_scores_of_an_unmarked_class_is_exactly_zero() -> None:
    gradient = logits_gradient([[1, 0, 0], [1, 1, 0]])
    assert not gradient[0, CAR].any()
    assert not gradient[:, TV].any()
    assert (gradient[1, CAR] > 0).all()  # looked for and not there: pushed down everywhere
    assert (gradient[:, PERSON] != 0).all()


def test_the_other_classes_have_the_gradient_they_have_without_a_mask() -> None:
    masked, whole = logits_gradient([[1, 0, 1], [1, 0, 1]]), logits_gradient([[1, 1, 1], [1, 1, 1]])
    torch.testing.assert_close(masked[:, PERSON], whole[:, PERSON])
    torch.testing.assert_close(masked[:, TV], whole[:, TV])


def test_pictures_without_objects_still_say_what_is_not_there() -> None:
    gradient = logits_gradient([[1, 0, 0], [1, 1, 1]], boxes=False)
    assert torch.isfinite(gradient).all()
    assert not gradient[0, CAR].any()
    assert (gradient[0, PERSON] > 0).all()
    assert (gradient[1] > 0).all()


# -- mosaic -----------------------------------------------------------------------------------------------------------

COLOURS = [(0, 0, 200), (200, 0, 0), (0, 200, 0)]
GROUPS = [frozenset({PERSON}), frozenset({PERSON, CAR}), frozenset({TV})]


def coloured(section: AugmentSection) -> Augmentation:
    """Pictures of one colour for each set of annotated classes."""
    kinds = [0, 1, 2, 1, 0, 0, 1]
    return Augmentation(
        [np.full((48, 64, 3), COLOURS[kind], dtype=np.uint8) for kind in kinds],
        [np.array([[0.25, 0.25, 0.75, 0.75]], dtype=np.float32) for _ in kinds],
        [np.array([min(GROUPS[kind])]) for kind in kinds],
        [GROUPS[kind] for kind in kinds],
        64,
        section,
    )


def test_a_mosaic_is_made_of_pictures_searched_for_the_same_classes() -> None:
    augmentation = coloured(AugmentSection(mosaic=1, hsv_h=0, hsv_s=0, hsv_v=0, scale=0.4))
    kinds = [0, 1, 2, 1, 0, 0, 1]
    for index, kind in enumerate(kinds):
        for seed in range(6):
            drawn = augmentation.draw(index, mosaic=True, seed=seed)
            rgb = drawn.image.permute(1, 2, 0).numpy().reshape(-1, 3).astype(int)
            for other in {0, 1, 2} - {kind}:
                near = np.abs(rgb - np.array(COLOURS[other])[::-1]).max(axis=1) < 40
                assert not near.any()
            assert set(drawn.objects[:, 0].tolist()) <= {float(min(GROUPS[kind]))}
