"""What an exported model says of itself, and how it is recognised."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manyeyes.errors import WeightsError

__all__ = ["METADATA", "ModelInfo", "file_hash", "is_exported", "parts_of"]

METADATA = "manyeyes"
"""Key in an ONNX file's metadata, and in an OpenVINO model's rt_info, of the JSON that `ModelInfo` is."""

OPENVINO_XML = "model.xml"
_BLOCK = 1 << 20


class ModelInfo(BaseModel):
    """Written into a model's file when it is exported.

    Attributes:
        names: the classes it finds, in order.
        imgsz: long side in pixels it was trained at.
        weights: hash of the weights it was made from.
        precision: "fp32"; "bf16" where it was checked in bfloat16, and is computed so wherever the processor can;
            "int8" where it was quantised.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: tuple[str, ...] = Field(min_length=1, max_length=10_000)
    imgsz: int = Field(ge=32, le=8192)
    weights: str = Field(pattern=r"^[0-9a-f]{16,128}$")
    precision: str = Field(pattern=r"^(fp32|bf16|int8)$")

    @classmethod
    def read(cls, text: str | None, path: Path) -> ModelInfo:
        """From a model's metadata.

        Raises:
            WeightsError: there is none, or it is not such a one.
        """
        try:
            return cls.model_validate_json(text or "")
        except ValidationError as error:
            raise WeightsError(
                "does not say its classes and size", file=path, cure="Write it with `manyeyes export MODEL`."
            ) from error


def parts_of(path: Path) -> list[Path]:
    """The files of an exported model: an ONNX file, or the two of an OpenVINO folder.

    Raises:
        WeightsError: it is neither.
    """
    parts = [path] if path.suffix == ".onnx" else [path / OPENVINO_XML, path / "model.bin"]
    missing = [part for part in parts if not part.is_file()]
    if missing:
        raise WeightsError(
            f"{missing[0].name} is missing" if path.is_dir() else "does not exist, or is no exported model",
            file=path,
            cure="Name an .onnx file or an OpenVINO folder that `manyeyes export` wrote.",
        )
    return parts


def is_exported(path: Path) -> bool:
    """Whether a path looks like an exported model, without opening it."""
    return path.suffix == ".onnx" or (path / OPENVINO_XML).is_file()


def file_hash(path: Path) -> str:
    """SHA-256 over the files of a model, in hexadecimal.

    Raises:
        WeightsError: a file is missing, or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for part in parts_of(path):
            with part.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
    except OSError as error:
        raise WeightsError(
            f"cannot be read ({error.strerror})", file=path, cure="See to its permissions, and to the disk."
        ) from error
    return digest.hexdigest()
