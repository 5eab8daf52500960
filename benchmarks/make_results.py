"""Build benchmarks/RESULTS.md from the kept cells.

python benchmarks/make_results.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import RESULTS, commit

from manyeyes.weights import write_atomically

Cell = dict[str, Any]


def read(name: str) -> dict[str, Cell]:
    """The cells of one claim by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((RESULTS / name).glob("*.json"))}


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation; of one value there is no spread."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def origin(cells: dict[str, Cell]) -> str:
    """Seeds, commits and machine of some cells."""
    commits = sorted({cell["commit"] for cell in cells.values()})
    machines = sorted({f"{c['machine']['cpu']}, {c['machine']['cores']} cores" for c in cells.values()})
    seeds = ", ".join(str(cell["seed"]) for cell in cells.values())
    older = "" if commits == [commit()] else " (an earlier commit than this table)"
    notes = sorted({cell["note"] for cell in cells.values() if "note" in cell})
    return " ".join([f"Seeds {seeds}; commit {', '.join(commits)}{older}; {'; '.join(machines)}.", *notes])


def table_of_rows(cells: dict[str, Cell]) -> list[str]:
    """One line a model, means over the seeds."""
    first = next(iter(cells.values()))["samples"]
    names = first["names"]
    lines = [
        f"| model | {' | '.join(f'{name} AP50' for name in names)} | mAP50 | mAP50-95 | vs best alone |",
        f"| --- | {' | '.join('---' for _ in names)} | --- | --- | --- |",
    ]
    for model in (row["model"] for row in first["rows"]):
        rows = [next(r for r in cell["samples"]["rows"] if r["model"] == model) for cell in cells.values()]
        classes = [spread([row["ap50"].get(name, 0.0) for row in rows]) for name in names]
        versus = statistics.mean(row["vs_best_alone_relative"] for row in rows)
        cells_of_row = [*classes, spread([r["map50"] for r in rows]), spread([r["map50_95"] for r in rows])]
        lines.append(f"| {model} | {' | '.join(cells_of_row)} | {versus:+.1%} |")
    return lines


def table_of_sites(cells: dict[str, Cell]) -> list[str]:
    """mAP50 on each site's own test pictures, means over the seeds."""
    lines = ["| site | untrained | alone | together | pooled | gain |", "| --- | --- | --- | --- | --- | --- |"]
    for number, site in enumerate(next(iter(cells.values()))["samples"]["sites"]):
        found = [cell["samples"]["sites"][number] for cell in cells.values()]
        values = [spread([s[key] for s in found]) for key in ("untrained", "alone", "together", "pooled", "gain")]
        lines.append(f"| {site['site']} | {' | '.join(values)} |")
    return lines


def accuracy(title: str, command: str, cells: dict[str, Cell]) -> list[str]:
    """The section of an accuracy claim."""
    if not cells:
        return []
    seconds = spread([cell["samples"]["seconds"] for cell in cells.values()])
    return [
        f"## {title}",
        "",
        f"`{command}`",
        "",
        origin(cells),
        f"Seconds a run: {seconds}. Mean ± standard deviation over several seeds; AP after the COCO protocol.",
        "",
        *table_of_rows(cells),
        "",
        "mAP50 on each site's own test pictures:",
        "",
        *table_of_sites(cells),
        "",
    ]


def costs(cells: dict[str, Cell]) -> list[str]:
    """The section of the round's cost."""
    if not cells:
        return []
    lines = ["## What a round costs beyond training", "", "`python benchmarks/round_cost.py`", "", origin(cells), ""]
    lines += ["| claim | ratio | target | ours | peer |", "| --- | --- | --- | --- | --- |"]
    for row in next(iter(cells.values()))["samples"]:
        sign = "≥" if row["better"] == "higher" else "≤"
        ours, peer = (" ".join(f"{value:.4g}" for value in row[key]) for key in ("ours", "peer"))
        lines.append(f"| {row['claim']} | {row['ratio']:.3f} | {sign} {row['target']} | {ours} | {peer} |")
    return [*lines, ""]


def main() -> None:
    """Write the page."""
    lines = [
        "# Results",
        "",
        "Built from `benchmarks/results/` by `python benchmarks/make_results.py`; the cells hold the raw samples.",
        "",
        *accuracy("Three synthetic sites", "python benchmarks/three_sites.py", read("three_sites")),
        *accuracy("Streets", "python benchmarks/real_sites.py --only streets", read("streets")),
        *accuracy("Streets at 416 px", "python benchmarks/real_sites.py --only streets_416", read("streets_416")),
        *accuracy("Streets, head only", "python benchmarks/real_sites.py --only streets_head", read("streets_head")),
        *accuracy(
            "Streets with a thermal camera",
            "python benchmarks/real_sites.py --only streets_thermal",
            read("streets_thermal"),
        ),
        *accuracy("Blood cells", "python benchmarks/real_sites.py --only bccd", read("bccd")),
        *costs(read("round_cost")),
        "# Earlier recipes",
        "",
        "Kept for comparison; their commands stand at the commits that are named.",
        "",
        *accuracy("Three synthetic sites, rounds of a whole epoch", "three_sites.py", read("three_sites_whole_epochs")),
        *accuracy("Streets at 416 px, SGD 0.002, whole net", "streets.yaml", read("streets_sgd416")),
        *accuracy("Streets at 416 px, SGD 0.002, head only", "streets.yaml", read("streets_head_sgd416")),
        *accuracy("Blood cells, four rounds, whole net", "bccd.yaml", read("bccd_short")),
        *accuracy("Blood cells, four rounds, head only", "bccd.yaml", read("bccd_head_short")),
    ]
    write_atomically(Path(__file__).parent / "RESULTS.md", "\n".join(lines))


if __name__ == "__main__":
    main()
