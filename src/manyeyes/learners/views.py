"""Views: augmented pictures behind the frozen layers of a model, kept on disk and used again over epochs and rounds.

What frozen layers make of a picture never changes, but the picture does: it is augmented anew in each epoch. A run with
`cache_views` K gives each picture K augmented views in place of one an epoch. Epoch g of the run uses view g mod K, and
another K without mosaic at the end of the run. The first time a view is needed its features are computed and written;
from then on they are read.

A view follows from (run seed, node, picture, number of the view, mosaic or not). It is computed by itself, never in a
batch: its bits do not depend on what was computed before, so a run that was interrupted ends as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from manyeyes.config import TrainSection
from manyeyes.datasets.sample import Sample
from manyeyes.errors import DataError, ResourceError
from manyeyes.learners import yolo
from manyeyes.learners.batches import AugmentedBatches, ahead, is_made_beside, may_be_mosaic, order_of
from manyeyes.learners.learner import FitPlan
from manyeyes.learners.training import Batch, Session, autocast, pick_precision, scaled

__all__ = ["CachedViews", "FrozenLayers", "Level", "ViewFile", "ViewLayout", "check_space", "delete_views", "view_key"]

_FORMAT = 1
_FILES = "views-*.bin"
_PICTURES_IN_MOSAIC = 4
# Checkpoints, logs and the final models must still find room when all views are written.
_SPARE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Level:
    """One tensor of a view.

    Attributes:
        shape: (channels, height, width).
        dtype: the type the training step computes in.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype

    @property
    def bytes_last(self) -> tuple[int, int, int]:
        """Shape of its bytes in a file and in a batch: channels last, which is what convolutions read fastest."""
        channels, height, width = self.shape
        return height, width, channels * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class ViewLayout:
    """Where each view of a node stands in its file.

    Attributes:
        levels: tensors of one view.
        kinds: (mosaic, number of the view) of all views that the run uses, sorted.
        pictures: how many pictures the node has.
        most_objects: how many objects a view can have.
    """

    levels: tuple[Level, ...]
    kinds: tuple[tuple[bool, int], ...]
    pictures: int
    most_objects: int

    @classmethod
    def of(cls, levels: Sequence[Level], samples: Sequence[Sample], plan: FitPlan) -> ViewLayout:
        """The layout for a node's pictures in a run.

        Raises:
            RunError: there are no pictures.
        """
        kinds = tuple(sorted(_kinds(plan, len(samples))))
        most = max(len(sample.class_id) for sample in samples)
        in_one_view = _PICTURES_IN_MOSAIC if any(mosaic for mosaic, _ in kinds) else 1
        return cls(tuple(levels), kinds, len(samples), most * in_one_view)

    @property
    def record(self) -> np.dtype[np.void]:
        """One view in the file. `mark` is 0 until it is written, then 2³² + CRC-32 of all that follows it."""
        levels = [(f"level{i}", "u1", level.bytes_last) for i, level in enumerate(self.levels)]
        return np.dtype([("mark", "<u8"), ("count", "<u8"), ("objects", "<f4", (self.most_objects, 5)), *levels])

    @property
    def slots(self) -> int:
        """Views the file has room for."""
        return len(self.kinds) * self.pictures

    @property
    def num_bytes(self) -> int:
        """Size of the file once every view is written."""
        return self.slots * self.record.itemsize

    def slot(self, mosaic: bool, view: int, picture: int) -> int:
        """Number of a view's record."""
        return self.kinds.index((mosaic, view)) * self.pictures + picture


def _kinds(plan: FitPlan, pictures: int) -> set[tuple[bool, int]]:
    kinds = set()
    for index in range(plan.rounds):
        session = Session.of(plan.model_copy(update={"round": index}), pictures)
        kinds |= {(may_be_mosaic(session, step), _view(plan, session.place(step)[0])) for step in range(session.steps)}
    return kinds


def _view(plan: FitPlan, epoch: int) -> int:
    return epoch % plan.train.cache_views


