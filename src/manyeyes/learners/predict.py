"""Run a model over pictures on disk: what `manyeyes predict` and `manyeyes val` do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from manyeyes.datasets import Dataset
from manyeyes.datasets.classes import relabel
from manyeyes.datasets.detections import Detections
from manyeyes.datasets.pictures import find_pictures, is_picture
from manyeyes.errors import DataError, ManyeyesError
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import Metrics

__all__ = ["Prediction", "find_images", "predict", "validate"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One picture and what was found in it, or why it could not be read."""

    image: Path
    detections: Detections | None
    error: str | None = None


def find_images(sources: Sequence[Path]) -> list[Path]:
    """Pictures named by files and folders, folders searched to any depth, each once, in order.

    Raises:
        DataError: a source does not exist, or there is no picture among them.
    """
    found: dict[Path, None] = {}
    for source in sources:
        if not source.exists():
            raise DataError("does not exist", file=source, cure="Name a picture or a folder of pictures.")
        pictures = find_pictures(source) if source.is_dir() else [source]
        found.update(dict.fromkeys(pictures))
    pictures = list(found)
    if not pictures:
        raise DataError("holds no picture", file=sources[0] if sources else None)
    unknown = [path for path in pictures if not is_picture(path)]
    if unknown:
        raise DataError("is not a picture of a known kind", file=unknown[0], cure="JPEG, PNG, WebP, BMP or TIFF.")
    return pictures


def predict(
    learner: DetectorLearner, images: Sequence[Path], *, imgsz: int, min_score: float, batch: int = 16
) -> Iterator[Prediction]:
    """Find objects in pictures, a batch at a time; a picture that cannot be read is named and passed over."""
    weights = learner.template.weights
    for start in range(0, len(images), batch):
        group = images[start : start + batch]
        try:
            found = learner.detect(weights, group, imgsz, min_score=min_score)
        except DataError:
            yield from (_predict_one(learner, image, imgsz, min_score) for image in group)
            continue
        for image, detections in zip(group, found, strict=True):
            yield Prediction(image, detections)


def _predict_one(learner: DetectorLearner, image: Path, imgsz: int, min_score: float) -> Prediction:
    try:
        return Prediction(image, learner.detect(learner.template.weights, [image], imgsz, min_score=min_score)[0])
    except ManyeyesError as error:
        return Prediction(image, None, str(error))


def validate(learner: DetectorLearner, data: Dataset, split: str, imgsz: int) -> Metrics:
    """Test a model on one split, for the classes that model and dataset both know by name.

    Raises:
        DataError: the split is empty, or model and dataset share no class.
    """
    if not data.split(split):
        there = ", ".join(name for name, samples in data.splits.items() if samples) or "none"
        raise DataError(f"has no split {split!r}", file=data.root, cure=f"Splits with pictures: {there}.")
    names = learner.template.names
    common = frozenset(data.annotates) & frozenset(names)
    if not common:
        raise DataError(
            f"the model knows {', '.join(names[:8])}{' …' if len(names) > 8 else ''}; the dataset has "
            f"{', '.join(sorted(data.annotates))}: no class in common",
            file=data.root,
        )
    return learner.evaluate(learner.template.weights, relabel(replace(data, annotates=common), names), split, imgsz)
