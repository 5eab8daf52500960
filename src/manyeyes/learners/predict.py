"""Models as they come out of training, opened and tested: what `manyeyes predict` and `manyeyes val` do."""

from __future__ import annotations

from pathlib import Path

from manyeyes.datasets import Dataset
from manyeyes.datasets.classes import known_part
from manyeyes.errors import DataError
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import Metrics
from manyeyes.learners.models import open_template
from manyeyes.learners.parity import TorchNetwork
from manyeyes.learners.training import pick_device, pin_threads
from manyeyes.runtime.engine import Engine

__all__ = ["open_trained", "validate"]


def open_trained(path: Path, *, imgsz: int | None = None, threads: int | None = None, device: str = "auto") -> Engine:
    """A `.pt` or `.safetensors` model, run by PyTorch.

    Args:
        path: of it.
        imgsz: long side in pixels; default: as trained.
        threads: CPU threads; default: all this process may use.
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        WeightsError: the file is not a YOLOv8 detector's.
    """
    pin_threads(threads)
    network = TorchNetwork.of(open_template(path), pick_device(device))
    return Engine(network, network.info.weights, imgsz)


def validate(learner: DetectorLearner, data: Dataset, split: str, imgsz: int) -> Metrics:
    """Test a model on one split, for the classes that model and dataset both know by name.

    Raises:
        DataError: the split is empty, or model and dataset share no class.
    """
    if not data.split(split):
        there = ", ".join(name for name, samples in data.splits.items() if samples) or "none"
        raise DataError(f"has no split {split!r}", file=data.root, cure=f"Splits with pictures: {there}.")
    known = known_part(data, learner.template.names)
    return learner.evaluate(learner.template.weights, known, split, imgsz)
