"""Pictures on which the model was unsure, from the request to the site's training pictures."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from PIL import Image

from manyeyes.datasets.detections import Detections
from manyeyes.datasets.overlay import OVERLAY, Overlay
from manyeyes.runtime.model_file import METADATA
from manyeyes.web.review import disagree, is_unsure
from manyeyes.web.settings import ReviewSection, ServeConfig
from mjpeg import camera

from .conftest import Server, started

API = "/api/v1"
# Whatever the small model finds is a doubt.
ALL = ReviewSection(low=0.01, high=1)
CAR = {"class": "car", "xyxy": [10, 20, 60, 70]}


def with_review(config: ServeConfig, **section: Any) -> ServeConfig:
    return config.model_copy(update={"review": ReviewSection.model_validate({**ALL.model_dump(), **section})})


@pytest.fixture
def unsure(config: ServeConfig) -> Iterator[Server]:
    with started(with_review(config)) as server:
        yield server


def kept(server: Server, picture: Path) -> str:
    """The id under which a picture is kept."""
    answer = server.client.post(f"{API}/detect?min_score=0.01", content=picture.read_bytes()).raise_for_status()
    return str(answer.json()["review"])


def found(*boxes: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(sorted(boxes, key=lambda box: -box[4]), dtype=np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_an_object_between_the_scores_is_a_doubt_unless_a_sure_one_covers_it() -> None:
    assert not is_unsure(found(), 0.25, 0.5)
    assert not is_unsure(found((0, 0, 10, 10, 0.5, 0), (0, 0, 10, 10, 0.2, 1)), 0.25, 0.5)
    assert is_unsure(found((0, 0, 10, 10, 0.49, 0)), 0.25, 0.5)
    assert is_unsure(found((0, 0, 10, 10, 0.25, 0), (50, 50, 60, 60, 0.9, 0)), 0.25, 0.5)
    assert not is_unsure(found((0, 0, 10, 10, 0.3, 1), (0, 0, 10, 11, 0.9, 0)), 0.25, 0.5)


def test_two_models_disagree_where_one_is_sure_and_the_other_sees_nothing() -> None:
    names, turned = ("person", "car"), ("car", "person")
    sure, faint = found((0, 0, 10, 10, 0.9, 1)), found((0, 0, 10, 10, 0.3, 0))
    assert not disagree((sure, names), (faint, turned), 0.5)
    assert disagree((sure, names), (found(), names), 0.5)
    assert disagree((found(), names), (sure, names), 0.5)
    assert disagree((sure, names), (faint, names), 0.5), "another class is no trace"
    assert not disagree((sure, names), (found(), ("person",)), 0.5), "who does not know a class cannot miss it"
    assert not disagree((faint, names), (found(), names), 0.5)


def test_a_doubtful_picture_is_kept_once_and_can_be_looked_at(unsure: Server, pictures: list[Path]) -> None:
    id = kept(unsure, pictures[0])
    assert kept(unsure, pictures[0]) == id
    (listed,) = unsure.client.get(f"{API}/review").json()
    assert (listed["id"], listed["reasons"], listed["state"], listed["boxes"]) == (id, ["low_margin"], "open", None)
    assert listed["classes"] == ["person", "car"]
    asked = unsure.client.post(f"{API}/detect?min_score=0.01", content=pictures[0].read_bytes()).json()
    assert listed["detections"] == asked["detections"]
    jpeg = unsure.client.get(f"{API}/review/{id}/picture")
    assert jpeg.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(jpeg.content)).size == (listed["width"], listed["height"])
    compared = f"{API}/detect?model={asked['model'][:12]}&min_score=0.01"
    assert unsure.client.post(compared, content=pictures[1].read_bytes()).json()["review"] is None


def test_a_corrected_picture_is_a_training_picture_until_it_is_taken_out(unsure: Server, pictures: list[Path]) -> None:
    id, client = kept(unsure, pictures[0]), unsure.client
    overlay = Overlay(unsure.edge.config.state / OVERLAY)
    draft = client.put(f"{API}/review/{id}/boxes", json={"boxes": [CAR]}).raise_for_status().json()
    assert (draft["state"], draft["boxes"]) == ("open", [CAR])
    assert overlay.count == 0
    added = client.post(f"{API}/review/{id}/add", json={"boxes": [CAR, {**CAR, "class": "person"}]}).json()
    assert added["state"] == "added"
    (picture,) = overlay.pictures()
    assert [(box.name, box.xyxy) for box in picture.boxes] == [("car", (10, 20, 60, 70)), ("person", (10, 20, 60, 70))]
    assert picture.annotates == ("person", "car")
    assert picture.image.read_bytes() == client.get(f"{API}/review/{id}/picture").content
    assert [entry["id"] for entry in client.get(f"{API}/review?state=added").json()] == [id]
    assert client.put(f"{API}/review/{id}/boxes", json={"boxes": []}).status_code == 409
    assert client.post(f"{API}/review/{id}/reopen").json()["state"] == "open"
    assert overlay.count == 0
    client.post(f"{API}/review/{id}/add", json={"boxes": []}).raise_for_status()
    assert overlay.pictures()[0].boxes == ()
    assert client.post(f"{API}/review/{id}/dismiss").json()["state"] == "dismissed"
    assert overlay.count == 0
    assert kept(unsure, pictures[0]) == "None", "what was decided is not offered again"
    client.post(f"{API}/review/{id}/add", json={"boxes": []}).raise_for_status()
    assert client.delete(f"{API}/review/{id}").status_code == 204
    assert overlay.count == 0
    assert client.get(f"{API}/review/{id}").status_code == 404


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ({**CAR, "class": "dog"}, "'dog' is not a class"),
        ({**CAR, "xyxy": [10, 10, 10, 20]}, "no area"),
        ({**CAR, "xyxy": [900, 900, 950, 950]}, "no area inside the picture"),
        ({**CAR, "xyxy": [1, 2, 3]}, "boxes"),
        ({"class": "car"}, "boxes"),
    ],
)
def test_what_is_no_box_is_refused_and_nothing_is_added(
    unsure: Server, pictures: list[Path], box: dict[str, Any], reason: str
) -> None:
    id = kept(unsure, pictures[0])
    refused = unsure.client.post(f"{API}/review/{id}/add", json={"boxes": [CAR, box]})
    assert refused.status_code == 422
    assert reason in refused.json()["reason"]
    assert unsure.edge.overlay.count == 0
    assert unsure.client.get(f"{API}/review/{id}").json()["state"] == "open"


def test_a_box_may_reach_past_the_picture_and_ends_at_it(unsure: Server, pictures: list[Path]) -> None:
    id = kept(unsure, pictures[0])
    box = {**CAR, "xyxy": [-5, -5, 5000, 5000]}
    entry = unsure.client.put(f"{API}/review/{id}/boxes", json={"boxes": [box]}).json()
    assert entry["boxes"][0]["xyxy"] == [0, 0, entry["width"], entry["height"]]


def test_only_so_many_wait_for_somebody_and_the_added_ones_stay(config: ServeConfig, pictures: list[Path]) -> None:
    with started(with_review(config, keep=2, every=0)) as server:
        first = kept(server, pictures[0])
        server.client.post(f"{API}/review/{first}/add", json={"boxes": []}).raise_for_status()
        others = [kept(server, path) for path in pictures[1:5]]
        assert [entry["id"] for entry in server.client.get(f"{API}/review").json()] == [others[3], others[2]]
        assert server.client.get(f"{API}/review/{first}").json()["state"] == "added"
        page = server.client.get(f"{API}/review?state=all&most=1&before={others[3]}").json()
        assert [entry["id"] for entry in page] == [others[2]]
        files = {path.stem for path in (config.state / "review").iterdir()}
        assert files == {first, others[2], others[3]}


def test_once_there_is_no_room_one_now_and_then_is_enough(config: ServeConfig, pictures: list[Path]) -> None:
    with started(with_review(config, keep=2)) as server:
        ids = [kept(server, path) for path in pictures[:4]]
        assert [entry["id"] for entry in server.client.get(f"{API}/review").json()] == [ids[1], ids[0]]
        assert ids[2:] == ["None", "None"]


def test_it_is_there_after_a_restart(config: ServeConfig, pictures: list[Path]) -> None:
    config = with_review(config)
    with started(config) as server:
        id = kept(server, pictures[0])
        server.client.put(f"{API}/review/{id}/boxes", json={"boxes": [CAR]}).raise_for_status()
        before = server.client.get(f"{API}/review/{id}").json()
    (config.state / "review" / "0000000000000000.json").write_text("{}")
    with started(config) as server:
        assert server.client.get(f"{API}/review").json() == [before]


def test_somebody_may_ask_for_any_picture(config: ServeConfig, pictures: list[Path]) -> None:
    with started(with_review(config, low=0.98, high=0.99)) as server:
        assert kept(server, pictures[0]) == "None"
        asked = server.client.post(f"{API}/review?name=a%20gap", content=pictures[0].read_bytes())
        assert asked.status_code == 201
        assert (asked.json()["reasons"], asked.json()["name"]) == (["asked"], "a gap")
        again = server.client.post(f"{API}/review", files={"file": ("b.jpg", pictures[0].read_bytes())}).json()
        assert (again["id"], again["name"]) == (asked.json()["id"], "a gap")
        assert server.client.post(f"{API}/review", content=b"nothing").status_code == 422


def test_where_none_are_kept_none_are(config: ServeConfig, pictures: list[Path]) -> None:
    with started(with_review(config, keep=0)) as server:
        assert kept(server, pictures[0]) == "None"
        assert server.client.post(f"{API}/review", content=pictures[0].read_bytes()).status_code == 409
        assert not list((config.state / "review").iterdir())


def test_a_large_picture_is_kept_smaller_and_its_boxes_fit(unsure: Server, pictures: list[Path]) -> None:
    large = cv2.resize(cv2.imread(str(pictures[0])), (5000, 4000))
    png = cv2.imencode(".png", large)[1].tobytes()
    asked = unsure.client.post(f"{API}/detect?min_score=0.01", content=png).json()
    entry = unsure.client.get(f"{API}/review/{asked['review']}").json()
    assert (entry["width"], entry["height"]) == (4096, 3277)
    for mine, theirs in zip(entry["detections"], asked["detections"], strict=True):
        assert mine["xyxy"] == pytest.approx([value * 4096 / 5000 for value in theirs["xyxy"]], abs=1)


def test_where_two_models_disagree_the_picture_is_kept(
    config: ServeConfig, onnx_file: Path, pictures: list[Path], tmp_path: Path
) -> None:
    model = onnx.load(onnx_file)  # it takes persons for cars
    (about,) = [entry for entry in model.metadata_props if entry.key == METADATA]
    about.value = about.value.replace('"person","car"', '"car","person"')
    onnx.save(model, tmp_path / "turned.onnx")
    section = {"low": 0.3, "high": 0.31, "second_model": str(tmp_path / "turned.onnx")}
    with started(with_review(config, **section)) as server:
        for path in pictures:
            server.client.post(f"{API}/detect", content=path.read_bytes()).raise_for_status()
        ends = time.monotonic() + 30
        while not (entries := server.client.get(f"{API}/review").json()):
            assert time.monotonic() < ends
            time.sleep(0.1)
        assert {"disagreement"} <= {reason for entry in entries for reason in entry["reasons"]}


def test_of_one_camera_a_picture_is_kept_only_now_and_then(config: ServeConfig, pictures: list[Path]) -> None:
    config = with_review(config, every=1000).model_copy(update={"cameras_anywhere": True, "min_score": 0.01})
    with camera([path.read_bytes() for path in pictures]) as port, started(config) as server:
        source = {"name": "gate", "source": f"http://127.0.0.1:{port}/live.mjpg"}
        server.client.post(f"{API}/streams", json=source).raise_for_status()
        ends = time.monotonic() + 60
        while server.client.get(f"{API}/streams").json()[0]["frames"] < 5:
            assert time.monotonic() < ends
            time.sleep(0.1)
        assert [entry["source"] for entry in server.client.get(f"{API}/review").json()] == ["stream gate"]
