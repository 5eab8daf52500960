"""What is counted in the pictures of the site's cameras: kept over restarts, counted from each start anew."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from manyeyes.errors import ConfigError, ResourceError
from manyeyes.runtime.counting import Counted, Counting, Line, ObjectCounter, Zone, check_counting
from manyeyes.runtime.streams import StreamResult
from manyeyes.weights import write_atomically

__all__ = ["CountingBody", "StreamCounts", "counted_values"]

_FILE = "counting.json"
_MOST = 16
_MOST_POINTS = 32
# Frames whose counts are remembered for whoever is about to show them.
_RECENT = 8

_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Point = tuple[_Share, _Share]
_Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,64}$")]

_log = logging.getLogger(__name__)


class LineBody(BaseModel):
    """A line between two points, in shares of the frame's sides.

    Seen from the first towards the second, who goes from the left to the right goes in.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    name: _Name
    start: _Point = Field(alias="from")
    end: _Point = Field(alias="to")

    @model_validator(mode="after")
    def _has_length(self) -> Self:
        if self.start == self.end:
            raise ValueError("a line needs two points")
        return self


class ZoneBody(BaseModel):
    """A zone by its corners, in shares of the frame's sides."""

    model_config = ConfigDict(extra="forbid")

    name: _Name
    points: list[_Point] = Field(min_length=3, max_length=_MOST_POINTS)


class CountingBody(BaseModel):
    """What is counted; nothing where both are empty."""

    model_config = ConfigDict(extra="forbid")

    lines: list[LineBody] = Field([], max_length=_MOST)
    zones: list[ZoneBody] = Field([], max_length=_MOST)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for those in (self.lines, self.zones):
            if len({one.name for one in those}) < len(those):
                raise ValueError("a name stands there twice")
        return self

    def counting(self) -> Counting:
        """The same as what a counter takes."""
        return Counting(
            tuple(Line(line.name, line.start, line.end) for line in self.lines),
            tuple(Zone(zone.name, tuple(zone.points)) for zone in self.zones),
        )


_KEPT = TypeAdapter(dict[str, CountingBody])


@dataclass(slots=True)
class _Counter:
    counter: ObjectCounter
    since: float = field(default_factory=time.time)
    recent: deque[tuple[int, Counted]] = field(default_factory=lambda: deque(maxlen=_RECENT))


class StreamCounts:
    """Counts for all cameras of a server; many threads may ask.

    Args:
        folder: the server's state folder.

    Attributes:
        version: grows whenever what is counted changes.

    Raises:
        ResourceError: what was kept is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / _FILE
        self._lock = threading.Lock()
        self._counters: dict[str, _Counter] = {}
        self.version = 0
        try:
            self._wanted = _KEPT.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            self._wanted = {}
        except (OSError, ValidationError) as error:
            raise ResourceError("is damaged", file=self._file, cure="Delete it, and say anew what to count.") from error
        for name, body in self._wanted.items():
            try:
                self._counters[name] = _Counter(ObjectCounter(body.counting()))
            except ConfigError as error:
                _log.warning("%s: nothing is counted: %s", name, error)

    def wanted(self, stream: str) -> CountingBody:
        """What is counted at a camera."""
        return self._wanted.get(stream, CountingBody())

    def want(self, stream: str, body: CountingBody) -> None:
        """Count this at a camera from now on, from nought; where nothing is wanted, count no more.

        Raises:
            ConfigError: objects cannot be followed here.
            ResourceError: the state folder cannot be written.
        """
        counting = body.counting()
        if counting:
            check_counting()
        with self._lock:
            wanted = {name: kept for name, kept in self._wanted.items() if name != stream}
            if counting:
                wanted[stream] = body
            write_atomically(self._file, _KEPT.dump_json(wanted, by_alias=True, indent=1) + b"\n")
            self._wanted = wanted
            self._counters.pop(stream, None)
            if counting:
                self._counters[stream] = _Counter(ObjectCounter(counting))
            self.version += 1

    def see(self, result: StreamResult) -> Counted | None:
        """Take a camera's next frame; None where nothing is counted."""
        with self._lock:
            known = self._counters.get(result.name)
            if known is None:
                return None
            found = result.found
            counted = known.counter.update(found.detections, found.engine.names, found.size)
            known.recent.append((result.number, counted))
            return counted

    def of_frame(self, stream: str, number: int) -> Counted | None:
        """What one of the last frames has come to."""
        with self._lock:
            known = self._counters.get(stream)
            recent = list(known.recent) if known else []
        return next((counted for seen, counted in recent if seen == number), None)

    def counts(self, stream: str) -> tuple[dict[str, Any], float | None]:
        """What was counted at a camera, and since when (seconds since 1970); None where nothing is counted."""
        with self._lock:
            known = self._counters.get(stream)
            return (known.counter.counts(), known.since) if known else ({"lines": {}, "zones": {}}, None)

    def reset(self, stream: str) -> None:
        """Count from nought again."""
        with self._lock:
            if known := self._counters.get(stream):
                known.counter.reset()
                known.since = time.time()
                self.version += 1


def counted_values(counted: Counted | None) -> dict[str, Any]:
    """What is added to a frame's answer; nothing where nothing is counted."""
    return {"tracks": counted.tracks, "counts": counted.counts} if counted else {}
