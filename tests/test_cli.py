"""The commands as a person types them, with real sites, real training and real files."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from manyeyes import cli
from manyeyes.config import load_config
from manyeyes.datasets import load_dataset
from manyeyes.report.runlog import read_runlog
from manyeyes.weights import load_weights

WriteConfig = Callable[..., Path]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `manyeyes ARGUMENTS` in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["manyeyes", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """`manyeyes demo --quick --json` as a process of its own: its run folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "manyeyes.cli", "demo", "--quick", "--json", "--out", str(folder / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "demo", json.loads(done.stdout)


def test_demo_prints_the_table_that_it_leaves_in_summary_json(demo: tuple[Path, dict[str, Any]]) -> None:
    folder, printed = demo
    assert printed == json.loads((folder / "summary.json").read_text())
    models = [row["model"] for row in printed["rows"]]
    assert models == ["untrained", "A alone", "B alone", "C alone", "together", "pooled"]
    for row in printed["rows"]:
        assert set(row["ap50"]) == {"person", "car"}
        assert row["map50"] == pytest.approx(sum(row["ap50"].values()) / 2)
        assert 0 < row["map50_95"] <= row["map50"] <= 1
    best = max(row["map50"] for row in printed["rows"] if row["model"].endswith("alone"))
    together = printed["rows"][4]
    assert together["vs_best_alone"] == pytest.approx(together["map50"] - best)
    assert printed["bytes_up"] > 0
    assert printed["seconds"] > 0


def test_demo_leaves_everything_a_report_needs(demo: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = demo
    page = (folder / "report.html").read_text()
    assert "<svg" in page
    assert "data:image/jpeg;base64" in page
    assert "round,where,split" in (folder / "metrics.csv").read_text().splitlines()[0]
    assert list((folder / "tensorboard").rglob("events.out.tfevents.*"))
    assert (folder / "rows" / "together" / "final.safetensors").exists()
    assert not list(folder.rglob("*.part"))


def test_every_row_of_the_demo_sees_each_picture_equally_often(demo: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = demo
    seen: dict[str, int] = {}
    for event in read_runlog(folder / "runlog.jsonl"):
        if event["event"] == "update_received":
            kind = "alone" if event["row"].startswith("alone") else event["row"]
            seen[kind] = seen.get(kind, 0) + event["num_examples"]
    assert seen["alone"] == seen["together"] == seen["pooled"]


def test_the_final_pt_opens_in_ultralytics_and_val_agrees_with_the_table(
    demo: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = demo
    model = folder / "rows" / "together" / "final.pt"
    from ultralytics import YOLO

    import manyeyes.learners.yolo  # noqa: F401 - first, so that Ultralytics neither speaks nor writes into the home folder

    assert YOLO(str(model)).names == {0: "person", 1: "car"}
    capsys.readouterr()
    site = folder / "sites" / "b_crossroads"
    assert call(monkeypatch, "val", model, site, "--imgsz", 256, "--json") == 0
    metrics = json.loads(capsys.readouterr().out)
    tested = json.loads((folder / "rows" / "together" / "test.json").read_text())["B"]
    assert metrics["ap50"] == pytest.approx(tested["ap50"])


def test_predict_draws_boxes_and_prints_json_lines(
    demo: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = demo
    pictures = tmp_path / "pictures"
    shutil.copytree(folder / "sites" / "b_crossroads" / "images" / "test", pictures)
    (pictures / "broken.jpg").write_bytes(b"not a picture")
    model = folder / "rows" / "pooled" / "final.safetensors"
    code = call(monkeypatch, "predict", model, pictures, "--out", tmp_path / "out", "--conf", 0.1, "--json")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 2, "a picture that could not be read must be heard"
    broken = [line for line in lines if "error" in line]
    assert [Path(line["image"]).name for line in broken] == ["broken.jpg"]
    assert len(lines) == len(list(pictures.iterdir()))
    found = [detection for line in lines for detection in line.get("detections", [])]
    assert found
    assert {detection["class"] for detection in found} <= {"person", "car"}
    drawn = next(line for line in lines if line.get("detections"))
    before, after = cv2.imread(drawn["image"]), cv2.imread(drawn["drawn"])
    assert before is not None
    assert after is not None
    assert before.shape == after.shape
    assert np.abs(before.astype(int) - after.astype(int)).max() > 60


def test_an_exported_model_finds_what_the_trained_one_finds(
    demo: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = demo
    trained, exported = folder / "rows" / "pooled" / "final.safetensors", tmp_path / "final.onnx"
    pictures = folder / "sites" / "b_crossroads" / "images" / "test"
    assert call(monkeypatch, "export", trained, "--out", exported, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["precision"], told["parity"]["missing"]) == (str(exported), "fp32", 0)

    def found(model: Path, *options: object) -> list[dict[str, Any]]:
        assert call(monkeypatch, "predict", model, pictures, "--conf", 0.2, "--json", *options) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    theirs, ours = found(trained), found(exported, "--precision", "fp32", "--threads", 1)
    assert [line["image"] for line in theirs] == [line["image"] for line in ours]
    pairs = [
        pair for a, b in zip(theirs, ours, strict=True) for pair in zip(a["detections"], b["detections"], strict=True)
    ]
    assert pairs
    for one, other in pairs:
        assert one["class"] == other["class"]
        assert one["score"] == pytest.approx(other["score"], abs=0.01)

    assert call(monkeypatch, "bench", exported, "--pictures", pictures, "--seconds", 0.1, "--json") == 0
    speeds = json.loads(capsys.readouterr().out)
    assert {"onnxruntime", "openvino"} == {speed["backend"] for speed in speeds}
    assert all(0 < speed["network_ms"] < speed["p95_ms"] for speed in speeds)
    assert call(monkeypatch, "predict", trained, pictures, "--precision", "bf16") == 2
    assert "are for exported models" in capsys.readouterr().err


def test_report_writes_the_page_again(
    demo: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, printed = demo
    (folder / "report.html").unlink()
    assert call(monkeypatch, "report", folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == printed["rows"]
    assert (folder / "report.html").exists()


def wait_for(path: Path, wanted: Callable[[dict[str, Any]], bool], process: subprocess.Popen[str]) -> None:
    """Until the run log holds an event; fails if the process ends first."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and any(wanted(event) for event in read_runlog(path)):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("the event did not come")


@pytest.mark.slow
def test_stopped_and_killed_runs_end_in_the_bits_of_an_unbroken_one(write_config: WriteConfig, tmp_path: Path) -> None:
    rows = ["together", "pooled"]
    config = write_config(federation={"rounds": 3, "strategy": "fedadam", "personal": ["bn"]}, compare=rows)
    command = [sys.executable, "-m", "manyeyes.cli", "run", str(config), "--set", "train.threads=1"]
    whole = [*command, "--set", "name=whole", "--set", "rows_at_once=1"]
    subprocess.run(whole, capture_output=True, check=True, timeout=200)
    broken = [*command, "--set", "name=broken", "--set", "rows_at_once=2"]
    log = tmp_path / "runs" / "broken" / "runlog.jsonl"

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*broken, *more], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    first = start()
    wait_for(log, lambda e: e["event"] == "round_finished" and e["round"] == 1, first)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=100)
    assert first.returncode == 130
    assert "Ctrl-C" in said
    assert "--resume" in said
    second = start("--resume")
    wait_for(log, lambda e: e["event"] == "round_finished" and e["round"] == 2, second)
    second.kill()
    second.communicate(timeout=100)
    third = start("--resume")
    _, said = third.communicate(timeout=200)
    assert third.returncode == 0, said
    for row in rows:
        whole_row, broken_row = (tmp_path / "runs" / name / "rows" / row for name in ("whole", "broken"))
        expected = load_weights(whole_row / "final.safetensors")[0]
        assert load_weights(broken_row / "final.safetensors")[0].value_hash == expected.value_hash, row


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Path, *arguments: object
) -> str:
    """What `manyeyes run` says when it refuses; nothing may be written."""
    assert call(monkeypatch, "run", config, *arguments) == 2
    assert not (config.parent / "runs").exists()
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trian": {}}, "trian: unknown key. Did you mean 'train'?"),
        ({"sites": [{"node_id": "A", "data": "nowhere"}]}, "does not exist"),
        ({"model": {"weights": "absent.pt"}}, "no such file"),
        ({"model": {"name": "yolov8s"}}, "base weights are of yolov8n"),
        ({"train": {"batch": 1_000_000, "imgsz": 1024}}, "train.batch"),
        ({"federation": {"min_nodes": 9}}, "min_nodes is 9, but there are 3 sites"),
        ({"federation": {"personal": ["no.such.*"]}}, "matches no tensor"),
        ({"sites": [{"node_id": "A", "data": "a_office", "annotates": ["persom"]}]}, "person"),
    ],
)
def test_run_refuses_before_any_training(
    changes: dict[str, Any],
    said: str,
    write_config: WriteConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert said in refused(monkeypatch, capsys, write_config(**changes))


def test_an_empty_site_is_refused(
    write_config: WriteConfig,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty"
    (empty / "images" / "train").mkdir(parents=True)
    (empty / "data.yaml").write_text("train: images/train\nnames: [person, car]\n")
    config = write_config(sites=[{"node_id": "A", "data": "a_office"}, {"node_id": "E", "data": str(empty)}])
    assert "picture" in refused(monkeypatch, capsys, config)


def test_a_picture_that_cannot_be_decoded_is_named_and_skipped_only_on_request(
    write_config: WriteConfig,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site = tmp_path / "site"
    shutil.copytree(scenes / "b_crossroads", site)
    victim = sorted((site / "images" / "train").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:600])
    config = write_config(sites=[{"node_id": "B", "data": str(site)}], federation={"rounds": 1})
    assert victim.name in refused(monkeypatch, capsys, config)
    assert call(monkeypatch, "run", config, "--skip-broken", "--quiet", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 1
    pictures = next(read_runlog(tmp_path / "runs" / "tiny" / "runlog.jsonl"))["sites"][0]["pictures"]
    assert pictures["train"] == len(load_dataset(scenes / "b_crossroads").split("train")) - 1


class Payload:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_checkpoint_with_an_executable_pickle_is_refused_and_does_not_run(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    harm = tmp_path / "harm"
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    plain.write_bytes(pickle.dumps({"model": Payload(harm)}))
    torch.save({"model": Payload(harm)}, packed)
    for checkpoint in (plain, packed):
        config = write_config(model={"weights": str(checkpoint)})
        assert "was refused" in refused(monkeypatch, capsys, config)
    assert not harm.exists()


def test_an_output_folder_that_cannot_be_written_is_refused(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    config = write_config(output=str(tmp_path / "file" / "runs"))
    assert "cannot be written" in refused(monkeypatch, capsys, config)


def test_a_second_run_of_the_same_name_does_not_overwrite_the_first(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(federation={"rounds": 1}, sites=[{"node_id": "C", "data": "c_night"}])
    assert call(monkeypatch, "run", config, "--quiet") == 0
    before = (tmp_path / "runs" / "tiny" / "summary.json").read_text()
    capsys.readouterr()
    assert call(monkeypatch, "run", config, "--quiet") == 2
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "runs" / "tiny" / "summary.json").read_text() == before
    assert call(monkeypatch, "run", config, "--quiet", "--resume") == 0, "resuming a finished run changes nothing"


def without_a_plan(write_config: WriteConfig, **changes: Any) -> Path:
    """A configuration of one small site that says where to compute and how often to merge, but not how to train."""
    values: dict[str, Any] = {
        "sites": [{"node_id": "C", "data": "c_night"}],
        "train": {"threads": 1, "device": "cpu", "precision": "fp32"},
        "federation": {"rounds": 1},
    }
    return write_config(**{**values, **changes})


def test_a_run_without_a_plan_takes_the_advised_one_keeps_it_and_goes_on_with_it(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = without_a_plan(write_config)
    assert call(monkeypatch, "advise", config, "--json", "--quiet") == 0
    advice = json.loads(capsys.readouterr().out)
    plan = {choice["key"]: choice["value"] for choice in advice["plan"]}
    assert plan["train.imgsz"] == 128, "the size of the pictures, not the default"
    assert not (tmp_path / "runs").exists()

    assert call(monkeypatch, "run", config) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "leaves open how to train, so this plan is used" in said
    assert "train.freeze" in said
    kept = load_config(tmp_path / "runs" / "tiny" / "config.yaml")
    assert kept.train.augment.mosaic == plan.pop("train.augment")["mosaic"]
    assert kept.federation.strategy.model_dump() == plan.pop("federation.strategy")
    assert {key: getattr(getattr(kept, key.split(".")[0]), key.split(".")[1]) for key in plan} == plan

    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    (site,) = advice["estimate"]["sites"]
    assert summary["bytes_up"] == pytest.approx(site["bytes_up"], rel=0.01)
    assert summary["bytes_down"] == pytest.approx(site["bytes_down"], rel=0.01)

    assert call(monkeypatch, "run", config, "--quiet", "--resume") == 0, "the kept plan is the same run"
    assert call(monkeypatch, "run", config, "--quiet", "--resume", "--set", "train.imgsz=96") == 2


def test_advise_explains_and_writes_a_configuration_that_runs(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, written = without_a_plan(write_config, name="written"), tmp_path / "planned.yaml"
    monkeypatch.setenv("COLUMNS", "160")
    assert call(monkeypatch, "advise", config, "--write", written) == 0
    said = capsys.readouterr()
    for words in (
        "What the sites have",
        "Objects to learn from",
        "The plan",
        "There is only one site",
        "the whole run",
    ):
        assert words in said.out
    assert f"manyeyes run {written}" in said.err
    assert load_config(written).has_plan
    assert call(monkeypatch, "advise", config, "--write", written) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert call(monkeypatch, "run", written, "--quiet") == 0
    assert (tmp_path / "runs" / "written" / "report.html").exists()


@pytest.mark.parametrize("train", [{"threads": 1}, {"threads": 1, "imgsz": 128}], ids=["advised", "stated"])
def test_a_plan_that_cannot_end_in_a_sites_hours_is_refused_with_the_cure(
    train: dict[str, Any],
    write_config: WriteConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sites = [{"node_id": "C", "data": "c_night", "hours": 1e-6}]
    said = refused(monkeypatch, capsys, without_a_plan(write_config, sites=sites, train=train))
    assert "sites.0.hours: site C may train 1e-06 h" in said
    assert "more time (sites.0.hours:" in said


@pytest.mark.shared
def test_a_site_whose_ids_are_swapped_is_refused(
    write_config: WriteConfig,
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site = tmp_path / "swapped"
    shutil.copytree(shared_data / "streets" / "b_day", site, copy_function=shutil.copyfile)
    text = (site / "data.yaml").read_text()
    names = load_dataset(site).names
    assert names[:2] == ("person", "car")
    (site / "data.yaml").write_text(text.replace("person", "\0").replace("car", "person").replace("\0", "car"))
    config = write_config(
        sites=[{"node_id": "B", "data": str(site), "annotates": ["car", "person"]}],
        model={"weights": str(shared_data / "weights" / "yolov8n.pt")},
        train={"imgsz": 416},
    )
    said = refused(monkeypatch, capsys, config)
    assert "look swapped" in said
    assert "'car'" in said
    assert "'person'" in said


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["demo"],
        ["advise"],
        ["run"],
        ["val"],
        ["predict"],
        ["export"],
        ["bench"],
        ["report"],
        ["status"],
        ["coordinator"],
        ["coordinator", "backup"],
        ["coordinator", "restore"],
        ["data", "check"],
        ["data", "split"],
    ],
)
def test_help_of_every_command_shows_an_example(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *command, "--help") == 0
    said = capsys.readouterr().out
    assert "Usage" in said
    assert not command or "Example" in said


def test_data_commands_work_together(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = scenes / "b_crossroads"
    assert call(monkeypatch, "data", "convert", source, "--to", "coco", "--out", tmp_path / "coco") == 0
    assert call(monkeypatch, "data", "convert", tmp_path / "coco", "--to", "voc", "--out", tmp_path / "voc") == 0
    assert call(monkeypatch, "data", "check", tmp_path / "voc", "--no-near-duplicates") == 0
    arguments = ("--sites", 2, "--how", "dirichlet", "--out", tmp_path / "sites")
    assert call(monkeypatch, "data", "split", tmp_path / "voc", *arguments) == 0
    assert (tmp_path / "sites" / "who_holds_what.png").stat().st_size > 5000
    parts = [load_dataset(tmp_path / "sites" / f"site_{i}") for i in range(2)]
    whole = load_dataset(source)
    for split in ("train", "val", "test"):
        assert sum(len(part.split(split)) for part in parts) == len(whole.split(split))
    capsys.readouterr()


def test_data_scenes_writes_sites_that_pass_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scenes"
    assert call(monkeypatch, "data", "scenes", "--out", folder, "--images", 3, "--imgsz", 96, "--seed", 1) == 0
    assert (folder / "contact_sheet.jpg").exists()
    for site in ("a_office", "b_crossroads", "c_night"):
        assert call(monkeypatch, "data", "check", folder / site, "--no-near-duplicates") == 0
    assert call(monkeypatch, "data", "scenes", "--out", folder) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_a_node_joins_and_is_shut_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def said(*arguments: object) -> str:
        assert call(monkeypatch, *arguments) == 0
        return capsys.readouterr().out

    assert "coordinator/ca.crt: give this file to every node" in said("coordinator", "init", "--name", "localhost")
    read_out = said("node", "init", "--node-id", "A").splitlines()[-1]
    assert read_out in said("coordinator", "admit", "A", "--key", "nodes/A/node.pub")
    (member,) = json.loads(said("coordinator", "members", "--json"))
    assert (member["node_id"], member["fingerprint"], member["revoked"]) == ("A", read_out, None)
    assert read_out in said("coordinator", "members")
    assert "A is shut out" in said("coordinator", "revoke", "A")
    assert "shut out 20" in said("coordinator", "members")
    assert call(monkeypatch, "coordinator", "admit", "A", "--key", "nodes/A/node.pub") == 2
    assert "this key was revoked, as A" in " ".join(capsys.readouterr().err.split())
    assert call(monkeypatch, "coordinator", "withdraw", "A") == 2
    assert "Say --yes" in capsys.readouterr().err
    assert '"rebuild": null' in said("coordinator", "withdraw", "A", "--dry-run", "--json")
    assert "withdrawn" not in said("coordinator", "members")
    assert "A will be shut out" in said("coordinator", "withdraw", "A", "--yes")
    assert "withdrawn 20" in said("coordinator", "members")
    assert call(monkeypatch, "coordinator", "withdraw", "A", "--rebuild", "--yes") == 2
    assert "needs the run's configuration" in " ".join(capsys.readouterr().err.split())
    before = (tmp_path / "coordinator" / "server.pem").read_bytes()
    assert "is new" in said("coordinator", "renew", "--name", "localhost")
    assert (tmp_path / "coordinator" / "server.pem").read_bytes() != before
