"""Rows in processes of their own: order, number, failures, signals; with real processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from manyeyes.errors import DataError, Interrupted, ManyeyesError, RunError
from manyeyes.federation.rounds import never
from manyeyes.federation.side_by_side import Job, run_side_by_side
from manyeyes.report.runlog import Emit
from manyeyes.signals import Stop

from .killed import assert_children_end

_LONG = 60.0


def count(to: int, row: str, emit: Emit, stop: Stop) -> None:
    for number in range(to):
        emit("round_finished", row=row, round=number, process=os.getpid())
        time.sleep(0.02)


def wait_for_stop(row: str, emit: Emit, stop: Stop) -> None:
    emit("row_started", row=row)
    until = time.monotonic() + _LONG
    while time.monotonic() < until:
        emit("progress", row=row)
        if signal_name := stop():
            emit("checkpoint", row=row)
            raise Interrupted(signal_name)
        time.sleep(0.05)


def refuse(emit: Emit, stop: Stop) -> None:
    raise DataError("cannot be decoded", file="a.jpg", key="site A", cure="Mend it.")


def divide(emit: Emit, stop: Stop) -> None:
    emit("quotient", value=1 / int("0"))


def vanish(emit: Emit, stop: Stop) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, **fields: Any) -> None:
        self.events.append((event, {"at": time.monotonic(), **fields}))

    def of(self, row: str) -> list[dict[str, Any]]:
        return [fields for _, fields in self.events if fields.get("row") == row]

    def has(self, event: str) -> bool:
        return any(kind == event for kind, _ in self.events)


def assert_no_process_is_left() -> None:
    psutil.wait_procs(psutil.Process().children(recursive=True), timeout=0.2)
    left = [process.name() for process in psutil.Process().children(recursive=True)]
    # Python's own helper of the module multiprocessing stays.
    assert len(left) <= 1, left


def test_every_row_is_run_in_a_process_of_its_own_and_in_order() -> None:
    heard = Heard()
    jobs: dict[str, Job] = {row: partial(count, 10, row) for row in ("pooled", "together", "alone-A")}
    run_side_by_side(jobs, 2, heard, never)
    for row in jobs:
        assert [fields["round"] for fields in heard.of(row)] == list(range(10))
    processes = {row: {fields["process"] for fields in heard.of(row)} for row in jobs}
    assert len(set.union(*processes.values())) == 3
    assert os.getpid() not in set.union(*processes.values())
    # Two at a time: the third began when one of the first was done.
    first_done = min(heard.of("pooled")[-1]["at"], heard.of("together")[-1]["at"])
    assert heard.of("alone-A")[0]["at"] > first_done
    assert_no_process_is_left()


def test_what_one_row_refuses_stops_the_others_and_keeps_its_words() -> None:
    heard = Heard()
    jobs: dict[str, Job] = {"pooled": partial(wait_for_stop, "pooled"), "alone-A": refuse, "later": divide}
    begun = time.monotonic()
    with pytest.raises(DataError) as caught:
        run_side_by_side(jobs, 2, heard, never)
    assert str(caught.value) == "a.jpg: site A: cannot be decoded. Mend it."
    assert time.monotonic() - begun < _LONG
    assert not heard.has("row_started") or heard.has("checkpoint")
    assert_no_process_is_left()


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"row alone-A failed(.|\n)*in divide(.|\n)*ZeroDivisionError"):
        run_side_by_side({"alone-A": divide}, 1, Heard(), never)


def test_a_process_that_the_system_ends_is_told() -> None:
    with pytest.raises(RunError, match=r"row pooled ended without a word \(SIGKILL\)(.|\n)*rows_at_once"):
        run_side_by_side({"pooled": vanish}, 2, Heard(), never)


def heavy(ballast: bytes, row: str, emit: Emit, stop: Stop) -> None:
    count(2, row, emit, stop)


def run_while_a_signal_comes(number: signal.Signals) -> Heard:
    """A row whose job does not fit into a pipe, as one with a model does not, and whose process gets a signal early."""
    heard = Heard()
    before = set(psutil.Process().children())

    def send() -> None:
        while not (new := [p for p in set(psutil.Process().children()) - before if "spawn_main" in str(p.cmdline())]):
            time.sleep(0.001)
        new[0].send_signal(number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        run_side_by_side({"pooled": partial(heavy, bytes(12_000_000), "pooled")}, 1, heard, never)
    finally:
        sender.join()
    return heard


def test_a_process_that_is_ended_while_it_starts_is_told_too() -> None:
    with pytest.raises(RunError, match=r"row pooled ended without a word \(SIGKILL\)"):
        run_while_a_signal_comes(signal.SIGKILL)
    assert_no_process_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_starts_leaves_signals_to_the_main_process(number: signal.Signals) -> None:
    assert len(run_while_a_signal_comes(number).of("pooled")) == 2


def test_a_signal_lets_every_row_keep_its_state() -> None:
    heard = Heard()
    jobs: dict[str, Job] = {row: partial(wait_for_stop, row) for row in ("pooled", "together", "alone-A")}

    def stop() -> str | None:
        return "Ctrl-C" if len({fields["row"] for _, fields in heard.events}) == 2 else None

    with pytest.raises(Interrupted) as caught:
        run_side_by_side(jobs, 2, heard, stop)
    assert caught.value.reason == "Ctrl-C"
    assert sorted(fields["row"] for event, fields in heard.events if event == "checkpoint") == ["pooled", "together"]
    assert_no_process_is_left()


def test_an_error_in_the_main_process_leaves_no_process_behind() -> None:
    def emit(event: str, **fields: Any) -> None:
        if event == "progress":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_side_by_side({"pooled": partial(wait_for_stop, "pooled")}, 2, emit, never)
    assert_no_process_is_left()


def test_rows_end_when_their_main_process_was_killed(tmp_path: Path) -> None:
    lines = [
        "from functools import partial",
        "from federation.test_side_by_side import wait_for_stop",
        "from manyeyes.federation.rounds import never",
        "from manyeyes.federation.side_by_side import run_side_by_side",
        "if __name__ == '__main__':",
        "    jobs = {'pooled': partial(wait_for_stop, 'pooled')}",
        "    run_side_by_side(jobs, 2, lambda event, **fields: print(event, flush=True), never)",
    ]
    assert_children_end(tmp_path / "main.py", lines, "row_started")


def test_errors_of_ours_survive_the_way_between_processes() -> None:
    # A refused update has no words of its own beyond these four; a class that adds some must say how it is pickled.
    for kind in ManyeyesError.__subclasses__():
        assert kind.__init__ is ManyeyesError.__init__, kind
