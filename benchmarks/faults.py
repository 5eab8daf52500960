"""Claims: whatever happens to a machine or a network, the run is finished, and a node is back within its time.

    python benchmarks/faults.py                   every fault with its real duration, about half an hour
    python benchmarks/faults.py --only cut_90     one of them
    python benchmarks/faults.py --quick           two of them, not kept

A coordinator and its nodes are processes of their own, with a real SuperLink and real SuperNodes behind the door, over
TLS on loopback; what they train is a small linear model that takes some seconds, so that what is measured is the
federation (only where the trainer itself is killed, it is a detector's). For each fault: what came of it, how many
answers of nodes are missing in the rounds that were held, and the seconds from the fault (a cut or a full disk: from
its end) to the end of a round that the node has a part in.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
from cells import RESULTS, Claim, arguments, claim, save_cell, show
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest

from manyeyes.datasets.scenes import write_scenes
from manyeyes.errors import ManyeyesError
from manyeyes.federation import door, flower_transport, hello
from manyeyes.federation.flower import RuntimeAddress
from manyeyes.federation.flower_transport import FlowerTransport
from manyeyes.federation.form import ModelForm
from manyeyes.federation.hello import HELLO
from manyeyes.federation.keys import AUTHORITY, make_authority, make_node_key, renew_server
from manyeyes.federation.messages import PROTOCOL_VERSION
from manyeyes.web.serving import listen

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.federation.entrance import LONG_AGO, Entrance
from tests.federation.installed import SITES, Deployment
from tests.federation.linear_deployment import (
    WIDE_TEMPLATE,
    LinearDeployment,
    Wire,
    ask,
    control,
    deployed,
    fill,
    foreign_app,
    on_small_disk,
    trace,
)

SECONDS = 5.0
"""What a node trains in a round."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a fault.

    Attributes:
        outcome: in words.
        rounds_lost: answers that are missing in the rounds that were held, and rounds held a second time.
        seconds: to recover; 0 where nothing was disturbed.
        bound: the most that it may take.
    """

    outcome: str
    rounds_lost: int
    seconds: float
    bound: float


def begin(deployment: LinearDeployment, nodes: str = "ABC", *, port: int | None = None, **federation: Any) -> None:
    """Coordinator and nodes, until the first round is finished; B behind `port`."""
    deployment.start_coordinator(**federation)
    for node in nodes:
        deployment.start_node(node, seconds=SECONDS, port=port if node == "B" else None)
    deployment.wait_for_round(1, 120)


def back(deployment: LinearDeployment, node: str, since: int, began: float, seconds: float = 400.0) -> float:
    """Seconds until a round after `since` is finished with an answer of a node in it."""

    def finished() -> bool:
        last = deployment.rounds_finished()
        return any(node in deployment.merged(number) for number in range(since + 1, last + 1))

    deployment.wait(finished, f"{node} did not come back", seconds=seconds)
    return time.monotonic() - began


def end(deployment: LinearDeployment, outcome: str, seconds: float, bound: float, nodes: str = "ABC") -> Outcome:
    """Wait for the end of the run, and count what is missing."""
    if deployment.finish(600) != 0:
        raise AssertionError(deployment.said("coordinator"))
    rounds = deployment.rounds_finished()
    lost = sum(len(set(nodes) - deployment.merged(number)) for number in range(1, rounds + 1))
    again = len(deployment.of("round_started")) - rounds
    for path in deployment.folder.glob("*.log"):
        if trace(path.read_text()):
            raise AssertionError(path.read_text())
    return Outcome(outcome, lost + again, round(seconds, 1), bound)


def node_while_it_trains(folder: Path) -> Outcome:
    """SIGKILL of a node that trains; it is started again."""
    with deployed(folder) as deployment:
        begin(deployment, rounds=4)
        deployment.wait(lambda: len(deployment.of("round_started")) == 2, "no second round")
        time.sleep(SECONDS / 2)
        began = time.monotonic()
        deployment.kill("B")
        deployment.start_node("B", seconds=SECONDS)
        seconds = back(deployment, "B", 1, began)
        return end(deployment, "asked again when it was back; the round waited for it", seconds, 60)


def node_while_it_sends(folder: Path) -> Outcome:
    """SIGKILL of a node in the middle of its answer; it is started again."""
    with deployed(folder) as deployment:
        wire = Wire(deployment.port)
        begin(deployment, port=wire.port, rounds=4)
        wire.cut_after = wire.bytes_up + 400_000
        deployment.wait(lambda: wire.is_cut, "nothing was sent")
        began = time.monotonic()
        deployment.kill("B")
        wire.mend()
        deployment.start_node("B", seconds=SECONDS, port=wire.port)
        seconds = back(deployment, "B", 1, began)
        return end(deployment, "half an answer is thrown away, and the node asked again", seconds, 60)


def trainer_while_it_trains(folder: Path) -> Outcome:
    """SIGKILL of a node's trainer while it trains a detector."""
    write_scenes(folder / "scenes", images=9, imgsz=128, seed=5)
    deployment = Deployment(folder, folder / "scenes")
    deployment.prepare()
    plan = ["--set", "federation.rounds=4", "--set", "train.epochs=15"]
    try:
        coordinator = deployment.start("coordinator", "coordinator", "--config", "federation.yaml", *plan)
        for node in SITES:
            deployment.start_node(node)
        deployment.wait_for("round_finished", round=1)
        undisturbed = deployment.wait_for("update_received", node="B", round=2)
        deployment.wait_for("round_started", round=3)
        time.sleep(undisturbed["seconds"] / 2)
        deployment.trainer_of("B").kill()
        answered = deployment.wait_for("update_received", node="B", round=3)
        if coordinator.wait(300) != 0 or trace(deployment.said("B")):
            raise AssertionError(deployment.said("coordinator") + deployment.said("B"))
    finally:
        deployment.end()
    lost = 12 - sum(event["event"] == "update_received" for event in deployment.events())
    later = round(answered["seconds"] - undisturbed["seconds"], 1)
    told = f"another process began the round anew; the answer came {later} s later than in the round before"
    return Outcome(told, lost, later, 60)


