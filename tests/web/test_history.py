"""What was found lately."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manyeyes.errors import ResourceError
from manyeyes.web.history import History, Seen


def seen(name: str = "a.jpg", source: str = "request", when: float = 0.0, **counts: int) -> Seen:
    return Seen(when, source, name, "0" * 64, counts, 12.5)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    history = History(tmp_path, 100)
    yield history
    history.close()


def named(entries: list[Seen]) -> list[str]:
    return [entry.name for entry in entries]


def test_the_newest_is_the_first_and_nothing_is_changed(history: History) -> None:
    entries = [seen(f"{n}.jpg", when=float(n), car=n, person=1) for n in range(5)]
    for entry in entries:
        history.add(entry)
    history.flush()
    latest = history.latest()
    assert [entry.id for entry in latest] == [5, 4, 3, 2, 1]
    fields = ("time", "source", "name", "model", "counts", "milliseconds")
    for found, added in zip(latest, reversed(entries), strict=True):
        assert all(getattr(found, field) == getattr(added, field) for field in fields)


def test_one_turns_pages(history: History) -> None:
    for number in range(10):
        history.add(seen(str(number)))
    history.flush()
    first = history.latest(4)
    second = history.latest(4, before=first[-1].id)
    assert named(first + second) == list("98765432")
    assert history.latest(before=1) == []


def test_one_source_or_one_class_at_a_time(history: History) -> None:
    for entry in (
        seen("a", "stream gate", car=2),
        seen("b", "request", car=1, person=1),
        seen("c", "stream gate"),
        seen("d", "stream gate", person=3),
    ):
        history.add(entry)
    history.flush()
    assert named(history.latest(source="stream gate")) == ["d", "c", "a"]
    assert named(history.latest(name="car")) == ["b", "a"]
    assert named(history.latest(name="person", source="stream gate")) == ["d"]
    assert history.latest(source="stream") == []


@pytest.mark.parametrize(
    "name", ["car", "Car", "a%", "a_b", "%", "_", "!", 'a"b', "a\\b", "ca", "小汽车", "a: b", '": ', "car\n", ""]
)
def test_a_class_is_found_by_its_name_and_by_no_pattern(history: History, name: str) -> None:
    others = ["cart", "scar", "CAR", "axb", "anything", "truck"]
    history.add(Seen(0.0, "request", "mine", "0", {name: 1}, 1.0))
    for other in others:
        history.add(Seen(0.0, "request", "another", "0", {other: 1}, 1.0))
    history.flush()
    assert named(history.latest(name=name)) == ["mine"]


def test_totals_are_those_since_a_time(history: History) -> None:
    for when, cars in ((10.0, 1), (20.0, 2), (30.0, 4)):
        history.add(seen(when=when, car=cars, person=1))
    history.flush()
    assert history.totals(20.0) == {"car": 6, "person": 2}
    assert history.totals(31.0) == {}


def test_only_so_many_are_remembered(tmp_path: Path) -> None:
    history = History(tmp_path, 10)
    for number in range(1000):
        history.add(seen(str(number)))
    history.flush()
    assert named(history.latest(1000)) == [str(number) for number in range(999, 989, -1)]
    history.close()


def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    for number in range(3):
        history = History(tmp_path, 100)
        history.add(seen(str(number)))
        history.close()
    history = History(tmp_path, 100)
    assert named(history.latest()) == ["2", "1", "0"]
    history.close()


def test_none_are_remembered_where_none_are_wanted(tmp_path: Path) -> None:
    history = History(tmp_path / "state", 0)
    history.add(seen(car=1))
    history.flush()
    assert (history.latest(), history.totals(0.0)) == ([], {})
    history.close()
    assert not (tmp_path / "state").exists()


def test_a_file_that_is_no_history_is_named(tmp_path: Path) -> None:
    (tmp_path / "history.sqlite3").write_bytes(b"these are no pictures" * 100)
    with pytest.raises(ResourceError, match=r"history\.sqlite3: cannot be used .* Move it away"):
        History(tmp_path, 10)


def test_many_write_and_read_at_a_time_and_nobody_waits_for_the_disk(tmp_path: Path) -> None:
    history = History(tmp_path, 10_000)
    longest = [0.0]

    def write() -> None:
        for number in range(500):
            began = time.monotonic()
            history.add(seen(str(number), car=1))
            longest.append(time.monotonic() - began)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        history.latest(10)
    history.flush()
    assert history.totals(0.0) == {"car": 2000}
    assert history.lost == 0
    assert sorted(longest)[-20] < 0.05
    history.close()


def test_a_disk_that_fails_for_a_while_loses_pictures_and_not_the_history(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = history._insert
    failing = [True]

    def fails(batch: list[Seen]) -> None:
        if failing[0]:
            raise sqlite3.OperationalError("disk I/O error")
        insert(batch)

    monkeypatch.setattr(history, "_insert", fails)
    history.add(seen("lost"))
    history.flush()
    failing[0] = False
    history.add(seen("kept"))
    history.flush()
    assert named(history.latest()) == ["kept"]
    assert history.lost == 1


def test_half_a_letter_is_lost_alone(history: History) -> None:
    history.add(seen("\ud800"))
    history.flush()
    history.add(seen("after"))
    history.flush()
    assert named(history.latest()) == ["after"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(TEXT, st.integers(1, 99), max_size=3), max_size=8), TEXT)
def test_totals_and_classes_are_those_of_what_was_added(
    tmp_path_factory: pytest.TempPathFactory, pictures: list[dict[str, int]], name: str
) -> None:
    history = History(tmp_path_factory.mktemp("history"), 100)
    for counts in pictures:
        history.add(Seen(1.0, "request", "a", "0", counts, 1.0))
    history.flush()
    assert history.totals(0.0) == dict(sum(map(Counter, pictures), Counter()))
    for wanted in {name, *(key for counts in pictures for key in counts)}:
        found = history.latest(name=wanted)
        assert [entry.counts for entry in reversed(found)] == [counts for counts in pictures if wanted in counts]
    history.close()


def test_a_curve_counts_each_picture_in_its_span(history: History) -> None:
    for when, source, cars in ((9.9, "a", 1), (10.0, "a", 2), (14.9, "b", 4), (15.0, "a", 8), (20.0, "a", 16)):
        history.add(seen(source=source, when=when, car=cars))
    history.flush()
    assert history.series(10.0, 5.0, 2) == {"car": [6, 8]}
    assert history.series(10.0, 5.0, 2, source="a") == {"car": [2, 8]}
    assert history.series(100.0, 5.0, 2) == {}


def test_what_is_forgotten_is_gone_and_nothing_else(history: History) -> None:
    for when, source, count in ((1.0, "a", {"car": 1}), (2.0, "b", {"car": 1}), (3.0, "a", {"dog": 1}), (4.0, "a", {})):
        history.add(Seen(when, source, str(when), "0", count, 1.0))
    history.flush()
    before = history.version
    assert history.delete_before(4.0, source="a", name="car") == 1
    assert named(history.latest()) == ["4.0", "3.0", "2.0"]
    assert history.delete_before(3.0, since=2.5) == 0
    assert history.delete_before(3.0, since=2.0) == 1
    assert history.delete(history.latest()[0].id)
    assert not history.delete(99)
    assert named(history.latest()) == ["3.0"]
    assert history.version > before
