"""What a node keeps of the rounds it has trained in."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from manyeyes.federation.node_status import ROUNDS, NodeStatus


def rounds(status: NodeStatus) -> list[tuple[str, int, float | None, float | None]]:
    return [(done.run, done.round, done.before, done.after) for done in status.rounds_done]


def held(status: NodeStatus, run: str, round: int, map50: float) -> None:
    """A round as a node meets it: it trains, then tests what came out."""
    status.trained(run, round, 60.0)
    status.tested(run, round, map50)


def test_rounds_are_known_after_a_restart(tmp_path: Path) -> None:
    status = NodeStatus("A", folder=tmp_path)
    status.tested("street", 0, 0.4)
    held(status, "street", 1, 0.5)
    held(status, "street", 2, 0.45)
    again = NodeStatus("A", folder=tmp_path)
    assert rounds(again) == [("street", 1, 0.4, 0.5), ("street", 2, 0.5, 0.45)]
    held(again, "street", 3, 0.55)
    assert rounds(again)[-1] == ("street", 3, 0.45, 0.55)
    held(again, "harbour", 1, 0.3)
    assert rounds(NodeStatus("A", folder=tmp_path))[-1] == ("harbour", 1, None, 0.3)


def test_a_round_that_is_held_again_is_one(tmp_path: Path) -> None:
    status = NodeStatus("A", folder=tmp_path)
    held(status, "street", 1, 0.5)
    status.trained("street", 2, 60.0)
    held(status, "street", 2, 0.6)
    assert rounds(status) == [("street", 1, None, 0.5), ("street", 2, 0.5, 0.6)]


def test_a_damaged_file_is_named_and_the_node_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ROUNDS).write_text("[{")
    status = NodeStatus("A", folder=tmp_path)
    assert "rounds.json cannot be read, and rounds are counted anew" in caplog.text
    held(status, "street", 1, 0.5)
    assert rounds(NodeStatus("A", folder=tmp_path)) == [("street", 1, None, 0.5)]


def test_a_folder_that_cannot_be_written_costs_no_round(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "node"
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        status = NodeStatus("A", folder=folder)
        held(status, "street", 1, 0.5)
    assert "what this node has done is not kept" in caplog.text
    assert rounds(status) == [("street", 1, None, 0.5)]
