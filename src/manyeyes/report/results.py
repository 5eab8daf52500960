"""Everything that is made of a run log: summary, CSV, page."""

from __future__ import annotations

import json
from pathlib import Path

from manyeyes.report.html import write_report
from manyeyes.report.runlog import read_runlog
from manyeyes.report.tables import Summary, summarise, write_metrics_csv
from manyeyes.weights import write_atomically

__all__ = ["write_results"]


def write_results(folder: Path) -> Summary:
    """Write summary.json, metrics.csv and report.html of a run's folder from its run log; returns the summary.

    Raises:
        RunError: the folder holds no run.
    """
    events = list(read_runlog(folder / "runlog.jsonl"))
    summary = summarise(events)
    write_atomically(folder / "summary.json", json.dumps(summary.to_dict(), indent=2, ensure_ascii=False))
    write_metrics_csv(events, folder / "metrics.csv")
    write_report(folder)
    return summary
