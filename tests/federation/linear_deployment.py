"""A federation of real processes, over TLS, that trains tests/federation/linear.py: rounds take as long as the polls.

Run as a script it is one of its processes, with the transport, door, greeting and audit log of the installed commands.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.cli.build import build_fab_from_files
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from tests.federation.linear import TEMPLATE, LinearLearner, expected, site

from manyeyes.datasets.classes import relabel
from manyeyes.errors import ManyeyesError
from manyeyes.federation.admission import Members
from manyeyes.federation.audit import AUDIT, read_audit
from manyeyes.federation.client import Client
from manyeyes.federation.flower import RuntimeAddress
from manyeyes.federation.flower_transport import FlowerTransport
from manyeyes.federation.form import ModelForm
from manyeyes.federation.joining import Place, claimed, serve
from manyeyes.federation.keys import NODE_PUBLIC, make_authority, make_node_key, read_public_key
from manyeyes.federation.transport import Record, Reply, Request
from manyeyes.learners.learner import Control, FitPlan, ProgressCallback, Template, silent
from manyeyes.report.runlog import Event, RunLog, read_runlog
from manyeyes.weights import Update, Weights

REPOSITORY = Path(__file__).parents[2]
# Beside the linear model a tensor that makes an answer large enough to be cut off in the middle.
WIDE = "wide.weight"
WIDE_TEMPLATE = Template(
    "yolov8n/cv3=80", TEMPLATE.names, Weights({**TEMPLATE.weights, WIDE: np.zeros(300_000, dtype=np.float32)}), 32
)


def wide_expected(plan: FitPlan) -> tuple[frozenset[str], frozenset[str]]:
    """The names in a WideLearner's update."""
    trained, buffers = expected(plan)
    return trained | {WIDE}, buffers


class WideLearner(LinearLearner):
    """Learns what LinearLearner learns, takes some seconds over it, and sends a megabyte that is not zero."""

    template = WIDE_TEMPLATE

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def fit(
        self,
        weights: Weights,
        data: Any,
        plan: FitPlan,
        progress: ProgressCallback = silent,
        state_folder: Path | None = None,
        control: Control | None = None,
    ) -> Update:
        time.sleep(self.seconds)
        update = super().fit(weights, data, plan, progress, state_folder, control)
        noise = np.random.default_rng([plan.round, *plan.node_id.encode()])
        wide = noise.normal(size=300_000).astype(np.float32) * 1e-3
        return Update(Weights({**update.delta, WIDE: wide}), update.buffers, update.num_examples, update.metrics)


class RogueLearner(WideLearner):
    """Sends a hundred times of what it should, in rounds after the first."""

    def fit(self, weights: Weights, data: Any, plan: FitPlan, *arguments: Any) -> Update:
        update = super().fit(weights, data, plan, *arguments)
        if plan.round == 0:
            return update
        noise = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
        more = {f"{WIDE}.{number}": noise + number for number in range(100)}
        return Update(Weights({**update.delta, **more}), update.buffers, update.num_examples, update.metrics)


