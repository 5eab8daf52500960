"""Exported models are compared with PyTorch before they are kept, and nothing is left of those that fail."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from manyeyes.config import ModelSection
from manyeyes.datasets import Dataset, load_dataset
from manyeyes.errors import ConfigError, DataError, ResourceError, WeightsError
from manyeyes.learners import export as export_module
from manyeyes.learners.export import FORMATS, default_path, export_model
from manyeyes.learners.learner import Template
from manyeyes.learners.models import build_template
from manyeyes.learners.parity import TOLERANCES, TorchNetwork, compare
from manyeyes.runtime.engine import open_engine
from manyeyes.runtime.vision import Decoded

NEEDED = {"tensorrt": "tensorrt", "litert": "litert_torch"}


@pytest.fixture(scope="module")
def base() -> Template:
    return build_template(ModelSection(weights="base"), ("person", "car"), imgsz=128)


@pytest.fixture(scope="module")
def crossroads(scenes: Path) -> Dataset:
    return load_dataset(scenes / "b_crossroads")


@pytest.mark.parametrize(("format", "precision"), [("onnx", "fp32"), ("onnx", "bf16"), ("torchscript", "auto")])
def test_a_model_that_finds_the_same_is_kept(
    base: Template, crossroads: Dataset, tmp_path: Path, format: str, precision: str
) -> None:
    said: list[str] = []
    out = tmp_path / f"model.{format}"
    exported = export_model(base, out, format=format, precision=precision, data=crossroads, tell=said.append)  # type: ignore[arg-type]
    assert exported.path == out
    assert exported.num_bytes == out.stat().st_size > 5_000_000
    assert exported.parity
    assert exported.parity.within(TOLERANCES["bf16" if precision == "bf16" else "fp32"])
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert any("picture by picture" in text for text in said)
    json.dumps(exported.to_dict())
    assert str(out) in exported.lines()[0]
    if format == "onnx":
        before, after = exported.metrics or (None, None)
        assert before
        assert after
        assert after.map50_95 == pytest.approx(before.map50_95, abs=0.03 if precision == "bf16" else 1e-3)
        engine = open_engine(out, threads=1)
        assert engine.info.weights == base.weights.value_hash
        assert (engine.backend, engine.precision) == ("openvino", "bf16") or precision == "fp32"


def test_int8_is_calibrated_on_the_site_s_pictures_and_kept_only_if_it_loses_little(
    base: Template, crossroads: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    exported = export_model(base, out, format="openvino", precision="int8", data=crossroads, max_drop=100)
    assert exported.num_bytes < 0.4 * 4 * sum(array.size for array in base.weights.values())
    before, after = exported.metrics or (None, None)
    assert before
    assert after
    engine = open_engine(out, threads=1)
    assert (engine.backend, engine.precision, engine.names) == ("openvino", "int8", ("person", "car"))
    drop = 100 * (before.map50_95 - after.map50_95)
    with pytest.raises(WeightsError, match=r"in int8 the model loses .* points of mAP50-95"):
        export_model(base, tmp_path / "no", format="openvino", precision="int8", data=crossroads, max_drop=drop - 1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_model_that_finds_something_else_is_not_kept(
    base: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export_module._trace_onnx

    def wrong(work: object, path: Path, info: object) -> None:
        real(work, path, info)  # type: ignore[arg-type]
        import onnx
        from onnx import numpy_helper

        model = onnx.load(path)
        for tensor in model.graph.initializer:
            if tensor.name.endswith("model.0.conv.bias"):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.5), tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(export_module, "_trace_onnx", wrong)
    with pytest.raises(WeightsError, match="does not find what PyTorch finds") as raised:
        export_model(base, tmp_path / "model.onnx")
    # A node sends the reason to its coordinator, and what is in the site's pictures stays there.
    assert "pictures" not in raised.value.reason
    assert re.search(r"these figures \(\d+ boxes in \d+ pictures", str(raised.value))
    assert not list(tmp_path.iterdir())


def test_a_picture_that_is_gone_is_named_and_not_the_file_that_was_to_be_written(
    base: Template, scenes: Path, tmp_path: Path
) -> None:
    data = load_dataset(shutil.copytree(scenes / "a_office", tmp_path / "site"))
    gone = data.split("val")[0].image
    gone.unlink()
    with pytest.raises(DataError, match="a picture cannot be read") as raised:
        export_model(base, tmp_path / "out" / "model.onnx", data=data)
    assert raised.value.file == str(gone)


@pytest.mark.parametrize(
    "format", [name for name, module in NEEDED.items() if importlib.util.find_spec(module) is None]
)
def test_what_is_not_installed_is_said_with_the_package(base: Template, tmp_path: Path, format: str) -> None:
    with pytest.raises(ResourceError, match=r"is not installed here\. pip install"):
        export_model(base, default_path(tmp_path / "model", format, "fp32"), format=format)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_what_does_not_go_together_is_refused(base: Template, crossroads: Dataset, tmp_path: Path) -> None:
    for format in FORMATS:
        if format != "openvino":
            with pytest.raises(ConfigError, match="int8 is made with OpenVINO"):
                export_model(base, tmp_path / "m.onnx", format=format, precision="int8", data=crossroads)
    with pytest.raises(ConfigError, match="needs the site's own pictures"):
        export_model(base, tmp_path / "m", format="openvino", precision="int8")
    there = tmp_path / "there.onnx"
    there.write_text("mine")
    with pytest.raises(ResourceError, match=r"there\.onnx: exists\. Name another with --out"):
        export_model(base, there)
    assert there.read_text() == "mine"
    with pytest.raises(ConfigError, match=r"so its name must end in \.onnx"):
        export_model(base, tmp_path / "there.xml")
    nothing = replace(crossroads, splits={"train": crossroads.split("train")})
    with pytest.raises(DataError, match="Give it a `val` or `test` split"):
        export_model(base, tmp_path / "m.onnx", data=nothing)
    with pytest.raises(DataError, match="no class in common"):
        export_model(build_template(ModelSection(weights="base"), ("boat",)), tmp_path / "m.onnx", data=crossroads)


def test_boxes_without_a_counterpart_are_counted(base: Template) -> None:
    """A network that sees everything eight pixels further right has no box where the other has it."""
    rng = np.random.default_rng(3)
    reference = TorchNetwork.of(base)
    moved = TorchNetwork(lambda images: _moved(reference.module(images)[0]), reference.info)
    picture = rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)
    picture[30:90, 40:60] = (60, 60, 250)
    pictures = [Decoded(picture, (128, 128))]
    same = compare(reference, reference, pictures, TOLERANCES["fp32"], 128)
    assert (same.missing, same.iou, same.score) == (0, 1.0, 0.0)
    other = compare(reference, moved, pictures, TOLERANCES["fp32"], 128)
    assert other.missing == 2 * other.boxes


def _moved(raw: object) -> object:
    raw = raw.clone()  # type: ignore[attr-defined]
    raw[:, 0] += 8
    return raw


def test_files_are_named_for_what_they_are() -> None:
    assert default_path(Path("a/final.pt"), "onnx", "auto") == Path("a/final.onnx")
    assert default_path(Path("a/final.pt"), "onnx", "bf16") == Path("a/final_bf16.onnx")
