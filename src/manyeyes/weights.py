"""Weights, updates and their order-independent mean.

Signs and units: delta = after − before. Trained tensors are float32 and C-contiguous. Buffers (BatchNorm's means and
variances, its counters) travel as values, not as differences, because their mean is not a mean of differences.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes

from manyeyes.errors import ResourceError, UpdateRefusedError, WeightsError

__all__ = [
    "ExactMean",
    "Update",
    "Weights",
    "add",
    "check_finite",
    "check_same_form",
    "l2_norm",
    "load_weights",
    "save_weights",
    "subtract",
    "write_atomically",
]

Array = NDArray[Any]


class Weights(Mapping[str, Array]):
    """An ordered, read-only mapping from tensor name to array.

    Floating-point arrays are made float32 and C-contiguous; integer arrays (counters) keep their type.

    >>> w = Weights({"head.weight": np.zeros((2, 3))})
    >>> w["head.weight"].dtype, w.num_bytes
    (dtype('float32'), 24)
    """

    __slots__ = ("_arrays",)

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays: dict[str, Array] = {name: _canonical(name, array) for name, array in arrays.items()}

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"Weights({len(self)} tensors, {self.num_bytes / 1e6:.1f} MB, form {self.form_hash[:12]})"

    @property
    def num_bytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(array.nbytes for array in self._arrays.values())

    @property
    def form_hash(self) -> str:
        """SHA-256 over names, shapes and types in the order of the names: equal for weights of one template."""
        form = [(name, list(array.shape), array.dtype.str) for name, array in sorted(self._arrays.items())]
        return hashlib.sha256(json.dumps(form).encode()).hexdigest()

    @property
    def value_hash(self) -> str:
        """SHA-256 over the form and every value: equal only for weights that are the same bit by bit."""
        digest = hashlib.sha256(self.form_hash.encode())
        for _, array in sorted(self._arrays.items()):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def select(self, keep: Callable[[str], bool]) -> Weights:
        """The tensors whose name `keep` accepts, in the same order."""
        return Weights({name: array for name, array in self._arrays.items() if keep(name)})

    def replace(self, other: Mapping[str, Array]) -> Weights:
        """These weights with the tensors of `other` put in place of those of the same name.

        Raises:
            WeightsError: `other` holds a name or shape that these weights do not have.
        """
        for name, array in other.items():
            if name not in self._arrays or self._arrays[name].shape != np.shape(array):
                raise WeightsError(f"cannot replace {name!r}: not a tensor of this model, or of another shape")
        return Weights({name: other.get(name, array) for name, array in self._arrays.items()})


def _canonical(name: str, array: Array) -> Array:
    array = np.asarray(array)
    if array.dtype.kind == "f":
        return np.asarray(array, dtype=np.float32, order="C")
    if array.dtype.kind in "iu":
        return np.asarray(array, order="C")
    raise WeightsError(f"tensor {name!r} has type {array.dtype}; weights are floating-point or integer")


@dataclass(frozen=True, slots=True)
class Update:
    """What a node returns from a round.

    Attributes:
        delta: after − before of each trained tensor, float32.
        buffers: values after training of the buffers of trained layers (BatchNorm).
        num_examples: pictures it was trained on; its weight in the mean.
        metrics: what the node declares about the training (losses, images per second, seconds, …).
        control: change of the node's control variate by tensor, float32; empty unless the strategy is SCAFFOLD.
        step_sum: distance that a constant gradient of one would have gone in this session, the sum of its learning
            rates where there is no momentum; 0 where it is not told.
    """

    delta: Weights
    buffers: Weights
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    control: Weights = field(default_factory=lambda: Weights({}))
    step_sum: float = 0.0


def subtract(after: Mapping[str, Array], before: Mapping[str, Array]) -> Weights:
    """after − before, for the names of `after`, computed in float32."""
    return Weights({name: array - before[name] for name, array in after.items()})


def add(weights: Mapping[str, Array], delta: Mapping[str, Array]) -> Weights:
    """weights + delta, for the names of `delta`; tensors that `delta` does not name stay as they are."""
    return Weights({name: array + delta[name] if name in delta else array for name, array in weights.items()})


def l2_norm(weights: Mapping[str, Array]) -> float:
    """Euclidean norm over all floating-point tensors together, accumulated in float64."""
    squares = (float(np.square(a, dtype=np.float64).sum()) for a in weights.values() if a.dtype.kind == "f")
    return float(np.sqrt(sum(squares)))


def check_same_form(weights: Mapping[str, Array], template: Mapping[str, Array], *, what: str) -> None:
    """Refuse weights whose names, shapes or types differ from the template's.

    Raises:
        UpdateRefusedError: names the first difference.
    """
    unknown = [name for name in weights if name not in template]
    missing = [name for name in template if name not in weights]
    if unknown or missing:
        raise UpdateRefusedError(f"{what} has unknown tensors {unknown[:3]} and lacks {missing[:3]}")
    for name, array in weights.items():
        expected = template[name]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise UpdateRefusedError(
                f"{what}: tensor {name!r} is {array.dtype}{array.shape}, expected {expected.dtype}{expected.shape}"
            )


def check_finite(weights: Mapping[str, Array], *, what: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        UpdateRefusedError: names the first tensor that holds one.
    """
    for name, array in weights.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UpdateRefusedError(f"{what}: tensor {name!r} holds NaN or infinity")


