"""Claim: a round takes at most 8 s beyond its slowest node's training, with three nodes over TLS on loopback.

    python benchmarks/round_overhead.py             ten rounds
    python benchmarks/round_overhead.py --quick     two rounds, not kept

The coordinator is the installed command, the nodes are its parts with a clock around what they are asked; the model is
YOLOv8n (12 MB down and 12 MB up a node), the pictures are few and small. Parts of a round, in seconds, along the way of
the node that answers last:

    to_train    from the round's start to the node's trainer: poll, 12 MB down
    train       inside the learner's fit: what the claim takes away
    pack        reading the request and packing the answer, and both ways to the trainer's process
    from_train  from the trainer to the coordinator: poll, 12 MB up
    merge       after the last answer
    to_test     as to_train, for the new model
    test        on the node's validation pictures
    from_test   as from_train, with a few bytes: what polls alone cost
    checkpoint  12 MB to the disk

Processes stay, so starting them and importing PyTorch costs a round nothing; what it costs a node once is told apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

STARTED = time.time()

import yaml  # noqa: E402
from cells import arguments, claim, save_cell, show  # noqa: E402

from manyeyes.datasets.scenes import write_scenes  # noqa: E402
from manyeyes.federation.admission import Members  # noqa: E402
from manyeyes.federation.form import ModelForm  # noqa: E402
from manyeyes.federation.joining import Place, claimed, serve  # noqa: E402
from manyeyes.federation.keys import NODE_PUBLIC, make_authority, make_node_key, read_public_key  # noqa: E402
from manyeyes.federation.limits import Limits  # noqa: E402
from manyeyes.federation.traffic import Counted  # noqa: E402
from manyeyes.federation.trainer import SiteSettings, Trainer  # noqa: E402
from manyeyes.federation.transport import Record, Request  # noqa: E402
from manyeyes.report.runlog import Event, read_runlog  # noqa: E402

TARGET = 8.0
NODES = {"A": "a_office", "B": "b_crossroads", "C": "c_night"}
PARTS = ("to_train", "train", "pack", "from_train", "merge", "to_test", "test", "from_test", "checkpoint")
IMAGES, IMGSZ = 30, 128

Times = dict[str, Any]


def be_node(folder: Path, node: str, port: int) -> None:
    """One node, which writes down when it was asked and when it had answered."""
    state = folder / "nodes" / node
    pictures, limits = folder / "scenes" / NODES[node], Limits(device="cpu", threads=1)
    trainer = Trainer(SiteSettings(node, pictures, None, None, state / "training", limits))
    with closing(trainer), (folder / f"{node}.times").open("a", buffering=1) as times:
        trainer.start()
        times.write(json.dumps({"kind": "start", "began": STARTED, "ready": time.time()}) + "\n")

        def answer(request: Request, form: ModelForm) -> Record:
            began = time.time()
            record = trainer(request, form, Counted())
            times.write(json.dumps({"kind": request.kind, "began": began, "ended": time.time()}) + "\n")
            return record

        place = Place(node, "localhost", port, folder / "coordinator" / "ca.crt", state)
        with claimed(place) as audit:
            serve(place, audit, answer, lambda: "end" if (folder / "end").exists() else None, ready=lambda: None)


def prepare(folder: Path, rounds: int) -> int:
    """Keys, pictures and configuration; the coordinator's port."""
    write_scenes(folder / "scenes", images=IMAGES, imgsz=IMGSZ, seed=0)
    make_authority(folder / "coordinator", ["localhost"])
    for node in NODES:
        make_node_key(folder / "nodes" / node, node)
        Members(folder / "coordinator").admit(node, read_public_key(folder / "nodes" / node / NODE_PUBLIC))
    port = 20_000 + os.getpid() % 10_000
    config = {
        "name": "run",
        "host": "127.0.0.1",
        "port": port,
        "names": ["person", "car"],
        "train": {"imgsz": IMGSZ, "batch": 8, "epochs": 1, "threads": 1},
        "federation": {"rounds": rounds, "min_nodes": len(NODES)},
    }
    (folder / "federation.yaml").write_text(yaml.safe_dump(config))
    return port


