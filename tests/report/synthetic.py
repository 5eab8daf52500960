"""A run that never took place: three sites, five rounds, every kind of event, with example pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np

from manyeyes.report.runlog import RunLog

NAMES = ("person", "car")
SITES = ("A", "B", "C")
ROUNDS = 5
UPDATE_BYTES = 1_400_000

# Final mAP50 of (row, place); the classes lie a little above and below it.
FINAL = {
    "untrained": {"A": 0.31, "B": 0.35, "C": 0.22, "mixed": 0.30},
    "alone-A": {"A": 0.62, "B": 0.41, "C": 0.30, "mixed": 0.452},
    "alone-B": {"A": 0.45, "B": 0.700, "C": 0.38, "mixed": 0.571},
    "alone-C": {"A": 0.33, "B": 0.36, "C": 0.48, "mixed": 0.393},
    "together": {"A": 0.661, "B": 0.692, "C": 0.64, "mixed": 0.701},
    "pooled": {"A": 0.67, "B": 0.71, "C": 0.66, "mixed": 0.718},
}


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self, now: float = 1_790_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


def metrics(map50: float, names: Sequence[str] = NAMES, images: int = 60) -> dict[str, Any]:
    """The dictionary of Metrics with that mean; classes are spread evenly around it."""
    offsets = np.linspace(0.03, -0.03, len(names)) if len(names) > 1 else np.zeros(1)
    ap50 = {name: round(float(map50 + offset), 6) for name, offset in zip(names, offsets, strict=True)}
    ap = {name: round(value * 0.57, 6) for name, value in ap50.items()}
    return {
        "ap50": ap50,
        "ap": ap,
        "num_images": images,
        "num_objects": dict.fromkeys(names, 100),
        "map50": sum(ap50.values()) / len(ap50),
        "map50_95": sum(ap.values()) / len(ap),
    }


class SyntheticRun:
    """Emits the events of a run through a real RunLog, with a clock that is turned by hand."""

    def __init__(self, folder: Path, names: Sequence[str] = NAMES, sites: Sequence[str] = SITES) -> None:
        self.folder, self.names, self.sites = folder, tuple(names), tuple(sites)
        self.clock = Clock()
        self.log = RunLog(folder / "runlog.jsonl")
        self._random = np.random.default_rng(7)

    def emit(self, event: str, **fields: Any) -> None:
        with mock.patch("manyeyes.report.runlog.time.time", self.clock):
            self.log.emit(event, **fields)

    def start(self) -> None:
        pictures = {"train": 240, "val": 40, "test": 60}
        sites = []
        for order, site in enumerate(self.sites):
            counts = {name: 620 // (1 + (order + i) % 3) for i, name in enumerate(self.names)}
            objects = {"train": counts, "test": {name: n // 4 for name, n in counts.items()}}
            sites.append({"node_id": site, "annotates": list(self.names), "pictures": pictures, "objects": objects})
        rows = [{"row": "untrained", "rounds": 0, "nodes": []}]
        rows += [{"row": f"alone-{site}", "rounds": ROUNDS, "nodes": [site]} for site in self.sites]
        rows += [{"row": "together", "rounds": ROUNDS, "nodes": list(self.sites)}]
        rows += [{"row": "pooled", "rounds": ROUNDS, "nodes": ["pooled"]}]
        self.emit(
            "run_started",
            name="three-sites",
            seed=0,
            template="yolov8n",
            names=list(self.names),
            manyeyes="0.1.0",
            torch="2.6.0",
            machine="2 cores, 8 GB, CPU",
            sites=sites,
            rows=rows,
        )

    def test(self, row: str, round_: int = ROUNDS) -> None:
        for where in (*self.sites, "mixed"):
            self.clock.passes(2)
            value = FINAL.get(row, {}).get(where, 0.4)
            images = 60 * (len(self.sites) if where == "mixed" else 1)
            found = metrics(value, self.names, images)
            self.emit("evaluated", row=row, round=round_, where=where, split="test", metrics=found)

    def row(self, row: str, nodes: Sequence[str], *, first: int = 1, last: int = ROUNDS, resumed: bool = False) -> None:
        """Rounds `first` to `last` of a row."""
        self.emit("row_started", row=row, nodes=list(nodes), rounds=ROUNDS, resumed_from=first - 1 if resumed else None)
        for number in range(first, last + 1):
            self.round(row, nodes, number)

    def round(self, row: str, nodes: Sequence[str], number: int) -> None:
        self.emit("round_started", row=row, round=number, cohort=list(nodes))
        for node in nodes:
            self._fit(row, node, number)
        for where in (*self.sites, "mixed"):
            self.clock.passes(1)
            final = FINAL.get(row, {}).get(where, 0.4)
            value = 0.3 + (final - 0.3) * (1 - np.exp(-0.75 * number)) + float(self._random.normal(0, 0.008))
            found = metrics(value, self.names, 40)
            self.emit("evaluated", row=row, round=number, where=where, split="val", metrics=found)
        self.clock.passes(1)
        sent = UPDATE_BYTES * len(nodes)
        seconds = {"fit": 36.0 + number, "merge": 0.4, "evaluate": 4.0, "checkpoint": 0.6, "total": 41.0 + number}
        self.emit("round_finished", row=row, round=number, bytes_down=sent + 900, bytes_up=sent, seconds=seconds)

    def finish_row(self, row: str, nodes: Sequence[str]) -> None:
        self.test(row)
        sent = UPDATE_BYTES * len(nodes) * ROUNDS
        self.emit("row_finished", row=row, bytes_down=sent + 900 * ROUNDS, bytes_up=sent, seconds=230.0, kept=ROUNDS)

    def finish(self) -> None:
        self.emit("run_finished", summary={})
        self.log.close()

    def _fit(self, row: str, node: str, number: int, epochs: int = 3) -> None:
        for epoch in range(1, epochs + 1):
            share = (number - 1 + epoch / epochs) / ROUNDS
            losses = {"box": 1.5 - 0.6 * share, "cls": 1.3 - 0.8 * share**0.5, "dfl": 1.2 - 0.2 * share}
            losses = {name: value + float(self._random.normal(0, 0.03)) for name, value in losses.items()}
            for step in range(1, 11):
                self.clock.passes(0.4)
                done = (epoch - 1) * 10 + step
                progress = {"node_id": node, "round": number - 1, "epoch": epoch, "epochs": epochs, "step": done}
                left = 0.4 * (epochs * 10 - done)
                self.emit(
                    "progress", row=row, **progress, steps=epochs * 10, losses=losses, images_per_second=19.3,
                    seconds_left=left, epoch_done=step == 10,
                )  # fmt: skip
            fit = {"node": node, "epoch": epoch, "epochs": epochs, "images_per_second": 19.3}
            self.emit("epoch_finished", row=row, round=number, losses=losses, **fit)
        self.emit(
            "update_received", row=row, round=number, node=node, bytes=UPDATE_BYTES, num_examples=240, seconds=12.0,
            metrics={"loss": 2.4, "images_per_second": 19.3},
        )  # fmt: skip


def write_run(folder: Path) -> SyntheticRun:
    """A whole run with examples and config.yaml."""
    run = SyntheticRun(folder)
    run.start()
    run.test("untrained", 0)
    for site in SITES:
        run.row(f"alone-{site}", [site])
        run.finish_row(f"alone-{site}", [site])
    run.row("together", SITES)
    run.finish_row("together", SITES)
    run.row("pooled", ["pooled"])
    run.finish_row("pooled", ["pooled"])
    run.finish()
    write_examples(folder / "examples")
    (folder / "config.yaml").write_text(
        "name: three-sites\nseed: 0\ndata_root: /secret/place\noutput: /secret/runs\n"
        "sites:\n- {node_id: A, data: /secret/place/a}\nfederation: {rounds: 5}\n"
    )
    return run


def write_examples(folder: Path) -> None:
    """Drawn scenes with true boxes, and detections that find more of them together than alone."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(3)
    index = []
    for site in SITES:
        for number in range(2 if site == "A" else 1):
            image, truth = _scene(random)
            name = f"{site.lower()}_{number:04d}.jpg"
            cv2.imwrite(str(folder / name), image)
            rows = {f"alone-{site}": _detect(truth[::2], random, 0.6), "together": _detect(truth, random, 0.85)}
            rows[f"alone-{site}"].append([20.0, 14.0, 70.0, 60.0, 0.41, 1])
            rows["together"].append([5.0, 5.0, 30.0, 30.0, 0.11, 0])
            index.append({"site": site, "image": name, "truth": truth, "rows": rows})
    (folder / "index.json").write_text(json.dumps(index))


