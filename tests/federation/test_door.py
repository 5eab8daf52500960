"""The door before a real SuperLink, over real TLS: what gets through, and all that does not."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.routers.runtime.responses import router as responses
from flwr.supercore.routers.runtime.router import create_runtime_router
from flwr.superlink.routers.control.router import router as control
from flwr.superlink.routers.fleet.router import router as fleet

from manyeyes.errors import ResourceError
from manyeyes.federation import door as door_module
from manyeyes.federation.admission import Members
from manyeyes.federation.door import FLEET_PATHS, KEY_HEADER, SIGNATURE_HEADER, TIME_HEADER, Door, open_door
from manyeyes.federation.keys import AUTHORITY, SERVER, make_authority
from manyeyes.federation.presence import Presence
from manyeyes.web.serving import listen

MAX_BODY = 100_000
_TLS_FILES = {"cert": SERVER, "key": SERVER, "ca-cert": AUTHORITY}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def signed(key: ec.EllipticCurvePrivateKey, at: datetime | None = None) -> dict[str, str]:
    """The headers that Flower's node sends."""
    when = (at or datetime.now(UTC)).isoformat()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(when.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        KEY_HEADER: base64.b64encode(public).decode(),
        SIGNATURE_HEADER: base64.b64encode(signature).decode(),
        TIME_HEADER: when,
        "content-type": "application/protobuf",
    }


@contextlib.contextmanager
def superlink(folder: Path) -> Iterator[str]:
    """A real SuperLink on loopback; yields its URL."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("flower-superlink")), "--host", "127.0.0.1"]
    command += [f"--ssl-{kind}file={folder / name}" for kind, name in _TLS_FILES.items()]
    command += ["--port", str(port), "--enable-supernode-auth", "--isolation", "process"]
    command += ["--database", str(folder / "state.db"), "--disable-runtime-dependency-installation"]
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(folder / "flwr")}
    with (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **quiet})
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, (folder / "superlink.log").read_text()
            time.sleep(0.1)
        yield f"https://localhost:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            # On a busy machine it takes its time.
            process.kill()
            process.wait()


@contextlib.contextmanager
def opened(door: Door, folder: Path) -> Iterator[str]:
    """Serve a door; yields its URL."""
    with listen("127.0.0.1", 0, key="port") as listener, open_door(door, folder, listener):
        yield f"https://localhost:{listener.getsockname()[1]}"


@dataclass
class Guarded:
    url: str
    members: Members
    key: ec.EllipticCurvePrivateKey
    client: httpx.Client
    upstream: str
    folder: Path

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / AUTHORITY))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A SuperLink behind a door, and a node "A" that was admitted."""
    folder = tmp_path_factory.mktemp("coordinator")
    make_authority(folder, ["localhost"])
    members, key = Members(folder), ec.generate_private_key(ec.SECP256R1())
    members.admit("A", key.public_key())
    with superlink(folder) as upstream:
        door = Door(members, upstream, folder / AUTHORITY, max_body=MAX_BODY)
        with (
            opened(door, folder) as url,
            httpx.Client(verify=str(folder / AUTHORITY), base_url=url, trust_env=False, timeout=20) as client,
        ):
            yield Guarded(url, members, key, client, upstream, folder)


def register(key: ec.EllipticCurvePrivateKey, headers: dict[str, str]) -> bytes:
    public = base64.b64decode(headers[KEY_HEADER])
    return RegisterNodeFleetRequest(public_key=public).SerializeToString()


def test_the_door_knows_flowers_words() -> None:
    assert (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER) == (
        KEY_HEADER,
        SIGNATURE_HEADER,
        TIME_HEADER,
    )
    assert {route.path for route in fleet.routes} == set(FLEET_PATHS)
    assert door_module._OLDEST_SECONDS == TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
    assert door_module._NEWEST_SECONDS == SYSTEM_TIME_TOLERANCE


def test_an_admitted_node_reaches_the_superlink(guarded: Guarded) -> None:
    headers = signed(guarded.key)
    answer = guarded.client.post("/v1/fleet/register-node", headers=headers, content=register(guarded.key, headers))
    direct = guarded.client.post(
        f"{guarded.upstream}/v1/fleet/register-node", headers=headers, content=register(guarded.key, headers)
    )
    assert (answer.status_code, answer.content) == (direct.status_code, direct.content)


