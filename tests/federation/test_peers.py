from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.errors import ConfigError, ProtocolError, ResourceError
from manyeyes.federation import peers as peers_module
from manyeyes.federation.peers import PEERS, Peers, digest_of, listed


def ssh(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


KEYS = [ssh(ec.generate_private_key(ec.SECP256R1()).public_key()) for _ in range(3)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("ABCD"), st.sampled_from(KEYS)), min_size=1, max_size=5))
def test_whatever_is_told_the_last_list_counts_and_all_others_are_remembered(
    tmp_path_factory: pytest.TempPathFactory, lists: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("node")
    for told in lists:
        Peers(folder).take([list(entry) for entry in listed(told.items())])
    known = list(Peers(folder))
    assert {p.node_id: p.public_key for p in known if p.until is None} == lists[-1]
    assert {(p.node_id, p.public_key) for p in known} == {entry for told in lists for entry in told.items()}
    assert Peers(folder).digest == digest_of(listed(lists[-1].items()))


def test_only_another_key_for_a_known_name_is_worth_a_word(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    assert peers.take([["A", KEYS[0]], ["B", KEYS[1]]]) == []
    assert peers.take([["A", KEYS[0]]]) == []
    assert peers.take([["A", KEYS[0]], ["B", KEYS[1]]]) == [], "the same key as before it went"
    (said,) = peers.take([["A", KEYS[2]], ["B", KEYS[1]]])
    old, new = [peer.fingerprint for peer in peers if peer.node_id == "A"]
    assert said == f"node A has another key now: {new} (before: {old}). Ask its people whether they replaced it"


@pytest.mark.parametrize(
    "told",
    [
        None,
        "A",
        {"A": KEYS[0]},
        [["A"]],
        [["A", 5]],
        [["A B", KEYS[0]]],
        [["A", KEYS[0]], ["A", KEYS[1]]],
        [["A", "ssh-ed25519 nothing"]],
        [["A", ssh(ed25519.Ed25519PrivateKey.generate().public_key())]],
        [[f"n{i}", KEYS[0]] for i in range(10_001)],
    ],
)
def test_what_is_no_list_of_nodes_changes_nothing(tmp_path: Path, told: object) -> None:
    peers = Peers(tmp_path)
    peers.take([["A", KEYS[0]]])
    before = (tmp_path / PEERS).read_bytes()
    with pytest.raises(ProtocolError, match="the list of the other nodes"):
        peers.take(told)
    assert (tmp_path / PEERS).read_bytes() == before
    assert [peer.node_id for peer in peers] == ["A"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / PEERS).write_text('[{"node_id": "A"}]')
    with pytest.raises(ConfigError, match=r"peers\.json: is damaged\. Move it away"):
        Peers(tmp_path)


def test_what_could_not_be_kept_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise ResourceError("no space left on device")

    peers = Peers(tmp_path)
    before = peers.digest
    with monkeypatch.context() as patch:
        patch.setattr(peers_module, "write_atomically", full)
        with pytest.raises(ResourceError):
            peers.take([["A", KEYS[0]]])
    assert peers.digest == before, "the coordinator sees that this node does not know them yet"
    peers.take([["A", KEYS[0]]])
    assert Peers(tmp_path).digest == peers.digest != before
