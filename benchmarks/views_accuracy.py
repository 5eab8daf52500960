"""Claim: a head that is trained from a few cached views of each picture is as good as one that never sees a view twice.

    python benchmarks/views_accuracy.py               K = 2, 4 and 8 against no cache, three seeds: some 20 minutes
    python benchmarks/views_accuracy.py --quick       one step a row, not kept

Every row starts from the COCO-pretrained yolov8n.pt with the same seed, trains the head alone for as many epochs and is
tested on the same test pictures. Bytes are those of the views on the disk when the row is finished. A seed that was
measured before is not run again: delete its cell.

Needs ../shared/data/pcb and ../shared/data/weights/yolov8n.pt, or --data and --weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from cells import Claim, arguments, claim, seeds_of, show

from manyeyes.config import ModelSection, TrainSection
from manyeyes.datasets import load_dataset
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan
from manyeyes.learners.models import build_template
from manyeyes.weights import add

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
VIEWS = (0, 2, 4, 8)
HEAD = 22


def train(options: argparse.Namespace, seed: int, views: int) -> dict[str, float]:
    """One row: its average precision, seconds and bytes."""
    data = load_dataset(options.data)
    template = build_template(ModelSection(weights=str(options.weights)), data.names, seed=seed, imgsz=options.imgsz)
    section = TrainSection(
        imgsz=options.imgsz,
        batch=options.batch,
        epochs=options.epochs,
        steps=1 if options.quick else None,
        freeze=HEAD,
        cache_views=views,
        optimizer="adamw",
        lr=options.lr,
        threads=options.threads,
        device="cpu",
    )
    learner = DetectorLearner(template, threads=options.threads)
    with tempfile.TemporaryDirectory() as state:
        began = time.perf_counter()
        plan = FitPlan(train=section, round=0, rounds=1, seed=seed)
        update = learner.fit(template.weights, data, plan, state_folder=Path(state))
        seconds = time.perf_counter() - began
        kept = sum(path.stat().st_blocks * 512 for path in Path(state).rglob("views-*.bin"))
    weights = add(template.weights, update.delta).replace(update.buffers)
    metrics = learner.evaluate(weights, data, "test", options.imgsz)
    row = {"map50": metrics.map50, "map50_95": metrics.map50_95, "seconds": round(seconds, 1), "bytes": kept}
    print(f"seed {seed}, {views} views: {row}", file=sys.stderr)
    return row


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One seed of all rows."""
    kept = {name: getattr(options, name) for name in ("imgsz", "batch", "epochs", "lr", "threads")}
    return {"configuration": kept, "samples": {str(views): train(options, seed, views) for views in VIEWS}}


def claims_of(cells: list[dict[str, Any]]) -> list[Claim]:
    """Each number of views against none."""
    claims = []
    for views in VIEWS[1:]:
        for key, target, better in (("map50", 0.97, "higher"), ("map50_95", 0.97, "higher"), ("seconds", 1.0, "lower")):
            ours, peer = ([cell["samples"][str(k)][key] for cell in cells] for k in (views, 0))
            middle = median if key == "seconds" else mean
            text = f"head from {views} cached views / from new views: {key}"
            claims.append(claim(text, ours, peer, target, better, middle))
    return claims


def main() -> None:
    """Measure what is missing, then print the claims."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.002)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=SHARED / "pcb")
    parser.add_argument("--weights", type=Path, default=SHARED / "weights" / "yolov8n.pt")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.imgsz = options.seeds[:1], 64
    cells = seeds_of("views_accuracy", options.seeds, partial(measure, options), keep=not options.quick)
    show(claims_of(cells), options.json)


if __name__ == "__main__":
    main()
