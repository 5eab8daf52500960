"""Claims: a site trains faster in our loop than in Ultralytics' own trainer, on the same pictures and the same cores.

    python benchmarks/training_speed.py                        320 and 640 px; whole net, head only, head from views
    python benchmarks/training_speed.py --what head            one of these; --imgsz 320 one size
    python benchmarks/training_speed.py --precision fp32       what is left where bfloat16 is no faster
    python benchmarks/training_speed.py --quick                three steps each, not kept

Both train YOLOv8n from scratch with mosaic, scale, translation, HSV and flip, an optimiser step for each batch, and
the same number of threads. Of Ultralytics' trainer all that only tests, saves or plots is switched off, pictures are
kept in memory, and it is given the threads it would not take by itself. The clock runs from one optimiser step to
another, the first steps excluded. Turns alternate, each in a process of its own. Besides pictures a second, which
another program on the same cores disturbs, processor seconds a picture are counted, which with one thread it disturbs
less, and peak memory.

"views" is the head alone from two cached views of each of 64 pictures (train.cache_views=2): our clock starts when they
are all on the disk, in the third epoch. What the first two cost is stated beside it, as "cold": a plan of E epochs has
two of them, and E - 2 at the pace that is claimed.

Needs the circuit boards beside the checkout (../shared/data/pcb), or --data with any dataset.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import Claim, arguments, claim, save_cell, show

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "pcb"
FREEZE = {"whole": 0, "head": 22, "views": 22}
# The head alone without views is shown beside the two that are claimed.
TARGET = {"whole": 1.8, "head": 1.8, "views": 3.0}
VIEWS = 2
PICTURES_WITH_VIEWS = 64
Turn = dict[str, float]


class EnoughError(Exception):
    """The steps to be timed are done."""


class Clock:
    """Wall and processor time at each optimiser step of this process, whoever's loop makes it."""

    def __init__(self, first: int, steps: int) -> None:
        self._first, self._steps = first, steps
        self._marks: list[tuple[float, float]] = []
        self.limit: int | None = first + steps
        self.cold: float | None = None

    def __call__(self, *_: Any) -> None:
        """A step is done."""
        self._marks.append((time.perf_counter(), time.process_time()))
        if len(self._marks) == self.limit:
            raise EnoughError

    def postpone(self) -> float:
        """Count from here on; returns the seconds of wall time between the first and the last step before."""
        seconds = self._marks[-1][0] - self._marks[0][0]
        self._marks.clear()
        return seconds

    def turn(self, batch: int) -> Turn:
        """Pictures a second, processor seconds a picture and peak megabytes of the process."""
        (wall, cpu), (wall_end, cpu_end) = self._marks[self._first - 1], self._marks[-1]
        pictures = batch * self._steps
        cold = {} if self.cold is None else {"cold_images_per_second": self.cold}
        return {
            "images_per_second": pictures / (wall_end - wall),
            "cpu_seconds_per_image": (cpu_end - cpu) / pictures,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
            **cold,
        }


def time_ours(options: argparse.Namespace, clock: Clock) -> None:
    """Train with `DetectorLearner.fit` until the clock has seen enough."""
    from manyeyes.config import ModelSection, TrainSection
    from manyeyes.datasets import load_dataset
    from manyeyes.learners.detector import DetectorLearner
    from manyeyes.learners.learner import FitPlan
    from manyeyes.learners.models import build_template

    data = load_dataset(options.data)
    learner = DetectorLearner(build_template(ModelSection(weights="scratch"), data.names))
    views = VIEWS if options.what == "views" else 0
    section = TrainSection(
        imgsz=options.imgsz,
        batch=options.batch,
        freeze=FREEZE[options.what],
        steps=options.first + options.steps,
        precision=options.precision,
        threads=options.threads,
        device="cpu",
        close_mosaic=0.0,
        cache_views=views,
    )
    with tempfile.TemporaryDirectory() as state:
        if views:
            fill_views(learner, data, section, clock, Path(state))
        plan = FitPlan(train=section, round=0, rounds=1)
        learner.fit(learner.template.weights, data, plan, state_folder=Path(state))


