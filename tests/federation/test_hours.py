from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyeyes.federation.hours import DayHours

NIGHT = DayHours.parse(["22:00-06:00"])


def at(clock: str, day: int = 2) -> datetime:
    return datetime.fromisoformat(f"2026-03-{day:02d}T{clock}")


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("windows", "now", "closes"),
    [
        ("22:00-06:00", at("21:59"), None),
        ("22:00-06:00", at("22:00"), at("06:00", day=3)),
        ("22:00-06:00", at("23:59:59"), at("06:00", day=3)),
        ("22:00-06:00", at("00:00"), at("06:00")),
        ("22:00-06:00", at("06:00"), None),
        ("12:00-13:00,22:00-06:00", at("12:30"), at("13:00")),
        ("12:00-13:00,13:00-14:30", at("12:30"), at("14:30")),
        ("20:00-24:00,00:00-06:00", at("21:00"), at("06:00", day=3)),
        ("20:00-24:00", at("21:00"), at("00:00", day=3)),
        ("00:00-24:00", at("21:00"), at("00:00", day=4)),
        ("22:00-23:00,21:00-01:00", at("22:30"), at("01:00", day=3)),
    ],
)
def test_a_window_ends_when_it_should(windows: str, now: datetime, closes: datetime | None) -> None:
    assert DayHours.parse(windows.split(",")).closes(now) == closes


@pytest.mark.usefixtures("berlin")
def test_a_night_in_which_clocks_change_is_an_hour_shorter_or_longer() -> None:
    assert NIGHT.seconds_left(at("22:00", day=20)) == 8 * 3600
    assert NIGHT.seconds_left(at("22:00", day=28)) == 7 * 3600
    assert NIGHT.seconds_left(datetime(2026, 10, 24, 22)) == 9 * 3600
    assert NIGHT.seconds_left(at("12:00", day=28)) == 0


@given(start=st.integers(0, 1439), end=st.integers(0, 1440), minute=st.integers(0, 1439))
def test_a_moment_lies_in_a_window_just_if_its_minute_does(start: int, end: int, minute: int) -> None:
    if start == end:
        return
    inside = start <= minute < end if start < end else minute >= start or minute < end
    closes = DayHours(((start, end),)).closes(datetime(2026, 3, 2) + timedelta(minutes=minute))
    assert (closes is not None) == inside


@pytest.mark.parametrize("text", ["", "22-06", "22:00", "22:60-06:00", "24:00-06:00", "22:00-24:01", "6:00-06:00", "x"])
def test_what_is_no_window_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"hours|whole day"):
        DayHours.parse([text])
