from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.config import TrainSection
from manyeyes.datasets.sample import Dataset
from manyeyes.learners import batches
from manyeyes.learners.batches import AugmentedBatches, is_made_beside, order_of
from manyeyes.learners.learner import FitPlan
from manyeyes.learners.pictures import PictureCache
from manyeyes.learners.training import Batch, Session

from .conftest import small_plan


def pictures_of(plan: FitPlan, pictures: int) -> list[list[int]]:
    """The batches of one round as picture numbers."""
    return [[int(i) for part in parts for i in part] for _, _, parts in order_of(Session.of(plan, pictures), pictures)]


@settings(deadline=None, max_examples=40)
@given(pictures=st.integers(1, 40), batch=st.integers(1, 9), steps=st.integers(1, 7), seed=st.integers(0, 99))
def test_every_picture_is_seen_once_before_any_is_seen_again(pictures: int, batch: int, steps: int, seed: int) -> None:
    """However short the rounds are, since an epoch goes on in the next round."""
    seen: Counter[int] = Counter(dict.fromkeys(range(pictures), 0))
    for index in range(6):
        plan = small_plan(round=index, rounds=6, batch=batch, steps=steps).model_copy(update={"seed": seed})
        for drawn in pictures_of(plan, pictures):
            seen.update(drawn)
            assert max(seen.values()) - min(seen.values()) <= 1


def test_three_rounds_of_a_third_are_one_epoch() -> None:
    whole = pictures_of(small_plan(rounds=2, batch=4, epochs=1), 24)
    thirds = [pictures_of(small_plan(round=i, rounds=6, batch=4, epochs=1 / 3), 24) for i in range(3)]
    assert [batch for third in thirds for batch in third] == whole


@pytest.mark.parametrize("change", [{"seed": 1}, {"node_id": "B"}, {"round": 1}])
def test_another_seed_node_or_epoch_has_another_order(change: dict[str, Any]) -> None:
    plan = small_plan(rounds=3)
    assert pictures_of(plan, 30) == pictures_of(plan, 30)
    assert pictures_of(plan.model_copy(update=change), 30) != pictures_of(plan, 30)


def test_a_batch_in_parts_holds_the_same_pictures() -> None:
    whole, parts = small_plan(batch=8), small_plan(batch=8, accumulate=4)
    assert pictures_of(whole, 21) == pictures_of(parts, 21)
    assert [len(p) for _, _, p in order_of(Session.of(parts, 21), 21)] == [4, 4, 4]


def made(site: Dataset, plan: FitPlan) -> tuple[list[Batch], set[str]]:
    """The batches of a session, and the threads that drew their pictures."""
    threads: set[str] = set()

    class Watched(AugmentedBatches):
        def draw(self, index: int, *, mosaic: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
            threads.add(threading.current_thread().name)
            return super().draw(index, mosaic=mosaic, seed=seed)

    source = Watched(site.split("train"), frozenset({0, 1}), 3, PictureCache(), plan)
    session = Session.of(plan, source.num_examples)
    return [part for parts in source.batches(session) for part in parts], threads


@pytest.mark.parametrize(("threads", "beside"), [(3, True), (4, False), (None, False)])
def test_batches_are_the_same_whether_they_are_made_beside_the_step_or_in_turn_with_it(
    site: Dataset, monkeypatch: pytest.MonkeyPatch, threads: int | None, beside: bool
) -> None:
    monkeypatch.setattr(batches, "cores", lambda: 4)
    section = TrainSection(imgsz=64, batch=4, steps=6, threads=threads, device="cpu")
    assert is_made_beside(section) is beside
    plan = FitPlan(train=section, round=0, rounds=1, seed=3)
    found, drew = made(site, plan)
    assert drew == {"manyeyes-augmentation"} if beside else all("augmentation_" in thread for thread in drew)
    expected, _ = made(site, plan.model_copy(update={"train": section.model_copy(update={"threads": 1})}))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert all(torch.equal(ours.targets[name], theirs.targets[name]) for name in theirs.targets)
