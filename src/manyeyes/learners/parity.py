"""Whether an exported model finds what PyTorch finds, picture by picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from manyeyes.datasets.detections import Detections
from manyeyes.datasets.sample import Sample
from manyeyes.learners.average_precision import average_precision, box_iou
from manyeyes.learners.learner import Metrics, Template
from manyeyes.learners.models import module_of, put
from manyeyes.learners.pictures import picture_bytes
from manyeyes.runtime.engine import Engine
from manyeyes.runtime.model_file import ModelInfo
from manyeyes.runtime.network import Network
from manyeyes.runtime.vision import Canvas, Decoded

__all__ = ["SEEN", "TOLERANCES", "Parity", "TorchNetwork", "as_input", "compare", "measure"]

SEEN = 0.25
"""Scores from here on are what a person sees."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an exported model may be from PyTorch.

    Attributes:
        iou: least overlap of a box with its counterpart of the same class.
        score: greatest difference of their scores.
        missing: greatest share of boxes without a counterpart.
    """

    iou: float
    score: float
    missing: float


# In bfloat16 a number has 8 bits; of two boxes around one object now and then the other is kept.
TOLERANCES = {"fp32": Tolerance(0.98, 0.01, 0.0), "bf16": Tolerance(0.8, 0.1, 0.05)}


@dataclass(frozen=True, slots=True)
class Parity:
    """What the comparison with PyTorch came to.

    Attributes:
        pictures, boxes: compared; boxes with a score of at least 0.25.
        missing: boxes of either side without a counterpart at the other.
        iou, score: least overlap and greatest difference of scores among the others.
    """

    pictures: int
    boxes: int
    missing: int
    iou: float
    score: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the model may be kept."""
        few = self.missing <= tolerance.missing * max(1, self.boxes)
        return few and self.iou >= tolerance.iou and self.score <= tolerance.score

    def __str__(self) -> str:
        if not self.boxes:
            return f"{self.pictures} pictures, in which neither finds anything"
        return (
            f"{self.boxes} boxes in {self.pictures} pictures: {self.missing} without a counterpart, overlap at least"
            f" {self.iou:.3f}, scores differ by at most {self.score:.4f}"
        )


class TorchNetwork:
    """A module in PyTorch, or whatever takes and gives tensors as one does, as a `Network` in float32.

    Args:
        module: images (1, 3, height, width) in [0, 1] → (1, 4 + classes, anchors), alone or first of several.
        info: of the model.
        device: where it takes images; default: the CPU.
    """

    backend = "torch"
    precision = "fp32"

    def __init__(
        self, module: Callable[[torch.Tensor], Any], info: ModelInfo, device: torch.device | None = None
    ) -> None:
        self.info, self.module, self._device = info, module, device or torch.device("cpu")

    @classmethod
    def of(cls, template: Template, device: torch.device | None = None) -> TorchNetwork:
        """A trained model, fused, in evaluation mode."""
        module = module_of(template.architecture, len(template.names))
        put(module, template.weights)
        fused: Any = module.eval().fuse(verbose=False)  # type: ignore[operator]
        info = ModelInfo(
            names=template.names, imgsz=template.imgsz, weights=template.weights.value_hash, precision="fp32"
        )
        return cls(fused.to(device or torch.device("cpu")), info, device)

    def shot(self, shape: tuple[int, int]) -> TorchShot:
        """A canvas of a shape."""
        return TorchShot(self.module, shape, self._device)


class TorchShot:
    """See `Shot`."""

    def __init__(self, module: Callable[[torch.Tensor], Any], shape: tuple[int, int], device: torch.device) -> None:
        self.canvas, self._module, self._device = Canvas(shape), module, device

    @torch.inference_mode()
    def run(self) -> NDArray[np.float32]:
        """See `Shot.run`."""
        raw = self._module(as_input(self.canvas).to(self._device))
        output: NDArray[np.float32] = (raw[0] if isinstance(raw, tuple) else raw)[0].cpu().numpy()
        return output


def as_input(canvas: Canvas) -> torch.Tensor:
    """What is on a canvas as (1, 3, height, width) float32 RGB in [0, 1]."""
    return torch.from_numpy(canvas.pixels).flip(-1).permute(0, 3, 1, 2).float() / 255


def compare(
    reference: Network, other: Network, pictures: Sequence[Decoded], tolerance: Tolerance, imgsz: int
) -> Parity:
    """Run pictures through two networks and look for each box of one among those of the other.

    What the other side finds just below the score from which boxes are looked at counts as a counterpart.

    Args:
        reference, other: the networks.
        pictures: decoded.
        tolerance: a counterpart is of the same class, overlaps by at least `iou` and differs by at most `score`.
        imgsz: long side in pixels.
    """
    engines = Engine(reference, "", imgsz), Engine(other, "", imgsz)
    low, count, missing = SEEN - tolerance.score, 0, 0
    least, greatest = 1.0, 0.0
    for picture in pictures:
        ours, theirs = (engine.predict(picture, min_score=low) for engine in engines)
        count += int((ours.score >= SEEN).sum())
        for these, those in ((ours, theirs), (theirs, ours)):
            iou, score, found = _counterparts(these.above(SEEN), those, tolerance)
            missing += int((~found).sum())
            least = min(least, iou[found].min(initial=1.0))
            greatest = max(greatest, score[found].max(initial=0.0))
    return Parity(len(pictures), count, missing, float(least), float(greatest))


def _counterparts(
    these: Detections, those: Detections, tolerance: Tolerance
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """For each of these boxes: overlap with its best counterpart, difference of scores, whether there is one."""
    if not len(these) or not len(those):
        return np.zeros(len(these)), np.zeros(len(these)), np.zeros(len(these), bool)
    overlap = box_iou(these.xyxy.astype(np.float64), those.xyxy.astype(np.float64))
    difference = np.abs(these.score[:, None].astype(np.float64) - those.score[None])
    fits = (these.class_id[:, None] == those.class_id[None]) & (difference <= tolerance.score)
    best = np.where(fits, overlap, 0.0).argmax(axis=1)
    rows = np.arange(len(these))
    return overlap[rows, best], difference[rows, best], fits[rows, best] & (overlap[rows, best] >= tolerance.iou)


def measure(network: Network, samples: Sequence[Sample], annotates: frozenset[int], imgsz: int) -> Metrics:
    """Average precision of a network on pictures; see `average_precision`.

    Args:
        network: of the model.
        samples: pictures with the model's class ids.
        annotates: classes that somebody looked for in them.
        imgsz: long side in pixels.

    Raises:
        DataError: a picture is gone, or is none.
    """
    engine = Engine(network, "", imgsz)
    found = [engine.predict(picture_bytes(sample.image), min_score=0.001) for sample in samples]
    return average_precision(found, samples, network.info.names, annotates)
