"""Faults of machines and networks, with real processes: nothing is lost, the run ends, and one line says what."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import httpx
import pytest
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from tests.federation.linear import Log, site
from tests.federation.linear_deployment import (
    WIDE_TEMPLATE,
    LinearDeployment,
    WideLearner,
    Wire,
    ask,
    control,
    deployed,
    fill,
    foreign_app,
    on_small_disk,
    small_disks,
    trace,
    wide_expected,
)

from manyeyes.federation import flower, flower_transport
from manyeyes.federation.client import Client
from manyeyes.federation.coordinator_config import CoordinatorConfig
from manyeyes.federation.deployment import superlink
from manyeyes.federation.flower import RuntimeAddress
from manyeyes.federation.flower_transport import FlowerTransport
from manyeyes.federation.form import ModelForm
from manyeyes.federation.hold import _open_door
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.messages import fit_request, longest_answer
from manyeyes.federation.rounds import run_rounds
from manyeyes.federation.transport import Request
from manyeyes.learners.learner import FitPlan
from manyeyes.report.runlog import Event
from manyeyes.web.serving import listen
from manyeyes.weights import load_weights


def undisturbed(folder: Path, nodes: str, rounds: int) -> str:
    """Hash of the weights of the same run in one process, to which nothing happens."""
    config = CoordinatorConfig.model_validate(
        {"name": "run", "names": ["thing"], "train": {"lr": 0.05, "steps": 4}, "federation": {"rounds": rounds}}
    )
    clients = {
        node: Client(node, WideLearner(0.0), site(ord(node) - ord("A")), folder / "local" / node) for node in nodes
    }
    result = run_rounds(
        LocalTransport(clients),
        WIDE_TEMPLATE,
        train=config.train,
        federation=config.federation,
        evaluate=config.evaluate,
        seed=1,
        expected=wide_expected,
        folder=folder / "local" / "checkpoints",
        emit=Log(),
    )
    return result.weights.value_hash


def final(deployment: LinearDeployment) -> str:
    return load_weights(deployment.folder / "run" / "final.safetensors")[0].value_hash


def nothing_said_that_should_not_be(deployment: LinearDeployment) -> None:
    for name in ("coordinator", *deployment.nodes):
        assert not trace(deployment.said(name)), deployment.said(name)


@pytest.mark.slow
def test_killed_processes_cost_no_round_and_no_bit(tmp_path: Path) -> None:
    """The SuperLink alone, a node while it sends, a SuperNode alone; and a network that is cut for some seconds."""
    with deployed(tmp_path) as deployment:
        wire = Wire(deployment.port)
        deployment.start_coordinator(rounds=5)
        for node in "AC":
            deployment.start_node(node)
        deployment.start_node("B", port=wire.port)
        deployment.wait_for_round(1)
        os.kill(deployment.child_of("coordinator", "flower-superlink"), signal.SIGKILL)
        deployment.wait_for_round(2)

        wire.cut_after = wire.bytes_up + 400_000
        deployment.wait(lambda: wire.is_cut, "B did not send")
        deployment.kill("B")
        wire.mend()
        deployment.start_node("B", port=wire.port)
        deployment.wait_for_round(3)

        os.kill(deployment.child_of("C", "flower-supernode"), signal.SIGKILL)
        deployment.wait_for_round(4)
        wire.cut()
        time.sleep(8)
        wire.mend()
        assert deployment.finish() == 0, deployment.said("coordinator")

        assert "flower-superlink has ended (SIGKILL); it is started again" in deployment.said("coordinator")
        assert "B was gone, and is asked again" in deployment.said("coordinator")
        assert [deployment.merged(number) for number in range(1, 6)] == [{"A", "B", "C"}] * 5
        assert final(deployment) == undisturbed(tmp_path, "ABC", 5)
        nothing_said_that_should_not_be(deployment)


@pytest.mark.slow
def test_a_fourth_node_joins_in_round_3_and_a_revoked_one_is_gone_at_once(tmp_path: Path) -> None:
    with deployed(tmp_path, "ABCD") as deployment:
        deployment.start_coordinator(rounds=5, min_nodes=3)
        for node in "ABC":
            deployment.start_node(node, seconds=2.0)
        deployment.wait_for_round(1)
        deployment.start_node("D", seconds=2.0)
        deployment.wait(lambda: "D" in deployment.merged(deployment.rounds_finished()), "D took no part")
        deployment.members.revoke("B")
        assert deployment.finish() == 0, deployment.said("coordinator")
        assert deployment.merged(1) == {"A", "B", "C"}
        assert {event["reason"] for event in deployment.of("update_refused")} <= {
            "was revoked",
            "is not online any more",
        }
        assert deployment.merged(5) == {"A", "C", "D"}
        assert "this key was not admitted, or was revoked" in deployment.said("B")
        nothing_said_that_should_not_be(deployment)


@pytest.mark.slow
def test_an_answer_of_a_hundred_times_the_size_is_refused_and_not_kept(tmp_path: Path) -> None:
    with deployed(tmp_path, "AB") as deployment:
        deployment.start_coordinator(rounds=2, min_nodes=1)
        deployment.start_node("A")
        deployment.start_node("B", "--rogue")
        assert deployment.finish() == 0, deployment.said("coordinator")
        most = longest_answer(WIDE_TEMPLATE.weights)
        reasons = [event["reason"] for event in deployment.of("update_refused") if event["node"] == "B"]
        assert reasons == [f"the answer is longer than the {most} bytes that one about this model can have"]
        assert deployment.merged(2) == {"A"}
        assert "refused /v1/fleet/push-object of B at 127.0.0.1: the answer is longer" in deployment.said("coordinator")
        database = sum(path.stat().st_size for path in (tmp_path / "coordinator").glob("superlink.db*"))
        assert database < 20 * most, "a hundredfold answer would be 40 times the longest one"
        nothing_said_that_should_not_be(deployment)


@pytest.mark.slow
@pytest.mark.parametrize("late", ["drop", "next_round"])
def test_a_node_that_comes_back_after_the_deadline_is_asked_again_only_where_somebody_waits_for_it(
    tmp_path: Path, late: str
) -> None:
    with deployed(tmp_path, "AB") as deployment:
        deployment.start_coordinator(rounds=300, min_nodes=1, deadline=12, late=late, max_staleness=100)
        for node in "AB":
            deployment.start_node(node, seconds=1.0)
        deployment.wait(lambda: "B" in deployment.merged(deployment.rounds_finished()), "B took no part")
        deployment.kill("B")

        def of_b(kind: str) -> list[Event]:
            # On a busy machine A may miss a deadline too.
            return [event for event in deployment.of(kind) if event["node"] == "B"]

        kind = {"drop": "update_refused", "next_round": "update_late"}[late]
        deployment.wait(lambda: of_b(kind), "B was not missed")
        missed = of_b(kind)[0]
        assert missed["reason"] == "no answer within 12 s"
        deployment.start_node("B", seconds=1.0)

        def come() -> list[Event]:
            return [event for event in of_b("update_received") if event["round"] > missed["round"]]

        deployment.wait(come, "B takes no part any more", seconds=90.0)
        reasons = [event["reason"] for event in of_b("update_refused")[1:]]
        if late == "drop":
            assert reasons == ["was away meanwhile, and what it had been asked is lost"]
            assert "staleness" not in come()[0]
        else:
            assert not reasons
            assert come()[0]["staleness"] == come()[0]["round"] - missed["round"]
            assert "B was gone, and is asked again" in deployment.said("coordinator")
        nothing_said_that_should_not_be(deployment)


@pytest.mark.slow
def test_a_node_that_stands_still_is_merged_late_and_then_in_time_again(tmp_path: Path) -> None:
    with deployed(tmp_path) as deployment:
        deployment.start_coordinator(rounds=300, min_nodes=2, deadline=15, late="next_round", max_staleness=100)
        for node in "ABC":
            deployment.start_node(node, seconds=1.0)

        def whole() -> list[Event]:
            return [event for event in deployment.of("round_started") if event["cohort"] == ["A", "B", "C"]]

        deployment.wait(whole, "the three were never asked together")
        # The node is stopped, Flower's process beside it is not: for the coordinator it is there and slow.
        deployment.processes["B"].send_signal(signal.SIGSTOP)
        try:
            deployment.wait(lambda: deployment.of("update_late"), "B was not missed")
            (late,) = deployment.of("update_late")
            assert (late["node"], late["reason"]) == ("B", "no answer within 15 s")
            deployment.wait_for_round(late["round"])
            number = late["round"] + 1
            deployment.wait(lambda: deployment.of("round_started")[-1]["round"] >= number, "no round without B")
            (next_one,) = [event for event in deployment.of("round_started") if event["round"] == number]
            assert next_one["cohort"] == ["A", "C"]
        finally:
            deployment.processes["B"].send_signal(signal.SIGCONT)

        def of_b() -> list[Event]:
            events = deployment.of("update_received")
            return [event for event in events if event["node"] == "B" and event["round"] > late["round"]]

        deployment.wait(lambda: len(of_b()) > 1, "B takes no part any more", seconds=90.0)
        merged, again = of_b()[:2]
        assert merged["staleness"] == merged["round"] - late["round"]
        assert merged["seconds"] > 15
        assert "staleness" not in again
        nothing_said_that_should_not_be(deployment)


small_disk = pytest.mark.skipif(not small_disks(), reason="this machine does not let us mount a small disk")


@small_disk
@pytest.mark.slow
def test_a_full_disk_at_the_coordinator_ends_the_run_in_words_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with deployed(tmp_path, "AB") as deployment:
        coordinator = tmp_path / "coordinator"
        deployment.start_coordinator(rounds=4, prefix=on_small_disk(coordinator, 40))
        for node in "AB":
            deployment.start_node(node)
        deployment.wait_for_round(1)
        inside = Path(f"/proc/{deployment.processes['coordinator'].pid}/root{coordinator}")
        fill(inside / "ballast")
        assert deployment.finish(150) == 2
        assert "MB are free on this disk, too few for what nodes send. Make room" in deployment.said("coordinator")
        assert 1 <= deployment.rounds_finished() < 4

        deployment.start_coordinator("--resume", rounds=4)
        assert deployment.finish() == 0, deployment.said("coordinator")
        assert final(deployment) == undisturbed(tmp_path, "AB", 4)
        nothing_said_that_should_not_be(deployment)


@small_disk
@pytest.mark.slow
def test_a_node_whose_disk_is_full_refuses_in_words_and_takes_part_again_when_there_is_room(tmp_path: Path) -> None:
    with deployed(tmp_path, "AB") as deployment:
        deployment.start_coordinator(rounds=60, min_nodes=1)
        deployment.start_node("A", seconds=1.0)
        folder = tmp_path / "nodes" / "B"
        deployment.start_node("B", seconds=1.0, prefix=on_small_disk(folder, 8))
        deployment.wait(lambda: "B" in deployment.merged(deployment.rounds_finished()), "B took no part")
        inside = Path(f"/proc/{deployment.processes['B'].pid}/root{folder}")
        fill(inside / "ballast")
        deployment.wait(lambda: deployment.of("update_refused"), "B refused nothing")
        reason = deployment.of("update_refused")[0]["reason"]
        assert "cannot be written (No space left on device), so nothing may leave this node" in reason
        assert str(tmp_path) not in reason
        assert deployment.processes["B"].poll() is None
        (inside / "ballast").unlink()
        full = deployment.rounds_finished()
        deployment.wait(lambda: "B" in deployment.merged(max(full + 1, deployment.rounds_finished())), "B stays away")
        shutil.copy(inside / "audit.jsonl", folder / "audit.jsonl")
        kinds = [entry["sent"] for entry in deployment.audit("B")]
        assert "refusal" in kinds[: kinds.index("refusal") + 1]
        assert kinds[-1] == "answer"
        nothing_said_that_should_not_be(deployment)


SECONDS = 6.0


def asked_to_train(transport: FlowerTransport, config: CoordinatorConfig) -> tuple[bytes, float]:
    """Node A's answer to the one request there is, and the seconds it took."""
    plan = FitPlan(train=config.train, round=0, rounds=1, node_id="A")
    record = fit_request(WIDE_TEMPLATE.weights, plan, WIDE_TEMPLATE.form_hash)
    began = time.monotonic()
    answer = ask(transport, "A", Request("r-2", "A", "fit", record))
    assert answer.record is not None, answer.error
    return answer.record.to_bytes(), time.monotonic() - began


