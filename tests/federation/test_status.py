"""What another terminal is told, from the files that a coordinator leaves."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console

from manyeyes.errors import ConfigError, Interrupted, RunError
from manyeyes.federation.admission import MEMBERS, Members
from manyeyes.federation.coordinator_config import CoordinatorConfig
from manyeyes.federation.keys import make_authority
from manyeyes.federation.presence import Presence
from manyeyes.federation.status import STATUS, Status, StatusWriter, read_status, refuse_second
from manyeyes.federation.status_view import show_status, watch_status
from report.nodes_run import NodesRun

ROW_STARTED = {"event": "row_started"}


@pytest.fixture
def config(tmp_path: Path) -> CoordinatorConfig:
    """A coordinator with the members A and B, and X who was shut out."""
    config = CoordinatorConfig(
        name="harbour",
        names=("person", "car"),
        state=tmp_path / "coordinator",
        output=tmp_path / "runs",
        federation={"rounds": 4, "min_nodes": 2},
    )
    make_authority(config.state, ["localhost"])
    members = Members(config.state)
    for node in "ABX":
        members.admit(node, ec.generate_private_key(ec.SECP256R1()).public_key())
    members.revoke("X")
    return config


def shown(status: Status, width: int = 150) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    show_status(status, console)
    return console.export_text()


def test_before_the_first_start_nothing_is_made_up(config: CoordinatorConfig) -> None:
    status = read_status(config.state)
    assert (status.phase, status.run, status.summary, status.pid) == ("unknown", None, None, None)
    assert [(node.node_id, node.online, node.last_seen) for node in status.nodes] == [
        ("A", None, None),
        ("B", None, None),
        ("X", None, None),
    ]
    text = shown(status)
    assert "no coordinator has been started yet" in text
    assert "revoked 20" in text
    assert status.nodes[0].member
    assert status.nodes[0].member.fingerprint in text


def test_a_coordinator_that_waits_then_works(config: CoordinatorConfig) -> None:
    presence = Presence()
    with StatusWriter(config, presence) as writer:
        assert read_status(config.state).phase == "starting"
        presence.came("A", "/v1/fleet/pull-messages")
        writer.listening(5000)
        status = read_status(config.state)
        assert (status.phase, status.address, status.pid) == ("waiting", "0.0.0.0:5000", os.getpid())
        assert [node.online for node in status.nodes] == [True, False, False]
        assert "waits for nodes: 1 of 2 are there" in shown(status)
        run = NodesRun(config.run_folder)
        run.begin()
        writer(ROW_STARTED)
        assert "the nodes test the weights it begins with" in shown(read_status(config.state))
        run.round(1)
        assert "between two rounds, about 50 s left" in shown(read_status(config.state))
        run.start_round(2)
        run.update("A", 2)
        status = read_status(config.state)
        text = shown(status)
        assert "in round 2 of 4" in text
        assert "2: sent" in text
        assert "2: trains" in text
        assert "start   0.300   0.400" in text
        assert "the last took 16 s" in text
        told = json.loads(json.dumps(status.to_dict()))
        assert (told["round"], told["rounds_done"], told["seconds_left"]) == (2, 1, pytest.approx(49.5))
        assert [node["doing"] for node in told["nodes"]] == ["sent", "trains", None]
        writer({"event": "warning", "reason": "only one node answered; it is held again", "waits": True})
        assert "waits for nodes: 1 of 2 are there" in shown(read_status(config.state))
        writer(ROW_STARTED)
        assert "in round 2 of 4" in shown(read_status(config.state))
    assert read_status(config.state).phase == "finished"


@pytest.mark.parametrize(
    ("error", "phase", "reason"),
    [
        (Interrupted("Ctrl-C"), "stopped", "Ctrl-C"),
        (KeyboardInterrupt(), "stopped", "Ctrl-C"),
        (RunError("round 3 got 1 good update", cure="Mend it."), "failed", "round 3 got 1 good update. Mend it."),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError('by zero')"),
    ],
)
def test_how_a_run_ended_is_told(config: CoordinatorConfig, error: BaseException, phase: str, reason: str) -> None:
    run = NodesRun(config.run_folder)
    run.begin()
    run.round(1)
    with pytest.raises(type(error)), StatusWriter(config, Presence()):
        raise error
    status = read_status(config.state)
    assert (status.phase, status.reason, status.seconds_left) == (phase, reason, None)
    assert {node.online for node in status.nodes} == {None}
    assert f"{phase} after 1 of 4 rounds ({reason})" in shown(status)


_WORKS = """
import sys, time
from pathlib import Path
from manyeyes.federation.coordinator_config import CoordinatorConfig
from manyeyes.federation.presence import Presence
from manyeyes.federation.status import StatusWriter
config = CoordinatorConfig(name="harbour", names=("car",), state=Path(sys.argv[1]), output=Path(sys.argv[2]))
with StatusWriter(config, Presence()) as writer:
    writer.listening(5000)
    print("works", flush=True)
    time.sleep(60)
