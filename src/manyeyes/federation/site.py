"""A site: its pictures and its trainer, for whichever form of model a coordinator asks it to train."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import psutil

from manyeyes.config import TrainSection
from manyeyes.datasets import Dataset
from manyeyes.datasets.classes import relabel
from manyeyes.errors import DataError
from manyeyes.federation.candidate import take_candidate
from manyeyes.federation.client import Client, expand_personal
from manyeyes.federation.form import ModelForm
from manyeyes.federation.limits import Limits, epochs_of
from manyeyes.federation.local_server import LocalServer
from manyeyes.federation.messages import FIT, PUBLISH, published_reply, read_publish_request
from manyeyes.federation.signature import check_signature
from manyeyes.federation.traffic import Counted
from manyeyes.federation.transport import Record, Request
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan, Progress, ProgressCallback, Template, silent
from manyeyes.learners.models import module_of, take
from manyeyes.learners.training import pick_device
from manyeyes.registry import MODELS, Registry

__all__ = ["Limits", "Site"]

# Of the memory a site allows, the share that decoded pictures may fill.
_CACHE_SHARE = 0.25
# What an answer holds beside the numbers: names and shapes of tensors, metrics of classes.
_BYTES_PER_TENSOR = 250
_BYTES_PER_CLASS = 400
_ANSWER_BYTES = 4096


class Site:
    """Answers requests with one site's pictures; what it has built for a form of model is kept for the next request.

    Args:
        node_id: its name in the federation.
        data: its pictures, with its own class names.
        state: where personal tensors and whatever else outlives a round is kept, in a folder for each run.
        limits: what it allows, and where it computes.
        progress: told how far each fit is.
        refresh: asked before each request for the pictures as they are then; may refuse.
        now: the local time; for tests.
        server: the one at this site that gets models, if there is one.
    """

    def __init__(
        self,
        node_id: str,
        data: Dataset,
        state: Path,
        *,
        server: LocalServer | None = None,
        limits: Limits | None = None,
        progress: ProgressCallback = silent,
        refresh: Callable[[], Dataset] | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.node_id = node_id
        self._state = state
        self._limits, self._progress = limits or Limits(), progress
        self._counted, self._now = Counted(), now
        self._refresh = refresh or (lambda: data)
        self._server = server
        self._built: tuple[ModelForm, Dataset, Client] | None = None
        # Before it has a model: what training adds is estimated on top of it.
        self._memory_at_rest = psutil.Process().memory_info().rss
        self._seconds_per_work: float | None = None
        self._work = 0.0

    def __call__(self, request: Request, form: ModelForm, counted: Counted | None = None) -> Record:
        """Train or test, as the request asks.

        Outside its hours a site does not train, but tests: that is short, and rounds cannot be compared without it.

        Args:
            request: what is asked.
            form: of the model.
            counted: today's messages, this request included; needed for a limit on their bytes.

        Raises:
            ProtocolError: the request is for another node, model or version, or names a model that cannot be built.
            LimitError: it asks for what the site does not allow.
            DataError: the site marks a class that the model does not know, or its pictures are not there.
            ManyeyesError: whatever the learner or the disk refuses.
        """
        limits, data = self._limits, self._refresh()
        self._counted = counted or Counted()
        limits.check_architecture(form.architecture)
        limits.check_pictures(len(data.split("train")))
        if request.kind == FIT:
            limits.check_hours(self._now(), None)
        else:
            self._check_traffic(_ANSWER_BYTES + _BYTES_PER_CLASS * len(form.names))
        client = self._client(form, data)
        began = time.monotonic()
        try:
            if request.kind == PUBLISH:
                return self._publish(request.record, form, client.learner.template, data)
            record = client.handle(request, self._guard)
        except DataError:
            if self._refresh() is data:
                raise
            # Somebody took a picture out that was being trained or tested on: the request holds for those left.
            return self(request, form, counted)
        if request.kind == FIT and self._work:
            self._seconds_per_work = (time.monotonic() - began) / self._work
        return record

    def _publish(self, record: Record, form: ModelForm, template: Template, data: Dataset) -> Record:
        weights, plan = read_publish_request(record, template.weights)
        if self._server is None:
            return published_reply(False, template.form_hash)
        check_signature(plan.signature, form, plan.round, weights, self._server.authority)
        used = take_candidate(
            replace(template, weights=weights),
            data,
            Registry(self._server.state / MODELS),
            run=form.run,
            round=plan.round,
            signed=plan.signature.signed,
            promote=self._server.promote,
            margin=self._server.margin,
            keep=self._server.keep,
        )
        return published_reply(used, template.form_hash)

    def _client(self, form: ModelForm, data: Dataset) -> Client:
        if self._built is None or self._built[0] != form or self._built[1] is not data:
            self._built = form, data, self._build(form, data)
        return self._built[2]

    def _build(self, form: ModelForm, data: Dataset) -> Client:
        data = relabel(data, form.names)
        weights = take(module_of(form.architecture, len(form.names)))
        template = Template(form.architecture, form.names, weights, form.imgsz)
        limits, most = self._limits, self._limits.memory_bytes
        learner = DetectorLearner(
            template,
            device=limits.device,
            threads=limits.threads,
            most_cached=None if most is None else int(_CACHE_SHARE * most),
        )
        return Client(self.node_id, learner, data, self._state / form.run, partial(self._agree, learner, data))

    def _agree(self, learner: DetectorLearner, data: Dataset, plan: FitPlan) -> FitPlan:
        """The plan as this site carries it out.

        Raises:
            LimitError: it asks for more than the site allows.
        """
        limits, pictures = self._limits, len(data.split("train"))
        limits.check_plan(plan.train, pictures)
        here = {"device": limits.device, "threads": limits.threads}
        plan = plan.model_copy(update={"train": plan.train.model_copy(update=here)})
        self._work = _work(plan.train, pictures)
        known = self._seconds_per_work
        limits.check_hours(self._now(), None if known is None else known * self._work)
        # What a request holds beside the weights is SCAFFOLD's control variate, and the answer holds as much.
        control = max(0, self._counted.last_request - learner.template.weights.num_bytes)
        self._check_traffic(control + _update_bytes(learner, plan))
        # On a GPU the activations do not lie in main memory; what is taken there is still watched.
        if limits.memory is not None and pick_device(limits.device).type == "cpu":
            limits.check_memory(self._memory_at_rest + learner.training_bytes(data, plan.train), plan.train)
        return plan

    def _check_traffic(self, answer: int) -> None:
        self._limits.check_traffic(self._counted.down + self._counted.up, answer)

    def _guard(self, at: Progress) -> None:
        """Called while it trains: ends the session when the hours are over or the memory is used up."""
        self._progress(at)
        self._limits.check_hours_left(self._now())
        if self._limits.memory is not None:
            self._limits.check_memory_taken(psutil.Process().memory_info().rss)


def _work(train: TrainSection, pictures: int) -> float:
    """What the time of a round is taken to grow with: pictures passed through, and their area."""
    return epochs_of(train, pictures) * pictures * train.imgsz**2


def _update_bytes(learner: DetectorLearner, plan: FitPlan) -> int:
    """Most bytes that the answer to a plan can have, without a control variate."""
    if plan.finetune:  # all that it learns then stays at the site
        return _ANSWER_BYTES
    template = learner.template.weights
    deltas, buffers = learner.expected_tensors(plan)
    sent = template.select(((deltas | buffers) - expand_personal(plan.personal, template)).__contains__)
    return sent.num_bytes + _BYTES_PER_TENSOR * len(sent) + _ANSWER_BYTES
