"""What a run comes to: the table of its models, what each site gains, and all metrics as CSV.

Average precision is a fraction from 0 to 1 everywhere in this file; people are shown "points", hundredths of it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from manyeyes.learners.learner import Metrics
from manyeyes.report.runlog import FINETUNED, Event, losses_of_update, without_redone
from manyeyes.weights import write_atomically

__all__ = [
    "CLASSES_IN_MAIN_TABLE",
    "EVEN",
    "MIXED",
    "NOT_TESTED",
    "RowSummary",
    "SiteSummary",
    "Summary",
    "format_bytes",
    "format_points",
    "format_seconds",
    "kept_rounds",
    "model_label",
    "render_main_table",
    "seconds_at_work",
    "summarise",
    "write_metrics_csv",
]

MIXED = "mixed"
"""The `where` of an `evaluated` event on the test pictures of all sites together."""

EVEN = 0.005
"""Gains smaller than this (half a point) are called neither better nor worse."""

CLASSES_IN_MAIN_TABLE = 3
"""With more classes than this, their scores stand in a table of their own."""

NOT_TESTED = "The model trained together has not been tested on the sites' pictures yet."

_ALONE = "alone-"


@dataclass(frozen=True, slots=True)
class RowSummary:
    """One model of the table.

    Attributes:
        row: its name in the run log, e.g. "alone-A".
        tests: its final test by place: "mixed" and each site that was tested.
        rounds_done, rounds: rounds that were finished, and that were asked for (None: not known).
        seconds: time spent on it, over all sessions of a resumed run, without the pauses between them.
        bytes_up, bytes_down: on the wire, from and to all nodes.
        kept: the round its weights are of, where the best on validation pictures was kept; None: the last.
    """

    row: str
    tests: Mapping[str, Metrics]
    rounds_done: int
    rounds: int | None
    seconds: float
    bytes_up: int
    bytes_down: int
    kept: int | None = None

    @property
    def model(self) -> str:
        """The name people read: "A alone", "together"."""
        return model_label(self.row)

    @property
    def mixed(self) -> Metrics | None:
        """The final test on the pictures of all sites; None if it did not take place."""
        return self.tests.get(MIXED)


@dataclass(frozen=True, slots=True)
class SiteSummary:
    """mAP50 of the models on one site's own test pictures; None where a model was not tested there.

    Attributes:
        num_images: test pictures of the site.
        finetuned: of the site's own model, which it made from that of "together".
        chosen: which of the two, "together" or "finetuned", is better on the site's validation pictures.
        ap50: the same models by these names → class → average precision, for the classes with objects there.
    """

    site: str
    num_images: int
    untrained: float | None
    alone: float | None
    together: float | None
    pooled: float | None
    finetuned: float | None = None
    chosen: str = "together"
    ap50: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def offered(self) -> float | None:
        """What the site has from taking part: of the common model and its own, made from it, the chosen one."""
        return self.finetuned if self.chosen == FINETUNED else self.together

    @property
    def gain(self) -> float | None:
        """mAP50 of `offered` minus that of the site alone."""
        return None if self.alone is None or self.offered is None else self.offered - self.alone

    @property
    def class_gains(self) -> dict[str, float]:
        """The same as `gain` for each class."""
        offered = self.ap50.get(self.chosen, {})
        alone = self.ap50.get("alone", {})
        return {name: offered[name] - value for name, value in alone.items() if name in offered}

    @property
    def by_class(self) -> str | None:
        """Who gains and who loses, in one line; None where there is nothing to tell apart."""
        if len(self.class_gains) < 2:
            return None
        parts = (f"{name} {format_points(gain)}" for name, gain in self.class_gains.items())
        return f"By class: {', '.join(parts)} points."

    @property
    def better_off(self) -> bool | None:
        """Whether the site gains by taking part; None if that is not known or too close to call (`EVEN`)."""
        return None if self.gain is None or abs(self.gain) < EVEN else self.gain > 0

    @property
    def verdict(self) -> str:
        """One honest sentence for the people of the site."""
        if self.offered is None:
            return f"{self.site}: the model trained together was not tested on its pictures."
        if self.gain is None:
            return f"{self.site} has no model of its own to compare with."
        points = f"{abs(self.gain) * 100:.1f} points"
        if self.better_off is None:
            return f"{self.site} is neither better nor worse off: the difference is {points}."
        if self.better_off:
            how = ", with the common model finetuned on its own pictures" if self.chosen == FINETUNED else ""
            return f"{self.site} is better off by {points}{how}."
        return f"{self.site} is worse off by {points}: it should keep its own model."


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole run.

    Attributes:
        names: class names.
        rows: untrained, each site alone, together, pooled; as far as they were begun.
        sites: what taking part means for each site.
        seconds: of the whole run, without the pauses of a resumed one.
        finished: whether the run came to its end.
    """

    name: str
    seed: int | None
    names: tuple[str, ...]
    rows: tuple[RowSummary, ...]
    sites: tuple[SiteSummary, ...]
    seconds: float
    finished: bool

    def row(self, name: str) -> RowSummary | None:
        """The row of that name in the run log."""
        return next((row for row in self.rows if row.row == name), None)

    @property
    def together(self) -> RowSummary | None:
        """The row this project is about."""
        return self.row("together")

    @property
    def best_alone(self) -> RowSummary | None:
        """The single site's model with the highest mAP50 on the mixed test."""
        alone = [row for row in self.rows if row.row.startswith(_ALONE) and row.mixed]
        return max(alone, key=lambda row: row.mixed.map50 if row.mixed else 0.0, default=None)

    def vs_best_alone(self, row: RowSummary) -> float | None:
        """mAP50 on the mixed test minus that of the best single site's model."""
        return _difference(row, self.best_alone)

    @property
    def sites_tested(self) -> bool:
        """Whether "together" was tested on any site's own pictures."""
        return any(site.together is not None for site in self.sites)

    @property
    def together_vs_pooled(self) -> float | None:
        """mAP50 of "together" minus that of "pooled" on the mixed test."""
        return _difference(self.together, self.row("pooled"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: ``{"rows": [{"model", "ap50": {class: value}, "map50", "map50_95", …}], "bytes_up", …}``.

        Rows without a final test on the mixed pictures stand under "missing", not under "rows".
        """
        together = self.together
        return {
            "name": self.name,
            "seed": self.seed,
            "names": list(self.names),
            "finished": self.finished,
            "rows": [self._row_dict(row, row.mixed) for row in self.rows if row.mixed],
            "missing": [row.model for row in self.rows if not row.mixed],
            "sites": [_site_dict(site) for site in self.sites],
            "together_vs_pooled": self.together_vs_pooled,
            "bytes_up": together.bytes_up if together else 0,
            "bytes_down": together.bytes_down if together else 0,
            "seconds": round(self.seconds, 3),
        }

    def _row_dict(self, row: RowSummary, mixed: Metrics) -> dict[str, Any]:
        difference, best = self.vs_best_alone(row), self.best_alone
        base = best.mixed.map50 if best and best.mixed else 0.0
        return {
            "model": row.model,
            "ap50": dict(mixed.ap50),
            "map50": mixed.map50,
            "map50_95": mixed.map50_95,
            "vs_best_alone": difference,
            "vs_best_alone_relative": difference / base if difference is not None and base else None,
            "row": row.row,
            "ap": dict(mixed.ap),
            "num_images": mixed.num_images,
            "rounds": row.rounds_done,
            "kept": row.kept,
            "seconds": round(row.seconds, 3),
            "bytes_up": row.bytes_up,
            "bytes_down": row.bytes_down,
        }


def model_label(row: str) -> str:
    """The name people read for a row of the run log.

    >>> model_label("alone-A"), model_label("together")
    ('A alone', 'together')
    """
    return f"{row.removeprefix(_ALONE)} alone" if row.startswith(_ALONE) else row


def format_bytes(count: float) -> str:
    """A count of bytes with a decimal unit.

    >>> format_bytes(1_400_000), format_bytes(900), format_bytes(0)
    ('1.4 MB', '900 B', '0 B')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size * 0.9995:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """A duration in its two largest units.

    >>> format_seconds(41.4), format_seconds(75), format_seconds(7500)
    ('41 s', '1 min 15 s', '2 h 05 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_points(difference: float) -> str:
    """A difference of average precision in points, with its sign.

    >>> format_points(0.041), format_points(-0.008), format_points(0.0)
    ('+4.1', '−0.8', '0.0')
    """
    tenths = round(difference * 1000)
    sign = "+" if tenths > 0 else "−" if tenths < 0 else ""
    return f"{sign}{abs(tenths) / 10:.1f}"


def kept_rounds(summary: Summary) -> str | None:
    """A sentence on the round each row's weights are of; None if every row ends with its last."""
    kept = [f"{row.model} round {row.kept} of {row.rounds_done}" for row in summary.rows if row.kept is not None]
    if not kept:
        return None
    return f"Kept is the round with the best mean mAP50 on the sites' validation pictures: {', '.join(kept)}."


def summarise(events: Iterable[Event]) -> Summary:
    """Sum up a run from its events, as `read_runlog` gives them; an interrupted run is summed up as far as it came."""
    raw = list(events)
    counted = without_redone(raw)
    started = next((e for e in reversed(counted) if e["event"] == "run_started"), {})
    site_ids = [str(site["node_id"]) for site in started.get("sites", ())]
    rows = tuple(
        _summarise_row(name, [e for e in counted if e.get("row") == name], seconds_at_work(raw, name))
        for name in _ordered({str(e["row"]) for e in counted if e.get("row") not in (None, FINETUNED)}, site_ids)
    )
    own = _summarise_row(FINETUNED, [e for e in counted if e.get("row") == FINETUNED], 0.0)
    tested = {where for row in rows for where in row.tests} - {MIXED}
    sites = [*site_ids, *sorted(tested - set(site_ids))]
    return Summary(
        name=str(started.get("name", "")),
        seed=started.get("seed"),
        names=tuple(started.get("names", ())) or _names_in(rows),
        rows=rows,
        sites=tuple(_summarise_site(site, {row.row: row for row in (*rows, own)}, counted) for site in sites),
        seconds=seconds_at_work(raw),
        finished=bool(counted) and counted[-1]["event"] == "run_finished",
    )


def write_metrics_csv(events: Iterable[Event], path: Path) -> None:
    """Write every metric of a run, one a line: row, round, where, split, class, metric, value.

    Metrics are map50, map50_95, ap50, ap (0 to 1), and loss_* (split "train", the mean over a round's last epoch; for
    a coordinator, which hears of no epochs, the mean that came with the update).

    Raises:
        ResourceError: the file cannot be written.
    """
    lines: dict[tuple[Any, ...], float] = {}
    counted = without_redone(events)
    told_by_epoch = any(event["event"] == "epoch_finished" for event in counted)
    for event in counted:
        for key, value in _csv_lines(event, told_by_epoch):
            lines[key] = value
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("row", "round", "where", "split", "class", "metric", "value"))
    writer.writerows((*key, f"{value:.6g}") for key, value in lines.items())
    write_atomically(path, text.getvalue())


def render_main_table(summary: Summary, console: Console) -> None:
    """Print what a run comes to: the models on the mixed test, each site's own test with a verdict, bytes and time."""
    wide = len(summary.names) > CLASSES_IN_MAIN_TABLE
    console.print(_main_table(summary, () if wide else summary.names))
    if wide:
        console.print(_class_table(summary))
    if kept := kept_rounds(summary):
        console.print(kept, markup=False, highlight=False)
    missing = [row.model for row in summary.rows if not row.mixed]
    if missing:
        console.print(f"Not tested, because the run did not come that far: {', '.join(missing)}.", markup=False)
    if any(site.together is not None or site.alone is not None for site in summary.sites):
        console.print(_site_table(summary))
        if not summary.sites_tested:
            console.print(NOT_TESTED)
        for site in summary.sites if summary.sites_tested else ():
            console.print(_verdict_markup(site), highlight=False)
            if site.by_class and len(site.class_gains) <= CLASSES_IN_MAIN_TABLE:
                console.print(f"  {site.by_class}", style="dim", markup=False, highlight=False)
    console.print(_cost_line(summary), markup=False, highlight=False)


def _csv_lines(event: Event, told_by_epoch: bool) -> Iterator[tuple[tuple[Any, ...], float]]:
    at = (event.get("row", ""), event.get("round", ""))
    if event["event"] == "evaluated":
        metrics, place = event["metrics"], (event["where"], event["split"])
        for metric in ("map50", "map50_95"):
            yield (*at, *place, "", metric), metrics[metric]
        for metric in ("ap50", "ap"):
            for name, value in metrics[metric].items():
                yield (*at, *place, name, metric), value
    elif event["event"] == "epoch_finished":
        for name, value in event["losses"].items():
            yield (*at, event["node"], "train", "", f"loss_{name}"), value
    elif event["event"] == "update_received" and not told_by_epoch:
        for name, value in losses_of_update(event).items():
            yield (*at, event["node"], "train", "", f"loss_{name}"), value


def _ordered(rows: set[str], site_ids: Sequence[str]) -> list[str]:
    known = ["untrained", *(_ALONE + site for site in site_ids)]
    last = ["together", "pooled"]
    others = sorted(rows - set(known) - set(last))
    return [row for row in (*known, *others, *last) if row in rows]


def seconds_at_work(events: Iterable[Event], row: str | None = None) -> float:
    """Time from a session's first event to its last, over all sessions of a run; of one row, or of all.

    What lies before a new session is a pause.
    """
    spans: list[list[float]] = []
    for event in events:
        if event["event"] == "run_started":
            spans.append([])
        if spans and row in (None, event.get("row")):
            spans[-1].append(event["time"])
    return sum(times[-1] - times[0] for times in spans if times)


def _summarise_row(name: str, events: Sequence[Event], seconds: float) -> RowSummary:
    tests = {
        str(e["where"]): Metrics.from_dict(e["metrics"])
        for e in events
        if e["event"] == "evaluated" and e["split"] == "test"
    }
    started = next((e for e in reversed(events) if e["event"] == "row_started"), {})
    rounds = {e["round"]: e for e in events if e["event"] == "round_finished"}
    finished = next((e for e in reversed(events) if e["event"] == "row_finished"), {})
    return RowSummary(
        row=name,
        tests=tests,
        rounds_done=len(rounds),
        rounds=started.get("rounds"),
        seconds=seconds,
        bytes_up=_bytes(events, rounds, "bytes_up"),
        bytes_down=_bytes(events, rounds, "bytes_down"),
        kept=None if finished.get("score") is None else finished["kept"],
    )


def _bytes(events: Sequence[Event], rounds: Mapping[int, Event], key: str) -> int:
    """A resumed row may close with the bytes of its last session alone, so the larger count is the true one."""
    of_rounds = sum(int(e.get(key, 0)) for e in rounds.values())
    return max(of_rounds, *(int(e.get(key, 0)) for e in events if e["event"] == "row_finished"), 0)


def _summarise_site(site: str, rows: Mapping[str, RowSummary], events: Sequence[Event]) -> SiteSummary:
    rows_of = {"alone": _ALONE + site} | {name: name for name in ("untrained", "together", "pooled", FINETUNED)}
    tests = {name: rows[row].tests[site] for name, row in rows_of.items() if row in rows and site in rows[row].tests}

    def map50(name: str) -> float | None:
        return tests[name].map50 if name in tests else None

    return SiteSummary(
        site=site,
        num_images=max((row.tests[site].num_images for row in rows.values() if site in row.tests), default=0),
        untrained=map50("untrained"),
        alone=map50("alone"),
        together=map50("together"),
        pooled=map50("pooled"),
        finetuned=map50(FINETUNED),
        chosen=FINETUNED if FINETUNED in tests and _finetuned_is_better(site, events) else "together",
        ap50={name: metrics.ap50 for name, metrics in tests.items()},
    )


def _finetuned_is_better(site: str, events: Sequence[Event]) -> bool:
    """By the site's validation pictures; where it has none, its own pictures are what it went on with, so it counts."""
    own = [e["metrics"] for e in events if e["event"] == "finetuned" and e["node"] == site]
    kept = next(
        (e.get("kept") for e in reversed(events) if e["event"] == "row_finished" and e["row"] == "together"), None
    )
    common = [
        e["metrics"]
        for e in events
        if e["event"] == "evaluated"
        and (e.get("row"), e["where"], e["split"], e["round"]) == ("together", site, "val", kept)
    ]
    if not own or not common or not own[-1]["ap50"]:
        return True
    return bool(own[-1]["map50"] >= common[-1]["map50"])


def _names_in(rows: Iterable[RowSummary]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in rows for metrics in row.tests.values() for name in metrics.ap50))