def fill_views(learner: Any, data: Any, section: Any, clock: Clock, state: Path) -> None:
    """Train until every view is on the disk; then the clock starts."""
    from manyeyes.learners.learner import FitPlan

    pictures = len(data.split("train"))
    steps = -(-pictures // section.batch) * VIEWS
    filling = section.model_copy(update={"steps": steps})
    clock.limit = None
    learner.fit(learner.template.weights, data, FitPlan(train=filling, round=0, rounds=1), state_folder=state)
    clock.limit = section.steps
    clock.cold = (pictures * VIEWS - section.batch) / clock.postpone()


def time_peer(options: argparse.Namespace, clock: Clock) -> None:
    """Train with Ultralytics' trainer until the clock has seen enough.

    Its trainer takes no worker processes on a CPU, whatever `workers` says. `nbs` equal to the batch makes it step
    after each batch as we do.
    """
    import torch
    from ultralytics import YOLO

    model = YOLO("yolov8n.yaml")
    model.add_callback("on_train_start", lambda _: torch.set_num_threads(options.threads))
    model.train(
        data=str(options.data / "data.yaml"),
        imgsz=options.imgsz,
        batch=options.batch,
        nbs=options.batch,
        freeze=FREEZE[options.what] or None,
        epochs=100,
        close_mosaic=0,
        optimizer="SGD",
        lr0=0.005,
        device="cpu",
        amp=False,
        deterministic=False,
        cache="ram",
        val=False,
        save=False,
        plots=False,
        verbose=False,
        project=str(options.data / "runs"),
    )


def take_turn(options: argparse.Namespace) -> None:
    """One side's turn in this process; prints its figures."""
    clock = Clock(options.first, options.steps)
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(clock)
    try:
        {"ours": time_ours, "peer": time_peer}[options.turn](options, clock)
    except EnoughError:
        print(json.dumps(clock.turn(options.batch)))


def start_turn(side: str, options: argparse.Namespace, what: str, imgsz: int, data: Path) -> Turn:
    """One side's turn in a new process with a home of its own."""
    command = [sys.executable, __file__, "--turn", side, "--data", str(data), "--what", what, "--imgsz", str(imgsz)]
    for name in ("batch", "threads", "first", "steps", "precision"):
        command += [f"--{name}", str(getattr(options, name))]
    settings = {
        "YOLO_CONFIG_DIR": str(data.parent),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "OMP_NUM_THREADS": str(options.threads),
    }
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the turn of {side} failed:\n{done.stderr}")
    turn: Turn = json.loads(done.stdout.splitlines()[-1])
    return turn


def measure(options: argparse.Namespace, what: str, imgsz: int, data: Path) -> dict[str, list[Turn]]:
    """Alternating turns of both sides; the side that begins alternates too."""
    turns: dict[str, list[Turn]] = {"ours": [], "peer": []}
    for number in range(options.turns):
        for side in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
            turns[side].append(start_turn(side, options, what, imgsz, data))
            figures = " ".join(f"{name} {value:.3f}" for name, value in turns[side][-1].items())
            print(f"{what} {imgsz} px, turn {number + 1}, {side}: {figures}", file=sys.stderr)
    return turns


def claims_of(options: argparse.Namespace, what: str, imgsz: int, turns: dict[str, list[Turn]]) -> list[Claim]:
    """Speed, processor time and memory against the peer; in fp32 no more is claimed than to be no slower."""

    def samples(side: str, name: str) -> list[float]:
        return [turn[name] for turn in turns[side]]

    precision = "" if options.precision == "auto" else f", {options.precision}"
    where = f"training, {what}, {imgsz} px, {options.threads} thread{'s'[: options.threads > 1]}{precision}"
    target = 1.0 if options.precision == "fp32" else TARGET[what]
    return [
        claim(f"{where}: {text}", samples("ours", name), samples("peer", name), limit, better)
        for text, name, limit, better in (
            ("images/s", "images_per_second", target, "higher"),
            ("processor seconds an image", "cpu_seconds_per_image", 1 / target, "lower"),
            ("peak MB", "peak_mb", 1.0, "lower"),
        )
    ]


def copy_of(data: Path, folder: Path, pictures: int | None = None) -> Path:
    """The training pictures and labels, or the first of them, where the peer may write its caches.

    It insists on a val split.
    """
    target = folder / "data"
    for kind in ("images", "labels"):
        (target / kind / "train").mkdir(parents=True)
        for path in sorted((data / kind / "train").iterdir())[:pictures]:
            shutil.copyfile(path, target / kind / "train" / path.name)
    names = [line for line in (data / "data.yaml").read_text().splitlines() if not line.startswith(("val:", "test:"))]
    (target / "data.yaml").write_text("\n".join([*names, "val: images/train", f"path: {target}"]) + "\n")
    return target


def parse(arguments_given: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--what", choices=sorted(FREEZE), help="default: all")
    parser.add_argument("--imgsz", type=int, choices=(128, 320, 640), help="default: 320 and 640")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of our side")
    parser.add_argument("--turns", type=int, default=5, help="of each side")
    parser.add_argument("--first", type=int, default=4, help="optimiser steps before the clock starts")
    parser.add_argument("--steps", type=int, default=16, help="optimiser steps on the clock")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--note", default="", help="kept with the cells: what else ran on the machine")
    parser.add_argument("--turn", choices=("ours", "peer"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments_given)


def main() -> None:
    """Measure and print."""
    options = parse()
    if options.turn:
        take_turn(options)
        return
    if options.quick:
        options.turns, options.first, options.steps = 1, 1, 2
    parts = [options.what] if options.what else sorted(FREEZE, reverse=True)
    sizes = [options.imgsz] if options.imgsz else [128] if options.quick else [320, 640]
    claims: list[Claim] = []
    with tempfile.TemporaryDirectory() as temporary:
        for what in parts:
            pictures = PICTURES_WITH_VIEWS if what == "views" else None
            data = copy_of(options.data, Path(temporary) / what, pictures)
            for imgsz in sizes:
                turns = measure(options, what, imgsz, data)
                found = claims_of(options, what, imgsz, turns)
                claims += found
                if not options.quick:
                    cell = f"{what}-{imgsz}-{options.precision}-{options.threads}"
                    cold = [
                        turn["cold_images_per_second"] for turn in turns["ours"] if "cold_images_per_second" in turn
                    ]
                    kept = {
                        name: getattr(options, name) for name in ("batch", "threads", "first", "steps", "precision")
                    }
                    note = {"note": options.note} if options.note else {}
                    values = {"seed": 0, "configuration": kept, "samples": found, **note}
                    save_cell("training_speed", cell, values | ({"cold_images_per_second": cold} if cold else {}))
    show(claims, options.json)


if __name__ == "__main__":
    main()
