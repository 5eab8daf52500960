"""The node's command with what a person sees of it. Its process needs no torch: the trainer is another one."""

from __future__ import annotations

from rich.console import Console

from manyeyes.federation.node import NodeConfig, run_node
from manyeyes.federation.node_status import NodeStatus
from manyeyes.learners.learner import Progress
from manyeyes.report.live import total_loss
from manyeyes.signals import stop_signals

__all__ = ["serve_node"]


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

        run_node(config, stop, status=status, ready=ready, progress=progress)
    tell(f"[Node {config.node_id}] stopped")
