"""Contribution weighting: who judges whom, how scores become weights, and what becomes of a site with wrong labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyeyes.config import FederationSection, RunConfig, validate
from manyeyes.datasets.sample import Dataset
from manyeyes.errors import ConfigError, Interrupted
from manyeyes.federation.checkpoint import load_checkpoint
from manyeyes.federation.client import Client
from manyeyes.federation.contribution import judges, updated, weights
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.strategies import Merge
from manyeyes.federation.transport import Reply, Transport
from manyeyes.weights import Update, Weights

from .linear import TEMPLATE, LinearLearner, Log, clients, hold, site, update_of

JUDGED: dict[str, Any] = {"weighting": "contribution", "rounds": 6}


@given(st.sets(st.sampled_from("ABCDEFG")), st.sets(st.sampled_from("ABCDEFG")))
def test_nobody_judges_two_nor_is_judged_by_two(contributors: set[str], testers: set[str]) -> None:
    for round in range(12):
        pairs = judges(contributors, testers, round)
        assert len(set(pairs.values())) == len(pairs)
        assert set(pairs) <= contributors
        assert set(pairs.values()) <= testers


def test_everybody_judges_every_other_in_turn() -> None:
    rounds = [set(judges("ABCDE", "ABCDE", round).items()) for round in range(5)]
    assert set.union(*rounds[:4]) == {(a, b) for a in "ABCDE" for b in "ABCDE" if a != b}
    assert rounds[4] == {(a, a) for a in "ABCDE"}


def test_scores_are_smoothed_and_bounded_and_the_best_counts_in_full() -> None:
    scores: dict[str, float] = {}
    for _ in range(3):
        scores = updated(scores, {"A": 0.01, "B": -3.0, "C": 0.0}, {}, smoothing=0.5, scale=0.05)
    assert scores == pytest.approx({"A": 0.175, "B": -0.875, "C": 0.0})
    assert weights(scores, "ABCD", floor=0.05) == pytest.approx({"A": 1.0, "B": 0.05**0.875, "C": 1.0, "D": 1.0})
    assert weights({}, "AB", floor=0.05) == {"A": 1.0, "B": 1.0}
    assert updated(scores, {}, {}, smoothing=0.5, scale=0.05) == scores


@given(st.floats(-1, 1), st.dictionaries(st.sampled_from("ABC"), st.floats(-2, 2)), st.floats(0, 1))
def test_a_score_stays_within_its_bounds_whatever_is_found(before: float, gains: dict[str, float], v: float) -> None:
    after = updated(dict.fromkeys("ABC", before), gains, dict.fromkeys("ABC", v), smoothing=0.2, scale=0.05)
    assert all(-1 <= score <= 1 for score in after.values())


def test_rounds_in_which_no_update_made_a_difference_forget_nothing() -> None:
    scores = {"A": 0.0, "B": 0.0, "C": -0.8}
    for _ in range(20):
        scores = updated(scores, {"A": 1e-4, "B": 0.0, "C": 1e-4}, {}, smoothing=0.6, scale=0.05)
    assert scores["C"] < -0.75
    # In a round that tells something, a site that does no harm any more gains on its former self.
    assert updated(scores, {"A": 0.05, "B": 0.0, "C": 0.0}, {}, smoothing=0.6, scale=0.05)["C"] > -0.5


def test_whose_updates_hardly_count_hardly_counts_as_a_judge() -> None:
    found = {"A": -0.05, "B": -0.05, "C": 0.0}
    scores = updated({}, found, {"A": 1.0, "B": 0.1}, smoothing=0.6, scale=0.05)
    assert scores == pytest.approx({"A": -0.4, "B": -0.04, "C": 0.0})


@pytest.mark.parametrize(("staleness", "worth"), [(0, 1.0), (2, 1.0), (0, 0.05)])
def test_in_a_tilted_merge_one_update_counts_for_as_much_as_the_others(staleness: int, worth: float) -> None:
    parts = {node: update_of(node, TEMPLATE.weights, 0, 3) for node in "ABC"}
    merge = Merge(TEMPLATE.weights, "contribution", 0.5)
    merge.add(parts["A"], 0, 0.5)
    merge.add(parts["B"], staleness, worth)
    merge.add(parts["C"], 0, 1.0)
    before = merge.result().delta.value_hash
    tilted = merge.tilted([(parts["B"], staleness, worth)]).result()
    for name, array in tilted.delta.items():
        wanted = parts["A"].delta[name] / 6 + parts["B"].delta[name] / 2 + parts["C"].delta[name] / 3
        np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-6)
    means = {node: part.buffers["norm.running_mean"] for node, part in parts.items()}
    pooled = means["A"] / 6 + means["B"] / 2 + means["C"] / 3
    np.testing.assert_allclose(tilted.buffers["norm.running_mean"], pooled, rtol=1e-4)
    assert merge.result().delta.value_hash == before


def test_two_updates_of_one_node_share_what_it_counts_by() -> None:
    first, second, other = (update_of(node, TEMPLATE.weights, 0, 3) for node in "ABC")
    merge = Merge(TEMPLATE.weights, "contribution", 0.5)
    for update in (first, second, other):
        merge.add(update)
    tilted = merge.tilted([(first, 0, 1.0), (second, 0, 1.0)]).result()
    wanted = (first.delta["head.weight"] + second.delta["head.weight"]) / 4 + other.delta["head.weight"] / 2
    np.testing.assert_allclose(tilted.delta["head.weight"], wanted, rtol=1e-5)


def shuffled(data: Dataset) -> Dataset:
    """A site that has mixed up which answer belongs to which input."""

    def spoil(split: str) -> list[Any]:
        samples = data.split(split)
        rows = np.concatenate([sample.xyxy for sample in samples])
        order = np.random.default_rng(0).permutation(len(rows))
        rows = np.column_stack([rows[:, :3], rows[order, 3]])
        parts = np.split(rows, np.cumsum([len(s.xyxy) for s in samples])[:-1])
        return [replace(sample, xyxy=part.astype(np.float32)) for sample, part in zip(samples, parts, strict=True)]

    return replace(data, splits={split: spoil(split) for split in data.splits})


def one_wrong(folder: Path) -> LocalTransport:
    """Four sites, of which the largest has shuffled labels."""
    nodes = clients(folder, nodes="ABC")
    nodes["D"] = Client("D", LinearLearner(), shuffled(site(3)), folder / "D")
    return LocalTransport(nodes)


def honest(log: Log) -> float:
    last = max(e["round"] for e in log.of("evaluated"))
    tests = [e for e in log.of("evaluated") if e["round"] == last and e["where"] != "D"]
    return fmean(e["metrics"]["map50"] for e in tests)


def test_a_site_with_shuffled_labels_loses_its_weight_within_three_rounds(tmp_path: Path) -> None:
    log = Log()
    hold(tmp_path, transport=one_wrong(tmp_path / "nodes"), emit=log, **JUDGED)
    counted = {(e["round"], e["node"]): e["weight"] for e in log.of("update_received")}
    # In the first round it counts in full: nothing is known of anybody.
    assert [counted[(1, node)] for node in "ABCD"] == [1.0] * 4
    fourth = {node: counted[(4, node)] for node in "ABCD"}
    assert fourth["D"] < 0.25
    assert fourth["D"] < 0.5 * min(fourth[node] for node in "ABC")


def test_what_it_lost_it_does_not_regain_by_doing_no_harm_any_more(tmp_path: Path) -> None:
    log = Log()
    hold(tmp_path, transport=one_wrong(tmp_path / "nodes"), emit=log, **{**JUDGED, "rounds": 16})
    late = {
        n: fmean(e["weight"] for e in log.of("update_received") if e["node"] == n and e["round"] > 8) for n in "ABCD"
    }
    assert late["D"] < 0.2
    assert late["D"] < 0.5 * min(late[node] for node in "ABC")


def test_a_site_that_mends_its_labels_counts_again(tmp_path: Path) -> None:
    log = Log()
    with pytest.raises(Interrupted):
        hold(
            tmp_path,
            transport=one_wrong(tmp_path / "nodes"),
            emit=log,
            stop=lambda: "SIGTERM" if len(log.of("round_finished")) == 6 else None,
            **{**JUDGED, "rounds": 24},
        )
    mended = LocalTransport(clients(tmp_path / "nodes", nodes="ABCD"))
    hold(tmp_path, transport=mended, emit=log, resume=True, **{**JUDGED, "rounds": 24})
    counted = {(e["round"], e["node"]): e["weight"] for e in log.of("update_received")}
    wrong = fmean(counted[(number, "D")] for number in range(4, 7))
    assert fmean(counted[(number, "D")] for number in range(12, 25)) > 2 * wrong


@pytest.mark.parametrize("other", ["examples", "equal"])
def test_the_honest_sites_are_better_off_than_with_other_weights(tmp_path: Path, other: str) -> None:
    log, without = Log(), Log()
    hold(tmp_path / "1", transport=one_wrong(tmp_path / "x"), emit=log, **{**JUDGED, "rounds": 12})
    hold(tmp_path / "2", transport=one_wrong(tmp_path / "y"), emit=without, rounds=12, weighting=other)
    assert honest(log) > honest(without) + 0.02


def test_sites_that_are_all_good_keep_most_of_their_weight(tmp_path: Path) -> None:
    log = Log()
    hold(tmp_path, emit=log, transport=LocalTransport(clients(tmp_path / "nodes", nodes="ABCD")), **JUDGED)
    counted = [e["weight"] for e in log.of("update_received")]
    # The first has a third of the fourth's pictures and a camera unlike it: even that one is not down at the floor.
    assert fmean(counted) > 0.6
    assert min(counted) > 0.08
    assert max(e["metrics"]["map50"] for e in log.of("evaluated") if e["round"] == 6) > 0.8


def test_scores_are_kept_with_the_checkpoint_and_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = hold(tmp_path / "whole", transport=one_wrong(tmp_path / "x"), **JUDGED)
    log = Log()
    with pytest.raises(Interrupted):
        hold(
            tmp_path / "cut",
            transport=one_wrong(tmp_path / "y"),
            emit=log,
            stop=lambda: "SIGTERM" if len(log.of("round_finished")) == 3 else None,
            **JUDGED,
        )
    saved = load_checkpoint(tmp_path / "cut" / "checkpoints", Log())
    assert saved is not None
    assert saved.contributions.keys() == set("ABCD")
    resumed = hold(tmp_path / "cut", transport=one_wrong(tmp_path / "y"), resume=True, **JUDGED)
    assert resumed.weights.value_hash == whole.weights.value_hash


class _Watched:
    """Counts what is sent to whom, and lets one node's second test fail."""

    def __init__(self, inner: Transport, failing: str = "") -> None:
        self.inner, self.failing, self.sent = inner, failing, list[str]()

    def nodes(self) -> Any:
        return self.inner.nodes()

    def send(self, requests: Any) -> None:
        self.sent += [request.request_id for request in requests]
        self.inner.send(requests)

    def cancel(self, request_ids: Any) -> list[str]:
        return self.inner.cancel(request_ids)

    def receive(self, timeout: float | None) -> list[Reply]:
        return [self._spoiled(reply) for reply in self.inner.receive(timeout)]

    def _spoiled(self, reply: Reply) -> Reply:
        failed = self.failing and f"tilted-{self.failing}" in reply.request_id
        return Reply(reply.request_id, reply.node_id, None, error="out of memory") if failed else reply


