from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from manyeyes.learners.learner import Metrics
from manyeyes.report.nodes import NodesSummary, summarise_nodes
from manyeyes.report.plots import draw_plots
from manyeyes.report.results import render_results, rewrite_results
from manyeyes.report.runlog import is_coordinators, read_runlog
from manyeyes.report.tensorboard import TensorBoardWriter

from .nodes_run import REFUSED, ROUNDS, NodesRun, write_nodes_run
from .synthetic import UPDATE_BYTES
from .test_html import check
from .test_tensorboard import curves


@pytest.fixture
def whole(tmp_path: Path) -> NodesRun:
    return write_nodes_run(tmp_path / "harbour")


def summary_of(run: NodesRun) -> NodesSummary:
    return summarise_nodes(read_runlog(run.log.path))


def test_each_site_is_measured_against_the_weights_the_run_began_with(whole: NodesRun) -> None:
    summary = summary_of(whole)
    a, b, c = summary.nodes
    assert (a.gain, a.better_off) == (pytest.approx(0.20), True)
    assert a.verdict == "A gains 20.0 points against the weights the run began with."
    assert (b.better_off, b.verdict) == (False, "B loses 3.0 points against the weights the run began with.")
    assert (c.gain, c.better_off) == (None, None)
    assert c.verdict == "C did not test the weights the run began with, so a gain is not known."
    assert summary.map50 == pytest.approx((0.50 + 0.37 + 0.20) / 3)
    assert summary.gain == pytest.approx((0.20 - 0.03) / 2), "over those for whom it is known"
    assert (summary.rounds_done, summary.rounds, summary.finished, summary.kept) == (ROUNDS, ROUNDS, True, ROUNDS)


def test_who_took_part_in_what_and_what_it_cost(whole: NodesRun) -> None:
    a, b, c = summary_of(whole).nodes
    assert (a.asked, a.merged) == ((1, 2, 3, 4), (1, 2, 3, 4))
    assert (b.asked, b.merged, b.refused) == ((1, 2, 3, 4), (1, 3, 4), {2: REFUSED})
    assert (c.asked, c.merged, c.last_round) == ((4,), (4,), 4)
    assert (a.bytes_up, a.bytes_down, c.bytes_up) == (ROUNDS * UPDATE_BYTES, 2 * ROUNDS * UPDATE_BYTES, None)
    assert (a.pictures, a.val_pictures) == (240, 40)


def test_a_run_that_goes_on_tells_what_each_node_is_at(tmp_path: Path) -> None:
    run = NodesRun(tmp_path)
    run.begin()
    summary = summary_of(run)
    assert (summary.round, summary.rounds_done, summary.seconds_left, summary.finished) == (None, 0, None, False)
    assert [node.now for node in summary.nodes] == [None, None], "the start is not an outcome"
    assert "has told no test of the common model" in summary.nodes[0].verdict
    run.round(1)
    run.start_round(2)
    run.update("A", 2)
    summary = summary_of(run)
    a, b = summary.nodes
    assert (summary.round, summary.doing(a), summary.doing(b)) == (2, "sent", "trains")
    assert summary.seconds_left == pytest.approx(3 * 16.5)
    run.emit("update_refused", round=2, node="B", reason="NaN")
    a, b = (summary := summary_of(run)).nodes
    assert (summary.doing(a), summary.doing(b)) == ("tests", "refused")


def test_a_site_without_objects_to_find_has_no_score(tmp_path: Path) -> None:
    run = NodesRun(tmp_path)
    run.begin()
    run.round(1)
    run.emit("evaluated", round=1, where="D", split="val", metrics=Metrics({}, {}, 60).to_dict())
    node = summary_of(run).node("D")
    assert node
    assert (node.now, node.val_pictures) == (None, 60)


def test_the_round_that_was_kept_counts_not_the_last(tmp_path: Path) -> None:
    run = NodesRun(tmp_path)
    run.begin()
    for number in (1, 2, 3, 4):
        run.round(number)
    run.finish(kept=3, score=0.41)
    summary = summary_of(run)
    assert summary.best
    assert [node.now.map50 if node.now else None for node in summary.nodes] == pytest.approx([0.47, 0.36, 0.12])


