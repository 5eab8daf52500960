"""SCAFFOLD as a whole, on quadratics trained by the real loop: against the paper's algorithm, and where it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manyeyes.config import EvaluateSection, FederationSection, TrainSection
from manyeyes.datasets.sample import Dataset
from manyeyes.errors import Interrupted
from manyeyes.federation.checkpoint import load_checkpoint
from manyeyes.federation.client import Client
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.membership import sample_cohort
from manyeyes.federation.rounds import RowResult, run_rounds
from manyeyes.federation.transport import Record, Reply, Request, Transport
from manyeyes.learners.learner import Control, FitPlan, Metrics, ProgressCallback, Template, silent
from manyeyes.learners.training import Batch, LossParts, Session, pin_threads, train
from manyeyes.weights import Update, Weights, load_weights, subtract

from .linear import Log

TEMPLATE = Template("quadratic", ("thing",), Weights({"w": np.array([4.0, -3.0])}))
CURVATURES = {
    "A": np.diag([1.0, 0.2]),
    "B": np.array([[2.0, 0.5], [0.5, 0.4]]),
    "C": np.diag([0.3, 1.5]),
    "D": np.array([[0.8, -0.3], [-0.3, 1.0]]),
}
OPTIMA = {"A": np.array([3.0, 0.0]), "B": np.array([-2.0, 2.0]), "C": np.array([0.0, -4.0]), "D": np.array([1.0, 5.0])}
# One picture a batch: the loop's gradient is then the criterion's own.
PLAIN: dict[str, Any] = {
    "lr": 0.05,
    "steps": 20,
    "batch": 1,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "clip_norm": None,
    "precision": "fp32",
    "device": "cpu",
}


def optimum(nodes: str) -> Any:
    """Of the mean of the nodes' functions ½ (w − b)ᵀ A (w − b)."""
    return np.linalg.solve(
        sum(CURVATURES[node] for node in nodes), sum(CURVATURES[node] @ OPTIMA[node] for node in nodes)
    )


class Point(nn.Module):
    def __init__(self, start: Any) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start))

    def forward(self, images: Tensor) -> Tensor:
        return self.w


class OnePicture:
    num_examples = 1

    def batches(self, session: Session) -> Iterator[Sequence[Batch]]:
        for _ in range(session.steps):
            yield [Batch(torch.zeros(1, 3, 1, 1))]


@dataclass
class QuadraticLearner:
    """Minimises its node's quadratic with the training loop of the detector."""

    node: str
    template: Template = TEMPLATE

    def fit(
        self,
        weights: Weights,
        data: Dataset,
        plan: FitPlan,
        progress: ProgressCallback = silent,
        state_folder: Path | None = None,
        control: Control | None = None,
    ) -> Update:
        pin_threads(1)
        model = Point(weights["w"])
        result = train(
            model,
            self._criterion,
            OnePicture(),
            plan,
            device=torch.device("cpu"),
            correction=control.correction if control else None,
        )
        delta = subtract({"w": model.w.detach().numpy()}, weights)
        change = control.change(delta, result.step_sum) if control else Weights({})
        return Update(delta, Weights({}), 1, control=change)

    def evaluate(self, weights: Weights, data: Dataset, split: str, imgsz: int | None = None) -> Metrics:
        return Metrics({}, {}, 0)

    def _criterion(self, outputs: Tensor, batch: Batch) -> LossParts:
        away = outputs - torch.tensor(OPTIMA[self.node], dtype=torch.float32)
        curvature = torch.tensor(CURVATURES[self.node], dtype=torch.float32)
        return LossParts(0.5 * away @ curvature @ away, torch.ones(()), {})


@dataclass
class Watched:
    """Keeps the weights after each round."""

    weights: list[Any] = field(default_factory=list)

    def __call__(self, weights: Weights) -> Metrics:
        self.weights.append(weights["w"].astype(np.float64))
        return Metrics({}, {}, 0)


def nodes_in(folder: Path, names: str) -> dict[str, Client]:
    data = Dataset(Path(), ("thing",), {})
    return {name: Client(name, QuadraticLearner(name), data, folder / "nodes" / name) for name in names}


def hold(
    folder: Path,
    *,
    nodes: str = "ABCD",
    transport: Transport | None = None,
    train: Mapping[str, Any] = PLAIN,
    watched: Watched | None = None,
    stop_after: int | None = None,
    resume: bool = False,
    **federation: Any,
) -> RowResult:
    log = Log()
    return run_rounds(
        transport or LocalTransport(nodes_in(folder, nodes)),
        TEMPLATE,
        train=TrainSection.model_validate(train),
        federation=FederationSection.model_validate({"strategy": "scaffold", "weighting": "equal", **federation}),
        evaluate=EvaluateSection(),
        seed=3,
        expected=lambda _: (frozenset({"w"}), frozenset()),
        folder=folder / "checkpoints",
        emit=log,
        resume=resume,
        stop=lambda: "SIGTERM" if len(log.of("round_finished")) == stop_after else None,
        held_out=watched,
    )


