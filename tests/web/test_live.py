"""A browser's camera over a WebSocket: always the newest frame, and an answer to each that was looked at."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from manyeyes.runtime.host import Found
from manyeyes.web.access import Access, Role
from manyeyes.web.settings import ServeConfig
from mjpeg import camera

from .conftest import Server, started

API = "/api/v1"


@pytest.fixture(scope="module")
def live_server(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("live") / "serve"
    config = ServeConfig(model=onnx_file, state=state, threads=1, backend="openvino", precision="fp32")
    with started(config) as server:
        yield server


@contextmanager
def live(server: Server, **more: Any) -> Iterator[ClientConnection]:
    with connect(f"{server.address.replace('http', 'ws')}{API}/live", proxy=None, **more) as there:
        yield there


def answer(there: ClientConnection) -> dict[str, Any]:
    return dict(json.loads(there.recv(timeout=20)))


@contextmanager
def held(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """Within the block the server looks at a picture each time it is let: what a slow machine does by itself."""
    gate, look = threading.Semaphore(0), server.edge.host.look

    def slowly(*args: Any, **more: Any) -> Found:
        gate.acquire(timeout=20)
        return look(*args, **more)

    monkeypatch.setattr(server.edge.host, "look", slowly)
    yield gate
    monkeypatch.undo()
    gate.release(1000)


def test_each_frame_is_answered_as_a_request_is(live_server: Server, pictures: list[Path]) -> None:
    with live(live_server) as there:
        for number, path in enumerate(pictures, 1):
            there.send(path.read_bytes())
            found = answer(there)
            asked = live_server.client.post(f"{API}/detect", content=path.read_bytes()).json()
            assert (found["frame"], found["skipped"]) == (number, 0)
            assert found["detections"] == asked["detections"]
            assert {key: found[key] for key in ("width", "height", "model", "scene")} == {
                key: asked[key] for key in ("width", "height", "model", "scene")
            }


def test_while_one_is_looked_at_only_the_newest_waits(
    live_server: Server, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, other = (path.read_bytes() for path in pictures[:2])
    newest = live_server.client.post(f"{API}/detect", content=other).json()["detections"]
    with held(live_server, monkeypatch) as gate, live(live_server) as there:
        there.send(good)
        while not live_server.edge.metrics.waiting:
            time.sleep(0.005)
        for _ in range(50):
            there.send(good)
        there.send(other)
        time.sleep(0.3)  # all have come
        gate.release(2)
        first, second = answer(there), answer(there)
        assert (first["frame"], second["frame"]) == (1, 52)
        assert second["skipped"] == 50
        assert second["detections"] == newest
        with pytest.raises(TimeoutError):
            there.recv(timeout=0.2)


def test_a_slow_reader_gets_the_newest_and_nothing_grows(live_server: Server, pictures: list[Path]) -> None:
    good = pictures[0].read_bytes()
    with live(live_server, max_queue=1) as there:
        ended = time.monotonic() + 1.5
        sent = 0
        while time.monotonic() < ended:
            there.send(good)
            sent += 1
        assert live_server.edge.metrics.waiting <= 1
        last = answer(there)
        answers = 1
        while last["frame"] < sent:
            last = answer(there)
            answers += 1
        assert last["skipped"] == sent - answers


def test_two_do_not_wait_for_each_others_frames(live_server: Server, pictures: list[Path]) -> None:
    good, bad = pictures[0].read_bytes(), b"no picture"
    with live(live_server) as one, live(live_server) as two:
        one.send(good)
        two.send(bad)
        assert "detections" in answer(one)
        assert "error" in answer(two)


def test_a_bad_frame_is_answered_and_the_next_one_too(live_server: Server, pictures: list[Path]) -> None:
    good = pictures[0].read_bytes()
    with live(live_server) as there:
        for number, (frame, wrong) in enumerate(
            [(b"", True), (good, False), (b"no picture", True), (good[:500], True), (good, False)], 1
        ):
            there.send(frame)
            found = answer(there)
            assert found["frame"] == number
            assert ("error" in found) == wrong
            assert ("detections" in found) != wrong


def test_the_lowest_score_can_be_changed_at_any_time(live_server: Server, pictures: list[Path]) -> None:
    good = pictures[0].read_bytes()

    def asked(score: float) -> Any:
        return live_server.client.post(f"{API}/detect?min_score={score}", content=good).json()["detections"]

    with live(live_server) as there:
        for text, expected in (
            (None, 0.25),
            ('{"min_score": 0.01}', 0.01),
            ('{"min_score": 0.9}', 0.9),
            ('{"min_score": 2}', 0.9),
            ('{"min_score": true}', 0.9),
            ('{"min_score": "0.1"}', 0.9),
            ('{"min_score": NaN}', 0.9),
            ('{"min_score": null}', 0.9),
            ('["min_score"]', 0.9),
            ("no JSON", 0.9),
            ("[" * 2000, 0.9),
            ('{"min_score": 1}', 1),
            ('{"min_score": 0.25, "more": 1}', 0.25),
        ):
            if text is not None:
                there.send(text)
            there.send(good)
            assert answer(there)["detections"] == asked(expected), text


def test_the_overlap_can_be_changed_at_any_time(live_server: Server, pictures: list[Path]) -> None:
    good = pictures[0].read_bytes()
    with live(live_server) as there:
        for text, expected in (('{"min_score": 0.01, "max_iou": 0.1}', 0.1), ('{"max_iou": 7}', 0.1)):
            there.send(text)
            there.send(good)
            address = f"{API}/detect?min_score=0.01&max_iou={expected}"
            asked = live_server.client.post(address, content=good).json()["detections"]
            assert answer(there)["detections"] == asked


def test_where_too_many_wait_a_frame_is_told_so_and_the_next_one_is_looked_at(
    live_server: Server, pictures: list[Path]
) -> None:
    with live(live_server) as there:
        live_server.edge.metrics.waiting += 64
        there.send(pictures[0].read_bytes())
        assert answer(there)["error"] == "too many pictures wait already"
        live_server.edge.metrics.waiting -= 64
        there.send(pictures[0].read_bytes())
        assert "detections" in answer(there)


def test_whoever_leaves_in_the_middle_leaves_nothing(
    live_server: Server, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    with held(live_server, monkeypatch) as gate:
        for _ in range(3):
            with live(live_server) as there:
                there.send(pictures[0].read_bytes())
                while not live_server.edge.metrics.waiting:
                    time.sleep(0.005)
                there.socket.close()
            gate.release()
            while live_server.edge.metrics.waiting:
                time.sleep(0.005)
    with live(live_server) as there:
        there.send(pictures[0].read_bytes())
        assert "detections" in answer(there)
    assert threading.active_count() <= before + 4


def test_what_is_seen_live_is_remembered_when_it_changes(live_server: Server, pictures: list[Path]) -> None:
    good = pictures[0].read_bytes()
    known = {entry["id"] for entry in live_server.client.get(f"{API}/history?most=1000").json()}
    with live(live_server) as there:
        for _ in range(10):
            there.send(good)
            answer(there)
    entries = [e for e in live_server.client.get(f"{API}/history").json() if e["id"] not in known]
    assert [entry["source"].startswith("live ") for entry in entries] == [True]


def test_a_viewer_may_and_a_stranger_may_not(live_server: Server, onnx_file: Path, tmp_path: Path) -> None:
    config = live_server.edge.config.model_copy(update={"state": tmp_path / "serve"})
    access = Access(config.state)
    access.set_password(Role.administrator, "correct horse battery")
    token = access.make_token("viewer", Role.viewer)
    with started(config) as server:
        with live(server, additional_headers={"authorization": f"Bearer {token}"}) as there:
            there.send(b"x")
            assert "error" in answer(there)
        session = server.edge.access.begin_session(Role.viewer)
        with live(server, additional_headers={"cookie": f"manyeyes={session}"}, origin=server.address) as there:
            there.send(b"x")
            assert "error" in answer(there)
        server.edge.access.end_session(session)
        with pytest.raises(Exception, match="403"):
            live(server, additional_headers={"cookie": f"manyeyes={session}"}).__enter__()


def test_the_server_ends_though_somebody_is_watching(live_server: Server, tmp_path: Path) -> None:
    config = live_server.edge.config.model_copy(update={"state": tmp_path / "serve"})
    with contextlib.ExitStack() as stack:
        with started(config) as server:
            there = stack.enter_context(live(server))
            began = time.monotonic()
        assert time.monotonic() - began < 8
        with pytest.raises(ConnectionClosed):
            there.recv(timeout=5)


def test_a_page_that_draws_boxes_itself_gets_frames_without_them(
    live_server: Server, pictures: list[Path], tmp_path: Path
) -> None:
    jpeg = pictures[0].read_bytes()
    sent = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)
    config = live_server.edge.config.model_copy(update={"state": tmp_path / "serve", "cameras_anywhere": True})
    with camera([jpeg]) as port, started(config) as server:
        source = {"name": "gate", "source": f"http://127.0.0.1:{port}/live.mjpg"}
        server.client.post(f"{API}/streams", json=source).raise_for_status()

        def far(query: str) -> float:
            """How far from what the camera sent the picture is that comes after the JSON."""
            address = f"{server.address.replace('http', 'ws')}{API}/streams/gate/live?{query}"
            with connect(address, proxy=None) as there:
                assert answer(there)["detections"]
                frame = np.frombuffer(there.recv(timeout=20), np.uint8)  # type: ignore[arg-type]
            return float(np.abs(cv2.imdecode(frame, cv2.IMREAD_COLOR).astype(int) - sent).mean())

        assert far("plain=true") < 2 < far("picture=true")
