"""How every layout is saved: into a temporary folder beside the target, which it replaces once it is whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from manyeyes.datasets.sample import Dataset, Sample
from manyeyes.errors import DataError, ResourceError

__all__ = ["put_picture", "staged_folder", "unique_names"]


@contextmanager
def staged_folder(datasets: Sequence[Dataset], folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place when all is written.

    Args:
        datasets: what is going to be written into it.
        folder: must not exist, or be empty.

    Raises:
        DataError: `folder` has something in it, or lies inside the own folder of one of the datasets; nothing to save.
        ResourceError: it cannot be written.
    """
    _refuse_full(folder)
    for dataset in datasets:
        _refuse_dataset(dataset, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            stage = Path(temporary) / "new"
            stage.mkdir()
            yield stage
            if folder.exists():
                folder.rmdir()
            stage.rename(folder)
    except OSError as error:
        raise ResourceError(
            f"the dataset cannot be written: {error}", file=folder, cure="Check the disk and the permissions."
        ) from error


def _refuse_full(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            "is not empty, and nothing is overwritten", file=folder, cure="Name a folder that does not exist yet."
        )


def _refuse_dataset(dataset: Dataset, folder: Path) -> None:
    source = dataset.root if dataset.root.is_dir() else dataset.root.parent
    if source.resolve() in folder.resolve().parents and dataset.root.exists():
        raise DataError(
            f"lies inside the dataset {source}, which is never written to", file=folder, cure="Name a folder elsewhere."
        )
    if not any(dataset.splits.values()):
        raise DataError("there is no picture to save", file=folder)
    looked_for = frozenset(index for index, name in enumerate(dataset.names) if name in dataset.annotates)
    for samples in dataset.splits.values():
        for sample in samples:
            if sample.annotates not in (None, looked_for):
                raise DataError(
                    "the classes looked for differ from picture to picture, which no file layout can hold",
                    file=sample.image,
                    cure="Save pictures with different annotated classes as datasets of their own.",
                )


def unique_names(samples: Sequence[Sample], taken: set[str]) -> list[str]:
    """A file name for each picture whose stem, lower-cased, is not in `taken` yet: labels go by the stem."""
    names = []
    for sample in samples:
        stem, count = sample.image.stem, 1
        while stem.lower() in taken:
            count += 1
            stem = f"{sample.image.stem}_{count}"
        taken.add(stem.lower())
        names.append(stem + sample.image.suffix)
    return names


def put_picture(source: Path, target: Path, link: bool) -> None:
    """Copy a picture, or point to it with a symbolic link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)