def _coordinator(folder: Path, wait: float, outcome: str) -> Outcome:
    """SIGKILL of the coordinator some seconds after a round was kept, then --resume."""
    with deployed(folder) as deployment:
        begin(deployment, rounds=4)
        time.sleep(wait)
        finished = deployment.rounds_finished()
        began = time.monotonic()
        deployment.kill("coordinator")
        deployment.start_coordinator("--resume", rounds=4)
        seconds = back(deployment, "B", finished, began)
        return end(deployment, outcome, seconds, 90)


def coordinator_inside_a_round(folder: Path) -> Outcome:
    """SIGKILL of the coordinator while nodes train, then --resume."""
    return _coordinator(folder, SECONDS / 2, "the round that was open is held again, among the same nodes")


def coordinator_between_rounds(folder: Path) -> Outcome:
    """SIGKILL of the coordinator right after a round was kept, then --resume."""
    return _coordinator(folder, 0.0, "goes on after the last finished round, among the same nodes")


def _child(folder: Path, of: str, program: str, outcome: str) -> Outcome:
    """SIGKILL of a child process in the second round."""
    with deployed(folder) as deployment:
        begin(deployment, rounds=4)
        deployment.wait(lambda: len(deployment.of("round_started")) == 2, "no second round")
        began = time.monotonic()
        os.kill(deployment.child_of(of, program), signal.SIGKILL)
        seconds = back(deployment, "C", 1, began)
        return end(deployment, outcome, seconds, 90)


def superlink_alone(folder: Path) -> Outcome:
    """SIGKILL of the SuperLink alone."""
    return _child(folder, "coordinator", "flower-superlink", "started again on its database; nodes waited")


def supernode_alone(folder: Path) -> Outcome:
    """SIGKILL of a node's SuperNode alone."""
    return _child(folder, "C", "flower-supernode", "started again by its node; the node is asked again")


def _cut(folder: Path, seconds: float, outcome: str) -> Outcome:
    """A cut of so many seconds, from the second round on; all three nodes are needed."""
    with deployed(folder) as deployment:
        wire = Wire(deployment.port)
        begin(deployment, port=wire.port, rounds=4)
        deployment.wait(lambda: len(deployment.of("round_started")) == 2, "no second round")
        wire.cut()
        time.sleep(seconds)
        began = time.monotonic()
        wire.mend()
        return end(deployment, outcome, back(deployment, "B", 1, began), 90)


def cut_10(folder: Path) -> Outcome:
    """The network between a node and the coordinator is cut for 10 s."""
    return _cut(folder, 10, "what was on its way arrives")


