"""Objects that walk through a picture, and what is counted of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pytest

from manyeyes.datasets.detections import Detections
from manyeyes.errors import ConfigError
from manyeyes.runtime.counting import Counted, Counting, Line, ObjectCounter, Zone

SIZE = (400, 600)
NAMES = ("person", "car")
# Upwards in the middle: who walks to the right goes in.
MIDDLE = Line("middle", (0.5, 1.0), (0.5, 0.0))
LEFT_HALF = Zone("left half", ((0, 0), (0.5, 0), (0.5, 1), (0, 1)))

Feet = tuple[float, float, int]


def frame(*feet: Feet) -> Detections:
    """People and cars of 40 × 80 pixels, by where they stand and their class."""
    boxes = [(x - 20, y - 80, x + 20, y) for x, y, _ in feet]
    return Detections(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.full(len(feet), 0.9, np.float32),
        np.array([class_id for _, _, class_id in feet], dtype=np.int64),
    )


def walked(counter: ObjectCounter, frames: Sequence[Sequence[Feet]]) -> list[Counted]:
    return [counter.update(frame(*feet), NAMES, SIZE) for feet in frames]


def way(start: float, end: float, y: float = 200, class_id: int = 0, step: float = 8) -> list[Feet]:
    count = int(abs(end - start) / step) + 1
    return [(x, y, class_id) for x in np.linspace(start, end, count)]


def test_who_crosses_a_line_is_counted_once_and_by_direction() -> None:
    counter = ObjectCounter(Counting((MIDDLE,)))
    there = way(200, 400)
    last = walked(counter, [[feet] for feet in there])[-1]
    assert last.counts["lines"] == {"middle": {"person": {"in": 1, "out": 0}}}
    back = walked(counter, [[feet] for feet in reversed(there)])[-1]
    assert back.counts["lines"] == {"middle": {"person": {"in": 1, "out": 1}}}


def test_classes_are_counted_apart_and_each_is_followed_by_itself() -> None:
    counter = ObjectCounter(Counting((MIDDLE,)))
    person, car = way(200, 400, y=150), list(reversed(way(200, 400, y=350, class_id=1)))
    told = walked(counter, list(zip(person, car, strict=True)))
    assert told[-1].counts["lines"]["middle"] == {"person": {"in": 1, "out": 0}, "car": {"in": 0, "out": 1}}
    numbers = {tuple(counted.tracks) for counted in told[2:]}
    assert len(numbers) == 1
    assert len(set(numbers.pop())) == 2


def test_who_passes_beyond_the_end_of_a_line_does_not_cross_it() -> None:
    counter = ObjectCounter(Counting((Line("short", (0.5, 0.25), (0.5, 0.0)),)))
    assert walked(counter, [[feet] for feet in way(200, 400, y=300)])[-1].counts["lines"] == {"short": {}}


def test_a_box_that_shakes_on_a_line_is_not_counted_again_and_again() -> None:
    counter = ObjectCounter(Counting((MIDDLE,)))
    shaking: list[list[Feet]] = [[(300 + (3 if n % 2 else -3), 200, 0)] for n in range(60)]
    assert walked(counter, shaking)[-1].counts["lines"] == {"middle": {}}


def test_a_zone_says_who_came_who_left_and_who_is_there() -> None:
    counter = ObjectCounter(Counting(zones=(LEFT_HALF,)))
    there = walked(counter, [[feet] for feet in way(450, 150)])[-1]
    assert there.counts["zones"] == {"left half": {"person": {"in": 1, "out": 0, "now": 1}}}
    gone = walked(counter, [[feet] for feet in way(150, 450)])[-1]
    assert gone.counts["zones"] == {"left half": {"person": {"in": 1, "out": 1, "now": 0}}}


def test_who_is_not_found_for_a_while_is_still_the_same() -> None:
    counter = ObjectCounter(Counting((MIDDLE,), (LEFT_HALF,)))
    there = way(200, 280)
    walked(counter, [[feet] for feet in there])
    hidden = walked(counter, [[]] * 4)
    assert hidden[-1].counts["zones"]["left half"]["person"]["now"] == 1
    after = walked(counter, [[feet] for feet in way(320, 400)])[-1]
    assert after.counts["lines"]["middle"] == {"person": {"in": 1, "out": 0}}
    forgotten = walked(counter, [[]] * 40)[-1]
    assert forgotten.counts["zones"]["left half"]["person"]["now"] == 0


def test_an_object_that_is_lost_in_the_middle_is_told_once_and_one_that_walks_out_is_not() -> None:
    counter = ObjectCounter(Counting((MIDDLE,)))
    walked(counter, [[feet] for feet in way(200, 280)])
    assert [counted.broken for counted in walked(counter, [[]] * 3)] == [True, False, False]
    leaves = ObjectCounter(Counting((MIDDLE,)))
    walked(leaves, [[feet] for feet in way(100, 24)])
    assert not any(counted.broken for counted in walked(leaves, [[]] * 3))


def test_counting_begins_again_from_nought() -> None:
    counter = ObjectCounter(Counting((MIDDLE,), (LEFT_HALF,)))
    walked(counter, [[feet] for feet in way(450, 150)])
    counter.reset()
    assert counter.counts() == {
        "lines": {"middle": {}},
        "zones": {"left half": {"person": {"in": 0, "out": 0, "now": 1}}},
    }


def test_frames_without_anything_and_models_with_other_classes_do_no_harm() -> None:
    counter = ObjectCounter(Counting((MIDDLE,)))
    assert walked(counter, [[], []])[-1].tracks == []
    walked(counter, [[feet] for feet in way(200, 300)])
    for feet in way(300, 400):
        last = counter.update(frame(feet), ("worker",), SIZE)
    assert sum(counts["in"] for counts in last.counts["lines"]["middle"].values()) == 1


def test_without_the_library_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match=r"needs the library supervision.*manyeyes\[counting\]"):
        ObjectCounter(Counting((MIDDLE,)))
