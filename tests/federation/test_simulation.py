"""Virtual nodes in processes: the bits of the local engine, memory that does not grow, and what becomes of failures."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from manyeyes.config import RunConfig, validate
from manyeyes.datasets.sample import Dataset
from manyeyes.errors import ConfigError, DataError, Interrupted, ProtocolError, RunError
from manyeyes.federation.client import Client
from manyeyes.federation.coordinator_config import CoordinatorConfig
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.simulation import SimulationTransport, SiteNodes, VirtualNodes
from manyeyes.federation.transport import Record, Request
from manyeyes.learners.learner import FitPlan
from manyeyes.weights import Update

from .killed import assert_children_end
from .linear import FULL, LinearLearner, Log, clients, hold, site

SITES: dict[str, Dataset] = {node: site(index) for index, node in enumerate("ABC")}


@pytest.mark.parametrize("processes", [1, 3])
def test_a_run_ends_in_the_bits_of_the_local_engine(tmp_path: Path, processes: int) -> None:
    local = hold(tmp_path / "local", transport=LocalTransport(clients(tmp_path / "x")), **FULL)
    opened = SiteNodes(SITES, LinearLearner(), tmp_path / "nodes")
    with SimulationTransport("ABC", opened, processes=processes) as transport:
        result = hold(tmp_path / "own", transport=transport, **FULL)
    assert result.weights.value_hash == local.weights.value_hash
    assert result.bytes_down == local.bytes_down


def test_a_share_of_many_virtual_nodes_is_asked_and_some_test(tmp_path: Path) -> None:
    virtual = VirtualNodes(SITES, LinearLearner(), tmp_path / "nodes", 400, 2, seed=1)
    log = Log()
    with SimulationTransport(virtual.names(), virtual, processes=2) as transport:
        hold(tmp_path, transport=transport, emit=log, rounds=3, fraction=0.05, evaluate_nodes=7)
    assert [len(e["cohort"]) for e in log.of("round_started")] == [20] * 3
    assert len(log.of("update_received")) == 60
    assert [sum(e["round"] == n for e in log.of("evaluated")) for n in (1, 2, 3)] == [7] * 3
    asked = [set(e["cohort"]) for e in log.of("round_started")]
    assert asked[0] != asked[1]


def test_asynchronous_rounds_are_held_too(tmp_path: Path) -> None:
    virtual = VirtualNodes(SITES, LinearLearner(), tmp_path / "nodes", 30, 2, seed=1)
    log = Log()
    with SimulationTransport(virtual.names(), virtual, processes=2) as transport:
        hold(tmp_path, transport=transport, emit=log, rounds=4, every=9, fraction=0.3, mode="async", buffer=3)
    assert [sum(e["round"] == n for e in log.of("update_received")) for n in (1, 2, 3, 4)] == [3] * 4


def test_memory_does_not_grow_with_the_number_of_nodes(tmp_path: Path) -> None:
    def held(count: int) -> int:
        virtual = VirtualNodes(SITES, LinearLearner(), tmp_path / f"n{count}", count, 2, seed=1)
        with SimulationTransport(virtual.names(), virtual, processes=1) as transport:
            hold(tmp_path / str(count), transport=transport, rounds=2, fraction=10 / count, every=9, evaluate_nodes=3)
            children = psutil.Process().children()
            return psutil.Process().memory_info().rss + sum(child.memory_info().rss for child in children)

    few = held(20)
    many = held(5000)
    assert many < few + 20e6


def test_a_virtual_node_holds_the_same_pictures_whenever_it_is_made(tmp_path: Path) -> None:
    def drawn(seed: int, node: str) -> list[Path]:
        virtual = VirtualNodes(SITES, LinearLearner(), tmp_path, 10, 2, seed)
        return [sample.image for sample in virtual.data(node).split("train")]

    assert drawn(1, "v00004") == drawn(1, "v00004")
    assert len(drawn(1, "v00004")) == 2
    assert len({tuple(drawn(seed, "v00002")) for seed in range(20)}) > 1
    virtual = VirtualNodes(SITES, LinearLearner(), tmp_path, 10, 99, 1)
    assert [len(virtual.data(f"v{n:05d}").split("train")) for n in range(4)] == [3, 4, 5, 3]
    for name in ("v00010", "v", "A"):
        with pytest.raises(RunError, match="no virtual node"):
            virtual.data(name)


@dataclass(frozen=True)
class Failing:
    """Nodes of which one refuses, one has a defect, and two take their process with them: always, and once."""

    folder: Path

    def __call__(self, node_id: str) -> Client:
        return Client(node_id, _Faulty(node_id, self.folder / "stumbled"), SITES["A"], self.folder / node_id)


class _Faulty(LinearLearner):
    def __init__(self, node: str, stumbled: Path) -> None:
        self.node, self.stumbled = node, stumbled

    def fit(self, weights: Any, data: Any, plan: FitPlan, *arguments: Any) -> Update:  # type: ignore[override]
        if self.node == "refuses":
            raise DataError("no pictures")
        if self.node == "breaks":
            raise ZeroDivisionError("by zero")
        if self.node == "dies":
            os._exit(9)
        if self.node == "stumbles" and not self.stumbled.exists():
            self.stumbled.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit(weights, data, plan, *arguments)


def test_what_fails_at_one_node_is_said_and_the_round_goes_on(tmp_path: Path) -> None:
    log = Log()
    nodes = ["breaks", "dies", "fine", "refuses", "stumbles"]
    with SimulationTransport(nodes, Failing(tmp_path), processes=2) as transport:
        hold(tmp_path, transport=transport, emit=log, rounds=2)
    assert {e["node"]: e["reason"] for e in log.of("update_refused")} == {
        "breaks": "ZeroDivisionError: by zero",
        "dies": "its process ended without a word, twice (exit code 9);"
        " where memory is short, lower federation.simulation.processes",
        "refuses": "no pictures",
    }
    assert sorted(e["node"] for e in log.of("update_received")) == ["fine", "fine", "stumbles", "stumbles"]


@dataclass(frozen=True)
class Heavy:
    """Nodes whose maker does not fit into a pipe, as one with a model does not; its processes need a while to read."""

    folder: Path
    seconds: float = 0.0
    ballast: bytes = bytes(12_000_000)

    def __setstate__(self, state: dict[str, Any]) -> None:
        time.sleep(state["seconds"])
        self.__dict__.update(state)

    def __call__(self, node_id: str) -> Client:
        return Client(node_id, LinearLearner(), SITES["A"], self.folder / node_id)


def workers() -> set[psutil.Process]:
    return {child for child in psutil.Process().children() if any("spawn_main" in word for word in child.cmdline())}


def to_the_next_worker(number: signal.Signals) -> threading.Thread:
    """Sends a signal to the process that is begun next, as soon as there is one."""
    before = workers()

    def send() -> None:
        while not (new := workers() - before):
            time.sleep(0.001)
        new.pop().send_signal(number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_process_that_starts_costs_nothing(
    tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    log = Log()
    with SimulationTransport("AB", Heavy(tmp_path), processes=1) as transport:
        sender = to_the_next_worker(number)
        hold(tmp_path, transport=transport, emit=log, rounds=1)
    sender.join()
    assert sorted(e["node"] for e in log.of("update_received")) == ["A", "B"]
    # Only what cannot be ignored ends a process.
    assert ("is asked again" in caplog.text) == (number == signal.SIGKILL)
    assert "Traceback" not in capfd.readouterr().err


def test_an_idle_process_that_is_killed_costs_no_update(tmp_path: Path) -> None:
    class Killer(Log):
        def __call__(self, event: str, **fields: Any) -> None:
            super().__call__(event, **fields)
            if event == "round_finished":
                for worker in workers():
                    worker.kill()

    log = Killer()
    with SimulationTransport("AB", Heavy(tmp_path), processes=2) as transport:
        hold(tmp_path, transport=transport, emit=log, rounds=2, min_nodes=2)
    assert not log.of("update_refused")
    assert len(log.of("update_received")) == 4


def test_processes_start_side_by_side_and_nobody_waits_for_them(tmp_path: Path) -> None:
    with SimulationTransport("ABCD", Heavy(tmp_path, seconds=4.0), processes=4) as transport:
        transport.send([Request(node, node, "fit", Record()) for node in "ABCD"])
        began = time.monotonic()
        assert transport.receive(0.5) == []
        assert time.monotonic() - began < 2.0
        answered: list[str] = []
        while len(answered) < 4:
            answered += [reply.node_id for reply in transport.receive(1.0)]
    assert sorted(answered) == list("ABCD")
    # One after the other they would need 16 s.
    assert time.monotonic() - began < 12.0


def test_tests_go_before_fits_that_nobody_has_begun(tmp_path: Path) -> None:
    with SimulationTransport("ABCD", Heavy(tmp_path), processes=1) as transport:
        kinds = {"A": "fit", "B": "fit", "C": "evaluate", "D": "evaluate"}
        transport.send([Request(node, node, kind, Record()) for node, kind in kinds.items()])
        answered = [reply.node_id for _ in kinds for reply in transport.receive(30.0)]
    assert answered == ["C", "D", "A", "B"]


def test_processes_at_work_end_when_their_main_process_was_killed(tmp_path: Path) -> None:
    lines = [
        "from pathlib import Path",
        "from federation.test_simulation import Sleeping",
        "from manyeyes.federation.simulation import SimulationTransport",
        "from manyeyes.federation.transport import Record, Request",
        "if __name__ == '__main__':",
        "    with SimulationTransport('A', Sleeping(Path()), processes=1) as transport:",
        "        transport.send([Request('1', 'A', 'fit', Record())])",
        "        transport.receive(None)",
    ]
    assert_children_end(tmp_path / "main.py", lines, "at work")


@dataclass(frozen=True)
class Sleeping:
    """Nodes that would sleep for a minute."""

    folder: Path

    def __call__(self, node_id: str) -> Client:
        os.write(1, b"at work\n")
        time.sleep(60)
        return Client(node_id, LinearLearner(), SITES["A"], self.folder / node_id)


def test_a_stopped_run_leaves_no_process_behind(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    polls = iter(range(100))
    with (
        pytest.raises(Interrupted),
        SimulationTransport("AB", Sleeping(tmp_path), processes=2) as transport,
    ):
        hold(tmp_path, transport=transport, stop=lambda: "SIGINT" if next(polls) > 3 else None)
    assert {child.pid for child in psutil.Process().children()} <= before


def test_requests_that_nobody_has_begun_are_taken_back_and_replaced(tmp_path: Path) -> None:
    with SimulationTransport("AB", Sleeping(tmp_path), processes=1) as transport:
        transport.send([Request("1", "A", "fit", Record()), Request("2", "B", "fit", Record())])
        assert transport.receive(0.1) == []
        assert transport.cancel(["1", "2"]) == ["2"]
        with pytest.raises(ProtocolError, match="no node 'C'"):
            transport.send([Request("3", "C", "fit", Record())])


@pytest.mark.parametrize(
    ("federation", "said"),
    [
        ({"simulation": {"nodes": 9}}, "simulation is of federation.engine simulation"),
        (
            {"engine": "simulation", "simulation": {"nodes": 9}, "personal": ["bn"]},
            "does not go with federation.personal",
        ),
        ({"engine": "simulation", "simulation": {"nodes": 9}, "min_nodes": 10}, "there are 9 virtual nodes"),
        ({"engine": "ray"}, "engine"),
    ],
)
def test_what_cannot_hold_is_refused_when_it_is_read(federation: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(RunConfig, {"name": "x", "sites": [{"node_id": "A", "data": "a"}], "federation": federation})


def test_tests_by_a_few_nodes_do_not_go_with_the_best_round() -> None:
    values = {"federation": {"keep": "best"}, "evaluate": {"nodes": 1}}
    with pytest.raises(ConfigError, match=r"evaluate\.nodes does not go with federation\.keep best"):
        validate(RunConfig, {"name": "x", "sites": [{"node_id": "A", "data": "a"}], **values})
    with pytest.raises(ConfigError, match=r"evaluate\.nodes does not go with federation\.keep best"):
        validate(CoordinatorConfig, {"name": "x", "names": ["car"], **values})


def test_views_are_not_kept_for_each_virtual_node() -> None:
    values = {
        "train": {"cache_views": 2, "freeze": 22},
        "federation": {"engine": "simulation", "simulation": {"nodes": 9}},
    }
    with pytest.raises(ConfigError, match=r"cache_views does not go with federation\.simulation\.nodes"):
        validate(RunConfig, {"name": "x", "sites": [{"node_id": "A", "data": "a"}], **values})


def test_a_coordinator_simulates_nothing() -> None:
    with pytest.raises(ConfigError, match="a coordinator's nodes are on machines of their own"):
        validate(CoordinatorConfig, {"name": "x", "names": ["car"], "federation": {"engine": "simulation"}})
