from __future__ import annotations

import copy
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manyeyes.config import TrainSection
from manyeyes.errors import ResourceError, RunError
from manyeyes.learners.learner import FitPlan, Progress
from manyeyes.learners.training import (
    Batch,
    LossParts,
    Session,
    checkpoint_activations,
    learning_rate,
    pick_device,
    pick_precision,
    pin_threads,
    proximal_term,
    session_seed,
    train,
)

CPU = torch.device("cpu")


class Net(nn.Module):
    """Convolution, BatchNorm and a linear head: each kind of tensor a detector has."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.block(images).mean(dim=(2, 3))
        logits: Tensor = self.head(features)
        return logits


def net(seed: int = 0, *, eval_norm: bool = False) -> Net:
    torch.manual_seed(seed)
    model = Net().train()
    model.block[1].running_mean.uniform_(-0.1, 0.1)  # type: ignore[operator,union-attr]
    if eval_norm:
        model.block[1].eval()
    return model


def criterion(outputs: Tensor, batch: Batch) -> LossParts:
    """Squared error weighted by picture: the normaliser is the sum of the weights, as a detector's is."""
    weight = batch.targets["weight"]
    total = ((outputs - batch.targets["y"]).square().sum(1) * weight).sum()
    return LossParts(total, weight.sum(), {"loss": total})


def extra_loss(model: nn.Module, outputs: Tensor, batch: Batch) -> Tensor:
    return outputs.square().mean() + 0.1 * sum(p.square().sum() for p in model.parameters())


@dataclass
class Source:
    """Numbered pictures in order, `batch` at a time, each batch in `accumulate` parts."""

    plan: FitPlan
    num_examples: int = 12
    drawn: list[np.random.SeedSequence] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(1)
        self.images = torch.from_numpy(rng.normal(size=(self.num_examples, 3, 6, 6)).astype(np.float32))
        self.y = torch.from_numpy(rng.normal(size=(self.num_examples, 2)).astype(np.float32))
        self.weight = torch.from_numpy(rng.uniform(0.5, 3, self.num_examples).astype(np.float32))

    def part(self, chosen: Any) -> Batch:
        return Batch(self.images[chosen], {"y": self.y[chosen], "weight": self.weight[chosen]})

    def batches(self, session: Session) -> Iterator[Sequence[Batch]]:
        section = self.plan.train
        for step in range(session.steps):
            epoch, place = divmod(step, session.steps_per_epoch)
            order = np.random.default_rng(session_seed(self.plan, epoch)).permutation(self.num_examples)
            chosen = order[place * section.batch : (place + 1) * section.batch]
            yield [self.part(part) for part in np.array_split(chosen, min(section.accumulate, len(chosen)))]


def plan(round: int = 0, rounds: int = 1, mu: float = 0.0, seed: int = 0, node: str = "A", **train: Any) -> FitPlan:
    """Plain gradient descent unless `train` says otherwise: one step of size lr along the gradient."""
    plain: dict[str, Any] = {
        "batch": 12,
        "lr": 0.01,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "clip_norm": None,
        "precision": "fp32",
        "device": "cpu",
    }
    section = TrainSection(**{**plain, **train})
    return FitPlan(train=section, round=round, rounds=rounds, seed=seed, node_id=node, proximal_mu=mu)


