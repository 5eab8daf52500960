"""One picture has a network alone; several share it, in the order they came."""

from __future__ import annotations

import threading
import time

import pytest

from manyeyes.runtime.turns import Turns


class Askers:
    """Threads that ask for turns one after the other, and write down how they got them."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.got, self.threads = turns, [], []
        self.most, self._now, self._lock = 0, 0, threading.Lock()

    def start(self, name: str, *, alone: bool = False) -> None:
        """Return when it waits."""
        before = len(self.turns._waiting)
        thread = threading.Thread(target=self._ask, args=(name, alone))
        thread.start()
        self.threads.append(thread)
        while len(self.turns._waiting) == before:
            time.sleep(0.001)

    def _ask(self, name: str, alone: bool) -> None:
        with self.turns.turn(alone=alone) as is_alone:
            with self._lock:
                self.got.append((name, is_alone))
                self._now += 1
                self.most = max(self.most, self._now)
            time.sleep(0.05)
            with self._lock:
                self._now -= 1

    def ended(self) -> list[tuple[str, bool]]:
        for thread in self.threads:
            thread.join(timeout=10)
        assert not any(thread.is_alive() for thread in self.threads)
        return self.got


def test_who_finds_nobody_else_is_alone() -> None:
    turns = Turns(3)
    for _ in range(3):
        with turns.turn() as alone:
            assert alone


def test_those_who_wait_share_in_the_order_they_came() -> None:
    turns = Turns(2)
    askers = Askers(turns)
    with turns.turn() as alone:
        assert alone
        for name in "abcde":
            askers.start(name)
        assert not askers.got
    got = askers.ended()
    # Two have their turns at the same time, and either may be the first to write it down, or be held up for a turn.
    assert all(abs("abcde".index(name) - place) <= 2 for place, (name, _) in enumerate(got)), got
    assert not any(is_alone for _, is_alone in got)
    assert askers.most <= 2
    with turns.turn() as alone:
        assert alone


def test_one_after_the_other_where_nothing_is_shared() -> None:
    turns = Turns(1)
    askers = Askers(turns)
    with turns.turn():
        for name in "abc":
            askers.start(name)
    assert askers.ended() == [("a", True), ("b", True), ("c", True)]
    assert askers.most == 1


def test_who_insists_has_nobody_beside() -> None:
    turns = Turns(3)
    askers = Askers(turns)
    with turns.turn():
        for name, insists in (("a", False), ("b", False), ("alone", True), ("c", False)):
            askers.start(name, alone=insists)
    got = askers.ended()
    assert sorted(got[:2]) == [("a", False), ("b", False)]
    assert got[2:] == [("alone", True), ("c", True)]
    assert askers.most <= 2


def test_who_fails_or_is_interrupted_leaves_the_turn_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(1)
    with pytest.raises(ZeroDivisionError), turns.turn():
        raise ZeroDivisionError
    askers = Askers(turns)

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    with turns.turn():
        with monkeypatch.context() as patched:
            patched.setattr(threading.Event, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt), turns.turn():
                pytest.fail("it has a turn")
        askers.start("a")
    assert askers.ended() == [("a", True)]
