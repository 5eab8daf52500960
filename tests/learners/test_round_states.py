from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from manyeyes.errors import WeightsError
from manyeyes.learners.round_states import RoundStates


def state(value: float) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {"exp_avg/w": np.full(3, value, dtype=np.float32), "step/w": np.float32(value)}


@pytest.fixture
def states(tmp_path: Path) -> RoundStates:
    kept = RoundStates(tmp_path / "node", "optimizer")
    for index in (0, 2, 5):
        kept.save(index, state(index))
    return kept


def test_a_round_goes_on_from_the_newest_state_before_it(states: RoundStates) -> None:
    assert states.before(0) is None
    for asked, found in ((1, 0), (2, 0), (3, 2), (5, 2), (6, 5), (99, 5)):
        kept = states.before(asked)
        assert kept is not None
        assert float(kept["step/w"]) == found
        np.testing.assert_array_equal(kept["exp_avg/w"], np.full(3, found, dtype=np.float32))


def test_a_round_that_is_asked_for_again_forgets_what_came_after_it(states: RoundStates) -> None:
    states.save(2, state(2.5))
    states.forget_others(2)
    assert states.rounds() == [0, 2]
    again = states.before(9)
    assert again is not None
    assert float(again["step/w"]) == 2.5


def test_no_more_is_kept_than_a_resume_may_ask_for(states: RoundStates) -> None:
    for index in range(6, 20):
        states.save(index, state(index))
        states.forget_others(index)
    assert states.rounds() == [17, 18, 19]


def test_kinds_do_not_meet(states: RoundStates, tmp_path: Path) -> None:
    personal = RoundStates(tmp_path / "node", "personal")
    assert personal.rounds() == []
    personal.save(4, state(4))
    personal.keep_only([])
    assert states.rounds() == [0, 2, 5]


def test_a_damaged_state_is_named(states: RoundStates) -> None:
    states.path(5).write_bytes(b"half a file")
    with pytest.raises(WeightsError, match="optimizer-000005"):
        states.before(6)
