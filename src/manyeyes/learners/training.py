"""The one training loop: federation, distillation and several GPUs all train through `train`.

It takes a model, a criterion and batches, and knows nothing of what the model detects. A session is short: it starts
from given weights, follows a schedule that spans all rounds, and hands back what changed.

How a gradient is made. A criterion returns the *sum* of its loss over a part of a batch and the normaliser that
belongs to it. The gradient of an optimiser step is

    batch · Σ_parts d(total) / max(1, Σ_parts normaliser)

so that a batch computed in parts gives the gradient of the same batch computed at once, the last short batch of an
epoch counts for as many pictures as it has, and learning rates of YOLO recipes (whose loss is multiplied by the batch)
keep their meaning.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from manyeyes.config import TrainSection
from manyeyes.errors import ResourceError, RunError
from manyeyes.learners.learner import FitPlan, Progress, ProgressCallback, silent
from manyeyes.learners.memory import freed_memory_kept

__all__ = [
    "Batch",
    "BatchSource",
    "Criterion",
    "ExtraLoss",
    "LossParts",
    "Session",
    "TrainResult",
    "autocast",
    "checkpoint_activations",
    "cores",
    "epoch_seed",
    "learning_rate",
    "pick_device",
    "pick_precision",
    "pin_threads",
    "proximal_term",
    "run_progress",
    "scaled",
    "session_seed",
    "train",
]


@dataclass(frozen=True, slots=True)
class Batch:
    """A part of a batch.

    Attributes:
        images: (b, 3, h, w) uint8 or float32; (b, 0) where `features` stand in for them.
        targets: what the criterion needs besides the model's output.
        features: what the model takes in place of images: the outputs of frozen layers, each (b, …).
    """

    images: Tensor
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    features: tuple[Tensor, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same on a device; images keep their type until there, where a quarter of the bytes arrive."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.targets.items()}
        features = tuple(tensor.to(device, non_blocking=True) for tensor in self.features)
        return Batch(self.images.to(device, non_blocking=True), moved, features)


@dataclass(frozen=True, slots=True)
class LossParts:
    """A criterion's answer for one part of a batch.

    Attributes:
        total: scalar, the summed loss, differentiable.
        normaliser: scalar, what the sum over all parts is divided by; no gradient.
        items: summed loss by name, for the log; divided by the same normaliser.
    """

    total: Tensor
    normaliser: Tensor
    items: Mapping[str, Tensor]


class BatchSource(Protocol):
    """Where batches come from."""

    num_examples: int

    def batches(self, session: Session) -> Iterator[Sequence[Batch]]:
        """The session's batches in order, each as its `accumulate` parts."""


Criterion = Callable[[Any, Batch], LossParts]
"""``criterion(outputs, batch)``"""

ExtraLoss = Callable[[nn.Module, Any, Batch], Tensor]
"""``extra_loss(model, outputs, batch)``: a scalar on the scale of one step's loss, added to it."""


@dataclass(frozen=True, slots=True)
class Session:
    """Where the steps of one fit lie in the whole run.

    Attributes:
        plan: what was asked for.
        steps_per_epoch: optimiser steps that see every picture once.
        steps: optimiser steps of this session.
    """

    plan: FitPlan
    steps_per_epoch: int
    steps: int

    @classmethod
    def of(cls, plan: FitPlan, num_examples: int) -> Session:
        """The session that trains on `num_examples` pictures.

        Raises:
            RunError: there are no pictures.
        """
        if num_examples < 1:
            raise RunError(f"node {plan.node_id} has no pictures to train on")
        per_epoch = math.ceil(num_examples / plan.train.batch)
        steps = plan.train.steps or max(1, round(plan.train.epochs * per_epoch))
        return cls(plan, per_epoch, steps)

    @property
    def epochs(self) -> int:
        """Epochs of this session, the last one perhaps cut short."""
        return math.ceil(self.steps / self.steps_per_epoch)

    def place(self, step: int) -> tuple[int, int]:
        """The epoch of the whole run that a step of this session belongs to, and which batch of it the step takes.

        A round of half an epoch leaves the other half to the next one, so every picture is seen equally often.
        """
        return divmod(self.plan.round * self.steps + step, self.steps_per_epoch)

    def progress_at(self, step: int) -> float:
        """Share of the whole run, or of a node's training for itself, done before a step of this session; in [0, 1)."""
        if self.plan.finetune:
            return step / self.steps
        return run_progress(self.plan.round, self.plan.rounds, step / self.steps)