def fit(model: nn.Module, asked: FitPlan, examples: int = 12, **more: Any) -> dict[str, Tensor]:
    pin_threads(1)
    train(model, criterion, Source(asked, examples), asked, device=CPU, **more)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def step_of(model: nn.Module, asked: FitPlan, **more: Any) -> dict[str, Tensor]:
    """after − before of the trained tensors."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = fit(model, asked, **more)
    return {name: after[name] - tensor for name, tensor in before.items()}


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("extra", [None, extra_loss])
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(
    parts: int, extra: Callable[..., Tensor] | None, mu: float
) -> None:
    asked = {"steps": 3, "lr": 0.001}
    whole = step_of(net(eval_norm=True), plan(mu=mu, **asked), extra_loss=extra)
    split = step_of(net(eval_norm=True), plan(mu=mu, accumulate=parts, **asked), extra_loss=extra)
    assert_close(whole, split)


def test_a_step_follows_the_documented_gradient() -> None:
    model = net(eval_norm=True)
    source = Source(plan())
    batch = source.part(range(12))
    reference = copy.deepcopy(model)
    answer = criterion(reference(batch.images), batch)
    (12 * answer.total / answer.normaliser).backward()
    expected = {name: -0.01 * p.grad for name, p in reference.named_parameters() if p.grad is not None}
    assert_close(step_of(model, plan()), expected)


def test_the_last_short_batch_counts_for_the_pictures_it_has() -> None:
    asked = plan(batch=5)
    reference, source = net(eval_norm=True), Source(asked)
    order = np.random.default_rng(session_seed(asked, 0)).permutation(12)
    for start, count in ((0, 5), (5, 5), (10, 2)):
        batch = source.part(order[start : start + count])
        reference.zero_grad()
        answer = criterion(reference(batch.images), batch)
        (count * answer.total / answer.normaliser).backward()
        with torch.no_grad():
            for p in reference.parameters():
                p -= 0.01 * p.grad
    assert_close(fit(net(eval_norm=True), asked), dict(reference.state_dict()))


def test_an_extra_loss_is_added_unscaled() -> None:
    model = net(eval_norm=True)
    reference = copy.deepcopy(model)
    batch = Source(plan()).part(np.random.default_rng(session_seed(plan(), 0)).permutation(12))
    extra_loss(reference, reference(batch.images), batch).backward()
    without = step_of(copy.deepcopy(model), plan())
    both = step_of(model, plan(), extra_loss=extra_loss)
    expected = {name: without[name] - 0.01 * p.grad for name, p in reference.named_parameters()}
    assert_close(both, expected)


def test_the_proximal_gradient_is_mu_times_the_way_gone() -> None:
    model = net()
    term = proximal_term(model, 0.3)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p)
    model.head.bias.requires_grad_(False)
    term(model, None, Batch(torch.zeros(0))).backward()
    for name, p in model.named_parameters():
        if name == "head.bias":
            assert p.grad is None
        else:
            torch.testing.assert_close(p.grad, 0.3 * (p.detach() - start[name]))


def test_the_proximal_term_matches_finite_differences() -> None:
    model = net().double()
    term = proximal_term(model, 0.7)
    bias = model.head.bias
    with torch.no_grad():
        bias += 0.5

    def value(shift: float) -> float:
        with torch.no_grad():
            bias[0] += shift
            result = float(term(model, None, Batch(torch.zeros(0))))
            bias[0] -= shift
        return result

    assert (value(1e-4) - value(-1e-4)) / 2e-4 == pytest.approx(0.7 * 0.5, rel=1e-6)


def test_the_proximal_term_holds_a_node_near_where_it_began() -> None:
    norms = []
    for mu in (0.0, 1.0, 10.0):
        moved = step_of(net(eval_norm=True), plan(mu=mu, steps=40))
        norms.append(math.sqrt(sum(float(d.square().sum()) for d in moved.values())))
    assert norms[0] > norms[1] > norms[2] > 0


def test_clipping_bounds_the_whole_gradient_and_keeps_its_direction() -> None:
    free, clipped = step_of(net(), plan()), step_of(net(), plan(clip_norm=0.1))
    length = math.sqrt(sum(float(d.square().sum()) for d in clipped.values()))
    assert length == pytest.approx(0.01 * 0.1, rel=1e-3)
    ratio = free["head.weight"] / clipped["head.weight"]
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0])), rtol=1e-3, atol=0)
    assert_close(step_of(net(), plan(clip_norm=1e6)), free)


def test_gradient_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    plain = fit(net(), plan(steps=3))
    model = net()
    undo = checkpoint_activations([model.block])
    checkpointed = fit(model, plan(steps=3))
    undo()
    assert same_bits(plain, checkpointed)
    assert int(checkpointed["block.1.num_batches_tracked"]) == 3
    assert "forward" not in vars(model.block)


def test_gradient_checkpointing_holds_with_an_extra_loss_that_runs_the_graph_twice() -> None:
    plain = fit(net(), plan(steps=2, accumulate=2), extra_loss=extra_loss)
    model = net()
    checkpoint_activations([model.block])
    assert_close(plain, fit(model, plan(steps=2, accumulate=2), extra_loss=extra_loss))


def test_whole_numbers_are_pictures_from_0_to_255() -> None:
    seen: list[Tensor] = []

    def spy(outputs: Tensor, batch: Batch) -> LossParts:
        return LossParts(outputs.sum(), torch.ones(()), {"loss": outputs.sum()})

    class Once(Source):
        def batches(self, session: Session) -> Iterator[Sequence[Batch]]:
            yield [Batch(torch.full((1, 3, 6, 6), 255, dtype=torch.uint8))]

    model = net(eval_norm=True)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    train(model, spy, Once(plan(), 1), plan(), device=CPU)
    assert torch.equal(seen[0], torch.ones(1, 3, 6, 6))


# -- optimisers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimiser_is_torchs_own(name: str, momentum: float) -> None:
    asked = plan(optimizer=name, momentum=momentum, weight_decay=0.1, steps=5, lr=0.003)
    reference, source = net(eval_norm=True), Source(asked)
    matrices = [p for p in reference.parameters() if p.ndim > 1]
    vectors = [p for p in reference.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer: torch.optim.Optimizer
    if name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=0.003, betas=(momentum, 0.999))
    else:
        optimizer = torch.optim.SGD(groups, lr=0.003, momentum=momentum, nesterov=momentum > 0)
    for parts in source.batches(Session.of(asked, 12)):
        optimizer.zero_grad()
        answer = criterion(reference(parts[0].images), parts[0])
        (12 * answer.total / answer.normaliser).backward()
        optimizer.step()
    assert_close(fit(net(eval_norm=True), asked), dict(reference.state_dict()))


CORRECTION = {"head.weight": np.full((2, 4), 0.3, np.float32), "head.bias": np.array([0.5, -2.0], np.float32)}


def corrected(name: str, gradient: Tensor) -> Tensor:
    return gradient + torch.from_numpy(CORRECTION[name]) if name in CORRECTION else gradient


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_correction_is_added_once_a_step_before_clipping(accumulate: int) -> None:
    model, source = net(eval_norm=True), Source(plan())
    reference = copy.deepcopy(model)
    answer = criterion(reference(source.images), source.part(range(12)))
    (12 * answer.total / answer.normaliser).backward()
    gradients = {name: corrected(name, p.grad) for name, p in reference.named_parameters() if p.grad is not None}
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
    expected = {name: -0.01 * g * 0.7 / norm for name, g in gradients.items()}
    assert norm > 0.7
    assert_close(step_of(model, plan(clip_norm=0.7, accumulate=accumulate), correction=CORRECTION), expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_sum_of_the_steps_gives_the_mean_gradient_back(momentum: float) -> None:
    """−Δ/S without the correction is the mean of the session's gradients, weighted by how far each was followed."""
    steps, asked = 7, {"momentum": momentum, "schedule": "linear", "final_lr": 0.2, "warmup_epochs": 3, "lr": 0.02}
    model, session = net(eval_norm=True), plan(steps=steps, **asked)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients: list[dict[str, Tensor]] = []

    def watched(outputs: Tensor, batch: Batch) -> LossParts:
        answer = criterion(outputs, batch)
        names, parameters = zip(*model.named_parameters(), strict=True)
        of_step = torch.autograd.grad(12 * answer.total / answer.normaliser, parameters, retain_graph=True)
        gradients.append(dict(zip(names, of_step, strict=True)))
        return answer

    result = train(model, watched, Source(session), session, device=CPU, correction=CORRECTION)

    # Nesterov: a step is lr (g + β m) with m ← β m + g, so gradient s is followed by lr_s + Σ_{t≥s} lr_t β^(t−s+1).
    rates = [learning_rate(session.train, step / steps) * min(1, (step + 1) / 4) for step in range(steps)]
    shares = [rates[s] + sum(rates[t] * momentum ** (t - s + 1) for t in range(s, steps)) for s in range(steps)]
    shares = shares if momentum else rates
    assert result.step_sum == pytest.approx(sum(shares))
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    for name, delta in moved.items():
        mean = sum(share * g[name] for share, g in zip(shares, gradients, strict=True)) / sum(shares)
        torch.testing.assert_close(-delta / result.step_sum, corrected(name, mean), rtol=1e-4, atol=1e-5)


