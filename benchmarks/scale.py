"""Claims: a hundred nodes at one coordinator on one machine: its rounds complete, and its memory does not grow.

    python benchmarks/scale.py             10 whole nodes and 90 light ones, 10 rounds; about half an hour on two cores
    python benchmarks/scale.py --quick     2 and 6 of them, 3 rounds, not kept

A whole node is what a site runs: our node with a SuperNode of its own, over TLS through the coordinator's door. A light
one speaks the same protocol with its own key, and has no learner and no SuperNode: ninety of them are threads of one
process. All answer with a megabyte. Memory is that of the coordinator and its SuperLink, after each round.

Also measured, without a bound: how long the server takes for one update of yolov8n's size (check, sum), and a round of
1,000 such nodes in the local engine.
"""

from __future__ import annotations

import logging
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from cells import arguments, claim, save_cell, show
from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supernode.fleet_http_connection import http_request_response
from round_cost import Immediate, hold_rounds

from manyeyes.config import ModelSection, TrainSection
from manyeyes.datasets import Dataset
from manyeyes.errors import ManyeyesError
from manyeyes.federation.client import Client
from manyeyes.federation.flower import MESSAGE_TYPES, packed, unpacked
from manyeyes.federation.hello import Greeter, Work
from manyeyes.federation.keys import AUTHORITY, NODE_KEY, read_node_key
from manyeyes.federation.messages import FIT, metrics_reply, read_fit_request, read_update, update_reply
from manyeyes.federation.strategies import Merge
from manyeyes.federation.transport import Record
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan, Metrics
from manyeyes.learners.models import build_template
from manyeyes.weights import Update

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.federation.linear import site
from tests.federation.linear_deployment import WIDE_TEMPLATE, LinearDeployment, WideLearner, deployed

_GREETS_EVERY = 10.0


class LightNode:
    """Speaks for one node, without a learner or a process of its own.

    Args:
        name: what it is called.
        folder: that of the deployment, which holds its key.
        port: of the coordinator's door.
        over: says when all is over.
    """

    def __init__(self, name: str, folder: Path, port: int, over: threading.Event) -> None:
        self._name, self._over, self._port = name, over, port
        self._authority = folder / "coordinator" / AUTHORITY
        own = folder / "nodes" / name
        self._key = read_node_key(own / NODE_KEY)
        self._work = Work()
        self._greeter = Greeter(name, "localhost", port, self._authority, own, self._work)
        self._greeted = 0.0

    def run(self) -> None:
        """Take part until all is over."""
        while not self._over.is_set() and not (self._greet() and self._greeter.number is not None):
            self._over.wait(1.0)
        if not self._over.is_set():
            keys = (self._key, self._key.public_key())
            with http_request_response(f"localhost:{self._port}", False, str(self._authority), keys) as line:
                self._serve(line)

    def _greet(self) -> bool:
        if time.monotonic() - self._greeted < _GREETS_EVERY:
            return self._greeter.number is not None
        try:
            self._greeter.greet()
        except ManyeyesError:
            return False
        self._greeted = time.monotonic()
        return True

    def _serve(self, line: Any) -> None:
        _, receive, send, _, _, pull, push, confirm = line
        while not self._over.is_set():
            self._greet()
            came: tuple[Message, ObjectTree] | None = receive()
            if came is None:
                self._over.wait(0.5)
                continue
            head, tree = came
            run_id = head.metadata.run_id
            message = pull_and_inflate_object_from_tree(
                tree, partial(pull, run_id), partial(confirm, run_id), return_type=Message
            )
            message.metadata.__dict__["_message_id"] = tree.object_id
            answer = Message(packed(self._answer(message).to_bytes(), {}), reply_to=message)
            answer.metadata.__dict__["_message_id"] = answer.object_id
            objects, own_tree = get_all_nested_objects(answer), get_object_tree(answer)
            wanted, session = send(answer, own_tree, 0.0)
            push_objects(objects, partial(push, run_id, session), object_ids_to_push=wanted)

    def _answer(self, message: Message) -> Record:
        data, about = unpacked(message.content)
        self._work.request_id = str(about["request_id"])
        form = WIDE_TEMPLATE.form_hash
        if message.metadata.message_type != MESSAGE_TYPES[FIT]:
            return metrics_reply(Metrics({"thing": 0.5}, {"thing": 0.5}, 1, {"thing": 1}), form)
        weights, plan, _ = read_fit_request(Record.from_parts(data, str(about["values"])), WIDE_TEMPLATE.weights)
        return update_reply(WideLearner(0.0).fit(weights, site(0), plan), form)


