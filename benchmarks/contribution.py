"""Claims: one of four sites has wrong labels. Weighted by contribution its updates lose their weight within three
rounds, and the model finds more than with weighting by examples.

    python benchmarks/contribution.py                  three seeds on blood cells and circuit boards: two core hours
    python benchmarks/contribution.py --only bccd      one of the data sets
    python benchmarks/contribution.py --seeds 0        fewer seeds
    python benchmarks/contribution.py --quick          synthetic pictures, four rounds of one step, not kept

The pictures of each data set are dealt out to four sites. The last one's labels are spoilt, those it validates with
too: "labels" deals its class ids out anew among its boxes, "boxes" moves each of them to another place. Eight rounds
of an epoch at 320 px, otherwise as configs/bccd.yaml trains. Kept are the weights that the updates counted by in each
round, and the mAP50 on the test pictures of the three good sites.
Needs the real pictures and weights of configs/bccd.yaml. A seed that was measured before is not run again: delete its
cell to do so.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from cells import Claim, arguments, claim, seeds_of, show

from manyeyes.config import EvaluateSection, FederationSection, ModelSection, TrainSection, load_config
from manyeyes.datasets import Dataset, load_dataset
from manyeyes.datasets.classes import pool, relabel, union_names
from manyeyes.datasets.partition import split_dataset
from manyeyes.datasets.sample import Sample
from manyeyes.datasets.scenes import write_scenes
from manyeyes.federation.client import Client
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.rounds import run_rounds
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.models import build_template

CONFIG = Path(__file__).parents[1] / "configs" / "bccd.yaml"
SITES = "ABCD"
WRONG = SITES[-1]
SPOILS = ("labels", "boxes")
WEIGHTINGS = ("examples", "contribution")
ROUNDS, IMGSZ = 8, 320


def pictures_of(name: str, folder: Path, seed: int) -> Dataset:
    """All pictures of a data set, with one list of classes."""
    if name == "scenes":
        paths = list(write_scenes(folder, images=24, imgsz=128, seed=seed).values())
    elif name == "bccd":
        paths = [site.data for site in load_config(CONFIG).sites]
    else:
        paths = [load_config(CONFIG).data_root / name]
    parts = {path.name: load_dataset(path) for path in paths}
    names = union_names(parts)
    return pool({site: relabel(data, names) for site, data in parts.items()})


def spoilt(data: Dataset, how: str, seed: int) -> Dataset:
    """The same pictures with wrong labels."""
    rng = np.random.default_rng([seed, 99])
    splits = {split: _spoilt(data.split(split), how, rng) for split in data.splits}
    return replace(data, splits=splits)


def _spoilt(samples: Sequence[Sample], how: str, rng: np.random.Generator) -> list[Sample]:
    if how == "boxes":
        return [replace(sample, xyxy=_moved(sample, rng)) for sample in samples]
    ids = np.concatenate([sample.class_id for sample in samples]) if samples else np.zeros(0, dtype=np.int64)
    parts = np.split(rng.permutation(ids), np.cumsum([len(sample.class_id) for sample in samples])[:-1])
    return [replace(sample, class_id=part) for sample, part in zip(samples, parts, strict=True)]


def _moved(sample: Sample, rng: np.random.Generator) -> Any:
    """xyxy (n, 4) of boxes of the same sizes in other places."""
    size = sample.xyxy[:, 2:] - sample.xyxy[:, :2]
    corner = rng.random(size.shape) * (np.array([sample.width, sample.height]) - size)
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def hold(sites: dict[str, Dataset], weighting: str, seed: int, *, quick: bool) -> dict[str, Any]:
    """One run: mAP50 on the good sites' test pictures, and what each update counted by."""
    imgsz = 128 if quick else IMGSZ
    weights: list[dict[str, float]] = []

    def emit(event: str, **fields: Any) -> None:
        if event == "round_started":
            weights.append({})
        if event == "update_received" and "weight" in fields:
            weights[-1][fields["node"]] = fields["weight"]
        if event == "round_finished":
            sys.stderr.write(f"seed {seed} {weighting} round {fields['round']}: {weights[-1]}\n")

    names = next(iter(sites.values())).names
    model = ModelSection() if quick else load_config(CONFIG).model
    learner = DetectorLearner(build_template(model, names, seed=seed, imgsz=imgsz))
    train = TrainSection(imgsz=128, steps=1) if quick else load_config(CONFIG, ["train.epochs=1"]).train
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clients = {site: Client(site, learner, data, folder / site) for site, data in sites.items()}
        result = run_rounds(
            LocalTransport(clients),
            learner.template,
            train=train,
            federation=FederationSection.model_validate({"rounds": 4 if quick else ROUNDS, "weighting": weighting}),
            evaluate=EvaluateSection(imgsz=imgsz),
            seed=seed,
            expected=learner.expected_tensors,
            folder=folder / "rounds",
            emit=emit,
        )
    good = {site: data for site, data in sites.items() if site != WRONG}
    found = learner.test_sites(dict.fromkeys(good, result.weights), good, "test", imgsz)["mixed"]
    return {"map50": found.map50, "weights": weights}


def measure(seed: int, *, name: str, quick: bool) -> dict[str, Any]:
    """All runs of a seed on one data set."""
    samples: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        parts = split_dataset(pictures_of(name, Path(temporary), seed), "iid", len(SITES), seed=seed)
        for how in SPOILS:
            sites = dict(zip(SITES, parts, strict=True))
            sites[WRONG] = spoilt(sites[WRONG], how, seed)
            samples[how] = {weighting: hold(sites, weighting, seed, quick=quick) for weighting in WEIGHTINGS}
    return {"data": name, "samples": samples}


def claims_of(name: str, cells: list[dict[str, Any]]) -> list[Claim]:
    """What is shown for each way of being wrong, over the seeds."""
    claims = []
    for how in SPOILS:
        runs = [cell["samples"][how] for cell in cells]
        fourth = [run["contribution"]["weights"][3] for run in runs]
        others = [mean(weight for site, weight in weights.items() if site != WRONG) for weights in fourth]
        text = f"{name}, wrong {how}: weight of that site after three rounds / mean weight of the others"
        claims.append(claim(text, [weights[WRONG] for weights in fourth], others, 0.5, "lower", mean))
        ours, theirs = ([run[weighting]["map50"] for run in runs] for weighting in reversed(WEIGHTINGS))
        text = f"{name}, wrong {how}: mAP50 weighted by contribution / by examples"
        claims.append(claim(text, ours, theirs, 1.0, "higher", mean))
    return claims


def main() -> None:
    """Measure what is missing, then print the claims."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", choices=["bccd", "pcb"], help="one of the data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    claims = []
    for name in ["scenes"] if options.quick else [options.only] if options.only else ["bccd", "pcb"]:
        run = partial(measure, name=name, quick=options.quick)
        seeds = options.seeds[:1] if options.quick else options.seeds
        claims += claims_of(name, seeds_of(f"contribution_{name}", seeds, run, keep=not options.quick))
    show(claims, options.json)


if __name__ == "__main__":
    main()
