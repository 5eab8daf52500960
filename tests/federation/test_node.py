"""Where a node's settings come from, and what it says of itself."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from manyeyes.errors import ConfigError, DataError, LimitError, WeightsError
from manyeyes.federation.hours import DayHours
from manyeyes.federation.keys import make_node_key
from manyeyes.federation.local_server import LocalServer
from manyeyes.federation.node import NodeConfig, load_node_config, run_node
from manyeyes.federation.node_status import NodeStatus

ARTICLE = """
model_path: yolov8n.pt
data_path: ./data/node_a/
epochs: 15
batch_size: 16
imgsz: 640
device: cpu
coordinator_url: https://localhost:5000
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "site" / "node.yaml"
    path.parent.mkdir()
    path.write_text(ARTICLE)
    return path


def load(file: Path, options: dict[str, Any] | None = None, sets: tuple[str, ...] = (), **env: str) -> NodeConfig:
    return load_node_config(file, options or {}, sets, env)


def test_the_process_of_a_node_needs_no_torch() -> None:
    code = "import sys, manyeyes.federation.node_service, manyeyes.web.node; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_the_article_s_file_is_understood_as_it_stands(file: Path) -> None:
    config = load(file, {"node_id": "A", "port": 5001})
    assert config.model_path == file.parent / "yolov8n.pt"
    assert config.data_path == file.parent / "data" / "node_a"
    limits = config.limits
    assert (limits.epochs, limits.batch_size, limits.imgsz, limits.device) == (15, 16, 640, "cpu")
    assert (config.place.address, config.port, config.node_id) == ("localhost:5000", 5001, "A")


def test_every_key_can_come_from_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent.parent)
    values = {
        "node_id": "B",
        "coordinator_url": "https://eyes.example",
        "authority": "keys/ca.crt",
        "data_path": "pictures",
        "annotates": "person, car",
        "state": "b",
        "port": "5002",
        "model_path": "m.pt",
        "epochs": "0.5",
        "batch_size": "8",
        "imgsz": "320",
        "device": "cuda:1",
        "threads": "3",
        "memory": "1.5",
        "hours": "22:00-06:00,12:00-13:00",
        "min_pictures": "40",
        "bytes_per_day": "2 GB",
        "serve": "server",
        "promote": "no_worse",
        "promote_margin": "0.02",
        "keep_models": "5",
        "patience": "5",
    }
    assert values.keys() == NodeConfig.model_fields.keys()
    config = load(file, **{f"MANYEYES_{key.upper()}": value for key, value in values.items()}, PATH="x")
    assert config.limits.hours == DayHours.parse(["22:00-06:00", "12:00-13:00"])
    assert (config.limits.bytes_per_day, config.limits.memory, config.annotates) == (2 * 10**9, 1.5, ("person", "car"))
    assert config.data_path == Path.cwd() / "pictures"
    assert config.server == LocalServer(Path.cwd() / "server", "no_worse", Path.cwd() / "keys/ca.crt", 0.02, 5)
    assert (config.node_id, config.threads, config.limits.min_pictures) == ("B", 3, 40)


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(file: Path) -> None:
    env = {"MANYEYES_NODE_ID": "B", "MANYEYES_IMGSZ": "320", "MANYEYES_EPOCHS": "2", "MANYEYES_THREADS": ""}
    config = load(file, {"node_id": "C", "imgsz": None}, ("epochs=3",), **env)
    assert (config.node_id, config.imgsz, config.epochs, config.batch_size) == ("C", 320, 3, 16)
    assert config.threads is None
    assert load(file, {"epochs": 4}, ("epochs=3", "model_path=null"), **env).epochs == 4


