"""BatchNorm in a federation: which tensors belong to it, and how its statistics are pooled.

A running mean and a running variance describe a sample. The sample of all nodes together has, by the law of total
variance, with weights p_i = n_i / Σ n_i:

    mean = Σ p_i mean_i                 var = Σ p_i (var_i + mean_i²) − mean²

Averaging the variances alone would forget how far the nodes' means lie apart. Counters of batches take the maximum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["batchnorm_names", "is_buffer", "moments", "pool"]

_MEAN = "running_mean"
_VAR = "running_var"
_BUFFERS = frozenset({_MEAN, _VAR, "num_batches_tracked"})

Array = NDArray[Any]


def is_buffer(name: str) -> bool:
    """Whether a tensor is BatchNorm's state, not trained by a gradient.

    >>> is_buffer("model.0.bn.running_var"), is_buffer("model.0.bn.weight")
    (True, False)
    """
    return name.rpartition(".")[2] in _BUFFERS


def batchnorm_names(names: Iterable[str]) -> frozenset[str]:
    """The tensors of all BatchNorm modules, known by their running mean: weight, bias and buffers.

    >>> sorted(batchnorm_names(["0.weight", "1.weight", "1.running_mean"]))
    ['1.running_mean', '1.weight']
    """
    names = list(names)
    modules = {name.rpartition(".")[0] for name in names if name.rpartition(".")[2] == _MEAN}
    return frozenset(name for name in names if name.rpartition(".")[0] in modules)


def moments(buffers: Mapping[str, Array], centre: Mapping[str, Array]) -> dict[str, NDArray[np.float64]]:
    """What a node's float buffers add to the weighted mean over nodes that `pool` turns into pooled statistics.

    Second moments are taken around `centre`, the running means all nodes started from. The law holds around any point,
    and a near one keeps mean² from drowning the variance.

    Args:
        buffers: a node's buffers after training; integer ones are passed over.
        centre: at least the running means among them, from before the round.

    Returns:
        float64, same names and shapes: mean − centre, var + (mean − centre)², and any other float buffer as it is.
    """
    sums = {}
    for name, array in buffers.items():
        if array.dtype.kind != "f":
            continue
        value = array.astype(np.float64)
        if _leaf(name) == _MEAN:
            value = value - centre[name]
        elif (mean := _mean_of(name)) in buffers:
            value = value + np.square(buffers[mean].astype(np.float64) - centre[mean])
        sums[name] = value
    return sums


def pool(averaged: Mapping[str, Array], centre: Mapping[str, Array]) -> dict[str, NDArray[np.float32]]:
    """The inverse of `moments` after averaging: pooled means and variances, float32.

    A variance that rounding took below zero becomes zero.
    """
    pooled = {}
    for name, value in averaged.items():
        if _leaf(name) == _MEAN:
            value = value + centre[name]
        elif (mean := _mean_of(name)) in averaged:
            value = np.maximum(value - np.square(averaged[mean]), 0.0)
        pooled[name] = np.asarray(value, dtype=np.float32)
    return pooled


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _mean_of(name: str) -> str:
    """The running mean that stands beside a running variance; for any other name one that does not exist."""
    return f"{name.removesuffix(_VAR)}{_MEAN}" if _leaf(name) == _VAR else ""
