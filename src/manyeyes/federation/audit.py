"""What left this node: one JSON object a line, written to the disk before anything is sent.

    time       seconds since 1970
    request    its id, as the coordinator gave it
    kind       fit or evaluate: what was asked for
    sent       answer, or refusal
    bytes      length of what was sent
    sha256     of exactly these bytes
    arrays     for each kind of array (delta, buffer, control): how many tensors, and how many numbers in all
    values     everything else that was in it, as it was
    previous   SHA-256 of the line before, 64 zeros in the first: a line that is changed, added or taken out later shows

The file holds no weights and no pictures; it can be given to whoever wants to know what a site has shared.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from manyeyes.errors import ResourceError, RunError
from manyeyes.federation.transport import Record, Request
from manyeyes.report.runlog import remove_unfinished_line

__all__ = ["AUDIT", "AuditLog", "read_audit"]

AUDIT = "audit.jsonl"

_FIRST = "0" * 64

_log = logging.getLogger(__name__)


class AuditLog:
    """Appends to a node's audit log.

    Args:
        folder: the node's state folder; the file is made with the first entry.

    Raises:
        ResourceError: the file cannot be written.
        RunError: a line of it was changed, added or taken out.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / AUDIT
        self._previous = _FIRST
        self._bytes: Counter[date] = Counter()
        self._owed: list[dict[str, Any]] = []
        try:
            remove_unfinished_line(self.path)
        except OSError as error:
            raise self._refusal(error) from error
        if self.path.exists():
            self._count_all(list(read_audit(self.path)))
            with self.path.open("rb") as file:
                for line in file:
                    self._previous = _hash(line)

    def answer(self, request: Request, record: Record, data: bytes) -> None:
        """An answer is about to be sent; `data` is the record as it goes out.

        Raises:
            ResourceError: the entry cannot be kept, so nothing may be sent.
        """
        what = {"arrays": _arrays(record), "values": dict(record.values)}
        self._append(self._entry(request, "answer", data, what))

    def refusal(self, request: Request, reason: str) -> None:
        """A request is about to be refused in these words. They hold nothing of the site, so where the disk is full
        they may be sent; the entry is kept in memory and written before the next.
        """
        entry = self._entry(request, "refusal", reason.encode(), {"arrays": {}, "values": {"reason": reason}})
        try:
            self._append(entry)
        except ResourceError as error:
            _log.warning("%s; the entry of a refusal is written later", error)
            self._owed.append(entry)

    def bytes_on(self, day: date) -> int:
        """Bytes of all that was sent on a day of this machine's local time."""
        return self._bytes[day]

    def _count_all(self, entries: Iterable[Mapping[str, Any]]) -> None:
        try:
            for entry in entries:
                self._count(entry)
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            raise RunError("holds a line that no node has written", file=self.path) from error

    def _count(self, entry: Mapping[str, Any]) -> None:
        self._bytes[date.fromtimestamp(entry["time"])] += entry["bytes"]

    def _append(self, entry: dict[str, Any]) -> None:
        while self._owed:
            self._write(self._owed[0])
            del self._owed[0]
        self._write(entry)

    def _entry(self, request: Request, sent: str, data: bytes, what: dict[str, Any]) -> dict[str, Any]:
        return {
            "time": round(time.time(), 3),
            "request": request.request_id,
            "kind": request.kind,
            "sent": sent,
            "bytes": len(data),
            "sha256": _hash(data),
            **what,
        }

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps({**entry, "previous": self._previous}, ensure_ascii=False).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_unfinished_line(self.path)
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._refusal(error) from error
        self._previous = _hash(line)
        self._count(entry)

    def _refusal(self, error: OSError) -> ResourceError:
        return ResourceError(
            f"cannot be written ({error.strerror}), so nothing may leave this node",
            file=self.path,
            cure="Make room, or mend the permissions.",
        )


def read_audit(path: Path) -> Iterator[dict[str, Any]]:
    """The entries in order, checked.

    Raises:
        RunError: there is no such file, or a line was changed, added or taken out.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise RunError(f"cannot be read ({error.strerror})", file=path, cure="Name a node's state folder.") from error
    previous = _FIRST
    with file:
        for number, line in enumerate(file, start=1):
            try:
                entry = json.loads(line)
                follows = entry["previous"] == previous and line.endswith(b"\n")
            except (ValueError, KeyError, TypeError):
                follows = False
            if not follows:
                raise RunError(
                    "this line, or one before it, was changed after it was written", file=path, key=f"line {number}"
                )
            yield entry
            previous = _hash(line)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _arrays(record: Record) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = {}
    for name, array in record.arrays.items():
        of_kind = kinds.setdefault(name.partition("/")[0], {"tensors": 0, "numbers": 0})
        of_kind["tensors"] += 1
        of_kind["numbers"] += int(array.size)
    return kinds
