"""The curves of a run, as SVG that follows the light or dark colours of the page it stands in.

The SVG names its colours by CSS variables (``--ink``, ``--muted``, ``--grid``, ``--s0`` …), which the page defines;
`SERIES_LIGHT` and `SERIES_DARK` are the colour-blind-safe values for them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyeyes.errors import ResourceError
from manyeyes.report.nodes import summarise_nodes
from manyeyes.report.runlog import Event, is_coordinators, losses_of_update, without_redone
from manyeyes.report.tables import MIXED, Summary, model_label, summarise

__all__ = ["SERIES_DARK", "SERIES_LIGHT", "Plot", "draw_plots", "save_plots"]

# Okabe and Ito's palette, made a little darker or lighter for each ground. 0 is "together", 1 is "pooled".
SERIES_LIGHT = ("#0067a8", "#6b7280", "#c77700", "#00875f", "#b4508c", "#c8440a", "#3aa0dd", "#8a7a00")
SERIES_DARK = ("#5cb8ff", "#a3adba", "#ffb340", "#35d0a0", "#f09acb", "#ff8552", "#9bd7ff", "#efe36a")
_INK, _MUTED, _GRID = "#1c2430", "#5b6675", "#dfe4ea"
# Of nodes in one figure; a simulation may have thousands.
_MOST_LINES = 24
_FIRST_OF_SITES = 2
_SITES_SIDE_BY_SIDE = 4
_LEAST_SPAN = 0.1
# Dots of more rounds than this run into one thick line.
_MOST_MARKED = 40
_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)))

_WIDTH, _HEIGHT = 4.5, 2.7
_STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "axes.titlecolor": _INK,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "ytick.major.size": 0,
    "text.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": _INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure.

    Attributes:
        key: short fixed word, e.g. "rounds"; also its file name.
        title, note: for the caption, plain text.
        svg: an ``<svg>`` element without XML header; colours are CSS variables.
    """

    key: str
    title: str
    note: str
    svg: str


def draw_plots(events: Iterable[Event]) -> list[Plot]:
    """Draw every figure the events have data for.

    Raises:
        ResourceError: matplotlib is not installed.
    """
    return [
        Plot(key, title, note, _themed_svg(figure, key))
        for key, title, note, figure in _figures(list(without_redone(events)))
    ]


def save_plots(events: Iterable[Event], folder: Path) -> list[Path]:
    """Write every figure as ``folder/KEY.png``, dark on white, 200 dots an inch.

    Raises:
        ResourceError: matplotlib is not installed, or the folder cannot be written.
    """
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, _, _, figure in _figures(list(without_redone(events))):
            paths.append(folder / f"{key}.png")
            figure.savefig(paths[-1], dpi=200)
    except OSError as error:
        raise ResourceError(f"cannot be written ({error.strerror})", file=folder) from error
    return paths


def _figures(events: list[Event]) -> Iterator[tuple[str, str, str, Any]]:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ResourceError("matplotlib is not installed", cure="pip install manyeyes[train]") from error
    data = _Data(events)
    for key, title, note, draw, tall in _PLOTS:
        with rc_context(_STYLE):
            figure = Figure(figsize=(_WIDTH, tall(data)))
            drawn = draw(figure, data)
        if drawn:
            yield key, title, note, figure


