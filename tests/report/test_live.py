from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from manyeyes.report.live import LiveView, Narrator, RunClock, total_loss

from .synthetic import SITES, Clock, SyntheticRun

_FIT = {"row": "together", "round": 3, "node": "A", "losses": {"box": 0.5, "cls": 0.44, "dfl": 0.3}}


def play(folder: Path, view: LiveView) -> None:
    run = SyntheticRun(folder)
    with view:
        run.log.listeners.append(view)
        run.start()
        run.row("together", SITES, last=2)
        run.emit("update_refused", row="together", round=2, node="B", reason="holds NaN")
        run.emit("interrupted", row="together", signal="SIGINT", resume="manyeyes run --resume")
    run.log.close()


def test_the_plain_line_of_an_epoch_and_its_message() -> None:
    narrator = Narrator()
    scores = {"map50": 0.582}
    narrator({"event": "evaluated", "row": "together", "round": 2, "where": "A", "split": "val", "metrics": scores})
    assert narrator({"event": "epoch_finished", **_FIT, "epoch": 2, "epochs": 3}) == [
        "[Node A] round 3 epoch 2/3 loss 1.24 mAP50 0.582"
    ]
    assert narrator({"event": "epoch_finished", **_FIT, "epoch": 3, "epochs": 3}) == []
    assert narrator({"event": "update_received", **_FIT, "bytes": 1_400_000}) == [
        "[Node A] round 3 epoch 3/3 loss 1.24 mAP50 0.582 → sending 1.4 MB"
    ]


def test_of_a_thousand_nodes_those_are_shown_that_were_heard_of_last() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=60)
    nodes = [f"v{number:05d}" for number in range(1000)]
    fields: dict[str, Any] = {"row": "together", "time": 0.0, "round": 1}
    with LiveView(console) as view:
        view(
            {"event": "row_started", "row": "together", "time": 0.0, "nodes": nodes, "rounds": 3, "resumed_from": None}
        )
        view({"event": "round_started", **fields, "cohort": nodes[500:550]})
        for node in nodes[500:525]:
            view({"event": "update_received", **fields, "node": node, "bytes": 1000, "seconds": 1.0, "metrics": {}})
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).split("together")[-1]  # type: ignore[attr-defined]
    assert "round 1 of 3  25 of 50 updates" in shown
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("v0")] == nodes[509:525]
    assert "984 more" in shown


def test_of_a_thousand_nodes_those_of_the_round_are_shown_before_any_is_heard_of() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=60)
    nodes = [f"v{number:05d}" for number in range(1000)]
    with LiveView(console) as view:
        view(
            {"event": "row_started", "row": "together", "time": 0.0, "nodes": nodes, "rounds": 3, "resumed_from": None}
        )
        view({"event": "round_started", "row": "together", "time": 0.0, "round": 1, "cohort": nodes[500:505]})
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue()).split("0 of 5 updates")[-1]  # type: ignore[attr-defined]
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("v0")] == nodes[500:505]


def test_a_total_loss_is_not_added_to_its_parts() -> None:
    assert total_loss({"box": 1.0, "cls": 2.0}) == 3.0
    assert total_loss({"box": 1.0, "cls": 2.0, "loss": 4.5}) == 4.5


def test_a_warning_is_told() -> None:
    event = {"event": "warning", "row": "together", "round": 2, "node": "B", "reason": "could not test the model"}
    assert Narrator()(event) == ["[Node B] round 2 warning: could not test the model"]
    assert Narrator()({"event": "warning", "row": "alone-A", "reason": "old"}) == ["[A alone] warning: old"]


def test_a_late_update_is_told_when_it_is_missed_and_when_it_comes() -> None:
    event = {"row": "together", "round": 2, "node": "B", "reason": "no answer within 30 s"}
    assert Narrator()({"event": "update_late", **event}) == [
        "[Node B] round 2 no answer within 30 s; merged in the round in which it comes"
    ]
    came = {"event": "update_received", "row": "together", "round": 3, "node": "B", "bytes": 1_400_000, "staleness": 1}
    assert Narrator()(came) == ["[Node B] round 3 → sending 1.4 MB, 1 round late"]


def test_an_epoch_without_a_message_is_told_with_the_next_event() -> None:
    narrator = Narrator()
    narrator({"event": "epoch_finished", **_FIT, "epoch": 1, "epochs": 1})
    lines = narrator({"event": "update_refused", "row": "together", "round": 3, "node": "A", "reason": "holds NaN"})
    assert lines == ["[Node A] round 3 epoch 1/1 loss 1.24", "[Node A] round 3 update refused: holds NaN"]


def test_without_a_terminal_plain_lines_are_printed(tmp_path: Path) -> None:
    out = io.StringIO()
    play(tmp_path, LiveView(Console(file=out, width=40)))
    lines = out.getvalue().splitlines()
    pattern = r"\[Node [ABC]\] round \d epoch \d/3 loss \d\.\d\d( mAP50 0\.\d{3})?( → sending 1\.4 MB)?"
    told = [line for line in lines if line.startswith("[Node")]
    assert all(re.fullmatch(pattern, line) for line in told[:-1])
    assert len(told) == 2 * 3 * 3 + 1
    assert lines[0] == "Run three-sites: A (340 pictures), B (340 pictures), C (340 pictures)"
    assert lines[-1] == "Interrupted (SIGINT); what was finished is kept. manyeyes run --resume"