def test_a_correction_of_what_is_not_trained_is_refused() -> None:
    model = net()
    model.block.requires_grad_(False)
    for name in ("block.0.weight", "block.1.running_mean", "neck.weight"):
        with pytest.raises(RunError, match=f"correction for '{name}', which is not trained"):
            fit(model, plan(), correction={name: np.zeros(4, np.float32)})


def test_a_correction_of_zero_changes_nothing() -> None:
    zero = {name: np.zeros_like(term) for name, term in CORRECTION.items()}
    asked = plan(steps=3, momentum=0.9, weight_decay=0.1, clip_norm=1.0)
    assert same_bits(fit(net(), asked), fit(net(), asked, correction=zero))


def constant_loss(outputs: Tensor, batch: Batch) -> LossParts:
    total = outputs.sum() * 0.0
    return LossParts(total, torch.ones(()), {"loss": total})


def test_weight_decay_shrinks_kernels_and_leaves_biases_and_norms() -> None:
    model, asked = net(), plan(weight_decay=0.5, lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, constant_loss, Source(asked), asked, device=CPU)
    for name, p in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if p.ndim > 1 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_what_is_frozen_does_not_move() -> None:
    model = net()
    model.block.requires_grad_(False)
    model.block.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = fit(model, plan(steps=3, weight_decay=0.1, ema=0.9), extra_loss=lambda m, o, b: o.square().mean())
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith("block"))
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_the_average_of_the_weights_has_its_closed_form() -> None:
    """Seen by replaying the session: the weights after each step without averaging, averaged by hand."""
    steps, decay = 6, 0.3
    mean = {name: t.clone() for name, t in net().state_dict().items()}
    for done in range(1, steps + 1):
        live = fit(net(), plan(steps=done))
        share = min(decay, (1 + done) / (10 + done))
        for name, tensor in live.items():
            if tensor.is_floating_point():
                mean[name] = share * mean[name] + (1 - share) * tensor
            else:
                mean[name] = tensor
    assert_close(fit(net(), plan(steps=steps, ema=decay)), mean)


