"""What a node knows of itself, as a plain object: written by the node, read by whoever shows it."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from manyeyes.errors import ResourceError
from manyeyes.federation.pause import Pause
from manyeyes.weights import write_atomically

__all__ = ["ROUNDS", "NodeStatus", "RoundDone"]

ROUNDS = "rounds.json"
"""Name of the file in a node's state folder that keeps the rounds it has trained in."""

_MOST_ROUNDS = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RoundDone:
    """A round that this node has trained in.

    Attributes:
        run: name of the run.
        round: from 1.
        time: when the node had done its part, in seconds since 1970.
        seconds: that its training took.
        before, after: mAP50 of the model on this site's validation pictures, as it came into the round and as it came
            out of it, all sites' parts merged; None where the coordinator did not let the node test it.
    """

    run: str
    round: int
    time: float
    seconds: float
    before: float | None = None
    after: float | None = None


_ROUNDS = TypeAdapter(list[RoundDone])


@dataclass(slots=True)
class NodeStatus:
    """Written by one thread and read by others, one value at a time.

    The rounds that were trained in are kept in the node's folder, over its restarts.

    Attributes:
        node_id: its name in the federation.
        coordinator: its address, https://NAME:PORT; empty if that is not known.
        folder: the node's state folder; None where it has none.
        not_ready: why it cannot take part at the moment, in words for the site's own people; None if it can.
        pictures: training pictures.
        round: of the request it was last asked to train for, from 1; None before the first.
        rounds: of the run that it is in; None before the first.
        epoch, epochs: that is being trained, from 1, and how many there are; None while it does not train.
        seconds_left: of this training, as far as can be told.
        training: whether it trains now.
        last_seen: when the coordinator was last heard from, in seconds since 1970; None if not yet.
        answered: requests answered, by kind (fit, evaluate).
        refused: requests refused, by the key of the limit in node.yaml, or data, protocol, resource, defect, other.
        training_seconds: spent in training since the node was started.
        rounds_done: the last thousand rounds it has trained in, the oldest first.
        today: bytes that came in and bytes that were sent today.
    """

    node_id: str
    coordinator: str = ""
    folder: Path | None = None
    not_ready: str | None = "is starting"
    pictures: int = 0
    round: int | None = None
    rounds: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    seconds_left: float | None = None
    training: bool = False
    last_seen: float | None = None
    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    training_seconds: float = 0.0
    rounds_done: deque[RoundDone] = field(default_factory=lambda: deque(maxlen=_MOST_ROUNDS))
    today: Callable[[], tuple[int, int]] = lambda: (0, 0)
    # Run and rounds finished of the model that was tested last, its mAP50, and whether the node has trained since.
    _tested: tuple[str, int] | None = None
    _map50: float = 0.0
    _trained_since: bool = False

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        path = self.folder / ROUNDS
        try:
            self.rounds_done.extend(_ROUNDS.validate_json(path.read_bytes()))
        except FileNotFoundError:
            pass
        except (OSError, ValidationError) as error:
            _log.warning("%s cannot be read, and rounds are counted anew: %s", path, error)

    def heard(self) -> None:
        """The coordinator was heard from just now."""
        self.last_seen = time.time()

    def trained(self, run: str, round: int, seconds: float) -> None:
        """The node's part of a round (from 1) is done."""
        if self._is_last(run, round):  # it is held again
            self.rounds_done.pop()
        before = self._map50 if self._tested == (run, round - 1) else None
        if before is None and self._is_last(run, round - 1):  # known from before a restart
            before = self.rounds_done[-1].after
        self.rounds_done.append(RoundDone(run, round, time.time(), seconds, before))
        self._trained_since = True
        self._keep()

    def tested(self, run: str, round: int, map50: float) -> None:
        """A model was tested on this site's validation pictures, as it was after so many rounds.

        The first one of a round is the model; with contribution weighting others follow, in which one site counts for
        more.
        """
        if self._tested == (run, round) and not self._trained_since:
            return
        self._tested, self._map50, self._trained_since = (run, round), map50, False
        if self._is_last(run, round):
            self.rounds_done[-1] = replace(self.rounds_done[-1], after=map50)
            self._keep()

    def _is_last(self, run: str, round: int) -> bool:
        last = self.rounds_done[-1] if self.rounds_done else None
        return last is not None and (last.run, last.round) == (run, round)

    def _keep(self) -> None:
        if self.folder is None:
            return
        try:
            write_atomically(self.folder / ROUNDS, _ROUNDS.dump_json(list(self.rounds_done), indent=1))
        except ResourceError as error:  # nobody's round is lost by it
            _log.warning("what this node has done is not kept: %s", error)

    @property
    def progress(self) -> Hashable:
        """Another one whenever something changes that people look at."""
        at = (self.round, self.epoch, None if self.seconds_left is None else round(self.seconds_left))
        done = self.rounds_done[-1] if self.rounds_done else None
        paused = self.folder is not None and Pause(self.folder).paused
        return (
            paused,
            self.not_ready,
            self.pictures,
            self.training,
            at,
            done,
            self.answered.total(),
            self.refused.total(),
        )