def test_the_door_tells_who_came_what_passed_and_what_was_refused(guarded: Guarded) -> None:
    presence = Presence()
    door = Door(guarded.members, guarded.upstream, guarded.folder / AUTHORITY, max_body=MAX_BODY, presence=presence)
    stranger = ec.generate_private_key(ec.SECP256R1())
    with opened(door, guarded.folder) as url:
        headers = signed(guarded.key)
        sent = register(guarded.key, headers)
        answer = guarded.client.post(f"{url}/v1/fleet/register-node", headers=headers, content=sent)
        seen = presence.nodes()["A"]
        assert (seen.bytes_up, seen.bytes_down) == (len(sent), len(answer.content))
        assert seen.online(time.time())
        guarded.client.post(f"{url}/v1/fleet/get-run", headers=signed(stranger), content=b"x" * 99)
        guarded.client.post(f"{url}/v1/fleet/get-run", content=b"x")
        guarded.client.post(f"{url}/v1/fleet/deactivate-node", headers=signed(guarded.key))
    assert presence.refusals() == {403: 1, 401: 1}
    assert presence.nodes().keys() == {"A"}, "a stranger leaves no trace"
    assert not presence.nodes()["A"].online(time.time()), "it said goodbye"


def test_every_other_path_of_the_superlink_is_closed(guarded: Guarded) -> None:
    flower = FastAPI()
    for router in (control, responses, create_runtime_router("SuperLink")):
        flower.include_router(router)
    others = sorted(flower.openapi()["paths"])
    assert len(others) > 30
    others += ["/", "/docs", "/openapi.json", "/health", "/v1/fleet", "/v1/fleet/", "/v1/fleet/get-run/"]
    others += ["/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run", "//v1/control/start-run"]
    for path in others:
        for method in ("GET", "POST"):
            answer = guarded.client.request(method, f"{guarded.url}{path}", headers=signed(guarded.key), content=b"")
            assert answer.status_code == 404, (method, path, answer.status_code)


def test_the_superlink_itself_would_have_answered(guarded: Guarded) -> None:
    """So that the test above shows what the door does, not what Flower does."""
    answer = guarded.client.post(f"{guarded.upstream}/v1/control/list-runs", content=b"")
    assert answer.status_code != 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(guarded: Guarded, method: str) -> None:
    assert guarded.client.request(method, FLEET_PATHS[0], headers=signed(guarded.key)).status_code == 405


