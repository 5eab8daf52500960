"""A site's pictures as they lie on its disk: read at the start, looked for before each request.

What its people corrected at its server lies over them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from manyeyes.datasets import Dataset, check_decodable, load_dataset, raise_problem
from manyeyes.datasets.overlay import Overlay
from manyeyes.errors import DataError

__all__ = ["SitePictures", "out_of_reach"]

_log = logging.getLogger(__name__)


class SitePictures:
    """Reads a data set, and again when pictures of it have gone and come back.

    Args:
        path: data.yaml or folder.
        annotates: classes looked for here; default: what the data set says.
        overlay: pictures that were added at the site's server, if it has one.

    Attributes:
        data: as it was read last, with what was added.

    Raises:
        DataError: it cannot be trained on.
    """

    def __init__(self, path: Path, annotates: Sequence[str] | None = None, overlay: Overlay | None = None) -> None:
        self._path, self._annotates, self._overlay = path, annotates, overlay
        self._own = self._read()
        self._take_added()

    def current(self) -> Dataset:
        """The data set, every picture of which is there now; the same object as long as nothing has changed.

        If some are not, it is read again: a disk may be away for a while, and pictures may have been taken out.

        Raises:
            DataError: it cannot be read; the reason names no file.
        """
        if all(sample.image.exists() for samples in self._own.splits.values() for sample in samples):
            if self._overlay and self._overlay.version != self._added:
                self._take_added()
            return self.data
        try:
            self._own = self._read()
        except (DataError, OSError) as error:
            raise out_of_reach(self._path, error) from error
        _log.warning("some pictures had gone; %d are left to train on", len(self._own.split("train")))
        self._take_added()
        return self.data

    def _take_added(self) -> None:
        # Asked before they are read: what comes meanwhile is seen the next time.
        self._added = self._overlay.version if self._overlay else ()
        self.data = self._overlay.over(self._own) if self._overlay else self._own

    def _read(self) -> Dataset:
        data = load_dataset(self._path, annotates=self._annotates)
        for split, samples in data.splits.items():
            check_decodable(samples, raise_problem, split=split)
        if not data.split("train"):
            raise DataError("has no pictures to train on", file=self._path, cure="Give it a `train` split.")
        return data


def out_of_reach(path: Path, why: Exception) -> DataError:
    """What is said of pictures that were there before; the reason is told to the coordinator and names no file."""
    _log.warning("the pictures are not there: %s", why)
    return DataError(
        "this site's pictures cannot be read at the moment",
        file=path,
        cure="Is the disk there? The node goes on when they are back.",
    )
