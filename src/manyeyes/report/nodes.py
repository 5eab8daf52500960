"""What the run of a coordinator comes to: who took part, what each site gains, and what it cost.

A coordinator holds no pictures. Everything here is what nodes told: average precision on their own validation
pictures, of the weights the run began with (round 0) and after each round. What no node told is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from manyeyes.learners.learner import Metrics
from manyeyes.report.runlog import Event, losses_of_update, without_redone
from manyeyes.report.tables import EVEN, format_bytes, format_points, format_seconds, seconds_at_work

__all__ = ["NodeSummary", "NodesSummary", "Refusal", "render_nodes", "summarise_nodes"]

_RECENT = 5


@dataclass(frozen=True, slots=True)
class Refusal:
    """An update that was not merged, or that never came."""

    round: int
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class NodeSummary:
    """One node over the whole run.

    Attributes:
        pictures: training pictures it told with its last update.
        asked, merged: rounds in which it was asked to train, and in which its update was merged.
        refused: rounds in which an answer of it was not merged, with the reason.
        tests: its metrics on its validation pictures by round; 0 stands for the weights the run began with.
        seconds: from a round's request to its update, by round.
        losses: by round, as it told them.
        finetuned: of its own model, made from that of the last round, on the same pictures; None if it made none.
        bytes_up, bytes_down: of finished rounds; None before the first.
        kept: the round whose weights the run ended with; None while it goes on.
    """

    node: str
    pictures: int | None = None
    asked: tuple[int, ...] = ()
    merged: tuple[int, ...] = ()
    refused: Mapping[int, str] = field(default_factory=dict)
    tests: Mapping[int, Metrics] = field(default_factory=dict)
    seconds: Mapping[int, float] = field(default_factory=dict)
    losses: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    bytes_up: int | None = None
    bytes_down: int | None = None
    kept: int | None = None
    finetuned: Metrics | None = None

    @property
    def start(self) -> Metrics | None:
        """Of the weights the run began with."""
        return self._tested(0)

    @property
    def now(self) -> Metrics | None:
        """Of the weights the run ended with, or of the last round it tested while the run goes on."""
        if self.kept is not None:
            return self._tested(self.kept)
        rounds = [number for number in self.tests if number and self._tested(number)]
        return self.tests[max(rounds)] if rounds else None

    @property
    def val_pictures(self) -> int | None:
        """Validation pictures it tests on."""
        return self.tests[max(self.tests)].num_images if self.tests else None

    @property
    def gain(self) -> float | None:
        """mAP50 of `now` minus that of `start`."""
        return None if self.start is None or self.now is None else self.now.map50 - self.start.map50

    @property
    def better_off(self) -> bool | None:
        """Whether it gains; None if that is not known or too close to call (`EVEN`)."""
        return None if self.gain is None or abs(self.gain) < EVEN else self.gain > 0

    @property
    def last_round(self) -> int | None:
        """The last round it answered in any way."""
        return max((*self.merged, *self.refused, *self.tests), default=None)

    @property
    def verdict(self) -> str:
        """One honest sentence for the people of the site."""
        if self.now is None:
            what = "the common model" if self.kept is None or not self.tests else "the weights that were kept"
            return f"{self.node} has told no test of {what} on validation pictures."
        if self.gain is None:
            return f"{self.node} did not test the weights the run began with, so a gain is not known."
        points = f"{abs(self.gain) * 100:.1f} points"
        if self.better_off is None:
            return f"{self.node} neither gains nor loses: the difference is {points}."
        if self.better_off:
            return f"{self.node} gains {points} against the weights the run began with."
        return f"{self.node} loses {points} against the weights the run began with."

    def _tested(self, number: int) -> Metrics | None:
        """A test that says something: without objects on its validation pictures there is no precision."""
        metrics = self.tests.get(number)
        return metrics if metrics and metrics.ap50 else None


@dataclass(frozen=True, slots=True)
class NodesSummary:
    """A whole run of a coordinator.

    Attributes:
        names: class names.
        nodes: all that were ever asked or answered, by name.
        rounds, rounds_done: asked for (None: not known), and finished.
        round: the round that was begun and not finished; None if there is none.
        cohort: nodes that are asked in that round.
        kept: the round whose weights the run ended with; None while it goes on.
        best: whether that is the best round on validation pictures, and not simply the last.
        round_seconds: of each finished round.
        refusals: in the order they happened.
        warnings: their reasons.
        bytes_up, bytes_down: of finished rounds.
        seconds: of the whole run, without the pauses of a resumed one.
        finished: whether the run came to its end.
    """

    name: str
    seed: int | None
    names: tuple[str, ...]
    nodes: tuple[NodeSummary, ...]
    rounds: int | None
    rounds_done: int
    round: int | None
    cohort: tuple[str, ...]
    kept: int | None
    best: bool
    round_seconds: Mapping[int, float]
    refusals: tuple[Refusal, ...]
    warnings: tuple[str, ...]
    bytes_up: int
    bytes_down: int
    seconds: float
    finished: bool

    def node(self, name: str) -> NodeSummary | None:
        """The node of that name."""
        return next((node for node in self.nodes if node.node == name), None)

    @property
    def map50(self) -> float | None:
        """Mean of `NodeSummary.now` over the sites that tested; each site counts once."""
        return _mean(node.now.map50 for node in self.nodes if node.now)

    @property
    def gain(self) -> float | None:
        """Mean of `NodeSummary.gain` over the sites for which it is known."""
        return _mean(node.gain for node in self.nodes if node.gain is not None)

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the last rounds; None before the first is finished, or where the end is not known."""
        if self.rounds is None or not self.round_seconds:
            return None
        recent = [self.round_seconds[number] for number in sorted(self.round_seconds)[-_RECENT:]]
        return fmean(recent) * max(self.rounds - self.rounds_done, 0)

    def doing(self, node: NodeSummary) -> str | None:
        """What a node does or did last in the round that was begun; None if it has no part in it."""
        number = self.round
        if number is None or (node.node not in self.cohort and number not in node.tests):
            return None
        if number in node.tests:
            return "tested"
        if number not in node.merged:
            return "refused" if number in node.refused else "trains"
        answered = {n.node for n in self.nodes if number in n.merged or number in n.refused}
        return "tests" if answered.issuperset(self.cohort) else "sent"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; null where it is not known."""
        return {
            "name": self.name,
            "seed": self.seed,
            "names": list(self.names),
            "held_by": "coordinator",
            "finished": self.finished,
            "rounds": self.rounds,
            "rounds_done": self.rounds_done,
            "kept": self.kept,
            "map50": self.map50,
            "gain": self.gain,
            "nodes": [_node_dict(node) for node in self.nodes],
            "refused": [
                {"round": refusal.round, "node": refusal.node, "reason": refusal.reason} for refusal in self.refusals
            ],
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "seconds": round(self.seconds, 3),
        }


def summarise_nodes(events: Iterable[Event]) -> NodesSummary:
    """Sum up a coordinator's run from its events, as `read_runlog` gives them, as far as it came."""
    raw = list(events)
    counted = without_redone(raw)
    started = _last(counted, "run_started")
    ended = _last(counted, "row_finished")
    finished = {int(e["round"]): e for e in counted if e["event"] == "round_finished"}
    begun = _last(counted, "round_started")
    running = begun if begun and int(begun["round"]) not in finished else {}
    kept = ended.get("kept")
    planned = [row.get("rounds") for row in started.get("rows", ())]
    return NodesSummary(
        name=str(started.get("name", "")),
        seed=started.get("seed"),
        names=tuple(started.get("names", ())),
        nodes=tuple(_summarise_node(node, counted, finished, kept) for node in _names(counted)),
        rounds=_last(counted, "row_started").get("rounds") or next(iter(planned), None),
        rounds_done=len(finished),
        round=running.get("round"),
        cohort=tuple(sorted(_asked_in(counted, running["round"]))) if running else (),
        kept=kept,
        best=ended.get("score") is not None,
        round_seconds={n: float(e["seconds"]["total"]) for n, e in finished.items() if "total" in e.get("seconds", {})},
        refusals=tuple(
            Refusal(int(e["round"]), str(e["node"]), str(e["reason"]))
            for e in counted
            if e["event"] == "update_refused"
        ),
        warnings=tuple(str(e["reason"]) for e in counted if e["event"] == "warning"),
        bytes_up=sum(int(e.get("bytes_up", 0)) for e in finished.values()),
        bytes_down=sum(int(e.get("bytes_down", 0)) for e in finished.values()),
        seconds=seconds_at_work(raw),
        finished=bool(ended),
    )