def cut_90(folder: Path) -> Outcome:
    """The network between a node and the coordinator is cut for 90 s; all three nodes are needed."""
    return _cut(folder, 90, "taken for gone after a minute; the round is held again when it is back")


def cut_600(folder: Path) -> Outcome:
    """The network between a node and the coordinator is cut for 10 minutes; all three nodes are needed."""
    return _cut(folder, 600, "taken for gone after a minute; the round is held again when it is back")


def cut_600_with_enough_others(folder: Path) -> Outcome:
    """The network is cut for 10 minutes, and the others are enough."""
    with deployed(folder) as deployment:
        wire = Wire(deployment.port)
        begin(deployment, port=wire.port, rounds=80, min_nodes=2)
        wire.cut()
        time.sleep(600)
        began = time.monotonic()
        since = deployment.rounds_finished()
        wire.mend()
        seconds = back(deployment, "B", since, began)
        deployment.processes["coordinator"].send_signal(signal.SIGINT)
        deployment.finish()
        lost = sum("B" not in deployment.merged(number) for number in range(2, since + 1))
        return Outcome("rounds are held without it; it takes part again", lost, round(seconds, 1), 90)


def disk_full_at_the_coordinator(folder: Path) -> Outcome:
    """No room on the coordinator's disk; then room, and --resume."""
    with deployed(folder) as deployment:
        state = folder / "coordinator"
        deployment.start_coordinator(rounds=6, prefix=on_small_disk(state, 64))
        for node in "ABC":
            deployment.start_node(node, seconds=SECONDS)
        deployment.wait_for_round(1, 120)
        fill(Path(f"/proc/{deployment.processes['coordinator'].pid}/root{state}/ballast"))
        if deployment.finish(200) != 2:
            raise AssertionError(deployment.said("coordinator"))
        finished, began = deployment.rounds_finished(), time.monotonic()
        deployment.start_coordinator("--resume", rounds=6)
        seconds = back(deployment, "B", finished, began)
        return end(deployment, "ends and says that the disk is full; goes on with --resume", seconds, 90)


def disk_full_at_a_node(folder: Path) -> Outcome:
    """No room on a node's disk; then room."""
    with deployed(folder) as deployment:
        state = folder / "nodes" / "B"
        deployment.start_coordinator(rounds=8, min_nodes=2)
        for node in "AC":
            deployment.start_node(node, seconds=SECONDS)
        deployment.start_node("B", seconds=SECONDS, prefix=on_small_disk(state, 8))
        deployment.wait(lambda: "B" in deployment.merged(deployment.rounds_finished()), "B took no part", seconds=120)
        ballast = Path(f"/proc/{deployment.processes['B'].pid}/root{state}/ballast")
        fill(ballast)
        deployment.wait(lambda: deployment.of("update_refused"), "nothing was refused", seconds=120)
        since, began = deployment.rounds_finished(), time.monotonic()
        ballast.unlink()
        seconds = back(deployment, "B", since, began)
        return end(deployment, "refuses in words, stays, and takes part when there is room", seconds, 60)


def late(folder: Path) -> Outcome:
    """A node that answers after the deadline."""
    with deployed(folder) as deployment:
        deployment.start_coordinator(rounds=5, min_nodes=2, deadline=12)
        for node in "AB":
            deployment.start_node(node, seconds=1.0)
        deployment.start_node("C", seconds=20.0)
        deployment.wait_for_round(1, 120)
        return end(deployment, "the round ends without it at its deadline", 0.0, 1)


def fourth_node(folder: Path) -> Outcome:
    """A fourth node joins in round 3."""
    with deployed(folder, "ABCD") as deployment:
        begin(deployment, rounds=6, min_nodes=3)
        deployment.wait_for_round(2)
        began = time.monotonic()
        deployment.start_node("D", seconds=SECONDS)
        seconds = back(deployment, "D", 2, began)
        return end(deployment, "takes part from the next round on, with the current model", seconds, 60)


def other_classes(folder: Path) -> Outcome:
    """A node that marks a class that the model does not have."""
    with deployed(folder) as deployment:
        deployment.start_coordinator(rounds=2, min_nodes=2)
        for node in "AB":
            deployment.start_node(node)
        deployment.start_node("C", "--label", "dog")
        result = end(deployment, "", 0.0, 1, nodes="AB")
        (reason, *_) = [event["reason"] for event in deployment.of("update_refused") if event["node"] == "C"]
        return Outcome(f"refuses: {reason}", result.rounds_lost, 0.0, 1)


