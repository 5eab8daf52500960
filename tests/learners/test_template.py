from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manyeyes.config import ModelSection
from manyeyes.errors import ResourceError, WeightsError
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import Template
from manyeyes.learners.models import build_template, load_any, open_template, save_model
from manyeyes.weights import Weights, save_weights

from .conftest import NAMES, STREET_NAMES


def is_class_row(name: str) -> bool:
    return ".cv3." in name and name.rsplit(".", 2)[1] == "2"


# -- the one form all sites start from --------------------------------------------------------------------------------


@pytest.mark.shared
def test_rows_of_known_classes_and_all_else_are_carried_over(shared_data: Path) -> None:
    source, known, _ = load_any(shared_data / "weights" / "yolov8n.pt")
    names = ("person", "forklift", "car", "traffic light", "tv")
    template = build_template(ModelSection(weights=str(shared_data / "weights" / "yolov8n.pt")), names)
    rows = [name for name in template.weights if is_class_row(name)]
    assert len(rows) == 6
    for tensor in rows:
        assert len(template.weights[tensor]) == 5
        for index, name in enumerate(names):
            if name in known:
                np.testing.assert_array_equal(template.weights[tensor][index], source[tensor][known.index(name)])
    for tensor in set(source) - set(rows):
        np.testing.assert_array_equal(template.weights[tensor], source[tensor])
    assert set(template.weights) == set(source)


@pytest.mark.shared
def test_two_builds_of_a_template_are_the_same(shared_data: Path) -> None:
    section = ModelSection(weights=str(shared_data / "weights" / "yolov8n.pt"))
    first = build_template(section, STREET_NAMES)
    torch.manual_seed(5)
    again = build_template(section, STREET_NAMES)
    assert again.weights.value_hash == first.weights.value_hash
    assert again.form_hash == first.form_hash


@pytest.mark.shared
def test_all_classes_of_the_checkpoint_give_the_checkpoint(shared_data: Path) -> None:
    path = shared_data / "weights" / "yolov8n.pt"
    source, known, _ = load_any(path)
    assert len(known) == 80
    assert build_template(ModelSection(weights=str(path)), known).weights.value_hash == source.value_hash
    assert open_template(path).weights.value_hash == source.value_hash
    assert open_template(path).names == known


@pytest.mark.shared
def test_another_size_of_checkpoint_is_refused_and_recognised(shared_data: Path) -> None:
    path = shared_data / "weights" / "yolov8s.pt"
    with pytest.raises(WeightsError, match="looks like yolov8s") as caught:
        build_template(ModelSection(name="yolov8n", weights=str(path)), STREET_NAMES)
    assert caught.value.file == str(path)
    template = build_template(ModelSection(name="yolov8s", weights=str(path)), STREET_NAMES)
    assert template.architecture.startswith("yolov8s")


def test_scratch_depends_on_the_seed_alone() -> None:
    section = ModelSection(weights="scratch")
    first = build_template(section, NAMES, seed=3)
    torch.manual_seed(9)
    assert build_template(section, NAMES, seed=3).weights.value_hash == first.weights.value_hash
    other = build_template(section, NAMES, seed=4)
    assert other.weights.value_hash != first.weights.value_hash
    assert other.form_hash == first.form_hash
    assert build_template(section, (*NAMES, "chair")).form_hash != first.form_hash


def test_building_a_template_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_template(ModelSection(weights="scratch"), NAMES)
    assert torch.equal(torch.rand(3), expected)


def test_base_weights_are_of_yolov8n_only() -> None:
    with pytest.raises(WeightsError, match="base weights are of yolov8n, not yolov8s"):
        build_template(ModelSection(name="yolov8s", weights="base"), NAMES)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new/model.safetensors", "new/model.pt"])
def test_a_saved_model_opens_as_it_was(tmp_path: Path, template: Template, name: str) -> None:
    save_model(tmp_path / name, template, template.weights)
    opened = open_template(tmp_path / name)
    assert (opened.architecture, opened.names) == (template.architecture, template.names)
    assert opened.weights.value_hash == template.weights.value_hash
    assert [p.name for p in (tmp_path / "new").iterdir()] == [Path(name).name]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_model_that_cannot_be_written_is_named(tmp_path: Path, template: Template, suffix: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        save_model(tmp_path / "file" / f"model{suffix}", template, template.weights)


class Burglar:
    """Pickles as a call that makes a file."""

    def __init__(self, loot: Path) -> None:
        self.loot = loot

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.loot),)


def _torch_zip(path: Path, loot: Path) -> None:
    torch.save({"model": Burglar(loot), "ema": None}, path)


def _torch_legacy(path: Path, loot: Path) -> None:
    torch.save({"model": Burglar(loot)}, path, _use_new_zipfile_serialization=False)


