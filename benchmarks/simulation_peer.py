"""The peer of simulation.py: the same rounds of the same small learner in Flower's own simulation, which is on Ray.

    pip install 'flwr[simulation]'                       in a virtual environment of its own; manyeyes does not need it
    python benchmarks/simulation_peer.py --json          seconds of each round, and the most memory of all processes
    python benchmarks/simulation_peer.py --quick --json  40 nodes in place of 1,000

The learner is a layer of 512 × 512 weights in NumPy, which fits random targets with 20 steps of gradient descent: about
the time that a message of a megabyte is worth. `simulation.py` imports it from here.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

# One thread a node, in ours and in the peer's (Ray sets the same): nodes are what the cores are shared among.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import psutil
from numpy.typing import NDArray

SIDE, STEPS, EXAMPLES, RATE = 512, 20, 64, 0.01
NODES, PER_ROUND, ROUNDS = 1000, 50, 8
QUICK_NODES, QUICK_PER_ROUND, QUICK_ROUNDS = 40, 8, 3


def initial() -> NDArray[np.float32]:
    """The weights that all rounds begin with, (512, 512)."""
    return np.zeros((SIDE, SIDE), dtype=np.float32)


def trained(weights: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """What a node makes of them; its data are drawn from its number."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(EXAMPLES, SIDE)).astype(np.float32)
    y = rng.normal(size=(EXAMPLES, SIDE)).astype(np.float32)
    after = weights.copy()
    for _ in range(STEPS):
        after -= RATE / EXAMPLES * x.T @ (x @ after - y)
    return after


class Memory:
    """Most megabytes that this process and its children had together; a context manager.

    What processes share (libraries, Ray's object store) counts once: proportional set sizes are added.
    """

    def __init__(self) -> None:
        self.most = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self.most = max(self.most, _megabytes())


def _megabytes() -> float:
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue  # it has ended meanwhile
    return total / 1e6


def sizes(quick: bool) -> tuple[int, int, int]:
    """(nodes, nodes a round, rounds)."""
    return (QUICK_NODES, QUICK_PER_ROUND, QUICK_ROUNDS) if quick else (NODES, PER_ROUND, ROUNDS)


def client_app() -> Any:
    """A ClientApp that trains the learner."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (weights,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        after = trained(weights, int(context.node_config["partition-id"]))
        content = RecordDict()
        content["arrays"], content["metrics"] = ArrayRecord([after]), MetricRecord({"num-examples": EXAMPLES})
        return Message(content=content, reply_to=message)

    return app


def server_app(per_round: int, nodes: int, rounds: int, told: Callable[[float], None]) -> Any:
    """A ServerApp that holds the rounds, and tells when each begins and the last has ended."""
    from flwr.app import ArrayRecord, Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg

    class Timed(FedAvg):
        def configure_train(self, *arguments: Any, **more: Any) -> Any:
            told(time.monotonic())
            return super().configure_train(*arguments, **more)

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = Timed(
            fraction_train=per_round / nodes,
            fraction_evaluate=0.0,
            min_train_nodes=per_round,
            min_available_nodes=nodes,
        )
        strategy.start(grid=grid, initial_arrays=ArrayRecord([initial()]), num_rounds=rounds)
        told(time.monotonic())

    return app


def measure(quick: bool) -> dict[str, Any]:
    """Seconds of each round but the first, whose time is set-up, and the most megabytes."""
    from flwr.simulation import run_simulation

    nodes, per_round, rounds = sizes(quick)
    times: list[float] = []
    cores = len(os.sched_getaffinity(0))
    with Memory() as memory:
        run_simulation(
            server_app=server_app(per_round, nodes, rounds, times.append),
            client_app=client_app(),
            num_supernodes=nodes,
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": cores}},
        )
    return {"seconds": np.diff(times)[1:].tolist(), "first": times[1] - times[0], "megabytes": memory.most}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 nodes, which proves nothing")
    parser.add_argument("--json", action="store_true", help="print JSON, as the last line")
    options = parser.parse_args()
    found = measure(options.quick)
    print(json.dumps(found) if options.json else found)


if __name__ == "__main__":
    main()
