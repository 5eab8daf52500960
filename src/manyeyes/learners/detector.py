"""The detector: YOLOv8 as a learner of the federation."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manyeyes.config import TrainSection
from manyeyes.datasets.detections import Detections
from manyeyes.datasets.sample import Dataset, Sample
from manyeyes.errors import DataError, ResourceError
from manyeyes.learners import yolo
from manyeyes.learners.average_precision import average_precision, box_iou
from manyeyes.learners.batches import AugmentedBatches
from manyeyes.learners.learner import Control, FitPlan, Metrics, ProgressCallback, Template, silent
from manyeyes.learners.models import layer_of, module_of, put, save_model, take
from manyeyes.learners.pictures import Picture, PictureCache
from manyeyes.learners.round_states import RoundStates
from manyeyes.learners.training import (
    BatchSource,
    autocast,
    checkpoint_activations,
    cores,
    pick_device,
    pick_precision,
    pin_threads,
    train,
)
from manyeyes.learners.views import CachedViews, FrozenLayers, ViewFile, ViewLayout, check_space, delete_views, view_key
from manyeyes.weights import Update, Weights, subtract

__all__ = ["MAX_DETECTIONS", "DetectorLearner"]

MAX_DETECTIONS = 300

# What a process takes before it has a model: Python, torch, Ultralytics, OpenCV.
_PROCESS_BYTES = 600_000_000
# What training takes beyond what the forward pass keeps: gradients of activations and the convolutions' workspace, as a
# share of it. Measured with yolov8n, fp32, batch 8, at 320 and 640 px.
_BACKWARD_SHARE = 0.3
# A frozen layer's input, what its convolution gives and what its activation gives are there at the same time.
_FROZEN_COPIES = 3
# Batches that are made while another is trained on, and what else a session keeps.
_SESSION_BYTES = 50_000_000


class DetectorLearner:
    """Trains and tests YOLOv8 on a site's pictures.

    Args:
        template: form and class names of the model.
        device: "auto", "cpu", "cuda" or "cuda:N", for tests; training follows its plan.
        threads: CPU threads for tests; default: all this process may use.
        processes: among which the memory is shared that may keep decoded pictures.
        most_cached: bytes that decoded pictures may take at most; default: a share of what is free.

    It can be pickled: what it has made for itself is made again on the other side.
    """

    def __init__(
        self,
        template: Template,
        *,
        device: str = "auto",
        threads: int | None = None,
        processes: int = 1,
        most_cached: int | None = None,
    ) -> None:
        self.template = template
        self._pictures = PictureCache(0.25 / processes, most_cached)
        self._processes = processes
        self._most_cached = most_cached
        self._threads = threads
        self._device = pick_device(device)
        self._trained_module = module_of(template.architecture, len(template.names))
        self._tested_module: tuple[str, nn.Module] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        made_again = partial(
            DetectorLearner,
            self.template,
            device=str(self._device),
            threads=self._threads,
            processes=self._processes,
            most_cached=self._most_cached,
        )
        return made_again, ()

    def sharing(self, processes: int, threads: int | None) -> DetectorLearner:
        """The same learner for one of several processes on this machine."""
        return DetectorLearner(self.template, device=str(self._device), threads=threads, processes=processes)

    # -- what the federation asks -------------------------------------------------------------------------------

    def expected_tensors(self, plan: FitPlan) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the tensors an update must hold: (delta, buffers), personal ones included.

        Layers before `freeze` are neither trained nor sent; the integral of the box distribution never is. Frozen
        BatchNorm sends no buffers.
        """
        trainable = {name for name, _ in self._trained_module.named_parameters() if ".dfl." not in name}
        moving = plan.train.batchnorm == "train"
        buffers = {name for name, _ in self._trained_module.named_buffers()} if moving else set()
        freeze = plan.train.freeze
        return (
            frozenset(name for name in trainable if layer_of(name) >= freeze),
            frozenset(name for name in buffers if layer_of(name) >= freeze),
        )

    def fit(
        self,
        weights: Weights,
        data: Dataset,
        plan: FitPlan,
        progress: ProgressCallback = silent,
        state_folder: Path | None = None,
        control: Control | None = None,
    ) -> Update:
        """Train on the training pictures; see `Learner.fit`.

        Raises:
            DataError: a picture cannot be decoded.
            ResourceError: the device is missing, or views cannot be kept.
            RunError: no pictures, or the loss is no longer finite.
        """
        pin_threads(plan.train.threads)
        device = pick_device(plan.train.device)
        samples = data.split("train")
        module = self._prepare(weights, plan.train, device)
        undo = self._checkpointing(module) if plan.train.gradient_checkpointing else None
        try:
            memory = _OptimizerMemory(plan, state_folder)
            with self._source(module, data, plan, device, state_folder) as (model, source):
                result = train(
                    model,
                    yolo.DetectionCriterion(module),
                    source,
                    plan,
                    device=device,
                    correction=control.correction if control else None,
                    optimizer_state=memory.recall(),
                    progress=progress,
                )
            memory.keep(result.optimizer_state)
        finally:
            if undo:
                undo()
        after = take(module)
        delta_names, buffer_names = self.expected_tensors(plan)
        metrics = {f"loss_{name}" if name != "loss" else "loss": value for name, value in result.losses.items()}
        metrics |= {"images_per_second": result.images_per_second, "seconds": result.seconds}
        delta = subtract(after.select(delta_names.__contains__), weights)
        change = control.change(delta, result.step_sum) if control else Weights({})
        buffers = after.select(buffer_names.__contains__)
        return Update(delta, buffers, len(samples), metrics, change, result.step_sum)

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
            module = module_of(self.template.architecture, len(self.template.names))
            put(module, weights)
            fused = cast(nn.Module, module.eval().fuse(verbose=False))  # type: ignore[operator]
            fused.requires_grad_(False)
            self._tested_module = key, fused.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self._tested_module[1]

    # -- checks before a run ------------------------------------------------------------------------------------

    def check_batch_fits(self, plan: TrainSection, at_once: int = 1, setting: str = "rows_at_once") -> None:
        """Refuse a batch whose activations cannot fit into the memory that is free now.

        Activations of one picture are measured by a forward pass and multiplied; the optimiser's state is added.

        Args:
            plan: names batch, size and device.
            at_once: processes that train at the same time.
            setting: what says how many they are.

        Raises:
            ResourceError: it cannot fit; says which batch would, or how many processes.
        """
        one, fixed = self._activation_bytes(plan), 4 * self.template.weights.num_bytes
        if at_once > 1:
            fixed += _PROCESS_BYTES
        free, part = _free_memory(plan), plan.batch // plan.accumulate
        each, needed = free // at_once, fixed + part * one
        if needed <= each:
            return
        fitting, most = max(0, int((each - fixed) // one)), max(1, free // needed)
        ways = f"Use a batch of at most {fitting}, or train.accumulate, or a smaller train.imgsz"
        if at_once > 1:
            ways = f"{ways}, or at most {most} as {setting}" if fitting else f"Use at most {most} as {setting}"
        raise ResourceError(
            f"a batch of {part} pictures at {plan.imgsz} px needs about {needed / 1e9:.1f} GB, "
            f"{each / 1e9:.1f} GB are free{f' for each of {at_once} processes' if at_once > 1 else ''}",
            key="train.batch" if fitting or at_once == 1 else setting,
            cure=f"{ways}.",
        )

    def training_bytes(self, data: Dataset, plan: TrainSection) -> int:
        """Memory that a fit adds to this process on a CPU, estimated from above: model, activations, decoded pictures.

        Activations of one picture are measured by a forward pass and multiplied, so it takes a moment.
        """
        fixed, part = 4 * self.template.weights.num_bytes, plan.batch // plan.accumulate
        precision = pick_precision(plan.precision, pick_device(plan.device))
        activations = part * self._activation_bytes(plan, plan.freeze, precision)
        pictures = sum(_decoded_bytes(sample, plan.imgsz) for samples in data.splits.values() for sample in samples)
        kept = _SESSION_BYTES + min(pictures, self._pictures.room)
        return fixed + int((1 + _BACKWARD_SHARE) * activations) + kept

    def rows_that_fit(self, plan: TrainSection) -> int:
        """How many rows this machine can train at the same time: a core and its memory for each; one on a GPU."""
        if pick_device(plan.device).type == "cuda":
            return 1
        part = plan.batch // plan.accumulate
        each = _PROCESS_BYTES + 4 * self.template.weights.num_bytes + part * self._activation_bytes(plan)
        # Half of it is left to decoded pictures and to whatever else the machine does.
        by_memory = int(0.5 * _free_memory(plan) // each)
        return max(1, min(cores() // (plan.threads or 1), by_memory))

    def _activation_bytes(self, plan: TrainSection, freeze: int = 0, precision: torch.dtype = torch.float32) -> int:
        """What the forward pass of one picture keeps for the backward pass, with the first `freeze` layers frozen."""
        module = module_of(self.template.architecture, len(self.template.names)).train()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(layer_of(name) >= freeze and ".dfl." not in name)
        # Two sizes: weights are kept too, whatever the size, and only once for a whole batch.
        smaller, larger = 2 * yolo.STRIDE, min(max(plan.imgsz, 4 * yolo.STRIDE), 320)
        more = _kept_bytes(module, larger, freeze, precision) - _kept_bytes(module, smaller, freeze, precision)
        return int(more / (larger**2 - smaller**2) * plan.imgsz**2)

    def check_views_fit(
        self, rows: Mapping[str, Sequence[Dataset]], plan: FitPlan, folder: Path, at_once: int = 1
    ) -> dict[str, int]:
        """Refuse more views than the disk has room for; nothing is written.

        Args:
            rows: row → the pictures of its nodes. When a row is finished its views are deleted.
            plan: of any round and node.
            folder: where the run keeps its files.
            at_once: rows that are trained at the same time.

        Returns:
            The bytes that the views of each row will take.

        Raises:
            ResourceError: they cannot fit; says how many would.
        """
        device = pick_device(plan.train.device)
        module = self._prepare(self.template.weights, plan.train, device)
        levels = FrozenLayers(module, plan.train, device).levels(plan.train.imgsz)

        def needed(views: int) -> dict[str, int]:
            asked = plan.model_copy(update={"train": plan.train.model_copy(update={"cache_views": views})})
            return {
                row: sum(ViewLayout.of(levels, data.split("train"), asked).num_bytes for data in nodes)
                for row, nodes in rows.items()
            }

        check_space(folder, lambda views: sum(heapq.nlargest(at_once, needed(views).values())), plan.train.cache_views)
        return needed(plan.train.cache_views)

    def forget(self, folder: Path) -> None:
        """Delete below a folder what `fit` kept there to save time."""
        delete_views(folder)

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

    @contextmanager
    def _source(
        self, module: nn.Module, data: Dataset, plan: FitPlan, device: torch.device, state_folder: Path | None
    ) -> Iterator[tuple[nn.Module, BatchSource]]:
        """What is trained, and its batches: the module and pictures, or its later layers and cached views."""
        samples, annotated = data.split("train"), self._class_ids(data)
        pictures = AugmentedBatches(samples, annotated, len(self.template.names), self._pictures, plan)
        if not plan.train.cache_views:
            yield module, pictures
            return
        freeze = plan.train.freeze
        frozen_layers = FrozenLayers(module, plan.train, device)
        layout = ViewLayout.of(frozen_layers.levels(plan.train.imgsz), samples, plan)
        prefix = take(module).select(lambda name: layer_of(name) < freeze).value_hash
        key = view_key(prefix, samples, annotated, layout, plan)
        with ExitStack() as stack:
            folder = state_folder or Path(stack.enter_context(TemporaryDirectory(prefix="manyeyes-views-")))
            file = stack.enter_context(ViewFile(folder, key, layout))
            yield yolo.LaterLayers(module, freeze), CachedViews(pictures, frozen_layers, file, layout, plan)

    def _prepare(self, weights: Weights, plan: TrainSection, device: torch.device) -> nn.Module:
        module = self._trained_module
        put(module, weights)
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        module.train()
        for index, layer in enumerate(cast(Any, module).model):
            if index < plan.freeze:
                layer.eval()
        if plan.batchnorm == "frozen":
            for norm in module.modules():
                if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                    norm.eval()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(layer_of(name) >= plan.freeze and ".dfl." not in name)
            parameter.grad = None
        return module

    @staticmethod
    def _checkpointing(module: nn.Module) -> Callable[[], None]:
        blocks = [layer for layer in cast(Any, module).model if type(layer).__name__ in ("C2f", "SPPF")]
        return checkpoint_activations(blocks)


class _OptimizerMemory:
    """What a node's optimiser remembers from round to round, if it is to and has a folder."""

    def __init__(self, plan: FitPlan, state_folder: Path | None) -> None:
        self._round = plan.round
        keeps = plan.train.keeps_optimizer_state
        self._states = RoundStates(state_folder, "optimizer") if state_folder and keeps else None

    def recall(self) -> Mapping[str, NDArray[Any]] | None:
        if self._states is None:
            return None
        return self._states.before(self._round) or {}

    def keep(self, state: Mapping[str, NDArray[Any]]) -> None:
        if self._states is not None:
            self._states.save(self._round, state)
            self._states.forget_others(self._round)


def _free_memory(plan: TrainSection) -> int:
    device = pick_device(plan.device)
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


def _kept_bytes(module: nn.Module, side: int, freeze: int, precision: torch.dtype) -> int:
    """Bytes kept for the backward pass of one picture, and those that pass through the first `freeze` layers."""
    seen: dict[int, int] = {}
    passing = [0]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    def measure(_: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            passing.append(output.nbytes)

    frozen = [part for layer in cast(Any, module).model[:freeze] for part in layer.modules()]
    hooks = [part.register_forward_hook(measure) for part in frozen]
    kept = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with autocast(torch.device("cpu"), precision), kept:
        outputs = module(torch.zeros(1, 3, side, side))
    del outputs
    for hook in hooks:
        hook.remove()
    return sum(seen.values()) + _FROZEN_COPIES * max(passing)


def _decoded_bytes(sample: Sample, side: int) -> int:
    """Of a picture as the cache keeps it: three channels, its longer side `side` pixels."""
    scale = side / max(sample.width, sample.height)
    return int(3 * sample.width * sample.height * scale**2)


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
    # Half of the time that importing this file would take; a coordinator and most commands test nothing.
    from torchvision.ops import batched_nms

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
