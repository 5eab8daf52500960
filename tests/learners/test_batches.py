from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.learners.batches import order_of
from manyeyes.learners.learner import FitPlan
from manyeyes.learners.training import Session

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
