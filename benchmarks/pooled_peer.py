"""Claim: on the pooled blood cells Ultralytics' own trainer, at the budget of configs/bccd.yaml, makes no better model
than the sites together.

    python benchmarks/pooled_peer.py              seeds 0 to 2, some 20 minutes each on one core
    python benchmarks/pooled_peer.py --quick      one epoch at 64 px, not kept

Their trainer sees all pictures in one folder, as often as the sites see theirs, from the same yolov8n.pt, with AdamW at
the rate it chooses for so many classes and its own augmentation and schedule. Its last weights are tested as the
sites' are: by our evaluator, site by site. What it is compared with are the cells of real_sites.py; with --quick,
where these need not exist, its own starting weights.

Needs the real pictures and weights of configs/bccd.yaml. A seed that was measured before is not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from cells import RESULTS, Claim, arguments, claim, seeds_of, show
from real_sites import CONFIGS, RUNS
from training_accuracy import train_peer

from manyeyes.config import load_config
from manyeyes.datasets.classes import pool
from manyeyes.datasets.yolo import save_yolo
from manyeyes.federation.experiment import open_sites
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.models import build_template

KEYS = ("map50", "map50_95")


def measure(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One seed of their trainer: means over the sites' test pictures."""
    file, overrides = RUNS["bccd"]
    config = load_config(CONFIGS / file, [*overrides, f"seed={seed}"])
    sites = open_sites(config)
    epochs = max(1, round(config.federation.rounds * config.train.epochs))
    with tempfile.TemporaryDirectory() as work:
        budget = {
            "data": save_yolo(pool(sites), Path(work) / "pooled"),
            "weights": Path(config.model.weights),
            "imgsz": 64 if options.quick else config.train.imgsz,
            "batch": config.train.batch,
            "epochs": 1 if options.quick else epochs,
            "threads": options.threads,
        }
        model, seconds = train_peer(argparse.Namespace(**budget), seed, Path(work))
    samples = {"pooled": tested(model, sites, budget["imgsz"]), "seconds": round(seconds, 1)}
    if options.quick:
        names = next(iter(sites.values())).names
        samples["together"] = tested(build_template(config.model, names, seed=seed), sites, budget["imgsz"])
    kept = {name: budget[name] for name in ("imgsz", "batch", "epochs", "threads")}
    return {"configuration": {"file": file, "overrides": overrides, **kept}, "samples": samples}


def tested(model: Any, sites: Any, imgsz: int) -> dict[str, float]:
    """Means over the sites' test pictures."""
    found = DetectorLearner(model).test_sites(dict.fromkeys(sites, model.weights), sites, "test", imgsz)
    return {key: mean(getattr(found[site], key) for site in sites) for key in KEYS}


def claims_of(cells: list[dict[str, Any]], *, quick: bool) -> list[Claim]:
    """Together against their trainer on pooled pictures, seed by seed."""
    claims = []
    for key in KEYS:
        ours = [cell["samples"]["together"][key] if quick else together(cell["seed"])[key] for cell in cells]
        theirs = [cell["samples"]["pooled"][key] for cell in cells]
        text = f"bccd: {key} together / Ultralytics' trainer on pooled pictures, means over sites"
        claims.append(claim(text, ours, theirs, 1.0, "higher", mean))
    return claims


def together(seed: int) -> dict[str, float]:
    """What the sites together reached, from the cell of real_sites.py."""
    cell = json.loads((RESULTS / "bccd" / f"seed-{seed}.json").read_text())
    return dict(cell["samples"]["mean_over_sites"])


def main() -> None:
    """Measure what is missing, then print the claims."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    seeds = options.seeds[:1] if options.quick else options.seeds
    cells = seeds_of("pooled_peer", seeds, partial(measure, options), keep=not options.quick)
    show(claims_of(cells, quick=options.quick), options.json)


if __name__ == "__main__":
    main()
