"""Whether a node takes part: its people may pause it for a while, and go on later."""

from __future__ import annotations

from pathlib import Path

from manyeyes.errors import LimitError, ResourceError
from manyeyes.weights import write_atomically

__all__ = ["PAUSED", "Pause"]

PAUSED = "paused"
"""Name of the file in a node's state folder that is there while it is paused."""


class Pause:
    """Kept in the node's state folder, over its restarts.

    Args:
        folder: of the node's state.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / PAUSED

    @property
    def paused(self) -> bool:
        """Whether the node refuses to train."""
        return self._file.exists()

    def pause(self) -> None:
        """Train for no further request; what is begun goes on to its end.

        Raises:
            ResourceError: the folder cannot be written.
        """
        write_atomically(self._file, "Delete this file, or resume on the node's page, and it takes part again.\n")

    def resume(self) -> None:
        """Take part again.

        Raises:
            ResourceError: the folder cannot be written.
        """
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(f"cannot be deleted ({error.strerror})", file=self._file) from error

    def check(self) -> None:
        """Refuse to train while it is paused.

        Raises:
            LimitError: it is; in words for the coordinator's operator.
        """
        if self.paused:
            raise LimitError(
                "this site has paused taking part",
                key="paused",
                cure="Hold the rounds without it until its people resume.",
            )