def render_nodes(summary: NodesSummary, console: Console) -> None:
    """Print what a coordinator's run comes to: each site's own figures with a verdict, bytes and time."""
    table = Table(
        title="mAP50 on each site's own validation pictures",
        title_justify="left",
        title_style="bold",
        header_style="",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("site", overflow="fold")
    own = any(node.finetuned for node in summary.nodes)
    for title in ("pictures", "updates", "at the start", "now", *(["finetuned"] if own else ()), "gain", "bytes up"):
        table.add_column(title, justify="right", no_wrap=True)
    for node in summary.nodes:
        table.add_row(
            escape(node.node),
            _text(node.val_pictures),
            f"{len(node.merged)} of {len(node.asked)}",
            _score(node.start),
            _score(node.now),
            *([_score(node.finetuned)] if own else ()),
            "–" if node.gain is None else format_points(node.gain),
            "–" if node.bytes_up is None else format_bytes(node.bytes_up),
        )
    if summary.nodes:
        console.print(table)
    for node in summary.nodes:
        console.print(_verdict_markup(node), highlight=False)
    for line in _lines(summary):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(summary: NodesSummary) -> list[str]:
    lines = []
    if summary.kept is not None:
        why = ", the best on the sites' validation pictures" if summary.best else ""
        lines.append(f"Kept are the weights of round {summary.kept}{why}.")
    if summary.refusals:
        last = summary.refusals[-1]
        lines.append(
            f"Not merged: {len(summary.refusals)}; the last from {last.node} in round {last.round}: {last.reason}"
        )
    up, down = format_bytes(summary.bytes_up), format_bytes(summary.bytes_down)
    done = f"{summary.rounds_done} of {_text(summary.rounds)} rounds"
    lines.append(f"{done}, {up} up and {down} down, {format_seconds(summary.seconds)} in all.")
    return lines


def _verdict_markup(node: NodeSummary) -> str:
    style, mark = {True: ("green", "▲"), False: ("red", "▼"), None: ("dim", "●")}[node.better_off]
    return f"[{style}]{mark}[/] {escape(node.verdict)}"


def _last(events: Sequence[Event], kind: str) -> Event:
    return next((e for e in reversed(events) if e["event"] == kind), {})


def _names(events: Sequence[Event]) -> list[str]:
    """Everybody who was asked or answered, sorted."""
    names: set[str] = set()
    for event in events:
        if event["event"] == "row_started":
            names.update(map(str, event.get("nodes", ())))
        elif event["event"] == "round_started":
            names.update(map(str, event.get("cohort", ())))
        elif event["event"] in ("node_asked", "update_received", "update_refused"):
            names.add(str(event["node"]))
        elif event["event"] == "evaluated":
            names.add(str(event["where"]))
    return sorted(names)


def _summarise_node(node: str, events: Sequence[Event], finished: Mapping[int, Event], kept: int | None) -> NodeSummary:
    received = [e for e in events if e["event"] == "update_received" and str(e["node"]) == node]
    sent = [e.get("nodes", {}).get(node) for e in finished.values()]
    told = [of_node for of_node in sent if of_node]
    return NodeSummary(
        node=node,
        pictures=int(received[-1]["num_examples"]) if received else None,
        asked=tuple(int(e["round"]) for e in events if node in _asked_by(e)),
        merged=tuple(int(e["round"]) for e in received),
        refused={
            int(e["round"]): str(e["reason"])
            for e in events
            if e["event"] == "update_refused" and str(e["node"]) == node
        },
        tests={
            int(e["round"]): Metrics.from_dict(e["metrics"])
            for e in events
            if e["event"] == "evaluated" and str(e["where"]) == node and e["split"] == "val"
        },
        seconds={int(e["round"]): float(e["seconds"]) for e in received if "seconds" in e},
        losses={int(e["round"]): losses_of_update(e) for e in received},
        bytes_up=sum(int(of_node["bytes_up"]) for of_node in told) if told else None,
        bytes_down=sum(int(of_node["bytes_down"]) for of_node in told) if told else None,
        kept=kept,
        finetuned=next(
            (
                Metrics.from_dict(e["metrics"])
                for e in reversed(events)
                if e["event"] == "finetuned" and str(e["node"]) == node
            ),
            None,
        ),
    )


def _asked_by(event: Event) -> tuple[str, ...]:
    """Nodes that an event says were asked to train."""
    if event["event"] == "node_asked":
        return (str(event["node"]),)
    return tuple(map(str, event.get("cohort", ()))) if event["event"] == "round_started" else ()


def _asked_in(events: Sequence[Event], number: int) -> set[str]:
    return {node for event in events if event.get("round") == number for node in _asked_by(event)}


def _node_dict(node: NodeSummary) -> dict[str, Any]:
    return {
        "node": node.node,
        "pictures": node.pictures,
        "val_pictures": node.val_pictures,
        "asked": len(node.asked),
        "merged": len(node.merged),
        "refused": len(node.refused),
        "last_round": node.last_round,
        "start": node.start.to_dict() if node.start else None,
        "now": node.now.to_dict() if node.now else None,
        "finetuned": node.finetuned.to_dict() if node.finetuned else None,
        "gain": node.gain,
        "better_off": node.better_off,
        "verdict": node.verdict,
        "map50": {str(number): metrics.map50 for number, metrics in sorted(node.tests.items()) if metrics.ap50},
        "bytes_up": node.bytes_up,
        "bytes_down": node.bytes_down,
    }


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def _text(value: int | None) -> str:
    return "–" if value is None else str(value)


def _score(metrics: Metrics | None) -> str:
    return "–" if metrics is None else f"{metrics.map50:.3f}"
