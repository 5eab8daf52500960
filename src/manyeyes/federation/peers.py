"""Whom a node takes part with: names and public keys of all nodes, as its coordinator told them, kept at the node.

The first key that is told for a name is remembered, and another one later is said aloud: people compare fingerprints
over the telephone, as they do with the coordinator's, and whoever encrypts for a peer must know that the key is theirs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from manyeyes.config import NODE_ID_PATTERN
from manyeyes.errors import ConfigError, ProtocolError
from manyeyes.federation.keys import fingerprint, parse_public_key
from manyeyes.weights import write_atomically

__all__ = ["PEERS", "Peer", "Peers", "digest_of", "listed"]

PEERS = "peers.json"
"""In a node's state folder."""

_MOST = 10_000
# Those that count no more included.
_MOST_KEPT = 3 * _MOST

Listed = tuple[tuple[str, str], ...]
"""Name and public key (OpenSSH's format) of each node, sorted."""


def listed(nodes: Iterable[tuple[str, str]]) -> Listed:
    """Nodes in the form in which they are told and compared."""
    return tuple(sorted(nodes))


@lru_cache(maxsize=8)
def digest_of(nodes: Listed) -> str:
    """SHA-256 by which both sides see whether they hold the same list."""
    return hashlib.sha256(json.dumps(nodes).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Peer:
    """A key that another node had or has.

    Attributes:
        node_id: its name.
        public_key: in OpenSSH's format.
        since: when this node first heard of it, as ISO 8601 in UTC.
        until: when it heard that it counts no more; None while it does.
    """

    node_id: str
    public_key: str
    since: str
    until: str | None = None

    @property
    def key(self) -> ec.EllipticCurvePublicKey:
        """The public key.

        Raises:
            ValueError: it is none, or of another kind.
        """
        return parse_public_key(self.public_key)

    @property
    def fingerprint(self) -> str:
        """As people compare it."""
        return fingerprint(self.key)


class Peers:
    """The others, as one node knows them.

    Args:
        folder: the node's state folder; the file is made with the first that is told.

    Raises:
        ConfigError: the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / PEERS
        self._peers = self._load()

    def __iter__(self) -> Iterator[Peer]:
        """Every key that was ever told, in the order they were."""
        return iter(self._peers)

    @property
    def digest(self) -> str:
        """Of those that count now."""
        return digest_of(listed((peer.node_id, peer.public_key) for peer in self._peers if peer.until is None))

    def take(self, told: object) -> list[str]:
        """Remember what the coordinator told; returns what people should know of it, a sentence each.

        Args:
            told: those that may take part now, as `listed`; this node is one of them.

        Raises:
            ProtocolError: it is no such list; nothing is remembered of it.
            ResourceError: it cannot be written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        new = _read(told, now)
        counted = {peer.node_id: peer for peer in self._peers if peer.until is None}
        sentences = []
        for node_id, peer in new.items():
            before = next((old for old in reversed(self._peers) if old.node_id == node_id), None)
            if before and before.public_key != peer.public_key:
                sentences.append(
                    f"node {node_id} has another key now: {peer.fingerprint} (before: {before.fingerprint}). Ask its "
                    "people whether they replaced it"
                )
        ended = {n for n, peer in counted.items() if n not in new or new[n].public_key != peer.public_key}
        if len(self._peers) > _MOST_KEPT:
            raise ProtocolError("the coordinator tells ever new keys")
        kept = [replace(p, until=now) if p.until is None and p.node_id in ended else p for p in self._peers]
        added = [peer for node_id, peer in new.items() if node_id in ended or node_id not in counted]
        peers = (*kept, *added)
        # On the disk first: what is not kept has to be told again.
        write_atomically(self.path, json.dumps([asdict(peer) for peer in peers], indent=2) + "\n", mode=0o600)
        self._peers = peers
        return sentences

    def _load(self) -> tuple[Peer, ...]:
        try:
            peers = tuple(Peer(**values) for values in json.loads(self.path.read_text(encoding="utf-8")))
            for peer in peers:
                _ = peer.key
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                "is damaged",
                file=self.path,
                cure="Move it away: the others' keys are told again. Then compare their fingerprints anew.",
            ) from error
        return peers


def _read(told: object, now: str) -> dict[str, Peer]:
    if not isinstance(told, Sequence) or isinstance(told, str) or len(told) > _MOST:
        raise ProtocolError("the list of the other nodes is none")
    peers: dict[str, Peer] = {}
    for entry in told:
        match entry:
            case [str(node_id), str(public_key)] if re.fullmatch(NODE_ID_PATTERN, node_id) and node_id not in peers:
                peers[node_id] = Peer(node_id, public_key, now)
            case _:
                raise ProtocolError("the list of the other nodes holds what is no node")
    try:
        for peer in peers.values():
            _ = peer.key
    except ValueError as error:
        raise ProtocolError("the list of the other nodes holds a key that is none") from error
    return peers
