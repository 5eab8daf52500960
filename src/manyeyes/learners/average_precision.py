"""Average precision after the COCO protocol, for classes that not every picture was searched for.

Source: T.-Y. Lin et al., Microsoft COCO, 2014, and the reference evaluator of its authors: detections of a picture are
matched in order of score, each to the free object it overlaps most; precision is made monotone and read at 101 recalls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyeyes.datasets.detections import Detections
from manyeyes.datasets.sample import Sample
from manyeyes.learners.learner import Metrics

__all__ = ["IOU_THRESHOLDS", "average_precision", "box_iou"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)

Floats = NDArray[np.float64]


def average_precision(
    detections: Sequence[Detections],
    samples: Sequence[Sample],
    names: Sequence[str],
    annotates: frozenset[int] | None = None,
) -> Metrics:
    """AP at IoU 0.5 and over 0.50:0.05:0.95 of each class that has objects.

    A class counts only in pictures it was looked for in: `Sample.annotates`, or `annotates` where that is None, or all
    classes where both are. Every detection counts; keep at most 300 a picture when you make them.

    Args:
        detections: one for each sample, same order.
        samples: pictures with their objects.
        names: class names.
        annotates: class ids looked for in pictures that do not say so themselves.
    """
    ap50: dict[str, float] = {}
    ap: dict[str, float] = {}
    counts: dict[str, int] = {}
    for class_id, name in enumerate(names):
        pairs = [
            _match_picture(found, sample, class_id)
            for found, sample in zip(detections, samples, strict=True)
            if _looked_for(class_id, sample, annotates)
        ]
        num_objects = sum(pair.num_objects for pair in pairs)
        if not num_objects:
            continue
        score = np.concatenate([pair.score for pair in pairs])
        matched = np.concatenate([pair.matched for pair in pairs], axis=1)
        per_threshold = _interpolated_precision(score, matched, num_objects)
        ap50[name], ap[name], counts[name] = float(per_threshold[0]), float(per_threshold.mean()), num_objects
    return Metrics(ap50, ap, num_images=len(samples), num_objects=counts)


def _looked_for(class_id: int, sample: Sample, annotates: frozenset[int] | None) -> bool:
    classes = sample.annotates if sample.annotates is not None else annotates
    return classes is None or class_id in classes


@dataclass(frozen=True, slots=True)
class _Matches:
    """One class in one picture: score (n,), matched (10, n) for each IoU threshold, number of objects."""

    score: Floats
    matched: NDArray[np.bool_]
    num_objects: int


def _match_picture(found: Detections, sample: Sample, class_id: int) -> _Matches:
    mine = found.class_id == class_id
    order = np.argsort(-found.score[mine], kind="stable")
    score = found.score[mine][order].astype(np.float64)
    boxes = found.xyxy[mine][order].astype(np.float64)
    objects = sample.xyxy[sample.class_id == class_id].astype(np.float64)
    matched = np.zeros((len(IOU_THRESHOLDS), len(score)), dtype=bool)
    if len(score) and len(objects):
        iou = box_iou(boxes, objects)
        free = np.ones((len(IOU_THRESHOLDS), len(objects)), dtype=bool)
        rows = np.arange(len(IOU_THRESHOLDS))
        for index in np.flatnonzero(iou.max(axis=1) >= IOU_THRESHOLDS[0]):
            candidates = np.where(free, iou[index], -1.0)
            # Of two objects overlapped equally the reference takes the later one.
            best = candidates.shape[1] - 1 - candidates[:, ::-1].argmax(axis=1)
            hit = candidates[rows, best] >= IOU_THRESHOLDS
            matched[hit, index] = True
            free[rows[hit], best[hit]] = False
    return _Matches(score, matched, len(objects))


def box_iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union of every box of a (n, 4) with every box of b (m, 4), xyxy; (n, m)."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    areas = (a[:, 2:] - a[:, :2]).prod(axis=1)[:, None] + (b[:, 2:] - b[:, :2]).prod(axis=1)[None, :]
    iou: Floats = overlap / np.maximum(areas - overlap, 1e-12)
    return iou


def _interpolated_precision(score: Floats, matched: NDArray[np.bool_], num_objects: int) -> Floats:
    """AP at each threshold, (10,)."""
    order = np.argsort(-score, kind="stable")
    true = matched[:, order].cumsum(axis=1, dtype=np.float64)
    ranks = np.arange(1, len(score) + 1)
    recall, precision = true / num_objects, true / ranks
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.zeros(len(IOU_THRESHOLDS))
    for row in range(len(IOU_THRESHOLDS)):
        first = np.searchsorted(recall[row], _RECALLS, side="left")
        reached = first < len(score)
        result[row] = envelope[row][first[reached]].sum() / len(_RECALLS)
    return result
