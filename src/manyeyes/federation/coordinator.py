"""The command of a coordinator: open the door, wait for enough nodes, hold the rounds, keep the model."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from manyeyes.errors import AbsentNodesError, ConfigError, Interrupted
from manyeyes.federation.admission import Members
from manyeyes.federation.coordinator_config import CHECKPOINTS, CoordinatorConfig, load_coordinator_config
from manyeyes.federation.deployment import superlink
from manyeyes.federation.door import Door, open_door
from manyeyes.federation.flower import RuntimeAddress
from manyeyes.federation.flower_transport import FlowerTransport
from manyeyes.federation.form import ModelForm
from manyeyes.federation.keys import AUTHORITY, SERVER, expiry_warning
from manyeyes.federation.messages import longest_answer
from manyeyes.federation.presence import Presence
from manyeyes.federation.publish import publish
from manyeyes.federation.rounds import Expected, RowResult, run_rounds
from manyeyes.federation.signature import Signer
from manyeyes.federation.transport import Transport
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import Template
from manyeyes.learners.models import build_template, save_model
from manyeyes.report.provenance import provenance
from manyeyes.report.runlog import COORDINATOR, Emit
from manyeyes.signals import Stop
from manyeyes.web.serving import listen

__all__ = ["CoordinatorConfig", "hold", "load_coordinator_config", "require_certificate", "run_coordinator"]

_ROW = "together"
_REST_SECONDS = 1.0
# How often in a row a round is held for which nodes were gone or silent, before somebody must look.
_ATTEMPTS = 5


def run_coordinator(
    config: CoordinatorConfig,
    emit: Emit,
    stop: Stop,
    *,
    resume: bool = False,
    listening: Callable[[int], None] = lambda port: None,
    presence: Presence | None = None,
) -> RowResult:
    """Hold a run to its end and keep its model as ``final.safetensors`` and ``final.pt``.

    Args:
        config: what to run.
        emit: told of every event.
        stop: asked several times a second.
        resume: go on after the last finished round, or begin if there is none.
        listening: told the port when nodes can come.
        presence: told of every request of a node that comes to the door.

    Raises:
        ManyeyesError: anything wrong with keys, weights or the address, before any training; too few good updates.
        Interrupted: `stop` named a signal; every finished round is kept.
    """
    require_certificate(config)
    found = [_check_validity(config.state / name) for name in (AUTHORITY, SERVER)]
    warnings = [warning for warning in found if warning]
    signer = Signer(config.state)
    imgsz = config.evaluate.imgsz or config.train.imgsz
    template = build_template(config.model, config.names, seed=config.seed, imgsz=imgsz)
    expected = DetectorLearner(template, device="cpu").expected_tensors

    def finish(transport: Transport, result: RowResult) -> None:
        for suffix in ("safetensors", "pt"):
            save_model(config.run_folder / f"final.{suffix}", template, result.weights)
        if config.publish:
            form = ModelForm.of(template, config.name)
            told = partial(emit, row=_ROW)
            publish(transport, form, result.weights, result.kept, signer, told, stop)

    return hold(
        config,
        template,
        expected,
        emit,
        stop,
        resume=resume,
        listening=listening,
        presence=presence,
        warnings=warnings,
        finish=finish,
    )


def hold(
    config: CoordinatorConfig,
    template: Template,
    expected: Expected,
    emit: Emit,
    stop: Stop,
    *,
    resume: bool,
    listening: Callable[[int], None],
    presence: Presence | None = None,
    warnings: Sequence[str] = (),
    finish: Callable[[Transport, RowResult], None] = lambda transport, result: None,
) -> RowResult:
    """Open the door, wait for nodes and hold the rounds of a run of any model.

    Parameters as of `run_coordinator`; `warnings` are told when the run has begun, and `finish` is called when its
    rounds are over and the nodes are still there.
    """
    most_bytes = longest_answer(template.weights)
    members = Members(config.state)
    with (
        listen(config.host, config.port, key="coordinator.port") as listener,
        superlink(config.state) as address,
        _open_door(config, members, address, listener, most_bytes, presence) as door,
    ):
        listening(int(listener.getsockname()[1]))
        emit("run_started", **_description(config, template))
        for warning in warnings:
            emit("warning", row=_ROW, reason=warning)
        form = ModelForm.of(template, config.name)
        with FlowerTransport(address, members, form, most_bytes=most_bytes, door=door) as transport:
            result = _hold_rounds(config, template, expected, transport, emit, stop, resume)
            finish(transport, result)
            return result


def _check_validity(path: Path) -> str | None:
    """A warning of a certificate that expires soon; one with which no node would speak is refused."""
    warning = expiry_warning(path)
    if warning and "expired on" in warning:
        cure = "manyeyes coordinator renew"
        if path.name == AUTHORITY:
            cure = (
                "Make a new authority with `manyeyes coordinator init --folder OTHER`, and give its ca.crt to all nodes"
            )
        raise ConfigError("has expired, so no node would come", file=path, cure=f"{cure}.")
    return warning


def _hold_rounds(
    config: CoordinatorConfig,
    template: Template,
    expected: Expected,
    transport: Transport,
    emit: Emit,
    stop: Stop,
    resume: bool,
) -> RowResult:
    """All rounds; one for which too many nodes were gone is held again when enough are there."""
    failed = 0

    def told(event: str, **fields: Any) -> None:
        nonlocal failed
        failed = 0 if event == "round_finished" else failed
        emit(event, row=_ROW, **fields)

    while True:
        _wait_for_nodes(transport, config.federation.min_nodes, stop, begun=resume)
        try:
            return run_rounds(
                transport,
                template,
                train=config.train,
                federation=config.federation,
                evaluate=config.evaluate,
                seed=config.seed,
                expected=expected,
                folder=config.run_folder / CHECKPOINTS,
                emit=told,
                resume=resume,
                stop=stop,
                test_start=config.test_start,
            )
        except AbsentNodesError as error:
            failed += 1
            if failed == _ATTEMPTS:
                raise
            told("warning", reason=f"{error.reason}; it is held again when enough nodes are there", waits=True)
            resume = True


def require_certificate(config: CoordinatorConfig) -> None:
    """Refuse a coordinator that was never initialised; writes nothing.

    Raises:
        ConfigError: its state folder holds no certificate.
    """
    if not (config.state / SERVER).exists():
        raise ConfigError(
            "this coordinator has no certificate", file=config.state / SERVER, cure="manyeyes coordinator init"
        )


def _description(config: CoordinatorConfig, template: Template) -> dict[str, Any]:
    return {
        "name": config.name,
        "seed": config.seed,
        "held_by": COORDINATOR,
        "template": {
            "architecture": template.architecture,
            "weights": config.model.weights,
            "form_hash": template.form_hash,
            "value_hash": template.weights.value_hash,
        },
        "names": list(config.names),
        **provenance(),
        "sites": [],
        "rows": [{"row": _ROW, "rounds": config.federation.rounds, "nodes": []}],
        "rows_at_once": 1,
    }


def _open_door(
    config: CoordinatorConfig,
    members: Members,
    address: RuntimeAddress,
    listener: socket.socket,
    most_bytes: int,
    presence: Presence | None = None,
) -> AbstractContextManager[Door]:
    upstream, authority = f"https://{address.address}", config.state / AUTHORITY
    door = Door(members, upstream, authority, most_bytes=most_bytes, presence=presence)
    return open_door(door, config.state, listener)


def _wait_for_nodes(transport: Transport, least: int, stop: Stop, *, begun: bool) -> None:
    while len(transport.nodes()) < least:
        if signal := stop():
            kept = "Finished rounds are kept; go on with --resume" if begun else "No round was begun; start it again"
            raise Interrupted(signal, cure=f"{kept} when nodes are there.")
        time.sleep(_REST_SECONDS)
