"""Pieces that every page about a run is made of: text into HTML, tables, bars, curves, and how the run was made.

Every piece is a function that returns HTML and is given plain text; `h` is the only way in for text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from manyeyes.report.plots import SERIES_DARK, SERIES_LIGHT, draw_plots
from manyeyes.report.runlog import Event
from manyeyes.report.tables import format_bytes, format_points, format_seconds

__all__ = [
    "TONES",
    "bar_line",
    "count_word",
    "curves_section",
    "h",
    "how_made_section",
    "hundredths",
    "listed",
    "points_cell",
    "points_text",
    "score_cell",
    "table_card",
    "what_left_section",
    "whole_page",
]

TONES = {True: ("good", "▲"), False: ("bad", "▼"), None: ("even", "●")}
"""Better off or not, or neither → CSS class and mark."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def h(text: object) -> str:
    """Text as HTML shows it."""
    return escape(str(text), quote=True)


def whole_page(name: str, sections: Iterable[str]) -> str:
    """The file: styles, colours of the curves, and the sections; it loads nothing."""
    css = files("manyeyes.report").joinpath("report.css").read_text(encoding="utf-8")
    light = "".join(f"--s{i}:{colour};" for i, colour in enumerate(SERIES_LIGHT))
    dark = "".join(f"--s{i}:{colour};" for i, colour in enumerate(SERIES_DARK))
    series = f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{h(name or 'Run')} · manyeyes report</title>\n<style>\n{css}{series}\n</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(sections)}\n</main>\n</body>\n</html>\n"
    )


def table_card(head: Sequence[str], body: str) -> str:
    """A table from the words of its head and the HTML of its rows."""
    cells = "".join(f"<th>{h(cell)}</th>" for cell in head)
    return f'<div class="card scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def bar_line(label: str, value: float, colour: str) -> str:
    """A label, a bar and a number; `value` from 0 to 1, `colour` as CSS has it."""
    return (
        f'<span>{h(label)}</span><div class="bar"><i style="width:{value * 100:.1f}%;--fill:{colour}"></i></div>'
        f"<b>{value * 100:.1f}</b>"
    )


def score_cell(value: float | None) -> str:
    """Average precision, from 0 to 1, in a cell."""
    return "<td>–</td>" if value is None else f"<td>{value:.3f}</td>"


def points_cell(difference: float | None) -> str:
    """A difference of average precision in a cell, coloured."""
    if difference is None:
        return "<td>–</td>"
    tone = "even" if abs(difference) < 0.0005 else "up" if difference > 0 else "down"
    return f'<td class="{tone}">{points_text(difference)}</td>'


def curves_section(events: Sequence[Event], intro: str) -> str:
    """Every curve that the events have data for."""
    plots = draw_plots(events)
    if not plots:
        return "<h2>How it went</h2><p>No round is finished yet, so there are no curves.</p>"
    figures = "".join(
        f'<figure class="card" role="img" aria-label="{h(plot.title)}"><figcaption><h3>{h(plot.title)}</h3>'
        f"<p>{h(plot.note)}</p></figcaption>{plot.svg}</figure>"
        for plot in plots
    )
    return f'<h2>How it went</h2><p>{intro}</p><div class="plots">{figures}</div>'


def what_left_section(events: Sequence[Event], total: int) -> str:
    """What each site sent while training together; `total` counts the bytes of everything that went up."""
    updates = [e for e in events if e["event"] == "update_received" and e.get("row") == "together"]
    title = "<h2>What left each site</h2>"
    if not updates:
        return f"{title}<p>No update of the row “together” has been received.</p>"
    nodes = list(dict.fromkeys(str(e["node"]) for e in updates))
    body = "".join(_left_row(node, [e for e in updates if str(e["node"]) == node]) for node in nodes)
    others = total - sum(int(e["bytes"]) for e in updates)
    rest = f" Answers with test results make up the other {format_bytes(others)}." if others > 0 else ""
    return (
        f"{title}<p>While training together. An update holds the changes of the model's weights (and with SCAFFOLD "
        "of the site's mean gradient) and the numbers named beside it. Pictures, boxes and file names are no part of "
        "any message.</p>"
        '<div class="card scroll"><table><thead><tr><th>site</th><th>updates</th><th>bytes</th><th>each</th>'
        '<th>pictures</th><th class="words">numbers sent along</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        f"<p><small>{format_bytes(total)} in all went up, counted as sent.{rest}</small></p>"
    )


