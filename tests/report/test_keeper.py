from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from manyeyes.report.keeper import ReportKeeper

FINISHED = {"event": "round_finished"}


def test_the_first_round_is_reported_at_once_and_the_end_always(tmp_path: Path) -> None:
    written, came = [], threading.Event()

    def write(folder: Path) -> None:
        written.append(folder)
        came.set()

    with ReportKeeper(tmp_path, write) as keeper:
        keeper({"event": "round_started"})
        assert not came.wait(0.2)
        keeper(FINISHED)
        assert came.wait(10)
        came.clear()
        keeper(FINISHED)
        assert not came.wait(0.3), "a minute has not passed"
    assert written == [tmp_path, tmp_path]


def test_no_round_waits_for_the_report(tmp_path: Path) -> None:
    began, go_on = threading.Event(), threading.Event()

    def write(_: Path) -> None:
        began.set()
        assert go_on.wait(10)

    with ReportKeeper(tmp_path, write) as keeper:
        keeper(FINISHED)
        assert began.wait(10)
        keeper(FINISHED)
        go_on.set()


def test_a_page_that_cannot_be_drawn_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def write(_: Path) -> None:
        raise OSError("no space left")

    with caplog.at_level(logging.WARNING), ReportKeeper(tmp_path, write) as keeper:
        keeper(FINISHED)
    assert "the run goes on" in caplog.text


def test_where_nothing_happened_nothing_is_written(tmp_path: Path) -> None:
    written: list[Path] = []
    with ReportKeeper(tmp_path, written.append):
        pass
    assert written == []
