"""Pictures that a site's own people corrected, over its own untouched folder: each a JPEG with its boxes beside it.

They lie in the state folder of the site's server and are training pictures of its node from its next round on.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from manyeyes.datasets.sample import Dataset, Sample
from manyeyes.errors import ResourceError
from manyeyes.weights import write_atomically

__all__ = ["OVERLAY", "Added", "MarkedBox", "Overlay"]

OVERLAY = "overlay"
"""Name of the overlay's folder in the state folder of a server."""

_ID = re.compile(r"[0-9a-f]{16}")

_log = logging.getLogger(__name__)


class MarkedBox(BaseModel):
    """An object that somebody marked: its class by name, its corners in pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: str = Field(alias="class", max_length=200)
    xyxy: tuple[float, float, float, float] = Field(description="corners in pixels: left, top, right, bottom")


class _About(BaseModel):
    """The file beside a picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(ge=1)
    height: int = Field(ge=1)
    boxes: tuple[MarkedBox, ...]
    annotates: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _looked_for(self) -> Self:
        if unknown := {box.name for box in self.boxes} - set(self.annotates):
            raise ValueError(f"marks {sorted(unknown)}, which were not looked for")
        return self


@dataclass(frozen=True, slots=True)
class Added:
    """A picture of the overlay.

    Attributes:
        image: path of the JPEG.
        width, height: in pixels.
        boxes: all objects in it of the classes that were looked for; none in a picture of the background alone.
        annotates: classes that were looked for.
    """

    image: Path
    width: int
    height: int
    boxes: tuple[MarkedBox, ...]
    annotates: tuple[str, ...]

    def sample(self, names: Sequence[str]) -> Sample:
        """As a training picture of a dataset with these classes, all of its own among them."""
        return Sample(
            self.image,
            self.width,
            self.height,
            np.array([box.xyxy for box in self.boxes], dtype=np.float32).reshape(-1, 4),
            np.array([names.index(box.name) for box in self.boxes], dtype=np.int64),
            frozenset(names.index(name) for name in self.annotates),
        )


class Overlay:
    """A folder of added pictures; a server writes it, and its site's node reads it in another process.

    Args:
        folder: made when the first picture comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def add(
        self, id: str, jpeg: bytes, size: tuple[int, int], boxes: Sequence[MarkedBox], annotates: Sequence[str]
    ) -> None:
        """Add a picture, or take it for one that was added before.

        Args:
            id: 16 hexadecimal digits, by which it can be removed.
            jpeg: the picture's file.
            size: (width, height) in pixels.
            boxes: inside the picture; their classes are among `annotates`.
            annotates: classes that were looked for.

        Raises:
            ResourceError: the folder cannot be written.
        """
        about = _About(width=size[0], height=size[1], boxes=tuple(boxes), annotates=tuple(annotates))
        with self._lock:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ResourceError(f"cannot be written ({error.strerror})", file=self._folder) from error
            # Whoever reads looks for the second file: the picture is whole by then.
            write_atomically(self._folder / f"{id}.jpg", jpeg)
            write_atomically(self._folder / f"{id}.json", about.model_dump_json(by_alias=True, indent=1) + "\n")

    def remove(self, id: str) -> None:
        """Take a picture out, if it is there.

        Raises:
            ResourceError: the folder cannot be written.
        """
        with self._lock:
            try:
                for suffix in (".json", ".jpg"):
                    (self._folder / f"{id}{suffix}").unlink(missing_ok=True)
            except OSError as error:
                raise ResourceError(f"cannot be written ({error.strerror})", file=self._folder) from error

    @property
    def version(self) -> tuple[tuple[str, int], ...]:
        """Another one when pictures were added, corrected or removed, by whichever process."""
        found = []
        for about in self._abouts():
            with suppress(OSError):  # was removed just now
                found.append((about.name, about.stat().st_mtime_ns))
        return tuple(found)

    @property
    def count(self) -> int:
        """How many pictures there are."""
        return len(self._abouts())

    def pictures(self) -> list[Added]:
        """All pictures, in the order of their ids; a damaged one is named in the log and passed over."""
        found = []
        for file in self._abouts():
            try:
                about = _About.model_validate_json(file.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ValidationError) as error:
                _log.warning("%s is passed over: %s", file, error)
                continue
            image = file.with_suffix(".jpg")
            if image.is_file():
                found.append(Added(image, about.width, about.height, about.boxes, about.annotates))
        return found

    def over(self, data: Dataset) -> Dataset:
        """A site's dataset with the added pictures among those to train on; itself where there are none.

        Classes are matched by name. Those that only added pictures know come after the dataset's own, and are looked
        for in these pictures alone.
        """
        added = self.pictures()
        if not added:
            return data
        wanted = dict.fromkeys((*data.names, *(name for picture in added for name in picture.annotates)))
        names = tuple(wanted)
        train = [*data.split("train"), *(picture.sample(names) for picture in added)]
        return replace(data, names=names, splits={**data.splits, "train": train})

    def _abouts(self) -> list[Path]:
        return sorted(file for file in self._folder.glob("*.json") if _ID.fullmatch(file.stem))
