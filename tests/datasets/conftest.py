from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manyeyes.datasets import Dataset, Sample

Maker = Callable[..., Path]


def draw_picture(path: Path, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    """A picture of soft noise: it has contrast, and differs by seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def make_yolo(tmp_path: Path) -> Maker:
    """Write a YOLO dataset; `labels` maps "train/a" to label text, None for a picture without label file."""

    def make(
        labels: dict[str, str | None] | None = None, *, yaml: str = "names: [person, car]", folder: str = "site"
    ) -> Path:
        root = tmp_path / folder
        if labels is None:
            labels = {
                "train/a": "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.1 0.1\n",
                "train/b": "1 0.5 0.5 1 1\n",
                "val/c": "0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0.2 0.2\n",
            }
        for seed, (name, text) in enumerate(labels.items()):
            draw_picture(root / "images" / f"{name}.jpg", seed=seed)
            if text is not None:
                file = root / "labels" / f"{name}.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
        splits = dict.fromkeys(name.split("/")[0] for name in labels)
        (root / "data.yaml").write_text("".join(f"{split}: images/{split}\n" for split in splits) + yaml + "\n")
        return root

    return make


def boxes_of(dataset: Dataset) -> dict[tuple[str, str], list[tuple[str, list[float]]]]:
    """(split, picture) -> the boxes with their class names: what a user compares two datasets by."""
    return {
        (split, sample.image.stem): _named_boxes(sample, dataset.names)
        for split, samples in dataset.splits.items()
        for sample in samples
    }


def _named_boxes(sample: Sample, names: tuple[str, ...]) -> list[tuple[str, list[float]]]:
    return [(names[index], box) for index, box in zip(sample.class_id.tolist(), sample.xyxy.tolist(), strict=True)]