def hundredfold_answer(folder: Path) -> Outcome:
    """An admitted node answers with 100 times of what an answer can hold."""
    with deployed(folder) as deployment:
        deployment.start_coordinator(rounds=3, min_nodes=2)
        for node in "AB":
            deployment.start_node(node)
        deployment.start_node("C", "--rogue")
        result = end(deployment, "", 0.0, 1, nodes="AB")
        (reason, *_) = [event["reason"] for event in deployment.of("update_refused") if event["node"] == "C"]
        return Outcome(f"refused: {reason}", result.rounds_lost, 0.0, 1)


def foreign_run(folder: Path) -> Outcome:
    """Somebody on the coordinator's machine, without the secret, starts a run of a foreign app."""
    with deployed(folder, "AB") as deployment:
        begin(deployment, "AB", rounds=3)
        address = superlink_of(deployment)
        content, digest = foreign_app()
        control(address).StartRun(StartRunRequest(fab=Fab(hash_str=digest, content=content)))
        try:
            with RuntimeAddress(address.address, "0" * 64, address.authority).client("SuperExec") as tasks:
                tasks.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            return end(deployment, f"nobody carries it out; speaking for it: {status}", 0.0, 1, "AB")
        raise AssertionError("a task was given without the secret")


def foreign_fab(folder: Path) -> Outcome:
    """Somebody who knows the coordinator's secret asks a node to run a foreign app."""
    with deployed(folder, "AB") as deployment:
        begin(deployment, "AB", rounds=4)
        foreign = foreign_app()
        address, form = superlink_of(deployment), ModelForm.of(WIDE_TEMPLATE, "run")
        with (
            patch.object(flower_transport, "fab", lambda: foreign),
            FlowerTransport(address, deployment.members, form) as transport,
        ):
            answer = ask(transport, "B")
        return end(deployment, f"the node refuses: {answer.error}", 0.0, 1, "AB")


def superlink_of(deployment: LinearDeployment) -> RuntimeAddress:
    """A coordinator's SuperLink, as somebody on its machine finds it."""
    line = Path(f"/proc/{deployment.child_of('coordinator', 'flower-superlink')}/cmdline").read_bytes().split(b"\0")
    state = deployment.folder / "coordinator"
    port = int(line[line.index(b"--port") + 1])
    return RuntimeAddress(f"localhost:{port}", (state / "tasks.secret").read_text(), (state / AUTHORITY).read_bytes())


def told(entrance: Entrance, **greeter: Any) -> Outcome:
    """What a node says that is turned away; the greeting is real, over TLS, and nothing else of the node runs."""
    said = entrance.complaint(**greeter)
    for place, word in ((str(entrance.state.parent), "FOLDER"), (str(entrance.port), "PORT")):
        said = said.replace(place, word)
    return Outcome(said, 0, 0.0, 1)


def not_admitted(folder: Path) -> Outcome:
    """A wrong key: one that was not admitted."""
    entrance = Entrance(folder)
    make_node_key(folder / "B", "B")
    with entrance.open():
        return told(entrance, node_id="B", folder=folder / "B")


def revoked(folder: Path) -> Outcome:
    """A key that was revoked."""
    entrance = Entrance(folder)
    entrance.members.revoke("A")
    with entrance.open():
        return told(entrance)


def two_with_one_key(folder: Path) -> Outcome:
    """Two nodes with one key."""
    entrance = Entrance(folder)
    shutil.copytree(entrance.node, folder / "copy")
    with entrance.open():
        entrance.greeter().greet()
        outcome = told(entrance, folder=folder / "copy")
        entrance.greeter().greet()
    return outcome


def no_tls(folder: Path) -> Outcome:
    """The coordinator's port speaks no TLS; and a request without TLS to the door."""
    entrance = Entrance(folder)
    with entrance.open():
        try:
            httpx.post(f"http://localhost:{entrance.port}{HELLO}", trust_env=False)
        except httpx.TransportError:
            pass
        else:
            raise AssertionError("the door answered without TLS")
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer() -> None:
            other, _ = plain.accept()
            other.recv(1000)
            other.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        entrance.port = int(plain.getsockname()[1])
        return told(entrance)


