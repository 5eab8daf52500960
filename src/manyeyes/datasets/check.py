"""The dataset doctor: everything a careful person would want to know before a site trains on its pictures."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manyeyes.datasets.layouts import find_layout, load_dataset
from manyeyes.datasets.pictures import PICTURE_ERRORS, is_picture
from manyeyes.datasets.sample import SPLITS, Dataset, Problem, ProblemHandler, Reporter, Sample, raise_problem
from manyeyes.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "NEAR_DISTANCE",
    "BoxSizes",
    "CheckReport",
    "Duplicate",
    "SplitReport",
    "check_dataset",
    "check_decodable",
]

NEAR_DISTANCE = 4
"""Pictures whose 64-bit difference hashes differ in at most this many bits count as near duplicates."""

_SMALL_PX2, _MEDIUM_PX2 = 32.0**2, 96.0**2
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Hashes of pictures with less contrast than this many grey levels are noise: all black pictures look alike.
_MIN_CONTRAST = 12
_FOREIGN_SUFFIXES = frozenset({".avif", ".dng", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".mpo", ".raw"})
_SHOWN_FILES = 3

_CURES = {
    "class-without-box": "If nobody looked for it in these pictures, leave it out of `annotates`; else add pictures.",
    "crowd": "Nothing to do, unless single objects can be marked instead.",
    "duplicate-box": "Delete the second line.",
    "duplicate-picture": "Delete it from one of the splits: scores on pictures seen in training are too good.",
    "empty-split": "Correct the split's path, or delete the split.",
    "layout": "Correct the file as the message says.",
    "malformed": "Correct the line or export the labels again.",
    "missing-label": "If the picture shows no object, add an empty label file; else label it.",
    "missing-picture": "Restore the picture or delete its entry.",
    "missing-split": "Correct the path in the YAML: it starts at the YAML's folder.",
    "near-duplicate": "Look at the pair; frames of one video belong into one split.",
    "no-labels": "Put the labels where the message says, or correct the paths.",
    "orphaned-label": "Restore the picture or delete the label.",
    "outside": "Export the labels again; pixels instead of shares are the usual cause.",
    "size-differs": "The picture was resized or turned after labelling: label it again or restore it.",
    "truncated": "Restore the picture from its source, delete it, or train with --skip-broken.",
    "unknown-class": "Add the class to the names, or correct the label.",
    "unlisted-picture": "Add it to a split, or move it away.",
    "unreadable": "Restore the picture from its source, delete it, or train with --skip-broken.",
    "unsupported-format": "Convert it to JPEG or PNG.",
    "zero-area": "Delete the box or draw it again.",
}


@dataclass(frozen=True, slots=True)
class BoxSizes:
    """How large the boxes of a split are.

    Attributes:
        small, medium, large: counts by COCO's bounds, 32² and 96² pixels of the picture as it is on disk.
        relative: quantile in percent, e.g. "50" -> square root of (area of box / area of picture); empty if no box.
    """

    small: int
    medium: int
    large: int
    relative: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SplitReport:
    """Counts of one split.

    Attributes:
        pictures: usable pictures, those without objects included.
        background: pictures without objects.
        boxes: class name -> boxes.
        pictures_with: class name -> pictures that show it.
        sizes: see `BoxSizes`.
    """

    pictures: int
    background: int
    boxes: Mapping[str, int]
    pictures_with: Mapping[str, int]
    sizes: BoxSizes


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A picture that is in two splits.

    Attributes:
        first, second: paths; the split of `first` stands earlier in train, val, test.
        splits: the two splits.
        distance: bits in which the difference hashes differ; None if the files are equal byte for byte.
    """

    first: Path
    second: Path
    splits: tuple[str, str]
    distance: int | None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What the doctor found.

    Attributes:
        root: the dataset as it was named.
        layout: "yolo", "coco" or "voc".
        names: class names.
        annotates: those that were looked for.
        splits: counts by split.
        duplicates: pictures in two splits, exact ones and near ones.
        problems: everything met, duplicates included.
    """

    root: Path
    layout: str
    names: tuple[str, ...]
    annotates: frozenset[str]
    splits: Mapping[str, SplitReport]
    duplicates: tuple[Duplicate, ...]
    problems: tuple[Problem, ...]

    @property
    def verdict(self) -> str:
        """One of "ok", "usable" (warnings only) and "broken" (errors: fix them before training)."""
        if not self.problems:
            return "ok"
        return "broken" if any(problem.severity == "error" for problem in self.problems) else "usable"

    @property
    def exit_code(self) -> int:
        """0, or 2 if the dataset is broken."""
        return 2 if self.verdict == "broken" else 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; files are given as they were met, sizes in pixels or shares."""
        return {
            "root": str(self.root),
            "layout": self.layout,
            "verdict": self.verdict,
            "names": list(self.names),
            "annotates": [name for name in self.names if name in self.annotates],
            "splits": {split: _split_dict(report) for split, report in self.splits.items()},
            "near_distance": NEAR_DISTANCE,
            "duplicates": [
                {"first": str(d.first), "second": str(d.second), "splits": list(d.splits), "distance": d.distance}
                for d in self.duplicates
            ],
            "problems": [
                {
                    "kind": problem.kind,
                    "severity": problem.severity,
                    "file": str(problem.file),
                    "key": problem.key,
                    "split": problem.split,
                    "reason": problem.reason,
                    "cure": _CURES.get(problem.kind),
                }
                for problem in self.problems
            ],
        }

    def render(self, console: Console) -> None:
        """Print the report: verdict, counts, box sizes, and the problems by kind with a cure for each."""
        from rich.text import Text

        style = {"ok": "bold green", "usable": "bold yellow", "broken": "bold red"}[self.verdict]
        console.print(Text.assemble((self.verdict.upper(), style), f"  {self.root}  ({self.layout})"), soft_wrap=True)
        if self.splits:
            console.print(_counts_table(self))
            console.print(_sizes_table(self))
        if self.problems:
            console.print(_problems_table(self))
        errors = sum(problem.severity == "error" for problem in self.problems)
        console.print(f"{errors} errors, {len(self.problems) - errors} warnings.")


