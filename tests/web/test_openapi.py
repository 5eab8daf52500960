"""The description of the API against what the server does."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import WebSocketRoute
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from manyeyes.web.access import Access, Role
from manyeyes.web.api import edge_router
from manyeyes.web.edge import Edge
from manyeyes.web.live import events_router, live_router
from manyeyes.web.settings import LimitSection, ServeConfig

from .conftest import Server, started
from .hostile import packed

API = "/api/v1"
# What a server may say that is not its fault: too many ask, or the disk is full.
BUSY = (503, 507)
OPEN = {("POST", f"{API}/login"), ("POST", f"{API}/logout")}


def config_of(model: Path, state: Path) -> ServeConfig:
    limits = LimitSection(guesses=1000, streams=2)
    return ServeConfig(model=model, state=state, threads=1, backend="openvino", precision="fp32", limits=limits)


@pytest.fixture(scope="module")
def described(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What a server says of itself, and the server."""
    with started(config_of(onnx_file, tmp_path_factory.mktemp("described") / "serve")) as server:
        yield schemathesis.openapi.from_url(f"{server.address}{API}/openapi.json")


CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def asked(operation: Any, mode: schemathesis.GenerationMode, **known: Any) -> None:
    """Ask for one operation again and again, as its description allows or forbids it."""

    @given(operation.as_strategy(generation_mode=mode, **known))
    @settings(
        max_examples=60,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        answer = case.call()
        assert answer.status_code < 500 or answer.status_code in BUSY, answer.text
        case.validate_response(answer, checks=CHECKS)

    ask()


@pytest.mark.slow
def test_whatever_is_sent_it_answers_as_it_says(described: Any, pictures: list[Path]) -> None:
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) > 20
    wrong: list[str] = []

    def ask(operation: Any, mode: schemathesis.GenerationMode, **known: Any) -> None:
        try:
            asked(operation, mode, **known)
        except Unsatisfiable:
            pass  # there is nothing that it forbids
        except (AssertionError, BaseExceptionGroup) as error:
            wrong.append(f"{operation.label} {mode.value}: {''.join(traceback.format_exception_only(error))}")

    for operation in operations:
        ask(operation, schemathesis.GenerationMode.POSITIVE)
        ask(operation, schemathesis.GenerationMode.NEGATIVE)
    # What is there is found by no chance.
    address = described.get_base_url()
    archive = packed(("a.jpg", pictures[0].read_bytes()))
    with httpx.Client(base_url=address.removesuffix("/"), trust_env=False, timeout=30) as client:
        job = client.post(f"{API}/jobs", content=archive).raise_for_status().json()["id"]
        model = client.get(f"{API}/status").json()["model"]
        client.post(f"{API}/tokens", json={"name": "robot"}).raise_for_status()
    there = {"id": job, "hash": model, "name": "robot"}
    # Those that delete come last.
    for operation in sorted(operations, key=lambda operation: operation.method.upper() == "DELETE"):
        names = {parameter.name for parameter in operation.path_parameters}
        if names:
            known = {name: there[name] for name in names}
            ask(operation, schemathesis.GenerationMode.POSITIVE, path_parameters=known)
    assert not wrong, "\n\n".join(wrong)


@pytest.fixture(scope="module")
def guarded(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = config_of(onnx_file, tmp_path_factory.mktemp("guarded") / "serve")
    Access(config.state).set_password(Role.administrator, "correct horse battery")
    with started(config) as server:
        yield server


def routes_of(edge: Edge) -> set[tuple[str, str]]:
    routes = (route for route in edge_router(edge).routes if isinstance(route, APIRoute))
    return {(method, route.path) for route in routes for method in route.methods}


def filled(path: str) -> str:
    return path.replace("{id}", "0" * 16).replace("{hash}", "0" * 64).replace("{name}", "nobody")


def test_every_address_is_described_in_words(guarded: Server) -> None:
    paths = guarded.client.get(f"{API}/openapi.json").json()["paths"]
    described = {(method.upper(), path): about for path, methods in paths.items() for method, about in methods.items()}
    assert described.keys() == routes_of(guarded.edge)
    for place, about in described.items():
        assert about["description"].endswith("."), place
        assert {"401", "403", "422", "503"} <= about["responses"].keys(), place


def test_every_address_needs_a_role(guarded: Server) -> None:
    assert routes_of(guarded.edge) >= OPEN
    for method, path in routes_of(guarded.edge) - OPEN:
        answer = guarded.client.request(method, filled(path))
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["reason"] == "needs a password or a token"


def test_what_a_viewer_may_not_do_is_what_changes_something_for_others(guarded: Server) -> None:
    token = guarded.edge.access.make_token("viewer", Role.viewer)
    bearer = {"authorization": f"Bearer {token}"}
    forbidden = {
        (method, path)
        for method, path in routes_of(guarded.edge) - OPEN
        if guarded.client.request(method, filled(path), headers=bearer).status_code == 403
    }
    assert forbidden == {
        ("POST", f"{API}/federation/pause"),
        ("POST", f"{API}/federation/resume"),
        ("DELETE", f"{API}/history"),
        ("DELETE", f"{API}/history/{{id}}"),
        ("DELETE", f"{API}/jobs/{{id}}"),
        ("POST", f"{API}/models/{{hash}}/use"),
        ("POST", f"{API}/models/roll-back"),
        ("PUT", f"{API}/review/{{id}}/boxes"),
        ("POST", f"{API}/review/{{id}}/add"),
        ("POST", f"{API}/review/{{id}}/dismiss"),
        ("POST", f"{API}/review/{{id}}/reopen"),
        ("DELETE", f"{API}/review/{{id}}"),
        ("PUT", f"{API}/scene"),
        ("POST", f"{API}/streams"),
        ("DELETE", f"{API}/streams/{{name}}"),
        ("PUT", f"{API}/streams/{{name}}/counting"),
        ("POST", f"{API}/streams/{{name}}/counting/reset"),
        ("GET", f"{API}/tokens"),
        ("POST", f"{API}/tokens"),
        ("DELETE", f"{API}/tokens/{{name}}"),
    }


def test_every_web_socket_needs_a_role(guarded: Server) -> None:
    edge = guarded.edge
    routers = live_router(edge), events_router(edge, edge.events)
    routes = [route for router in routers for route in router.routes if isinstance(route, WebSocketRoute)]
    assert len(routes) == 3
    for route in routes:
        address = guarded.address.replace("http", "ws") + filled(route.path)
        with pytest.raises(InvalidStatus) as refused:
            connect(address, proxy=None)
        assert refused.value.response.status_code == 403


def test_pages_that_describe_the_api_are_not_served_from_elsewhere(guarded: Server) -> None:
    for path in ("/docs", "/redoc", f"{API}/docs", "/openapi.json"):
        assert guarded.client.get(path).status_code == 404
