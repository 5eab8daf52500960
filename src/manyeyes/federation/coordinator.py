"""The command of a coordinator: open the door, wait for enough nodes, hold the rounds, keep the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from manyeyes.errors import ConfigError
from manyeyes.federation.coordinator_config import CoordinatorConfig
from manyeyes.federation.form import ModelForm
from manyeyes.federation.hold import ROW, hold
from manyeyes.federation.keys import AUTHORITY, SERVER, expiry_warning
from manyeyes.federation.presence import Presence
from manyeyes.federation.publish import publish
from manyeyes.federation.rounds import RowResult
from manyeyes.federation.signature import Signer
from manyeyes.federation.transport import Transport
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.models import build_template, save_model
from manyeyes.report.runlog import Emit
from manyeyes.signals import Stop

__all__ = ["require_certificate", "run_coordinator"]


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
            told = partial(emit, row=ROW)
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


def require_certificate(config: CoordinatorConfig) -> None:
    """Refuse a coordinator that was never initialised; writes nothing.

    Raises:
        ConfigError: its state folder holds no certificate.
    """
    if not (config.state / SERVER).exists():
        raise ConfigError(
            "this coordinator has no certificate", file=config.state / SERVER, cure="manyeyes coordinator init"
        )
