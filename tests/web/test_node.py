from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from manyeyes.errors import ResourceError
from manyeyes.federation.node_status import NodeStatus
from manyeyes.registry import MODELS, Registry
from manyeyes.web.edge import open_edge
from manyeyes.web.node import node_page
from manyeyes.web.settings import ServeConfig

STATUS = NodeStatus("A", not_ready="is starting")


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with (
        node_page(STATUS, 0) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10) as client,
    ):
        yield client


def numbers(text: str) -> dict[tuple[str, ...], float]:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(s.name.removeprefix("manyeyes_node_"), *s.labels.values()): s.value for s in samples}


def test_it_is_alive_before_it_is_ready(client: httpx.Client) -> None:
    assert client.get("/healthz").text == "ok\n"
    answer = client.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "is starting\n")
    STATUS.not_ready = None
    assert client.get("/readyz").status_code == 200


def test_its_numbers_are_those_of_this_moment(client: httpx.Client) -> None:
    first = numbers(client.get("/metrics").text)
    assert ("round",) not in first
    STATUS.round, STATUS.pictures, STATUS.last_seen, STATUS.training_seconds = 3, 71, 1.5e9, 12.5
    STATUS.today = lambda: (1000, 20)
    STATUS.answered["fit"] += 2
    STATUS.refused["hours"] += 1
    STATUS.refused["memory"] += 4
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    now = numbers(answer.text)
    assert now["round",] == 3
    assert now["pictures",] == 71
    assert now["coordinator_last_seen_timestamp_seconds",] == 1.5e9
    assert (now["bytes_today", "down"], now["bytes_today", "up"]) == (1000, 20)
    assert now["training_seconds_total",] == 12.5
    assert now["answers_total", "fit"] == 2
    assert (now["refusals_total", "hours"], now["refusals_total", "memory"]) == (1, 4)


def test_a_page_of_elsewhere_cannot_read_it_by_another_name(client: httpx.Client) -> None:
    assert client.get("/metrics", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/metrics", headers={"host": "localhost:5001"}).status_code == 200


def test_only_reading_is_possible(client: httpx.Client) -> None:
    assert client.post("/metrics").status_code == 405
    assert client.get("/docs").status_code == 404


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"port: cannot listen on 127\.0\.0\.1:{port}.*another port"):
            node_page(STATUS, port).__enter__()


def test_without_a_port_nothing_is_served() -> None:
    with node_page(STATUS, None) as port:
        assert port is None


def test_it_finds_objects_as_soon_as_its_site_has_a_model(onnx_file: Path, scenes: Path, tmp_path: Path) -> None:
    picture = next(scenes.rglob("*.jpg")).read_bytes()
    status = NodeStatus("A", not_ready=None)
    with (
        node_page(status, 0, tmp_path / "serve", threads=1) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
    ):
        assert client.post("/api/v1/detect", content=picture).status_code == 404
        registry = Registry(tmp_path / "serve" / MODELS)
        registry.use(registry.add(onnx_file).hash)
        until = time.monotonic() + 60
        while (answer := client.post("/api/v1/detect", content=picture)).status_code == 404:
            assert time.monotonic() < until
            time.sleep(0.2)
        assert answer.json()["model"] == registry.used[0]
        assert numbers(client.get("/metrics").text)["ready",] == 1
        # One folder, one server.
        with pytest.raises(ResourceError, match="another server uses this state folder already"):
            open_edge(ServeConfig(state=tmp_path / "serve")).__enter__()
    with open_edge(ServeConfig(state=tmp_path / "serve", threads=1)) as edge:
        assert edge.host.engine.model_hash == registry.used[0]


def test_a_first_model_that_cannot_be_used_does_not_keep_a_later_one_from_being_served(
    onnx_file: Path, scenes: Path, tmp_path: Path
) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(onnx_file)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, np.nan), tensor.name))
    onnx.save(model, tmp_path / "broken.onnx")
    picture = next(scenes.rglob("*.jpg")).read_bytes()
    registry = Registry(tmp_path / "serve" / MODELS)
    registry.use(registry.add(tmp_path / "broken.onnx").hash)
    with (
        node_page(NodeStatus("A", not_ready=None), 0, tmp_path / "serve", threads=1) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client,
    ):
        time.sleep(1)
        good = registry.add(onnx_file).hash
        registry.use(good)
        until = time.monotonic() + 60
        while (answer := client.post("/api/v1/detect", content=picture)).status_code == 404:
            assert time.monotonic() < until
            time.sleep(0.2)
        assert answer.json()["model"] == good
