"""Open an exported model in the way that is fastest on this machine, and find objects with it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from manyeyes.datasets.detections import Detections
from manyeyes.errors import ConfigError, ResourceError
from manyeyes.runtime.model_file import ModelInfo, file_hash, parts_of
from manyeyes.runtime.network import Lanes, Network, Shot
from manyeyes.runtime.turns import Turns
from manyeyes.runtime.vision import MAX_IOU, Decoded, Geometry, Picture, decode, find_boxes
from manyeyes.weights import write_atomically

__all__ = ["Backend", "Engine", "Found", "Precision", "Scene", "open_engine", "possible_engines"]

Backend = Literal["auto", "openvino", "onnxruntime"]
Precision = Literal["auto", "fp32", "bf16", "int8"]

Scene = Literal["day", "night"]

Choice = tuple[str, str]
"""Backend and precision."""

# Shapes of canvases that stay prepared. A camera has one; folders of pictures have a few.
_SHAPES = 6
_MEASURED = 7


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What was found in a picture, and by what.

    Attributes:
        detections: boxes in pixels of the picture.
        size: (height, width) of the picture.
        picture: (h, w, 3) uint8 BGR as it was looked at; smaller than `size` where it was decoded smaller.
        engine: that looked.
        seconds: from the picture to the boxes, waiting for other pictures among them.
        scene: for which the engine's model is.
    """

    detections: Detections
    size: tuple[int, int]
    picture: Picture
    engine: Engine
    seconds: float
    scene: Scene = "day"


class Engine:
    """Finds objects in pictures; many threads may ask it.

    One picture has all threads of the network. Where several wait, and the network can, they are looked at side by side
    with fewer threads each, which gives more pictures a second.

    Args:
        network: the model, opened.
        model_hash: SHA-256 of its file.
        imgsz: long side in pixels that pictures are scaled to; default: as trained.

    Attributes:
        at_once: as many pictures are worth asking for at the same time; more only wait.
    """

    def __init__(self, network: Network, model_hash: str, imgsz: int | None = None) -> None:
        self._network = network
        self._lanes = network if isinstance(network, Lanes) and network.lanes > 1 else None
        # One more than run, so that the next picture is scaled meanwhile.
        self.at_once = self._lanes.lanes + 1 if self._lanes else 1
        self._turns = Turns(self.at_once)
        self._shots: OrderedDict[tuple[int, int], _Shots] = OrderedDict()
        self._lock = threading.Lock()
        self.model_hash = model_hash
        self.imgsz = imgsz or network.info.imgsz

    @property
    def info(self) -> ModelInfo:
        """What the model says of itself."""
        return self._network.info

    @property
    def names(self) -> tuple[str, ...]:
        """The classes it finds."""
        return self.info.names

    @property
    def backend(self) -> str:
        """What runs it: "openvino" or "onnxruntime"."""
        return self._network.backend

    @property
    def precision(self) -> str:
        """In what it computes: "fp32", "bf16" or "int8"."""
        return self._network.precision

    def predict(self, picture: bytes | Decoded, *, min_score: float = 0.25, max_iou: float = MAX_IOU) -> Detections:
        """Find objects in one picture.

        Args:
            picture: the bytes of its file, or what `decode` made of them.
            min_score: lowest score kept.
            max_iou: of two boxes of a class that overlap by more, the better one is kept.

        Raises:
            DataError: the bytes are no picture.
        """
        decoded = decode(picture, self.imgsz) if isinstance(picture, bytes) else picture
        geometry = Geometry.of(decoded.size, self.imgsz)
        shots = self._prepared(geometry.canvas)
        with self._turns.turn() as alone, shots.one(alone=alone) as shot:
            shot.canvas.show(decoded.picture, geometry)
            return find_boxes(shot.run(), geometry, decoded.size, min_score=min_score, max_iou=max_iou)

    def look(self, picture: Decoded, *, min_score: float = 0.25, max_iou: float = MAX_IOU) -> Found:
        """`predict`, with what belongs to the answer."""
        began = time.perf_counter()
        detections = self.predict(picture, min_score=min_score, max_iou=max_iou)
        return Found(detections, picture.size, picture.picture, self, time.perf_counter() - began)

    @property
    def canvases(self) -> list[tuple[int, int]]:
        """(height, width) of the canvases that are prepared: what pictures it has seen lately."""
        with self._lock:
            return list(self._shots)

    def warm_up(self, size: tuple[int, int], *, several: bool = True) -> None:
        """Prepare for pictures of a size (height, width), so that the first does not wait.

        Args:
            size: in pixels.
            several: also for several at the same time, which takes as long again.
        """
        shots = self._prepared(Geometry.of(size, self.imgsz).canvas)
        for alone in (True, False) if several and self._lanes else (True,):
            with self._turns.turn(alone=True), shots.one(alone=alone) as shot:
                shot.run()

    def network_seconds(self, size: tuple[int, int] | None = None, *, repeats: int = _MEASURED) -> float:
        """Median time of the network alone on a picture of a size (height, width); default: a square one."""
        shots = self._prepared(Geometry.of(size or (self.imgsz, self.imgsz), self.imgsz).canvas)
        with self._turns.turn(alone=True), shots.one(alone=True) as shot:
            return _median_seconds(shot, repeats)

    def _prepared(self, shape: tuple[int, int]) -> _Shots:
        with self._lock:
            shots = self._shots.pop(shape, None) or _Shots(self._network, self._lanes, shape, self.at_once)
            self._shots[shape] = shots
            if len(self._shots) > _SHAPES:
                self._shots.popitem(last=False)
        shots.make()
        return shots


