"""All that manyeyes takes from Ultralytics: architecture, loss, augmentation, checkpoints. No other file imports it.

Its trainer, its dataset class and its validator are not used. The dataset class would write and unpickle `.cache` files
beside a site's labels, load `.npy` files and rewrite JPEGs; the trainer restarts its schedule in every session.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import pickle
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from manyeyes.config import AugmentSection
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
from ultralytics.data.augment import (  # noqa: E402
    Compose,
    Format,
    Mosaic,
    RandomFlip,
    RandomHSV,
    RandomPerspective,
)
from ultralytics.nn.tasks import DetectionModel, torch_safe_load  # noqa: E402
from ultralytics.utils import SETTINGS, IterableSimpleNamespace  # noqa: E402
from ultralytics.utils.instance import Instances  # noqa: E402
from ultralytics.utils.loss import BboxLoss, v8DetectionLoss  # noqa: E402

Image.open = _open_picture
logging.getLogger("ultralytics").setLevel(logging.ERROR)
for _integration in ("clearml", "comet", "dvc", "mlflow", "raytune", "neptune", "wandb", "hub", "sync"):
    if _integration in SETTINGS:
        dict.__setitem__(SETTINGS, _integration, False)

__all__ = [
    "Augmentation",
    "DetectionCriterion",
    "build_module",
    "class_head",
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


class _RecordingBoxLoss(BboxLoss):  # type: ignore[misc]
    """Remembers the sum of target scores, which the loss is divided by and does not hand out."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.target_scores = args[4].sum()
        self.divisor = args[5]
        boxes, distribution = super().forward(*args, **kwargs)
        return boxes, distribution


class DetectionCriterion:
    """YOLOv8's loss, with classes that a picture's site does not annotate left out.

    A class that nobody looked for in a picture gives no gradient from it: no positives, since it has no boxes there,
    and no negatives, since its absence was not checked.

    Args:
        module: the model whose outputs are judged; gives strides, classes and gains.

    Called with the model's training output and a batch whose targets are `batch_idx` (n,), `cls` (n, 1), `bboxes`
    (n, 4) normalised xywh, and `annotated` (b, classes), 1 where the picture's site annotates the class.
    """

    def __init__(self, module: nn.Module) -> None:
        self._loss = v8DetectionLoss(module)
        self._loss.bbox_loss = _RecordingBoxLoss(module.model[-1].reg_max)  # type: ignore[index,union-attr]

    def __call__(self, outputs: Mapping[str, Any], batch: Batch) -> LossParts:
        outputs = {
            "boxes": outputs["boxes"].float(),
            "scores": outputs["scores"].float(),
            "feats": outputs["feats"],
        }
        self._loss.class_weights = batch.targets["annotated"][:, None, :]
        _, losses, _ = self._loss.get_assigned_targets_and_loss(outputs, batch.targets)
        sums = losses * self._loss.bbox_loss.divisor
        items = {"box": sums[0], "cls": sums[1], "dfl": sums[2], "loss": sums.sum()}
        return LossParts(sums.sum(), self._loss.bbox_loss.target_scores, items)


class _SiteMosaic(Mosaic):  # type: ignore[misc]
    """Mosaic whose four pictures come from sites that annotate the same classes.

    Otherwise one picture would hold corners in which a class was looked for and corners in which it was not.
    """

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        self._peers = self.dataset.peers(labels["index"])
        mixed: dict[str, Any] = super().__call__(labels)
        return mixed

    def get_indexes(self) -> list[int]:
        return random.choices(self._peers, k=self.n - 1)


class Augmentation:
    """Mosaic, affine, HSV and flip of Ultralytics over pictures that are already in memory.

    Args:
        pictures: (h, w, 3) uint8 BGR, long side `imgsz`.
        boxes: (n, 4) float32 normalised xywh for each picture.
        class_ids: (n,) for each picture.
        annotated: classes annotated in each picture, as sets of class ids.
        imgsz: side of what comes out, in pixels.
        section: probabilities and ranges.
    """

    cache = "ram"  # read by Mosaic: choose partners among all pictures, keep no buffer

    def __init__(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        boxes: Sequence[NDArray[np.float32]],
        class_ids: Sequence[NDArray[np.int64]],
        annotated: Sequence[frozenset[int]],
        imgsz: int,
        section: AugmentSection,
    ) -> None:
        self.pictures, self.boxes, self.class_ids, self.annotated = pictures, boxes, class_ids, annotated
        groups: dict[frozenset[int], list[int]] = {}
        for index, classes in enumerate(annotated):
            groups.setdefault(classes, []).append(index)
        self._peers = groups
        self._with_mosaic = self._pipeline(imgsz, section, section.mosaic)
        self._without_mosaic = self._pipeline(imgsz, section, 0.0)

    def _pipeline(self, imgsz: int, section: AugmentSection, mosaic: float) -> Any:
        return Compose(
            [
                _SiteMosaic(self, imgsz=imgsz, p=mosaic),
                RandomPerspective(translate=section.translate, scale=section.scale, size=(imgsz, imgsz)),
                RandomHSV(hgain=section.hsv_h, sgain=section.hsv_s, vgain=section.hsv_v),
                RandomFlip(direction="horizontal", p=section.fliplr),
                Format(bbox_format="xywh", normalize=True, batch_idx=True, bgr=0.0),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def peers(self, index: int) -> list[int]:
        """Pictures whose site annotates the same classes."""
        return self._peers[self.annotated[index]]

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """What Ultralytics' transforms expect of a dataset."""
        picture = self.pictures[index]
        return {
            "index": index,
            "im_file": str(index),
            "img": picture,
            "ori_shape": picture.shape[:2],
            "resized_shape": picture.shape[:2],
            "ratio_pad": (1.0, 1.0),
            "cls": self.class_ids[index].astype(np.float32)[:, None],
            "instances": Instances(
                self.boxes[index].copy(),
                np.zeros((0, 1000, 2), dtype=np.float32),
                bbox_format="xywh",
                normalized=True,
            ),
        }

    def draw(self, index: int, *, mosaic: bool, seed: int) -> dict[str, Any]:
        """One augmented picture: `img` (3, imgsz, imgsz) uint8 RGB, `cls` (n, 1), `bboxes` (n, 4) normalised xywh.

        The same arguments give the same picture, whatever was drawn before: Ultralytics draws from the process-wide
        generators of `random` and NumPy, so they are set for every picture.
        """
        random.seed(seed)
        np.random.seed(seed)
        pipeline = self._with_mosaic if mosaic else self._without_mosaic
        sample: dict[str, Any] = pipeline(self.get_image_and_label(index))
        return sample
