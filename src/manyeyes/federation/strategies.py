"""Strategies: what a round asks of the nodes and how the server steps on the mean of their updates.

A strategy is a value. `step` takes the weights, the mean of the round's updates and the strategy's state, and returns
new weights and new state; the state is a mapping of arrays, so that a checkpoint can hold it. Only trained tensors pass
through it: BatchNorm's statistics are pooled (`batchnorm.py`) and never stepped, because a momentum can drive a
variance below zero.

Symbols: Δ the mean delta (after − before), η `server_lr`, m the first and v the second moment, both zero at first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from manyeyes.config import (
    FedAdamSection,
    FedAvgMSection,
    FedAvgSection,
    FedNovaSection,
    FedProxSection,
    FedYogiSection,
    ScaffoldSection,
    StrategySection,
    Weighting,
)
from manyeyes.federation.batchnorm import moments, pool
from manyeyes.learners.learner import FitPlan
from manyeyes.weights import ExactMean, Update, Weights, add

__all__ = [
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedNova",
    "FedProx",
    "FedYogi",
    "Mean",
    "Merge",
    "Scaffold",
    "State",
    "Strategy",
    "build_strategy",
]

Array = NDArray[Any]
State = Mapping[str, Array]

_CONTROL = "control/"
_STEP_SUM = "step_sum"


@dataclass(frozen=True, slots=True)
class Mean:
    """What the updates of a round come to.

    Attributes:
        delta: mean of the deltas; trained tensors only.
        buffers: BatchNorm's statistics pooled, counters as they are; never stepped.
        control: plain mean of the changes of the nodes' control variates; empty unless the strategy is SCAFFOLD.
        num_updates: how many there were.
    """

    delta: Weights
    buffers: Weights = field(default_factory=lambda: Weights({}))
    control: Weights = field(default_factory=lambda: Weights({}))
    num_updates: int = 1


class Strategy(ABC):
    """Asks and steps.

    Attributes:
        normalises: whether each delta is divided by its step sum before the mean is taken.
    """

    __slots__ = ()
    normalises: ClassVar[bool] = False

    def plan(self, plan: FitPlan) -> FitPlan:
        """What the nodes are asked to do, given what every strategy would ask; by default nothing beyond it."""
        return plan

    def control(self, trained: Weights, state: State, num_nodes: int) -> Weights:
        """The server's control variate, sent beside the weights; by default none.

        Args:
            trained: the trained tensors that are shared.
            state: what the last step returned; empty in the first round.
            num_nodes: nodes of the federation, whether they are asked in this round or not.
        """
        return Weights({})

    @abstractmethod
    def step(self, weights: Weights, mean: Mean, state: State) -> tuple[Weights, State]:
        """The weights of the next round, and the state after this one.

        Args:
            weights: all tensors the round began with.
            mean: what the round's updates come to.
            state: what the last step returned; empty in the first round.
        """


@dataclass(frozen=True, slots=True)
class FedAvg(Strategy):
    """Weighted mean: w ← w + η Δ (McMahan et al. 2017, arXiv:1602.05629)."""

    server_lr: float = 1.0

    def step(self, weights: Weights, mean: Mean, state: State) -> tuple[Weights, State]:
        """w + η Δ."""
        return _move(weights, mean.delta, lambda name, delta: self.server_lr * delta), state


@dataclass(frozen=True, slots=True)
class FedProx(Strategy):
    """FedAvg whose nodes minimise loss + μ/2 · ‖w − w_global‖² (Li et al. 2020, arXiv:1812.06127)."""

    mu: float = 0.01
    server_lr: float = 1.0

    def plan(self, plan: FitPlan) -> FitPlan:
        """Local training with the proximal term."""
        return plan.model_copy(update={"proximal_mu": self.mu})

    def step(self, weights: Weights, mean: Mean, state: State) -> tuple[Weights, State]:
        """w + η Δ."""
        return FedAvg(self.server_lr).step(weights, mean, state)


@dataclass(frozen=True, slots=True)
class FedAvgM(Strategy):
    """Server momentum: m ← β m + Δ, w ← w + η m (Hsu et al. 2019, arXiv:1909.06335)."""

    server_lr: float = 1.0
    server_momentum: float = 0.9

    def step(self, weights: Weights, mean: Mean, state: State) -> tuple[Weights, State]:
        """One step of SGD with momentum, without Nesterov's look-ahead."""
        momentum = _moment(
            "momentum", mean.delta, state, lambda m, delta: self.server_momentum * m + delta.astype(np.float64)
        )
        return _move(weights, mean.delta, lambda name, _: self.server_lr * momentum[f"momentum/{name}"]), momentum


