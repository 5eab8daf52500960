"""A node's place in its federation, as its page asks for it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from manyeyes.federation.audit import AUDIT, AuditLog
from manyeyes.federation.node_status import NodeStatus
from manyeyes.federation.pause import Pause
from manyeyes.federation.transport import Record, Request
from manyeyes.registry import MODELS, Registry
from manyeyes.web.access import Access, Role
from manyeyes.web.node import node_page

from .conftest import OWN, Server

API = "/api/v1"


@contextmanager
def page(status: NodeStatus, serve: Path | None = None) -> Iterator[httpx.Client]:
    with (
        node_page(status, 0, serve, threads=1) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
    ):
        yield client


@pytest.fixture
def status(tmp_path: Path) -> NodeStatus:
    return NodeStatus("A", "https://localhost:5000", tmp_path / "node", not_ready=None)


def test_a_server_alone_is_no_member(server: Server) -> None:
    assert server.client.get(f"{API}/federation").json() == {"member": False}
    assert server.client.get(f"{API}/federation/sent").json() == []
    assert server.client.post(f"{API}/federation/pause").status_code == 404


def test_what_the_node_is_at_is_shown(status: NodeStatus) -> None:
    status.pictures, status.round, status.rounds, status.training = 71, 2, 5, True
    status.epoch, status.epochs, status.seconds_left = 1, 3, 41.5
    status.today = lambda: (1000, 20)
    for round, map50 in ((0, 0.25), (1, 0.5)):
        status.tested("harbour", round, map50)
        status.tested("harbour", round, 0.01)  # without one site's part
        status.trained("harbour", round + 1, 12.5)
    status.tested("another", 2, 0.01)
    with page(status) as client:
        shown = client.get(f"{API}/federation").json()
    assert (
        shown.items()
        >= {
            "member": True,
            "node_id": "A",
            "coordinator": "https://localhost:5000",
            "not_ready": None,
            "paused": False,
            "pictures": 71,
            "corrections": 0,
            "training": True,
            "round": 2,
            "rounds": 5,
            "epoch": 1,
            "epochs": 3,
            "seconds_left": 41.5,
            "bytes_today": {"down": 1000, "up": 20},
        }.items()
    )
    rounds = [(done["run"], done["round"], done["before"], done["after"]) for done in shown["rounds_done"]]
    assert rounds == [("harbour", 1, 0.25, 0.5), ("harbour", 2, 0.5, None)]


def test_what_was_sent_is_shown_and_a_changed_log_is_named(status: NodeStatus) -> None:
    assert status.folder
    audit = AuditLog(status.folder)
    with page(status) as client:
        assert client.get(f"{API}/federation/sent").json() == []
        audit.answer(Request("1", "A", "evaluate", Record()), Record({}, {"metrics": {"map50": 0.5}}), b"abc")
        audit.refusal(Request("2", "A", "fit", Record()), "not now")
        first, second = client.get(f"{API}/federation/sent").json()
        assert (first["kind"], first["sent"], first["values"]) == ("fit", "refusal", {"reason": "not now"})
        assert (second["bytes"], second["values"], second["arrays"]) == (3, {"metrics": {"map50": 0.5}}, {})
        assert len(client.get(f"{API}/federation/sent?most=1").json()) == 1
        path = status.folder / AUDIT
        path.write_text(path.read_text().replace("0.5", "0.9"))
        refused = client.get(f"{API}/federation/sent")
        assert refused.status_code == 409
        assert "was changed after it was written" in refused.json()["reason"]
        assert str(path) not in refused.text


def test_the_node_is_paused_and_resumed(status: NodeStatus) -> None:
    assert status.folder
    with page(status) as client:
        address = f"{client.base_url}".replace("http", "ws") + f"{API}/events"
        with connect(address, proxy=None) as there:
            assert json.loads(there.recv(timeout=10))["event"] == "hello"
            assert client.post(f"{API}/federation/pause").status_code == 204
            assert json.loads(there.recv(timeout=10)) == {"event": "federation"}
        assert Pause(status.folder).paused
        assert client.get(f"{API}/federation").json()["paused"]
        assert client.post(f"{API}/federation/resume", headers={"cookie": "x=y"}).status_code == 403
        assert client.post(f"{API}/federation/resume", headers={"cookie": "x=y"} | OWN).status_code == 204
        assert not Pause(status.folder).paused


def test_a_password_holds_before_the_first_model_too(status: NodeStatus, tmp_path: Path) -> None:
    Access(tmp_path / "serve").set_password(Role.administrator, "correct horse battery")
    with page(status, tmp_path / "serve") as client:
        assert client.get(f"{API}/federation").status_code == 401
        assert client.post(f"{API}/federation/pause").status_code == 401
        client.post(f"{API}/login", json={"password": "correct horse battery"}, headers=OWN).raise_for_status()
        assert client.get(f"{API}/federation").json()["member"]


def test_a_page_is_sent_back_when_the_first_model_comes(status: NodeStatus, onnx_file: Path, tmp_path: Path) -> None:
    with page(status, tmp_path / "serve") as client:
        address = f"{client.base_url}".replace("http", "ws") + f"{API}/events"
        with connect(address, proxy=None) as there:
            there.recv(timeout=10)
            registry = Registry(tmp_path / "serve" / MODELS)
            registry.use(registry.add(onnx_file).hash)
            with pytest.raises(ConnectionClosed) as closed:
                there.recv(timeout=60)
            assert closed.value.rcvd
            assert closed.value.rcvd.code == 1012
        assert client.get(f"{API}/status").json()["model"] == registry.used[0]
        assert client.get(f"{API}/federation").json()["node_id"] == "A"
        with connect(address, proxy=None) as there:
            there.recv(timeout=10)
            status.not_ready = "away"
            until = time.monotonic() + 20
            while json.loads(there.recv(timeout=20))["event"] != "federation":
                assert time.monotonic() < until
