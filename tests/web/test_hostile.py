"""What somebody sends who means no good: each is answered as it should be, and all others are served as before."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from manyeyes.web.access import Access, Role
from manyeyes.web.settings import LimitSection, ServeConfig

from .conftest import OWN, started
from .hostile import (
    bmp_that_says,
    changed,
    chunk,
    deflated_zeros,
    encrypted,
    ended_by,
    ended_by_zip64,
    jpeg_that_says,
    one_file_many_times,
    packed,
    png,
    tiff_that_says,
    unpacks_to,
    webp_that_says,
    wide_window,
)

API = "/api/v1"
LIMITS = LimitSection(
    picture_bytes=2_000_000,
    picture_pixels=20_000_000,
    pictures=3,
    zip_bytes=5_000_000,
    zip_entries=200,
    zip_unpacked=50_000_000,
    body_memory=20_000_000,
    jobs=4,
    patience=1.5,
)
# What one picture of so many pixels, and a few in archives, may need for a moment; and what may stay of it all.
MOST_GROWTH, MOST_LEFT = 400 << 20, 200 << 20
ADMINISTRATOR, VIEWER = "correct horse battery", "only looking here"


@dataclass(frozen=True)
class Server:
    """One of the servers, which are in a process of their own: what memory they take is theirs alone."""

    address: str
    number: int
    ask: Callable[..., Any]

    @property
    def host_and_port(self) -> tuple[str, int]:
        url = httpx.URL(self.address)
        return url.host, url.port or 80

    def begin_session(self, role: Role) -> str:
        return str(self.ask("session", self.number, role))


@dataclass
class World:
    """Two servers, what lies beside their folders, and how much memory they have."""

    folder: Path
    open: Server
    guarded: Server
    process: psutil.Process
    ask: Callable[..., Any]
    good: bytes
    robot: dict[str, str]
    boss: dict[str, str]
    boxes: list[Any] = field(default_factory=list)
    beside: dict[str, bytes] = field(default_factory=dict)
    rss: int = 0
    peak: int = 0

    @property
    def memory(self) -> int:
        return int(self.process.memory_info().rss)

    def what_lies_beside(self) -> dict[str, bytes]:
        """All files outside the state folders, and their content."""
        files = (path for path in self.folder.rglob("*") if not path.relative_to(self.folder).parts[0].startswith("s-"))
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in files}


@pytest.fixture(scope="module")
def world(onnx_file: Path, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    for name in ("cwd", "tmp"):
        (folder / name).mkdir()
    (folder / "canary.jpg").write_bytes(b"nobody reads or writes this")
    config = ServeConfig(
        model=onnx_file, state=folder / "s-open", threads=1, backend="openvino", precision="fp32", limits=LIMITS
    )
    guarded = config.model_copy(update={"state": folder / "s-guarded"})
    access = Access(guarded.state)
    access.set_password(Role.administrator, ADMINISTRATOR)
    access.set_password(Role.viewer, VIEWER)
    tokens = [access.make_token(role.name, role) for role in (Role.viewer, Role.administrator)]
    robot, boss = ({"authorization": f"Bearer {token}"} for token in tokens)
    with ExitStack() as stack:
        pid, addresses, ask = stack.enter_context(in_another_process([config, guarded], folder))
        servers = [Server(address, number, ask) for number, address in enumerate(addresses)]
        world = World(folder, *servers, psutil.Process(pid), ask, pictures[0].read_bytes(), robot, boss)
        with client_of(world.open) as client:
            answer = client.post(f"{API}/detect", content=world.good).raise_for_status()
        world.boxes = answer.json()["detections"]
        still_serves(world)
        world.beside = world.what_lies_beside()
        world.rss = world.peak = world.memory
        stack.enter_context(watched(world))
        yield world


@contextlib.contextmanager
def in_another_process(
    configs: list[ServeConfig], folder: Path
) -> Iterator[tuple[int | None, list[str], Callable[..., Any]]]:
    """Its number, where its servers are, and a way to ask it; see `serve_all`."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve_all, args=(configs, folder, there), daemon=True)
    process.start()
    there.close()  # so that its end is seen here

    def ask(*what: Any) -> Any:
        here.send(what)
        return here.recv()

    try:
        yield process.pid, here.recv(), ask
    finally:
        with contextlib.suppress(OSError):
            here.send(None)
        process.join(timeout=20)
        process.kill()


def serve_all(configs: list[ServeConfig], folder: Path, pipe: Connection) -> None:
    """The servers, and what a test must ask of them that no request can do."""
    os.chdir(folder / "cwd")
    tempfile.tempdir = str(folder / "tmp")
    errors: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    with ExitStack() as stack:
        servers = [stack.enter_context(started(each)) for each in configs]
        pipe.send([server.address for server in servers])
        while asked := pipe.recv():
            match asked:
                case ("session", number, role):
                    pipe.send(servers[number].edge.access.begin_session(role))
                case ("forgive", number):
                    pipe.send(servers[number].edge.guesses.right("127.0.0.1"))
                case ("errors",):
                    pipe.send(errors.copy())
                    errors.clear()


@contextlib.contextmanager
def watched(world: World) -> Iterator[None]:
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            world.peak = max(world.peak, world.memory)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield
    ended.set()
    thread.join()


