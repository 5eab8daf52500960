"""A real coordinator and real nodes, each a process of the installed command, over TLS on loopback."""

from __future__ import annotations

import json
import re
import signal
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from tests.federation.installed import PLAN, SITES, Deployment

from manyeyes.config import parse_config
from manyeyes.errors import ConfigError, ProtocolError
from manyeyes.federation.audit import AUDIT, read_audit
from manyeyes.federation.coordinator_config import DATABASE, load_coordinator_config
from manyeyes.federation.flower import fab, packed, unpacked
from manyeyes.federation.launch import launch
from manyeyes.federation.node import load_node_config
from manyeyes.federation.status import read_status
from manyeyes.federation.traffic import TRAFFIC
from manyeyes.federation.transport import Record
from manyeyes.registry import MODELS, Registry
from manyeyes.report.runlog import read_runlog
from manyeyes.weights import load_weights

# All that a node's answers hold besides arrays; README.md says the same.
DECLARED = {"protocol", "template", "num_examples", "metrics", "used"}


@pytest.fixture
def deployment(tmp_path: Path, scenes: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path, scenes)
    deployment.prepare()
    yield deployment
    deployment.end()


def check_what_is_told(deployment: Deployment) -> None:
    """Status and report of a run that ended."""
    told = json.loads(deployment.call("status", "--json"))
    assert (told["phase"], told["rounds_done"], told["rounds"], told["updates_refused"]) == ("finished", 2, 2, 0)
    assert [(node["node"], node["merged"], node["last_round"]) for node in told["nodes"]] == [(n, 2, 2) for n in SITES]
    assert all(node["map50"].keys() == {"0", "1", "2"} for node in told["nodes"])
    assert sum(node["bytes_up"] for node in told["nodes"]) == told["bytes_up"] > 6 * 12_000_000
    assert all(node["last_seen"] > told["started"] for node in told["nodes"])
    assert "finished after 2 of 2 rounds" in deployment.call("status", "--config", "federation.yaml")
    folder = deployment.folder / "runs" / "first"
    summary = json.loads((folder / "summary.json").read_text())
    assert all(node["gain"] == node["now"]["map50"] - node["start"]["map50"] for node in summary["nodes"])
    assert "<svg" in (folder / "report.html").read_text()
    assert list((folder / "tensorboard" / "together").glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_three_nodes_over_tls_end_in_the_bits_of_the_local_engine(deployment: Deployment, tmp_path: Path) -> None:
    finetune = ["--set", "federation.finetune_after=1"]
    coordinator = deployment.start("coordinator", "coordinator", "--config", "federation.yaml", *finetune)
    # A has a server that finds objects with the model of the run; the others only train.
    nodes = [deployment.start_node("A", "--set", "serve=server"), *map(deployment.start_node, "BC")]
    deployment.wait_for("round_started", round=1)
    deployment.trainer_of("A").kill()
    assert coordinator.wait(200) == 0, deployment.said("coordinator")
    assert "ended by SIGKILL, as systems do where memory runs out" in deployment.said("A")
    for process in nodes:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(30) for process in nodes] == [0, 0, 0]
    assert all("stopped" in deployment.said(node) for node in SITES)

    sites = [{"node_id": node, "data": str(deployment.scenes / folder)} for node, folder in SITES.items()]
    federation = {**PLAN["federation"], "finetune_after": 1}
    local = {"name": "local", "output": str(tmp_path), "sites": sites, "compare": ["together"]}
    local = parse_config({**local, **PLAN, "federation": federation})
    launch(local, quiet=True)
    ours = load_weights(tmp_path / "runs" / "first" / "final.safetensors")[0]
    theirs = load_weights(local.run_folder / "rows" / "together" / "final.safetensors")[0]
    assert ours.value_hash == theirs.value_hash
    for node in SITES:
        own = load_weights(deployment.folder / "nodes" / node / "training" / "first" / "finetuned.safetensors")[0]
        at_local = local.run_folder / "rows" / "together" / "finetuned" / f"{node}.safetensors"
        assert own.value_hash == load_weights(at_local)[0].value_hash != ours.value_hash

    events = list(read_runlog(tmp_path / "runs" / "first" / "runlog.jsonl"))
    received = [event for event in events if event["event"] == "update_received"]
    assert sorted(event["node"] for event in received) == sorted([*SITES, *SITES])
    assert all(event["bytes"] > 10_000_000 for event in received)

    published = {event["node"]: event["used"] for event in events if event["event"] == "published"}
    assert published == {"A": True, "B": False, "C": False}
    registry = Registry(deployment.folder / "server" / MODELS)
    entry = registry.entry(registry.used[0])
    assert (entry.label, entry.info.weights) == ("first, round 2", ours.value_hash)

    for node in SITES:
        left = list(read_audit(deployment.folder / "nodes" / node / AUDIT))
        kinds = ["evaluate", *["fit", "evaluate"] * 3, "publish"]
        assert [(entry["kind"], entry["sent"]) for entry in left] == [(kind, "answer") for kind in kinds]
        *sent, of_own = [entry for entry in left if entry["kind"] == "fit"]
        assert [entry["bytes"] for entry in sent] == [event["bytes"] for event in received if event["node"] == node]
        assert of_own["arrays"] == {}, "what a node learns for itself stays there"
        assert all(entry["arrays"] == {} for entry in left if entry["kind"] != "fit")
        assert {name for entry in left for name in entry["values"]} == DECLARED
    assert "8 entries, none changed" in deployment.call("node", "audit", "--folder", "nodes/A")
    marks = {
        member["node_id"]: member["fingerprint"]
        for member in json.loads(deployment.call("coordinator", "members", "--json"))
    }
    peers = json.loads(deployment.call("node", "peers", "--folder", "nodes/A", "--json"))
    assert {peer["node_id"]: peer["fingerprint"] for peer in peers} == marks
    assert f"{marks['B']}  since " in deployment.call("node", "peers", "--folder", "nodes/A")
    check_what_is_told(deployment)
    assert not list((deployment.folder / "coordinator").glob(f"{DATABASE}*")), "what nodes sent is not kept"


