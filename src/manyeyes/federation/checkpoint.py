"""A run on disk: one safetensors file a finished round, whole or not there.

    round-0003.safetensors   after round 3: weights, the strategy's state, totals, the settings it was made with,
                             and the best weights so far if these are another round's

The last two are kept. The highest one that can be read is where a run goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from manyeyes.errors import RunError, WeightsError
from manyeyes.federation.strategies import State
from manyeyes.report.runlog import Emit
from manyeyes.weights import Weights, load_weights, save_weights

__all__ = [
    "Best",
    "RoundState",
    "Totals",
    "check_same_settings",
    "load_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
]

_FORMAT = "manyeyes-checkpoint-3"
_KEPT = 2
_WEIGHTS = "weights/"
_STRATEGY = "strategy/"
_BEST = "best/"


@dataclass(frozen=True, slots=True)
class Totals:
    """What a run has cost so far: bytes as sent, seconds at work."""

    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Best:
    """The best weights so far.

    Attributes:
        weights: the global weights after that round.
        round: rounds finished when they were made.
        score: mean of the sites' validation mAP50, in [0, 1].
    """

    weights: Weights
    round: int
    score: float


@dataclass(frozen=True, slots=True)
class RoundState:
    """Everything the next round needs.

    Attributes:
        weights: the global weights.
        strategy: the strategy's state.
        round: rounds finished.
        totals: bytes and seconds of all rounds finished.
        settings: what the result depends on, JSON-ready; a resume must find the same.
        last_merged: index of the last round in which an update of a node was merged, by node.
        best: the best weights so far; None where the last are kept or none has been tested.
        contributions: score of each node whose worth was judged (`contribution.py`), by node.
    """

    weights: Weights
    strategy: State = field(default_factory=dict)
    round: int = 0
    totals: Totals = Totals()
    settings: Mapping[str, Any] = field(default_factory=dict)
    last_merged: Mapping[str, int] = field(default_factory=dict)
    best: Best | None = None
    contributions: Mapping[str, float] = field(default_factory=dict)


def save_checkpoint(folder: Path, state: RoundState) -> Path:
    """Write the state of a finished round, then remove all but the last two.

    Raises:
        ResourceError: the file cannot be written; the checkpoints before it are untouched.
    """
    arrays = {f"{_WEIGHTS}{name}": array for name, array in state.weights.items()}
    arrays |= {f"{_STRATEGY}{name}": array for name, array in state.strategy.items()}
    best = state.best
    if best and best.round != state.round:
        arrays |= {f"{_BEST}{name}": array for name, array in best.weights.items()}
    about = json.dumps(
        {
            "round": state.round,
            "totals": asdict(state.totals),
            "settings": dict(state.settings),
            "last_merged": dict(state.last_merged),
            "best": {"round": best.round, "score": best.score} if best else None,
            "contributions": dict(state.contributions),
        }
    )
    metadata = {"format": _FORMAT, "about": about, "sha256": _digest(arrays, about)}
    path = folder / f"round-{state.round:04d}.safetensors"
    save_weights(path, arrays, metadata)
    # A process killed while it wrote leaves the temporary file behind.
    for obsolete in _checkpoints(folder)[:-_KEPT] + list(folder.glob(".round-*")):
        obsolete.unlink()
    return path


def load_checkpoint(folder: Path, emit: Emit) -> RoundState | None:
    """The state of the last finished round; None if no round was ever finished.

    A newest file that is damaged is passed over with a "warning" event.

    Raises:
        RunError: there are checkpoints and none can be read.
    """
    paths = _checkpoints(folder)
    for path in reversed(paths):
        try:
            return read_checkpoint(path)
        except WeightsError as error:
            emit("warning", reason=f"{error}; going back to the checkpoint before it")
    if paths:
        raise RunError("no checkpoint can be read", file=folder, cure="Start the run anew in another output folder.")
    return None


def check_same_settings(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose result would be neither the old nor the new one.

    Raises:
        RunError: names every key that differs, with both values.
    """
    before, after = _flat(saved), _flat(now)
    different = [
        f"{key} was {before.get(key, 'absent')} and is {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if key not in before or key not in after or before[key] != after[key]
    ]
    if different:
        raise RunError(
            f"the run cannot be resumed with other settings: {'; '.join(different)}",
            cure="Set them back, or start a run with another name.",
        )


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.safetensors"), key=lambda path: (len(path.name), path.name))


def read_checkpoint(path: Path) -> RoundState:
    """The state in one file.

    Raises:
        WeightsError: it is missing, damaged, or of another version.
    """
    arrays, metadata = load_weights(path)
    about = metadata.get("about", "")
    if metadata.get("format") != _FORMAT or metadata.get("sha256") != _digest(arrays, about):
        raise WeightsError("not a checkpoint of this version, or damaged", file=path)
    values = json.loads(about)
    weights = _with_prefix(arrays, _WEIGHTS)
    best = Best(_with_prefix(arrays, _BEST) or weights, **values["best"]) if values["best"] else None
    return RoundState(
        weights,
        _with_prefix(arrays, _STRATEGY),
        values["round"],
        Totals(**values["totals"]),
        values["settings"],
        values["last_merged"],
        best,
        values["contributions"],
    )


def _with_prefix(arrays: Weights, prefix: str) -> Weights:
    return Weights({name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)})


def _digest(arrays: Mapping[str, Any], about: str) -> str:
    """A flipped bit on the disk leaves a readable file; this finds it."""
    return hashlib.sha256(f"{Weights(arrays).value_hash}{about}".encode()).hexdigest()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 0.1}} → {"train.lr": 0.1}; lists as JSON has them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
