"""The rounds of a run of any model, behind the door that nodes come to; needs no PyTorch."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from manyeyes.errors import AbsentNodesError, Interrupted
from manyeyes.federation.admission import Members
from manyeyes.federation.coordinator_config import CHECKPOINTS, CoordinatorConfig
from manyeyes.federation.deployment import superlink
from manyeyes.federation.door import Door, open_door
from manyeyes.federation.flower import RuntimeAddress
from manyeyes.federation.flower_transport import FlowerTransport
from manyeyes.federation.form import ModelForm
from manyeyes.federation.keys import AUTHORITY
from manyeyes.federation.messages import longest_answer
from manyeyes.federation.presence import Presence
from manyeyes.federation.rounds import Expected, RowResult, run_rounds
from manyeyes.federation.transport import Transport
from manyeyes.learners.learner import Template
from manyeyes.report.provenance import provenance
from manyeyes.report.runlog import COORDINATOR, Emit
from manyeyes.signals import Stop
from manyeyes.web.serving import listen

__all__ = ["ROW", "hold"]

ROW = "together"
_REST_SECONDS = 1.0
# How often in a row a round is held for which nodes were gone or silent, before somebody must look.
_ATTEMPTS = 5


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

    Parameters as of `coordinator.run_coordinator`; `warnings` are told when the run has begun, and `finish` is called
    when its rounds are over and the nodes are still there.
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
            emit("warning", row=ROW, reason=warning)
        form = ModelForm.of(template, config.name)
        with FlowerTransport(address, members, form, most_bytes=most_bytes, door=door) as transport:
            result = _hold_rounds(config, template, expected, transport, emit, stop, resume)
            finish(transport, result)
            return result


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
        emit(event, row=ROW, **fields)

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
        "rows": [{"row": ROW, "rounds": config.federation.rounds, "nodes": []}],
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
