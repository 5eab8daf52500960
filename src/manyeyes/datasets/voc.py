"""Pascal VOC: `JPEGImages/`, `Annotations/*.xml` and `ImageSets/Main/SPLIT.txt`.

Coordinates in the files are those of the VOC development kit: numbers of pixels counted from 1, both ends
included, so (1, 1, W, H) is the whole picture. In manyeyes' pixels, counted from the corner of the picture,
that is x1 = xmin - 1, y1 = ymin - 1, x2 = xmax, y2 = ymax (as in Detectron2's `pascal_voc.py`). Tools that
count from 0 are one pixel off, which reading tolerates at the border.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manyeyes.datasets.labels import checked_annotates, checked_boxes, checked_names, read_text, report_orphans
from manyeyes.datasets.pictures import find_pictures, readable_size
from manyeyes.datasets.sample import SPLIT_ALIASES, SPLITS, Dataset, ProblemHandler, Reporter, Sample, raise_problem
from manyeyes.datasets.staging import put_picture, staged_folder, unique_names
from manyeyes.errors import DataError

__all__ = ["is_voc", "load_voc", "save_voc"]

_TAGS = ("xmin", "ymin", "xmax", "ymax")


def is_voc(path: Path) -> bool:
    """Whether a folder has the two folders every VOC dataset has."""
    return (path / "JPEGImages").is_dir() and (path / "Annotations").is_dir()


def load_voc(path: Path | str, *, on_problem: ProblemHandler = raise_problem) -> Dataset:
    """Read a Pascal VOC dataset.

    Class names come from `classes.txt` (one a line) if there is one, else they are all names met, sorted.
    `annotates.txt` beside it names the classes that were looked for, if not all. Without `ImageSets/Main` every
    picture is of the split "train"; `trainval.txt` serves where there is no `train.txt`. Objects marked
    "difficult" or "truncated" are objects like others.

    Args:
        path: the folder that holds `JPEGImages` and `Annotations`.
        on_problem: called for each problem; if it returns, the box or picture is left out and reading goes on.

    Raises:
        DataError: not a VOC dataset, or a problem that `on_problem` does not take.
    """
    path = Path(path)
    if not is_voc(path):
        raise DataError("expected the folders JPEGImages and Annotations", file=path)
    pictures = {
        picture.relative_to(path / "JPEGImages").with_suffix("").as_posix(): picture
        for picture in find_pictures(path / "JPEGImages")
    }
    drafts = {
        split: _read_split(path, split, stems, pictures, on_problem)
        for split, stems in _read_stems(path, pictures, on_problem).items()
    }
    names = _read_names(path, drafts)
    splits = {split: tuple(draft.sample(names, on_problem, split) for draft in each) for split, each in drafts.items()}
    known = {_annotation(path, stem) for stem in pictures}
    report_orphans((path / "Annotations").rglob("*.xml"), known, on_problem)
    listed = _read_list(path / "annotates.txt")
    annotates = checked_annotates(listed, names, path / "annotates.txt") if listed else frozenset(names)
    return Dataset(path, names, splits, annotates)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A picture whose classes are still names."""

    image: Path
    annotation: Path
    size: tuple[int, int]
    boxes: list[tuple[float, ...]]
    classes: list[str]
    keys: list[str]

    def sample(self, names: Sequence[str], on_problem: ProblemHandler, split: str) -> Sample:
        report = Reporter(on_problem, self.annotation, split)
        number = {name: index for index, name in enumerate(names)}
        for name, key in zip(self.classes, self.keys, strict=True):
            if name not in number:
                report.error("unknown-class", f"the class {name!r} is not in classes.txt", key)
        rows = [row for row, name in enumerate(self.classes) if name in number]
        xyxy = np.array([self.boxes[row] for row in rows], dtype=np.float64).reshape(-1, 4)
        class_id = np.array([number[self.classes[row]] for row in rows], dtype=np.int64)
        kept = checked_boxes(xyxy, class_id, [self.keys[row] for row in rows], self.size, len(names), report)
        return Sample(self.image, *self.size, *kept)


def _annotation(path: Path, stem: str) -> Path:
    return path / "Annotations" / f"{stem}.xml"


def _read_list(file: Path) -> list[str]:
    if not file.is_file():
        return []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as text: {error}", file=file) from error
    return [line.strip() for line in lines if line.strip()]


def _read_names(path: Path, drafts: dict[str, list[_Draft]]) -> tuple[str, ...]:
    listed = _read_list(path / "classes.txt")
    if listed:
        return checked_names(listed, path / "classes.txt", "names")
    met = sorted({name for each in drafts.values() for draft in each for name in draft.classes})
    return checked_names(met, path / "Annotations", "names")


def _read_stems(path: Path, pictures: dict[str, Path], on_problem: ProblemHandler) -> dict[str, list[str]]:
    """Stems of the pictures of each split."""
    sets = path / "ImageSets" / "Main"
    stems = {}
    for split in SPLITS:
        options = (*SPLIT_ALIASES[split], *(("trainval",) if split == "train" else ()))
        file = next((sets / f"{name}.txt" for name in options if (sets / f"{name}.txt").is_file()), None)
        if file is not None:
            text = read_text(file, Reporter(on_problem, file, split)) or ""
            stems[split] = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    return stems or {"train": sorted(pictures)}


