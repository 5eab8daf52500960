"""Exported models and their speeds, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.table import Table

from manyeyes.runtime.bench import Speed

__all__ = ["show_exported", "show_speeds"]


class Described(Protocol):
    """Says in lines what it is."""

    def lines(self) -> Sequence[str]:
        """One after the other."""


def show_exported(exported: Described, console: Console) -> None:
    """Where an exported model is, and how it compares with PyTorch."""
    for line in exported.lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def show_speeds(speeds: Sequence[Speed], console: Console) -> None:
    """A table, the fastest first."""
    height, width = speeds[0].size
    table = Table(title=f"Milliseconds a picture, one after the other; first picture {width} × {height} px")
    for title in ("backend", "precision"):
        table.add_column(title)
    for title in ("network alone", "bytes to boxes", "95 % within", "pictures/s"):
        table.add_column(title, justify="right")
    for speed in speeds:
        numbers = (speed.network_ms, speed.end_to_end_ms, speed.p95_ms, speed.pictures_per_second)
        table.add_row(speed.backend, speed.precision, *(f"{number:.1f}" for number in numbers))
    console.print(table)