def test_on_a_terminal_bars_are_drawn(tmp_path: Path) -> None:
    out = io.StringIO()
    play(tmp_path, LiveView(Console(file=out, force_terminal=True, width=100, height=30)))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert "together  round 2 of 5" in text
    assert "refused" in text
    assert "Interrupted (SIGINT)" in text


def test_quiet_is_quiet(tmp_path: Path) -> None:
    out = io.StringIO()
    play(tmp_path, LiveView(Console(file=out, force_terminal=True), quiet=True))
    assert out.getvalue() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_a_failing_view_does_not_stop_the_run(terminal: bool, caplog: pytest.LogCaptureFixture) -> None:
    view = LiveView(Console(file=io.StringIO(), force_terminal=terminal))
    with view:
        view({"event": "evaluated"})
        view({"event": "epoch_finished"})
    assert len(caplog.records) == 1
    assert "the run goes on" in caplog.text


def test_a_closed_pipe_does_not_stop_the_run(caplog: pytest.LogCaptureFixture) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with LiveView(Console(file=Closed())) as view:
        view({"event": "row_started", "row": "together", "rounds": 3})
    assert "the run goes on" in caplog.text


def test_the_time_left_follows_the_rounds_of_all_rows(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path)
    clock = RunClock(now=run.clock)
    run.log.listeners.append(clock)
    run.start()
    assert clock.seconds_left is None
    run.row("alone-A", ["A"])
    # A's five rounds took 5 * 17 s; B, C cost the same, together and pooled three times as much.
    assert clock.seconds_left == pytest.approx(5 * 17 * (1 + 1 + 3 + 3))
    run.log.close()


def test_the_time_left_of_a_resumed_run_goes_by_this_session() -> None:
    now = Clock(0.0)
    clock = RunClock(now=now)
    site: dict[str, Any] = {"node_id": "A", "pictures": {"train": 10}}
    clock({"event": "run_started", "sites": [site], "rows": [{"row": "together", "rounds": 10, "nodes": ["A"]}]})
    clock({"event": "row_started", "row": "together", "resumed_from": 6})
    clock({"event": "round_started", "row": "together", "round": 7})
    now.passes(30)
    clock({"event": "round_finished", "row": "together", "round": 7})
    assert clock.seconds_left == pytest.approx(3 * 30)


def test_the_time_left_of_rows_at_the_same_time_is_that_of_the_slowest() -> None:
    now = Clock(0.0)
    clock = RunClock(now=now)
    site: dict[str, Any] = {"node_id": "A", "pictures": {"train": 10}}
    rows = [{"row": row, "rounds": 10, "nodes": ["A"]} for row in ("together", "pooled", "alone-A")]
    clock({"event": "run_started", "sites": [site], "rows": rows, "rows_at_once": 2})
    for row in ("together", "pooled"):
        clock({"event": "row_started", "row": row, "resumed_from": None})
        clock({"event": "round_started", "row": row, "round": 1})
    now.passes(30)
    clock({"event": "round_finished", "row": "pooled", "round": 2})
    clock({"event": "round_finished", "row": "together", "round": 1})
    # Three rounds in 30 s, 27 to come: 270 s with both at it, as long as "together" takes for its nine.
    assert clock.seconds_left == pytest.approx(270)
    now.passes(30)
    clock({"event": "round_finished", "row": "pooled", "round": 10})
    # Eleven rounds in 60 s, 19 to come: 104 s at that pace, but "together" has nine to go at 60 s each.
    assert clock.seconds_left == pytest.approx(540)


def test_lines_of_rows_at_the_same_time_name_their_row() -> None:
    narrator = Narrator()
    narrator({"event": "run_started", "name": "x", "sites": [], "rows_at_once": 2})
    done = {"epoch": 1, "epochs": 1, "round": 1, "node": "A", "losses": {"loss": 1.0}}
    assert narrator({"event": "epoch_finished", "row": "alone-A", **done}) == []
    assert narrator({"event": "epoch_finished", "row": "together", **done}) == []
    # What one row says does not break up another row's line.
    assert narrator({"event": "warning", "row": "together", "reason": "old"})[0].startswith(
        "[together, Node A] round 1"
    )
    assert narrator({"event": "update_received", "row": "alone-A", "round": 1, "node": "A", "bytes": 1000}) == [
        "[A alone, Node A] round 1 epoch 1/1 loss 1.00 → sending 1.0 kB"
    ]


def test_rows_at_the_same_time_are_drawn_one_below_the_other(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=40)
    run = SyntheticRun(tmp_path)
    with LiveView(console) as view:
        run.log.listeners.append(view)
        run.start()
        for row in ("together", "pooled"):
            run.emit("row_started", row=row, nodes=["A"], rounds=5, resumed_from=None)
        run.emit("round_started", row="pooled", round=4, cohort=["A"])
        run.emit("round_started", row="together", round=3, cohort=["A"])
    run.log.close()
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    last = drawn[drawn.rindex("together  round 3 of 5") :]
    assert "pooled  round 4 of 5" in last