def check_dataset(
    path: Path | str, *, near_duplicates: bool = True, progress: Callable[[int, int], None] | None = None
) -> CheckReport:
    """Examine a dataset: labels, every picture decoded, counts, sizes, duplicates across splits.

    Duplicates are exact (SHA-256 of the files) or near: the 64-bit difference hash of the grey picture (9 x 8
    pixels, each compared with its right neighbour; Krawetz, "Kind of Like That", 2013) differs in at most
    `NEAR_DISTANCE` bits. Nothing is written.

    Args:
        path: the dataset's folder, or the YAML of a YOLO dataset.
        near_duplicates: look for near duplicates too.
        progress: called with (pictures done, pictures in all).

    Raises:
        DataError: there is no dataset at all. A bad one is reported, not raised.
    """
    path = Path(path)
    layout = find_layout(path)
    problems: list[Problem] = []
    try:
        dataset = load_dataset(path, on_problem=problems.append)
    except DataError as error:
        problems.append(Problem("layout", "error", Path(error.file or path), str(error.reason), error.key))
        return CheckReport(path, layout, (), frozenset(), {}, (), tuple(problems))
    prints = _fingerprints(dataset, problems.append, progress)
    duplicates = tuple(_duplicates(dataset, prints, near_duplicates))
    problems.extend(_duplicate_problem(duplicate) for duplicate in duplicates)
    problems.extend(_unlisted(dataset, {problem.file for problem in problems}))
    problems.extend(_classes_without_box(dataset))
    splits = {split: _split_report(samples, dataset.names) for split, samples in dataset.splits.items()}
    return CheckReport(path, layout, dataset.names, dataset.annotates, splits, duplicates, tuple(problems))


def check_decodable(
    samples: Sequence[Sample], on_problem: ProblemHandler = raise_problem, *, split: str | None = None
) -> tuple[Sample, ...]:
    """Decode every picture to its end, and return the samples whose picture could be.

    OpenCV fills the rest of a truncated JPEG with grey and says nothing, so Pillow decides; OpenCV must manage
    too, as it is what training reads with.

    Args:
        samples: the samples of a split, say.
        on_problem: gets "truncated" or "unreadable" for each bad picture; the default raises.
        split: its name, for messages.

    Raises:
        DataError: a picture cannot be decoded and `on_problem` does not take it.
    """
    good = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for sample, failure in zip(samples, pool.map(_failure, samples), strict=True):
            if failure is None:
                good.append(sample)
            else:
                Reporter(on_problem, sample.image, split).error(*failure)
    return tuple(good)


@dataclass(frozen=True, slots=True)
class _Fingerprint:
    """What identifies a picture; `failure` is the kind and reason if it cannot be decoded."""

    sha256: str = ""
    bits: NDArray[np.bool_] | None = None
    failure: tuple[str, str] | None = None


def _failure(sample: Sample) -> tuple[str, str] | None:
    return _fingerprint(sample.image).failure


