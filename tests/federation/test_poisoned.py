"""A round that ruins the common model: three real sites, a real detector, and what their servers go on looking with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.web.conftest import started

from manyeyes.config import EvaluateSection, FederationSection, TrainSection
from manyeyes.datasets import load_dataset
from manyeyes.federation.form import ModelForm
from manyeyes.federation.keys import AUTHORITY, make_authority
from manyeyes.federation.local_server import LocalServer
from manyeyes.federation.messages import FIT, read_update, update_reply
from manyeyes.federation.publish import publish
from manyeyes.federation.rounds import run_rounds
from manyeyes.federation.signature import Signer
from manyeyes.federation.site import Limits, Site
from manyeyes.federation.transport import Record, Reply, Request
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan, Template
from manyeyes.registry import MODELS, Registry
from manyeyes.web.settings import ServeConfig
from manyeyes.weights import Update, Weights, l2_norm

SITES = {"A": "a_office", "B": "b_crossroads", "C": "c_night"}
TRAIN = TrainSection(imgsz=128, batch=4, steps=1, precision="fp32", device="cpu", lr=1e-5)


class Sites:
    """A transport to whole sites in this process; what one of them answers can be spoilt on its way."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self._sites = sites
        self._waiting: list[Request] = []
        self.form: ModelForm | None = None
        self.spoil: Callable[[Request, Record], Record] = lambda request, record: record

    def nodes(self) -> Sequence[str]:
        return sorted(self._sites)

    def send(self, requests: Sequence[Request]) -> None:
        self._waiting += requests

    def receive(self, timeout: float | None) -> list[Reply]:
        if not self._waiting:
            return []
        request = self._waiting.pop(0)
        assert self.form is not None
        answer = self._sites[request.node_id](request, self.form)
        record = Record.from_bytes(self.spoil(request, answer).to_bytes())
        return [Reply(request.request_id, request.node_id, record, bytes_down=0, bytes_up=0)]

    def cancel(self, request_ids: Sequence[str]) -> list[str]:
        return []


def noise_of_its_norm(update: Update, weights: Weights) -> Weights:
    """Random directions, each tensor as long as the model's own: in the form that is allowed, and of no use."""
    generator = np.random.default_rng(0)
    drawn = {name: generator.standard_normal(array.shape).astype(np.float32) for name, array in update.delta.items()}
    return Weights({n: a * np.float32(l2_norm({n: weights[n]}) / max(l2_norm({n: a}), 1e-9)) for n, a in drawn.items()})


def shuffled_head(update: Update, weights: Weights) -> Weights:
    """What makes of the head another one with the same numbers in it, each elsewhere, after a mean over three sites."""
    generator = np.random.default_rng(0)

    def moved(name: str, array: Any) -> Any:
        if not name.startswith("model.22."):
            return array
        return 3 * (generator.permutation(weights[name].ravel()).reshape(array.shape) - weights[name])

    return Weights({name: moved(name, array) for name, array in update.delta.items()})


@dataclass(frozen=True)
class Federation:
    """Three sites with servers, and a coordinator that signs."""

    template: Template
    sites: Sites
    folder: Path

    def hold(self, run: str) -> list[dict[str, Any]]:
        """A run of one round, and its model for all sites; what was told of it."""
        told: list[dict[str, Any]] = []

        def emit(event: str, **fields: Any) -> None:
            told.append({"event": event, **fields})

        self.sites.form = form = ModelForm.of(self.template, run)
        result = run_rounds(
            self.sites,
            self.template,
            train=TRAIN,
            federation=FederationSection(rounds=1, min_nodes=3, weighting="equal"),
            evaluate=EvaluateSection(every=9),
            seed=0,
            expected=DetectorLearner(self.template, device="cpu").expected_tensors,
            folder=self.folder / "coordinator" / run,
            emit=emit,
        )
        signer = Signer(self.folder / "coordinator")
        publish(self.sites, form, result.weights, 1, signer, emit, lambda: None)
        return told

    def state(self, node: str) -> Path:
        return self.folder / node / "serve"


@pytest.fixture
def federation(base: Template, scenes: Path, tmp_path: Path) -> Federation:
    make_authority(tmp_path / "coordinator", ["localhost"])
    sites = {
        node: Site(
            node,
            load_dataset(scenes / folder),
            tmp_path / node / "training",
            limits=Limits(device="cpu", threads=1),
            server=LocalServer(tmp_path / node / "serve", "no_worse", tmp_path / "coordinator" / AUTHORITY),
        )
        for node, folder in SITES.items()
    }
    return Federation(base, Sites(sites), tmp_path)


@pytest.mark.parametrize("poison", [noise_of_its_norm, shuffled_head])
def test_a_poisoned_round_never_replaces_a_sites_model(federation: Federation, poison: Any) -> None:
    told = federation.hold("sound")
    assert {event["node"]: event["used"] for event in told if event["event"] == "published"} == dict.fromkeys(
        "ABC", True
    )
    good = {node: Registry(federation.state(node) / MODELS).used[0] for node in SITES}

    def spoil(request: Request, record: Record) -> Record:
        if (request.kind, request.node_id) != (FIT, "C"):
            return record
        template = federation.template
        plan = FitPlan(train=TRAIN, round=0, rounds=1)
        names = DetectorLearner(template, device="cpu").expected_tensors(plan)
        update = read_update(record, template.weights, *names)
        spoilt = Update(poison(update, template.weights), update.buffers, update.num_examples, dict(update.metrics))
        return update_reply(spoilt, template.form_hash)

    federation.sites.spoil = spoil
    told = federation.hold("poisoned")
    # It is in the form that is allowed: merged like any other, signed and handed to all.
    assert len([event for event in told if event["event"] == "update_received" and event["node"] == "C"]) == 1
    assert not [event for event in told if event["event"] == "update_refused"]
    assert {event["node"]: event["used"] for event in told if event["event"] == "published"} == dict.fromkeys(
        "ABC", False
    )
    for node in SITES:
        models = {model["run"]: model for model in _models_of(federation.state(node))}
        assert models["sound"]["hash"] == good[node]
        assert (models["sound"]["in_use"], models["sound"]["promoted"]) == (True, True)
        assert (models["poisoned"]["in_use"], models["poisoned"]["promoted"]) == (False, False)
        assert models["poisoned"]["origin"] == "federation"
        assert models["poisoned"]["map50"] < 0.5 * models["sound"]["map50"]


def _models_of(state: Path) -> list[dict[str, Any]]:
    """What a site's page is told of its models; the server looks with the one in use."""
    with started(ServeConfig(state=state, threads=1, backend="openvino", precision="fp32")) as server:
        models: list[dict[str, Any]] = server.client.get("/api/v1/models").json()
        assert server.client.get("/api/v1/status").json()["model"] == next(m["hash"] for m in models if m["in_use"])
        return models
