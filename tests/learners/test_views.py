"""Views of frozen layers: they change nothing but the time a fit takes."""

from __future__ import annotations

import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.datasets import load_dataset
from manyeyes.datasets.sample import Dataset, Sample
from manyeyes.errors import DataError, ResourceError
from manyeyes.learners import yolo
from manyeyes.learners.batches import AugmentedBatches, order_of
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan, Template
from manyeyes.learners.models import layer_of, module_of, put, take
from manyeyes.learners.pictures import PictureCache
from manyeyes.learners.training import Batch, Session, train
from manyeyes.learners.views import Level, ViewLayout
from manyeyes.weights import Update, Weights, add

from .conftest import small_plan, write_site

Fit = tuple[str, str]


def plan_of(views: int = 2, freeze: int = 22, **more: Any) -> FitPlan:
    return small_plan(freeze=freeze, cache_views=views, **more)


def bits(update: Update) -> Fit:
    return update.delta.value_hash, update.buffers.value_hash


def the_file(folder: Path) -> Path:
    (path,) = folder.glob("views-*.bin")
    return path


def rounds(learner: DetectorLearner, site: Dataset, plan: FitPlan, folder: Path) -> list[Fit]:
    """The bits of the rounds of a run, each of which starts from what the one before came to."""
    weights, done = learner.template.weights, []
    for index in range(plan.rounds):
        update = learner.fit(weights, site, plan.model_copy(update={"round": index}), state_folder=folder)
        weights = add(weights, update.delta).replace(update.buffers)
        done.append(bits(update))
    return done


# -- where a model is cut ---------------------------------------------------------------------------------------------


def test_the_head_reads_three_layers_and_a_frozen_backbone_is_cut_at_three(template: Template) -> None:
    module = module_of(template.architecture, 3)
    assert yolo.cut_layers(module, 22) == (15, 18, 21)
    assert yolo.cut_layers(module, 10) == (4, 6, 9)
    assert yolo.cut_layers(module, 1) == (0,)


def test_the_two_parts_of_a_model_compute_what_the_whole_computes(template: Template) -> None:
    module = module_of(template.architecture, 3)
    put(module, template.weights)
    module.train().requires_grad_(False)
    images = torch.rand(2, 3, 64, 96)
    for freeze in range(1, 23):
        module.model[freeze - 1].eval()  # type: ignore[index,union-attr]
        later = yolo.LaterLayers(module, freeze)
        parts, whole = later(*yolo.cut_outputs(module, freeze, images)), module(images)
        for name in ("boxes", "scores"):
            assert torch.equal(parts[name], whole[name]), freeze
        names = {name for name, _ in module.named_parameters() if layer_of(name) >= freeze}
        assert {name for name, _ in later.named_parameters()} == names


# -- a fit with views -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [3, 22])
def test_cold_warm_and_unkept_views_give_the_same_bits(
    learner: DetectorLearner, site: Dataset, tmp_path: Path, freeze: int
) -> None:
    plan = plan_of(freeze=freeze, epochs=3, accumulate=2)
    cold = bits(learner.fit(learner.template.weights, site, plan, state_folder=tmp_path))
    content = the_file(tmp_path).read_bytes()
    warm = bits(learner.fit(learner.template.weights, site, plan, state_folder=tmp_path))
    assert the_file(tmp_path).read_bytes() == content
    assert cold == warm == bits(learner.fit(learner.template.weights, site, plan))


def test_bfloat16_views_give_the_same_bits_cold_and_warm_in_half_the_room(
    learner: DetectorLearner, site: Dataset, tmp_path: Path
) -> None:
    sizes = {}
    for precision in ("fp32", "bf16"):
        plan = plan_of(precision=precision)
        folder = tmp_path / precision
        cold, warm = (bits(learner.fit(learner.template.weights, site, plan, state_folder=folder)) for _ in range(2))
        assert cold == warm
        sizes[precision] = the_file(folder).stat().st_size
    assert sizes["fp32"] / 2 < sizes["bf16"] < sizes["fp32"] * 0.6


