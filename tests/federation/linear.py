"""A small real learner in NumPy: normalise (BatchNorm), then linear regression by gradient descent.

A sample's boxes are read as rows (x0, x1, x2, y). Run as a script it holds a whole run, for tests that kill it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from manyeyes.config import EvaluateSection, FederationSection, TrainSection
from manyeyes.datasets.sample import Dataset, Sample
from manyeyes.federation.client import Client
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.rounds import RowResult, run_rounds
from manyeyes.federation.strategies import FedAvg, Merge
from manyeyes.federation.transport import Transport
from manyeyes.learners.learner import Control, FitPlan, Metrics, ProgressCallback, Template, silent
from manyeyes.weights import Update, Weights, subtract

TRAINED = frozenset({"norm.weight", "norm.bias", "head.weight", "head.bias"})
BUFFERS = frozenset({"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"})
TEMPLATE = Template(
    "linear",
    ("thing",),
    Weights(
        {
            "norm.weight": np.ones(3),
            "norm.bias": np.zeros(3),
            "norm.running_mean": np.zeros(3),
            "norm.running_var": np.ones(3),
            "norm.num_batches_tracked": np.zeros(1, dtype=np.int64),
            "head.weight": np.zeros(3),
            "head.bias": np.zeros(1),
        }
    ),
)


def expected(plan: FitPlan) -> tuple[frozenset[str], frozenset[str]]:
    """The names in a LinearLearner's update; any freezing freezes the normalisation."""
    if plan.train.freeze:
        return frozenset(name for name in TRAINED if name.startswith("head")), frozenset()
    return TRAINED, BUFFERS


class LinearLearner:
    """Normalise with the data's own statistics, multiply, add; squared error."""

    template = TEMPLATE

    def fit(
        self,
        weights: Weights,
        data: Dataset,
        plan: FitPlan,
        progress: ProgressCallback = silent,
        state_folder: Path | None = None,
        control: Control | None = None,
    ) -> Update:
        x, y = table(data, "train")
        w = {name: weights[name].astype(np.float64) for name in sorted(TRAINED)}
        noise = np.random.default_rng([plan.seed, plan.round, *plan.node_id.encode()])
        correction = control.correction if control else {}
        steps = plan.train.steps or 4
        for _ in range(steps):
            chosen = noise.permutation(len(x))[: max(2, len(x) // 2)]
            gradients = self._gradients(w, x[chosen], y[chosen])
            for name in w:
                drift = plan.proximal_mu * (w[name] - weights[name]) + correction.get(name, 0.0)
                w[name] -= plan.train.lr * (gradients[name] + drift)
        trained, buffers = expected(plan)
        statistics = {
            "norm.running_mean": x.mean(axis=0),
            "norm.running_var": x.var(axis=0),
            "norm.num_batches_tracked": weights["norm.num_batches_tracked"] + len(x),
        }
        after = Weights({name: w[name] for name in sorted(trained)})
        delta = subtract(after, weights)
        return Update(
            delta,
            Weights({name: statistics[name] for name in sorted(buffers)}),
            num_examples=len(data.split("train")),
            metrics={"loss": float(np.square(self._predict(w, x) - y).mean())},
            control=control.change(delta, steps * plan.train.lr) if control else Weights({}),
            step_sum=steps * plan.train.lr,
        )

    def evaluate(self, weights: Weights, data: Dataset, split: str, imgsz: int | None = None) -> Metrics:
        x, y = table(data, split)
        scale = np.sqrt(weights["norm.running_var"] + 1e-3)
        z = (x - weights["norm.running_mean"]) / scale * weights["norm.weight"] + weights["norm.bias"]
        error = np.square(z @ weights["head.weight"] + weights["head.bias"] - y).mean()
        score = float(np.clip(1 - error / max(float(y.var()), 1e-6), 0, 1))
        return Metrics({"thing": score}, {"thing": score}, len(data.split(split)), {"thing": len(x)})

    def _gradients(self, w: Mapping[str, Any], x: Any, y: Any) -> dict[str, Any]:
        z = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-3)
        residual = 2 * (self._predict(w, x) - y) / len(x)
        hidden = residual[:, None] * w["head.weight"]
        return {
            "norm.weight": (hidden * z).sum(axis=0),
            "norm.bias": hidden.sum(axis=0),
            "head.weight": (residual[:, None] * (z * w["norm.weight"] + w["norm.bias"])).sum(axis=0),
            "head.bias": residual.sum(keepdims=True),
        }

    def _predict(self, w: Mapping[str, Any], x: Any) -> Any:
        z = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-3)
        return (z * w["norm.weight"] + w["norm.bias"]) @ w["head.weight"] + w["head.bias"]