def view_key(
    prefix: str, samples: Sequence[Sample], annotated: frozenset[int], layout: ViewLayout, plan: FitPlan
) -> str:
    """A hash of everything that views depend on.

    Args:
        prefix: hash of the frozen layers and their weights.
        samples: the node's pictures; a picture counts as another when its size or time of change differs.
        annotated: class ids looked for in samples that do not say so themselves.
        layout: shapes and types.
        plan: seed, node, size and augmentation.

    Raises:
        DataError: a picture is gone.
    """
    digest = hashlib.sha256()
    facts = {
        "format": _FORMAT,
        "prefix": prefix,
        "annotated": sorted(annotated),
        "levels": [[*level.shape, str(level.dtype)] for level in layout.levels],
        "kinds": layout.kinds,
        "seed": plan.seed,
        "node": plan.node_id,
        "imgsz": plan.train.imgsz,
        "augment": plan.train.augment.model_dump(),
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for sample in samples:
        file = _stat(sample.image)
        classes = None if sample.annotates is None else sorted(sample.annotates)
        digest.update(json.dumps([str(sample.image), file.st_size, file.st_mtime_ns, classes]).encode())
        digest.update(sample.xyxy.tobytes())
        digest.update(sample.class_id.tobytes())
    return digest.hexdigest()[:32]


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=path) from error


class ViewFile:
    """The views of one node in one file; a context manager.

    The file has its full size from the start, with holes where no view was written yet, which take no room on disk. A
    view counts as written when its checksum is right, so a crash at any moment costs at most the views it met.

    Args:
        folder: where it lies; files of other keys there are deleted.
        key: see `view_key`.
        layout: what stands where.

    Raises:
        ResourceError: the file cannot be made.
    """

    def __init__(self, folder: Path, key: str, layout: ViewLayout) -> None:
        self._path = folder / f"views-{key}.bin"
        self._record = layout.record
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(_FILES):
                if path != self._path:
                    path.unlink()
            self._path.touch()
            self._file = self._path.open("r+b")
            self._file.truncate(layout.num_bytes)
        except OSError as error:
            raise self._refusal(error) from error
        # Read through a mapping, written through the file: a full disk is then an error, not a killed process.
        self._bytes = np.memmap(self._path, np.uint8, "r", shape=(layout.slots, self._record.itemsize))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._bytes
        self._file.close()

    def read(self, slot: int) -> np.void | None:
        """A view as a record of the layout, not a copy; None if it was not written, or not completely."""
        row = self._bytes[slot]
        view: np.void = row.view(self._record)[0]
        mark = int(view["mark"])
        return view if mark and mark == _mark_of(row) else None

    def write(self, slot: int, objects: NDArray[np.float32], levels: Sequence[NDArray[np.uint8]]) -> None:
        """Write a view: objects (n, 5), and the bytes of each level, channels last.

        Raises:
            ResourceError: the disk is full.
        """
        row = np.zeros(self._record.itemsize, np.uint8)
        view = row.view(self._record)[0]
        view["count"] = len(objects)
        view["objects"][: len(objects)] = objects
        for index, level in enumerate(levels):
            view[f"level{index}"] = level
        view["mark"] = _mark_of(row)
        try:
            self._file.seek(slot * self._record.itemsize)
            self._file.write(row.data)
            self._file.flush()
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> ResourceError:
        return ResourceError(
            f"views cannot be kept ({error.strerror})",
            file=self._path,
            key="train.cache_views",
            cure="Make room, choose another `output` folder, or set it lower; 0 keeps none.",
        )


def _mark_of(row: NDArray[np.uint8]) -> int:
    return 2**32 + zlib.crc32(row[8:].data)


class FrozenLayers:
    """What the frozen layers of a module make of one picture, in the precision of a training step.

    Args:
        module: as it is prepared for training, frozen layers in evaluation mode.
        train: how many layers are frozen, and the precision.
        device: where the module lies.
    """

    def __init__(self, module: nn.Module, train: TrainSection, device: torch.device) -> None:
        self._module, self._freeze, self._device = module, train.freeze, device
        self._precision = pick_precision(train.precision, device)

    @torch.no_grad()
    def __call__(self, picture: Tensor) -> list[Tensor]:
        """Outputs (channels, height, width) of `yolo.cut_layers` for a picture (3, h, w) uint8."""
        image = scaled(picture[None].to(self._device), self._precision)
        with autocast(self._device, self._precision):
            return [output[0] for output in yolo.cut_outputs(self._module, self._freeze, image)]

    def levels(self, imgsz: int) -> tuple[Level, ...]:
        """Shapes and types for pictures of `imgsz` by `imgsz` pixels, as one picture shows them."""
        outputs = self(torch.zeros(3, imgsz, imgsz, dtype=torch.uint8))
        return tuple(Level((output.shape[0], output.shape[1], output.shape[2]), output.dtype) for output in outputs)


