"""All that manyeyes takes from Ultralytics: architecture, loss, checkpoints. No other file imports it.

Its trainer, its dataset class and its validator are not used. The dataset class would write and unpickle `.cache` files
beside a site's labels, load `.npy` files and rewrite JPEGs; the trainer restarts its schedule in every session.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from manyeyes.errors import WeightsError
from manyeyes.learners.training import Batch, LossParts
from manyeyes.weights import Weights, write_atomically


def _quiet_environment() -> None:
    """Stop what Ultralytics does on import: files in the home folder, network look-ups, run-time installs."""
    folder = tempfile.mkdtemp(prefix="manyeyes-ultralytics-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.setdefault("MPLCONFIGDIR", folder)
    os.environ["YOLO_CONFIG_DIR"] = folder
    os.environ["YOLO_OFFLINE"] = "true"
    os.environ["YOLO_AUTOINSTALL"] = "false"
    os.environ["YOLO_VERBOSE"] = "false"
    os.environ["ULTRALYTICS_SAFE_LOAD"] = "true"


_quiet_environment()
# Ultralytics replaces it by one that tries to install a package when a picture is broken.
_open_picture = Image.open

from ultralytics.cfg import DEFAULT_CFG_DICT  # noqa: E402
from ultralytics.nn.tasks import DetectionModel, torch_safe_load  # noqa: E402
from ultralytics.utils import SETTINGS, IterableSimpleNamespace  # noqa: E402
from ultralytics.utils.loss import v8DetectionLoss  # noqa: E402
from ultralytics.utils.metrics import bbox_iou  # noqa: E402
from ultralytics.utils.tal import bbox2dist, dist2bbox, make_anchors  # noqa: E402

Image.open = _open_picture
logging.getLogger("ultralytics").setLevel(logging.ERROR)
for _integration in ("clearml", "comet", "dvc", "mlflow", "raytune", "neptune", "wandb", "hub", "sync"):
    if _integration in SETTINGS:
        dict.__setitem__(SETTINGS, _integration, False)

__all__ = [
    "DetectionCriterion",
    "LaterLayers",
    "build_module",
    "class_head",
    "cut_layers",
    "cut_outputs",
    "head_width",
    "load_checkpoint",
    "natural_head_width",
    "save_checkpoint",
]

STRIDE = 32
_BACKBONE_CHANNELS = {"yolov8n": 64, "yolov8s": 128, "yolov8m": 192, "yolov8l": 256, "yolov8x": 320}


def natural_head_width(name: str, num_classes: int) -> int:
    """Channels of the classification branch that the architecture would have for so many classes from scratch."""
    return max(_BACKBONE_CHANNELS[name], min(num_classes, 100))


def build_module(name: str, width: int, num_classes: int, seed: int = 0) -> nn.Module:
    """A detection model with `num_classes` outputs whose classification branch has `width` channels.

    The width follows from where the weights come from (80 classes make another width than 5), so it is chosen apart
    from the number of classes.

    Args:
        name: "yolov8n" … "yolov8x".
        width: channels of the classification branch, see `natural_head_width`.
        num_classes: outputs per anchor.
        seed: for the initial values.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classes = width if width > _BACKBONE_CHANNELS[name] else 1
        module = DetectionModel(f"{name}.yaml", nc=classes, verbose=False)
        detect = module.model[-1]
        detect.nc = num_classes
        detect.no = num_classes + 4 * detect.reg_max
        for branch in detect.cv3:
            branch[-1] = nn.Conv2d(branch[-1].in_channels, num_classes, 1)
        detect.bias_init()
    module.yaml["nc"] = num_classes
    module.args = IterableSimpleNamespace(**DEFAULT_CFG_DICT)
    assert isinstance(module, nn.Module)
    return module


def _inputs_of(layer: Any) -> list[int]:
    """Numbers of the layers whose outputs a layer reads."""
    sources = [layer.f] if isinstance(layer.f, int) else layer.f
    return [source if source >= 0 else layer.i + source for source in sources]


def _run(layers: Sequence[Any], known: dict[int, Any]) -> None:
    """Add the outputs of layers, which read those in `known`, to `known`."""
    for layer in layers:
        inputs = [known[source] for source in _inputs_of(layer)]
        known[layer.i] = layer(inputs[0] if isinstance(layer.f, int) else inputs)


