"""COCO: one JSON a split, boxes as x, y, width, height in pixels.

Two ways to lay the files out are read: `annotations/instances_SPLIT.json` with the pictures in `images/SPLIT`,
`SPLIT`, `images` or beside (also `train2017` and the like), and Roboflow's `SPLIT/_annotations.coco.json` with
the pictures beside it.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manyeyes.datasets.labels import checked_annotates, checked_boxes, checked_names
from manyeyes.datasets.pictures import readable_size
from manyeyes.datasets.sample import SPLIT_ALIASES, SPLITS, Dataset, ProblemHandler, Reporter, Sample, raise_problem
from manyeyes.datasets.staging import put_picture, staged_folder, unique_names
from manyeyes.errors import DataError

__all__ = ["find_coco", "load_coco", "save_coco"]

_INSTANCES = re.compile(r"instances_(?P<tag>(?P<split>[a-z]+)\d*)\.json")
_ROBOFLOW = "_annotations.coco.json"
_ABSURD_PX = 1e12


@dataclass(frozen=True, slots=True)
class _File:
    """One annotation file: where it is, the folders its pictures may lie in, what it says."""

    path: Path
    folders: tuple[Path, ...]
    content: dict[str, Any]

    @property
    def is_roboflow(self) -> bool:
        return self.path.name == _ROBOFLOW

    def entries(self, key: str) -> list[dict[str, Any]]:
        found = self.content.get(key, [])
        if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
            raise DataError("must be a list of objects", file=self.path, key=key)
        return found


def find_coco(path: Path) -> dict[str, tuple[Path, tuple[Path, ...]]]:
    """For each split its annotation file and the folders its pictures may lie in; empty if this is not COCO."""
    found: dict[str, tuple[Path, tuple[Path, ...]]] = {}
    split_of = {alias: split for split, aliases in SPLIT_ALIASES.items() for alias in aliases}
    for file in sorted((path / "annotations").glob("instances_*.json")):
        match = _INSTANCES.fullmatch(file.name)
        if match and match["split"] in split_of:
            tag = match["tag"]
            folders = (path / "images" / tag, path / tag, path / "images", path)
            found.setdefault(split_of[match["split"]], (file, folders))
    for alias, split in split_of.items():
        if (path / alias / _ROBOFLOW).is_file():
            found.setdefault(split, (path / alias / _ROBOFLOW, (path / alias,)))
    return {split: found[split] for split in SPLITS if split in found}


def load_coco(path: Path | str, *, on_problem: ProblemHandler = raise_problem) -> Dataset:
    """Read a COCO dataset.

    Categories become classes 0, 1, … in the order of their ids, over all splits together. A box with `iscrowd`
    stands for many objects: it is left out with the warning "crowd". Roboflow's extra category that only names
    the group of the others is left out if no box uses it. `info.annotates` names the classes that were looked
    for, if not all.

    Args:
        path: the folder described above.
        on_problem: called for each problem; if it returns, the box or picture is left out and reading goes on.

    Raises:
        DataError: not a COCO dataset, JSON that cannot be used, or a problem that `on_problem` does not take.
    """
    path = Path(path)
    places = find_coco(path)
    if not places:
        raise DataError(f"expected annotations/instances_SPLIT.json or SPLIT/{_ROBOFLOW}", file=path)
    files = {split: _File(file, folders, _read_json(file)) for split, (file, folders) in places.items()}
    first = next(iter(files.values())).path
    by_category = _read_categories(files.values())
    names = checked_names(by_category.values(), first, "categories")
    number = {category: index for index, category in enumerate(by_category)}
    splits = {split: _read_split(file, split, path, number, on_problem) for split, file in files.items()}
    return Dataset(path, names, splits, _read_annotates(files.values(), names))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read as JSON: {error}", file=file) from error
    if not isinstance(content, dict):
        raise DataError(f"must hold a JSON object, got {type(content).__name__}", file=file)
    return content


def _read_categories(files: Iterable[_File]) -> dict[int, str]:
    """Category id to name, in the order of the ids."""
    names: dict[int, str] = {}
    groups: set[str] = set()
    used: set[object] = set()
    for file in files:
        for entry in file.entries("categories"):
            key, name = entry.get("id"), entry.get("name")
            if not isinstance(key, int) or not isinstance(name, str):
                raise DataError(
                    f"each needs a number `id` and a text `name`, got {entry}", file=file.path, key="categories"
                )
            if names.setdefault(key, name) != name:
                raise DataError(
                    f"category {key} is {name!r} here and {names[key]!r} in another split",
                    file=file.path,
                    key="categories",
                )
            groups.update({str(entry.get("supercategory"))} if file.is_roboflow else ())
        used.update(entry.get("category_id") for entry in file.entries("annotations"))
    return {key: names[key] for key in sorted(names) if key in used or names[key] not in groups}


def _read_annotates(files: Iterable[_File], names: Sequence[str]) -> frozenset[str]:
    for file in files:
        info = file.content.get("info")
        if isinstance(info, dict) and "annotates" in info:
            return checked_annotates(info["annotates"], names, file.path, "info.annotates")
    return frozenset(names)


def _read_split(
    file: _File, split: str, root: Path, number: dict[int, int], on_problem: ProblemHandler
) -> tuple[Sample, ...]:
    report = Reporter(on_problem, file.path, split)
    boxes: dict[object, list[dict[str, Any]]] = defaultdict(list)
    for entry in file.entries("annotations"):
        boxes[_hashable(entry.get("image_id"))].append(entry)
    samples: list[Sample] = []
    seen: set[object] = set()
    for entry in file.entries("images"):
        key = _hashable(entry.get("id"))
        if key in seen:
            report.error("malformed", f"two pictures have the id {key}", f"images: id {key}")
            continue
        seen.add(key)
        sample = _read_sample(entry, boxes.get(key, []), file.folders, root, number, report)
        samples.extend([] if sample is None else [sample])
    for key in boxes.keys() - seen:
        report.warning("orphaned-label", f"{len(boxes[key])} boxes belong to no picture", f"image_id {key}")
    if not seen:
        report.error("empty-split", "lists no picture", "images")
    elif not boxes:
        report.error("no-labels", f"has {len(seen)} pictures and not one box", "annotations")
    return tuple(sorted(samples, key=lambda sample: sample.image))


def _hashable(value: object) -> object:
    return value if isinstance(value, (int, str)) else repr(value)


def _read_sample(
    entry: dict[str, Any],
    annotations: Sequence[dict[str, Any]],
    folders: Sequence[Path],
    root: Path,
    number: dict[int, int],
    report: Reporter,
) -> Sample | None:
    image = _find_picture(str(entry.get("file_name")), folders, root)
    if image is None:
        report.error(
            "missing-picture", f"{entry.get('file_name')!r} is not below {root.name}", f"images: id {entry.get('id')}"
        )
        return None
    size = readable_size(image, report)
    if size is None:
        return None
    stated = (entry.get("width", size[0]), entry.get("height", size[1]))
    if stated != size:
        report.warning(
            "size-differs",
            f"says {stated[0]} x {stated[1]} px, but the picture has {size[0]} x {size[1]} px",
            str(entry.get("file_name")),
        )
    return Sample(image, *size, *_read_boxes(annotations, size, number, report))


def _find_picture(file_name: str, folders: Sequence[Path], root: Path) -> Path | None:
    options = (Path(os.path.normpath(folder / file_name)) for folder in folders)
    # A file from elsewhere must not be able to name pictures outside its own dataset.
    return next(
        (option for option in options if option.is_relative_to(os.path.normpath(root)) and option.is_file()), None
    )


def _read_boxes(
    annotations: Sequence[dict[str, Any]], size: tuple[int, int], number: dict[int, int], report: Reporter
) -> tuple[Any, Any]:
    """Boxes (n, 4) in pixels and class ids (n,), checked."""
    corners, classes, keys = [], [], []
    for entry in annotations:
        key = f"annotations: id {entry.get('id')}"
        category = entry.get("category_id")
        if entry.get("iscrowd"):
            report.warning("crowd", "a box around many objects (iscrowd) is left out", key)
        elif not isinstance(category, int) or category not in number:
            report.error("unknown-class", f"category {category!r} is not among the categories", key)
        elif not _is_box(entry.get("bbox")):
            report.error("malformed", f"bbox must be 4 numbers x, y, width, height, got {entry.get('bbox')!r}", key)
        else:
            x, y, w, h = map(float, entry["bbox"])
            corners.append((x, y, x + w, y + h))
            classes.append(number[category])
            keys.append(key)
    xyxy = np.array(corners, dtype=np.float64).reshape(-1, 4)
    return checked_boxes(xyxy, np.array(classes, dtype=np.int64), keys, size, len(number), report)


def _is_box(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(type(number) in {int, float} and abs(number) < _ABSURD_PX for number in value)
    )


def save_coco(dataset: Dataset, folder: Path | str, *, link: bool = False) -> Path:
    """Write a dataset in the COCO layout: `annotations/instances_SPLIT.json` and `images/SPLIT`.

    Category ids are class id + 1, since COCO's tools keep 0 free.

    Args:
        folder: must not exist, or be empty; it appears at once and whole.
        link: symbolic links to the pictures instead of copies.

    Returns:
        The folder.

    Raises:
        DataError: the folder is not empty or lies inside the dataset's own; nothing to save.
        ResourceError: the disk is full or may not be written.
    """
    folder = Path(folder)
    with staged_folder([dataset], folder) as stage:
        (stage / "annotations").mkdir()
        for split, samples in dataset.splits.items():
            if not samples:
                continue
            names = unique_names(samples, set())
            for sample, name in zip(samples, names, strict=True):
                put_picture(sample.image, stage / "images" / split / name, link)
            content = _content(dataset, samples, names)
            (stage / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def _content(dataset: Dataset, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, Any]:
    info: dict[str, Any] = {"description": "written by manyeyes"}
    if dataset.annotates != frozenset(dataset.names):
        info["annotates"] = [name for name in dataset.names if name in dataset.annotates]
    annotations: list[dict[str, Any]] = []
    for image_id, sample in enumerate(samples, start=1):
        for class_id, (x1, y1, x2, y2) in zip(sample.class_id.tolist(), sample.xyxy.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": class_id + 1,
                    "iscrowd": 0,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                }
            )
    return {
        "info": info,
        "images": [
            {"id": image_id, "file_name": name, "width": sample.width, "height": sample.height}
            for image_id, (sample, name) in enumerate(zip(samples, names, strict=True), start=1)
        ],
        "annotations": annotations,
        "categories": [
            {"id": class_id + 1, "name": name, "supercategory": "object"} for class_id, name in enumerate(dataset.names)
        ],
    }
