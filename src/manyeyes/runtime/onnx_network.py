"""ONNX Runtime as a backend: runs on any processor, in float32."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from manyeyes.errors import WeightsError
from manyeyes.runtime.model_file import METADATA, ModelInfo
from manyeyes.runtime.vision import Canvas

# Unless this is set before it is loaded, it makes this machine an identity in the home folder and reports its use
# (since 1.31 on Linux: its pull request 27379).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

__all__ = ["OnnxNetwork"]


class OnnxNetwork:
    """See `Network`.

    Args:
        path: an ONNX file that `manyeyes export` wrote.
        threads: that it computes with.

    Raises:
        WeightsError: the file cannot be read, or is of another kind.
    """

    backend = "onnxruntime"
    precision = "fp32"

    def __init__(self, path: Path, *, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin between two pictures take whole cores from whoever else works here.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        try:
            # From bytes: data in other files beside it is not followed.
            session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no class in common
            raise WeightsError(f"cannot be opened by ONNX Runtime ({_first_line(error)})", file=path) from error
        self._session: Any = session
        self.info = ModelInfo.read(session.get_modelmeta().custom_metadata_map.get(METADATA), path)
        self._input, self._output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def shot(self, shape: tuple[int, int]) -> OnnxShot:
        """A canvas and its copy as the network wants it."""
        return OnnxShot(self._session, self._input, self._output, shape)


class OnnxShot:
    """See `Shot`."""

    def __init__(self, session: Any, input_name: str, output_name: str, shape: tuple[int, int]) -> None:
        self.canvas = Canvas(shape)
        self._session, self._input, self._output = session, input_name, output_name

    def run(self) -> NDArray[np.float32]:
        """See `Shot.run`."""
        planes = cv2.dnn.blobFromImage(self.canvas.pixels[0], 1 / 255, swapRB=True)
        raw: NDArray[np.float32] = self._session.run([self._output], {self._input: planes})[0][0]
        return raw


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
