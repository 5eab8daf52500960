"""The engines that a server looks with: changed while it serves, and back to the former one when a new one fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from manyeyes.errors import ManyeyesError, WeightsError
from manyeyes.registry import Entry, Registry, used_meanwhile
from manyeyes.runtime.beside import Beside
from manyeyes.runtime.engine import Engine, Found, Scene
from manyeyes.runtime.vision import MAX_IOU, MOST_PIXELS, Decoded, Picture, decode

__all__ = ["Host", "Night", "Opener", "self_test"]

Opener = Callable[[str], Engine]
"""Opens a model of the registry by its hash; raises `ManyeyesError` where it cannot."""

# A new engine that fails within so many pictures is taken back; later, the picture is the likelier cause.
_PROBATION = 200
_SELF_TEST_SIZE = (480, 640)
# Of cameras and telephones, (height, width).
_USUAL_SIZES = ((1080, 1920), (480, 640))
# Every so many pixels one is enough to say how bright a picture is.
_STRIDE = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Night:
    """When the model for the night looks instead of the other; whatever is said holds.

    Attributes:
        model: its hash in the registry.
        is_night: whether it is night by the clock.
        darker_than: mean brightness of a picture, 0 to 255, below which it is night in it.
    """

    model: str
    is_night: Callable[[], bool] | None = None
    darker_than: float | None = None


@dataclass(slots=True)
class _Serving:
    """An engine at work, and what served before it as long as that may be needed."""

    engine: Engine
    before: _Serving | None = None
    good: int = field(default=0)

    def after(self, fresh: Engine) -> _Serving:
        """A fresh engine in its place.

        However often it is changed within their first pictures, three stay open: the fresh one, the one before it, and
        the last that has proved itself.
        """
        if self.before and self.before.before:
            self.before = self.before.before
        return _Serving(fresh, before=self)


class Host:
    """Looks at pictures with the model in use; many threads may ask, and none of them notices that it is changed.

    A model is opened, warmed and tested beside the one in use, and only then takes its place: who has begun with the
    former one ends with it. An engine that fails on its first pictures is taken back by itself.

    Args:
        registry: where models lie and which is used.
        opener: opens one.
        model: hash of the one to begin with.
        night: of another one, and when it looks.
        or_else: hashes of those to begin with where that one cannot be opened or fails its test, in this order.

    Raises:
        ManyeyesError: no model, or not that for the night, can be opened and passes its test.
    """

    def __init__(
        self,
        registry: Registry,
        opener: Opener,
        model: str,
        night: Night | None = None,
        *,
        or_else: Sequence[str] = (),
    ) -> None:
        self.registry = registry
        self._opener = opener
        self._night = night
        self._changing = threading.Lock()
        self._serving = _Serving(self._first_ready([model, *or_else]))
        self._night_engine = self._ready(night.model) if night else None
        self._beside = Beside(opener)
        self._forced: Scene | None = None
        self.changes = 0
        self.taken_back = 0
        if registry.used[:1] != [self.in_use]:
            registry.use(self.in_use)

    @property
    def engine(self) -> Engine:
        """The one that looks now, as far as the clock or an order says."""
        return self._engine_for(self.scene)

    @property
    def in_use(self) -> str:
        """Hash of the model in use; by night another one may look."""
        return self._serving.engine.model_hash

    @property
    def night(self) -> Night | None:
        """The model for the night, if there is one."""
        return self._night

    @property
    def scene(self) -> Scene:
        """What it is, if no picture is asked."""
        if forced := self._forced:
            return forced
        by_clock = self._night and self._night.is_night and self._night.is_night()
        return "night" if by_clock else "day"

    @property
    def forced(self) -> Scene | None:
        """What was ordered; None where the rule decides."""
        return self._forced

    def force(self, scene: Scene | None) -> None:
        """Look as by day or as by night from now on, or by the rule again.

        Raises:
            WeightsError: there is no model for the night.
        """
        if scene == "night" and self._night is None:
            raise WeightsError(
                "there is no model for the night", cure="Start with --night MODEL, or `night:` in the configuration."
            )
        self._forced = scene

    @property
    def at_once(self) -> int:
        """As many pictures are worth asking for at the same time."""
        return self._serving.engine.at_once

    def look(
        self,
        picture: bytes | Decoded,
        *,
        min_score: float = 0.25,
        max_iou: float = MAX_IOU,
        most_pixels: int = MOST_PIXELS,
        model: str | None = None,
    ) -> Found:
        """Find objects in one picture.

        Args:
            picture: the bytes of its file, or what `decode` made of them.
            min_score: lowest score kept.
            max_iou: of two boxes of a class that overlap by more, the better one is kept.
            most_pixels: a larger file is not decoded.
            model: hash of another one to look with, this once; default: the one in use.

        Raises:
            DataError: the bytes are no picture, or it is too large.
            ManyeyesError: the other model cannot be opened.
        """
        began = time.perf_counter()
        other = self.opened(model) if model else None
        if isinstance(picture, bytes):
            side = max(self._side, other.imgsz) if other else self._side
            picture = decode(picture, side, most_pixels=most_pixels)
        scene = self._scene_of(picture.picture)
        if other:
            found = other.look(picture, min_score=min_score, max_iou=max_iou)
        else:
            found = self._looked(scene, picture, min_score, max_iou)
        return replace(found, scene=scene, seconds=time.perf_counter() - began)

    def opened(self, model: str) -> Engine:
        """The engine of any model of the registry: one that looks already, or one opened beside them.

        Raises:
            ManyeyesError: it cannot be opened.
        """
        for engine in (self._serving.engine, self._night_engine):
            if engine and engine.model_hash == model:
                return engine
        return self._beside.engine(model)

    def use(self, model: str) -> Entry:
        """Change to another model of the registry; whoever asks meanwhile is served by the former one.

        Raises:
            ManyeyesError: it cannot be opened or fails its test; the former one stays.
        """
        with self._changing:
            entry = self.registry.entry(model)
            if entry.hash == self._serving.engine.model_hash:
                return entry
            fresh = self._ready(entry.hash, like=self._serving.engine)
            self.registry.use(entry.hash)
            self._change(entry, fresh)
            return entry

    def _change(self, entry: Entry, fresh: Engine) -> None:
        self._serving = self._serving.after(fresh)
        self.changes += 1
        _log.info("model %s (%s) is in use", entry.hash[:12], entry.label)

    def follow(self) -> None:
        """Change to the model that somebody else, such as this site's node, has put to use in the registry.

        One that cannot be opened or fails its test is taken back there, and named in the log. A registry that does not
        say any more what is in use changes nothing.
        """
        wanted = self.registry.wanted
        if wanted in (None, self._serving.engine.model_hash):
            return
        with self._changing:
            now = self._serving.engine
            try:
                entry = self.registry.entry(wanted)
                self._change(entry, self._ready(wanted, like=now))
            except ManyeyesError as error:
                _log.warning("model %s is not used: %s", wanted[:12], error)
                self._not_used(wanted, now.model_hash)

    def roll_back(self) -> Entry:
        """Change to the model that was used before this one.

        Raises:
            WeightsError: there was none, or another model was put to use meanwhile.
            ManyeyesError: it cannot be opened or fails its test; the present one stays.
        """
        with self._changing:
            wanted, previous = self.registry.to_go_back()
            fresh = self._ready(previous, like=self._serving.engine)
            if not self.registry.drop_used(wanted, back_to=previous):
                raise used_meanwhile()
            self._serving = _Serving(fresh)
            self.changes += 1
            return self.registry.entry(previous)

    def _first_ready(self, models: Sequence[str]) -> Engine:
        failed: list[ManyeyesError] = []
        for model in models:
            try:
                return self._ready(model)
            except ManyeyesError as error:
                _log.warning("model %s is not used: %s", model[:12], error)
                failed.append(error)
        raise failed[0]

    def _ready(self, model: str, like: Engine | None = None) -> Engine:
        """An engine that passed its test, warm for what pictures have come lately."""
        engine = self._opener(model)
        self_test(engine)
        for canvas in like.canvases if like else _USUAL_SIZES:
            engine.warm_up(canvas)
        return engine

    def _scene_of(self, picture: Picture) -> Scene:
        darker_than = self._night.darker_than if self._night else None
        if darker_than is None or self._forced:
            return self.scene
        dark = float(picture[::_STRIDE, ::_STRIDE].mean()) < darker_than
        return "night" if dark else self.scene

    @property
    def _side(self) -> int:
        """No picture is decoded smaller than the model that will look at it needs."""
        engines = (self._serving.engine, self._night_engine)
        return max(engine.imgsz for engine in engines if engine)

    def _engine_for(self, scene: Scene) -> Engine:
        return self._night_engine if scene == "night" and self._night_engine else self._serving.engine

    def _looked(self, scene: Scene, picture: Decoded, min_score: float, max_iou: float) -> Found:
        if scene == "night" and self._night_engine:
            return self._night_engine.look(picture, min_score=min_score, max_iou=max_iou)
        # Asked once: it may be another the moment after.
        serving = self._serving
        engine, before = serving.engine, serving.before
        try:
            found = engine.look(picture, min_score=min_score, max_iou=max_iou)
        except ManyeyesError:
            raise
        except Exception:
            if before is None:
                raise
            self._take_back(serving)
            return self._looked(scene, picture, min_score, max_iou)
        if before is not None:
            serving.good += 1
            if serving.good >= _PROBATION:
                serving.before = None  # its memory is free again
        return found

    def _take_back(self, serving: _Serving) -> None:
        with self._changing:
            if self._serving is not serving or serving.before is None:
                return
            _log.exception("model %s fails: back to the former one", serving.engine.model_hash[:12])
            self._serving = serving.before
            self._not_used(serving.engine.model_hash, serving.before.engine.model_hash)

    def _not_used(self, model: str, back_to: str) -> None:
        self.taken_back += 1
        try:
            self.registry.drop_used(model, back_to=back_to)
        except ManyeyesError as error:  # a full disk is no reason not to answer
            _log.warning("it will be tried again after the next start: %s", error)


def self_test(engine: Engine) -> None:
    """Whether what an engine gives for a noisy picture are boxes; warms it too.

    Raises:
        WeightsError: it fails, or gives nothing that could be a box.
    """
    height, width = _SELF_TEST_SIZE
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    try:
        # Without a threshold a sound network has candidates everywhere; one that computes NaN has none.
        found = engine.predict(Decoded(noise, (height, width)), min_score=0.0)
    except Exception as error:  # whatever a network raises, it is not to be used
        raise WeightsError(f"fails its test ({error})", file=engine.model_hash[:12]) from error
    if not len(found) or not np.isfinite(found.xyxy).all():
        raise WeightsError(
            "fails its test: what it computes are no boxes", file=engine.model_hash[:12], cure="Export it again."
        )
