"""What a run shows while it goes on: bars on a terminal, one line an epoch and message anywhere else."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from manyeyes.report.runlog import Event
from manyeyes.report.tables import MIXED, format_bytes, format_seconds, model_label

__all__ = ["LiveView", "Narrator", "RunClock", "total_loss"]

_logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_UPDATES = 0.25
_LINES_SHOWN = 6
# Nodes that are named or drawn; a simulation may have thousands.
_MOST_NODES = 16
_SILENT_LINES = frozenset({"progress", "round_started", "node_asked", "contribution"})


def total_loss(losses: Mapping[str, float]) -> float:
    """The one number shown for a fit: "loss" if the learner reports it beside its parts, else the sum of the parts."""
    return losses["loss"] if "loss" in losses else sum(losses.values())


class Narrator:
    """Turns events into plain lines; knows what must be remembered for that from one event to the next.

    A node's last epoch waits for the message that follows it, so that both stand in one line:

    >>> narrator = Narrator()
    >>> fit = {"row": "together", "round": 3, "node": "A"}
    >>> narrator({"event": "epoch_finished", **fit, "epoch": 1, "epochs": 2, "losses": {"box": 1.0, "cls": 0.31}})
    ['[Node A] round 3 epoch 1/2 loss 1.31']
    >>> narrator({"event": "epoch_finished", **fit, "epoch": 2, "epochs": 2, "losses": {"box": 0.9, "cls": 0.34}})
    []
    >>> narrator({"event": "update_received", **fit, "bytes": 1_400_000})
    ['[Node A] round 3 epoch 2/2 loss 1.24 → sending 1.4 MB']
    """

    def __init__(self) -> None:
        self._map50: dict[tuple[str, str], float] = {}
        self._waiting: dict[tuple[str, str], str] = {}
        self._at_once = False

    def __call__(self, event: Event) -> list[str]:
        """The lines to show for one event; none for most."""
        kind = event["event"]
        if kind in _SILENT_LINES:
            return []
        if kind == "epoch_finished":
            return self._epoch(event)
        if kind == "update_received":
            text = self._waiting.pop(_fit_of(event), f"{self._who(event)} round {event['round']}")
            late = f", {_count(event['staleness'])} late" if event.get("staleness") else ""
            return [f"{text} → sending {format_bytes(event['bytes'])}{late}"]
        row = event.get("row")
        lines = self.flush() if row is None else self.flush(str(row))
        if kind == "evaluated":
            return lines + self._evaluated(event)
        tell = _TELLERS.get(kind)
        if kind == "run_started":
            self._at_once = event.get("rows_at_once", 1) > 1
        return [*lines, *(tell(event) if tell else ())]

    def flush(self, row: str | None = None) -> list[str]:
        """The lines of epochs that no message followed; of one row, or of all."""
        waiting = [fit for fit in self._waiting if row is None or fit[0] == row]
        return [self._waiting.pop(fit) for fit in waiting]

    def _who(self, event: Event) -> str:
        row = f"{model_label(str(event.get('row', '')))}, " if self._at_once else ""
        return f"[{row}Node {event['node']}]"

    def _epoch(self, event: Event) -> list[str]:
        fit = _fit_of(event)
        lines = [self._waiting.pop(fit)] if fit in self._waiting else []
        text = f"{self._who(event)} round {event['round']} epoch {event['epoch']}/{event['epochs']}"
        text += f" loss {total_loss(event['losses']):.2f}"
        if fit in self._map50:
            text += f" mAP50 {self._map50[fit]:.3f}"
        if event["epoch"] < event["epochs"]:
            return [*lines, text]
        self._waiting[fit] = text
        return lines

    def _evaluated(self, event: Event) -> list[str]:
        where, map50 = str(event["where"]), float(event["metrics"]["map50"])
        number = f" round {event['round']}" if event.get("round") else ""
        if event.get("round") == 0 and event["split"] == "val":
            number = " at the start"
        if event["split"] == "val":
            self._map50[str(event.get("row", "")), where] = map50
        place = "the pictures of all sites" if where in (MIXED, "pooled") else f"{where}'s pictures"
        return [f"[{model_label(str(event.get('row', '')))}]{number} mAP50 {map50:.3f} on {place} ({event['split']})"]


def _count(rounds: int) -> str:
    return f"{rounds} round" if rounds == 1 else f"{rounds} rounds"


def _fit_of(event: Event) -> tuple[str, str]:
    return str(event.get("row", "")), str(event["node"])


def _tell_run(event: Event) -> list[str]:
    sites = ", ".join(
        f"{s['node_id']} ({sum(s.get('pictures', {}).values())} pictures)" for s in event.get("sites", ())
    )
    return [f"Run {event.get('name', '')}: {sites}" if sites else f"Run {event.get('name', '')}"]


def _tell_views(event: Event) -> list[str]:
    most = format_bytes(max(event["bytes"].values()))
    return [
        f"Frozen layers are computed once for each view (train.cache_views={event['views']}); the views of a row take "
        f"up to {most} on the disk and are deleted when it is finished"
    ]


def _tell_row(event: Event) -> list[str]:
    text = f"[{model_label(str(event.get('row', '')))}] {event.get('rounds', '?')} rounds"
    if event.get("nodes"):
        text += f" with {_some(list(map(str, event['nodes'])))}"
    if event.get("resumed_from"):
        text += f", resumed after round {event['resumed_from']}"
    return [text]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NODES} more" if len(names) > _MOST_NODES else ""
    return ", ".join(names[:_MOST_NODES]) + more


def _tell_refusal(event: Event) -> list[str]:
    return [f"[Node {event['node']}] round {event['round']} update refused: {event['reason']}"]


def _tell_late(event: Event) -> list[str]:
    return [f"[Node {event['node']}] round {event['round']} {event['reason']}; merged in the round in which it comes"]


def _tell_finetuned(event: Event) -> list[str]:
    return [f"[Node {event['node']}] own model mAP50 {event['metrics']['map50']:.3f} on its own pictures (val)"]


def _tell_published(event: Event) -> list[str]:
    what = "its site uses the model now" if event["used"] else "keeps the model; its site uses another"
    return [f"[Node {event['node']}] {what}"]


def _tell_warning(event: Event) -> list[str]:
    who = f"Node {event['node']}" if "node" in event else model_label(str(event.get("row", "")))
    number = f" round {event['round']}" if event.get("round") else ""
    return [f"[{who}]{number} warning: {event['reason']}"]


def _tell_round(event: Event) -> list[str]:
    text = f"[{model_label(str(event.get('row', '')))}] round {event['round']} finished"
    text += f": {format_bytes(event.get('bytes_up', 0))} up, {format_bytes(event.get('bytes_down', 0))} down"
    seconds = event.get("seconds", {}).get("total")
    return [text if seconds is None else f"{text}, {format_seconds(seconds)}"]


def _tell_interruption(event: Event) -> list[str]:
    resume = f" {event['resume']}" if event.get("resume") else ""
    return [f"Interrupted ({event.get('signal', 'stopped')}); what was finished is kept.{resume}"]


_TELLERS: dict[str, Callable[[Event], list[str]]] = {
    "run_started": _tell_run,
    "views_planned": _tell_views,
    "row_started": _tell_row,
    "update_refused": _tell_refusal,
    "update_late": _tell_late,
    "finetuned": _tell_finetuned,
    "published": _tell_published,
    "warning": _tell_warning,
    "round_finished": _tell_round,
    "interrupted": _tell_interruption,
}


class RunClock:
    """Estimates the time left of a whole run from the rounds that are finished.

    A round of a row costs as much as its nodes have training pictures; a round that runs counts by the share of
    its fits. What an earlier session finished costs nothing now and is left out of the pace. Rows may run at the same
    time: then the last one may take longer than all the work that is left would with everybody at it.

    Args:
        now: seconds on any steady clock.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._rows: dict[str, _RowClock] = {}
        self._pictures: dict[str, float] = {}
        self._begin: float | None = None

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        kind = event["event"]
        if kind == "run_started":
            self._plan(event)
        row = self._rows.get(str(event.get("row")))
        if row is None:
            return
        if kind == "row_started":
            row.finished = row.resumed_from = int(event.get("resumed_from") or 0)
        elif kind == "round_started":
            row.begin = self._now() if row.begin is None else row.begin
            self._begin = row.begin if self._begin is None else self._begin
            row.fits.clear()
        elif kind == "progress":
            row.fits[str(_node(event))] = event["step"] / max(event["steps"], 1)
        elif kind == "round_finished":
            row.finished = int(event["round"])
            row.fits.clear()

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last round of all rows, or None while nothing is known to go by."""
        done = sum(row.done(self._pictures) for row in self._rows.values())
        if self._begin is None or done <= 0:
            return None
        now = self._now()
        left = {name: row.left(self._pictures) for name, row in self._rows.items()}
        of_all = (now - self._begin) / done * sum(left.values())
        return max(of_all, *(row.seconds_left(now, self._pictures) for row in self._rows.values()))

    def _plan(self, event: Event) -> None:
        self._pictures = {
            str(s["node_id"]): float(s.get("pictures", {}).get("train", 1)) for s in event.get("sites", ())
        }
        everything = sum(self._pictures.values()) or 1.0
        self._rows = {}
        for row in event.get("rows", ()):
            cost = sum(self._pictures.get(str(node), 0.0) for node in row.get("nodes", ()))
            self._rows[str(row["row"])] = _RowClock(int(row.get("rounds") or 0), cost or everything)


@dataclass(slots=True)
class _RowClock:
    """How far a row is; work is counted in pictures."""

    rounds: int
    cost: float
    finished: int = 0
    resumed_from: int = 0
    begin: float | None = None
    fits: dict[str, float] = field(default_factory=dict)

    def done(self, pictures: Mapping[str, float]) -> float:
        """Work of this session."""
        return (self.finished - self.resumed_from) * self.cost + self._running(pictures)

    def left(self, pictures: Mapping[str, float]) -> float:
        """Work that is still to come."""
        return max((self.rounds - self.finished) * self.cost - self._running(pictures), 0.0)

    def seconds_left(self, now: float, pictures: Mapping[str, float]) -> float:
        """At this row's own pace; 0 while it has none."""
        done = self.done(pictures)
        return 0.0 if self.begin is None or done <= 0 else (now - self.begin) / done * self.left(pictures)

    def _running(self, pictures: Mapping[str, float]) -> float:
        # Merging and testing follow the fits: a round whose fits are done is not done.
        weight = {node: pictures.get(node, 1.0) for node in self.fits}
        done = sum(share * weight[node] for node, share in self.fits.items())
        return 0.9 * self.cost * min(done / max(self.cost, sum(weight.values()), 1e-9), 1.0)