def test_what_flower_takes_for_the_app_holds_no_code() -> None:
    content, digest = fab()
    assert fab() == (content, digest)
    with zipfile.ZipFile(BytesIO(content)) as archive:
        names = {name for name in archive.namelist() if not name.startswith(".info/")}
    assert names == {"pyproject.toml"}


def test_a_record_passes_through_flowers_form_unchanged() -> None:
    record = Record({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"plan": {"round": 3}})
    data, values = unpacked(packed(record.to_bytes(), {"request_id": "7"}))
    again = Record.from_bytes(data)
    assert again.values == record.values
    assert (again.arrays["w"] == record.arrays["w"]).all()
    assert values == {"request_id": "7"}


def _array(stype: str) -> ArrayRecord:
    return ArrayRecord({"record": Array(dtype="uint8", shape=(1,), stype=stype, data=b"x")})


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        RecordDict({"manyeyes": _array("manyeyes")}),
        RecordDict({"manyeyes": _array("numpy.ndarray"), "about": ConfigRecord({})}),
        RecordDict({"manyeyes": ConfigRecord({}), "about": ConfigRecord({})}),
        RecordDict({"manyeyes": _array("manyeyes"), "about": ConfigRecord({}), "more": ConfigRecord({})}),
    ],
)
def test_a_message_that_holds_anything_else_is_refused(content: RecordDict) -> None:
    with pytest.raises(ProtocolError, match="does not hold one record"):
        unpacked(content)


@pytest.mark.parametrize("url", ["http://localhost:5000", "localhost:5000", "https://", "https://x/y", "ftp://x"])
def test_a_node_speaks_tls_or_not_at_all(tmp_path: Path, url: str) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(yaml.safe_dump({"node_id": "A", "data_path": "a", "coordinator_url": url}))
    with pytest.raises(ConfigError, match=r"coordinator_url: must be https://NAME"):
        load_node_config(path, {})


