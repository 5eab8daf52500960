from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from manyeyes.errors import DataError, RunError
from manyeyes.report.html import write_report

from .synthetic import SITES, SyntheticRun, metrics, write_examples

_VOID = {"meta", "br", "img", "link", "hr", "input"}


class Checker(HTMLParser):
    """Every element is closed in order; collects what could load something, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href", "srcset")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def check(path: Path) -> Checker:
    html = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert all(load.startswith(("data:image/jpeg;base64,", "#")) for load in checker.loads)
    assert "script" not in checker.tags
    assert not re.search(r"url\((?!#|'#|\"#)", html)
    assert "@import" not in html
    return checker


def test_one_page_that_needs_nothing_else(run_folder: Path) -> None:
    page = check(write_report(run_folder))
    assert (
        "Together the three sites reach 70 of 100 points, 13.0 more than the best of them alone (site B)." in page.text
    )
    assert "Site C gains most: 16.0 points on its own pictures." in page.text
    assert "B is worse off by 0.8 points: it should keep its own model." in page.text
    assert "one run with one seed (0)" in page.text
    assert sum(load.startswith("data:") for load in page.loads) == 8
    assert "3 of 5 found, 1 false alarm" in page.text
    assert "5 of 5 found" in page.text
    assert "svg" in page.tags


def test_the_folders_of_the_sites_are_not_told(run_folder: Path) -> None:
    page = check(write_report(run_folder))
    assert "federation:" in page.text
    assert "/secret" not in page.text


def test_names_are_escaped(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, names=("<b>per&son</b>", "$car$ _x"), sites=("A<script>", "_B"))
    run.start()
    for row, nodes in (("alone-A<script>", ["A<script>"]), ("together", list(run.sites))):
        run.row(row, nodes)
        run.finish_row(row, nodes)
    run.emit("update_refused", row="together", round=5, node="A<script>", reason="<i>NaN</i>")
    run.finish()
    page = check(write_report(tmp_path))
    assert "<b>per&son</b> AP50" in page.text
    assert "Site A<script>" in page.text
    assert "<i>NaN</i>" in page.text


def test_an_interrupted_run_says_what_is_missing(new_run: SyntheticRun) -> None:
    new_run.row("alone-A", ["A"])
    new_run.finish_row("alone-A", ["A"])
    new_run.row("together", SITES, last=2)
    with new_run.log.path.open("a") as file:
        file.write('{"time": 3, "event": "round_fin')
    page = check(write_report(new_run.folder))
    assert "This run has not come to its end" in page.text
    assert "together (2 of 5 rounds)" in page.text
    assert "Not begun: untrained, B alone, C alone, pooled." in page.text
    assert "This run kept no example pictures." in page.text
    assert "Not tested yet: together." in page.text


def test_a_run_that_only_started(new_run: SyntheticRun) -> None:
    page = check(write_report(new_run.folder))
    assert "has not been tested yet" in page.text
    assert "config.yaml is missing" in page.text


def test_one_row_and_one_site(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path, sites=("A",))
    run.start()
    run.row("together", ["A"])
    run.finish_row("together", ["A"])
    run.finish()
    page = check(write_report(tmp_path))
    assert "Together the site reaches 70 of 100 points." in page.text
    assert "A has no model of its own to compare with." in page.text


def test_examples_are_read_from_their_folder_only(new_run: SyntheticRun, tmp_path: Path) -> None:
    folder = new_run.folder / "examples"
    write_examples(folder)
    shutil.move(folder / "b_0000.jpg", tmp_path / "outside.jpg")
    index = json.loads((folder / "index.json").read_text())
    next(e for e in index if e["site"] == "B")["image"] = "../../outside.jpg"
    (folder / "index.json").write_text(json.dumps(index))
    page = check(write_report(new_run.folder))
    assert sum(load.startswith("data:") for load in page.loads) == 6


def test_what_nobody_looked_for_is_no_false_alarm(new_run: SyntheticRun) -> None:
    sites = [{"node_id": site, "annotates": ["person"]} for site in SITES]
    new_run.emit("run_started", name="x", names=["person", "car"], sites=sites)
    write_examples(new_run.folder / "examples")
    page = check(write_report(new_run.folder))
    assert "found" in page.text
    assert "false alarm" not in page.text


def test_training_that_did_not_help_is_said(new_run: SyntheticRun) -> None:
    new_run.test("untrained", 0)
    scores = metrics(0.301)
    new_run.emit("evaluated", row="together", round=5, where="mixed", split="test", metrics=scores)
    new_run.emit("warning", row="together", reason="a checkpoint was damaged")
    page = check(write_report(new_run.folder))
    assert "Training has not helped: the model it began with scores 30 without it." in page.text
    assert "The run gave 1 warning; the last one: a checkpoint was damaged." in page.text


def test_late_updates_are_named(new_run: SyntheticRun) -> None:
    event = {"row": "together", "node": "B", "bytes": 100, "num_examples": 3, "seconds": 40.0, "metrics": {}}
    new_run.emit("update_late", row="together", round=1, node="B", reason="no answer within 30 s")
    new_run.emit("update_received", **event, round=3, staleness=2)
    page = check(write_report(new_run.folder))
    assert (
        "1 update of B came in a later round than that of the model they are made from, and counted less" in page.text
    )


def test_a_withdrawal_is_said_in_both_runs(new_run: SyntheticRun) -> None:
    new_run.emit("withdrawn", node="B", rounds=[1, 2], rebuilt_as=None)
    new_run.emit("withdrawn", node="B", rounds=[1, 2], rebuilt_as="second")
    new_run.emit("rebuilt", without="C", of="zeroth", round=0)
    page = check(write_report(new_run.folder))
    assert page.text.count("B was withdrawn; its updates of 2 rounds stay in it.") == 1
    assert "The run second is held without it." in page.text
    assert "This is the run zeroth held again without C, which was withdrawn." in page.text


def test_a_broken_index_is_named(new_run: SyntheticRun) -> None:
    (new_run.folder / "examples").mkdir()
    (new_run.folder / "examples" / "index.json").write_text("[{}]")
    with pytest.raises(DataError, match=r"index\.json: must be a list"):
        write_report(new_run.folder)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        write_report(tmp_path)
