"""A network ready to run: what the backends have in common."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from manyeyes.runtime.model_file import ModelInfo
from manyeyes.runtime.vision import Canvas

__all__ = ["Lanes", "Network", "Shot"]


class Shot(Protocol):
    """One canvas and what runs the network on it; used by one thread at a time."""

    canvas: Canvas

    def run(self) -> NDArray[np.float32]:
        """The network's output for what is on the canvas: (4 + classes, anchors); valid until the next run."""


class Network(Protocol):
    """A model opened by one backend in one precision.

    Attributes:
        info: what the model says of itself.
        backend: "openvino" or "onnxruntime".
        precision: in which it computes: "fp32", "bf16" or "int8".
    """

    info: ModelInfo
    backend: str
    precision: str

    def shot(self, shape: tuple[int, int]) -> Shot:
        """For canvases of a shape (height, width), multiples of 32; may take a second to prepare."""


@runtime_checkable
class Lanes(Protocol):
    """A network that also looks at several pictures side by side, each with fewer threads.

    One picture takes longer so, and all of them together less: threads that do not share a picture never wait for one
    another.

    Attributes:
        lanes: how many run at the same time.
    """

    lanes: int

    def lane_shots(self, shape: tuple[int, int], count: int) -> list[Shot]:
        """For canvases of a shape (height, width); each by another thread, and `lanes` of them run at the same time."""
