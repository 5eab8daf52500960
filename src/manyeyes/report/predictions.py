"""Predictions for people and scripts: lines, JSON lines, pictures and videos with boxes."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from manyeyes.datasets.detections import Detections
from manyeyes.errors import ResourceError
from manyeyes.report.pictures import draw_detections
from manyeyes.runtime.predict import Prediction
from manyeyes.runtime.sources import Shown
from manyeyes.runtime.vision import decode
from manyeyes.weights import write_atomically

__all__ = ["show_predictions"]


def show_predictions(
    predictions: Iterable[Prediction], names: Sequence[str], *, out: Path | None = None, as_json: bool = False
) -> int:
    """Print each prediction as it is made; returns how many pictures could not be looked at.

    Args:
        predictions: in the order they are to be shown.
        names: class names.
        out: folder for copies with boxes drawn in, videos as videos; names that repeat get a number.
        as_json: one JSON object a line instead of a sentence.

    Raises:
        ResourceError: `out` cannot be written.
    """
    failed = 0
    drawings = _Drawings(out, names) if out else None
    try:
        for prediction in predictions:
            shown, found = prediction.shown, prediction.detections
            if found is None:
                failed += 1
                print(_failure(prediction, as_json), file=sys.stdout if as_json else sys.stderr)
                continue
            drawn = drawings.add(shown, found) if drawings else None
            print(_line(shown, found, names, drawn, as_json), flush=True)  # noqa: T201
    finally:
        if drawings:
            drawings.close()
    return failed


def _failure(prediction: Prediction, as_json: bool) -> str:
    if as_json:
        return json.dumps({"image": prediction.shown.name, "error": prediction.error}, ensure_ascii=False)
    return f"{prediction.shown.name}: {prediction.error}"


def _line(shown: Shown, detections: Detections, names: Sequence[str], drawn: Path | None, as_json: bool) -> str:
    if as_json:
        value: dict[str, Any] = {"image": shown.name}
        if shown.frame is not None:
            value |= {"frame": shown.frame, "seconds": round(shown.seconds or 0.0, 3)}
        value |= {"detections": detections.to_list(names)}
        return json.dumps(value | ({"drawn": str(drawn)} if drawn else {}), ensure_ascii=False)
    counts = Counter(names[class_id] for class_id in detections.class_id)
    found = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "nothing"
    return f"{shown.name}: {found}" + (f" → {drawn}" if drawn else "")


class _Drawings:
    """Copies of pictures with boxes, in one folder."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, names
        self._used: Counter[str] = Counter()
        self._videos: dict[str, tuple[Path, cv2.VideoWriter]] = {}

    def add(self, shown: Shown, found: Detections) -> Path:
        """Draw one picture; returns the file that it is in."""
        picture = decode(shown.picture).picture if isinstance(shown.picture, bytes) else shown.picture.picture  # type: ignore[union-attr]
        boxes = [
            [*map(float, box), float(score), int(class_id)]
            for box, score, class_id in zip(found.xyxy, found.score, found.class_id, strict=True)
        ]
        drawn = draw_detections(picture, boxes, self._names)
        if shown.video and shown.rate:
            return self._add_frame(shown.video, shown.rate, drawn)
        path = self._free(Path(shown.name.rpartition("#")[0] or shown.name).stem, ".jpg")
        done, data = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 92])
        if not done:
            raise ResourceError("cannot be encoded as a JPEG", file=path)
        write_atomically(path, data.tobytes())
        return path

    def close(self) -> None:
        """Finish the videos."""
        for _, writer in self._videos.values():
            writer.release()

    def _add_frame(self, video: str, rate: float, drawn: NDArray[np.uint8]) -> Path:
        if video not in self._videos:
            path = self._free(Path(video).stem, ".mp4")
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (drawn.shape[1], drawn.shape[0])
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
            if not writer.isOpened():
                raise ResourceError("cannot be written as a video", file=path)
            self._videos[video] = path, writer
        path, writer = self._videos[video]
        writer.write(drawn)
        return path

    def _free(self, stem: str, suffix: str) -> Path:
        self._used[stem + suffix] += 1
        count = self._used[stem + suffix]
        return self._folder / (f"{stem}{suffix}" if count == 1 else f"{stem}_{count}{suffix}")
