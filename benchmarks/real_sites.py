"""Claims: on real pictures the model trained together beats the untrained one and every site's own at that site, and
comes close to pooled pictures; on blood cells it beats UltraFlwr's published server model.

    python benchmarks/real_sites.py                    all of RUNS, three seeds: some hours on two cores
    python benchmarks/real_sites.py --seeds 0          fewer seeds
    python benchmarks/real_sites.py --only streets     one of RUNS; may be given several times
    python benchmarks/real_sites.py --quick            one step a round, not kept

Needs the real pictures and weights of configs/streets.yaml and configs/bccd.yaml. A seed that was measured before is
not run again: delete its cell to do so.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from cells import RESULTS, Claim, arguments, claim, seeds_of, show
from rich.console import Console

from manyeyes.config import load_config
from manyeyes.federation.launch import launch

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = {
    "streets": ("streets.yaml", []),
    "streets_own": (
        "streets.yaml",
        ["federation.finetune_after=10", "federation.finetune_mix=0.5", "compare=[untrained, together]"],
    ),
    "streets_416": ("streets.yaml", ["train.imgsz=416", "evaluate.imgsz=416"]),
    "streets_head": ("streets.yaml", ["train.freeze=22"]),
    "streets_thermal": ("streets_thermal.yaml", []),
    "streets_thermal_bn": ("streets_thermal.yaml", ["federation.personal=[bn]", "compare=[untrained, together]"]),
    "streets_thermal_bn_trained": (
        "streets_thermal.yaml",
        ["federation.personal=[bn]", "train.batchnorm=train", "compare=[untrained, together]"],
    ),
    "streets_thermal_nova": (
        "streets_thermal.yaml",
        ["federation.strategy={name: fednova, server_lr: 1.5}", "compare=[untrained, together]"],
    ),
    "bccd": ("bccd.yaml", []),
}


@dataclass(frozen=True)
class Beside:
    """A run that does not train again what another has with the same seed: its sites are compared with that one's."""

    run: str
    ours: str
    peer: str
    text: str


BESIDE = {
    "streets_own": Beside("streets", "finetuned", "alone", "its own model from the common one / alone"),
    "streets_thermal_bn": Beside(
        "streets_thermal", "together", "together", "together with its own BatchNorm / with one for all"
    ),
    "streets_thermal_bn_trained": Beside(
        "streets_thermal", "together", "together", "together with its own BatchNorm and statistics / with one for all"
    ),
    "streets_thermal_nova": Beside(
        "streets_thermal", "together", "together", "together, each update counted per step / as a whole"
    ),
}
# Means over the test pictures of its three clients, from UltraFlwr's published table: FedAvg, YOLO11n, GPUs.
ULTRAFLWR = {"map50": 0.900, "map50_95": 0.627}


def measure(name: str, seed: int, *, work: Path, quick: bool) -> dict[str, Any]:
    """One run of one configuration: its summary."""
    file, overrides = RUNS[name]
    own = [f"output={work}", f"name={name.replace('_', '-')}-{seed}", f"seed={seed}"]
    if quick:
        own += ["train.steps=1", "federation.rounds=1", "train.imgsz=128", "evaluate.imgsz=128"]
    config = load_config(CONFIGS / file, [*overrides, *own])
    summary = launch(config, resume=True, console=Console(stderr=True)).to_dict()
    tested = json.loads((config.run_folder / "rows" / "together" / "test.json").read_text())
    by_site = [tested[site.node_id] for site in config.sites]
    means = {key: mean(metrics[key] for metrics in by_site) for key in ULTRAFLWR}
    configuration = {"file": file, "overrides": overrides}
    return {"configuration": configuration, "samples": {**summary, "mean_over_sites": means}}


def claims_of(name: str, cells: list[dict[str, Any]]) -> list[Claim]:
    """What a configuration has to show, over the seeds that are there."""

    def map50(cell: dict[str, Any], model: str) -> float:
        return float(next(r["map50"] for r in cell["samples"]["rows"] if r["model"] == model))

    if name in BESIDE:
        return [beside_claim(name, cells, number) for number in range(len(cells[0]["samples"]["sites"]))]
    together = [map50(cell, "together") for cell in cells]
    claims = [
        claim(
            f"{name}: mAP50 together / pooled pictures",
            together,
            [map50(c, "pooled") for c in cells],
            0.97,
            "higher",
            mean,
        ),
        claim(
            f"{name}: mAP50 together / untrained", together, [map50(c, "untrained") for c in cells], 1.0, "higher", mean
        ),
    ]
    for number, site in enumerate(cells[0]["samples"]["sites"]):
        found = [cell["samples"]["sites"][number] for cell in cells]
        text = f"{name}: mAP50 on the test pictures of {site['site']}, together / its own model"
        claims.append(claim(text, [s["together"] for s in found], [s["alone"] for s in found], 1.0, "higher", mean))
    if name == "bccd":
        for key, theirs in ULTRAFLWR.items():
            ours = [cell["samples"]["mean_over_sites"][key] for cell in cells]
            claims.append(
                claim(f"{name}: {key} together, mean over sites / UltraFlwr", ours, [theirs], 1.0, "higher", mean)
            )
    return claims


def beside_claim(name: str, cells: list[dict[str, Any]], number: int) -> Claim:
    """What a site has of one run, to what it has of another from the same start and seed."""
    beside = BESIDE[name]
    found = [cell["samples"]["sites"][number] for cell in cells]
    kept = [json.loads((RESULTS / beside.run / f"seed-{cell['seed']}.json").read_text()) for cell in cells]
    peer = [cell["samples"]["sites"][number][beside.peer] for cell in kept]
    text = f"{name}: mAP50 on the test pictures of {found[0]['site']}, {beside.text}"
    return claim(text, [site[beside.ours] for site in found], peer, 1.0, "higher", mean)


def main() -> None:
    """Measure what is missing, then print the claims."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", choices=sorted(RUNS), action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, help="folder for the runs; default: a temporary one")
    options = parser.parse_args()
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.only or list(RUNS):
            run = partial(measure, name, work=options.work or Path(temporary), quick=options.quick)
            claims += claims_of(name, seeds_of(name, options.seeds, run, keep=not options.quick))
    show(claims, options.json)


if __name__ == "__main__":
    main()
