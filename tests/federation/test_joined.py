"""Who was first there when, and what is kept of the time before."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manyeyes.errors import RunError
from manyeyes.federation.checkpoint import RoundState, load_checkpoint, read_checkpoint, save_checkpoint
from manyeyes.federation.joined import Joined
from manyeyes.weights import Weights

from .linear import Log


def save(folder: Path, *rounds: int) -> None:
    for round in rounds:
        save_checkpoint(folder, RoundState(Weights({"w": np.full(2, round)}), round=round))


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "joined").glob("round-*"))


def test_the_state_before_a_node_came_outlives_the_checkpoints_after_it(tmp_path: Path) -> None:
    joined = Joined(tmp_path)
    save(tmp_path, 0)
    joined.note(["A", "B"], 0)
    save(tmp_path, 1, 2)
    joined.note(["A", "B", "D"], 2)
    joined.note(["D"], 2)
    save(tmp_path, 3, 4, 5)

    again = Joined(tmp_path)
    assert [again.round_of(node) for node in "ABDZ"] == [0, 0, 2, 0]
    assert kept(tmp_path) == ["round-0002.safetensors"]
    assert read_checkpoint(again.checkpoint(2)).round == 2
    assert again.knows("A")
    assert not again.knows("Z")
    assert again.never_there("Z")
    assert not again.never_there("B")


def test_a_run_that_goes_back_forgets_who_came_later(tmp_path: Path) -> None:
    joined = Joined(tmp_path)
    save(tmp_path, 0)
    joined.note("A", 0)
    save(tmp_path, 1, 2, 3)
    joined.note("AD", 3)
    joined.go_back(2)
    assert kept(tmp_path) == []
    (tmp_path / "round-0003.safetensors").unlink()
    joined.note("AD", 2)
    assert Joined(tmp_path).round_of("D") == 2
    assert kept(tmp_path) == ["round-0002.safetensors"]


def test_where_the_record_was_begun_late_nobody_is_said_to_have_come_late(tmp_path: Path) -> None:
    save(tmp_path, 4)
    joined = Joined(tmp_path)
    joined.note("AB", 4)
    joined.note("ABD", 5)
    again = Joined(tmp_path)
    assert [again.round_of(node) for node in "ABD"] == [0, 0, 0]
    assert not again.knows("A")
    assert not again.never_there("Z")


def test_another_run_gets_what_was_there_before_a_node(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    joined = Joined(old)
    save(old, 0)
    joined.note("A", 0)
    save(old, 1)
    joined.note("AC", 1)
    save(old, 2, 3)
    joined.note("ABC", 3)
    save(old, 4)
    joined.note("ABCD", 4)
    joined.copy_before("B", new)

    state = load_checkpoint(new, Log())
    assert state is not None
    assert state.round == 3
    copy = Joined(new)
    assert [copy.round_of(node) for node in "AC"] == [0, 1]
    assert copy.never_there("B")
    assert copy.never_there("D")
    assert kept(new) == ["round-0001.safetensors"]


def test_a_file_system_without_links_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    joined = Joined(tmp_path)
    save(tmp_path, 0)
    joined.note("A", 0)
    save(tmp_path, 1)
    joined.note("AB", 1)
    assert read_checkpoint(joined.checkpoint(1)).round == 1
    assert [path.name for path in (tmp_path / "joined").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "text", ["", "[]", '{"complete": true}', '{"complete": true, "first": {"../x": 0}}', '{"complete": 1, "first": {}}']
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined" / "joined.json").write_text(text)
    with pytest.raises(RunError, match=r"joined\.json: is damaged"):
        Joined(tmp_path)
