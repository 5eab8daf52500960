"""The coordinator's command with what a person sees of it: signals, the live view, the run log."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from manyeyes.errors import Interrupted, RunError
from manyeyes.federation.coordinator import require_certificate, run_coordinator
from manyeyes.federation.coordinator_config import CoordinatorConfig, dump_coordinator_config
from manyeyes.federation.experiment import CONFIG_FILE
from manyeyes.federation.metrics import CoordinatorMetrics, serve_metrics
from manyeyes.federation.presence import Presence
from manyeyes.federation.status import StatusWriter, refuse_second
from manyeyes.federation.withdrawal import Withdrawal, begin_rebuild, check_nobody_listens, record_withdrawal
from manyeyes.report.keeper import ReportKeeper
from manyeyes.report.live import LiveView
from manyeyes.report.results import write_nodes_results
from manyeyes.report.runlog import RUNLOG, RunLog
from manyeyes.report.tensorboard import TensorBoardWriter
from manyeyes.signals import stop_signals
from manyeyes.weights import write_atomically

__all__ = ["serve_coordinator", "withdraw_node"]


def serve_coordinator(config: CoordinatorConfig, *, resume: bool, console: Console, quiet: bool = False) -> None:
    """Run a coordinator in the foreground.

    Raises:
        RunError: the run's folder holds a run, and `resume` is False; another coordinator works in the state folder.
        ResourceError: the port for metrics is in use.
        ManyeyesError, Interrupted: see `run_coordinator`.
    """
    require_certificate(config)
    refuse_second(config.state)
    folder, path = config.run_folder, config.run_folder / RUNLOG
    if path.exists() and path.stat().st_size and not resume:
        raise RunError(
            "holds a run already",
            file=folder,
            cure="Go on with --resume, or start another with --set name=OTHER.",
        )

    def tell(text: str) -> None:
        if not quiet:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    with stop_signals() as stop, ExitStack() as stack:
        presence = Presence()
        status = StatusWriter(config, presence)
        metrics = CoordinatorMetrics(config, presence, lambda: status.phase)
        if config.metrics_port is not None:
            port = stack.enter_context(serve_metrics(metrics, config.metrics_port))
            tell(f"Metrics for Prometheus: http://127.0.0.1:{port}/metrics")
        log = RunLog(path)
        stack.callback(log.close)
        stack.enter_context(status)
        log.listeners += [status, metrics, stack.enter_context(ReportKeeper(folder, write_nodes_results))]
        log.listeners.append(stack.enter_context(TensorBoardWriter(folder / "tensorboard")))
        log.listeners.append(stack.enter_context(LiveView(console, quiet=quiet)))

        def listening(port: int) -> None:
            write_atomically(folder / CONFIG_FILE, dump_coordinator_config(config))
            status.listening(port)
            tell(f"Listening on {config.host}:{port}. Waiting for {config.federation.min_nodes} nodes.")

        try:
            run_coordinator(config, log.emit, stop, resume=resume, listening=listening, presence=presence)
        except Interrupted as signal:
            log.emit("interrupted", signal=signal.reason, resume="--resume")
            raise
    tell(f"The model is {folder / 'final.safetensors'}, and final.pt beside it. Report: {folder / 'report.html'}")


def withdraw_node(
    config: CoordinatorConfig | None,
    folder: Path,
    withdrawal: Withdrawal,
    *,
    again: str,
    console: Console,
    quiet: bool = False,
) -> None:
    """Carry out a withdrawal that was planned; a rebuild is held in the foreground, to its end.

    Args:
        config: of the run that was looked at; None for none.
        folder: the coordinator's state folder.
        withdrawal: the plan.
        again: the command that goes on with the rebuild after an interruption.
        console: where progress is shown.
        quiet: show none.

    Raises:
        ManyeyesError: see `run_coordinator`; the node is shut out then, unless the port was in use.
        Interrupted: every finished round of the rebuild is kept; names the command that goes on.
    """
    if config is None or withdrawal.rebuild is None:
        record_withdrawal(config, folder, withdrawal)
        return
    check_nobody_listens(config)
    record_withdrawal(config, folder, withdrawal)
    try:
        serve_coordinator(begin_rebuild(config, withdrawal), resume=True, console=console, quiet=quiet)
    except Interrupted as signal:
        raise Interrupted(signal.reason, cure=f"What was finished is kept. Go on with: {again}") from signal
    if not quiet:
        text = f"{config.run_folder} still holds what {withdrawal.node_id} gave: delete it when nobody uses its model."
        console.print(text, highlight=False, markup=False, soft_wrap=True)
