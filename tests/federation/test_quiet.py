"""Nobody outside is reached, and no name of anybody outside is looked up: the installed commands without a network.

What is recorded, and what each record proves:

- The namespace holds nothing but loopback, so a run that ends needed nothing else.
- strace sees every system call with an address in it, of Python and of compiled code, of all processes and their
  children, whether it succeeded or not; so whatever was tried stands there. It does not see what a name was.
- A hook in every Python process sees the names that Python was asked for, before any library acts on them. It does not
  see names that compiled code asks for; a question to a name server (port 53) for one would stand in strace's record.

The run lasts one round. What would only be tried later, after days say, is not shown.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from manyeyes.federation.admission import Members
from manyeyes.federation.keys import NODE_PUBLIC, make_authority, make_node_key, read_public_key
from manyeyes.report.runlog import read_runlog

ALONE = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c"]
STRACE = "strace -f -qq -e trace=connect,sendto,sendmsg,sendmmsg -o {record}"
SITES = {"A": "a_office", "B": "b_crossroads"}

HOOK = """
import json, os, sys

def hook(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"):
        line = json.dumps([event, str(arguments[0])]) + "\\n"
        file = os.open(os.environ["NAMES_ASKED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode())
        os.close(file)

sys.addaudithook(hook)
"""

RUN = """
ip link set lo up
$PYTHON -m manyeyes.cli node --config node.yaml --node-id A --data-path $SCENES/a_office > A.log 2>&1 & first=$!
$PYTHON -m manyeyes.cli node --config node.yaml --node-id B --data-path $SCENES/b_crossroads > B.log 2>&1 & second=$!
$PYTHON -m manyeyes.cli coordinator --config federation.yaml > coordinator.log 2>&1
code=$?
kill -INT $first $second
wait $first $second
exit $code
"""


def possible() -> str | None:
    """Why this cannot be tested here, if it cannot."""
    if not (shutil.which("unshare") and shutil.which("ip")):
        return "needs unshare (util-linux) and ip (iproute2)"
    done = subprocess.run([*ALONE, "ip link set lo up"], capture_output=True, timeout=20, check=False)
    return None if done.returncode == 0 else "this machine does not let us make a network namespace"


def prepare(folder: Path) -> None:
    make_authority(folder / "coordinator", ["localhost"])
    members = Members(folder / "coordinator")
    for node in SITES:
        make_node_key(folder / "nodes" / node, node)
        members.admit(node, read_public_key(folder / "nodes" / node / NODE_PUBLIC))
    coordinator = {
        "name": "quiet",
        "host": "127.0.0.1",
        "port": 5000,
        "names": ["person", "car"],
        "train": {"imgsz": 128, "batch": 4, "threads": 1},
        "federation": {"rounds": 1, "min_nodes": 2},
    }
    node = {
        "node_id": "A",
        "coordinator_url": "https://localhost:5000",
        "authority": "coordinator/ca.crt",
        "data_path": "elsewhere",
        "device": "cpu",
        "threads": 1,
    }
    (folder / "federation.yaml").write_text(yaml.safe_dump(coordinator))
    (folder / "node.yaml").write_text(yaml.safe_dump(node))
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)


def addresses(record: Path) -> Iterator[tuple[str, int]]:
    """Every internet address and port in strace's record."""
    patterns = (
        r'sin_port=htons\((\d+)\), sin_addr=inet_addr\("([^"]+)"\)',
        r'sin6_port=htons\((\d+)\).*?inet_pton\(AF_INET6, "([^"]+)"',
    )
    for line in record.read_text(errors="replace").splitlines():
        for pattern in patterns:
            for port, address in re.findall(pattern, line):
                yield address, int(port)


@pytest.mark.slow
def test_a_run_needs_loopback_alone_and_tries_nothing_else(tmp_path: Path, scenes: Path) -> None:
    if reason := possible():
        pytest.skip(reason)
    prepare(tmp_path)
    record, names = tmp_path / "strace.txt", tmp_path / "names.txt"
    strace = shutil.which("strace")
    (tmp_path / "run.sh").write_text(RUN)
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment |= {
        "PYTHON": sys.executable,
        "SCENES": str(scenes),
        "NAMES_ASKED": str(names),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "hook"), os.environ.get("PYTHONPATH", "")]),
    }
    command = f"exec {STRACE.format(record=record) if strace else ''} sh run.sh"
    done = subprocess.run(
        [*ALONE, command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "coordinator.log").read_text()
    events = list(read_runlog(tmp_path / "runs" / "quiet" / "runlog.jsonl"))
    assert {e["node"] for e in events if e["event"] == "update_received"} == {"A", "B"}

    asked = {json.loads(line)[1] for line in names.read_text().splitlines()}
    assert "localhost" in asked
    assert asked <= {"localhost", "127.0.0.1", "::1", "None"}
    if strace:
        tried = set(addresses(record))
        assert ("127.0.0.1", 5000) in tried
        outside = {(to, port) for to, port in tried if not to.startswith("127.") and to != "::1"}
        assert not outside
        assert 53 not in {port for _, port in tried}
