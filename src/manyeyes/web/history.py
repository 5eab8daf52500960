"""What was found lately: which classes, how many, when and by which model. Of the pictures nothing is kept."""

from __future__ import annotations

import json
import logging
import queue
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from manyeyes.errors import ResourceError

__all__ = ["History", "Seen"]

_FILE = "history.sqlite3"
_BATCH = 500
# Should the disk be slower than the pictures come, the oldest that wait are lost, and counted.
_MOST_WAITING = 10_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (
    id INTEGER PRIMARY KEY, time REAL NOT NULL, source TEXT NOT NULL, name TEXT NOT NULL, model TEXT NOT NULL,
    counts TEXT NOT NULL, milliseconds REAL NOT NULL);
CREATE INDEX IF NOT EXISTS seen_time ON seen (time);
"""

# Not by LIKE, nor by SQLite's JSON, which knows a name with a quotation mark only as it was written.
_HAS_CLASS = "has_class(counts, ?)"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """One picture that was looked at.

    Attributes:
        time: when, in seconds since 1970.
        source: "request", "live", "job NUMBER" or "stream NAME".
        name: of the picture, as its sender called it.
        model: hash of the model that looked.
        counts: class → number of objects.
        milliseconds: from the picture to the boxes.
        id: place in the history; 0 before it has one.
    """

    time: float
    source: str
    name: str
    model: str
    counts: dict[str, int]
    milliseconds: float
    id: int = 0


class History:
    """A file of at most so many pictures; a thread of its own writes it, so that nobody waits for the disk.

    Args:
        folder: of the server's state.
        most: so many are remembered; 0 for none.

    Attributes:
        lost: pictures that could not be written.
        version: grows whenever what is remembered changes.

    Raises:
        ResourceError: the file is damaged or cannot be written.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._path, self._most = folder / _FILE, most
        self._waiting: queue.Queue[Seen | None] = queue.Queue(_MOST_WAITING)
        self.lost = self.version = 0
        self._thread: threading.Thread | None = None
        if most:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with closing(self._open()) as file, file:
                    file.executescript(_SCHEMA)
            except (sqlite3.Error, OSError) as error:
                raise ResourceError(f"cannot be used ({error})", file=self._path, cure="Move it away.") from error
            self._thread = threading.Thread(target=self._write, name="manyeyes-history", daemon=True)
            self._thread.start()

    def add(self, seen: Seen) -> None:
        """Remember a picture, soon."""
        if not self._thread:
            return
        try:
            self._waiting.put_nowait(seen)
        except queue.Full:
            self.lost += 1

    def latest(
        self,
        most: int = 100,
        *,
        before: int | None = None,
        source: str | None = None,
        name: str | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> list[Seen]:
        """Pictures, the newest first.

        Args:
            most: so many.
            before: only those whose `id` is smaller.
            source: only of this one.
            name: only those in which this class was found.
            since, until: only those of this time, in seconds since 1970; the end does not belong to it.
        """
        if not self._thread:
            return []
        where, values = _conditions(
            {"id < ?": before, "source = ?": source, _HAS_CLASS: name, "time >= ?": since, "time < ?": until}
        )
        text = f"SELECT id, time, source, name, model, counts, milliseconds FROM seen WHERE {where}"
        with closing(self._open()) as file:
            rows = file.execute(f"{text} ORDER BY id DESC LIMIT ?", (*values, most)).fetchall()
        return [Seen(when, src, called, model, json.loads(c), ms, id) for id, when, src, called, model, c, ms in rows]

    def series(self, since: float, step: float, bins: int, source: str | None = None) -> dict[str, list[int]]:
        """Objects found by class, counted in equal spans of time.

        Args:
            since: where the first span begins, in seconds since 1970.
            step: length of a span in seconds.
            bins: how many spans.
            source: only of this one.
        """
        if not self._thread:
            return {}
        where, values = _conditions({"time >= ?": since, "time < ?": since + bins * step, "source = ?": source})
        found: dict[str, list[int]] = {}
        with closing(self._open()) as file:
            for when, counts in file.execute(f"SELECT time, counts FROM seen WHERE {where}", values):
                place = min(int((when - since) / step), bins - 1)  # rounding may reach the end
                for name, count in json.loads(counts).items():
                    found.setdefault(name, [0] * bins)[place] += count
        return found

    def delete(self, id: int) -> bool:
        """Forget one picture; whether there was one.

        Raises:
            ResourceError: the file cannot be written.
        """
        return bool(self._delete({"id = ?": id}))

    def delete_before(
        self, time: float, source: str | None = None, name: str | None = None, *, since: float | None = None
    ) -> int:
        """Forget what was seen before a time (seconds since 1970); returns how many pictures that were.

        Args:
            time: the end; what was seen at it stays.
            source: only of this one.
            name: only those in which this class was found.
            since: only what was seen from this time on.

        Raises:
            ResourceError: the file cannot be written.
        """
        return self._delete({"time < ?": time, "time >= ?": since, "source = ?": source, _HAS_CLASS: name})

    def _delete(self, conditions: Mapping[str, int | float | str | None]) -> int:
        if not self._thread:
            return 0
        where, values = _conditions(conditions)
        try:
            with closing(self._open()) as file, file:
                deleted = file.execute(f"DELETE FROM seen WHERE {where}", values).rowcount
        except sqlite3.Error as error:
            raise ResourceError(f"cannot be written ({error})", file=self._path) from error
        self.version += 1
        return deleted

    def totals(self, since: float) -> dict[str, int]:
        """Objects found since a time (seconds since 1970), by class."""
        if not self._thread:
            return {}
        with closing(self._open()) as file:
            rows = file.execute("SELECT counts FROM seen WHERE time >= ?", (since,))
            totals: Counter[str] = Counter()
            for (counts,) in rows:
                totals.update(json.loads(counts))
        return dict(totals)

    def flush(self) -> None:
        """Wait until what was added so far is written."""
        self._waiting.join()

    def close(self) -> None:
        """Write what waits, and end."""
        if self._thread:
            self._waiting.put(None)
            self._thread.join(timeout=10)

    def _open(self) -> sqlite3.Connection:
        file = sqlite3.connect(self._path, timeout=10)
        file.create_function("has_class", 2, lambda counts, name: name in json.loads(counts), deterministic=True)
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = NORMAL")
        return file

    def _write(self) -> None:
        goes_on = True
        while goes_on:
            batch = [self._waiting.get()]
            while len(batch) < _BATCH and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            goes_on = None not in batch
            try:
                self._insert([seen for seen in batch if seen])
                self.version += 1
            except (sqlite3.Error, ValueError) as error:  # letters that no file can hold are a ValueError
                self.lost += len(batch)
                _log.warning("the history cannot be written (%s)", error)
                time.sleep(1)
            for _ in batch:
                self._waiting.task_done()

    def _insert(self, batch: list[Seen]) -> None:
        rows = [
            (s.time, s.source, s.name, s.model, json.dumps(s.counts, ensure_ascii=False), s.milliseconds) for s in batch
        ]
        with closing(self._open()) as file, file:
            file.executemany(
                "INSERT INTO seen (time, source, name, model, counts, milliseconds) VALUES (?, ?, ?, ?, ?, ?)", rows
            )
            file.execute("DELETE FROM seen WHERE id <= (SELECT MAX(id) FROM seen) - ?", (self._most,))


def _conditions(wanted: Mapping[str, int | float | str | None]) -> tuple[str, list[int | float | str]]:
    """Text and values of an SQL condition: a comparison whose value is None is passed over."""
    given = {text: value for text, value in wanted.items() if value is not None}
    return " AND ".join(given) or "1", list(given.values())
