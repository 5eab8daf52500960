from __future__ import annotations

from manyeyes.federation.presence import ONLINE_SECONDS, Presence
from report.synthetic import Clock


def test_a_node_is_there_for_half_a_minute_after_its_last_request() -> None:
    clock = Clock()
    presence = Presence(clock)
    presence.came("A", "/v1/fleet/pull-messages")
    clock.passes(ONLINE_SECONDS)
    assert presence.nodes()["A"].online(clock())
    clock.passes(1)
    assert not presence.nodes()["A"].online(clock())


def test_a_long_request_shows_that_its_node_is_there() -> None:
    clock = Clock()
    presence = Presence(clock)
    presence.came("A", "/v1/fleet/push-object")
    for _ in range(3):
        clock.passes(ONLINE_SECONDS - 1)
        presence.carried("A", "up", 1000)
    seen = presence.nodes()["A"]
    assert seen.online(clock())
    assert (seen.bytes_up, seen.bytes_down) == (3000, 0)


def test_a_node_that_says_goodbye_is_gone_until_it_comes_again() -> None:
    presence = Presence(Clock())
    presence.came("A", "/v1/fleet/deactivate-node")
    presence.carried("A", "down", 2)
    assert not presence.nodes()["A"].online(presence.now())
    presence.came("A", "/v1/fleet/activate-node")
    assert presence.nodes()["A"].online(presence.now())


def test_a_node_may_say_until_when_it_is_away() -> None:
    presence = Presence(Clock())
    presence.came("A", "/v1/fleet/deactivate-node")
    presence.went("A", "until midnight")
    seen = presence.nodes()["A"]
    assert (seen.online(presence.now()), seen.away) == (False, "until midnight")
    presence.came("A", "/v1/manyeyes/hello")
    seen = presence.nodes()["A"]
    assert (seen.online(presence.now()), seen.away) == (True, "")
