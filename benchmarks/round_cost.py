"""Claims: a round costs at most 3 % beyond the training and testing inside it, and the server's memory is flat.

    python benchmarks/round_cost.py             three sites of yolov8n; 3, 30 and 300 nodes that do not train
    python benchmarks/round_cost.py --quick     fewer pictures; 3 and 30 nodes

The cost of a round is everything outside the learner's `fit` and `evaluate`: messages, checks, merging, checkpoint.
Memory is the peak of what Python and NumPy allocate during a round (tracemalloc), with updates of yolov8n's size from
nodes that answer at once.
"""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cells import arguments, claim, machine, save_cell, show

from manyeyes.config import EvaluateSection, FederationSection, ModelSection, TrainSection
from manyeyes.datasets import Dataset, load_dataset
from manyeyes.datasets.scenes import write_scenes
from manyeyes.federation.client import Client
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.rounds import run_rounds
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import Control, FitPlan, Metrics, ProgressCallback, Template, silent
from manyeyes.learners.models import build_template
from manyeyes.weights import Update, Weights


class Timed:
    """A detector that adds up the seconds it trains and tests."""

    def __init__(self, learner: DetectorLearner) -> None:
        self.learner, self.template, self.seconds = learner, learner.template, 0.0

    def _clock(self, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        answer = work()
        self.seconds += time.perf_counter() - began
        return answer

    def fit(
        self,
        weights: Weights,
        data: Dataset,
        plan: FitPlan,
        progress: ProgressCallback = silent,
        state_folder: Path | None = None,
        control: Control | None = None,
    ) -> Update:
        """As the detector's."""
        update: Update = self._clock(lambda: self.learner.fit(weights, data, plan, progress, state_folder, control))
        return update

    def evaluate(self, weights: Weights, data: Dataset, split: str, imgsz: int | None = None) -> Metrics:
        """As the detector's."""
        metrics: Metrics = self._clock(lambda: self.learner.evaluate(weights, data, split, imgsz))
        return metrics


class Immediate:
    """Answers at once with a small random change to every tensor."""

    def __init__(self, template: Template, expected: tuple[frozenset[str], frozenset[str]]) -> None:
        self.template = template
        names, buffers = expected
        rng = np.random.default_rng(0)
        self.delta = Weights({n: rng.normal(0, 1e-3, template.weights[n].shape) for n in sorted(names)})
        self.buffers = template.weights.select(buffers.__contains__)

    def fit(
        self,
        weights: Weights,
        data: Dataset,
        plan: FitPlan,
        progress: ProgressCallback = silent,
        state_folder: Path | None = None,
        control: Control | None = None,
    ) -> Update:
        """No training."""
        return Update(self.delta, self.buffers, num_examples=100)

    def evaluate(self, weights: Weights, data: Dataset, split: str, imgsz: int | None = None) -> Metrics:
        """No test."""
        return Metrics({}, {}, num_images=0)


def quiet(event: str, **fields: Any) -> None:
    """Nobody listens."""


def hold_rounds(clients: dict[str, Client], learner: DetectorLearner, folder: Path, rounds: int, imgsz: int) -> float:
    """Seconds that some rounds take."""
    began = time.perf_counter()
    run_rounds(
        LocalTransport(clients),
        learner.template,
        train=TrainSection(imgsz=imgsz, epochs=1, batch=8),
        federation=FederationSection(rounds=rounds),
        evaluate=EvaluateSection(),
        seed=0,
        expected=learner.expected_tensors,
        folder=folder,
        emit=quiet,
    )
    return time.perf_counter() - began


def cost(learner: DetectorLearner, folder: Path, *, images: int, rounds: int, imgsz: int) -> tuple[float, float]:
    """(seconds of all rounds, seconds inside the learner)."""
    sites = write_scenes(folder / "scenes", images=images, imgsz=imgsz, seed=0)
    timed = Timed(learner)
    clients = {site: Client(site, timed, load_dataset(path), folder / site) for site, path in sites.items()}
    return hold_rounds(clients, learner, folder / "rounds", rounds, imgsz), timed.seconds


def peak(learner: DetectorLearner, folder: Path, nodes: int) -> float:
    """Peak megabytes of a round with so many nodes."""
    fake = Immediate(learner.template, learner.expected_tensors(FitPlan(train=TrainSection(), round=0, rounds=1)))
    empty = Dataset(folder, learner.template.names, {})
    clients = {f"node-{i:03d}": Client(f"node-{i:03d}", fake, empty, folder / "state") for i in range(nodes)}
    tracemalloc.start()
    hold_rounds(clients, learner, folder / f"rounds-{nodes}", 1, 320)
    highest = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return highest


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    learner = DetectorLearner(build_template(ModelSection(), ("person", "car")))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images, rounds, imgsz = (24, 1, 256) if options.quick else (150, 3, 320)
        whole, inside = cost(learner, folder, images=images, rounds=rounds, imgsz=imgsz)
        counts = (3, 30) if options.quick else (3, 30, 300)
        peaks = {count: peak(learner, folder, count) for count in counts}
    claims = [
        claim(
            "round cost: seconds of a round / seconds of training and testing in it", [whole], [inside], 1.03, "lower"
        ),
        claim(f"round cost: peak MB with {counts[-1]} nodes / with 3", [peaks[counts[-1]]], [peaks[3]], 1.05, "lower"),
    ]
    if not options.quick:
        save_cell("round_cost", "local", {"seed": 0, "machine": machine(), "peaks": peaks, "samples": claims})
    show(claims, options.json)


if __name__ == "__main__":
    main()
