from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from manyeyes.datasets import Dataset, Sample, draw_partition, load_dataset, partition_table, split_dataset
from manyeyes.datasets.partition import by_class, by_folder, dirichlet, dominant_class, iid
from manyeyes.errors import DataError

LABELS = st.lists(st.integers(-1, 4), min_size=12, max_size=80)


def sample(name: str, *class_ids: int) -> Sample:
    boxes = np.tile(np.array([[0, 0, 4, 4]], dtype=np.float32), (len(class_ids), 1))
    return Sample(Path(name), 8, 8, boxes, np.array(class_ids, dtype=np.int64))


def dataset(n: int = 60) -> Dataset:
    train = tuple(sample(f"site/images/train/{'ab'[i % 2]}/{i}.jpg", i % 3, i % 3, 0) for i in range(n))
    val = tuple(sample(f"site/images/val/{'ab'[i % 2]}/{i}.jpg", i % 3) for i in range(n // 2))
    return Dataset(Path("site/data.yaml"), ("x", "y", "z"), {"train": train, "val": val}, frozenset({"x", "y"}))


def assert_partition(parts: list[np.ndarray], n: int) -> None:
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    assert all(len(part) for part in parts)
    assert all(np.all(np.diff(part) > 0) for part in parts)


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, sites=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_every_picture_lands_in_exactly_one_site(labels: list[int], sites: int, seed: int) -> None:
    assert_partition(iid(labels, sites, seed), len(labels))
    assert_partition(by_folder([str(label) for label in labels]), len(labels))
    for divide in (lambda: dirichlet(labels, sites, seed, 1.0), lambda: by_class(labels, sites, seed)):
        try:
            parts = divide()
        except DataError:
            continue
        assert len(parts) == sites
        assert_partition(parts, len(labels))


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_the_same_seed_gives_the_same_partition(seed: int) -> None:
    labels = np.arange(200) % 5
    for divide in (iid, by_class, lambda *args: dirichlet(*args, alpha=0.5)):
        first, second = divide(labels, 4, seed), divide(labels, 4, seed)
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(iid(labels, 4, seed)[0], iid(labels, 4, seed + 1)[0])


def test_iid_sites_differ_by_one_picture_at_most() -> None:
    sizes = [len(part) for part in iid(np.zeros(103), 10, 0)]
    assert max(sizes) - min(sizes) == 1


def skew(parts: list[np.ndarray], labels: np.ndarray) -> float:
    """Mean over sites of the largest share one class has."""
    return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))


def test_small_alpha_makes_sites_differ_and_large_alpha_does_not() -> None:
    labels = np.arange(2000) % 10
    skews = [
        np.mean([skew(dirichlet(labels, 5, seed, alpha), labels) for seed in range(5)]) for alpha in (0.1, 1, 1000)
    ]
    assert skews[0] > 0.35 > skews[1] > skews[2]
    assert skews[2] < 0.13


def test_dirichlet_divides_all_splits_in_the_same_proportions() -> None:
    labels, strata = np.zeros(1500, dtype=int), np.repeat([0, 1], [1000, 500])
    for part in dirichlet(labels, 3, 4, 1.0, strata=strata):
        train, val = (strata[part] == 0).sum() / 1000, (strata[part] == 1).sum() / 500
        assert abs(train - val) < 0.01


def test_by_class_gives_each_site_classes_of_its_own() -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 30, 20, 10])
    held = [set(labels[part].tolist()) for part in by_class(labels, 2, 0)]
    assert held[0] & held[1] == set()
    # More sites than classes: the largest classes are shared.
    assert [set(labels[part].tolist()) for part in by_class(labels, 6, 0)] == [{0}, {1}, {2}, {3}, {0}, {1}]