def test_it_costs_each_node_one_more_test_a_round_and_none_after_the_last(tmp_path: Path) -> None:
    transport = _Watched(LocalTransport(clients(tmp_path / "nodes", nodes="ABCD")))
    hold(tmp_path, transport=transport, **{**JUDGED, "rounds": 3})
    extra = [one for one in transport.sent if "-tilted-" in one]
    assert sorted(one.split("-", 1)[1] for one in extra) == [f"{n}-tilted-{x}" for n in (1, 2) for x in "ABCD"]
    assert len(set(transport.sent)) == len(transport.sent)


def test_a_judge_that_fails_is_told_and_changes_nothing(tmp_path: Path) -> None:
    log = Log()
    transport = _Watched(LocalTransport(clients(tmp_path / "nodes")), failing="B")
    hold(tmp_path, transport=transport, emit=log, **{**JUDGED, "rounds": 2})
    (warning,) = log.of("warning")
    assert "could not test the other model, to judge" in warning["reason"]
    assert "B" not in {e["by"] for e in log.of("contribution")}


class _Beginning(LinearLearner):
    """Trains from where all began, whatever has become of the model."""

    def fit(self, weights: Weights, *arguments: Any, **more: Any) -> Update:
        return super().fit(TEMPLATE.weights, *arguments, **more)


