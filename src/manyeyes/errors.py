"""Every error manyeyes raises on purpose.

    ManyeyesError                 exit code 2: the user can mend it
    ├── ConfigError               a configuration file or a --set option
    ├── DataError                 a dataset: layout, labels, pictures
    ├── WeightsError              a checkpoint or a set of weights
    │   └── UpdateRefusedError    an update from a node that must not be merged
    ├── ProtocolError             a message that does not follow the protocol
    ├── LimitError                what a coordinator asks for and a site does not allow
    ├── ResourceError             memory, disk, permissions
    └── RunError                  a run that cannot go on: too few nodes, nothing to resume
        └── AbsentNodesError      too few nodes are there; more may come
    Interrupted                   Ctrl-C or SIGTERM, after the last checkpoint was kept; exit code 130

Anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "AbsentNodesError",
    "ConfigError",
    "DataError",
    "Interrupted",
    "LimitError",
    "ManyeyesError",
    "ProtocolError",
    "ResourceError",
    "RunError",
    "UpdateRefusedError",
    "WeightsError",
    "nearest",
]


class ManyeyesError(Exception):
    """An error with the four things its reader needs.

    Args:
        reason: what is wrong, with the requirement and the value that was given.
        file: the file or folder it stands in.
        key: the key, line or name inside the file, e.g. ``train.lr`` or ``line 3``.
        cure: what to do about it, in the imperative.
    """

    exit_code = 2

    def __init__(
        self, reason: str, *, file: Path | str | None = None, key: str | None = None, cure: str | None = None
    ) -> None:
        self.reason = reason
        self.file = None if file is None else str(file)
        self.key = key
        self.cure = cure
        super().__init__(reason)

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.key) if part)
        text = f"{where}: {self.reason}" if where else self.reason
        if self.cure:
            text = f"{text}{'' if text.endswith(('.', '?', '!')) else '.'} {self.cure}"
        return text


class ConfigError(ManyeyesError):
    """A configuration that cannot be used."""


class DataError(ManyeyesError):
    """A dataset that cannot be used."""


class WeightsError(ManyeyesError):
    """Weights that cannot be used: another architecture, wrong names or shapes, an executable pickle."""


class UpdateRefusedError(WeightsError):
    """An update that must not be merged; the round goes on without it."""


class ProtocolError(ManyeyesError):
    """A message that does not follow the protocol."""


class LimitError(ManyeyesError):
    """What a coordinator asks for and a site does not allow; `key` is that of the limit in the site's node.yaml.

    Reason and cure are told to the coordinator's operator, so neither names a file of the site.
    """


class ResourceError(ManyeyesError):
    """This machine cannot do it: memory, disk or permissions."""


class RunError(ManyeyesError):
    """A run that cannot start or go on."""


class AbsentNodesError(RunError):
    """Too few nodes can be reached or answered; where they may come back, the round can be held again."""


class Interrupted(ManyeyesError):  # noqa: N818 - an instruction of the user, not an error
    """The user stopped the run; what was finished is kept and the reason says how to go on."""

    exit_code = 130


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to `word`, or None if none is close: for "did you mean …?"."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
