"""What the benchmarks share: cells that are kept, machine, arguments, the printed table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from manyeyes.weights import write_atomically

__all__ = ["RESULTS", "Claim", "arguments", "claim", "commit", "machine", "save_cell", "seeds_of", "show"]

RESULTS = Path(__file__).parent / "results"

Claim = dict[str, Any]


def arguments(description: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute; shows that it runs, proves nothing")
    parser.add_argument("--json", action="store_true", help="print the claims as JSON")
    return parser


def claim(
    text: str,
    ours: Sequence[float],
    peer: Sequence[float],
    target: float,
    better: str,
    middle: Callable[[Sequence[float]], float] = statistics.median,
) -> Claim:
    """One claim with its raw samples; the ratio is 0 where the peer has nothing.

    Times are compared by their medians, since other programs disturb them; accuracy over seeds by its mean.
    """
    theirs = middle(peer)
    ratio = middle(ours) / theirs if theirs else 0.0
    return {
        "claim": text,
        "ours": list(ours),
        "peer": list(peer),
        "ratio": ratio,
        "target": target,
        "better": better,
    }


def show(claims: Sequence[Claim], as_json: bool) -> None:
    """Print the claims as JSON, or one line each."""
    if as_json:
        print(json.dumps(claims, indent=2))
        return
    for row in claims:
        met = row["ratio"] >= row["target"] if row["better"] == "higher" else row["ratio"] <= row["target"]
        sign = "≥" if row["better"] == "higher" else "≤"
        print(f"{row['claim']}: ratio {row['ratio']:.3f}, target {sign} {row['target']}: {'met' if met else 'NOT met'}")
        print(f"    ours {_numbers(row['ours'])}")
        print(f"    peer {_numbers(row['peer'])}")


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def commit() -> str:
    """The commit the figures belong to, with a plus sign if the tree was changed since."""
    here = Path(__file__).parent
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "--", "../src"], cwd=here, capture_output=True, text=True, check=False
    )
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else "unknown"


def seeds_of(
    name: str, seeds: Sequence[int], measure: Callable[[int], dict[str, Any]], *, keep: bool
) -> list[dict[str, Any]]:
    """The cells of seeds: as measured before, or measured now.

    Args:
        name: folder of the cells.
        seeds: in the order they are wanted.
        measure: gives the values of one seed's cell.
        keep: whether cells are read and written; without it all seeds are measured.
    """
    cells = []
    for seed in seeds:
        path = RESULTS / name / f"seed-{seed}.json"
        if keep and path.exists():
            cells.append(json.loads(path.read_text()))
            continue
        cells.append({"seed": seed, **measure(seed)})
        if keep:
            save_cell(name, path.stem, cells[-1])
    return cells


def save_cell(name: str, cell: str, values: dict[str, Any]) -> None:
    """Keep a cell: configuration, seed, commit, machine, samples."""
    path = RESULTS / name / f"{cell}.json"
    write_atomically(path, json.dumps({"commit": commit(), "machine": machine(), **values}, indent=2) + "\n")
