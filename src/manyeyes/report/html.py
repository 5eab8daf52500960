"""One page about a run, for the people of its sites: a single HTML file that needs nothing else.

Every piece of the page is a function that returns HTML and is given plain text; `h` is the only way in for text.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from manyeyes.errors import DataError
from manyeyes.report.nodes_html import write_nodes_report
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
from manyeyes.report.pictures import class_colour, draw_detections, found_and_false
from manyeyes.report.runlog import Event, is_coordinators, read_runlog, without_redone
from manyeyes.report.tables import (
    CLASSES_IN_MAIN_TABLE,
    EVEN,
    NOT_TESTED,
    RowSummary,
    SiteSummary,
    Summary,
    format_bytes,
    format_seconds,
    kept_rounds,
    model_label,
    summarise,
)
from manyeyes.weights import write_atomically

__all__ = ["SCORE_SHOWN", "write_report"]

SCORE_SHOWN = 0.25
"""Detections with a smaller score are not drawn."""

_MODELS = ("untrained", "alone", "together", "pooled", "finetuned")
_PICTURE_WIDTH = 640
_JPEG_QUALITY = 84
_FEW_PICTURES = 100


def write_report(run_folder: Path) -> Path:
    """Write ``report.html`` from what lies in the folder of a run.

    It reads runlog.jsonl and, where they exist, config.yaml and examples/index.json with its JPEGs. An interrupted
    run is reported as far as it came, and the page says so.

    Returns:
        path of the page.

    Raises:
        RunError: there is no run log, or it cannot be read.
        DataError: examples/index.json is not as it should be.
        ResourceError: matplotlib is missing, or the page cannot be written.
    """
    raw = list(read_runlog(run_folder / "runlog.jsonl"))
    if is_coordinators(raw):
        return write_nodes_report(raw, run_folder)
    events, summary = without_redone(raw), summarise(raw)
    examples = _read_examples(run_folder / "examples")
    sections = [
        _banner(events, summary),
        _head(events, summary),
        _verdicts(summary),
        _table_section(summary),
        _examples_section(examples, run_folder / "examples", summary.names, _annotated(events, summary.names)),
        curves_section(events, "Curves are drawn on validation pictures; the tables above are the final test."),
        what_left_section(events, summary.together.bytes_up if summary.together else 0),
        _notes(events, summary, has_examples=bool(examples)),
        how_made_section(events, summary.seconds, run_folder / "config.yaml"),
    ]
    path = run_folder / "report.html"
    write_atomically(path, whole_page(summary.name, sections).encode())
    return path


# -- what happened, in words -------------------------------------------------------------------------------------------


def _banner(events: Sequence[Event], summary: Summary) -> str:
    if summary.finished:
        return ""
    rows = [f"{row.model} ({row.rounds_done} of {row.rounds or '?'} rounds)" for row in summary.rows if row.rounds]
    so_far = f" So far: {', '.join(rows)}." if rows else ""
    planned = next((e.get("rows", ()) for e in reversed(events) if e["event"] == "run_started"), ())
    begun = {row.row for row in summary.rows}
    open_rows = [model_label(str(r["row"])) for r in planned if str(r["row"]) not in begun]
    later = f" Not begun: {', '.join(open_rows)}." if open_rows else ""
    text = f"This run has not come to its end; what is missing here has not happened yet.{so_far}{later}"
    return f'<div class="banner" role="note"><p>{h(text)}</p></div>'


def _head(events: Sequence[Event], summary: Summary) -> str:
    began = next((e["time"] for e in events if e["event"] == "run_started"), None)
    day = time.strftime("%d %B %Y", time.localtime(began)).lstrip("0") if began else ""
    eyebrow = " · ".join(part for part in ("manyeyes", summary.name, day) if part)
    return (
        f'<header><p class="eyebrow">{h(eyebrow)}</p><h1>{h(_headline(summary))}</h1>'
        f'<p class="lede">{h(_lede(summary))}</p></header>{_key_figures(summary)}'
    )


def _headline(summary: Summary) -> str:
    together = summary.together
    count = len(summary.sites)
    who, reach = ("the site", "reaches") if count == 1 else (f"the {count_word(count)} sites", "reach")
    if together is None or together.mixed is None:
        return f"The common model of {who} has not been tested yet."
    score = f"Together {who} {reach} {hundredths(together.mixed.map50)} of 100 points"
    difference = summary.vs_best_alone(together)
    best = summary.best_alone
    if difference is None or best is None:
        return f"{score}."
    owner = best.row.removeprefix("alone-")
    if abs(difference) < 0.0005:
        return f"{score}, as many as the best of them alone (site {owner})."
    word = "more" if difference > 0 else "fewer"
    return f"{score}, {abs(difference) * 100:.1f} {word} than the best of them alone (site {owner})."


def _lede(summary: Summary) -> str:
    together = summary.together
    sentences = _gains_in_words(summary)
    if together and together.mixed:
        what = listed(summary.names)
        sentences.append(
            f"The score is mAP50, measured on {together.mixed.num_images} test pictures of all sites that no model was "
            f"trained on: it rewards finding and naming every {what} and punishes false alarms; 100 would be perfect."
        )
    return " ".join(sentences)


def _gains_in_words(summary: Summary) -> list[str]:
    gains = {site.site: site.gain for site in summary.sites if site.gain is not None}
    better = [site for site in summary.sites if site.better_off is True]
    worse = [site for site in summary.sites if site.better_off is False]
    sentences = []
    if better and len(gains) > 1:
        most = max(better, key=lambda site: site.gain or 0.0)
        sentences.append(f"Site {most.site} gains most: {abs(most.gain or 0) * 100:.1f} points on its own pictures.")
    for site in worse:
        sentences.append(
            f"Site {site.site} loses {abs(site.gain or 0) * 100:.1f} points on its own pictures "
            "and should keep its own model."
        )
    untrained, together = summary.row("untrained"), summary.together
    if untrained and untrained.mixed and together and together.mixed:
        learnt = together.mixed.map50 - untrained.mixed.map50
        if learnt < EVEN:
            sentences.append(
                "Training has not helped: the model it began with scores "
                f"{hundredths(untrained.mixed.map50)} without it."
            )
    if gains and len(better) == len(gains) > 1:
        sentences.append("Every site is better off than alone.")
    return sentences


def _key_figures(summary: Summary) -> str:
    together = summary.together
    if together is None:
        return ""
    sent = together.bytes_up / max(len(summary.sites), 1)
    figures = [
        (hundredths(together.mixed.map50) if together.mixed else "–", "of 100 (mAP50), the model trained together"),
        (points_text(summary.vs_best_alone(together)), "points against the best site alone"),
        (points_text(summary.together_vs_pooled), "points against all pictures pooled in one place"),
        (format_bytes(sent) if together.bytes_up else "–", "left each site on average; no picture did"),
    ]
    return (
        '<dl class="figures">'
        + "".join(f'<div class="card"><dd>{h(value)}</dd><dt>{h(label)}</dt></div>' for value, label in figures)
        + "</dl>"
    )


# -- who is better off -------------------------------------------------------------------------------------------------


def _verdicts(summary: Summary) -> str:
    if not summary.sites:
        return ""
    if not summary.sites_tested:
        return f"<h2>Is each site better off?</h2><p>{h(NOT_TESTED)}</p>"
    cards = "".join(_verdict(site) for site in summary.sites)
    intro = "Measured on each site's own test pictures, because that is where its model will work."
    if any(site.finetuned is not None for site in summary.sites):
        intro += (
            " “Finetuned” is the model trained together after the site went on with its own pictures for a while; each "
            "site takes whichever of the two is better on its validation pictures."
        )
    return (
        f'<h2>Is each site better off?</h2><p>{intro}</p><div class="verdicts">{cards}</div>{_class_by_class(summary)}'
    )


def _class_by_class(summary: Summary) -> str:
    """Every class at every site, under every model."""
    models = [name for name in _MODELS if any(name in site.ap50 for site in summary.sites)]
    body = ""
    for site in summary.sites:
        for name in summary.names:
            values = [site.ap50.get(model, {}).get(name) for model in models]
            if any(value is not None for value in values):
                gain = points_cell(site.class_gains.get(name))
                body += f"<tr><th>{h(site.site)}</th><td>{h(name)}</td>{''.join(map(score_cell, values))}{gain}</tr>"
    if not body:
        return ""
    table = table_card(["site", "class", *models, "gain"], body)
    return f"<details><summary>Class by class: AP50 on each site's own test pictures</summary>{table}</details>"


def _verdict(site: SiteSummary) -> str:
    tone, mark = TONES[site.better_off]
    bars = "".join(
        bar_line(label, value, colour)
        for label, value, colour in (
            ("untrained", site.untrained, "var(--muted)"),
            ("alone", site.alone, "var(--s2)"),
            ("together", site.together, "var(--s0)"),
            ("finetuned", site.finetuned, "var(--s0)"),
            ("pooled", site.pooled, "var(--s1)"),
        )
        if value is not None
    )
    pictures = f"{site.num_images} test pictures" if site.num_images else "no test pictures"
    few = site.by_class and len(site.class_gains) <= CLASSES_IN_MAIN_TABLE
    by_class = f"<p><small>{h(site.by_class)}</small></p>" if few else ""
    return (
        f'<article class="card verdict {tone}"><h3>Site {h(site.site)} <small>{pictures}</small></h3>'
        f'<p class="says"><span class="mark" aria-hidden="true">{mark}</span>{h(site.verdict)}</p>'
        f'<div class="bars">{bars}</div>{by_class}</article>'
    )


def _table_section(summary: Summary) -> str:
    rows = [row for row in summary.rows if row.mixed]
    if not rows:
        return ""
    missing = [row.model for row in summary.rows if not row.mixed]
    notes = [kept_rounds(summary) or "", f"Not tested yet: {', '.join(missing)}." if missing else ""]
    note = "".join(f"<p><small>{h(text)}</small></p>" for text in notes if text)
    wide = len(summary.names) > CLASSES_IN_MAIN_TABLE
    names = () if wide else summary.names
    head = ["model", *(f"{name} AP50" for name in names), "mAP50", "mAP50-95", "vs best alone", "time"]
    body = "".join(_table_row(summary, row, names) for row in rows)
    classes = _class_table(summary, rows) if wide else ""
    return (
        "<h2>All models on the same pictures</h2>"
        "<p>The test pictures of all sites together. AP50 is the score for one kind of object; mAP50 is their mean; "
        "mAP50-95 also asks how tightly the boxes fit.</p>"
        f"{table_card(head, body)}{classes}{note}"
    )


def _class_table(summary: Summary, rows: Sequence[RowSummary]) -> str:
    body = ""
    for name in summary.names:
        values = [row.mixed.ap50.get(name) if row.mixed else None for row in rows]
        body += f"<tr><th>{h(name)}</th>{''.join(map(score_cell, values))}</tr>"
    return table_card(["AP50", *(row.model for row in rows)], body)


def _table_row(summary: Summary, row: RowSummary, names: Sequence[str]) -> str:
    mixed = row.mixed
    values = [mixed.ap50.get(name) if mixed else None for name in names]
    values += [mixed.map50, mixed.map50_95] if mixed else [None, None]
    cells = "".join(map(score_cell, values))
    difference = summary.vs_best_alone(row)
    versus = "<td>best alone</td>" if row is summary.best_alone else points_cell(difference)
    kind = ' class="us"' if row.row == "together" else ""
    return f"<tr{kind}><th>{h(row.model)}</th>{cells}{versus}<td>{format_seconds(row.seconds)}</td></tr>"


# -- pictures and curves -----------------------------------------------------------------------------------------------


def _read_examples(folder: Path) -> list[Mapping[str, Any]]:
    path = folder / "index.json"
    if not path.exists():
        return []
    try:
        examples = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", file=path) from error
    if not isinstance(examples, list) or not all({"site", "image", "rows"} <= set(e) for e in examples):
        raise DataError("must be a list of objects with site, image and rows", file=path)
    return examples


def _annotated(events: Sequence[Event], names: Sequence[str]) -> dict[str, set[int]]:
    """Site → ids of the classes somebody looked for there: only these can be called missed or false."""
    started = next((e for e in reversed(events) if e["event"] == "run_started"), {})
    return {
        str(site["node_id"]): {i for i, name in enumerate(names) if name in site["annotates"]}
        for site in started.get("sites", ())
        if site.get("annotates")
    }


def _examples_section(
    examples: Sequence[Mapping[str, Any]], folder: Path, names: Sequence[str], annotated: Mapping[str, set[int]]
) -> str:
    title = "<h2>What the models see</h2>"
    shown = [html for example in examples if (html := _example(example, folder, names, annotated))]
    if not shown:
        return f"{title}<p>This run kept no example pictures.</p>"
    legend = "".join(
        f'<li><i style="background:rgb{class_colour(i)}"></i>{h(name)}</li>' for i, name in enumerate(names)
    )
    return (
        f"{title}<p>Test pictures as a site's own model and the common model see them; "
        f"detections with a score of {SCORE_SHOWN} and more.</p>"
        f'<ul class="legend">{legend}<li><i class="dashed"></i>there, but not found</li></ul>'
        f'<div class="examples">{"".join(shown)}</div>'
    )


def _example(example: Mapping[str, Any], folder: Path, names: Sequence[str], annotated: Mapping[str, set[int]]) -> str:
    # Only the file's name: an index must not be able to point out of its folder.
    image = cv2.imread(str(folder / Path(str(example["image"])).name), cv2.IMREAD_COLOR)
    if image is None:
        return ""
    own = f"alone-{example['site']}"
    rows = sorted(example["rows"], key=lambda row: (row != own, row != "together", row))
    rows = [row for row in rows if row in (own, "together")] or rows[:2]
    truth = example.get("truth") or []
    known = annotated.get(str(example["site"]), set(range(len(names))))
    pair = "".join(_seen(image, truth, example["rows"][row], model_label(row), names, known) for row in rows)
    name = f"Site {example['site']}"
    return (
        f'<figure class="card example"><figcaption><h3>{h(name)}</h3><small>{h(example["image"])}</small>'
        f'</figcaption><div class="pair">{pair}</div></figure>'
    )


def _seen(
    image: Any, truth: Sequence[Any], boxes: Sequence[Any], model: str, names: Sequence[str], known: set[int]
) -> str:
    boxes = [box for box in boxes if box[4] >= SCORE_SHOWN]
    found, false = found_and_false(truth, [box for box in boxes if int(box[5]) in known])
    scale = _PICTURE_WIDTH / image.shape[1]
    # Scaled before it is drawn on, so that lines and letters stay sharp.
    kind = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    shown = cv2.resize(image, None, fx=scale, fy=scale, interpolation=kind)
    missed = [_scaled(box, scale) for box, hit in zip(truth, found, strict=True) if not hit]
    drawn = draw_detections(shown, [_scaled(box, scale) for box in boxes], names, missed=missed)
    _, jpeg = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    data = base64.b64encode(jpeg.tobytes()).decode()
    counts = f"{sum(found)} of {len(truth)} found" if truth else "nothing to find here"
    counts += f", {false} false alarm{'' if false == 1 else 's'}" if false else ""
    return (
        f'<div><img loading="lazy" alt="{h(f"{model}: {counts}")}" src="data:image/jpeg;base64,{data}" '
        f'width="{drawn.shape[1]}" height="{drawn.shape[0]}">'
        f"<p><b>{h(model)}</b> <small>{h(counts)}</small></p></div>"
    )


def _scaled(box: Sequence[float], scale: float) -> list[float]:
    return [*(value * scale for value in box[:4]), *box[4:]]


# -- what to bear in mind ----------------------------------------------------------------------------------------------


def _notes(events: Sequence[Event], summary: Summary, *, has_examples: bool) -> str:
    notes = [
        f"This is one run with one seed{'' if summary.seed is None else f' ({summary.seed})'}. Differences of a point "
        "or two can be chance; repeat it with other seeds before much depends on it."
    ]
    few = [f"{s.site} ({s.num_images})" for s in summary.sites if 0 < s.num_images < _FEW_PICTURES]
    if few:
        notes.append(f"Few test pictures: {', '.join(few)}. The fewer there are, the rougher the score.")
    refused = [e for e in events if e["event"] == "update_refused"]
    if refused:
        last = refused[-1]
        notes.append(
            f"{len(refused)} update{'s were' if len(refused) > 1 else ' was'} refused and not merged; the last one "
            f"from {last['node']} in round {last['round']}: {last['reason']}."
        )
    if late := [e for e in events if e["event"] == "update_received" and e.get("staleness")]:
        nodes = ", ".join(sorted({str(e["node"]) for e in late}))
        notes.append(
            f"{len(late)} update{'s' if len(late) > 1 else ''} of {nodes} came in a later round than that of the "
            "model they are made from, and counted less: by (1 + rounds late) to the power of minus "
            "federation.staleness_exponent."
        )
    if judged := {str(e["node"]): float(e["weight"]) for e in events if e["event"] == "contribution"}:
        weights = ", ".join(f"{node} {weight:.2f}" for node, weight in sorted(judged.items()))
        notes.append(
            f"Updates counted by what they were worth on the other sites' validation pictures; at the end: {weights}."
        )
    for event in {e["node"]: e for e in events if e["event"] == "withdrawn"}.values():
        other = f" The run {event['rebuilt_as']} is held without it." if event["rebuilt_as"] else ""
        notes.append(f"{event['node']} was withdrawn; its updates of {len(event['rounds'])} rounds stay in it.{other}")
    for event in (e for e in events if e["event"] == "rebuilt"):
        notes.append(f"This is the run {event['of']} held again without {event['without']}, which was withdrawn.")
    warnings = [e for e in events if e["event"] == "warning"]
    if warnings:
        count = f"{len(warnings)} warning{'s' if len(warnings) > 1 else ''}"
        notes.append(f"The run gave {count}; the last one: {warnings[-1]['reason']}.")
    if summary.row("pooled"):
        notes.append(
            "“Pooled” trains on the pictures of all sites in one place. It is a yardstick for this comparison only, "
            "and what training together avoids."
        )
    notes.append(
        "Changes of weights are not pictures, yet they are made from pictures. This run did not add noise to them "
        "(no differential privacy), so it gives no mathematical bound on what they could reveal."
    )
    if has_examples:
        notes.append("This page shows test pictures of the sites. Ask them before you pass it on.")
    return f'<h2>Read this with care</h2><ul class="notes">{"".join(f"<li>{h(note)}</li>" for note in notes)}</ul>'
