"""Strategies against Flower's, and the merge against NumPy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.common import Array as FlowerArray
from flwr.serverapp import strategy as flower
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from manyeyes.config import FederationSection, TrainSection
from manyeyes.errors import UpdateRefusedError
from manyeyes.federation.strategies import (
    FedAdam,
    FedAvg,
    FedAvgM,
    FedNova,
    FedProx,
    FedYogi,
    Mean,
    Merge,
    Scaffold,
    State,
    Strategy,
    build_strategy,
)
from manyeyes.learners.learner import FitPlan
from manyeyes.weights import Update, Weights

from .linear import TEMPLATE

PLAN = FitPlan(train=TrainSection(), round=0, rounds=1)


def update(delta: Any, num_examples: int = 1, **buffers: Any) -> Update:
    named = {f"norm.{name}": np.asarray(value) for name, value in buffers.items()}
    return Update(Weights({"w": np.asarray(delta)}), Weights(named), num_examples)


def norm_weights(size: int = 3) -> Weights:
    zeros, ones = np.zeros(size), np.ones(size)
    return Weights(
        {"w": zeros, "norm.running_mean": zeros, "norm.running_var": ones, "norm.num_batches_tracked": np.zeros(1, int)}
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (FedAvgM(0.7, 0.9), flower.FedAvgM(server_learning_rate=0.7, server_momentum=0.9)),
        (FedAdam(0.05, 0.9, 0.99, 1e-3), flower.FedAdam(eta=0.05, beta_1=0.9, beta_2=0.99, tau=1e-3)),
        (FedYogi(0.05, 0.9, 0.99, 1e-3), flower.FedYogi(eta=0.05, beta_1=0.9, beta_2=0.99, tau=1e-3)),
    ],
    ids=["fedavgm", "fedadam", "fedyogi"],
)
def test_server_optimisers_equal_flowers(ours: Strategy, theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    weights = Weights({"a": rng.normal(size=(4, 3)), "b": rng.normal(size=7)})
    reference = {name: array.astype(np.float64) for name, array in weights.items()}
    state: State = {}
    for round in range(1, 7):
        delta = Weights({name: rng.normal(scale=0.1, size=array.shape) for name, array in weights.items()})
        weights, state = ours.step(weights, Mean(delta), state)
        reference = flower_step(theirs, reference, delta, round, monkeypatch)
        for name, array in weights.items():
            np.testing.assert_allclose(array, reference[name], rtol=0, atol=1e-6)


def flower_step(
    strategy: Any, before: dict[str, Any], delta: Weights, round: int, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """One aggregation of a Flower strategy that is given the mean of the replies."""
    record = ArrayRecord({name: FlowerArray(array) for name, array in before.items()})
    merged = ArrayRecord({name: FlowerArray(array + delta[name]) for name, array in before.items()})
    monkeypatch.setattr(flower.FedAvg, "configure_train", lambda *_: [])
    monkeypatch.setattr(flower.FedAvg, "aggregate_train", lambda *_: (merged, None))
    strategy.configure_train(round, record, None, None)
    after, _ = strategy.aggregate_train(round, [])
    return {name: array.numpy() for name, array in after.items()}


def test_fedavg_moves_by_the_mean_and_fedprox_asks_for_the_term() -> None:
    weights = Weights({"w": np.array([1.0, 2.0]), "frozen": np.array([5.0])})
    delta = Weights({"w": np.array([0.5, -1.0])})

    moved, state = FedAvg(0.5).step(weights, Mean(delta), {})
    assert moved["w"].tolist() == [1.25, 1.5]
    assert moved["frozen"].tolist() == [5.0]
    assert not state

    proximal = FedProx(mu=0.3, server_lr=0.5)
    assert proximal.plan(PLAN).proximal_mu == 0.3
    assert proximal.step(weights, Mean(delta), {})[0].value_hash == moved.value_hash
    assert FedAvg().plan(PLAN).proximal_mu == 0


@pytest.mark.parametrize(
    ("section", "strategy"),
    [
        ("fedavg", FedAvg(1.0)),
        ({"name": "fedprox", "mu": 0.2}, FedProx(0.2, 1.0)),
        ({"name": "fedavgm", "server_momentum": 0.5}, FedAvgM(1.0, 0.5)),
        ({"name": "fedadam", "beta1": 0.8}, FedAdam(0.01, 0.8, 0.99, 0.001)),
        ({"name": "fedyogi", "tau": 0.1}, FedYogi(0.01, 0.9, 0.99, 0.1)),
        ({"name": "fednova", "server_lr": 0.7}, FedNova(0.7)),
        ({"name": "scaffold", "server_lr": 0.7}, Scaffold(0.7)),
    ],
)
def test_sections_become_strategies(section: Any, strategy: Strategy) -> None:
    federation = FederationSection.model_validate({"strategy": section, "weighting": "equal"})
    assert build_strategy(federation.strategy) == strategy


def test_fednova_follows_the_weighted_mean_of_gradients_however_many_steps_a_node_takes() -> None:
    """Two quadratics ‖w − c_i‖² / 2; one node takes nine steps, the other one. Its optimum is the mean of the c_i."""
    centres, steps, lr = [np.array([1.0, -2.0]), np.array([-3.0, 4.0])], [9, 1], 0.01
    ends = {}
    for strategy in (FedAvg(), FedNova()):
        weights = Weights({"w": np.zeros(2)})
        for _ in range(800):
            merge = Merge(weights, "equal", normalises=strategy.normalises)
            for centre, count in zip(centres, steps, strict=True):
                after = weights["w"].astype(np.float64)
                for _ in range(count):
                    after = after - lr * (after - centre)
                delta = Weights({"w": after - weights["w"]})
                merge.add(Update(delta, Weights({}), 1, step_sum=lr * count))
            weights, _ = strategy.step(weights, merge.result(), {})
        ends[type(strategy)] = weights["w"]
    np.testing.assert_allclose(ends[FedNova], [-1.0, 1.0], atol=0.1)
    assert np.abs(ends[FedAvg] - [-1.0, 1.0]).max() > 1


def test_fednova_is_fedavg_where_all_take_the_same_steps_and_loses_for_staleness_what_fedavg_loses() -> None:
    deltas = [np.array([1.0, -2.0]), np.array([3.0, 0.5]), np.array([-1.0, 4.0])]
    results = []
    for normalises in (False, True):
        merge = Merge(Weights({"w": np.zeros(2)}), "equal", 0.5, normalises=normalises)
        for staleness, delta in enumerate(deltas):
            merge.add(Update(Weights({"w": delta}), Weights({}), 1, step_sum=0.25), staleness)
        results.append(merge.result().delta["w"])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)


def test_scaffold_moves_its_control_variate_by_the_share_of_nodes_that_answered() -> None:
    weights = Weights({"w": np.array([1.0, 2.0]), "frozen": np.array([5.0])})
    trained = weights.select(lambda name: name == "w")
    strategy = Scaffold(0.5)
    assert strategy.control(trained, {}, 4)["w"].tolist() == [0.0, 0.0]

    delta, change = Weights({"w": np.array([2.0, 4.0])}), Weights({"w": np.array([1.0, -2.0])})
    moved, state = strategy.step(weights, Mean(delta, control=change, num_updates=3), {})
    assert moved["w"].tolist() == [2.0, 4.0]
    assert strategy.control(trained, state, 4)["w"].tolist() == [0.75, -1.5]

    # A fifth node joins with a control variate of zero: the mean over five.
    _, state = strategy.step(moved, Mean(delta, control=change, num_updates=1), state)
    assert strategy.control(trained, state, 5)["w"].tolist() == pytest.approx([4 / 5, -8 / 5])


finite = st.floats(-1e3, 1e3, width=32)
nodes = st.lists(
    st.tuples(
        hnp.arrays(np.float32, 3, elements=finite),
        hnp.arrays(np.float32, 3, elements=finite),
        hnp.arrays(np.float32, 3, elements=st.floats(0, 1e4, width=32)),
        st.integers(1, 10**5),
    ),
    min_size=1,
    max_size=4,
)


@given(nodes)
@settings(max_examples=40, deadline=None)
def test_any_order_gives_the_same_bits(values: list[tuple[Any, Any, Any, int]]) -> None:
    updates = [
        update(delta, n, running_mean=mean, running_var=var, num_batches_tracked=np.array([n]))
        for delta, mean, var, n in values
    ]
    hashes = set()
    for order in itertools.permutations(updates):
        merge = Merge(norm_weights())
        for one in order:
            merge.add(one)
        mean = merge.result()
        hashes.add((mean.delta.value_hash, mean.buffers.value_hash))
    assert len(hashes) == 1


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_statistics_are_pooled_as_if_all_samples_were_one(offset: float) -> None:
    rng = np.random.default_rng(3)
    samples = [rng.normal(offset + i, 1 + i, size=(n, 3)) for i, n in enumerate((10, 500, 37))]
    before = norm_weights()
    merge = Merge(before)
    for count, x in enumerate(samples):
        batches = np.array([100 - count])
        statistics = {"running_mean": x.mean(axis=0), "running_var": x.var(axis=0)}
        merge.add(update(np.zeros(3), len(x), num_batches_tracked=batches, **statistics))
    buffers = merge.result().buffers

    together = np.concatenate(samples)
    np.testing.assert_allclose(buffers["norm.running_mean"], together.mean(axis=0), rtol=1e-6)
    # A float32 mean near 1000 is rounded by up to 3e-5; nothing more may be lost.
    np.testing.assert_allclose(buffers["norm.running_var"], together.var(axis=0), rtol=1e-6 if not offset else 1e-4)
    assert buffers["norm.num_batches_tracked"].tolist() == [100]
    assert buffers["norm.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize(("weighting", "expected"), [("examples", 1.2), ("equal", 2.0), ("inverse_sqrt", 2.5)])
def test_a_small_node_counts_by_its_pictures_like_any_other_or_more(weighting: Any, expected: float) -> None:
    merge = Merge(norm_weights(), weighting)
    merge.add(update([1.0, 1.0, 1.0], 18))
    merge.add(update([3.0, 3.0, 3.0], 2))
    np.testing.assert_allclose(merge.result().delta["w"], expected, rtol=1e-6)


def test_equal_nodes_with_a_tiny_variance_keep_it() -> None:
    before = norm_weights().replace({"norm.running_mean": np.full(3, 1e4, np.float32)})
    merge = Merge(before)
    for n in (1, 3, 7):
        merge.add(update(np.zeros(3), n, running_mean=np.full(3, 1e4), running_var=np.full(3, 1e-7)))
    buffers = merge.result().buffers
    np.testing.assert_allclose(buffers["norm.running_var"], 1e-7, rtol=1e-6)


def test_frozen_normalisation_stays_out_of_the_merge() -> None:
    merge = Merge(norm_weights())
    merge.add(update([1.0, 2.0, 3.0]))
    mean = merge.result()
    assert mean.delta["w"].tolist() == [1.0, 2.0, 3.0]
    assert not mean.buffers


def test_a_refused_update_leaves_the_merge_as_it_was() -> None:
    statistics = {"running_var": np.ones(3), "num_batches_tracked": np.array([9])}
    merge = Merge(norm_weights())
    merge.add(update([1.0, 1.0, 1.0], 2, running_mean=np.zeros(3), **statistics))
    with pytest.raises(UpdateRefusedError, match="too large"):
        merge.add(update([5.0, 5.0, 5.0], 2, running_mean=np.full(3, 1e30), **statistics))

    delta, buffers = merge.result().delta, merge.result().buffers
    assert delta["w"].tolist() == [1.0, 1.0, 1.0]
    assert buffers["norm.running_var"].tolist() == [1.0, 1.0, 1.0]
    assert merge.num_updates == 1


def stale_update(seed: int, num_examples: int = 3) -> Update:
    rng = np.random.default_rng(seed)
    delta = {"head.weight": rng.normal(size=3), "head.bias": rng.normal(size=1)}
    buffers = {"norm.running_mean": rng.normal(size=3), "norm.running_var": rng.uniform(1, 2, size=3)}
    counter = {"norm.num_batches_tracked": np.array([seed - 2], dtype=np.int64)}
    return Update(Weights(delta), Weights({**buffers, **counter}), num_examples)


@pytest.mark.parametrize("weighting", ["examples", "equal", "inverse_sqrt"])
def test_for_what_a_stale_update_loses_the_model_stays_as_it_is(weighting: Any) -> None:
    updates = [(stale_update(1, 30), 0), (stale_update(2, 50), 1), (stale_update(3, 10), 3)]
    merge = Merge(TEMPLATE.weights, weighting, 0.5)
    for update, staleness in updates:
        merge.add(update, staleness)
    mean = merge.result()

    counts = {"examples": [30, 50, 10], "equal": [1, 1, 1], "inverse_sqrt": [30**-0.5, 50**-0.5, 10**-0.5]}
    weights = np.array(counts[weighting]) / sum(counts[weighting])
    kept = weights * np.array([1, 2**-0.5, 4**-0.5])
    for name in ("head.weight", "head.bias"):
        expected = sum(k * update.delta[name] for k, (update, _) in zip(kept, updates, strict=True))
        np.testing.assert_allclose(mean.delta[name], expected, rtol=1e-3, atol=1e-4)
    # The lost share is a sample with the statistics the model has: mean 0, variance 1.
    lost = 1 - kept.sum()
    means = [update.buffers["norm.running_mean"].astype(np.float64) for update, _ in updates]
    squares = [u.buffers["norm.running_var"] + np.square(m) for (u, _), m in zip(updates, means, strict=True)]
    pooled = sum(k * m for k, m in zip(kept, means, strict=True))
    var = sum(k * s for k, s in zip(kept, squares, strict=True)) + lost * 1 - np.square(pooled)
    np.testing.assert_allclose(mean.buffers["norm.running_mean"], pooled, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mean.buffers["norm.running_var"], var, rtol=1e-3)
    assert mean.buffers["norm.num_batches_tracked"][0] == 1
    assert mean.num_updates == 3


@pytest.mark.parametrize("weighting", ["examples", "equal", "inverse_sqrt"])
def test_the_order_of_stale_updates_changes_nothing(weighting: Any) -> None:
    updates = [(stale_update(seed, 5 + 7 * seed), seed % 3) for seed in range(5)]
    results = set()
    for order in itertools.permutations(updates):
        merge = Merge(TEMPLATE.weights, weighting, 0.7)
        for update, staleness in order:
            merge.add(update, staleness)
        mean = merge.result()
        results.add((mean.delta.value_hash, mean.buffers.value_hash))
    assert len(results) == 1


def test_a_counter_does_not_go_back_for_a_stale_update() -> None:
    merge = Merge(TEMPLATE.weights, "equal", 0.5)
    merge.add(stale_update(1), 2)
    assert merge.result().buffers["norm.num_batches_tracked"][0] == 0


def test_without_an_exponent_staleness_loses_nothing() -> None:
    fresh, stale = Merge(TEMPLATE.weights, "equal"), Merge(TEMPLATE.weights, "equal", 0.0)
    for seed in range(3):
        fresh.add(stale_update(seed))
        stale.add(stale_update(seed), seed)
    assert fresh.result().delta.value_hash == stale.result().delta.value_hash
