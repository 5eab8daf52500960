from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from PIL import Image

from manyeyes.config import ModelSection
from manyeyes.datasets.scenes import write_scenes

if TYPE_CHECKING:
    from manyeyes.learners.learner import Template


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first: none is left to one worker when the others are done."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real pictures and weights beside the checkout; read-only."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared pictures are not beside this checkout (../shared/data)")
    return folder


@pytest.fixture(autouse=True)
def _pillow_stays_as_it_is() -> Iterator[None]:
    """A test that imports all of Ultralytics gets an `Image.open` that asks for another package at a broken picture."""
    before = Image.open
    yield
    Image.open = before


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small synthetic sites: a_office, b_crossroads, c_night. Only read."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, images=9, imgsz=128, seed=5)
    return folder


CLASSES = ("person", "car")
"""What the exported model of the tests finds."""


@pytest.fixture(scope="session")
def base() -> Template:
    """The shipped base weights, which know the persons and cars of the synthetic scenes."""
    from manyeyes.learners.models import build_template

    return build_template(ModelSection(weights="base"), CLASSES, imgsz=128)


@pytest.fixture(scope="session")
def onnx_file(base: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, exported."""
    from manyeyes.learners.export import export_model

    return export_model(base, tmp_path_factory.mktemp("model") / "base.onnx").path


@pytest.fixture
def write_config(scenes: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration of the three small sites that trains for seconds; keywords replace its keys."""

    def write(**changes: Any) -> Path:
        values: dict[str, Any] = {
            "name": "tiny",
            "output": str(tmp_path / "runs"),
            "data_root": str(scenes),
            "sites": [
                {"node_id": "A", "data": "a_office"},
                {"node_id": "B", "data": "b_crossroads"},
                {"node_id": "C", "data": "c_night"},
            ],
            "train": {"imgsz": 128, "batch": 4, "precision": "fp32", "lr": 0.002},
            "federation": {"rounds": 2},
            "compare": ["together"],
            "evaluate": {"examples": 3},
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**values, **changes}))
        return path

    return write
