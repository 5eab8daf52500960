"""A node's greeting: whether a coordinator lets it in and, if not, what is wrong, on which machine, and what to do.

Flower's processes give up with a number or wait without a word. So a node greets the door itself, before it joins and
every few seconds after, and says in one line what it met. The greeting is signed like every other request.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import logging
import secrets
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from manyeyes.errors import ConfigError, ManyeyesError, ProtocolError, ResourceError, RunError
from manyeyes.federation.keys import NODE_KEY, expiry_warning, fingerprint, read_certificate, read_node_key
from manyeyes.federation.messages import PROTOCOL_VERSION
from manyeyes.federation.peers import Peers

__all__ = ["HELLO", "KEY_HEADER", "LEASE_SECONDS", "SIGNATURE_HEADER", "TIME_HEADER", "Greeter", "Greeting", "Work"]

HELLO = "/v1/manyeyes/hello"
"""What the door answers itself."""

# As Flower names and signs them.
KEY_HEADER, SIGNATURE_HEADER, TIME_HEADER = "flwr-public-key", "flwr-signature", "flwr-timestamp"

LEASE_SECONDS = 30.0
"""How long after a greeting another process with the same key is turned away."""

_EVERY_SECONDS = 10.0
# A SuperNode says that it is there every 23 s at most; cut off, it tries again within 20 s.
_UNHEARD_SECONDS = 45.0
_TIMEOUT_SECONDS = 10.0
# The keys of some thousand nodes.
_LONGEST_ANSWER = 2**21
_LONGEST_AWAY = 100
# Of OpenSSL's reasons not to trust a certificate; another address is another name too.
_EXPIRED, _NOT_YET_VALID, _OTHER_NAME, _OTHER_ADDRESS = 10, 9, 62, 64

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Work:
    """What a node is at.

    Attributes:
        busy: whether it has a request, or a part of one.
        request_id: of the last request that came in whole; "" before the first.
        answer: to that request, as it was sent; empty while there is none. It stays on this machine.
    """

    busy: bool = False
    request_id: str = ""
    answer: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a node says of itself.

    Attributes:
        instance: which process of those that have the key.
        place: on which machine and in which folder; of the processes there only one runs at a time.
        leaving: whether it goes.
        away: until when it goes, in words for the coordinator's people; "" if it does not come back by itself.
        work: what it is at.
        host: where it was heard from.
        heard: when, on the monotonic clock.
        peers: digest of the nodes and keys it knows of (`peers.digest_of`).
    """

    instance: str
    place: str
    leaving: bool
    work: Work
    away: str = ""
    host: str = ""
    heard: float = field(default_factory=time.monotonic)
    peers: str = ""

    def to_json(self) -> str:
        """As it is sent."""
        work = {"busy": self.work.busy, "request_id": self.work.request_id}
        goes = {"leaving": self.leaving, "away": self.away}
        return json.dumps({"instance": self.instance, "place": self.place, "work": work, "peers": self.peers} | goes)

    @classmethod
    def read(cls, text: bytes, host: str) -> Greeting:
        """The inverse, at the door.

        Raises:
            ProtocolError: it is not a greeting.
        """
        try:
            match json.loads(text):
                case {
                    "instance": str(instance),
                    "place": str(place),
                    "leaving": bool(leaving),
                    "away": str(away),
                    "work": {"busy": bool(busy), "request_id": str(request_id)},
                    "peers": str(peers),
                }:
                    work = Work(busy, request_id)
                    away = _printable(away.encode())[:_LONGEST_AWAY]
                    return cls(instance, place, leaving, work, away, host, peers=peers)
        except (ValueError, RecursionError) as error:
            raise ProtocolError("the greeting is not JSON") from error
        raise ProtocolError("the greeting does not say who greets")