def _difference(row: RowSummary | None, base: RowSummary | None) -> float | None:
    if row is None or base is None or row.mixed is None or base.mixed is None:
        return None
    return row.mixed.map50 - base.mixed.map50


def metrics_table(metrics: Metrics) -> Table:
    """Average precision of each class and the means over them."""
    table = _table(f"{metrics.num_images} pictures")
    table.add_column("class")
    for title in ("objects", "AP50", "AP50-95"):
        table.add_column(title, justify="right")
    for name, ap50 in metrics.ap50.items():
        table.add_row(escape(name), f"{metrics.num_objects.get(name, 0):,}", _number(ap50), _number(metrics.ap[name]))
    objects = sum(metrics.num_objects.values())
    table.add_row("mean", f"{objects:,}", _number(metrics.map50), _number(metrics.map50_95), style="bold")
    return table


def _site_dict(site: SiteSummary) -> dict[str, Any]:
    return {
        "site": site.site,
        "num_images": site.num_images,
        "untrained": site.untrained,
        "alone": site.alone,
        "together": site.together,
        "pooled": site.pooled,
        "finetuned": site.finetuned,
        "chosen": site.chosen,
        "ap50": {name: dict(values) for name, values in site.ap50.items()},
        "gain": site.gain,
        "better_off": site.better_off,
        "verdict": site.verdict,
    }


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="", box=box.SIMPLE_HEAD)


