from __future__ import annotations

from pathlib import Path

import pytest

from manyeyes.errors import ResourceError, RunError
from manyeyes.report.runlog import RunLog, read_runlog, without_redone

from .synthetic import SyntheticRun


def test_events_are_read_as_they_were_emitted(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run" / "runlog.jsonl")
    heard = []
    log.listeners.append(heard.append)
    log.emit("row_started", row="together", nodes=["Größe"])
    log.emit("progress", node_id="A")
    log.close()
    assert [e["event"] for e in heard] == ["row_started", "progress"]
    assert list(read_runlog(log.path)) == heard[:1]


@pytest.mark.parametrize("cut", [b'{"time": 1, "event": "row_st', '{"event": "Größ'.encode()[:-1]])
def test_a_line_cut_off_by_a_crash_is_passed_over_and_removed_on_resume(tmp_path: Path, cut: bytes) -> None:
    path = tmp_path / "runlog.jsonl"
    path.write_bytes(b'{"time": 1, "event": "run_started"}\n' + cut)
    assert [e["event"] for e in read_runlog(path)] == ["run_started"]
    log = RunLog(path)
    log.emit("row_started", row="together")
    log.close()
    assert [e["event"] for e in read_runlog(path)] == ["run_started", "row_started"]


def test_a_log_of_one_unfinished_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "runlog.jsonl"
    path.write_bytes(b"x" * 200_000)
    RunLog(path).close()
    assert path.read_bytes() == b""


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runlog.jsonl"
    path.write_text('{"event": "run_started"}\nnonsense\n')
    with pytest.raises(RunError, match=r"runlog\.jsonl: line 2: is not JSON"):
        list(read_runlog(path))
    path.write_text("[]\n")
    with pytest.raises(RunError, match="line 1: is not an event"):
        list(read_runlog(path))


def test_no_log(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be read"):
        list(read_runlog(tmp_path / "runlog.jsonl"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        RunLog(tmp_path / "file" / "runlog.jsonl")


def test_what_a_resumed_row_did_twice_counts_once(new_run: SyntheticRun) -> None:
    new_run.row("alone-A", ["A"])
    new_run.row("together", "ABC", last=3)
    new_run.start()
    new_run.row("together", "ABC", first=3, resumed=True)
    events = without_redone(read_runlog(new_run.log.path))
    rounds = [(e["row"], e["round"]) for e in events if e["event"] == "round_finished"]
    assert rounds == [("alone-A", n) for n in range(1, 6)] + [("together", n) for n in range(1, 6)]


def test_a_row_that_is_started_anew_forgets_its_past(new_run: SyntheticRun) -> None:
    new_run.row("together", "ABC", last=2)
    new_run.row("together", "ABC", last=1)
    events = without_redone(read_runlog(new_run.log.path))
    assert [e["round"] for e in events if e["event"] == "round_finished"] == [1]


def test_a_finished_row_that_is_announced_again_keeps_its_test(new_run: SyntheticRun) -> None:
    new_run.row("together", "ABC")
    new_run.finish_row("together", "ABC")
    new_run.emit("row_started", row="together", nodes=["A"], rounds=5, resumed_from=5)
    events = without_redone(read_runlog(new_run.log.path))
    assert sum(e["event"] == "row_finished" for e in events) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_and_not_hidden_by_closing(tmp_path: Path) -> None:
    path = tmp_path / "runlog.jsonl"
    path.symlink_to("/dev/full")
    log = RunLog(path)
    with pytest.raises(
        ResourceError, match=r"runlog\.jsonl: cannot be written \(No space left on device\)\. Make room"
    ):
        log.emit("round_started", round=1, cohort=[])
    log.close()
