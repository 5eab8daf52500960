"""What a node says when a coordinator cannot be reached or turns it away: the door over real TLS, no SuperLink."""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.federation.entrance import LONG_AGO, Entrance

from manyeyes.errors import ConfigError, ProtocolError, ResourceError, RunError
from manyeyes.federation import door as door_module
from manyeyes.federation import hello as hello_module
from manyeyes.federation.coordinator import _check_validity
from manyeyes.federation.hello import Greeter, Greeting, Work
from manyeyes.federation.joining import Place, claimed, serve
from manyeyes.federation.keys import (
    AUTHORITY,
    NODE_KEY,
    NODE_PUBLIC,
    SERVER,
    make_authority,
    make_node_key,
    read_public_key,
    renew_server,
)
from manyeyes.federation.peers import PEERS, Peers


@pytest.fixture
def entrance(tmp_path: Path) -> Entrance:
    return Entrance(tmp_path)


def test_an_admitted_node_is_let_in_and_what_it_is_at_is_known(entrance: Entrance) -> None:
    with entrance.open() as door:
        work = Work(busy=True, request_id="7")
        greeter = Greeter("A", "localhost", entrance.port, entrance.state / AUTHORITY, entrance.node, work)
        assert door.heard("A") is None
        door.met({"A": 4711})
        greeter.greet()
        said = door.heard("A")
        assert said is not None
        assert said.work == work
        assert greeter.number == 4711
        greeter.goodbye()
        assert door.heard("A") is None


def test_who_was_not_admitted_is_told_what_to_do_and_is_let_in_afterwards(entrance: Entrance, tmp_path: Path) -> None:
    make_node_key(tmp_path / "B", "B")
    with entrance.open():
        said = entrance.complaint(node_id="B", folder=tmp_path / "B")
        assert re.search(r"turns node B away: this key was not admitted, or was revoked\. At the coordinator: ", said)
        assert "manyeyes coordinator admit B" in said
        entrance.members.admit("B", read_public_key(tmp_path / "B" / NODE_PUBLIC))
        entrance.greeter("B", folder=tmp_path / "B").greet()
        entrance.members.revoke("B")
        assert "was revoked" in entrance.complaint(node_id="B", folder=tmp_path / "B")


def test_a_node_that_is_called_otherwise_at_the_coordinator_ends(entrance: Entrance) -> None:
    with entrance.open():
        assert "has admitted this key as 'A', and this node is called 'Z'" in entrance.complaint(node_id="Z")
        place = Place("Z", "localhost", entrance.port, entrance.state / AUTHORITY, entrance.node)
        with (
            claimed(place) as audit,
            pytest.raises(ConfigError, match="Name it A, or give each node its own folder and key"),
        ):
            serve(place, audit, lambda request, form: pytest.fail("asked"), lambda: None, ready=lambda: None)


