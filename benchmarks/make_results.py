"""Build benchmarks/RESULTS.md, and the tables of both READMEs, from the kept cells.

python benchmarks/make_results.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import contribution
import page
import pooled_peer
import real_sites
import server_load
import stragglers
import training_accuracy
import views_accuracy
from cells import RESULTS, Claim, commit
from faults import FAULTS

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
    seeds = ", ".join(sorted({str(cell["seed"]) for cell in cells.values()}, key=int))
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


def of_claims(title: str, command: str, cells: dict[str, Cell], claims: Sequence[Claim] | None = None) -> list[str]:
    """The section of claims: those that the cells hold, or those that were made from them."""
    if not cells:
        return []
    lines = [f"## {title}", "", f"`{command}`", "", origin(cells), ""]
    lines += ["| claim | ratio | target | ours | peer |", "| --- | --- | --- | --- | --- |"]
    for row in claims or [row for cell in cells.values() for row in cell["samples"]]:
        sign = "≥" if row["better"] == "higher" else "≤"
        ours, peer = (" ".join(f"{value:.4g}" for value in row[key]) for key in ("ours", "peer"))
        lines.append(f"| {row['claim']} | {row['ratio']:.3f} | {sign} {row['target']:.3g} | {ours} | {peer} |")
    return [*lines, ""]


def of_faults(cells: dict[str, Cell]) -> list[str]:
    """The section of what befell machines and networks."""
    if not cells:
        return []
    lines = ["## Faults of machines and networks", "", "`python benchmarks/faults.py`", "", origin(cells), ""]
    lines += ["| fault | outcome | rounds lost | seconds to recover |", "| --- | --- | --- | --- |"]
    for name in (fault.__name__ for fault in FAULTS):
        if name in cells:
            row = cells[name]["samples"]
            seconds = f"{row['seconds']:.0f}" if row["seconds"] else "–"
            lines.append(f"| {row['fault']} | {row['outcome']} | {row['rounds_lost']} | {seconds} |")
    return [*lines, ""]


def of_inference(cells: dict[str, Cell]) -> list[str]:
    """The section of how fast pictures are looked at: medians, and each claim's ratio."""
    if not cells:
        return []
    lines = ["## Inference on a plain CPU", "", "`python benchmarks/inference.py`", "", origin(cells), ""]
    for cell in cells.values():
        scores = cell["map50_95"]
        lines += [
            f"YOLOv8n at 640 px, {cell['threads']} threads, medians in milliseconds; raw samples are in the cell.",
            "",
            "| | network alone, 640 × 640 | bytes of a 1280 × 720 JPEG to boxes | mAP50-95, street pictures |",
            "| --- | --- | --- | --- |",
        ]
        for name, times in cell["network"].items():
            whole = cell["end_to_end"].get(name)
            late = f"{1000 * statistics.median(whole):.1f}" if whole else ""
            score = f"{scores[name]:.4f}" if name in scores else ""
            lines.append(f"| {name} | {1000 * statistics.median(times):.1f} | {late} | {score} |")
        lines += ["", "| claim | ratio | target |", "| --- | --- | --- |"]
        for row in cell["samples"]:
            sign = "≥" if row["better"] == "higher" else "≤"
            lines.append(f"| {row['claim']} | {row['ratio']:.3f} | {sign} {row['target']:.3g} |")
    return [*lines, ""]


