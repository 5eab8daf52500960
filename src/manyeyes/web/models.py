"""What is said of a site's models: to programs, and to people at a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from manyeyes.errors import ConfigError, WeightsError
from manyeyes.registry import Registry
from manyeyes.report.tables import format_bytes
from manyeyes.web.answers import ModelAnswer

__all__ = ["chosen_to_forget", "list_values", "model_answers", "show_model", "show_models"]

_SHORT = 12


def model_answers(registry: Registry, in_use: str | None = None) -> list[ModelAnswer]:
    """All models of a site, the newest first.

    Args:
        registry: of the site.
        in_use: hash of the model that its server looks with; default: the one that the registry names.
    """
    used, in_use, night = registry.used, in_use or registry.wanted, registry.held.get("night")
    return [ModelAnswer.of(entry, used, in_use, night) for entry in registry.entries()]


def list_values(answers: Iterable[ModelAnswer], damage: Sequence[WeightsError]) -> dict[str, Any]:
    """For a program: the models, and what is damaged."""
    return {
        "models": [answer.model_dump() for answer in answers],
        "damaged": [{"file": e.file, "key": e.key, "reason": e.reason, "cure": e.cure} for e in damage],
    }


def show_models(answers: Iterable[ModelAnswer], damage: Iterable[WeightsError], console: Console) -> None:
    """A table of the models, the newest first, and what is damaged."""
    table = Table(box=None, pad_edge=False)
    for title in ("model", "state", "mAP50", "origin", "label", "made from", "size"):
        numbers, names = title in ("mAP50", "size"), title == "label"
        table.add_column(title, justify="right" if numbers else "left", overflow="fold", no_wrap=not names)
    for answer in answers:
        table.add_row(
            answer.hash[:_SHORT],
            _state(answer),
            _score(answer.map50),
            answer.origin,
            Text(answer.label),  # with brackets, if it has any
            ", ".join(parent[:_SHORT] for parent in answer.parents),
            format_bytes(answer.bytes),
        )
    if table.row_count:
        console.print(table)
    else:
        console.print("No models.")
    for error in damage:
        console.print(f"Damaged: {error}", markup=False, highlight=False, soft_wrap=True)


def show_model(answer: ModelAnswer, console: Console) -> None:
    """All that is known of one model, a line each."""
    pictures = "test pictures" if answer.split == "test" else "validation pictures"
    lines = {
        "hash": answer.hash,
        "state": _state(answer) or "never used",
        "label": answer.label,
        "origin": answer.origin,
        "run": answer.run,
        "round": answer.round,
        "mAP50": _score(answer.map50) and f"{_score(answer.map50)} on this site's {pictures} when it came",
        "mAP50-95": _score(answer.map50_95),
        "made from": ", ".join(answer.parents),
        "added": datetime.fromtimestamp(answer.added).isoformat(sep=" ", timespec="seconds"),
        "size": format_bytes(answer.bytes),
        "classes": ", ".join(answer.classes),
        "long side": f"{answer.imgsz} px",
        "precision": answer.precision,
    }
    for name, value in lines.items():
        if value not in (None, ""):
            console.print(f"{name:10} {value}", markup=False, highlight=False, soft_wrap=True)


def chosen_to_forget(
    registry: Registry, names: Sequence[str], *, days: float | None = None, keep: int | None = None
) -> list[str]:
    """Hashes of the models that are meant.

    Args:
        registry: that they lie in.
        names: hashes or beginnings of them.
        days, keep: instead of names, see `Registry.spare`.

    Raises:
        ConfigError: neither is said, or both.
        WeightsError: a name is of none or of several, or of one that must stay.
    """
    by_rule = days is not None or keep is not None
    if by_rule == bool(names):
        raise ConfigError(
            "needs either hashes or a rule", key="HASH", cure="Name models, or say --older-than or --keep."
        )
    if by_rule:
        return [entry.hash for entry in registry.spare(days=days, keep=keep)]
    return list(dict.fromkeys(registry.forgettable(name) for name in names))


def _state(answer: ModelAnswer) -> str:
    used = "in use" if answer.in_use else "used before" if answer.promoted else ""
    return ", ".join(word for word in (used, "night" if answer.night else "") if word)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
