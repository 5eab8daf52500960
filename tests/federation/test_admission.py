from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from manyeyes.errors import ConfigError
from manyeyes.federation.admission import MEMBERS, Members


def new_key() -> ec.EllipticCurvePublicKey:
    return ec.generate_private_key(ec.SECP256R1()).public_key()


def test_a_node_takes_part_from_its_admission_to_its_revocation(tmp_path: Path) -> None:
    key = new_key()
    guard = Members(tmp_path)  # as a door that runs while people work at the register
    assert guard.find(key) is None
    Members(tmp_path).admit("A", key)
    found = guard.find(key)
    assert found is not None
    assert found.node_id == "A"
    assert guard.find(new_key()) is None
    Members(tmp_path).revoke("A")
    assert guard.find(key) is None
    assert [member.revoked is None for member in guard] == [False]


def test_a_revoked_key_never_comes_back_but_its_name_can(tmp_path: Path) -> None:
    members, lost, replacement = Members(tmp_path), new_key(), new_key()
    members.admit("A", lost)
    members.revoke("A")
    with pytest.raises(ConfigError, match="was revoked, as A"):
        members.admit("A", lost)
    with pytest.raises(ConfigError, match="was revoked, as A"):
        members.admit("B", lost)
    assert members.admit("A", replacement).node_id == "A"
    assert members.find(replacement) is not None
    assert members.find(lost) is None


def test_one_name_has_one_key_and_one_key_one_name(tmp_path: Path) -> None:
    members, key = Members(tmp_path), new_key()
    members.admit("A", key)
    with pytest.raises(ConfigError, match="takes part with another key"):
        members.admit("A", new_key())
    with pytest.raises(ConfigError, match="was admitted already, as A"):
        members.admit("B", key)
    assert [member.node_id for member in members] == ["A"]


@pytest.mark.parametrize("name", ["", "../x", "a b", "-a", "x" * 65])
def test_names_that_could_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a node's name"):
        Members(tmp_path).admit(name, new_key())
    assert not (tmp_path / MEMBERS).exists()


def test_a_misspelt_name_is_not_revoked(tmp_path: Path) -> None:
    members = Members(tmp_path)
    members.admit("crossroads", new_key())
    with pytest.raises(ConfigError, match="Did you mean 'crossroads'"):
        members.revoke("crosroads")


@pytest.mark.parametrize(
    "content", ["", "[", '[{"node_id": "A"}]', '[{"node_id": "A", "public_key": "x", "admitted": ""}]']
)
def test_a_damaged_register_lets_nobody_in(tmp_path: Path, content: str) -> None:
    (tmp_path / MEMBERS).write_text(content)
    with pytest.raises(ConfigError, match="nobody can be let in"):
        Members(tmp_path).find(new_key())


def test_the_register_holds_no_secret(tmp_path: Path) -> None:
    Members(tmp_path).admit("A", new_key())
    (entry,) = json.loads((tmp_path / MEMBERS).read_text())
    assert set(entry) == {"node_id", "public_key", "admitted", "revoked", "withdrawn"}
    assert entry["public_key"].startswith("ecdsa-sha2-nistp256 ")
