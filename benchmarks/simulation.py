"""Claims: 1,000 virtual nodes, 50 a round, on one machine: a round takes no longer than in Flower's simulation.

    python benchmarks/simulation.py --peer-python OTHER/bin/python   beside Flower, installed there (simulation_peer.py)
    python benchmarks/simulation.py                                  ours alone; nothing is kept
    python benchmarks/simulation.py --quick                          40 nodes

Both train the same small learner (a megabyte of weights) in as many processes as there are cores, with one thread each.
Seconds are those of each round but the first; memory is the most that all processes had together, what they share
counted once. A second claim is that ten times as many nodes take no more of it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import arguments, claim, save_cell, show
from simulation_peer import EXAMPLES, Memory, initial, sizes, trained

from manyeyes.config import EvaluateSection, FederationSection, TrainSection
from manyeyes.datasets import Dataset
from manyeyes.federation.client import Client
from manyeyes.federation.rounds import run_rounds
from manyeyes.federation.simulation import SimulationTransport
from manyeyes.learners.learner import Control, FitPlan, Metrics, ProgressCallback, Template, silent
from manyeyes.weights import Update, Weights

TEMPLATE = Template("layer", ("thing",), Weights({"w": initial()}))


class Layer:
    """The peer's learner, as one of ours."""

    template = TEMPLATE

    def fit(
        self,
        weights: Weights,
        data: Dataset,
        plan: FitPlan,
        progress: ProgressCallback = silent,
        state_folder: Path | None = None,
        control: Control | None = None,
    ) -> Update:
        """Twenty steps of gradient descent."""
        after = trained(weights["w"], int(plan.node_id.removeprefix("v")))
        return Update(Weights({"w": after - weights["w"]}), Weights({}), EXAMPLES)

    def evaluate(self, weights: Weights, data: Dataset, split: str, imgsz: int | None = None) -> Metrics:
        """No test."""
        return Metrics({}, {}, 0)


@dataclass(frozen=True)
class Nodes:
    """Makes a node by its name."""

    folder: Path

    def __call__(self, node_id: str) -> Client:
        """The node of that name."""
        return Client(node_id, Layer(), Dataset(self.folder, TEMPLATE.names, {}), self.folder / node_id)


def measure(nodes: int, per_round: int, rounds: int) -> dict[str, Any]:
    """As the peer's."""
    seconds: list[float] = []

    def emit(event: str, **fields: Any) -> None:
        if event == "round_finished":
            seconds.append(fields["seconds"]["total"])

    names = [f"v{number:05d}" for number in range(nodes)]
    with tempfile.TemporaryDirectory() as temporary, Memory() as memory:
        folder = Path(temporary)
        with SimulationTransport(names, Nodes(folder), processes=len(os.sched_getaffinity(0))) as transport:
            run_rounds(
                transport,
                TEMPLATE,
                train=TrainSection(),
                federation=FederationSection(rounds=rounds, fraction=per_round / nodes),
                evaluate=EvaluateSection(every=rounds + 1, nodes=1),
                seed=0,
                expected=lambda plan: (frozenset({"w"}), frozenset()),
                folder=folder / "rounds",
                emit=emit,
            )
    return {"seconds": seconds[1:], "first": seconds[0], "megabytes": memory.most}


def peer(python: str, quick: bool) -> dict[str, Any]:
    """What Flower's simulation takes."""
    script = Path(__file__).with_name("simulation_peer.py")
    command = [python, str(script), "--json", *(["--quick"] if quick else [])]
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--peer-python", help="a Python that has Flower with its simulation")
    options = parser.parse_args()
    nodes, per_round, rounds = sizes(options.quick)
    ours = measure(nodes, per_round, rounds)
    more = measure(10 * nodes, per_round, rounds)
    text = f"simulation: peak MB with {10 * nodes} nodes / with {nodes}"
    claims = [claim(text, [more["megabytes"]], [ours["megabytes"]], 1.05, "lower")]
    if options.peer_python:
        theirs = peer(options.peer_python, options.quick)
        text = f"simulation: seconds of a round, {per_round} of {nodes} nodes / in Flower's simulation"
        claims.append(claim(text, ours["seconds"], theirs["seconds"], 1.0, "lower"))
        text = "simulation: peak MB / in Flower's simulation"
        claims.append(claim(text, [ours["megabytes"]], [theirs["megabytes"]], 1.0, "lower"))
        if not options.quick:
            both = {"ours": ours, "more_nodes": more, "peer": theirs}
            save_cell("simulation", "flower", {"seed": 0, "measured": both, "samples": claims})
    elif not options.json:
        sys.stderr.write(f"{statistics.median(ours['seconds']):.2f} s a round; no peer was named\n")
    show(claims, options.json)


if __name__ == "__main__":
    main()