class _Shots:
    """The canvases of one shape, each made when it is first needed."""

    def __init__(self, network: Network, lanes: Lanes | None, shape: tuple[int, int], count: int) -> None:
        self._network, self._lanes, self._shape, self._count = network, lanes, shape, count
        self._alone: Shot | None = None
        self._beside: deque[Shot] = deque()
        self._lock = threading.Lock()

    def make(self) -> None:
        """Compile for the shape, which takes a third of a second: before its turn, so that others have theirs."""
        with self._lock:
            self._alone = self._alone or self._network.shot(self._shape)

    @contextmanager
    def one(self, *, alone: bool) -> Iterator[Shot]:
        """The one for a picture that has the network alone, or one of those for pictures side by side."""
        if alone or not self._lanes:
            assert self._alone
            yield self._alone
            return
        with self._lock:
            if self._count:
                self._beside.extend(self._lanes.lane_shots(self._shape, self._count))
                self._count = 0
            shot = self._beside.popleft()
        try:
            yield shot
        finally:
            self._beside.append(shot)


def open_engine(
    path: Path,
    *,
    backend: Backend = "auto",
    precision: Precision = "auto",
    threads: int | None = None,
    imgsz: int | None = None,
    measured: Path | None = None,
) -> Engine:
    """Open an exported model; of what is left open the fastest on this machine is taken.

    What is fastest is measured once, in about a second for each possibility, and kept for this file, machine and
    number of threads.

    Args:
        path: an ONNX file or an OpenVINO folder.
        backend, precision: what to run it with; "auto" for the fastest.
        threads: that it computes with; default: all cores that this process may use.
        imgsz: long side in pixels that pictures are scaled to; default: as trained.
        measured: file where measurements are kept; None keeps none.

    Raises:
        WeightsError: the file is missing, damaged, or no model of ours.
        ConfigError: this machine or this file cannot do what is asked for.
    """
    parts_of(path)
    threads = threads or len(os.sched_getaffinity(0))
    openers = {
        key: opener
        for key, opener in _openers(path, threads).items()
        if backend in ("auto", key[0]) and precision in ("auto", key[1])
    }
    if not openers:
        able = ", ".join(f"{name} {kind}" for name, kind in _openers(path, threads))
        raise ConfigError(
            f"cannot be run with {backend} in {precision} here", file=path, cure=f"Possible are: {able}, or auto."
        )
    model_hash = file_hash(path)
    if len(openers) == 1:
        return Engine(next(iter(openers.values()))(), model_hash, imgsz)
    key = f"{model_hash} at {imgsz or 'its own'} px, {threads} threads, {_machine()}"
    seconds = _kept(measured, key)
    if not openers.keys() <= seconds.keys():
        for choice, opener in openers.items():
            engine = Engine(opener(), model_hash, imgsz)
            engine.warm_up((engine.imgsz, engine.imgsz), several=False)
            seconds[choice] = engine.network_seconds()
        _keep(measured, key, seconds)
    fastest = min(openers, key=lambda choice: seconds[choice])
    return Engine(openers[fastest](), model_hash, imgsz)


def possible_engines(path: Path, *, threads: int | None = None, imgsz: int | None = None) -> list[Engine]:
    """An engine for each backend and precision that can run a model here; see `open_engine`."""
    parts_of(path)
    model_hash = file_hash(path)
    openers = _openers(path, threads or len(os.sched_getaffinity(0)))
    return [Engine(opener(), model_hash, imgsz) for opener in openers.values()]


def _openers(path: Path, threads: int) -> dict[Choice, Callable[[], Network]]:
    """Backend and precision → what opens the model so. OpenVINO is imported where it is used, not before."""
    from manyeyes.runtime.onnx_network import OnnxNetwork
    from manyeyes.runtime.openvino_network import OpenVinoNetwork, precisions_here

    network = OpenVinoNetwork(path, precision="fp32", threads=threads)
    if network.precision == "int8":
        return {("openvino", "int8"): lambda: network}
    here = precisions_here()
    if network.info.precision == "bf16" and "bf16" in here:
        here = ("bf16",)

    def with_openvino(precision: str) -> Callable[[], Network]:
        return lambda: OpenVinoNetwork(path, precision=precision, threads=threads)

    openers: dict[Choice, Callable[[], Network]] = {
        ("openvino", precision): with_openvino(precision) for precision in here
    }
    if path.suffix == ".onnx":
        openers["onnxruntime", "fp32"] = lambda: OnnxNetwork(path, threads=threads)
    return openers


def _median_seconds(shot: Shot, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        shot.run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _machine() -> str:
    """What a measurement depends on beside the model."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        wanted = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "flags"))][:2]
        processor = ";".join(wanted) or processor
    mark = hashlib.sha256(processor.encode()).hexdigest()[:12]
    return f"{platform.machine()} {mark}, openvino {version('openvino')}, onnxruntime {version('onnxruntime')}"


def _kept(measured: Path | None, key: str) -> dict[Choice, float]:
    """Seconds by choice that were measured before; a damaged file is as good as none."""
    try:
        values = json.loads(measured.read_text(encoding="utf-8"))[key] if measured else {}
        return {(backend, precision): float(seconds) for backend, precision, seconds in values}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _keep(measured: Path | None, key: str, seconds: Mapping[Choice, float]) -> None:
    if measured is None:
        return
    try:
        values = json.loads(measured.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = {}
    values = values if isinstance(values, dict) else {}
    values[key] = [[backend, precision, round(value, 6)] for (backend, precision), value in seconds.items()]
    # Where the folder cannot be written it is measured each time.
    with suppress(ResourceError):
        write_atomically(measured, json.dumps(values, indent=1) + "\n")
