"""Which node was first there in which round of a run, with the state of the run before that.

A node that is withdrawn later had no part in the states before that: it was not asked, did not test, and did not even
count among those from whom a cohort is drawn.

    joined/joined.json              {"complete": true, "first": {"A": 0, "D": 6}}: D was first there in the round with
                                    index 6; not complete if the record was begun later than the run
    joined/round-0006.safetensors   the checkpoint of the six rounds before; none for 0, where a run starts
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manyeyes.config import NODE_ID_PATTERN
from manyeyes.errors import RunError
from manyeyes.weights import write_atomically

__all__ = ["Joined"]

_FILE = "joined.json"


class Joined:
    """The record of one run.

    Args:
        folder: the run's checkpoints.

    Raises:
        RunError: the record is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._checkpoints, self._folder = folder, folder / "joined"
        self._complete, self._rounds = self._load()

    def never_there(self, node: str) -> bool:
        """Whether a node certainly had no part in the run."""
        return self._complete and bool(self._rounds) and node not in self._rounds

    def knows(self, node: str) -> bool:
        """Whether it is certain in which round a node was first there."""
        return self._complete and node in self._rounds

    def round_of(self, node: str) -> int:
        """Index of the round in which a node was first there; 0 for one of which that is not known."""
        return self._rounds.get(node, 0)

    def checkpoint(self, round: int) -> Path:
        """Where the state before a round is kept, if that is not the first."""
        return self._folder / f"round-{round:04d}.safetensors"

    def note(self, nodes: Iterable[str], round: int) -> None:
        """Write down those who are there for the first time, and keep the state before this round.

        Raises:
            ResourceError: the record cannot be written.
        """
        new = [node for node in nodes if node not in self._rounds]
        if not new:
            return
        if round and not self._rounds:
            self._complete = False
        first = round if self._complete else 0
        if first:
            _link(self._checkpoints / self.checkpoint(first).name, self.checkpoint(first))
        self._write({**self._rounds, **dict.fromkeys(new, first)})

    def go_back(self, round: int) -> None:
        """The run goes on from an earlier round: forget who came after it."""
        if any(first > round for first in self._rounds.values()):
            self._write({node: first for node, first in self._rounds.items() if first <= round})

    def copy_before(self, node: str, folder: Path) -> None:
        """Give another run, whose checkpoints are in `folder`, all that was there before a node came."""
        until = self.round_of(node)
        earlier = {other: first for other, first in self._rounds.items() if first <= until and other != node}
        copy = Joined(folder)
        copy._complete = self._complete
        for first in sorted({*earlier.values(), until} - {0}):
            _link(self.checkpoint(first), copy.checkpoint(first))
        copy._write(earlier)
        _link(self.checkpoint(until), folder / self.checkpoint(until).name)

    def _load(self) -> tuple[bool, dict[str, int]]:
        path = self._folder / _FILE
        if not path.exists():
            return True, {}
        try:
            record = _Record.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise RunError(
                "is damaged", file=path, cure="Delete it: a rebuild without a node then starts from the beginning."
            ) from error
        return record.complete, record.first

    def _write(self, rounds: Mapping[str, int]) -> None:
        self._rounds = dict(rounds)
        record = _Record(complete=self._complete, first=self._rounds)
        write_atomically(self._folder / _FILE, record.model_dump_json(indent=1) + "\n")
        for path in self._folder.glob("round-*.safetensors"):
            if path not in {self.checkpoint(first) for first in rounds.values()}:
                path.unlink()


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    complete: bool
    first: dict[Annotated[str, Field(pattern=NODE_ID_PATTERN)], Annotated[int, Field(ge=0)]]


def _link(source: Path, target: Path) -> None:
    """The same file in another place; a checkpoint is never changed once it is written."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:  # a file system without links
        shutil.copyfile(source, part)
    part.replace(target)