def _read_split(
    path: Path, split: str, stems: Sequence[str], pictures: dict[str, Path], on_problem: ProblemHandler
) -> list[_Draft]:
    file = path / "ImageSets" / "Main" / f"{split}.txt"
    drafts = []
    for stem in sorted(stems):
        if stem in pictures:
            draft = _read_draft(pictures[stem], _annotation(path, stem), Reporter(on_problem, pictures[stem], split))
            drafts.extend([] if draft is None else [draft])
        else:
            Reporter(on_problem, file, split).error("missing-picture", f"JPEGImages has no picture {stem!r}", stem)
    if not stems:
        Reporter(on_problem, file, split).error("empty-split", "lists no picture", split)
    elif drafts and not any(draft.annotation.is_file() for draft in drafts):
        Reporter(on_problem, path / "Annotations", split).error(
            "no-labels", f"none of {len(drafts)} pictures has an annotation file", split
        )
    return drafts


def _read_draft(picture: Path, annotation: Path, report: Reporter) -> _Draft | None:
    size = readable_size(picture, report)
    if size is None:
        return None
    draft = _Draft(picture, annotation, size, [], [], [])
    if not annotation.is_file():
        report.warning("missing-label", f"no {annotation.name}: the picture counts as one without objects")
        return draft
    report = Reporter(report.handler, annotation, report.split)
    try:
        root = _parse_xml(annotation)
    except (OSError, ET.ParseError, ValueError) as error:
        report.error("malformed", f"the annotation cannot be read: {error}")
        return None
    _warn_of_size(root, size, report)
    for number, item in enumerate(root.findall("object"), start=1):
        _add_object(draft, item, f"object {number}", report)
    return draft


class _NoDoctype(ET.TreeBuilder):
    """Refuses what entity bombs and reading of other files need; annotations have no use for it."""

    def doctype(self, *_: object) -> None:
        raise ValueError("it has a DOCTYPE, which is refused")


def _parse_xml(file: Path) -> ET.Element:
    return ET.fromstring(file.read_bytes(), ET.XMLParser(target=_NoDoctype()))


def _warn_of_size(root: ET.Element, size: tuple[int, int], report: Reporter) -> None:
    stated = tuple((root.findtext(f"size/{tag}") or "0").strip() for tag in ("width", "height"))
    # Some tools leave 0 x 0 behind.
    if stated not in {("0", "0"), tuple(map(str, size))}:
        report.warning(
            "size-differs", f"says {stated[0]} x {stated[1]} px, but the picture has {size[0]} x {size[1]} px", "size"
        )


def _add_object(draft: _Draft, item: ET.Element, key: str, report: Reporter) -> None:
    name = (item.findtext("name") or "").strip()
    texts = [item.findtext(f"bndbox/{tag}") for tag in _TAGS]
    try:
        xmin, ymin, xmax, ymax = (float(text or "") for text in texts)
    except ValueError:
        report.error("malformed", f"bndbox must hold the numbers {', '.join(_TAGS)}, got {texts}", key)
        return
    if not name:
        report.error("malformed", "the object has no name", key)
        return
    draft.boxes.append((xmin - 1, ymin - 1, xmax, ymax))
    draft.classes.append(name)
    draft.keys.append(key)


def save_voc(dataset: Dataset, folder: Path | str, *, link: bool = False) -> Path:
    """Write a dataset in the Pascal VOC layout, with fractions of pixels where boxes have them.

    `classes.txt` keeps the order of the names, `annotates.txt` the classes that were looked for if not all.

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
    taken: set[str] = set()
    with staged_folder([dataset], folder) as stage:
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (stage / part).mkdir(parents=True)
        for split, samples in dataset.splits.items():
            if not samples:
                continue
            names = unique_names(samples, taken)
            for sample, name in zip(samples, names, strict=True):
                put_picture(sample.image, stage / "JPEGImages" / name, link)
                _write_xml(sample, name, dataset.names, _annotation(stage, Path(name).stem))
            _write_list(stage / "ImageSets" / "Main" / f"{split}.txt", [Path(name).stem for name in names])
        _write_list(stage / "classes.txt", dataset.names)
        if dataset.annotates != frozenset(dataset.names):
            _write_list(stage / "annotates.txt", [name for name in dataset.names if name in dataset.annotates])
    return folder


def _write_list(file: Path, lines: Sequence[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_xml(sample: Sample, name: str, names: Sequence[str], file: Path) -> None:
    root = ET.Element("annotation")
    ET.SubElement(root, "folder").text = "JPEGImages"
    ET.SubElement(root, "filename").text = name
    size = ET.SubElement(root, "size")
    for tag, value in (("width", sample.width), ("height", sample.height), ("depth", 3)):
        ET.SubElement(size, tag).text = str(value)
    for class_id, (x1, y1, x2, y2) in zip(sample.class_id.tolist(), sample.xyxy.tolist(), strict=True):
        item = ET.SubElement(root, "object")
        ET.SubElement(item, "name").text = names[class_id]
        ET.SubElement(item, "difficult").text = "0"
        box = ET.SubElement(item, "bndbox")
        for tag, value in zip(_TAGS, (x1 + 1, y1 + 1, x2, y2), strict=True):
            ET.SubElement(box, tag).text = f"{value:.10g}"
    ET.indent(root)
    file.write_bytes(ET.tostring(root, encoding="utf-8"))
