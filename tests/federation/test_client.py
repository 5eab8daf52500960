"""The node's side: what it refuses, and what stays with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from manyeyes.config import TrainSection
from manyeyes.errors import ConfigError, ProtocolError, WeightsError
from manyeyes.federation.client import Client, expand_personal
from manyeyes.federation.messages import EvaluatePlan, evaluate_request, fit_request, read_metrics, read_update
from manyeyes.federation.transport import Record, Request
from manyeyes.learners.learner import FitPlan
from manyeyes.weights import Update, Weights, add, load_weights

from .linear import BUFFERS, TEMPLATE, TRAINED, LinearLearner, site

WEIGHTS = TEMPLATE.weights
NORM = frozenset(name for name in WEIGHTS if name.startswith("norm."))


def plan(round: int = 0, personal: tuple[str, ...] = ("bn",), node_id: str = "A") -> FitPlan:
    return FitPlan(train=TrainSection(steps=3, lr=0.05), round=round, rounds=9, personal=personal, node_id=node_id)


def ask(client: Client, wanted: FitPlan, weights: Weights = WEIGHTS, control: Weights | None = None) -> Record:
    return client.handle(Request("1", "A", "fit", fit_request(weights, wanted, TEMPLATE.form_hash, control)))


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client("A", LinearLearner(), site(0), tmp_path)


def test_the_word_bn_and_patterns() -> None:
    assert expand_personal(["bn"], WEIGHTS) == NORM
    assert expand_personal(["head.*"], WEIGHTS) == {"head.weight", "head.bias"}
    assert expand_personal(["bn", "*.bias"], WEIGHTS) == NORM | {"head.bias"}
    assert expand_personal([], WEIGHTS) == frozenset()
    with pytest.raises(ConfigError, match=r"federation.personal: 'Head\.\*' matches no tensor"):
        expand_personal(["Head.*"], WEIGHTS)


def test_without_personal_tensors_everything_trained_is_sent_and_nothing_is_kept(client: Client) -> None:
    update = read_update(ask(client, plan(personal=())), WEIGHTS, TRAINED, BUFFERS)

    assert update.delta.keys() == TRAINED
    assert update.num_examples == 3
    assert update.metrics.keys() == {"seconds", "loss"}
    assert not list(client.state_folder.iterdir())


def test_personal_tensors_stay_and_come_back(client: Client) -> None:
    sent = read_update(ask(client, plan(0)), WEIGHTS, TRAINED - NORM, frozenset())
    whole: Update = LinearLearner().fit(WEIGHTS, site(0), plan(0))
    assert sent.delta.keys() == {"head.weight", "head.bias"}

    own = client.own_weights(WEIGHTS, ("bn",), 1)
    np.testing.assert_array_equal(own["norm.weight"], WEIGHTS["norm.weight"] + whole.delta["norm.weight"])
    np.testing.assert_array_equal(own["norm.running_var"], whole.buffers["norm.running_var"])
    np.testing.assert_array_equal(own["head.weight"], WEIGHTS["head.weight"])

    record = evaluate_request(WEIGHTS, EvaluatePlan(round=1, personal=("bn",)), TEMPLATE.form_hash)
    metrics = read_metrics(client.handle(Request("2", "A", "evaluate", record)), WEIGHTS, TEMPLATE.names)
    assert metrics == LinearLearner().evaluate(own, site(0), "val")


def test_a_repeated_round_starts_from_what_was_before_it(client: Client) -> None:
    for round in range(4):
        ask(client, plan(round))
    first = client.own_weights(WEIGHTS, ("bn",), 4).value_hash
    before = client.own_weights(WEIGHTS, ("bn",), 3).value_hash
    ask(client, plan(3))

    assert client.own_weights(WEIGHTS, ("bn",), 4).value_hash == first
    assert client.own_weights(WEIGHTS, ("bn",), 3).value_hash == before
    assert client.own_weights(WEIGHTS, ("bn",), 0).value_hash == WEIGHTS.value_hash
    assert len(list(client.state_folder.iterdir())) == 3


def test_going_back_forgets_what_came_after(client: Client) -> None:
    for round in range(4):
        ask(client, plan(round))
    ask(client, plan(0))
    assert [path.name for path in client.state_folder.iterdir()] == ["personal-000000.safetensors"]


def test_a_damaged_state_is_named(client: Client) -> None:
    ask(client, plan(0))
    (client.state_folder / "personal-000000.safetensors").write_bytes(b"\0" * 30)
    with pytest.raises(WeightsError, match=r"personal-000000\.safetensors: not a readable"):
        ask(client, plan(1))


def test_requests_that_are_refused(client: Client) -> None:
    record = fit_request(WEIGHTS, plan(), TEMPLATE.form_hash)
    with pytest.raises(ProtocolError, match="for node 'B' reached node 'A'"):
        client.handle(Request("1", "B", "fit", record))
    with pytest.raises(ProtocolError, match="plan for node 'B'"):
        ask(client, plan(node_id="B"))
    with pytest.raises(ProtocolError, match="got 'shell'"):
        client.handle(Request("1", "A", "shell", record))
    with pytest.raises(ProtocolError, match="of form"):
        client.handle(Request("1", "A", "fit", fit_request(WEIGHTS, plan(), "0" * 64)))


@pytest.mark.parametrize("mix", [1.0, 0.25])
def test_what_a_node_learns_for_itself_stays_there(client: Client, mix: float) -> None:
    ask(client, plan(0))
    asked = plan(3).model_copy(update={"finetune": True, "kept": 1, "mix": mix})
    sent = read_update(ask(client, asked), WEIGHTS, (), ())
    assert not sent.delta
    assert not sent.buffers
    assert sent.num_examples == 3

    start = client.own_weights(WEIGHTS, ("bn",), 1)
    update = LinearLearner().fit(start, site(0), asked)
    own = add(start, {name: mix * delta for name, delta in update.delta.items()}).replace(update.buffers)
    assert client.finetuned().value_hash == own.value_hash
    assert client.own_weights(WEIGHTS, ("bn",), 3).value_hash == start.value_hash

    test = evaluate_request(WEIGHTS, EvaluatePlan(round=1, finetuned=True), TEMPLATE.form_hash)
    metrics = read_metrics(client.handle(Request("2", "A", "evaluate", test)), WEIGHTS, TEMPLATE.names)
    assert metrics == LinearLearner().evaluate(own, site(0), "val")


def test_a_node_without_a_model_of_its_own_says_so(client: Client) -> None:
    test = evaluate_request(WEIGHTS, EvaluatePlan(finetuned=True), TEMPLATE.form_hash)
    with pytest.raises(WeightsError, match=r"finetuned\.safetensors"):
        client.handle(Request("2", "A", "evaluate", test))


HEAD = WEIGHTS.select(lambda name: name.startswith("head."))


def controlled(client: Client, round: int, last_merged: int, control: Weights = HEAD) -> Update:
    """A round of SCAFFOLD with the normalisation kept at the node."""
    wanted = plan(round).model_copy(update={"last_merged": last_merged})
    return read_update(ask(client, wanted, control=control), WEIGHTS, HEAD.keys(), (), HEAD.keys())


def states(client: Client) -> list[str]:
    return sorted(path.name for path in client.state_folder.glob("control-*"))


def test_a_control_variate_follows_the_rounds_that_the_server_counts(client: Client) -> None:
    first = controlled(client, 0, -1)
    # The server had no use for rounds 1 to 3: the node begins each of them where round 0 ended.
    for round in (1, 2, 3):
        controlled(client, round, 0)
    assert states(client) == ["control-000000.safetensors", "control-000003.safetensors"]

    own = load_weights(client.state_folder / "control-000000.safetensors")[0]
    assert own.value_hash == first.control.value_hash
    last = load_weights(client.state_folder / "control-000003.safetensors")[0]
    again = controlled(client, 3, 0)
    assert add(own, again.control).value_hash == last.value_hash


def test_control_variates_for_both_of_the_servers_checkpoints_are_kept(client: Client) -> None:
    for round in range(5):
        controlled(client, round, round - 1)
    assert states(client) == [f"control-{round:06d}.safetensors" for round in (2, 3, 4)]
    fourth = load_weights(client.state_folder / "control-000004.safetensors")[0]
    controlled(client, 3, 2)
    controlled(client, 4, 3)
    assert load_weights(client.state_folder / "control-000004.safetensors")[0].value_hash == fourth.value_hash


def test_a_lost_control_variate_is_named(client: Client) -> None:
    with pytest.raises(WeightsError, match=r"control-000007\.safetensors"):
        controlled(client, 8, 7)


def test_a_control_variate_of_other_tensors_is_refused(client: Client) -> None:
    for wrong in (WEIGHTS.select(lambda name: name == "head.bias"), WEIGHTS):
        with pytest.raises(ProtocolError, match="not of the tensors that are trained and shared"):
            controlled(client, 0, -1, wrong)
    assert not states(client)
    controlled(client, 0, -1)
    with pytest.raises(WeightsError, match=r"control-000000.*not of the tensors"):
        controlled(client, 1, 0, WEIGHTS)


def test_personal_tensors_of_the_kept_round_are_not_thrown_away(client: Client) -> None:
    for round in range(3):
        ask(client, plan(round))
    kept = client.own_weights(WEIGHTS, ("bn",), 2).value_hash
    for round in range(3, 8):
        ask(client, plan(round).model_copy(update={"kept": 2}))
    assert client.own_weights(WEIGHTS, ("bn",), 2).value_hash == kept
    assert len(list(client.state_folder.iterdir())) == 4
