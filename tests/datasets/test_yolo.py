from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from manyeyes.datasets import Dataset, Problem, load_yolo, save_yolo
from manyeyes.datasets.classes import pool
from manyeyes.errors import DataError

from .conftest import Maker, boxes_of, draw_picture


def load_with_problems(root: Path) -> tuple[Dataset, list[Problem]]:
    problems: list[Problem] = []
    return load_yolo(root, on_problem=problems.append), problems


def test_boxes_are_corners_in_pixels(make_yolo: Maker) -> None:
    dataset = load_yolo(make_yolo())
    sample = dataset.split("train")[0]
    assert (sample.width, sample.height) == (64, 48)
    np.testing.assert_allclose(sample.xyxy, [[24, 12, 40, 36], [12.8, 9.6, 19.2, 14.4]], rtol=1e-6)
    assert sample.xyxy.dtype == np.float32
    assert sample.class_id.tolist() == [0, 1]
    assert dataset.names == ("person", "car")
    assert dataset.annotates == {"person", "car"}


def test_the_yaml_and_its_folder_are_the_same_dataset(make_yolo: Maker) -> None:
    root = make_yolo()
    assert boxes_of(load_yolo(root)) == boxes_of(load_yolo(root / "data.yaml"))


def test_names_may_be_a_mapping_and_annotates_a_part_of_them(make_yolo: Maker) -> None:
    root = make_yolo(yaml="names: {0: person, 1: car, 2: tv}\nannotates: [car, tv]")
    dataset = load_yolo(root)
    assert dataset.names == ("person", "car", "tv")
    assert dataset.annotates == {"car", "tv"}


def test_splits_beside_images_and_lists_of_pictures(tmp_path: Path) -> None:
    for seed, name in enumerate(["train/images/a", "valid/images/b", "extra/images/c"]):
        draw_picture(tmp_path / f"{name}.png", seed=seed)
        label = tmp_path / f"{name.replace('images', 'labels')}.txt"
        label.parent.mkdir(parents=True)
        label.write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "more.txt").write_text("./extra/images/c.png\n\n")
    # "../" although the YAML lies beside train/: what Roboflow writes.
    (tmp_path / "data.yaml").write_text(
        "train: [../train/images, more.txt]\nval: ../valid/images\nnames: [cell]\nnc: 1\n"
    )
    dataset, problems = load_with_problems(tmp_path)
    assert [sample.image.name for sample in dataset.split("train")] == ["c.png", "a.png"]
    assert len(dataset.split("val")) == 1
    assert problems == []


