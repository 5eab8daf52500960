"""Augmented batches of a site's pictures, made beside the training step or in turn with it.

A step is a few hundred small parallel sections, each as slow as its slowest thread. A thread that makes batches on one
of the step's own cores therefore holds up all of them: on two cores 20 pictures a second instead of 27. So batches are
made beside the step where a core is left for that, or the step is on a GPU; else in turn with it, by as many threads.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyeyes.config import TrainSection
from manyeyes.datasets.sample import Sample
from manyeyes.learners.augmentation import Augmentation
from manyeyes.learners.learner import FitPlan
from manyeyes.learners.pictures import Picture, PictureCache
from manyeyes.learners.training import Batch, Session, cores, epoch_seed, pick_device, session_seed

__all__ = ["AugmentedBatches", "ahead", "is_made_beside", "may_be_mosaic", "order_of"]

_PREFETCH = 2


def is_made_beside(train: TrainSection) -> bool:
    """Whether batches are made while the step computes: on a GPU, or where the step leaves a core free."""
    return pick_device(train.device).type != "cpu" or (train.threads or cores()) < cores()


def may_be_mosaic(session: Session, step: int) -> bool:
    """Whether the pictures of a step may be mosaics: not in the last `close_mosaic` of the run."""
    train = session.plan.train
    return train.augment.mosaic > 0 and session.progress_at(step) < 1 - train.close_mosaic


def order_of(session: Session, num_examples: int) -> Iterator[tuple[int, bool, list[NDArray[np.int64]]]]:
    """The batches of a session as picture numbers, shuffled anew in each epoch of the whole run.

    Yields:
        The epoch of the run, whether its pictures may be mosaics, and the numbers of each of `accumulate` parts.
    """
    train = session.plan.train
    epoch_of_order, order = -1, np.zeros(0, dtype=np.int64)
    for step in range(session.steps):
        epoch, place = session.place(step)
        if epoch != epoch_of_order:
            order = np.random.default_rng(epoch_seed(session.plan, epoch)).permutation(num_examples)
            epoch_of_order = epoch
        indices = order[place * train.batch : (place + 1) * train.batch]
        yield epoch, may_be_mosaic(session, step), np.array_split(indices, min(train.accumulate, len(indices)))


_OfEach = Callable[[Callable[[int], tuple[Tensor, Tensor]], Iterable[int]], Iterable[tuple[Tensor, Tensor]]]
"""``map``, or what does the same with many threads."""


class AugmentedBatches:
    """Augmented batches of one site.

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
        classes = [annotated if s.annotates is None else s.annotates for s in samples]
        kept = [np.isin(s.class_id, sorted(c)) for s, c in zip(samples, classes, strict=True)]
        self._augmentation = Augmentation(
            _Lazy(samples, pictures, plan.train.imgsz),
            [_in_shares(s, keep) for s, keep in zip(samples, kept, strict=True)],
            [s.class_id[keep] for s, keep in zip(samples, kept, strict=True)],
            classes,
            plan.train.imgsz,
            plan.train.augment,
        )

    def batches(self, session: Session) -> Iterator[Sequence[Batch]]:
        """See `BatchSource.batches`."""
        if is_made_beside(self._plan.train):
            with ahead(self._make(session, map)) as batches:
                yield from batches
        else:
            with ThreadPoolExecutor(self._plan.train.threads or cores(), "manyeyes-augmentation") as pool:
                yield from self._make(session, pool.map)

    def draw(self, index: int, *, mosaic: bool, seed: int) -> tuple[Tensor, Tensor]:
        """One augmented picture: (3, imgsz, imgsz) uint8 RGB, and its objects (n, 5): class id, normalised xywh."""
        view = self._augmentation.draw(index, mosaic=mosaic, seed=seed)
        return view.image, view.objects

    def targets(self, indices: NDArray[np.int64], objects: Sequence[Tensor]) -> dict[str, Tensor]:
        """What `yolo.DetectionCriterion` needs of pictures with these objects, as `draw` gives them."""
        annotated = torch.zeros(len(indices), self._num_classes)
        for row, index in zip(annotated, indices, strict=True):
            row[sorted(self._augmentation.annotated[index])] = 1.0
        counts = torch.tensor([len(of_picture) for of_picture in objects])
        together = torch.cat(list(objects))
        return {
            "batch_idx": torch.repeat_interleave(torch.arange(len(objects)), counts).float(),
            "cls": together[:, :1],
            "bboxes": together[:, 1:],
            "annotated": annotated,
        }

    def _make(self, session: Session, of_each: _OfEach) -> Iterator[Sequence[Batch]]:
        for epoch, mosaic, parts in order_of(session, self.num_examples):
            yield [self._part(part, epoch, mosaic, of_each) for part in parts]

    def _part(self, indices: NDArray[np.int64], epoch: int, mosaic: bool, of_each: _OfEach) -> Batch:
        def draw(index: int) -> tuple[Tensor, Tensor]:
            seed = int(session_seed(self._plan, epoch, index).generate_state(1)[0])
            return self.draw(index, mosaic=mosaic, seed=seed)

        images, objects = zip(*of_each(draw, indices.tolist()), strict=True)
        # Stacked by pixel, they lie in memory as convolutions read them fastest.
        together = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
        return Batch(together, self.targets(indices, objects))


class _Lazy(Sequence[Picture]):
    """The pictures of samples, decoded when they are first asked for."""

    def __init__(self, samples: Sequence[Sample], pictures: PictureCache, side: int) -> None:
        self._samples, self._pictures, self._side = samples, pictures, side

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        return self._pictures.get(self._samples[index].image, self._side)


def _in_shares(sample: Sample, keep: NDArray[np.bool_]) -> NDArray[np.float32]:
    size = np.array([sample.width, sample.height] * 2, dtype=np.float32)
    return np.asarray(sample.xyxy[keep] / size, dtype=np.float32)


@contextmanager
def ahead(items: Iterator[Sequence[Batch]]) -> Iterator[Iterator[Sequence[Batch]]]:
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
