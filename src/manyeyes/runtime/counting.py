"""Objects followed from frame to frame, and counted where they cross a line or enter a zone.

Followed by ByteTrack (Zhang et al. 2022, arXiv:2110.06864) of the library `supervision`, imported when it is needed.
What counts is the middle of a box's lower side: where an object stands.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from manyeyes.datasets.detections import Detections
from manyeyes.errors import ConfigError

__all__ = ["Counted", "Counting", "Line", "ObjectCounter", "Zone", "check_counting"]

Point = tuple[float, float]

# Frames for which an object that is not found is remembered.
_PATIENCE = 30
# A box shakes: only who is seen on the other side so often has crossed.
_SEEN_THERE = 2
# An object that was followed through so many frames, and not to the border, does not end by itself.
_FOLLOWED = 5
_BORDER = 0.05


@dataclass(frozen=True, slots=True)
class Line:
    """Counts who crosses it between its ends.

    Attributes:
        name: what people call it.
        start, end: (x, y) in shares of the frame's sides. Seen from the start towards the end, who goes from the left
            to the right goes in.
    """

    name: str
    start: Point
    end: Point

    def side(self, point: Point) -> bool:
        """Whether a point is to the right."""
        return _turn(self.start, self.end, point) > 0

    def crossed(self, before: Point, after: Point) -> bool:
        """Whether the way from one point to another leads through between its ends."""
        return self.side(before) != self.side(after) and (_turn(before, after, self.start) > 0) != (
            _turn(before, after, self.end) > 0
        )


@dataclass(frozen=True, slots=True)
class Zone:
    """Counts who enters and leaves it.

    Attributes:
        name: what people call it.
        points: at least three corners, (x, y) in shares of the frame's sides.
    """

    name: str
    points: tuple[Point, ...]

    def holds(self, point: Point) -> bool:
        """Whether a point is inside or on the border."""
        return cv2.pointPolygonTest(np.array(self.points, dtype=np.float32), point, False) >= 0


@dataclass(frozen=True, slots=True)
class Counting:
    """What is counted in a camera's pictures; no name stands there twice."""

    lines: tuple[Line, ...] = ()
    zones: tuple[Zone, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lines or self.zones)


@dataclass(frozen=True, slots=True)
class Counted:
    """What one frame has come to.

    Attributes:
        tracks: number of the object that each detection belongs to, from 1; None for one that is not followed.
        counts: {"lines": {name: {class: {"in", "out"}}}, "zones": {name: {class: {"in", "out", "now"}}}}, so far.
        broken: an object that was followed for a while is missing in this frame, and had not gone to its border.
    """

    tracks: list[int | None]
    counts: dict[str, dict[str, dict[str, dict[str, int]]]]
    broken: bool


@dataclass(slots=True)
class _Place:
    """On which side of a line, or whether in a zone, an object is: the last that is certain, and what it seems now."""

    certain: bool
    point: Point
    seems: int = 0


@dataclass(slots=True)
class _Object:
    """One that is followed."""

    classes: Counter[str] = field(default_factory=Counter)
    places: dict[tuple[str, str], _Place] = field(default_factory=dict)
    frames: int = 0
    missing: int = 0
    at_border: bool = False

    @property
    def name(self) -> str:
        """The class it was found as most often."""
        return self.classes.most_common(1)[0][0]


