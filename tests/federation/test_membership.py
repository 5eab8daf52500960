"""Cohorts: seeded, fair, the same on every machine."""

from __future__ import annotations

import collections
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyeyes.config import FederationSection, validate
from manyeyes.errors import ConfigError, RunError
from manyeyes.federation.membership import buffer_size, check_buffer, sample_cohort

NODES = [f"node-{i}" for i in range(30)]


@given(st.floats(0.01, 1), st.integers(1, 30), st.integers(0, 2**31), st.integers(0, 1000), st.randoms())
def test_a_cohort_depends_on_seed_and_round_alone(
    fraction: float, min_nodes: int, seed: int, round: int, shuffler: random.Random
) -> None:
    cohort = sample_cohort(NODES, fraction, min_nodes, seed, round)
    shuffled = NODES.copy()
    shuffler.shuffle(shuffled)

    assert cohort == sample_cohort(shuffled, fraction, min_nodes, seed, round)
    assert list(cohort) == sorted(set(cohort) & set(NODES))
    assert max(min_nodes, fraction * 30 - 1e-6) <= len(cohort) < max(min_nodes, fraction * 30) + 1


def test_known_draws() -> None:
    assert sample_cohort("ABC", 0.6, 1, seed=1, round=0) == sample_cohort("CAB", 0.6, 1, seed=1, round=0)
    assert len(sample_cohort(NODES, 0.1, 1, 0, 0)) == 3
    assert sample_cohort("ABC", 1.0, 1, 0, 0) == ("A", "B", "C")


def test_over_many_rounds_every_node_has_its_share() -> None:
    drawn = collections.Counter(node for r in range(1000) for node in sample_cohort(NODES, 0.2, 1, 0, r))
    # 200 each are expected; five standard deviations of a binomial are 63.
    assert all(137 < drawn[node] < 263 for node in NODES)


def test_too_few_nodes() -> None:
    with pytest.raises(RunError, match=r"round 3 needs at least 2 nodes, but 1 can be reached \(A\)"):
        sample_cohort(["A"], 1.0, 2, 0, 2)


@pytest.mark.parametrize(
    ("values", "nodes", "least"),
    [
        ({"buffer": 4}, 60, 12),
        ({"buffer": 2}, 20, 4),
        ({"buffer": 4, "fraction": 0.3}, 60, None),
        ({"buffer": 2, "max_staleness": 9}, 20, None),
        ({}, 1000, None),
    ],
)
def test_a_buffer_that_fills_too_often_is_refused_with_one_that_does_not(
    values: dict[str, object], nodes: int, least: int | None
) -> None:
    federation = validate(FederationSection, {"mode": "async", **values})
    if least is None:
        check_buffer(federation, nodes)
        return
    with pytest.raises(ConfigError, match=f"at least {least},"):
        check_buffer(federation, nodes)
    check_buffer(federation.model_copy(update={"buffer": least}), nodes)


def test_by_default_half_of_those_at_work_end_a_round() -> None:
    assert buffer_size(validate(FederationSection, {"mode": "async", "fraction": 0.3}), 30) == 5
    assert buffer_size(validate(FederationSection, {"mode": "async", "min_nodes": 7}), 8) == 7
