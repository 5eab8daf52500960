"""A site withdraws: its key is shut out, and on demand a run is held again as if the site had never been there.

What a site's updates did to a model cannot be taken out of it again. What can be done is to go back to a state in which
the site had no part and to hold the rounds after it without it, as a run of its own beside the old one, which stays as
it was. The start weights are always such a state; where the site came later, the state before that was kept
(`joined.py`).
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from manyeyes.config import ScaffoldSection
from manyeyes.errors import ConfigError, RunError, WeightsError
from manyeyes.federation.admission import Members
from manyeyes.federation.checkpoint import RoundState, check_same_settings, load_checkpoint, read_checkpoint
from manyeyes.federation.coordinator_config import CoordinatorConfig
from manyeyes.federation.joined import Joined
from manyeyes.federation.rounds import settings_of
from manyeyes.learners.models import build_template
from manyeyes.report.runlog import Event, append_event, read_runlog, without_redone
from manyeyes.report.tables import format_bytes, format_seconds
from manyeyes.weights import write_atomically

__all__ = [
    "Rebuild",
    "Withdrawal",
    "begin_rebuild",
    "check_nobody_listens",
    "plan_withdrawal",
    "record_withdrawal",
    "start_of",
]

_LOG = "runlog.jsonl"
_CHECKPOINTS = "checkpoints"
_ROW = "together"


@dataclass(frozen=True, slots=True)
class Rebuild:
    """What holding a run again without a node comes to.

    Attributes:
        name: of the new run.
        taken_over: rounds of the old run in which the node had no part, and which are not held again.
        why: why it is not more of them.
        rounds: rounds to be held.
        nodes: who may take part in them.
        seconds, num_bytes: what as many rounds of the old run took, and moved; None if it finished none.
    """

    name: str
    taken_over: int
    why: str
    rounds: int
    nodes: tuple[str, ...]
    seconds: float | None
    num_bytes: int | None


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What a withdrawal would do.

    Attributes:
        node_id: who withdraws.
        run: name of the run that was looked at; None if none was.
        merged: rounds of it, from 1, in which an update of the node was merged.
        finished: rounds that run has finished.
        rebuild: how it is held again; None if that was not asked for.
    """

    node_id: str
    run: str | None = None
    merged: tuple[int, ...] = ()
    finished: int = 0
    rebuild: Rebuild | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What a person reads before agreeing to it."""
        node, run, rebuild = self.node_id, self.run, self.rebuild
        lines = [
            f"{node} will be shut out: its key is never let in again, and the register says that it was withdrawn."
        ]
        if run is None:
            return [*lines, f"No run is looked at: what {node} gave to one stays in its model (--config, --rebuild)."]
        if not self.merged:
            lines.append(f"No update of {node} was merged in the {self.finished} rounds of {run}.")
        else:
            lines.append(f"Updates of {node} were merged in {len(self.merged)} of the {self.finished} rounds of {run}.")
        if rebuild is None:
            if self.merged:
                lines.append(f"They stay in its model. With --rebuild it is trained again without {node}.")
            return lines
        start = f"after round {rebuild.taken_over} of {run}" if rebuild.taken_over else "from the starting weights"
        others = ", ".join(rebuild.nodes)
        lines.append(f"Run {rebuild.name} holds {rebuild.rounds} rounds {start}, among {others}: {rebuild.why}.")
        if rebuild.seconds is not None and rebuild.num_bytes is not None:
            lines.append(
                f"As many rounds of {run} took {format_seconds(rebuild.seconds)} and moved"
                f" {format_bytes(rebuild.num_bytes)}."
            )
        return [*lines, f"Run {run} and its model stay as they are, until you delete them."]


def plan_withdrawal(
    config: CoordinatorConfig | None, folder: Path, node_id: str, *, rebuild: bool = False, name: str | None = None
) -> Withdrawal:
    """Say what would be done; nothing is changed.

    Args:
        config: of the run to look at; None for none.
        folder: the coordinator's state folder.
        node_id: who withdraws.
        rebuild: plan to hold the run again without the node.
        name: of the new run; default: RUN-without-NODE.

    Raises:
        ConfigError: no such node; too few nodes are left; the settings are not those of the run.
        RunError: there is no run to rebuild, or one of the new name exists.
    """
    Members(folder).check_admitted(node_id)
    if config is None:
        if rebuild:
            raise ConfigError(
                "--rebuild needs the run's configuration", cure="Name it: --config federation.yaml --rebuild"
            )
        return Withdrawal(node_id)
    log = config.run_folder / _LOG
    events = without_redone(read_runlog(log)) if log.exists() else []
    merged = {e["round"] for e in events if e["event"] == "update_received" and e["node"] == node_id}
    finished = [e for e in events if e["event"] == "round_finished"]
    planned = _plan_rebuild(config, folder, node_id, finished, name) if rebuild else None
    return Withdrawal(node_id, config.name, tuple(sorted(merged)), len(finished), planned)


def record_withdrawal(config: CoordinatorConfig | None, folder: Path, withdrawal: Withdrawal) -> None:
    """Shut the node out, and write that into the register and the log of the run that was looked at.

    Raises:
        ManyeyesError: one of them cannot be written.
    """
    Members(folder).withdraw(withdrawal.node_id)
    if config is None or not (config.run_folder / _LOG).exists():
        return
    name = withdrawal.rebuild.name if withdrawal.rebuild else None
    append_event(
        config.run_folder / _LOG,
        "withdrawn",
        node=withdrawal.node_id,
        rounds=list(withdrawal.merged),
        rebuilt_as=name,
    )


def begin_rebuild(config: CoordinatorConfig, withdrawal: Withdrawal) -> CoordinatorConfig:
    """Make the folder of the new run, with what it takes over; returns its configuration, to be held with `resume`.

    Raises:
        ResourceError: it cannot be written.
    """
    rebuild = withdrawal.rebuild
    assert rebuild is not None
    new = config.model_copy(update={"name": rebuild.name})
    if rebuild.taken_over:
        Joined(config.run_folder / _CHECKPOINTS).copy_before(withdrawal.node_id, new.run_folder / _CHECKPOINTS)
    log = new.run_folder / _LOG
    earlier = _events_until(config.run_folder / _LOG, rebuild.taken_over)
    write_atomically(log, "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in earlier))
    append_event(log, "rebuilt", without=withdrawal.node_id, of=config.name, round=rebuild.taken_over)
    return new


def start_of(checkpoints: Path, node_id: str, config: CoordinatorConfig) -> tuple[int, str]:
    """How many rounds a run without a node can take over from one with it, and why not more.

    Args:
        checkpoints: of the run with the node.
        node_id: who is left out.
        config: of both runs.
    """
    joined = Joined(checkpoints)
    first = joined.round_of(node_id)
    if not first:
        known = f"{node_id} was there from the first round"
        return 0, known if joined.knows(node_id) else f"it is not known since when {node_id} was there"
    if kept := _kept_at_nodes(config):
        return 0, (
            f"{node_id} came in round {first + 1}, but what the nodes keep from round to round ({kept}) is no longer "
            "there as it was then"
        )
    try:
        saved = read_checkpoint(joined.checkpoint(first))
    except WeightsError:
        return 0, f"{node_id} came in round {first + 1}, but the state before that cannot be read"
    if saved.settings["federation"]["min_nodes"] != config.federation.min_nodes:
        return 0, f"{node_id} came in round {first + 1}, but federation.min_nodes was another then"
    return first, f"{node_id} came in round {first + 1}"


def _plan_rebuild(
    config: CoordinatorConfig, folder: Path, node_id: str, finished: Sequence[Event], name: str | None
) -> Rebuild:
    checkpoints = config.run_folder / _CHECKPOINTS
    saved = load_checkpoint(checkpoints, _ignore)
    if saved is None:
        raise RunError("holds no run that could be rebuilt", file=config.run_folder, cure="Check name and output.")
    _check_settings(config, saved)
    if Joined(checkpoints).never_there(node_id):
        raise RunError(
            f"{node_id} had no part in this run, so there is nothing to rebuild",
            file=config.run_folder,
            cure="Withdraw it without --rebuild.",
        )
    nodes = tuple(m.node_id for m in Members(folder) if m.revoked is None and m.node_id != node_id)
    if len(nodes) < config.federation.min_nodes:
        raise ConfigError(
            f"is {config.federation.min_nodes}, and without {node_id} {len(nodes)} nodes are left",
            key="federation.min_nodes",
            cure=f"--set federation.min_nodes={max(1, len(nodes))}, or admit others first.",
        )
    new = _new_run(config, name or f"{config.name}-without-{node_id}")
    taken_over, why = start_of(checkpoints, node_id, config)
    rounds = config.federation.rounds - taken_over
    if not finished:
        return Rebuild(new.name, taken_over, why, rounds, nodes, None, None)
    share = rounds / len(finished)
    seconds = share * sum(event["seconds"]["total"] for event in finished)
    num_bytes = round(share * sum(event["bytes_up"] + event["bytes_down"] for event in finished))
    return Rebuild(new.name, taken_over, why, rounds, nodes, seconds, num_bytes)


def _new_run(config: CoordinatorConfig, name: str) -> CoordinatorConfig:
    try:
        new = CoordinatorConfig.model_validate({**config.model_dump(), "name": name})
    except ValueError as error:
        raise ConfigError(f"{name!r} cannot be the name of a run", cure="Give it another with --as NAME.") from error
    if new.run_folder.exists():
        raise RunError(
            "is there already",
            file=new.run_folder,
            cure=f"If it is this rebuild, broken off: manyeyes coordinator --config … --set name={name} --resume."
            " Otherwise give it another name with --as.",
        )
    return new


def _check_settings(config: CoordinatorConfig, saved: RoundState) -> None:
    """Without a node there may be fewer at least, but nothing else may differ."""
    imgsz = config.evaluate.imgsz or config.train.imgsz
    template = build_template(config.model, config.names, seed=config.seed, imgsz=imgsz)
    settings = settings_of(template, config.train, config.federation, config.evaluate, config.seed)
    settings["federation"]["min_nodes"] = saved.settings["federation"]["min_nodes"]
    check_same_settings(saved.settings, settings)


def check_nobody_listens(config: CoordinatorConfig) -> None:
    """Refuse to begin while the coordinator runs.

    Raises:
        RunError: something listens on its port.
    """
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        with socket.create_server((config.host, config.port), family=family):
            return
    except OSError as error:
        raise RunError(
            f"something listens on {config.host}:{config.port}, and a rebuild needs it",
            cure="Stop the coordinator (Ctrl-C; every finished round is kept), then call this again.",
        ) from error


def _kept_at_nodes(config: CoordinatorConfig) -> str:
    """What of a run the nodes hold and the coordinator does not; empty if nothing."""
    kept = {
        "personal tensors": bool(config.federation.personal),
        "the optimiser's state": config.train.keeps_optimizer_state,
        "control variates": isinstance(config.federation.strategy, ScaffoldSection),
    }
    return ", ".join(name for name, is_kept in kept.items() if is_kept)


def _events_until(log: Path, round: int) -> list[Event]:
    events = without_redone(read_runlog(log)) if round else []
    return [e for e in events if e.get("row") == _ROW and 0 < e.get("round", 0) <= round]


def _ignore(event: str, **fields: Any) -> None:
    pass
