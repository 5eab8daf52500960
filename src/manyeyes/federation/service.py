"""The two long-running commands with what a person sees of them: signals, the live view, the run log."""

from __future__ import annotations

from contextlib import ExitStack

from rich.console import Console

from manyeyes.errors import Interrupted, RunError
from manyeyes.federation.coordinator import CoordinatorConfig, run_coordinator
from manyeyes.federation.launch import stop_signals
from manyeyes.federation.node import NodeConfig, run_node
from manyeyes.federation.node_status import NodeStatus
from manyeyes.learners.learner import Progress
from manyeyes.report.live import LiveView, total_loss
from manyeyes.report.runlog import RunLog
from manyeyes.report.tensorboard import TensorBoardWriter

__all__ = ["serve_coordinator", "serve_node"]


def serve_coordinator(config: CoordinatorConfig, *, resume: bool, console: Console, quiet: bool = False) -> None:
    """Run a coordinator in the foreground.

    Raises:
        RunError: the run's folder holds a run, and `resume` is False.
        ManyeyesError, Interrupted: see `run_coordinator`.
    """
    path = config.run_folder / "runlog.jsonl"
    if path.exists() and not resume:
        raise RunError(
            "holds a run already",
            file=config.run_folder,
            cure="Go on with --resume, or start another with --set name=OTHER.",
        )

    def tell(text: str) -> None:
        if not quiet:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    with stop_signals() as stop, ExitStack() as stack:
        log = RunLog(path)
        stack.callback(log.close)
        log.listeners.append(stack.enter_context(TensorBoardWriter(config.run_folder / "tensorboard")))
        log.listeners.append(stack.enter_context(LiveView(console, quiet=quiet)))
        log.emit(
            "run_started",
            name=config.name,
            seed=config.seed,
            names=list(config.names),
            sites=[],
            rows=[{"row": "together", "rounds": config.federation.rounds, "nodes": []}],
            rows_at_once=1,
        )
        try:
            run_coordinator(
                config,
                log.emit,
                stop,
                resume=resume,
                listening=lambda port: tell(
                    f"Listening on {config.host}:{port}. Waiting for {config.federation.min_nodes} nodes."
                ),
            )
        except Interrupted as signal:
            log.emit("interrupted", signal=signal.reason, resume="--resume")
            raise
    tell(f"The model is {config.run_folder / 'final.safetensors'}, and final.pt beside it.")


def serve_node(config: NodeConfig, *, status: NodeStatus | None = None, console: Console, quiet: bool = False) -> None:
    """Run a node in the foreground until Ctrl-C or SIGTERM; both end it after the request it is at.

    Args:
        config: of the node.
        status: kept up to date.
        console: where progress is shown.
        quiet: show no progress.

    Raises:
        ManyeyesError: see `run_node`.
    """

    def tell(text: str) -> None:
        if not quiet:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    with stop_signals() as stop:

        def progress(at: Progress) -> None:
            if at.epoch_done:
                loss = total_loss(at.losses)
                tell(f"[Node {at.node_id}] round {at.round + 1} epoch {at.epoch}/{at.epochs} loss {loss:.2f}")

        def ready(pictures: int) -> None:
            tell(f"[Node {config.node_id}] {pictures} pictures to train on; joining {config.coordinator_url}")

        run_node(config, stop, status=status, ready=lambda data: ready(len(data.split("train"))), progress=progress)
    tell(f"[Node {config.node_id}] stopped")
