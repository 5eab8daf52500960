"""A coordinator's run that never took place: A and B from the start, C from round 3, B loses round 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manyeyes.report.runlog import COORDINATOR, RUNLOG, RunLog

from .synthetic import UPDATE_BYTES, metrics

ROUNDS = 4
REFUSED = "no answer within 90 s"

# mAP50 by node and round; 0: the weights the run began with. A gains 20 points, B loses 3, C came later.
SCORES = {
    "A": {0: 0.30, 1: 0.38, 2: 0.42, 3: 0.47, 4: 0.50},
    "B": {0: 0.40, 1: 0.39, 2: 0.38, 3: 0.36, 4: 0.37},
    "C": {3: 0.12, 4: 0.20},
}


class NodesRun:
    """Emits the events of a coordinator through a real RunLog."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.log = RunLog(folder / RUNLOG)
        self.log.emit(
            "run_started",
            **{
                "name": "harbour",
                "seed": 3,
                "held_by": COORDINATOR,
                "template": {"architecture": "yolov8n/cv3=64", "weights": "base"},
                "names": ["person", "car"],
                "manyeyes": "0.1.0",
                "sites": [],
                "rows": [{"row": "together", "rounds": ROUNDS, "nodes": []}],
                **changes,
            },
        )

    def emit(self, event: str, **fields: Any) -> None:
        self.log.emit(event, row="together", **fields)

    def begin(self, resumed_from: int | None = None) -> None:
        self.emit("row_started", nodes=["A", "B"], rounds=ROUNDS, resumed_from=resumed_from)
        if not resumed_from:
            self.test(0)

    def test(self, number: int) -> None:
        for node, scores in SCORES.items():
            if number in scores:
                found = metrics(scores[number], images=40)
                self.emit("evaluated", round=number, where=node, split="val", metrics=found)

    def start_round(self, number: int) -> list[str]:
        cohort = ["A", "B", "C"] if number > 3 else ["A", "B"]
        self.emit("round_started", round=number, cohort=cohort)
        return cohort

    def update(self, node: str, number: int) -> None:
        told = {"loss": 3.0 - 0.1 * number, "loss_box": 2.0, "loss_cls": 1.0 - 0.1 * number, "seconds": 11.0}
        self.emit(
            "update_received",
            round=number,
            node=node,
            bytes=UPDATE_BYTES,
            num_examples=240,
            seconds=12.0,
            metrics=told,
        )

    def round(self, number: int) -> None:
        for node in self.start_round(number):
            if (node, number) == ("B", 2):
                self.emit("update_refused", round=number, node=node, reason=REFUSED)
            else:
                self.update(node, number)
        self.test(number)
        sent = {"A": {"bytes_up": UPDATE_BYTES, "bytes_down": 2 * UPDATE_BYTES}, "B": {"bytes_up": 0, "bytes_down": 9}}
        total = {"bytes_up": UPDATE_BYTES, "bytes_down": 2 * UPDATE_BYTES + 9}
        seconds = {"fit": 12.0, "merge": 0.2, "evaluate": 3.0, "checkpoint": 0.3, "total": 15.5 + number}
        self.emit("round_finished", round=number, **total, nodes=sent, seconds=seconds)

    def finish(self, kept: int = ROUNDS, score: float | None = None) -> None:
        self.emit("row_finished", bytes_down=1, bytes_up=1, seconds=60.0, kept=kept, score=score)


def write_nodes_run(folder: Path) -> NodesRun:
    """A whole run with config.yaml."""
    run = NodesRun(folder)
    run.begin()
    for number in range(1, ROUNDS + 1):
        run.round(number)
    run.finish()
    (folder / "config.yaml").write_text("name: harbour\nstate: /secret/state\noutput: /secret/runs\nport: 5000\n")
    return run
