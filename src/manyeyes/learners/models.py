"""Models as files and as templates: read, build, write. Nothing here trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import nn

from manyeyes.config import ModelSection
from manyeyes.errors import WeightsError
from manyeyes.learners import yolo
from manyeyes.learners.learner import Template
from manyeyes.weights import Weights, check_finite, check_same_form, load_weights, save_weights

__all__ = [
    "BASE_WEIGHTS",
    "Loaded",
    "build_template",
    "known_names",
    "layer_of",
    "load_any",
    "module_of",
    "open_template",
    "put",
    "save_model",
    "take",
]

BASE_WEIGHTS = "base_yolov8n.safetensors"
"""File in the package: yolov8n trained by scripts/train_base.py on generic synthetic scenes, float16."""


class Loaded(NamedTuple):
    """What a model file holds: weights, class names, and the side in pixels it was trained at."""

    weights: Weights
    names: tuple[str, ...]
    imgsz: int


def load_any(path: Path) -> Loaded:
    """Read a `.pt` of Ultralytics or a `.safetensors` of ours; nothing in them is executed.

    Raises:
        WeightsError: the file is missing, damaged or of another kind, holds NaN, or its pickle was refused.
    """
    loaded = _read(path)
    check_finite(loaded.weights, what=str(path))
    return loaded


def _read(path: Path) -> Loaded:
    if path.suffix == ".pt":
        return Loaded(*yolo.load_checkpoint(path))
    if path.suffix != ".safetensors":
        raise WeightsError("is neither a .pt nor a .safetensors file", file=path)
    weights, metadata = load_weights(path)
    try:
        names = tuple(str(name) for name in json.loads(metadata["names"]))
        return Loaded(weights, names, int(metadata["imgsz"]))
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError("does not say its classes and size; was it written by manyeyes?", file=path) from error


def save_model(path: Path, template: Template, weights: Weights) -> None:
    """Write weights with architecture and class names, as `.safetensors` or as a `.pt` for `ultralytics.YOLO`."""
    if path.suffix == ".pt":
        module = module_of(template.architecture, len(template.names))
        put(module, weights)
        yolo.save_checkpoint(path, module, template.names, template.imgsz)
    else:
        save_weights(path, weights, template.metadata)


def open_template(path: Path) -> Template:
    """A trained model as it is: architecture, class names, weights.

    Raises:
        WeightsError: the file is not a YOLOv8 detector's.
    """
    weights, names, imgsz = load_any(path)
    name = _scale_of(weights)
    if name is None:
        raise WeightsError("is not a YOLOv8 n, s, m, l or x", file=path)
    architecture = f"{name}/cv3={yolo.head_width(weights)}"
    form = take(module_of(architecture, len(names)))
    _check_form(weights, form, path)
    return Template(architecture, names, weights, imgsz)


def build_template(model: ModelSection, names: Sequence[str], *, seed: int = 0, imgsz: int = 640) -> Template:
    """The one form of detector that all sites train, with the weights they all start from.

    The head has one output for each of `names`. Rows of classes that the given weights know by name are carried over;
    the others start untrained. The head's width is that of the given weights.

    Args:
        model: architecture, and where the weights come from.
        names: class names.
        seed: for what starts untrained.
        imgsz: side in pixels it will be trained at.

    Raises:
        WeightsError: the weights cannot be read or are of another architecture than `model.name`.
    """
    names = tuple(names)
    if model.weights == "scratch":
        architecture = f"{model.name}/cv3={yolo.natural_head_width(model.name, len(names))}"
        return Template(architecture, names, take(module_of(architecture, len(names), seed)), imgsz)
    source, known, _ = _open_source(model)
    width = yolo.head_width(source)
    architecture = f"{model.name}/cv3={width}"
    form = take(module_of(architecture, len(known), seed))
    looks = _scale_of(source)
    if looks != model.name:
        raise WeightsError(
            f"holds another architecture than {model.name}",
            file=model.weights,
            cure=f"It looks like {looks}: set model.name to that." if looks else None,
        )
    _check_form(source, form, model.weights)
    fresh = take(module_of(architecture, len(names), seed))
    return Template(architecture, names, fresh.replace(_carried_over(source, fresh, known, names)), imgsz)


def known_names(model: ModelSection) -> tuple[str, ...]:
    """Names of the classes that the starting weights can tell already; none from scratch.

    Raises:
        WeightsError: the weights cannot be read.
    """
    return () if model.weights == "scratch" else _open_source(model).names


def _open_source(model: ModelSection) -> Loaded:
    if model.weights != "base":
        return load_any(Path(model.weights))
    if model.name != "yolov8n":
        raise WeightsError(
            f"the shipped base weights are of yolov8n, not {model.name}",
            key="model.weights",
            cure="Give a checkpoint file, or 'scratch'.",
        )
    with resources.as_file(resources.files("manyeyes.learners") / BASE_WEIGHTS) as path:
        return load_any(path)


def _check_form(weights: Weights, form: Weights, file: Path | str) -> None:
    try:
        check_same_form(weights, form, what="the checkpoint")
    except WeightsError as error:
        raise WeightsError(error.reason, file=file) from error


def _scale_of(weights: Weights) -> str | None:
    """The scale of a YOLOv8 by the channels of its first convolution."""
    first = {16: "yolov8n", 32: "yolov8s", 48: "yolov8m", 64: "yolov8l", 80: "yolov8x"}
    stem = weights.get("model.0.conv.weight")
    return None if stem is None else first.get(len(stem))


def _carried_over(
    source: Weights, fresh: Weights, known: Sequence[str], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    rows = set(yolo.class_head(source))
    carried: dict[str, NDArray[Any]] = {name: array for name, array in source.items() if name not in rows}
    for tensor in rows:
        carried[tensor] = fresh[tensor].copy()
        for index, name in enumerate(names):
            if name in known:
                carried[tensor][index] = source[tensor][known.index(name)]
    return carried


def module_of(architecture: str, num_classes: int, seed: int = 0) -> nn.Module:
    """The torch module of an architecture such as "yolov8n/cv3=80"."""
    name, _, width = architecture.partition("/cv3=")
    return yolo.build_module(name, int(width), num_classes, seed)


def take(module: nn.Module) -> Weights:
    """A copy of a module's weights and buffers."""
    return Weights({name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()})


def put(module: nn.Module, weights: Weights) -> None:
    """Copy weights and buffers into a module of the same form."""
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()}, strict=True)


def layer_of(name: str) -> int:
    """Number of the layer a tensor belongs to: 22 for "model.22.cv3.0.2.bias"."""
    return int(name.split(".")[1])