def test_by_folder_deals_the_largest_folders_out_first() -> None:
    folders = ["a"] * 5 + ["b"] * 3 + ["c"] * 2
    assert [len(part) for part in by_folder(folders)] == [5, 3, 2]
    assert [len(part) for part in by_folder(folders, 2)] == [5, 5]
    with pytest.raises(DataError, match="4 sites need as many folders, got 3"):
        by_folder(folders, 4)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: iid([0, 1], 3, 0), "too few"),
        (lambda: by_class([-1, -1, 0], 5, 0), "too few"),
        (lambda: dirichlet([0, 1], 3, 0, 1.0), "more than"),
        (lambda: dirichlet([0] * 9, 3, 0, 0.0), "alpha"),
        (lambda: dirichlet([0] * 9, 3, 0, 1e-4), "larger alpha"),
        (lambda: iid([0, 1], 0, 0), "at least 1"),
        (lambda: split_dataset(dataset(), "direchlet", 2), "Did you mean 'dirichlet'"),
        (lambda: split_dataset(dataset(), "iid"), "number of sites"),
        (lambda: draw_partition([dataset()], "x.png", ["a", "b"]), "names"),
    ],
)
def test_what_cannot_be_done_is_refused(call: object, word: str) -> None:
    with pytest.raises(DataError, match=word):
        call()  # type: ignore[operator]


def test_the_label_of_a_picture_is_its_most_frequent_class() -> None:
    totals = [9, 9, 9]
    assert dominant_class(sample("a.jpg", 2, 1, 2), totals) == 2
    assert dominant_class(sample("a.jpg", 1, 1, 2), [9, 9, 1]) == 1
    assert dominant_class(sample("a.jpg"), totals) == -1


def test_a_tie_goes_to_the_rarest_class_of_the_whole_dataset() -> None:
    assert dominant_class(sample("a.jpg", 0, 1, 2), [9, 5, 7]) == 1
    assert dominant_class(sample("a.jpg", 0, 0, 2, 2, 1), [9, 5, 7]) == 2
    assert dominant_class(sample("a.jpg", 2, 1), [9, 5, 5]) == 1


def test_ties_do_not_all_go_to_class_0() -> None:
    # Every picture shows class 0 once and one other class once: by the lower id all would be of class 0.
    train = [sample(f"{index}.jpg", 0, 1 + index % 2) for index in range(20)]
    parts = split_dataset(Dataset(Path("site"), ("x", "y", "z"), {"train": train}), "class", 2)
    assert [{id_ for each in part.split("train") for id_ in each.class_id.tolist()} for part in parts] == [
        {0, 1},
        {0, 2},
    ]


@pytest.mark.parametrize("how", ["folder", "iid", "dirichlet", "class"])
def test_split_dataset_loses_and_repeats_no_picture(how: str) -> None:
    whole = dataset()
    parts = split_dataset(whole, how, 2, seed=3)
    for split in ("train", "val"):
        images = [each.image for part in parts for each in part.split(split)]
        assert sorted(images) == sorted(each.image for each in whole.split(split))
        assert all(part.split(split) for part in parts)
    assert all((part.names, part.annotates) == (whole.names, whole.annotates) for part in parts)


def test_split_by_folder_keeps_the_cameras_of_all_splits_together() -> None:
    for part in split_dataset(dataset(), "folder"):
        assert len({each.image.parent.name for samples in part.splits.values() for each in samples}) == 1


def test_the_table_names_sites_and_counts_boxes() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(partition_table(split_dataset(dataset(), "folder"), ["north", "south"]))
    text = console.export_text()
    assert "north" in text
    assert "south" in text
    assert ["south", "30", "15", "0", "50", "20", "20"] in [line.split() for line in text.splitlines()]


def test_the_drawing_is_a_picture_even_with_many_classes(tmp_path: Path) -> None:
    names = tuple(f"class {index}" for index in range(12))
    train = [sample(f"{index}.jpg", index % 12) for index in range(48)]
    many = Dataset(tmp_path, names, {"train": train})
    file = draw_partition(split_dataset(many, "iid", 3), tmp_path / "who.png")
    with Image.open(file) as picture:
        assert picture.width > 1000


@pytest.mark.shared
def test_real_pictures_are_divided(shared_data: Path) -> None:
    whole = load_dataset(shared_data / "streets" / "d_thermal")
    parts = split_dataset(whole, "dirichlet", 4, alpha=0.3, seed=0)
    assert sum(len(part.split("train")) for part in parts) == 456
    assert all(part.split(split) for part in parts for split in ("train", "val", "test"))
