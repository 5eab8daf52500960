"""Rounds for which nodes are gone are held again; a transport whose nodes come and go, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.federation.linear import TEMPLATE, LinearLearner, Log, clients, expected, hold

from manyeyes.errors import AbsentNodesError, Interrupted, RunError
from manyeyes.federation.coordinator_config import CoordinatorConfig
from manyeyes.federation.hold import _ATTEMPTS, _hold_rounds
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.rounds import never
from manyeyes.federation.transport import Reply, Request
from manyeyes.signals import Stop


class Leaving(LocalTransport):
    """Nodes that go away, each for a while, with what they were asked.

    Args:
        absences: number of the request that a node loses → how often it is then not there when somebody looks.
    """

    def __init__(self, folder: Path, absences: dict[int, int], learners: dict[str, Any] | None = None) -> None:
        super().__init__(clients(folder / "nodes", learners))
        self.absences, self.asked, self.away = absences, 0, 0
        self.lost: list[Reply] = []

    def nodes(self) -> Sequence[str]:
        self.away = max(0, self.away - 1)
        return [node for node in super().nodes() if node != "B" or not self.away]

    def send(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.asked += request.node_id == "B"
            if request.node_id == "B" and self.asked in self.absences:
                self.away = self.absences.pop(self.asked)
                self.lost.append(Reply(request.request_id, "B", None, error="is not online any more", absent=True))
            else:
                super().send([request])

    def receive(self, timeout: float | None) -> list[Reply]:
        lost, self.lost = self.lost, []
        return lost or super().receive(timeout)


def held(folder: Path, transport: LocalTransport, log: Log, *, stop: Stop = never, **federation: Any) -> str:
    config = CoordinatorConfig.model_validate(
        {
            "name": "run",
            "names": ["thing"],
            "seed": 1,
            "output": folder,
            "train": {"lr": 0.05, "steps": 4},
            "test_start": False,
            "federation": {"rounds": 3, "min_nodes": 3, **federation},
        }
    )
    result = _hold_rounds(config, TEMPLATE, expected, transport, log, stop, False)
    return result.weights.value_hash


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manyeyes.federation.hold._REST_SECONDS", 0.0)


def test_a_round_for_which_a_node_was_gone_is_held_again_with_the_same_result(tmp_path: Path) -> None:
    log = Log()
    ours = held(tmp_path, Leaving(tmp_path, {1: 5, 4: 30}), log)
    assert ours == hold(tmp_path / "undisturbed").weights.value_hash
    assert len(log.of("round_started")) == 5
    assert [event["round"] for event in log.of("round_finished")] == [1, 2, 3]
    warnings = [event["reason"] for event in log.of("warning")]
    assert len(warnings) == 2
    assert warnings[0].startswith("round 1 got 2 good updates and needs at least 3: B: is not online any more;")
    assert warnings[0].endswith("it is held again when enough nodes are there")


def test_where_the_others_are_enough_nobody_waits(tmp_path: Path) -> None:
    log = Log()
    held(tmp_path, Leaving(tmp_path, {1: 3}), log, min_nodes=2)
    assert len(log.of("round_started")) == 3
    assert not log.of("warning")


def test_a_node_that_never_answers_ends_the_run_after_some_attempts(tmp_path: Path) -> None:
    log = Log()
    with pytest.raises(AbsentNodesError, match=r"round 1 got 2 good updates.* Mend these nodes and resume"):
        held(tmp_path, Leaving(tmp_path, dict.fromkeys(range(1, 100), 1)), log)
    assert len(log.of("round_started")) == _ATTEMPTS


def test_a_node_that_refuses_ends_the_run_at_once(tmp_path: Path) -> None:
    class Refusing(LinearLearner):
        def fit(self, *_: Any, **__: Any) -> Any:
            raise RunError("no pictures")

    log = Log()
    with pytest.raises(RunError, match="B: no pictures") as caught:
        held(tmp_path, Leaving(tmp_path, {}, {"B": Refusing()}), log)
    assert not isinstance(caught.value, AbsentNodesError)
    assert len(log.of("round_started")) == 1


def test_waiting_for_a_node_that_stays_away_can_be_stopped(tmp_path: Path) -> None:
    log, asked = Log(), 0

    def stop() -> str | None:
        nonlocal asked
        asked += bool(log.of("warning"))
        return "Ctrl-C" if asked > 3 else None

    with pytest.raises(Interrupted, match=r"Ctrl-C\. Finished rounds are kept; go on with --resume"):
        held(tmp_path, Leaving(tmp_path, {3: 10_000}), log, stop=stop)
    assert [event["round"] for event in log.of("round_finished")] == [1]
