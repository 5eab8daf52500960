from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from manyeyes.web.edge import Edge, open_edge
from manyeyes.web.node import node_app
from manyeyes.web.serving import LOOPBACK, listen, serving
from manyeyes.web.settings import ServeConfig

# What a page of the server itself sends.
OWN = {"x-manyeyes": "1"}


@dataclass(frozen=True)
class Server:
    edge: Edge
    address: str
    client: httpx.Client


@contextmanager
def started(config: ServeConfig) -> Iterator[Server]:
    """A real server on a free port of loopback."""
    with ExitStack() as stack:
        edge = stack.enter_context(open_edge(config))
        listener = stack.enter_context(listen(LOOPBACK, 0, key="port"))
        limits = config.limits
        stack.enter_context(
            serving(
                node_app(edge=edge),
                listener,
                "test",
                connections=limits.connections,
                message_bytes=limits.picture_bytes,
                patience=limits.patience,
            )
        )
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = stack.enter_context(httpx.Client(base_url=address, trust_env=False, timeout=60))
        yield Server(edge, address, client)


@pytest.fixture
def config(onnx_file: Path, tmp_path: Path) -> ServeConfig:
    return ServeConfig(model=onnx_file, state=tmp_path / "serve", threads=1, backend="openvino", precision="fp32")


@pytest.fixture
def server(config: ServeConfig) -> Iterator[Server]:
    with started(config) as server:
        yield server


@pytest.fixture(scope="session")
def pictures(scenes: Path) -> list[Path]:
    """Synthetic scenes with persons and cars, as JPEG files."""
    return sorted(scenes.rglob("*.jpg"))[:6]


@pytest.fixture
def another_model(onnx_file: Path, tmp_path: Path) -> Path:
    """The same network in another file: another hash."""
    import onnx

    model = onnx.load(onnx_file)
    model.producer_name = "another"
    path = tmp_path / "another.onnx"
    onnx.save(model, path)
    return path
