"""Everything that is made of a run log: summary, CSV, page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from manyeyes.report.html import write_report
from manyeyes.report.nodes import NodesSummary, render_nodes, summarise_nodes
from manyeyes.report.runlog import RUNLOG, Event, is_coordinators, read_runlog
from manyeyes.report.tables import Summary, render_main_table, summarise, write_metrics_csv
from manyeyes.weights import write_atomically

__all__ = ["render_results", "rewrite_results", "write_nodes_results", "write_results"]


def write_results(folder: Path) -> Summary:
    """Write summary.json, metrics.csv and report.html of a run's folder from its run log; returns the summary.

    Raises:
        RunError: the folder holds no run.
    """
    events = list(read_runlog(folder / RUNLOG))
    summary = summarise(events)
    _write(folder, events, summary.to_dict())
    return summary


def write_nodes_results(folder: Path) -> NodesSummary:
    """The same for a coordinator's run, as far as it came; it may be going on.

    Raises:
        RunError: the folder holds no run.
    """
    events = list(read_runlog(folder / RUNLOG))
    summary = summarise_nodes(events)
    _write(folder, events, summary.to_dict())
    return summary


def rewrite_results(folder: Path) -> Summary | NodesSummary:
    """The same for a run of either kind.

    Raises:
        RunError: the folder holds no run.
    """
    return write_nodes_results(folder) if is_coordinators(read_runlog(folder / RUNLOG)) else write_results(folder)


def render_results(summary: Summary | NodesSummary, console: Console) -> None:
    """Print what a run comes to."""
    if isinstance(summary, NodesSummary):
        render_nodes(summary, console)
    else:
        render_main_table(summary, console)


def _write(folder: Path, events: list[Event], summary: dict[str, Any]) -> None:
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False))
    write_metrics_csv(events, folder / "metrics.csv")
    write_report(folder)
