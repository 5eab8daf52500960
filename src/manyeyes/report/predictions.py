"""Predictions for people and scripts: lines, JSON lines, pictures with boxes."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from manyeyes.datasets.detections import Detections
from manyeyes.errors import ResourceError
from manyeyes.report.pictures import draw_detections
from manyeyes.weights import write_atomically

__all__ = ["Predicted", "show_predictions"]


class Predicted(Protocol):
    """What was found in one picture, or why it could not be read."""

    @property
    def image(self) -> Path:
        """The picture."""

    @property
    def detections(self) -> Detections | None:
        """What was found; None if the picture could not be read."""

    @property
    def error(self) -> str | None:
        """Why it could not be read."""


def show_predictions(
    predictions: Iterable[Predicted], names: Sequence[str], *, out: Path | None = None, as_json: bool = False
) -> int:
    """Print each prediction as it is made; returns how many pictures could not be read.

    Args:
        predictions: in the order they are to be shown.
        names: class names.
        out: folder for copies with boxes drawn in; names that repeat get a number.
        as_json: one JSON object a line instead of a sentence.

    Raises:
        ResourceError: `out` cannot be written.
    """
    failed = 0
    used: Counter[str] = Counter()
    for prediction in predictions:
        if prediction.detections is None:
            failed += 1
            print(_failure(prediction, as_json), file=sys.stdout if as_json else sys.stderr)
            continue
        drawn = _draw(prediction, names, out, used) if out else None
        print(_line(prediction.image, prediction.detections, names, drawn, as_json), flush=True)  # noqa: T201
    return failed


def _failure(prediction: Predicted, as_json: bool) -> str:
    if as_json:
        return json.dumps({"image": str(prediction.image), "error": prediction.error}, ensure_ascii=False)
    return str(prediction.error)


def _line(image: Path, detections: Detections, names: Sequence[str], drawn: Path | None, as_json: bool) -> str:
    if as_json:
        value = {"image": str(image), "detections": detections.to_list(names)}
        return json.dumps(value | ({"drawn": str(drawn)} if drawn else {}), ensure_ascii=False)
    counts = Counter(names[class_id] for class_id in detections.class_id)
    found = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "nothing"
    return f"{image}: {found}" + (f" → {drawn}" if drawn else "")


def _draw(prediction: Predicted, names: Sequence[str], out: Path, used: Counter[str]) -> Path:
    picture = cv2.imread(str(prediction.image), cv2.IMREAD_COLOR)
    found = prediction.detections
    if picture is None or found is None:
        raise ResourceError("cannot be read any more", file=prediction.image)
    boxes = [
        [*map(float, box), float(score), int(class_id)]
        for box, score, class_id in zip(found.xyxy, found.score, found.class_id, strict=True)
    ]
    stem = prediction.image.stem
    used[stem] += 1
    path = out / (f"{stem}.jpg" if used[stem] == 1 else f"{stem}_{used[stem]}.jpg")
    drawn = draw_detections(np.asarray(picture, dtype=np.uint8), boxes, names)
    done, data = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 92])
    if not done:
        raise ResourceError("cannot be encoded as a JPEG", file=path)
    write_atomically(path, data.tobytes())
    return path