def still_serves(world: World) -> None:
    """Both servers find in a picture what they always found, soon."""
    for server, headers in ((world.open, {}), (world.guarded, world.robot)):
        began = time.monotonic()
        with client_of(server) as client:
            answer = client.post(f"{API}/detect", content=world.good, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["detections"] == world.boxes
        assert time.monotonic() - began < 5


Send = Callable[[World], int]


@dataclass(frozen=True)
class Case:
    name: str
    send: Send
    status: int


def client_of(server: Server) -> httpx.Client:
    """A client of its own: the connection before may have been closed. It loads no certificates, which takes long."""
    return httpx.Client(base_url=server.address, trust_env=False, timeout=30, verify=False)


# -- ways to send -----------------------------------------------------------------------------------------------------


def http(
    method: str, path: str, *, to: str = "open", by: str = "", says: str = "", picture: bool = False, **request: Any
) -> Send:
    """A request by a well-behaved client; `picture` adds a good one to it."""

    def send(world: World) -> int:
        server: Server = getattr(world, to)
        headers = {**(getattr(world, by) if by else {}), **request.get("headers", {})}
        more = {"content": world.good} if picture else {}
        with client_of(server) as client:
            answer = client.request(method, path, **{**request, **more, "headers": headers})
        assert says in answer.text, answer.text
        assert "Traceback" not in answer.text
        assert str(world.folder) not in answer.text
        return answer.status_code

    return send


def picture(make: Callable[[bytes], bytes], says: str = "", path: str = "/detect", kind: str = "image/jpeg") -> Send:
    """A picture made of a good one, sent as it is."""

    def send(world: World) -> int:
        return http("POST", API + path, content=make(world.good), headers={"content-type": kind}, says=says)(world)

    return send


def archive(make: Callable[[bytes], bytes], *, error: str | None = None, says: str = "", files: int = 1) -> Send:
    """An archive made of a good picture; where it is taken, each of its files must have this error, or none."""

    def send(world: World) -> int:
        with client_of(world.open) as client:
            answer = client.post(f"{API}/jobs", content=make(world.good))
            assert says in answer.text, answer.text
            assert str(world.folder) not in answer.text
            if answer.status_code == 202:
                lines = results_of(client, answer.json()["id"])
                assert len(lines) == files
                for line in lines:
                    assert error is None or error in line.get("error", ""), line
                    assert str(world.folder) not in json.dumps(line)
        return answer.status_code

    return send


def results_of(client: httpx.Client, job: str) -> list[dict[str, Any]]:
    until = time.monotonic() + 20
    while (about := client.get(f"{API}/jobs/{job}").json())["state"] in ("waiting", "running"):
        assert time.monotonic() < until, about
        time.sleep(0.02)
    assert about["state"] == "done", about
    return [json.loads(line) for line in client.get(f"{API}/jobs/{job}/results").text.splitlines()]


def raw(*pieces: bytes, to: str = "open", pause: float = 0.0) -> Send:
    """Bytes as they are, with pauses between them; 0 where the connection is closed without an answer."""

    def send(world: World) -> int:
        with socket.create_connection(getattr(world, to).host_and_port, timeout=20) as connection:
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    connection.sendall(piece)
                    if pause:
                        time.sleep(pause)
            return status_of(connection)

    return send


def status_of(connection: socket.socket) -> int:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n" not in answer and (piece := connection.recv(4096)):
            answer += piece
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return int(found[1]) if found else 0


def head(line: str, *headers: str, host: str | None = "127.0.0.1") -> bytes:
    lines = [line, *([f"Host: {host}"] if host is not None else []), *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def json_body(path: str, body: bytes, method: str = "PUT", **more: Any) -> Send:
    return http(method, API + path, content=body, headers={"content-type": "application/json"}, **more)


def form(content_type: str, body: bytes, path: str = "/detect", says: str = "") -> Send:
    return http("POST", API + path, content=body, headers={"content-type": content_type}, says=says)


def login(password: str) -> Send:
    return http("POST", f"{API}/login", to="guarded", json={"password": password}, headers=OWN)


def camera(source: str, by: str = "boss", to: str = "guarded") -> Send:
    return http("POST", f"{API}/streams", to=to, by=by, json={"name": "gate", "source": source})


def web_socket(
    talk: Callable[[World, ClientConnection], int] | None = None, *, to: str = "open", path: str = "/live", **more: Any
) -> Send:
    """A WebSocket; the status of a refusal, or what comes of the talk."""

    def send(world: World) -> int:
        address = getattr(world, to).address.replace("http", "ws")
        try:
            with connect(f"{address}{API}{path}", proxy=None, max_size=None, **more) as there:
                return talk(world, there) if talk else 101
        except InvalidStatus as refused:
            return int(refused.response.status_code)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 0

    return send


def sends_too_much(world: World, there: ClientConnection) -> int:
    with contextlib.suppress(ConnectionClosed):
        there.send(bytes(LIMITS.picture_bytes + 1))
    there.recv(timeout=10)
    return 101


def sends_rubbish(world: World, there: ClientConnection) -> int:
    for text in (
        "",
        "[" * 5000,
        '{"min_score": "NaN"}',
        '{"min_score": NaN}',
        '{"min_score": 1e999}',
        "\0",
        "{}" * 999,
    ):
        there.send(text)
    there.send(b"no picture")
    assert "is not a JPEG" in json.loads(there.recv(timeout=10))["error"]
    there.send(world.good)
    assert json.loads(there.recv(timeout=10))["detections"] == world.boxes
    return 101


def floods(world: World, there: ClientConnection) -> int:
    for _ in range(300):
        there.send(world.good)
    while (answer := json.loads(there.recv(timeout=20)))["frame"] < 300:
        pass
    assert answer["detections"] == world.boxes
    assert answer["skipped"] > 100
    return 101


def another_session(world: World) -> int:
    """The cookie of a session at another server."""
    foreign = world.open.begin_session(Role.administrator)
    return http("GET", f"{API}/tokens", to="guarded", headers={"cookie": f"manyeyes={foreign}"})(world)


def session_of_a_viewer(world: World) -> int:
    session = world.guarded.begin_session(Role.viewer)
    return http("GET", f"{API}/tokens", to="guarded", headers={"cookie": f"manyeyes={session}"})(world)


def session_without_the_header(world: World) -> int:
    """What a form on a page of elsewhere sends, where a browser knows no SameSite."""
    session = world.guarded.begin_session(Role.administrator)
    headers = {"cookie": f"manyeyes={session}"}
    return http("POST", f"{API}/models/roll-back", to="guarded", headers=headers)(world)


def guesses(world: World) -> int:
    for number in range(12):
        status = login(f"a guess, number {number}")(world)
    return status


def guesses_at_a_time(world: World) -> int:
    """Those that are compared at all cost nothing but time; there must be few of them."""
    world.ask("forgive", world.guarded.number)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(login("all at once, please")(world))) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.count(401) == LIMITS.guesses
    return found.count(429)


def held_connections(world: World) -> int:
    """Many that never say what they want, or not all of it, and then leave no place taken."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(world.open.host_and_port)) for _ in range(100)]
        for number, connection in enumerate(held):
            connection.sendall((b"", b"GET / HTTP/1.1\r\n", head("POST /api/v1/detect HTTP/1.1"))[number % 2])
        still_serves(world)
        time.sleep(LIMITS.patience + 0.5)
        for connection in held:
            connection.settimeout(5)
            assert connection.recv(1000) == b""
    return 0


# -- the table --------------------------------------------------------------------------------------------------------

CHUNKED = head("PUT /api/v1/scene HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked")
UPGRADE = head(
    "GET /api/v1/live HTTP/1.1",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    host="rebind.evil.example",
)
SCENE = "PUT /api/v1/scene HTTP/1.1"
JSON = "Content-Type: application/json"
MULTIPART = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="file"'
LIED = "is not a JPEG, PNG, WebP, BMP or TIFF picture, or is damaged"
LARGE = "are not decoded"
OUT = "leads out of the archive"


def plain_zip(good: bytes) -> bytes:
    return packed(("a.jpg", good))


def zip_of(name: str) -> Callable[[bytes], bytes]:
    return lambda good: packed((name, good))


PICTURES = [
    Case("a PNG whose header says 100,000 × 100,000", picture(lambda _: png(100_000, 100_000, pixels=b"")), 422),
    Case("a legal PNG of one colour beyond the limit", picture(lambda _: png(4500, 4500), LARGE), 422),
    Case("a legal PNG of one colour within the limit", picture(lambda _: png(4400, 4400)), 200),
    Case("a PNG one pixel high", picture(lambda _: png(200_000, 1)), 200),
    Case("a PNG too wide for a JPEG, drawn", picture(lambda _: png(100_000, 20), path="/detect/picture"), 200),
    Case(
        "a JPEG whose header says more than it has", picture(lambda good: jpeg_that_says(good, 9000, 9000), LARGE), 422
    ),
    Case("a JPEG of no size", picture(lambda good: jpeg_that_says(good, 0, 0)), 422),
    Case("a BMP that says 20,000 × 20,000", picture(lambda _: bmp_that_says(20_000, 20_000)), 422),
    Case("a BMP of negative size", picture(lambda _: bmp_that_says(-4000, -4000)), 422),
    Case("a TIFF that says 60,000 × 60,000", picture(lambda _: tiff_that_says(60_000, 60_000)), 422),
    Case("a WebP that says 16,000 × 16,000", picture(lambda _: webp_that_says(16_000, 16_000)), 422),
    Case(
        "a PNG whose text becomes 200 MB",
        picture(lambda _: png(64, 64, chunk(b"zTXt", b"a\0\0" + deflated_zeros(200 << 20)))),
        422,
    ),
    Case(
        "a PNG whose colour profile becomes 200 MB",
        picture(lambda _: png(64, 64, chunk(b"iCCP", b"a\0\0" + deflated_zeros(200 << 20)))),
        422,
    ),
    Case("a PNG with a damaged sum", picture(lambda _: png(64, 64)[:-20] + bytes(20), "its pixels cannot"), 422),
    Case("the head of a JPEG", picture(lambda good: good[:200]), 422),
    Case(
        "a JPEG cut in the middle of its pixels", picture(lambda good: good[: len(good) // 2], "its pixels cannot"), 422
    ),
    Case("a JPEG that is a ZIP too is a picture", picture(lambda good: good + plain_zip(good)), 200),
    Case(
        "a GIF as a JPEG",
        picture(lambda _: b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0;", LIED),
        422,
    ),
    Case(
        "an SVG as a JPEG", picture(lambda _: b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>', LIED), 422
    ),
    Case("HTML as a JPEG", picture(lambda _: b"<!doctype html><script>alert(1)</script>", LIED), 422),
    Case("a PDF as a JPEG", picture(lambda _: b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj", LIED), 422),
    Case("an EPS as a JPEG", picture(lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", LIED), 422),
    Case("JSON that says that it is a picture", picture(lambda _: b'{"min_score": 0.1}', LIED), 422),
    Case("a picture that says that it is JSON", picture(lambda good: good, kind="application/json"), 200),
    Case("no picture", picture(lambda _: b"", "has no body"), 400),
    Case("a PNG one pixel high, for review", picture(lambda _: png(200_000, 1), path="/review"), 201),
    Case("a PNG beyond the limit, for review", picture(lambda _: png(4500, 4500), LARGE, path="/review"), 422),
    Case("HTML for review", picture(lambda _: b"<!doctype html><script>alert(1)</script>", LIED, path="/review"), 422),
    Case("a picture too large", picture(lambda good: good + bytes(2_200_000), "larger than"), 413),
    Case(
        "a picture as large as no number is",
        raw(head("POST /api/v1/detect HTTP/1.1", f"Content-Length: {'9' * 30}")),
        400,
    ),
    Case("min_score is no number", http("POST", f"{API}/detect?min_score=high", picture=True), 422),
    Case("min_score is NaN", http("POST", f"{API}/detect?min_score=nan", picture=True), 422),
    Case("min_score is infinite", http("POST", f"{API}/detect?min_score=Infinity", picture=True), 422),
    Case("min_score is negative", http("POST", f"{API}/detect?min_score=-1", picture=True), 422),
    Case("hours are NaN", http("GET", f"{API}/history/totals?hours=nan"), 422),
    Case("an id of 5000 digits", http("GET", f"{API}/history?before={'9' * 5000}"), 422),
    Case("an id beyond 64 bits", http("GET", f"{API}/history?before={2**63}"), 422),
    Case("SQL for a source", http("GET", f"{API}/history", params={"source": "' OR 1=1; DROP TABLE seen; --"}), 200),
    Case("signs of LIKE for a class", http("GET", f"{API}/history", params={"class": "%_!'\"\0"}), 200),
]

ARCHIVES = [
    Case("a ZIP in which each file is what it should be", archive(plain_zip), 202),
    Case("a ZIP before which a JPEG lies", archive(lambda good: good + plain_zip(good)), 202),
    Case("bytes that are no ZIP", archive(lambda good: good, says="cannot be opened as a ZIP"), 422),
    Case("an empty body for a ZIP", archive(lambda _: b"", says="has no body"), 400),
    Case("a ZIP without files", archive(lambda _: packed(), says="holds no file"), 422),
    Case("a ZIP cut off", archive(lambda good: plain_zip(good)[:-30]), 422),
    Case("a ZIP beyond the limit", archive(lambda _: bytes(5_200_000), says="larger than"), 413),
    Case(
        "a picture that becomes 1000 times larger",
        archive(lambda _: packed(("a.png", bytes(1_900_000))), error="more than 200 times larger"),
        202,
    ),
    Case(
        "a picture larger than a picture may be",
        archive(lambda _: packed(("a.png", os.urandom(1000) + bytes(2_100_000))), error="larger than 2 MB"),
        202,
    ),
    Case(
        "a bomb packed with bzip2",
        archive(
            lambda _: unpacks_to(packed(("a.jpg", bytes(40 << 20)), method=12), 1_900_000), error="cannot be unpacked"
        ),
        202,
    ),
    Case(
        "a bomb packed with LZMA",
        archive(
            lambda _: unpacks_to(packed(("a.jpg", bytes(40 << 20)), method=14), 1_900_000), error="cannot be unpacked"
        ),
        202,
    ),
    Case("LZMA that asks for a window of 4 GiB", archive(lambda _: wide_window(), error="cannot be unpacked"), 202),
    Case(
        "files that say that they are small and are not",
        archive(lambda _: unpacks_to(packed(("a.png", bytes(1_900_000))), 10), error="cannot be unpacked"),
        202,
    ),
    Case(
        "files that say that they are 4 GB",
        archive(lambda good: unpacks_to(plain_zip(good), 2**32 - 2), says="larger than 0.05 GB"),
        422,
    ),
    Case("many files in one place", archive(lambda good: one_file_many_times(plain_zip(good), 50), files=50), 202),
    Case(
        "many large files in one place",
        archive(lambda _: one_file_many_times(packed(("a.png", bytes(1_900_000))), 150), says="when it is unpacked"),
        422,
    ),
    Case(
        "more files than the limit",
        archive(lambda _: packed(*((f"{n}.jpg", b"") for n in range(201))), says="holds 201 files, more than 200"),
        422,
    ),
    Case(
        "thousands of folders that are no files",
        archive(lambda _: packed(*((f"{n}/", b"") for n in range(1500))), says="more than 200"),
        422,
    ),
    Case(
        "a name of 60,000 letters for each of many files",
        archive(lambda _: packed(*((f"{n}{'a' * 60_000}.jpg", b"") for n in range(5))), says="table of contents"),
        422,
    ),
    Case(
        "an end that says that there are 65,535 files",
        archive(
            lambda good: ended_by(plain_zip(good), files=0xFFFF, table=51, begins=plain_zip(good).index(b"PK\1\2"))
        ),
        202,
    ),
    Case(
        "an end whose table has 2 GB",
        archive(lambda good: ended_by(plain_zip(good), files=1, table=2**31, begins=0), says="table of contents"),
        422,
    ),
    Case(
        "an end whose table begins before the file",
        archive(lambda good: ended_by(plain_zip(good), files=1, table=100_000, begins=0), says="cannot be opened"),
        422,
    ),
    Case(
        "a ZIP64 end with numbers of 64 bits",
        archive(lambda good: ended_by_zip64(plain_zip(good), files=2**64 - 1, table=2**64 - 1, begins=2**64 - 1)),
        422,
    ),
    Case(
        "a ZIP64 end that leads far away",
        archive(lambda good: ended_by_zip64(plain_zip(good), files=1, table=51, begins=2**62), error="cannot be"),
        202,
    ),
    Case("an encrypted file", archive(lambda good: encrypted(plain_zip(good)), error="encrypted"), 202),
    Case(
        "an archive in an archive", archive(lambda good: packed(("b.zip", plain_zip(good))), error="in an archive"), 202
    ),
    Case(
        "an archive that is called a picture", archive(lambda good: packed(("b.jpg", plain_zip(good))), error=LIED), 202
    ),
    Case(
        "a picture in an archive whose header says 100,000 × 100,000",
        archive(lambda _: packed(("a.png", png(100_000, 100_000, pixels=b""))), error="picture"),
        202,
    ),
    Case(
        "a link to /etc/passwd", archive(lambda _: packed(("a.jpg", b"/etc/passwd"), link=True), error="is a link"), 202
    ),
    Case("a name that leads upwards", archive(zip_of("../../../canary.jpg"), error=OUT), 202),
    Case("a name that leads upwards in the middle", archive(zip_of("a/../../canary.jpg"), error=OUT), 202),
    Case("a name from the root", archive(zip_of("/tmp/canary.jpg"), error=OUT), 202),
    Case("a name on drive C", archive(zip_of("C:/canary.jpg"), error=OUT), 202),
    Case("a name with a stream of NTFS", archive(zip_of("canary.jpg::$DATA.jpg"), error=OUT), 202),
    Case("a name with backslashes", archive(zip_of("..\\..\\canary.jpg"), error=OUT), 202),
    Case("a name in a network of Windows", archive(zip_of("\\\\10.0.0.1\\c$\\a.jpg"), error=OUT), 202),
    Case("a name with NUL", archive(lambda good: packed(("a.jpgXpng", good)).replace(b"X", b"\0")), 202),
    Case("a name without letters", archive(lambda good: packed(("", good)), error="no picture by its name"), 202),
    Case("a name that is a dot", archive(lambda good: packed((".", good)), error="no picture by its name"), 202),
    Case("a name that is empty", archive(lambda good: packed(("a", good)).replace(b"a", b"/")), 422),
    Case("a name that is written from right to left", archive(zip_of("a\u202egpj.exe"), error="no picture by"), 202),
    Case("a name with full-width dots", archive(zip_of("\uff0e\uff0e/canary.jpg")), 202),
    Case("a name of 10,000 letters", archive(zip_of("a" * 10_000 + ".jpg")), 202),
    Case(
        "a name that is no UTF-8, and says that it is",
        archive(lambda good: packed(("ä.jpg", good)).replace("ä".encode(), b"\xff\xfe"), says="cannot be opened"),
        422,
    ),
    Case(
        "two files of one name, one of them a link",
        archive(lambda good: packed(("a.jpg", good), ("a.jpg", b"x")), files=2),
        202,
    ),
    Case(
        "a file with one name in the table and another before it",
        archive(lambda good: plain_zip(good).replace(b"a.jpg", b"b.jpg", 1), error="cannot be unpacked"),
        202,
    ),
    Case(
        "a file that begins beyond the end",
        archive(lambda good: changed(plain_zip(good), 42, b"\0\0\0\x70"), error="cannot be unpacked"),
        202,
    ),
    Case(
        "a file that is packed in a way nobody knows",
        archive(lambda good: changed(plain_zip(good), 10, b"\x63\0", local=8), error="cannot be unpacked"),
        202,
    ),
    Case(
        "ratios of 1000 with bzip2",
        archive(lambda _: packed(("a.jpg", bytes(1_900_000)), method=12), error="200 times"),
        202,
    ),
]

FORMS = [
    Case("a form without boundary", form("multipart/form-data", b"--x--"), 400),
    Case("a form that is none", form(MULTIPART, b"rubbish", says="no form that can be read"), 400),
    Case("a form with a boundary of 1000 letters", form(f"multipart/form-data; boundary={'x' * 1000}", b""), 400),
    Case(
        "a form whose letters are of no kind",
        form(f"{MULTIPART}; charset=undefined", PART + b"\r\n\r\na\r\n--x--\r\n"),
        400,
    ),
    Case("a form without a file", form(MULTIPART, PART + b"\r\n\r\nhello\r\n--x--\r\n", says="holds no file"), 400),
    Case("a part without a name", form(MULTIPART, b"--x\r\nContent-Type: image/jpeg\r\n\r\na\r\n--x--\r\n"), 400),
    Case(
        "a part whose file has no name",
        form(MULTIPART, PART + b'; filename=""\r\n\r\nabc\r\n--x--\r\n', says=LIED),
        422,
    ),
    Case("a part with a head of 100 kB", form(MULTIPART, PART + b"\r\nA: " + b"a" * 100_000), 400),
    Case("a part with 1000 headers", form(MULTIPART, PART + b"\r\nA: a" * 1000 + b"\r\n\r\n"), 400),
    Case("a field of 2 MB", form(MULTIPART, PART + b"\r\n\r\n" + b"a" * 2_000_000 + b"\r\n--x--\r\n"), 400),
    Case("100 fields", form(MULTIPART, (PART + b"\r\n\r\na\r\n") * 100 + b"--x--\r\n"), 400),
    Case("two files where there should be one", http("POST", f"{API}/detect", files=[("a", b"a"), ("b", b"b")]), 400),
    Case("more pictures than the limit", http("POST", f"{API}/detect/many", files=[("files", b"a")] * 4), 400),
    Case("several pictures in no form", http("POST", f"{API}/detect/many", picture=True), 415),
    Case(
        "names that lead upwards are shown without their way",
        http("POST", f"{API}/detect/many", files=[("files", ("../../canary.jpg", b"a"))], says='{"file":"canary.jpg",'),
        200,
    ),
    Case("a form that is no archive", http("POST", f"{API}/jobs", files={"file": ("../a.zip", b"PK")}), 422),
]

NOBODY = f"/review/{'0' * 16}/boxes"
BODIES = [
    Case("JSON cut off", json_body("/scene", b'{"scene": '), 422),
    Case("JSON 30,000 deep", json_body("/scene", b"[" * 30_000), 400),
    Case("JSON beyond 64 KiB", json_body("/scene", b'"' + b"a" * 70_000 + b'"', says="larger than"), 413),
    Case("JSON that is no UTF-8", json_body("/scene", b'{"scene": "\xff\xfe"}'), 400),
    Case("JSON with half a letter as a key", json_body("/scene", b'{"\\ud800": 1}'), 422),
    Case("JSON with half a letter as a value", json_body("/scene", b'{"scene": "\\ud800"}'), 422),
    Case("a key twice: the last one counts", json_body("/scene", b'{"scene": "night", "scene": null}'), 204),
    Case("a list instead of an object", json_body("/scene", b'["scene"]'), 422),
    Case("a number instead of text", json_body("/scene", b'{"scene": 1e999}'), 422),
    Case("NaN instead of text", json_body("/scene", b'{"scene": NaN}'), 422),
    Case("a number of 5000 digits", json_body("/scene", b'{"scene": ' + b"9" * 5000 + b"}"), 400),
    Case("a key more", json_body("/scene", b'{"scene": null, "__class__": "x"}'), 422),
    Case("an empty body for JSON", json_body("/scene", b""), 422),
    Case(
        "JSON that says that it is text",
        http("PUT", f"{API}/scene", content=b'{"scene": null}', headers={"content-type": "text/plain"}),
        422,
    ),
    Case("boxes for no picture", json_body(NOBODY, b'{"boxes": [{"class": "car", "xyxy": [NaN, 1e999, 0, 0]}]}'), 404),
    Case("boxes of a class of half a letter", json_body(NOBODY, b'{"boxes": [{"class": "\\ud800", "xyxy": []}]}'), 422),
    Case("boxes without end", json_body(NOBODY, b'{"boxes": [' + b"{}," * 20_000 + b"{}]}"), 422),
    Case("boxes of ../../canary", json_body("/review/..%2f..%2fcanary/boxes", b'{"boxes": []}'), 404),
    Case("a zone of NaN", json_body("/streams/a/counting", b'{"zones": [{"name": "a", "points": [[NaN, 0]]}]}'), 422),
    Case("a token called ../a", json_body("/tokens", b'{"name": "../a"}', "POST"), 422),
    Case("a negative Content-Length", raw(head(SCENE, JSON, "Content-Length: -1")), 400),
    Case("a Content-Length with a sign", raw(head(SCENE, JSON, "Content-Length: +5")), 400),
    Case("a Content-Length that is no number", raw(head(SCENE, JSON, "Content-Length: 0x10")), 400),
    Case("a Content-Length of 5000 zeros", raw(head(SCENE, JSON, f"Content-Length: {'0' * 5000}5")), 400),
    Case("a Content-Length of an exabyte", raw(head(SCENE, JSON, f"Content-Length: {10**18}")), 413),
    Case(
        "two Content-Lengths",
        raw(head(SCENE, JSON, "Content-Length: 15", "Content-Length: 2"), b'{"scene": null}'),
        400,
    ),
    Case("chunks beyond the limit", raw(CHUNKED, *[b"8000\r\n" + b"a" * 0x8000 + b"\r\n"] * 3, b"0\r\n\r\n"), 413),
    Case("a chunk that says a terabyte", raw(CHUNKED, b"ffffffffff\r\n", b"a" * 100_000), 413),
    Case("a chunk of no size", raw(CHUNKED, b"-5\r\n", b"a" * 10), 400),
    Case(
        "chunks of a picture beyond the limit",
        raw(
            head("POST /api/v1/detect HTTP/1.1", "Transfer-Encoding: chunked"),
            *[b"80000\r\n" + bytes(0x80000) + b"\r\n"] * 5,
        ),
        413,
    ),
    Case("a body of which half comes", raw(head(SCENE, JSON, "Content-Length: 15"), b'{"scene"'), 408),
    Case(
        "a body that comes letter by letter",
        raw(head(SCENE, JSON, "Content-Length: 9000"), *[b"a"] * 5, pause=0.4),
        408,
    ),
    Case("a head of which half comes", raw(b"GET / HTTP/1.1\r\nHost: 127.0"), 0),
    Case("a head that comes letter by letter", raw(*[b"%c" % letter for letter in b"GET / HTTP"], pause=0.3), 0),
    Case("100 connections that say nothing, or not all", held_connections, 0),
    Case("a head of 300 kB", raw(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: ", *[b"a" * 10_000] * 30), 400),
    Case("20,000 headers", raw(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n", *[b"A: a\r\n" * 1000] * 20), 400),
    Case("an address of 100 kB", raw(b"GET /", *[b"a" * 10_000] * 10), 400),
    Case("rubbish", raw(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(range(256)) + b"\r\n\r\n"), 400),
    Case("HTTP/2 without asking", raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 421),
]

PATHS = [
    Case("an unknown address", http("GET", f"{API}/nothing"), 404),
    Case("two slashes", raw(head("GET //api/v1/status HTTP/1.1"), to="guarded"), 404),
    Case("an address that leads upwards", raw(head("GET /api/v1/login/../status HTTP/1.1"), to="guarded"), 404),
    Case(
        "an address that leads upwards, encoded",
        raw(head("GET /healthz/%2e%2e/api/v1/status HTTP/1.1"), to="guarded"),
        404,
    ),
    Case("an encoded letter is the letter", raw(head("GET /api/v1/%73tatus HTTP/1.1"), to="guarded"), 401),
    Case("NUL in an address", raw(head("GET /api/v1/status%00 HTTP/1.1"), to="guarded"), 404),
    Case("a semicolon in an address", raw(head("GET /api/v1/status;.css HTTP/1.1"), to="guarded"), 404),
    Case("capitals in an address", raw(head("GET /API/v1/status HTTP/1.1"), to="guarded"), 404),
    Case("an address of elsewhere as a target", raw(head("GET http://evil.example/api/v1/status HTTP/1.1")), 404),
    Case("results of /etc/passwd", raw(head("GET /api/v1/jobs/..%2f..%2f..%2fetc%2fpasswd/results HTTP/1.1")), 404),
    Case("a job that is no number", http("GET", f"{API}/jobs/ABCDEFABCDEFABCD"), 422),
    Case("a job that is not there", http("GET", f"{API}/jobs/{'0' * 16}/results"), 404),
    Case("a model that leads upwards", raw(head("POST /api/v1/models/..%2f..%2fcanary.jpg/use HTTP/1.1")), 404),
    Case("a model by too few letters", http("POST", f"{API}/models/abc/use"), 422),
    Case("a model in capitals", http("POST", f"{API}/models/{'A' * 64}/use"), 422),
    Case("a model that is not there", http("POST", f"{API}/models/{'0' * 64}/use"), 404),
    Case("a model with a line after its hash", raw(head(f"POST /api/v1/models/{'0' * 64}%0a/use HTTP/1.1")), 422),
    Case("HEAD", http("HEAD", f"{API}/status"), 405),
    Case("OPTIONS of elsewhere gets no leave", http("OPTIONS", f"{API}/status"), 405),
    Case("TRACE", raw(head("TRACE /api/v1/status HTTP/1.1")), 405),
    Case("CONNECT", raw(head("CONNECT 10.0.0.1:22 HTTP/1.1")), 404),
    Case("a method that nobody knows", http("JEFF", f"{API}/status"), 405),
    Case("a model cannot be sent", http("POST", f"{API}/models", content=b"\x80\x04cos\nsystem\n."), 405),
]

NAMES = [
    Case("a name that was made to lead here", http("GET", "/healthz", headers={"host": "rebind.evil.example"}), 421),
    Case("a name that ends like ours", http("GET", "/healthz", headers={"host": "localhost.evil.example"}), 421),
    Case("an address of elsewhere", http("GET", "/healthz", headers={"host": "10.0.0.1"}), 421),
    Case("an empty Host", raw(head("GET /healthz HTTP/1.1", host="")), 421),
    Case("no Host", raw(head("GET /healthz HTTP/1.1", host=None)), 400),
    Case("no Host, as long ago", raw(head("GET /healthz HTTP/1.0", host=None)), 421),
    Case("two Hosts", raw(head("GET /healthz HTTP/1.1", "Host: evil.example")), 400),
    Case("a Host with a path", raw(head("GET /healthz HTTP/1.1", host="127.0.0.1/evil")), 421),
    Case("a Host with a user", raw(head("GET /healthz HTTP/1.1", host="127.0.0.1@evil.example")), 421),
    Case("a Host whose port is no number", raw(head("GET /healthz HTTP/1.1", host="127.0.0.1:80x")), 421),
    Case(
        "an origin of elsewhere",
        http("POST", f"{API}/detect", picture=True, headers={"origin": "https://evil.example"}),
        403,
    ),
    Case("an origin that is none", http("POST", f"{API}/detect", picture=True, headers={"origin": "null", **OWN}), 403),
    Case("our name with another port", http("GET", f"{API}/status", headers={"origin": "http://127.0.0.1:1"}), 403),
    Case("our name with TLS", http("GET", f"{API}/status", headers={"origin": "https://127.0.0.1"}), 403),
    Case(
        "a page of elsewhere",
        http("POST", f"{API}/detect", picture=True, headers={"sec-fetch-site": "cross-site", **OWN}),
        403,
    ),
    Case(
        "a page of our site",
        http("POST", f"{API}/detect", picture=True, headers={"sec-fetch-site": "same-site", **OWN}),
        403,
    ),
    Case("a form of a browser", http("POST", f"{API}/models/roll-back", headers={"sec-fetch-site": "none"}), 403),
]

WHO = [
    Case("no token", http("GET", f"{API}/status", to="guarded"), 401),
    Case(
        "a wrong token", http("GET", f"{API}/status", to="guarded", headers={"authorization": "Bearer me_guess"}), 401
    ),
    Case("an empty token", raw(head("GET /api/v1/status HTTP/1.1", "Authorization: Bearer "), to="guarded"), 401),
    Case(
        "a token of odd letters",
        raw(head("GET /api/v1/status HTTP/1.1", "Authorization: Bearer \xff\xfe"), to="guarded"),
        401,
    ),
    Case("a password as in old times", http("GET", f"{API}/status", to="guarded", auth=("admin", ADMINISTRATOR)), 401),
    Case(
        "two tokens",
        raw(head("GET /api/v1/status HTTP/1.1", "Authorization: Bearer a", "Authorization: Bearer b"), to="guarded"),
        401,
    ),
    Case("no token for figures", http("GET", "/metrics", to="guarded"), 401),
    Case("a picture without a token", http("POST", f"{API}/detect", to="guarded", picture=True), 401),
    Case("a session that never was", http("GET", f"{API}/status", to="guarded", headers={"cookie": "manyeyes=x"}), 401),
    Case("a session of another server", another_session, 401),
    Case("a viewer's session for what is the administrator's", session_of_a_viewer, 403),
    Case("a session without the header of our pages", session_without_the_header, 403),
    Case(
        "a viewer's token for what is the administrator's",
        http("POST", f"{API}/models/roll-back", to="guarded", by="robot"),
        403,
    ),
    Case(
        "a viewer makes an administrator's token",
        http("POST", f"{API}/tokens", to="guarded", by="robot", json={"name": "a", "role": "administrator"}),
        403,
    ),
    Case(
        "a password of a megabyte",
        http("POST", f"{API}/login", to="guarded", json={"password": "a" * 1_000_000}, headers=OWN),
        413,
    ),
    Case(
        "a password that is a list",
        http("POST", f"{API}/login", to="guarded", json={"password": ["a"]}, headers=OWN),
        422,
    ),
    Case("a password with half a letter", json_body("/login", b'{"password": "\\ud800"}', "POST", to="guarded"), 422),
    Case("guessing passwords", guesses, 429),
    Case("the right password after too many guesses", login(ADMINISTRATOR), 429),
    Case("guessing 30 at a time: all but five are not looked at", guesses_at_a_time, 25),
]

CAMERAS = [
    Case("a viewer adds a camera", camera("rtsp://192.0.2.1/live", by="robot"), 403),
    Case("nobody adds a camera", camera("rtsp://192.0.2.1/live", by=""), 401),
    *(
        Case(f"the administrator adds {source!r}"[:90], camera(source), 422)
        for source in (
            "file:///etc/passwd",
            "/etc/passwd",
            "../canary.jpg",
            "%02d.jpg",
            "/dev/video0/../../etc/passwd",
            "/dev/sda",
            "-1",
            "gopher://127.0.0.1:6379/_FLUSHALL",
            "concat:/etc/passwd|/etc/hosts",
            "subfile,,start,0,end,9,,:/etc/passwd",
            "pipe:0",
            "data:image/png;base64,AAAA",
            "udp://239.0.0.1:1234",
            "rtsp://camera.example/live -i /etc/passwd",
            "rtsp://camera.example/\nfile:///etc/passwd",
            "rtsp://camera.example/\0",
            "rtsp:///live",
            "http:127.0.0.1",
            "http://169.254.169.254/latest/meta-data/",
            "http://[::ffff:169.254.169.254]/",
            "http://[fd00:ec2::254]/",
            "http://100.100.100.200/latest/meta-data/",
            "http://user@127.0.0.1:5001/api/v1/status",
            "http://10.0.0.1@127.0.0.1/",
            "http://localhost:5001/",
            "http://LOCALHOST/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0/",
            "https://[::1]/",
            "https://[::]/",
            "rtsp://[fe80::1%25eth0]/",
            "rtsp://224.0.0.1/",
            "rtsp://" + "a." * 200 + "a!/",
            "http://64.ff9b\u3002com/",
        )
    ),
]

SOCKETS = [
    Case("a WebSocket without a token", web_socket(to="guarded"), 403),
    Case(
        "a WebSocket with a wrong token",
        web_socket(to="guarded", additional_headers={"authorization": "Bearer x"}),
        403,
    ),
    Case("a WebSocket of a page of elsewhere", web_socket(origin="https://evil.example"), 403),
    Case("a WebSocket with two Hosts", web_socket(additional_headers={"host": "evil.example"}), 400),
    Case("a WebSocket by a name of elsewhere", raw(UPGRADE), 403),
    Case("a WebSocket where there is none", web_socket(path="/dead"), 403),
    Case("a WebSocket to a camera that is not there", web_socket(path="/streams/..%2f/live"), 403),
    Case(
        "a WebSocket without its key",
        raw(head("GET /api/v1/live HTTP/1.1", "Connection: upgrade", "Upgrade: websocket")),
        400,
    ),
    Case("a message beyond the limit", web_socket(sends_too_much), 1009),
    Case("messages of rubbish", web_socket(sends_rubbish), 101),
    Case("a flood of frames: the newest is looked at", web_socket(floods), 101),
]

CASES = [*PICTURES, *ARCHIVES, *FORMS, *BODIES, *PATHS, *NAMES, *CAMERAS, *SOCKETS, *WHO]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.encode("ascii", "replace").decode())
def test_it_is_answered_and_the_server_goes_on(world: World, case: Case) -> None:
    began = time.monotonic()
    assert case.send(world) == case.status
    assert time.monotonic() - began < 20
    still_serves(world)
    assert world.what_lies_beside() == world.beside
    assert world.ask("errors") == []


def test_all_of_it_left_nothing_behind_and_took_little_memory(world: World) -> None:
    assert world.peak - world.rss < MOST_GROWTH
    assert world.memory - world.rss < MOST_LEFT
    for state in (world.folder / "s-open", world.folder / "s-guarded"):
        known = re.compile(r"in-use|models|jobs|history\.sqlite3(-wal|-shm)?|passwords\.json|tokens\.json|review")
        assert all(known.fullmatch(path.name) for path in state.iterdir())
        assert all(re.fullmatch(r"[0-9a-f]{16}", path.name) for path in (state / "jobs").iterdir())
        assert all(re.fullmatch(r"[0-9a-f]{16}\.(jpg|json)", path.name) for path in (state / "review").iterdir())
        assert not any(path.is_symlink() for path in state.rglob("*"))


def test_no_two_cases_are_called_alike() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 45
