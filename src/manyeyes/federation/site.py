"""A site: its pictures and its trainer, for whichever form of model a coordinator asks it to train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manyeyes.config import NODE_ID_PATTERN
from manyeyes.datasets import Dataset
from manyeyes.datasets.classes import relabel
from manyeyes.errors import ProtocolError
from manyeyes.federation.client import Client
from manyeyes.federation.transport import Record, Request
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan, ProgressCallback, Template, silent
from manyeyes.learners.models import module_of, take

__all__ = ["Limits", "ModelForm", "Site"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a site allows in one round, and where it computes; None for no limit.

    Attributes:
        epochs, batch_size, imgsz: the most that a plan may ask for.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads; None for all this process may use.
    """

    epochs: float | None = None
    batch_size: int | None = None
    imgsz: int | None = None
    device: str = "auto"
    threads: int | None = None


class ModelForm(BaseModel):
    """What a node must know of a model before it can read a request about it; travels beside each request.

    Attributes:
        architecture: such as "yolov8n/cv3=80".
        names: the classes it finds.
        imgsz: side in pixels it is trained at.
        run: name of the run; what a site keeps from round to round of one never enters another.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str = Field(pattern=r"^yolov8[nsmlx]/cv3=[1-9]\d{0,3}$")
    names: tuple[str, ...] = Field(min_length=1, max_length=1000)
    imgsz: int = Field(ge=32, le=8192)
    run: str = Field(pattern=NODE_ID_PATTERN)

    @classmethod
    def of(cls, template: Template, run: str) -> ModelForm:
        """The form of a template, for a run."""
        return cls(architecture=template.architecture, names=template.names, imgsz=template.imgsz, run=run)

    @classmethod
    def read(cls, text: str) -> ModelForm:
        """From what another machine sent.

        Raises:
            ProtocolError: it is not such a form.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ProtocolError(f"the form of the model is not valid: {error.errors()[0]['msg']}") from error


class Site:
    """Answers requests with one site's pictures; what it has built for a form of model is kept for the next request.

    Args:
        node_id: its name in the federation.
        data: its pictures, with its own class names.
        state: where personal tensors and whatever else outlives a round is kept, in a folder for each run.
        limits: what it allows, and where it computes.
        progress: told how far each fit is.
    """

    def __init__(
        self,
        node_id: str,
        data: Dataset,
        state: Path,
        *,
        limits: Limits | None = None,
        progress: ProgressCallback = silent,
    ) -> None:
        self.node_id = node_id
        self._data, self._state = data, state
        self._limits, self._progress = limits or Limits(), progress
        self._built: tuple[ModelForm, Client] | None = None

    def __call__(self, request: Request, form: ModelForm) -> Record:
        """Train or test, as the request asks.

        Raises:
            ProtocolError: the request is for another node, model or version, or names a model that cannot be built.
            DataError: the site marks a class that the model does not know.
            ManyeyesError: whatever the learner or the disk refuses.
        """
        if self._built is None or self._built[0] != form:
            self._built = form, self._build(form)
        return self._built[1].handle(request, self._progress)

    def _build(self, form: ModelForm) -> Client:
        data = relabel(self._data, form.names)
        weights = take(module_of(form.architecture, len(form.names)))
        template = Template(form.architecture, form.names, weights, form.imgsz)
        learner = DetectorLearner(template, device=self._limits.device, threads=self._limits.threads)
        return Client(self.node_id, learner, data, self._state / form.run, self._agree)

    def _agree(self, plan: FitPlan) -> FitPlan:
        """The plan as this site carries it out.

        Raises:
            ProtocolError: it asks for more than the site allows.
        """
        limits, train = self._limits, plan.train
        pictures = len(self._data.split("train"))
        epochs = train.steps * train.batch / pictures if train.steps else train.epochs
        asked = {"epochs": epochs, "batch_size": train.batch, "imgsz": train.imgsz}
        for name, most in (("epochs", limits.epochs), ("batch_size", limits.batch_size), ("imgsz", limits.imgsz)):
            if most is not None and asked[name] > most:
                raise ProtocolError(
                    f"this site allows {name} up to {most}, and {asked[name]:g} were asked for",
                    cure=f"Ask for less, or raise `{name}` in the node's configuration.",
                )
        here = {"device": limits.device, "threads": limits.threads}
        return plan.model_copy(update={"train": train.model_copy(update=here)})