def cut_layers(module: nn.Module, freeze: int) -> tuple[int, ...]:
    """Numbers of the layers before `freeze` whose outputs the layers from `freeze` on read: (15, 18, 21) for 22."""
    later: Any = module.model[freeze:]  # type: ignore[index]
    return tuple(sorted({source for layer in later for source in _inputs_of(layer) if source < freeze}))


def cut_outputs(module: nn.Module, freeze: int, images: Tensor) -> tuple[Tensor, ...]:
    """What the first `freeze` layers, at least one, make of images (b, 3, h, w) in [0, 1].

    Returns:
        The outputs of `cut_layers`, each (b, channels, height, width).
    """
    known: dict[int, Any] = {-1: images}
    _run(cast(Any, module).model[:freeze], known)
    return tuple(known[index] for index in cut_layers(module, freeze))


class LaterLayers(nn.Module):
    """The layers of a module from `freeze` on, which take the outputs of `cut_layers` in place of images.

    Parameters and buffers are those of the module, under the same names.
    """

    def __init__(self, module: nn.Module, freeze: int) -> None:
        super().__init__()
        self._cut = cut_layers(module, freeze)
        layers = cast(Any, module).model[freeze:]
        self.model = nn.ModuleDict({str(layer.i): layer for layer in layers})
        self._last = layers[-1].i

    def forward(self, *features: Tensor) -> Any:
        """The module's output, as it would be for the images that `features` were computed from."""
        known: dict[int, Any] = dict(zip(self._cut, features, strict=True))
        _run(list(self.model.values()), known)
        return known[self._last]


def class_head(state: Mapping[str, Any]) -> list[str]:
    """Names of the tensors with one row for each class, in the order of the three detection scales."""
    last = max(int(name.split(".")[1]) for name in state if name.startswith("model."))
    return [f"model.{last}.cv3.{scale}.2.{kind}" for scale in range(3) for kind in ("weight", "bias")]


def head_width(state: Mapping[str, Any]) -> int:
    """Channels of the classification branch of given weights.

    Raises:
        WeightsError: these are not the weights of a YOLOv8 detector.
    """
    try:
        return int(state[class_head(state)[0]].shape[1])
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError("these are not the weights of an unfused YOLOv8 detector") from error


