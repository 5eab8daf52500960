from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from manyeyes.datasets import CheckReport, Problem, check_dataset, check_decodable, load_dataset
from manyeyes.errors import DataError

from .conftest import Maker, draw_picture


def kinds(report: CheckReport) -> set[str]:
    return {problem.kind for problem in report.problems}


def rendered(report: CheckReport) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    report.render(console)
    return console.export_text()


def state(root: Path) -> dict[Path, tuple[int, str]]:
    return {
        path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for path in [root, *root.rglob("*")]
    }


def truncate(picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size * 4 // 5])


def test_a_sound_dataset_is_ok_and_counted(make_yolo: Maker) -> None:
    calls: list[tuple[int, int]] = []
    report = check_dataset(make_yolo(), progress=lambda done, total: calls.append((done, total)))
    assert (report.verdict, report.exit_code, report.problems) == ("ok", 0, ())
    train = report.splits["train"]
    assert (train.pictures, train.background) == (2, 0)
    assert train.boxes == {"person": 1, "car": 2}
    assert train.pictures_with == {"person": 1, "car": 2}
    # 16 x 24 and 6.4 x 4.8 px are small; the whole picture of 64 x 48 px is medium.
    assert (train.sizes.small, train.sizes.medium, train.sizes.large) == (2, 1, 0)
    assert train.sizes.relative["95"] <= 1.0
    assert calls[-1] == (3, 3)


def test_the_site_is_left_exactly_as_it_was(make_yolo: Maker) -> None:
    root = make_yolo()
    truncate(root / "images/val/c.jpg")
    with (root / "images/train/a.jpg").open("ab") as file:
        file.write(b"trailing bytes, which Ultralytics would cut off in place")
    (root / "labels/train.cache").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    before = state(root)
    load_dataset(root)
    check_dataset(root)
    assert state(root) == before


def test_truncated_jpegs_are_found_although_their_header_is_whole(make_yolo: Maker) -> None:
    root = make_yolo()
    truncate(root / "images/train/a.jpg")
    samples = load_dataset(root).split("train")
    problems: list[Problem] = []
    assert [sample.image.name for sample in check_decodable(samples, problems.append)] == ["b.jpg"]
    assert [(problem.kind, problem.file.name) for problem in problems] == [("truncated", "a.jpg")]
    with pytest.raises(DataError, match=r"a\.jpg"):
        check_decodable(samples)
    report = check_dataset(root)
    assert (report.verdict, report.exit_code) == ("broken", 2)
    assert "--skip-broken" in rendered(report)


def test_copies_across_splits_are_found(make_yolo: Maker) -> None:
    root = make_yolo()
    shutil.copy(root / "images/train/a.jpg", root / "images/val/copy.jpg")
    (root / "labels/val/copy.txt").write_text("")
    with Image.open(root / "images/train/b.jpg") as picture:
        picture.resize((60, 50)).save(root / "images/val/resized.jpg", quality=40)
    (root / "labels/val/resized.txt").write_text("")
    report = check_dataset(root)
    found = {(d.first.name, d.second.name, d.splits, d.distance is None) for d in report.duplicates}
    assert found == {
        ("a.jpg", "copy.jpg", ("train", "val"), True),
        ("b.jpg", "resized.jpg", ("train", "val"), False),
    }
    assert report.verdict == "usable"
    assert kinds(check_dataset(root, near_duplicates=False)) == {"duplicate-picture"}


def test_dark_pictures_are_not_taken_for_each_other(make_yolo: Maker) -> None:
    root = make_yolo()
    for index, split in enumerate(("train", "val")):
        Image.new("RGB", (64, 48), (index, index, index)).save(root / f"images/{split}/night.png")
        (root / f"labels/{split}/night.txt").write_text("")
    assert check_dataset(root).duplicates == ()


def test_everything_wrong_at_once_is_listed_with_cures(make_yolo: Maker) -> None:
    root = make_yolo(
        {
            "train/a": "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5\n9 0.5 0.5 0.5 0.5\n0 3 3 1 1\n0 0.5 0.5 0 0\nx\n",
            "train/b[bold]": None,
            "val/c": "0 0.5 0.5 0.5 0.5\n",
        },
        yaml="names: [person, car]\ntest: images/test",
    )
    (root / "labels/val/ghost.txt").write_text("")
    (root / "images/train/phone.heic").write_bytes(b"")
    (root / "images/val/noise.jpg").write_bytes(b"no picture")
    report = check_dataset(root)
    wanted = {
        "class-without-box", "duplicate-box", "malformed", "missing-label", "missing-split",
        "orphaned-label", "outside", "unknown-class", "unreadable", "unsupported-format", "zero-area",
    }  # fmt: skip
    assert kinds(report) == wanted
    text = rendered(report)
    assert "BROKEN" in text
    assert "b[bold].jpg" in text
    assert all(kind in text for kind in wanted)
    assert all(problem["cure"] for problem in report.to_dict()["problems"])
    json.dumps(report.to_dict())


def test_pictures_in_no_split_are_mentioned(make_yolo: Maker) -> None:
    root = make_yolo()
    (root / "list.txt").write_text("images/train/a.jpg\n")
    (root / "data.yaml").write_text("train: list.txt\nnames: [person, car]\n")
    report = check_dataset(root)
    assert [(problem.kind, problem.file.name) for problem in report.problems] == [("unlisted-picture", "b.jpg")]


def test_a_class_nobody_looked_for_is_not_missed(make_yolo: Maker) -> None:
    labels: dict[str, str | None] = {"train/a": "0 0.5 0.5 0.5 0.5\n"}
    assert kinds(check_dataset(make_yolo(labels))) == {"class-without-box"}
    assert kinds(check_dataset(make_yolo(labels, yaml="names: [person, car]\nannotates: [person]"))) == set()


def test_a_dataset_that_cannot_be_read_is_broken_but_not_raised(make_yolo: Maker, tmp_path: Path) -> None:
    report = check_dataset(make_yolo(yaml="names: [person, car]\ndownload: rm -rf /"))
    assert (kinds(report), report.exit_code) == ({"layout"}, 2)
    assert "download" in rendered(report)
    with pytest.raises(DataError, match="no dataset found"):
        check_dataset(tmp_path)


def test_importing_the_datasets_needs_neither_torch_nor_opencv() -> None:
    code = "import sys, manyeyes.datasets; print({'torch', 'cv2', 'matplotlib', 'rich'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "train", "verdict"),
    [
        ("streets/a_indoor", {"person": 118, "car": 0, "traffic light": 0, "chair": 103, "tv": 31}, "usable"),
        ("bccd/site_0", {"Platelets": 108, "RBC": 1181, "WBC": 90}, "ok"),
    ],
)
def test_real_sites(shared_data: Path, folder: str, train: dict[str, int], verdict: str) -> None:
    report = check_dataset(shared_data / folder)
    assert report.splits["train"].boxes == train
    assert report.verdict == verdict


def test_a_picture_only_pillow_can_read_is_reported(tmp_path: Path, make_yolo: Maker) -> None:
    root = make_yolo()
    draw_picture(root / "images/train/b.jpg")
    (root / "images/train/b.jpg").rename(root / "images/train/b.png")
    assert check_dataset(root).verdict == "ok"  # a JPEG called .png is read by both
    Image.new("RGB", (8, 8)).save(root / "images/train/b.png", "PPM")
    with Image.open(root / "images/train/b.png") as picture:
        picture.save(root / "images/train/b.png", "SGI")
    assert kinds(check_dataset(root)) == {"unreadable"}
