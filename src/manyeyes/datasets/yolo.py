"""YOLO text labels: `images/SPLIT/x.jpg` with `labels/SPLIT/x.txt`, and a `data.yaml` that names the classes.

Nothing here reads or writes Ultralytics' `.cache` files, which are pickles, and nothing here writes into the
folder that is read.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from manyeyes.datasets.labels import checked_annotates, checked_boxes, checked_names, read_text, report_orphans
from manyeyes.datasets.pictures import find_pictures, is_picture, readable_size
from manyeyes.datasets.sample import SPLIT_ALIASES, SPLITS, Dataset, ProblemHandler, Reporter, Sample, raise_problem
from manyeyes.datasets.staging import put_picture, staged_folder, unique_names
from manyeyes.errors import DataError

__all__ = ["find_yaml", "load_yolo", "save_yolo", "write_yolo"]

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAMES_KEY = re.compile(rb"^names\s*:", re.MULTILINE)


def find_yaml(path: Path) -> Path | None:
    """The YAML of a YOLO dataset: the file itself, `data.yaml` in the folder, or its only YAML with `names`."""
    if path.is_file():
        return path if path.suffix.lower() in {".yaml", ".yml"} else None
    for name in _YAML_NAMES:
        if (path / name).is_file():
            return path / name
    found = [file for suffix in ("yaml", "yml") for file in path.glob(f"*.{suffix}") if _has_names(file)]
    return found[0] if len(found) == 1 else None


def _has_names(file: Path) -> bool:
    try:
        return _NAMES_KEY.search(file.read_bytes()) is not None
    except OSError:
        return False


def load_yolo(path: Path | str, *, on_problem: ProblemHandler = raise_problem) -> Dataset:
    """Read a dataset with YOLO text labels.

    Lines are `class cx cy w h`, in shares of the picture's sides, or `class x1 y1 x2 y2 x3 y3 …`: a polygon, of
    which the bounding box is taken. The YAML's keys are `names` (list, or mapping 0…n-1), `train`, `val`, `test`
    (a folder, a `.txt` list of pictures, or a list of these), and optionally `path`, `nc` and `annotates` (names
    of the classes that were looked for). Unlike in Ultralytics, a relative `path` starts at the YAML's folder.
    The label of `…/images/…/x.jpg` is `…/labels/…/x.txt`, else `x.txt` beside the picture.

    Args:
        path: the YAML or the folder that holds it.
        on_problem: called for each problem; if it returns, the box or picture is left out and reading goes on.

    Raises:
        DataError: no YAML, one that cannot be used (also any with `download:`, which other tools execute), or a
            problem that `on_problem` does not take.
    """
    path = Path(path)
    file = find_yaml(path)
    if file is None:
        raise DataError("no data.yaml found", file=path, cure="Name the dataset's YAML file or the folder it is in.")
    spec = _read_yaml(file)
    names = _read_names(spec, file)
    annotates = checked_annotates(spec["annotates"], names, file) if "annotates" in spec else frozenset(names)
    source = _Source(file, _read_root(spec, file), len(names), on_problem)
    entries = {split: _split_entries(spec, split, file) for split in SPLITS}
    if not any(entries.values()):
        raise DataError("names no split", file=file, cure="Add `train: images/train`, and val and test alike.")
    splits = {split: source.load_split(split, listed) for split, listed in entries.items() if listed}
    source.report_orphans()
    return Dataset(path, names, splits, annotates)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        spec = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"cannot be read as YAML: {error}", file=file) from error
    if not isinstance(spec, dict):
        raise DataError(f"must hold keys and values, got {type(spec).__name__}", file=file)
    if spec.get("download"):
        raise DataError(
            "manyeyes refuses datasets with this key: other tools execute it as a script",
            file=file,
            key="download",
            cure="Download the data yourself and delete the key.",
        )
    return {str(key): value for key, value in spec.items()}


def _read_names(spec: dict[str, Any], file: Path) -> tuple[str, ...]:
    given = spec.get("names")
    if isinstance(given, dict):
        if sorted(given, key=str) != sorted(range(len(given)), key=str):
            raise DataError(f"class ids must be 0 to {len(given) - 1}, got {list(given)}", file=file, key="names")
        given = [given[index] for index in range(len(given))]
    if not isinstance(given, list):
        raise DataError("must list the classes' names", file=file, key="names", cure="Write `names: [person, car]`.")
    names = checked_names(given, file, "names")
    if spec.get("nc", len(names)) != len(names):
        raise DataError(f"says {spec['nc']} classes, but there are {len(names)} names", file=file, key="nc")
    return names


def _read_root(spec: dict[str, Any], file: Path) -> Path:
    root = file.parent / str(spec.get("path") or ".")
    if not root.is_dir():
        raise DataError(
            f"{root} is not a folder",
            file=file,
            key="path",
            cure="Write it relative to the YAML's own folder, or delete the key if the pictures are beside the YAML.",
        )
    return Path(os.path.normpath(root))


def _split_entries(spec: dict[str, Any], split: str, file: Path) -> list[str]:
    given: Any = next((spec[name] for name in SPLIT_ALIASES[split] if spec.get(name)), [])
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(entry, str) for entry in listed):
        raise DataError(f"must be a folder, a .txt list, or a list of these, got {given!r}", file=file, key=split)
    return listed


class _Source:
    """One YOLO dataset while it is read: remembers the folders its pictures were found in."""

    def __init__(self, file: Path, root: Path, n_names: int, on_problem: ProblemHandler) -> None:
        self.file = file
        self.root = root
        self.n_names = n_names
        self.on_problem = on_problem
        self.folders: set[Path] = set()
        self.not_labels: set[Path] = set()

    def load_split(self, split: str, entries: Sequence[str]) -> tuple[Sample, ...]:
        report = Reporter(self.on_problem, self.file, split)
        listed = [self._pictures(entry, report) for entry in entries]
        pictures = sorted({picture for found in listed for picture in found or ()})
        if not pictures:
            if None not in listed:
                report.error("empty-split", f"{', '.join(entries)} has no picture", split)
            return ()
        labels = [self._label_path(picture) for picture in pictures]
        self.folders.update(picture.parent for picture in pictures)
        if not any(label.is_file() for label in labels):
            report.error(
                "no-labels", f"none of {len(labels)} pictures has a label file; the first would be {labels[0]}", split
            )
        samples = (self._sample(*pair, split) for pair in zip(pictures, labels, strict=True))
        return tuple(sample for sample in samples if sample is not None)

    def report_orphans(self) -> None:
        # A label whose picture is there but in no split is no orphan, so all pictures of the folders count.
        known = {self._label_path(file) for folder in self.folders for file in folder.iterdir() if is_picture(file)}
        found = (file for folder in {label.parent for label in known} for file in folder.glob("*.txt"))
        # LabelImg writes the class names as classes.txt among the labels.
        found = (file for file in found if file.name != "classes.txt" and file not in self.not_labels)
        report_orphans(found, known, self.on_problem)

    def _pictures(self, entry: str, report: Reporter) -> list[Path] | None:
        place = Path(os.path.normpath(self.root / entry))
        if not place.exists() and entry.startswith("../"):
            # Roboflow's YAML says ../train/images although it lies beside train/; Ultralytics mends it so too.
            place = Path(os.path.normpath(self.root / entry.removeprefix("../")))
        if place.is_dir():
            return find_pictures(place)
        if place.is_file() and place.suffix.lower() == ".txt":
            self.not_labels.add(place)
            return self._listed_pictures(place, report)
        report.error("missing-split", f"{place} is neither a folder nor a .txt list", report.split)
        return None

    def _listed_pictures(self, place: Path, report: Reporter) -> list[Path]:
        report = Reporter(report.handler, place, report.split)
        pictures = []
        for number, line in enumerate((read_text(place, report) or "").splitlines(), start=1):
            if not line.strip():
                continue
            options = [Path(os.path.normpath(base / line.strip())) for base in (self.root, place.parent)]
            found = next((option for option in options if option.is_file()), None)
            if found is None:
                report.error("missing-picture", f"{options[0]} does not exist", f"line {number}")
            elif is_picture(found):
                pictures.append(found)
        return pictures

    def _label_path(self, picture: Path) -> Path:
        # Only below the root if possible: a folder named images above it has nothing to do with the layout.
        base = self.root if picture.is_relative_to(self.root) else Path(picture.anchor)
        parts = list(picture.relative_to(base).with_suffix(".txt").parts)
        for index in range(len(parts) - 2, -1, -1):
            if parts[index] == "images":
                parts[index] = "labels"
                break
        return base.joinpath(*parts)

    def _sample(self, picture: Path, label: Path, split: str) -> Sample | None:
        report = Reporter(self.on_problem, label, split)
        size = readable_size(picture, report)
        if size is None:
            return None
        if not label.is_file():
            Reporter(self.on_problem, picture, split).warning(
                "missing-label", f"no label file {label.name}: the picture counts as one without objects"
            )
            text: str | None = ""
        else:
            text = read_text(label, report)
        if text is None:
            return None
        xyxy, class_id = checked_boxes(*_parse_labels(text, size, report), size, self.n_names, report)
        return Sample(picture, *size, xyxy, class_id)


def _parse_labels(
    text: str, size: tuple[int, int], report: Reporter
) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Boxes (n, 4) in pixels, class ids (n,) and the lines they come from."""
    boxes, classes, keys = [], [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            class_id, box = _parse_line(line)
        except ValueError as error:
            report.error("malformed", f"{error}", f"line {number}")
            continue
        boxes.append(box)
        classes.append(class_id)
        keys.append(f"line {number}")
    shares = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    with np.errstate(over="ignore"):  # an absurd number becomes infinite, and is reported as such
        corners = shares * np.array([*size, *size], dtype=np.float64)
    return corners, np.array(classes, dtype=np.int64), keys


def _parse_line(line: str) -> tuple[int, tuple[float, float, float, float]]:
    """Class id and x1, y1, x2, y2 in shares of the sides."""
    try:
        first, *rest = (float(word) for word in line.split())
    except ValueError:
        raise ValueError(f"expected numbers `class cx cy w h`, got {line.strip()[:60]!r}") from None
    if not math.isfinite(first) or not first.is_integer() or abs(first) >= 2**31:
        raise ValueError(f"the class must be a whole number, got {first:g}")
    if len(rest) == 4:
        cx, cy, w, h = rest
        return int(first), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    if len(rest) >= 6 and len(rest) % 2 == 0:
        xs, ys = rest[0::2], rest[1::2]
        return int(first), (min(xs), min(ys), max(xs), max(ys))
    raise ValueError(f"expected a class and 4 numbers, or the corners of a polygon, got {len(rest) + 1} numbers")


def save_yolo(dataset: Dataset, folder: Path | str, *, link: bool = False) -> Path:
    """Write a dataset in the YOLO layout: `images/SPLIT`, `labels/SPLIT` and `data.yaml`.

    The folder appears at once and whole. Pictures of one name get `_2`, `_3`, … . A picture without objects gets
    an empty label file. Ten digits keep boxes to better than a thousandth of a pixel.

    Args:
        folder: must not exist, or be empty.
        link: symbolic links to the pictures instead of copies.

    Returns:
        The folder.

    Raises:
        DataError: the folder is not empty or lies inside the dataset's own; nothing to save.
        ResourceError: the disk is full or may not be written.
    """
    folder = Path(folder)
    with staged_folder([dataset], folder) as stage:
        write_yolo(dataset, stage, link)
    return folder


def write_yolo(dataset: Dataset, folder: Path, link: bool) -> None:
    """What `save_yolo` writes, into an empty folder that is there already."""
    spec: dict[str, object] = {}
    for split, samples in dataset.splits.items():
        if not samples:
            continue
        spec[split] = f"images/{split}"
        labels = folder / "labels" / split
        labels.mkdir(parents=True)
        for sample, name in zip(samples, unique_names(samples, set()), strict=True):
            put_picture(sample.image, folder / "images" / split / name, link)
            (labels / name).with_suffix(".txt").write_text(_label_text(sample), encoding="utf-8")
    spec["names"] = dict(enumerate(dataset.names))
    if dataset.annotates != frozenset(dataset.names):
        spec["annotates"] = [name for name in dataset.names if name in dataset.annotates]
    text = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def _label_text(sample: Sample) -> str:
    size = np.array([sample.width, sample.height], dtype=np.float64)
    corners = sample.xyxy.astype(np.float64)
    rows = np.hstack([(corners[:, :2] + corners[:, 2:]) / 2 / size, (corners[:, 2:] - corners[:, :2]) / size])
    lines = (
        f"{class_id} " + " ".join(f"{value:.10f}" for value in row)
        for class_id, row in zip(sample.class_id.tolist(), rows.tolist(), strict=True)
    )
    return "".join(f"{line}\n" for line in lines)
