"""A model of a registry is put to use by hand, whether a server is running or not."""

from __future__ import annotations

from manyeyes.registry import Entry, Registry, used_meanwhile
from manyeyes.runtime.engine import Engine
from manyeyes.runtime.host import self_test
from manyeyes.runtime.openvino_network import OpenVinoNetwork

__all__ = ["promote", "roll_back", "tested"]


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
    entry = tested(registry, name)
    registry.use(entry.hash)
    return entry


def roll_back(registry: Registry) -> Entry:
    """Put the model to use again that was used before; the present one is still there, and counts as not used.

    Raises:
        WeightsError: there was none, or it was changed, or it fails its test, or another model was put to use while it
            was tested; all stays as it is.
        ResourceError: the registry cannot be written.
    """
    wanted, previous = registry.to_go_back()
    entry = tested(registry, previous)
    if not registry.drop_used(wanted, back_to=entry.hash):
        raise used_meanwhile()
    return entry


def tested(registry: Registry, name: str) -> Entry:
    """A model of a registry whose files are whole and that finds boxes.

    Raises:
        WeightsError: there is none, or it was changed, or it fails its test.
    """
    entry = registry.entry(name)
    self_test(Engine(OpenVinoNetwork(registry.path(entry.hash), precision="fp32", threads=1), entry.hash))
    return entry