@dataclass(frozen=True, slots=True)
class FedAdam(Strategy):
    """Adaptive server optimiser (Reddi et al. 2021, arXiv:2003.00295, algorithm 2).

    m ← β1 m + (1 − β1) Δ,   v ← β2 v + (1 − β2) Δ²,   w ← w + η_t m / (√v + τ)

    with the bias correction η_t = η √(1 − β2^(t+1)) / (1 − β1^(t+1)) that Flower uses, t counting steps from 1. The
    paper has none; Kingma & Ba (2015, arXiv:1412.6980) have it with t in place of t + 1.
    """

    server_lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 0.001

    def step(self, weights: Weights, mean: Mean, state: State) -> tuple[Weights, State]:
        """One step of Adam on the mean delta."""
        steps = int(state["steps"][0]) + 1 if "steps" in state else 1
        rate = self.server_lr * np.sqrt(1 - self.beta2 ** (steps + 1)) / (1 - self.beta1 ** (steps + 1))
        first = _moment("first", mean.delta, state, lambda m, d: self.beta1 * m + (1 - self.beta1) * d)
        second = _moment("second", mean.delta, state, lambda v, d: self.beta2 * v + (1 - self.beta2) * np.square(d))
        moved = _move(weights, mean.delta, lambda name, _: _adaptive(first, second, name, float(rate), self.tau))
        return moved, {**first, **second, "steps": np.array([steps], dtype=np.int64)}


@dataclass(frozen=True, slots=True)
class FedYogi(Strategy):
    """Adaptive server optimiser with Yogi's second moment (Reddi et al. 2021, arXiv:2003.00295, algorithm 2).

    m ← β1 m + (1 − β1) Δ,   v ← v − (1 − β2) Δ² sign(v − Δ²),   w ← w + η m / (√v + τ)

    (Zaheer et al. 2018, "Adaptive methods for nonconvex optimization"; no bias correction, as in the paper and Flower.)
    """

    server_lr: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 0.001

    def step(self, weights: Weights, mean: Mean, state: State) -> tuple[Weights, State]:
        """One step of Yogi on the mean delta."""
        first = _moment("first", mean.delta, state, lambda m, d: self.beta1 * m + (1 - self.beta1) * d)
        second = _moment("second", mean.delta, state, self._second)
        moved = _move(weights, mean.delta, lambda name, _: _adaptive(first, second, name, self.server_lr, self.tau))
        return moved, {**first, **second}

    def _second(self, v: Array, delta: Array) -> Array:
        square = np.square(delta)
        return np.asarray(v - (1 - self.beta2) * square * np.sign(v - square))


@dataclass(frozen=True, slots=True)
class FedNova(Strategy):
    """Normalised averaging for nodes that take different numbers of steps (Wang et al. 2020, arXiv:2007.07481).

    With p_i the weights and S_i how far a constant gradient of one would have gone at node i,

        w ← w + η (Σ p_i S_i) Σ p_i Δ_i / S_i

    A node that takes more steps comes further, and in FedAvg counts more for it, whatever its weight; the mean then
    ends at another optimum than that of the weighted sum of losses. S_i is the paper's η ‖a_i‖₁, measured by a probe,
    so that learning rates that change, warm-up and momentum are in it; for AdamW it is the sum of the learning rates.
    """

    server_lr: float = 1.0
    normalises: ClassVar[bool] = True

    def plan(self, plan: FitPlan) -> FitPlan:
        """Local training that tells its step sum."""
        return plan.model_copy(update={"tell_step_sum": True})

    def step(self, weights: Weights, mean: Mean, state: State) -> tuple[Weights, State]:
        """w + η Δ; the mean is normalised already."""
        return FedAvg(self.server_lr).step(weights, mean, state)