"""


def test_a_coordinator_that_was_killed_is_not_taken_for_one_that_works(config: CoordinatorConfig) -> None:
    command = [sys.executable, "-c", _WORKS, str(config.state), str(config.output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "works\n"
        assert read_status(config.state).phase == "waiting"
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    status = read_status(config.state)
    assert (status.phase, status.at_work) == ("died", False)
    assert "its process is gone" in shown(status)


def test_a_second_coordinator_in_the_same_folder_is_refused(config: CoordinatorConfig) -> None:
    refuse_second(config.state)
    command = [sys.executable, "-c", _WORKS, str(config.state), str(config.output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "works\n"
        with pytest.raises(RunError, match=rf"another coordinator is at work here \(process {process.pid} on "):
            refuse_second(config.state)
        process.kill()
        time.sleep(0.3)
        # Nobody has taken its exit status yet: the number is still there, and nothing works under it.
        refuse_second(config.state)
    (config.state / STATUS).write_text("damaged")
    refuse_second(config.state)


def test_another_process_with_the_same_number_does_not_count(config: CoordinatorConfig) -> None:
    with StatusWriter(config, Presence()) as writer:
        writer.listening(5000)
        written = json.loads((config.state / STATUS).read_text())
    (config.state / STATUS).write_text(json.dumps({**written, "process_started": written["process_started"] - 60}))
    assert read_status(config.state).phase == "died"
    (config.state / STATUS).write_text(json.dumps({**written, "host": "elsewhere"}))
    assert read_status(config.state).phase == "waiting", "on another machine only its silence tells"
    assert read_status(config.state, now=lambda: time.time() + 40).phase == "died"


def test_without_a_status_the_run_log_tells_what_it_can(config: CoordinatorConfig) -> None:
    run = NodesRun(config.run_folder)
    run.begin()
    run.round(1)
    status = read_status(config.state, config.run_folder)
    assert (status.phase, status.nodes[0].online) == ("unknown", None)
    assert "nobody wrote what became of it after 1 of 4 rounds" in shown(status)
    run.log.emit("interrupted", signal="SIGTERM")
    assert "stopped after 1 of 4 rounds (SIGTERM)" in shown(read_status(config.state, config.run_folder))
    run.finish(kept=1)
    assert read_status(config.state, config.run_folder).phase == "finished"


def test_the_status_of_another_run_says_nothing_about_this_one(config: CoordinatorConfig, tmp_path: Path) -> None:
    with StatusWriter(config, Presence()):
        status = read_status(config.state, tmp_path / "runs" / "other")
    assert (status.phase, status.pid) == ("unknown", None)


def test_what_cannot_be_read_is_named(config: CoordinatorConfig, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no coordinator\. Name its state folder with --state"):
        read_status(tmp_path / "nowhere")
    (config.state / STATUS).write_text('{"format": 1, "phase": "flying"}')
    with pytest.raises(RunError, match="is not a coordinator's status"):
        read_status(config.state)
    (config.state / STATUS).unlink()
    (config.state / MEMBERS).write_text("[")
    with pytest.raises(ConfigError, match="is damaged"):
        read_status(config.state)


def test_the_status_is_readable_by_its_owner_only(config: CoordinatorConfig) -> None:
    with StatusWriter(config, Presence()):
        assert (config.state / STATUS).stat().st_mode & 0o777 == 0o600


def test_a_full_disk_does_not_end_the_run(config: CoordinatorConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), StatusWriter(config, Presence()) as writer:
        (config.state / STATUS).unlink()
        (config.state / STATUS).mkdir()
        writer.listening(5000)
        writer(ROW_STARTED)
    assert caplog.text.count("the status is not kept") == 1


def test_a_narrow_terminal_gets_every_fingerprint_whole(config: CoordinatorConfig) -> None:
    console = Console(width=80, file=io.StringIO(), record=True, force_terminal=True)
    show_status(read_status(config.state), console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert all(member.fingerprint in text for member in Members(config.state))


def test_watching_without_a_terminal_tells_only_what_is_new(config: CoordinatorConfig) -> None:
    looks = 0

    def look() -> Status:
        nonlocal looks
        looks += 1
        if looks == 6:
            raise KeyboardInterrupt
        if looks == 4:
            Members(config.state).revoke("B")
        return read_status(config.state)

    console = Console(width=150, file=io.StringIO(), record=True)
    with pytest.raises(KeyboardInterrupt):
        watch_status(look, console, every=0.0)
    assert console.export_text().count("no coordinator has been started yet") == 2


def test_the_command_prints_json_for_scripts(
    config: CoordinatorConfig, call_json: Callable[..., dict[str, object]]
) -> None:
    assert call_json("status", "--state", str(config.state), "--json")["phase"] == "unknown"


@pytest.fixture
def call_json() -> Callable[..., dict[str, object]]:
    def call(*arguments: str) -> dict[str, object]:
        command = [sys.executable, "-m", "manyeyes.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        told: dict[str, object] = json.loads(done.stdout)
        return told

    return call