def _main_table(summary: Summary, names: Sequence[str]) -> Table:
    table = _table("Test pictures of all sites together")
    table.add_column("model")
    for name in names:
        table.add_column(f"{escape(name)} AP50", justify="right", overflow="fold")
    for title in ("mAP50", "mAP50-95", "vs best alone"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in summary.rows:
        if row.mixed:
            cells = [_number(row.mixed.ap50.get(name)) for name in names]
            table.add_row(
                escape(row.model),
                *cells,
                _number(row.mixed.map50),
                _number(row.mixed.map50_95),
                _versus(summary, row),
                style="bold" if row.row == "together" else "",
            )
    return table


def _versus(summary: Summary, row: RowSummary) -> str:
    difference, best = summary.vs_best_alone(row), summary.best_alone
    if difference is None:
        return "–"
    if row is best:
        return "best alone"
    base = best.mixed.map50 if best and best.mixed else 0.0
    share = f" ({difference / base:+.0%})".replace("-", "−") if base else ""
    return f"{difference:+.3f}{share}".replace("-", "−")


def _class_table(summary: Summary) -> Table:
    """Classes downwards, models across: any number of classes fits."""
    rows = [row for row in summary.rows if row.mixed]
    table = _table("AP50 of each class")
    table.add_column("class", overflow="fold")
    for row in rows:
        table.add_column(escape(row.model), justify="right", overflow="fold")
    for name in summary.names:
        table.add_row(escape(name), *(_number(row.mixed.ap50.get(name) if row.mixed else None) for row in rows))
    return table


def _site_table(summary: Summary) -> Table:
    table = _table("mAP50 on each site's own test pictures")
    table.add_column("site", overflow="fold")
    own = any(site.finetuned is not None for site in summary.sites)
    for title in ("pictures", "untrained", "alone", "together", "pooled", *(["finetuned"] if own else ()), "gain"):
        table.add_column(title, justify="right", no_wrap=True)
    for site in summary.sites:
        gain = "–" if site.gain is None else f"{site.gain:+.3f}".replace("-", "−")
        numbers = (site.untrained, site.alone, site.together, site.pooled, *((site.finetuned,) if own else ()))
        table.add_row(escape(site.site), str(site.num_images), *map(_number, numbers), gain)
    return table


def _verdict_markup(site: SiteSummary) -> str:
    style, mark = {True: ("green", "▲"), False: ("red", "▼"), None: ("dim", "●")}[site.better_off]
    return f"[{style}]{mark}[/] {escape(site.verdict)}"


def _cost_line(summary: Summary) -> str:
    parts = [f"{format_seconds(summary.seconds)} in all"]
    if summary.together:
        up, down = format_bytes(summary.together.bytes_up), format_bytes(summary.together.bytes_down)
        parts.insert(0, f"together: {up} up and {down} down in {summary.together.rounds_done} rounds")
    return ", ".join(parts) + "."