def _plain_pickle(path: Path, loot: Path) -> None:
    path.write_bytes(pickle.dumps(Burglar(loot)))


def _beside_a_real_model(path: Path, loot: Path) -> None:
    module = torch.nn.Linear(2, 2)
    module.__dict__["args"] = Burglar(loot)
    torch.save({"model": module, "ema": None}, path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("craft", [_torch_zip, _torch_legacy, _plain_pickle, _beside_a_real_model])
def test_a_pickle_that_runs_code_is_refused_and_nothing_runs(tmp_path: Path, craft: Any) -> None:
    path, loot = tmp_path / "model.pt", tmp_path / "loot"
    craft(path, loot)
    with pytest.raises(WeightsError, match="refused"):
        load_any(path)
    with pytest.raises(WeightsError, match="refused"):
        build_template(ModelSection(weights=str(path)), NAMES)
    assert not loot.exists()


def test_code_hidden_in_a_working_checkpoint_is_refused(tmp_path: Path, template: Template) -> None:
    path, loot = tmp_path / "model.pt", tmp_path / "loot"
    save_model(tmp_path / "good.pt", template, template.weights)
    checkpoint = torch.load(tmp_path / "good.pt", weights_only=False)
    torch.save({**checkpoint, "train_args": {"model": Burglar(loot)}}, path)
    with pytest.raises(WeightsError, match="refused"):
        open_template(path)
    assert not loot.exists()
    with zipfile.ZipFile(path) as archive:  # the trap is set: a plain load springs it
        assert any(b"mkdir" in archive.read(name) for name in archive.namelist() if name.endswith(".pkl"))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_checkpoint_cut_short_is_refused(tmp_path: Path, template: Template, share: float) -> None:
    path = tmp_path / "model.pt"
    save_model(path, template, template.weights)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=r"model\.pt"):
        load_any(path)


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], torch.zeros(3), {"model": None}, {"model": torch.nn.ReLU()}])
def test_a_file_of_torch_without_a_detector_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="holds no detection model"):
        open_template(tmp_path / "x.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n" + b"0" * 99, b"{}", b"\x80\x02cmodels.yolo\nM\n."])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.pt"):
        open_template(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["missing.pt", "missing.safetensors", "model.onnx"])
def test_a_file_that_is_not_there_or_not_known_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=name):
        load_any(tmp_path / name)


def test_safetensors_of_others_and_of_other_models_are_refused(tmp_path: Path, template: Template) -> None:
    path = tmp_path / "x.safetensors"
    save_weights(path, template.weights)
    with pytest.raises(WeightsError, match="does not say its classes and size"):
        open_template(path)
    save_weights(path, Weights({"w": np.zeros(3)}), {"names": '["person"]', "imgsz": "320"})
    with pytest.raises(WeightsError, match="is not a YOLOv8"):
        open_template(path)
    save_weights(path, template.weights, {"names": '["person"]', "imgsz": "320"})
    with pytest.raises(WeightsError, match=r"x\.safetensors.*expected float32\(1,"):
        open_template(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_are_not_finite_are_refused_at_the_door(tmp_path: Path, template: Template, suffix: str) -> None:
    bias = template.weights["model.22.cv3.0.2.bias"].copy()
    bias[0] = np.nan
    path = tmp_path / f"model{suffix}"
    save_model(path, template, template.weights.replace({"model.22.cv3.0.2.bias": bias}))
    with pytest.raises(WeightsError, match="holds NaN"):
        open_template(path)


@pytest.mark.shared
def test_a_saved_pt_finds_the_same_in_ultralytics(
    shared_data: Path, tmp_path: Path, official: Template, official_learner: DetectorLearner
) -> None:
    from ultralytics import YOLO

    path = tmp_path / "federated.pt"
    official_learner.save(path, official.weights)
    image = shared_data / "streets" / "b_day" / "images" / "test"
    pictures = sorted(image.iterdir())[:3]
    yolo = YOLO(str(path))
    assert yolo.names == dict(enumerate(STREET_NAMES))
    compared = 0
    for picture in pictures:
        ours = official_learner.detect(official.weights, [picture], 640, min_score=0.25)[0]
        theirs = yolo.predict(str(picture), imgsz=640, conf=0.25, iou=0.7, device="cpu", rect=True, verbose=False)[0]
        assert len(ours) == len(theirs.boxes)
        np.testing.assert_allclose(ours.xyxy, theirs.boxes.xyxy.numpy(), atol=0.5)
        np.testing.assert_allclose(ours.score, theirs.boxes.conf.numpy(), atol=1e-3)
        assert ours.class_id.tolist() == theirs.boxes.cls.int().tolist()
        compared += len(ours)
    assert compared > 5
