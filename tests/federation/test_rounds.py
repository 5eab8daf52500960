"""The round loop with real nodes: what it merges, what it refuses, and how it goes on."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manyeyes.config import EvaluateSection, FederationSection, TrainSection
from manyeyes.datasets.sample import Dataset
from manyeyes.errors import ConfigError, DataError, Interrupted, ResourceError, RunError
from manyeyes.federation.client import Client
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.rounds import run_rounds
from manyeyes.federation.transport import Record, Reply, Request
from manyeyes.learners.learner import Control, FitPlan, Metrics, ProgressCallback, Template, silent
from manyeyes.weights import Update, Weights, add

from . import linear
from .linear import FULL, SCAFFOLD, TEMPLATE, LinearLearner, Log, clients, hold, site

NAN = np.full(3, np.nan, dtype=np.float32)


class Tampering:
    """A transport between whose ends somebody changes what nodes answer."""

    def __init__(self, inner: LocalTransport, tamper: Callable[[Request, Reply], list[Reply]]) -> None:
        self.inner = inner
        self.tamper = tamper
        self.asked: dict[str, Request] = {}

    def nodes(self) -> Sequence[str]:
        return self.inner.nodes()

    def send(self, requests: Sequence[Request]) -> None:
        self.asked |= {request.request_id: request for request in requests}
        self.inner.send(requests)

    def cancel(self, request_ids: Sequence[str]) -> list[str]:
        return self.inner.cancel(request_ids)

    def receive(self, timeout: float | None) -> list[Reply]:
        return [
            out for reply in self.inner.receive(timeout) for out in self.tamper(self.asked[reply.request_id], reply)
        ]


class Raising(LinearLearner):
    """A learner that fails when it is asked to train."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def fit(
        self,
        weights: Weights,
        data: Dataset,
        plan: FitPlan,
        progress: ProgressCallback = silent,
        state_folder: Path | None = None,
        control: Control | None = None,
    ) -> Update:
        raise self.error


class Slow(LinearLearner):
    """A learner that takes its time."""

    def fit(
        self,
        weights: Weights,
        data: Dataset,
        plan: FitPlan,
        progress: ProgressCallback = silent,
        state_folder: Path | None = None,
        control: Control | None = None,
    ) -> Update:
        time.sleep(0.3)
        return super().fit(weights, data, plan, progress, state_folder, control)


def test_rounds_learn_and_tell_what_happens(tmp_path: Path) -> None:
    log = Log()
    result = hold(tmp_path, emit=log, rounds=12, every=5)

    last = [event for event in log.of("evaluated") if event["round"] == 12]
    assert [event["where"] for event in last] == ["A", "B", "C"]
    assert all(event["metrics"]["map50"] > 0.85 for event in last)
    assert sorted({event["round"] for event in log.of("evaluated")}) == [5, 10, 12]
    assert log.events[0] == {"event": "row_started", "nodes": ["A", "B", "C"], "rounds": 12, "resumed_from": None}
    assert log.events[-1]["event"] == "row_finished"
    assert log.of("update_received")[0].keys() == {
        "event", "round", "node", "bytes", "num_examples", "seconds", "metrics",
    }  # fmt: skip
    assert result.rounds == 12
    assert result.bytes_up == sum(event["bytes_up"] for event in log.of("round_finished")) > 0
    assert result.bytes_down == sum(event["bytes_down"] for event in log.of("round_finished"))
    assert log.of("round_finished")[0]["seconds"].keys() == {"fit", "merge", "evaluate", "checkpoint", "total"}


