"""The comparison of alone, together and pooled, on small real detectors."""

from __future__ import annotations

import io
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from manyeyes.config import load_config, parse_config
from manyeyes.datasets import Problem
from manyeyes.datasets.classes import pool
from manyeyes.errors import ConfigError, DataError, ResourceError, RunError
from manyeyes.federation.checkpoint import load_checkpoint
from manyeyes.federation.experiment import open_sites
from manyeyes.federation.launch import launch
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.models import open_template
from manyeyes.report.runlog import read_runlog
from manyeyes.report.tables import format_bytes
from manyeyes.weights import load_weights

WriteConfig = Callable[..., Path]


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of all rows with personal BatchNorm: its folder and summary."""
    config = parse_config(
        {
            "name": "rows",
            "output": str(tmp_path_factory.mktemp("runs")),
            "data_root": str(scenes),
            "sites": [
                {"node_id": "A", "data": "a_office"},
                {"node_id": "B", "data": "b_crossroads", "annotates": ["car"]},
                {"node_id": "C", "data": "c_night"},
            ],
            "train": {"imgsz": 128, "batch": 4, "precision": "fp32", "lr": 0.002},
            "federation": {"rounds": 2, "personal": ["bn"]},
            "compare": ["untrained", "alone", "together", "pooled"],
            "evaluate": {"examples": 3},
        }
    )
    summary = launch(config, quiet=True, console=Console(stderr=True))
    return config.run_folder, summary.to_dict()


def events_of(folder: Path) -> list[dict[str, Any]]:
    return list(read_runlog(folder / "runlog.jsonl"))


def test_every_row_is_tested_on_every_site_and_on_all_pictures_as_one_set(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = finished
    tested: dict[str, dict[str, int]] = defaultdict(dict)
    for event in events_of(folder):
        if event["event"] == "evaluated" and event["split"] == "test":
            tested[event["row"]][event["where"]] = event["metrics"]["num_images"]
    assert list(tested) == ["untrained", "alone-A", "alone-B", "alone-C", "together", "pooled"]
    for row, places in tested.items():
        assert set(places) == {"A", "B", "C", "mixed"}, row
        assert places["mixed"] == places["A"] + places["B"] + places["C"]


def test_the_held_out_set_gives_a_curve_for_every_trained_row(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    rounds: dict[str, list[int]] = defaultdict(list)
    for event in events_of(folder):
        if event["event"] == "evaluated" and event["split"] == "val" and event["where"] == "mixed":
            rounds[event["row"]].append(event["round"])
    assert set(rounds) == {"alone-A", "alone-B", "alone-C", "together", "pooled"}
    assert all(found == [1, 2] for found in rounds.values())


def test_a_class_a_site_does_not_annotate_is_not_tested_there(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    tests = json.loads((folder / "rows" / "together" / "test.json").read_text())
    assert set(tests["B"]["ap50"]) == {"car"}
    persons = sum(tests[site]["num_objects"].get("person", 0) for site in ("A", "C"))
    assert tests["mixed"]["num_objects"]["person"] == persons


def test_personal_batchnorm_stays_at_each_site(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    states = {}
    for site in ("A", "B", "C"):
        paths = sorted((folder / "rows" / "together" / "nodes" / site).glob("personal-*.safetensors"))
        states[site] = load_weights(paths[-1])[0]
    assert len({state.value_hash for state in states.values()}) == 3
    assert all("model.0.bn.weight" in state and "model.0.conv.weight" not in state for state in states.values())
    start = load_weights(folder / "rows" / "untrained" / "final.safetensors")[0]
    together = load_weights(folder / "rows" / "together" / "final.safetensors")[0]
    assert (together["model.0.bn.weight"] == start["model.0.bn.weight"]).all()
    assert (together["model.0.conv.weight"] != start["model.0.conv.weight"]).any()


def test_final_models_are_the_same_in_both_formats(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    for row in ("untrained", "together", "pooled"):
        plain, pickled = (open_template(folder / "rows" / row / f"final.{suffix}") for suffix in ("safetensors", "pt"))
        assert plain.names == pickled.names == ("person", "car")
        assert plain.weights.value_hash == pickled.weights.value_hash


def test_example_pictures_have_boxes_of_both_models(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    index = json.loads((folder / "examples" / "index.json").read_text())
    assert [entry["site"] for entry in index] == ["A", "B", "C"]
    for entry in index:
        assert cv2.imread(str(folder / "examples" / entry["image"])) is not None
        assert set(entry["rows"]) == {f"alone-{entry['site']}", "together"}
        assert entry["truth"]


def test_pooled_pictures_remember_what_was_looked_for(scenes: Path, write_config: WriteConfig) -> None:
    config = load_config(
        write_config(
            sites=[
                {"node_id": "A", "data": "a_office", "annotates": ["person"]},
                {"node_id": "B", "data": "b_crossroads", "annotates": ["car"]},
            ]
        )
    )
    sites = open_sites(config)
    everything = pool(sites)
    looked_for = {sample.image.parts[-4]: sample.annotates for sample in everything.split("train")}
    assert looked_for == {"a_office": frozenset({0}), "b_crossroads": frozenset({1})}
    assert {int(c) for sample in sites["A"].split("train") for c in sample.class_id} == {0}


def test_scaffold_and_the_best_round_on_real_detectors(write_config: WriteConfig) -> None:
    federation = {"rounds": 2, "strategy": "scaffold", "weighting": "equal", "keep": "best", "personal": ["bn"]}
    federation["finetune_after"] = 1
    sites = [{"node_id": "A", "data": "a_office"}, {"node_id": "C", "data": "c_night"}]
    rows = {"compare": ["alone", "together"], "evaluate": {"examples": 0}}
    config = load_config(write_config(sites=sites, federation=federation, **rows))
    summary = launch(config, quiet=True, console=Console(stderr=True))

    events = events_of(config.run_folder)
    for row in summary.rows:
        scores: dict[int, list[float]] = defaultdict(list)
        for event in events:
            at_a_site = event["event"] == "evaluated" and event["split"] == "val" and event["where"] != "mixed"
            if at_a_site and event["row"] == row.row:
                scores[event["round"]].append(event["metrics"]["map50"])
        best = max(scores, key=lambda number: (sum(scores[number]), number))
        tested = {e["round"] for e in events if e.get("row") == row.row and e.get("split") == "test"}
        assert (row.kept, tested) == (best, {best})
    assert f"together round {summary.together and summary.together.kept} of 2" in (
        config.run_folder / "report.html"
    ).read_text(encoding="utf-8")

    together = config.run_folder / "rows" / "together"
    state = load_checkpoint(together / "checkpoints", lambda *_, **__: None)
    assert state is not None
    assert state.best is not None
    final = load_weights(together / "final.safetensors")[0]
    assert final.value_hash == state.best.weights.value_hash
    of_nodes = [load_weights(node / "control-000001.safetensors")[0] for node in (together / "nodes").iterdir()]
    for name, total in state.strategy.items():
        parts = [of_node[name.removeprefix("control/")] for of_node in of_nodes]
        np.testing.assert_allclose(total, np.sum(parts, axis=0), atol=1e-4)
        assert ".bn." not in name

    for site in ("A", "C"):
        own = load_weights(together / "finetuned" / f"{site}.safetensors")[0]
        assert own.form_hash == final.form_hash
        assert own.value_hash != final.value_hash
        assert (together / "finetuned" / f"{site}.pt").exists()
    row_of = {row.row: row for row in summary.rows}
    assert {name: row.rounds_done for name, row in row_of.items()} == {"alone-A": 3, "alone-C": 3, "together": 2}
    told = [e for e in events if e["event"] == "evaluated" and e["row"] == "finetuned"]
    assert [(e["where"], e["round"], e["split"]) for e in told] == [("A", 3, "test"), ("C", 3, "test")]
    assert [site.finetuned for site in summary.sites] == [e["metrics"]["map50"] for e in told]
    assert [e["node"] for e in events if e["event"] == "finetuned"] == ["A", "C"]


@pytest.mark.slow
def test_a_plan_is_tried_on_virtual_nodes_of_the_sites_pictures(write_config: WriteConfig) -> None:
    federation = {
        "engine": "simulation",
        "rounds": 2,
        "fraction": 0.4,
        "simulation": {"nodes": 10, "pictures": 4, "processes": 2},
    }
    values = {"compare": ["together"], "federation": federation, "evaluate": {"nodes": 2, "examples": 0}}
    config = load_config(write_config(**values))
    launch(config, quiet=True)
    events = list(read_runlog(config.run_folder / "runlog.jsonl"))
    received = [e for e in events if e["event"] == "update_received"]
    # A site of three pictures has no more to draw from.
    assert len(received) == 8
    assert {e["num_examples"] for e in received} <= {3, 4}
    assert {e["node"][0] for e in received} == {"v"}
    # The table is about the sites, whatever the nodes were.
    final = {e["where"] for e in events if e["event"] == "evaluated" and e["split"] == "test"}
    assert final == {"A", "B", "C", "mixed"}
    with pytest.raises(RunError, match=r"simulation\.nodes was 10 and is 11"):
        launch(
            load_config(config.run_folder / "config.yaml", ["federation.simulation.nodes=11"]), resume=True, quiet=True
        )


@pytest.mark.parametrize(("nodes", "at_once"), [(1000, 256), (200, 200)])
def test_more_nodes_at_work_than_fit_into_memory_are_refused(
    write_config: WriteConfig, nodes: int, at_once: int
) -> None:
    federation = {"engine": "simulation", "simulation": {"nodes": nodes, "processes": 256}}
    config = load_config(write_config(federation=federation), ["train.imgsz=1024", "train.batch=8"])
    with pytest.raises(ResourceError, match=f"GB are free for each of {at_once} processes") as caught:
        launch(config, quiet=True)
    assert "as federation.simulation.processes" in str(caught.value)
    assert not config.run_folder.exists()


@pytest.mark.slow
def test_sites_at_work_at_the_same_time_end_in_the_same_bits(write_config: WriteConfig) -> None:
    hashes = []
    for engine in ("local", "simulation"):
        changes = {"compare": ["together"], "federation": {"rounds": 1, "engine": engine}, "name": engine}
        config = load_config(write_config(**changes), ["train.threads=1", "evaluate.examples=0"])
        launch(config, quiet=True)
        final = load_weights(config.run_folder / "rows" / "together" / "final.safetensors")[0]
        hashes.append(final.value_hash)
    assert hashes[0] == hashes[1]


def test_the_best_round_needs_validation_pictures(write_config: WriteConfig, scenes: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "data.yaml").write_text(
        f"path: {scenes / 'c_night'}\ntrain: images/train\ntest: images/test\nnames: [person, car]\n", encoding="utf-8"
    )
    sites = [{"node_id": "C", "data": str(site)}]
    config = load_config(write_config(sites=sites, federation={"keep": "best"}))
    with pytest.raises(ConfigError, match=r"federation\.keep: no site has validation pictures"):
        launch(config, quiet=True)
    assert not config.run_folder.exists()


def test_sites_without_validation_pictures_cannot_judge(
    write_config: WriteConfig, scenes: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "data.yaml").write_text(
        f"path: {scenes / 'c_night'}\ntrain: images/train\ntest: images/test\nnames: [person, car]\n", encoding="utf-8"
    )
    sites = [{"node_id": node, "data": str(site)} for node in "ABC"]
    config = load_config(write_config(sites=sites, federation={"weighting": "contribution"}))
    with pytest.raises(ConfigError, match=r"federation\.weighting: contribution needs 2 sites with objects"):
        launch(config, quiet=True)


def test_sites_without_test_pictures_are_refused(write_config: WriteConfig, scenes: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    source = scenes / "c_night"
    (site / "data.yaml").write_text(
        f"path: {source}\ntrain: images/train\nval: images/val\nnames: [person, car]\n", encoding="utf-8"
    )
    config = load_config(write_config(sites=[{"node_id": "C", "data": str(site)}]))
    with pytest.raises(DataError, match="no site has test pictures"):
        launch(config, quiet=True)
    assert not config.run_folder.exists()


def test_skipped_problems_are_told(write_config: WriteConfig, scenes: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(scenes / "c_night", site)
    label = sorted((site / "labels" / "train").iterdir())[0]
    label.write_text("0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.1 0.1\n")
    config = load_config(write_config(sites=[{"node_id": "C", "data": str(site)}]))
    with pytest.raises(DataError, match=label.stem):
        open_sites(config)
    told: list[Problem] = []
    sites = open_sites(config, skip_broken=True, on_problem=told.append)
    assert [problem.kind for problem in told] == ["unknown-class"]
    kept = next(sample for sample in sites["C"].split("train") if sample.image.stem == label.stem)
    assert kept.class_id.tolist() == [0]


def test_a_resumed_run_with_other_settings_names_them(write_config: WriteConfig) -> None:
    one_site = [{"node_id": "C", "data": "c_night"}]
    config = load_config(write_config(sites=one_site, federation={"rounds": 1}, evaluate={"examples": 0}))
    launch(config, quiet=True)
    (config.run_folder / "rows" / "together" / "test.json").unlink()
    other = load_config(write_config(sites=one_site, federation={"rounds": 2}, evaluate={"examples": 0}))
    with pytest.raises(RunError, match="rounds"):
        launch(other, quiet=True, resume=True)


def test_a_resumed_asynchronous_run_keeps_how_late_updates_count(write_config: WriteConfig) -> None:
    federation = {"rounds": 1, "mode": "async"}
    one_site: dict[str, Any] = {"sites": [{"node_id": "C", "data": "c_night"}], "evaluate": {"examples": 0}}
    config = load_config(write_config(**one_site, federation=federation))
    launch(config, quiet=True)
    kept = (config.run_folder / "config.yaml").read_bytes()
    other = load_config(write_config(**one_site, federation={**federation, "max_staleness": 77}))
    with pytest.raises(RunError, match="max_staleness"):
        launch(other, quiet=True, resume=True)
    assert (config.run_folder / "config.yaml").read_bytes() == kept


def test_a_buffer_that_fills_too_often_is_refused_before_anything_is_trained(write_config: WriteConfig) -> None:
    federation = {"engine": "simulation", "simulation": {"nodes": 60}, "mode": "async", "buffer": 4}
    config = load_config(write_config(federation=federation, evaluate={"examples": 0, "nodes": 2}))
    with pytest.raises(ConfigError, match="at least 12"):
        launch(config, quiet=True)
    assert not (config.run_folder / "rows").exists()


def test_nothing_is_written_into_a_site_by_a_run(
    finished: tuple[Path, dict[str, Any]], scenes: Path, write_config: WriteConfig
) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(scenes.rglob("*"))}

    before = state()
    config = load_config(write_config(federation={"rounds": 1}, compare=["together"]))
    launch(config, quiet=True)
    assert state() == before
    assert isinstance(DetectorLearner(open_template(config.run_folder / "rows/together/final.pt")), DetectorLearner)


def test_views_are_announced_before_they_are_written_and_deleted_with_their_row(write_config: WriteConfig) -> None:
    one_site = [{"node_id": "C", "data": "c_night"}]
    train = {"imgsz": 128, "batch": 4, "precision": "fp32", "freeze": 22, "cache_views": 1, "close_mosaic": 0.5}
    config = load_config(write_config(sites=one_site, train=train, compare=["together", "pooled"]))
    out = io.StringIO()
    launch(config, console=Console(file=out, width=200))
    events = events_of(config.run_folder)
    kinds = [event["event"] for event in events]
    assert kinds.index("views_planned") < kinds.index("row_started")
    planned = events[kinds.index("views_planned")]
    assert planned["views"] == 1
    # Of a picture at 128 px: three levels of fp32 features, with mosaic in the first round and without in the last.
    pictures = next(e for e in events if e["event"] == "run_started")["sites"][0]["pictures"]["train"]
    features = 4 * (64 * 256 + 128 * 64 + 256 * 16)
    for row in ("together", "pooled"):
        assert 0 < planned["bytes"][row] - 2 * pictures * features < 2 * pictures * 2000
    assert f"take up to {format_bytes(max(planned['bytes'].values()))} on the disk" in out.getvalue()
    assert not list(config.run_folder.rglob("views-*"))


def test_views_without_room_are_refused_before_anything_is_written(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_config(train={"imgsz": 128, "freeze": 22, "cache_views": 4}))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**28 + 10))
    with pytest.raises(ResourceError, match="4 views of each picture take") as caught:
        launch(config, quiet=True)
    assert caught.value.key == "train.cache_views"
    assert not config.run_folder.exists()
