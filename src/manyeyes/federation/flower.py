"""What the coordinator and a node have in common with Flower: how to reach its processes, and how a record is packed.

Flower carries bytes and says who is there; nothing else of it is used.

Flower keeps who is at work in a variable of the process (`TaskIdentity`), so a process is a coordinator or a node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from threading import Event
from typing import Any

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient

from manyeyes.errors import ProtocolError
from manyeyes.federation.messages import EVALUATE, FIT, PROTOCOL_VERSION, PUBLISH

__all__ = [
    "LOST",
    "MESSAGE_TYPES",
    "POLL",
    "RuntimeAddress",
    "deactivation",
    "fab",
    "heartbeat",
    "packed",
    "unpacked",
]

MESSAGE_TYPES = {FIT: "train", EVALUATE: "evaluate", PUBLISH: "query"}
"""Flower's names of what we ask."""
POLL = 0.2
"""How often the SuperLink and the SuperNode, both on this machine, are asked for something new, in seconds."""
LOST = frozenset({httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN})
"""The SuperLink refuses a token that it has given up: 401; or a run that has ended: 403."""

_PART = "manyeyes"
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})


def _nothing() -> None:
    """A machine that needs no help."""


@dataclass(frozen=True, slots=True)
class RuntimeAddress:
    """Where this machine's SuperLink or SuperNode hands out its tasks.

    Attributes:
        address: host:port on loopback.
        secret: who does not know it gets no task.
        authority: certificate (PEM) that signed the server's; None where it speaks plainly, on loopback alone.
        runs: whether the process that listens there still does.
        revive: starts it again, at the same address, if it has ended; raises RunError if that does not help, and
            ResourceError if its disk is full.
        trouble: what may be wrong with it, in words.
        wait_until_sent: returns when a SuperNode has sent so many answers on, or cannot.
    """

    address: str
    secret: str
    authority: bytes | None = None
    runs: Callable[[], bool] = lambda: True
    revive: Callable[[], None] = _nothing
    trouble: Callable[[], str] = lambda: "it did not say why"
    wait_until_sent: Callable[[int], None] = lambda answers: None

    def client(self, component: str, token: str | None = None) -> RuntimeHttpClient:
        """A client that may acquire tasks, or work on the one that a token is for."""
        guard = (
            RuntimeTokenHttpInterceptor(token)
            if token
            else SuperExecAuthHttpInterceptor(master_secret=self.secret.encode(), protected_methods=_ACQUIRE)
        )
        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=self.authority is None,
            root_certificates=self.authority,
            interceptors=[RuntimeVersionHttpInterceptor(component_name=component), guard],
        )


def deactivation(number: int) -> tuple[str, bytes]:
    """Path and body of the request with which a node says that its SuperNode is not online any more."""
    return "/v1/fleet/deactivate-node", DeactivateNodeRequest(node_id=number).SerializeToString()


@cache
def fab() -> tuple[bytes, str]:
    """What Flower takes for the app of a run, and its hash: a name and a protocol version, and no code.

    Both sides make it for themselves, so a node that meets another hash knows that the other side is not this program.
    """
    project = f"""[project]
name = "manyeyes"
version = "{PROTOCOL_VERSION}.0.0"
license = "AGPL-3.0-or-later"
dependencies = []

[tool.flwr.app]
publisher = "manyeyes"

[tool.flwr.app.components]
serverapp = "installed:none"
clientapp = "installed:none"

[tool.flwr.app.config]
"""
    content, _ = build_fab_from_files({"pyproject.toml": project.encode()})
    return content, hashlib.sha256(content).hexdigest()


def heartbeat(client: RuntimeHttpClient, lost: Event) -> Callable[[], bool]:
    """Says for a task that it is being worked on; notes when nobody waits for it any more."""

    def beat() -> bool:
        try:
            alive = bool(client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in LOST:
                return False
            alive = False
        except httpx.TransportError:
            return False
        if not alive:
            lost.set()
        return True

    return beat


def packed(data: bytes, values: Mapping[str, str]) -> RecordDict:
    array = Array(dtype="uint8", shape=(len(data),), stype=_PART, data=data)
    return RecordDict({_PART: ArrayRecord({"record": array}), "about": ConfigRecord(dict(values))})


def unpacked(content: RecordDict) -> tuple[bytes, Mapping[str, Any]]:
    """The bytes of a record and what was said about them; nothing is decoded here.

    Raises:
        ProtocolError: the message holds anything else.
    """
    records = dict(content.items())
    arrays, about = records.get(_PART), records.get("about")
    if records.keys() != {_PART, "about"} or not isinstance(arrays, ArrayRecord) or not isinstance(about, ConfigRecord):
        raise ProtocolError("the message does not hold one record")
    array = arrays.get("record")
    if len(arrays) != 1 or array is None or array.stype != _PART:
        raise ProtocolError("the message does not hold one record")
    return array.data, dict(about)
