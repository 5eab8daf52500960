"""The run log: everything that happens in a run, one JSON object a line, in the order it happened.

    event            fields besides time (seconds since 1970) and row ("untrained", "alone-A", "together", "pooled")
    run_started      name, seed, template, names, manyeyes, torch, machine, rows_at_once, sites: [{node_id, annotates,
                     pictures: {split: n}, objects: {split: {class: n}}}], rows: [{row, rounds, nodes}]; of a
                     coordinator also held_by: "coordinator", and no sites: it sees none of their pictures
    views_planned    views (of each picture), bytes: {row: most that its views take on the disk}; before any is written
    row_started      nodes, rounds, resumed_from (last round that was kept, or null)
    round_started    round, cohort (of an asynchronous round: those that are asked when it begins; others are at work)
    node_asked       round, node: asked while an asynchronous round is held, as soon as it came free
    epoch_finished   round, node, epoch, epochs, losses: {name: value}, images_per_second
    update_received  round, node, bytes, num_examples, seconds (since the node was asked), metrics: {name: value},
                     staleness (rounds it came late; absent where it came in time), weight (what it counts by, with
                     federation.weighting contribution)
    update_late      round, node, reason: missed the deadline; its update is merged in the round in which it comes
    update_refused   round, node, reason
    evaluated        round, where ("A", …, "mixed"), split ("val", "test"), metrics (Metrics.to_dict())
    contribution     round, node, by (who tested the model in which its update counts for half; coordinator: it cannot
                     count for half), gain (mAP50 of that minus the round's model's), weight (what its next update
                     counts by, in (0, 1])
    round_finished   round, bytes_down, bytes_up, nodes: {node: {bytes_down, bytes_up}}, seconds: {fit, merge,
                     evaluate, checkpoint, total}
    finetuned        round, node, metrics: of its own model, on its validation pictures (federation.finetune_after)
    published        round, node, used: whether the node's site uses the model of the run now
    row_finished     bytes_down, bytes_up, seconds, kept (round whose weights the row ends with), score (its mean
                     mAP50 on the sites' validation pictures if it was kept as the best, or null)
    run_finished     summary
    withdrawn        node, rounds (in which an update of it was merged), rebuilt_as (name of the run without it, null)
    rebuilt          without (a node), of (name of the run), round (rounds that were taken over from it)
    warning          reason, round and node where they apply, waits where the round is held again when nodes are there
    interrupted      signal, resume
    progress         as learners.Progress; shown, never written

`round` counts from 1 here, as people count; `evaluated` with split "test" is the final test, of the round that is kept,
and with round 0 of the weights that the run begins with. In the row "finetuned", which is not trained by itself, it is
the test of each site's own model, made from that of "together".
`rows` in run_started lists the rows in the order they are trained; a resumed run writes run_started once more, and
row_started with `resumed_from` for the row that goes on, so that what it repeats counts once (`without_redone`).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from manyeyes.errors import ResourceError, RunError

__all__ = [
    "COORDINATOR",
    "FINETUNED",
    "RUNLOG",
    "Emit",
    "Event",
    "RunLog",
    "append_event",
    "is_coordinators",
    "losses_of_update",
    "read_runlog",
    "remove_unfinished_line",
    "without_redone",
]

Emit = Callable[..., None]
"""``emit(event, **fields)``: how every room reports what happens, without knowing who listens."""

Event = dict[str, Any]
"""One line of the log as a dictionary; `event` names its kind."""

RUNLOG = "runlog.jsonl"
"""Its name in a run's folder."""

FINETUNED = "finetuned"
"""The row of the sites' own models, which are made from that of "together"."""

COORDINATOR = "coordinator"
"""`held_by` of a run whose nodes are on machines of their own."""

_SHOWN_ONLY = frozenset({"progress"})
_LOSS = "loss_"


