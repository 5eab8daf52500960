"""What a coordinator is at, for whoever asks from another terminal: while it runs, and after it has ended.

A coordinator that runs writes ``status.json`` into its state folder every few seconds; rounds and figures stand in its
run log. Both are read without reaching the coordinator or Flower's database. What neither tells is unknown and said to
be.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manyeyes.errors import Interrupted, ManyeyesError, RunError
from manyeyes.federation.admission import Member, Members
from manyeyes.federation.coordinator_config import CoordinatorConfig
from manyeyes.federation.keys import AUTHORITY
from manyeyes.federation.presence import Presence, Seen
from manyeyes.report.nodes import NodesSummary, NodeSummary, summarise_nodes
from manyeyes.report.runlog import RUNLOG, Event, read_runlog
from manyeyes.weights import write_atomically

__all__ = ["STATUS", "NodeStatus", "Phase", "Status", "StatusWriter", "read_status", "refuse_second"]

STATUS = "status.json"

Phase = Literal["starting", "waiting", "running", "finished", "stopped", "failed", "died", "unknown"]
"""Of a run. "died": it was at work, and its process is gone; "unknown": nobody wrote what became of it."""

_FORMAT = 1
_EVERY_SECONDS = 3.0
# A coordinator on another machine, whose folder is seen from here, is given up when it wrote nothing for so long.
_SILENT_SECONDS = 30.0
_AT_WORK = ("starting", "waiting", "running")

_log = logging.getLogger(__name__)


class _Written(BaseModel):
    """The file; what does not fit is passed over as if there were none."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    format: Literal[1]
    phase: Literal["starting", "waiting", "running", "finished", "stopped", "failed"]
    name: str
    run: Path
    host: str
    pid: int = Field(ge=1)
    process_started: float
    started: float
    updated: float
    address: str | None
    metrics_port: int | None
    min_nodes: int
    reason: str | None
    nodes: dict[str, Seen]