def run_progress(round_index: int, rounds: int, share_of_round: float) -> float:
    """Share of a run that is done: the clock of learning rate and mosaic, the same for every node."""
    return (round_index + share_of_round) / rounds


def learning_rate(train: TrainSection, progress: float) -> float:
    """Learning rate at a share of the whole run, without warm-up; from `lr` to `lr * final_lr`."""
    shapes = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    shape = shapes[train.schedule]
    return train.lr * (train.final_lr + (1 - train.final_lr) * shape if train.schedule != "constant" else 1.0)


def session_seed(plan: FitPlan, *more: int) -> np.random.SeedSequence:
    """What everything random at a node is drawn from: (run seed, round, node id, …), whatever ran before."""
    return np.random.SeedSequence([plan.seed, plan.round, *plan.node_id.encode(), *more])


def epoch_seed(plan: FitPlan, epoch: int) -> np.random.SeedSequence:
    """What the order of a node's pictures in an epoch of the whole run is drawn from, in whichever rounds it lies."""
    return np.random.SeedSequence([plan.seed, *plan.node_id.encode(), epoch])


def pick_device(name: str) -> torch.device:
    """The device for a configured name; "auto" takes CUDA where there is one.

    Raises:
        ResourceError: CUDA was asked for and is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ResourceError(
            f"device {name} was asked for, but torch finds no CUDA device", key="train.device", cure="Use auto or cpu."
        )
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type activations are computed in.

    "auto" is bfloat16 where the machine computes in it natively (AVX512-BF16 or AMX, or a CUDA device that supports
    it), float16 on older CUDA devices, float32 elsewhere: emulated bfloat16 is slower than float32.
    """
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("amx_tile")
    return torch.bfloat16 if native else torch.float32


def scaled(images: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """Images as a model takes them: channels last in memory, uint8 as `precision` in [0, 1].

    Whole numbers up to 255 are exact in every precision, so this rounds once, as a division in float32 would.
    """
    images = images.to(memory_format=torch.channels_last)
    return images.to(precision).div_(255) if images.dtype == torch.uint8 else images


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[Any]:
    """The context a forward pass runs in."""
    if precision == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision)


def pin_threads(threads: int | None) -> int:
    """Set the number of CPU threads torch uses (importing Ultralytics may have reset it); default: all we may use."""
    count = threads or cores()
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    return count


