"""What requests and replies hold; the one file that knows the keys of a Record.

    fit request       arrays: the global weights by name,         values: protocol, template, plan (FitPlan)
                              "control/<name>" (SCAFFOLD only)
    evaluate request  arrays: the global weights by name          values: protocol, template, plan (EvaluatePlan)
    update            arrays: "delta/<name>", "buffer/<name>",    values: protocol, template, num_examples, metrics,
                              "control/<name>" (SCAFFOLD only)            step_sum (FedNova only)
    publish request   arrays: the global weights by name          values: protocol, template, plan (PublishPlan)
    metrics           no arrays                                   values: protocol, template, metrics (Metrics)
    published         no arrays                                   values: protocol, template, used

An update that answers a plan with `finetune` holds no arrays.

`template` is the form hash of the model both sides must share. Nothing that arrives is believed: every reader checks
all of it before it returns.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manyeyes.errors import ProtocolError, UpdateRefusedError
from manyeyes.federation.transport import Record
from manyeyes.learners.learner import FitPlan, Metrics
from manyeyes.weights import Update, Weights, check_finite, check_same_form

__all__ = [
    "EVALUATE",
    "FIT",
    "PROTOCOL_VERSION",
    "PUBLISH",
    "EvaluatePlan",
    "PublishPlan",
    "Signature",
    "evaluate_request",
    "fit_request",
    "longest_answer",
    "map50_of",
    "metrics_reply",
    "plan_of",
    "publish_request",
    "published_reply",
    "read_evaluate_request",
    "read_fit_request",
    "read_metrics",
    "read_publish_request",
    "read_published",
    "read_update",
    "update_reply",
]

PROTOCOL_VERSION = 8
FIT = "fit"
EVALUATE = "evaluate"
PUBLISH = "publish"

_DELTA = "delta/"
_BUFFER = "buffer/"
_CONTROL = "control/"
_MAX_EXAMPLES = 2**24
_MAX_METRICS = 64
_MAX_STEP_SUM = 1e6
_MAX_NAME = 200
# Names, shapes and metrics beside the numbers of an update.
_MAX_HEADER = 2**20

Array = NDArray[Any]
_Plan = TypeVar("_Plan", bound=BaseModel)


class EvaluatePlan(BaseModel):
    """What a node is asked to test.

    Attributes:
        split: split of its pictures.
        imgsz: side in pixels; None for the learner's own default.
        round: rounds finished when these weights were made; 0 for the weights a run starts from.
        personal: patterns of tensor names for which the node's own values are used.
        finetuned: test the node's own model instead, which it made of these weights (FitPlan.finetune).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: Literal["train", "val", "test"] = "val"
    imgsz: int | None = Field(None, ge=1, le=8192)
    round: int = Field(0, ge=0)
    personal: tuple[str, ...] = ()
    finetuned: bool = False


class Signature(BaseModel):
    """What stands beside a signed model.

    Attributes:
        certificate: of who signed, PEM.
        signed: when, in seconds since 1970; part of what is signed.
        value: ECDSA with SHA-256; of what, signature.py says, base64.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate: str = Field(max_length=20_000)
    signed: float = Field(ge=0, le=1e11)
    value: str = Field(max_length=1_000)


class PublishPlan(BaseModel):
    """A model that a site may use.

    Attributes:
        round: rounds finished when it was made.
        signature: of the coordinator that stands for it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    round: int = Field(ge=0)
    signature: Signature


def fit_request(
    weights: Weights, plan: FitPlan, template_hash: str, control: Mapping[str, Array] | None = None
) -> Record:
    """Ask for a round of training; `control` is the server's control variate, if the strategy has one.

    The record refers to the arrays it is given, so many requests cost one copy.
    """
    controls = {f"{_CONTROL}{name}": array for name, array in (control or {}).items()}
    return Record({**weights, **controls}, {**_header(template_hash), "plan": plan.model_dump(mode="json")})


def read_fit_request(record: Record, template: Weights) -> tuple[Weights, FitPlan, Weights]:
    """The inverse of `fit_request`, at the node; the control variate is empty if none was sent.

    Raises:
        ProtocolError: another protocol version or form of model, or a plan this version does not understand.
        UpdateRefusedError: a tensor is missing, unknown, of another shape or type, or not finite.
    """
    _check_header(record, template)
    control = _with_prefix(record, _CONTROL)
    _check_part(control, template, control.keys(), "the control variate")
    weights = {name: array for name, array in record.arrays.items() if not name.startswith(_CONTROL)}
    return _read_weights(weights, template), _read_plan(record, FitPlan), Weights(control)


