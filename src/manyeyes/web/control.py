"""Routes of a node's place in its federation: how it fares, what it has sent, pause and resume."""

from __future__ import annotations

from collections import deque
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException

from manyeyes.datasets.overlay import Overlay
from manyeyes.federation.audit import AUDIT, read_audit
from manyeyes.federation.node_status import NodeStatus
from manyeyes.federation.pause import Pause
from manyeyes.web.access import Door, Role
from manyeyes.web.answers import AloneAnswer, FederationAnswer, RoundAnswer, SentAnswer
from manyeyes.web.routing import needs

__all__ = ["add_federation_routes"]


def add_federation_routes(router: APIRouter, door: Door, status: NodeStatus | None, overlay: Overlay | None) -> None:
    """Add what is below /federation.

    Args:
        router: to add it to.
        door: who may enter.
        status: of the node; None at a server alone.
        overlay: pictures that were added at this site, if it has a server.
    """
    viewer, administrator = [needs(door, Role.viewer)], [needs(door, Role.administrator)]
    pause = Pause(status.folder) if status and status.folder else None

    @router.get("/federation", dependencies=viewer)
    def federation() -> FederationAnswer | AloneAnswer:
        """This site's node: what it is at, and what it has done."""
        if status is None:
            return AloneAnswer()
        down, up = status.today()
        return FederationAnswer(
            node_id=status.node_id,
            coordinator=status.coordinator,
            not_ready=status.not_ready,
            paused=pause is not None and pause.paused,
            pictures=status.pictures,
            corrections=overlay.count if overlay else 0,
            training=status.training,
            round=status.round,
            rounds=status.rounds,
            epoch=status.epoch,
            epochs=status.epochs,
            seconds_left=status.seconds_left,
            last_seen=status.last_seen,
            bytes_today={"down": down, "up": up},
            training_seconds=status.training_seconds,
            rounds_done=[RoundAnswer.model_validate(done, from_attributes=True) for done in list(status.rounds_done)],
        )

    @router.get("/federation/sent", dependencies=viewer)
    def sent(most: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[SentAnswer]:
        """What has left this site, the newest first, from the node's log, after a check that no line was changed."""
        path = status.folder / AUDIT if status and status.folder else None
        newest = deque(read_audit(path) if path and path.exists() else (), most)
        return [SentAnswer.model_validate(entry) for entry in reversed(newest)]

    def known() -> Pause:
        if pause is None:
            raise HTTPException(404, "this server belongs to no node of a federation")
        return pause

    @router.post("/federation/pause", status_code=204, dependencies=administrator)
    def pause_node() -> None:
        """Train for no further round until it is resumed, over restarts too; a training that is begun ends as usual."""
        known().pause()

    @router.post("/federation/resume", status_code=204, dependencies=administrator)
    def resume_node() -> None:
        """Take part again."""
        known().resume()
