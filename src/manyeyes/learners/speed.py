"""How fast this machine trains and tests a detector: a few real steps, timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from manyeyes.config import TrainSection
from manyeyes.datasets.sample import Dataset
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan
from manyeyes.learners.training import pick_device, pick_precision, pin_threads

__all__ = ["Speed", "measure_speed"]

# The first step of a session is set-up and is not counted; on a GPU single steps are too short to be timed.
_STEPS = {"cpu": 3, "cuda": 24}
# On a CPU the time of a step grows with its pixels, so that a small step says what a large one takes; a GPU is not
# even busy with small ones.
_LARGEST_ON_CPU = {"imgsz": 320, "batch": 8}
_TESTED = 8


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured on one machine with one model.

    Attributes:
        imgsz: side in pixels it was measured at.
        training: frozen layers → pictures a second in training, augmentation included.
        testing: pictures a second in tests.
        start: seconds a session takes before its steps run at that speed.
        machine: what it was measured on, e.g. "cpu with 2 threads in bfloat16".
        load: processes that wanted a core just before, divided by the cores; other work makes all of this slower.
    """

    imgsz: int
    training: Mapping[int, float]
    testing: float
    start: float
    machine: str
    load: float = 0.0

    def training_seconds(self, pictures: float, freeze: int, imgsz: int) -> float:
        """Seconds of one session that sees so many pictures; computing grows with the area of a picture."""
        return self.start + pictures / self.training[freeze] * (imgsz / self.imgsz) ** 2

    def testing_seconds(self, pictures: float, imgsz: int) -> float:
        """Seconds to test so many pictures."""
        return pictures / self.testing * (imgsz / self.imgsz) ** 2


def measure_speed(
    learner: DetectorLearner,
    data: Dataset,
    train: TrainSection,
    freezes: Sequence[int],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Speed:
    """Train a few steps and test a few pictures; the learner's template is left as it was.

    Args:
        learner: of the model that is to be trained.
        data: pictures of one site; two batches of them are used, so that decoding them does not count.
        train: batch, size, device and the rest of the settings to be measured; on a CPU a smaller batch and size are.
        freezes: numbers of frozen layers to measure.
        progress: called with (measurements done, measurements in all).

    Raises:
        DataError: a picture cannot be decoded.
        ResourceError: the device is missing.
    """
    device = pick_device(train.device)
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if device.type == "cpu":
        smaller = {key: min(getattr(train, key), most) for key, most in _LARGEST_ON_CPU.items()}
        train = train.model_copy(update=smaller)
    samples = data.split("train")
    few = samples[:: max(1, len(samples) // (2 * train.batch))][: 2 * train.batch]
    data = replace(data, splits={"train": few})
    training: dict[int, float] = {}
    starts: list[float] = []
    for freeze in freezes:
        progress(len(training), len(freezes) + 1)
        steps = _STEPS[device.type]
        section = train.model_copy(update={"steps": steps, "freeze": freeze, "cache_views": 0})
        began = time.perf_counter()
        # The first of many rounds: the last ones are without mosaic, which is faster.
        update = learner.fit(learner.template.weights, data, FitPlan(train=section, round=0, rounds=100))
        seconds = time.perf_counter() - began
        training[freeze] = update.metrics["images_per_second"]
        starts.append(max(0.0, seconds - steps * min(train.batch, len(few)) / training[freeze]))
    progress(len(training), len(freezes) + 1)
    testing = _testing_speed(learner, data, train.imgsz)
    # The least, since the very first session also waits for libraries that set themselves up once.
    return Speed(train.imgsz, training, testing, min(starts), _machine(device, train), load)


def _testing_speed(learner: DetectorLearner, data: Dataset, imgsz: int) -> float:
    images = [sample.image for sample in data.split("train")][:_TESTED]
    learner.detect(learner.template.weights, images, imgsz)
    began = time.perf_counter()
    learner.detect(learner.template.weights, images, imgsz)
    return len(images) / (time.perf_counter() - began)


def _machine(device: torch.device, train: TrainSection) -> str:
    precision = str(pick_precision(train.precision, device)).removeprefix("torch.")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} in {precision}"
    return f"cpu with {pin_threads(train.threads)} threads in {precision}"