def test_path_starts_at_the_folder_of_the_yaml(
    tmp_path: Path, make_yolo: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_yolo()
    elsewhere = tmp_path / "conf"
    elsewhere.mkdir()
    (elsewhere / "data.yaml").write_text("path: ../site\ntrain: images/train\nnames: [person, car]\n")
    monkeypatch.chdir("/")
    assert len(load_yolo(elsewhere).split("train")) == len(load_yolo(root).split("train"))


def test_a_folder_called_images_above_the_dataset_does_not_matter(make_yolo: Maker) -> None:
    root = make_yolo(folder="images/site")
    assert boxes_of(load_yolo(root))["train", "a"]


def test_polygons_give_their_bounding_box(make_yolo: Maker) -> None:
    root = make_yolo({"train/a": "1 0.25 0.5 0.5 0.25 0.75 0.5 0.5 1.0\n"})
    np.testing.assert_allclose(load_yolo(root).split("train")[0].xyxy, [[16, 12, 48, 48]])


@pytest.mark.parametrize(
    ("yaml", "word"),
    [
        ("names: [person, car]\ndownload: print('executed')", "download"),
        ("names: [person, car]\nnc: 3", "nc"),
        ("names: [person, no]", "quotes"),
        ("names: [car, car]", "twice"),
        ("names: {0: person, 2: car}", "class ids"),
        ("nc: 2", "names"),
        ("names: [person, car]\nannotates: [persn]", "person"),
        ("names: [person, car]\nannotates: []", "at least one"),
        ("names: [person, car]\npath: /does/not/exist", "path"),
        ("names: [person, car", "YAML"),
        ("names: !!python/object/apply:os.getcwd []", "YAML"),
    ],
)
def test_a_wrong_yaml_names_file_and_reason(make_yolo: Maker, yaml: str, word: str) -> None:
    with pytest.raises(DataError, match=word) as caught:
        load_yolo(make_yolo(yaml=yaml))
    assert str(caught.value.file).endswith("data.yaml")


@pytest.mark.parametrize(
    ("line", "kind", "severity"),
    [
        ("0 0.5 0.5 0.5", "malformed", "error"),
        ("0 0.5 0.5 0.5 0.5 0.9", "malformed", "error"),
        ("person 0.5 0.5 0.5 0.5", "malformed", "error"),
        ("0.5 0.5 0.5 0.5 0.5", "malformed", "error"),
        ("0 nan 0.5 0.5 0.5", "malformed", "error"),
        ("0 1e308 0.5 1e308 0.5", "malformed", "error"),
        ("2 0.5 0.5 0.5 0.5", "unknown-class", "error"),
        ("-1 0.5 0.5 0.5 0.5", "unknown-class", "error"),
        ("0 32 24 10 10", "outside", "error"),
        ("0 0.9 0.5 0.5 0.5", "outside", "error"),
        ("0 0.5 0.5 0 0.5", "zero-area", "error"),
        ("0 0.5 0.5 -0.1 0.5", "zero-area", "error"),
        ("1 0.25 0.25 0.1 0.1", "duplicate-box", "warning"),
    ],
)
def test_a_bad_line_is_reported_and_left_out(make_yolo: Maker, line: str, kind: str, severity: str) -> None:
    root = make_yolo({"train/a": f"1 0.25 0.25 0.1 0.1\n\n{line}\n", "train/b": ""})
    dataset, problems = load_with_problems(root)
    assert [(problem.kind, problem.severity, problem.key) for problem in problems] == [(kind, severity, "line 3")]
    assert problems[0].file == root / "labels" / "train" / "a.txt"
    assert [len(sample.class_id) for sample in dataset.split("train")] == [1, 0]
    if severity == "error":
        with pytest.raises(DataError, match=r"labels/train/a\.txt: line 3"):
            load_yolo(root)
    else:
        load_yolo(root)


def test_rounding_at_the_border_is_clipped_silently(make_yolo: Maker) -> None:
    dataset, problems = load_with_problems(make_yolo({"train/a": "0 0.5 0.5 1.001 1.02\n"}))
    assert problems == []
    np.testing.assert_array_equal(dataset.split("train")[0].xyxy, [[0, 0, 64, 48]])


def test_a_missing_label_warns_and_an_empty_one_does_not(make_yolo: Maker) -> None:
    root = make_yolo({"train/a": None, "train/b": "", "train/c": "0 0.5 0.5 0.1 0.1\n"})
    dataset, problems = load_with_problems(root)
    assert [(problem.kind, problem.file.name) for problem in problems] == [("missing-label", "a.jpg")]
    assert len(dataset.split("train")) == 3


def test_a_dataset_without_any_label_is_not_taken_for_background(make_yolo: Maker) -> None:
    with pytest.raises(DataError, match="label file"):
        load_yolo(make_yolo({"train/a": None, "train/b": None}))


def test_pictures_and_labels_that_do_not_belong_together(make_yolo: Maker) -> None:
    root = make_yolo()
    (root / "labels/train/ghost.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (root / "labels/train/classes.txt").write_text("person\ncar\n")
    (root / "images/train/broken.jpg").write_bytes(b"not a picture")
    (root / "images/train/._a.jpg").write_bytes(b"finder droppings")
    (root / "labels/val/c.txt").write_bytes(b"\xff\xfe\x00")
    dataset, problems = load_with_problems(root)
    assert {(problem.kind, problem.file.name) for problem in problems} == {
        ("orphaned-label", "ghost.txt"),
        ("unreadable", "broken.jpg"),
        ("malformed", "c.txt"),
    }
    assert len(dataset.split("train")) == 2
    assert len(dataset.split("val")) == 0


def test_missing_splits_and_pictures(make_yolo: Maker) -> None:
    root = make_yolo(yaml="names: [person, car]\ntest: images/test")
    (root / "list.txt").write_text("images/train/a.jpg\nimages/train/gone.jpg\n")
    text = (root / "data.yaml").read_text().replace("train: images/train", "train: list.txt")
    (root / "data.yaml").write_text(text)
    _, problems = load_with_problems(root)
    assert [problem.kind for problem in problems] == ["missing-picture", "missing-split"]
    assert problems[0].key == "line 2"


def test_reading_neither_opens_nor_writes_caches(make_yolo: Maker, tmp_path: Path) -> None:
    root = make_yolo()
    mark = tmp_path / "executed"

    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {mark}",)

    payload = pickle.dumps(Malicious())
    for name in ("labels/train.cache", "labels/train/labels.cache", "labels.cache"):
        (root / name).write_bytes(payload)
    before = sorted(root.rglob("*"))
    load_yolo(root)
    assert not mark.exists()
    assert sorted(root.rglob("*")) == before
    assert (root / "labels/train.cache").read_bytes() == payload


def test_saving_keeps_names_annotates_and_empty_labels(make_yolo: Maker, tmp_path: Path) -> None:
    root = make_yolo({"train/a": "0 0.1 0.1 0.1 0.1\n", "train/b": ""}, yaml='names: ["no", car]\nannotates: [car]')
    dataset = load_yolo(root)
    save_yolo(dataset, tmp_path / "new/copy")
    again, problems = load_with_problems(tmp_path / "new/copy")
    assert problems == []
    assert again.names == ("no", "car")
    assert again.annotates == {"car"}
    assert boxes_of(again) == boxes_of(dataset)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["copy"]


def test_saving_links_pictures_on_demand(make_yolo: Maker, tmp_path: Path) -> None:
    dataset = load_yolo(make_yolo())
    save_yolo(dataset, tmp_path / "linked", link=True)
    assert (tmp_path / "linked/images/train/a.jpg").is_symlink()
    assert boxes_of(load_yolo(tmp_path / "linked")) == boxes_of(dataset)


def test_pictures_of_one_name_keep_their_own_labels(tmp_path: Path, make_yolo: Maker) -> None:
    root = make_yolo({"train/x/a": "0 0.5 0.5 0.1 0.1\n", "train/y/a": "1 0.5 0.5 0.2 0.2\n"})
    save_yolo(load_yolo(root), tmp_path / "flat")
    boxes = boxes_of(load_yolo(tmp_path / "flat"))
    assert {name: [box[0] for box in found] for (_, name), found in boxes.items()} == {"a": ["person"], "a_2": ["car"]}


def test_pooled_sites_are_saved_where_the_same_was_looked_for_in_all(make_yolo: Maker, tmp_path: Path) -> None:
    dataset = load_yolo(make_yolo())
    save_yolo(pool({"A": dataset, "B": dataset}), tmp_path / "pooled")
    assert len(load_yolo(tmp_path / "pooled").split("train")) == 2 * len(dataset.split("train"))
    persons = replace(dataset, annotates=frozenset({"person"}))
    with pytest.raises(DataError, match="differ from picture to picture"):
        save_yolo(pool({"A": dataset, "B": persons}), tmp_path / "other")


def test_nothing_is_overwritten_and_the_site_is_not_written_to(make_yolo: Maker, tmp_path: Path) -> None:
    root = make_yolo()
    dataset = load_yolo(root)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        save_yolo(dataset, full)
    with pytest.raises(DataError, match="never written to"):
        save_yolo(dataset, root / "copy")
    assert (full / "mine.txt").read_text() == "keep"


def test_a_failed_save_leaves_nothing_behind(make_yolo: Maker, tmp_path: Path) -> None:
    root = make_yolo()
    dataset = load_yolo(root)
    (root / "images/val/c.jpg").unlink()
    with pytest.raises(Exception, match=r"c\.jpg"):
        save_yolo(dataset, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]
