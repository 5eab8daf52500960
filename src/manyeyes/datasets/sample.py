"""The one form every dataset layout is read into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyeyes.errors import DataError

__all__ = ["SPLITS", "SPLIT_ALIASES", "Dataset", "Problem", "ProblemHandler", "Reporter", "Sample", "raise_problem"]

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One picture and the objects marked in it.

    Attributes:
        image: path of the picture.
        width, height: size in pixels as the picture is shown (after EXIF rotation).
        xyxy: (n, 4) float32, corners in pixels, x1 <= x2 and y1 <= y2, inside the picture.
        class_id: (n,) int64, indices into the dataset's `names`.
        annotates: class ids that somebody looked for in this picture; None means all of the dataset's `annotates`.
    """

    image: Path
    width: int
    height: int
    xyxy: NDArray[np.float32]
    class_id: NDArray[np.int64]
    annotates: frozenset[int] | None = None

    def __post_init__(self) -> None:
        if self.xyxy.ndim != 2 or self.xyxy.shape[1] != 4 or len(self.xyxy) != len(self.class_id):
            raise DataError(
                f"boxes must be (n, 4) with n class ids, got {self.xyxy.shape} and {self.class_id.shape}",
                file=self.image,
            )


@dataclass(frozen=True, slots=True)
class Dataset:
    """The pictures of one site.

    Attributes:
        root: the file or folder it was read from.
        names: class names; a class id is an index into it.
        splits: "train", "val" and "test", as far as they exist, in the order of the files' names.
        annotates: names of the classes that were looked for in these pictures. An object of another class
            may stand in a picture without a box, so such a picture teaches nothing about that class.
    """

    root: Path
    names: tuple[str, ...]
    splits: Mapping[str, Sequence[Sample]]
    annotates: frozenset[str] = field(default=frozenset())

    def __post_init__(self) -> None:
        if not self.annotates:
            object.__setattr__(self, "annotates", frozenset(self.names))

    def split(self, name: str) -> Sequence[Sample]:
        """The samples of one split; empty if the dataset does not have it."""
        return self.splits.get(name, ())


@dataclass(frozen=True, slots=True)
class Problem:
    """Something a loader met that a careful person would want to know.

    Attributes:
        kind: short fixed word, e.g. "missing-label", "outside", "zero-area", "unreadable".
        severity: "error" (the dataset must not be trained on as it is) or "warning".
        file: the file it was met in.
        reason: one sentence, with the values.
        key: the line, annotation or class it concerns.
        split: the split it belongs to, if any.
    """

    kind: str
    severity: str
    file: Path
    reason: str
    key: str | None = None
    split: str | None = None


ProblemHandler = Callable[[Problem], None]


@dataclass(frozen=True, slots=True)
class Reporter:
    """Hands problems of one file to the caller's handler."""

    handler: ProblemHandler
    file: Path
    split: str | None = None

    def error(self, kind: str, reason: str, key: str | None = None) -> None:
        """Report something the dataset must not be trained on with."""
        self.handler(Problem(kind, "error", self.file, reason, key, self.split))

    def warning(self, kind: str, reason: str, key: str | None = None) -> None:
        """Report something that can be lived with."""
        self.handler(Problem(kind, "warning", self.file, reason, key, self.split))


def raise_problem(problem: Problem) -> None:
    """The loaders' default handler: an error stops the reading, a warning does not.

    Raises:
        DataError: the problem is an error.
    """
    if problem.severity == "error":
        raise DataError(
            problem.reason,
            file=problem.file,
            key=problem.key,
            cure="Run `manyeyes data check` on the folder for the full list.",
        )