def of_streams(cells: dict[str, Cell]) -> list[str]:
    """The section of how many cameras are kept up with, and of what more than that do."""
    lines = of_claims("Several cameras on a plain CPU", "python benchmarks/streams.py", cells)
    for cell in cells.values():
        lines += [
            f"YOLOv8n at 640 px in {cell['precision']}, {cell['threads']} threads; cameras of 1920 × 1080 pixels at 5"
            " frames/s, of each the newest frame; milliseconds from a frame's arrival to its boxes.",
            "",
            "| | cameras | mean | p95 | most | looked at/s | left out | memory grown |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in cell["rows"]:
            times = " | ".join(f"{row[key]:.1f}" for key in ("mean_ms", "p95_ms", "most_ms", "looked_at_per_second"))
            lines.append(
                f"| {row['way']} | {row['streams']} | {times} | {row['left_out']:.1%} | {row['grown_mb']:.1f} MB |"
            )
        lines.append("")
    return lines


def of_server(cells: dict[str, Cell]) -> list[str]:
    """The section of what the server gives over HTTP: answers a second and how long they took, medians of turns."""
    claims = [row for cell in cells.values() for row in server_load.claims_of(cell["samples"])]
    lines = of_claims("The server under load", "python benchmarks/server_load.py", cells, claims if cells else None)
    for cell in cells.values():
        speed = cell["samples"].get("throughput")
        if speed is None:
            continue
        lines += ["| clients | answers/s | p50 ms | p95 ms | p99 ms |", "| --- | --- | --- | --- | --- |"]
        for clients in map(str, server_load.CLIENTS):
            middle = {
                key: statistics.median(row[key] for row in speed[clients]) for key in ("rate", "p50", "p95", "p99")
            }
            lines.append(f"| {clients} | {' | '.join(f'{value:.1f}' for value in middle.values())} |")
        swap, alone = cell["samples"]["swap"], statistics.median(speed["engine"])
        lines += [
            "",
            f"The engine alone ({cell['samples']['engine']}): {alone:.1f} pictures/s. Clients and server share"
            f" the cores. A change of the model under the load of 8 clients took {swap['seconds']:.1f} s, and of"
            f" {swap['answered'] + swap['lost']} requests {swap['lost']} were lost.",
            "",
        ]
    return lines


def of_page(cells: dict[str, Cell]) -> list[str]:
    """The section of how light and how smooth the page is."""
    claims = [row for cell in cells.values() for row in page.claims_of(cell["samples"])]
    return of_claims("The page in a browser", "python benchmarks/page.py", cells, claims if cells else None)


def of_overhead(cells: dict[str, Cell]) -> list[str]:
    """The section of what a round costs across processes, with its parts."""
    lines = of_claims("A round across processes", "python benchmarks/round_overhead.py", cells)
    for cell in cells.values():
        parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in cell["parts"].items())
        lines += [f"Median seconds of a round: {parts}. A trainer is ready after {cell['ready']:.1f} s.", ""]
    return lines


def fill(readme: Path, name: str, cells: dict[str, Cell]) -> None:
    """Put the tables of some cells between a README's two marks of that name."""
    if not cells:
        return
    text = readme.read_text(encoding="utf-8")
    start, end = f"<!-- {name}-table:start -->", f"<!-- {name}-table:end -->"
    seeds = ", ".join(str(cell["seed"]) for cell in cells.values())
    mixed, own = _CHINESE if ".zh-" in readme.name else _ENGLISH
    lines = [
        mixed.format(count=len(cells), seeds=seeds),
        "",
        *table_of_rows(cells),
        "",
        own,
        "",
        *table_of_sites(cells),
    ]
    before, after = text[: text.index(start)], text[text.index(end) :]
    write_atomically(readme, f"{before}{start}\n" + "\n".join(lines) + f"\n{after}")


def of_contribution(name: str, cells: dict[str, Cell]) -> list[str]:
    """The section of a site with wrong labels: the claims, and what each update counted by from round to round."""
    if not cells:
        return []
    lines = of_claims(
        f"A site with wrong labels, {name}",
        f"python benchmarks/contribution.py --only {name}",
        cells,
        contribution.claims_of(name, list(cells.values())),
    )
    rounds = range(contribution.ROUNDS)
    lines += [
        "What an update counted by in each round, means over the seeds, weighted by contribution:",
        "",
        f"| site | {' | '.join(str(number + 1) for number in rounds)} |",
        f"| --- | {' | '.join('---' for _ in rounds)} |",
    ]
    for how in contribution.SPOILS:
        runs = [cell["samples"][how]["contribution"]["weights"] for cell in cells.values()]
        wrong = [statistics.mean(run[number][contribution.WRONG] for run in runs) for number in rounds]
        lines.append(f"| with wrong {how} | {' | '.join(f'{value:.2f}' for value in wrong)} |")
        good = [
            statistics.mean(w for run in runs for site, w in run[number].items() if site != contribution.WRONG)
            for number in rounds
        ]
        lines.append(f"| the others then | {' | '.join(f'{value:.2f}' for value in good)} |")
    return [*lines, ""]


THERMAL = {
    "streets_thermal_bn": "scale and shift of BatchNorm at each site",
    "streets_thermal_bn_trained": "all of BatchNorm at each site, statistics included",
    "streets_thermal_nova": "each update counted per step",
}

_ENGLISH = (
    "Mean ± standard deviation of {count} seeds ({seeds}), all sites' test pictures as one set:",
    "The same models on each site's own test pictures (mAP50):",
)
_CHINESE = (
    "{count} 个随机种子（{seeds}）的均值 ± 标准差，所有站点的测试图片合为一集：",
    "同样的模型在各站点自己的测试图片上（mAP50）：",
)


