from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manyeyes.datasets.classes import pool, relabel, shared_names, union_names
from manyeyes.datasets.sample import Dataset, Sample
from manyeyes.errors import DataError

WORDS = ["person", "car", "tv", "chair"]


def site(names: tuple[str, ...], annotates: set[str] | None = None, ids: tuple[int, ...] = ()) -> Dataset:
    boxes = np.array([[i, i, i + 5, i + 5] for i in range(len(ids))], dtype=np.float32).reshape(-1, 4)
    sample = Sample(Path("a.jpg"), 64, 48, boxes, np.array(ids, dtype=np.int64))
    return Dataset(Path("site"), names, {"train": [sample], "val": [sample]}, frozenset(annotates or ()))


def test_the_union_is_in_the_order_names_are_first_met() -> None:
    sites = {"A": site(("person", "car")), "B": site(("tv", "car", "chair"))}
    assert union_names(sites) == ("person", "car", "tv", "chair")
    assert shared_names(sites) == ("car",)


def test_a_class_nobody_looks_for_is_not_in_the_model() -> None:
    sites = {"A": site(("person", "car"), {"person"}), "B": site(("car", "person"), {"person"})}
    assert union_names(sites) == ("person",)
    assert shared_names(sites) == ("person",)


@pytest.mark.parametrize(("one", "other"), [("car", "Car"), ("traffic light", "traffic_light"), ("TV", "t v")])
def test_two_spellings_of_a_class_are_refused_with_both_and_their_sites(one: str, other: str) -> None:
    with pytest.raises(DataError) as caught:
        union_names({"A": site((one,)), "B": site((other,))})
    assert all(word in str(caught.value) for word in (repr(one), repr(other), "A", "B"))


@pytest.mark.parametrize("pair", [("+", "-"), ("车", "人"), ("class 1", "class 2")])
def test_names_that_differ_by_more_are_two_classes(pair: tuple[str, str]) -> None:
    assert union_names({"A": site((pair[0],)), "B": site((pair[1],))}) == pair


@given(st.permutations(WORDS), st.permutations(WORDS), st.sets(st.sampled_from(WORDS), min_size=1), st.data())
def test_relabelling_keeps_each_box_with_its_name_and_drops_what_was_not_looked_for(
    names: list[str], union: list[str], annotates: set[str], data: st.DataObject
) -> None:
    ids = tuple(data.draw(st.lists(st.integers(0, 3), max_size=6)))
    before = site(tuple(names), annotates, ids)
    after = relabel(before, union)
    expected = [
        (names[i], box)
        for i, box in zip(ids, before.split("train")[0].xyxy.tolist(), strict=True)
        if names[i] in annotates
    ]
    sample = after.split("train")[0]
    found = [(union[i], box) for i, box in zip(sample.class_id, sample.xyxy.tolist(), strict=True)]
    assert found == expected
    assert after.names == tuple(union)
    assert after.annotates == before.annotates
    assert before.split("train")[0].class_id.tolist() == list(ids)


def test_relabelling_twice_changes_nothing_more() -> None:
    once = relabel(site(("tv", "person"), None, (0, 1, 1)), WORDS)
    twice = relabel(once, WORDS)
    assert twice.split("train")[0].class_id.tolist() == once.split("train")[0].class_id.tolist() == [2, 0, 0]


def test_a_class_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(DataError, match="chair"):
        relabel(site(("person", "chair")), ("person", "car"))
    assert relabel(site(("person", "chair"), {"person"}, (0, 1)), ("person",)).split("train")[0].class_id.tolist() == [
        0
    ]


def test_pooled_pictures_remember_what_was_looked_for_in_them() -> None:
    union = ("person", "car", "tv")
    sites = {
        "A": relabel(site(("person", "car"), {"person"}, (0, 1)), union),
        "B": relabel(site(("tv", "car"), None, (0, 1)), union),
    }
    pooled = pool(sites)
    assert [s.annotates for s in pooled.split("train")] == [frozenset({0}), frozenset({1, 2})]
    assert pooled.annotates == {"person", "car", "tv"}
    assert [s.class_id.tolist() for s in pooled.split("val")] == [[0], [2, 1]]
    subset = relabel(pooled, ("tv", "person", "car"))
    assert [s.annotates for s in subset.split("train")] == [frozenset({1}), frozenset({2, 0})]


def test_only_sites_of_one_label_space_are_pooled() -> None:
    with pytest.raises(DataError, match="relabel them first"):
        pool({"A": site(("person",)), "B": site(("car",))})
