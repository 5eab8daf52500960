"""Find objects in whatever `sources` gives; the next picture is decoded while the network looks at this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from manyeyes.datasets.detections import Detections
from manyeyes.errors import DataError
from manyeyes.runtime.engine import Engine
from manyeyes.runtime.sources import Shown
from manyeyes.runtime.vision import Decoded, decode

__all__ = ["Prediction", "predict"]

_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Prediction:
    """One picture and what was found in it, or why there is nothing to say.

    Attributes:
        shown: the picture.
        detections: what was found; None with an error.
        error: why it could not be looked at.
    """

    shown: Shown
    detections: Detections | None
    error: str | None = None


def predict(
    engine: Engine, pictures: Iterable[Shown], *, min_score: float, ahead: int = _AHEAD
) -> Iterator[Prediction]:
    """Find objects in pictures, in their order; one that cannot be decoded is named and passed over.

    Args:
        engine: finds them.
        pictures: of any source.
        min_score: lowest score kept.
        ahead: pictures that are decoded before it is their turn; 0 for a live stream, where the newest counts.
    """
    waiting: deque[tuple[Shown, Future[Decoded | str]]] = deque()
    with ThreadPoolExecutor(1, "manyeyes-decode") as decoder:
        for shown in pictures:
            waiting.append((shown, decoder.submit(_decoded, shown, engine.imgsz)))
            if len(waiting) > ahead:
                yield _looked_at(engine, *waiting.popleft(), min_score)
        while waiting:
            yield _looked_at(engine, *waiting.popleft(), min_score)


def _decoded(shown: Shown, side: int) -> Decoded | str:
    if not isinstance(shown.picture, bytes):
        return shown.picture or str(shown.error)
    try:
        return decode(shown.picture, side)
    except DataError as error:
        return str(error)


def _looked_at(engine: Engine, shown: Shown, decoded: Future[Decoded | str], min_score: float) -> Prediction:
    picture = decoded.result()
    if isinstance(picture, str):
        return Prediction(shown, None, picture)
    return Prediction(shown, engine.predict(picture, min_score=min_score))
