"""Nodes that are asked for different training, and what FedNova makes of it."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from manyeyes.config import (
    FederationSection,
    NodeTrainSection,
    RunConfig,
    TrainSection,
    check_training_fits_rounds,
    load_config,
    validate,
)
from manyeyes.errors import ConfigError, RunError
from manyeyes.federation.client import Client
from manyeyes.federation.local import LocalTransport
from manyeyes.learners.learner import FitPlan
from manyeyes.weights import Update

from .linear import TEMPLATE, LinearLearner, Log, clients, hold, site

SITES = [{"node_id": name, "data": name} for name in "ABC"]


class Asked(LinearLearner):
    """Remembers what it was asked for."""

    def __init__(self, plans: list[FitPlan]) -> None:
        self.plans = plans

    def fit(self, weights: Any, data: Any, plan: FitPlan, *arguments: Any) -> Update:  # type: ignore[override]
        self.plans.append(plan)
        return super().fit(weights, data, plan, *arguments)


def test_each_node_is_asked_for_what_is_written_for_it(tmp_path: Path) -> None:
    plans: list[FitPlan] = []
    nodes = {n: Client(n, Asked(plans), site(i), tmp_path / "nodes" / n) for i, n in enumerate("ABC")}
    own = {"B": {"steps": 9, "imgsz": 640, "batch": 4}, "C": {"epochs": 2, "batch": 16, "accumulate": 2}}
    hold(tmp_path, transport=LocalTransport(nodes), rounds=1, per_node=own, finetune_after=2)
    asked = {(p.node_id, p.finetune): p.train for p in plans}
    assert (asked["A", False].steps, asked["A", False].imgsz, asked["A", False].batch) == (4, 320, 8)
    assert (asked["B", False].steps, asked["B", False].imgsz, asked["B", False].batch) == (9, 640, 4)
    assert (asked["C", False].steps, asked["C", False].epochs, asked["C", False].accumulate) == (None, 2.0, 2)
    assert (asked["A", True].steps, asked["B", True].steps, asked["C", True].epochs) == (8, 18, 4.0)


def test_a_resumed_run_finds_the_nodes_plans_unchanged(tmp_path: Path) -> None:
    hold(tmp_path, per_node={"B": {"steps": 9}})
    with pytest.raises(RunError, match=r"federation\.per_node\.B\.steps was 9 and is 8"):
        hold(tmp_path, per_node={"B": {"steps": 8}}, resume=True)


def test_fednova_learns_with_uneven_steps_in_any_order_to_the_same_bits(tmp_path: Path) -> None:
    uneven: dict[str, Any] = {"strategy": "fednova", "per_node": {"A": {"steps": 12}, "C": {"steps": 2}}}
    log = Log()
    hold(tmp_path / "1", emit=log, rounds=30, **uneven)
    assert fmean(e["metrics"]["map50"] for e in log.of("evaluated") if e["round"] == 30) > 0.8
    hashes = {hold(tmp_path / o, transport=order(tmp_path / o, o), **uneven).weights.value_hash for o in ("ABC", "CBA")}
    assert len(hashes) == 1


def order(folder: Path, nodes: str) -> LocalTransport:
    made = clients(folder / "nodes")
    return LocalTransport({node: made[node] for node in nodes})


def test_an_update_that_does_not_tell_its_steps_is_refused(tmp_path: Path) -> None:
    class Silent(LinearLearner):
        def fit(self, *arguments: Any) -> Update:
            update = super().fit(*arguments)
            return Update(update.delta, update.buffers, update.num_examples)

    log = Log()
    transport = LocalTransport(clients(tmp_path / "nodes", {"B": Silent()}))
    hold(tmp_path, transport=transport, emit=log, rounds=1, strategy="fednova")
    (refused,) = log.of("update_refused")
    assert (refused["node"], refused["reason"]) == ("B", "the message lacks 'step_sum'")


def test_nothing_more_is_told_than_was_asked_for(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []

    class Watched(LocalTransport):
        def receive(self, timeout: float | None) -> Any:
            replies = super().receive(timeout)
            told.extend(dict(reply.record.values) for reply in replies if reply.record)
            return replies

    hold(tmp_path, transport=Watched(clients(tmp_path / "nodes")), rounds=1)
    assert not any("step_sum" in values for values in told)


@pytest.mark.parametrize(
    ("train", "federation", "said"),
    [
        ({"accumulate": 2}, {"per_node": {"B": {"batch": 5}}}, r"per_node\.B does not go with train: batch \(5\)"),
        ({"ema": 0.99}, {"strategy": "fednova"}, "needs train.ema null"),
        ({"optimizer_state": "kept"}, {"strategy": "fednova"}, "needs train.optimizer_state fresh"),
    ],
)
def test_what_cannot_hold_is_refused(train: dict[str, Any], federation: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_training_fits_rounds(validate(TrainSection, train), validate(FederationSection, federation))
    with pytest.raises(ConfigError, match=said):
        validate(RunConfig, {"name": "x", "sites": SITES, "train": train, "federation": federation})


def test_fednova_goes_with_an_adamw_that_goes_on() -> None:
    check_training_fits_rounds(TrainSection(optimizer="adamw"), validate(FederationSection, {"strategy": "fednova"}))


def test_a_node_that_is_no_site_is_named() -> None:
    with pytest.raises(ConfigError, match="names D, which is not among the sites"):
        validate(RunConfig, {"name": "x", "sites": SITES, "federation": {"per_node": {"D": {"steps": 3}}}})


@pytest.mark.parametrize(
    ("own", "said"),
    [({"epochs": 1, "steps": 3}, "two ways"), ({"imgsz": 100}, "multiple of 32"), ({"imgz": 320}, "imgsz")],
)
def test_a_nodes_plan_that_cannot_be_used_is_named(own: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        validate(RunConfig, {"name": "x", "sites": SITES, "federation": {"per_node": {"B": own}}})
    assert str(caught.value.key).startswith("federation.per_node.B")


def test_it_can_be_set_on_the_command_line_and_written_out(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: x\nsites: [{node_id: B, data: b}]\n", encoding="utf-8")
    config = load_config(tmp_path / "run.yaml", ["federation.per_node.B.imgsz=640"])
    assert config.federation.per_node == {"B": NodeTrainSection(imgsz=640)}
    assert validate(FederationSection, config.federation.model_dump(mode="json")) == config.federation
    assert config.federation.per_node["B"].applied_to(config.train).imgsz == 640
    assert TEMPLATE.imgsz == 640
