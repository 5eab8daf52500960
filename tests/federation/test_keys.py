"""Keys and certificates, checked by the TLS library that will use them and by OpenSSH's own format."""

from __future__ import annotations

import contextlib
import socket
import ssl
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from manyeyes.errors import ConfigError, ResourceError
from manyeyes.federation import keys


def shake_hands(folder: Path, name: str, trusted: Path) -> str | None:
    """A real TLS handshake on loopback; returns the protocol, or raises what the client refuses."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / keys.SERVER)
    client = ssl.create_default_context(cafile=str(trusted))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            # Where the client refuses, which is what it is asked about, this end fails too.
            with connection, contextlib.suppress(OSError):
                server.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as plain,
                client.wrap_socket(plain, server_hostname=name) as secure,
            ):
                return secure.version()
        finally:
            thread.join(10)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_a_node_that_trusts_the_authority_reaches_the_coordinator_by_each_of_its_names(
    tmp_path: Path, name: str
) -> None:
    keys.make_authority(tmp_path, ["localhost", "127.0.0.1"])
    assert shake_hands(tmp_path, name, tmp_path / keys.AUTHORITY) == "TLSv1.3"


def test_another_name_another_authority_and_an_expired_certificate_are_refused(tmp_path: Path) -> None:
    own, other, old = tmp_path / "own", tmp_path / "other", tmp_path / "old"
    keys.make_authority(own, ["localhost"])
    keys.make_authority(other, ["localhost"])
    keys.make_authority(old, ["localhost"], now=datetime.now(UTC) - timedelta(days=400))
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for 'elsewhere'"):
        shake_hands(own, "elsewhere", own / keys.AUTHORITY)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"signature failure|unable to get|self.signed"):
        shake_hands(own, "localhost", other / keys.AUTHORITY)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(old, "localhost", old / keys.AUTHORITY)
    keys.renew_server(old, ["localhost"])
    assert shake_hands(old, "localhost", old / keys.AUTHORITY) == "TLSv1.3"


def test_a_certificate_that_will_expire_is_told(tmp_path: Path) -> None:
    made = datetime(2026, 1, 1, tzinfo=UTC)
    keys.make_authority(tmp_path, ["localhost"], now=made)
    path = tmp_path / keys.SERVER
    assert keys.expiry_warning(path, now=made + timedelta(days=300)) is None
    assert "expires in 7 days" in (keys.expiry_warning(path, now=made + timedelta(days=389, hours=1)) or "")
    assert "expired on 2027-02-02" in (keys.expiry_warning(path, now=made + timedelta(days=398)) or "")
    assert "is this clock right?" in (keys.expiry_warning(path, now=made - timedelta(days=1)) or "")


def test_private_halves_can_be_read_by_their_owner_only(tmp_path: Path) -> None:
    keys.make_authority(tmp_path, ["localhost"])
    keys.make_node_key(tmp_path, "A")
    for name in ("ca.key", keys.SERVER, keys.NODE_KEY):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name
    (tmp_path / "ca.key").chmod(0o640)
    with pytest.raises(ResourceError, match=r"ca\.key: can be read by others(.|\n)*chmod 600"):
        keys.renew_server(tmp_path, ["localhost"])


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    keys.make_authority(tmp_path, ["localhost"])
    keys.make_node_key(tmp_path, "A")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ResourceError, match="never overwritten"):
        keys.make_authority(tmp_path, ["localhost"])
    with pytest.raises(ResourceError, match="never overwritten"):
        keys.make_node_key(tmp_path, "A")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_two_halves_of_a_node_key_belong_together(tmp_path: Path) -> None:
    mark = keys.make_node_key(tmp_path, "A")
    public = keys.read_public_key(tmp_path / keys.NODE_PUBLIC)
    private = serialization.load_ssh_private_key((tmp_path / keys.NODE_KEY).read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert keys.same_key(private.public_key(), public)
    assert keys.fingerprint(public) == mark
    assert (tmp_path / keys.NODE_PUBLIC).read_text().startswith("ecdsa-sha2-nistp256 ")
    assert (tmp_path / keys.NODE_PUBLIC).read_text().endswith(" A\n")


def test_fingerprints_are_easily_read_and_differ() -> None:
    marks = {keys.fingerprint(ec.generate_private_key(ec.SECP256R1()).public_key()) for _ in range(20)}
    assert len(marks) == 20
    for mark in marks:
        groups = mark.split("-")
        assert [len(group) for group in groups] == [4] * 8
        assert not set("".join(groups)) & set("0189")


def test_files_that_are_no_public_key_are_refused_with_the_cure(tmp_path: Path) -> None:
    keys.make_node_key(tmp_path, "A")
    with pytest.raises(ConfigError, match=r"is a private key(.|\n)*node\.pub"):
        keys.read_public_key(tmp_path / keys.NODE_KEY)
    other = tmp_path / "other.pub"
    other.write_bytes(b"ssh-rsa nonsense")
    with pytest.raises(ConfigError, match="is not a public key"):
        keys.read_public_key(other)
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    other.write_bytes(edwards.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH))
    with pytest.raises(ConfigError, match="P-256"):
        keys.read_public_key(other)
    with pytest.raises(ConfigError, match="cannot be read"):
        keys.read_public_key(tmp_path / "absent.pub")


@pytest.mark.parametrize(
    "name", ["https://eyes.example.org", "eyes.example.org:5000", "", "a..b", "ä.example", "x" * 300]
)
def test_names_that_no_certificate_can_hold_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        keys.make_authority(tmp_path / "new", [name])
    assert not (tmp_path / "new").exists()


@given(st.lists(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True), min_size=1, max_size=4))
def test_every_host_name_is_understood(labels: list[str]) -> None:
    assert keys._alternative_names([".".join(labels)]) is not None