class ObjectCounter:
    """Follows and counts the objects of one camera; asked by one thread at a time, with frames in their order.

    Args:
        counting: what is counted.

    Raises:
        ConfigError: the library is not installed.
    """

    def __init__(self, counting: Counting) -> None:
        self.counting = counting
        self._tracker = _byte_track()
        self._objects: dict[int, _Object] = {}
        self._in: Counter[tuple[str, str, str]] = Counter()
        self._out: Counter[tuple[str, str, str]] = Counter()

    def update(self, found: Detections, names: Sequence[str], size: tuple[int, int]) -> Counted:
        """Take the next frame.

        Args:
            found: in it.
            names: classes by id.
            size: (height, width) of the frame in the pixels of the boxes.
        """
        tracks = self._follow(found)
        limits = np.array([size[1], size[0]] * 2, dtype=np.float64)
        seen: set[int] = set()
        for track, box, class_id in zip(tracks, found.xyxy, found.class_id, strict=True):
            if track is not None and track not in seen:
                seen.add(track)
                self._see(track, box / limits, names[class_id])
        broken = self._miss(seen)
        return Counted(tracks, self.counts(), broken)

    def counts(self) -> dict[str, dict[str, dict[str, dict[str, int]]]]:
        """So far; see `Counted`."""
        lines = {line.name: self._of("lines", line.name) for line in self.counting.lines}
        zones = {zone.name: self._of("zones", zone.name) for zone in self.counting.zones}
        for zone_name, classes in zones.items():
            now = Counter(
                one.name
                for one in self._objects.values()
                if (place := one.places.get(("zones", zone_name))) and place.certain
            )
            for name in {**classes, **now}:
                classes.setdefault(name, {"in": 0, "out": 0})["now"] = now[name]
        return {"lines": lines, "zones": zones}

    def reset(self) -> None:
        """Count from nought again; who is in a zone stays in it."""
        self._in.clear()
        self._out.clear()

    def _of(self, kind: str, place: str) -> dict[str, dict[str, int]]:
        keys = [key for key in {**self._in, **self._out} if key[:2] == (kind, place)]
        return {key[2]: {"in": self._in[key], "out": self._out[key]} for key in keys}

    def _follow(self, found: Detections) -> list[int | None]:
        """Number of the object for each detection."""
        import supervision

        tracks: list[int | None] = [None] * len(found)
        boxes = supervision.Detections(
            xyxy=found.xyxy.reshape(-1, 4),
            confidence=found.score,
            class_id=found.class_id,
            data={"place": np.arange(len(found))},
        )
        followed = self._tracker.update_with_detections(boxes)
        if len(followed):
            for place, track in zip(followed.data["place"], followed.tracker_id, strict=True):
                tracks[int(place)] = int(track)
        return tracks

    def _see(self, track: int, share: NDArray[np.float64], name: str) -> None:
        one = self._objects.setdefault(track, _Object())
        one.classes[name] += 1
        one.frames += 1
        one.missing = 0
        x1, y1, x2, y2 = (float(value) for value in share)
        one.at_border = min(x1, y1) < _BORDER or max(x2, y2) > 1 - _BORDER
        point = (x1 + x2) / 2, y2
        for line in self.counting.lines:
            self._place(one, ("lines", line.name), point, line.side(point), line.crossed)
        for zone in self.counting.zones:
            self._place(one, ("zones", zone.name), point, zone.holds(point), lambda *_: True)

    def _place(
        self, one: _Object, key: tuple[str, str], point: Point, there: bool, crossed: Callable[[Point, Point], bool]
    ) -> None:
        place = one.places.get(key)
        if place is None:
            one.places[key] = _Place(there, point)
        elif there == place.certain:
            place.point, place.seems = point, 0
        else:
            place.seems += 1
            if place.seems >= _SEEN_THERE:
                if crossed(place.point, point):
                    (self._in if there else self._out)[(*key, one.name)] += 1
                place.certain, place.point, place.seems = there, point, 0

    def _miss(self, seen: set[int]) -> bool:
        broken = False
        for track in [track for track in self._objects if track not in seen]:
            one = self._objects[track]
            one.missing += 1
            broken |= one.missing == 1 and one.frames >= _FOLLOWED and not one.at_border
            if one.missing > _PATIENCE:
                del self._objects[track]
        return broken


def check_counting() -> None:
    """Whether objects can be followed here.

    Raises:
        ConfigError: the library is not installed.
    """
    _byte_track()


def _byte_track() -> Any:
    try:
        with warnings.catch_warnings():
            # It moves to a library that needs another OpenCV than the one without a screen.
            warnings.simplefilter("ignore", FutureWarning)
            import supervision

            return supervision.ByteTrack(lost_track_buffer=_PATIENCE, frame_rate=30)
    except ImportError as error:
        raise ConfigError(
            "counting needs the library supervision", cure="pip install 'manyeyes[counting]', and start again."
        ) from error


def _turn(a: Point, b: Point, c: Point) -> float:
    """Above 0 where the way from a over b to c turns right, as it is seen on a screen."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