def test_what_a_resumed_run_did_twice_counts_once(tmp_path: Path) -> None:
    run = NodesRun(tmp_path)
    run.begin()
    run.round(1)
    run.round(2)
    run.start_round(3)
    run.begin(resumed_from=2)
    run.round(3)
    a = summary_of(run).nodes[0]
    assert (a.asked, a.merged, a.start is not None) == ((1, 2, 3), (1, 2, 3), True)


def test_the_report_of_a_coordinator_reads_well_without_pictures(whole: NodesRun, tmp_path: Path) -> None:
    summary = rewrite_results(whole.folder)
    assert isinstance(summary, NodesSummary)
    page = check(whole.folder / "report.html")
    assert "Together three sites reach 36 of 100 points." in page.text, "no gain in one breath with other sites' mean"
    assert "The two that tested the weights the run began with: +8.5 points on average." in page.text
    assert "Site A gains most: 20.0 points." in page.text
    assert "Site B loses 3.0 points." in page.text
    assert "Every site gains" not in page.text
    assert "Not merged: 1 answer." in page.text
    assert REFUSED in page.text
    assert "Came after the start, or did not test it: C." in page.text
    assert "port: 5000" in page.text
    assert "/secret" not in page.text
    assert "alone" not in page.text.split("How it went")[1]
    told = json.loads((whole.folder / "summary.json").read_text())
    assert (told["held_by"], told["finished"], told["kept"]) == ("coordinator", True, ROUNDS)


def test_a_page_can_be_made_at_any_time(tmp_path: Path) -> None:
    run = NodesRun(tmp_path)
    rewrite_results(tmp_path)
    assert "No site has tested the common model yet." in check(tmp_path / "report.html").text
    run.begin()
    run.start_round(1)
    rewrite_results(tmp_path)
    page = check(tmp_path / "report.html")
    assert "0 of 4 rounds are finished" in page.text


def test_names_of_nodes_and_reasons_are_escaped(tmp_path: Path) -> None:
    run = NodesRun(tmp_path, names=["<b>person</b>", "$car$", "c", "d", "e"])
    run.begin()
    run.round(1)
    run.emit("update_refused", round=1, node="A<script>", reason="<i>NaN</i>")
    run.emit("warning", round=1, node="A", reason="<u>late</u>")
    rewrite_results(tmp_path)
    page = check(tmp_path / "report.html")
    for text in ("<b>person</b>", "A<script>", "<i>NaN</i>", "<u>late</u>"):
        assert text in page.text


def test_losses_and_scores_go_to_curves_csv_and_tensorboard(tmp_path: Path) -> None:
    run = NodesRun(tmp_path / "run")
    with TensorBoardWriter(tmp_path / "tensorboard") as writer:
        run.log.listeners.append(writer)
        run.begin()
        run.round(1)
        run.round(2)
    found = curves(tmp_path / "tensorboard" / "together")
    assert found["loss/A/cls"] == [(1, pytest.approx(0.9)), (2, pytest.approx(0.8))]
    assert [step for step, _ in found["mAP50/A"]] == [0, 1, 2]
    rewrite_results(run.folder)
    rows = list(csv.DictReader((run.folder / "metrics.csv").open()))
    losses = [(row["where"], row["round"], row["value"]) for row in rows if row["metric"] == "loss_cls"]
    assert losses == [("A", "1", "0.9"), ("B", "1", "0.9"), ("A", "2", "0.8")]
    assert [row["value"] for row in rows if row["metric"] == "map50" and row["round"] == "0"] == ["0.3", "0.4"]
    plots = draw_plots(read_runlog(run.log.path))
    assert [plot.key for plot in plots] == ["rounds", "sites", "taking-part", "losses", "bytes", "phases"]
    assert ">not merged<" in next(plot.svg for plot in plots if plot.key == "taking-part")


def test_the_table_on_the_terminal(whole: NodesRun) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    render_results(rewrite_results(whole.folder), console)
    text = console.export_text()
    assert "A gains 20.0 points" in text
    assert "3 of 4" in text
    assert "4 of 4 rounds, 5.6 MB up and 11.2 MB down" in text
    assert f"Not merged: 1; the last from B in round 2: {REFUSED}" in text


def test_a_run_on_one_machine_is_told_from_a_coordinators(run_folder: Path, whole: NodesRun) -> None:
    assert not is_coordinators(read_runlog(run_folder / "runlog.jsonl"))
    assert is_coordinators(read_runlog(whole.log.path))
