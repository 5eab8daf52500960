"""A site withdraws: what is said, what is written down, and what of it is left in a model that is rebuilt."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from manyeyes.config import ModelSection
from manyeyes.errors import ConfigError, RunError
from manyeyes.federation.admission import Members
from manyeyes.federation.checkpoint import RoundState, save_checkpoint
from manyeyes.federation.coordinator_config import CoordinatorConfig
from manyeyes.federation.joined import Joined
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.rounds import settings_of
from manyeyes.federation.transport import Reply, Request
from manyeyes.federation.withdrawal import (
    begin_rebuild,
    check_nobody_listens,
    plan_withdrawal,
    record_withdrawal,
    start_of,
)
from manyeyes.learners.models import build_template
from manyeyes.report.runlog import RunLog, read_runlog

from .linear import Log, clients, hold


class Comers:
    """A transport to some of the nodes; more come when they are let."""

    def __init__(self, inner: LocalTransport, here: str) -> None:
        self.inner, self.here = inner, here

    def nodes(self) -> Sequence[str]:
        return [node for node in self.inner.nodes() if node in self.here]

    def send(self, requests: Sequence[Request]) -> None:
        self.inner.send(requests)

    def receive(self, timeout: float | None) -> list[Reply]:
        return self.inner.receive(timeout)

    def cancel(self, request_ids: Sequence[str]) -> list[str]:
        return self.inner.cancel(request_ids)


def config(folder: Path, **values: Any) -> CoordinatorConfig:
    base = {"name": "harbour", "names": ["person"], "state": folder / "coordinator", "output": folder / "runs"}
    return CoordinatorConfig.model_validate({**base, **values})


@pytest.mark.parametrize("when", ["round_finished", "update_received"], ids=["between rounds", "inside a round"])
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "fedadam", "fraction": 0.6, "keep": "best"},
        {"strategy": "fedavgm", "weighting": "equal", "min_nodes": 2},
    ],
    ids=["fedadam, a part, best", "fedavgm"],
)
def test_without_a_node_that_came_later_a_run_ends_as_if_it_had_never_come(
    tmp_path: Path, options: dict[str, Any], when: str
) -> None:
    class Letting(Log):
        def __call__(self, event: str, **fields: Any) -> None:
            super().__call__(event, **fields)
            if event == when and fields["round"] == 3:
                transport.here = "ABCD"

    transport = Comers(LocalTransport(clients(tmp_path / "nodes", nodes="ABCD")), "ACD")
    old = hold(tmp_path / "old", transport=transport, emit=Letting(), rounds=7, **options)
    never = hold(
        tmp_path / "never", transport=LocalTransport(clients(tmp_path / "2", nodes="ACD")), rounds=7, **options
    )
    assert old.weights.value_hash != never.weights.value_hash

    checkpoints = tmp_path / "old" / "checkpoints"
    came_in = 3 if when == "round_finished" else 2
    train = {"lr": 0.05, "steps": 4}
    assert start_of(checkpoints, "B", config(tmp_path, federation=options, train=train))[0] == came_in
    Joined(checkpoints).copy_before("B", tmp_path / "new" / "checkpoints")
    log = Log()
    rest = LocalTransport(clients(tmp_path / "3", nodes="ACD"))
    rebuilt = hold(tmp_path / "new", transport=rest, rounds=7, resume=True, emit=log, **options)
    assert log.of("row_started")[0]["resumed_from"] == came_in
    assert (rebuilt.weights.value_hash, rebuilt.kept) == (never.weights.value_hash, never.kept)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"federation": {"personal": ["bn"]}}, "personal tensors"),
        ({"train": {"optimizer": "adamw"}}, "the optimiser's state"),
        ({"federation": {"strategy": "scaffold", "weighting": "equal"}}, "control variates"),
        ({"federation": {"min_nodes": 2}}, "federation.min_nodes was another"),
    ],
)
def test_it_starts_at_the_beginning_where_nodes_no_longer_have_what_they_had(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    transport = Comers(LocalTransport(clients(tmp_path / "nodes")), "AC")

    class Letting(Log):
        def __call__(self, event: str, **fields: Any) -> None:
            if event == "round_finished":
                transport.here = "ABC"

    hold(tmp_path, transport=transport, emit=Letting(), rounds=3)
    assert start_of(tmp_path / "checkpoints", "B", config(tmp_path))[0] == 1
    taken_over, why = start_of(tmp_path / "checkpoints", "B", config(tmp_path, **values))
    assert taken_over == 0
    assert said in why


# -- with the coordinator's own folders --------------------------------------------------------------------------------


def admit(folder: Path, nodes: str = "ABC") -> None:
    for node in nodes:
        Members(folder / "coordinator").admit(node, ec.generate_private_key(ec.SECP256R1()).public_key())


@pytest.fixture
def harbour(tmp_path: Path) -> CoordinatorConfig:
    """A run of four rounds among A, B and C, as a coordinator leaves it; B came in the third."""
    settings = config(tmp_path, federation={"rounds": 4, "min_nodes": 2})
    admit(tmp_path)
    template = build_template(ModelSection(), ("person",), seed=0, imgsz=320)
    described = settings_of(template, settings.train, settings.federation, settings.evaluate, settings.seed)
    checkpoints, log = settings.run_folder / "checkpoints", RunLog(settings.run_folder / "runlog.jsonl")
    joined = Joined(checkpoints)
    log.emit("run_started", name="harbour", sites=[], rows=[])
    log.emit("row_started", row="together", nodes=["A", "C"], rounds=4, resumed_from=None)
    for number in range(1, 5):
        save_checkpoint(checkpoints, RoundState(template.weights, round=number - 1, settings=described))
        nodes = "ABC" if number > 2 else "AC"
        joined.note(nodes, number - 1)
        for node in nodes:
            log.emit("update_received", row="together", round=number, node=node, bytes=100)
        log.emit("round_finished", row="together", round=number, bytes_up=300, bytes_down=200, seconds={"total": 30.0})
    save_checkpoint(checkpoints, RoundState(template.weights, round=4, settings=described))
    log.close()
    return settings


def test_what_will_be_done_and_what_it_costs_is_said_first(harbour: CoordinatorConfig) -> None:
    plan = plan_withdrawal(harbour, harbour.state, "B", rebuild=True)
    text = "\n".join(plan.lines())
    assert "Updates of B were merged in 2 of the 4 rounds of harbour." in text
    assert "Run harbour-without-B holds 2 rounds after round 2 of harbour, among A, C: B came in round 3." in text
    assert "As many rounds of harbour took 1 min 00 s and moved 1.0 kB." in text
    assert "stay as they are" in text
    assert plan.to_dict()["rebuild"]["taken_over"] == 2
    assert [m.withdrawn for m in Members(harbour.state)] == [None] * 3
    assert not (harbour.output / "harbour-without-B").exists()
    without = plan_withdrawal(harbour, harbour.state, "B").lines()
    assert any("With --rebuild" in line for line in without)
    assert "No run is looked at" in plan_withdrawal(None, harbour.state, "B").lines()[1]


def test_it_is_written_down_and_the_new_run_begins_where_it_was_said(harbour: CoordinatorConfig) -> None:
    plan = plan_withdrawal(harbour, harbour.state, "B", rebuild=True)
    record_withdrawal(harbour, harbour.state, plan)
    new = begin_rebuild(harbour, plan)

    (member,) = [m for m in Members(harbour.state) if m.node_id == "B"]
    assert member.revoked == member.withdrawn is not None
    assert Members(harbour.state).find(member.key) is None
    last = list(read_runlog(harbour.run_folder / "runlog.jsonl"))[-1]
    assert (last["event"], last["node"], last["rounds"], last["rebuilt_as"]) == (
        "withdrawn", "B", [3, 4], "harbour-without-B",
    )  # fmt: skip
    events = list(read_runlog(new.run_folder / "runlog.jsonl"))
    assert [e["round"] for e in events if e["event"] == "round_finished"] == [1, 2]
    assert "B" not in {e.get("node") for e in events}
    assert (events[-1]["event"], events[-1]["without"], events[-1]["round"]) == ("rebuilt", "B", 2)
    assert (new.run_folder / "checkpoints" / "round-0002.safetensors").exists()
    with pytest.raises(RunError, match=r"is there already.*--set name=harbour-without-B --resume"):
        plan_withdrawal(harbour, harbour.state, "B", rebuild=True)
    assert plan_withdrawal(harbour, harbour.state, "B", rebuild=True, name="second").rebuild is not None


def test_a_node_that_was_there_from_the_first_round_is_left_out_from_the_beginning(harbour: CoordinatorConfig) -> None:
    plan = plan_withdrawal(harbour, harbour.state, "A", rebuild=True)
    assert plan.rebuild is not None
    assert (plan.rebuild.taken_over, plan.rebuild.rounds) == (0, 4)
    text = "\n".join(plan.lines())
    assert "holds 4 rounds from the starting weights, among B, C: A was there from the first round." in text
    new = begin_rebuild(harbour, plan)
    assert [e["event"] for e in read_runlog(new.run_folder / "runlog.jsonl")] == ["rebuilt"]
    assert not (new.run_folder / "checkpoints").exists()


def test_what_cannot_be_is_refused_before_anything_is_done(harbour: CoordinatorConfig, tmp_path: Path) -> None:
    state = harbour.state
    with pytest.raises(ConfigError, match="no node 'Bb' was ever admitted"):
        plan_withdrawal(harbour, state, "Bb")
    with pytest.raises(ConfigError, match="needs the run's configuration"):
        plan_withdrawal(None, state, "B", rebuild=True)
    with pytest.raises(RunError, match=r"train\.lr was 0\.005 and is 0\.5"):
        plan_withdrawal(
            harbour.model_copy(update={"train": harbour.train.model_copy(update={"lr": 0.5})}), state, "B", rebuild=True
        )
    more = harbour.model_copy(update={"federation": harbour.federation.model_copy(update={"min_nodes": 3})})
    with pytest.raises(ConfigError, match=r"is 3, and without B 2 nodes are left.*--set federation\.min_nodes=2"):
        plan_withdrawal(more, state, "B", rebuild=True)
    with pytest.raises(RunError, match="holds no run that could be rebuilt"):
        plan_withdrawal(config(tmp_path, name="other"), state, "B", rebuild=True)
    with pytest.raises(ConfigError, match="cannot be the name of a run"):
        plan_withdrawal(harbour, state, "B", rebuild=True, name="../x")
    admit(tmp_path, "D")
    with pytest.raises(RunError, match="D had no part in this run"):
        plan_withdrawal(harbour, state, "D", rebuild=True)
    assert all(m.revoked is None for m in Members(state))


def test_fewer_nodes_at_least_are_no_other_run(harbour: CoordinatorConfig) -> None:
    one = harbour.model_copy(update={"federation": harbour.federation.model_copy(update={"min_nodes": 1})})
    plan = plan_withdrawal(one, harbour.state, "B", rebuild=True)
    assert plan.rebuild is not None
    assert plan.rebuild.taken_over == 0
    assert "min_nodes was another" in plan.rebuild.why


def test_a_node_that_was_shut_out_before_can_be_withdrawn(harbour: CoordinatorConfig) -> None:
    Members(harbour.state).revoke("B")
    record_withdrawal(None, harbour.state, plan_withdrawal(None, harbour.state, "B"))
    (member,) = [m for m in Members(harbour.state) if m.node_id == "B"]
    assert member.withdrawn is not None
    assert json.loads((harbour.state / "members.json").read_text())[1]["withdrawn"] == member.withdrawn


def test_a_running_coordinator_is_noticed(harbour: CoordinatorConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        update = {"host": "127.0.0.1", "port": listener.getsockname()[1]}
        with pytest.raises(RunError, match="Stop the coordinator"):
            check_nobody_listens(harbour.model_copy(update=update))
