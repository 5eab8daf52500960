"""Folders that one process at a time may work in."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manyeyes.errors import ResourceError

__all__ = ["one_process"]

_FILE = "in-use"


@contextmanager
def one_process(folder: Path, *, otherwise: str, cure: str) -> Iterator[None]:
    """No other process of this machine is in this block for the same folder; a lock ends with its process.

    Args:
        folder: made if it is missing.
        otherwise: the reason that is told where another process has it.
        cure: and what to do about it.

    Raises:
        ResourceError: another process has it, or the folder cannot be written.
    """
    path = folder / _FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise ResourceError(f"cannot be written ({error.strerror})", file=path) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ResourceError(otherwise, file=folder, cure=cure) from error
        yield
