"""Who may do what: passwords, sessions of browsers, tokens of programs, and how often one may guess."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from manyeyes.errors import ConfigError, ResourceError
from manyeyes.weights import write_atomically

__all__ = ["Access", "Door", "Guesses", "Role", "Token"]

SHORTEST_PASSWORD = 10
_LONGEST_PASSWORD = 1000
_PASSWORDS, _TOKENS = "passwords.json", "tokens.json"
# 16 MiB and some 50 ms for each guess (RFC 7914); more is no help against one that can be asked a few times a minute.
_SCRYPT = {"n": 2**14, "r": 8, "p": 1}
_SCRYPT_MEMORY = 64 * 2**20
_SESSION_SECONDS = 12 * 3600.0
_MOST_SESSIONS = 1000
_MOST_ADDRESSES = 10_000
_LONGEST_PAUSE = 900.0
_PREFIX = "me_"


class Role(IntEnum):
    """What somebody may do; each may do what those before it may."""

    viewer = 1
    """Look: find objects, see streams, history and models."""
    administrator = 2
    """Change: models, scenes, cameras, tokens; delete jobs."""


@dataclass(frozen=True, slots=True)
class Token:
    """A program's pass; of the pass itself only the hash is kept.

    Attributes:
        name: what people call it.
        role: what it allows.
        sha256: of the pass, in hexadecimal.
        created: when, in seconds since 1970.
    """

    name: str
    role: Role
    sha256: str
    created: float


@dataclass(frozen=True, slots=True)
class _Secret:
    salt: str
    scrypt: str


_SECRETS = TypeAdapter(dict[str, _Secret])
_TOKEN_LIST = TypeAdapter(list[Token])


class Guesses:
    """How long an address that said wrong passwords must wait: the longer, the more often.

    Args:
        free: so many wrong ones cost nothing.
        clock: seconds.
    """

    def __init__(self, free: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free, self._clock = free, clock
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, address: str) -> float:
        """Seconds until the address may say a password again; 0 if now: then it counts as a wrong one until `right`.

        To count it only after it was compared would let an address say many at the same time.
        """
        with self._lock:
            count, last = self._wrong.get(address, (0, 0.0))
            # Beyond some 2 ** 10 seconds the pause grows no more, and the power must not either.
            pause = min(2.0 ** min(count - self._free, 10), _LONGEST_PAUSE) if count >= self._free else 0.0
            left = max(0.0, last + pause - self._clock())
            if not left:
                self._wrong[address] = count + 1, self._clock()
                self._wrong.move_to_end(address)
                if len(self._wrong) > _MOST_ADDRESSES:
                    self._wrong.popitem(last=False)
            return left

    def right(self, address: str) -> None:
        """The right one was said: what was wrong before is forgotten."""
        with self._lock:
            self._wrong.pop(address, None)


class Access:
    """Passwords and tokens in a folder that only its owner can read, and the sessions of this process.

    Args:
        folder: the server's state folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sessions: OrderedDict[str, tuple[Role, float, str]] = OrderedDict()
        self._lock = threading.Lock()
        # Many guesses at a time must not take the memory of many.
        self._computing = threading.Lock()

    # -- passwords ----------------------------------------------------------------------------------------------------

    @property
    def guarded(self) -> bool:
        """Whether there is a password; without one whoever reaches the server may do everything."""
        return bool(self._secrets())

    def set_password(self, role: Role, password: str) -> None:
        """Give a role a password, in place of the one it had.

        Raises:
            ConfigError: it is too short or too long.
            ResourceError: the folder cannot be written.
        """
        if not SHORTEST_PASSWORD <= len(password) <= _LONGEST_PASSWORD:
            raise ConfigError(
                f"a password must have {SHORTEST_PASSWORD} characters at least, and {_LONGEST_PASSWORD} at most",
                cure="Take four words that do not belong together.",
            )
        salt = secrets.token_bytes(16)
        secret = _Secret(_text(salt), _text(self._scrypt(password, salt)))
        values = {name: asdict(kept) for name, kept in {**self._secrets(), role.name: secret}.items()}
        write_atomically(self._folder / _PASSWORDS, json.dumps(values, indent=1) + "\n", 0o600)

    def role_of_password(self, password: str) -> Role | None:
        """What a password allows; None if it is wrong. Takes as long for a wrong one as for a right one."""
        found = None
        for name, secret in self._secrets().items():
            given = self._scrypt(password[:_LONGEST_PASSWORD], base64.b64decode(secret.salt))
            if hmac.compare_digest(given, base64.b64decode(secret.scrypt)):
                found = max(Role[name], found or Role[name])
        return found

    def _secrets(self) -> dict[str, _Secret]:
        path = self._folder / _PASSWORDS
        try:
            values = _SECRETS.validate_json(_read(path, b"{}"))
        except ValidationError as error:
            raise ResourceError("is damaged", file=path, cure="Set the passwords anew.") from error
        return {name: secret for name, secret in values.items() if name in Role.__members__}

    def _scrypt(self, password: str, salt: bytes) -> bytes:
        with self._computing:
            return hashlib.scrypt(password.encode(), salt=salt, maxmem=_SCRYPT_MEMORY, **_SCRYPT)

    # -- sessions -----------------------------------------------------------------------------------------------------

    def begin_session(self, role: Role) -> str:
        """A new session; returns what the browser keeps of it."""
        name = secrets.token_urlsafe(32)
        with self._lock:
            self._sessions[_digest(name)] = role, time.monotonic() + _SESSION_SECONDS, self._mark(role)
            while len(self._sessions) > _MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return name

    def role_of_session(self, name: str) -> Role | None:
        """What a session allows; None if it has ended, never was, or its password is another since."""
        with self._lock:
            role, until, mark = self._sessions.get(_digest(name), (None, 0.0, ""))
        lasts = role is not None and time.monotonic() < until and mark == self._mark(role)
        return role if lasts else None

    def _mark(self, role: Role) -> str:
        secret = self._secrets().get(role.name)
        return secret.scrypt if secret else ""

    def end_session(self, name: str) -> None:
        """It allows nothing any more."""
        with self._lock:
            self._sessions.pop(_digest(name), None)

    # -- tokens -------------------------------------------------------------------------------------------------------

    def tokens(self) -> list[Token]:
        """All of them, the oldest first.

        Raises:
            ResourceError: their file is damaged or cannot be read.
        """
        path = self._folder / _TOKENS
        try:
            return _TOKEN_LIST.validate_json(_read(path, b"[]"))
        except ValidationError as error:
            raise ResourceError("is damaged", file=path, cure="Delete it, and make the tokens anew.") from error

    def make_token(self, name: str, role: Role) -> str:
        """A new one; it is shown this once.

        Raises:
            ConfigError: the name is taken, or none.
            ResourceError: the folder cannot be written.
        """
        if not name.strip() or len(name) > 100:
            raise ConfigError("a token needs a name of at most 100 characters", cure="For example: line-3-robot")
        with self._lock:
            before = self.tokens()
            if any(token.name == name for token in before):
                raise ConfigError(f"there is a token {name!r} already", cure="Revoke it first, or take another name.")
            secret = _PREFIX + secrets.token_urlsafe(32)
            self._write_tokens([*before, Token(name, role, _digest(secret), time.time())])
        return secret

    def revoke_token(self, name: str) -> None:
        """It allows nothing any more.

        Raises:
            ConfigError: there is none of this name.
            ResourceError: the folder cannot be written.
        """
        with self._lock:
            before = self.tokens()
            if all(token.name != name for token in before):
                raise ConfigError(f"there is no token {name!r}")
            self._write_tokens([token for token in before if token.name != name])

    def role_of_token(self, secret: str) -> Role | None:
        """What a token allows; None if there is no such."""
        digest = _digest(secret)
        return next((token.role for token in self.tokens() if hmac.compare_digest(token.sha256, digest)), None)

    def _write_tokens(self, tokens: list[Token]) -> None:
        write_atomically(self._folder / _TOKENS, _TOKEN_LIST.dump_json(tokens, indent=1) + b"\n", 0o600)


class Door:
    """Who may enter a server: everybody who reaches it, until there is a password.

    Args:
        folder: the server's state folder.
        guesses: wrong passwords that cost nothing.
        public: other machines reach it, so that nobody enters without a password, even if it was deleted.
    """

    def __init__(self, folder: Path, guesses: int, *, public: bool = False) -> None:
        self.access = Access(folder)
        self.guesses = Guesses(guesses)
        self._guarded = public or self.access.guarded

    @property
    def guarded(self) -> bool:
        """Whether a password is needed: one that was set since the start counts, and where there was one it stays."""
        return self._guarded or self.access.guarded


def _digest(secret: str) -> str:
    # 256 random bits need no slow hash.
    return hashlib.sha256(secret.encode()).hexdigest()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _read(path: Path, default: bytes) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return default
    except OSError as error:
        raise ResourceError(f"cannot be read ({error.strerror})", file=path) from error
