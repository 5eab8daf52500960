"""Claims: one plain CPU keeps up with several cameras; with too many it leaves frames out, and nothing grows.

    python benchmarks/streams.py                 YOLOv8n from COCO at 640 px in int8, all cores
    python benchmarks/streams.py --model PATH    an exported model; making the one in int8 takes a minute
    python benchmarks/streams.py --quick         two counts, not quantised, not kept

Cameras send 1920 × 1080 pixels five times a second, each at its own moment (seeded). They share one engine through
`manyeyes.runtime.streams`, which looks at the newest frame of each in turn. A count of cameras is kept up with if fewer
than one frame in a hundred is left out and the mean time from a frame's arrival to its result stays under a limit.

    decoded             frames lie decoded in memory: what the engine and its sharing cost.
    one by one          the same, and the engine looks at one picture after the other, as a lock around it would.
    MJPEG               the cameras serve JPEGs over HTTP on this machine, which OpenCV reads and decodes on its cores.

Needs ../shared/data/weights/yolov8n.pt and ../shared/data/streets.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from cells import Claim, arguments, claim, save_cell, show
from inference import SHARED, export_all
from numpy.typing import NDArray

from manyeyes.runtime.engine import Engine
from manyeyes.runtime.model_file import file_hash
from manyeyes.runtime.openvino_network import OpenVinoNetwork, precisions_here
from manyeyes.runtime.sources import Capture, open_capture
from manyeyes.runtime.streams import StreamResult, Streams
from manyeyes.runtime.vision import decode

SIZE = (1080, 1920)
RATE = 5.0
LIMITS = (80, 110)
LEFT_OUT = 0.01
COUNTS = {
    "decoded": (1, 4, 8, 10, 11, 12, 13, 24),
    "one by one": (8, 9, 10, 11, 12),
    "MJPEG": (4, 6, 7, 8, 9, 16),
}
Row = dict[str, Any]


class Decoded:
    """A camera whose frames lie in memory.

    Args:
        pictures: that it sends again and again.
        phase: seconds after which it sends the first.
    """

    def __init__(self, pictures: Sequence[NDArray[np.uint8]], phase: float) -> None:
        self._pictures, self._number, self._next = pictures, 0, time.monotonic() + phase

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        """Always."""
        return True

    def read(self) -> tuple[bool, NDArray[np.uint8]]:
        """At its moment."""
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next += 1 / RATE
        self._number += 1
        return True, self._pictures[self._number % len(self._pictures)]

    def release(self) -> None:
        """There is nothing to let go."""


class Handler(BaseHTTPRequestHandler):
    """A camera that serves JPEGs."""

    pictures: Sequence[bytes] = ()

    def do_GET(self) -> None:
        """Send five a second until nobody listens; the path is the phase in seconds."""
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        due, number = time.monotonic() + float(self.path.strip("/")), 0
        try:
            while True:
                data = self.pictures[number % len(self.pictures)]
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
                self.wfile.write(f"Content-Length: {len(data)}\r\n\r\n".encode() + data + b"\r\n")
                due, number = due + 1 / RATE, number + 1
                time.sleep(max(0.0, due - time.monotonic()))
        except OSError:
            return

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def cameras(pictures: Sequence[bytes]) -> Iterator[str]:
    """The address of a server of cameras."""
    Handler.pictures = pictures
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def frames() -> list[NDArray[np.uint8]]:
    """Street pictures of 1920 × 1080 pixels."""
    files = sorted((SHARED / "streets" / "b_day" / "images" / "test").iterdir())[:8]
    read = [decode(file.read_bytes()).picture for file in files]
    return [np.asarray(cv2.resize(picture, SIZE[::-1]), dtype=np.uint8) for picture in read]


def engines(model: Path, threads: int) -> dict[str, Engine]:
    """By what is measured; all of the same file and precision, warm."""

    def opened(lanes: int) -> Engine:
        network = OpenVinoNetwork(model, precision=precisions_here()[-1], threads=threads)
        network.lanes = min(lanes, network.lanes)
        engine = Engine(network, file_hash(model))
        engine.warm_up(SIZE)
        return engine

    several, one = opened(threads), opened(1)
    return {"decoded": several, "one by one": one, "MJPEG": several}


def measure(way: str, count: int, engine: Engine, pictures: Sequence[NDArray[np.uint8]], seconds: float) -> Row:
    """So many cameras for so long, after a second that does not count."""
    phases = np.random.default_rng(count).uniform(0, 1 / RATE, count)
    results: list[tuple[float, float]] = []

    def keep(result: StreamResult) -> None:
        results.append((time.monotonic(), result.latency))

    with cameras([cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures]) as address:

        def opener(source: str) -> Capture:
            if way == "MJPEG":
                return open_capture(f"{address}/{phases[int(source)]}")
            return Decoded(pictures, phases[int(source)])

        with Streams(lambda: engine, most=count, on_result=keep, opener=opener) as streams:
            for number in range(count):
                streams.add(f"camera {number}", str(number))
            # A camera over HTTP is opened in a second or two, and all of them at once on the same cores.
            while not all(status.looked_at for status in streams.status()):
                time.sleep(0.05)
            time.sleep(1.0)
            began, skipped, memory = time.monotonic(), skips(streams), psutil.Process().memory_info().rss
            time.sleep(seconds)
            ended, skipped = time.monotonic(), skips(streams) - skipped
            memory = psutil.Process().memory_info().rss - memory
            fewest, most = (choose(status.looked_at for status in streams.status()) for choose in (min, max))
    latencies = [1000 * latency for when, latency in results if began <= when <= ended]
    halves = [[1000 * t for when, t in results if a <= (when - began) / (ended - began) < a + 0.5] for a in (0, 0.5)]
    return {
        "way": way,
        "streams": count,
        "mean_ms": statistics.mean(latencies),
        "p95_ms": float(np.quantile(latencies, 0.95)),
        "most_ms": max(latencies),
        "halves_ms": [statistics.mean(half) for half in halves],
        "looked_at_per_second": len(latencies) / (ended - began),
        "left_out": skipped / (skipped + len(latencies)),
        "fewest_and_most_looked_at": [fewest, most],
        "grown_mb": memory / 1e6,
    }


def skips(streams: Streams) -> int:
    """Frames left out so far."""
    return sum(status.skipped for status in streams.status())


def kept_up_with(rows: Sequence[Row], way: str, limit: float) -> int:
    """The largest measured count of cameras under a limit in milliseconds, all smaller ones included."""
    best = 0
    for row in sorted((row for row in rows if row["way"] == way), key=lambda row: int(row["streams"])):
        if row["mean_ms"] >= limit or row["left_out"] >= LEFT_OUT:
            break
        best = row["streams"]
    return best


def claims_of(rows: Sequence[Row]) -> list[Claim]:
    """How many are kept up with, and what more than that do."""
    claims = [
        claim(
            f"1080p cameras at 5 frames/s with a mean latency under {limit} ms: side by side / one by one",
            [kept_up_with(rows, "decoded", limit)],
            [kept_up_with(rows, "one by one", limit)],
            1.0,
            "higher",
        )
        for limit in LIMITS
    ]
    row = max((row for row in rows if row["way"] == "decoded"), key=lambda row: int(row["streams"]))
    first, second = row["halves_ms"]
    few, many = row["fewest_and_most_looked_at"]
    about = f"{row['streams']} cameras, {row['left_out']:.0%} of the frames left out"
    claims.append(claim(f"{about}: mean latency, second half / first half", [second], [first], 1.2, "lower"))
    claims.append(claim(f"{about}: memory grown in MB / a frame", [max(0.0, row["grown_mb"])], [6.2], 8.0, "lower"))
    claims.append(claim(f"{about}: frames looked at, fewest of a camera / most", [few], [many], 0.8, "higher"))
    return claims


def arguments_of() -> argparse.Namespace:
    """The options."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", type=Path, help="an exported model; default: YOLOv8n in int8, made here")
    parser.add_argument("--seconds", type=float, default=3.0, help="to measure each count of cameras")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = arguments_of()
    seconds = 1.0 if options.quick else options.seconds
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or list(export_all(Path(folder), options.quick).values())[-1]
        by_way, pictures = engines(model, options.threads), frames()
        rows = []
        for way, counts in COUNTS.items():
            for count in (counts[1], counts[-1]) if options.quick else counts:
                rows.append(measure(way, count, by_way[way], pictures, seconds))
                print(f"{way}, {count} cameras: {rows[-1]['mean_ms']:.0f} ms", file=sys.stderr)
    claims = claims_of(rows)
    if not options.json:
        print(f"{'':12}cameras   mean ms    p95 ms  looked at/s  left out")
        for row in rows:
            print(
                f"{row['way']:12}{row['streams']:7}{row['mean_ms']:10.1f}{row['p95_ms']:10.1f}"
                f"{row['looked_at_per_second']:13.1f}{row['left_out']:10.1%}"
            )
    if not options.quick:
        note = f"One run of {seconds:g} seconds for each count; cameras of a count begin at moments drawn once."
        about = {"seed": 0, "note": note, "threads": options.threads, "precision": by_way["decoded"].precision}
        save_cell("streams", f"yolov8n-640-{options.threads}", {**about, "rows": rows, "samples": claims})
    show(claims, options.json)


if __name__ == "__main__":
    main()