def expired_certificate(folder: Path) -> Outcome:
    """The coordinator's certificate has expired."""
    entrance = Entrance(folder)
    renew_server(entrance.state, ["localhost"], now=LONG_AGO)
    with entrance.open():
        return told(entrance)


def expired_authority(folder: Path) -> Outcome:
    """The authority's certificate has expired."""
    entrance = Entrance(folder)
    shutil.rmtree(entrance.state)
    make_authority(entrance.state, ["localhost"], now=LONG_AGO)
    return told(entrance, port=1)


def another_name(folder: Path) -> Outcome:
    """The certificate is made out for another name."""
    entrance = Entrance(folder)
    renew_server(entrance.state, ["eyes.example.org"])
    with entrance.open():
        return told(entrance)


def other_clock(folder: Path) -> Outcome:
    """A node's clock is 400 s late."""

    class Late(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(UTC) - timedelta(seconds=400)

    entrance = Entrance(folder)
    with entrance.open(), patch.object(hello, "datetime", Late):
        return told(entrance)


def older_version(folder: Path) -> Outcome:
    """A coordinator of an older protocol version."""
    entrance = Entrance(folder)
    with entrance.open(), patch.object(door, "PROTOCOL_VERSION", PROTOCOL_VERSION - 1):
        return told(entrance)


def address_in_use(folder: Path) -> Outcome:
    """The coordinator's address is in use."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        try:
            listen("127.0.0.1", port, key="coordinator.port")
        except ManyeyesError as error:
            return Outcome(str(error).replace(str(port), "PORT"), 0, 0.0, 1)
    raise AssertionError("it was not in use")


def start_run_from_outside(folder: Path) -> Outcome:
    """An admitted node asks for a run of a foreign app through the door."""
    entrance = Entrance(folder)
    with entrance.open():
        status, _ = entrance.greeter().post("/v1/control/start-run", b"")
    return Outcome(f"HTTP {status}", 0 if status == 404 else 1, 0.0, 1)


FAULTS: tuple[Callable[[Path], Outcome], ...] = (
    node_while_it_trains,
    node_while_it_sends,
    trainer_while_it_trains,
    coordinator_inside_a_round,
    coordinator_between_rounds,
    superlink_alone,
    supernode_alone,
    cut_10,
    cut_90,
    cut_600,
    cut_600_with_enough_others,
    disk_full_at_the_coordinator,
    disk_full_at_a_node,
    late,
    fourth_node,
    other_classes,
    hundredfold_answer,
    foreign_run,
    foreign_fab,
    start_run_from_outside,
    two_with_one_key,
    not_admitted,
    revoked,
    no_tls,
    expired_certificate,
    expired_authority,
    another_name,
    other_clock,
    older_version,
    address_in_use,
)
QUICK = (superlink_alone, another_name)


def measure(fault: Callable[[Path], Outcome]) -> dict[str, Any]:
    """One fault in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = fault(Path(folder))
    print(f"{fault.__name__}: {result.outcome}; {result.rounds_lost} lost, {result.seconds} s", file=sys.stderr)
    return {"fault": str(fault.__doc__), **asdict(result)}


def claims_of(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """Seconds to recover against the most that they may be."""
    return [
        claim(f"faults: seconds to recover: {row['fault']}", [row["seconds"]], [row["bound"]], 1.0, "lower")
        for row in rows
        if row["seconds"]
    ]


def main() -> None:
    """Meet the faults that were not met before, and print what came of them."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", choices=[fault.__name__ for fault in FAULTS], help="one fault, measured anew")
    options = parser.parse_args()
    rows = []
    for fault in QUICK if options.quick else FAULTS:
        if options.only and options.only != fault.__name__:
            continue
        kept = RESULTS / "faults" / f"{fault.__name__}.json"
        if kept.exists() and not (options.quick or options.only):
            rows.append(json.loads(kept.read_text())["samples"])
            continue
        rows.append(measure(fault))
        if not options.quick:
            save_cell("faults", fault.__name__, {"seed": 1, "samples": rows[-1]})
    if not options.json:
        for row in rows:
            print(f"{row['fault']}\n    {row['outcome']}")
            print(f"    rounds lost: {row['rounds_lost']}; seconds to recover: {row['seconds']}")
    show(claims_of(rows), options.json)


if __name__ == "__main__":
    main()