class Greeter:
    """Greets one coordinator in the name of one node.

    Args:
        node_id: what this node calls itself.
        host, port: of the coordinator's door.
        authority: certificate of the coordinator's authority.
        folder: the node's state folder, which holds its key.
        work: what the node is at; looked at with each greeting.

    Raises:
        ConfigError: the authority, the key or what is known of the others cannot be read; the authority has expired.
        ResourceError: others can read the key.
    """

    def __init__(
        self, node_id: str, host: str, port: int, authority: Path, folder: Path, work: Work | None = None
    ) -> None:
        self._work = work or Work()
        self.node_id, self._host, self._port = node_id, host, port
        self._where = f"the coordinator at {host}:{port}"
        self._authority = authority
        read_certificate(authority)
        self._check_authority()
        self._tls = ssl.create_default_context(cafile=str(authority))
        self._key = read_node_key(folder / NODE_KEY)
        self._peers = Peers(folder)
        # Two processes with one key would take each other's requests; these tell them apart.
        self._instance, self._place = secrets.token_hex(8), _place(folder)
        self.complaint: str | None = None
        """What was wrong when the coordinator was last greeted."""
        self._met = False
        self.number: int | None = None
        """What Flower calls this node at the coordinator, once that has told."""
        self._since: float | None = None
        self._quiet = 0.0

    def greet(self, *, leaving: bool = False, away: str = "") -> None:
        """Ask to be let in, or say that this process goes.

        Args:
            leaving: whether it goes.
            away: and until when.

        Raises:
            RunError: not now, and perhaps later without any change here: it cannot be reached, does not let this key
                in, its certificate has expired, or one of the two clocks is wrong.
            ConfigError: this node is called otherwise there, or its authority or address is not that coordinator's.
            ProtocolError: the two machines hold different versions, or it is no coordinator.
        """
        greeting = Greeting(self._instance, self._place, leaving, self._work, away, peers=self._peers.digest)
        status, text = self.post(HELLO, greeting.to_json())
        if status == http.client.NOT_FOUND:
            raise ProtocolError(f"{self._where} does not know this greeting", cure=_SAME_VERSION)
        if status != http.client.OK:
            raise RunError(
                f"{self._where} turns node {self.node_id} away: {text[:1000]}", cure=self._cure(status, text)
            )
        self._check(text)

    def joined(self) -> bool:
        """Whether the coordinator lets this node in now; what is wrong is logged once, not at each attempt.

        What this node was set up with is only doubted before it was let in once.

        Raises:
            ConfigError, ProtocolError: see `greet`; only before the coordinator has let this node in once.
        """
        try:
            self.greet()
        except (RunError, ConfigError, ProtocolError) as error:
            if not self._met and not isinstance(error, RunError):
                raise
            if str(error) != self.complaint:
                _log.warning("%s (this node goes on trying)", error)
            self.complaint, self._since = str(error), None
            return False
        if self.complaint is not None:
            _log.warning("%s can be reached, and lets node %s in", self._where, self.node_id)
        self.complaint, self._met = None, True
        self._since = self._since or time.monotonic()
        return True

    def unheard(self, since: float) -> bool:
        """Whether the coordinator has heard this process for a while, and something of its SuperNode not in that time.

        That does not say any more that it is there, or asks and sends nothing though it has nothing else to do.

        Args:
            since: when the SuperNode was started, on the monotonic clock.
        """
        if self._since is None:
            return False
        return min(time.monotonic() - max(since, self._since), self._quiet) > _UNHEARD_SECONDS

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Greet every few seconds within the block, from another thread, and say goodbye at its end."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_EVERY_SECONDS):
                self.joined()

        thread = threading.Thread(target=watch, name="manyeyes-hello", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(_TIMEOUT_SECONDS)

    def goodbye(self, away: str = "") -> None:
        """Let another process with this key in at once; it is no fault if nobody hears it.

        Args:
            away: until when this one goes, if it comes back by itself.
        """
        try:
            self.greet(leaving=True, away=away)
        except (RunError, ConfigError, ProtocolError) as error:
            _log.info("nobody heard the goodbye: %s", error)

    def post(self, path: str, body: str | bytes) -> tuple[int, str]:
        """Ask the door for something in the node's name; status and text of its answer.

        Raises:
            RunError: it cannot be reached, or its certificate is out of its time.
            ConfigError: its certificate is of another authority, or for other names.
        """
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS, context=self._tls)
        try:
            connection.request("POST", path, body, self._signed())
            answer = connection.getresponse()
            return answer.status, _printable(answer.read(_LONGEST_ANSWER), _LONGEST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreached(error) from error
        finally:
            connection.close()

    def _signed(self) -> dict[str, str]:
        when = datetime.now(UTC).isoformat()
        public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        signature = self._key.sign(when.encode("ascii"), ec.ECDSA(hashes.SHA256()))
        return {
            KEY_HEADER: base64.b64encode(public).decode(),
            SIGNATURE_HEADER: base64.b64encode(signature).decode(),
            TIME_HEADER: when,
            "content-type": "application/protobuf",
        }

    def _check(self, text: str) -> None:
        try:
            said = json.loads(text)
            version, node_id, number = said["protocol"], said["node_id"], said["number"]
            peers = said["peers"]
            unasked = 0.0 if self._work.busy else float(said["unasked"])
            self._quiet = max(float(said["unbeaten"]), unasked)
        except (ValueError, TypeError, KeyError) as error:
            raise ProtocolError(
                f"{self._where} answers what no coordinator would", cure="Is the port right?"
            ) from error
        if version != PROTOCOL_VERSION:
            raise ProtocolError(
                f"{self._where} follows protocol version {version!r}, this node follows {PROTOCOL_VERSION}",
                cure=_SAME_VERSION,
            )
        if node_id != self.node_id:
            raise ConfigError(
                f"{self._where} has admitted this key as {node_id!r}, and this node is called {self.node_id!r}",
                key="node_id",
                cure=f"Name it {node_id}, or give each node its own folder and key.",
            )
        self.number = number if isinstance(number, int) else self.number
        if peers is not None:
            self._meet(peers)

    def _meet(self, told: object) -> None:
        """Remember whom this node takes part with; what is odd about it is logged, and ends nothing."""
        try:
            for sentence in self._peers.take(told):
                _log.warning("%s tells that %s", self._where, sentence)
        except (ProtocolError, ResourceError) as error:
            _log.warning("%s: %s", self._where, error)

    def _cure(self, status: int, text: str) -> str:
        if status == http.client.FORBIDDEN:
            return (
                f"At the coordinator: manyeyes coordinator admit {self.node_id} --key node.pub. This key's fingerprint"
                f" is {fingerprint(self._key.public_key())}; one that was revoked needs a new key."
            )
        if status == http.client.UNAUTHORIZED and "clock" in text:
            return "Set the clocks of both machines, by NTP for example."
        if status == http.client.CONFLICT:
            return "Stop one of them; a copy on another machine needs a key of its own (manyeyes node init)."
        return "See the coordinator's log."

    def _check_authority(self) -> None:
        warning = expiry_warning(self._authority)
        if warning and "expired on" in warning:
            raise ConfigError(
                "the certificate of the coordinator's authority has expired",
                file=self._authority,
                cure="Its operator must make another with `manyeyes coordinator init` and give out the new ca.crt.",
            )

    def _unreached(self, error: Exception) -> ManyeyesError:
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._untrusted(error)
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return RunError(
                f"{self._host}:{self._port} does not speak TLS as a coordinator does ({error.reason or error})",
                cure="Are name and port those of the coordinator?",
            )
        if isinstance(error, socket.gaierror):
            return RunError(
                f"the name {self._host!r} cannot be found on this machine ({error.strerror})",
                cure="Mend coordinator_url, or this machine's name service.",
            )
        if isinstance(error, ConnectionRefusedError):
            return RunError(f"nothing listens at {self._host}:{self._port}", cure="Is the coordinator running?")
        if isinstance(error, TimeoutError):
            return RunError(
                f"{self._where} does not answer within {_TIMEOUT_SECONDS:.0f} s",
                cure="Is the network cut, or does a firewall drop what is sent there?",
            )
        reason = "the other side hung up"
        if isinstance(error, OSError) and error.strerror and not isinstance(error, ssl.SSLError):
            reason = error.strerror
        return RunError(f"the line to {self._host}:{self._port} broke ({reason})", cure="Is the coordinator running?")

    def _untrusted(self, error: ssl.SSLCertVerificationError) -> ManyeyesError:
        certificate, renew = f"the certificate of {self._where}", f"manyeyes coordinator renew --name {self._host}"
        clock = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        if error.verify_code == _EXPIRED:
            return RunError(
                f"{certificate} has expired",
                cure=f"At the coordinator: {renew}, if this machine's clock ({clock}) is right.",
            )
        if error.verify_code == _NOT_YET_VALID:
            return RunError(f"{certificate} is not valid yet", cure=f"Is this machine's clock right? It shows {clock}.")
        if error.verify_code in (_OTHER_NAME, _OTHER_ADDRESS):
            return ConfigError(
                f"{certificate} is not made out for {self._host!r}",
                cure=f"At the coordinator: {renew}. Or mend coordinator_url.",
            )
        return ConfigError(
            f"{certificate} is not signed by the authority in {self._authority} ({error.verify_message})",
            cure="Ask its operator for the right ca.crt; if it is the right one, somebody stands in between.",
        )


def _place(folder: Path) -> str:
    """The same for all processes that serve one folder on one machine, and tells nothing of either."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    machine = boot.read_text() if boot.exists() else str(uuid.getnode())
    status = folder.stat()
    return hashlib.sha256(f"{machine}/{status.st_dev}/{status.st_ino}".encode()).hexdigest()[:16]


_SAME_VERSION = "Install the same version of manyeyes on the coordinator and its nodes."


def _printable(data: bytes, most: int = 1000) -> str:
    """What another machine said, fit for a line of a log."""
    text = data.decode("utf-8", errors="replace")
    return "".join(letter if letter.isprintable() else " " for letter in text)[:most]