def _scene(random: np.random.Generator) -> tuple[Any, list[list[float]]]:
    height, width = 240, 320
    ground = np.linspace(150, 70, height)[:, None, None] * np.ones((1, width, 3))
    image = np.clip(ground * np.array([1.0, 0.96, 0.9]) + random.normal(0, 7, ground.shape), 0, 255).astype(np.uint8)
    truth: list[list[float]] = []
    for place in range(5):
        x, y = 12 + place * 60 + int(random.integers(0, 12)), int(random.integers(70, 150))
        if place % 2:
            cv2.ellipse(image, (x + 22, y + 18), (24, 12), 0, 0, 360, (60, 70, 150), -1, cv2.LINE_AA)
            cv2.circle(image, (x + 8, y + 30), 6, (20, 20, 20), -1, cv2.LINE_AA)
            cv2.circle(image, (x + 36, y + 30), 6, (20, 20, 20), -1, cv2.LINE_AA)
            truth.append([x - 2.0, y + 5.0, x + 47.0, y + 37.0, 1])
        else:
            cv2.circle(image, (x + 12, y + 6), 6, (120, 150, 200), -1, cv2.LINE_AA)
            cv2.ellipse(image, (x + 12, y + 34), (10, 24), 0, 0, 360, (120, 90, 40), -1, cv2.LINE_AA)
            truth.append([x + 1.0, y - 1.0, x + 23.0, y + 59.0, 0])
    return cv2.GaussianBlur(image, (3, 3), 0), truth


def _detect(truth: Sequence[Sequence[float]], random: np.random.Generator, score: float) -> list[list[float]]:
    return [
        [
            *(float(v + random.normal(0, 1.2)) for v in box[:4]),
            round(score + float(random.uniform(-0.2, 0.1)), 3),
            box[4],
        ]
        for box in truth
    ]