def test_one_file_serves_many_nodes(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    values = {"node_id": "A", "data_path": "a", "coordinator_url": "https://eyes.example:5000", "batch_size": 16}
    path.write_text(yaml.safe_dump(values))
    config = load_node_config(path, {"node_id": "B", "data_path": Path("/pictures/b"), "state": None})
    assert (config.node_id, config.folder, config.data_path) == ("B", Path("nodes/B"), Path("/pictures/b"))
    assert load_node_config(path, {}).data_path == tmp_path / "a"
    assert (config.place.address, config.limits.batch_size) == ("eyes.example:5000", 16)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("batchsize", 8, "Did you mean 'batch_size'?"), ("coordinator", "x", "coordinator_url"), ("epochs", 0, "epochs")],
)
def test_a_wrong_key_of_a_node_is_named(tmp_path: Path, key: str, value: object, said: str) -> None:
    path = tmp_path / "node.yaml"
    values = {"node_id": "A", "data_path": "a", "coordinator_url": "https://eyes.example", key: value}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        load_node_config(path, {})


def test_a_wrong_key_of_a_coordinator_is_named(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "names": ["car"], "train": {"epoch": 3}}))
    with pytest.raises(ConfigError, match=r"train\.epoch: unknown key\. Did you mean 'epochs'"):
        load_coordinator_config(path)
    path.write_text(yaml.safe_dump({"name": "x", "names": []}))
    with pytest.raises(ConfigError, match="names"):
        load_coordinator_config(path)


def test_waiting_for_nodes_can_be_stopped(deployment: Deployment) -> None:
    coordinator = deployment.start("coordinator", "coordinator", "--config", "federation.yaml")
    until = time.monotonic() + 60
    while "Waiting for 3 nodes" not in deployment.said("coordinator"):
        assert coordinator.poll() is None, deployment.said("coordinator")
        assert time.monotonic() < until
        time.sleep(0.2)
    time.sleep(3)
    assert "waits for nodes: 0 of 3 are there" in deployment.call("status", "--config", "federation.yaml")
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait(60) == 130
    assert "No round was begun" in deployment.said("coordinator")
    assert "stopped after 0 of 2 rounds (Ctrl-C)" in deployment.call("status")


@pytest.mark.slow
def test_a_killed_node_is_waited_for_until_the_deadline_and_takes_part_again(deployment: Deployment) -> None:
    many = ["--set", "federation.rounds=40", "--set", "federation.min_nodes=2", "--set", "federation.deadline=45"]
    coordinator = deployment.start("coordinator", "coordinator", "--config", "federation.yaml", *many)
    for node in SITES:
        deployment.start_node(node)
    first = deployment.wait_for("update_received", node="B")["round"]
    deployment.wait_for("round_finished", round=first)
    deployment.processes["B"].kill()
    deployment.processes["B"].wait()
    deployment.start_node("B")
    deployment.wait_for("update_received", node="B", after=first)
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait(60) == 130
    events = list(read_runlog(deployment.folder / "runs" / "first" / "runlog.jsonl"))
    finished = [e["round"] for e in events if e["event"] == "round_finished"]
    merged = [{e["node"] for e in events if e["event"] == "update_received" and e["round"] == n} for n in finished]
    assert all({"A", "C"} <= nodes for nodes in merged)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_is_killed_and_resumed_then_rebuilt_without_a_node_and_no_bit_is_lost_or_left(
    deployment: Deployment, tmp_path: Path
) -> None:
    # With an optimiser whose state the nodes keep: it must outlive the coordinator, and not enter the rebuilt run.
    adamw = ["--config", "federation.yaml", "--set", "train.optimizer=adamw"]
    deployment.start("coordinator", "coordinator", *adamw)
    for node in SITES:
        deployment.start_node(node)
    deployment.wait_for_round(1)
    deployment.processes["coordinator"].kill()
    deployment.processes["coordinator"].wait()
    assert "its process is gone" in deployment.call("status")
    again = deployment.start("coordinator", "coordinator", *adamw, "--resume")
    assert again.wait(250) == 0, deployment.said("coordinator")
    runs = tmp_path / "runs"
    before = load_weights(runs / "first" / "final.safetensors")[0].value_hash
    assert before == of_local_engine(deployment, tmp_path, "unbroken", list(SITES))

    command = ["coordinator", "withdraw", "B", *adamw, "--rebuild", "--set", "federation.min_nodes=2"]
    rebuilding = deployment.start("rebuild", *command, "--yes")
    assert rebuilding.wait(200) == 0, deployment.said("rebuild")
    assert "Updates of B were merged in 2 of the 2 rounds of first." in deployment.said("rebuild")
    assert "Run first-without-B holds 2 rounds from the starting weights, among A, C" in deployment.said("rebuild")
    assert "runs/first still holds what B gave" in deployment.said("rebuild")
    assert "withdrawn 20" in deployment.call("coordinator", "members")
    kept = {path.name for path in (deployment.folder / "nodes" / "A" / "training").iterdir()}
    assert kept == {"first", "first-without-B"}

    never = of_local_engine(deployment, tmp_path, "never", ["A", "C"])
    assert load_weights(runs / "first-without-B" / "final.safetensors")[0].value_hash == never != before
    assert load_weights(runs / "first" / "final.safetensors")[0].value_hash == before