# -- the schedule -----------------------------------------------------------------------------------------------------


def rates_used(asked: FitPlan, examples: int) -> list[float]:
    """The learning rates of a session, seen by a weight whose gradient is always 1."""
    model = nn.Linear(1, 1, bias=False)
    seen: list[float] = []

    def unit_gradient(outputs: Tensor, batch: Batch) -> LossParts:
        seen.append(float(model.weight.detach()))
        return LossParts(model.weight.sum(), torch.tensor(float(len(batch.images))), {"loss": outputs.sum()})

    class Ones(Source):
        def part(self, chosen: Any) -> Batch:
            return Batch(torch.ones(len(chosen), 1, 1, 1))

    with torch.no_grad():
        model.weight.zero_()
    train(model, unit_gradient, Ones(asked, examples), asked, device=CPU)
    seen.append(float(model.weight.detach()))
    return [-(b - a) for a, b in itertools.pairwise(seen)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_runs_on_through_the_rounds(schedule: str) -> None:
    rounds, steps = 3, 4
    used: list[float] = []
    for index in range(rounds):
        asked = plan(round=index, rounds=rounds, schedule=schedule, batch=3, lr=0.1, final_lr=0.2)
        used += rates_used(asked, 12)
    total = rounds * steps
    shape = {
        "cosine": [0.5 * (1 + math.cos(math.pi * i / total)) for i in range(total)],
        "linear": [1 - i / total for i in range(total)],
        "constant": [1.0] * total,
    }[schedule]
    assert used == pytest.approx([0.1 * (0.2 + 0.8 * s) for s in shape], rel=1e-5)


def test_the_learning_rate_does_not_jump_between_rounds_of_nodes_of_any_size() -> None:
    section = TrainSection(lr=0.1)
    for examples in (3, 50, 1000):
        for index in range(3):
            ends = Session.of(FitPlan(train=section, round=index, rounds=4), examples)
            begins = Session.of(FitPlan(train=section, round=index + 1, rounds=4), 2 * examples)
            assert ends.progress_at(ends.steps) == pytest.approx(begins.progress_at(0))
    assert learning_rate(section, 0.0) == pytest.approx(0.1)
    assert learning_rate(section, 1.0) == pytest.approx(0.1 * section.final_lr)


def test_warm_up_rises_to_the_schedule_and_only_in_the_first_round() -> None:
    first = rates_used(plan(round=0, rounds=2, batch=3, epochs=2, warmup_epochs=1, lr=0.1), 12)
    assert first[:4] == pytest.approx([0.1 * (i + 1) / 5 for i in range(4)], rel=1e-5)
    assert first[4:] == pytest.approx([0.1] * 4, rel=1e-5)
    assert rates_used(plan(round=1, rounds=2, batch=3, warmup_epochs=1, lr=0.1), 12) == pytest.approx([0.1] * 4)


def test_a_node_that_goes_on_for_itself_has_the_whole_schedule_and_warms_up() -> None:
    asked = plan(round=4, rounds=5, batch=3, epochs=2, warmup_epochs=1, lr=0.1, final_lr=0.2, schedule="linear")
    used = rates_used(asked.model_copy(update={"finetune": True}), 12)
    falling = [0.1 * (0.2 + 0.8 * (1 - i / 8)) for i in range(8)]
    assert used[4:] == pytest.approx(falling[4:], rel=1e-5)
    assert used[:4] == pytest.approx([rate * (i + 1) / 5 for i, rate in enumerate(falling[:4])], rel=1e-5)


@pytest.mark.parametrize(
    ("asked", "examples", "steps"),
    [
        ({"epochs": 1, "batch": 5}, 12, 3),
        ({"epochs": 2.5, "batch": 3}, 12, 10),
        ({"epochs": 0.01, "batch": 3}, 12, 1),
        ({"steps": 7, "batch": 3}, 12, 7),
        ({"steps": 1, "batch": 12}, 5, 1),
    ],
)
def test_a_session_is_as_long_as_asked(asked: dict[str, Any], examples: int, steps: int) -> None:
    request = plan(**asked)
    result = train(net(), criterion, Source(request, examples), request, device=CPU)
    assert result.steps == steps
    assert result.images == sum(min(request.train.batch, examples - start) for start in _starts(request, examples))
    assert set(result.losses) == {"loss"}


def _starts(asked: FitPlan, examples: int) -> list[int]:
    session = Session.of(asked, examples)
    return [(step % session.steps_per_epoch) * asked.train.batch for step in range(session.steps)]


# -- chance -----------------------------------------------------------------------------------------------------------


def noisy(model: nn.Module, outputs: Tensor, batch: Batch) -> Tensor:
    return (outputs * torch.randn_like(outputs)).mean()  # stands for dropout and the like


def test_the_same_plan_gives_the_same_bits_whatever_ran_before() -> None:
    asked = plan(steps=5, batch=4, momentum=0.9)
    first = fit(net(), asked, extra_loss=noisy)
    torch.manual_seed(99)
    np.random.seed(99)
    assert same_bits(first, fit(net(), asked, extra_loss=noisy))


@pytest.mark.parametrize("other", [{"round": 1}, {"node": "B"}, {"seed": 1}], ids=["round", "node", "seed"])
def test_another_round_node_or_seed_draws_otherwise(other: dict[str, Any]) -> None:
    asked = {"steps": 3, "batch": 4, "rounds": 2}
    assert not same_bits(fit(net(), plan(**asked)), fit(net(), plan(**asked, **other)))
    assert not same_bits(
        fit(net(), plan(**{**asked, "batch": 12}), extra_loss=noisy),
        fit(net(), plan(**{**asked, "batch": 12}, **other), extra_loss=noisy),
    )


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_names_the_learning_rate() -> None:
    with pytest.raises(RunError, match="not finite in round 1") as caught:
        fit(net(), plan(lr=1e30, steps=30, node="camera-7"))
    assert caught.value.key == "train.lr"
    assert "camera-7" in str(caught.value)


def test_a_node_without_pictures_is_named() -> None:
    with pytest.raises(RunError, match="node A has no pictures"):
        train(net(), criterion, Source(plan(), 0), plan(), device=CPU)


def test_progress_is_told_at_each_epoch_and_may_stop_the_training() -> None:
    told: list[Progress] = []
    fit(net(), plan(epochs=3, batch=4), progress=told.append)
    ends = [p for p in told if p.epoch_done]
    assert [(p.epoch, p.epochs, p.step, p.steps) for p in ends] == [(1, 3, 3, 9), (2, 3, 6, 9), (3, 3, 9, 9)]
    assert all(math.isfinite(p.losses["loss"]) for p in told)
    assert ends[-1].seconds_left == 0
    threads = threading.active_count()

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(net(), plan(epochs=3, batch=4), progress=stop)
    assert threading.active_count() == threads


# -- the machine ------------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_refused() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="no CUDA device"):
            pick_device("cuda:1")


def test_precision_is_what_was_asked_for_or_what_the_machine_is_good_at() -> None:
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert {name: pick_precision(name, CPU) for name in named} == named
    known = torch.cpu.get_capabilities()
    native = any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "amx_tile"))
    assert pick_precision("auto", CPU) == (torch.bfloat16 if native else torch.float32)


