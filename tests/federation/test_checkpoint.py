"""Checkpoints: whole or not there, two of them, and never mixed with other settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manyeyes.errors import ResourceError, RunError
from manyeyes.federation.checkpoint import Best, RoundState, Totals, load_checkpoint, save_checkpoint
from manyeyes.weights import Weights, load_weights

from .linear import Log, hold


def state(round: int) -> RoundState:
    return RoundState(
        Weights({"w": np.full(3, round), "n": np.array([round])}),
        {"first/w": np.full(3, 0.5, dtype=np.float32), "steps": np.array([round])},
        round,
        Totals(10, 20, 1.5),
        {"train": {"lr": 0.1}, "seed": 3},
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(3))
    loaded = load_checkpoint(tmp_path, Log())

    assert loaded is not None
    assert loaded.weights.value_hash == state(3).weights.value_hash
    assert Weights(loaded.strategy).value_hash == Weights(state(3).strategy).value_hash
    assert (loaded.round, loaded.totals, loaded.settings) == (3, Totals(10, 20, 1.5), state(3).settings)


@pytest.mark.parametrize("round", [3, 1])
def test_the_best_weights_come_back_whether_they_are_this_rounds_or_not(tmp_path: Path, round: int) -> None:
    best = Best(state(round).weights, round, 0.1 + 0.2)
    path = save_checkpoint(tmp_path, replace(state(3), best=best, last_merged={"A": 2, "B": 0}))
    loaded = load_checkpoint(tmp_path, Log())

    assert loaded is not None
    assert loaded.best is not None
    assert (loaded.best.round, loaded.best.score) == (round, 0.1 + 0.2)
    assert loaded.best.weights.value_hash == state(round).weights.value_hash
    assert loaded.weights.value_hash == state(3).weights.value_hash
    assert loaded.last_merged == {"A": 2, "B": 0}
    assert any(name.startswith("best/") for name in load_weights(path)[0]) == (round != 3)


def test_the_last_two_are_kept_and_fragments_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".round-0001.safetensors.x7").write_bytes(b"half of it")
    for round in (0, 1, 2, 9999, 10000):
        save_checkpoint(tmp_path, state(round))
    assert names(tmp_path) == ["round-10000.safetensors", "round-9999.safetensors"]
    loaded = load_checkpoint(tmp_path, Log())
    assert loaded is not None
    assert loaded.round == 10000


def test_nothing_there(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "missing", Log()) is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_newest_one_is_passed_over_aloud(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, state(1))
    newest = save_checkpoint(tmp_path, state(2))
    content = newest.read_bytes()
    flipped = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    newest.write_bytes({"cut": content[:-5], "flip": flipped, "empty": b""}[damage])

    log = Log()
    loaded = load_checkpoint(tmp_path, log)
    assert loaded is not None
    assert loaded.round == 1
    assert "round-0002.safetensors" in log.of("warning")[0]["reason"]

    save_checkpoint(tmp_path, state(2))
    assert names(tmp_path) == ["round-0001.safetensors", "round-0002.safetensors"]


def test_none_can_be_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1)).write_bytes(b"")
    with pytest.raises(RunError, match="no checkpoint can be read"):
        load_checkpoint(tmp_path, Log())


def test_a_run_falls_back_one_round_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rounds": 4, "strategy": "fedavgm", "personal": ["bn"]}
    unbroken = hold(tmp_path, **settings)
    (tmp_path / "checkpoints" / "round-0004.safetensors").write_bytes(b"\0")
    log = Log()
    resumed = hold(tmp_path, resume=True, emit=log, **settings)

    assert log.of("row_started")[0]["resumed_from"] == 3
    assert resumed.weights.value_hash == unbroken.weights.value_hash


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    hold(tmp_path, rounds=2)
    with pytest.raises(RunError, match=r"federation\.rounds was 2 and is 3.*federation\.strategy\.name was fedavg"):
        hold(tmp_path, rounds=3, strategy="fedadam", resume=True)
    with pytest.raises(RunError, match=r"other settings: seed was 1 and is 2\."):
        hold(tmp_path, rounds=2, seed=2, resume=True)
    with pytest.raises(RunError, match=r"train\.momentum was 0\.9 and is 0\.5"):
        hold(tmp_path, rounds=2, train={"momentum": 0.5}, resume=True)


def test_settings_that_change_no_bit_may_change(tmp_path: Path) -> None:
    hold(tmp_path, rounds=2)
    hold(tmp_path, rounds=2, train={"threads": 1, "device": "cpu"}, every=2, deadline=60, resume=True)


def test_another_run_is_not_overwritten(tmp_path: Path) -> None:
    hold(tmp_path, rounds=2)
    with pytest.raises(RunError, match="holds a run that finished 2 rounds"):
        hold(tmp_path, rounds=2)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot be written"):
        save_checkpoint(tmp_path / "file", state(1))
