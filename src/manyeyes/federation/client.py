"""The node's side of a round: read the request, put its personal tensors in place, train or test, answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from manyeyes.datasets.sample import Dataset
from manyeyes.errors import ConfigError, ProtocolError, WeightsError
from manyeyes.federation.batchnorm import batchnorm_names
from manyeyes.federation.messages import (
    EVALUATE,
    FIT,
    metrics_reply,
    read_evaluate_request,
    read_fit_request,
    update_reply,
)
from manyeyes.federation.transport import Record, Request
from manyeyes.learners.learner import Control, FitPlan, Learner, ProgressCallback, silent
from manyeyes.learners.round_states import RoundStates
from manyeyes.weights import Update, Weights, add, check_same_form, load_weights, save_weights

__all__ = ["Client", "expand_personal"]


def expand_personal(patterns: Sequence[str], template_names: Iterable[str]) -> frozenset[str]:
    """The tensors that stay at the node.

    Args:
        patterns: shell patterns over tensor names ("model.22.*"); the word "bn" stands for every BatchNorm module,
            its weight, bias and buffers, which is FedBN (Li et al. 2021, arXiv:2102.07623).
        template_names: names of the model's tensors.

    Raises:
        ConfigError: a pattern matches no tensor.

    >>> sorted(expand_personal(["bn"], ["0.weight", "1.weight", "1.running_mean"]))
    ['1.running_mean', '1.weight']
    """
    names = list(template_names)
    personal: set[str] = set()
    for pattern in patterns:
        matched = batchnorm_names(names) if pattern == "bn" else {n for n in names if fnmatchcase(n, pattern)}
        if not matched:
            raise ConfigError(
                f"{pattern!r} matches no tensor of the model",
                key="federation.personal",
                cure=f"Its tensors have names such as {', '.join(names[:2])}.",
            )
        personal |= matched
    return frozenset(personal)


class Client:
    """One node.

    Args:
        node_id: its name in the federation.
        learner: trains and tests.
        data: the node's own pictures; only read.
        state_folder: where its personal tensors and its control variate are kept from round to round; one folder a
            node and a run.
        agree: what the node makes of a plan before it trains: where it computes, say; it may refuse.
    """

    def __init__(
        self,
        node_id: str,
        learner: Learner,
        data: Dataset,
        state_folder: Path,
        agree: Callable[[FitPlan], FitPlan] = lambda plan: plan,
    ) -> None:
        self.node_id = node_id
        self._agree = agree
        self.learner = learner
        self.data = data
        self.state_folder = state_folder
        self.own_model = state_folder / "finetuned.safetensors"
        """What the node made of the last model for itself, once it was asked to."""
        self._personal = RoundStates(state_folder, "personal")
        self._controls = RoundStates(state_folder, "control")

    def handle(self, request: Request, progress: ProgressCallback = silent) -> Record:
        """Answer a request.

        Raises:
            ProtocolError: the request is for another node, version or form of model, or cannot be understood.
            ManyeyesError: whatever the learner or the disk refuses.
        """
        if request.node_id != self.node_id:
            raise ProtocolError(f"a request for node {request.node_id!r} reached node {self.node_id!r}")
        if request.kind == FIT:
            return self._fit(request.record, progress)
        if request.kind == EVALUATE:
            return self._evaluate(request.record)
        raise ProtocolError(f"a request must be {FIT!r} or {EVALUATE!r}, got {request.kind!r}")

    def own_weights(self, weights: Weights, personal: Sequence[str], round: int) -> Weights:
        """Global weights with this node's personal tensors in their place.

        Args:
            weights: the global weights.
            personal: patterns as in the configuration.
            round: rounds finished when `weights` were made; what the node learned later is not used.

        Raises:
            ConfigError: a pattern matches no tensor.
            WeightsError: the node's state cannot be read or is of another model.
        """
        names = expand_personal(personal, weights)
        own = self._personal.before(round) if names else None
        return weights if own is None else weights.replace(own.select(names.__contains__))

    def finetuned(self) -> Weights:
        """The node's own model.

        Raises:
            WeightsError: it has made none, or it is of another model.
        """
        own = load_weights(self.own_model)[0]
        check_same_form(own, self.learner.template.weights, what="the node's own model")
        return Weights({name: own[name] for name in self.learner.template.weights})

    def _fit(self, record: Record, progress: ProgressCallback) -> Record:
        weights, plan, server_control = read_fit_request(record, self.learner.template.weights)
        if plan.node_id != self.node_id:
            raise ProtocolError(f"a plan for node {plan.node_id!r} reached node {self.node_id!r}")
        plan = self._agree(plan)
        made = (plan.kept or 0) if plan.finetune else plan.round
        before = self.own_weights(weights, plan.personal, made)
        control = Control(server_control, self._own_control(server_control, plan)) if server_control else None
        started = time.monotonic()
        # What the rounds need stays as it is: they may be resumed.
        folder = self.state_folder / "finetune" if plan.finetune else self.state_folder
        update = self.learner.fit(before, self.data, plan, progress, folder, control)
        seconds = round(time.monotonic() - started, 3)
        if plan.finetune:
            learned = {name: plan.mix * delta for name, delta in update.delta.items()}
            own = add(before, learned).replace(update.buffers)
            save_weights(self.own_model, own, self.learner.template.metadata)
        personal = frozenset(weights) if plan.finetune else expand_personal(plan.personal, weights)
        shared = Update(
            update.delta.select(lambda name: name not in personal),
            update.buffers.select(lambda name: name not in personal),
            update.num_examples,
            {"seconds": seconds, **update.metrics},
            update.control,
            update.step_sum if plan.tell_step_sum else 0.0,
        )
        if control:
            self._keep_control(control, shared, plan)
        if personal and not plan.finetune:
            self._keep_personal(before, update, personal, plan)
        return update_reply(shared, self.learner.template.form_hash)

    def _evaluate(self, record: Record) -> Record:
        weights, plan = read_evaluate_request(record, self.learner.template.weights)
        own = self.finetuned() if plan.finetuned else self.own_weights(weights, plan.personal, plan.round)
        metrics = self.learner.evaluate(own, self.data, plan.split, plan.imgsz)
        return metrics_reply(metrics, self.learner.template.form_hash)

    def _keep_personal(self, before: Weights, update: Update, personal: frozenset[str], plan: FitPlan) -> None:
        trained = {name: before[name] + delta for name, delta in update.delta.items() if name in personal}
        buffers = {name: array for name, array in update.buffers.items() if name in personal}
        self._personal.save(plan.round, {**trained, **buffers})
        self._personal.forget_others(plan.round, also_before=plan.kept or 0)

    def _own_control(self, server: Weights, plan: FitPlan) -> Weights:
        """c_i as it was after the last round that the server counts: what came of other rounds never entered its c.

        Raises:
            WeightsError: it is no longer there, cannot be read, or is of other tensors.
        """
        if plan.last_merged < 0:
            return Weights({name: np.zeros_like(array) for name, array in server.items()})
        kept = self._controls.load(plan.last_merged)
        if kept.select(server.__contains__).form_hash != server.form_hash:
            raise WeightsError(
                "the control variate is not of the tensors that are trained", file=self._controls.path(plan.last_merged)
            )
        return kept

    def _keep_control(self, control: Control, update: Update, plan: FitPlan) -> None:
        if not control.server.keys() == update.control.keys() == update.delta.keys():
            raise ProtocolError("the control variate is not of the tensors that are trained and shared")
        self._controls.save(plan.round, add(control.node, update.control))
        # Two that were merged, for two checkpoints of the server, and the one that may yet be.
        merged = [index for index in self._controls.rounds() if index <= plan.last_merged]
        self._controls.keep_only([*merged[-2:], plan.round])
