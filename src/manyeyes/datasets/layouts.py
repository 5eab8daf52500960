"""Read and write a dataset whatever its layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from manyeyes.datasets.coco import find_coco, load_coco, save_coco
from manyeyes.datasets.labels import checked_annotates
from manyeyes.datasets.sample import Dataset, ProblemHandler, raise_problem
from manyeyes.datasets.staging import staged_folder
from manyeyes.datasets.voc import is_voc, load_voc, save_voc
from manyeyes.datasets.yolo import find_yaml, load_yolo, save_yolo, write_yolo
from manyeyes.errors import DataError, nearest

__all__ = ["LAYOUTS", "find_layout", "load_dataset", "save_dataset", "save_sites"]

LAYOUTS = ("yolo", "coco", "voc")

_LOAD = {"yolo": load_yolo, "coco": load_coco, "voc": load_voc}
_SAVE = {"yolo": save_yolo, "coco": save_coco, "voc": save_voc}


def find_layout(path: Path | str) -> str:
    """Recognise the layout by looking: "yolo", "coco" or "voc", in this order if several are there.

    Raises:
        DataError: there is nothing at `path`, or none of the layouts.
    """
    path = Path(path)
    if not path.exists():
        raise DataError("does not exist", file=path, cure="Check the path of the dataset.")
    if find_yaml(path) is not None:
        return "yolo"
    if find_coco(path):
        return "coco"
    if is_voc(path):
        return "voc"
    raise DataError(
        "no dataset found here; looked for YOLO (data.yaml, or one .yaml), COCO (annotations/instances_SPLIT.json, "
        "or SPLIT/_annotations.coco.json) and Pascal VOC (JPEGImages/ with Annotations/)",
        file=path,
        cure="Name the dataset's own folder, or its YAML.",
    )


def load_dataset(
    path: Path | str, *, annotates: Iterable[str] | None = None, on_problem: ProblemHandler = raise_problem
) -> Dataset:
    """Read a dataset whatever its layout.

    Args:
        path: the dataset's folder, or the YAML of a YOLO dataset.
        annotates: names of the classes that were looked for in these pictures; instead of what the dataset says.
        on_problem: called for each problem; if it returns, the box or picture is left out and reading goes on.
            The default raises at the first error and lets warnings pass.

    Raises:
        DataError: no dataset, one that cannot be used, an unknown name in `annotates`, or a problem that
            `on_problem` does not take.
    """
    dataset = _LOAD[find_layout(path)](path, on_problem=on_problem)
    if annotates is None:
        return dataset
    return dataclasses.replace(dataset, annotates=checked_annotates(annotates, dataset.names, Path(path)))


def save_dataset(dataset: Dataset, folder: Path | str, layout: str = "yolo", *, link: bool = False) -> Path:
    """Write a dataset into a new folder; it appears at once and whole.

    Args:
        folder: must not exist, or be empty, and lie outside the dataset's own folder.
        layout: one of `LAYOUTS`.
        link: symbolic links to the pictures instead of copies.

    Returns:
        The folder.

    Raises:
        DataError: an unknown layout, a folder that is not empty, or nothing to save.
        ResourceError: the disk is full or may not be written.
    """
    if layout not in _SAVE:
        close = nearest(layout, LAYOUTS)
        hint = f"Did you mean {close!r}?" if close else f"Known are {', '.join(LAYOUTS)}."
        raise DataError(f"there is no layout {layout!r}", cure=hint)
    return _SAVE[layout](dataset, folder, link=link)


def save_sites(
    datasets: Sequence[Dataset], folder: Path | str, *, names: Sequence[str] | None = None, link: bool = False
) -> list[Path]:
    """Write one dataset a site, in the YOLO layout, into a new folder; all of them appear at once or none does.

    Args:
        datasets: one a site, e.g. from `split_dataset`.
        folder: must not exist, or be empty, and lie outside the datasets' own folders.
        names: the sites' folders inside it; "site_0", "site_1", … if None.
        link: symbolic links to the pictures instead of copies.

    Returns:
        The sites' folders, in the order of the datasets.

    Raises:
        DataError: no site, or one without pictures; names that cannot be folders; a folder that is not empty.
        ResourceError: the disk is full or may not be written.
    """
    folder = Path(folder)
    if not datasets:
        raise DataError("there is no site to save", file=folder)
    sites = _site_folders(len(datasets), names)
    with staged_folder(datasets, folder) as stage:
        for site, dataset in zip(sites, datasets, strict=True):
            (stage / site).mkdir()
            write_yolo(dataset, stage / site, link)
    return [folder / site for site in sites]


def _site_folders(count: int, names: Sequence[str] | None) -> list[str]:
    if names is None:
        return [f"site_{index}" for index in range(count)]
    if len(names) != count:
        raise DataError(f"{count} sites need as many names, got {len(names)}", key="names")
    for name in names:
        # No hidden folders, and nothing that leads out of the folder, on Windows either.
        if not name.strip() or not name.isprintable() or name.startswith(".") or set(name) & set("/\\:"):
            raise DataError(
                f"{name!r} cannot be the name of a site's folder", key="names", cure="Use letters, digits, - and _."
            )
    if len({name.casefold() for name in names}) != count:
        raise DataError(f"two sites share a name, got {', '.join(names)}", key="names", cure="Rename one of them.")
    return list(names)