def test_one_round_is_the_weighted_mean_of_its_updates(tmp_path: Path) -> None:
    result = hold(tmp_path, rounds=1, seed=4)

    updates = []
    for index, node in enumerate("ABC"):
        plan = FitPlan(train=TrainSection(lr=0.05, steps=4), round=0, rounds=1, seed=4, node_id=node)
        updates.append(LinearLearner().fit(TEMPLATE.weights, site(index), plan))
    counts = [update.num_examples for update in updates]
    for name in linear.TRAINED:
        mean = np.average([update.delta[name] for update in updates], axis=0, weights=counts)
        np.testing.assert_allclose(result.weights[name], TEMPLATE.weights[name] + mean, atol=1e-7)
    x = np.concatenate([linear.table(site(index), "train")[0] for index in range(3)])
    np.testing.assert_allclose(result.weights["norm.running_mean"], x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(result.weights["norm.running_var"], x.var(axis=0), rtol=1e-5)


def test_the_order_of_the_nodes_changes_nothing(tmp_path: Path) -> None:
    hashes = set()
    for order in ("ABC", "CAB", "BCA"):
        folder = tmp_path / order
        transport = ShuffledTransport(LocalTransport(clients(folder)), order)
        hashes.add(hold(folder, transport=transport).weights.value_hash)
    assert len(hashes) == 1


class ShuffledTransport:
    """Nodes answer in a given order."""

    def __init__(self, inner: LocalTransport, order: str) -> None:
        self.inner = inner
        self.order = order

    def nodes(self) -> Sequence[str]:
        return self.inner.nodes()

    def send(self, requests: Sequence[Request]) -> None:
        self.inner.send(sorted(requests, key=lambda request: self.order.index(request.node_id)))

    def cancel(self, request_ids: Sequence[str]) -> list[str]:
        return self.inner.cancel(request_ids)

    def receive(self, timeout: float | None) -> list[Reply]:
        return self.inner.receive(timeout)


def spoiled(arrays: Mapping[str, Any] | None = None, values: Mapping[str, Any] | None = None, drop: str = "") -> Any:
    """Node B's update with some arrays or values replaced, or one array taken out."""

    def tamper(request: Request, reply: Reply) -> list[Reply]:
        if request.kind != "fit" or request.node_id != "B" or reply.record is None:
            return [reply]
        kept = {name: array for name, array in reply.record.arrays.items() if name != drop}
        record = Record({**kept, **(arrays or {})}, {**reply.record.values, **(values or {})})
        return [Reply(reply.request_id, reply.node_id, record)]

    return tamper


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (spoiled({"delta/head.weight": NAN}), "NaN"),
        (spoiled({"delta/head.weight": np.full(3, np.inf, np.float32)}), "infinity"),
        (spoiled({"delta/head.weight": np.zeros((3, 1), np.float32)}), "expected"),
        (spoiled({"delta/head.weight": np.zeros(3)}), "float64"),
        (spoiled({"delta/hidden": np.zeros(3, np.float32)}), "unknown tensors"),
        (spoiled(drop="delta/head.bias"), "lacks"),
        (spoiled({"delta/head.weight": np.full(3, 1e30, np.float32)}), "too large"),
        (spoiled(values={"num_examples": 2**24}), "num_examples"),
        (spoiled(values={"protocol": 0}), "protocol version"),
        (spoiled(values={"template": "x"}), "form"),
    ],
)
def test_a_bad_update_is_refused_and_the_round_goes_on(tmp_path: Path, tamper: Any, says: str) -> None:
    log = Log()
    bad = hold(tmp_path / "bad", transport=Tampering(LocalTransport(clients(tmp_path / "x")), tamper), emit=log)

    refused = log.of("update_refused")
    assert [(event["round"], event["node"]) for event in refused] == [(1, "B"), (2, "B"), (3, "B")]
    assert says in refused[0]["reason"]
    without = hold(tmp_path / "without", transport=LocalTransport(clients(tmp_path / "y", nodes="AC")))
    assert bad.weights.value_hash == without.weights.value_hash


def test_second_and_uninvited_answers_are_refused(tmp_path: Path) -> None:
    def tamper(request: Request, reply: Reply) -> list[Reply]:
        if request.node_id == "C" and request.kind == "fit":
            stranger = Reply(reply.request_id.replace("C", "Z"), "Z", reply.record)
            other_name = Reply(reply.request_id, "A", reply.record)
            return [stranger, other_name, reply, reply]
        return [reply]

    log = Log()
    result = hold(tmp_path, transport=Tampering(LocalTransport(clients(tmp_path / "x")), tamper), emit=log, rounds=1)

    assert [(event["node"], event["reason"]) for event in log.of("update_refused")] == [
        ("Z", "answered without being asked"),
        ("A", "answered without being asked"),
        ("C", "answered a second time"),
    ]
    assert result.weights.value_hash == hold(tmp_path / "clean", rounds=1).weights.value_hash