class _Data:
    """The events of a run, sorted by what the figures ask for."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.summary: Summary = summarise(events)
        self.started: Event = next((e for e in reversed(events) if e["event"] == "run_started"), {})
        self.nodes = summarise_nodes(events) if is_coordinators(events) else None
        """Who took part, of a coordinator's run."""
        self.sites = [n.node for n in self.nodes.nodes] if self.nodes else [s.site for s in self.summary.sites]
        self.rows = [row.row for row in self.summary.rows]
        self._events = events

    def of(self, kind: str, row: str | None = None) -> list[Event]:
        return [e for e in self._events if e["event"] == kind and (row is None or e.get("row") == row)]

    def curve(self, row: str, where: str) -> dict[int, float]:
        """mAP50 on validation pictures by round."""
        return {
            int(e["round"]): float(e["metrics"]["map50"])
            for e in self.of("evaluated", row)
            if e["split"] == "val" and e["where"] == where and e.get("round") is not None
        }

    def curve_over_all(self, row: str) -> dict[int, float]:
        """The same on all sites' pictures; without such a test, the mean where every site was tested."""
        mixed = self.curve(row, MIXED)
        if mixed or not self.sites:
            return mixed
        curves = [self.curve(row, site) for site in self.sites]
        rounds = set.intersection(*(set(curve) for curve in curves))
        return {r: sum(curve[r] for curve in curves) / len(curves) for r in sorted(rounds)}

    def colour(self, row_or_site: str) -> str:
        fixed = {"together": 0, "pooled": 1, "untrained": 1}
        name = row_or_site.removeprefix("alone-")
        if row_or_site in fixed and name not in self.sites:
            return SERIES_LIGHT[fixed[row_or_site]]
        order = self.sites.index(name) if name in self.sites else 0
        return SERIES_LIGHT[_FIRST_OF_SITES + order % (len(SERIES_LIGHT) - _FIRST_OF_SITES)]

    def dash(self, row_or_site: str) -> Any:
        """Sites beyond the palette differ by their dashes."""
        name = row_or_site.removeprefix("alone-")
        order = self.sites.index(name) if name in self.sites else 0
        return _DASHES[order // (len(SERIES_LIGHT) - _FIRST_OF_SITES) % len(_DASHES)]


def _draw_rounds(figure: Any, data: _Data) -> bool:
    axes = figure.subplots()
    order = sorted(set(data.rows) - {"untrained"}, key=lambda row: (row == "together", data.rows.index(row)))
    for row in order:
        _line(axes, data.curve_over_all(row), data, row, strong=row == "together")
    if not any(data.curve_over_all(row) for row in order if row != "together"):
        # The other rows were tested at their own site only, which cannot be compared with the mean of all sites.
        for site in data.sites:
            _line(axes, data.curve("together", site), data, site, strong=False)
    _untrained_level(axes, data, MIXED)
    axes.set_ylabel("mAP50")
    return _finish_rounds(axes)


def _draw_sites(figure: Any, data: _Data) -> bool:
    shown = [s for s in data.sites if data.curve("together", s) or data.curve(f"alone-{s}", s)]
    if not shown:
        return False
    columns = min(3, len(shown))
    grid = figure.subplots(-(-len(shown) // columns), columns, sharex=True, squeeze=False)
    for axes, site in zip(grid.flat, shown, strict=False):
        for row in (f"alone-{site}", "pooled", "together"):
            _line(axes, data.curve(row, site), data, row, strong=row == "together")
        axes.set_title(_short(site))
        axes.set_xlabel("round")
        _whole_rounds(axes)
        _widen(axes)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    grid[0][0].set_ylabel("mAP50")
    _site_legend(figure, data, shown)
    return True


def _draw_classes(figure: Any, data: _Data) -> bool:
    best = data.summary.best_alone
    wanted = ("untrained", best.row if best else "", "pooled", "together")
    rows = [row for name in wanted if (row := data.summary.row(name)) and row.mixed]
    names = [n for n in data.summary.names if any(row.mixed and n in row.mixed.ap50 for row in rows)]
    if not names:
        return False
    axes = figure.subplots()
    for y, name in enumerate(names):
        values = [row.mixed.ap50[name] for row in rows if row.mixed and name in row.mixed.ap50]
        axes.plot([min(values), max(values)], [y, y], color=_GRID, linewidth=5, solid_capstyle="round", zorder=1)
    for row in rows:
        points = [(row.mixed.ap50[n], y) for y, n in enumerate(names) if row.mixed and n in row.mixed.ap50]
        hollow = row.row == "untrained"
        axes.plot(
            *zip(*points, strict=True),
            linestyle="none",
            marker="o",
            markersize=7 if row.row == "together" else 6,
            color=data.colour(row.row),
            markerfacecolor="none" if hollow else data.colour(row.row),
            label=_short(row.model),
        )
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("AP50")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    _legend_above(axes)
    return True


def _draw_losses(figure: Any, data: _Data) -> bool:
    fits = data.of("epoch_finished", "together") or _fits_of_updates(data)
    all_names = list(dict.fromkeys(name for e in fits for name in e["losses"]))
    names = ([name for name in all_names if name != "loss"] or all_names)[:4]
    if not names:
        return False
    all_axes = figure.subplots(1, len(names), squeeze=False)[0]
    nodes = list(dict.fromkeys(str(e["node"]) for e in fits))[:_MOST_LINES]
    for axes, name in zip(all_axes, names, strict=True):
        for node in nodes:
            points = [(_epochs_so_far(e), e["losses"][name]) for e in fits if str(e["node"]) == node]
            alone = "o" if len(points) == 1 else None
            style = {"color": data.colour(node), "linestyle": data.dash(node), "marker": alone}
            axes.plot(*zip(*points, strict=True), **style, label=_short(node))
        axes.set_title(_short(name))
        _whole_rounds(axes)
        axes.set_xlabel("round" if data.nodes else "epoch")
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 5), handlelength=1.2)
    return True


def _fits_of_updates(data: _Data) -> list[Event]:
    """A coordinator hears of no epochs: what came with an update stands for its fit."""
    updates = data.of("update_received", "together")
    return [{**e, "epoch": 1, "epochs": 1, "losses": losses_of_update(e)} for e in updates]


def _draw_taking_part(figure: Any, data: _Data) -> bool:
    """A row for each node, a cell for each round."""
    if data.nodes is None or not any(node.asked for node in data.nodes.nodes):
        return False
    from matplotlib.patches import Patch

    nodes = data.nodes.nodes
    axes = figure.subplots()
    merged, lost, running = SERIES_LIGHT[0], SERIES_LIGHT[5], _MUTED
    for y, node in enumerate(nodes):
        for rounds, colour in (
            (node.merged, merged),
            ([r for r in node.refused if r not in node.merged], lost),
            ([r for r in node.asked if r not in node.merged and r not in node.refused], running),
        ):
            axes.broken_barh([(r - 0.44, 0.88) for r in rounds], (y - 0.3, 0.6), facecolors=colour)
    axes.set_yticks(range(len(nodes)), [_short(node.node) for node in nodes])
    axes.set_ylim(len(nodes) - 0.5, -0.5)
    axes.set_xlim(0.5, max(max(node.asked, default=1) for node in nodes) + 0.5)
    axes.set_xlabel("round")
    axes.grid(visible=False)
    _whole_rounds(axes)
    handles = [Patch(color=merged, label="update merged")]
    if any(node.refused.keys() - set(node.merged) for node in nodes):
        handles.append(Patch(color=lost, label="not merged"))
    if any(set(node.asked) - set(node.merged) - node.refused.keys() for node in nodes):
        handles.append(Patch(color=running, label="at work, or cut off"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1)
    return True


def _draw_bytes(figure: Any, data: _Data) -> bool:
    rounds = data.of("round_finished", "together")
    if not any(e.get("bytes_up") or e.get("bytes_down") for e in rounds):
        return False
    axes = figure.subplots()
    numbers = [e["round"] for e in rounds]
    for key, label, colour, shift in (
        ("bytes_down", "down to the sites", SERIES_LIGHT[1], -0.2),
        ("bytes_up", "up from the sites", SERIES_LIGHT[0], 0.2),
    ):
        heights = [e.get(key, 0) / 1e6 for e in rounds]
        axes.bar([n + shift for n in numbers], heights, width=0.36, color=colour, label=label)
    axes.set_ylabel("MB")
    return _finish_rounds(axes)


def _draw_phases(figure: Any, data: _Data) -> bool:
    rounds = [e for e in data.of("round_finished", "together") if e.get("seconds")]
    if not rounds:
        return False
    axes = figure.subplots()
    below = [0.0] * len(rounds)
    for phase, index in (("fit", 0), ("merge", 4), ("evaluate", 2), ("checkpoint", 3)):
        heights = [float(e["seconds"].get(phase, 0.0)) for e in rounds]
        axes.bar([e["round"] for e in rounds], heights, bottom=below, width=0.6, color=SERIES_LIGHT[index], label=phase)
        below = [b + h for b, h in zip(below, heights, strict=True)]
    axes.set_ylabel("seconds")
    return _finish_rounds(axes)


def _draw_objects(figure: Any, data: _Data) -> bool:
    counts: dict[str, Mapping[str, int]] = {
        str(s["node_id"]): s.get("objects", {}).get("train", {}) for s in data.started.get("sites", ())
    }
    names = [n for n in data.summary.names if any(c.get(n) for c in counts.values())]
    if not names:
        return False
    axes = figure.subplots()
    if len(counts) > _SITES_SIDE_BY_SIDE:
        labels = _stack_objects(axes, counts, names)
    else:
        labels = names
        _group_objects(axes, data, counts, names)
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel("objects in training pictures")
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    _legend_above(axes)
    return True


def _stack_objects(axes: Any, counts: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> list[str]:
    """A bar for each site, in it a part for each class."""
    left = [0] * len(counts)
    for order, name in enumerate(names):
        values = [objects.get(name, 0) for objects in counts.values()]
        axes.barh(
            range(len(counts)), values, left=left, color=SERIES_LIGHT[order % len(SERIES_LIGHT)], label=_short(name)
        )
        left = [before + value for before, value in zip(left, values, strict=True)]
    return list(counts)


def _group_objects(axes: Any, data: _Data, counts: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> None:
    """A group for each class, in it a bar for each site."""
    thick = 0.8 / len(counts)
    for order, (site, objects) in enumerate(counts.items()):
        ys = [y - 0.4 + thick * (order + 0.5) for y in range(len(names))]
        values = [objects.get(name, 0) for name in names]
        axes.barh(ys, values, height=thick * 0.86, color=data.colour(site), label=_short(site))
        for y, value in zip(ys, values, strict=True):
            axes.annotate(
                f"{value}", (value, y), (3, 0), textcoords="offset points", va="center", fontsize=7.5, color=_MUTED
            )


def _line(axes: Any, curve: Mapping[int, float], data: _Data, row: str, *, strong: bool) -> None:
    if curve:
        axes.plot(
            list(curve),
            list(curve.values()),
            color=data.colour(row),
            linestyle=data.dash(row),
            marker="o" if len(curve) <= _MOST_MARKED else None,
            linewidth=2.6 if strong else 1.6,
            markersize=5 if strong else 3.2,
            zorder=3 if strong else 2,
            label=_short(model_label(row)),
        )


def _untrained_level(axes: Any, data: _Data, where: str) -> None:
    curve = data.curve("untrained", where)
    if curve:
        axes.axhline(next(iter(curve.values())), color=_MUTED, linestyle=(0, (2, 2)), linewidth=1, label="untrained")


def _finish_rounds(axes: Any) -> bool:
    if not axes.get_legend_handles_labels()[0]:
        return False
    axes.set_xlabel("round")
    _whole_rounds(axes)
    _legend_above(axes)
    return True


def _legend_above(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure = axes.figure
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=min(len(labels), 5),
        handlelength=1,
        columnspacing=1,
        handletextpad=0.5,
    )


def _site_legend(figure: Any, data: _Data, shown: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=data.colour("together"), linewidth=2.6, marker="o", label="together")]
    if any(data.curve("pooled", site) for site in shown):
        handles.append(Line2D([], [], color=data.colour("pooled"), marker="o", markersize=3.2, label="pooled"))
    if any(data.curve(f"alone-{site}", site) for site in shown):
        handles.append(Line2D([], [], color=data.colour(shown[0]), marker="o", markersize=3.2, label="the site alone"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1.2)


def _widen(axes: Any) -> None:
    """Sites lie at different heights, so each has its own scale; but noise must not be blown up to look like a gain."""
    low, high = axes.get_ylim()
    missing = _LEAST_SPAN - (high - low)
    if missing > 0:
        axes.set_ylim(low - missing / 2, high + missing / 2)


def _whole_rounds(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def _epochs_so_far(event: Event) -> int:
    return (int(event["round"]) - 1) * int(event["epochs"]) + int(event["epoch"])


def _short(name: str) -> str:
    """Fits a column, and means nothing to matplotlib: a "$" would begin a formula, a leading "_" hides a label."""
    name = name if len(name) <= 18 else f"{name[:17]}…"
    return name.replace("$", r"\$").replace("_", "\u200b_", 1) if name.startswith("_") else name.replace("$", r"\$")


def _themed_svg(figure: Any, key: str) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9]+_[0-9.]+"', "", svg)  # unused, and doubled from one figure to the next
    svg = re.sub(r"font: ([^;\"]*?)'?sans-serif'?", r"font: \1inherit", svg)
    for colour, variable in _VARIABLES.items():
        svg = re.sub(colour, f"var({variable})", svg, flags=re.IGNORECASE)
    return svg


_VARIABLES = {
    _INK: "--ink",
    _MUTED: "--muted",
    _GRID: "--grid",
    **{colour: f"--s{i}" for i, colour in enumerate(SERIES_LIGHT)},
}


def _fixed(_: _Data) -> float:
    return _HEIGHT


def _by_class(data: _Data) -> float:
    return max(1.7, 1.0 + 0.34 * len(data.summary.names))


def _by_class_and_site(data: _Data) -> float:
    if len(data.sites) > _SITES_SIDE_BY_SIDE:
        return 1.2 + 0.26 * len(data.sites)
    return max(1.7, 1.0 + 0.2 * len(data.summary.names) * max(len(data.sites), 1))


def _by_node(data: _Data) -> float:
    return max(1.5, 1.1 + 0.26 * len(data.sites))


def _by_site(data: _Data) -> float:
    return 0.7 + 2.1 * -(-max(len(data.sites), 1) // 3)


_PLOTS: tuple[tuple[str, str, str, Callable[[Any, _Data], bool], Callable[[_Data], float]], ...] = (
    (
        "rounds",
        "Quality, round by round",
        "On validation pictures of the sites (“together”: of all of them, each site counted once where they cannot be "
        "tested as one set). 1 would be perfect.",
        _draw_rounds,
        _fixed,
    ),
    (
        "sites",
        "Quality at each site",
        "On each site's own validation pictures; each site has its own scale.",
        _draw_sites,
        _by_site,
    ),
    (
        "taking-part",
        "Who took part",
        "Whose update went into which round.",
        _draw_taking_part,
        _by_node,
    ),
    (
        "classes",
        "Each kind of object",
        "On the test pictures of all sites, with the weights each row ends with.",
        _draw_classes,
        _by_class,
    ),
    (
        "objects",
        "What each site has to learn from",
        "Marked objects in its training pictures.",
        _draw_objects,
        _by_class_and_site,
    ),
    (
        "losses",
        "Losses during training",
        "Of the row “together”, for each site. Lower is better.",
        _draw_losses,
        _fixed,
    ),
    ("bytes", "Data on the wire", "Counted as sent, for each round of “together”.", _draw_bytes, _fixed),
    ("phases", "Where the time went", "For each round of “together”.", _draw_phases, _fixed),
)
