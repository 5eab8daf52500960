"""What the federation knows of a learner: weights and pictures go in, an update or metrics come out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from manyeyes.config import NODE_ID_PATTERN, TrainSection
from manyeyes.datasets.sample import Dataset
from manyeyes.weights import Update, Weights, subtract

__all__ = ["Control", "FitPlan", "Learner", "Metrics", "Progress", "ProgressCallback", "Template", "silent"]


class FitPlan(BaseModel):
    """What a node is asked to do in one round; travels in the request, so it is validated where it arrives.

    Attributes:
        train: epochs, batch, learning rate, …
        round: index of this round, from 0.
        rounds: rounds of the whole run; learning rate and augmentation follow (round + share done) / rounds.
        seed: seed of the run; what a node draws depends on (seed, round, node_id) alone.
        proximal_mu: strength of FedProx's proximal term; 0 for none.
        personal: patterns of tensor names that are trained but stay at the node.
        finetune: the node goes on for itself: all that it learns stays there, as its own model. Then learning rate and
            augmentation follow the share of this session that is done.
        mix: with `finetune`: share of what was learned in the node's own model; the rest is the model it began with
            (Wortsman et al. 2022, arXiv:2109.01903).
        kept: rounds finished when the weights were made that are the best so far; None where the last are kept. With
            `finetune`: when the weights were made that it begins with.
        last_merged: index of the last round in which the server merged an update of this node; -1 for none.
        tell_step_sum: the update tells how far a constant gradient of one would have gone (`Update.step_sum`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    train: TrainSection
    round: int = Field(ge=0)
    rounds: int = Field(ge=1)
    seed: int = Field(0, ge=0)
    node_id: str = Field("node", pattern=NODE_ID_PATTERN)
    proximal_mu: float = Field(0.0, ge=0)
    personal: tuple[str, ...] = ()
    finetune: bool = False
    mix: float = Field(1.0, gt=0, le=1)
    kept: int | None = Field(None, ge=0)
    last_merged: int = Field(-1, ge=-1)
    tell_step_sum: bool = False


@dataclass(frozen=True, slots=True)
class Control:
    """The control variates of SCAFFOLD at a node, and what a session makes of them.

    Source: Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1 with option II. Each step follows g + c − c_i in
    place of the gradient g, and afterwards c_i is the mean of the session's own gradients.

    Attributes:
        server: c by tensor; the trained tensors that are shared.
        node: c_i, same names.
    """

    server: Weights
    node: Weights

    @property
    def correction(self) -> Weights:
        """c − c_i, added to the gradient of each step."""
        return subtract(self.server, self.node)

    def change(self, delta: Weights, step_sum: float) -> Weights:
        """c_i⁺ − c_i = −c − Δ/S after a session that followed the correction.

        The paper's S is K η, for K steps of plain SGD at rate η. Here S is the distance that a constant gradient of
        one would have gone: any SGD is linear in its gradients, so −Δ/S is their mean, weighted by how far each was
        followed. For plain SGD at a constant rate this is the paper's; a momentum β makes S about K η/(1 − β).

        Args:
            delta: after − before of what was trained; what `server` does not name is passed over.
            step_sum: S.
        """
        mean = {name: -array / np.float32(step_sum) for name, array in delta.items() if name in self.server}
        return subtract(mean, self.server)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fit is; sent about twice a second and at the end of each epoch.

    Attributes:
        epoch, epochs: the epoch that is running, from 1, and how many this fit has.
        step, steps: optimiser steps done and in all.
        images_per_second: since the fit began, after its first step.
        losses: mean of each loss since the epoch began.
        seconds_left: estimate for the rest of this fit.
        epoch_done: True once at the end of each epoch.
    """

    node_id: str
    round: int
    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    losses: Mapping[str, float]
    seconds_left: float
    epoch_done: bool = False


ProgressCallback = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """The progress callback that shows nothing."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """How good weights are on a set of pictures.

    Attributes:
        ap50: average precision at IoU 0.5 for each class that has objects among the pictures.
        ap: average precision averaged over IoU 0.50:0.05:0.95, same classes.
        num_images: pictures tested on.
        num_objects: objects of each class among them.
    """

    ap50: dict[str, float]
    ap: dict[str, float]
    num_images: int
    num_objects: dict[str, int] = field(default_factory=dict)

    @property
    def map50(self) -> float:
        """Mean of `ap50` over the classes; 0 if there are none."""
        return sum(self.ap50.values()) / len(self.ap50) if self.ap50 else 0.0

    @property
    def map50_95(self) -> float:
        """Mean of `ap` over the classes; 0 if there are none."""
        return sum(self.ap.values()) / len(self.ap) if self.ap else 0.0

    def restricted_to(self, names: Sequence[str]) -> Metrics:
        """The same for some of the classes, e.g. those that all sites share."""
        return Metrics(
            {n: v for n, v in self.ap50.items() if n in names},
            {n: v for n, v in self.ap.items() if n in names},
            self.num_images,
            {n: v for n, v in self.num_objects.items() if n in names},
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the two means."""
        return {**asdict(self), "map50": self.map50, "map50_95": self.map50_95}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Metrics:
        """The inverse of `to_dict`."""
        return cls(
            {str(k): float(v) for k, v in values["ap50"].items()},
            {str(k): float(v) for k, v in values["ap"].items()},
            int(values["num_images"]),
            {str(k): int(v) for k, v in values.get("num_objects", {}).items()},
        )


@dataclass(frozen=True, slots=True)
class Template:
    """The one form of model that all nodes of a run share.

    Attributes:
        architecture: name of the architecture, e.g. "yolov8n"; for a detector also the head's lineage.
        names: class names; an output's index is an index into it.
        weights: the weights every row of a table starts from.
        imgsz: side in pixels it is trained at.
    """

    architecture: str
    names: tuple[str, ...]
    weights: Weights
    imgsz: int = 640

    @property
    def form_hash(self) -> str:
        """Hash that every node compares with its own before it trains."""
        return self.weights.form_hash

    @property
    def metadata(self) -> dict[str, str]:
        """What a `.safetensors` model of this form says of itself."""
        return {"architecture": self.architecture, "names": json.dumps(self.names), "imgsz": str(self.imgsz)}


class Learner(Protocol):
    """Trains and tests one kind of model.

    A learner that multiplies a single number by its site's mean:

        class MeanLearner:
            template = Template("mean", ("thing",), Weights({"w": np.zeros(1)}))

            def fit(self, weights, data, plan, progress=silent, state_folder=None, control=None):
                n = len(data.split("train"))
                return Update(Weights({"w": np.full(1, n) - weights["w"]}), Weights({}), num_examples=n)

            def evaluate(self, weights, data, split, imgsz=None):
                return Metrics({"thing": 1.0}, {"thing": 1.0}, num_images=len(data.split(split)))
    """

    @property
    def template(self) -> Template:
        """The form of model this learner trains."""

    def fit(
        self,
        weights: Weights,
        data: Dataset,
        plan: FitPlan,
        progress: ProgressCallback = silent,
        state_folder: Path | None = None,
        control: Control | None = None,
    ) -> Update:
        """Train from `weights` on the training pictures; `weights` are not changed.

        The update's delta holds every tensor that was trained, personal ones included: what stays at the node is
        taken out by the node, not by the learner.

        Args:
            weights: of the learner's template.
            data: the node's pictures; only read.
            plan: what was asked for.
            progress: told how far the fit is; may raise to stop it.
            state_folder: where the node keeps what outlives a round; the learner may keep there what it would
                otherwise compute again. None: nothing is kept.
            control: if given, its correction is added to the gradient of each step, and the update's `control` is its
                change.
        """

    def evaluate(self, weights: Weights, data: Dataset, split: str, imgsz: int | None = None) -> Metrics:
        """Test `weights` on one split of the data, for the classes the data annotates."""
