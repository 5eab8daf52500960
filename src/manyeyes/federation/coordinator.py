"""The command of a coordinator: open the door, wait for enough nodes, hold the rounds, keep the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from manyeyes.errors import ConfigError, Interrupted
from manyeyes.federation.admission import Members
from manyeyes.federation.coordinator_config import CHECKPOINTS, CoordinatorConfig, load_coordinator_config
from manyeyes.federation.deployment import superlink
from manyeyes.federation.door import Door, serve_door
from manyeyes.federation.flower import FlowerTransport, RuntimeAddress
from manyeyes.federation.keys import AUTHORITY, SERVER, expiry_warning
from manyeyes.federation.presence import Presence
from manyeyes.federation.rounds import RowResult, Stop, run_rounds
from manyeyes.federation.site import ModelForm
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import Template
from manyeyes.learners.models import build_template, save_model
from manyeyes.report.provenance import provenance
from manyeyes.report.runlog import COORDINATOR, Emit

__all__ = ["CoordinatorConfig", "load_coordinator_config", "require_certificate", "run_coordinator"]

_ROW = "together"


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
    imgsz = config.evaluate.imgsz or config.train.imgsz
    template = build_template(config.model, config.names, seed=config.seed, imgsz=imgsz)
    members = Members(config.state)
    with superlink(config.state) as address, _open_door(config, members, address, presence) as port:
        listening(port)
        emit("run_started", **_description(config, template))
        if warning := expiry_warning(config.state / SERVER):
            emit("warning", row=_ROW, reason=warning)
        with FlowerTransport(address, members, ModelForm.of(template, config.name)) as transport:
            _wait_for_nodes(transport, config.federation.min_nodes, stop)
            result = run_rounds(
                transport,
                template,
                train=config.train,
                federation=config.federation,
                evaluate=config.evaluate,
                seed=config.seed,
                expected=DetectorLearner(template, device="cpu").expected_tensors,
                folder=config.run_folder / CHECKPOINTS,
                emit=lambda event, **fields: emit(event, row=_ROW, **fields),
                resume=resume,
                stop=stop,
                test_start=config.test_start,
            )
    for suffix in ("safetensors", "pt"):
        save_model(config.run_folder / f"final.{suffix}", template, result.weights)
    return result


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


@contextmanager
def _open_door(
    config: CoordinatorConfig, members: Members, address: RuntimeAddress, presence: Presence | None
) -> Iterator[int]:
    door = Door(members, f"https://{address.address}", config.state / AUTHORITY, presence=presence)
    server, listener = serve_door(door, config.state, config.host, config.port)
    # uvicorn takes signals over only in the main thread, and there they are ours.
    thread = threading.Thread(target=server.run, args=([listener],), name="manyeyes-door", daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10.0)


def _wait_for_nodes(transport: FlowerTransport, least: int, stop: Stop) -> None:
    while len(transport.nodes()) < least:
        if signal := stop():
            raise Interrupted(signal, cure="No round was begun; start it again when nodes are there.")
        time.sleep(1.0)
