"""Datasets: read any of the known layouts into one form, check it, divide it among sites, write it.

Importing this needs numpy and Pillow only.
"""

from __future__ import annotations

from manyeyes.datasets.check import CheckReport, check_dataset, check_decodable
from manyeyes.datasets.coco import load_coco, save_coco
from manyeyes.datasets.layouts import LAYOUTS, find_layout, load_dataset, save_dataset, save_sites
from manyeyes.datasets.partition import PARTITIONS, draw_partition, partition_table, split_dataset
from manyeyes.datasets.sample import SPLITS, Dataset, Problem, ProblemHandler, Sample, raise_problem
from manyeyes.datasets.voc import load_voc, save_voc
from manyeyes.datasets.yolo import load_yolo, save_yolo

__all__ = [
    "LAYOUTS",
    "PARTITIONS",
    "SPLITS",
    "CheckReport",
    "Dataset",
    "Problem",
    "ProblemHandler",
    "Sample",
    "check_dataset",
    "check_decodable",
    "draw_partition",
    "find_layout",
    "load_coco",
    "load_dataset",
    "load_voc",
    "load_yolo",
    "partition_table",
    "raise_problem",
    "save_coco",
    "save_dataset",
    "save_sites",
    "save_voc",
    "save_yolo",
    "split_dataset",
]
