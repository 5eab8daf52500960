"""Scenes: the same seed gives the same bytes, boxes are tight, domains differ, bad arguments are refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.datasets.scenes import CLASSES, DOMAINS, contact_sheet, render_scene, split_sizes, write_scenes
from manyeyes.datasets.scenes.paint import MIN_SIDE, MIN_VISIBLE
from manyeyes.datasets.scenes.sites import compose
from manyeyes.errors import DataError


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes") / "sites"
    write_scenes(root, images=3, imgsz=96, seed=5, domains=DOMAINS)
    return root


@settings(max_examples=24, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), domain=st.sampled_from(DOMAINS), imgsz=st.sampled_from([64, 160, 320]))
def test_any_seed_gives_a_picture_with_boxes_inside_it(seed: int, domain: str, imgsz: int) -> None:
    image, xyxy, class_id = render_scene(domain, imgsz, np.random.default_rng(seed))
    assert image.shape == (imgsz, imgsz, 3)
    assert image.dtype == np.uint8
    assert xyxy.dtype == np.float32
    assert xyxy.shape == (len(class_id), 4)
    assert class_id.dtype == np.int64
    assert np.isin(class_id, range(len(CLASSES))).all()
    assert (xyxy >= 0).all()
    assert (xyxy <= imgsz).all()
    assert (xyxy[:, 2:] - xyxy[:, :2] >= MIN_SIDE).all()


@settings(max_examples=16, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), domain=st.sampled_from(DOMAINS))
def test_boxes_are_the_tight_extent_of_what_is_visible(seed: int, domain: str) -> None:
    canvas = compose(domain, 160, np.random.default_rng(seed))
    want = []
    for number, (class_id, area) in enumerate(zip(canvas.classes, canvas.areas, strict=True), start=1):
        rows, columns = np.nonzero(canvas.ids == number)
        if len(rows) == 0 or len(rows) < MIN_VISIBLE * area:
            continue
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 2
        if (box[2:] - box[:2]).min() >= MIN_SIDE:
            want.append((class_id, *box.tolist()))
    xyxy, class_ids = canvas.boxes()
    assert [(c, *b) for c, b in zip(class_ids.tolist(), xyxy.tolist(), strict=True)] == want


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_same_state_gives_the_same_picture(domain: str) -> None:
    first = render_scene(domain, 128, np.random.default_rng([3, 1]))
    again = render_scene(domain, 128, np.random.default_rng([3, 1]))
    other = render_scene(domain, 128, np.random.default_rng([3, 2]))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_domains_have_the_classes_and_the_light_they_promise() -> None:
    people, cars, light = {}, {}, {}
    for domain in DOMAINS:
        pictures = [render_scene(domain, 320, np.random.default_rng([11, i])) for i in range(16)]
        ids = np.concatenate([p[2] for p in pictures])
        people[domain], cars[domain] = int((ids == 0).sum()), int((ids == 1).sum())
        light[domain] = float(np.mean([p[0].mean() for p in pictures]))
    assert people["a_office"] > 8 * cars["a_office"]
    assert people["a_office"] >= 2 * 16
    assert cars["b_crossroads"] > 1.5 * people["b_crossroads"] > 0
    assert cars["c_night"] > people["c_night"] > 0
    assert min(people["generic"], cars["generic"]) >= 8
    assert light["c_night"] < 0.7 * min(light[d] for d in DOMAINS if d != "c_night")


def test_the_layout_on_disk_is_yolo(written: Path) -> None:
    for domain in DOMAINS:
        assert (written / domain / "data.yaml").read_text(encoding="utf-8").splitlines() == [
            "path: .",
            "train: images/train",
            "val: images/val",
            "test: images/test",
            "names:",
            "  0: person",
            "  1: car",
        ]
        for split, count in split_sizes(domain, 3).items():
            pictures = sorted((written / domain / "images" / split).iterdir())
            labels = sorted((written / domain / "labels" / split).iterdir())
            assert [p.stem for p in pictures] == [p.stem for p in labels]
            assert len(pictures) == count
            assert cv2.imread(str(pictures[0])).shape == (96, 96, 3)
            for line in "\n".join(p.read_text(encoding="utf-8") for p in labels).split("\n"):
                values = [float(v) for v in line.split()]
                assert not values or (len(values) == 5 and all(0 <= v <= 1 for v in values[1:]))


def test_counts_and_order_do_not_change_a_picture(written: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "more", images=5, imgsz=96, seed=5, domains=DOMAINS[:2][::-1])
    few, more = files_of(written), files_of(tmp_path / "more")
    shared = few.keys() & more.keys()
    assert len(shared) > 20
    assert all(few[name] == more[name] for name in shared)


def test_another_seed_and_another_split_give_other_pictures(written: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "other", images=3, imgsz=96, seed=6, domains=["generic"])
    name = "generic/images/{}/00000.jpg"
    assert (written / name.format("train")).read_bytes() != (tmp_path / "other" / name.format("train")).read_bytes()
    assert (written / name.format("train")).read_bytes() != (written / name.format("val")).read_bytes()


def test_split_sizes() -> None:
    assert split_sizes("a_office", 150) == {"train": 150, "val": 30, "test": 60}
    assert split_sizes("c_night", 150) == {"train": 50, "val": 10, "test": 20}
    assert split_sizes("c_night", 1) == {"train": 1, "val": 4, "test": 4}


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_scenes(
        tmp_path / "x", images=1, imgsz=64, seed=0, domains=["generic"], progress=lambda d, t: seen.append((d, t))
    )
    assert seen == [(i, 9) for i in range(1, 10)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"imgsz": 32}, "from 64"),
        ({"imgsz": 100}, "multiple of 32"),
        ({"seed": -1}, "seed"),
        ({"domains": ["a_ofice"]}, "a_office"),
        ({"domains": ["generic", "generic"]}, "once"),
        ({"domains": []}, "Choose from"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    arguments: dict[str, object] = {"images": 1, "imgsz": 64, "seed": 0, "domains": ["generic"]} | change
    with pytest.raises(DataError) as caught:
        write_scenes(tmp_path / "x", **arguments)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert caught.value.cure
    assert list(tmp_path.iterdir()) == []


def test_render_refuses_an_unknown_domain_and_a_bad_size() -> None:
    with pytest.raises(DataError, match="'c_night'"):
        render_scene("c_nihgt", 64, np.random.default_rng(0))
    with pytest.raises(DataError, match="multiple of 32"):
        render_scene("generic", 65, np.random.default_rng(0))


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(DataError, match="not an empty folder") as caught:
        write_scenes(tmp_path, images=1, imgsz=64, seed=0)
    assert caught.value.cure
    assert files_of(tmp_path) == {"mine.txt": b"keep"}


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert write_scenes(tmp_path / "empty", images=1, imgsz=64, seed=0, domains=["generic"]) == {
        "generic": tmp_path / "empty" / "generic"
    }


def test_a_stopped_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "x", images=1, imgsz=64, seed=0, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_contact_sheet_of_a_folder_draws_the_boxes_of_its_labels(written: Path, tmp_path: Path) -> None:
    folder = written / "b_crossroads"
    plain = cv2.imread(str(contact_sheet(folder, 4, tmp_path / "plain.png", boxes=False, limit=5)))
    marked = cv2.imread(str(contact_sheet(folder, 4, tmp_path / "marked.png", limit=5)))
    assert plain.shape == marked.shape == (200, 400, 3)
    assert (plain != marked).any()


def test_contact_sheet_of_pictures(tmp_path: Path) -> None:
    pictures = [render_scene("generic", 64, np.random.default_rng(i)) for i in range(3)]
    assert cv2.imread(str(contact_sheet(pictures, 3, tmp_path / "new" / "sheet.png"))).shape == (68, 204, 3)


def test_contact_sheet_refuses_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures"):
        contact_sheet(tmp_path, 3, tmp_path / "sheet.png")
    with pytest.raises(DataError, match="columns"):
        contact_sheet([], 0, tmp_path / "sheet.png")
