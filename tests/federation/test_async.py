"""Asynchronous rounds: when a round ends, who is asked with what, how stale updates count, and what goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manyeyes.config import FederationSection, RunConfig, validate
from manyeyes.errors import AbsentNodesError, ConfigError, Interrupted, RunError
from manyeyes.federation.checkpoint import load_checkpoint
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.transport import Reply
from manyeyes.report.nodes import summarise_nodes

from .lanes import Lanes, fit_takes
from .linear import TEMPLATE, Log, clients, hold, stepped, update_of
from .linear_deployment import deployed

ASYNC: dict[str, Any] = {"mode": "async", "buffer": 2, "weighting": "equal"}


def received(log: Log) -> list[tuple[int, str, int]]:
    return [(e["round"], e["node"], e.get("staleness", 0)) for e in log.of("update_received")]


def asked(transport: Lanes) -> list[tuple[str, str]]:
    """Who was asked to train, and in which round, in order."""
    fits = [r.request_id.split("-") for r in transport.asked if r.kind == "fit"]
    return [(node, number) for _, number, _, node in fits]


def test_a_round_ends_with_its_first_updates_and_who_has_answered_is_asked_at_once(
    tmp_path: Path, lanes: Callable[..., Lanes]
) -> None:
    log = Log()
    transport = lanes(fit_takes(A=5, B=22, C=6))
    result = hold(tmp_path, transport=transport, emit=log, rounds=4, every=9, **ASYNC)

    assert received(log) == [
        (1, "A", 0), (1, "C", 0), (2, "A", 0), (2, "C", 0), (3, "A", 0), (3, "C", 0), (4, "B", 3), (4, "A", 0),
    ]  # fmt: skip
    # B comes at 22 s, in the midst of round 4, and is given the model of that round, not that of the next.
    assert asked(transport)[-1] == ("B", "4")
    assert [(e["round"], e["node"]) for e in log.of("node_asked")] == [(4, "B")]
    assert not log.of("update_late")

    weights = TEMPLATE.weights
    start = weights
    for index in range(3):
        weights = stepped(weights, *((update_of(node, weights, index, 4), 0) for node in "AC"))
    fourth = stepped(weights, (update_of("B", start, 0, 4), 3), (update_of("A", weights, 3, 4), 0))
    assert result.weights.value_hash == fourth.value_hash


def test_a_slow_node_holds_nobody_up(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    waiting = lanes(fit_takes(A=5, B=25, C=5))
    hold(tmp_path / "waiting", transport=waiting, rounds=4, every=9)
    living = lanes(fit_takes(A=5, B=25, C=5))
    hold(tmp_path / "living", transport=living, rounds=4, every=9, **ASYNC)
    assert living.clock.now < 0.5 * waiting.clock.now


def test_no_node_is_asked_twice_with_the_same_model(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    transport = lanes(fit_takes(A=1, B=50, C=50))
    log = Log()
    hold(tmp_path, transport=transport, emit=log, rounds=3, every=9, **ASYNC)
    pairs = asked(transport)
    assert len(pairs) == len(set(pairs))
    # A is done after a second, and the second update of the round comes after 50.
    assert received(log)[:2] == [(1, "A", 0), (1, "B", 0)]


def test_what_comes_in_the_same_moment_is_merged_as_if_it_came_one_by_one(
    tmp_path: Path, lanes: Callable[..., Lanes]
) -> None:
    class Batched(Lanes):
        """Hands over all that has come by a whole second together."""

        def receive(self, timeout: float | None) -> list[Reply]:
            replies = super().receive(timeout)
            while replies and self.under_way and self.under_way[0][0] < math.floor(self.clock.now) + 1:
                replies += super().receive(timeout)
            return replies

    def seconds(request: Any) -> float:
        return {"A": 5.1, "B": 5.2, "C": 5.3}[request.node_id] if request.kind == "fit" else 1.0

    one_by_one = lanes(seconds)
    log = Log()
    first = hold(tmp_path / "1", transport=one_by_one, emit=log, rounds=1, every=9, **ASYNC)
    plain = lanes(seconds)
    together = Batched(clients(tmp_path / "2" / "nodes"), plain.clock, seconds)
    second = hold(tmp_path / "2", transport=together, rounds=1, every=9, **ASYNC)
    assert received(log) == [(1, "A", 0), (1, "B", 0)]
    assert first.weights.value_hash == second.weights.value_hash


def test_the_same_answers_in_the_same_order_give_the_same_bits(tmp_path: Path) -> None:
    hashes = {hold(tmp_path / str(n), rounds=5, **ASYNC).weights.value_hash for n in range(2)}
    assert len(hashes) == 1


def test_the_local_engine_lets_every_node_have_its_turn(tmp_path: Path) -> None:
    log = Log()
    hold(tmp_path, emit=log, rounds=12, **ASYNC)
    counts = {node: sum(n == node for _, n, _ in received(log)) for node in "ABC"}
    assert min(counts.values()) >= 5
    assert all(e["metrics"]["map50"] > 0.85 for e in log.of("evaluated") if e["round"] == 12)


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_staleness_counts_as_it_is_asked(tmp_path: Path, lanes: Callable[..., Lanes], exponent: float) -> None:
    hashes = [
        hold(
            tmp_path / name,
            transport=lanes(fit_takes(A=5, B=12, C=6)),
            rounds=3,
            every=9,
            staleness_exponent=value,
            **ASYNC,
        ).weights.value_hash
        for name, value in (("it", exponent), ("half", 0.5))
    ]
    assert hashes[0] != hashes[1]


def test_an_update_beyond_the_maximum_is_not_merged_and_its_node_is_asked_anew(
    tmp_path: Path, lanes: Callable[..., Lanes]
) -> None:
    log = Log()
    transport = lanes(fit_takes(A=5, B=38, C=6))
    hold(tmp_path, transport=transport, emit=log, rounds=9, every=99, max_staleness=4, **ASYNC)
    assert [(e["round"], e["node"]) for e in log.of("warning")] == [(6, "B")]
    assert any("which was given up" in e["reason"] for e in log.of("update_refused"))
    assert not [node for _, node, _ in received(log) if node == "B"]


def test_all_test_the_last_model_and_those_that_are_free_the_others(
    tmp_path: Path, lanes: Callable[..., Lanes]
) -> None:
    log = Log()
    hold(tmp_path, transport=lanes(fit_takes(A=5, B=40, C=6)), emit=log, rounds=2, **ASYNC)
    tested = {n: [e["where"] for e in log.of("evaluated") if e["round"] == n] for n in (1, 2)}
    assert tested == {1: ["A", "C"], 2: ["A", "C", "B"]}
    assert [(e["node"], e["reason"]) for e in log.of("update_refused")] == [
        ("B", "came after the last round had been merged")
    ]


def test_every_node_goes_on_for_itself_after_the_last_round(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    log = Log()
    transport = lanes(fit_takes(A=5, B=40, C=6))
    hold(tmp_path, transport=transport, emit=log, rounds=2, every=9, finetune_after=1, **ASYNC)
    assert sorted(e["node"] for e in log.of("finetuned")) == ["A", "B", "C"]
    assert not log.of("warning")


def test_a_node_that_is_lost_does_not_hold_up_what_comes_after_the_rounds(
    tmp_path: Path, lanes: Callable[..., Lanes]
) -> None:
    log = Log()
    transport = lanes(lambda r: math.inf if "-1-fit-B" in r.request_id else 2.0)
    hold(tmp_path, transport=transport, emit=log, rounds=2, every=9, finetune_after=1, deadline=50, **ASYNC)
    assert sorted(e["node"] for e in log.of("finetuned")) == ["A", "B", "C"]
    assert transport.clock.now < 40


def test_by_default_half_of_those_at_work_end_a_round(tmp_path: Path) -> None:
    log = Log()
    transport = LocalTransport(clients(tmp_path / "nodes", nodes="ABCDE"))
    hold(tmp_path, transport=transport, emit=log, rounds=2, mode="async")
    assert [number for number, _, _ in received(log)] == [1] * 3 + [2] * 3


def test_a_share_of_the_nodes_is_at_work_at_any_time(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    transport = lanes(lambda request: 3.0, nodes="ABCDEF")
    log = Log()
    hold(tmp_path, transport=transport, emit=log, rounds=8, every=99, fraction=0.5, **ASYNC)
    at_work = [0]
    for event in log.events:
        if event["event"] == "round_started":
            at_work.append(at_work[-1] + len(event["cohort"]))
        elif event["event"] == "node_asked":
            at_work.append(at_work[-1] + 1)
        elif event["event"] == "update_received":
            at_work.append(at_work[-1] - 1)
    assert max(at_work) == 3
    assert {node for _, node, _ in received(log)} == set("ABCDEF")


def test_a_node_that_joins_in_the_midst_of_a_round_is_asked(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    transport = lanes(fit_takes(A=5, B=9))
    transport.away = {"C"}
    log = Log()

    class Joining(Log):
        def __call__(self, event: str, **fields: Any) -> None:
            super().__call__(event, **fields)
            if event == "update_received":
                transport.away = set()

    log = Joining()
    hold(tmp_path, transport=transport, emit=log, rounds=2, every=9, **ASYNC)
    assert ("C", "1") in asked(transport)


def test_a_node_that_fails_is_asked_with_the_next_model(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    class Failing(Lanes):
        def receive(self, timeout: float | None) -> list[Reply]:
            return [
                Reply(r.request_id, r.node_id, None, error="out of memory") if r.request_id.endswith("1-fit-B") else r
                for r in super().receive(timeout)
            ]

    log, plain = Log(), lanes(fit_takes(A=5, B=1, C=6))
    transport = Failing(clients(tmp_path / "nodes"), plain.clock, plain.seconds)
    hold(tmp_path, transport=transport, emit=log, rounds=2, every=9, **ASYNC)
    refused = log.of("update_refused")[0]
    assert (refused["round"], refused["node"], refused["reason"]) == (1, "B", "out of memory")
    assert [number for node, number in asked(transport) if node == "B"] == ["1", "2"]


def test_a_buffer_that_cannot_be_filled_is_merged_as_it_is(tmp_path: Path) -> None:
    log = Log()
    transport = LocalTransport(clients(tmp_path / "nodes", nodes="AB"))
    hold(tmp_path, transport=transport, emit=log, rounds=2, **{**ASYNC, "buffer": 3})
    assert received(log) == [(1, "A", 0), (1, "B", 0), (2, "A", 0), (2, "B", 0)]


def test_too_few_end_the_run(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    alone = LocalTransport(clients(tmp_path / "nodes", nodes="A"))
    with pytest.raises(AbsentNodesError, match="at least 2 nodes, but 1 can be reached"):
        hold(tmp_path / "1", transport=alone, **ASYNC, min_nodes=2)
    silent = lanes(fit_takes(B=math.inf, C=math.inf))
    with pytest.raises(RunError, match="got 1 good updates and needs at least 2"):
        hold(tmp_path / "2", transport=silent, **ASYNC, min_nodes=2, deadline=30, max_staleness=1)


def test_a_round_for_which_nodes_went_is_held_again(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    """Whoever was asked in an earlier round and goes now counts as away, as in a synchronous round."""

    class Going(Lanes):
        def receive(self, timeout: float | None) -> list[Reply]:
            replies = super().receive(timeout)
            if self.clock.now < 30 or "B" in self.away:
                return replies
            self.away |= {"B", "C"}
            lost = next(request for request in self.asked if request.kind == "fit" and request.node_id == "B")
            self.under_way = [entry for entry in self.under_way if entry[2].node_id == "A"]
            return [*replies, Reply(lost.request_id, "B", None, error="is not online any more", absent=True)]

    plain = lanes(fit_takes(A=6, B=math.inf, C=5))
    seconds = {"A": 6.0, "B": 10_000.0, "C": 5.0}
    calls = {"C": 0}

    def takes(request: Any) -> float:
        if request.kind != "fit":
            return 1.0
        calls["C"] += request.node_id == "C"
        return 10_000.0 if request.node_id == "C" and calls["C"] > 1 else seconds[request.node_id]

    transport = Going(clients(tmp_path / "nodes"), plain.clock, takes)
    with pytest.raises(AbsentNodesError, match=r"round 2 got 1 good updates.*B: is not online any more"):
        hold(tmp_path, transport=transport, rounds=5, every=99, min_nodes=2, **ASYNC)


def test_updates_that_would_always_come_too_late_are_told(tmp_path: Path) -> None:
    log = Log()
    transport = LocalTransport(clients(tmp_path / "nodes", nodes="ABCDEFG"))
    hold(tmp_path, transport=transport, emit=log, **{**ASYNC, "buffer": 1, "max_staleness": 5})
    (warning,) = log.of("warning")
    assert "a round ends with 1 of the updates of 7 nodes at work, so some come 6 rounds late" in warning["reason"]
    assert "at least 2" in warning["reason"]


def test_with_a_buffer_that_is_large_enough_every_node_is_heard(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    log = Log()
    names = "ABCDEFGHIJ"
    transport = lanes(fit_takes(**dict.fromkeys(names, 5.0)), nodes=names)
    hold(tmp_path, transport=transport, emit=log, rounds=8, **{**ASYNC, "max_staleness": 4})
    assert {node for _, node, _ in received(log)} == set(names)
    assert {e["round"] for e in log.of("update_refused")} <= {8}
    assert not log.of("warning")


def test_what_nobody_has_begun_when_the_rounds_are_over_is_not_done(tmp_path: Path) -> None:
    class Counting(LocalTransport):
        fits = 0

        def receive(self, timeout: float | None) -> list[Reply]:
            replies = super().receive(timeout)
            self.fits += sum("-fit-" in reply.request_id for reply in replies)
            return replies

    transport = Counting(clients(tmp_path / "nodes", nodes="ABCDEF"))
    hold(tmp_path, transport=transport, **{**ASYNC, "rounds": 1})
    assert transport.fits == 2


def test_a_deadline_ends_a_round_whose_buffer_is_not_full(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    log = Log()
    transport = lanes(fit_takes(A=5, B=60, C=60))
    hold(tmp_path, transport=transport, emit=log, rounds=2, every=9, deadline=10, **ASYNC)
    assert [number for number, node, _ in received(log) if node == "A"] == [1, 2]
    assert {(e["round"], e["node"]) for e in log.of("update_late")} == {(1, "B"), (1, "C")}


def test_a_run_that_was_stopped_goes_on_from_its_last_round(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    log = Log()
    transport = lanes(fit_takes(A=5, B=22, C=6))
    with pytest.raises(Interrupted):
        hold(
            tmp_path,
            transport=transport,
            emit=log,
            rounds=6,
            every=9,
            stop=lambda: "SIGTERM" if len(log.of("round_finished")) == 2 else None,
            **ASYNC,
        )
    saved = load_checkpoint(tmp_path / "checkpoints", Log())
    assert saved is not None
    assert (saved.round, saved.last_merged) == (2, {"A": 1, "C": 1})
    again = Log()
    result = hold(tmp_path, transport=transport, emit=again, rounds=6, every=9, resume=True, **ASYNC)
    assert again.of("row_started")[0]["resumed_from"] == 2
    assert result.rounds == 6
    # What B was asked by the first process is not merged by this one.
    assert [e["reason"] for e in again.of("update_refused")][:1] == ["answered without being asked"]
    with pytest.raises(RunError, match=r"federation\.buffer was 2 and is 3"):
        hold(tmp_path, transport=transport, rounds=6, every=9, resume=True, **{**ASYNC, "buffer": 3})


def test_a_report_counts_who_was_asked_while_a_round_was_held(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    log = Log()
    hold(tmp_path, transport=lanes(fit_takes(A=5, B=22, C=6)), emit=log, rounds=4, every=9, **ASYNC)
    summary = summarise_nodes(log.events)
    nodes = {node.node: node for node in summary.nodes}
    assert nodes["B"].asked == (1, 4)
    assert nodes["B"].merged == (4,)
    assert nodes["A"].asked == (1, 2, 3, 4)


def test_personal_layers_go_on_from_the_nodes_own_last_session(tmp_path: Path, lanes: Callable[..., Lanes]) -> None:
    log = Log()
    transport = lanes(fit_takes(A=5, B=12, C=6))
    hold(tmp_path, transport=transport, emit=log, rounds=6, every=9, personal=["bn"], **ASYNC)
    kept = sorted(path.name for path in (tmp_path / "nodes" / "B").glob("personal-*"))
    assert len(kept) >= 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"buffer": 2}, "buffer is of federation.mode async"),
        ({**ASYNC, "late": "drop"}, "leave federation.late out"),
        ({**ASYNC, "strategy": "scaffold"}, "does not go with strategy scaffold"),
        ({**ASYNC, "keep": "best"}, "does not go with keep best"),
        ({**ASYNC, "min_nodes": 3}, "must be at least federation.min_nodes"),
        ({**ASYNC, "buffer": 0}, "buffer"),
        ({"mode": "asynchronous"}, "mode"),
    ],
)
def test_what_cannot_hold_is_refused_when_it_is_read(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(FederationSection, values)


def test_a_buffer_is_not_larger_than_the_federation() -> None:
    sites = [{"node_id": name, "data": name} for name in "AB"]
    with pytest.raises(ConfigError, match="there are 2 sites"):
        validate(RunConfig, {"name": "x", "sites": sites, "federation": {**ASYNC, "buffer": 3}})


def test_what_is_written_out_can_be_read_again() -> None:
    section = validate(FederationSection, ASYNC)
    assert section.late == "next_round"
    assert validate(FederationSection, section.model_dump(mode="json")) == section


@pytest.mark.slow
def test_over_flower_a_slow_node_holds_nobody_up_and_is_heard(tmp_path: Path) -> None:
    with deployed(tmp_path, "AC") as deployment:
        # Six seconds of training, however slow this machine is, are more than the other's half a second.
        deployment.start_coordinator(rounds=10, min_nodes=1, mode="async", buffer=1, max_staleness=100)
        for node, seconds in (("A", 0.5), ("C", 6.0)):
            deployment.start_node(node, seconds=seconds)
        assert deployment.finish(seconds=180.0) == 0
        merged = deployment.of("update_received")
        stale = [event for event in merged if event["node"] == "C"]
        assert stale
        assert all(event.get("staleness", 0) >= 1 for event in stale)
        begun = [event for event in deployment.of("round_started") if "C" in event["cohort"]]
        asked = [*begun, *(event for event in deployment.of("node_asked") if event["node"] == "C")]
        assert max(event["round"] for event in asked) >= stale[0]["round"], "it goes on with a newer model"
        assert not [event for event in deployment.of("update_refused") if event["round"] < 10]
        assert [len([e for e in merged if e["round"] == number]) for number in range(1, 11)] == [1] * 10
        assert {e["where"] for e in deployment.of("evaluated") if e["round"] == 10} == set("AC")
