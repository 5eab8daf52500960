"""A federation of the installed commands: real processes, over TLS on loopback, that train a detector."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from manyeyes.federation.admission import Members
from manyeyes.federation.keys import NODE_PUBLIC, make_authority, make_node_key, read_public_key
from manyeyes.report.runlog import read_runlog

SITES = {"A": "a_office", "B": "b_crossroads", "C": "c_night"}
PLAN: dict[str, Any] = {
    "train": {"imgsz": 128, "batch": 4, "precision": "fp32", "lr": 0.002, "threads": 1},
    "federation": {"rounds": 2, "min_nodes": 3},
}


class Deployment:
    """The folder of a federation and the processes that work in it."""

    def __init__(self, folder: Path, scenes: Path) -> None:
        self.folder, self.scenes = folder, scenes
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def call(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "manyeyes.cli", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def prepare(self) -> None:
        # What `coordinator init`, `node init` and `coordinator admit` do; as commands they are tested with the others.
        make_authority(self.folder / "coordinator", ["localhost"])
        for node in SITES:
            make_node_key(self.folder / "nodes" / node, node)
            key = read_public_key(self.folder / "nodes" / node / NODE_PUBLIC)
            Members(self.folder / "coordinator").admit(node, key)
        coordinator = {"name": "first", "host": "127.0.0.1", "port": self.port, "names": ["person", "car"], **PLAN}
        (self.folder / "federation.yaml").write_text(yaml.safe_dump(coordinator))
        node_values = {
            "node_id": "A",
            "coordinator_url": f"https://localhost:{self.port}",
            "authority": "coordinator/ca.crt",
            "data_path": "elsewhere",
            "device": "cpu",
            "threads": 1,
            "patience": 10,
        }
        (self.folder / "node.yaml").write_text(yaml.safe_dump(node_values))

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        with (self.folder / f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "manyeyes.cli", *arguments], cwd=self.folder, stdout=log, stderr=log, text=True
            )
        return self.processes[name]

    def start_node(self, node: str, *arguments: str) -> subprocess.Popen[str]:
        data = str(self.scenes / SITES[node])
        return self.start(node, "node", "--config", "node.yaml", "--node-id", node, "--data-path", data, *arguments)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def end(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGINT)
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()

    def trainer_of(self, node: str) -> psutil.Process:
        """The process in which a node trains."""
        until = time.monotonic() + 60
        while True:
            for process in psutil.Process(self.processes[node].pid).children():
                if "spawn_main" in " ".join(process.cmdline()):
                    return process
            assert time.monotonic() < until, self.said(node)
            time.sleep(0.1)

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "runs" / "first" / "runlog.jsonl"
        return list(read_runlog(path)) if path.exists() else []

    def rounds_finished(self) -> int:
        return max((event["round"] for event in self.events() if event["event"] == "round_finished"), default=0)

    def wait_for(self, kind: str, after: int = 0, **fields: Any) -> dict[str, Any]:
        """The first event of a kind with these fields, in a round after one."""
        until = time.monotonic() + 150
        while True:
            for event in self.events():
                wanted = event["event"] == kind and event.get("round", 0) > after
                if wanted and all(event.get(name) == value for name, value in fields.items()):
                    return event
            self._check_it_goes_on(until)

    def wait_for_round(self, number: int) -> None:
        until = time.monotonic() + 150
        while self.rounds_finished() < number:
            self._check_it_goes_on(until)

    def _check_it_goes_on(self, until: float) -> None:
        assert self.processes["coordinator"].poll() is None, self.said("coordinator")
        assert time.monotonic() < until, self.said("coordinator")
        time.sleep(0.2)
