from __future__ import annotations

import pytest
import torch
from torch import Tensor
from ultralytics.utils.loss import v8DetectionLoss

from manyeyes.learners import yolo
from manyeyes.learners.training import Batch

CLASSES = 4


def objects(counts: list[int], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    centre = 0.1 + 0.8 * torch.rand(total, 2, generator=generator)
    size = 0.02 + 0.4 * torch.rand(total, 2, generator=generator) ** 2
    return {
        "batch_idx": torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).float(),
        "cls": torch.randint(CLASSES, (total, 1), generator=generator).float(),
        "bboxes": torch.cat((centre, size), 1),
        "annotated": torch.ones(len(counts), CLASSES),
    }


@pytest.mark.parametrize("counts", [[3, 0, 12], [1, 1, 1], [0, 0, 0]])
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradients_are_those_of_ultralytics(counts: list[int], seed: int) -> None:
    module = yolo.build_module("yolov8n", 80, CLASSES, seed).train()
    images = torch.rand(len(counts), 3, 96, 160, generator=torch.Generator().manual_seed(seed))
    batch = Batch(images, objects(counts, seed))
    with torch.no_grad():
        maps = module(images)

    def judged(criterion: str) -> tuple[Tensor, list[Tensor]]:
        leaves = {name: maps[name].clone().requires_grad_() for name in ("boxes", "scores")}
        outputs = {**leaves, "feats": maps["feats"]}
        if criterion == "ours":
            answer = yolo.DetectionCriterion(module)(outputs, batch)
            losses = torch.stack([answer.items[name] for name in ("box", "cls", "dfl")])
            scale = 1.0 / answer.normaliser.clamp(min=1.0)
            (answer.total * scale).backward()  # type: ignore[no-untyped-call]
            losses = losses * scale
        else:
            _, losses, _ = v8DetectionLoss(module).get_assigned_targets_and_loss(outputs, batch.targets)
            losses.sum().backward()
        return losses.detach(), [leaf.grad if leaf.grad is not None else torch.zeros(1) for leaf in leaves.values()]

    (ours, our_gradients), (theirs, their_gradients) = judged("ours"), judged("ultralytics")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)


def test_centres_of_far_cells_are_not_rounded_in_bfloat16() -> None:
    module = yolo.build_module("yolov8n", 80, CLASSES).train()
    batch = Batch(torch.zeros(1, 3, 32, 2080), objects([6], seed=3))
    with torch.no_grad():
        maps = module(batch.images)
    coarse = {**maps, "feats": [level.bfloat16() for level in maps["feats"]]}
    criterion = yolo.DetectionCriterion(module)
    torch.testing.assert_close(criterion(coarse, batch).total, criterion(maps, batch).total, rtol=0, atol=0)