def papers_scaffold(rounds: int, fraction: float, server_lr: float, steps: int, lr: float) -> list[Any]:
    """Algorithm 1 of arXiv:1910.06378 with option II, in float64; the global weights after each round."""
    x = TEMPLATE.weights["w"].astype(np.float64)
    c = np.zeros(2)
    of_node = {node: np.zeros(2) for node in CURVATURES}
    after = []
    for round in range(rounds):
        cohort = sample_cohort(CURVATURES, fraction, 1, 3, round)
        moves, changes = [], []
        for node in cohort:
            y = x.copy()
            for _ in range(steps):
                gradient = CURVATURES[node] @ (y - OPTIMA[node])
                y = y - lr * (gradient - of_node[node] + c)
            plus = of_node[node] - c + (x - y) / (steps * lr)
            moves.append(y - x)
            changes.append(plus - of_node[node])
            of_node[node] = plus
        x = x + server_lr * np.mean(moves, axis=0)
        c = c + len(cohort) / len(CURVATURES) * np.mean(changes, axis=0)
        after.append(x)
    return after


@pytest.mark.parametrize(("fraction", "server_lr"), [(1.0, 1.0), (0.5, 1.0), (0.5, 0.6)])
def test_the_same_trajectory_as_the_papers_algorithm(tmp_path: Path, fraction: float, server_lr: float) -> None:
    watched = Watched()
    strategy = {"name": "scaffold", "server_lr": server_lr}
    hold(tmp_path, watched=watched, rounds=12, fraction=fraction, strategy=strategy)
    np.testing.assert_allclose(watched.weights, papers_scaffold(12, fraction, server_lr, 20, 0.05), atol=2e-5)


MANY = {**PLAIN, "lr": 0.1}
MOMENTUM = {**PLAIN, "lr": 0.015, "momentum": 0.9}


@pytest.mark.parametrize(
    ("schedule", "fraction", "rounds"),
    [
        (MANY, 1.0, 25),
        (MOMENTUM, 1.0, 25),
        (MOMENTUM, 0.5, 60),
        ({**MOMENTUM, "schedule": "cosine", "final_lr": 0.3, "warmup_epochs": 5}, 1.0, 30),
        ({**MANY, "clip_norm": 1.0}, 1.0, 30),
    ],
    ids=["plain", "momentum", "momentum, half the nodes", "cosine", "clipped"],
)
def test_many_local_steps_end_at_the_common_optimum(
    tmp_path: Path, schedule: Any, fraction: float, rounds: int
) -> None:
    result = hold(tmp_path, train=schedule, rounds=rounds, fraction=fraction)
    np.testing.assert_allclose(result.weights["w"], optimum("ABCD"), atol=5e-3)


def test_fedavg_ends_elsewhere(tmp_path: Path) -> None:
    result = hold(tmp_path, train=MANY, rounds=25, strategy="fedavg")
    assert np.abs(result.weights["w"] - optimum("ABCD")).max() > 0.1


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    plan = {"rounds": 7, "fraction": 0.5}
    with pytest.raises(Interrupted):
        hold(tmp_path / "broken", stop_after=4, **plan)
    resumed = hold(tmp_path / "broken", resume=True, **plan)
    assert resumed.weights.value_hash == hold(tmp_path / "unbroken", **plan).weights.value_hash


def test_a_node_that_joins_later_begins_at_zero_and_is_heard(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        hold(tmp_path, nodes="ABC", stop_after=4, rounds=40)
    joined = hold(tmp_path, nodes="ABCD", resume=True, rounds=40)
    np.testing.assert_allclose(joined.weights["w"], optimum("ABCD"), atol=5e-3)


class Lossy:
    """Loses what B answers in some rounds, after B has done its work and kept its state."""

    def __init__(self, inner: LocalTransport) -> None:
        self.inner = inner

    def nodes(self) -> Sequence[str]:
        return self.inner.nodes()

    def send(self, requests: Sequence[Request]) -> None:
        self.inner.send(requests)

    def cancel(self, request_ids: Sequence[str]) -> list[str]:
        return self.inner.cancel(request_ids)

    def receive(self, timeout: float | None) -> list[Reply]:
        replies = self.inner.receive(timeout)
        return [self._lost(r) if r.node_id == "B" and r.request_id.split("-")[1] in "2378" else r for r in replies]

    def _lost(self, reply: Reply) -> Reply:
        return Reply(reply.request_id, reply.node_id, Record({}, {}))


def test_an_update_that_was_lost_leaves_no_trace_in_the_control_variates(tmp_path: Path) -> None:
    hold(tmp_path, transport=Lossy(LocalTransport(nodes_in(tmp_path, "ABCD"))), rounds=8)

    state = load_checkpoint(tmp_path / "checkpoints", Log())
    assert state is not None
    assert state.last_merged == {"A": 7, "B": 5, "C": 7, "D": 7}
    of_nodes = [
        load_weights(tmp_path / "nodes" / node / f"control-{round:06d}.safetensors")[0]["w"]
        for node, round in state.last_merged.items()
    ]
    np.testing.assert_allclose(state.strategy["control/w"], np.sum(of_nodes, axis=0), atol=1e-5)


def test_what_travels_is_counted(tmp_path: Path) -> None:
    scaffold, fedavg = hold(tmp_path / "scaffold", rounds=1), hold(tmp_path / "fedavg", rounds=1, strategy="fedavg")
    arrays = 4 * TEMPLATE.weights.num_bytes
    assert scaffold.bytes_up >= fedavg.bytes_up + arrays
    assert scaffold.bytes_down >= fedavg.bytes_down + arrays