class _Huge(_Beginning):
    """Its update can be added to the others, and cannot count for more than they do."""

    def fit(self, weights: Weights, *arguments: Any, **more: Any) -> Update:
        update = super().fit(weights, *arguments, **more)
        return replace(update, delta=Weights({**update.delta, "head.bias": np.full(1, 3e8, dtype=np.float32)}))


def test_an_update_that_is_too_large_to_count_for_more_ends_no_run_and_counts_less(tmp_path: Path) -> None:
    log, learners = Log(), {**dict.fromkeys("ABC", _Beginning()), "D": _Huge()}
    transport = LocalTransport(clients(tmp_path / "nodes", learners, nodes="ABCD"))
    hold(tmp_path, transport=transport, emit=log, **{**JUDGED, "rounds": 2})
    (said,) = (e for e in log.of("warning") if e.get("node") == "D")
    assert "its update cannot count for half" in said["reason"]
    (judged,) = (e for e in log.of("contribution") if e["node"] == "D")
    assert (judged["by"], judged["gain"]) == ("coordinator", -1.0)
    assert judged["weight"] < 0.5


def test_rounds_that_are_not_tested_judge_nobody(tmp_path: Path) -> None:
    log = Log()
    hold(tmp_path, emit=log, every=2, **JUDGED)
    assert {e["round"] for e in log.of("contribution")} == {2, 4}


def test_it_goes_with_asynchronous_rounds(tmp_path: Path) -> None:
    log = Log()
    hold(tmp_path, transport=one_wrong(tmp_path / "n"), emit=log, mode="async", buffer=3, **{**JUDGED, "rounds": 12})
    last = {e["node"]: e["weight"] for e in log.of("update_received")}
    assert last["D"] < 0.5 * min(last[node] for node in "ABC")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"contribution_floor": 0}, "contribution_floor"),
        ({"contribution_smoothing": 1}, "contribution_smoothing"),
        ({"weighting": "contribution", "strategy": "scaffold"}, "counts every site alike"),
    ],
)
def test_what_cannot_hold_is_refused_when_it_is_read(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(FederationSection, values)


def test_two_sites_cannot_judge_each_other() -> None:
    sites = [{"node_id": name, "data": name} for name in "AB"]
    with pytest.raises(ConfigError, match="at least 3 sites"):
        validate(RunConfig, {"name": "x", "sites": sites, "federation": {"weighting": "contribution"}})