class RunLog:
    """Appends events to a file and passes them on to listeners (the live view, TensorBoard).

    Args:
        path: the JSONL file; created if missing, continued if it exists. A last line that a crash cut off is
            removed, so that the next event begins a line of its own.

    Raises:
        ResourceError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listeners: list[Callable[[Event], None]] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_unfinished_line(path)
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise ResourceError(
                f"cannot be written ({error.strerror})", file=path, cure="Choose another `output` folder."
            ) from error

    def emit(self, event: str, **fields: Any) -> None:
        """Record one event, then show it to every listener.

        Raises:
            ResourceError: it cannot be written, as on a full disk; what was cut off is removed when the run goes on.
        """
        record = {"time": round(time.time(), 3), "event": event, **fields}
        if event not in _SHOWN_ONLY:
            try:
                self._file.write(_line(record))
            except OSError as error:
                raise ResourceError(
                    f"cannot be written ({error.strerror})", file=self.path, cure="Make room, then go on with --resume."
                ) from error
        for listener in self.listeners:
            listener(record)

    def close(self) -> None:
        """Close the file."""
        # What could not be written was told when it happened; it must not hide that now.
        with contextlib.suppress(OSError):
            self._file.close()


def append_event(path: Path, event: str, **fields: Any) -> None:
    """Add one event to a log that another process may be writing to.

    Raises:
        ResourceError: the file cannot be written.
    """
    try:
        with path.open("ab", buffering=0) as file:
            file.write(_line({"time": round(time.time(), 3), "event": event, **fields}).encode())
    except OSError as error:
        raise ResourceError(f"cannot be written ({error.strerror})", file=path) from error


def _line(event: Event) -> str:
    return json.dumps(event, ensure_ascii=False) + "\n"


def read_runlog(path: Path) -> Iterator[Event]:
    """The events of a run log in order; a last line cut off by a crash is passed over.

    Raises:
        RunError: there is no such file, or a line of it is not an event.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise RunError(f"cannot be read ({error.strerror})", file=path, cure="Name the folder of a run.") from error
    with file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield _parse(line, path, number)


def is_coordinators(events: Iterable[Event]) -> bool:
    """Whether a coordinator held the run, so that all it knows of pictures is what the nodes told."""
    return any(event.get("held_by") == COORDINATOR for event in events if event["event"] == "run_started")


def losses_of_update(event: Event) -> dict[str, float]:
    """The mean losses of a fit as its node told them with the update; of epochs a coordinator hears nothing.

    >>> losses_of_update({"metrics": {"loss": 2.0, "loss_box": 1.5, "loss_cls": 0.5, "seconds": 3.1}})
    {'loss': 2.0, 'box': 1.5, 'cls': 0.5}
    """
    return {
        name.removeprefix(_LOSS): value
        for name, value in event.get("metrics", {}).items()
        if name == "loss" or name.startswith(_LOSS)
    }


def without_redone(events: Iterable[Event]) -> list[Event]:
    """The events that count: what a resumed row did after its checkpoint, and then did again, stands here once."""
    kept: list[Event] = []
    for event in events:
        if event["event"] == "row_started":
            resumed_from = event.get("resumed_from") or 0
            all_done = bool(resumed_from) and resumed_from >= event.get("rounds", float("inf"))
            kept = [e for e in kept if all_done or e.get("row") != event.get("row") or _was_kept(e, resumed_from)]
        kept.append(event)
    return kept


def _was_kept(event: Event, resumed_from: int) -> bool:
    if resumed_from and event["event"] == "row_started":
        return True
    number = event.get("round")
    return number is not None and number <= resumed_from


def _parse(line: bytes, path: Path, number: int) -> Event:
    try:
        event = json.loads(line)
    except ValueError as error:
        raise RunError("is not JSON", file=path, key=f"line {number}", cure="Remove that line.") from error
    if not isinstance(event, dict) or "event" not in event:
        raise RunError("is not an event of a run", file=path, key=f"line {number}", cure="Remove that line.")
    return event


def remove_unfinished_line(path: Path) -> None:
    """Cut off what a crash left of a last line, so that the next one begins a line of its own."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        at = size
        while at:
            step = min(at, 1 << 16)
            file.seek(at - step)
            newline = file.read(step).rfind(b"\n")
            if newline >= 0:
                at = at - step + newline + 1
                break
            at -= step
        if at < size:
            file.truncate(at)
