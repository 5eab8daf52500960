"""The API as a program meets it, over HTTP, with a real model."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image

from manyeyes.registry import MODELS, Registry
from manyeyes.runtime.engine import open_engine
from manyeyes.web.access import Role
from manyeyes.web.settings import LimitSection, ServeConfig

from .conftest import OWN, Server, started

API = "/api/v1"


def zipped(files: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return memory.getvalue()


def ended(client: httpx.Client, job: str) -> dict[str, Any]:
    """The job once it has ended."""
    for _ in range(600):
        answer = client.get(f"{API}/jobs/{job}").json()
        if answer["state"] not in ("waiting", "running"):
            return dict(answer)
        time.sleep(0.05)
    raise AssertionError(answer)


def until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.1)


def test_what_it_finds_is_what_the_engine_finds(server: Server, pictures: list[Path], onnx_file: Path) -> None:
    engine = open_engine(onnx_file, backend="openvino", precision="fp32", threads=1)
    for picture in pictures[:3]:
        answer = server.client.post(f"{API}/detect", content=picture.read_bytes()).raise_for_status().json()
        assert answer["detections"] == engine.predict(picture.read_bytes()).to_list(engine.names)
        assert (answer["height"], answer["width"]) == cv2.imread(str(picture)).shape[:2]
        assert answer["model"] == engine.model_hash
    assert any(server.client.post(f"{API}/detect", content=path.read_bytes()).json()["detections"] for path in pictures)


def test_a_lower_overlap_leaves_fewer(server: Server, pictures: list[Path]) -> None:
    def found(max_iou: str) -> list[Any]:
        address = f"{API}/detect?min_score=0.01{max_iou}"
        return [server.client.post(address, content=path.read_bytes()).json()["detections"] for path in pictures]

    as_usual, strict, lax = found(""), found("&max_iou=0.1"), found("&max_iou=0.95")
    assert found("&max_iou=0.7") == as_usual
    assert sum(map(len, strict)) < sum(map(len, as_usual)) < sum(map(len, lax))
    assert server.client.post(f"{API}/detect?max_iou=0.99", content=b"x").status_code == 422


def test_another_model_can_be_asked_beside_the_one_in_use(
    server: Server, another_model: Path, pictures: list[Path]
) -> None:
    first = server.client.get(f"{API}/status").json()["model"]
    second = server.edge.registry.add(another_model).hash
    data = pictures[0].read_bytes()
    plain = server.client.post(f"{API}/detect", content=data).json()
    for name, model in ((second[:10], second), (first, first)):
        answer = server.client.post(f"{API}/detect?model={name}", content=data).json()
        assert answer["model"] == model
        assert answer["detections"] == plain["detections"]
    assert server.client.get(f"{API}/status").json()["model"] == first
    assert len(server.client.get(f"{API}/history").json()) == 1, "the same picture is remembered once"
    job = server.client.post(f"{API}/jobs?model={second[:10]}", content=zipped({"a.jpg": data})).json()
    assert job["model"] == second
    assert ended(server.client, job["id"])["state"] == "done"
    (line,) = server.client.get(f"{API}/jobs/{job['id']}/results").text.splitlines()
    assert (json.loads(line)["model"], json.loads(line)["detections"]) == (second, plain["detections"])
    assert len(server.client.get(f"{API}/history").json()) == 1
    for place in ("detect", "jobs"):
        missing = server.client.post(f"{API}/{place}?model={'0' * 8}", content=data)
        assert (missing.status_code, missing.json()["reason"]) == (
            404,
            "there are no models whose hash begins with 00000000",
        )
    path = server.edge.registry.path(second)
    server.edge.host._beside._engines.clear()
    path.write_bytes(path.read_bytes() + b"\0")
    assert server.client.post(f"{API}/detect?model={second}", content=data).status_code == 409


def test_a_form_is_as_good_as_a_body(server: Server, pictures: list[Path]) -> None:
    data = pictures[0].read_bytes()
    plain = server.client.post(f"{API}/detect", content=data).json()
    form = server.client.post(f"{API}/detect", files={"file": ("a.jpg", data)}).json()
    assert plain["detections"] == form["detections"]


def test_a_higher_score_leaves_fewer(server: Server, pictures: list[Path]) -> None:
    data = pictures[0].read_bytes()
    low = server.client.post(f"{API}/detect?min_score=0.01", content=data).json()["detections"]
    high = server.client.post(f"{API}/detect?min_score=0.5", content=data).json()["detections"]
    assert high == [box for box in low if box["score"] > 0.5]
    assert len(high) < len(low)


def test_the_drawn_picture_is_a_new_jpeg_of_the_same_size(server: Server, pictures: list[Path]) -> None:
    answer = server.client.post(f"{API}/detect/picture", content=pictures[0].read_bytes() + b"<script>")
    assert answer.headers["content-type"] == "image/jpeg"
    assert b"<script>" not in answer.content
    before, after = cv2.imread(str(pictures[0])), cv2.imdecode(np.frombuffer(answer.content, np.uint8), 1)
    assert before.shape == after.shape
    assert not np.array_equal(before, after)


def test_of_several_pictures_a_damaged_one_says_why_and_the_others_are_looked_at(
    server: Server, pictures: list[Path]
) -> None:
    files = [
        ("files", ("good.jpg", pictures[0].read_bytes())),
        ("files", ("../../bad.jpg", b"no picture")),
        ("files", ("empty.jpg", b"")),
        ("files", ("again.jpg", pictures[1].read_bytes())),
    ]
    answers = server.client.post(f"{API}/detect/many", files=files).raise_for_status().json()["pictures"]
    assert [answer["file"] for answer in answers] == ["good.jpg", "bad.jpg", "empty.jpg", "again.jpg"]
    assert [answer["found"] is not None for answer in answers] == [True, False, False, True]
    assert "is not a JPEG" in answers[1]["error"]


def test_an_archive_is_looked_at_file_by_file(server: Server, pictures: list[Path]) -> None:
    archive = zipped(
        {
            **{f"day/{n}.jpg": path.read_bytes() for n, path in enumerate(pictures)},
            "notes.txt": b"what we saw",
            "cut.jpg": pictures[0].read_bytes()[:300],
        }
    )
    answer = server.client.post(f"{API}/jobs?min_score=0.4", files={"file": ("week 47.zip", archive)})
    assert answer.status_code == 202
    job = ended(server.client, answer.json()["id"])
    assert (job["state"], job["name"], job["files"], job["looked_at"], job["errors"]) == (
        "done",
        "week 47.zip",
        len(pictures) + 2,
        len(pictures) + 2,
        2,
    )
    lines = server.client.get(f"{API}/jobs/{job['id']}/results").text.splitlines()
    results = {line["file"]: line for line in map(json.loads, lines)}
    one = server.client.post(f"{API}/detect?min_score=0.4", content=pictures[0].read_bytes()).json()
    assert results["day/0.jpg"]["detections"] == one["detections"]
    assert results["notes.txt"]["error"] == "is no picture by its name"
    assert "cut.jpg" in results
    assert server.client.delete(f"{API}/jobs/{job['id']}").status_code == 204
    assert server.client.get(f"{API}/jobs/{job['id']}").status_code == 404


def test_an_archive_goes_on_after_a_restart(config: ServeConfig, pictures: list[Path]) -> None:
    many = {f"{n}.jpg": pictures[n % len(pictures)].read_bytes() for n in range(400)}
    with started(config) as server:
        id = server.client.post(f"{API}/jobs", content=zipped(many)).json()["id"]
        while server.client.get(f"{API}/jobs/{id}").json()["looked_at"] < 20:
            time.sleep(0.01)
    before = (config.state / "jobs" / id / "results.jsonl").read_bytes()
    assert 20 <= before.count(b"\n") < 400
    # What a power cut leaves.
    with (config.state / "jobs" / id / "results.jsonl").open("ab") as file:
        file.write(b'{"file": "half of a l')
    with started(config) as server:
        job = ended(server.client, id)
        assert (job["state"], job["looked_at"], job["errors"]) == ("done", 400, 0)
        lines = server.client.get(f"{API}/jobs/{id}/results").content.splitlines()
    assert [json.loads(line)["file"] for line in lines] == list(many)


def test_a_job_can_be_stopped_and_keeps_what_it_found(server: Server, pictures: list[Path]) -> None:
    many = zipped({f"{n}.jpg": pictures[0].read_bytes() for n in range(2000)})
    id = server.client.post(f"{API}/jobs", content=many).json()["id"]
    while not server.client.get(f"{API}/jobs/{id}").json()["looked_at"]:
        time.sleep(0.01)
    assert server.client.get(f"{API}/jobs/{id}").json()["seconds_left"] > 0
    assert server.client.post(f"{API}/jobs/{id}/stop").json()["state"] == "stopped"
    time.sleep(0.3)
    looked_at = server.client.get(f"{API}/jobs/{id}").json()["looked_at"]
    assert 0 < looked_at < 2000
    lines = server.client.get(f"{API}/jobs/{id}/results").text.splitlines()
    assert looked_at <= len(lines) <= looked_at + 1


def test_models_are_changed_and_given_back_without_a_lost_request(
    server: Server, another_model: Path, pictures: list[Path]
) -> None:
    first = server.client.get(f"{API}/status").json()["model"]
    second = server.edge.registry.add(another_model).hash
    listed = server.client.get(f"{API}/models").json()
    assert [(model["hash"], model["in_use"]) for model in listed] == [(second, False), (first, True)]
    assert [(model["origin"], model["promoted"], model["map50"]) for model in listed] == [
        ("file", False, None),
        ("file", True, None),
    ]
    server.client.post(f"{API}/models/{second[:12]}/use").raise_for_status()
    assert server.client.post(f"{API}/detect", content=pictures[0].read_bytes()).json()["model"] == second
    server.client.post(f"{API}/models/roll-back").raise_for_status()
    assert server.client.post(f"{API}/detect", content=pictures[0].read_bytes()).json()["model"] == first
    refused = server.client.post(f"{API}/models/roll-back")
    assert (refused.status_code, refused.json()["reason"]) == (
        409,
        "there is no model to go back to: this one is the first",
    )


def test_a_model_that_was_changed_on_the_disk_is_not_used(server: Server, another_model: Path) -> None:
    second = server.edge.registry.add(another_model).hash
    path = server.edge.registry.path(second)
    path.write_bytes(path.read_bytes() + b"\0")
    refused = server.client.post(f"{API}/models/{second}/use")
    assert refused.status_code == 409
    assert "was changed since it was added" in refused.json()["reason"]
    assert str(path) not in refused.text
    assert server.client.get(f"{API}/status").json()["model"] != second


def test_what_the_node_puts_to_use_is_used_and_what_is_damaged_is_taken_back(
    server: Server, another_model: Path
) -> None:
    first = server.client.get(f"{API}/status").json()["model"]
    registry = Registry(server.edge.config.state / MODELS)  # as another process opens it
    second = registry.add(another_model).hash
    registry.use(second)
    until(lambda: server.client.get(f"{API}/status").json()["model"] == second)
    path = registry.path(first)
    path.write_bytes(path.read_bytes()[:1000])
    registry.use(first)
    until(lambda: server.client.get(f"{API}/status").json()["taken_back"] == 1)
    assert server.client.get(f"{API}/status").json()["model"] == second == registry.used[0]


def test_the_model_of_last_time_is_used_again(config: ServeConfig, another_model: Path) -> None:
    with started(config) as server:
        second = server.edge.registry.add(another_model).hash
        server.client.post(f"{API}/models/{second}/use").raise_for_status()
    with started(config.model_copy(update={"model": None})) as server:
        assert server.client.get(f"{API}/status").json()["model"] == second


def test_dark_pictures_are_looked_at_by_the_model_for_the_night(
    config: ServeConfig, another_model: Path, pictures: list[Path]
) -> None:
    night = {"model": another_model, "darker_than": 40}
    with started(ServeConfig.model_validate({**config.model_dump(), "night": night})) as server:
        bright = pictures[0].read_bytes()
        memory = io.BytesIO()
        with Image.open(pictures[0]) as image:
            image.point(lambda value: value // 8).save(memory, "JPEG")
        scenes = [server.client.post(f"{API}/detect", content=c).json()["scene"] for c in (bright, memory.getvalue())]
        assert scenes == ["day", "night"]
        assert server.client.put(f"{API}/scene", json={"scene": "night"}).status_code == 204
        answer = server.client.post(f"{API}/detect", content=bright).json()
        assert answer["model"] == next(
            model["hash"] for model in server.client.get(f"{API}/models").json() if model["night"]
        )
        server.client.put(f"{API}/scene", json={"scene": None})
        assert server.client.post(f"{API}/detect", content=bright).json()["scene"] == "day"


def test_without_a_model_for_the_night_there_is_none(server: Server) -> None:
    refused = server.client.put(f"{API}/scene", json={"scene": "night"})
    assert refused.status_code == 409
    assert "--night MODEL" in refused.json()["cure"]


def test_history_says_what_was_found(server: Server, pictures: list[Path]) -> None:
    found = [
        server.client.post(f"{API}/detect", files={"file": (path.name, path.read_bytes())}).json() for path in pictures
    ]
    history = server.client.get(f"{API}/history").json()
    assert [entry["name"] for entry in history] == [path.name for path in reversed(pictures)]
    cars = sum(box["class"] == "car" for answer in found for box in answer["detections"])
    assert server.client.get(f"{API}/history/totals").json().get("car", 0) == cars
    with_cars = server.client.get(f"{API}/history?class=car").json()
    assert sum(entry["counts"]["car"] for entry in with_cars) == cars
    older = server.client.get(f"{API}/history?before={history[1]['id']}&most=2").json()
    assert [entry["id"] for entry in older] == [entry["id"] for entry in history[2:4]]


def test_what_is_found_only_with_a_lower_score_is_not_remembered_as_seen(server: Server, pictures: list[Path]) -> None:
    for query, expected in (("?min_score=0.01", 0.25), ("?min_score=0.6", 0.6)):
        found = server.client.post(f"{API}/detect{query}", content=pictures[0].read_bytes()).json()["detections"]
        sure = sum(box["score"] >= expected for box in found)
        assert sum(server.client.get(f"{API}/history").json()[0]["counts"].values()) == sure
    assert server.client.get(f"{API}/status").json()["pictures"] == 2


def test_history_can_be_searched_by_time_shown_as_a_curve_and_forgotten(server: Server, pictures: list[Path]) -> None:
    began = time.time()
    for path in pictures:
        server.client.post(f"{API}/detect", files={"file": (path.name, path.read_bytes())}).raise_for_status()
    history = server.client.get(f"{API}/history").json()
    middle = history[2]["time"]
    later = server.client.get(f"{API}/history?since={middle}").json()
    earlier = server.client.get(f"{API}/history?until={middle}").json()
    assert [entry["id"] for entry in later + earlier] == [entry["id"] for entry in history]
    series = server.client.get(f"{API}/history/series?hours=1&bins=60").json()
    assert series["step"] == 60
    assert series["from"] == pytest.approx(time.time() - 3600, abs=30)
    assert {name: sum(counts) for name, counts in series["classes"].items()} == server.client.get(
        f"{API}/history/totals"
    ).json()
    assert all(len(counts) == 60 for counts in series["classes"].values())
    assert server.client.get(f"{API}/history/series?source=live%201").json()["classes"] == {}
    gone = history[0]["id"]
    assert server.client.delete(f"{API}/history/{gone}").status_code == 204
    assert server.client.delete(f"{API}/history/{gone}").status_code == 404
    assert server.client.delete(f"{API}/history?before={began}").json() == {"deleted": 0}
    assert server.client.delete(f"{API}/history?before={middle}").json() == {"deleted": 3}
    assert [entry["id"] for entry in server.client.get(f"{API}/history").json()] == [e["id"] for e in history[1:3]]
    assert server.client.delete(f"{API}/history").status_code == 422, "without a time nothing is forgotten by mistake"


def test_metrics_count_what_was_done(server: Server, pictures: list[Path]) -> None:
    server.client.post(f"{API}/detect", content=pictures[0].read_bytes())
    server.client.post(f"{API}/detect", content=b"nothing")
    text = server.client.get("/metrics").text
    assert 'manyeyes_picture_seconds_count{source="request"} 1.0' in text
    assert "manyeyes_pictures_refused_total 1.0" in text
    assert server.client.get("/readyz").status_code == 200


def test_too_many_at_a_time_are_told_to_come_later(config: ServeConfig, pictures: list[Path]) -> None:
    config = config.model_copy(update={"limits": LimitSection(waiting=1)})
    with started(config) as server:
        server.edge.metrics.waiting = 1  # as if one were looked at
        refused = server.client.post(f"{API}/detect", content=pictures[0].read_bytes())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        server.edge.metrics.waiting = 0
        server.client.post(f"{API}/detect", content=pictures[0].read_bytes()).raise_for_status()


# -- who may do what --------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(config: ServeConfig) -> ServeConfig:
    from manyeyes.web.access import Access

    access = Access(config.state)
    access.set_password(Role.administrator, "correct horse battery")
    access.set_password(Role.viewer, "only looking here")
    return config


def test_with_a_password_nobody_enters_without(guarded: ServeConfig, pictures: list[Path]) -> None:
    with started(guarded) as server:
        client = server.client
        for method, path in (
            ("POST", f"{API}/detect"),
            ("GET", f"{API}/status"),
            ("GET", f"{API}/history"),
            ("POST", f"{API}/jobs"),
            ("GET", f"{API}/tokens"),
            ("GET", "/metrics"),
        ):
            assert client.request(method, path).status_code == 401, path
        assert client.get("/healthz").status_code == 200
        viewer = client.post(f"{API}/login", json={"password": "only looking here"}, headers=OWN)
        cookie = viewer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get(f"{API}/status").json()["role"] == "viewer"
        assert client.post(f"{API}/detect", content=pictures[0].read_bytes(), headers=OWN).status_code == 200
        assert client.get(f"{API}/tokens").status_code == 403
        assert client.post(f"{API}/logout", headers=OWN).status_code == 204
        assert client.get(f"{API}/status").status_code == 401


def test_a_viewer_stops_an_archive_of_a_viewer_and_none_of_an_administrator(
    guarded: ServeConfig, pictures: list[Path]
) -> None:
    many = zipped({f"{n}.jpg": pictures[0].read_bytes() for n in range(2000)})

    def enter(client: httpx.Client, password: str) -> None:
        client.post(f"{API}/login", json={"password": password}, headers=OWN).raise_for_status()

    with started(guarded) as server:
        client = server.client
        enter(client, "correct horse battery")
        first = client.post(f"{API}/jobs", content=many, headers=OWN).json()["id"]
        enter(client, "only looking here")
        second = client.post(f"{API}/jobs", content=many, headers=OWN).json()["id"]
        assert client.post(f"{API}/jobs/{first}/stop", headers=OWN).status_code == 403
        assert client.get(f"{API}/jobs/{first}").json()["state"] == "running"
        assert client.post(f"{API}/jobs/{second}/stop", headers=OWN).json()["state"] == "stopped"
        enter(client, "correct horse battery")
        assert client.post(f"{API}/jobs/{first}/stop", headers=OWN).json()["state"] == "stopped"


def test_a_session_that_has_ended_is_not_taken_up_again(guarded: ServeConfig) -> None:
    with started(guarded) as server:
        server.client.post(f"{API}/login", json={"password": "correct horse battery"}, headers=OWN)
        cookie = server.client.cookies["manyeyes"]
        server.client.post(f"{API}/logout", headers=OWN)
        assert server.client.get(f"{API}/status", headers={"cookie": f"manyeyes={cookie}"}).status_code == 401


def test_tokens_are_shown_once_and_can_be_taken_back(guarded: ServeConfig) -> None:
    with started(guarded) as server:
        client = server.client
        client.post(f"{API}/login", json={"password": "correct horse battery"}, headers=OWN)
        made = client.post(f"{API}/tokens", json={"name": "robot"}, headers=OWN).json()
        assert made["token"] not in client.get(f"{API}/tokens").text
        assert made["token"] not in (guarded.state / "tokens.json").read_text()
        assert (guarded.state / "tokens.json").stat().st_mode & 0o077 == 0
        client.cookies.clear()
        bearer = {"authorization": f"Bearer {made['token']}"}
        assert client.get(f"{API}/status", headers=bearer).json()["role"] == "viewer"
        assert client.get(f"{API}/tokens", headers=bearer).status_code == 403
        server.edge.access.revoke_token("robot")
        assert client.get(f"{API}/status", headers=bearer).status_code == 401


def test_guessing_passwords_becomes_slow(guarded: ServeConfig) -> None:
    with started(guarded) as server:
        answers = [
            server.client.post(f"{API}/login", json={"password": f"guess number {n}"}, headers=OWN) for n in range(7)
        ]
        assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 2
        assert int(answers[-1].headers["retry-after"]) >= 1
        right = server.client.post(f"{API}/login", json={"password": "correct horse battery"}, headers=OWN)
        assert right.status_code == 429