class CachedViews:
    """Batches of a node's views: read where they are known, computed and written where not.

    Args:
        pictures: draws augmented pictures.
        frozen_layers: called in the thread that makes batches.
        file: keeps views.
        layout: of the file.
        plan: what was asked for.
    """

    def __init__(
        self,
        pictures: AugmentedBatches,
        frozen_layers: FrozenLayers,
        file: ViewFile,
        layout: ViewLayout,
        plan: FitPlan,
    ) -> None:
        self.num_examples = pictures.num_examples
        self._pictures, self._frozen_layers = pictures, frozen_layers
        self._file, self._layout, self._plan = file, layout, plan

    def batches(self, session: Session) -> Iterator[Sequence[Batch]]:
        """See `BatchSource.batches`."""
        if is_made_beside(self._plan.train):
            with ahead(self._make(session)) as batches:
                yield from batches
        else:
            yield from self._make(session)

    def _make(self, session: Session) -> Iterator[Sequence[Batch]]:
        for epoch, mosaic, parts in order_of(session, self.num_examples):
            view = _view(self._plan, epoch)
            yield [self._part(part, mosaic, view) for part in parts]

    def _part(self, indices: NDArray[np.int64], mosaic: bool, view: int) -> Batch:
        storage = [torch.empty(len(indices), *level.bytes_last, dtype=torch.uint8) for level in self._layout.levels]
        objects = []
        for row, index in enumerate(indices):
            record = self._known(int(index), mosaic, view)
            objects.append(torch.from_numpy(record["objects"][: int(record["count"])].copy()))
            for number, tensor in enumerate(storage):
                tensor.numpy()[row] = record[f"level{number}"]
        features = tuple(
            tensor.view(level.dtype).permute(0, 3, 1, 2)
            for tensor, level in zip(storage, self._layout.levels, strict=True)
        )
        return Batch(torch.empty(len(indices), 0), self._pictures.targets(indices, objects), features)

    def _known(self, index: int, mosaic: bool, view: int) -> np.void:
        slot = self._layout.slot(mosaic, view, index)
        record = self._file.read(slot)
        if record is None:
            entropy = np.random.SeedSequence([self._plan.seed, *self._plan.node_id.encode(), mosaic, view, index])
            picture, objects = self._pictures.draw(index, mosaic=mosaic, seed=int(entropy.generate_state(1)[0]))
            self._file.write(slot, objects.numpy(), [_bytes_of(level) for level in self._frozen_layers(picture)])
            record = self._file.read(slot)
            assert record is not None, "what was written a moment ago reads back"
        return record


def _bytes_of(level: Tensor) -> NDArray[np.uint8]:
    return level.permute(1, 2, 0).contiguous().cpu().view(torch.uint8).numpy()


def delete_views(folder: Path) -> None:
    """Delete the views below a folder."""
    for path in folder.rglob(_FILES):
        path.unlink()


def check_space(folder: Path, needed: Callable[[int], int], views: int) -> None:
    """Refuse more views than the disk has room for.

    Args:
        folder: where the run keeps its files; need not exist. Views that lie there already take no further room.
        needed: views of each picture → bytes of all files that exist at the same time.
        views: views of each picture that are asked for.

    Raises:
        ResourceError: they do not fit; says how many would.
    """
    free = shutil.disk_usage(_existing(folder)).free - _SPARE_BYTES
    free += sum(path.stat().st_blocks * 512 for path in folder.rglob(_FILES))
    if needed(views) <= free:
        return
    fitting = next((count for count in range(views - 1, 0, -1) if needed(count) <= free), 0)
    raise ResourceError(
        f"{views} views of each picture take {needed(views) / 1e9:.1f} GB, {max(free, 0) / 1e9:.1f} GB are free",
        file=folder,
        key="train.cache_views",
        cure=f"Set it to {fitting or '0, which keeps none'}, make room, or choose another `output` folder.",
    )


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())
