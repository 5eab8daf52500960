"""OpenVINO as a backend: the fastest on most x86 processors, in float32, bfloat16 or what the file was quantised to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyeyes.errors import WeightsError
from manyeyes.runtime.model_file import METADATA, OPENVINO_XML, ModelInfo
from manyeyes.runtime.network import Shot
from manyeyes.runtime.vision import Canvas

# It would look up a host that counts its users, and write into the home folder.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402
from openvino.preprocess import ColorFormat, PrePostProcessor  # noqa: E402

__all__ = ["OpenVinoNetwork", "ov", "precisions_here"]

# More side by side want more memory, and have not been measured.
_MOST_LANES = 4


def precisions_here() -> tuple[str, ...]:
    """In what this processor computes a float32 model: bfloat16 too where it has instructions for it."""
    capable = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("fp32", "bf16") if "BF16" in capable else ("fp32",)


def _hint(precision: str) -> str:
    """Said aloud, since OpenVINO takes bfloat16 by itself on some processors; it computes what int8 leaves out."""
    if precision == "int8":
        precision = precisions_here()[-1]
    return {"fp32": "f32", "bf16": "bf16"}[precision]


class OpenVinoNetwork:
    """See `Network`. It is compiled for each shape of canvas, which is faster than for any shape.

    Args:
        path: an ONNX file or an OpenVINO folder that `manyeyes export` wrote.
        precision: "fp32" or "bf16"; a quantised file computes in int8 whatever is said.
        threads: that it computes with.

    Raises:
        WeightsError: the file cannot be read, or is of another kind.
    """

    backend = "openvino"

    def __init__(self, path: Path, *, precision: str, threads: int) -> None:
        self._core = ov.Core()
        try:
            if path.suffix == ".onnx":
                self._model = self._core.read_model(path.read_bytes())
            else:
                self._model = self._core.read_model(path / OPENVINO_XML)
        except (OSError, RuntimeError) as error:
            raise WeightsError("cannot be opened by OpenVINO", file=path) from error
        self.info = ModelInfo.read(_metadata(self._model), path)
        self.precision = "int8" if self.info.precision == "int8" else precision
        self._settings = {
            "INFERENCE_PRECISION_HINT": _hint(self.precision),
            "INFERENCE_NUM_THREADS": threads,
            # A node trains on the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        self.lanes = min(threads, _MOST_LANES)

    def shot(self, shape: tuple[int, int]) -> OpenVinoShot:
        """Compile for a shape and one picture after the other."""
        return OpenVinoShot(self._compiled(shape, streams=1), shape)

    def lane_shots(self, shape: tuple[int, int], count: int) -> list[Shot]:
        """Compile for a shape and as many pictures at a time as there are lanes."""
        compiled = self._compiled(shape, streams=self.lanes)
        return [OpenVinoShot(compiled, shape) for _ in range(count)]

    def _compiled(self, shape: tuple[int, int], streams: int) -> Any:
        """Bytes become floats, BGR becomes RGB inside the network. A performance hint would override `streams`."""
        model = self._model.clone()
        model.reshape({model.input(0): [1, 3, *shape]})
        steps = PrePostProcessor(model)
        pixels = steps.input().tensor().set_element_type(ov.Type.u8)
        pixels.set_layout(ov.Layout("NHWC")).set_color_format(ColorFormat.BGR)
        steps.input().model().set_layout(ov.Layout("NCHW"))
        steps.input().preprocess().convert_element_type(ov.Type.f32).convert_color(ColorFormat.RGB).scale(255.0)
        return self._core.compile_model(steps.build(), "CPU", {**self._settings, "NUM_STREAMS": streams})


class OpenVinoShot:
    """See `Shot`. The canvas is the request's own memory: nothing is copied."""

    def __init__(self, compiled: Any, shape: tuple[int, int]) -> None:
        self.canvas = Canvas(shape)
        self._request = compiled.create_infer_request()
        self._request.set_input_tensor(ov.Tensor(self.canvas.pixels, shared_memory=True))

    def run(self) -> NDArray[np.float32]:
        """See `Shot.run`."""
        self._request.infer()
        raw: NDArray[np.float32] = self._request.get_output_tensor(0).data[0]
        return raw


def _metadata(model: Any) -> str | None:
    info = model.get_rt_info()
    if METADATA in info:
        return str(info[METADATA].astype(str))
    # Where OpenVINO puts the metadata of an ONNX file.
    of_framework = info["framework"] if "framework" in info else {}  # noqa: SIM401 - it is no dictionary, and has no get
    return str(of_framework[METADATA].astype(str)) if METADATA in of_framework else None
