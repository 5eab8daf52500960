"""The curves of a run for TensorBoard, written while it runs; needs neither torch nor TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from manyeyes.errors import ResourceError
from manyeyes.report.runlog import Event, losses_of_update

__all__ = ["TensorBoardWriter"]


class TensorBoardWriter:
    """A listener for `RunLog` that writes scalars to ``folder/ROW``.

    Tags, all by round: ``loss/NODE/NAME`` (mean over the round's last epoch, or, where nobody tells of epochs, as it
    came with the update), ``mAP50/WHERE``, ``mAP50-95/WHERE``, ``AP50/WHERE/CLASS``, ``bytes/up`` and ``bytes/down``;
    the final test under ``test/``. A row that is resumed goes on in the same folder, and TensorBoard is told to forget
    what the interrupted session wrote after its checkpoint.

    Args:
        folder: usually ``runs/NAME/tensorboard``.

    Raises:
        ResourceError: the package tensorboard is missing, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = _EventFiles()
        self._rounds: dict[str, int] = {}
        self._told_by_epoch = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        """Write the scalars of one event."""
        row = event.get("row")
        if row is None:
            return
        kind = event["event"]
        if kind == "row_started":
            self._files.open(self._folder / str(row), int(event.get("resumed_from") or 0), event["time"])
        elif kind == "round_finished":
            self._rounds[str(row)] = int(event["round"])
        for tag, step, value in self._scalars(event):
            self._files.add(self._folder / str(row), tag, step, value, event["time"])
        if kind in ("round_finished", "row_finished", "interrupted"):
            self._files.flush(self._folder / str(row))

    def close(self) -> None:
        """Write what is left and close the files."""
        self._files.close()

    def _scalars(self, event: Event) -> Iterator[tuple[str, int, float]]:
        kind = event["event"]
        if kind == "epoch_finished":
            self._told_by_epoch = True
            if event["epoch"] < event["epochs"]:
                return
            # One unit of steps for all tags: TensorBoard forgets by step, whatever the tag.
            for name, value in event["losses"].items():
                yield f"loss/{event['node']}/{name}", int(event["round"]), value
        elif kind == "update_received" and not self._told_by_epoch:
            for name, value in losses_of_update(event).items():
                yield f"loss/{event['node']}/{name}", int(event["round"]), value
        elif kind == "round_finished":
            for way in ("up", "down"):
                yield f"bytes/{way}", int(event["round"]), event.get(f"bytes_{way}", 0)
        elif kind == "evaluated":
            yield from self._metrics(event)

    def _metrics(self, event: Event) -> Iterator[tuple[str, int, float]]:
        told = event.get("round")
        step = self._rounds.get(str(event["row"]), 0) if told is None else int(told)
        prefix = "test/" if event["split"] == "test" else ""
        where, metrics = event["where"], event["metrics"]
        yield f"{prefix}mAP50/{where}", step, metrics["map50"]
        yield f"{prefix}mAP50-95/{where}", step, metrics["map50_95"]
        for name, value in metrics["ap50"].items():
            yield f"{prefix}AP50/{where}/{name}", step, value


class _EventFiles:
    """One open event file a folder."""

    def __init__(self) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ResourceError("tensorboard is not installed", cure="pip install manyeyes[train]") from error
        self._event, self._summary, self._writer = event_pb2, summary_pb2, EventFileWriter
        self._open: dict[Path, Any] = {}

    def open(self, folder: Path, kept_round: int, wall_time: float) -> None:
        if folder in self._open:
            self._open.pop(folder).close()
        existed = folder.is_dir() and any(folder.iterdir())
        writer = self._writer_for(folder)
        if existed:
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            writer.add_event(self._event.Event(wall_time=wall_time, step=kept_round + 1, session_log=start))

    def add(self, folder: Path, tag: str, step: int, value: float, wall_time: float) -> None:
        summary = self._summary.Summary(value=[self._summary.Summary.Value(tag=tag, simple_value=value)])
        with _writing(folder):
            self._writer_for(folder).add_event(self._event.Event(wall_time=wall_time, step=step, summary=summary))

    def flush(self, folder: Path) -> None:
        with _writing(folder):
            self._writer_for(folder).flush()

    def close(self) -> None:
        # A disk that is full was told of when it mattered.
        while self._open:
            with suppress(OSError):
                self._open.popitem()[1].close()

    def _writer_for(self, folder: Path) -> Any:
        if folder not in self._open:
            with _writing(folder):
                self._open[folder] = self._writer(str(folder))
        return self._open[folder]


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"cannot be written ({error.strerror})", file=folder, cure="Make room, then go on with --resume."
        ) from error