def table(data: Dataset, split: str) -> tuple[Any, Any]:
    """x (n, 3) and y (n,), float64."""
    rows = np.concatenate([sample.xyxy for sample in data.split(split)]).astype(np.float64)
    return rows[:, :3], rows[:, 3]


def site(index: int) -> Dataset:
    """A site whose inputs lie around its own mean, as another camera's would; sites differ in size."""
    rng = np.random.default_rng(index)

    def sample(number: int) -> Sample:
        x = rng.normal(loc=index, scale=1 + 0.2 * index, size=(5, 3))
        y = x @ [1.0, -2.0, 0.5] + 3 + rng.normal(scale=0.01, size=5)
        rows = np.column_stack([x, y]).astype(np.float32)
        return Sample(Path(f"{number}.png"), 32, 32, rows, np.zeros(5, dtype=np.int64))

    return Dataset(Path(), ("thing",), {"train": [sample(n) for n in range(3 + index)], "val": [sample(99)]})


def clients(folder: Path, learners: Mapping[str, Any] | None = None, nodes: str = "ABC") -> dict[str, Client]:
    """Nodes named by letters, each with its own site; `learners` replaces the learner of some."""
    learners = learners or {}
    return {
        node: Client(node, learners.get(node, LinearLearner()), site(ord(node) - ord("A")), folder / node)
        for node in nodes
    }


def update_of(node: str, weights: Weights, round: int, rounds: int) -> Update:
    """What a node of `hold` makes of weights."""
    plan = FitPlan(train=TrainSection(lr=0.05, steps=4), round=round, rounds=rounds, seed=1, node_id=node)
    return LinearLearner().fit(weights, site(ord(node) - ord("A")), plan)


def stepped(weights: Weights, *updates: tuple[Update, int]) -> Weights:
    """A step of FedAvg on updates with their staleness, each counted alike."""
    merge = Merge(weights, "equal", 0.5)
    for update, staleness in updates:
        merge.add(update, staleness)
    mean = merge.result()
    return FedAvg().step(weights, mean, {})[0].replace(mean.buffers)


class Log:
    """An emit callable that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def of(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.events if record["event"] == event]


def hold(
    folder: Path,
    *,
    transport: Transport | None = None,
    emit: Callable[..., None] | None = None,
    train: Mapping[str, Any] | None = None,
    every: int = 1,
    evaluate_nodes: int | None = None,
    seed: int = 1,
    resume: bool = False,
    stop: Callable[[], str | None] = lambda: None,
    test_start: bool = False,
    **federation: Any,
) -> RowResult:
    """A run over the sites A, B and C, with defaults that the tests share."""
    return run_rounds(
        transport or LocalTransport(clients(folder / "nodes")),
        TEMPLATE,
        train=TrainSection(lr=0.05, steps=4, **(train or {})),
        federation=FederationSection.model_validate({"rounds": 3, **federation}),
        evaluate=EvaluateSection(every=every, nodes=evaluate_nodes),
        seed=seed,
        expected=expected,
        folder=folder / "checkpoints",
        emit=emit or Log(),
        resume=resume,
        stop=stop,
        test_start=test_start,
    )


FULL: dict[str, Any] = {"rounds": 4, "fraction": 0.6, "strategy": "fedadam", "personal": ["bn"]}
SCAFFOLD: dict[str, Any] = {**FULL, "strategy": "scaffold", "weighting": "equal", "keep": "best"}


class _Stalling(LinearLearner):
    """Says when its n-th call begins, then waits to be killed in the middle of it."""

    calls = 0

    def __init__(self, call: int) -> None:
        self.call = call

    def fit(
        self,
        weights: Weights,
        data: Dataset,
        plan: FitPlan,
        progress: ProgressCallback = silent,
        state_folder: Path | None = None,
        control: Control | None = None,
    ) -> Update:
        update = super().fit(weights, data, plan, progress, state_folder, control)
        self._stall()
        return update

    def evaluate(self, weights: Weights, data: Dataset, split: str, imgsz: int | None = None) -> Metrics:
        self._stall()
        return super().evaluate(weights, data, split, imgsz)

    def _stall(self) -> None:
        _Stalling.calls += 1
        if _Stalling.calls == self.call:
            sys.stdout.write("stalled\n")
            sys.stdout.flush()
            time.sleep(60)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    stalling = dict.fromkeys("ABC", _Stalling(int(sys.argv[2])))
    hold(where, transport=LocalTransport(clients(where / "nodes", stalling)), **FULL)