class Wire:
    """A network between nodes and door, on a port of its own, that can be cut: what is sent then waits, unheard of."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._whole = threading.Event()
        self._whole.set()
        self.bytes_up = 0
        self.cut_after: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def is_cut(self) -> bool:
        return not self._whole.is_set()

    def cut(self) -> None:
        """From now on nothing comes through."""
        self._whole.clear()

    def mend(self) -> None:
        """What waited comes through, and all that follows."""
        self.cut_after = None
        self._whole.set()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._join, args=(near,), daemon=True).start()

    def _join(self, near: socket.socket) -> None:
        self._whole.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._to))
        except OSError:
            near.close()
            return
        threading.Thread(target=self._pass, args=(near, far, True), daemon=True).start()
        self._pass(far, near, False)

    def _pass(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with suppress(OSError):
            while data := source.recv(16_384):
                if up:
                    self.bytes_up += len(data)
                    if self.cut_after is not None and self.bytes_up > self.cut_after:
                        self.cut()
                self._whole.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class LinearDeployment:
    """The folder of a federation, its keys, and the processes that work in it."""

    def __init__(self, folder: Path, nodes: str = "ABC", *, name: str = "localhost") -> None:
        self.folder, self.nodes = folder, nodes
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.members = Members(folder / "coordinator")
        make_authority(folder / "coordinator", [name])
        for node in nodes:
            self.admit(node)

    def admit(self, node: str) -> None:
        """Make a node's key and let it in."""
        make_node_key(self.folder / "nodes" / node, node)
        self.members.admit(node, read_public_key(self.folder / "nodes" / node / NODE_PUBLIC))

    @property
    def port_file(self) -> Path:
        return self.folder / "port"

    def start_coordinator(self, *arguments: str, prefix: Sequence[str] = (), **federation: Any) -> None:
        """Arguments: --resume. `federation` are keys of its section; prefix is what runs the process."""
        plan = {"rounds": 3, "min_nodes": len(self.nodes), **federation}
        self._start(
            "coordinator", prefix, "coordinator", "--port", str(self.port), "--federation", json.dumps(plan), *arguments
        )

    def start_node(
        self, node: str, *more: str, seconds: float = 0.0, port: int | None = None, prefix: Sequence[str] = ()
    ) -> None:
        """Start a node; it trains for so many seconds in each round. More arguments: --rogue, --label."""
        arguments = ["--port", str(port or self.port), "--seconds", str(seconds), *more]
        self._start(node, prefix, "node", "--node-id", node, *arguments)

    def _start(self, name: str, prefix: Sequence[str], *arguments: str) -> None:
        command = [*prefix, sys.executable, "-m", "tests.federation.linear_deployment", str(self.folder), *arguments]
        source = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")])
        with (self.folder / f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": source}
            )

    def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        self.processes[name].kill()
        self.processes[name].wait()

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def events(self) -> list[Event]:
        path = self.folder / "runlog.jsonl"
        return list(read_runlog(path)) if path.exists() else []

    def of(self, event: str) -> list[Event]:
        return [entry for entry in self.events() if entry["event"] == event]

    def rounds_finished(self) -> int:
        return max((event["round"] for event in self.of("round_finished")), default=0)

    def merged(self, number: int) -> set[str]:
        """Nodes whose updates are in a round, the last time it was held."""
        starts = [at for at, e in enumerate(self.events()) if e["event"] == "round_started" and e["round"] == number]
        later = self.events()[starts[-1] :] if starts else []
        return {e["node"] for e in later if e["event"] == "update_received" and e["round"] == number}

    def audit(self, node: str) -> list[dict[str, Any]]:
        return list(read_audit(self.folder / "nodes" / node / AUDIT))

    def wait(self, until: Callable[[], Any], what: str, *, seconds: float = 60.0, needs: str = "coordinator") -> None:
        """Wait for something, as long as the process it needs runs."""
        ends = time.monotonic() + seconds
        while not until():
            process = self.processes.get(needs)
            assert process is None or process.poll() is None, f"{needs} ended: {self.said(needs)}"
            assert time.monotonic() < ends, f"{what}: {self.said(needs)}\n{self.events()}"
            time.sleep(0.1)

    def wait_for_round(self, number: int, seconds: float = 60.0) -> None:
        self.wait(lambda: self.rounds_finished() >= number, f"round {number} was not finished", seconds=seconds)

    def finish(self, seconds: float = 90.0) -> int:
        """The coordinator's exit code."""
        return self.processes["coordinator"].wait(seconds)

    def child_of(self, name: str, program: str) -> int:
        """Process id of a child by the name of its program."""
        parent = str(self.processes[name].pid)
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                line = (stat.parent / "cmdline").read_bytes().decode()
                if fields[1] == parent and program in line:
                    return int(stat.parent.name)
        raise AssertionError(f"{name} has no child {program}")

    def end(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGINT)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def deployed(folder: Path, nodes: str = "ABC", *, name: str = "localhost") -> Iterator[LinearDeployment]:
    """A federation whose processes end with the block."""
    deployment = LinearDeployment(folder, nodes, name=name)
    try:
        yield deployment
    finally:
        deployment.end()


_ROOM = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


def small_disks() -> bool:
    """Whether a disk of a few megabytes can be made, for a process and its children alone."""
    if not shutil.which("unshare"):
        return False
    command = [*_ROOM, "mount -t tmpfs tmpfs /mnt", "sh"]
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0