def load_checkpoint(path: Path) -> tuple[Weights, tuple[str, ...], int]:
    """Weights, class names and training size of an Ultralytics `.pt`, read without running what is pickled in it.

    Raises:
        WeightsError: the file is missing, damaged, or names anything but model classes.
    """
    if not path.is_file():
        raise WeightsError("no such file", file=path, cure="Give a .pt or .safetensors file, 'base' or 'scratch'.")
    try:
        checkpoint, _ = torch_safe_load(str(path), safe_only=True)
        model = (checkpoint.get("ema") or checkpoint["model"]).float()
        state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        names = tuple(str(model.names[i]) for i in range(len(model.names)))
        imgsz = int((checkpoint.get("train_args") or {}).get("imgsz", 640))
    except (TypeError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise WeightsError(
            f"was refused: it is damaged, or its pickle names more than model classes ({_first_line(error)})",
            file=path,
            cure="Load only checkpoints of Ultralytics models from a source you trust, or a .safetensors file.",
        ) from error
    except (KeyError, AttributeError) as error:
        raise WeightsError("holds no detection model", file=path) from error
    return Weights(state), names, imgsz


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def save_checkpoint(path: Path, module: nn.Module, names: Sequence[str], imgsz: int) -> None:
    """Write a `.pt` that `ultralytics.YOLO` opens, atomically. `module` is changed to hold the class names.

    Raises:
        ResourceError: the file cannot be written.
    """
    module.names = dict(enumerate(names))  # type: ignore[assignment]
    module.task = "detect"  # type: ignore[assignment]
    args = {"task": "detect", "model": path.name, "imgsz": imgsz}
    module.args = args  # type: ignore[assignment]
    content = io.BytesIO()
    torch.save({"model": module.float().eval(), "ema": None, "train_args": args, "epoch": -1}, content)
    module.args = IterableSimpleNamespace(**DEFAULT_CFG_DICT)
    write_atomically(path, content.getvalue())


class DetectionCriterion:
    """YOLOv8's loss, with classes that a picture's site does not annotate left out.

    A class that nobody looked for in a picture gives no gradient from it: no positives, since it has no boxes there,
    and no negatives, since its absence was not checked.

    Assignment and gains are Ultralytics'. Boxes matter only in cells that an object covers, a fraction of all: they are
    decoded and differentiated there alone, where Ultralytics' own criterion does so for the whole map.

    Args:
        module: the model whose outputs are judged; gives strides, classes and gains.

    Called with the model's training output and a batch whose targets are `batch_idx` (n,), `cls` (n, 1), `bboxes`
    (n, 4) normalised xywh, and `annotated` (b, classes), 1 where the picture's site annotates the class.
    """

    def __init__(self, module: nn.Module) -> None:
        self._loss = v8DetectionLoss(module)

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> LossParts:
        levels, stride = outputs["feats"], self._loss.stride
        # In bfloat16 the centres of distant cells would be rounded.
        centres, strides = make_anchors([level.new_empty(level.shape, dtype=torch.float32) for level in levels], stride)
        scores = outputs["scores"].float().transpose(1, 2)
        height, width = (side * float(stride[0]) for side in levels[0].shape[2:])
        objects = self._objects(batch.targets, len(scores), width, height)
        labels, truth = objects[..., :1], objects[..., 1:]
        picture, anchor = self._near(centres * strides, truth)
        logits = outputs["boxes"][picture, :, anchor].float().unflatten(1, (4, self._loss.reg_max))
        boxes = dist2bbox(logits.softmax(-1) @ self._loss.proj, centres[anchor], xywh=False)

        found = torch.zeros(*scores.shape[:2], 4, device=scores.device)
        found[picture, anchor] = boxes.detach() * strides[anchor]
        _, wanted, target, taken, _ = self._loss.assigner(
            scores.detach().sigmoid(), found, centres * strides, labels, truth, _is_there(truth)
        )
        chosen = taken[picture, anchor].nonzero()[:, 0]
        picture, anchor = picture[chosen], anchor[chosen]
        weight = target[picture, anchor].sum(-1, keepdim=True)
        wanted = wanted[picture, anchor] / strides[anchor]
        overlap = bbox_iou(boxes[chosen], wanted, xywh=False, CIoU=True)
        edges = bbox2dist(centres[anchor], wanted, self._loss.reg_max - 1)
        spread = self._loss.bbox_loss.dfl_loss(logits[chosen].flatten(0, 1), edges)
        judged = nn.functional.binary_cross_entropy_with_logits(scores, target.float(), reduction="none")

        gains = self._loss.hyp
        items = {
            "box": gains.box * ((1.0 - overlap) * weight).sum(),
            "cls": gains.cls * (judged * batch.targets["annotated"][:, None, :]).sum(),
            "dfl": gains.dfl * (spread * weight).sum(),
        }
        total = items["box"] + items["cls"] + items["dfl"]
        return LossParts(total, target.sum(), {**items, "loss": total})

    def _objects(self, targets: Mapping[str, Tensor], pictures: int, width: float, height: float) -> Tensor:
        """Class and xyxy in pixels of each picture's objects (b, most, 5), filled up with zeros."""
        together = torch.cat((targets["batch_idx"][:, None], targets["cls"], targets["bboxes"]), 1)
        scale = torch.tensor([width, height, width, height], device=together.device)
        return cast(Tensor, self._loss.preprocess(together, pictures, scale_tensor=scale))

    def _near(self, centres: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures and anchors (k,) of the cells that some object may be assigned to: it covers their centre."""
        if not truth.shape[1]:
            return truth.new_zeros(0, dtype=torch.long), truth.new_zeros(0, dtype=torch.long)
        covered = self._loss.assigner.select_candidates_in_gts(centres, truth, _is_there(truth))
        picture, anchor = covered.amax(1).nonzero(as_tuple=True)
        return picture, anchor


def _is_there(truth: Tensor) -> Tensor:
    """1 for each of the objects (b, most, 4), 0 for what fills up: (b, most, 1)."""
    return truth.sum(2, keepdim=True).gt(0).float()