class StatusWriter:
    """Keeps ``status.json`` up to date; a listener for `RunLog`, and a context manager around the run.

    It never raises into the run: what cannot be written is logged once.

    Args:
        config: of the coordinator.
        presence: what the door has seen.
    """

    def __init__(self, config: CoordinatorConfig, presence: Presence) -> None:
        self.phase: Phase = "starting"
        self._path = config.state / STATUS
        self._presence = presence
        self._address: str | None = None
        self._reason: str | None = None
        self._host = config.host
        self._facts = {
            "format": _FORMAT,
            "name": config.name,
            "run": str(config.run_folder.resolve()),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "started": time.time(),
            "metrics_port": config.metrics_port,
            "min_nodes": config.federation.min_nodes,
        }
        self._complained = False
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._keep_writing, name="manyeyes-status", daemon=True)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if error is None:
            self.phase = "finished"
        elif isinstance(error, (Interrupted, KeyboardInterrupt)):
            self.phase, self._reason = "stopped", error.reason if isinstance(error, Interrupted) else "Ctrl-C"
        else:
            self.phase, self._reason = "failed", str(error) if isinstance(error, ManyeyesError) else repr(error)
        self._write()

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        if event["event"] == "row_started":
            self._change("running")
        elif event["event"] == "warning" and event.get("waits"):
            self._change("waiting")

    def listening(self, port: int) -> None:
        """Nodes can come."""
        self._address = f"{self._host}:{port}"
        self._change("waiting")

    def _change(self, phase: Phase) -> None:
        self.phase = phase
        self._write()

    def _keep_writing(self) -> None:
        while not self._ended.wait(_EVERY_SECONDS):
            self._write()

    def _write(self) -> None:
        nodes = {node: asdict(seen) for node, seen in self._presence.nodes().items()}
        changing = {"phase": self.phase, "address": self._address, "reason": self._reason, "updated": time.time()}
        try:
            with self._writing:
                write_atomically(self._path, json.dumps({**self._facts, **changing, "nodes": nodes}), mode=0o600)
        except ManyeyesError as error:
            if not self._complained:
                _log.warning("the status is not kept: %s", error)
            self._complained = True


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node as far as it is known; None where it is not.

    Attributes:
        member: as it was admitted; None if the register does not name it.
        online: whether it is there now; None unless the coordinator is at work.
        away: until when it is not, in its own words; None if it has not said.
        last_seen: its last request to this or the last coordinator process, seconds since 1970.
        doing: "trains", "sent", "tests", "tested" or "refused" in the round that runs.
        summary: what the run log tells of it.
    """

    node_id: str
    member: Member | None
    online: bool | None
    away: str | None
    last_seen: float | None
    doing: str | None
    summary: NodeSummary | None


@dataclass(frozen=True, slots=True)
class Status:
    """A coordinator and its run.

    Attributes:
        phase: of the run.
        reason: why it was stopped or failed.
        name, run: of the run and its folder; None if no run is known.
        state: the coordinator's state folder.
        now: when it was looked, seconds since 1970.
        started, updated: when the process was started, and wrote last; None if none has written.
        pid, host, address, metrics_port: of the process that writes or wrote last.
        min_nodes: how many the run waits for.
        nodes: all that are or were admitted, or stand in the run log.
        summary: what the run log tells; None if there is none.
    """

    phase: Phase
    reason: str | None
    name: str | None
    run: Path | None
    state: Path
    now: float
    started: float | None
    updated: float | None
    pid: int | None
    host: str | None
    address: str | None
    metrics_port: int | None
    min_nodes: int | None
    nodes: tuple[NodeStatus, ...]
    summary: NodesSummary | None

    @property
    def at_work(self) -> bool:
        """Whether a process holds the run now."""
        return self.phase in _AT_WORK

    @property
    def seconds_left(self) -> float | None:
        """Until the last round, by the pace of the last rounds; None if nobody works on it or nothing is known."""
        return self.summary.seconds_left if self.summary and self.phase == "running" else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; null where it is not known."""
        summary, run = self.summary, self.run
        return {
            "phase": self.phase,
            "reason": self.reason,
            "name": self.name,
            "run": None if run is None else str(run),
            "state": str(self.state),
            "now": self.now,
            "started": self.started,
            "updated": self.updated,
            "pid": self.pid,
            "host": self.host,
            "address": self.address,
            "metrics_port": self.metrics_port,
            "min_nodes": self.min_nodes,
            "round": summary.round if summary and self.at_work else None,
            "rounds_done": summary.rounds_done if summary else None,
            "rounds": summary.rounds if summary else None,
            "round_seconds": {str(n): s for n, s in summary.round_seconds.items()} if summary else None,
            "seconds": round(summary.seconds, 3) if summary else None,
            "seconds_left": self.seconds_left,
            "map50": summary.map50 if summary else None,
            "bytes_up": summary.bytes_up if summary else None,
            "bytes_down": summary.bytes_down if summary else None,
            "updates_refused": len(summary.refusals) if summary else None,
            "nodes": [_node_dict(node) for node in self.nodes],
        }


def read_status(
    state: Path,
    run: Path | None = None,
    *,
    now: Callable[[], float] = time.time,
    alive: Callable[..., bool] | None = None,
) -> Status:
    """Look at a coordinator from its files alone.

    Args:
        state: its state folder.
        run: the run's folder; None for the run that was held last.
        now: seconds since 1970.
        alive: whether the process that wrote a status is there; for tests.

    Raises:
        RunError: the folder is not a coordinator's, or a line of the run log is damaged.
        ConfigError: the register of members is damaged.
    """
    written = _read_written(state / STATUS)
    if written is None and not (state / AUTHORITY).exists() and not (run and (run / RUNLOG).exists()):
        raise RunError(
            "holds no coordinator",
            file=state,
            cure="Name its state folder with --state, or its file with --config.",
        )
    if written and run and written.run.resolve() != run.resolve():
        written = None
    folder = run or (written.run if written else None)
    events = list(read_runlog(folder / RUNLOG)) if folder and (folder / RUNLOG).exists() else []
    summary = summarise_nodes(events) if events else None
    phase = _phase(written, events, summary, now(), alive or _is_alive)
    at_work = phase in _AT_WORK
    seen = written.nodes if written else {}
    return Status(
        phase=phase,
        reason=(written.reason if written else None) or _interruption(events, phase),
        name=(summary.name if summary else None) or (written.name if written else None),
        run=folder,
        state=state,
        now=now(),
        started=written.started if written else None,
        updated=written.updated if written else None,
        pid=written.pid if written else None,
        host=written.host if written else None,
        address=written.address if written else None,
        metrics_port=written.metrics_port if written else None,
        min_nodes=written.min_nodes if written else None,
        nodes=_nodes(list(Members(state)), seen, summary, now(), at_work),
        summary=summary,
    )