def test_bf16_trains_close_to_fp32_with_weights_kept_in_fp32() -> None:
    exact, rounded = fit(net(), plan(steps=10)), fit(net(), plan(steps=10, precision="bf16"))
    assert all(t.dtype == torch.float32 for t in rounded.values() if t.is_floating_point())
    assert_close(exact, rounded, tolerance=0.02)


def test_threads_are_those_asked_for() -> None:
    assert pin_threads(1) == torch.get_num_threads() == 1


# -- what an optimiser remembers --------------------------------------------------------------------------------------


def session_with(model: nn.Module, asked: FitPlan, state: Any) -> Any:
    pin_threads(1)
    return train(model, criterion, Source(asked), asked, device=CPU, optimizer_state=state).optimizer_state


@pytest.mark.parametrize("optimizer", [{"optimizer": "adamw", "momentum": 0.9}, {"momentum": 0.9}])
def test_two_sessions_that_remember_are_one_long_session(optimizer: dict[str, Any]) -> None:
    long, short = net(eval_norm=True), net(eval_norm=True)
    fit(long, plan(steps=6, **optimizer))
    state = session_with(short, plan(steps=4, **optimizer), {})
    session_with(short, plan(steps=2, round=1, rounds=2, **optimizer), state)
    assert_close(dict(short.state_dict()), dict(long.state_dict()))