def test_a_node_that_fails_is_reported_and_the_round_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    learners = {"A": Raising(DataError("no pictures", key="train")), "B": Raising(ZeroDivisionError("by zero"))}
    log = Log()
    with caplog.at_level(logging.ERROR):
        hold(tmp_path, transport=LocalTransport(clients(tmp_path / "x", learners)), emit=log, rounds=1)

    assert {event["node"]: event["reason"] for event in log.of("update_refused")} == {
        "A": "train: no pictures",
        "B": "ZeroDivisionError: by zero",
    }
    assert "Traceback" in caplog.text


def test_too_few_good_updates_end_the_run_with_the_reasons(tmp_path: Path) -> None:
    learners = {"B": Raising(DataError("no pictures")), "C": Raising(ValueError("odd"))}
    transport = LocalTransport(clients(tmp_path / "x", learners))
    with pytest.raises(
        RunError, match=r"round 1 got 1 good updates and needs at least 2: B: no pictures; C: ValueError"
    ):
        hold(tmp_path, transport=transport, min_nodes=2)

    log = Log()
    mended = hold(tmp_path, min_nodes=2, resume=True, emit=log)
    assert mended.weights.value_hash == hold(tmp_path / "clean", min_nodes=2).weights.value_hash


def test_ctrl_c_in_a_node_is_not_a_failed_node(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt(), Interrupted("stopped")):
        transport = LocalTransport(clients(tmp_path / "x", {"B": Raising(error)}))
        with pytest.raises(type(error)):
            hold(tmp_path / type(error).__name__, transport=transport)


def test_a_deadline_leaves_late_nodes_out(tmp_path: Path) -> None:
    log = Log()
    learners = {"B": Slow()}
    transport = LocalTransport(clients(tmp_path / "x", learners))
    result = hold(tmp_path, transport=transport, emit=log, rounds=1, deadline=0.15)

    assert [(e["node"], e["reason"]) for e in log.of("update_refused")] == [
        ("B", "no answer within 0.15 s"),
        ("C", "no answer within 0.15 s"),
        ("B", "answered what it was asked in round 1 after the deadline"),
    ]
    alone = hold(tmp_path / "alone", transport=LocalTransport(clients(tmp_path / "y", nodes="A")), rounds=1)
    assert result.weights.value_hash == alone.weights.value_hash
    assert [event["where"] for event in log.of("evaluated")] == ["A", "B", "C"]


def test_a_node_that_never_answers(tmp_path: Path) -> None:
    def tamper(request: Request, reply: Reply) -> list[Reply]:
        return [] if request.node_id == "C" else [reply]

    log = Log()
    hold(tmp_path, transport=Tampering(LocalTransport(clients(tmp_path / "x")), tamper), emit=log, rounds=1)
    assert [(e["node"], e["reason"]) for e in log.of("update_refused")] == [("C", "no answer")]
    assert [e["node"] for e in log.of("warning")] == ["C"]


def test_personal_layers_differ_between_nodes_and_never_leave_them(tmp_path: Path) -> None:
    seen: set[str] = set()

    def watch(request: Request, reply: Reply) -> list[Reply]:
        assert reply.record is not None
        seen.update(reply.record.arrays)
        return [reply]

    nodes = clients(tmp_path / "x")
    transport = Tampering(LocalTransport(nodes), watch)
    result = hold(tmp_path, transport=transport, rounds=3, personal=["bn"])

    assert seen == {"delta/head.weight", "delta/head.bias"}
    for name, array in TEMPLATE.weights.items():
        if name.startswith("norm."):
            np.testing.assert_array_equal(result.weights[name], array)
    own = [client.own_weights(result.weights, ["bn"], 3) for client in nodes.values()]
    assert len({weights["norm.running_mean"].tobytes() for weights in own}) == 3
    assert len({weights["head.weight"].tobytes() for weights in own}) == 1


class Scored(LinearLearner):
    """A learner whose test of each round comes out as it was told."""

    def __init__(self, scores: Sequence[float | None]) -> None:
        self.scores = list(scores)

    def evaluate(self, weights: Weights, data: Dataset, split: str, imgsz: int | None = None) -> Metrics:
        score = self.scores.pop(0)
        return Metrics({}, {}, 0) if score is None else Metrics({"thing": score}, {"thing": score}, 1)


