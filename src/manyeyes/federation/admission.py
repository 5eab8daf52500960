"""Who may take part: the coordinator's register of nodes and their public keys, kept in one file.

The file is the truth: whoever guards a door looks a key up here at each request, so a node that is revoked is shut out
at once and one that is admitted need not wait for a restart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from manyeyes.config import NODE_ID_PATTERN
from manyeyes.errors import ConfigError, nearest
from manyeyes.federation.keys import fingerprint, parse_public_key, same_key
from manyeyes.weights import write_atomically

__all__ = ["MEMBERS", "Member", "Members"]

MEMBERS = "members.json"


@dataclass(frozen=True, slots=True)
class Member:
    """A node that was let in.

    Attributes:
        node_id: its name in the federation.
        public_key: in OpenSSH's format, without a comment.
        admitted, revoked: when, as ISO 8601 in UTC; `revoked` is None for those that may take part.
        withdrawn: when its site asked that it be as if it had not taken part; None for all others.
    """

    node_id: str
    public_key: str
    admitted: str
    revoked: str | None = None
    withdrawn: str | None = None

    @property
    def key(self) -> ec.EllipticCurvePublicKey:
        """The public key."""
        return parse_public_key(self.public_key)

    @property
    def fingerprint(self) -> str:
        """As people compare it."""
        return fingerprint(self.key)


class Members:
    """The register.

    Args:
        folder: the coordinator's state folder; the file is made with the first node that is admitted.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / MEMBERS
        self._read_at: tuple[int, int] | None = None
        self._members: tuple[Member, ...] = ()
        # Of those that may take part: to take every member's key apart at each request would be most of a door's work.
        self._by_key: dict[bytes, Member] = {}

    def __iter__(self) -> Iterator[Member]:
        """All who were ever admitted, in the order they were.

        Raises:
            ConfigError: the file is damaged.
        """
        return iter(self._current())

    def find(self, key: ec.EllipticCurvePublicKey) -> Member | None:
        """Who may take part with a key: None if it was never admitted, or was revoked."""
        self._current()
        return self._by_key.get(_text_of(key))

    def admit(self, node_id: str, key: ec.EllipticCurvePublicKey) -> Member:
        """Let a node in.

        Raises:
            ConfigError: the name cannot be a node's or is taken, or the key was admitted or revoked before.
        """
        if not re.fullmatch(NODE_ID_PATTERN, node_id):
            raise ConfigError(f"{node_id!r} cannot be a node's name", cure="Use letters, digits, '.', '-' and '_'.")
        members = self._current()
        for member in members:
            if same_key(member.key, key):
                how = "was revoked" if member.revoked else "was admitted already"
                raise ConfigError(
                    f"this key {how}, as {member.node_id}",
                    file=self.path,
                    cure="Each node has a key of its own: make one with `manyeyes node init`.",
                )
            if member.node_id == node_id and member.revoked is None:
                raise ConfigError(
                    f"{node_id} takes part with another key ({member.fingerprint})",
                    file=self.path,
                    cure=f"If it was replaced, first: manyeyes coordinator revoke {node_id}",
                )
        member = Member(node_id, _text_of(key).decode(), _now())
        self._write((*members, member))
        return member

    def revoke(self, node_id: str) -> Member:
        """Shut a node out. Its key can never be admitted again; its name can, with another key.

        Raises:
            ConfigError: no node of that name takes part.
        """
        members = self._current()
        active = {member.node_id: member for member in members if member.revoked is None}
        self._check_known(node_id, active, "takes part")
        revoked = replace(active[node_id], revoked=_now())
        self._write(tuple(revoked if member is active[node_id] else member for member in members))
        return revoked

    def check_admitted(self, node_id: str) -> None:
        """Refuse the name of a node that was never admitted.

        Raises:
            ConfigError: there is none; names those there are.
        """
        self._check_known(node_id, [member.node_id for member in self._current()], "was ever admitted")

    def withdraw(self, node_id: str) -> None:
        """Write down that a node is withdrawn, and shut it out if it is not yet: every key it ever had.

        Raises:
            ConfigError: no node of that name was ever admitted.
        """
        self.check_admitted(node_id)
        now = _now()

        def withdrawn(member: Member) -> Member:
            return replace(member, revoked=member.revoked or now, withdrawn=member.withdrawn or now)

        self._write(tuple(withdrawn(m) if m.node_id == node_id else m for m in self._current()))

    def _check_known(self, node_id: str, known: Collection[str], what: str) -> None:
        if node_id not in known:
            guess = nearest(node_id, known)
            cure = f"Did you mean {guess!r}?" if guess else f"Known are: {', '.join(known) or 'none'}."
            raise ConfigError(f"no node {node_id!r} {what}", file=self.path, cure=cure)

    def _current(self) -> tuple[Member, ...]:
        """As they stand in the file now; it is read again only when it was replaced."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._members, self._by_key, self._read_at = (), {}, None
            return ()
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._read_at:
            self._members, self._by_key = self._load()
            self._read_at = stamp
        return self._members

    def _load(self) -> tuple[tuple[Member, ...], dict[bytes, Member]]:
        try:
            members = tuple(Member(**values) for values in json.loads(self.path.read_text(encoding="utf-8")))
            keys = [_text_of(member.key) for member in members]
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                "is damaged, so nobody can be let in", file=self.path, cure="Restore it from a backup."
            ) from error
        return members, {key: m for key, m in zip(keys, members, strict=True) if m.revoked is None}

    def _write(self, members: tuple[Member, ...]) -> None:
        write_atomically(self.path, json.dumps([asdict(member) for member in members], indent=2) + "\n", mode=0o600)
        self._read_at = None


def _text_of(key: ec.EllipticCurvePublicKey) -> bytes:
    """A key as it stands in the file, which is the same for equal keys."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
