"""The three layouts against each other: whatever way a dataset goes, its boxes come back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.datasets import (
    LAYOUTS,
    Dataset,
    Problem,
    Sample,
    find_layout,
    load_dataset,
    save_dataset,
    save_sites,
    split_dataset,
)
from manyeyes.errors import DataError, ResourceError

from .conftest import Maker, boxes_of, draw_picture

NAMES = ("person", "traffic light", "no", "Ä<&>\"'")


@st.composite
def boxes(draw: st.DrawFn, width: int, height: int) -> list[tuple[float, float, float, float]]:
    def span(side: int) -> st.SearchStrategy[tuple[float, float]]:
        ends = st.floats(0, side, width=32)
        pairs = st.tuples(ends, ends).map(lambda pair: (min(pair), max(pair)))
        return pairs.filter(lambda pair: pair[1] - pair[0] > 0.01)

    pairs = draw(st.lists(st.tuples(span(width), span(height)), max_size=4, unique=True))
    return [(x1, y1, x2, y2) for (x1, x2), (y1, y2) in pairs]


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[tuple[str, int, int, list[tuple[float, ...]], list[int]]], frozenset[str]]:
    pictures = []
    for split in ("train", "val"):
        for _ in range(draw(st.integers(1, 2))):
            width, height = draw(st.sampled_from([(64, 48), (7, 31), (1, 500)]))
            drawn = draw(boxes(width, height))
            ids = draw(st.lists(st.integers(0, len(NAMES) - 1), min_size=len(drawn), max_size=len(drawn)))
            pictures.append((split, width, height, drawn, ids))
        # A split without any box is refused, see test_a_split_without_boxes.
        pictures.append((split, 64, 48, [(1.0, 2.0, 3.0, 4.0)], [0]))
    return pictures, draw(st.sampled_from([frozenset(NAMES), frozenset({"no", "person"})]))


def build(
    drawn: tuple[list[tuple[str, int, int, list[tuple[float, ...]], list[int]]], frozenset[str]], root: Path
) -> Dataset:
    splits: dict[str, list[Sample]] = {}
    for index, (split, width, height, xyxy, ids) in enumerate(drawn[0]):
        image = draw_picture(root / f"picture {index}.png", (width, height))
        corners = np.array(xyxy, dtype=np.float32).reshape(-1, 4)
        splits.setdefault(split, []).append(Sample(image, width, height, corners, np.array(ids, dtype=np.int64)))
    return Dataset(root, NAMES, splits, drawn[1])


def assert_same(found: Dataset, wanted: Dataset) -> None:
    assert found.names == wanted.names
    assert found.annotates == wanted.annotates
    found_boxes, wanted_boxes = boxes_of(found), boxes_of(wanted)
    assert found_boxes.keys() == wanted_boxes.keys()
    for key, wanted_list in wanted_boxes.items():
        assert [name for name, _ in found_boxes[key]] == [name for name, _ in wanted_list]
        if wanted_list:
            np.testing.assert_allclose(
                [box for _, box in found_boxes[key]], [box for _, box in wanted_list], rtol=0, atol=1e-4
            )


@settings(max_examples=15, deadline=None)
@given(drawn=datasets(), route=st.permutations(LAYOUTS))
def test_boxes_survive_every_route_through_the_layouts(drawn: object, route: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        dataset = build(drawn, Path(temporary) / "drawn")  # type: ignore[arg-type]
        current = dataset
        for layout in [*route, route[0]]:
            folder = Path(tempfile.mkdtemp(dir=temporary)) / layout
            save_dataset(current, folder, layout)
            problems: list[Problem] = []
            current = load_dataset(folder, on_problem=problems.append)
            assert problems == []
        assert_same(current, dataset)


def test_what_is_not_a_dataset_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.yaml.*instances_SPLIT\.json.*JPEGImages"):
        load_dataset(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_dataset(tmp_path / "nowhere")


def test_annotates_can_be_stated_by_the_caller(make_yolo: Maker) -> None:
    root = make_yolo()
    assert load_dataset(root, annotates=["car"]).annotates == {"car"}
    with pytest.raises(DataError, match="Did you mean 'person'"):
        load_dataset(root, annotates=["Person"])


def test_an_unknown_layout_offers_the_nearest(make_yolo: Maker, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Did you mean 'coco'"):
        save_dataset(load_dataset(make_yolo()), tmp_path / "new", "cocoo")


def test_a_stray_yaml_does_not_hide_the_dataset(make_yolo: Maker, tmp_path: Path) -> None:
    save_dataset(load_dataset(make_yolo()), tmp_path / "coco", "coco")
    (tmp_path / "coco/compose.yaml").write_text("services: {}\n")
    assert find_layout(tmp_path / "coco") == "coco"
    make_yolo(folder="other").joinpath("data.yaml").rename(tmp_path / "other/cars.yaml")
    (tmp_path / "other/compose.yaml").write_text("services: {}\n")
    assert find_layout(tmp_path / "other") == "yolo"


# --- one folder a site ---


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("link", [False, True])
def test_sites_are_datasets_of_their_own(make_yolo: Maker, tmp_path: Path, link: bool) -> None:
    whole = load_dataset(make_yolo({f"train/{i}": f"{i % 2} 0.5 0.5 0.5 0.5\n" for i in range(5)}))
    parts = split_dataset(whole, "iid", 2)
    (tmp_path / "sites").mkdir()  # an empty folder is used
    folders = save_sites(parts, tmp_path / "sites", link=link)
    assert folders == [tmp_path / "sites/site_0", tmp_path / "sites/site_1"]
    for part, folder in zip(parts, folders, strict=True):
        assert boxes_of(load_dataset(folder)) == boxes_of(part)
        assert all(each.image.is_symlink() == link for each in load_dataset(folder).split("train"))
    assert names_in(tmp_path) == ["site", "sites"]


def test_sites_may_be_named(make_yolo: Maker, tmp_path: Path) -> None:
    dataset = load_dataset(make_yolo())
    folders = save_sites([dataset, dataset], tmp_path / "new/sites", names=["north", "süd 2"])
    assert names_in(tmp_path / "new/sites") == ["north", "süd 2"]
    assert boxes_of(load_dataset(folders[1])) == boxes_of(dataset)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a"], "2 sites need as many names, got 1"),
        (["a", "A"], "share a name"),
        (["a", "../b"], r"'\.\./b' cannot be"),
        (["a", "b/c"], "cannot be"),
        (["a", "c:\\b"], "cannot be"),
        (["a", ".b"], "cannot be"),
        (["a", " "], "cannot be"),
    ],
)
def test_names_that_cannot_be_folders_are_refused(
    make_yolo: Maker, tmp_path: Path, names: list[str], words: str
) -> None:
    dataset = load_dataset(make_yolo())
    with pytest.raises(DataError, match=words):
        save_sites([dataset, dataset], tmp_path / "sites", names=names)
    assert names_in(tmp_path) == ["site"]


def test_sites_overwrite_nothing(make_yolo: Maker, tmp_path: Path) -> None:
    root = make_yolo()
    dataset = load_dataset(root)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        save_sites([dataset], full)
    with pytest.raises(DataError, match="never written to"):
        save_sites([dataset], root / "sites")
    with pytest.raises(DataError, match="no site"):
        save_sites([], tmp_path / "sites")
    with pytest.raises(DataError, match="no picture"):
        save_sites([dataset, Dataset(root, dataset.names, {})], tmp_path / "sites")
    assert names_in(tmp_path) == ["full", "site"]
    assert names_in(full) == ["mine.txt"]


def test_when_the_last_site_fails_none_is_left(make_yolo: Maker, tmp_path: Path) -> None:
    first, second = load_dataset(make_yolo()), load_dataset(make_yolo(folder="gone"))
    (tmp_path / "gone/images/val/c.jpg").unlink()
    with pytest.raises(ResourceError, match=r"c\.jpg") as caught:
        save_sites([first, second], tmp_path / "sites")
    assert caught.value.file == str(tmp_path / "sites")
    assert names_in(tmp_path) == ["gone", "site"]


# --- Pascal VOC ---


def write_voc(root: Path, boxes: str, size: str = "<size><width>64</width><height>48</height></size>") -> Path:
    draw_picture(root / "JPEGImages/a.jpg")
    (root / "Annotations").mkdir()
    (root / "Annotations/a.xml").write_text(f"<annotation>{size}{boxes}</annotation>")
    return root


def voc_object(name: str, *corners: float) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    inner = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name><bndbox>{inner}</bndbox></object>"


def test_voc_counts_pixels_from_one_ends_included(tmp_path: Path) -> None:
    root = write_voc(tmp_path, voc_object("car", 1, 1, 64, 48) + voc_object("bus", 11, 21, 20, 30))
    dataset = load_dataset(root)
    assert dataset.names == ("bus", "car")
    assert boxes_of(dataset)["train", "a"] == [("car", [0, 0, 64, 48]), ("bus", [10, 20, 20, 30])]


def test_voc_entities_are_refused(tmp_path: Path) -> None:
    root = write_voc(tmp_path, voc_object("car", 1, 1, 64, 48))
    bomb = '<?xml version="1.0" encoding="{}"?><!DOCTYPE a [<!ENTITY x "xx">]><annotation>&x;</annotation>'
    for encoding in ("utf-8", "utf-16"):
        (root / "Annotations/a.xml").write_bytes(bomb.format(encoding).encode(encoding))
        with pytest.raises(DataError, match="DOCTYPE"):
            load_dataset(root)


def test_voc_problems_are_collected(tmp_path: Path) -> None:
    good = voc_object("car", 1, 1, 10, 10)
    bad = voc_object("bus", 1, 1, 10, 10) + "<object><name>car</name></object>" + voc_object("", 1, 1, 9, 9)
    root = write_voc(tmp_path, good + bad, "<size><width>48</width><height>64</height></size>")
    (root / "classes.txt").write_text("car\n")
    (root / "Annotations/ghost.xml").write_text("<annotation/>")
    sets = root / "ImageSets/Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("a\ngone\n")
    (sets / "car_train.txt").write_text("a  1\ngone -1\n")
    problems: list[Problem] = []
    dataset = load_dataset(root, on_problem=problems.append)
    assert [(problem.kind, problem.key) for problem in problems] == [
        ("size-differs", "size"),
        ("malformed", "object 3"),
        ("malformed", "object 4"),
        ("missing-picture", "gone"),
        ("unknown-class", "object 2"),
        ("orphaned-label", None),
    ]
    assert boxes_of(dataset) == {("train", "a"): [("car", [0, 0, 10, 10])]}


# --- COCO ---


def write_coco(root: Path, content: dict[str, object], file: str = "annotations/instances_train2017.json") -> Path:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return root


def coco_box(category: object, bbox: object, **more: object) -> dict[str, object]:
    return {"id": 1, "image_id": 7, "category_id": category, "bbox": bbox, **more}


PICTURE = {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48}


def test_coco_categories_are_numbered_in_the_order_of_their_ids(tmp_path: Path) -> None:
    draw_picture(tmp_path / "train2017/a.jpg")
    content = {
        "images": [PICTURE],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        "annotations": [coco_box(90, [1, 2, 3, 4]), coco_box(3, [0, 0, 64, 48])],
    }
    dataset = load_dataset(write_coco(tmp_path, content))
    assert dataset.names == ("car", "toothbrush")
    assert boxes_of(dataset)["train", "a"] == [("toothbrush", [1, 2, 4, 6]), ("car", [0, 0, 64, 48])]


def test_coco_problems_are_collected(tmp_path: Path) -> None:
    draw_picture(tmp_path / "images/train2017/a.jpg")
    content = {
        "images": [PICTURE, {**PICTURE, "id": 8, "file_name": "../../etc/passwd"}, PICTURE],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [
            coco_box(1, [1, 2, 3, 4]),
            coco_box(1, [1, 2, 3, 4], iscrowd=1),
            coco_box(2, [1, 2, 3, 4]),
            coco_box(1, [1, 2, 3]),
            coco_box(1, [1, 2, 10**400, 4]),
            coco_box(1, [1, 2, 3, 4], image_id=99),
        ],
    }
    problems: list[Problem] = []
    dataset = load_dataset(write_coco(tmp_path, content), on_problem=problems.append)
    assert [problem.kind for problem in problems] == [
        "crowd", "unknown-class", "malformed", "malformed", "missing-picture", "malformed", "orphaned-label",
    ]  # fmt: skip
    assert boxes_of(dataset) == {("train", "a"): [("car", [1, 2, 4, 6])]}


def test_roboflow_export_without_its_group_category(tmp_path: Path) -> None:
    for seed, folder in enumerate(("train", "valid")):
        draw_picture(tmp_path / folder / "a.jpg", seed=seed)
        content = {
            "images": [PICTURE],
            "categories": [
                {"id": 0, "name": "cells", "supercategory": "none"},
                {"id": 1, "name": "RBC", "supercategory": "cells"},
            ],
            "annotations": [coco_box(1, [1, 2, 3, 4])],
        }
        write_coco(tmp_path, content, f"{folder}/_annotations.coco.json")
    dataset = load_dataset(tmp_path)
    assert dataset.names == ("RBC",)
    assert list(dataset.splits) == ["train", "val"]


def test_coco_splits_must_agree_on_categories(tmp_path: Path) -> None:
    for split, name in (("train", "car"), ("val", "bus")):
        content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": name}]}
        write_coco(tmp_path, content, f"annotations/instances_{split}.json")
    with pytest.raises(DataError, match="'bus' here and 'car'"):
        load_dataset(tmp_path)


def test_a_split_without_boxes(tmp_path: Path) -> None:
    draw_picture(tmp_path / "images/a.jpg")
    content = {"images": [PICTURE], "annotations": [], "categories": [{"id": 1, "name": "car"}]}
    with pytest.raises(DataError, match="not one box"):
        load_dataset(write_coco(tmp_path, content))
