"""What a site allows, each limit checked at the node before it trains.

A refusal is told to the coordinator's operator, who cannot see the site: it says what is allowed, what was asked for
and what to do, and nothing of the site's files. Its `key` is that of the limit in node.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from manyeyes.config import TrainSection
from manyeyes.errors import LimitError
from manyeyes.federation.hours import DayHours

__all__ = ["Limits"]

_LESS_MEMORY = "Ask for a smaller train.batch or train.imgsz, or for more parts of a batch (train.accumulate)."
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Limits:
    """What a site allows, and where it computes; None for no limit.

    Attributes:
        epochs, batch_size, imgsz: the most that a plan may ask for in one round.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads; None for all this process may use.
        architecture: the only kind of model it trains, such as "yolov8n/cv3=80".
        memory: most gigabytes (10^9 bytes) of main memory that this process may take.
        hours: when it may train.
        min_pictures: least training pictures with which it takes part.
        bytes_per_day: most bytes of requests and answers together.
    """

    epochs: float | None = None
    batch_size: int | None = None
    imgsz: int | None = None
    device: str = "auto"
    threads: int | None = None
    architecture: str | None = None
    memory: float | None = None
    hours: DayHours | None = None
    min_pictures: int | None = None
    bytes_per_day: int | None = None

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes."""
        return None if self.memory is None else int(self.memory * _GB)

    def check_architecture(self, asked: str) -> None:
        """Refuse another kind of model than was agreed.

        Raises:
            LimitError: it is another one.
        """
        if self.architecture is not None and asked != self.architecture:
            raise LimitError(
                f"this site has agreed to train a {self.architecture}, and a {asked} was asked for",
                key="model_path",
                cure="Start from weights of that kind (model.name, model.weights), or agree on another `model_path`.",
            )

    def check_pictures(self, count: int) -> None:
        """Refuse to take part with too few pictures, whose number stays here.

        Raises:
            LimitError: there are fewer than `min_pictures`.
        """
        if self.min_pictures is not None and count < self.min_pictures:
            raise LimitError(
                f"this site has fewer training pictures than the {self.min_pictures} with which it takes part",
                key="min_pictures",
                cure="Hold the rounds without it until it has more.",
            )

    def check_plan(self, train: TrainSection, pictures: int) -> None:
        """Refuse a plan that asks for more than is allowed.

        Args:
            train: what is asked for.
            pictures: training pictures there are.

        Raises:
            LimitError: more epochs, a larger batch or larger pictures than are allowed.
        """
        asked = {"epochs": epochs_of(train, pictures), "batch_size": train.batch, "imgsz": train.imgsz}
        for name, most in (("epochs", self.epochs), ("batch_size", self.batch_size), ("imgsz", self.imgsz)):
            if most is not None and asked[name] > most:
                raise LimitError(
                    f"this site allows {name} up to {most:g}, and {asked[name]:g} were asked for",
                    key=name,
                    cure=f"Ask for less ({_KEYS_OF_PLAN[name]}), or agree on another `{name}`.",
                )

    def check_hours(self, now: datetime, seconds: float | None) -> None:
        """Refuse to train outside the hours, or what would not end in them.

        Args:
            now: local time, naive.
            seconds: how long it will take; None if that is not known.

        Raises:
            LimitError: see above.
        """
        if self.hours is None:
            return
        left = self.hours.seconds_left(now)
        if left <= 0:
            raise LimitError(
                f"this site trains between {self.hours} of its local time, and it is {now:%H:%M} there",
                key="hours",
                cure="Hold the rounds then, or without it.",
            )
        if seconds is not None and seconds > left:
            raise LimitError(
                f"this site trains between {self.hours} of its local time, {_minutes(left)} are left, and a round such"
                f" as this takes about {_minutes(seconds)} there",
                key="hours",
                cure=_SHORTER,
            )

    def check_hours_left(self, now: datetime) -> None:
        """Stop a session whose hours are over.

        Raises:
            LimitError: they are.
        """
        if self.hours is not None and self.hours.seconds_left(now) <= 0:
            raise LimitError(
                f"this site trains between {self.hours} of its local time, which ended before the round did",
                key="hours",
                cure=_SHORTER,
            )

    def check_memory(self, needed: int, train: TrainSection) -> None:
        """Refuse a plan that needs more memory than is allowed, before it takes any.

        Args:
            needed: bytes the process will have with it.
            train: what is asked for.

        Raises:
            LimitError: it cannot fit.
        """
        if self.memory is not None and needed > self.memory * _GB:
            raise LimitError(
                f"this site allows {self.memory:g} GB of memory, and a batch of {train.batch // train.accumulate}"
                f" pictures at {train.imgsz} px needs about {needed / _GB:.1f} GB",
                key="memory",
                cure=_LESS_MEMORY,
            )

    def check_memory_taken(self, taken: int) -> None:
        """Stop a session that has taken more memory than is allowed.

        Raises:
            LimitError: it has.
        """
        if self.memory is not None and taken > self.memory * _GB:
            raise LimitError(
                f"this site allows {self.memory:g} GB of memory, and training took {taken / _GB:.2f} GB",
                key="memory",
                cure=_LESS_MEMORY,
            )

    def check_traffic(self, used: int, answer: int) -> None:
        """Refuse work whose answer would go beyond the bytes of the day.

        Args:
            used: bytes of today so far, the request included.
            answer: most bytes of the answer.

        Raises:
            LimitError: it would.
        """
        if self.bytes_per_day is not None and used + answer > self.bytes_per_day:
            raise LimitError(
                f"this site sends and receives at most {self.bytes_per_day / 1e6:.1f} MB a day, of which"
                f" {used / 1e6:.1f} MB are used, and the answer would take {answer / 1e6:.1f} MB",
                key="bytes_per_day",
                cure="It takes part again after its midnight. Fewer rounds a day or train.freeze take less.",
            )


def epochs_of(train: TrainSection, pictures: int) -> float:
    """Passes over the pictures that a plan asks for, whichever way it says so."""
    return train.steps * train.batch / pictures if train.steps else train.epochs


_SHORTER = "Ask for less (train.epochs or train.steps, train.imgsz), or hold the round when more time is left."
_KEYS_OF_PLAN = {"epochs": "train.epochs or train.steps", "batch_size": "train.batch", "imgsz": "train.imgsz"}


def _minutes(seconds: float) -> str:
    """A duration for people.

    >>> _minutes(42.4), _minutes(1500), _minutes(9000)
    ('42 s', '25 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