@pytest.mark.slow
def test_foreign_runs_are_not_obeyed_and_a_lost_answer_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = ModelForm.of(WIDE_TEMPLATE, "run")
    with deployed(tmp_path, "A") as deployment:
        config = CoordinatorConfig.model_validate({"name": "x", "names": ["thing"], "state": tmp_path / "coordinator"})
        deployment.start_node("A", seconds=SECONDS)
        with (
            listen("127.0.0.1", deployment.port, key="port") as listener,
            superlink(config.state) as address,
            _open_door(config, deployment.members, address, listener, 10_000_000) as door,
        ):
            # Anybody on the coordinator's machine can start a run; without the secret nobody can speak for it.
            content, digest = foreign_app()
            request = StartRunRequest(fab=Fab(hash_str=digest, content=content))
            foreign = control(address).StartRun(request).run_id
            stranger = RuntimeAddress(address.address, "0" * 64, address.authority).client("SuperExec")
            with pytest.raises(httpx.HTTPStatusError) as refused, stranger:
                stranger.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
            assert refused.value.response.status_code in (401, 403)

            with FlowerTransport(address, deployment.members, form, door=door) as transport:
                assert transport._task.context.run_id != foreign
                # It reached the node's program, which says what is missing in a request that holds nothing.
                assert "the message lacks" in str(ask(transport, "A").error)
                twice = [asked_to_train(transport, config) for _ in range(2)]
                assert twice[0][0] == twice[1][0]
                # An answer that was lost on its way is sent again, not worked out again.
                assert twice[0][1] > SECONDS > twice[1][1]
                entries = [entry["sha256"] for entry in deployment.audit("A") if entry["sent"] == "answer"]
                assert len(entries) == 2
                assert len(set(entries)) == 1

            # Who knows the secret and starts a run of something else gets no further than the node's first look at it.
            assert digest != flower.fab()[1]
            monkeypatch.setattr(flower_transport, "fab", lambda: (content, digest))
            with FlowerTransport(address, deployment.members, form, door=door) as transport:
                answer = ask(transport, "A")
                assert answer.error == "this task is of another program, or of another version of this one"
    assert not trace(deployment.said("A")), deployment.said("A")