def cores() -> int:
    """CPU cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def proximal_term(model: nn.Module, mu: float) -> ExtraLoss:
    """FedProx: mu/2 · ‖w − w0‖² over the trained tensors, w0 being the weights at the start of the session.

    Source: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020.
    """
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def term(model: nn.Module, outputs: Any, batch: Batch) -> Tensor:
        squares = [(p - start[name]).square().sum() for name, p in model.named_parameters() if p.requires_grad]
        return 0.5 * mu * torch.stack(squares).sum()

    return term


def checkpoint_activations(blocks: Sequence[nn.Module]) -> Callable[[], None]:
    """Recompute the activations of these blocks in the backward pass instead of keeping them.

    BatchNorm would count every batch twice, since the recomputation runs it again; its statistics are held still
    then. Returns a function that undoes it.
    """
    originals = [(block, block.forward) for block in blocks]
    for block, forward in originals:
        norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        contexts = partial(_checkpoint_contexts, norms)
        block.forward = partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)

    def undo() -> None:
        for block, _ in originals:
            del block.forward

    return undo


class _HeldStatistics(AbstractContextManager[None]):
    """BatchNorm normalises by the batch as before, but its running statistics come out as they went in."""

    def __init__(self, norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> None:
        self._norms = norms
        self._before: list[tuple[float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        for norm in self._norms:
            counter = norm.num_batches_tracked
            self._before.append((norm.momentum, None if counter is None else counter.clone()))
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, counter) in zip(self._norms, self._before, strict=True):
            norm.momentum = momentum
            if counter is not None:
                cast(Tensor, norm.num_batches_tracked).copy_(counter)
        self._before.clear()


def _checkpoint_contexts(
    norms: Sequence[nn.modules.batchnorm._BatchNorm],
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _HeldStatistics(norms)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a session did.

    Attributes:
        losses: mean of each loss over the last epoch.
        images: pictures seen.
        seconds: wall time, the first batch included.
        images_per_second: after the first step, whose time is set-up.
        steps: optimiser steps.
        step_sum: distance that a constant gradient of one would have gone; 0 unless a correction was given or the plan
            asks for it.
        optimizer_state: what the optimiser remembers of each trained tensor, as "kind/name"; empty unless asked for.
    """

    losses: dict[str, float]
    images: int
    seconds: float
    images_per_second: float
    steps: int
    step_sum: float = 0.0
    optimizer_state: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def train(
    model: nn.Module,
    criterion: Criterion,
    source: BatchSource,
    plan: FitPlan,
    *,
    device: torch.device,
    extra_loss: ExtraLoss | None = None,
    correction: Mapping[str, NDArray[np.float32]] | None = None,
    optimizer_state: Mapping[str, NDArray[Any]] | None = None,
    progress: ProgressCallback = silent,
) -> TrainResult:
    """Train a model in place for one session.

    Args:
        model: in the mode (train or eval, layer by layer) it is to be trained in; parameters with `requires_grad`
            are trained.
        criterion: the summed loss and its normaliser for a part of a batch.
        source: the batches.
        plan: epochs or steps, schedule, optimiser, precision, seed, round.
        device: where the model lies.
        extra_loss: added to each step's loss; FedProx's proximal term is added by itself when the plan asks for it.
        correction: added to the gradient of each step, by name of the trained parameter, before it is clipped: at the
            common optimum the corrected gradients vanish, the nodes' own do not and, clipped, would balance elsewhere.
        optimizer_state: of the node's last session; empty if there was none, None if each session begins anew.
        progress: called about twice a second and at the end of each epoch; may raise to stop.

    Raises:
        RunError: there are no pictures, a correction is for a tensor that is not trained, or the loss is no longer
            finite.
    """
    session = Session.of(plan, source.num_examples)
    torch.manual_seed(int(session_seed(plan).generate_state(1)[0]))
    stepper = _Stepper(model, criterion, session, device, _joined(model, plan, extra_loss), correction, optimizer_state)
    meter = _Meter(session, progress)
    batches = source.batches(session)
    try:
        with freed_memory_kept(device):
            for step, parts in enumerate(batches):
                stepper.set_learning_rate(step)
                items, images = stepper.step(parts)
                meter.count(step, items, images)
    finally:
        close = getattr(batches, "close", None)
        if close:
            close()
    stepper.finish()
    state = {} if optimizer_state is None else _optimizer_state(model, stepper.optimizer)
    return replace(meter.result(), step_sum=stepper.step_sum, optimizer_state=state)


def _joined(model: nn.Module, plan: FitPlan, extra_loss: ExtraLoss | None) -> ExtraLoss | None:
    if not plan.proximal_mu:
        return extra_loss
    proximal = proximal_term(model, plan.proximal_mu)
    if extra_loss is None:
        return proximal
    return lambda model, outputs, batch: proximal(model, outputs, batch) + extra_loss(model, outputs, batch)


def _make_optimizer(model: nn.Module, train: TrainSection) -> torch.optim.Optimizer:
    """Weight decay for matrices and kernels only: biases and norms have a scale of their own."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.lr, betas=(train.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, nesterov=train.momentum > 0, fused=True)


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, NDArray[Any]]:
    """What the optimiser remembers, as "kind/name of the tensor"."""
    return {
        f"{kind}/{name}": np.asarray(value.detach().cpu().numpy())
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _put_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, NDArray[Any]]) -> bool:
    """Go on from a state, unless it is of other tensors than those that are trained now; says whether it was taken."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, array in state.items():
        kind, _, name = key.partition("/")
        by_name.setdefault(name, {})[kind] = torch.tensor(array)
    fits = by_name.keys() == trained.keys() and all(
        tensor.shape in ((), trained[name].shape) for name, kinds in by_name.items() for tensor in kinds.values()
    )
    if fits:
        for name, kinds in by_name.items():
            optimizer.state[trained[name]] = {kind: t.to(trained[name].device) for kind, t in kinds.items()}
    return fits