def _left_row(node: str, updates: Sequence[Event]) -> str:
    size = sum(int(e["bytes"]) for e in updates)
    numbers = [
        "number of training pictures used",
        *dict.fromkeys(name for e in updates for name in e.get("metrics", {})),
    ]
    return (
        f"<tr><th>{h(node)}</th><td>{len(updates)}</td><td>{format_bytes(size)}</td>"
        f'<td>{format_bytes(size / len(updates))}</td><td>0</td><td class="words">{h(", ".join(numbers))}</td></tr>'
    )


def how_made_section(events: Sequence[Event], seconds: float, config: Path) -> str:
    """Model, machine and configuration; the configuration without the folders it names."""
    started = next((e for e in reversed(events) if e["event"] == "run_started"), {})
    machine = started.get("machine")
    facts = {
        "model": _template_facts(started.get("template")),
        "classes": ", ".join(started.get("names", ())),
        "sites": "; ".join(_site_facts(site) for site in started.get("sites", ())),
        "seed": started.get("seed"),
        "time": format_seconds(seconds),
        "manyeyes": started.get("manyeyes"),
        "torch": started.get("torch"),
        "machine": ", ".join(f"{k} {v}" for k, v in machine.items()) if isinstance(machine, dict) else machine,
    }
    listed = "".join(f"<dt>{h(key)}</dt><dd>{h(value)}</dd>" for key, value in facts.items() if value not in (None, ""))
    text = _config_text(config)
    block = f'<div class="card"><pre>{h(text)}</pre></div>' if text else "<p>config.yaml is missing in this folder.</p>"
    intro = "Everything that is needed to do it again, but for the folders of the sites."
    return f'<h2>How it was made</h2><p>{intro}</p><dl class="facts">{listed}</dl>{block}'


def _template_facts(template: Any) -> str:
    if not isinstance(template, Mapping):
        return str(template or "")
    facts = [str(template.get("architecture", ""))]
    if template.get("weights"):
        facts.append(f"starting from {Path(str(template['weights'])).name}")
    if template.get("value_hash"):
        facts.append(f"whose hash is {str(template['value_hash'])[:12]}")
    return ", ".join(fact for fact in facts if fact)


def _site_facts(site: Mapping[str, Any]) -> str:
    pictures = ", ".join(f"{count} {split}" for split, count in site.get("pictures", {}).items())
    annotates = ", ".join(site.get("annotates", ()))
    return f"{site['node_id']}: {pictures}" + (f", annotates {annotates}" if annotates else "")


def _config_text(path: Path) -> str:
    """The configuration without the folders it names: where a site keeps its pictures is nobody else's business."""
    if not path.exists():
        return ""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        return ""
    for key in ("data_root", "output", "state"):
        values.pop(key, None)
    places = [(site, "data") for site in values.get("sites", ())] + [(values.get("model", {}), "weights")]
    for section, key in places:
        if key in section:
            section[key] = Path(str(section[key])).name
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()


def hundredths(value: float) -> str:
    """Average precision as people read it: 57 of 100."""
    return f"{value * 100:.0f}"


def points_text(difference: float | None) -> str:
    """A difference of average precision in points; a dash if it is not known."""
    return "–" if difference is None else format_points(difference)


def count_word(number: int) -> str:
    """A small number as a word."""
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def listed(names: Sequence[str]) -> str:
    """Class names as a part of a sentence: "person and car"; "object" if there are too many."""
    if not names or len(names) > 4:
        return "object"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
