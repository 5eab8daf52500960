from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from manyeyes.config import ModelSection, TrainSection
from manyeyes.datasets import load_dataset
from manyeyes.datasets.sample import Dataset
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan, Template
from manyeyes.learners.models import build_template

NAMES = ("person", "car", "tv")
STREET_NAMES = ("person", "car", "traffic light", "chair", "tv")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_site(root: Path, pictures: int = 5, *, tint: int = 40) -> Path:
    """A YOLO dataset: grey pictures of two sizes with an upright bright box (person) and a flat one (car)."""
    rng = np.random.default_rng(7)
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for index in range(pictures):
        width, height = ((96, 64), (64, 80))[index % 2]
        picture = rng.integers(0, tint, (height, width, 3), dtype=np.uint8)
        x, y = int(rng.integers(2, 20)), int(rng.integers(2, 20))
        cv2.rectangle(picture, (x, y), (x + 12, y + 30), (60, 60, 250), -1)
        cv2.rectangle(picture, (x + 18, y + 14), (x + 42, y + 28), (250, 90, 60), -1)
        cv2.imwrite(str(root / "images" / f"{index}.png"), picture)
        boxes = [(0, x + 6, y + 15, 12, 30), (1, x + 30, y + 21, 24, 14)]
        lines = [f"{c} {a / width} {b / height} {w / width} {h / height}" for c, a, b, w, h in boxes]
        (root / "labels" / f"{index}.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [person, car, tv]\n")
    return root


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Five small pictures, each with a person and a car; nobody has looked for a tv."""
    data = load_dataset(write_site(tmp_path_factory.mktemp("site") / "pictures"))
    return replace(data, annotates=frozenset({"person", "car"}))


@pytest.fixture(scope="session")
def template() -> Template:
    """An untrained yolov8n of three classes."""
    return build_template(ModelSection(weights="scratch"), NAMES, seed=1)


@pytest.fixture(scope="session")
def learner(template: Template) -> DetectorLearner:
    return DetectorLearner(template, device="cpu", threads=1)


@pytest.fixture(scope="session")
def official(shared_data: Path) -> Template:
    """The official yolov8n with the five classes of the street sites."""
    return build_template(ModelSection(weights=str(shared_data / "weights" / "yolov8n.pt")), STREET_NAMES)


@pytest.fixture(scope="session")
def official_learner(official: Template) -> DetectorLearner:
    return DetectorLearner(official, device="cpu", threads=1)


@pytest.fixture(scope="session")
def streets(shared_data: Path) -> Dataset:
    return load_dataset(shared_data / "streets" / "b_day")


def small_plan(round: int = 0, rounds: int = 2, mu: float = 0.0, node: str = "A", **train: Any) -> FitPlan:
    """One short epoch of fp32 at 64 pixels on one thread."""
    small: dict[str, Any] = {
        "batch": 2,
        "imgsz": 64,
        "threads": 1,
        "precision": "fp32",
        "device": "cpu",
        "warmup_epochs": 0.0,
    }
    return FitPlan(train=TrainSection(**{**small, **train}), round=round, rounds=rounds, node_id=node, proximal_mu=mu)
