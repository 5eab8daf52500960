from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from manyeyes.errors import ResourceError
from manyeyes.report.plots import SERIES_DARK, SERIES_LIGHT, draw_plots, save_plots
from manyeyes.report.runlog import read_runlog

from .synthetic import SITES, SyntheticRun


def test_every_figure_is_svg_in_the_colours_of_the_page(events: list[dict[str, Any]]) -> None:
    plots = draw_plots(events)
    assert [plot.key for plot in plots] == ["rounds", "sites", "classes", "objects", "losses", "bytes", "phases"]
    for plot in plots:
        assert ElementTree.fromstring(plot.svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(--ink)" in plot.svg
        assert not any(colour in plot.svg.lower() for colour in SERIES_LIGHT)
    assert len(SERIES_LIGHT) == len(SERIES_DARK)


def test_the_same_events_give_the_same_figures(events: list[dict[str, Any]]) -> None:
    assert draw_plots(events) == draw_plots(events)


def test_a_run_without_mixed_validation_is_drawn_by_the_mean_of_its_sites(new_run: SyntheticRun) -> None:
    new_run.row("together", SITES, last=2)
    events = [e for e in read_runlog(new_run.log.path) if e.get("where") != "mixed"]
    assert "rounds" in [plot.key for plot in draw_plots(events)]


def test_many_sites_and_classes(tmp_path: Path) -> None:
    sites = [f"plant-{n}" for n in range(10)]
    run = SyntheticRun(tmp_path, names=[f"class {n}" for n in range(12)], sites=sites)
    run.start()
    run.row("together", sites, last=1)
    run.test("together")
    run.log.close()
    assert len(draw_plots(read_runlog(run.log.path))) == 7


def test_png(events: list[dict[str, Any]], tmp_path: Path) -> None:
    paths = save_plots([e for e in events if e["event"] in ("run_started", "evaluated")], tmp_path / "plots")
    assert [path.name for path in paths] == ["rounds.png", "sites.png", "classes.png", "objects.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_nothing_to_draw() -> None:
    assert draw_plots([]) == []


def test_without_matplotlib_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ResourceError, match=r"matplotlib is not installed\. pip install manyeyes\[train\]"):
        draw_plots([])


def test_the_room_imports_without_torch_and_matplotlib() -> None:
    modules = "html, live, pictures, plots, runlog, tables, tensorboard"
    code = f"import sys\nfrom manyeyes.report import {modules}\n"
    code += "assert not {'torch', 'matplotlib', 'tensorboard', 'ultralytics', 'flwr'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