def test_without_memory_a_session_begins_anew() -> None:
    asked = {"optimizer": "adamw", "momentum": 0.9}
    forgetful, remembering = net(eval_norm=True), net(eval_norm=True)
    assert session_with(forgetful, plan(steps=4, **asked), None) == {}
    state = session_with(remembering, plan(steps=4, **asked), {})
    assert same_bits(dict(forgetful.state_dict()), dict(remembering.state_dict()))
    session_with(forgetful, plan(steps=1, round=1, rounds=2, **asked), None)
    session_with(remembering, plan(steps=1, round=1, rounds=2, **asked), state)
    assert not same_bits(dict(forgetful.state_dict()), dict(remembering.state_dict()))


def test_an_optimiser_that_begins_in_a_later_round_warms_up() -> None:
    """A node that joins late must not shake the model with steps of an optimiser that does not know its scale yet."""
    asked = {"optimizer": "adamw", "momentum": 0.9, "steps": 1, "warmup_epochs": 9.0, "round": 3, "rounds": 9}

    def moved(state: Any) -> float:
        model = net(eval_norm=True)
        before = model.head.weight.detach().clone()
        session_with(model, plan(**asked), state)
        return float((model.head.weight.detach() - before).abs().max())

    known = session_with(net(eval_norm=True), plan(**{**asked, "round": 0}), {})
    assert moved({}) == pytest.approx(0.1 * moved(None), rel=1e-3)
    assert moved(known) > 5 * moved({})


def test_a_state_of_other_tensors_is_not_taken() -> None:
    asked = plan(steps=2, round=1, rounds=2, optimizer="adamw", momentum=0.9)
    state = dict(session_with(net(), asked, {}))
    misshapen = {key: array[:1] if array.ndim else array for key, array in state.items()}
    headless = {key: array for key, array in state.items() if "head" not in key}
    fresh = net()
    session_with(fresh, asked, {})
    for wrong in (misshapen, headless):
        model = net()
        session_with(model, asked, wrong)
        assert same_bits(dict(model.state_dict()), dict(fresh.state_dict()))