def test_of_two_nodes_with_one_key_the_first_stays(
    entrance: Entrance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(entrance.node, tmp_path / "copy")
    with entrance.open():
        first, second = entrance.greeter(), entrance.greeter(folder=tmp_path / "copy")
        first.greet()
        with pytest.raises(RunError, match=r"a process with the same key is at 127\.0\.0\.1.* needs a key of its own"):
            second.greet()
        second.goodbye()
        first.greet()
        for _ in range(5):
            assert not second.joined()
        assert len([r for r in caplog.records if r.name == hello_module.__name__]) == 1
        assert len([r for r in caplog.records if r.name == door_module.__name__]) == 1
        first.goodbye()
        second.greet()
        monkeypatch.setattr(door_module, "LEASE_SECONDS", 0.2)
        time.sleep(0.3)
        first.greet()


def test_the_coordinator_hears_until_when_a_node_is_away(entrance: Entrance, tmp_path: Path) -> None:
    shutil.copytree(entrance.node, tmp_path / "copy")
    presence = entrance.presence
    with entrance.open():
        greeter = entrance.greeter()
        greeter.greet()
        # Who has no place cannot give it up.
        entrance.greeter(folder=tmp_path / "copy").goodbye("for good")
        assert presence.nodes()["A"].online(presence.now())
        greeter.goodbye("until midnight\n" + 200 * "!")
        assert not presence.nodes()["A"].online(presence.now())
        assert presence.nodes()["A"].away == ("until midnight " + 200 * "!")[:100]
        greeter.greet()
        assert presence.nodes()["A"].online(presence.now())


def test_a_node_learns_whose_keys_the_others_have_and_hears_of_another_one(
    entrance: Entrance, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(2)]
    first = entrance.members.admit("B", keys[0])
    with entrance.open():
        greeter = entrance.greeter()
        greeter.greet()
        known = {peer.node_id: peer.fingerprint for peer in Peers(entrance.node)}
        assert known == {member.node_id: member.fingerprint for member in entrance.members}
        before = (entrance.node / PEERS).stat().st_mtime_ns
        entrance.greeter().greet()
        assert (entrance.node / PEERS).stat().st_mtime_ns == before, "what is known is not told again"

        entrance.members.revoke("B")
        greeter.greet()
        assert not caplog.records
        second = entrance.members.admit("B", keys[1])
        greeter.greet()
        (warning,) = caplog.records
        assert f"node B has another key now: {second.fingerprint} (before: {first.fingerprint})" in warning.message
        assert [(p.fingerprint, p.until is None) for p in Peers(entrance.node) if p.node_id == "B"] == [
            (first.fingerprint, False),
            (second.fingerprint, True),
        ]


def test_a_node_that_was_killed_is_let_in_again_at_once(entrance: Entrance) -> None:
    with entrance.open():
        entrance.greeter().greet()
        entrance.greeter().greet()


def test_one_folder_is_served_by_one_process(entrance: Entrance) -> None:
    place = Place("A", "localhost", 1, entrance.state / AUTHORITY, entrance.node)
    with (
        claimed(place),
        pytest.raises(ResourceError, match="another process serves this node already"),
        claimed(place),
    ):
        pytest.fail("both were let in")
    with claimed(place):
        pass


def test_clocks_that_differ_are_named(entrance: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(seconds=400)

    monkeypatch.setattr(hello_module, "datetime", Late)
    with entrance.open():
        said = entrance.complaint()
    assert re.search(r"this node's clock differs from the coordinator's by 40\d s\. Set the clocks", said)


def test_another_protocol_version_is_named_with_both(entrance: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "PROTOCOL_VERSION", 1)
    with entrance.open():
        said = entrance.complaint()
    assert "follows protocol version 1, this node follows" in said
    assert "Install the same version" in said


def test_a_coordinator_that_does_not_run_and_a_name_that_does_not_exist(entrance: Entrance) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = int(listener.getsockname()[1])
    assert f"nothing listens at localhost:{free}. Is the coordinator running?" in entrance.complaint(port=free)
    assert "the name 'no.such.invalid' cannot be found" in entrance.complaint(host="no.such.invalid", port=free)


def test_a_network_that_is_cut(entrance: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hello_module, "_TIMEOUT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = entrance.complaint(port=int(silent.getsockname()[1]))
    assert "does not answer within 0 s. Is the network cut" in said


def test_a_port_without_tls_and_one_that_hangs_up(entrance: Entrance) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = int(plain.getsockname()[1])

        def answer(words: bytes) -> None:
            other, _ = plain.accept()
            other.recv(1000)
            other.sendall(words)
            other.close()

        for words, expected in ((b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"), (b"", "hung up|broke")):
            thread = threading.Thread(target=answer, args=(words,), daemon=True)
            thread.start()
            assert re.search(expected, entrance.complaint(port=port))
            thread.join(5)


def test_a_certificate_for_another_name(entrance: Entrance) -> None:
    renew_server(entrance.state, ["eyes.example.org"])
    with entrance.open():
        said = entrance.complaint()
    assert "the certificate of the coordinator at localhost" in said
    assert "is not made out for 'localhost'. At the coordinator: manyeyes coordinator renew --name localhost" in said


def test_an_address_that_the_certificate_is_not_for(entrance: Entrance) -> None:
    with (
        entrance.open(),
        pytest.raises(ConfigError, match=r"not made out for '127\.0\.0\.1'.*renew --name 127\.0\.0\.1"),
    ):
        entrance.greeter(host="127.0.0.1").greet()


def test_what_only_a_change_can_mend_ends_a_node_at_its_start_and_is_waited_for_later(
    entrance: Entrance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_authority(tmp_path / "other", ["localhost"])
    with entrance.open():
        stranger = Greeter("A", "localhost", entrance.port, tmp_path / "other" / AUTHORITY, entrance.node)
        known = entrance.greeter()
        assert known.joined()
        for greeter in (stranger, entrance.greeter(node_id="Z"), entrance.greeter(host="127.0.0.1")):
            with pytest.raises(ConfigError):
                greeter.joined()
        monkeypatch.setattr(door_module, "PROTOCOL_VERSION", 99)
        with pytest.raises(ProtocolError, match="follows protocol version 99, this node"):
            entrance.greeter().joined()
        assert not known.joined()
        assert known.complaint is not None
        assert "follows protocol version 99" in known.complaint
        monkeypatch.undo()
        assert known.joined()
        assert known.complaint is None


def test_a_certificate_that_has_expired(entrance: Entrance) -> None:
    renew_server(entrance.state, ["localhost"], now=LONG_AGO)
    with entrance.open():
        said = entrance.complaint()
    assert re.search(r"has expired\. At the coordinator: manyeyes coordinator renew .* UTC\) is right", said)
    with pytest.raises(ConfigError, match=r"server\.pem: has expired.* manyeyes coordinator renew"):
        _check_validity(entrance.state / SERVER)


def test_a_certificate_that_is_not_valid_yet(entrance: Entrance) -> None:
    renew_server(entrance.state, ["localhost"], now=datetime.now(UTC) + timedelta(days=2))
    with entrance.open():
        assert re.search(r"is not valid yet\. Is this machine's clock right\? It shows .*UTC", entrance.complaint())


def test_an_authority_that_has_expired(tmp_path: Path) -> None:
    make_authority(tmp_path / "old", ["localhost"], now=LONG_AGO)
    make_node_key(tmp_path / "A", "A")
    with pytest.raises(ConfigError, match=r"ca\.crt: the certificate of the coordinator's authority has expired"):
        Greeter("A", "localhost", 1, tmp_path / "old" / AUTHORITY, tmp_path / "A")
    with pytest.raises(ConfigError, match=r"has expired, so no node would come\. Make a new authority"):
        _check_validity(tmp_path / "old" / AUTHORITY)


def test_the_authority_of_another_coordinator(entrance: Entrance, tmp_path: Path) -> None:
    make_authority(tmp_path / "other", ["localhost"])
    with entrance.open():
        greeter = Greeter("A", "localhost", entrance.port, tmp_path / "other" / AUTHORITY, entrance.node)
        with pytest.raises(ConfigError, match=r"is not signed by the authority in .*ca\.crt.* stands in between"):
            greeter.greet()


def test_a_key_that_others_can_read_or_that_is_none(entrance: Entrance) -> None:
    (entrance.node / NODE_KEY).chmod(0o644)
    with pytest.raises(ResourceError, match="chmod 600"):
        entrance.greeter(port=1)
    (entrance.node / NODE_KEY).write_text("no key")
    (entrance.node / NODE_KEY).chmod(0o600)
    with pytest.raises(ConfigError, match="is not a node's key"):
        entrance.greeter(port=1)


GREETING = {
    "instance": "a",
    "place": "b",
    "leaving": False,
    "away": "",
    "work": {"busy": False, "request_id": ""},
    "peers": "",
}
WRONG: list[dict[str, Any]] = [{"instance": 1}, {"work": {"busy": "no", "request_id": ""}}, {"away": 5}, {"peers": []}]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        *(json.dumps({**GREETING, **wrong}).encode() for wrong in WRONG),
        b"[" * 900,
    ],
)
def test_a_greeting_that_is_none_is_refused(text: bytes, entrance: Entrance) -> None:
    assert Greeting.read(json.dumps(GREETING).encode(), "somewhere").host == "somewhere"
    with pytest.raises(ProtocolError, match="the greeting"):
        Greeting.read(text, "somewhere")
    with entrance.open():
        status, said = entrance.greeter().post(hello_module.HELLO, text)
        assert (status, "greeting" in said) == (400, True)
        assert entrance.greeter().post(hello_module.HELLO, b"x" * 2000)[0] == 413


def test_a_supernode_of_which_a_part_is_not_heard_while_its_node_is_shows(
    entrance: Entrance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hello_module, "_UNHEARD_SECONDS", 0.5)
    heartbeat, pull = "/v1/fleet/send-node-heartbeat", "/v1/fleet/pull-messages"
    work = Work()
    with entrance.open():
        greeter, began = entrance.greeter(work=work), time.monotonic()
        assert not greeter.unheard(began)
        assert greeter.joined()
        assert not greeter.unheard(began)
        time.sleep(0.7)
        assert greeter.joined()
        assert greeter.unheard(began)
        assert not greeter.unheard(time.monotonic())
        for dead in (heartbeat, pull):
            greeter.post({heartbeat: pull, pull: heartbeat}[dead], b"")
            assert greeter.joined()
            assert greeter.unheard(began), f"of {dead} nothing was heard"
            time.sleep(0.7)
        greeter.post(heartbeat, b"")
        work.busy = True
        assert greeter.joined()
        assert not greeter.unheard(began), "who trains asks for nothing"
        work.busy = False
        greeter.post(pull, b"")
        greeter.post(heartbeat, b"")
        assert greeter.joined()
        assert not greeter.unheard(began)
    assert not greeter.joined()
    assert not greeter.unheard(began)


def test_a_fault_is_logged_once_and_so_is_its_end(entrance: Entrance, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with entrance.open():
        greeter = entrance.greeter()
    for _ in range(3):
        assert not greeter.joined()
    with entrance.open():
        greeter._port = entrance.port
        assert greeter.joined()
        assert greeter.joined()
    said = [record.getMessage() for record in caplog.records if record.name == hello_module.__name__]
    assert len(said) == 2
    assert "this node goes on trying" in said[0]
    assert "lets node A in" in said[1]
