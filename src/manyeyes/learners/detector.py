"""The detector: YOLOv8 as a learner of the federation."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import batched_nms

from manyeyes.config import ModelSection, TrainSection
from manyeyes.datasets.detections import Detections
from manyeyes.datasets.sample import Dataset, Sample
from manyeyes.errors import DataError, ResourceError, WeightsError
from manyeyes.learners import yolo
from manyeyes.learners.average_precision import average_precision, box_iou
from manyeyes.learners.learner import FitPlan, Metrics, ProgressCallback, Template, silent
from manyeyes.learners.pictures import Picture, PictureCache
from manyeyes.learners.training import (
    Batch,
    Session,
    checkpoint_activations,
    pick_device,
    pin_threads,
    session_seed,
    train,
)
from manyeyes.weights import Update, Weights, check_finite, check_same_form, load_weights, save_weights, subtract

__all__ = ["BASE_WEIGHTS", "DetectorLearner", "build_template", "load_any", "open_template", "save_model"]

BASE_WEIGHTS = "base_yolov8n.safetensors"
"""File in the package: yolov8n trained by scripts/train_base.py on generic synthetic scenes, float16."""

MAX_DETECTIONS = 300
_PREFETCH = 2


def load_any(path: Path) -> tuple[Weights, tuple[str, ...]]:
    """Weights and class names from a `.pt` of Ultralytics or a `.safetensors` of ours; nothing in them is executed.

    Raises:
        WeightsError: the file is missing, damaged or of another kind, holds NaN, or its pickle was refused.
    """
    weights, names = _read(path)
    check_finite(weights, what=str(path))
    return weights, names


def _read(path: Path) -> tuple[Weights, tuple[str, ...]]:
    if path.suffix == ".pt":
        return yolo.load_checkpoint(path)
    if path.suffix != ".safetensors":
        raise WeightsError("is neither a .pt nor a .safetensors file", file=path)
    weights, metadata = load_weights(path)
    try:
        names = tuple(str(name) for name in json.loads(metadata["names"]))
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError("does not say its class names; was it written by manyeyes?", file=path) from error
    return weights, names


def save_model(path: Path, template: Template, weights: Weights) -> None:
    """Write weights with architecture and class names, as `.safetensors` or as a `.pt` for `ultralytics.YOLO`."""
    if path.suffix == ".pt":
        module = _module_of(template.architecture, len(template.names))
        _put(module, weights)
        yolo.save_checkpoint(path, module, template.names)
    else:
        save_weights(path, weights, {"architecture": template.architecture, "names": json.dumps(template.names)})


def open_template(path: Path) -> Template:
    """A trained model as it is: architecture, class names, weights.

    Raises:
        WeightsError: the file is not a YOLOv8 detector's.
    """
    weights, names = load_any(path)
    name = _scale_of(weights)
    if name is None:
        raise WeightsError("is not a YOLOv8 n, s, m, l or x", file=path)
    architecture = f"{name}/cv3={yolo.head_width(weights)}"
    form = _take(_module_of(architecture, len(names)))
    _check_form(weights, form, path)
    return Template(architecture, names, weights)


def build_template(model: ModelSection, names: Sequence[str], seed: int = 0) -> Template:
    """The one form of detector that all sites train, with the weights they all start from.

    The head has one output for each of `names`. Rows of classes that the given weights know by name are carried over;
    the others start untrained. The head's width is that of the given weights.

    Raises:
        WeightsError: the weights cannot be read or are of another architecture than `model.name`.
    """
    names = tuple(names)
    if model.weights == "scratch":
        architecture = f"{model.name}/cv3={yolo.natural_head_width(model.name, len(names))}"
        return Template(architecture, names, _take(_module_of(architecture, len(names), seed)))
    source, known = _open_source(model)
    width = yolo.head_width(source)
    architecture = f"{model.name}/cv3={width}"
    form = _take(_module_of(architecture, len(known), seed))
    looks = _scale_of(source)
    if looks != model.name:
        raise WeightsError(
            f"holds another architecture than {model.name}",
            file=model.weights,
            cure=f"It looks like {looks}: set model.name to that." if looks else None,
        )
    _check_form(source, form, model.weights)
    fresh = _take(_module_of(architecture, len(names), seed))
    return Template(architecture, names, fresh.replace(_carried_over(source, fresh, known, names)))


def _open_source(model: ModelSection) -> tuple[Weights, tuple[str, ...]]:
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


def _module_of(architecture: str, num_classes: int, seed: int = 0) -> nn.Module:
    name, _, width = architecture.partition("/cv3=")
    return yolo.build_module(name, int(width), num_classes, seed)


def _take(module: nn.Module) -> Weights:
    return Weights({name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()})


def _put(module: nn.Module, weights: Weights) -> None:
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()}, strict=True)


def _layer(name: str) -> int:
    return int(name.split(".")[1])


class DetectorLearner:
    """Trains and tests YOLOv8 on a site's pictures.

    Args:
        template: form and class names of the model.
        device: "auto", "cpu", "cuda" or "cuda:N", for tests; training follows its plan.
        threads: CPU threads for tests; default: all this process may use.
    """

    def __init__(self, template: Template, *, device: str = "auto", threads: int | None = None) -> None:
        self.template = template
        self._pictures = PictureCache()
        self._threads = threads
        self._device = pick_device(device)
        self._trained_module = _module_of(template.architecture, len(template.names))
        self._tested_module: tuple[str, nn.Module] | None = None

    # -- what the federation asks -------------------------------------------------------------------------------

    def expected_tensors(self, plan: FitPlan) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the tensors an update must hold: (delta, buffers), personal ones included.

        Layers before `freeze` are neither trained nor sent; the integral of the box distribution never is.
        """
        trainable = {name for name, _ in self._trained_module.named_parameters() if ".dfl." not in name}
        buffers = {name for name, _ in self._trained_module.named_buffers()}
        freeze = plan.train.freeze
        return (
            frozenset(name for name in trainable if _layer(name) >= freeze),
            frozenset(name for name in buffers if _layer(name) >= freeze),
        )

    def fit(self, weights: Weights, data: Dataset, plan: FitPlan, progress: ProgressCallback = silent) -> Update:
        """Train on the training pictures; see `Learner.fit`.

        Raises:
            DataError: a picture cannot be decoded.
            ResourceError: the device is missing.
            RunError: no pictures, or the loss is no longer finite.
        """
        pin_threads(plan.train.threads)
        device = pick_device(plan.train.device)
        samples = data.split("train")
        module = self._prepare(weights, plan.train, device)
        undo = self._checkpointing(module) if plan.train.gradient_checkpointing else None
        source = _AugmentedBatches(samples, self._class_ids(data), len(self.template.names), self._pictures, plan)
        try:
            result = train(module, yolo.DetectionCriterion(module), source, plan, device=device, progress=progress)
        finally:
            if undo:
                undo()
        after = _take(module)
        delta_names, buffer_names = self.expected_tensors(plan)
        metrics = {f"loss_{name}" if name != "loss" else "loss": value for name, value in result.losses.items()}
        metrics |= {"images_per_second": result.images_per_second, "seconds": result.seconds}
        return Update(
            subtract(after.select(delta_names.__contains__), weights),
            after.select(buffer_names.__contains__),
            len(samples),
            metrics,
        )

    def evaluate(self, weights: Weights, data: Dataset, split: str, imgsz: int | None = None) -> Metrics:
        """Average precision on one split, for the classes the site annotates; see `Learner.evaluate`."""
        samples = data.split(split)
        found = self.detect(weights, [sample.image for sample in samples], imgsz or 640)
        return average_precision(found, samples, self.template.names, self._class_ids(data))

    def test_sites(
        self, weights: Mapping[str, Weights], sites: Mapping[str, Dataset], split: str, imgsz: int
    ) -> dict[str, Metrics]:
        """Test each site's weights on its own pictures, and all finds together as one set of pictures.

        Args:
            weights: site → weights; the same object for all sites unless they keep personal layers.
            sites: site → dataset.
            split: "val" or "test"; sites without it are left out.
            imgsz: long side in pixels.

        Returns:
            Metrics by site, and under "mixed" those of all pictures, each searched for its site's classes.
        """
        metrics: dict[str, Metrics] = {}
        samples: list[Sample] = []
        found: list[Detections] = []
        for site, data in sites.items():
            if not data.split(split):
                continue
            classes = self._class_ids(data)
            own = [s if s.annotates is not None else replace(s, annotates=classes) for s in data.split(split)]
            detections = self.detect(weights[site], [sample.image for sample in own], imgsz)
            metrics[site] = average_precision(detections, own, self.template.names)
            samples += own
            found += detections
        metrics["mixed"] = average_precision(found, samples, self.template.names)
        return metrics

    def save(self, path: Path, weights: Weights) -> None:
        """Write a model as `.safetensors`, or as a `.pt` that `ultralytics.YOLO` opens."""
        save_model(path, self.template, weights)

    # -- detection ----------------------------------------------------------------------------------------------

    def detect(
        self, weights: Weights, images: Sequence[Path], imgsz: int, *, batch: int = 16, min_score: float = 0.001
    ) -> list[Detections]:
        """Find objects in pictures; at most 300 in each, class-wise NMS at IoU 0.7, float32.

        Args:
            weights: of this learner's template.
            images: paths.
            imgsz: long side in pixels the pictures are scaled to; the short side is padded to a multiple of 32.
            batch: pictures at once.
            min_score: lowest score kept.
        """
        pin_threads(self._threads)
        module = self._for_tests(weights)
        shapes = [_padded_shape(self._pictures.get(path, imgsz)) for path in images]
        order = sorted(range(len(images)), key=lambda i: (shapes[i], i))
        found: list[Detections | None] = [None] * len(images)
        for indices in _runs_of_equal(order, shapes, batch):
            pictures = [self._pictures.get(images[i], imgsz) for i in indices]
            originals = [self._pictures.original_size(images[i]) for i in indices]
            for i, detections in zip(indices, self._detect_batch(module, pictures, originals, min_score), strict=True):
                found[i] = detections
        return cast(list[Detections], found)

    @torch.inference_mode()
    def _detect_batch(
        self, module: nn.Module, pictures: Sequence[Picture], sizes: Sequence[tuple[int, int]], min_score: float
    ) -> list[Detections]:
        height, width = _padded_shape(pictures[0])
        canvas = np.full((len(pictures), height, width, 3), 114, dtype=np.uint8)
        offsets = []
        for place, picture in zip(canvas, pictures, strict=True):
            top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
            place[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            offsets.append((left, top))
        images = torch.from_numpy(canvas).to(self._device).flip(-1).permute(0, 3, 1, 2).float() / 255
        raw = module(images.contiguous(memory_format=torch.channels_last))[0].float()
        return [
            _decode(raw[i], offsets[i], pictures[i].shape[:2], sizes[i], min_score).on_cpu()
            for i in range(len(pictures))
        ]

    def _for_tests(self, weights: Weights) -> nn.Module:
        """A fused copy in evaluation mode: the module that is trained is never the one that is tested."""
        key = weights.value_hash
        if self._tested_module is None or self._tested_module[0] != key:
            module = _module_of(self.template.architecture, len(self.template.names))
            _put(module, weights)
            fused = cast(nn.Module, module.eval().fuse(verbose=False))  # type: ignore[operator]
            fused.requires_grad_(False)
            self._tested_module = key, fused.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self._tested_module[1]

    # -- checks before a run ------------------------------------------------------------------------------------

    def check_batch_fits(self, plan: TrainSection) -> None:
        """Refuse a batch whose activations cannot fit into the memory that is free now.

        Activations of one picture are measured by a forward pass and multiplied; the optimiser's state is added.

        Raises:
            ResourceError: it cannot fit; says which batch would.
        """
        device = pick_device(plan.device)
        one = self._activation_bytes(plan)
        fixed = 4 * self.template.weights.num_bytes
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        part = plan.batch // plan.accumulate
        if fixed + part * one > free:
            fitting = max(0, int((free - fixed) // one))
            raise ResourceError(
                f"a batch of {part} pictures at {plan.imgsz} px needs about {(fixed + part * one) / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free",
                key="train.batch",
                cure=f"Use a batch of at most {fitting}, or train.accumulate, or a smaller train.imgsz.",
            )

    def _activation_bytes(self, plan: TrainSection) -> int:
        module = _module_of(self.template.architecture, len(self.template.names)).train()
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        side = min(plan.imgsz, 320)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = module(torch.zeros(1, 3, side, side))
        del outputs
        return int((sum(seen.values()) - self.template.weights.num_bytes) * (plan.imgsz / side) ** 2)

    def check_labels(self, site: str, data: Dataset, imgsz: int, *, most_pictures: int = 40) -> None:
        """Refuse a site whose class ids are swapped: what it calls a car, the starting weights see as persons.

        Only classes that the starting weights recognise can be checked, on the pictures with the largest objects of
        each class. Two classes are taken for swapped when each has at least five clear finds and most of them are of
        the other class.

        Raises:
            DataError: names the two classes.
        """
        samples = _clearest(data.split("train"), most_pictures)
        found = self.detect(self.template.weights, [s.image for s in samples], imgsz, min_score=0.35)
        votes = np.zeros((len(self.template.names), len(self.template.names)), dtype=int)
        for detections, sample in zip(found, samples, strict=True):
            _count_votes(votes, detections, sample)
        for a in range(len(votes)):
            for b in range(a):
                if min(votes[a].sum(), votes[b].sum()) < 5:
                    continue
                if votes[a, b] > 0.6 * votes[a].sum() and votes[b, a] > 0.6 * votes[b].sum():
                    first, second = self.template.names[a], self.template.names[b]
                    raise DataError(
                        f"site {site}: {first!r} and {second!r} look swapped: of {votes[a].sum()} clear finds labelled "
                        f"{first!r} {votes[a, b]} are {second!r}, of {votes[b].sum()} labelled {second!r} "
                        f"{votes[b, a]} are {first!r}",
                        file=data.root,
                        key="names",
                        cure="Exchange the two names in the dataset's `names`, or run with --trust-labels.",
                    )

    # -- inside -------------------------------------------------------------------------------------------------

    def _class_ids(self, data: Dataset) -> frozenset[int]:
        if data.names != self.template.names:
            raise DataError(
                f"the classes {data.names} are not those of the model {self.template.names}", file=data.root
            )
        return frozenset(i for i, name in enumerate(data.names) if name in data.annotates)

    def _prepare(self, weights: Weights, plan: TrainSection, device: torch.device) -> nn.Module:
        module = self._trained_module
        _put(module, weights)
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        module.train()
        for index, layer in enumerate(cast(Any, module).model):
            if index < plan.freeze:
                layer.eval()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(_layer(name) >= plan.freeze and ".dfl." not in name)
            parameter.grad = None
        return module

    @staticmethod
    def _checkpointing(module: nn.Module) -> Callable[[], None]:
        blocks = [layer for layer in cast(Any, module).model if type(layer).__name__ in ("C2f", "SPPF")]
        return checkpoint_activations(blocks)


def _clearest(samples: Sequence[Sample], most: int) -> list[Sample]:
    """For each class as many pictures, those in which its objects are largest; pictures lie sorted by source."""
    largest: dict[int, dict[int, float]] = {}
    for index, sample in enumerate(samples):
        areas = (sample.xyxy[:, 2:] - sample.xyxy[:, :2]).prod(axis=1) / (sample.width * sample.height)
        for class_id, area in zip(sample.class_id.tolist(), areas.tolist(), strict=True):
            of_class = largest.setdefault(class_id, {})
            of_class[index] = max(area, of_class.get(index, 0.0))
    chosen: set[int] = set()
    for of_class in largest.values():
        chosen.update(sorted(of_class, key=lambda i: (-of_class[i], i))[: max(1, most // len(largest))])
    return [samples[index] for index in sorted(chosen)]


def _count_votes(votes: NDArray[np.int_], detections: Detections, sample: Sample) -> None:
    if not len(detections):
        return
    iou = box_iou(sample.xyxy.astype(np.float64), detections.xyxy.astype(np.float64))
    for label, row in zip(sample.class_id, iou, strict=True):
        best = int(row.argmax())
        if row[best] >= 0.5:
            votes[label, detections.class_id[best]] += 1


@dataclass(frozen=True, slots=True)
class _Found:
    xyxy: Tensor
    score: Tensor
    class_id: Tensor

    def on_cpu(self) -> Detections:
        return Detections(self.xyxy.cpu().numpy(), self.score.cpu().numpy(), self.class_id.cpu().numpy())


def _decode(
    raw: Tensor, offset: tuple[int, int], scaled: tuple[int, int], original: tuple[int, int], min_score: float
) -> _Found:
    """Boxes in pixels of the original picture from one picture's output (4 + classes, anchors), xywh in the canvas."""
    scores, anchors_first = raw[4:], raw[:4].T
    class_id, anchor = torch.where(scores > min_score)
    score = scores[class_id, anchor]
    if len(score) > 30_000:
        score, kept = score.topk(30_000)
        class_id, anchor = class_id[kept], anchor[kept]
    centre, size = anchors_first[anchor].tensor_split(2, dim=1)
    xyxy = torch.cat((centre - size / 2, centre + size / 2), dim=1)
    kept = batched_nms(xyxy, score, class_id, 0.7)[:MAX_DETECTIONS]
    height, width = original
    scale = torch.tensor([width / scaled[1], height / scaled[0]] * 2, device=raw.device)
    xyxy = (xyxy[kept] - torch.tensor([*offset, *offset], device=raw.device)) * scale
    limit = torch.tensor([width, height, width, height], device=raw.device)
    return _Found(torch.minimum(xyxy.clamp(min=0), limit), score[kept], class_id[kept])


def _padded_shape(picture: Picture) -> tuple[int, int]:
    height, width = picture.shape[:2]
    return -(-height // yolo.STRIDE) * yolo.STRIDE, -(-width // yolo.STRIDE) * yolo.STRIDE


def _runs_of_equal(order: Sequence[int], shapes: Sequence[tuple[int, int]], most: int) -> Iterator[list[int]]:
    run: list[int] = []
    for index in order:
        if run and (shapes[index] != shapes[run[0]] or len(run) == most):
            yield run
            run = []
        run.append(index)
    if run:
        yield run


class _AugmentedBatches:
    """Augmented batches of one site, made by a thread beside the training step.

    Everything drawn depends on (run seed, round, node, epoch, place in the epoch) alone.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        annotated: frozenset[int],
        num_classes: int,
        pictures: PictureCache,
        plan: FitPlan,
    ) -> None:
        self.num_examples = len(samples)
        self._num_classes = num_classes
        self._plan = plan
        classes = [annotated if s.annotates is None else s.annotates & annotated for s in samples]
        kept = [np.isin(s.class_id, sorted(c)) for s, c in zip(samples, classes, strict=True)]
        self._augmentation = yolo.Augmentation(
            _Lazy(samples, pictures, plan.train.imgsz),
            [_normalised_xywh(s, keep) for s, keep in zip(samples, kept, strict=True)],
            [s.class_id[keep] for s, keep in zip(samples, kept, strict=True)],
            classes,
            plan.train.imgsz,
            plan.train.augment,
        )

    def batches(self, session: Session) -> Iterator[Sequence[Batch]]:
        """See `BatchSource.batches`."""
        with _ahead(self._make(session)) as batches:
            yield from batches

    def _make(self, session: Session) -> Iterator[Sequence[Batch]]:
        train = self._plan.train
        for epoch in range(session.epochs):
            order = np.random.default_rng(session_seed(self._plan, epoch)).permutation(self.num_examples)
            for start in range(0, self.num_examples, train.batch):
                step = epoch * session.steps_per_epoch + start // train.batch
                if step >= session.steps:
                    return
                mosaic = session.progress_at(step) < 1 - train.close_mosaic
                indices = order[start : start + train.batch]
                parts = np.array_split(indices, min(train.accumulate, len(indices)))
                yield [self._part(part, epoch, mosaic) for part in parts]

    def _part(self, indices: NDArray[np.int64], epoch: int, mosaic: bool) -> Batch:
        drawn = []
        for index in indices:
            seed = int(session_seed(self._plan, epoch, int(index)).generate_state(1)[0])
            drawn.append(self._augmentation.draw(int(index), mosaic=mosaic, seed=seed))
        annotated = torch.zeros(len(indices), self._num_classes)
        for row, index in zip(annotated, indices, strict=True):
            row[sorted(self._augmentation.annotated[index])] = 1.0
        counts = torch.tensor([len(sample["cls"]) for sample in drawn])
        targets = {
            "batch_idx": torch.repeat_interleave(torch.arange(len(drawn)), counts).float(),
            "cls": torch.cat([sample["cls"].view(-1, 1) for sample in drawn]).float(),
            "bboxes": torch.cat([sample["bboxes"].view(-1, 4) for sample in drawn]),
            "annotated": annotated,
        }
        return Batch(torch.stack([sample["img"] for sample in drawn]), targets)


class _Lazy(Sequence[Picture]):
    """The pictures of samples, decoded when they are first asked for."""

    def __init__(self, samples: Sequence[Sample], pictures: PictureCache, side: int) -> None:
        self._samples, self._pictures, self._side = samples, pictures, side

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        return self._pictures.get(self._samples[index].image, self._side)


def _normalised_xywh(sample: Sample, keep: NDArray[np.bool_]) -> NDArray[np.float32]:
    size = np.array([sample.width, sample.height] * 2, dtype=np.float32)
    x1, y1, x2, y2 = (sample.xyxy[keep] / size).T
    return np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1).astype(np.float32)


@contextmanager
def _ahead(items: Iterator[Sequence[Batch]]) -> Iterator[Iterator[Sequence[Batch]]]:
    """Take items in a thread, a few ahead of who consumes them; the thread ends when the block is left."""
    ready: queue.Queue[Sequence[Batch] | BaseException | None] = queue.Queue(_PREFETCH)
    stopped = threading.Event()

    def offer(item: Sequence[Batch] | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer(item):
                    return
            offer(None)
        except BaseException as error:  # noqa: BLE001 - raised again where the items are consumed
            offer(error)

    def consume() -> Iterator[Sequence[Batch]]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=work, name="manyeyes-augmentation", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stopped.set()
        thread.join()
