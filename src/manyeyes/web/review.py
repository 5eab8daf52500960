"""Pictures on which the model was unsure: kept at the site, corrected by its people, and added to what it trains on.

Each is a JPEG, encoded anew, with a file beside it that says why it was kept and what was found. A picture is known by
what it shows: the same one is kept once. Of those that nobody has looked at only so many stay; the oldest leave.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from manyeyes.datasets.detections import Detections
from manyeyes.datasets.overlay import MarkedBox, Overlay
from manyeyes.errors import ConfigError, DataError, ManyeyesError, ResourceError
from manyeyes.runtime.engine import Engine, Found
from manyeyes.runtime.vision import Decoded, Picture
from manyeyes.web.jpeg import encoded
from manyeyes.web.settings import ReviewSection
from manyeyes.weights import write_atomically

__all__ = ["Kept", "Reason", "Review", "ReviewBox", "ReviewState", "disagree", "is_unsure"]

Reason = Literal["low_margin", "disagreement", "track_break", "asked"]
ReviewState = Literal["open", "added", "dismissed"]

_ID = re.compile(r"[0-9a-f]{16}")
# More pixels teach a detector nothing, and take room on the disk.
_MOST_SIDE = 4096
# Two boxes that overlap by more are about the same object.
_SAME = 0.5
# Pictures that wait for the second model; more are not looked at a second time.
_MOST_WAITING = 4
_MOST_SOURCES = 1000
_SMALLEST = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReviewBox:
    """What the model found.

    Attributes:
        name: of the class.
        class_id: of the class, in the model.
        score: 0 to 1.
        xyxy: corners in pixels of the kept picture.
    """

    name: str
    class_id: int
    score: float
    xyxy: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Kept:
    """A picture that is kept, and how far its review is.

    Attributes:
        id: 16 hexadecimal digits, of what it shows.
        time: when, in seconds since 1970.
        source: "request", "live", "job NUMBER" or "stream NAME".
        name: of the picture, as its sender called it.
        model: hash of the model that looked.
        classes: of that model; those that boxes may have.
        reasons: why it was kept.
        width, height: of the kept picture, in pixels.
        detections: what the model found, from `review.low` on.
        boxes: as somebody corrected them so far; None where nobody has.
        state: "open", "added" to the training pictures, or "dismissed".
    """

    id: str
    time: float
    source: str
    name: str
    model: str
    classes: tuple[str, ...]
    reasons: tuple[Reason, ...]
    width: int
    height: int
    detections: tuple[ReviewBox, ...]
    boxes: tuple[MarkedBox, ...] | None = None
    state: ReviewState = "open"


_KEPT = TypeAdapter(Kept)


class Review:
    """All kept pictures of a server; many threads may ask.

    Args:
        folder: where they are kept.
        overlay: takes what is added to the training pictures.
        section: which pictures are kept.
        second: the model whose disagreement is looked for, opened; asked in a thread of its own.

    Attributes:
        version: grows whenever something changes.

    Raises:
        ResourceError: the folder cannot be written.
    """

    def __init__(
        self, folder: Path, overlay: Overlay, section: ReviewSection, second: Callable[[], Engine] | None = None
    ) -> None:
        self._folder, self._overlay, self._section = folder, overlay, section
        self._lock = threading.RLock()
        self._last: OrderedDict[str, float] = OrderedDict()
        self.version = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._kept = {kept.id: kept for kept in sorted(_all_kept(folder), key=lambda kept: kept.time)}
        except OSError as error:
            raise ResourceError(f"cannot be written ({error.strerror})", file=folder) from error
        self._waiting: queue.Queue[tuple[Found, str, str] | None] = queue.Queue(_MOST_WAITING)
        self._second = second
        self._thread: threading.Thread | None = None
        if second and section.keep:
            self._thread = threading.Thread(target=self._compare, name="manyeyes-review", daemon=True)
            self._thread.start()

    # -- what is kept -------------------------------------------------------------------------------------------------

    def consider(self, found: Found, source: str, name: str, *, broken_track: bool = False) -> str | None:
        """Keep a picture if the model was unsure of it; returns its id if it is open for review now.

        Never fails: a full disk is no reason not to answer.

        Args:
            found: the picture and what was found in it.
            source, name: see `Kept`.
            broken_track: an object that was followed through a camera's pictures is not found in it.
        """
        section, kind = self._section, source.partition(" ")[0]
        if not section.keep or kind not in section.sources or not self._is_time(source, kind):
            return None
        reasons: list[Reason] = []
        if is_unsure(found.detections, section.low, section.high):
            reasons.append("low_margin")
        if broken_track and section.track_breaks:
            reasons.append("track_break")
        if not reasons:
            if self._thread:
                with suppress(queue.Full):
                    self._waiting.put_nowait((found, source, name))
            return None
        return self._kept_for(found, source, name, reasons)

    def keep(self, found: Found, source: str, name: str, reasons: Sequence[Reason]) -> Kept:
        """Keep a picture; one that is kept already only gets the reasons that are new.

        Raises:
            ConfigError: none are kept here.
            ResourceError: the folder cannot be written.
        """
        if not self._section.keep:
            raise ConfigError(
                "no pictures are kept here",
                key="review.keep",
                cure="Let the server keep some (review.keep).",
            )
        picture = _reduced(found.picture)
        id = hashlib.sha256(f"{picture.shape}".encode() + picture.tobytes()).hexdigest()[:16]
        with self._lock:
            known = self._kept.get(id)
            if known:
                fresh = tuple(reason for reason in reasons if reason not in known.reasons)
                return self._write(replace(known, reasons=(*known.reasons, *fresh))) if fresh else known
            height, width = picture.shape[:2]
            kept = Kept(
                id,
                time.time(),
                source,
                name,
                found.engine.model_hash,
                found.engine.names,
                tuple(reasons),
                width,
                height,
                tuple(_scaled(found, (width, height), self._section.low)),
            )
            write_atomically(self._picture(id), encoded(picture))
            self._write(kept)
            self._make_room()
            return kept

    def _kept_for(self, found: Found, source: str, name: str, reasons: Sequence[Reason]) -> str | None:
        try:
            kept = self.keep(found, source, name, reasons)
        except ManyeyesError as error:
            _log.warning("a picture is not kept for review: %s", error)
            return None
        self._last[source] = time.monotonic()
        self._last.move_to_end(source)
        if len(self._last) > _MOST_SOURCES:
            self._last.popitem(last=False)
        return kept.id if kept.state == "open" else None

    def _is_time(self, source: str, kind: str) -> bool:
        """Of one camera, whose pictures are much alike, one in a while is enough.

        So it is of all others once there is no room: each would cost one that nobody has seen yet, and writing it.
        """
        if kind not in ("live", "stream") and not self._full:
            return True
        return time.monotonic() - self._last.get(source, -self._section.every) >= self._section.every

    @property
    def _full(self) -> bool:
        with self._lock:
            return sum(kept.state == "open" for kept in self._kept.values()) >= self._section.keep

    def _make_room(self) -> None:
        """Of those nobody has decided about, and of those that were dismissed, so many stay."""
        for state in ("open", "dismissed"):
            those = [kept.id for kept in self._kept.values() if kept.state == state]
            for id in those[: max(0, len(those) - self._section.keep)]:
                self._forget(id)

    def _compare(self) -> None:
        assert self._second
        while item := self._waiting.get():
            found, source, name = item
            try:
                engine = self._second()
                if engine.model_hash == found.engine.model_hash:
                    continue
                picture, low = Decoded(found.picture, found.size), self._section.low
                # Asked again: whoever sent the picture may have wanted high scores alone.
                mine, other = (one.predict(picture, min_score=low) for one in (found.engine, engine))
            except Exception as error:  # noqa: BLE001 - a second model that fails must not end the looking
                _log.warning("the second model: %s", error)
                continue
            high = self._section.high
            if disagree((mine, found.engine.names), (other, engine.names), high):
                self._kept_for(found, source, name, ["disagreement"])

    # -- what people do -----------------------------------------------------------------------------------------------

    def entries(self, state: ReviewState | None = "open", most: int = 100, before: str | None = None) -> list[Kept]:
        """Kept pictures, the newest first.

        Args:
            state: only these; None for all.
            most: so many.
            before: only older ones than the one with this id.
        """
        with self._lock:
            kept = list(reversed(self._kept.values()))
        ids = [entry.id for entry in kept]
        if before in ids:
            kept = kept[ids.index(before) + 1 :]
        return [entry for entry in kept if state in (None, entry.state)][:most]

    def get(self, id: str) -> Kept | None:
        """One of them."""
        with self._lock:
            return self._kept.get(id)

    def picture(self, id: str) -> bytes | None:
        """The JPEG; None where there is none."""
        try:
            return self._picture(id).read_bytes() if self.get(id) else None
        except OSError:
            return None

    def correct(self, id: str, boxes: Sequence[MarkedBox]) -> Kept:
        """Keep a draft of what is right.

        Raises:
            DataError: there is no such picture; a box is outside it, has no area, or is of a class the model lacks.
            ConfigError: it was added or dismissed.
            ResourceError: the folder cannot be written.
        """
        with self._lock:
            kept = self._known(id)
            if kept.state != "open":
                raise ConfigError(f"is {kept.state} already", cure="Open it again first.")
            return self._write(replace(kept, boxes=_checked(boxes, kept)))

    def add(self, id: str, boxes: Sequence[MarkedBox]) -> Kept:
        """Make it a training picture of this site, with these boxes and no others.

        Raises:
            DataError: see `correct`.
            ResourceError: a folder cannot be written.
        """
        with self._lock:
            kept = self._known(id)
            checked = _checked(boxes, kept)
            jpeg = self.picture(id)
            if jpeg is None:
                raise DataError("its picture is not there any more", cure="Delete it.")
            self._overlay.add(id, jpeg, (kept.width, kept.height), checked, kept.classes)
            return self._write(replace(kept, boxes=checked, state="added"))

    def settle(self, id: str, state: Literal["open", "dismissed"]) -> Kept:
        """Dismiss it, or open it again; a training picture it is no more.

        Raises:
            DataError: there is no such picture.
            ResourceError: a folder cannot be written.
        """
        with self._lock:
            kept = self._known(id)
            self._overlay.remove(id)
            changed = self._write(replace(kept, state=state))
            self._make_room()
            return changed

    def delete(self, id: str) -> None:
        """Forget it; a training picture it is no more.

        Raises:
            DataError: there is no such picture.
            ResourceError: a folder cannot be written.
        """
        with self._lock:
            self._known(id)
            self._overlay.remove(id)
            self._forget(id)

    def close(self) -> None:
        """End the thread; what waits for the second model is not looked at."""
        if self._thread:
            with suppress(queue.Empty):
                while True:
                    self._waiting.get_nowait()
            self._waiting.put(None)
            self._thread.join(timeout=10)

    # -- the folder ---------------------------------------------------------------------------------------------------

    def _known(self, id: str) -> Kept:
        if id not in self._kept:
            raise DataError(f"there is no picture {id} for review")
        return self._kept[id]

    def _picture(self, id: str) -> Path:
        return self._folder / f"{id}.jpg"

    def _write(self, kept: Kept) -> Kept:
        write_atomically(self._folder / f"{kept.id}.json", _KEPT.dump_json(kept, by_alias=True))
        self._kept[kept.id] = kept
        self.version += 1
        return kept

    def _forget(self, id: str) -> None:
        try:
            for suffix in (".json", ".jpg"):
                (self._folder / f"{id}{suffix}").unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(f"cannot be written ({error.strerror})", file=self._folder) from error
        del self._kept[id]
        self.version += 1


def is_unsure(detections: Detections, low: float, high: float) -> bool:
    """Whether there is an object whose best score lies from `low` to below `high`."""
    band = (detections.score >= low) & (detections.score < high)
    if not band.any():
        return False
    sure = detections.xyxy[detections.score >= high]
    if not len(sure):
        return True
    # Another class or a second box on an object that is sure is no doubt about it.
    return bool((_iou(detections.xyxy[band], sure).max(axis=1) <= _SAME).any())


def disagree(one: tuple[Detections, Sequence[str]], other: tuple[Detections, Sequence[str]], high: float) -> bool:
    """Whether one of two models is sure (score from `high`) of an object of which the other has no trace.

    Args:
        one, other: what each has found down to a low score, and its class names; classes that only one knows are left
            out.
        high: score from which a model is sure.
    """
    return _misses(one, other, high) or _misses(other, one, high)


def _misses(one: tuple[Detections, Sequence[str]], other: tuple[Detections, Sequence[str]], high: float) -> bool:
    (found, names), (there, other_names) = one, other
    for box, class_id in zip(found.xyxy[found.score >= high], found.class_id[found.score >= high], strict=True):
        name = names[class_id]
        if name not in other_names:
            continue
        same = there.xyxy[there.class_id == other_names.index(name)]
        if not len(same) or _iou(box[None], same).max() <= _SAME:
            return True
    return False


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, m) overlaps of (n, 4) and (m, 4) boxes, corners in pixels."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    area_a, area_b = (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b))
    overlap: NDArray[np.float32] = shared / np.maximum(area_a[:, None] + area_b[None] - shared, 1e-9)
    return overlap


def _checked(boxes: Sequence[MarkedBox], kept: Kept) -> tuple[MarkedBox, ...]:
    """Boxes inside the picture, of classes that its model knows.

    Raises:
        DataError: one is not.
    """
    checked = []
    for number, box in enumerate(boxes):
        if box.name not in kept.classes:
            raise DataError(f"box {number}: {box.name!r} is not a class of the model that looked")
        if not np.isfinite(box.xyxy).all():
            raise DataError(f"box {number}: is not made of finite numbers")
        limits = (kept.width, kept.height) * 2
        x1, y1, x2, y2 = (min(max(value, 0.0), float(limit)) for value, limit in zip(box.xyxy, limits, strict=True))
        if x2 - x1 < _SMALLEST or y2 - y1 < _SMALLEST:
            raise DataError(f"box {number}: has no area inside the picture of {kept.width} × {kept.height} pixels")
        checked.append(MarkedBox(name=box.name, xyxy=(x1, y1, x2, y2)))
    return tuple(checked)


def _reduced(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    scale = _MOST_SIDE / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _scaled(found: Found, size: tuple[int, int], low: float) -> Iterable[ReviewBox]:
    """What was found from a score on, in pixels of the kept picture of a size (width, height)."""
    scale = np.array([size[0] / found.size[1], size[1] / found.size[0]] * 2)
    names = found.engine.names
    boxes = found.detections.above(low)
    for box, score, class_id in zip(boxes.xyxy * scale, boxes.score, boxes.class_id, strict=True):
        x1, y1, x2, y2 = (round(float(value), 1) for value in box)
        yield ReviewBox(names[class_id], int(class_id), round(float(score), 4), (x1, y1, x2, y2))


def _all_kept(folder: Path) -> Iterable[Kept]:
    for about in folder.glob("*.json"):
        if not _ID.fullmatch(about.stem):
            continue
        try:
            kept = _KEPT.validate_json(about.read_bytes())
        except (OSError, ValidationError):
            _log.warning("%s is damaged and passed over", about)
            continue
        if kept.id == about.stem:
            yield kept
