"""Which cameras may be watched: those of this machine and of its network, and never anything else ffmpeg could open.

Addresses in the configuration are its owner's and only looked at for their form. One that comes over the API must not
lead to what only this machine can reach: a name is looked up once, every address of it is checked, and the camera is
watched by an address that was checked, so that the name cannot be made to lead elsewhere afterwards.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from manyeyes.errors import DataError

__all__ = ["camera_of_network", "checked_camera"]

_LOCAL = re.compile(r"[0-9]{1,2}|/dev/video[0-9]{1,2}")
_SCHEMES = ("rtsp", "rtsps", "http", "https")
_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
# RFC 3986 without blanks, quotes, brackets and what some program on the way could take for more than a letter.
_ADDRESS = re.compile(r"[A-Za-z0-9._~:/?#@!$&'()*+,;=%\[\]-]{1,1000}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Where clouds tell a machine its keys, beside the link-local addresses.
_METADATA = frozenset({"100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"})
_CURE = "A camera is its number here, /dev/videoN, or an address such as rtsp://HOST/PATH."

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]
"""Name and port of a host → its addresses; raises `OSError` where there are none."""


def checked_camera(source: str) -> str:
    """A camera as the configuration may name it.

    Raises:
        DataError: it is neither a camera of this machine nor an address whose form is sound.
    """
    if not _LOCAL.fullmatch(source):
        _parts(source)
    return source


def _resolve(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def camera_of_network(source: str, resolve: Resolve = _resolve) -> str:
    """A camera as somebody may name it over the API; a name in it becomes the address that was checked.

    Args:
        source: as it was sent.
        resolve: looks names up.

    Raises:
        DataError: see `checked_camera`; or its name is unknown, or leads where nobody has a camera.
    """
    if _LOCAL.fullmatch(source):
        return source
    parts = _parts(source)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    try:
        addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in resolve(host, port)]
    except (OSError, ValueError) as error:  # names that cannot be encoded are a ValueError
        raise DataError(
            "names a host that cannot be found", cure="Is the name right? An address does as well."
        ) from error
    if not addresses or any(_is_forbidden(address) for address in addresses):
        raise DataError(
            "leads to this machine itself or to where a network keeps its secrets, which a camera must not",
            cure="Cameras at such addresses can be named in the server's configuration.",
        )
    login, at, _ = parts.netloc.rpartition("@")
    shown = f"[{addresses[0]}]" if addresses[0].version == 6 else str(addresses[0])
    place = f"{login}{at}{shown}" + (f":{parts.port}" if parts.port is not None else "")
    return parts._replace(netloc=place).geturl()


def _parts(source: str) -> SplitResult:
    try:
        parts = urlsplit(source) if _ADDRESS.fullmatch(source) else None
        sound = parts is not None and parts.scheme in _SCHEMES and _is_host(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that are none
        parts, sound = None, False
    if parts is None or not sound or source.partition("://")[0].lower() != parts.scheme:
        raise DataError("is no camera", cure=_CURE)
    return parts


def _is_host(host: str | None) -> bool:
    if not host or len(host) > 253:
        return False
    if ":" in host:
        return "%" not in host and _is_address(host)
    return bool(_NAME.fullmatch(host))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_forbidden(address: _Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or _translated(address)
        if inner is not None:
            return _is_forbidden(inner)
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
        or str(address) in _METADATA
    )


def _translated(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address in one that NAT64 translates (RFC 6052), or in the deprecated form ::a.b.c.d."""
    number = int(address)
    if number >> 32 in (0x0064FF9B << 64, 0) and number > 1:
        return ipaddress.IPv4Address(number & 0xFFFFFFFF)
    return None
