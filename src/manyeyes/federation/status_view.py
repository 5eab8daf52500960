"""A coordinator's status for people: a table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from datetime import datetime

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from manyeyes.federation.status import NodeStatus, Status
from manyeyes.report.nodes import NodeSummary
from manyeyes.report.tables import format_bytes, format_seconds

__all__ = ["render_status", "show_status", "tell_status", "watch_status"]

_ROUNDS_SHOWN = 6
_LEAST_COLUMNS = 150
_STYLES = {"finished": "green", "running": "bold", "failed": "bold red", "died": "bold red"}


def render_status(status: Status, *, columns: int = _LEAST_COLUMNS) -> RenderableType:
    """Everything about a coordinator and its run, for so many columns."""
    parts: list[RenderableType] = [_head(status), *(Text(line) for line in _facts(status))]
    parts.append(_node_table(status, columns) if status.nodes else Text("Nobody has been admitted yet."))
    if status.nodes and columns < _LEAST_COLUMNS:
        parts.append(_member_table(status))
    if scores := _score_table(status):
        parts += [Text("mAP50 on each site's validation pictures"), scores]
    return Group(*parts)


def show_status(status: Status, console: Console) -> None:
    """Print it; without a terminal as wide as it needs to be, so that nothing is cut off."""
    console = _wide_enough(console)
    console.print(render_status(status, columns=console.width))


def tell_status(look: Callable[[], Status], every: float = 2.0) -> None:
    """One JSON object a line, again and again until Ctrl-C or until nobody reads any more."""
    with contextlib.suppress(BrokenPipeError):
        while True:
            sys.stdout.write(json.dumps(look().to_dict(), ensure_ascii=False) + "\n")
            sys.stdout.flush()
            time.sleep(every)


def watch_status(look: Callable[[], Status], console: Console, every: float = 2.0) -> None:
    """Show the status again and again until Ctrl-C; without a terminal, whenever something has changed."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(render_status(look(), columns=console.width), refresh=True)
                time.sleep(every)
    before: object = None
    while True:
        status = look()
        if (news := _news(status)) != before:
            show_status(status, console)
        before = news
        time.sleep(every)


def _news(status: Status) -> object:
    """What is worth another table where each stays: not the seconds that pass."""
    nodes = [(node.node_id, node.online, node.away, node.doing, node.member) for node in status.nodes]
    rounds = (status.summary.round, status.summary.rounds_done) if status.summary else None
    return status.phase, rounds, nodes


def _wide_enough(console: Console) -> Console:
    if not console.is_terminal and console.width < _LEAST_COLUMNS:
        console.width = _LEAST_COLUMNS
    return console


def _head(status: Status) -> Text:
    head = Text(status.name or "No run yet", style="bold")
    head.append("  ")
    return head.append(_state(status), _STYLES.get(status.phase, "not bold"))


def _state(status: Status) -> str:
    summary = status.summary
    done = f"after {summary.rounds_done} of {summary.rounds or '?'} rounds" if summary else "before any round"
    if status.phase == "starting":
        return "is starting"
    if status.phase == "waiting":
        there = sum(1 for node in status.nodes if node.online)
        return f"waits for nodes: {there} of {status.min_nodes} are there"
    if status.phase == "running":
        at = f"in round {summary.round} of {summary.rounds}" if summary and summary.round else "between two rounds"
        if summary and not summary.round and not summary.rounds_done:
            at = "the nodes test the weights it begins with"
        left = "" if status.seconds_left is None else f", about {format_seconds(status.seconds_left)} left"
        return f"{at}{left}"
    if status.phase == "finished":
        return f"finished {done}"
    if status.phase == "died":
        return f"died {done}: its process is gone. Go on with: manyeyes coordinator --config … --resume"
    why = f" ({status.reason})" if status.reason else ""
    if status.phase in ("stopped", "failed"):
        return f"{status.phase} {done}{why}"
    return f"unknown: nobody wrote what became of it {done}" if summary else "no coordinator has been started yet"


