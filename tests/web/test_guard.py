"""What comes before every page: names, origins, sizes and patience."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message, Scope
from starlette.websockets import WebSocket

from manyeyes.web.guard import CSRF_HEADER, Guard, Rules

RULES = Rules(names=frozenset({"edge.example", "10.0.0.5"}), body_bytes={"/large": 1_000_000}, patience=0.2)


async def echo(request: Request) -> JSONResponse:
    return JSONResponse({"bytes": len(await request.body())})


async def greet(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close()


def app(rules: Rules = RULES) -> Guard:
    methods = ["GET", "POST", "PUT", "DELETE"]
    routes = [Route(path, echo, methods=methods) for path in ("/", "/large", "/disk")]
    return Guard(Starlette(routes=[*routes, WebSocketRoute("/", greet)]), rules)


def asked(
    guard: Guard,
    method: str = "GET",
    path: str = "/",
    pieces: Iterable[bytes] = (b"",),
    pause: float = 0.0,
    kind: str = "http",
    **headers: str,
) -> list[Message]:
    """What the guard and all behind it send; a body comes in pieces, with a pause before each."""
    named = {"host": "localhost:5001", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope: Scope = {
        "type": kind,
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in named.items()],
        "scheme": "http",
        "server": ("127.0.0.1", 5001),
        "client": ("127.0.0.1", 40000),
        "subprotocols": [],
    }
    waiting = list(pieces)
    sent: list[Message] = []

    async def receive() -> Message:
        if kind == "websocket":
            return {"type": "websocket.connect"}
        await asyncio.sleep(pause)
        if not waiting:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent


def status(sent: list[Message]) -> int:
    return int(sent[0]["status"])


def headers_of(sent: list[Message]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:80", "127.0.0.1:5001", "[::1]:5001", "edge.example", "Edge.Example:443", "10.0.0.5"],
)
def test_it_knows_its_names(host: str) -> None:
    assert status(asked(app(), host=host)) == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "evil.example",
        "localhost.",
        "localhost.evil.example",
        "evil.example:localhost",
        "localhost@evil.example",
        "evil.example@localhost",
        "localhost/..",
        "localhost#",
        "localhost?",
        "localhost:port",
        "localhost:123456",
        "127.0.0.2",
        "127.1",
        "2130706433",
        "[::1",
        "::1",
        "10.0.0.6",
        "edge.example.evil.example",
        "xn--edge.example",
    ],
)
def test_it_knows_no_other_name(host: str) -> None:
    sent = asked(app(), host=host)
    assert status(sent) == 421
    assert b"start it with --name NAME" in sent[1]["body"]


def test_where_it_listens_on_all_addresses_each_is_its_name_but_no_name_is() -> None:
    everywhere = app(Rules(any_address=True))
    for host, expected in (("192.168.1.9:5001", 200), ("[fd00::1]:5001", 200), ("evil.example", 421), ("1.2.3", 421)):
        assert status(asked(everywhere, host=host)) == expected


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=40))
def test_no_text_is_a_name_of_it_by_chance(host: str) -> None:
    known = RULES.knows(host)
    names = ("localhost", "127.0.0.1", "edge.example", "10.0.0.5")
    assert not known or host.lower().partition(":")[0] in names or host.startswith("[::1]")


@settings(max_examples=200, deadline=None)
@given(st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True), st.sampled_from(["localhost", "127.0.0.1", "edge.example"]))
def test_what_stands_before_or_after_a_name_makes_another_of_it(more: str, name: str) -> None:
    assert not RULES.knows(f"{more}.{name}")
    assert not RULES.knows(f"{name}.{more}")
    assert not RULES.knows(f"{name}@{more}")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost:5001", 200),
        ("https://localhost:5001", 403),
        ("http://localhost", 403),
        ("http://localhost:5001/", 403),
        ("http://127.0.0.1:5001", 403),
        ("HTTP://LOCALHOST:5001", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_only_its_own_pages_may_ask(method: str, origin: str, expected: int) -> None:
    sent = asked(app(), method, origin=origin, **{CSRF_HEADER.replace("-", "_"): "1"})
    assert status(sent) == expected


def test_with_tls_its_pages_have_it_too() -> None:
    secure = app(Rules(secure=True))
    assert status(asked(secure, origin="https://localhost:5001")) == 200
    assert status(asked(secure, origin="http://localhost:5001")) == 403
    assert headers_of(asked(secure))["strict-transport-security"] == "max-age=31536000"
    assert "strict-transport-security" not in headers_of(asked(app()))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE"])
@pytest.mark.parametrize("sign", [{"cookie": "a=b"}, {"sec_fetch_site": "none"}, {"origin": "http://localhost:5001"}])
def test_a_browser_that_changes_something_says_the_header(method: str, sign: dict[str, str]) -> None:
    assert status(asked(app(), method, **sign)) == 403
    assert status(asked(app(), method, x_manyeyes="1", **sign)) in (200, 405)
    assert status(asked(app(), "GET", **sign)) == 200


def test_a_program_needs_no_header_and_a_page_of_elsewhere_cannot_help_itself_with_it() -> None:
    assert status(asked(app(), "POST")) == 200
    for site in ("cross-site", "same-site", "CROSS-SITE", ""):
        assert status(asked(app(), "POST", sec_fetch_site=site, x_manyeyes="1")) == 403


def test_every_answer_and_refusal_has_the_headers_of_a_careful_server() -> None:
    for sent in (asked(app()), asked(app(), path="/none"), asked(app(), host="evil.example"), asked(app(), "TRACE")):
        headers = headers_of(sent)
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("path", "length", "expected"),
    [
        ("/", "65536", 200),
        ("/", "65537", 413),
        ("/large", "1000000", 200),
        ("/large", "1000001", 413),
        ("/large/", "65537", 413),
        ("/", "9" * 20, 413),
        ("/", "9" * 5000, 413),
        ("/", "0" * 5000, 413),
        ("/", "-1", 400),
        ("/", "+1", 400),
        ("/", "", 400),
        ("/", "1e3", 400),
        ("/", "١٢", 400),
        ("/", "²", 400),
    ],
)
def test_a_body_that_says_that_it_is_too_large_is_not_read(path: str, length: str, expected: int) -> None:
    try:
        length.encode("latin-1")
    except UnicodeEncodeError:
        length = length.encode().decode("latin-1")
    sent = asked(app(), "POST", path, content_length=length)
    assert status(sent) == expected


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=6))
def test_a_body_that_says_nothing_is_counted(sizes: list[int]) -> None:
    patient = app(replace(RULES, patience=5))  # what is tested is the size, also on a busy machine
    sent = asked(patient, "POST", pieces=[bytes(size) for size in sizes])
    assert status(sent) == (200 if sum(sizes) <= 65_536 else 413)


def test_what_does_not_come_is_not_waited_for() -> None:
    assert status(asked(app(), "POST", pieces=[])) == 408


def test_what_comes_too_slowly_is_not_waited_for() -> None:
    # Each piece in time, and the whole without end.
    assert status(asked(app(), "POST", pieces=[b"a"] * 100, pause=0.05)) == 408
    assert status(asked(app(), "POST", pieces=[bytes(2000)] * 10, pause=0.05)) == 200


def test_bodies_share_the_memory_there_is_and_give_it_back() -> None:
    guard = app(Rules(body_bytes={"/large": 1000, "/disk": 5000}, on_disk={"/disk"}, memory_bytes=1500, patience=5))

    def ask() -> int:
        return status(asked(guard, "POST", "/large", pieces=[bytes(900), bytes(100)], pause=0.2))

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: ask(), range(3)))
    assert set(found) == {200, 503}
    assert status(asked(guard, "POST", "/disk", pieces=[bytes(5000)])) == 200
    assert [ask() for _ in range(3)] == [200, 200, 200]


def test_a_web_socket_is_refused_before_it_is_one() -> None:
    assert asked(app(), kind="websocket")[0]["type"] == "websocket.accept"
    for wrong in ({"origin": "https://evil.example"}, {"origin": "null"}, {"host": "evil.example"}):
        (sent,) = asked(app(), kind="websocket", **wrong)
        assert (sent["type"], sent["code"]) == ("websocket.close", 1008)


def test_what_is_neither_passes() -> None:
    seen: list[Any] = []

    async def behind(scope: Scope, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(Guard(behind, RULES)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
