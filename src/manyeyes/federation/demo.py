"""The demo: three synthetic sites that really differ, and the main job on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manyeyes.config import RunConfig, parse_config
from manyeyes.datasets.scenes import write_scenes
from manyeyes.errors import RunError
from manyeyes.weights import write_atomically

__all__ = ["DEMO_SITES", "demo_config", "prepare_demo"]

DEMO_SITES = {"A": "a_office", "B": "b_crossroads", "C": "c_night"}

_MARKER = "demo.json"
# Sites that differ this much would pull BatchNorm's statistics apart; the smallest, whose round is one step, would
# not be heard, and what only one of three can teach is a third of their mean: short rounds allow the server to take
# longer steps. See docs/demo.md.
_TRAIN = {
    "batch": 8,
    "epochs": 1 / 3,
    "optimizer": "adamw",
    "lr": 0.001,
    "final_lr": 0.05,
    "clip_norm": 10.0,
    "weight_decay": 0.01,
    "batchnorm": "frozen",
    "augment": {"mosaic": 0.5},
}
_FEDERATION = {"weighting": "inverse_sqrt", "strategy": {"name": "fedavg", "server_lr": 2.5}, "min_nodes": 3}
# 72 pictures, and 24 at night, make batches of 8 that are all full: every row sees every picture equally often.
_FULL: dict[str, Any] = {"images": 72, "imgsz": 256, "rounds": 120, "every": 15}
_QUICK: dict[str, Any] = {"images": 72, "imgsz": 256, "rounds": 6, "every": 3}


def demo_config(output: Path, *, quick: bool = False, seed: int = 0, name: str = "demo") -> RunConfig:
    """The demo's configuration; its sites lie in the run's folder.

    Args:
        output: folder that holds runs.
        quick: smaller pictures, fewer of them, fewer rounds.
        seed: of the run and of the scenes.
        name: of the run.
    """
    size = _QUICK if quick else _FULL
    sites = [
        {"node_id": node, "data": str((output / name / "sites" / domain).absolute())}
        for node, domain in DEMO_SITES.items()
    ]
    return parse_config(
        {
            "name": name,
            "seed": seed,
            "output": str(output),
            "sites": sites,
            "compare": ["untrained", "alone", "together", "pooled"],
            "train": {**_TRAIN, "imgsz": size["imgsz"]},
            "federation": {**_FEDERATION, "rounds": size["rounds"]},
            "evaluate": {"every": size["every"]},
        }
    )


def prepare_demo(config: RunConfig, *, quick: bool = False, progress: Callable[[int, int], None] | None = None) -> None:
    """Render the demo's sites unless an interrupted demo with the same options left them.

    Args:
        config: from `demo_config`.
        quick: as there.
        progress: called with (pictures done, pictures in all).

    Raises:
        RunError: the folder holds something that is not a demo, which is not cleared away.
    """
    folder, wanted = config.run_folder, {"seed": config.seed, "quick": quick}
    marker = folder / _MARKER
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise RunError("holds something that is not a demo", file=folder, cure="Choose another folder with --out.")
    if marker.exists() and (json.loads(marker.read_text()) != wanted or _finished(folder)):
        shutil.rmtree(folder)
    write_atomically(marker, json.dumps(wanted))
    if not (folder / "sites").exists():
        size = _QUICK if quick else _FULL
        write_scenes(
            folder / "sites",
            images=size["images"],
            imgsz=config.train.imgsz,
            seed=config.seed,
            domains=tuple(DEMO_SITES.values()),
            progress=progress,
        )


def _finished(folder: Path) -> bool:
    summary = folder / "summary.json"
    return summary.exists() and bool(json.loads(summary.read_text()).get("finished"))
