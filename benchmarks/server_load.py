"""Claims: over HTTP the server gives nearly what its engine gives, loses no request to a new model, and does not grow.

    python benchmarks/server_load.py                    1, 8 and 64 clients, a change of the model
    python benchmarks/server_load.py --minutes 30       only memory, under so many minutes of load; may be disturbed
    python benchmarks/server_load.py --quick            a few seconds of each, not kept

The server is a process of its own; the clients are threads of another one, each with a connection that stays open,
and share the processor with it. They send 1280 × 720 JPEGs and read boxes. The peer of the throughput is the engine
alone in this process, asked with the same bytes by as many threads as it is worth, turn by turn with the server's 8
clients (the server waits meanwhile).

Needs ../shared/data/weights/yolov8n.pt and ../shared/data/streets.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import inference
from cells import Claim, arguments, claim, save_cell, show

CLIENTS = (1, 8, 64)
PATH = "/api/v1/detect"
# The server is gone, and so is perhaps whoever began this.
_MOST_LOST = 500


@dataclass
class Load:
    """What clients saw: seconds of each answer, and answers that were none."""

    seconds: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    wall: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.wall

    def percentile(self, share: float) -> float:
        """Milliseconds that this share of the answers took at most."""
        return 1000 * statistics.quantiles(self.seconds, n=1000)[round(share * 1000) - 1]


def ask(port: int, pictures: list[bytes], clients: int, seconds: float, enough: Path | None = None) -> Load:
    """Clients that each send the next picture when the last was answered, until the file `enough` is there."""
    load, ends = Load(), time.perf_counter() + seconds

    def one(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for picture in itertools.islice(itertools.cycle(pictures), number % len(pictures), None):
            began = time.perf_counter()
            if began > ends or (enough and enough.exists()):
                return
            try:
                connection.request("POST", PATH, picture, {"Content-Type": "image/jpeg"})
                answer = connection.getresponse()
                body = answer.read()
            except OSError as error:
                load.lost.append(str(error))
                connection.close()
                if len(load.lost) > _MOST_LOST:
                    return
                time.sleep(0.1)
                continue
            if answer.status == 200:
                load.seconds.append(time.perf_counter() - began)
                load.models.add(json.loads(body)["model"])
            else:
                load.lost.append(f"{answer.status}")

    began = time.perf_counter()
    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.wall = time.perf_counter() - began
    return load


def asked(port: int, pictures: list[bytes], clients: int, seconds: float, enough: Path | None = None) -> Load:
    """`ask` in a process of its own, so that what it computes is not in this one's way."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(ask, (port, pictures, clients, seconds, enough))


def engine_rate(engine: Any, pictures: list[bytes], seconds: float) -> float:
    """Pictures a second of the engine alone, decoding included, by as many threads as the server has."""
    workers = 1 + len(os.sched_getaffinity(0))
    done, ends = itertools.count(), time.perf_counter() + seconds

    def one(number: int) -> None:
        for picture in itertools.islice(itertools.cycle(pictures), number, None):
            if time.perf_counter() > ends:
                return
            engine.predict(picture)
            next(done)

    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(workers)))
    return next(done) / (time.perf_counter() - began)


@contextmanager
def served(models: list[Path], state: Path) -> Iterator[tuple[int, int]]:
    """A server in a process of its own: its port and process id. All models are in its registry, the first is used."""
    from manyeyes.registry import MODELS, Registry

    for model in models:
        Registry(state / MODELS).add(model)
    command = [sys.executable, "-m", "manyeyes.cli", "serve", str(models[0]), "--state", str(state), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines: list[str] = []
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+) ", "".join(lines))):
            line = process.stderr.readline() if process.stderr else ""
            if not line:
                raise SystemExit("".join(lines))
            lines.append(line)
        threading.Thread(target=lambda: process.stderr and process.stderr.read(), daemon=True).start()
        yield int(found[1]), process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def change_model(port: int, model: str) -> float:
    """Seconds that a change takes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    began = time.perf_counter()
    connection.request("POST", f"/api/v1/models/{model}/use")
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(answer.read().decode())
    return time.perf_counter() - began


def resident(pid: int) -> float:
    """Megabytes of main memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def throughput(port: int, engine: Any, pictures: list[bytes], turns: int, seconds: float) -> dict[str, Any]:
    """Answers a second and latencies by number of clients, and the engine alone."""
    found: dict[str, Any] = {"engine": [], **{str(clients): [] for clients in CLIENTS}}
    for turn in range(turns):
        for clients in CLIENTS:
            load = asked(port, pictures, clients, seconds)
            if load.lost:
                raise SystemExit(f"{len(load.lost)} answers of {clients} clients are missing: {load.lost[:3]}")
            row = {"rate": load.rate, **{f"p{n}": load.percentile(n / 100) for n in (50, 95, 99)}}
            found[str(clients)].append(row)
            print(f"turn {turn}, {clients} clients: {row}", file=sys.stderr)
        found["engine"].append(engine_rate(engine, pictures, seconds))
        print(f"turn {turn}, engine alone: {found['engine'][-1]:.1f}/s", file=sys.stderr)
    return found


