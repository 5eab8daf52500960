"""The demo: three synthetic sites that really differ, and the main job on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manyeyes.config import RunConfig, parse_config
from manyeyes.datasets.scenes import write_scenes

__all__ = ["DEMO_SITES", "demo_config", "prepare_demo"]

DEMO_SITES = {"A": "a_office", "B": "b_crossroads", "C": "c_night"}

_FULL: dict[str, Any] = {
    "images": 150,
    "train": {"imgsz": 320, "batch": 8, "epochs": 1, "lr": 0.005},
    "federation": {"rounds": 6},
}
_QUICK: dict[str, Any] = {
    "images": 36,
    "train": {"imgsz": 256, "batch": 8, "epochs": 1, "lr": 0.005},
    "federation": {"rounds": 2},
}


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
            "train": size["train"],
            "federation": size["federation"],
        }
    )


def prepare_demo(config: RunConfig, *, quick: bool = False, progress: Callable[[int, int], None] | None = None) -> None:
    """Render the demo's sites unless they are there; clear away an earlier demo that was finished.

    Args:
        config: from `demo_config`.
        quick: as there.
        progress: called with (pictures done, pictures in all).
    """
    folder = config.run_folder
    if (folder / "summary.json").exists():
        shutil.rmtree(folder)
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
