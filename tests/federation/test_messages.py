"""What a message may hold: everything else is refused with a sentence that says what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from manyeyes.config import TrainSection
from manyeyes.errors import ProtocolError, UpdateRefusedError
from manyeyes.federation.messages import (
    EvaluatePlan,
    evaluate_request,
    fit_request,
    metrics_reply,
    read_evaluate_request,
    read_fit_request,
    read_metrics,
    read_update,
    update_reply,
)
from manyeyes.federation.transport import Record
from manyeyes.learners.learner import FitPlan, Metrics
from manyeyes.weights import Update, Weights

from .linear import BUFFERS, TEMPLATE, TRAINED, LinearLearner, site

WEIGHTS = TEMPLATE.weights
HASH = TEMPLATE.form_hash
PLAN = FitPlan(train=TrainSection(steps=2), round=1, rounds=3, seed=5, node_id="A", personal=("bn",))


@pytest.fixture
def update() -> Update:
    return LinearLearner().fit(WEIGHTS, site(0), PLAN)


def over_the_wire(record: Record) -> Record:
    return Record.from_bytes(record.to_bytes())


def with_value(record: Record, key: str, value: Any) -> Record:
    return Record(record.arrays, {**record.values, key: value})


def with_array(record: Record, name: str, array: Any) -> Record:
    return Record({**record.arrays, name: array}, record.values)


def read(record: Record) -> Update:
    return read_update(record, WEIGHTS, TRAINED, BUFFERS)


names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)
arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.int32, np.uint8]),
    hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(names, arrays, max_size=4), st.dictionaries(st.text(max_size=10), values, max_size=4))
def test_a_record_survives_the_wire(some_arrays: dict[str, Any], some_values: dict[str, Any]) -> None:
    received = over_the_wire(Record(some_arrays, some_values))

    assert received.values == some_values
    assert received.arrays.keys() == some_arrays.keys()
    for name, array in some_arrays.items():
        assert received.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(received.arrays[name], array)


@given(st.dictionaries(names, arrays, max_size=4), st.dictionaries(st.text(max_size=10), values, max_size=4))
def test_a_record_survives_in_parts(some_arrays: dict[str, Any], some_values: dict[str, Any]) -> None:
    data, text = Record(some_arrays, some_values).to_parts()
    received = Record.from_parts(data, text)
    assert received.values == some_values
    assert received.arrays.keys() == some_arrays.keys()
    for name, array in some_arrays.items():
        np.testing.assert_array_equal(received.arrays[name], array)


def test_what_differs_between_the_requests_of_a_round_is_not_in_their_arrays() -> None:
    plans = [PLAN.model_copy(update={"node_id": node, "last_merged": number}) for number, node in enumerate("AB")]
    first, second = (fit_request(WEIGHTS, plan, HASH).to_parts() for plan in plans)
    assert first[0] == second[0]
    assert first[1] != second[1]


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, "null", '"x"'])
def test_values_that_are_none_are_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError, match="could not be read"):
        Record.from_parts(Record().to_bytes(), text)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_are_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="could not be read"):
        Record.from_bytes(data)


def test_requests_and_replies_come_back_as_they_were(update: Update) -> None:
    weights, plan, control = read_fit_request(over_the_wire(fit_request(WEIGHTS, PLAN, HASH)), WEIGHTS)
    assert (weights.value_hash, plan, len(control)) == (WEIGHTS.value_hash, PLAN, 0)
    assert list(weights) == list(WEIGHTS)

    order = EvaluatePlan(split="test", imgsz=320, round=2, personal=("bn",))
    weights, received = read_evaluate_request(over_the_wire(evaluate_request(WEIGHTS, order, HASH)), WEIGHTS)
    assert (weights.value_hash, received) == (WEIGHTS.value_hash, order)

    back = read(over_the_wire(update_reply(update, HASH)))
    assert back.delta.value_hash == update.delta.value_hash
    assert back.buffers.value_hash == update.buffers.value_hash
    assert (back.num_examples, back.metrics) == (update.num_examples, update.metrics)

    metrics = Metrics({"thing": 0.5}, {"thing": 0.25}, 3, {"thing": 7})
    assert read_metrics(over_the_wire(metrics_reply(metrics, HASH)), WEIGHTS, TEMPLATE.names) == metrics


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), 1e7, "far", True])
def test_a_step_sum_that_nothing_can_be_divided_by_is_refused(update: Update, value: Any) -> None:
    with pytest.raises(UpdateRefusedError, match="step_sum must be"):
        read_update(with_value(update_reply(update, HASH), "step_sum", value), WEIGHTS, TRAINED, BUFFERS, step_sum=True)


def test_a_step_sum_is_read_where_it_is_asked_for(update: Update) -> None:
    record = over_the_wire(update_reply(update, HASH))
    assert read_update(record, WEIGHTS, TRAINED, BUFFERS, step_sum=True).step_sum == update.step_sum > 0
    assert read(record).step_sum == 0
    without = Record(record.arrays, {key: value for key, value in record.values.items() if key != "step_sum"})
    with pytest.raises(ProtocolError, match="lacks 'step_sum'"):
        read_update(without, WEIGHTS, TRAINED, BUFFERS, step_sum=True)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("protocol", 1, "protocol version 1"),
        ("template", "0" * 64, "form 000000000000"),
        ("plan", {"round": 0}, "Field required"),
        ("plan", {**PLAN.model_dump(mode="json"), "proximal_mu": -1}, "proximal_mu"),
        ("plan", {**PLAN.model_dump(mode="json"), "train": {"lr": "much"}}, "train.lr"),
        ("plan", {**PLAN.model_dump(mode="json"), "command": "rm"}, "command"),
    ],
)
def test_a_request_that_is_not_understood(key: str, value: Any, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        read_fit_request(with_value(fit_request(WEIGHTS, PLAN, HASH), key, value), WEIGHTS)


def test_a_request_without_header() -> None:
    with pytest.raises(ProtocolError, match="lacks 'protocol'"):
        read_fit_request(Record(WEIGHTS, {}), WEIGHTS)
    with pytest.raises(ProtocolError, match="lacks 'protocol'"):
        read_fit_request(Record(WEIGHTS, ["not", "an", "object"]), WEIGHTS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("delta/head.weight", np.full(3, np.nan, np.float32), "'head.weight' holds NaN"),
        ("delta/head.bias", np.full(1, np.inf, np.float32), "'head.bias' holds NaN or inf"),
        ("buffer/norm.running_mean", np.full(3, np.nan, np.float32), "'norm.running_mean' holds NaN"),
        ("delta/head.weight", np.zeros((1, 3), np.float32), "expected float32"),
        ("delta/head.weight", np.zeros(3, np.float64), "float64"),
        ("buffer/norm.num_batches_tracked", np.zeros(1, np.float32), "expected int64"),
        ("delta/extra", np.zeros(3, np.float32), "unknown tensors .'extra'"),
        ("delta/norm.running_mean", np.zeros(3, np.float32), "unknown tensors .'norm.running_mean'"),
        ("other", np.zeros(3, np.float32), "neither deltas nor buffers"),
        ("buffer/norm.running_var", np.full(3, -1, np.float32), "negative variance"),
    ],
)
def test_an_update_with_a_wrong_tensor(update: Update, name: str, array: Any, says: str) -> None:
    with pytest.raises(UpdateRefusedError, match=says):
        read(with_array(update_reply(update, HASH), name, array))


def test_an_update_that_lacks_a_tensor(update: Update) -> None:
    some = replace(update, delta=update.delta.select(lambda name: name != "head.bias"))
    with pytest.raises(UpdateRefusedError, match=r"lacks .'head.bias'"):
        read(update_reply(some, HASH))


@pytest.mark.parametrize("value", [0, -1, 2**24, 1.5, True, "10", None])
def test_num_examples_must_be_a_small_whole_number(update: Update, value: Any) -> None:
    with pytest.raises(UpdateRefusedError, match="num_examples must be a whole number"):
        read(with_value(update_reply(update, HASH), "num_examples", value))


@pytest.mark.parametrize(
    "value",
    [
        {"loss": float("nan")},
        {"loss": "low"},
        {"loss": True},
        {str(i): 1.0 for i in range(65)},
        [1.0],
        {"x" * 999: 1.0},
    ],
)
def test_metrics_of_an_update_must_be_few_finite_numbers(update: Update, value: Any) -> None:
    with pytest.raises(UpdateRefusedError, match="metric"):
        read(over_the_wire(with_value(update_reply(update, HASH), "metrics", value)))


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        (Metrics({"thing": 1.5}, {}, 3), "must be in"),
        (Metrics({"thing": float("nan")}, {}, 3), "must be in"),
        (Metrics({"elephant": 0.5}, {}, 3), "does not have: 'elephant'"),
        (Metrics({}, {}, -1), "whole numbers from 0"),
        (Metrics({}, {}, 3, {"thing": -7}), "whole numbers from 0"),
    ],
)
def test_evaluation_metrics_are_checked(metrics: Metrics, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        read_metrics(over_the_wire(metrics_reply(metrics, HASH)), WEIGHTS, TEMPLATE.names)


def test_evaluation_metrics_of_a_wrong_kind() -> None:
    wrong: list[Any] = [None, [], {"ap50": [], "ap": {}}, {"ap50": {}, "ap": {}, "num_images": 1}]
    for value in wrong:
        with pytest.raises(ProtocolError, match="metrics"):
            read_metrics(with_value(metrics_reply(Metrics({}, {}, 0), HASH), "metrics", value), WEIGHTS, ())


def test_weights_of_a_request_are_checked() -> None:
    request = fit_request(Weights({**WEIGHTS, "head.bias": np.array([np.nan])}), PLAN, HASH)
    with pytest.raises(UpdateRefusedError, match=r"the global model: tensor 'head.bias'"):
        read_fit_request(request, WEIGHTS)


HEAD = ("head.weight", "head.bias")


def controlled(arrays: dict[str, Any], update: Update) -> Update:
    return replace(update, control=Weights(arrays))


def test_control_variates_travel_both_ways(update: Update) -> None:
    control = WEIGHTS.select(HEAD.__contains__)
    request = fit_request(WEIGHTS, PLAN, HASH, control)
    weights, _, received = read_fit_request(over_the_wire(request), WEIGHTS)
    assert (weights.value_hash, received.value_hash) == (WEIGHTS.value_hash, control.value_hash)

    reply = over_the_wire(update_reply(controlled(dict(control), update), HASH))
    back = read_update(reply, WEIGHTS, TRAINED, BUFFERS, HEAD)
    assert back.control.value_hash == control.value_hash
    assert back.delta.value_hash == update.delta.value_hash


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"head.weight": np.zeros(3)}, r"lacks \['head.bias'\]"),
        ({"head.weight": np.zeros(3), "head.bias": np.zeros(1), "norm.bias": np.zeros(3)}, "unknown"),
        ({"head.weight": np.zeros(4), "head.bias": np.zeros(1)}, "expected"),
        ({"head.weight": np.zeros(3), "head.bias": np.array([np.inf])}, "NaN or infinity"),
    ],
)
def test_a_wrong_control_variate_is_refused_by_the_server(update: Update, arrays: Any, says: str) -> None:
    reply = over_the_wire(update_reply(controlled(arrays, update), HASH))
    with pytest.raises(UpdateRefusedError, match=rf"control variate.*{says}"):
        read_update(reply, WEIGHTS, TRAINED, BUFFERS, HEAD)


@pytest.mark.parametrize("array", [np.full(3, np.nan), np.zeros(4), np.zeros(3, dtype=np.int64)])
def test_a_wrong_control_variate_is_refused_by_the_node(array: Any) -> None:
    for name in ("head.weight", "tail.weight"):
        request = fit_request(WEIGHTS, PLAN, HASH, Weights({name: array}))
        with pytest.raises(UpdateRefusedError, match="control variate"):
            read_fit_request(over_the_wire(request), WEIGHTS)


def test_a_control_variate_nobody_asked_for_is_refused(update: Update) -> None:
    reply = over_the_wire(update_reply(controlled({"head.bias": np.zeros(1)}, update), HASH))
    with pytest.raises(UpdateRefusedError, match=r"unknown tensors \['head.bias'\]"):
        read_update(reply, WEIGHTS, TRAINED, BUFFERS)
