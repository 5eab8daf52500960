"""How fast a model runs on this machine: the network alone, and from the bytes of a picture to its boxes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from manyeyes.datasets.pictures import find_pictures
from manyeyes.errors import DataError
from manyeyes.runtime.engine import Engine, possible_engines
from manyeyes.runtime.vision import decode

__all__ = ["Speed", "measure_speeds"]

_MOST_PICTURES = 32


@dataclass(frozen=True, slots=True)
class Speed:
    """One way to run a model.

    Attributes:
        backend, precision: which.
        network_ms: median milliseconds of the network alone.
        end_to_end_ms: median milliseconds from the bytes of a picture to its boxes.
        p95_ms: of end to end, what one picture in twenty takes longer than.
        pictures_per_second: end to end, one after the other.
        size: (height, width) of the first picture.
    """

    backend: str
    precision: str
    network_ms: float
    end_to_end_ms: float
    p95_ms: float
    pictures_per_second: float
    size: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def measure_speeds(
    model: Path, pictures: Path | None, *, imgsz: int | None = None, threads: int | None = None, seconds: float = 3.0
) -> list[Speed]:
    """Measure every backend and precision that can run a model here, the fastest end to end first.

    Args:
        model: an exported one.
        pictures: a picture or a folder of them, of which 32 are taken; None for a made-up one of 1280 × 720 pixels.
        imgsz: long side in pixels that pictures are scaled to; default: as trained.
        threads: that it computes with; default: all cores that this process may use.
        seconds: to measure each.

    Raises:
        WeightsError: the file is no exported model.
        DataError: there is no picture.
    """
    files = _files(pictures)
    sizes = [decode(data).size for data in files]
    speeds = []
    for engine in possible_engines(model, threads=threads, imgsz=imgsz):
        for size in dict.fromkeys(sizes):
            engine.warm_up(size, several=False)
        times = _times(files, engine, seconds)
        network = statistics.median(engine.network_seconds(size) for size in sizes[:8])
        middle = statistics.median(times)
        late = float(np.quantile(times, 0.95))
        speeds.append(
            Speed(
                engine.backend,
                engine.precision,
                round(1000 * network, 2),
                round(1000 * middle, 2),
                round(1000 * late, 2),
                round(len(times) / sum(times), 1),
                sizes[0],
            )
        )
    return sorted(speeds, key=lambda speed: speed.end_to_end_ms)


def _times(files: Sequence[bytes], engine: Engine, seconds: float) -> list[float]:
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(times) < len(files):
        began = time.perf_counter()
        engine.predict(files[len(times) % len(files)])
        times.append(time.perf_counter() - began)
    return times


def _files(pictures: Path | None) -> list[bytes]:
    if pictures is None:
        rng = np.random.default_rng(0)
        blurred = cv2.GaussianBlur(rng.integers(0, 256, (720, 1280, 3), dtype=np.uint8), (0, 0), 5)
        stretched = cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]
        return [cv2.imencode(".jpg", stretched)[1].tobytes()]
    if not pictures.exists():
        raise DataError("does not exist", file=pictures)
    files = find_pictures(pictures) if pictures.is_dir() else [pictures]
    if not files:
        raise DataError("holds no picture", file=pictures)
    return [file.read_bytes() for file in files[:: max(1, len(files) // _MOST_PICTURES)][:_MOST_PICTURES]]
