from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manyeyes.datasets.sample import Dataset
from manyeyes.errors import DataError, RunError
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import Progress, Template
from manyeyes.weights import Weights, add, check_finite

from .conftest import small_plan


@pytest.mark.parametrize("freeze", [0, 10, 22])
def test_an_update_holds_what_was_announced_and_nothing_else(
    learner: DetectorLearner, template: Template, site: Dataset, freeze: int
) -> None:
    plan = small_plan(freeze=freeze)
    update = learner.fit(template.weights, site, plan)
    delta, buffers = learner.expected_tensors(plan)
    assert (frozenset(update.delta), frozenset(update.buffers)) == (delta, buffers)
    layers = {int(name.split(".")[1]) for name in delta | buffers}
    assert min(layers) >= freeze
    assert layers >= {21, 22} if freeze <= 21 else layers == {22}
    assert update.num_examples == 5
    check_finite(update.delta, what="update")
    for name in update.delta:
        assert update.delta[name].shape == template.weights[name].shape
        assert update.delta[name].dtype == np.float32


def test_a_full_update_names_every_tensor_but_the_fixed_integral(learner: DetectorLearner, template: Template) -> None:
    delta, buffers = learner.expected_tensors(small_plan())
    assert not delta & buffers
    assert set(template.weights) - delta - buffers == {"model.22.dfl.conv.weight"}
    assert all("running_" in name or "num_batches" in name for name in buffers)


def test_every_announced_tensor_is_trained(learner: DetectorLearner, template: Template, site: Dataset) -> None:
    update = learner.fit(template.weights, replace(site, annotates=frozenset(site.names)), small_plan(epochs=3))
    still = [name for name, array in update.delta.items() if not array.any()]
    # The small objects of this site belong to the finest scale: nothing is said about boxes of the other two.
    assert all(name.startswith(("model.22.cv2.1.", "model.22.cv2.2.")) for name in still)
    counters = {int(a) for n, a in update.buffers.items() if n.endswith("num_batches_tracked")}
    assert counters == {9}


def test_frozen_layers_stay_and_their_batchnorm_with_them(
    learner: DetectorLearner, template: Template, site: Dataset
) -> None:
    """Proved through the next fit: what the head learns is the same whatever trained before in this learner."""
    learner.fit(template.weights, site, small_plan())
    head = learner.fit(template.weights, site, small_plan(freeze=22))
    fresh = DetectorLearner(template, device="cpu", threads=1).fit(template.weights, site, small_plan(freeze=22))
    assert head.delta.value_hash == fresh.delta.value_hash
    assert head.buffers.value_hash == fresh.buffers.value_hash
    norms = {name for name in template.weights if "running_mean" in name}
    assert {name for name in head.buffers if "running_mean" in name} == {n for n in norms if n.startswith("model.22.")}


def test_the_running_statistics_of_frozen_layers_are_used_and_left_alone(
    learner: DetectorLearner, template: Template, site: Dataset
) -> None:
    update = learner.fit(template.weights, site, small_plan(freeze=15))
    inside = learner._trained_module.state_dict()
    for name, tensor in inside.items():
        if int(name.split(".")[1]) < 15:
            np.testing.assert_array_equal(tensor.numpy(), template.weights[name])
    assert any(update.buffers[n].any() != template.weights[n].any() for n in update.buffers if n.endswith("mean"))


def test_frozen_batchnorm_keeps_its_statistics_and_sends_none(
    learner: DetectorLearner, template: Template, site: Dataset
) -> None:
    plan = small_plan(batchnorm="frozen")
    update = learner.fit(template.weights, site, plan)
    assert learner.expected_tensors(plan)[1] == frozenset()
    assert len(update.buffers) == 0
    assert update.delta["model.22.cv3.0.2.bias"].any(), "the rest is trained all the same"
    for name, tensor in learner._trained_module.state_dict().items():
        if "running_" in name or "num_batches" in name:
            np.testing.assert_array_equal(tensor.numpy(), template.weights[name])


def test_given_weights_and_pictures_are_not_changed(
    learner: DetectorLearner, template: Template, site: Dataset
) -> None:
    before = template.weights.value_hash
    files = {s.image: s.image.read_bytes() for s in site.split("train")}
    boxes = [s.xyxy.copy() for s in site.split("train")]
    learner.fit(template.weights, site, small_plan(mu=0.1, ema=0.9))
    assert template.weights.value_hash == before
    assert all(path.read_bytes() == content for path, content in files.items())
    for sample, box in zip(site.split("train"), boxes, strict=True):
        np.testing.assert_array_equal(sample.xyxy, box)


