"""Advice as people read it: tables for a terminal, and a configuration file with the reasons as comments."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from manyeyes.config import dump_config
from manyeyes.errors import ConfigError
from manyeyes.federation.advise import Advice, Choice, SiteFacts
from manyeyes.report.tables import format_bytes, format_seconds
from manyeyes.weights import write_atomically

__all__ = ["annotated_config", "refuse_existing", "render_advice", "render_plan", "write_config"]

_WIDTH = 110
# Load a core from which on other work visibly slows what is measured.
_BUSY = 0.5


def render_advice(advice: Advice, console: Console) -> None:
    """Show everything: the sites, their classes, the plan, what it costs, and what to mend first."""
    _show(
        console,
        "What the sites have",
        _sites_table(advice),
        "train, val, test: pictures to learn from, to watch progress on, to judge by. Usual object: the side of a "
        "square as large as it, in pixels of its picture. Brightness: 0 black, 255 white.",
    )
    _show(
        console,
        "Objects to learn from",
        _classes_table(advice),
        "–: the site does not mark this class, so its pictures teach nothing about it.",
    )
    render_plan(advice, console)
    for warning in advice.warnings:
        console.print(f"[yellow]![/yellow] {escape(warning)}", highlight=False)


def render_plan(advice: Advice, console: Console) -> None:
    """Show the plan and what it costs."""
    _show(console, "The plan", _plan_table(advice.choices))
    estimate = advice.estimate
    rows = ", ".join(advice.config.compare)
    _show(
        console,
        "What it asks of each site, on a machine as fast as this one",
        _cost_table(advice),
        f"On this machine the sites train one after the other: the model trained together takes about "
        f"{_about(estimate.seconds_together)}, the whole run ({rows}) about {_about(estimate.seconds)}. "
        f"Measured just now on {advice.speed.machine}{_while_busy(advice.speed.load)}.",
    )


def _show(console: Console, title: str, table: Table, note: str = "") -> None:
    console.print(f"[bold]{title}[/bold]", highlight=False)
    console.print(table)
    if note:
        console.print(f"{note}\n", highlight=False, markup=False)


def _table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(escape(column), justify="right" if column in numbers else "left", overflow="fold")
    return table


def _sites_table(advice: Advice) -> Table:
    numbers = ("train", "val", "test", "longer side", "usual object", "brightness", "hours")
    table = _table("site", *numbers, numbers=numbers)
    for site in advice.situation.sites:
        table.add_row(
            escape(site.site),
            *(f"{site.pictures.get(split, 0):,}" for split in ("train", "val", "test")),
            f"{site.long_side:.0f} px",
            f"{site.object_side * site.long_side:.0f} px" if site.object_side else "–",
            f"{site.brightness:.0f}",
            f"{site.hours:g}" if site.hours else "any",
        )
    return table


def _classes_table(advice: Advice) -> Table:
    situation = advice.situation
    names = [site.site for site in situation.sites]
    table = _table("class", *names, "all", "starting weights", numbers=[*names, "all"])
    for name in situation.classes:
        counts = [_count(site, name) for site in situation.sites]
        total = sum(site.objects.get(name, 0) for site in situation.sites)
        table.add_row(
            escape(name), *counts, f"{total:,}", "know it" if name in situation.known else "have never seen it"
        )
    return table


def _count(site: SiteFacts, name: str) -> str:
    return f"{site.objects[name]:,}" if name in site.objects else "–"


def _plan_table(choices: Sequence[Choice]) -> Table:
    table = _table("setting", "value", "why")
    for choice in choices:
        table.add_row(choice.key, escape(_shown(choice.value)), escape(choice.reason))
    return table


def _shown(value: object) -> str:
    """A value in one line.

    >>> _shown({"name": "fedavg", "server_lr": 1.5}), _shown(0.5)
    ('name: fedavg, server_lr: 1.5', '0.5')
    """
    if isinstance(value, BaseModel):
        value = value.model_dump()
    return ", ".join(f"{key}: {part}" for key, part in value.items()) if isinstance(value, Mapping) else str(value)


def _cost_table(advice: Advice) -> Table:
    columns = ["together", *(["alone"] if "alone" in advice.config.compare else []), "sends", "receives"]
    table = _table("site", *columns, numbers=columns)
    for site in advice.estimate.sites:
        alone = [_about(site.seconds_alone)] if "alone" in columns else []
        traffic = (format_bytes(site.bytes_up), format_bytes(site.bytes_down))
        table.add_row(escape(site.site), _about(site.seconds_together), *alone, *traffic)
    return table


def _while_busy(load: float) -> str:
    if load < _BUSY:
        return ""
    return f", which was busy with other work (load {load:.1f} a core): without it, it will take less"


def _about(seconds: float) -> str:
    """An estimate is not good for seconds once it is longer than some minutes.

    >>> _about(12.3), _about(754), _about(7500)
    ('12 s', '13 min', '2 h 05 min')
    """
    return f"{seconds / 60:.0f} min" if 120 <= seconds < 3600 else format_seconds(seconds)


# -- as a configuration file ------------------------------------------------------------------------------------------


def refuse_existing(path: Path) -> None:
    """Refuse to write over a file.

    Raises:
        ConfigError: the file exists.
    """
    if path.exists():
        raise ConfigError("exists, and nothing is overwritten", file=path, cure="Give --write another name.")


def write_config(advice: Advice, path: Path) -> None:
    """Write the plan as a complete configuration with its reasons.

    Raises:
        ConfigError: the file exists.
        ResourceError: it cannot be written.
    """
    refuse_existing(path)
    write_atomically(path, annotated_config(advice))


def annotated_config(advice: Advice) -> str:
    """The configuration with every default written out, the reason of each choice as a comment above it."""
    reasons = {choice.key: choice.reason for choice in advice.choices if not choice.stated}
    values: dict[str, Any] = yaml.safe_load(dump_config(advice.config))
    lines = [
        *_comment(
            f"Made by `manyeyes advise`: {_about(advice.estimate.seconds)} in all on the machine it was made on "
            f"({advice.speed.machine})."
        )
    ]
    for section, content in values.items():
        if section not in ("train", "federation", "evaluate"):
            lines += _dumped({section: content})
            continue
        lines.append(f"{section}:")
        for key, value in content.items():
            if reason := reasons.get(f"{section}.{key}"):
                lines += _comment(reason, indent="  ")
            lines += [f"  {line}" for line in _dumped({key: value})]
    return "\n".join(lines) + "\n"


def _dumped(values: dict[str, Any]) -> list[str]:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).splitlines()


def _comment(text: str, indent: str = "") -> Iterator[str]:
    return (f"{indent}# {line}" for line in textwrap.wrap(text, _WIDTH))
