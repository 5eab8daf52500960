"""Passwords, sessions, tokens, and how often one may guess."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.errors import ConfigError, ResourceError
from manyeyes.web import access as module
from manyeyes.web.access import Access, Guesses, Role

PASSWORD = "correct horse battery"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def access(tmp_path: Path) -> Access:
    return Access(tmp_path)


def test_without_a_password_it_is_open_and_no_password_is_right(access: Access) -> None:
    assert not access.guarded
    assert access.role_of_password("") is None
    assert access.role_of_password(PASSWORD) is None


def test_each_password_has_its_role(access: Access) -> None:
    access.set_password(Role.viewer, "only looking here")
    access.set_password(Role.administrator, PASSWORD)
    assert access.guarded
    assert access.role_of_password("only looking here") is Role.viewer
    assert access.role_of_password(PASSWORD) is Role.administrator
    for wrong in ("", "only looking her", "only looking here ", "ONLY LOOKING HERE", PASSWORD[:-1], PASSWORD + " "):
        assert access.role_of_password(wrong) is None


def test_of_one_password_for_both_the_greater_role_holds(access: Access) -> None:
    access.set_password(Role.administrator, PASSWORD)
    access.set_password(Role.viewer, PASSWORD)
    assert access.role_of_password(PASSWORD) is Role.administrator


def test_a_new_password_takes_the_place_of_the_old_one(access: Access, tmp_path: Path) -> None:
    access.set_password(Role.viewer, "only looking here")
    access.set_password(Role.viewer, "looking here again")
    assert Access(tmp_path).role_of_password("only looking here") is None
    assert Access(tmp_path).role_of_password("looking here again") is Role.viewer


def test_no_password_can_be_read_in_its_file_and_two_alike_do_not_look_alike(access: Access, tmp_path: Path) -> None:
    for role in Role:
        access.set_password(role, PASSWORD)
    path = tmp_path / "passwords.json"
    assert PASSWORD not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    kept = json.loads(path.read_text())
    assert kept["viewer"]["salt"] != kept["administrator"]["salt"]
    assert kept["viewer"]["scrypt"] != kept["administrator"]["scrypt"]


@pytest.mark.parametrize("password", ["", "short", "a" * 9, "a" * 1001])
def test_a_password_too_short_or_too_long_is_not_set(access: Access, password: str) -> None:
    with pytest.raises(ConfigError, match="10 characters"):
        access.set_password(Role.viewer, password)
    assert not access.guarded


def test_letters_of_all_kinds_are_letters(access: Access) -> None:
    access.set_password(Role.viewer, "密码密码密码密码密码🔑")
    assert access.role_of_password("密码密码密码密码密码🔑") is Role.viewer


@pytest.mark.parametrize("content", ["", "[]", '{"viewer": {}}', '{"viewer": {"salt": 1, "scrypt": 2}}', "\x80"])
def test_a_damaged_file_of_passwords_opens_nothing(access: Access, tmp_path: Path, content: str) -> None:
    (tmp_path / "passwords.json").write_text(content)
    with pytest.raises(ResourceError, match="damaged"):
        access.role_of_password(PASSWORD)
    with pytest.raises(ResourceError, match="damaged"):
        _ = access.guarded


def test_a_session_allows_what_its_password_did_until_it_ends(access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    session = access.begin_session(Role.viewer)
    other = access.begin_session(Role.administrator)
    assert (access.role_of_session(session), access.role_of_session(other)) == (Role.viewer, Role.administrator)
    access.end_session(session)
    assert (access.role_of_session(session), access.role_of_session(other)) == (None, Role.administrator)
    clock.now += 12 * 3600
    assert access.role_of_session(other) is None
    for never in ("", "x", session[:-1], session.upper()):
        assert access.role_of_session(never) is None


def test_sessions_do_not_outlive_the_process_nor_grow_without_end(access: Access, tmp_path: Path) -> None:
    first = access.begin_session(Role.viewer)
    assert Access(tmp_path).role_of_session(first) is None
    last = [access.begin_session(Role.viewer) for _ in range(1000)][-1]
    assert (access.role_of_session(first), access.role_of_session(last)) == (None, Role.viewer)


def test_tokens_are_told_apart_and_taken_back_one_by_one(access: Access, tmp_path: Path) -> None:
    robot, press = access.make_token("robot", Role.viewer), access.make_token("press", Role.administrator)
    assert (access.role_of_token(robot), access.role_of_token(press)) == (Role.viewer, Role.administrator)
    assert [token.name for token in access.tokens()] == ["robot", "press"]
    text = (tmp_path / "tokens.json").read_text()
    assert robot not in text
    assert press not in text
    access.revoke_token("robot")
    assert (access.role_of_token(robot), access.role_of_token(press)) == (None, Role.administrator)
    for never in ("", "me_", robot, press[:-1], press.upper(), access.tokens()[0].sha256):
        assert access.role_of_token(never) is None
    with pytest.raises(ConfigError, match="no token 'robot'"):
        access.revoke_token("robot")


def test_two_tokens_have_two_names(access: Access) -> None:
    access.make_token("robot", Role.viewer)
    with pytest.raises(ConfigError, match="already"):
        access.make_token("robot", Role.administrator)
    for wrong in ("", "  ", "a" * 101):
        with pytest.raises(ConfigError, match="needs a name"):
            access.make_token(wrong, Role.viewer)


def test_tokens_that_are_made_at_a_time_are_all_there(access: Access) -> None:
    threads = [threading.Thread(target=access.make_token, args=(f"robot {n}", Role.viewer)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(access.tokens()) == 8


def test_a_damaged_file_of_tokens_opens_nothing(access: Access, tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text('[{"name": "a", "role": 9, "sha256": "", "created": 0}]')
    with pytest.raises(ResourceError, match="damaged"):
        access.role_of_token("me_x")


# -- guesses ----------------------------------------------------------------------------------------------------------


def test_some_guesses_are_free_and_then_each_costs_twice_the_time() -> None:
    clock = Clock()
    guesses = Guesses(3, clock)
    assert [guesses.begin("a") for _ in range(5)] == [0, 0, 0, 1, 1]
    pauses = []
    for _ in range(13):
        clock.now += (left := guesses.begin("a"))
        pauses.append(left)
        assert guesses.begin("a") == 0
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]


def test_the_right_one_makes_the_wrong_ones_forgotten() -> None:
    guesses = Guesses(2, Clock())
    assert [guesses.begin("a") for _ in range(3)] == [0, 0, 1]
    guesses.right("a")
    assert [guesses.begin("a") for _ in range(3)] == [0, 0, 1]


def test_one_address_does_not_pay_for_another() -> None:
    guesses = Guesses(1, Clock())
    assert (guesses.begin("a"), guesses.begin("a")) == (0, 1)
    assert guesses.begin("b") == 0


def test_of_many_that_guess_at_a_time_no_more_are_let_through_than_one_after_the_other() -> None:
    guesses = Guesses(5, Clock())
    found: list[float] = []
    threads = [threading.Thread(target=lambda: found.append(guesses.begin("a"))) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.count(0) == 5


def test_a_million_addresses_are_not_remembered_and_the_latest_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_ADDRESSES", 10)
    guesses = Guesses(1, Clock())
    for number in range(100):
        assert guesses.begin(str(number)) == 0
    assert [guesses.begin(str(number)) for number in (99, 95, 0)] == [1, 1, 0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2000), st.booleans()), max_size=30), st.integers(1, 5))
def test_whoever_waits_as_long_as_told_may_guess_and_nobody_before(steps: list[tuple[float, bool]], free: int) -> None:
    clock = Clock()
    guesses = Guesses(free, clock)
    for pause, patient in steps:
        left = guesses.begin("a")
        assert 0 <= left <= 900
        if left and not patient:
            clock.now += min(pause, left * 0.99)
            assert guesses.begin("a") > 0
        clock.now += guesses.begin("a") or pause