def main() -> None:
    """Write the page and fill the READMEs."""
    for readme in ("README.md", "README.zh-CN.md"):
        for name, cells in (("demo", "three_sites"), ("streets", "streets"), ("bccd", "bccd")):
            fill(RESULTS.parents[1] / readme, name, read(cells))
    compared, views, peer = read("training_accuracy"), read("views_accuracy"), read("pooled_peer")
    own, slow = read("streets_own"), read("stragglers")
    thermal = {name: read(name) for name in THERMAL}
    wrong = {name: read(f"contribution_{name}") for name in ("bccd", "pcb")}
    lines = [
        "# Results",
        "",
        "Built from `benchmarks/results/` by `python benchmarks/make_results.py`; the cells hold the raw samples.",
        "",
        *accuracy("Three synthetic sites", "python benchmarks/three_sites.py", read("three_sites")),
        *accuracy("Streets", "python benchmarks/real_sites.py --only streets", read("streets")),
        *of_claims(
            "Streets, each site's own model made from the common one",
            "python benchmarks/real_sites.py --only streets_own",
            own,
            real_sites.claims_of("streets_own", list(own.values())) if own else None,
        ),
        *accuracy("Streets at 416 px", "python benchmarks/real_sites.py --only streets_416", read("streets_416")),
        *accuracy("Streets, head only", "python benchmarks/real_sites.py --only streets_head", read("streets_head")),
        *accuracy(
            "Streets with a thermal camera",
            "python benchmarks/real_sites.py --only streets_thermal",
            read("streets_thermal"),
        ),
        *(
            line
            for name, what in THERMAL.items()
            for line in of_claims(
                f"Streets with a thermal camera, {what}",
                f"python benchmarks/real_sites.py --only {name}",
                thermal[name],
                real_sites.claims_of(name, list(thermal[name].values())) if thermal[name] else None,
            )
        ),
        *accuracy("Blood cells", "python benchmarks/real_sites.py --only bccd", read("bccd")),
        *of_claims(
            "Blood cells, against Ultralytics' trainer on the pooled pictures",
            "python benchmarks/pooled_peer.py",
            peer,
            pooled_peer.claims_of(list(peer.values()), quick=False) if peer else None,
        ),
        *of_claims(
            "What a round costs beyond training",
            "python benchmarks/round_cost.py",
            read("round_cost"),
        ),
        *of_overhead(read("round_overhead")),
        *of_claims(
            "A slow site, with a deadline and asynchronously",
            "python benchmarks/stragglers.py",
            slow,
            stragglers.claims_of(list(slow.values())) if slow else None,
        ),
        *(line for name, cells in wrong.items() for line in of_contribution(name, cells)),
        *of_claims(
            "Simulation, beside Flower's",
            "python benchmarks/simulation.py --peer-python PYTHON",
            read("simulation"),
        ),
        *of_claims("A hundred nodes", "python benchmarks/scale.py", read("scale")),
        *of_faults(read("faults")),
        *of_claims(
            "Speed and memory of local training, against Ultralytics' trainer",
            "python benchmarks/training_speed.py",
            read("training_speed"),
        ),
        *of_claims(
            "Accuracy of local training, against Ultralytics' trainer",
            "python benchmarks/training_accuracy.py",
            compared,
            training_accuracy.claims_of(list(compared.values())) if compared else None,
        ),
        *([f"{training_accuracy.lower_bound(list(compared.values()))}.", ""] if compared else []),
        *of_claims(
            "What a few cached views do to accuracy",
            "python benchmarks/views_accuracy.py",
            views,
            views_accuracy.claims_of(list(views.values())) if views else None,
        ),
        *of_inference(read("inference")),
        *of_streams(read("streams")),
        *of_server(read("server_load")),
        *of_page(read("page")),
        "# Earlier recipes",
        "",
        "Kept for comparison; their commands stand at the commits that are named.",
        "",
        *accuracy(
            "Three synthetic sites, 90 rounds, every site counting the same", "three_sites.py", read("three_sites_90")
        ),
        *accuracy("Three synthetic sites, rounds of a whole epoch", "three_sites.py", read("three_sites_whole_epochs")),
        *accuracy("Streets, rounds of a whole epoch", "streets.yaml", read("streets_whole_epochs")),
        *accuracy("Streets at 416 px, SGD 0.002, whole net", "streets.yaml", read("streets_sgd416")),
        *accuracy("Streets at 416 px, SGD 0.002, head only", "streets.yaml", read("streets_head_sgd416")),
        *accuracy("Blood cells, four rounds, whole net", "bccd.yaml", read("bccd_short")),
        *accuracy("Blood cells, four rounds, head only", "bccd.yaml", read("bccd_head_short")),
    ]
    write_atomically(Path(__file__).parent / "RESULTS.md", "\n".join(lines))


if __name__ == "__main__":
    main()