class ExactMean:
    """A weighted mean of arrays that does not depend on the order they arrive in, in constant memory.

    Each value is taken to a fixed-point number of 52 fractional bits held in two int64 limbs (20 bits and below 2^-20),
    multiplied by its integer weight and summed; integer sums are exact, so any order gives the same bits.

    >>> mean = ExactMean()
    >>> mean.add({"w": np.array([1.0])}, 1); mean.add({"w": np.array([4.0])}, 2)
    >>> mean.result()["w"]
    array([3.])
    """

    _HIGH_BITS = 20
    _LOW_BITS = 32
    _LIMIT = 2.0**62

    def __init__(self) -> None:
        self._high: dict[str, NDArray[np.int64]] = {}
        self._low: dict[str, NDArray[np.int64]] = {}
        self._largest: dict[str, float] = {}
        self.total_weight = 0

    def add(self, values: Mapping[str, Array], weight: int, *, of: int | None = None) -> None:
        """Add one set of arrays with a positive integer weight.

        Args:
            values: the arrays.
            weight: what they count by.
            of: what the weight is a part of; the rest of it counts as zeros. Default: the weight.

        Raises:
            UpdateRefusedError: the weight is not positive, the names or shapes differ from those added before, a value
                is not finite, or the sum would leave the range of the accumulator. Nothing is added in that case.
        """
        of = weight if of is None else of
        if weight <= 0:
            raise UpdateRefusedError(f"the weight of an update must be positive, got {weight}")
        if self._high and self._high.keys() != values.keys():
            raise UpdateRefusedError("the update does not name the same tensors as those before it")
        if any(np.shape(values[name]) != sums.shape for name, sums in self._high.items()):
            raise UpdateRefusedError("the update's tensors do not have the shapes of those before it")
        if self.total_weight + of >= 2**30:
            raise UpdateRefusedError(f"the weights of a round must stay below 2^30, got {self.total_weight + of}")
        largest = {name: self._checked_magnitude(name, array, weight) for name, array in values.items()}
        for name, array in values.items():
            scaled = np.multiply(array, 2.0**self._HIGH_BITS, dtype=np.float64)
            high = np.floor(scaled)
            low = np.rint((scaled - high) * 2.0**self._LOW_BITS)
            if name not in self._high:
                self._high[name] = np.zeros(scaled.shape, dtype=np.int64)
                self._low[name] = np.zeros(scaled.shape, dtype=np.int64)
            self._high[name] += high.astype(np.int64) * weight
            self._low[name] += low.astype(np.int64) * weight
        self._largest = largest
        self.total_weight += of

    def without(self, values: Mapping[str, Array], weight: int, *, of: int | None = None) -> ExactMean:
        """The same mean without one set of arrays that was added, as exact as if it had never been.

        Args:
            values, weight, of: as they were given to `add`.
        """
        rest = ExactMean()
        added = ExactMean()
        added.add(values, weight, of=of)
        rest._high = {name: sums - added._high[name] for name, sums in self._high.items()}
        rest._low = {name: sums - added._low[name] for name, sums in self._low.items()}
        rest._largest = self._largest
        rest.total_weight = self.total_weight - added.total_weight
        return rest

    def _checked_magnitude(self, name: str, array: Array, weight: int) -> float:
        magnitude = float(np.abs(array).max()) if array.size else 0.0
        total = self._largest.get(name, 0.0) + (magnitude * 2.0**self._HIGH_BITS + 1) * weight
        if not np.isfinite(magnitude) or total >= self._LIMIT:
            raise UpdateRefusedError(f"tensor {name!r} holds NaN, infinity or a value too large ({magnitude:g})")
        return total

    def result(self) -> dict[str, NDArray[np.float64]]:
        """The mean of what was added, float64.

        Raises:
            WeightsError: nothing was added.
        """
        if not self.total_weight:
            raise WeightsError("the mean of no updates is not defined")
        return {
            name: (high / 2.0**self._HIGH_BITS + self._low[name] / 2.0 ** (self._HIGH_BITS + self._LOW_BITS))
            / self.total_weight
            for name, high in self._high.items()
        }


def save_weights(path: Path | str, weights: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically: the file is whole or not there.

    Raises:
        ResourceError: the file cannot be written.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in weights.items()}
    write_atomically(Path(path), safetensors_bytes(arrays, metadata=dict(metadata) if metadata else None))


def load_weights(path: Path | str) -> tuple[Weights, dict[str, str]]:
    """Read a safetensors file; return the weights and the file's metadata.

    Raises:
        WeightsError: the file is missing or is not a safetensors file.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return Weights(arrays), dict(file.metadata() or {})
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a type NumPy does not have, such as bfloat16
        raise WeightsError(f"not a readable safetensors file ({error})", file=path) from error


def write_atomically(path: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Write a file so that a reader, or a crash, never meets half of it, nor anyone what `mode` keeps from them.

    Raises:
        ResourceError: the folder or file cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(mode)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ResourceError(
            f"cannot be written ({error.strerror})",
            file=path,
            cure="See to its permissions and to the room there, or choose another folder.",
        ) from error