@dataclass(frozen=True, slots=True)
class Scaffold(Strategy):
    """FedAvg whose nodes correct their drift (Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1).

    A node follows g + c − c_i (`learners.learner.Control`), where c_i is the gradient it last had and c the mean of all
    c_i; then w ← w + η Δ and c ← c + |S|/N · mean(Δc_i) over the |S| of N nodes whose updates came. The state is Σ c_i,
    of which every node's share is c: a node that joins has c_i = 0, and c is at once the mean with it.
    """

    server_lr: float = 1.0

    def control(self, trained: Weights, state: State, num_nodes: int) -> Weights:
        """c, zero in the first round."""
        return Weights({name: _control_sum(state, name, array) / num_nodes for name, array in trained.items()})

    def step(self, weights: Weights, mean: Mean, state: State) -> tuple[Weights, State]:
        """w + η Δ, and Σ c_i moved by what its nodes' moved."""
        moved, _ = FedAvg(self.server_lr).step(weights, mean, state)
        sums = {
            f"{_CONTROL}{name}": _control_sum(state, name, change) + np.float32(mean.num_updates) * change
            for name, change in mean.control.items()
        }
        return moved, sums


def build_strategy(section: StrategySection) -> Strategy:
    """The strategy a configuration section describes; the one place that maps the one to the other."""
    match section:
        case FedAvgSection():
            return FedAvg(section.server_lr)
        case FedProxSection():
            return FedProx(section.mu, section.server_lr)
        case FedAvgMSection():
            return FedAvgM(section.server_lr, section.server_momentum)
        case FedAdamSection():
            return FedAdam(section.server_lr, section.beta1, section.beta2, section.tau)
        case FedYogiSection():
            return FedYogi(section.server_lr, section.beta1, section.beta2, section.tau)
        case FedNovaSection():
            return FedNova(section.server_lr)
        case ScaffoldSection():
            return Scaffold(section.server_lr)


# Whole numbers, so that sums are exact; small enough that a round may have ten thousand updates (see ExactMean.add).
_WEIGHTS: dict[str, Callable[[int], int]] = {
    "examples": lambda num_examples: num_examples,
    "equal": lambda num_examples: 1,
    "inverse_sqrt": lambda num_examples: round(2**16 / math.sqrt(num_examples)),
    "contribution": lambda num_examples: 2**13,
}
# Parts of a weight that a stale update can lose. Powers of two: a round in which nobody is late has the same bits.
_PARTS: dict[str, int] = {"examples": 2**6, "equal": 2**12, "inverse_sqrt": 1, "contribution": 1}