def refuse_second(state: Path) -> None:
    """Refuse to start where another coordinator is at work: two would write over each other's database and status.

    Raises:
        RunError: names its process and its machine.
    """
    try:
        written = _read_written(state / STATUS)
    except RunError:
        return
    if written and written.phase in _AT_WORK and _is_alive(written, time.time()):
        raise RunError(
            f"another coordinator is at work here (process {written.pid} on {written.host}, run {written.name})",
            file=state,
            cure="Stop it first, or use another state folder.",
        )


def _read_written(path: Path) -> _Written | None:
    try:
        return _Written.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(
            f"cannot be read ({error.strerror})", file=path, cure="Ask as the coordinator's user."
        ) from error
    except ValidationError as error:
        raise RunError("is not a coordinator's status", file=path, cure="Remove it.") from error


def _phase(
    written: _Written | None,
    events: list[Event],
    summary: NodesSummary | None,
    now: float,
    alive: Callable[[_Written, float], bool],
) -> Phase:
    if written:
        return written.phase if written.phase not in _AT_WORK or alive(written, now) else "died"
    if summary and summary.finished:
        return "finished"
    return "stopped" if events and events[-1]["event"] == "interrupted" else "unknown"


def _interruption(events: list[Event], phase: Phase) -> str | None:
    return str(events[-1].get("signal")) if phase == "stopped" and events[-1]["event"] == "interrupted" else None


def _is_alive(written: _Written, now: float) -> bool:
    """Whether the process that wrote is there; a number that another process has got since does not count."""
    if written.host != socket.gethostname():
        return now - written.updated < _SILENT_SECONDS
    try:
        process = psutil.Process(written.pid)
        same = abs(process.create_time() - written.process_started) < 1.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _nodes(
    members: list[Member], seen: dict[str, Seen], summary: NodesSummary | None, now: float, at_work: bool
) -> tuple[NodeStatus, ...]:
    """Of members with one name the last counts: one who was revoked may have been admitted with another key."""
    by_name = {member.node_id: member for member in members}
    told = {node.node for node in summary.nodes} if summary else set()
    names = sorted(by_name.keys() | seen.keys() | told)
    found = []
    for name in names:
        of_log, at_door = summary.node(name) if summary else None, seen.get(name)
        online = (at_door.online(now) if at_door else False) if at_work else None
        doing = summary.doing(of_log) if summary and of_log and at_work else None
        last_seen = at_door.at if at_door else None
        away = (at_door.away or None) if at_door and online is False else None
        found.append(NodeStatus(name, by_name.get(name), online, away, last_seen, doing, of_log))
    return tuple(found)


def _node_dict(node: NodeStatus) -> dict[str, Any]:
    member, told = node.member, node.summary
    return {
        "node": node.node_id,
        "admitted": member.admitted if member else None,
        "revoked": member.revoked if member else None,
        "fingerprint": member.fingerprint if member else None,
        "online": node.online,
        "away": node.away,
        "last_seen": node.last_seen,
        "doing": node.doing,
        "last_round": told.last_round if told else None,
        "pictures": told.pictures if told else None,
        "val_pictures": told.val_pictures if told else None,
        "merged": len(told.merged) if told else None,
        "refused": len(told.refused) if told else None,
        "bytes_up": told.bytes_up if told else None,
        "bytes_down": told.bytes_down if told else None,
        "map50": {str(n): m.map50 for n, m in sorted(told.tests.items()) if m.ap50} if told else None,
    }
