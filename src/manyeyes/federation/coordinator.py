"""The command of a coordinator: open the door, wait for enough nodes, hold the rounds, keep the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from manyeyes.config import (
    NODE_ID_PATTERN,
    EvaluateSection,
    FederationSection,
    ModelSection,
    Section,
    TrainSection,
    read_values,
    validate,
)
from manyeyes.errors import ConfigError, Interrupted
from manyeyes.federation.admission import Members
from manyeyes.federation.deployment import superlink
from manyeyes.federation.door import Door, serve_door
from manyeyes.federation.flower import FlowerTransport, RuntimeAddress
from manyeyes.federation.keys import AUTHORITY, SERVER, expiry_warning
from manyeyes.federation.rounds import RowResult, Stop, run_rounds
from manyeyes.federation.site import ModelForm
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.models import build_template, save_model
from manyeyes.report.runlog import Emit

__all__ = ["CoordinatorConfig", "load_coordinator_config", "run_coordinator"]

_ROW = "together"


class CoordinatorConfig(Section):
    """What a coordinator holds: one run among the nodes that it lets in."""

    name: str = Field(pattern=NODE_ID_PATTERN)
    seed: int = Field(0, ge=0, lt=2**31)
    host: str = Field("0.0.0.0", description="address to listen on")
    port: int = Field(5000, ge=0, le=65535)
    state: Path = Field(Path("coordinator"), description="the folder that `manyeyes coordinator init` made")
    output: Path = Path("runs")
    names: tuple[str, ...] = Field(min_length=1, description="classes of all sites")
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    federation: FederationSection = FederationSection()
    evaluate: EvaluateSection = EvaluateSection()

    @property
    def run_folder(self) -> Path:
        """Where everything this run makes is kept."""
        return self.output / self.name


def load_coordinator_config(path: Path, overrides: Sequence[str] = ()) -> CoordinatorConfig:
    """Read a coordinator's configuration; a relative path of weights is resolved against the file's folder.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds an unknown key or an impossible value.
    """
    config = validate(CoordinatorConfig, read_values(path, overrides), path)
    if config.model.weights in ("base", "scratch"):
        return config
    weights = str(path.parent / config.model.weights)
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": weights})})


def run_coordinator(
    config: CoordinatorConfig,
    emit: Emit,
    stop: Stop,
    *,
    resume: bool = False,
    listening: Callable[[int], None] = lambda port: None,
) -> RowResult:
    """Hold a run to its end and keep its model as ``final.safetensors`` and ``final.pt``.

    Args:
        config: what to run.
        emit: told of every event.
        stop: asked several times a second.
        resume: go on after the last finished round, or begin if there is none.
        listening: told the port when nodes can come.

    Raises:
        ManyeyesError: anything wrong with keys, weights or the address, before any training; too few good updates.
        Interrupted: `stop` named a signal; every finished round is kept.
    """
    if not (config.state / SERVER).exists():
        raise ConfigError(
            "this coordinator has no certificate", file=config.state / SERVER, cure="manyeyes coordinator init"
        )
    if warning := expiry_warning(config.state / SERVER):
        emit("warning", row=_ROW, reason=warning)
    imgsz = config.evaluate.imgsz or config.train.imgsz
    template = build_template(config.model, config.names, seed=config.seed, imgsz=imgsz)
    members = Members(config.state)
    with superlink(config.state) as address, _open_door(config, members, address) as port:
        listening(port)
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
                folder=config.run_folder / "checkpoints",
                emit=lambda event, **fields: emit(event, row=_ROW, **fields),
                resume=resume,
                stop=stop,
            )
    for suffix in ("safetensors", "pt"):
        save_model(config.run_folder / f"final.{suffix}", template, result.weights)
    return result


@contextmanager
def _open_door(config: CoordinatorConfig, members: Members, address: RuntimeAddress) -> Iterator[int]:
    door = Door(members, f"https://{address.address}", config.state / AUTHORITY)
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