def test_known_views_are_not_drawn_again(
    learner: DetectorLearner, site: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = AugmentedBatches.draw

    def counted(self: AugmentedBatches, index: int, *, mosaic: bool, seed: int) -> Any:
        drawn.append(seed)
        return draw(self, index, mosaic=mosaic, seed=seed)

    monkeypatch.setattr(AugmentedBatches, "draw", counted)
    rounds(learner, site, plan_of(2, rounds=6, epochs=1, close_mosaic=0.34), tmp_path)
    # Six epochs: two views with mosaic in four of them, two without in two.
    assert len(drawn) == len(set(drawn)) == 4 * 5


class _SamePictures:
    """The pictures of a run's views as images, for a fit without any cache."""

    def __init__(self, site: Dataset, plan: FitPlan) -> None:
        samples = site.split("train")
        annotated = frozenset(site.names.index(name) for name in site.annotates)
        self.num_examples, self._plan = len(samples), plan
        self._pictures = AugmentedBatches(samples, annotated, len(site.names), PictureCache(), plan)

    def batches(self, session: Session) -> Iterator[Sequence[Batch]]:
        for epoch, mosaic, parts in order_of(session, self.num_examples):
            view = epoch % self._plan.train.cache_views
            yield [self._part(part, mosaic, view) for part in parts]

    def _part(self, indices: Any, mosaic: bool, view: int) -> Batch:
        node = self._plan.node_id.encode()
        drawn = []
        for index in indices.tolist():
            seed = np.random.SeedSequence([self._plan.seed, *node, mosaic, view, index]).generate_state(1)[0]
            drawn.append(self._pictures.draw(index, mosaic=mosaic, seed=int(seed)))
        images, objects = zip(*drawn, strict=True)
        return Batch(torch.stack(images), self._pictures.targets(indices, objects))


@pytest.mark.parametrize(
    "settings",
    [
        {"freeze": 22},
        {"freeze": 22, "mu": 0.5, "ema": 0.9},
        {"freeze": 10, "batchnorm": "frozen"},
        {"freeze": 15, "gradient_checkpointing": True, "accumulate": 2},
    ],
)
def test_the_update_is_that_of_training_on_the_same_pictures_without_views(
    learner: DetectorLearner, site: Dataset, settings: dict[str, Any]
) -> None:
    plan = plan_of(epochs=2, close_mosaic=0.5, **settings)
    weights = learner.template.weights
    update = learner.fit(weights, site, plan)
    module = learner._prepare(weights, plan.train, torch.device("cpu"))
    train(module, yolo.DetectionCriterion(module), _SamePictures(site, plan), plan, device=torch.device("cpu"))
    after = take(module)
    for name, delta in update.delta.items():
        np.testing.assert_allclose(weights[name] + delta, after[name], rtol=1e-4, atol=2e-6, err_msg=name)
    for name, buffer in update.buffers.items():
        np.testing.assert_allclose(buffer, after[name], rtol=1e-4, atol=2e-6, err_msg=name)
    assert update.delta["model.22.cv3.0.2.bias"].any()


@pytest.mark.parametrize("batchnorm", ["train", "frozen"])
def test_only_later_layers_change_and_frozen_batchnorm_stays(
    learner: DetectorLearner, site: Dataset, batchnorm: str
) -> None:
    plan = plan_of(freeze=15, batchnorm=batchnorm)
    weights = learner.template.weights
    update = learner.fit(weights, site, plan)
    assert (frozenset(update.delta), frozenset(update.buffers)) == learner.expected_tensors(plan)
    assert min(layer_of(name) for name in update.delta) == 15
    for name, tensor in learner._trained_module.state_dict().items():
        moved = bool((tensor.numpy() != weights[name]).any())
        statistic = "running_" in name or "num_batches" in name
        if layer_of(name) < 15 or (statistic and batchnorm == "frozen"):
            assert not moved, name


def test_a_view_comes_back_after_as_many_epochs_as_there_are_views(
    learner: DetectorLearner, site: Dataset, tmp_path: Path
) -> None:
    plan = plan_of(2, rounds=4, close_mosaic=0.0)
    weights = learner.template.weights
    written = []
    for index in range(4):
        learner.fit(weights, site, plan.model_copy(update={"round": index}), state_folder=tmp_path)
        records = np.fromfile(the_file(tmp_path), np.uint8).reshape(10, -1)
        written.append(int((records[:, :8].view("<u8") != 0).sum()))
    assert written == [5, 10, 10, 10]


# -- what a crash leaves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["torn", "zeroed", "cut off"])
def test_damaged_views_are_made_again(learner: DetectorLearner, site: Dataset, tmp_path: Path, damage: str) -> None:
    plan = plan_of(epochs=2)
    unbroken = bits(learner.fit(learner.template.weights, site, plan, state_folder=tmp_path))
    path = the_file(tmp_path)
    whole = path.read_bytes()
    size = len(whole) // 10
    if damage == "torn":
        path.write_bytes(whole[: size + size // 2] + bytes(size // 2) + whole[2 * size :])
    elif damage == "zeroed":
        path.write_bytes(bytes(3 * size) + whole[3 * size :])
    else:
        path.write_bytes(whole[: 5 * size + 100])
    assert bits(learner.fit(learner.template.weights, site, plan, state_folder=tmp_path)) == unbroken
    assert path.read_bytes() == whole


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from manyeyes.config import ModelSection
from manyeyes.datasets import load_dataset
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan
from manyeyes.learners.models import build_template
from manyeyes.learners.views import ViewFile

folder, plan = Path(sys.argv[1]), FitPlan.model_validate_json(sys.argv[2])
write, left = ViewFile.write, [7]
def dying_write(self, *args):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *args)
ViewFile.write = dying_write
data = load_dataset(folder / "pictures")
template = build_template(ModelSection(weights="scratch"), data.names, seed=1)
DetectorLearner(template, device="cpu", threads=1).fit(template.weights, data, plan, state_folder=folder / "state")
"""


def test_a_killed_run_goes_on_to_the_same_bits(learner: DetectorLearner, tmp_path: Path) -> None:
    data = load_dataset(write_site(tmp_path / "pictures"))
    plan = plan_of(rounds=2, epochs=2)
    unbroken = rounds(learner, data, plan, tmp_path / "other")
    command = [sys.executable, "-c", KILLED, str(tmp_path), plan.model_dump_json()]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    left_by_it = the_file(tmp_path / "state").read_bytes()
    assert rounds(learner, data, plan, tmp_path / "state") == unbroken
    assert the_file(tmp_path / "state").read_bytes() == the_file(tmp_path / "other").read_bytes() != left_by_it


def test_a_fit_that_is_stopped_leaves_no_thread_and_no_temporary_folder(
    learner: DetectorLearner, site: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        learner.fit(learner.template.weights, site, plan_of(), stop)
    assert threading.active_count() == before
    assert not list(tmp_path.iterdir())


# -- when views are not used again ------------------------------------------------------------------------------------


def changed_prefix(weights: Weights) -> Weights:
    return weights.replace({"model.3.conv.weight": weights["model.3.conv.weight"] + 1e-4})


@pytest.mark.parametrize(
    ("what", "kept"),
    [
        ("head", True),
        ("learning rate", True),
        ("round", True),
        ("prefix", False),
        ("picture", False),
        ("box", False),
        ("seed", False),
        ("node", False),
        ("augmentation", False),
        ("views", False),
        ("annotates", False),
    ],
)
def test_views_are_kept_while_nothing_they_depend_on_changes(
    learner: DetectorLearner, tmp_path: Path, what: str, kept: bool
) -> None:
    data = load_dataset(write_site(tmp_path / "pictures", 2))
    weights, plan, state = learner.template.weights, plan_of(), tmp_path / "state"
    learner.fit(weights, data, plan, state_folder=state)
    before = the_file(state).name
    sample = data.split("train")[0]
    if what == "head":
        weights = weights.replace({"model.22.cv3.0.2.bias": weights["model.22.cv3.0.2.bias"] + 1})
    elif what == "prefix":
        weights = changed_prefix(weights)
    elif what == "picture":
        os.utime(sample.image, ns=(1, 1))
    elif what == "box":
        data = replace(data, splits={"train": [replace(sample, xyxy=sample.xyxy + 1), *data.split("train")[1:]]})
    elif what == "annotates":
        data = replace(data, annotates=frozenset({"person"}))
    elif what in ("round", "seed", "node"):
        plan = plan.model_copy(update={{"node": "node_id"}.get(what, what): "B" if what == "node" else 1})
    else:
        changes = {"learning rate": {"lr": 0.1}, "views": {"views": 1}, "augmentation": {"augment": {"fliplr": 0.0}}}
        plan = plan_of(**changes[what])
    learner.fit(weights, data, plan, state_folder=state)
    assert (the_file(state).name == before) == kept


def test_a_picture_that_is_gone_is_named(learner: DetectorLearner, tmp_path: Path) -> None:
    data = load_dataset(write_site(tmp_path / "pictures", 2))
    data.split("train")[1].image.unlink()
    with pytest.raises(DataError, match=r"1\.png"):
        learner.fit(learner.template.weights, data, plan_of(), state_folder=tmp_path / "state")


# -- room on the disk -------------------------------------------------------------------------------------------------

LEVELS = (
    Level((64, 40, 40), torch.bfloat16),
    Level((128, 20, 20), torch.bfloat16),
    Level((256, 10, 10), torch.bfloat16),
)


@settings(deadline=None, max_examples=60)
@given(
    pictures=st.integers(1, 9),
    views=st.integers(1, 5),
    rounds=st.integers(1, 5),
    epochs=st.floats(0.2, 3.5),
    steps=st.none() | st.integers(1, 7),
    close_mosaic=st.floats(0, 1),
    mosaic=st.sampled_from([0.0, 1.0]),
)
def test_the_file_has_room_for_what_a_run_uses_and_nothing_else(mosaic: float, **given: Any) -> None:
    pictures, views, rounds = (given.pop(name) for name in ("pictures", "views", "rounds"))
    plan = plan_of(views, rounds=rounds, augment={"mosaic": mosaic}, **given)
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    layout = ViewLayout.of(LEVELS, [Sample(Path("x"), 9, 9, *nothing)] * pictures, plan)
    used = set()
    for index in range(rounds):
        session = Session.of(plan.model_copy(update={"round": index}), pictures)
        for epoch, may_be_mosaic, _ in order_of(session, pictures):
            used.add((may_be_mosaic, epoch % views))
    assert set(layout.kinds) == used
    slots = [layout.slot(*kind, picture) for kind in layout.kinds for picture in range(pictures)]
    assert slots == list(range(layout.slots))
    features = 2 * (64 * 1600 + 128 * 400 + 256 * 100)
    assert layout.num_bytes == layout.slots * (features + 16)


def test_the_size_that_is_announced_is_the_size_that_is_taken(
    learner: DetectorLearner, site: Dataset, tmp_path: Path
) -> None:
    plan = plan_of(2, rounds=2, epochs=2, close_mosaic=0.5)
    announced = learner.check_views_fit({"alone-A": [site], "together": [site, site]}, plan, tmp_path / "runs" / "x")
    assert not list(tmp_path.iterdir())
    rounds(learner, site, plan, tmp_path)
    file = the_file(tmp_path).stat()
    assert announced == {"alone-A": file.st_size, "together": 2 * file.st_size}
    assert file.st_size * 0.9 < file.st_blocks * 512 <= math.ceil(file.st_size / 4096) * 4096


def test_views_the_disk_has_no_room_for_are_refused_with_a_number_that_fits(
    learner: DetectorLearner, site: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(60, rounds=200)
    one = learner.check_views_fit({"together": [site]}, plan_of(1, rounds=200), tmp_path)["together"]
    usage = SimpleNamespace(free=2**28 + one * 7 + 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError) as caught:
        learner.check_views_fit({"together": [site], "alone-A": []}, plan, tmp_path)
    assert caught.value.key == "train.cache_views"
    fitting = re.search(r"Set it to (\d+)", str(caught.value))
    assert fitting
    assert fitting[1] == "7"
    learner.check_views_fit({"together": [site]}, plan_of(7, rounds=200), tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(ResourceError, match="0, which keeps none"):
        learner.check_views_fit({"together": [site]}, plan, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(learner: DetectorLearner, site: Dataset, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ResourceError, match="views cannot be kept") as caught:
        learner.fit(learner.template.weights, site, plan_of(), state_folder=tmp_path / "state")
    assert caught.value.key == "train.cache_views"


def test_a_disk_that_fills_up_is_an_error_and_not_the_end_of_the_process(
    learner: DetectorLearner, site: Dataset, tmp_path: Path
) -> None:
    plan = plan_of(1, rounds=1)
    size = learner.check_views_fit({"row": [site]}, plan, tmp_path)["row"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
    try:
        with pytest.raises(ResourceError, match="views cannot be kept"):
            learner.fit(learner.template.weights, site, plan, state_folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_forgetting_deletes_views_and_nothing_else(learner: DetectorLearner, site: Dataset, tmp_path: Path) -> None:
    node = tmp_path / "nodes" / "A"
    learner.fit(learner.template.weights, site, plan_of(), state_folder=node)
    (node / "personal-000000.safetensors").write_bytes(b"kept")
    learner.forget(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["personal-000000.safetensors"]