def test_who_was_not_admitted_is_refused_and_who_is_revoked_at_once(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    answer = guarded.client.post("/v1/fleet/pull-messages", headers=signed(stranger), content=b"secret")
    assert (answer.status_code, answer.text) == (403, "this key was not admitted, or was revoked")
    guarded.members.admit("B", stranger.public_key())
    headers = signed(stranger)
    passed = guarded.client.post("/v1/fleet/register-node", headers=headers, content=register(stranger, headers))
    assert passed.status_code not in (403, 404)
    Members(guarded.folder).revoke("B")
    assert guarded.client.post("/v1/fleet/pull-messages", headers=signed(stranger)).status_code == 403
    refusals = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert refusals
    assert not any("secret" in line or "BEGIN" in line for line in refusals)


def test_signatures_that_are_missing_false_or_of_another_time_are_refused(guarded: Guarded) -> None:
    def status(headers: dict[str, str]) -> int:
        return guarded.client.post("/v1/fleet/get-run", headers=headers, content=b"").status_code

    right, other = signed(guarded.key), signed(ec.generate_private_key(ec.SECP256R1()))
    for name in (KEY_HEADER, SIGNATURE_HEADER, TIME_HEADER):
        assert status({key: value for key, value in right.items() if key != name}) == 401, name
        assert status({**right, name: "nonsense"}) == 401, name
        assert status({**right, name: "A" * 3000}) == 401, name
    assert status({**right, SIGNATURE_HEADER: other[SIGNATURE_HEADER]}) == 401
    now = datetime.now(UTC)
    assert status(signed(guarded.key, now - timedelta(seconds=400))) == 401
    assert status(signed(guarded.key, now + timedelta(seconds=60))) == 401
    late = guarded.client.post("/v1/fleet/get-run", headers=signed(guarded.key, now - timedelta(seconds=400)))
    assert re.fullmatch(r"this node's clock differs from the coordinator's by 40\d s", late.text)


def test_a_request_that_is_too_large_is_cut_off(guarded: Guarded) -> None:
    answer = guarded.client.post("/v1/fleet/push-object", headers=signed(guarded.key), content=bytes(MAX_BODY + 1))
    assert (answer.status_code, answer.text) == (413, f"a request may carry at most {MAX_BODY} bytes")


def activated(guarded: Guarded, client: httpx.Client, key: ec.EllipticCurvePrivateKey, node_id: str) -> int:
    """What Flower calls a node that was admitted, told to it as a coordinator does, and that is online."""
    if guarded.members.find(key.public_key()) is None:
        guarded.members.admit(node_id, key.public_key())
    control = ControlHttpClient.from_server_address(
        guarded.upstream.removeprefix("https://"),
        insecure=False,
        root_certificates=(guarded.folder / AUTHORITY).read_bytes(),
        interceptors=[],
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    control.RegisterNode(RegisterNodeRequest(public_key=public))
    request = ActivateNodeRequest(public_key=public, heartbeat_interval=30).SerializeToString()
    answer = client.post("/v1/fleet/activate-node", headers=signed(key), content=request)
    assert answer.status_code == 200, answer.text
    return ActivateNodeResponse.FromString(answer.content).node_id


def test_a_question_waits_until_the_bell_rings_and_not_for_ever(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = Door(guarded.members, guarded.upstream, guarded.folder / AUTHORITY)
    key = ec.generate_private_key(ec.SECP256R1())
    with opened(door, guarded.folder) as url, httpx.Client(base_url=url, verify=guarded.tls, trust_env=False) as client:
        number = activated(guarded, client, key, "waiting")
        question = PullMessagesRequest(node=Node(node_id=number)).SerializeToString()

        def seconds() -> float:
            began = time.monotonic()
            answer = client.post("/v1/fleet/pull-messages", headers=signed(key), content=question, timeout=30)
            assert (answer.status_code, answer.content) == (200, b"")
            return time.monotonic() - began

        asked: list[str] = []
        post = door._client.post

        async def counted(path: str, **fields: Any) -> httpx.Response:
            asked.append(path)
            return await post(path, **fields)

        monkeypatch.setattr(door._client, "post", counted)
        monkeypatch.setattr(door_module, "_HOLD_SECONDS", 1.0)
        assert 0.9 < seconds() < 5
        # The SuperLink is asked again for the node that something was sent to, and for nobody else.
        monkeypatch.setattr(door_module, "_HOLD_SECONDS", 3.0)
        for rung, times in (("somebody else", 2), ("waiting", 3)):
            asked.clear()
            threading.Timer(1.0, door.ring, [rung]).start()
            assert 2.9 < seconds() < 8
            assert len(asked) == times, rung
        monkeypatch.setattr(door_module, "_HOLD_SECONDS", 25.0)
        threading.Timer(1.0, door.close).start()
        assert 0.9 < seconds() < 10


def test_an_answer_that_is_too_long_is_cut_off_whatever_it_is_cut_into(guarded: Guarded) -> None:
    most = 1_000_000
    door = Door(guarded.members, guarded.upstream, guarded.folder / AUTHORITY, most_bytes=most)
    with opened(door, guarded.folder) as url, httpx.Client(base_url=url, verify=guarded.tls, trust_env=False) as client:
        statuses = []
        for _ in range(30):
            answer = client.post("/v1/fleet/push-object", headers=signed(guarded.key), content=bytes(100_000))
            statuses.append(answer.status_code)
        assert 413 not in statuses[:20]
        assert set(statuses[20:]) == {413}
        assert answer.text == f"the answer is longer than the {most} bytes that one about this model can have"
        assert door.too_long("A")
        assert not door.too_long("B")


def test_without_tls_nothing_is_said(guarded: Guarded) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.post(guarded.url.replace("https", "http") + FLEET_PATHS[0], headers=signed(guarded.key))


def test_while_the_superlink_is_down_nodes_are_told_to_wait(guarded: Guarded) -> None:
    door = Door(guarded.members, f"https://127.0.0.1:{free_port()}", guarded.folder / AUTHORITY)
    with opened(door, guarded.folder) as url:
        answer = guarded.client.post(f"{url}/v1/fleet/get-run", headers=signed(guarded.key))
    assert (answer.status_code, answer.text) == (503, "the coordinator is starting or was stopped")


def test_an_address_in_use_and_a_missing_certificate_are_told(tmp_path: Path, guarded: Guarded) -> None:
    port = int(guarded.url.rsplit(":", 1)[1])
    door = Door(guarded.members, guarded.upstream, guarded.folder / AUTHORITY)
    with pytest.raises(ResourceError, match=rf"cannot listen on 127\.0\.0\.1:{port} \(Address already in use\)"):
        listen("127.0.0.1", port, key="coordinator.port")
    with (
        listen("127.0.0.1", 0, key="coordinator.port") as listener,
        pytest.raises(ResourceError, match="manyeyes coordinator init"),
        open_door(door, tmp_path, listener),
    ):
        pytest.fail("it was opened")
    (tmp_path / SERVER).write_text("no certificate")
    with (
        listen("127.0.0.1", 0, key="coordinator.port") as listener,
        pytest.raises(ResourceError, match="cannot be used as a certificate"),
        open_door(door, tmp_path, listener),
    ):
        pytest.fail("it was opened")