def evaluate_request(weights: Weights, plan: EvaluatePlan, template_hash: str) -> Record:
    """Ask for a test of `weights`."""
    return Record(weights, {**_header(template_hash), "plan": plan.model_dump(mode="json")})


def read_evaluate_request(record: Record, template: Weights) -> tuple[Weights, EvaluatePlan]:
    """The inverse of `evaluate_request`, at the node; raises as `read_fit_request`."""
    _check_header(record, template)
    return _read_weights(record.arrays, template), _read_plan(record, EvaluatePlan)


def publish_request(weights: Weights, plan: PublishPlan, template_hash: str) -> Record:
    """Hand over a model for use."""
    return Record(weights, {**_header(template_hash), "plan": plan.model_dump(mode="json")})


def read_publish_request(record: Record, template: Weights) -> tuple[Weights, PublishPlan]:
    """The inverse of `publish_request`, at the node; raises as `read_fit_request`. Checks no signature."""
    _check_header(record, template)
    return _read_weights(record.arrays, template), _read_plan(record, PublishPlan)


def published_reply(used: bool, template_hash: str) -> Record:
    """Answer a publish request: whether the site uses the model."""
    return Record({}, {**_header(template_hash), "used": used})


def read_published(record: Record, template: Weights) -> bool:
    """The inverse of `published_reply`, at the server.

    Raises:
        ProtocolError: another protocol version or form of model, or no such answer.
    """
    _check_header(record, template)
    used = _value(record, "used")
    if not isinstance(used, bool):
        raise ProtocolError(f"used must be true or false, got {used!r}")
    return used


def update_reply(update: Update, template_hash: str) -> Record:
    """Answer a fit request."""
    arrays = {f"{_DELTA}{name}": array for name, array in update.delta.items()}
    arrays |= {f"{_BUFFER}{name}": array for name, array in update.buffers.items()}
    arrays |= {f"{_CONTROL}{name}": array for name, array in update.control.items()}
    values: dict[str, Any] = {"num_examples": update.num_examples, "metrics": dict(update.metrics)}
    if update.step_sum:
        values["step_sum"] = update.step_sum
    return Record(arrays, {**_header(template_hash), **values})


def read_update(
    record: Record,
    template: Weights,
    delta_names: Collection[str],
    buffer_names: Collection[str],
    control_names: Collection[str] = (),
    *,
    step_sum: bool = False,
) -> Update:
    """The inverse of `update_reply`, at the server.

    Args:
        record: what the node sent.
        template: names, shapes and types of the model's tensors.
        delta_names: exactly the trained tensors the update must hold.
        buffer_names: exactly the buffers it must hold.
        control_names: exactly the tensors whose control variates' change it must hold.
        step_sum: whether it must tell its step sum.

    Raises:
        ProtocolError: another protocol version or form of model, or a value that is missing.
        UpdateRefusedError: a tensor too many or too few, of another shape or type, or not finite; a negative variance;
            num_examples that is not a whole number in [1, 2^24); metrics that are not at most 64 finite numbers; a step
            sum that is not in (0, 10^6].
    """
    _check_header(record, template)
    delta = _with_prefix(record, _DELTA)
    buffers = _with_prefix(record, _BUFFER)
    control = _with_prefix(record, _CONTROL)
    if len(delta) + len(buffers) + len(control) != len(record.arrays):
        raise UpdateRefusedError("the update holds arrays that are neither deltas nor buffers nor control variates")
    _check_part(delta, template, delta_names, "the update")
    _check_part(buffers, template, buffer_names, "the update's buffers")
    _check_part(control, template, control_names, "the update's control variate")
    _check_variances(buffers)
    metrics = _read_numbers(_value(record, "metrics"))
    num_examples = _read_num_examples(_value(record, "num_examples"))
    sum_of_steps = _read_step_sum(record) if step_sum else 0.0
    return Update(Weights(delta), Weights(buffers), num_examples, metrics, Weights(control), sum_of_steps)


def longest_answer(template: Weights) -> int:
    """Most bytes that an answer about a model can have: every tensor, and as many control variates again."""
    return 2 * template.num_bytes + _MAX_HEADER


def metrics_reply(metrics: Metrics, template_hash: str) -> Record:
    """Answer an evaluate request."""
    return Record({}, {**_header(template_hash), "metrics": metrics.to_dict()})


