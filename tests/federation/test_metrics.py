"""Figures as Prometheus gets them, over its own listener."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client.parser import text_string_to_metric_families

from manyeyes.errors import ConfigError, ResourceError
from manyeyes.federation.admission import MEMBERS, Members
from manyeyes.federation.coordinator_config import CoordinatorConfig
from manyeyes.federation.keys import SERVER, make_authority, read_certificate
from manyeyes.federation.metrics import CoordinatorMetrics, serve_metrics
from manyeyes.federation.presence import Presence
from report.nodes_run import NodesRun
from report.synthetic import UPDATE_BYTES

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def config(tmp_path: Path) -> CoordinatorConfig:
    config = CoordinatorConfig(name="harbour", names=("car",), state=tmp_path / "coordinator", output=tmp_path / "runs")
    make_authority(config.state, ["localhost"])
    for node in "ABC":
        Members(config.state).admit(node, ec.generate_private_key(ec.SECP256R1()).public_key())
    return config


@pytest.fixture
def presence() -> Presence:
    return Presence()


@pytest.fixture
def metrics(config: CoordinatorConfig, presence: Presence) -> CoordinatorMetrics:
    return CoordinatorMetrics(config, presence, lambda: "running")


@pytest.fixture
def port(metrics: CoordinatorMetrics) -> Iterator[int]:
    with serve_metrics(metrics, 0) as port:
        yield port


def scrape(port: int) -> Values:
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).raise_for_status()
    families = text_string_to_metric_families(answer.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(values: Values, name: str, **labels: str) -> float | None:
    return values.get((name, frozenset(labels.items())))


def test_a_run_is_told_in_figures(
    config: CoordinatorConfig, metrics: CoordinatorMetrics, port: int, tmp_path: Path
) -> None:
    run = NodesRun(tmp_path / "run")
    run.log.listeners.append(metrics)
    run.begin()
    run.round(1)
    run.round(2)
    run.start_round(3)
    run.emit("warning", reason="slow")
    values = scrape(port)
    assert value(values, "manyeyes_round") == 3
    assert value(values, "manyeyes_rounds_finished") == 2
    assert value(values, "manyeyes_rounds") == config.federation.rounds
    assert value(values, "manyeyes_updates_total", node="A") == 2
    assert value(values, "manyeyes_updates_total", node="B") == 1
    assert value(values, "manyeyes_updates_refused_total", node="B") == 1
    assert value(values, "manyeyes_map50", node="A") == pytest.approx(0.42)
    assert value(values, "manyeyes_loss", node="A") == pytest.approx(2.8)
    assert value(values, "manyeyes_update_seconds", node="A") == 12.0
    assert value(values, "manyeyes_round_seconds_count") == 2
    assert value(values, "manyeyes_round_seconds_sum") == pytest.approx(16.5 + 17.5)
    assert value(values, "manyeyes_round_seconds_bucket", le="20.0") == 2
    assert value(values, "manyeyes_phase_seconds_sum", phase="fit") == 24.0
    assert value(values, "manyeyes_warnings_total") == 1
    assert value(values, "manyeyes_state", manyeyes_state="running") == 1
    assert value(values, "manyeyes_state", manyeyes_state="waiting") == 0
    expires = read_certificate(config.state / SERVER).not_valid_after_utc.timestamp()
    assert value(values, "manyeyes_certificate_expiry_timestamp_seconds") == expires
    assert not any(name.endswith("_created") for name, _ in values)


def test_an_event_of_another_form_does_not_end_the_run(
    metrics: CoordinatorMetrics, caplog: pytest.LogCaptureFixture
) -> None:
    metrics({"event": "round_finished"})
    assert "the run goes on" in caplog.text


def test_a_resumed_run_begins_where_it_is(metrics: CoordinatorMetrics, port: int, tmp_path: Path) -> None:
    run = NodesRun(tmp_path / "run")
    run.log.listeners.append(metrics)
    run.begin(resumed_from=2)
    assert value(scrape(port), "manyeyes_rounds_finished") == 2


def test_nodes_are_told_as_the_door_sees_them(config: CoordinatorConfig, presence: Presence, port: int) -> None:
    for node in "AB":
        presence.came(node, "/v1/fleet/pull-messages")
    presence.carried("A", "up", UPDATE_BYTES)
    presence.carried("A", "down", 7)
    presence.refused(403)
    Members(config.state).revoke("B")
    values = scrape(port)
    assert value(values, "manyeyes_nodes_admitted") == 2
    assert [value(values, "manyeyes_node_online", node=node) for node in "ABC"] == [1, 0, 0]
    assert value(values, "manyeyes_bytes_total", direction="up", node="A") == UPDATE_BYTES
    assert value(values, "manyeyes_bytes_total", direction="down", node="A") == 7
    assert value(values, "manyeyes_door_refused_total", status="403") == 1
    assert value(values, "manyeyes_node_last_seen_timestamp_seconds", node="C") is None, "unknown is not 1970"


def test_a_damaged_register_does_not_hide_the_other_figures(config: CoordinatorConfig, port: int) -> None:
    (config.state / MEMBERS).write_text("[")
    assert value(scrape(port), "manyeyes_nodes_admitted") == 0


def test_only_this_machine_reaches_them(port: int) -> None:
    listening = [
        connection.laddr.ip
        for connection in psutil.Process().net_connections()
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]
    assert listening == ["127.0.0.1"]


def test_a_port_in_use_is_told(metrics: CoordinatorMetrics) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(
            ResourceError, match=r"metrics_port: cannot listen on 127\.0\.0\.1:\d+ \(Address already in use\)"
        ),
        serve_metrics(metrics, taken.getsockname()[1]),
    ):
        pass


def test_after_the_block_the_port_is_free(metrics: CoordinatorMetrics) -> None:
    with serve_metrics(metrics, 0) as port:
        pass
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
    with serve_metrics(metrics, port):
        assert scrape(port)


def test_a_coordinator_without_a_certificate_is_refused(config: CoordinatorConfig) -> None:
    (config.state / SERVER).unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        CoordinatorMetrics(config, Presence(), lambda: "starting")
