"""Train the base checkpoint that ships in the package: from scratch, on generic scenes that are none of the sites.

    python scripts/train_base.py --work logs/base

It renders the scenes, trains a yolov8n for persons and cars, tests it on scenes it has not seen, writes the weights as
float16 beside the learner and prints their SHA-256. About half an hour on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from manyeyes.config import AugmentSection, ModelSection, TrainSection
from manyeyes.datasets import load_dataset
from manyeyes.datasets.scenes import CLASSES, write_scenes
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan, Progress
from manyeyes.learners.models import BASE_WEIGHTS, build_template
from manyeyes.weights import add, write_atomically

TRAIN = TrainSection(
    epochs=15,
    batch=16,
    imgsz=320,
    optimizer="adamw",
    lr=0.002,
    final_lr=0.01,
    weight_decay=0.01,
    warmup_epochs=1,
    ema=0.998,
    close_mosaic=0.15,
    augment=AugmentSection(scale=0.6),
)


def show(progress: Progress) -> None:
    """One line an epoch."""
    if progress.epoch_done:
        losses = " ".join(f"{name} {value:.2f}" for name, value in progress.losses.items())
        print(
            f"epoch {progress.epoch}/{progress.epochs}  {losses}  {progress.images_per_second:.1f} images/s  "
            f"{progress.seconds_left / 60:.0f} min left",
            flush=True,
        )


def main() -> None:
    """Render, train, test, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for the rendered scenes")
    parser.add_argument("--images", type=int, default=1400)
    parser.add_argument("--seed", type=int, default=20261)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "src/manyeyes/learners" / BASE_WEIGHTS)
    arguments = parser.parse_args()

    scenes = arguments.work / "scenes"
    if not scenes.exists():
        write_scenes(scenes, images=arguments.images, imgsz=320, seed=arguments.seed, domains=("generic",))
    data = load_dataset(scenes / "generic")
    template = build_template(
        ModelSection(name="yolov8n", weights="scratch"), CLASSES, seed=arguments.seed, imgsz=TRAIN.imgsz
    )
    learner = DetectorLearner(template)
    plan = FitPlan(train=TRAIN, round=0, rounds=1, seed=arguments.seed, node_id="base")
    update = learner.fit(template.weights, data, plan, show)
    weights = add(template.weights, update.delta).replace(update.buffers)
    metrics = learner.evaluate(weights, data, "val", TRAIN.imgsz)
    print("generic scenes it has not seen:", json.dumps(metrics.to_dict(), indent=2))

    halves = {name: a.astype(np.float16) if a.dtype == np.float32 else a for name, a in weights.items()}
    content = save(halves, template.metadata)
    write_atomically(arguments.out, content)
    print(f"{len(content) / 1e6:.2f} MB, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