@dataclass(slots=True)
class _NodeState:
    share: float = 0.0
    status: str = "waiting"
    detail: str = ""
    map50: float | None = None
    told: int = 0


@dataclass(slots=True)
class _RowState:
    round: int
    rounds: int | None
    nodes: dict[str, _NodeState]
    asked: int = 0
    came: int = 0
    told: int = 0

    def node(self, event: Event) -> _NodeState:
        state = self.nodes.setdefault(str(_node(event)), _NodeState())
        self.told += 1
        state.told = self.told
        return state

    def shown(self) -> list[tuple[str, _NodeState]]:
        """All nodes; of many, those of the round that were heard of last, in the order of their names."""
        if not self.many:
            return list(self.nodes.items())
        latest = sorted(self.nodes.items(), key=lambda item: -item[1].told)[:_MOST_NODES]
        return sorted((name, state) for name, state in latest if state.told)

    @property
    def many(self) -> bool:
        return len(self.nodes) > _MOST_NODES


@dataclass(slots=True)
class _Board:
    """What the terminal shows, kept up to date event by event."""

    clock: RunClock = field(default_factory=RunClock)
    title: str = ""
    rows: dict[str, _RowState] = field(default_factory=dict)
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES_SHOWN))

    def take(self, event: Event, lines: Sequence[str]) -> None:
        self.clock(event)
        self.lines.extend(lines)
        kind, name = event["event"], str(event.get("row", ""))
        if kind == "run_started":
            self.title = str(event.get("name", ""))
        elif kind == "row_started":
            nodes = {str(node): _NodeState() for node in event.get("nodes", ())}
            self.rows[name] = _RowState(int(event.get("resumed_from") or 0), event.get("rounds"), nodes)
        elif kind == "evaluated" and event["split"] == "test":
            self.rows.pop(name, None)
        elif kind in _BOARD:
            _BOARD[kind](self.rows.setdefault(name, _RowState(0, None, {})), event)

    def render(self) -> RenderableType:
        head = Text(self.title, style="dim")
        left = self.clock.seconds_left
        if left is not None:
            head.append(f"  about {format_seconds(left)} left in all", "dim")
        lines = [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in self.lines]
        parts = [part for name, row in self.rows.items() for part in (_row_head(name, row), _row_bars(row))]
        return Group(head, *parts, *lines)


