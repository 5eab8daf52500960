"""Claims: one of four sites is five times slower. To the same mAP, rounds with a deadline take at most 60 % of the time
of rounds that wait for all, and asynchronous ones at most 50 %.

    python benchmarks/stragglers.py             three seeds of four synthetic sites, yolov8n, about an hour on two cores
    python benchmarks/stragglers.py --quick     two rounds of a dozen pictures, not kept

All training is real; the clock is not. Four machines of their own cannot be had on one, so a node's work is carried
out when its answer is due on a clock that stands still meanwhile: a session takes a fast node one unit of time, the
slow one five, tests and the server's work nothing. The slow site is the only one by night, so to leave it out
costs accuracy. The mAP50 is that of all sites' validation pictures after each round; "the same" is 95 % of the highest
that waiting for all comes to. The learning rate is constant, so that the number of rounds planned plays no part.
A seed that was measured before is not run again: delete its cell to do so.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cells import Claim, arguments, claim, seeds_of, show

from manyeyes.config import EvaluateSection, FederationSection, ModelSection, TrainSection, validate
from manyeyes.datasets import Dataset, load_dataset
from manyeyes.datasets.classes import relabel, union_names
from manyeyes.datasets.scenes import write_scenes
from manyeyes.federation.client import Client
from manyeyes.federation.rounds import run_rounds
from manyeyes.federation.transport import Request
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import Metrics
from manyeyes.learners.models import build_template
from manyeyes.weights import Weights

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.federation.lanes import Clock, Lanes

SEEDS = (0, 1, 2)
SLOW, TIMES = "C", 5.0
SHARE = 0.95
# Mode: what it asks of the federation, and how many rounds it is given.
MODES: dict[str, tuple[dict[str, Any], int]] = {
    "wait": ({}, 12),
    "deadline": ({"deadline": 1.25, "late": "next_round", "max_staleness": 8}, 30),
    "async": ({"mode": "async", "buffer": 3, "max_staleness": 8}, 30),
}


def sites_of(folder: Path, seed: int, images: int, imgsz: int) -> dict[str, Dataset]:
    """Four sites: an office, two crossroads, and one by night."""
    first = write_scenes(folder / "1", images=images, imgsz=imgsz, seed=seed)
    second = write_scenes(folder / "2", images=images, imgsz=imgsz, seed=seed + 1000)
    office, crossroads, night = first.values()
    paths = {"A": office, "B": crossroads, "C": night, "D": list(second.values())[1]}
    sites = {site: load_dataset(path) for site, path in paths.items()}
    names = union_names(sites)
    return {site: relabel(data, names) for site, data in sites.items()}


def units(request: Request) -> float:
    """What a node takes for a request."""
    if request.kind != "fit":
        return 0.0
    return TIMES if request.node_id == SLOW else 1.0


def curve(
    mode: str, sites: dict[str, Dataset], learner: DetectorLearner, folder: Path, seed: int, *, imgsz: int, quick: bool
) -> list[tuple[float, float]]:
    """(units of time, mAP50) after each round."""
    federation, rounds = MODES[mode]
    clients = {site: Client(site, learner, data, folder / site) for site, data in sites.items()}
    clock = Clock()
    points: list[tuple[float, float]] = []

    def held_out(weights: Weights) -> Metrics:
        metrics = learner.test_sites(dict.fromkeys(sites, weights), sites, "val", imgsz)["mixed"]
        points.append((clock.now, metrics.map50))
        sys.stderr.write(f"seed {seed} {mode}: {clock.now:.1f} units, mAP50 {metrics.map50:.3f}\n")
        return metrics

    with patch("manyeyes.federation.rounds.time", clock):
        run_rounds(
            Lanes(clients, clock, units),
            learner.template,
            train=TrainSection(imgsz=imgsz, batch=8, optimizer="adamw", lr=0.0005, schedule="constant", close_mosaic=0),
            federation=validate(
                FederationSection, {"rounds": 2 if quick else rounds, "weighting": "equal", **federation}
            ),
            evaluate=EvaluateSection(nodes=1),
            seed=seed,
            expected=learner.expected_tensors,
            folder=folder / "rounds",
            emit=lambda event, **fields: None,
            held_out=held_out,
        )
    return points


def measure(seed: int, *, quick: bool) -> dict[str, Any]:
    """The curves of all modes with one seed."""
    images, imgsz = (12, 128) if quick else (60, 256)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sites = sites_of(folder / "scenes", seed, images, imgsz)
        names = next(iter(sites.values())).names
        learner = DetectorLearner(build_template(ModelSection(), names, seed=seed, imgsz=imgsz))
        found = partial(curve, sites=sites, learner=learner, seed=seed, imgsz=imgsz, quick=quick)
        return {"samples": {mode: found(mode, folder=folder / mode) for mode in MODES}}


def time_to(points: list[tuple[float, float]], map50: float) -> float:
    """Units of time until the mAP50 is reached; infinity if it never is."""
    return next((when for when, value in points if value >= map50), float("inf"))


def claims_of(cells: list[dict[str, Any]]) -> list[Claim]:
    """Time of each mode against waiting for all, by seed."""
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for cell in cells:
        target = SHARE * max(value for _, value in cell["samples"]["wait"])
        for mode, points in cell["samples"].items():
            times[mode].append(time_to(points, target))
    return [
        claim(
            f"stragglers: units of time to the same mAP50, {text} / waiting for all", times[mode], times["wait"], *most
        )
        for mode, text, most in (
            ("deadline", "with a deadline", (0.6, "lower")),
            ("async", "asynchronous", (0.5, "lower")),
        )
    ]


def main() -> None:
    """Measure what is missing, then print the claims."""
    options = arguments(__doc__ or "").parse_args()
    run = partial(measure, quick=options.quick)
    cells = seeds_of("stragglers", SEEDS[:1] if options.quick else SEEDS, run, keep=not options.quick)
    show(claims_of(cells), options.json)


if __name__ == "__main__":
    main()
