"""A node that is paused, what it trains on, and what its people can see of its rounds."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from manyeyes.config import TrainSection
from manyeyes.datasets.overlay import OVERLAY, MarkedBox, Overlay
from manyeyes.errors import LimitError, ResourceError
from manyeyes.federation.audit import AuditLog
from manyeyes.federation.form import ModelForm
from manyeyes.federation.messages import EVALUATE, FIT, EvaluatePlan, evaluate_request, fit_request
from manyeyes.federation.node import NodeConfig, _Node, status_of
from manyeyes.federation.pause import PAUSED, Pause
from manyeyes.federation.transport import Request
from manyeyes.learners.learner import FitPlan, Template, silent

TRAIN = TrainSection(imgsz=128, batch=4, epochs=1, precision="fp32", device="cpu", threads=1)


def test_it_lasts_over_a_restart_and_ends_when_somebody_says_so(tmp_path: Path) -> None:
    Pause(tmp_path).check()
    for _ in range(2):
        Pause(tmp_path).pause()
    assert Pause(tmp_path).paused
    with pytest.raises(LimitError, match="this site has paused taking part"):
        Pause(tmp_path).check()
    for _ in range(2):
        Pause(tmp_path).resume()
    assert not Pause(tmp_path).paused
    (tmp_path / PAUSED).mkdir()
    with pytest.raises(ResourceError, match="cannot be deleted"):
        Pause(tmp_path).resume()


def test_a_paused_node_tests_but_does_not_train_and_its_rounds_and_corrections_can_be_seen(
    base: Template, scenes: Path, tmp_path: Path
) -> None:
    config = NodeConfig(
        node_id="A",
        coordinator_url="https://localhost:5000",
        data_path=scenes / "a_office",
        state=tmp_path / "state",
        serve=tmp_path / "serve",
        device="cpu",
        threads=1,
    )
    form, status = ModelForm.of(base, "first"), status_of(config)

    def fit(round: int) -> Request:
        plan = FitPlan(train=TRAIN, round=round, rounds=3, node_id="A")
        return Request(f"fit-{round}", "A", FIT, fit_request(base.weights, plan, base.form_hash))

    def test(round: int) -> Request:
        plan = EvaluatePlan(split="val", imgsz=128, round=round)
        return Request(f"test-{round}", "A", EVALUATE, evaluate_request(base.weights, plan, base.form_hash))

    with closing(_Node(config, AuditLog(config.folder), status, silent)) as node:
        node.start()
        own = status.pictures
        Pause(config.folder).pause()
        with pytest.raises(LimitError) as refused:
            node.answer(fit(0), form)
        assert refused.value.key == "paused"
        node.answer(test(0), form)
        Pause(config.folder).resume()
        # Corrected at the site's server, while the node runs.
        picture = next((scenes / "a_office").rglob("*.jpg")).read_bytes()
        box = MarkedBox(name="car", xyxy=(10, 10, 60, 60))
        Overlay(config.serve / OVERLAY).add("0" * 16, picture, (128, 128), [box], base.names)  # type: ignore[operator]
        node.answer(fit(0), form)
        assert status.pictures == own + 1
        node.answer(test(1), form)
    (done,) = status.rounds_done
    assert (done.round, status.rounds) == (1, 3)
    assert done.before == done.after is not None, "the same weights were tested"
    assert done.seconds == pytest.approx(status.training_seconds)
    assert (status.epoch, status.seconds_left, status.training) == (None, None, False)
