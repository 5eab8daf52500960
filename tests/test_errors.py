from __future__ import annotations

from pathlib import Path

import pytest

from manyeyes import errors
from manyeyes.errors import ConfigError, Interrupted, ManyeyesError, UpdateRefusedError, WeightsError, nearest

KINDS = [
    errors.ConfigError,
    errors.DataError,
    errors.WeightsError,
    errors.UpdateRefusedError,
    errors.ProtocolError,
    errors.LimitError,
    errors.ResourceError,
    errors.RunError,
    errors.Interrupted,
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_can_be_caught_as_one_and_says_all_four_things(kind: type[ManyeyesError]) -> None:
    error = kind("must be positive, got -1", file=Path("run.yaml"), key="train.lr", cure="Use 0.01.")
    assert isinstance(error, ManyeyesError)
    assert str(error) == "run.yaml: train.lr: must be positive, got -1. Use 0.01."


def test_a_part_that_is_not_known_leaves_no_gap() -> None:
    assert str(ConfigError("is empty")) == "is empty"
    assert str(ConfigError("is empty", key="sites")) == "sites: is empty"
    assert str(ConfigError("is empty.", cure="Fill it.")) == "is empty. Fill it."


def test_what_the_user_can_mend_exits_with_2_and_a_stop_with_130() -> None:
    assert {kind.exit_code for kind in KINDS if kind is not Interrupted} == {2}
    assert Interrupted.exit_code == 130


def test_a_refused_update_is_a_weights_error() -> None:
    assert issubclass(UpdateRefusedError, WeightsError)


def test_all_errors_are_public() -> None:
    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, ManyeyesError)
    }
    assert defined <= set(errors.__all__)


@pytest.mark.parametrize(
    ("word", "guess"), [("mosiac", "mosaic"), ("optimiser", "optimizer"), ("zebra", None), ("", None)]
)
def test_the_nearest_word_is_guessed_only_if_it_is_near(word: str, guess: str | None) -> None:
    assert nearest(word, ["mosaic", "optimizer", "lr"]) == guess
