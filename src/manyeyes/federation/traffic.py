"""How many bytes a node has taken in and sent today, counted from its messages and kept over restarts.

What was sent is counted in the audit log, which holds every answer before it leaves. What came in is kept in
``traffic.json`` beside it, and is written before the request is looked at, so that a node that is killed again and
again does not forget it. A day is one of the site's local time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

from manyeyes.errors import RunError
from manyeyes.federation.audit import AuditLog
from manyeyes.weights import write_atomically

__all__ = ["TRAFFIC", "Counted", "Traffic"]

TRAFFIC = "traffic.json"


@dataclass(frozen=True, slots=True)
class Counted:
    """A day's account as it stands.

    Attributes:
        down, up: bytes of today's requests, and of its answers and refusals.
        last_request: bytes of the last request.
    """

    down: int = 0
    up: int = 0
    last_request: int = 0


class Traffic:
    """The account of a day.

    Args:
        folder: the node's state folder.
        audit: counts what is sent.
        now: the local time; for tests.

    Attributes:
        last_request: bytes of the last request of today; 0 if there was none.

    Raises:
        RunError: the file is damaged.
    """

    def __init__(self, folder: Path, audit: AuditLog, now: Callable[[], datetime] = datetime.now) -> None:
        self._path, self._audit, self._now = folder / TRAFFIC, audit, now
        self._day, self._down, self.last_request = self._read()

    def received(self, num_bytes: int) -> None:
        """A request of so many bytes has come in.

        Raises:
            ResourceError: it cannot be kept on the disk.
        """
        self._down, self._day, self.last_request = self.down + num_bytes, self._today(), num_bytes
        values = {"day": self._day.isoformat(), "bytes_down": self._down, "last_request": num_bytes}
        write_atomically(self._path, json.dumps(values) + "\n")

    @property
    def down(self) -> int:
        """Bytes of today's requests."""
        return self._down if self._day == self._today() else 0

    @property
    def up(self) -> int:
        """Bytes of today's answers and refusals, as they stand in the audit log."""
        return self._audit.bytes_on(self._today())

    @property
    def counted(self) -> Counted:
        """The account as it stands."""
        return Counted(self.down, self.up, self.last_request)

    def holds_another(self, limit: int | None) -> bool:
        """Whether a request like today's last can still come in without going beyond `limit` bytes today."""
        if limit is None or self._day != self._today():
            return True
        return self.down + self.up + self.last_request <= limit

    def _today(self) -> date:
        return self._now().date()

    def _read(self) -> tuple[date, int, int]:
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
            day, down, last = date.fromisoformat(values["day"]), values["bytes_down"], values["last_request"]
            if not (type(down) is int and type(last) is int and 0 <= last <= down):
                raise ValueError("the counts are impossible")
        except FileNotFoundError:
            return self._today(), 0, 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"cannot be read ({type(error).__name__})",
                file=self._path,
                cure="Delete it: what came in today before now is then not counted against bytes_per_day.",
            ) from error
        return day, down, last
