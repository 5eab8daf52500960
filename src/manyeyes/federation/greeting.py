"""What a node asks a coordinator before it joins: do we trust each other, and by which names?

Flower's SuperNode ends with a few words about a status code where a key, a certificate or a clock is wrong. So the node
first asks the door itself, with the same key and the same authority, and says what is wrong and on which machine.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from manyeyes.errors import ConfigError, ManyeyesError, ProtocolError, RunError
from manyeyes.federation.door import HELLO_PATH, KEY_HEADER, SIGNATURE_HEADER, TIME_HEADER
from manyeyes.federation.keys import NODE_KEY, NODE_PUBLIC
from manyeyes.federation.messages import PROTOCOL_VERSION

__all__ = ["greet"]

_SECONDS = 10.0
_LONGEST = 2000
# Of OpenSSL's reasons: those that concern the name, and those that concern the time.
_OTHER_NAME = {62, 64}
_NOT_YET, _EXPIRED = 9, 10


def greet(node_id: str, url: str, authority: Path, folder: Path) -> None:
    """Ask a coordinator's door whether this node may come in.

    Args:
        node_id: the name this node goes by.
        url: https://NAME:PORT.
        authority: certificate that the coordinator's must be signed by.
        folder: the node's state folder, which holds its key.

    Raises:
        RunError: not now, and perhaps later without any change here: it cannot be reached, does not let this key in,
            its certificate has expired, or one of the two clocks is wrong.
        ConfigError: a file or key of this node is wrong.
        ProtocolError: the two machines hold different versions of manyeyes.
    """
    headers = _signed(folder / NODE_KEY)
    status, text = _ask(url, authority, headers)
    if status == 200:
        _check_answer(node_id, url, text)
    elif status == 401 and "clock" in text:
        raise RunError(text, key=url, cure="Set the clock of this machine, or of the coordinator, by a time server.")
    elif status in (401, 403):
        raise RunError(
            "does not let this node in: its key was not admitted there, or was revoked",
            key=url,
            cure=f"Send {folder / NODE_PUBLIC} to the coordinator's operator, who calls:"
            f" manyeyes coordinator admit {node_id} --key {NODE_PUBLIC}",
        )
    elif status == 404:
        raise ProtocolError(
            "is not a coordinator of this version of manyeyes",
            key=url,
            cure="Check coordinator_url; install the same version on the coordinator and its nodes.",
        )
    else:
        raise RunError(f"answered with status {status}", key=url, cure="See the coordinator's log.")


def _check_answer(node_id: str, url: str, text: str) -> None:
    try:
        answer = json.loads(text)
        known_as, protocol = str(answer["node_id"]), answer["protocol"]
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError("is not a coordinator of manyeyes", key=url, cure="Check coordinator_url.") from error
    if protocol != PROTOCOL_VERSION:
        raise ProtocolError(
            f"follows protocol version {protocol!r}, this node follows {PROTOCOL_VERSION}",
            key=url,
            cure="Install the same version of manyeyes on the coordinator and its nodes.",
        )
    if known_as != node_id:
        raise ConfigError(
            f"is {node_id}, but the coordinator has admitted this key as {known_as[:64]}",
            key="node_id",
            cure=f"Start it with --node-id {known_as[:64]}, or with the state folder of {node_id}.",
        )


def _ask(url: str, authority: Path, headers: dict[str, str]) -> tuple[int, str]:
    """Status and text of the door's answer; never through a proxy."""
    parts = urlsplit(url)
    try:
        trusted = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("is not a certificate", file=authority, key="authority") from error
    connection = http.client.HTTPSConnection(
        str(parts.hostname), parts.port or http.client.HTTPS_PORT, timeout=_SECONDS, context=trusted
    )
    try:
        connection.request("POST", HELLO_PATH, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(_LONGEST).decode("utf-8", errors="replace")
    except ssl.SSLCertVerificationError as error:
        raise _distrusted(error, url, str(parts.hostname), authority) from error
    except ssl.SSLError as error:
        raise RunError(f"does not speak TLS as it should ({error.reason})", key=url, cure="Check the port.") from error
    except (OSError, http.client.HTTPException) as error:
        raise RunError(
            f"cannot be reached ({_why(error)})", key=url, cure="Is the coordinator running, and is the address right?"
        ) from error
    finally:
        connection.close()


def _distrusted(error: ssl.SSLCertVerificationError, url: str, name: str, authority: Path) -> ManyeyesError:
    if error.verify_code in _OTHER_NAME:
        return ConfigError(
            f"shows a certificate that is not for the name {name}",
            key=url,
            cure="Use a name it is for as coordinator_url, or ask the coordinator's operator to call:"
            f" manyeyes coordinator renew --name {name}",
        )
    if error.verify_code in (_NOT_YET, _EXPIRED):
        which = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
        return RunError(
            f"shows a certificate that {which}",
            key=url,
            cure=f"If this clock ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC) is right, the coordinator's operator calls:"
            " manyeyes coordinator renew",
        )
    return ConfigError(
        f"is not of the authority that signed the certificate of {url}",
        file=authority,
        key="authority",
        cure="Ask the coordinator's operator for the file ca.crt, and compare its fingerprint.",
    )


def _why(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "its name is not known here"
    if isinstance(error, TimeoutError):
        return f"no answer within {_SECONDS:.0f} s"
    return getattr(error, "strerror", None) or type(error).__name__


def _signed(path: Path) -> dict[str, str]:
    """The headers by which a door knows a node, as Flower's SuperNode makes them."""
    key = _private_key(path)
    when = datetime.now(UTC).isoformat()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return {
        KEY_HEADER: base64.b64encode(public).decode(),
        SIGNATURE_HEADER: base64.b64encode(key.sign(when.encode(), ec.ECDSA(hashes.SHA256()))).decode(),
        TIME_HEADER: when,
    }


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key: Any = None
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from error
    except (ValueError, TypeError, UnsupportedAlgorithm):
        pass
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("is not a node's key", file=path, cure="Make one with `manyeyes node init`.")
    return key
