from __future__ import annotations

from pathlib import Path

import pytest

from manyeyes.config import ModelSection
from manyeyes.learners.export import export_model
from manyeyes.learners.learner import Template
from manyeyes.learners.models import build_template

CLASSES = ("person", "car")


@pytest.fixture(scope="session")
def base() -> Template:
    """The shipped base weights, which know the persons and cars of the synthetic scenes."""
    return build_template(ModelSection(weights="base"), CLASSES, imgsz=128)


@pytest.fixture(scope="session")
def onnx_file(base: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(base, tmp_path_factory.mktemp("model") / "base.onnx").path
