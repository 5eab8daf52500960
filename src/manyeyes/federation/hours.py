"""Hours of the day, such as 22:00-06:00, in the local time of the machine that asks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

__all__ = ["DayHours"]

_DAY = 24 * 60
_WINDOW = re.compile(r"(\d{1,2}):(\d{2})\s*[-–]\s*(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True)
class DayHours:
    """One or several windows of each day; a window may go past midnight.

    Attributes:
        windows: (start, end) in minutes since midnight, as they were given; the end is not part of the window.
    """

    windows: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> DayHours:
        """From texts such as "22:00-06:00".

        Raises:
            ValueError: one of them is no window; says how to write it.

        >>> str(DayHours.parse(["22:00-6:00", "12:00-13:00"]))
        '22:00-06:00, 12:00-13:00'
        """
        return cls(tuple(_parse_window(text) for text in texts))

    def __str__(self) -> str:
        return ", ".join(f"{_clock(start)}-{_clock(end)}" for start, end in self.windows)

    def closes(self, now: datetime) -> datetime | None:
        """When the window that `now` lies in ends, in naive local time; None outside all of them.

        Windows that touch are one. Where they fill the day, the end is that of the next day.
        """
        minute = now.hour * 60 + now.minute
        end = next((end for start, end in self._spans() if start <= minute < end), None)
        if end is None:
            return None
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        if end == _DAY:
            end += next((until for start, until in self._spans() if start == 0), 0)
        return midnight + timedelta(minutes=end)

    def seconds_left(self, now: datetime) -> float:
        """Seconds until the window that `now` (naive, local) lies in ends; 0 outside.

        Real seconds: a night in which clocks are set forward is an hour shorter.
        """
        closes = self.closes(now)
        return 0.0 if closes is None else closes.timestamp() - now.timestamp()

    def _spans(self) -> list[tuple[int, int]]:
        """The minutes of a day that lie in a window, as (start, end) without overlap, in order."""
        parts = []
        for start, end in self.windows:
            parts += [(start, end)] if start < end else [(start, _DAY), (0, end)]
        spans: list[tuple[int, int]] = []
        for start, end in sorted(part for part in parts if part[0] < part[1]):
            if spans and start <= spans[-1][1]:
                spans[-1] = spans[-1][0], max(end, spans[-1][1])
            else:
                spans.append((start, end))
        return spans


def _parse_window(text: str) -> tuple[int, int]:
    match = _WINDOW.fullmatch(text.strip())
    if not match:
        raise ValueError(f"must be hours of the day such as '22:00-06:00', got {text!r}")
    from_hour, from_minute, to_hour, to_minute = map(int, match.groups())
    start, end = from_hour * 60 + from_minute, to_hour * 60 + to_minute
    if max(from_minute, to_minute) > 59 or start >= _DAY or end > _DAY:
        raise ValueError(f"must be hours between 00:00 and 24:00, got {text!r}")
    if start == end:
        raise ValueError(f"{text!r} is no time at all; the whole day is '00:00-24:00'")
    return start, end


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