def of_local_engine(deployment: Deployment, folder: Path, name: str, nodes: list[str]) -> str:
    """Hash of the weights that the same two rounds with AdamW end with in one process."""
    sites = [{"node_id": node, "data": str(deployment.scenes / SITES[node])} for node in nodes]
    plan = {"train": {**PLAN["train"], "optimizer": "adamw"}, "federation": {"rounds": 2, "min_nodes": len(nodes)}}
    local = parse_config({"name": name, "output": str(folder), "sites": sites, "compare": ["together"], **plan})
    launch(local, quiet=True)
    return load_weights(local.run_folder / "rows" / "together" / "final.safetensors")[0].value_hash


@pytest.mark.slow
def test_a_node_goes_away_before_its_bytes_of_the_day_are_exceeded_and_its_last_answer_arrives(
    deployment: Deployment,
) -> None:
    faster = ["--set", "federation.rounds=3", "--set", "federation.min_nodes=1", "--set", "federation.deadline=60"]
    coordinator = deployment.start("coordinator", "coordinator", "--config", "federation.yaml", *faster)
    data = str(deployment.scenes / SITES["A"])
    most = 88_000_000
    given = ["--config", "node.yaml", "--data-path", data, "--bytes-per-day", str(most)]
    deployment.start("A", "node", *given)
    # 12 MB for the starting weights to test; each round 12 MB for the model to train, for the update and to test.
    said = deployment.wait_for("warning", after=-1)["reason"]
    # Flower may still take it for online when the round begins.
    assert re.search(r"round 3 (needs at least 1 nodes, but 0 can be reached|got 0 good updates)", said)

    def shown() -> tuple[bool | None, str | None]:
        (node,) = [node for node in read_status(deployment.folder / "coordinator").nodes if node.node_id == "A"]
        return node.online, node.away

    until = time.monotonic() + 30
    while shown() != (False, "until midnight"):
        assert time.monotonic() < until, shown()
        time.sleep(0.2)
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait(60) == 130
    assert "Finished rounds are kept" in deployment.said("coordinator")
    assert "Away until midnight" in deployment.said("A")
    events = list(read_runlog(deployment.folder / "runs" / "first" / "runlog.jsonl"))
    received = [event for event in events if event["event"] == "update_received"]
    assert [event["round"] for event in received] == [1, 2]
    left = list(read_audit(deployment.folder / "nodes" / "A" / AUDIT))
    assert [entry["bytes"] for entry in left if entry["kind"] == "fit"] == [event["bytes"] for event in received]
    down = json.loads((deployment.folder / "nodes" / "A" / TRAFFIC).read_text())["bytes_down"]
    assert most - 12_200_000 < down + sum(entry["bytes"] for entry in left) <= most