def _fingerprint(file: Path) -> _Fingerprint:
    import cv2

    try:
        data = file.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        with Image.open(BytesIO(data)) as image:
            image.load()
            bits = _difference_hash(image)
    except PICTURE_ERRORS as error:
        return _Fingerprint(failure=("truncated", f"the picture cannot be decoded to its end: {error}"))
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    except cv2.error:
        decoded = None
    if decoded is None:
        return _Fingerprint(sha256, failure=("unreadable", "Pillow can decode the picture, but OpenCV cannot"))
    return _Fingerprint(sha256, bits)


def _difference_hash(image: Image.Image) -> NDArray[np.bool_] | None:
    """64 bits; None for a picture with so little contrast that they would be noise."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    if int(np.ptp(grey)) < _MIN_CONTRAST:
        return None
    return np.asarray(grey[:, 1:] > grey[:, :-1]).reshape(64)


def _fingerprints(
    dataset: Dataset, on_problem: ProblemHandler, progress: Callable[[int, int], None] | None
) -> dict[Path, _Fingerprint]:
    splits = {sample.image: split for split, samples in dataset.splits.items() for sample in samples}
    prints = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, (image, found) in enumerate(zip(splits, pool.map(_fingerprint, splits), strict=True), start=1):
            prints[image] = found
            if found.failure:
                Reporter(on_problem, image, splits[image]).error(*found.failure)
            if progress is not None:
                progress(done, len(splits))
    return prints


def _duplicates(dataset: Dataset, prints: Mapping[Path, _Fingerprint], near: bool) -> Iterator[Duplicate]:
    """For each picture of a later split the picture of an earlier one that it repeats, if any."""
    for first, second in combinations([split for split in SPLITS if split in dataset.splits], 2):
        earlier = [sample.image for sample in dataset.splits[first]]
        by_hash = {prints[image].sha256: image for image in reversed(earlier) if prints[image].sha256}
        rest = []
        for sample in dataset.splits[second]:
            same = by_hash.get(prints[sample.image].sha256)
            if same is None:
                rest.append(sample.image)
            else:
                yield Duplicate(same, sample.image, (first, second), None)
        if near:
            yield from _near_duplicates(earlier, rest, (first, second), prints)


def _near_duplicates(
    earlier: Iterable[Path], later: Iterable[Path], splits: tuple[str, str], prints: Mapping[Path, _Fingerprint]
) -> Iterator[Duplicate]:
    firsts = [image for image in earlier if prints[image].bits is not None]
    seconds = [image for image in later if prints[image].bits is not None]
    if not firsts or not seconds:
        return
    # With bits as -1 and 1 the dot product of two hashes is 64 - 2 * their distance.
    signs_first, signs_second = (
        np.array([prints[image].bits for image in images], dtype=np.float32) * 2 - 1 for images in (firsts, seconds)
    )
    for start in range(0, len(seconds), 1024):
        distance = ((64 - signs_second[start : start + 1024] @ signs_first.T) / 2).astype(np.int64)
        for row in np.flatnonzero(distance.min(axis=1) <= NEAR_DISTANCE):
            nearest = int(distance[row].argmin())
            yield Duplicate(firsts[nearest], seconds[start + int(row)], splits, int(distance[row, nearest]))


def _duplicate_problem(duplicate: Duplicate) -> Problem:
    first, second = duplicate.splits
    if duplicate.distance is None:
        kind, reason = "duplicate-picture", f"the same file is in {first}: {duplicate.first.name}"
    else:
        kind = "near-duplicate"
        reason = f"looks like {duplicate.first.name} of {first} ({duplicate.distance} of 64 bits differ)"
    return Problem(kind, "warning", duplicate.second, reason, split=second)


def _unlisted(dataset: Dataset, reported: set[Path]) -> Iterator[Problem]:
    """Pictures beside those of the dataset that no split holds, and those of a format nobody reads."""
    used = {sample.image for samples in dataset.splits.values() for sample in samples}
    for folder in sorted({image.parent for image in used}):
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in _FOREIGN_SUFFIXES:
                yield Problem("unsupported-format", "warning", file, f"{file.suffix} pictures are not read")
            elif is_picture(file) and file not in used and file not in reported:
                yield Problem("unlisted-picture", "warning", file, "the picture is in no split")


def _classes_without_box(dataset: Dataset) -> Iterator[Problem]:
    train = dataset.split("train")
    counts = _boxes_by_class(train, dataset.names)
    for name in dataset.names if train else ():
        if not counts[name] and name in dataset.annotates:
            reason = f"no picture of train shows {name!r}, so all of them teach that it is not there"
            yield Problem("class-without-box", "warning", dataset.root, reason, name, "train")


def _boxes_by_class(samples: Sequence[Sample], names: Sequence[str]) -> dict[str, int]:
    ids = np.concatenate([sample.class_id for sample in samples]) if samples else np.empty(0, np.int64)
    return dict(zip(names, np.bincount(ids, minlength=len(names)).tolist(), strict=True))


def _split_report(samples: Sequence[Sample], names: Sequence[str]) -> SplitReport:
    shown = Counter(class_id for sample in samples for class_id in set(sample.class_id.tolist()))
    return SplitReport(
        pictures=len(samples),
        background=sum(len(sample.class_id) == 0 for sample in samples),
        boxes=_boxes_by_class(samples, names),
        pictures_with={name: shown[index] for index, name in enumerate(names)},
        sizes=_box_sizes(samples),
    )


def _box_sizes(samples: Sequence[Sample]) -> BoxSizes:
    areas = [np.prod(sample.xyxy[:, 2:] - sample.xyxy[:, :2], axis=1, dtype=np.float64) for sample in samples]
    area = np.concatenate(areas) if areas else np.empty(0)
    whole = np.repeat([float(sample.width * sample.height) for sample in samples], [len(each) for each in areas])
    small, medium = int((area < _SMALL_PX2).sum()), int((area < _MEDIUM_PX2).sum())
    quantiles = np.quantile(np.sqrt(area / whole), _QUANTILES).tolist() if len(area) else []
    relative = {f"{100 * q:g}": round(value, 4) for q, value in zip(_QUANTILES, quantiles, strict=False)}
    return BoxSizes(small, medium - small, len(area) - medium, relative)


def _split_dict(report: SplitReport) -> dict[str, Any]:
    sizes = report.sizes
    return {
        "pictures": report.pictures,
        "background": report.background,
        "boxes": dict(report.boxes),
        "pictures_with": dict(report.pictures_with),
        "sizes": {"small": sizes.small, "medium": sizes.medium, "large": sizes.large, "relative": dict(sizes.relative)},
    }


def _plain_table(title: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)


def _counts_table(report: CheckReport) -> Table:
    from rich.text import Text

    table = _plain_table("Boxes (pictures that show the class)")
    table.add_column("")
    for split in report.splits:
        table.add_column(split, justify="right")
    table.add_row("pictures", *(f"{split.pictures:,}" for split in report.splits.values()))
    table.add_row("without objects", *(f"{split.background:,}" for split in report.splits.values()), end_section=True)
    for name in report.names:
        label = Text(name) if name in report.annotates else Text(f"{name} (not annotated)", style="dim")
        cells = (f"{split.boxes[name]:,} ({split.pictures_with[name]:,})" for split in report.splits.values())
        table.add_row(label, *cells)
    return table


def _sizes_table(report: CheckReport) -> Table:
    table = _plain_table("Size of the boxes")
    table.add_column("")
    for heading in ("small\n< 32² px", "medium", "large\n≥ 96² px"):
        table.add_column(heading, justify="right")
    for quantile in _QUANTILES:
        table.add_column(f"{100 * quantile:g} %\nof boxes ≤", justify="right")
    for name, split in report.splits.items():
        sizes = split.sizes
        quantiles = [f"{100 * value:.1f} %" for value in sizes.relative.values()] or ["–"] * len(_QUANTILES)
        table.add_row(name, f"{sizes.small:,}", f"{sizes.medium:,}", f"{sizes.large:,}", *quantiles)
    table.caption = "Right: √(area of the box / area of the picture)."
    table.caption_justify = "left"
    return table


def _problems_table(report: CheckReport) -> Table:
    from rich.text import Text

    by_kind: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in report.problems:
        by_kind[(problem.severity, problem.kind)].append(problem)
    table = _plain_table("Problems")
    for heading in ("", "kind", "count"):
        table.add_column(heading, no_wrap=True)
    table.add_column("where, and what to do", overflow="fold")
    for (severity, kind), found in sorted(by_kind.items()):
        style = "red" if severity == "error" else "yellow"
        lines = Text("\n").join(_problem_line(problem, report.root) for problem in found[:_SHOWN_FILES])
        if len(found) > _SHOWN_FILES:
            lines.append(f"\n… and {len(found) - _SHOWN_FILES:,} more", style="dim")
        lines.append(f"\n→ {_CURES.get(kind, 'See the message.')}", style="cyan")
        table.add_row(Text(severity, style=style), Text(kind), f"{len(found):,}", lines)
    return table


def _problem_line(problem: Problem, root: Path) -> Text:
    from rich.text import Text

    folder = root if root.is_dir() else root.parent
    inside = problem.file != folder and problem.file.is_relative_to(folder)
    file = problem.file.relative_to(folder) if inside else problem.file
    named = "" if problem.file == root and problem.key else str(file)
    where = ": ".join(part for part in (named, problem.key) if part)
    return Text.assemble((where, "bold"), f": {problem.reason}")
