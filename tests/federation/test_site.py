"""What a site does with requests: builds what they are about, keeps to its limits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from manyeyes.config import ModelSection, TrainSection
from manyeyes.datasets import Dataset, load_dataset
from manyeyes.datasets.overlay import Overlay
from manyeyes.errors import DataError, LimitError, ProtocolError
from manyeyes.federation.form import ModelForm
from manyeyes.federation.messages import EVALUATE, FIT, EvaluatePlan, evaluate_request, fit_request, read_update
from manyeyes.federation.site import Limits, Site
from manyeyes.federation.site_pictures import SitePictures
from manyeyes.federation.transport import Record, Request
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan, Template
from manyeyes.learners.models import build_template

TRAIN = TrainSection(imgsz=128, batch=4, steps=1, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def template() -> Template:
    return build_template(ModelSection(weights="base"), ("person", "car"), imgsz=128)


def fit(template: Template, train: TrainSection = TRAIN) -> Request:
    plan = FitPlan(train=train, round=0, rounds=2, node_id="A")
    return Request("1", "A", FIT, fit_request(template.weights, plan, template.form_hash))


def test_a_site_trains_and_tests_whatever_form_it_is_asked_for(
    template: Template, scenes: Path, tmp_path: Path
) -> None:
    site = Site("A", load_dataset(scenes / "a_office"), tmp_path, limits=Limits(device="cpu", threads=1))
    record = site(fit(template), ModelForm.of(template, "run"))
    expected = DetectorLearner(template).expected_tensors(FitPlan(train=TRAIN, round=0, rounds=2))
    update = read_update(Record.from_bytes(record.to_bytes()), template.weights, *expected)
    assert update.num_examples == 9
    wider = build_template(ModelSection(weights="base"), ("person", "car", "tv"), imgsz=128)
    asked = Request("2", "A", EVALUATE, evaluate_request(wider.weights, EvaluatePlan(imgsz=128), wider.form_hash))
    assert site(asked, ModelForm.of(wider, "run")).values["metrics"]["num_images"] > 0


def test_what_a_site_keeps_of_one_run_is_not_anothers(template: Template, scenes: Path, tmp_path: Path) -> None:
    site = Site("A", load_dataset(scenes / "a_office"), tmp_path, limits=Limits(device="cpu", threads=1))
    site(fit(template, TRAIN.model_copy(update={"optimizer": "adamw"})), ModelForm.of(template, "first"))
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
    site(fit(template, TRAIN.model_copy(update={"optimizer": "adamw"})), ModelForm.of(template, "second"))
    kept = {(path.parent.name, path.name) for path in tmp_path.glob("*/*")}
    assert kept == {(run, "optimizer-000000.safetensors") for run in ("first", "second")}


def test_a_picture_that_is_taken_out_while_it_trains_costs_no_round(
    template: Template, scenes: Path, tmp_path: Path
) -> None:
    own = load_dataset(scenes / "a_office")
    overlay = Overlay(tmp_path / "overlay")
    overlay.add("0" * 16, own.split("train")[0].image.read_bytes(), (128, 128), [], own.names)
    pictures = SitePictures(scenes / "a_office", overlay=overlay)
    asked: list[int] = []

    def current() -> Dataset:
        data = pictures.current()
        asked.append(len(data.split("train")))
        overlay.remove("0" * 16)
        return data

    site = Site("A", own, tmp_path / "A", limits=Limits(device="cpu", threads=1), refresh=current)
    whole = TRAIN.model_copy(update={"steps": None, "epochs": 1})
    record = site(fit(template, whole), ModelForm.of(template, "run"))
    expected = DetectorLearner(template).expected_tensors(FitPlan(train=whole, round=0, rounds=2))
    assert read_update(record, template.weights, *expected).num_examples == 9
    assert asked == [10, 9, 9]


def test_a_picture_that_is_damaged_while_it_trains_is_said(template: Template, scenes: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(scenes / "a_office", tmp_path / "site"))
    data = load_dataset(folder)
    for sample in data.split("train"):
        sample.image.write_bytes(b"no picture")
    site = Site("A", data, tmp_path / "A", limits=Limits(device="cpu", threads=1))
    with pytest.raises(DataError, match="cannot be decoded"):
        site(fit(template), ModelForm.of(template, "run"))


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(batch_size=2), "allows batch_size up to 2, and 4 were asked for"),
        (Limits(imgsz=96), "allows imgsz up to 96, and 128 were asked for"),
        (Limits(epochs=0.2), r"allows epochs up to 0\.2, and 0\.444444 were asked for"),
    ],
)
def test_a_plan_beyond_a_sites_limits_is_refused(
    template: Template, scenes: Path, tmp_path: Path, limits: Limits, said: str
) -> None:
    site = Site("A", load_dataset(scenes / "a_office"), tmp_path, limits=limits)
    with pytest.raises(LimitError, match=said):
        site(fit(template), ModelForm.of(template, "run"))
    assert not list(tmp_path.iterdir())


def test_a_site_with_a_class_that_the_model_lacks_says_so(template: Template, scenes: Path, tmp_path: Path) -> None:
    cars = build_template(ModelSection(weights="base"), ("car",), imgsz=128)
    site = Site("A", load_dataset(scenes / "a_office"), tmp_path)
    with pytest.raises(DataError, match=r"annotates \['person'\], which the model does not have"):
        site(fit(cars), ModelForm.of(cars, "run"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"architecture": "yolov8n", "names": ["car"], "imgsz": 640, "run": "x"}',
        '{"architecture": "yolov8n/cv3=99999", "names": ["car"], "imgsz": 640, "run": "x"}',
        '{"architecture": "yolov8n/cv3=80", "names": [], "imgsz": 640, "run": "x"}',
        '{"architecture": "yolov8n/cv3=80", "names": ["car"], "imgsz": 640}',
        '{"architecture": "yolov8n/cv3=80", "names": ["car"], "imgsz": 640, "run": "../other"}',
        '{"architecture": "yolov8n/cv3=80", "names": ["car"], "imgsz": 640, "run": "x", "code": "x"}',
    ],
)
def test_a_form_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="the form of the model is not valid"):
        ModelForm.read(text)
