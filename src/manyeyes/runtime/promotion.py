"""A model of a registry is put to use by hand, whether a server is running or not."""

from __future__ import annotations

from manyeyes.errors import WeightsError
from manyeyes.registry import FIRST, Entry, Registry
from manyeyes.runtime.engine import Engine
from manyeyes.runtime.host import self_test
from manyeyes.runtime.openvino_network import OpenVinoNetwork

__all__ = ["promote", "roll_back"]


def promote(registry: Registry, name: str) -> Entry:
    """Put a model to use, once it was seen that its files are whole and that it finds boxes.

    A server that is running changes to it within seconds; another one begins with it.

    Args:
        registry: that it lies in.
        name: its hash, or the first letters of it that no other has.

    Raises:
        WeightsError: there is none, or it was changed, or it fails its test; all stays as it is.
        ResourceError: the registry cannot be written.
    """
    entry = _tested(registry, name)
    registry.use(entry.hash)
    return entry


def roll_back(registry: Registry) -> Entry:
    """Put the model to use again that was used before; the present one is still there, and counts as not used.

    Raises:
        WeightsError: there was none, or it was changed, or it fails its test; all stays as it is.
        ResourceError: the registry cannot be written.
    """
    if registry.previous is None:
        raise WeightsError(FIRST)
    entry, present = _tested(registry, registry.previous), registry.wanted
    registry.drop_used(present, back_to=entry.hash)
    return entry


def _tested(registry: Registry, name: str) -> Entry:
    entry = registry.entry(name)
    self_test(Engine(OpenVinoNetwork(registry.path(entry.hash), precision="fp32", threads=1), entry.hash))
    return entry
