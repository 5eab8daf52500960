"""Arrays that a node keeps from round to round, one file for each round that made them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from manyeyes.weights import Weights, load_weights, save_weights

__all__ = ["RoundStates"]

# The server keeps two checkpoints. Resumed from the older one, it asks again for the round before the last, and the
# node must then start from what it had before that round.
_KEPT = 3


class RoundStates:
    """One kind of state in a node's folder.

    A state is named by the round that made it: a coordinator that resumes from an older checkpoint asks for rounds
    again, and the node must then go on from what it had before them.

    Args:
        folder: the node's state folder; made when something is kept.
        kind: first part of the file names, "personal" for example.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self._kind = folder, kind

    def rounds(self) -> list[int]:
        """Indices of the rounds whose states are there, in order."""
        return sorted(int(path.stem.removeprefix(f"{self._kind}-")) for path in self._folder.glob(f"{self._kind}-*"))

    def path(self, round: int) -> Path:
        """The file of one round's state."""
        return self._folder / f"{self._kind}-{round:06d}.safetensors"

    def load(self, round: int) -> Weights:
        """The state of one round.

        Raises:
            WeightsError: the file is missing or damaged.
        """
        return load_weights(self.path(round))[0]

    def before(self, round: int) -> Weights | None:
        """The newest state that a round before this one made, or None.

        Raises:
            WeightsError: the file is damaged.
        """
        earlier = [index for index in self.rounds() if index < round]
        return self.load(earlier[-1]) if earlier else None

    def save(self, round: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write a round's state, atomically.

        Raises:
            ResourceError: it cannot be written.
        """
        save_weights(self.path(round), arrays)

    def forget_others(self, round: int, *, also_before: int = 0) -> None:
        """Delete all but the newest up to a round, which a resumed run may ask for; later ones are of a run that was
        begun again.

        Args:
            round: the last round.
            also_before: what `before` answers for this round is kept too.
        """
        past = [index for index in self.rounds() if index <= round]
        needed = [index for index in past if index < also_before]
        self.keep_only(past[-_KEPT:] + needed[-1:])

    def keep_only(self, rounds: Collection[int]) -> None:
        """Delete the states of all other rounds."""
        for index in self.rounds():
            if index not in rounds:
                self.path(index).unlink()