def scored(folder: Path, **scores: Sequence[float | None]) -> LocalTransport:
    return LocalTransport(clients(folder, {node: Scored(values) for node, values in scores.items()}))


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ({"A": [0.1, 0.9, 0.2, 0.3], "B": [0.5, 0.2, 0.5, 0.4], "C": [0.3, 0.2, 0.3, 0.4]}, 2),
        ({"A": [0.1, 0.9, 0.2, 0.3], "B": [0.5, 0.2, 0.5, 0.4], "C": [0.9, 0.2, 0.8, 0.4]}, 3),
        ({"A": [0.5] * 4, "B": [0.25] * 4, "C": [0.3] * 4}, 4),
        ({"A": [0.1, 0.4, 0.4, 0.3], "B": [None] * 4, "C": [None] * 4}, 3),
        ({"A": [None] * 4, "B": [None] * 4, "C": [None] * 4}, 4),
    ],
    ids=["sites count once", "tie: the later", "all the same", "sites without pictures do not count", "none has any"],
)
def test_the_best_round_is_kept(tmp_path: Path, scores: dict[str, Sequence[float | None]], kept: int) -> None:
    log = Log()
    result = hold(tmp_path / "best", transport=scored(tmp_path / "x", **scores), emit=log, rounds=4, keep="best")

    until = hold(tmp_path / "last", rounds=kept)
    assert (result.kept, result.rounds) == (kept, 4)
    assert result.weights.value_hash == until.weights.value_hash
    assert log.of("row_finished")[0]["kept"] == kept
    assert bool(log.of("warning")) == (scores["A"][0] is None)


def test_a_round_that_a_site_could_not_test_is_not_the_best(tmp_path: Path) -> None:
    def tamper(request: Request, reply: Reply) -> list[Reply]:
        lost = request.kind == "evaluate" and request.node_id == "C" and "-2-" in request.request_id
        return [Reply(reply.request_id, reply.node_id, None, error="out of memory")] if lost else [reply]

    nodes = scored(tmp_path / "x", A=[0.1, 0.9, 0.2], B=[0.1, 0.9, 0.2], C=[0.5, 0.9, 0.1])
    result = hold(tmp_path, transport=Tampering(nodes, tamper), rounds=3, keep="best")
    assert result.kept == 1


def test_only_rounds_that_are_tested_can_be_kept(tmp_path: Path) -> None:
    nodes = scored(tmp_path / "x", A=[0.3, 0.2], B=[0.3, 0.2], C=[0.3, 0.2])
    assert hold(tmp_path, transport=nodes, rounds=3, every=2, keep="best").kept == 2
    with pytest.raises(RunError, match=r"evaluate\.every was 2 and is 1"):
        hold(tmp_path, transport=nodes, rounds=3, every=1, keep="best", resume=True)


def test_the_personal_layers_of_the_kept_round_are_there(tmp_path: Path) -> None:
    learners = {node: Scored([0.1, 0.9, *[0.2] * 6]) for node in "ABC"}
    nodes, until = clients(tmp_path / "x", learners), clients(tmp_path / "y")
    result = hold(tmp_path / "8", transport=LocalTransport(nodes), rounds=8, keep="best", personal=["bn"])
    second = hold(tmp_path / "2", transport=LocalTransport(until), rounds=2, personal=["bn"])
    assert result.kept == 2
    for node in "ABC":
        own = nodes[node].own_weights(result.weights, ["bn"], result.kept)
        assert own.value_hash == until[node].own_weights(second.weights, ["bn"], 2).value_hash


def test_every_node_goes_on_for_itself_after_the_last_round(tmp_path: Path) -> None:
    log = Log()
    plain = hold(tmp_path / "plain", personal=["bn"])
    result = hold(tmp_path / "own", emit=log, personal=["bn"], finetune_after=2, finetune_lr=0.5)
    assert result.weights.value_hash == plain.weights.value_hash

    train = TrainSection(lr=0.025, steps=8)
    for index, (node, client) in enumerate(clients(tmp_path / "own" / "nodes").items()):
        asked = FitPlan(train=train, round=3, rounds=4, seed=1, node_id=node, personal=("bn",), finetune=True, kept=3)
        start = client.own_weights(result.weights, ("bn",), 3)
        update = LinearLearner().fit(start, site(index), asked)
        own = add(start, update.delta).replace(update.buffers)
        assert client.finetuned().value_hash == own.value_hash
        told = [event["metrics"] for event in log.of("finetuned") if event["node"] == node]
        assert told == [LinearLearner().evaluate(own, site(index), "val").to_dict()]
    ended = log.of("row_finished")[0]
    assert ended["bytes_down"] > plain.bytes_down
    assert len(log.of("round_finished")) == 3