def on_small_disk(folder: Path, megabytes: int) -> list[str]:
    """What a command begins with that shall find a disk of so many megabytes in a folder, with what was there."""
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs "$0"'
    keep = 'cp -a "$0" "$0.kept" && ' + mount + ' && cp -a "$0.kept/." "$0" && exec "$@"'
    return [*_ROOM, keep, str(folder)]


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def foreign_app() -> tuple[bytes, str]:
    """An app of Flower's that is not ours, and its hash."""
    project = '[project]\nname = "foreign"\nversion = "1.0.0"\nlicense = "MIT"\ndependencies = []\n'
    project += '[tool.flwr.app]\npublisher = "somebody"\n[tool.flwr.app.components]\n'
    project += 'serverapp = "server:app"\nclientapp = "client:app"\n'
    code = b"raise SystemExit"
    content, _ = build_fab_from_files({"pyproject.toml": project.encode(), "client.py": code, "server.py": code})
    return content, hashlib.sha256(content).hexdigest()


def control(address: RuntimeAddress) -> ControlHttpClient:
    """What anybody on the coordinator's machine can reach of its SuperLink."""
    return ControlHttpClient.from_server_address(
        address.address,
        insecure=False,
        root_certificates=address.authority,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr")],
    )


def ask(transport: FlowerTransport, node: str, request: Request | None = None) -> Reply:
    """A node's answer to a request, by default to one that holds nothing."""
    ends = time.monotonic() + 60
    while node not in transport.nodes():
        assert time.monotonic() < ends, "the node did not come"
        time.sleep(0.2)
    transport.send([request or Request("r-1", node, "evaluate", Record())])
    while True:
        assert time.monotonic() < ends, "no answer"
        if replies := transport.receive(1.0):
            return replies[0]


def trace(text: str) -> bool:
    """Whether a log holds a stack trace or the private half of a key."""
    return "Traceback" in text or "PRIVATE KEY" in text


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _node(options: argparse.Namespace) -> None:
    node, folder = options.node_id, options.folder / "nodes" / options.node_id
    pictures = replace(site(ord(node[0]) - ord("A")), names=(options.label,), annotates=frozenset())
    learner = (RogueLearner if options.rogue else WideLearner)(options.seconds)
    client = Client(node, learner, pictures, folder / "training")

    def answer(request: Request, form: ModelForm) -> Record:
        client.data = relabel(pictures, form.names)
        return client.handle(request)

    place = Place(node, "localhost", options.port, options.folder / "coordinator" / "ca.crt", folder, patience=5.0)
    caught: list[str] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: caught.append(signal.Signals(number).name))
    with claimed(place) as audit:
        serve(place, audit, answer, lambda: caught[0] if caught else None, ready=lambda: _say("joining"))


def _coordinator(options: argparse.Namespace) -> None:
    from manyeyes.federation.coordinator_config import CoordinatorConfig
    from manyeyes.federation.hold import hold
    from manyeyes.signals import stop_signals
    from manyeyes.weights import save_weights

    config = CoordinatorConfig.model_validate(
        {
            "name": "run",
            "host": "127.0.0.1",
            "port": options.port,
            "seed": 1,
            "names": ["thing"],
            "state": options.folder / "coordinator",
            "output": options.folder,
            "train": {"lr": 0.05, "steps": 4},
            "federation": json.loads(options.federation),
        }
    )
    log = RunLog(options.folder / "runlog.jsonl")
    with stop_signals() as stop:
        result = hold(
            config,
            WIDE_TEMPLATE,
            wide_expected,
            log.emit,
            stop,
            resume=options.resume,
            listening=lambda port: _say("listening"),
        )
    save_weights(config.run_folder / "final.safetensors", result.weights, {})


def _main() -> None:
    logging.basicConfig(format="%(levelname)s %(message)s")
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("role", choices=["node", "coordinator"])
    parser.add_argument("--node-id")
    parser.add_argument("--port", type=int)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--federation", default="{}")
    parser.add_argument("--label", default="thing")
    parser.add_argument("--rogue", action="store_true")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    try:
        _node(options) if options.role == "node" else _coordinator(options)
    except ManyeyesError as error:
        _say(f"manyeyes: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    _main()