@pytest.mark.parametrize(
    ("options", "sets", "env", "said"),
    [
        ({}, (), {}, r"node\.yaml: node_id: Field required\. State it there, as --node-id, or as MANYEYES_NODE_ID"),
        ({}, (), {"MANYEYES_NODEID": "A"}, r"MANYEYES_NODEID: unknown variable.*Did you mean 'MANYEYES_NODE_ID'"),
        ({}, (), {"MANYEYES_node_id": "A"}, r"unknown variable.*Did you mean 'MANYEYES_NODE_ID'"),
        ({}, (), {"MANYEYES_NODE_ID": "A", "MANYEYES_THREADS": "two"}, "^MANYEYES_THREADS: .*got 'two'"),
        ({"node_id": "A", "hours": "25:00-26:00"}, (), {}, "^--hours: must be hours between"),
        ({"node_id": "A", "min_pictures": 0}, (), {}, "^--min-pictures: "),
        ({"node_id": "A", "memory": -1.0}, (), {}, "^--memory: "),
        ({"node_id": "A"}, ("promote_margin=-0.1",), {}, "^--set promote_margin: "),
        ({"node_id": "A"}, ("keep_models=1",), {}, "^--set keep_models: "),
        (
            {"node_id": "A"},
            ("promote_margin=0.1", "promote=always"),
            {},
            "with 'always' models are not compared: leave it",
        ),
        (
            {"node_id": "A", "bytes_per_day": "much"},
            (),
            {},
            "^--bytes-per-day: must be a number of bytes such as '2 GB'",
        ),
        ({"node_id": "A", "bytes_per_day": "0"}, (), {}, "^--bytes-per-day: must be a number of bytes"),
        ({"node_id": "A"}, ("hours=8",), {}, "^--set hours: must be hours of the day .*manyeyes advise"),
        ({"node_id": "A"}, ("hour=22:00-23:00",), {}, "^--set hour: unknown key. Did you mean 'hours'"),
        ({"node_id": "A"}, ("train.lr=3",), {}, "^--set train: unknown key"),
        ({"node_id": "A"}, ("threads",), {}, "--set threads: must be section.key=value"),
        ({"node_id": "A"}, ("port=70000",), {}, "^--set port: "),
    ],
)
def test_a_wrong_value_is_named_by_where_it_comes_from(
    file: Path, options: dict[str, Any], sets: tuple[str, ...], env: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load(file, options, sets, **env)


def test_hours_may_be_written_without_quotes_and_as_a_list(file: Path) -> None:
    for written in ("hours: 22:00-06:00", "hours: [22:00-06:00, 12:00-13:00]"):
        file.write_text(ARTICLE + written)
        hours = load(file, {"node_id": "A"}).limits.hours
        assert hours is not None
        assert hours.windows[0] == (22 * 60, 6 * 60)


def prepared(file: Path, scenes: Path, **values: Any) -> NodeConfig:
    make_node_key(file.parent / "state", "A")
    file.write_text(yaml.safe_dump({"coordinator_url": "https://localhost:1", "node_id": "A", **values}))
    return load(file, {"data_path": scenes / "a_office", "state": file.parent / "state"})


def test_weights_that_are_missing_or_run_code_stop_a_node_at_its_start(file: Path, scenes: Path) -> None:
    config = prepared(file, scenes, model_path="agreed.pt")
    with pytest.raises(ConfigError, match=r"agreed\.pt: model_path: there is no such file.*leave model_path out"):
        run_node(config, lambda: None)
    (file.parent / "agreed.pt").write_bytes(b"cos\nsystem\n(S'touch harm'\ntR.")
    with pytest.raises(WeightsError, match="refused"):
        run_node(config, lambda: None)
    assert not Path("harm").exists()


def test_pictures_that_are_not_there_stop_a_node_at_its_start(file: Path, scenes: Path) -> None:
    config = prepared(file, scenes).model_copy(update={"data_path": scenes / "nowhere"})
    with pytest.raises(DataError, match="nowhere: does not exist"):
        run_node(config, lambda: None)


def test_a_node_waits_for_its_coordinator_and_says_once_what_it_waits_for(
    file: Path, scenes: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manyeyes.federation.joining._REST_SECONDS", 0.01)
    config = prepared(file, scenes, min_pictures=10, authority="c/ca.crt")
    from manyeyes.federation.keys import make_authority

    make_authority(file.parent / "c", ["localhost"])
    status, asked = NodeStatus("A"), Counter[str]()

    def stop() -> str | None:
        asked["times"] += 1
        return "Ctrl-C" if asked["times"] > 12 else None

    run_node(config, stop, status=status)
    said = [record.getMessage() for record in caplog.records]
    assert status.not_ready == "nothing listens at localhost:1. Is the coordinator running?"
    assert [text for text in said if "nothing listens" in text] == [f"{status.not_ready} (this node goes on trying)"]
    assert any(text.startswith("min_pictures: ") for text in said)
    assert (status.pictures, status.today()) == (9, (0, 0))


def test_refusals_are_counted_by_the_key_of_the_limit() -> None:
    from manyeyes.federation.node import _kind_of

    assert _kind_of(LimitError("no", key="hours")) == "hours"
    assert [_kind_of(e) for e in (DataError("x"), WeightsError("x"), KeyError("x"))] == ["data", "protocol", "defect"]