def _row_head(name: str, row: _RowState) -> Text:
    head = Text(model_label(name), style="bold")
    if row.rounds:
        head.append(f"  round {row.round} of {row.rounds}", "not bold")
    if row.many and row.asked:
        head.append(f"  {row.came} of {row.asked} updates", "not bold")
    return head


def _row_bars(row: _RowState) -> Table:
    bars = Table.grid(padding=(0, 2))
    for name, state in row.shown():
        map50 = "" if state.map50 is None else f"mAP50 {state.map50:.3f}"
        bar = ProgressBar(total=1.0, completed=state.share, width=24)
        bars.add_row(Text(name, style="bold"), bar, escape(state.status), map50, Text(state.detail, style="dim"))
    if row.many:
        bars.add_row(Text(f"… {len(row.nodes) - _MOST_NODES} more", style="dim"))
    return bars


def _board_round(row: _RowState, event: Event) -> None:
    cohort = frozenset(event.get("cohort", ()))
    row.round, row.asked, row.came, row.told = int(event["round"]), len(cohort), 0, 1
    for name, state in row.nodes.items():
        state.told = int(name in cohort)
        state.share, state.status, state.detail = 0.0, "waiting", ""


def _board_asked(row: _RowState, event: Event) -> None:
    row.asked += 1


