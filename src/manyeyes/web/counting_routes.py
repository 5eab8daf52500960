"""Routes of what is counted in a camera's pictures."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.exceptions import HTTPException

from manyeyes.web.access import Role
from manyeyes.web.answers import CountingAnswer
from manyeyes.web.counting import CountingBody
from manyeyes.web.edge import Edge
from manyeyes.web.routing import Name, needs

__all__ = ["add_counting_routes"]


def add_counting_routes(router: APIRouter, edge: Edge) -> None:
    """Add what is below /streams/{name}/counting."""
    viewer, administrator = [needs(edge, Role.viewer)], [needs(edge, Role.administrator)]

    def answer(name: str) -> CountingAnswer:
        wanted = edge.counting.wanted(name)
        counts, since = edge.counting.counts(name)
        return CountingAnswer.model_validate(
            {"lines": wanted.lines, "zones": wanted.zones, "counts": counts, "since": since}
        )

    def known(name: str) -> None:
        if all(stream.name != name for stream in edge.streams.status()):
            raise HTTPException(404, f"there is no camera {name}")

    @router.get("/streams/{name}/counting", dependencies=viewer)
    def show_counting(name: Name) -> CountingAnswer:
        """What is counted at a camera, and what was counted so far."""
        known(name)
        return answer(name)

    @router.put("/streams/{name}/counting", dependencies=administrator)
    def count(name: Name, body: CountingBody) -> CountingAnswer:
        """Follow objects and count them at these lines and zones from now on, over restarts too."""
        known(name)
        edge.counting.want(name, body)
        return answer(name)

    @router.post("/streams/{name}/counting/reset", dependencies=administrator)
    def reset(name: Name) -> CountingAnswer:
        """Count from nought again."""
        known(name)
        edge.counting.reset(name)
        return answer(name)