def test_the_same_plan_gives_the_same_bits(learner: DetectorLearner, template: Template, site: Dataset) -> None:
    first = learner.fit(template.weights, site, small_plan(momentum=0.9))
    learner.fit(template.weights, site, small_plan(round=1))
    learner.evaluate(template.weights, site, "val", 64)
    again = learner.fit(template.weights, site, small_plan(momentum=0.9))
    other_process = DetectorLearner(template, device="cpu").fit(template.weights, site, small_plan(momentum=0.9))
    for update in (again, other_process):
        assert update.delta.value_hash == first.delta.value_hash
        assert update.buffers.value_hash == first.buffers.value_hash


@pytest.mark.parametrize("other", [{"round": 1}, {"node": "B"}])
def test_another_round_or_node_sees_other_pictures(
    learner: DetectorLearner, template: Template, site: Dataset, other: dict[str, Any]
) -> None:
    constant = {"schedule": "constant", "close_mosaic": 0.0}
    first = learner.fit(template.weights, site, small_plan(**constant))
    assert learner.fit(template.weights, site, small_plan(**constant, **other)).delta.value_hash != (
        first.delta.value_hash
    )


def test_gradient_checkpointing_gives_the_same_update(
    learner: DetectorLearner, template: Template, site: Dataset
) -> None:
    plain = learner.fit(template.weights, site, small_plan())
    checkpointed = learner.fit(template.weights, site, small_plan(gradient_checkpointing=True))
    for kind in ("delta", "buffers"):
        ours, theirs = getattr(plain, kind), getattr(checkpointed, kind)
        assert set(ours) == set(theirs)
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
    assert learner.fit(template.weights, site, small_plan()).delta.value_hash == plain.delta.value_hash


def test_training_lowers_the_loss(learner: DetectorLearner, template: Template, site: Dataset) -> None:
    plan = small_plan(epochs=1, lr=0.003, close_mosaic=1.0)
    weights: Weights = template.weights
    losses = []
    for index in range(4):
        update = learner.fit(weights, site, plan.model_copy(update={"round": index, "rounds": 4}))
        weights = add(weights, update.delta).replace(update.buffers)
        losses.append(update.metrics["loss"])
    assert losses[-1] < losses[0]
    assert {"loss_box", "loss_cls", "loss_dfl", "loss", "images_per_second", "seconds"} <= set(update.metrics)


def test_a_site_without_training_pictures_is_named(learner: DetectorLearner, template: Template, site: Dataset) -> None:
    with pytest.raises(RunError, match="node A has no pictures"):
        learner.fit(template.weights, replace(site, splits={}), small_plan())


def test_other_class_names_are_refused(learner: DetectorLearner, template: Template, site: Dataset) -> None:
    with pytest.raises(DataError, match="not those of the model"):
        learner.fit(template.weights, replace(site, names=("car", "person", "tv")), small_plan())


def test_a_broken_picture_is_named_and_no_thread_is_left(
    learner: DetectorLearner, template: Template, site: Dataset, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no more")
    first, *others = site.split("train")
    data = replace(site, splits={"train": [replace(first, image=broken), *others]})
    before = threading.active_count()
    with pytest.raises(DataError, match=r"broken\.jpg"):
        learner.fit(template.weights, data, small_plan())
    assert threading.active_count() == before


def test_stopping_in_the_middle_leaves_the_learner_usable(
    learner: DetectorLearner, template: Template, site: Dataset
) -> None:
    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    expected = learner.fit(template.weights, site, small_plan()).delta.value_hash
    with pytest.raises(KeyboardInterrupt):
        learner.fit(template.weights, site, small_plan(gradient_checkpointing=True), stop)
    assert threading.active_count() == before
    assert learner.fit(template.weights, site, small_plan()).delta.value_hash == expected


def test_a_node_goes_on_with_the_optimiser_of_its_last_round(
    learner: DetectorLearner, template: Template, site: Dataset, tmp_path: Path
) -> None:
    def hold(folder: Path | None, rounds: int, **train: Any) -> Weights:
        weights: Weights = template.weights
        for index in range(rounds):
            asked = small_plan(index, 4, optimizer="adamw", lr=0.001, **train)
            weights = add(weights, learner.fit(weights, site, asked, state_folder=folder).delta)
        return weights

    kept = hold(tmp_path / "kept", 3)
    assert kept.value_hash != hold(tmp_path / "fresh", 3, optimizer_state="fresh").value_hash
    assert not (tmp_path / "fresh").exists()

    hold(tmp_path / "resumed", 2)
    last = learner.fit(
        hold(tmp_path / "again", 2),
        site,
        small_plan(2, 4, optimizer="adamw", lr=0.001),
        state_folder=tmp_path / "resumed",
    )
    again = learner.fit(
        hold(tmp_path / "again", 2),
        site,
        small_plan(2, 4, optimizer="adamw", lr=0.001),
        state_folder=tmp_path / "resumed",
    )
    assert last.delta.value_hash == again.delta.value_hash
    assert add(hold(tmp_path / "again", 2), last.delta).value_hash == kept.value_hash
