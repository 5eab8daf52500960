"""What a detector found in one picture: the one result type that everything else reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Detections"]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Boxes found in one picture, best first.

    Attributes:
        xyxy: (n, 4) float32, corners in pixels of the original picture.
        score: (n,) float32 in [0, 1], descending.
        class_id: (n,) int64, indices into the model's class names.
    """

    xyxy: NDArray[np.float32]
    score: NDArray[np.float32]
    class_id: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.score)

    def above(self, score: float) -> Detections:
        """Those with at least this score."""
        keep = self.score >= score
        return Detections(self.xyxy[keep], self.score[keep], self.class_id[keep])

    def to_list(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """JSON-ready: one ``{"class", "class_id", "score", "xyxy"}`` for each box."""
        return [
            {
                "class": names[class_id],
                "class_id": int(class_id),
                "score": round(float(score), 4),
                "xyxy": [round(float(v), 1) for v in box],
            }
            for box, score, class_id in zip(self.xyxy, self.score, self.class_id, strict=True)
        ]