class Merge:
    """The weighted mean of a round's updates, taken as they arrive: any order gives the same bits, memory is constant.

    Args:
        before: the weights the round began with.
        weighting: "examples" counts a site by its pictures (McMahan et al. 2017); "equal" counts every site the same,
            so that a small site which differs from the others is heard; "inverse_sqrt" counts a site by one divided by
            the root of its pictures: at equal epochs a small site takes fewer steps and comes less far, about by that
            root where steps differ in direction, so all come equally far; "contribution" counts a site by what its
            updates were worth to the others (`contribution.py`). BatchNorm's statistics are pooled alike.
        staleness_exponent: a of the factor (1 + staleness)^-a by which an update counts that was made from the weights
            of an earlier round (Xie et al. 2019, arXiv:1903.03934; Nguyen et al. 2022, arXiv:2106.06639). As in both
            papers the others do not count more for it: for the part that is lost, the model stays as it is. None where
            every update is of this round.
        normalises: whether deltas are divided by their step sums, and their mean multiplied by the mean step sum.
    """

    def __init__(
        self,
        before: Weights,
        weighting: Weighting = "examples",
        staleness_exponent: float | None = None,
        *,
        normalises: bool = False,
    ) -> None:
        self._normalises = normalises
        self._before = before
        self._weight_of = _WEIGHTS[weighting]
        self._parts = 1 if staleness_exponent is None else _PARTS[weighting]
        self._exponent = staleness_exponent or 0.0
        self._merged_weight = 0
        self._mean = ExactMean()
        self._counters: dict[str, Array] = {}
        self.num_updates = 0

    def add(self, update: Update, staleness: int = 0, worth: float = 1.0) -> None:
        """Take in one update.

        Args:
            update: what a node returned.
            staleness: rounds that have passed since the one whose weights it was made from.
            worth: with "contribution" what it counts by, in (0, 1].

        Raises:
            UpdateRefusedError: see `ExactMean.add`; nothing was taken in.
        """
        weight, of = self._counted(update, staleness, worth)
        self._mean.add(self._arrays(update), weight, of=of)
        self._merged_weight += weight
        for name, array in update.buffers.items():
            if array.dtype.kind != "f":
                # A stale update has counted from an earlier round on: a counter never goes back.
                before = self._before.get(name, array)
                self._counters[name] = np.maximum(self._counters.get(name, before), array)
        self.num_updates += 1

    def tilted(self, own: Sequence[tuple[Update, int, float]]) -> Merge:
        """The same merge, but for some of its updates, which count for as much in it as all the others together.

        Args:
            own: those updates, with the staleness and the worth that they were added with. Stale or not, they count in
                full here.

        Raises:
            UpdateRefusedError: there are no others.
        """
        rest = copy(self)
        rest._counters = dict(self._counters)
        for update, staleness, worth in own:
            weight, of = self._counted(update, staleness, worth)
            rest._mean = rest._mean.without(self._arrays(update), weight, of=of)
            rest._merged_weight -= weight
        each = rest._mean.total_weight // len(own)
        for update, _, _ in own:
            rest._mean.add(self._arrays(update), each)
            rest._merged_weight += each
        return rest

    def _arrays(self, update: Update) -> dict[str, Array]:
        deltas = {f"delta/{name}": array for name, array in update.delta.items()}
        if self._normalises:
            deltas = {name: array.astype(np.float64) / update.step_sum for name, array in deltas.items()}
            deltas[_STEP_SUM] = np.array([update.step_sum])
        buffers = {f"buffer/{name}": array for name, array in moments(update.buffers, self._before).items()}
        return {**deltas, **buffers, **{f"{_CONTROL}{name}": array for name, array in update.control.items()}}

    def _counted(self, update: Update, staleness: int, worth: float) -> tuple[int, int]:
        """What an update counts by, and what it would count by if it were not stale."""
        of = max(1, round(self._weight_of(update.num_examples) * self._parts * worth))
        return max(1, round(of * (1 + staleness) ** -self._exponent)), of

    def result(self) -> Mean:
        """What the updates come to; float32.

        Raises:
            WeightsError: nothing was added.
        """
        mean = self._mean.result()

        def of(prefix: str) -> dict[str, Array]:
            return {name.removeprefix(prefix): array for name, array in mean.items() if name.startswith(prefix)}

        delta = of("delta/")
        if self._normalises:
            # A mean over those that were merged: what stale updates lose, they lose once.
            step_sum = float(mean[_STEP_SUM][0]) * self._mean.total_weight / self._merged_weight
            delta = {name: step_sum * array for name, array in delta.items()}
        buffers = {**pool(self._whole(of("buffer/")), self._before), **self._counters}
        return Mean(Weights(delta), Weights(buffers), Weights(of(_CONTROL)), self.num_updates)

    def _whole(self, buffers: dict[str, Array]) -> dict[str, Array]:
        """Means of buffers' moments in which the weight that stale updates lost is the model's as it was."""
        lost = self._mean.total_weight - self._merged_weight
        if not lost:
            return buffers
        share = lost / self._mean.total_weight
        own = moments({name: self._before[name] for name in buffers}, self._before)
        return {name: value + share * own[name] for name, value in buffers.items()}


def _move(weights: Weights, mean_delta: Weights, step: Callable[[str, Array], Array]) -> Weights:
    return add(weights, {name: step(name, delta) for name, delta in mean_delta.items()})


def _moment(
    kind: str, mean_delta: Weights, state: State, update: Callable[[Array, Array], Array]
) -> dict[str, NDArray[np.float32]]:
    """One moment of every trained tensor, moved on in float64 and kept in float32, as a checkpoint keeps it."""
    moved = {}
    for name, delta in mean_delta.items():
        before = state.get(f"{kind}/{name}", np.zeros(delta.shape, dtype=np.float32))
        after = update(before.astype(np.float64), delta.astype(np.float64))
        moved[f"{kind}/{name}"] = np.asarray(after, dtype=np.float32)
    return moved


def _control_sum(state: State, name: str, like: Array) -> Array:
    return state.get(f"{_CONTROL}{name}", np.zeros(like.shape, dtype=np.float32))


def _adaptive(first: State, second: State, name: str, rate: float, tau: float) -> Array:
    m = first[f"first/{name}"].astype(np.float64)
    v = second[f"second/{name}"].astype(np.float64)
    return np.asarray(rate * m / (np.sqrt(v) + tau))
