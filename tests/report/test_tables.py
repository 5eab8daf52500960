from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from manyeyes.errors import ResourceError
from manyeyes.report.runlog import read_runlog
from manyeyes.report.tables import SiteSummary, render_main_table, summarise, write_metrics_csv

from .synthetic import SITES, UPDATE_BYTES, SyntheticRun


def shown(summary: Any, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    render_main_table(summary, console)
    return console.export_text()


def test_rows_stand_in_order(events: list[dict[str, Any]]) -> None:
    labels = [row.model for row in summarise(events).rows]
    assert labels == ["untrained", "A alone", "B alone", "C alone", "together", "pooled"]


def test_the_json_form(events: list[dict[str, Any]]) -> None:
    values = json.loads(json.dumps(summarise(events).to_dict(), allow_nan=False))
    together = values["rows"][4]
    assert together["model"] == "together"
    assert together["ap50"] == pytest.approx({"person": 0.731, "car": 0.671})
    assert together["map50"] == pytest.approx(0.701)
    assert together["map50_95"] == pytest.approx(0.701 * 0.57)
    assert together["vs_best_alone"] == pytest.approx(0.701 - 0.571)
    assert together["vs_best_alone_relative"] == pytest.approx(0.13 / 0.571)
    assert values["together_vs_pooled"] == pytest.approx(0.701 - 0.718)
    assert values["bytes_up"] == UPDATE_BYTES * 3 * 5
    assert values["bytes_down"] == UPDATE_BYTES * 3 * 5 + 900 * 5
    assert (values["name"], values["seed"], values["names"]) == ("three-sites", 0, ["person", "car"])
    assert values["missing"] == []
    assert values["finished"] is True


def test_seconds_are_those_of_the_clock(events: list[dict[str, Any]]) -> None:
    summary = summarise(events)
    together = summary.together
    assert together
    # Five rounds of three fits of 30 steps (0.4 s), 4 + 1 s of tests and merging; 8 s for the final test.
    assert together.seconds == pytest.approx(5 * (3 * 12 + 5) + 8)
    assert summary.seconds == pytest.approx(events[-1]["time"] - events[0]["time"])


def test_each_site_has_its_verdict(events: list[dict[str, Any]]) -> None:
    assert [site.verdict for site in summarise(events).sites] == [
        "A is better off by 4.1 points.",
        "B is worse off by 0.8 points: it should keep its own model.",
        "C is better off by 16.0 points.",
    ]


def test_each_class_is_told_at_each_site(events: list[dict[str, Any]]) -> None:
    summary = summarise(events)
    tested = {e["row"]: e["metrics"]["ap50"] for e in events if e["event"] == "evaluated" and e["where"] == "A"}
    site = summary.sites[0]
    assert site.class_gains == {name: tested["together"][name] - tested["alone-A"][name] for name in ("person", "car")}
    assert site.by_class == "By class: person +4.1, car +4.1 points."
    assert site.by_class in shown(summary)
    one = SiteSummary("D", 10, None, 0.5, 0.6, None, ap50={"alone": {"car": 0.5}, "together": {"car": 0.6}})
    assert one.by_class is None


@pytest.mark.parametrize(
    ("alone", "together", "verdict"),
    [
        (0.5, 0.504, "D is neither better nor worse off: the difference is 0.4 points."),
        (None, 0.5, "D has no model of its own to compare with."),
        (0.5, None, "D: the model trained together was not tested on its pictures."),
    ],
)
def test_verdicts_that_are_none(alone: float | None, together: float | None, verdict: str) -> None:
    site = SiteSummary("D", 10, None, alone, together, None)
    assert site.verdict == verdict
    assert site.better_off is None


def test_what_a_site_has_from_taking_part_is_its_finetuned_model(events: list[dict[str, Any]]) -> None:
    site = SiteSummary("D", 10, None, 0.5, 0.45, None, finetuned=0.6, chosen="finetuned")
    assert site.verdict == ("D is better off by 10.0 points, with the common model finetuned on its own pictures.")
    metrics = {"ap50": {"car": 0.9}, "ap": {"car": 0.7}, "map50": 0.9, "map50_95": 0.7, "num_images": 4}
    last = next(n for n, event in enumerate(events) if event["event"] == "run_finished")
    own = {"time": events[last]["time"], "event": "evaluated", "row": "finetuned", "round": 3, "where": "A"}
    summary = summarise([*events[:last], {**own, "split": "test", "metrics": metrics}, *events[last:]])
    assert [row.row for row in summary.rows] == [row.row for row in summarise(events).rows]
    assert [site.finetuned for site in summary.sites] == [0.9, None, None]
    assert "finetuned" in shown(summary)
    assert [site.chosen for site in summary.sites] == ["finetuned", "together", "together"]

    # On A's validation pictures its own model is worse than the common one: whatever the test says, it is not chosen.
    told = {"time": events[last]["time"], "event": "finetuned", "row": "together", "round": 6, "node": "A"}
    worse = {**told, "metrics": {**metrics, "map50": 0.01}}
    chosen = summarise([*events[:last], {**own, "split": "test", "metrics": metrics}, worse, *events[last:]]).sites[0]
    assert (chosen.chosen, chosen.offered) == ("together", chosen.together)
    assert "finetuned" not in shown(summarise(events))


def test_the_printed_table(events: list[dict[str, Any]]) -> None:
    text = shown(summarise(events))
    header = next(line for line in text.splitlines() if "mAP50-95" in line)
    assert [c.strip() for c in header.split("  ") if c.strip()] == [
        "model", "person AP50", "car AP50", "mAP50", "mAP50-95", "vs best alone",
    ]  # fmt: skip
    assert "+0.130 (+23%)" in text
    assert "−0.008" in text
    assert "best alone" in text
    assert "B is worse off by 0.8 points: it should keep its own model." in text
    assert "together: 21.0 MB up and 21.0 MB down in 5 rounds" in text


def test_many_classes_fit_a_terminal(tmp_path: Path) -> None:
    names = ("person", "car", "bicycle", "traffic light", "construction worker [bold]")
    run = SyntheticRun(tmp_path, names=names)
    run.start()
    run.row("together", SITES)
    run.finish_row("together", SITES)
    run.finish()
    text = shown(summarise(read_runlog(run.log.path)))
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "construction worker [bold]" in text
    assert "AP50 of each class" in text


def test_an_interrupted_run(new_run: SyntheticRun) -> None:
    new_run.row("alone-A", ["A"])
    new_run.finish_row("alone-A", ["A"])
    new_run.row("together", SITES, last=2)
    new_run.emit("interrupted", row="together", signal="SIGINT", resume="manyeyes run --resume")
    summary = summarise(read_runlog(new_run.log.path))
    values = summary.to_dict()
    assert values["missing"] == ["together"]
    assert values["finished"] is False
    assert values["bytes_up"] == UPDATE_BYTES * 3 * 2
    assert "Not tested, because the run did not come that far: together." in shown(summary)


def test_a_pause_before_resuming_is_not_counted(new_run: SyntheticRun) -> None:
    new_run.row("together", SITES, last=2)
    new_run.clock.passes(100_000)
    new_run.start()
    new_run.row("together", SITES, first=3, resumed=True)
    new_run.finish_row("together", SITES)
    summary = summarise(read_runlog(new_run.log.path))
    assert summary.seconds == pytest.approx(5 * 41 + 8)
    assert summary.together
    assert summary.together.bytes_up == UPDATE_BYTES * 3 * 5


def test_an_empty_log() -> None:
    summary = summarise([])
    assert summary.to_dict()["rows"] == []
    assert "0 s in all." in shown(summary)


def test_metrics_as_csv(events: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_metrics_csv(events, path)
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["row", "round", "where", "split", "class", "metric", "value"]
    one = {"row": "together", "round": "5", "where": "mixed", "split": "test", "class": "car", "metric": "ap50"}
    assert [line["value"] for line in lines if one.items() <= line.items()] == ["0.671"]
    fits = [line for line in lines if line["row"] == "together" and line["metric"] == "loss_box"]
    assert len(fits) == 3 * 5
    with pytest.raises(ResourceError, match="cannot be written"):
        write_metrics_csv(events, path / "metrics.csv")