def under_load(port: int, pictures: list[bytes], before: float, meanwhile: Callable[[], Any]) -> tuple[Load, Any]:
    """Eight clients, and what happens after so many seconds; they go on for as many after it."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        enough = Path(folder) / "enough"
        load = pool.submit(asked, port, pictures, 8, 24 * 3600.0, enough)
        try:
            time.sleep(before)
            result = meanwhile()
            time.sleep(before)
        finally:
            enough.touch()
        return load.result(), result


def memory(port: int, pid: int, pictures: list[bytes], minutes: float) -> list[float]:
    """Megabytes of the server, once a minute (or ten times in a shorter time), after a first part that warms it up."""
    pause = min(60.0, 6 * minutes)
    samples: list[float] = []

    def watch() -> None:
        ends = time.monotonic() + 60 * minutes
        while time.monotonic() < ends - pause:
            time.sleep(pause)
            samples.append(resident(pid))

    load, _ = under_load(port, pictures, 20 * minutes, watch)
    if load.lost:
        raise SystemExit(f"{len(load.lost)} answers are missing: {load.lost[:3]}")
    print(f"{len(load.seconds)} answers in {load.wall:.0f} s, megabytes: {samples}", file=sys.stderr)
    return samples


def claims_of(samples: dict[str, Any]) -> list[Claim]:
    """From what was measured."""
    if "megabytes" in samples:
        third = max(1, len(samples["megabytes"]) // 3)
        first, last = samples["megabytes"][:third], samples["megabytes"][-third:]
        return [claim("megabytes of the server, last / first third of the load", last, first, 1.03, "lower")]
    speed, swap = samples["throughput"], samples["swap"]
    claims = [
        claim(
            f"answers/s over HTTP, {clients} clients / pictures/s of the engine alone",
            [row["rate"] for row in speed[str(clients)]],
            speed["engine"],
            target,
            "higher",
        )
        for clients, target in ((8, 0.85), (64, 0.85))
    ]
    claims.append(
        claim(
            "answers while the model is changed / requests",
            [swap["answered"]],
            [swap["answered"] + swap["lost"]],
            1.0,
            "higher",
        )
    )
    return claims


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--minutes", type=float, help="of the load that memory is watched under, and nothing else")
    parser.add_argument("--seconds", type=float, default=20, help="of each turn")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.turns = 2, 1
    return options


def speed_and_swap(options: argparse.Namespace, port: int, registry: Any, models: list[Path], wide: list[bytes]) -> Any:
    """Throughput beside the engine alone, and a change of the model under load."""
    from manyeyes.runtime.engine import open_engine

    engine = open_engine(models[0], measured=registry.measured)
    engine.predict(wide[0])
    found = throughput(port, engine, wide, options.turns, options.seconds)
    other = registry.add(models[1]).hash
    load, took = under_load(port, wide, 3 + options.seconds / 4, lambda: change_model(port, other))
    if len(load.models) != 2:
        raise SystemExit("the model was not changed while the clients asked")
    swap = {"answered": len(load.seconds), "lost": len(load.lost), "seconds": took, "p99": load.percentile(0.99)}
    print(f"swap: {swap}", file=sys.stderr)
    return {"throughput": found, "swap": swap, "engine": f"{engine.backend} {engine.precision}"}


def main() -> None:
    """Measure and print."""
    from manyeyes.learners.export import export_model
    from manyeyes.learners.models import open_template
    from manyeyes.registry import MODELS, Registry

    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        template = open_template(inference.SHARED / "weights" / "yolov8n.pt")
        models = [
            export_model(template, Path(folder) / "one.onnx").path,
            export_model(template, Path(folder) / "two", format="openvino").path,
        ]
        wide, state = inference.pictures()[1], Path(folder) / "state"
        with served(models, state) as (port, pid):
            asked(port, wide, 8, 2)  # warms up
            if options.minutes:
                samples = {"megabytes": memory(port, pid, wide, options.minutes)}
            else:
                samples = speed_and_swap(options, port, Registry(state / MODELS), models, wide)
    if not options.quick:
        kept = {name: getattr(options, name) for name in ("minutes", "seconds", "turns")}
        name = f"memory-{options.minutes:g}" if options.minutes else "yolov8n-640"
        save_cell("server_load", name, {"seed": 0, "configuration": kept, "samples": samples})
    show(claims_of(samples), options.json)


if __name__ == "__main__":
    main()