def speak(names: list[str], folder: Path, port: int, over: Any) -> None:
    """The process of all light nodes."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    ended = threading.Event()
    nodes = [LightNode(name, folder, port, ended) for name in names]
    threads = [threading.Thread(target=node.run, daemon=True) for node in nodes]
    for thread in threads:
        thread.start()
    over.wait()
    ended.set()
    for thread in threads:
        thread.join()


def megabytes(deployment: LinearDeployment) -> float:
    """Of the coordinator and its SuperLink."""
    main = psutil.Process(deployment.processes["coordinator"].pid)
    return sum(process.memory_info().rss for process in [main, *main.children(recursive=True)]) / 1e6


def rounds_over_tls(whole: int, light: int, rounds: int) -> dict[str, Any]:
    """Seconds and memory after each round, and what was not merged."""
    letters = "ABCDEFGHIJ"[:whole]
    names = [f"L{number:03d}" for number in range(light)]
    context = multiprocessing.get_context("spawn")
    over = context.Event()
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as temporary, deployed(Path(temporary), letters) as deployment:
        for name in names:
            deployment.admit(name)
        deployment.start_coordinator(rounds=rounds, min_nodes=whole + light, deadline=600)
        speaker = context.Process(target=speak, args=(names, Path(temporary), deployment.port, over), daemon=True)
        deployment.wait(lambda: "listening" in deployment.said("coordinator"), "the door did not open")
        speaker.start()
        for letter in letters:
            deployment.start_node(letter)
        for number in range(1, rounds + 1):
            deployment.wait_for_round(number, 900.0)
            memory.append(megabytes(deployment))
            sys.stderr.write(f"round {number}: {memory[-1]:.0f} MB\n")
        over.set()
        code = deployment.finish(120.0)
        # Those that were about to ask find nobody, and would ask for a long time.
        speaker.kill()
        seconds = [event["seconds"] for event in deployment.of("round_finished")]
        merged = deployment.of("update_received")
        return {
            "exit_code": code,
            "seconds": seconds,
            "megabytes": memory,
            "merged": len(merged),
            "refused": len(deployment.of("update_refused")),
        }


def seconds_of(work: Callable[[], object], times: int) -> float:
    """Median of how long something takes."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def server_work(times: int) -> dict[str, float]:
    """Seconds that the server takes for one update of yolov8n: to read and check it, and to add it to the sum."""
    learner = DetectorLearner(build_template(ModelSection(), ("person", "car")))
    names, buffers = learner.expected_tensors(FitPlan(train=TrainSection(), round=0, rounds=1))
    fake = Immediate(learner.template, (names, buffers))
    update = Update(fake.delta, fake.buffers, num_examples=100)
    data = update_reply(update, learner.template.form_hash).to_bytes()
    merge = Merge(learner.template.weights)

    def read() -> Update:
        return read_update(Record.from_bytes(data), learner.template.weights, names, buffers)

    return {
        "bytes": len(data),
        "read": seconds_of(read, times),
        "merge": seconds_of(lambda: merge.add(update), times),
    }


def local_round(nodes: int) -> float:
    """Seconds of one round of so many nodes that answer at once, with updates of yolov8n."""
    learner = DetectorLearner(build_template(ModelSection(), ("person", "car")))
    fake = Immediate(learner.template, learner.expected_tensors(FitPlan(train=TrainSection(), round=0, rounds=1)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        empty = Dataset(folder, learner.template.names, {})
        names = [f"node-{number:04d}" for number in range(nodes)]
        clients = {name: Client(name, fake, empty, folder / "state") for name in names}
        return hold_rounds(clients, learner, folder / "rounds", 1, 320)


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    whole, light, rounds, local = (2, 6, 3, 20) if options.quick else (10, 90, 10, 1000)
    found = rounds_over_tls(whole, light, rounds)
    server = server_work(5 if options.quick else 50)
    seconds = local_round(local)
    count = whole + light
    memory = found["megabytes"]
    claims = [
        claim(f"scale: updates of {count} nodes merged in {rounds} rounds / asked for", [found["merged"]],
              [count * rounds], 1.0, "higher"),
        claim("scale: MB of coordinator and SuperLink after the last round / after the second", memory[-1:],
              memory[1:2], 1.1, "lower"),
    ]  # fmt: skip
    sys.stderr.write(
        f"{count} nodes: {statistics.median(s['total'] for s in found['seconds']):.1f} s a round\n"
        f"an update of {server['bytes'] / 1e6:.1f} MB: {server['read'] * 1e3:.0f} ms to read and check,"
        f" {server['merge'] * 1e3:.0f} ms to add\n"
        f"{local} nodes in the local engine: {seconds:.1f} s a round\n"
    )
    if not options.quick:
        measured = {"rounds": found, "server": server, "local": {"nodes": local, "seconds": seconds}}
        save_cell("scale", "hundred", {"seed": 1, "measured": measured, "samples": claims})
    show(claims, options.json)


if __name__ == "__main__":
    main()