def _board_progress(row: _RowState, event: Event) -> None:
    state = row.node(event)
    state.share = event["step"] / max(event["steps"], 1)
    state.status = f"epoch {event['epoch']}/{event['epochs']}"
    loss = total_loss(event.get("losses", {}))
    left = format_seconds(event.get("seconds_left", 0.0))
    state.detail = f"loss {loss:.2f}  {event.get('images_per_second', 0.0):.1f} pictures/s  {left} left"


def _board_update(row: _RowState, event: Event) -> None:
    state = row.node(event)
    row.came += 1
    state.share, state.status = 1.0, f"sent {format_bytes(event['bytes'])}"
    state.detail = f"{format_seconds(event['seconds'])}" if "seconds" in event else ""
    if event.get("staleness"):
        state.detail += f", {_count(event['staleness'])} late"


def _board_late(row: _RowState, event: Event) -> None:
    state = row.node(event)
    state.status, state.detail = "late", str(event["reason"])


def _board_refusal(row: _RowState, event: Event) -> None:
    state = row.node(event)
    state.status, state.detail = "refused", str(event["reason"])


def _board_evaluated(row: _RowState, event: Event) -> None:
    where = str(event["where"])
    if where in row.nodes:
        row.nodes[where].map50 = float(event["metrics"]["map50"])


_BOARD: dict[str, Callable[[_RowState, Event], None]] = {
    "round_started": _board_round,
    "node_asked": _board_asked,
    "progress": _board_progress,
    "update_received": _board_update,
    "update_refused": _board_refusal,
    "update_late": _board_late,
    "evaluated": _board_evaluated,
}


class LiveView:
    """A listener for `RunLog` that shows the run, and a context manager around it.

    On a terminal it draws a bar for each node; elsewhere it prints plain lines. It never raises into the run: the
    first failure is logged and the view stays silent from then on.

    Args:
        console: where to show; default: standard output.
        quiet: show nothing.

    Example:
        with LiveView() as view:
            log.listeners.append(view)
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or Console()
        self._narrator = Narrator()
        self._board = _Board()
        self._live: Live | None = None
        self._off = quiet
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        if not self._off and self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._guarded(self._close)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._guarded(lambda: self._show(event))

    def _guarded(self, action: Callable[[], None]) -> None:
        if self._off:
            return
        try:
            action()
        except (Exception, SystemExit):
            # Hours of training must not end because a line could not be drawn; rich leaves the program
            # (SystemExit) when standard output is a pipe that was closed, as in `manyeyes run … | head`.
            self._off = True
            _logger.warning("The view of the run failed and is switched off; the run goes on.", exc_info=True)

    def _close(self) -> None:
        lines = self._narrator.flush()
        if self._live is None:
            self._print(lines)
            return
        self._board.lines.extend(lines)
        self._live.update(self._board.render(), refresh=True)
        self._live.stop()

    def _show(self, event: Event) -> None:
        lines = self._narrator(event)
        if self._live is None:
            self._print(lines)
            return
        self._board.take(event, lines)
        now = time.monotonic()
        if event["event"] != "progress" or now - self._shown_at >= _SECONDS_BETWEEN_UPDATES:
            self._shown_at = now
            self._live.update(self._board.render(), refresh=True)

    def _print(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _node(event: Event) -> Any:
    """`progress` carries a learner's `node_id`; all other events name the `node`."""
    return event["node"] if "node" in event else event["node_id"]
