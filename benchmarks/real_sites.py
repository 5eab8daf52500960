"""Claim: on real pictures the model trained together is no worse than the best site alone.

    python benchmarks/real_sites.py                    streets and blood cells, whole net and head only, one seed
    python benchmarks/real_sites.py --seeds 0 1 2      more seeds
    python benchmarks/real_sites.py --only streets     one of: streets, streets_head, bccd, bccd_head
    python benchmarks/real_sites.py --quick            one step a round, not kept

Needs the real pictures and weights of configs/streets.yaml and configs/bccd.yaml. A seed that was measured before is
not run again: delete its cell to do so.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from cells import Claim, arguments, claim, load_cell, save_cell, show
from rich.console import Console

from manyeyes.config import load_config
from manyeyes.federation.launch import launch

CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = {
    "streets": ("streets.yaml", []),
    "streets_head": ("streets.yaml", ["train.freeze=22"]),
    "bccd": ("bccd.yaml", []),
    "bccd_head": ("bccd.yaml", ["train.freeze=22"]),
}


def measure(name: str, seed: int, work: Path, *, quick: bool) -> dict[str, Any]:
    """One run of one configuration: its summary."""
    file, overrides = RUNS[name]
    own = [f"output={work}", f"name={name.replace('_', '-')}-{seed}", f"seed={seed}"]
    if quick:
        own += ["train.steps=1", "federation.rounds=1", "train.imgsz=128", "evaluate.imgsz=128"]
    config = load_config(CONFIGS / file, [*overrides, *own])
    summary = launch(config, resume=True, console=Console(stderr=True))
    return {"seed": seed, "configuration": {"file": file, "overrides": overrides}, "samples": summary.to_dict()}


def claims_of(name: str, cells: list[dict[str, Any]]) -> list[Claim]:
    """Together against the best site alone and against pooled."""

    def map50(cell: dict[str, Any], model: str) -> float:
        return float(next(r["map50"] for r in cell["samples"]["rows"] if r["model"] == model))

    together = [map50(cell, "together") for cell in cells]
    alone = [max(r["map50"] for r in cell["samples"]["rows"] if r["model"].endswith("alone")) for cell in cells]
    pooled = [map50(cell, "pooled") for cell in cells]
    return [
        claim(f"{name}: mAP50 together / best site alone", together, alone, 1.0, "higher"),
        claim(f"{name}: mAP50 together / pooled pictures", together, pooled, 0.95, "higher"),
    ]


def main() -> None:
    """Measure what is missing, then print the claims."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", choices=sorted(RUNS), action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, help="folder for the runs; default: a temporary one")
    options = parser.parse_args()
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.only or list(RUNS):
            cells = []
            for seed in options.seeds:
                cell = None if options.quick else load_cell(name, f"seed-{seed}")
                if cell is None:
                    cell = measure(name, seed, options.work or Path(temporary), quick=options.quick)
                    if not options.quick:
                        save_cell(name, f"seed-{seed}", cell)
                cells.append(cell)
            claims += claims_of(name, cells)
    show(claims, options.json)


if __name__ == "__main__":
    main()