def read_metrics(record: Record, template: Weights, names: Collection[str]) -> Metrics:
    """The inverse of `metrics_reply`, at the server.

    Args:
        record: what the node sent.
        template: the form of the model that was tested.
        names: the model's class names; a metric of any other class is refused.

    Raises:
        ProtocolError: another protocol version or form of model, a class the model does not have, an average
            precision outside [0, 1], or a count that is not a whole number from 0.
    """
    _check_header(record, template)
    values = _value(record, "metrics")
    if not isinstance(values, Mapping):
        raise ProtocolError(f"metrics must be an object, got {type(values).__name__}")
    for key in ("ap50", "ap"):
        _check_classes(values.get(key), key, names)
        for name, value in values[key].items():
            if not _is_number(value) or not 0 <= value <= 1:
                raise ProtocolError(f"{key} of {name!r} must be in [0, 1], got {value!r}")
    _check_classes(values.get("num_objects"), "num_objects", names)
    for count in (values.get("num_images"), *values["num_objects"].values()):
        if type(count) is not int or count < 0:
            raise ProtocolError(f"counts of pictures and objects must be whole numbers from 0, got {count!r}")
    return Metrics.from_dict(values)


def plan_of(record: Record) -> Mapping[str, Any]:
    """The plan of a request that was read and answered, as plain values."""
    plan: Mapping[str, Any] = record.values["plan"]
    return plan


def map50_of(record: Record) -> float:
    """mAP50 in an answer that `metrics_reply` made here."""
    return float(record.values["metrics"]["map50"])


def _header(template_hash: str) -> dict[str, Any]:
    return {"protocol": PROTOCOL_VERSION, "template": template_hash}


def _check_header(record: Record, template: Weights) -> None:
    version = _value(record, "protocol")
    if version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the message follows protocol version {version!r}, this side follows {PROTOCOL_VERSION}",
            cure="Install the same version of manyeyes on the coordinator and its nodes.",
        )
    form = _value(record, "template")
    if form != template.form_hash:
        raise ProtocolError(
            f"the message is about a model of form {str(form)[:12]}, this side has {template.form_hash[:12]}",
            cure="Start coordinator and nodes with the same model and the same class names.",
        )


def _value(record: Record, key: str) -> Any:
    values: Any = record.values
    if not isinstance(values, Mapping) or key not in values:
        raise ProtocolError(f"the message lacks {key!r}")
    return values[key]


def _read_weights(arrays: Mapping[str, Array], template: Weights) -> Weights:
    check_same_form(arrays, template, what="the global model")
    check_finite(arrays, what="the global model")
    # A safetensors buffer sorts its tensors; learners see them in the order of the model.
    return Weights({name: arrays[name] for name in template})


def _check_part(arrays: Mapping[str, Array], template: Weights, names: Collection[str], what: str) -> None:
    """Refuse arrays that are not exactly the tensors `names` of the template, or not finite."""
    check_same_form(arrays, template.select(names.__contains__), what=what)
    check_finite(arrays, what=what)


def _read_plan(record: Record, kind: type[_Plan]) -> _Plan:
    try:
        return kind.model_validate(_value(record, "plan"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or None
        raise ProtocolError(f"the plan of a request is not valid: {first['msg']}", key=key) from error


def _with_prefix(record: Record, prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in record.arrays.items() if name.startswith(prefix)}


def _check_variances(buffers: Mapping[str, Array]) -> None:
    for name, array in buffers.items():
        if name.endswith("running_var") and (array < 0).any():
            raise UpdateRefusedError(f"tensor {name!r} holds a negative variance ({float(np.min(array)):g})")


def _read_num_examples(value: Any) -> int:
    if type(value) is not int or not 0 < value < _MAX_EXAMPLES:
        raise UpdateRefusedError(f"num_examples must be a whole number from 1 and below 2^24, got {value!r}")
    return value


def _read_step_sum(record: Record) -> float:
    value = _value(record, "step_sum")
    if not _is_number(value) or not 0 < value <= _MAX_STEP_SUM:
        raise UpdateRefusedError(f"step_sum must be a number in (0, {_MAX_STEP_SUM:g}], got {str(value)[:40]}")
    return float(value)


def _read_numbers(metrics: Any) -> dict[str, float]:
    if not isinstance(metrics, Mapping) or len(metrics) > _MAX_METRICS:
        raise UpdateRefusedError(f"metrics must be an object of at most {_MAX_METRICS} numbers")
    for name, value in metrics.items():
        if not _is_number(value) or not math.isfinite(value) or len(name) > _MAX_NAME:
            raise UpdateRefusedError(f"metric {str(name)[:40]!r} must be a finite number, got {str(value)[:40]}")
    return {str(name): float(value) for name, value in metrics.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_classes(values: Any, key: str, names: Collection[str]) -> None:
    if not isinstance(values, Mapping):
        raise ProtocolError(f"metrics lack {key!r}")
    if unknown := [name for name in values if name not in names]:
        raise ProtocolError(f"{key} is about classes the model does not have: {', '.join(map(repr, unknown[:3]))}")