def hold(folder: Path, rounds: int) -> tuple[list[Event], Mapping[str, list[Times]]]:
    """The run's log, and what each node wrote down."""
    port = prepare(folder, rounds)
    me = str(Path(__file__).resolve())
    nodes = [
        subprocess.Popen([sys.executable, me, "--as-node", str(folder), node, str(port)], cwd=folder) for node in NODES
    ]
    try:
        command = [sys.executable, "-m", "manyeyes.cli", "coordinator", "--config", "federation.yaml", "--quiet"]
        subprocess.run(command, cwd=folder, check=True)
    finally:
        (folder / "end").touch()
        for process in nodes:
            process.wait(60)
    times = {node: [json.loads(line) for line in (folder / f"{node}.times").open()] for node in NODES}
    return list(read_runlog(folder / "runs" / "run" / "runlog.jsonl")), times


def parts_of(events: Sequence[Event], times: Mapping[str, Sequence[Times]], number: int) -> dict[str, float]:
    """Seconds of the parts of one round, and the whole."""
    of_round = [event for event in events if event.get("round") == number]
    updates = [event for event in of_round if event["event"] == "update_received"]
    tests = [event for event in of_round if event["event"] == "evaluated"]
    (begun,) = [event["time"] for event in of_round if event["event"] == "round_started"]
    (finished,) = [event for event in of_round if event["event"] == "round_finished"]
    last, tested = max(updates, key=lambda event: event["time"]), max(tests, key=lambda event: event["time"])
    fit = [entry for entry in times[last["node"]] if entry["kind"] == "fit"][number - 1]
    # The first of them was about the weights that the run begins with.
    test = [entry for entry in times[tested["where"]] if entry["kind"] == "evaluate"][number]
    train, merge = last["metrics"]["seconds"], finished["seconds"]["merge"]
    return {
        "to_train": fit["began"] - begun,
        "train": train,
        "pack": fit["ended"] - fit["began"] - train,
        "from_train": last["time"] - fit["ended"],
        "merge": merge,
        "to_test": test["began"] - last["time"] - merge,
        "test": test["ended"] - test["began"],
        "from_test": tested["time"] - test["ended"],
        "checkpoint": finished["seconds"]["checkpoint"],
        "round": finished["seconds"]["total"],
        "slowest": max(event["metrics"]["seconds"] for event in updates),
    }


def main() -> None:
    """Measure and print."""
    if "--as-node" in sys.argv:
        folder, node, port = sys.argv[2:]
        be_node(Path(folder), node, int(port))
        return
    options = arguments(__doc__ or "").parse_args()
    rounds = 3 if options.quick else 11
    with tempfile.TemporaryDirectory() as folder:
        events, times = hold(Path(folder), rounds)
    # In the first round the nodes build the model.
    measured = [parts_of(events, times, number) for number in range(2, rounds + 1)]
    middle = {part: round(median(row[part] for row in measured), 3) for part in (*PARTS, "round", "slowest")}
    start = median(entry["ready"] - entry["began"] for node in NODES for entry in times[node][:1])
    overhead = [row["round"] - row["slowest"] for row in measured]
    claims = [
        claim(
            "round overhead: seconds of a round beyond its slowest node's training, three nodes over TLS",
            overhead,
            [TARGET],
            1.0,
            "lower",
        )
    ]
    if not options.json:
        print("median seconds of a round: " + ", ".join(f"{part} {middle[part]:.2f}" for part in middle))
        print(f"once a node: {start:.1f} s until its trainer is ready")
    if not options.quick:
        about = {"seed": 0, "parts": middle, "ready": start, "rounds": measured, "samples": claims}
        save_cell("round_overhead", "three-nodes", about)
    show(claims, options.json)


if __name__ == "__main__":
    main()
