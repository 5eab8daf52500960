"""Lines and zones, in the pictures of the site's cameras and of a browser's."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from manyeyes.errors import ResourceError
from manyeyes.web.counting import StreamCounts
from manyeyes.web.settings import ReviewSection, ServeConfig
from mjpeg import camera

from .conftest import Server, started

API = "/api/v1"
# Upwards in the middle: what moves to the right goes in.
LINE = {"name": "middle", "from": [0.5, 1], "to": [0.5, 0]}
ZONE = {"name": "right half", "points": [[0.5, 0], [1, 0], [1, 1], [0.5, 1]]}
WANTED = {"lines": [LINE], "zones": [ZONE]}


@pytest.fixture(scope="module")
def moving(pictures: list[Path]) -> list[bytes]:
    """A scene that moves to the right, through and through."""
    scene = cv2.imread(str(pictures[0]))
    frames = [np.roll(scene, shift, axis=1) for shift in range(0, scene.shape[1], 4)]
    return [cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes() for frame in frames]


def socket(server: Server, path: str) -> ClientConnection:
    return connect(f"{server.address.replace('http', 'ws')}{API}{path}", proxy=None)


def entered(counts: dict[str, Any]) -> int:
    return sum(crossed["in"] for crossed in counts["lines"]["middle"].values())


def test_a_browser_s_camera_is_counted_where_it_asks_for_it(server: Server, moving: list[bytes]) -> None:
    def answers(there: ClientConnection) -> list[dict[str, Any]]:
        told = []
        for frame in moving:
            there.send(frame)
            told.append(json.loads(there.recv(timeout=20)))
        return told

    with socket(server, "/live") as there:
        assert "counts" not in answers(there)[-1]
        there.send(json.dumps({"counting": WANTED}))
        told = answers(there)
        assert all(len(answer["tracks"]) == len(answer["detections"]) for answer in told)
        assert entered(told[-1]["counts"]) >= 1
        assert not any(crossed["out"] for crossed in told[-1]["counts"]["lines"]["middle"].values())
        assert sum(inside["in"] for inside in told[-1]["counts"]["zones"]["right half"].values()) >= 1
        there.send(json.dumps({"counting": {"lines": [{**LINE, "to": [7, 0]}]}}))
        there.send(moving[0])
        wrong = json.loads(there.recv(timeout=20))
        assert "less than or equal to 1" in wrong["counting_error"]
        assert "detections" in wrong
        there.send(json.dumps({"counting": None}))
        there.send(moving[0])
        right = json.loads(there.recv(timeout=20))
        assert not {"counting_error", "counts", "tracks"} & right.keys()


def test_a_camera_is_counted_until_nobody_wants_it_and_over_restarts(config: ServeConfig, moving: list[bytes]) -> None:
    with camera(moving, pause=0.1) as port:
        streams = {"gate": f"http://127.0.0.1:{port}/live.mjpg"}
        config = config.model_copy(update={"streams": streams, "review": ReviewSection(keep=0)})
        with started(config) as server:
            address = f"{API}/streams/gate/counting"
            assert server.client.get(address).json() == {
                "lines": [],
                "zones": [],
                "counts": {"lines": {}, "zones": {}},
                "since": None,
            }
            wanted = server.client.put(address, json=WANTED).raise_for_status().json()
            assert {key: wanted[key] for key in WANTED} == WANTED
            assert wanted["since"] == pytest.approx(time.time(), abs=30)
            ends = time.monotonic() + 60
            with socket(server, "/streams/gate/live") as there:
                while True:
                    frame = json.loads(there.recv(timeout=20))
                    if "counts" in frame:
                        assert len(frame["tracks"]) == len(frame["detections"])
                        if entered(frame["counts"]):
                            break
                    assert time.monotonic() < ends
            assert entered(server.client.get(address).json()["counts"]) >= 1
            begun = server.client.post(f"{address}/reset").json()
            assert begun["since"] > wanted["since"]
        with started(config) as server:
            assert {key: server.client.get(address).json()[key] for key in WANTED} == WANTED
            server.client.put(address, json={}).raise_for_status()
            assert server.client.get(address).json()["since"] is None
            server.client.put(address, json=WANTED).raise_for_status()
            server.client.delete(f"{API}/streams/gate").raise_for_status()
            assert server.client.get(address).status_code == 404
            assert (config.state / "counting.json").read_bytes().strip() == b"{}"


@pytest.mark.parametrize(
    "body",
    [
        {"lines": [LINE, LINE]},
        {"lines": [{**LINE, "to": LINE["from"]}]},
        {"lines": [{**LINE, "from": [-1, 0]}]},
        {"lines": [{**LINE, "name": ""}]},
        {"zones": [{**ZONE, "points": [[0, 0], [1, 1]]}]},
        {"zones": [{**ZONE, "name": f"{n}"} for n in range(17)]},
        {"lines": [], "more": 1},
    ],
)
def test_what_is_no_line_or_zone_is_refused(server: Server, body: dict[str, Any]) -> None:
    server.client.post(f"{API}/streams", json={"name": "gate", "source": "7"}).raise_for_status()
    assert server.client.put(f"{API}/streams/gate/counting", json=body).status_code == 422


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "counting.json").write_text('{"gate": []}')
    with pytest.raises(ResourceError, match=r"counting\.json: is damaged"):
        StreamCounts(tmp_path)