class _Stepper:
    """One optimiser step after the other: forward, backward, scale, clip, step, average."""

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion,
        session: Session,
        device: torch.device,
        extra_loss: ExtraLoss | None,
        correction: Mapping[str, NDArray[np.float32]] | None,
        optimizer_state: Mapping[str, NDArray[Any]] | None,
    ) -> None:
        self.model, self.criterion, self.session, self.device = model, criterion, session, device
        self.train = session.plan.train
        self.extra_loss = extra_loss
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.precision = pick_precision(self.train.precision, device)
        self.optimizer = _make_optimizer(model, self.train)
        goes_on = bool(optimizer_state) and _put_optimizer_state(model, self.optimizer, optimizer_state or {})
        # An optimiser that has to learn its scale in a later round would shake the model as much as in the first.
        first = session.plan.round == 0 or session.plan.finetune
        self.warms_up = first or (optimizer_state is not None and not goes_on)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.average = _Average(model, self.train.ema) if self.train.ema else None
        self.drift = _DriftCorrection(model, correction, device) if correction else None
        self.probe = _Probe(self.optimizer, device) if correction or session.plan.tell_step_sum else None
        self.optimizer.zero_grad(set_to_none=True)

    def set_learning_rate(self, step: int) -> None:
        lr = learning_rate(self.train, self.session.progress_at(step))
        warmup = self.train.warmup_epochs * self.session.steps_per_epoch
        if self.warms_up and step < warmup:
            lr *= (step + 1) / (warmup + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def step(self, parts: Sequence[Batch]) -> tuple[dict[str, Tensor], int]:
        """One step on one batch; returns the mean of each loss and the number of pictures."""
        images = sum(len(part.images) for part in parts)
        normaliser = torch.zeros((), device=self.device)
        items: dict[str, Tensor] = {}
        extra_gradients: list[Tensor | None] = []
        for part in parts:
            answer, extra = self._forward(part.to(self.device))
            normaliser = normaliser + answer.normaliser.detach()
            items = {name: items.get(name, 0) + value.detach() for name, value in answer.items.items()}
            if extra is not None:
                share = self.scaler.scale(extra * (len(part.images) / images))
                extra_gradients = _sum_gradients(extra_gradients, share, self.trained)
            self.scaler.scale(answer.total).backward()  # type: ignore[no-untyped-call]
        self._scale_gradients(images / normaliser.clamp(min=1.0), extra_gradients)
        self._update()
        return {name: value / normaliser.clamp(min=1.0) for name, value in items.items()}, images

    def _forward(self, part: Batch) -> tuple[LossParts, Tensor | None]:
        inputs = part.features or (scaled(part.images, self.precision),)
        with autocast(self.device, self.precision):
            outputs = self.model(*inputs)
        answer = self.criterion(outputs, part)
        extra = self.extra_loss(self.model, outputs, part) if self.extra_loss else None
        return answer, extra

    def _scale_gradients(self, scale: Tensor, extra_gradients: Sequence[Tensor | None]) -> None:
        gradients = [p.grad for p in self.trained if p.grad is not None]
        torch._foreach_mul_(gradients, scale)
        for parameter, extra in zip(self.trained, extra_gradients, strict=False):
            if extra is not None:
                parameter.grad = extra if parameter.grad is None else parameter.grad.add_(extra)

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.drift:
            self.drift.add_to_gradients()
        if self.probe:
            self.probe.push()
        if self.train.clip_norm:
            nn.utils.clip_grad_norm_(self.trained, self.train.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update()

    def finish(self) -> None:
        """Put the averaged weights in place, if an average was kept."""
        if self.average:
            self.average.put_in_place()

    @property
    def step_sum(self) -> float:
        """Distance that a constant gradient of one would have gone; 0 where nobody wants to know."""
        return self.probe.distance if self.probe else 0.0


def _sum_gradients(sums: list[Tensor | None], loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of a loss that must not be divided by the criterion's normaliser, added to those before."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    if not sums:
        return list(gradients)
    return [a if b is None else b if a is None else a + b for a, b in zip(sums, gradients, strict=True)]


class _DriftCorrection:
    """What SCAFFOLD adds to each gradient."""

    def __init__(self, model: nn.Module, correction: Mapping[str, NDArray[np.float32]], device: torch.device) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if unknown := sorted(correction.keys() - trained.keys()):
            raise RunError(f"there is a correction for {unknown[0]!r}, which is not trained")
        self._terms = [(trained[name], torch.tensor(term, device=device)) for name, term in correction.items()]

    def add_to_gradients(self) -> None:
        for parameter, term in self._terms:
            parameter.grad = term.clone() if parameter.grad is None else parameter.grad.add_(term)


class _Probe:
    """Measures how far gradients have moved the model: one more parameter, whose gradient is always one.

    So schedule, warm-up, momentum and steps that float16 skips count for it as they do for the model. AdamW moves it by
    the learning rate in each step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._parameter = nn.Parameter(torch.zeros((), dtype=torch.float64, device=device))
        optimizer.add_param_group({"params": [self._parameter], "weight_decay": 0.0})

    def push(self) -> None:
        self._parameter.grad = torch.ones_like(self._parameter)

    @property
    def distance(self) -> float:
        return -float(self._parameter.detach())


class _Average:
    """Exponential moving average of what is trained; its decay rises from 0.1 so that a short session is no shadow
    of the weights it began with."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        buffers = [b for b in model.buffers() if b.is_floating_point()]
        self._live = [p for p in model.parameters() if p.requires_grad] + buffers
        self._mean = [tensor.detach().clone() for tensor in self._live]
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(self._mean, [t.detach() for t in self._live], 1 - decay)

    @torch.no_grad()
    def put_in_place(self) -> None:
        for live, mean in zip(self._live, self._mean, strict=True):
            live.copy_(mean)


class _Meter:
    """Counts pictures and losses and tells the progress callback."""

    _INTERVAL = 0.5

    def __init__(self, session: Session, progress: ProgressCallback) -> None:
        self.session, self.progress = session, progress
        self.began = self.warm = self.told = time.perf_counter()
        self.images = self.images_before_warm = 0
        self.losses: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._counted = 0

    def count(self, step: int, items: Mapping[str, Tensor], images: int) -> None:
        now = time.perf_counter()
        self.images += images
        if step == 0:
            self.warm, self.images_before_warm = now, images
        self._sums = {name: self._sums.get(name, 0) + value for name, value in items.items()}
        self._counted += 1
        done = step + 1
        epoch_done = done % self.session.steps_per_epoch == 0 or done == self.session.steps
        if epoch_done or now - self.told >= self._INTERVAL:
            self.told = now
            self._tell(done, epoch_done)
        if epoch_done:
            self._sums, self._counted = {}, 0

    def _tell(self, done: int, epoch_done: bool) -> None:
        self.losses = {name: float(value) / self._counted for name, value in self._sums.items()}
        self._check_finite(done)
        plan, rate = self.session.plan, self.images_per_second
        left = (self.session.steps - done) * plan.train.batch / rate if rate else 0.0
        epoch = math.ceil(done / self.session.steps_per_epoch)
        self.progress(
            Progress(
                plan.node_id,
                plan.round,
                epoch,
                self.session.epochs,
                done,
                self.session.steps,
                rate,
                self.losses,
                left,
                epoch_done,
            )
        )

    def _check_finite(self, done: int) -> None:
        if not all(math.isfinite(value) for value in self.losses.values()):
            plan = self.session.plan
            raise RunError(
                f"the loss at node {plan.node_id} is not finite in round {plan.round + 1}, step {done}: {self.losses}",
                key="train.lr",
                cure="Lower the learning rate, or set train.precision to fp32.",
            )

    @property
    def images_per_second(self) -> float:
        seconds = time.perf_counter() - self.warm
        seen = self.images - self.images_before_warm
        if seen and seconds > 0:
            return seen / seconds
        return self.images / max(time.perf_counter() - self.began, 1e-9)

    def result(self) -> TrainResult:
        seconds = time.perf_counter() - self.began
        return TrainResult(dict(self.losses), self.images, seconds, self.images_per_second, self.session.steps)