def test_a_node_that_cannot_go_on_for_itself_is_told_and_disturbs_nobody(tmp_path: Path) -> None:
    class Failing(LinearLearner):
        def fit(self, weights: Weights, data: Dataset, plan: FitPlan, *arguments: Any) -> Update:  # type: ignore[override]
            if plan.finetune:
                raise ResourceError("the disk is full")
            return super().fit(weights, data, plan, *arguments)

    log, nodes = Log(), clients(tmp_path / "nodes")
    nodes["B"] = Client("B", Failing(), site(1), tmp_path / "nodes" / "B")
    hold(tmp_path, transport=LocalTransport(nodes), emit=log, finetune_after=1)
    assert [event["node"] for event in log.of("finetuned")] == ["A", "C"]
    (warning,) = log.of("warning")
    assert (warning["node"], warning["reason"]) == ("B", "has no model of its own: the disk is full")


def test_personal_must_leave_something_to_share(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to learn together"):
        hold(tmp_path, personal=["*"])
    with pytest.raises(ConfigError, match="'neck' matches no tensor"):
        hold(tmp_path, personal=["neck"])


def test_frozen_layers_stay_as_they_are(tmp_path: Path) -> None:
    result = hold(tmp_path, train={"freeze": 1})
    for name, array in TEMPLATE.weights.items():
        assert np.array_equal(result.weights[name], array) == name.startswith("norm.")


def test_a_server_that_diverges_stops(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"round 1 diverged.*federation\.strategy\.server_lr"):
        hold(tmp_path, strategy={"name": "fedavg", "server_lr": 1e39})


def test_too_few_nodes_to_begin(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="at least 3 nodes, but 2 can be reached"):
        hold(tmp_path, transport=LocalTransport(clients(tmp_path / "x", nodes="AB")), min_nodes=3)


def test_stopped_between_replies_and_resumed(tmp_path: Path) -> None:
    polls = iter(range(1000))
    with pytest.raises(Interrupted, match="SIGTERM") as caught:
        hold(tmp_path, stop=lambda: "SIGTERM" if next(polls) >= 9 else None, **FULL)
    assert (caught.value.reason, caught.value.exit_code) == ("SIGTERM", 130)
    assert "1 of 4 rounds are finished" in str(caught.value)

    log = Log()
    resumed = hold(tmp_path, resume=True, emit=log, **FULL)
    assert log.of("row_started")[0]["resumed_from"] == 1
    assert resumed.weights.value_hash == hold(tmp_path / "unbroken", **FULL).weights.value_hash


class Killed(BaseException):
    """Ends everything at once, as a kill would."""


@pytest.mark.parametrize("options", [FULL, SCAFFOLD], ids=["fedadam", "scaffold, best round kept"])
def test_broken_off_at_any_call_and_resumed(tmp_path: Path, options: dict[str, Any]) -> None:
    unbroken = hold(tmp_path / "unbroken", **options)
    for call in range(20):
        folder = tmp_path / str(call)
        calls = iter(range(100))

        def kill(request: Request, reply: Reply, calls: Any = calls, call: int = call) -> list[Reply]:
            if next(calls) == call:
                raise Killed
            return [reply]

        with pytest.raises(Killed):
            hold(folder, transport=Tampering(LocalTransport(clients(folder / "nodes")), kill), **options)
        resumed = hold(folder, resume=True, **options)
        assert resumed.weights.value_hash == unbroken.weights.value_hash, f"differs after call {call}"
        assert resumed.kept == unbroken.kept


@pytest.mark.parametrize("call", [2, 6, 8])
def test_killed_in_the_middle_of_a_round_and_resumed(tmp_path: Path, call: int) -> None:
    script = [sys.executable, linear.__file__, str(tmp_path / "killed"), str(call)]
    with subprocess.Popen(script, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"stalled\n"
        process.kill()
    assert process.returncode == -9

    resumed = hold(tmp_path / "killed", resume=True, **FULL)
    assert resumed.weights.value_hash == hold(tmp_path / "unbroken", **FULL).weights.value_hash


def test_a_finished_run_can_be_resumed_to_its_result(tmp_path: Path) -> None:
    first = hold(tmp_path)
    log = Log()
    again = hold(tmp_path, resume=True, emit=log)
    assert again.weights.value_hash == first.weights.value_hash
    assert again.bytes_up == first.bytes_up
    assert log.of("row_started")[0]["resumed_from"] == 3
    assert not log.of("round_started")


def test_the_start_is_tested_once_and_changes_no_bit(tmp_path: Path) -> None:
    plain, log = hold(tmp_path / "plain", **FULL), Log()
    tested = hold(tmp_path / "tested", test_start=True, emit=log, **FULL)
    assert tested.weights.value_hash == plain.weights.value_hash
    start = [event for event in log.of("evaluated") if event["round"] == 0]
    assert [event["where"] for event in start] == ["A", "B", "C"]
    order = [event["event"] for event in log.events]
    assert order.index("row_started") < order.index("evaluated") < order.index("round_started")
    again = Log()
    hold(tmp_path / "tested", test_start=True, emit=again, resume=True, **FULL)
    assert not again.of("evaluated")


def test_the_bytes_of_each_node_add_up_to_those_of_the_round(tmp_path: Path) -> None:
    log = Log()
    result = hold(tmp_path, test_start=True, emit=log, rounds=3, fraction=0.6)
    totals = {"bytes_up": 0, "bytes_down": 0}
    for event in log.of("round_finished"):
        for way in totals:
            assert event[way] == sum(of_node[way] for of_node in event["nodes"].values())
            totals[way] += event[way]
        assert event["nodes"].keys() == {"A", "B", "C"}, "all are asked to test"
    assert totals == {"bytes_up": result.bytes_up, "bytes_down": result.bytes_down}


def test_a_stop_while_the_start_is_tested_says_that_no_round_is_finished(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        hold(tmp_path, test_start=True, stop=lambda: "Ctrl-C")
    assert "0 of 3 rounds" in str(caught.value)


class Vast:
    """A learner of one large tensor, for measuring memory."""

    template = Template("vast", ("thing",), Weights({"w": np.zeros(200_000)}))

    def fit(
        self,
        weights: Weights,
        data: Dataset,
        plan: FitPlan,
        progress: ProgressCallback = silent,
        state_folder: Path | None = None,
        control: Control | None = None,
    ) -> Update:
        return Update(Weights({"w": np.full(200_000, 0.5)}), Weights({}), 1)

    def evaluate(self, weights: Weights, data: Dataset, split: str, imgsz: int | None = None) -> Metrics:
        return Metrics({"thing": 1.0}, {"thing": 1.0}, 1, {})


def test_an_edge_box_can_hold_rounds() -> None:
    """The round loop imports no training library and no Flower."""
    code = (
        "import sys, manyeyes.federation.rounds, manyeyes.federation.local;"
        "assert not {'torch', 'flwr', 'ultralytics'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_does_not_grow_with_the_nodes(tmp_path: Path) -> None:
    peaks = {}
    data = site(0)
    for count in (3, 30, 300):
        nodes = {f"n{i}": Client(f"n{i}", Vast(), data, tmp_path / f"n{i}") for i in range(count)}
        tracemalloc.start()
        result = run_rounds(
            LocalTransport(nodes),
            Vast.template,
            train=TrainSection(),
            federation=FederationSection(rounds=2),
            evaluate=EvaluateSection(),
            seed=0,
            expected=lambda _: (frozenset({"w"}), frozenset()),
            folder=tmp_path / str(count),
            emit=lambda *_, **__: None,
        )
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert result.weights.value_hash == add(Vast.template.weights, {"w": np.ones(200_000)}).value_hash
    assert peaks[300] < 1.25 * peaks[3], peaks
    assert peaks[30] < 1.1 * peaks[3], peaks
