"""The narrow waist between the round loop and whatever carries its messages.

A transport has four methods. `local.py` runs the nodes in this process; a distributed engine carries the same
requests over a network. The round loop cannot tell them apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_bytes
from safetensors.numpy import save as save_bytes

from manyeyes.errors import ProtocolError

__all__ = ["Record", "Reply", "Request", "Transport"]


@dataclass(frozen=True, slots=True)
class Record:
    """Named arrays and JSON values: all that is ever sent, in either direction.

    Attributes:
        arrays: name → array; the bulk.
        values: JSON-ready values; small.
    """

    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The record as one safetensors buffer; its length is what a run counts as bytes on the wire."""
        arrays = {name: np.asarray(array, order="C") for name, array in self.arrays.items()}
        return save_bytes(arrays, metadata={"values": json.dumps(dict(self.values), allow_nan=True)})

    def to_parts(self) -> tuple[bytes, str]:
        """The arrays as one safetensors buffer, and the values as JSON.

        Requests of a round differ in their values alone, so a carrier that knows equal bytes keeps their arrays once.
        """
        return Record(self.arrays).to_bytes(), json.dumps(dict(self.values), allow_nan=True)

    @classmethod
    def from_parts(cls, data: bytes, values: str) -> Record:
        """The inverse of `to_parts`; executes nothing.

        Raises:
            ProtocolError: they are not such parts.
        """
        try:
            read = json.loads(values)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"a message could not be read: {error}") from error
        if not isinstance(read, dict):
            raise ProtocolError("a message could not be read: its values have no names")
        return cls(cls.from_bytes(data).arrays, read)

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """The inverse of `to_bytes`; executes nothing.

        Raises:
            ProtocolError: the bytes are not such a record.
        """
        try:
            length = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + length])
            values = json.loads(header.get("__metadata__", {}).get("values", "{}"))
            return cls(load_bytes(data), values)
        except (SafetensorError, ValueError, AttributeError, KeyError, RecursionError) as error:
            raise ProtocolError(f"a message could not be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Request:
    """One thing asked of one node: kind is "fit", "evaluate" or "publish"."""

    request_id: str
    node_id: str
    kind: str
    record: Record


@dataclass(frozen=True, slots=True)
class Reply:
    """A node's answer: a record, or the reason why there is none.

    Attributes:
        bytes_down, bytes_up: length of the request and of the answer as they were sent.
        absent: whether there is no record because the node is gone or silent, not because it refused.
    """

    request_id: str
    node_id: str
    record: Record | None
    error: str | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    absent: bool = False


class Transport(Protocol):
    """Carries requests to nodes and brings replies back, in any order."""

    def nodes(self) -> Sequence[str]:
        """Ids of the nodes that can be reached now, sorted."""

    def send(self, requests: Sequence[Request]) -> None:
        """Hand over requests; returns before they are answered."""

    def receive(self, timeout: float | None) -> list[Reply]:
        """Wait for at least one reply, at most `timeout` seconds; empty when the time is up or nothing is pending."""

    def cancel(self, request_ids: Sequence[str]) -> list[str]:
        """Nobody waits for these any more. Returns those that were not begun and now never will be; the others may
        still be answered."""
