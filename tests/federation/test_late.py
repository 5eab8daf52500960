"""Rounds whose nodes miss the deadline: what is merged when, who is asked, and what is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manyeyes.config import FederationSection, validate
from manyeyes.errors import ConfigError, Interrupted, RunError
from manyeyes.federation.checkpoint import load_checkpoint
from manyeyes.federation.transport import Reply

from .lanes import Lanes, fit_takes
from .linear import TEMPLATE, Log, clients, hold, stepped, update_of

LATE: dict[str, Any] = {"deadline": 10, "late": "next_round", "weighting": "equal"}


def test_a_late_update_is_merged_in_the_round_in_which_it_comes(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    log = Log()
    transport = lanes(fit_takes(B=15, C=6))
    result = hold(tmp_path, transport=transport, emit=log, rounds=3, **LATE)

    start = TEMPLATE.weights
    first = stepped(start, *((update_of(node, start, 0, 3), 0) for node in "AC"))
    second = stepped(
        first, (update_of("B", start, 0, 3), 1), (update_of("C", first, 1, 3), 0), (update_of("A", first, 1, 3), 0)
    )
    third = stepped(second, *((update_of(node, second, 2, 3), 0) for node in "AC"))
    assert result.weights.value_hash == third.value_hash
    assert transport.cohorts() == ["ABC", "AC", "ABC"]
    assert [(e["round"], e["node"], e["reason"]) for e in log.of("update_late")] == [
        (1, "B", "no answer within 10 s"),
        (3, "B", "no answer within 10 s"),
    ]
    received = [(e["round"], e["node"], e.get("staleness"), e["seconds"]) for e in log.of("update_received")]
    assert (2, "B", 1, 15.0) in received
    assert [staleness for _, node, staleness, _ in received if node != "B"] == [None] * 6
    assert [e["where"] for e in log.of("evaluated") if e["round"] == 1] == ["A", "C"]
    state = load_checkpoint(tmp_path / "checkpoints", Log())
    assert state is not None
    assert state.last_merged == {"A": 2, "B": 0, "C": 2}


def test_one_that_comes_while_the_others_test_is_merged_in_the_next_round(
    tmp_path: Path, lanes: Callable[..., Lanes]
) -> None:
    log = Log()
    transport = lanes(lambda request: 12.0 if request.node_id == "B" else 3.0)
    hold(tmp_path, transport=transport, emit=log, rounds=2, **LATE)
    assert [(e["round"], e["node"]) for e in log.of("update_received") if "staleness" in e] == [(2, "B")]
    assert transport.cohorts() == ["ABC", "ABC"]


@pytest.mark.parametrize("weighting", ["examples", "equal", "inverse_sqrt"])
def test_where_nobody_is_late_the_bits_are_the_same(tmp_path: Path, weighting: str) -> None:
    plain = hold(tmp_path / "plain", weighting=weighting)
    merging = hold(tmp_path / "merging", **{**LATE, "weighting": weighting, "deadline": 600})
    assert plain.weights.value_hash == merging.weights.value_hash


def test_dropped_updates_are_told_and_their_nodes_asked_when_they_are_free(
    tmp_path: Path, lanes: Callable[..., Lanes]
) -> None:
    log = Log()
    transport = lanes(fit_takes(B=15, C=6))
    result = hold(tmp_path, transport=transport, emit=log, rounds=3, deadline=10)
    assert transport.cohorts() == ["ABC", "AC", "ABC"]
    assert [(e["round"], e["node"], e["reason"]) for e in log.of("update_refused")] == [
        (1, "B", "no answer within 10 s"),
        (2, "B", "answered what it was asked in round 1 after the deadline"),
        (3, "B", "no answer within 10 s"),
    ]
    without = hold(tmp_path / "without", transport=lanes(fit_takes(), nodes="AC"), rounds=3)
    assert result.weights.value_hash == without.weights.value_hash


def test_a_request_that_was_lost_does_not_shut_its_node_out(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    log = Log()
    transport = lanes(lambda r: math.inf if r.node_id == "B" and "-1-fit" in r.request_id else 1.0)
    hold(tmp_path, transport=transport, emit=log, rounds=5, max_staleness=2, **LATE)
    assert transport.cohorts() == ["ABC", "AC", "AC", "ABC", "ABC"]
    assert [(e["round"], e["node"], e["reason"]) for e in log.of("warning")] == [
        (4, "B", "has not answered what it was asked in round 1, and is asked anew")
    ]
    assert {(e["round"], e["node"]) for e in log.of("update_received")} >= {(4, "B"), (5, "B")}


def test_a_node_that_is_always_too_slow_is_not_buried_in_requests(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    log = Log()
    transport = lanes(lambda r: 75.0 if r.node_id == "B" else 5.0)
    hold(tmp_path, transport=transport, emit=log, rounds=60, max_staleness=2, every=60, **LATE)
    # A round takes 5 s, so an answer is about 14 rounds late; each that is given up doubles the time until the next is.
    asked = [number for number, cohort in enumerate(transport.cohorts(), 1) if "B" in cohort]
    assert len(asked) <= 60 * 5 / 75 + 3
    assert len([r for _, _, r in transport.under_way if r.node_id == "B"]) <= 2
    assert any("which was given up" in e["reason"] for e in log.of("update_refused"))
    assert not [e for e in log.of("update_received") if e["node"] == "B"]


def test_an_update_beyond_the_maximum_is_refused(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    log = Log()
    # The first is lost and given up, so the second is waited for longer than its update may be late.
    takes = {"-1-fit-B": math.inf, "-3-fit-B": 15.0}
    transport = lanes(lambda r: next((s for part, s in takes.items() if part in r.request_id), 4.0))
    hold(tmp_path, transport=transport, emit=log, rounds=6, max_staleness=1, every=9, **LATE)
    assert transport.cohorts()[2:5] == ["ABC", "AC", "AC"]
    assert [(e["round"], e["node"], e["reason"]) for e in log.of("update_refused")] == [
        (5, "B", "came 2 rounds late, and at most 1 are merged (max_staleness)")
    ]


def test_late_updates_count_towards_the_least_number(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    log = Log()
    # C trains in time once; then B's late update takes its place.
    transport = lanes(lambda r: {"B": 13.0, "C": 1.0 if "-1-fit" in r.request_id else 99.0}.get(r.node_id, 1.0))
    hold(tmp_path, transport=transport, emit=log, rounds=2, min_nodes=2, every=9, **LATE)
    second = [(e["node"], e.get("staleness", 0)) for e in log.of("update_received") if e["round"] == 2]
    assert second == [("A", 0), ("B", 1)]


@pytest.mark.parametrize("late", ["drop", "next_round"])
def test_busy_nodes_are_waited_for_where_the_others_are_too_few(
    tmp_path: Path, lanes: Callable[..., Lanes], late: str
) -> None:
    class Leaving(Log):
        def __call__(self, event: str, **fields: Any) -> None:
            super().__call__(event, **fields)
            if event == "round_finished":
                transport.away = {"C"}

    transport = lanes(lambda r: 18.0 if "-1-fit-B" in r.request_id else 1.0)
    log = Leaving()
    hold(tmp_path, transport=transport, emit=log, rounds=2, min_nodes=2, deadline=10, late=late, max_staleness=9)
    assert transport.cohorts()[1] == "AB"
    assert not log.of("warning")
    assert transport.clock.now > 18


def test_who_does_not_come_then_either_is_asked_anew(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    log = Log()
    lost = {"B": "-1-fit", "C": "-2-fit"}
    transport = lanes(lambda r: math.inf if lost.get(r.node_id, "none") in r.request_id else 1.0)
    hold(tmp_path, transport=transport, emit=log, rounds=3, min_nodes=1, max_staleness=9, **LATE)
    assert transport.cohorts() == ["ABC", "AC", "A"]
    assert not log.of("warning")

    lost = {"C": "-1-fit"}
    transport = lanes(lambda r: math.inf if lost.get(r.node_id, "none") in r.request_id else 1.0, nodes="ABC")

    class Leaving(Log):
        def __call__(self, event: str, **fields: Any) -> None:
            super().__call__(event, **fields)
            if event == "round_finished":
                transport.away = {"B"}

    told = Leaving()
    hold(tmp_path / "2", transport=transport, emit=told, rounds=2, min_nodes=2, max_staleness=9, **LATE)
    assert transport.cohorts() == ["ABC", "AC"]
    assert [e["node"] for e in told.of("warning")] == ["C"]


@pytest.mark.parametrize("late", ["drop", "next_round"])
def test_who_is_late_in_the_last_round_goes_on_for_itself_all_the_same(
    tmp_path: Path, lanes: Callable[..., Lanes], late: str
) -> None:
    def takes(request: Any) -> float:
        return 15.0 if request.kind == "fit" and "-2-fit-B" in request.request_id else 1.0

    log = Log()
    options = {**LATE, "late": late, "finetune_after": 1}
    hold(tmp_path, transport=lanes(takes), emit=log, rounds=2, every=99, **options)
    assert {e["node"] for e in log.of("finetuned")} == set("ABC")


def test_what_comes_after_the_last_round_is_told(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    log = Log()
    transport = lanes(lambda r: 12.0 if r.node_id == "B" else 3.0)
    hold(tmp_path, transport=transport, emit=log, rounds=1, **LATE)
    assert [(e["node"], e["reason"]) for e in log.of("update_refused")] == [
        ("B", "came after the last round had been merged")
    ]


def test_a_late_update_that_is_bad_is_refused(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    class Cut(Lanes):
        def receive(self, timeout: float | None) -> list[Reply]:
            return [
                Reply(r.request_id, r.node_id, None, error="out of memory") if "fit-B" in r.request_id else r
                for r in super().receive(timeout)
            ]

    log = Log()
    good = lanes(fit_takes(B=15, C=6))
    transport = Cut(clients(tmp_path / "nodes"), good.clock, good.seconds)
    hold(tmp_path, transport=transport, emit=log, rounds=3, **LATE)
    refused = log.of("update_refused")[0]
    assert (refused["round"], refused["node"], refused["reason"]) == (2, "B", "out of memory")
    assert transport.cohorts()[2] == "ABC"


def test_a_coordinator_that_starts_again_does_not_know_the_late_and_asks_anew(
    tmp_path: Path, lanes: Callable[..., Lanes]
) -> None:
    transport = lanes(fit_takes(B=25, C=6))
    log = Log()

    def stop() -> str | None:
        return "SIGTERM" if log.of("round_finished") else None

    with pytest.raises(Interrupted):
        hold(tmp_path, transport=transport, emit=log, rounds=4, stop=stop, **LATE)
    again = Log()
    hold(tmp_path, transport=transport, emit=again, rounds=4, resume=True, **LATE)
    assert again.of("row_started")[0]["resumed_from"] == 1
    # B is still at work on what the first process asked of it; that answer is not for this one.
    stray = [e for e in again.of("update_refused") if e["node"] == "B"]
    assert [e["reason"] for e in stray] == ["answered without being asked"]
    assert again.of("update_late")[0]["node"] == "B"


def test_where_too_few_came_the_deadline_is_put_off_until_the_least_number_is_there(
    tmp_path: Path, lanes: Callable[..., Lanes]
) -> None:
    log = Log()
    transport = lanes(fit_takes(B=25, C=99))
    hold(tmp_path, transport=transport, emit=log, rounds=1, min_nodes=2, **LATE)
    assert [e["node"] for e in log.of("update_received")] == ["A", "B"]
    assert [e["node"] for e in log.of("update_late")] == ["C"]
    assert [e["reason"] for e in log.of("warning")] == [
        "fewer updates than federation.min_nodes at the deadline; waiting on for B, C"
    ] * 2
    assert 25 <= transport.clock.now < 29


@pytest.mark.parametrize(("late", "until"), [("drop", 10), ("next_round", 30)])
def test_too_few_still_end_the_run(tmp_path: Path, lanes: Callable[..., Lanes], late: str, until: float) -> None:
    transport = lanes(fit_takes(B=math.inf))
    with pytest.raises(RunError, match=r"needs at least 3: B: no answer within 10 s"):
        hold(tmp_path, transport=transport, min_nodes=3, **{**LATE, "late": late, "max_staleness": 2})
    assert transport.clock.now == pytest.approx(until, abs=1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"late": "next_round"}, "needs federation.deadline"),
        ({**LATE, "strategy": "scaffold"}, "does not go with strategy scaffold"),
        ({**LATE, "max_staleness": 0}, "max_staleness"),
        ({**LATE, "staleness_exponent": -1}, "staleness_exponent"),
        ({"late": "keep"}, "late"),
    ],
)
def test_what_cannot_hold_is_refused_when_it_is_read(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(FederationSection, values)
