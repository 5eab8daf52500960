"""What is refused before a run, and what a run leaves behind on the machine: nothing."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from manyeyes.config import ModelSection, TrainSection
from manyeyes.datasets import load_dataset
from manyeyes.datasets.sample import Dataset
from manyeyes.errors import DataError, ResourceError
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.models import build_template

from .conftest import write_site

# -- labels -----------------------------------------------------------------------------------------------------------


def swapped(data: Dataset, a: int, b: int) -> Dataset:
    """A site whose label files have two class ids the wrong way round."""
    new_id = np.arange(len(data.names))
    new_id[[a, b]] = b, a
    return replace(
        data,
        splits={
            split: [replace(s, class_id=new_id[s.class_id]) for s in samples] for split, samples in data.splits.items()
        },
    )


@pytest.mark.shared
def test_swapped_classes_are_refused_by_name_and_right_ones_pass(
    official_learner: DetectorLearner, streets: Dataset
) -> None:
    official_learner.check_labels("B", streets, 320)
    with pytest.raises(DataError, match="look swapped") as caught:
        official_learner.check_labels("B", swapped(streets, 0, 1), 320)
    message = str(caught.value)
    assert "'person'" in message
    assert "'car'" in message
    assert "site B" in message
    assert "--trust-labels" in message


@pytest.mark.shared
@pytest.mark.parametrize("name", ["a_indoor", "c_night", "d_thermal"])
def test_other_street_sites_pass_though_the_model_is_often_wrong_there(
    official_learner: DetectorLearner, shared_data: Path, name: str
) -> None:
    official_learner.check_labels(name, load_dataset(shared_data / "streets" / name), 320)


@pytest.mark.shared
def test_classes_the_weights_do_not_know_pass(shared_data: Path) -> None:
    data = load_dataset(shared_data / "bccd" / "site_0")
    template = build_template(ModelSection(weights=str(shared_data / "weights" / "yolov8n.pt")), data.names)
    learner = DetectorLearner(template, device="cpu", threads=1)
    learner.check_labels("cells", data, 320, most_pictures=10)
    learner.check_labels("cells", swapped(data, 0, 1), 320, most_pictures=10)


def test_a_site_without_labels_passes(learner: DetectorLearner, site: Dataset) -> None:
    learner.check_labels("A", replace(site, splits={}), 64)


# -- memory -----------------------------------------------------------------------------------------------------------


def test_a_batch_that_cannot_fit_is_refused_with_one_that_does(learner: DetectorLearner) -> None:
    with pytest.raises(ResourceError, match=r"2048 px needs about [\d.]+ GB") as caught:
        learner.check_batch_fits(TrainSection(batch=1_000_000, imgsz=2048, device="cpu"))
    fitting = re.search(r"at most (\d+)", str(caught.value))
    assert fitting
    assert caught.value.key == "train.batch"
    # Other programs take and give memory while this runs: half of what was offered must fit.
    learner.check_batch_fits(TrainSection(batch=max(1, int(fitting[1]) // 2), imgsz=2048, device="cpu"))


def test_more_processes_than_fit_are_refused_with_a_number_that_does(learner: DetectorLearner) -> None:
    plan = TrainSection(batch=1, imgsz=64, device="cpu")
    with pytest.raises(ResourceError, match="for each of 100000 processes") as caught:
        learner.check_batch_fits(plan, 100_000, "federation.simulation.processes")
    assert caught.value.key == "federation.simulation.processes"
    fitting = re.search(r"at most (\d+) as federation\.simulation\.processes", str(caught.value))
    assert fitting
    # Most of a process with so little to do is what every process takes.
    assert int(fitting[1]) < psutil.virtual_memory().total / 500e6
    learner.check_batch_fits(plan, max(1, int(fitting[1]) // 2), "federation.simulation.processes")


def test_what_is_computed_in_parts_needs_the_memory_of_a_part(learner: DetectorLearner) -> None:
    learner.check_batch_fits(TrainSection(batch=100_000, accumulate=100_000, imgsz=64, device="cpu"))
    with pytest.raises(ResourceError):
        learner.check_batch_fits(TrainSection(batch=1_000_000, imgsz=64, device="cpu"))


@pytest.mark.parametrize("imgsz", [64, 96, 640])
def test_an_ordinary_batch_fits(learner: DetectorLearner, imgsz: int) -> None:
    learner.check_batch_fits(TrainSection(batch=2, imgsz=imgsz, device="cpu"))


def test_what_training_takes_grows_with_batch_and_size_and_shrinks_with_frozen_layers(
    learner: DetectorLearner, scenes: Path
) -> None:
    data = load_dataset(scenes / "b_crossroads")

    def needed(**changes: int) -> int:
        return learner.training_bytes(data, TrainSection(**{"imgsz": 320, "batch": 8, "device": "cpu", **changes}))

    whole = needed()
    assert 0.3e9 < whole < 1e9
    assert needed(batch=16) > 1.5 * whole
    assert needed(imgsz=640) > 3 * whole
    assert needed(freeze=22) < 0.6 * whole
    assert needed(batch=16, accumulate=2) == whole


# -- what is left behind ----------------------------------------------------------------------------------------------

SESSION = """
import sys
from pathlib import Path
from manyeyes.config import ModelSection, TrainSection
from manyeyes.datasets import load_dataset
from manyeyes.learners import yolo
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.models import build_template
from manyeyes.learners.learner import FitPlan
data = load_dataset(sys.argv[1])
template = build_template(ModelSection(weights="scratch"), data.names)
learner = DetectorLearner(template, device="cpu", threads=1)
learner.fit(template.weights, data, FitPlan(train=TrainSection(batch=2, imgsz=64, threads=1), round=0, rounds=1))
learner.evaluate(template.weights, data, "val", 64)
learner.check_labels("A", data, 64)
"""


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
    }


def clean_environment(**more: Path) -> Mapping[str, str]:
    """As on a fresh machine: no sign of a CI service, no folders chosen for caches."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "YOLO", "MPL", "CI", "GITHUB", "TORCH"))}
    return {**kept, "OMP_NUM_THREADS": "1", **{name: str(path) for name, path in more.items()}}


def test_a_session_writes_nothing_into_home_the_data_or_the_working_folder(tmp_path: Path) -> None:
    data = write_site(tmp_path / "data")
    trailing = data / "images" / "0.png"
    trailing.write_bytes(trailing.read_bytes() + b"trailing bytes")  # Ultralytics' own loader rewrites such JPEGs
    before = fingerprint(data)
    for name in ("home", "work", "temporary"):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(data)],
        env=clean_environment(HOME=tmp_path / "home", TMPDIR=tmp_path / "temporary"),
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert fingerprint(data) == before
    assert fingerprint(tmp_path / "home") == {}
    assert fingerprint(tmp_path / "work") == {}
    assert not list((tmp_path / "temporary").glob("manyeyes*"))
    assert done.stdout == ""
