"""What a node is told at a coordinator's door, over real TLS, and what it makes of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from manyeyes.errors import ConfigError, ProtocolError, RunError
from manyeyes.federation import door as door_module
from manyeyes.federation import greeting as greeting_module
from manyeyes.federation.admission import Members
from manyeyes.federation.door import Door, serve_door
from manyeyes.federation.greeting import greet
from manyeyes.federation.keys import (
    AUTHORITY,
    NODE_KEY,
    NODE_PUBLIC,
    make_authority,
    make_node_key,
    read_public_key,
    renew_server,
)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    # No SuperLink stands behind it: the door answers for itself.
    door = Door(Members(folder), "https://localhost:9", folder / AUTHORITY)
    server, listener = serve_door(door, folder, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def coordinator(tmp_path: Path) -> Path:
    folder = tmp_path / "coordinator"
    make_authority(folder, ["localhost"])
    make_node_key(tmp_path / "A", "A")
    return folder


def admit(coordinator: Path, node: Path, name: str = "A") -> None:
    Members(coordinator).admit(name, read_public_key(node / NODE_PUBLIC))


def test_a_node_that_was_admitted_may_come_in_and_a_revoked_one_no_longer(coordinator: Path, tmp_path: Path) -> None:
    node = tmp_path / "A"
    with opened(coordinator) as port:
        url = f"https://localhost:{port}"
        with pytest.raises(RunError, match=r"does not let this node in.*manyeyes coordinator admit A --key node.pub"):
            greet("A", url, coordinator / AUTHORITY, node)
        admit(coordinator, node)
        greet("A", url, coordinator / AUTHORITY, node)
        Members(coordinator).revoke("A")
        with pytest.raises(RunError, match="was revoked"):
            greet("A", url, coordinator / AUTHORITY, node)


def test_a_node_that_the_coordinator_knows_by_another_name_is_told_so(coordinator: Path, tmp_path: Path) -> None:
    admit(coordinator, tmp_path / "A")
    with (
        opened(coordinator) as port,
        pytest.raises(ConfigError, match=r"is B, but .* admitted this key as A.*node-id A"),
    ):
        greet("B", f"https://localhost:{port}", coordinator / AUTHORITY, tmp_path / "A")


def test_a_wrong_authority_and_a_wrong_name_are_told_apart(coordinator: Path, tmp_path: Path) -> None:
    admit(coordinator, tmp_path / "A")
    make_authority(tmp_path / "other", ["localhost"])
    with opened(coordinator) as port:
        with pytest.raises(ConfigError, match=r"other/ca\.crt: authority: is not of the authority that signed"):
            greet("A", f"https://localhost:{port}", tmp_path / "other" / AUTHORITY, tmp_path / "A")
        with pytest.raises(ConfigError, match=r"not for the name 127\.0\.0\.1.*renew --name 127\.0\.0\.1"):
            greet("A", f"https://127.0.0.1:{port}", coordinator / AUTHORITY, tmp_path / "A")


@pytest.mark.parametrize(("days", "said"), [(-800, "has expired"), (2, "is not valid yet")])
def test_a_certificate_out_of_its_time_is_named_with_this_clock(
    coordinator: Path, tmp_path: Path, days: int, said: str
) -> None:
    renew_server(coordinator, ["localhost"], now=datetime.now(UTC) + timedelta(days=days))
    with opened(coordinator) as port, pytest.raises(RunError, match=rf"certificate that {said}.*UTC\) is right"):
        greet("A", f"https://localhost:{port}", coordinator / AUTHORITY, tmp_path / "A")


def test_a_clock_that_differs_is_named(coordinator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    admit(coordinator, tmp_path / "A")

    class Late(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(minutes=10)

    monkeypatch.setattr(greeting_module, "datetime", Late)
    with opened(coordinator) as port, pytest.raises(RunError, match=r"clock differs .* by 60\d s\. Set the clock"):
        greet("A", f"https://localhost:{port}", coordinator / AUTHORITY, tmp_path / "A")


def test_another_version_is_named(coordinator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    admit(coordinator, tmp_path / "A")
    monkeypatch.setattr(door_module, "PROTOCOL_VERSION", 99)
    with opened(coordinator) as port, pytest.raises(ProtocolError, match="follows protocol version 99, this node"):
        greet("A", f"https://localhost:{port}", coordinator / AUTHORITY, tmp_path / "A")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://localhost:1", "cannot be reached"),
        ("https://nobody.invalid", "its name is not known here|cannot be reached"),
    ],
)
def test_a_coordinator_that_is_not_there_is_waited_for(coordinator: Path, tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(RunError, match=said):
        greet("A", url, coordinator / AUTHORITY, tmp_path / "A")


def test_a_damaged_key_is_named(coordinator: Path, tmp_path: Path) -> None:
    (tmp_path / "A" / NODE_KEY).write_text("x")
    with pytest.raises(ConfigError, match=r"node\.key: is not a node's key"):
        greet("A", "https://localhost:1", coordinator / AUTHORITY, tmp_path / "A")