def _facts(status: Status) -> list[str]:
    lines = []
    if status.started and status.at_work:
        lines.append(
            f"process {status.pid} on {status.host}, since {_clock(status.started)}"
            + (f", listening on {status.address}" if status.address else "")
            + (f", metrics on 127.0.0.1:{status.metrics_port}" if status.metrics_port else "")
        )
    elif status.updated:
        lines.append(f"last heard of {_clock(status.updated)}")
    summary = status.summary
    if summary:
        last = sorted(summary.round_seconds.items())[-1:]
        parts = [f"{summary.rounds_done} of {summary.rounds or '?'} rounds are finished"]
        parts += [f"the last took {format_seconds(seconds)}" for _, seconds in last]
        parts.append(f"{format_bytes(summary.bytes_up)} up and {format_bytes(summary.bytes_down)} down")
        if summary.refusals:
            parts.append(f"{len(summary.refusals)} not merged, the last: {summary.refusals[-1].reason}")
        lines.append(", ".join(parts))
    if status.run:
        lines.append(f"run {status.run}")
    return lines


def _node_table(status: Status, columns: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="", pad_edge=False)
    table.add_column("node", overflow="fold")
    for title in ("now", "last seen", "round"):
        table.add_column(title, no_wrap=True)
    for title in ("merged", "pictures", "up", "down"):
        table.add_column(title, justify="right", no_wrap=True)
    wide = columns >= _LEAST_COLUMNS
    if wide:
        table.add_column("admitted", no_wrap=True)
        table.add_column("fingerprint", no_wrap=True)
    for node in status.nodes:
        told = node.summary
        table.add_row(
            escape(node.node_id),
            _online(node),
            "unknown" if node.last_seen is None else _ago(status.now - node.last_seen),
            _round(status, node),
            "–" if told is None else f"{len(told.merged)} of {len(told.asked)}",
            "unknown" if told is None or told.pictures is None else f"{told.pictures:,}",
            "–" if told is None or told.bytes_up is None else format_bytes(told.bytes_up),
            "–" if told is None or told.bytes_down is None else format_bytes(told.bytes_down),
            *((_admitted(node), _fingerprint(node)) if wide else ()),
        )
    return table


def _online(node: NodeStatus) -> str:
    if node.online is None:
        return "unknown"
    if node.away:
        return f"[yellow]away {escape(node.away)}[/]"
    return "[green]online[/]" if node.online else "[red]offline[/]"


def _round(status: Status, node: NodeStatus) -> str:
    if node.doing and status.summary:
        return f"{status.summary.round}: {node.doing}"
    last = node.summary.last_round if node.summary else None
    return "–" if last is None else f"{last}"


def _admitted(node: NodeStatus) -> str:
    if node.member is None:
        return "unknown"
    return f"[red]revoked[/] {node.member.revoked[:10]}" if node.member.revoked else node.member.admitted[:10]


def _member_table(status: Status) -> Table:
    """Where one line would be too long, who was admitted stands by itself: a fingerprint must be whole."""
    table = Table(box=box.SIMPLE_HEAD, header_style="", pad_edge=False)
    table.add_column("node", overflow="fold")
    table.add_column("admitted", no_wrap=True)
    table.add_column("fingerprint", no_wrap=True)
    for node in status.nodes:
        table.add_row(escape(node.node_id), _admitted(node), _fingerprint(node))
    return table


def _fingerprint(node: NodeStatus) -> str:
    return node.member.fingerprint if node.member else "unknown"


def _score_table(status: Status) -> Table | None:
    """mAP50 on validation pictures, a line for the start and each of the last rounds."""
    tested = [node.summary for node in status.nodes if node.summary and node.summary.tests]
    rounds = sorted({number for told in tested for number in told.tests})
    if not rounds:
        return None
    table = Table(box=box.SIMPLE_HEAD, header_style="", pad_edge=False)
    table.add_column("round")
    for told in tested:
        table.add_column(escape(told.node), justify="right", overflow="fold")
    table.add_column("seconds", justify="right")
    shown = rounds[-_ROUNDS_SHOWN:]
    for number in ([0] if 0 in rounds and 0 not in shown else []) + shown:
        took = status.summary.round_seconds.get(number) if status.summary else None
        cells = [_score(told, number) for told in tested]
        table.add_row("start" if number == 0 else str(number), *cells, "–" if took is None else f"{took:.1f}")
    return table


def _score(told: NodeSummary, number: int) -> str:
    metrics = told.tests.get(number)
    return f"{metrics.map50:.3f}" if metrics and metrics.ap50 else "–"


def _ago(seconds: float) -> str:
    return "now" if seconds < 5 else f"{format_seconds(seconds)} ago"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).isoformat(sep=" ", timespec="seconds")
