"""The page about a coordinator's run: what its nodes told, and nothing that would need their pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from manyeyes.report.nodes import NodesSummary, NodeSummary, summarise_nodes
from manyeyes.report.page import (
    TONES,
    bar_line,
    count_word,
    curves_section,
    h,
    how_made_section,
    hundredths,
    listed,
    points_cell,
    points_text,
    score_cell,
    table_card,
    what_left_section,
    whole_page,
)
from manyeyes.report.runlog import Event, without_redone
from manyeyes.report.tables import CLASSES_IN_MAIN_TABLE, format_bytes, format_seconds
from manyeyes.weights import write_atomically

__all__ = ["write_nodes_report"]

_FEW_PICTURES = 100
_REFUSALS_SHOWN = 10


def write_nodes_report(raw: Sequence[Event], run_folder: Path) -> Path:
    """Write ``report.html`` of a coordinator's run, as far as it came; returns its path.

    Args:
        raw: all events of the run, as `read_runlog` gives them.
        run_folder: where the page is written; config.yaml in it is shown.

    Raises:
        ResourceError: matplotlib is missing, or the page cannot be written.
    """
    events, summary = without_redone(raw), summarise_nodes(raw)
    sections = [
        _banner(raw, summary),
        _head(raw, summary),
        _verdicts(summary),
        _table_section(summary),
        _taking_part_section(summary),
        curves_section(events, "Average precision is measured by each site on its own validation pictures."),
        what_left_section(events, summary.bytes_up),
        _notes(summary),
        how_made_section(events, summary.seconds, run_folder / "config.yaml"),
    ]
    path = run_folder / "report.html"
    write_atomically(path, whole_page(summary.name, sections).encode())
    return path


def _banner(raw: Sequence[Event], summary: NodesSummary) -> str:
    if summary.finished:
        return ""
    written = time.strftime("%d %B %Y, %H:%M", time.localtime(raw[-1]["time"])).lstrip("0") if raw else ""
    done = f"{summary.rounds_done} of {summary.rounds or '?'} rounds are finished"
    text = f"This run has not come to its end: {done}. The page shows it as it was on {written}."
    return f'<div class="banner" role="note"><p>{h(text)}</p></div>'


# -- what happened, in words -------------------------------------------------------------------------------------------


def _head(raw: Sequence[Event], summary: NodesSummary) -> str:
    began = next((e["time"] for e in raw if e["event"] == "run_started"), None)
    day = time.strftime("%d %B %Y", time.localtime(began)).lstrip("0") if began else ""
    eyebrow = " · ".join(part for part in ("manyeyes", summary.name, day) if part)
    return (
        f'<header><p class="eyebrow">{h(eyebrow)}</p><h1>{h(_headline(summary))}</h1>'
        f'<p class="lede">{h(_lede(summary))}</p></header>{_key_figures(summary)}'
    )


def _headline(summary: NodesSummary) -> str:
    tested = [node for node in summary.nodes if node.now]
    if not tested or summary.map50 is None:
        return "No site has tested the common model yet."
    who, reach = ("one site", "reaches") if len(tested) == 1 else (f"{count_word(len(tested))} sites", "reach")
    score = f"Together {who} {reach} {hundredths(summary.map50)} of 100 points"
    if summary.gain is None or any(node.gain is None for node in tested):
        return f"{score}."
    if abs(summary.gain) < 0.0005:
        return f"{score}, as many as with the weights they began with."
    word = "more" if summary.gain > 0 else "fewer"
    return f"{score}, {abs(summary.gain) * 100:.1f} {word} than with the weights they began with."


def _lede(summary: NodesSummary) -> str:
    sentences = []
    known = [node for node in summary.nodes if node.gain is not None]
    better = [node for node in known if node.better_off is True]
    worse = [node for node in known if node.better_off is False]
    if better and len(known) > 1:
        most = max(better, key=lambda node: node.gain or 0.0)
        sentences.append(f"Site {most.node} gains most: {abs(most.gain or 0) * 100:.1f} points.")
    sentences += [f"Site {node.node} loses {abs(node.gain or 0) * 100:.1f} points." for node in worse]
    if len(summary.nodes) == len(better) > 1:
        sentences.append("Every site gains.")
    tested = [node for node in summary.nodes if node.now]
    if summary.gain is not None and len(known) < len(tested):
        who = "The one that tested" if len(known) == 1 else f"The {count_word(len(known))} that tested"
        sentences.append(f"{who} the weights the run began with: {points_text(summary.gain)} points on average.")
    if summary.map50 is not None:
        sentences.append(
            "The score is mAP50, which each site measures on its own validation pictures; each counts once. It rewards "
            f"finding and naming every {listed(summary.names)} and punishes false alarms; 100 would be perfect."
        )
    return " ".join(sentences)


def _key_figures(summary: NodesSummary) -> str:
    sent = summary.bytes_up / max(len(summary.nodes), 1)
    finished = [seconds for _, seconds in sorted(summary.round_seconds.items())]
    figures = [
        (hundredths(summary.map50) if summary.map50 is not None else "–", "of 100 (mAP50), mean over the sites"),
        (points_text(summary.gain), "points against the weights it began with, mean over the sites that tested them"),
        (str(summary.rounds_done), f"of {summary.rounds or '?'} rounds are finished"),
        (format_seconds(sum(finished) / len(finished)) if finished else "–", "for a round on average"),
        (format_bytes(sent) if summary.bytes_up else "–", "left each site on average; no picture did"),
    ]
    cards = "".join(f'<div class="card"><dd>{h(value)}</dd><dt>{h(label)}</dt></div>' for value, label in figures)
    return f'<dl class="figures">{cards}</dl>'


# -- who gains ---------------------------------------------------------------------------------------------------------


def _verdicts(summary: NodesSummary) -> str:
    if not summary.nodes:
        return ""
    intro = (
        "Measured by each site on its own validation pictures, against the weights the run began with. Whether a site "
        "would do as well alone is not known here: that takes a model of its own, trained for as long."
    )
    if any(node.finetuned for node in summary.nodes):
        intro += (
            " “Finetuned” is the common model after the site went on with its own pictures; it is kept at the site."
        )
    cards = "".join(_verdict(node) for node in summary.nodes)
    return f'<h2>What does each site gain?</h2><p>{h(intro)}</p><div class="verdicts">{cards}</div>'


def _verdict(node: NodeSummary) -> str:
    tone, mark = TONES[node.better_off]
    bars = "".join(
        bar_line(label, metrics.map50, colour)
        for label, metrics, colour in (
            ("at the start", node.start, "var(--muted)"),
            ("together", node.now, "var(--s0)"),
            ("finetuned", node.finetuned, "var(--s0)"),
        )
        if metrics is not None
    )
    pictures = "no validation pictures told" if node.val_pictures is None else f"{node.val_pictures} pictures"
    return (
        f'<article class="card verdict {tone}"><h3>Site {h(node.node)} <small>{h(pictures)}</small></h3>'
        f'<p class="says"><span class="mark" aria-hidden="true">{mark}</span>{h(node.verdict)}</p>'
        f'<div class="bars">{bars}</div></article>'
    )


def _table_section(summary: NodesSummary) -> str:
    tested = [node for node in summary.nodes if node.now]
    if not tested:
        return ""
    classes = summary.names if len(summary.names) <= CLASSES_IN_MAIN_TABLE else ()
    head = ["site", *(f"{name} AP50" for name in classes), "mAP50", "mAP50-95", "at the start", "gain"]
    body = "".join(_table_row(node, classes) for node in tested)
    of_class = "" if classes else _class_table(summary, tested)
    kept = ""
    if summary.kept is not None:
        why = ", the best on these pictures" if summary.best else ""
        kept = f"<p><small>{h(f'The weights that were kept are those of round {summary.kept}{why}.')}</small></p>"
    return (
        "<h2>The common model at each site</h2>"
        "<p>AP50 is the score for one kind of object, and stands only where a site has such objects; mAP50 is their "
        "mean; mAP50-95 also asks how tightly the boxes fit.</p>"
        f"{table_card(head, body)}{of_class}{kept}"
    )


def _table_row(node: NodeSummary, classes: Sequence[str]) -> str:
    now = node.now
    values = [now.ap50.get(name) if now else None for name in classes]
    values += [now.map50, now.map50_95] if now else [None, None]
    values.append(node.start.map50 if node.start else None)
    return f"<tr><th>{h(node.node)}</th>{''.join(map(score_cell, values))}{points_cell(node.gain)}</tr>"


def _class_table(summary: NodesSummary, tested: Sequence[NodeSummary]) -> str:
    body = ""
    for name in summary.names:
        values = [node.now.ap50.get(name) if node.now else None for node in tested]
        body += f"<tr><th>{h(name)}</th>{''.join(map(score_cell, values))}</tr>"
    return table_card(["AP50", *(node.node for node in tested)], body)


# -- who took part -----------------------------------------------------------------------------------------------------


def _taking_part_section(summary: NodesSummary) -> str:
    if not summary.nodes:
        return "<h2>Who took part</h2><p>No node has been asked yet.</p>"
    head = ["site", "training pictures", "asked", "merged", "not merged", "an update took", "up", "down"]
    body = "".join(_part_row(node) for node in summary.nodes)
    return (
        "<h2>Who took part</h2><p>An update takes from the request to its arrival at the coordinator. Bytes are "
        f"counted as sent, requests and answers of both kinds, over finished rounds.</p>{table_card(head, body)}"
        f"{_refusals(summary)}"
    )


def _part_row(node: NodeSummary) -> str:
    took = list(node.seconds.values())
    cells = (
        "–" if node.pictures is None else f"{node.pictures:,}",
        len(node.asked),
        len(node.merged),
        len(node.refused),
        format_seconds(sum(took) / len(took)) if took else "–",
        "–" if node.bytes_up is None else format_bytes(node.bytes_up),
        "–" if node.bytes_down is None else format_bytes(node.bytes_down),
    )
    return f"<tr><th>{h(node.node)}</th>{''.join(f'<td>{h(cell)}</td>' for cell in cells)}</tr>"


def _refusals(summary: NodesSummary) -> str:
    if not summary.refusals:
        return ""
    shown = summary.refusals[-_REFUSALS_SHOWN:]
    body = "".join(
        f'<tr><th>{h(refusal.node)}</th><td>{refusal.round}</td><td class="words">{h(refusal.reason)}</td></tr>'
        for refusal in shown
    )
    count = len(summary.refusals)
    last = f" Shown are the last {len(shown)}." if len(shown) < count else ""
    intro = f"Not merged: {count} answer{'s' if count > 1 else ''}.{last}"
    head = '<th>site</th><th>round</th><th class="words">reason</th>'
    return (
        f'<p><small>{h(intro)}</small></p><div class="card scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _notes(summary: NodesSummary) -> str:
    seed = "" if summary.seed is None else f" ({summary.seed})"
    notes = [
        f"This is one run with one seed{seed}. Differences of a point or two can be chance.",
        "The figures are the sites' own, on their validation pictures. The coordinator saw no picture and cannot check "
        "them.",
    ]
    if summary.best:
        notes.append(
            "The round that was kept was chosen by these same figures, so they flatter it a little. Test pictures that "
            "nobody chose by would tell: manyeyes val at each site."
        )
    unknown = [node.node for node in summary.nodes if node.now and node.start is None]
    if unknown:
        notes.append(f"Came after the start, or did not test it: {', '.join(unknown)}. No gain is known for them.")
    few = [f"{n.node} ({n.val_pictures})" for n in summary.nodes if n.val_pictures and n.val_pictures < _FEW_PICTURES]
    if few:
        notes.append(f"Few validation pictures: {', '.join(few)}. The fewer there are, the rougher the score.")
    if summary.warnings:
        count = len(summary.warnings)
        notes.append(f"The run gave {count} warning{'s' if count > 1 else ''}; the last one: {summary.warnings[-1]}")
    notes.append(
        "Changes of weights are not pictures, yet they are made from pictures. This run did not add noise to them "
        "(no differential privacy), so it gives no mathematical bound on what they could reveal."
    )
    return f'<h2>Read this with care</h2><ul class="notes">{"".join(f"<li>{h(note)}</li>" for note in notes)}</ul>'
