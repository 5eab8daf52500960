"""What a node must know of a model before it can read a request about it; nothing here needs torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manyeyes.config import NODE_ID_PATTERN
from manyeyes.errors import ProtocolError
from manyeyes.learners.learner import Template

__all__ = ["ModelForm"]


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
