"""Routes of the pictures that are kept for review."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from manyeyes.datasets.overlay import MarkedBox
from manyeyes.web.access import Role
from manyeyes.web.answers import ReviewAnswer
from manyeyes.web.edge import Edge
from manyeyes.web.review import Kept
from manyeyes.web.routing import JPEG, ONE_PICTURE, MaxIou, Score, needs, wanted_of
from manyeyes.web.uploads import read_picture

__all__ = ["add_review_routes"]

# As many as the engine finds in one picture, and room to draw more; 64 KiB hold them.
_MOST_BOXES = 600

ReviewId = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{16}$")]


class BoxesBody(BaseModel):
    """All objects in a picture; none where it shows the background alone."""

    model_config = ConfigDict(extra="forbid")

    boxes: list[MarkedBox] = Field(max_length=_MOST_BOXES)


def add_review_routes(router: APIRouter, edge: Edge) -> None:
    """Add what is below /review."""
    viewer, administrator = [needs(edge, Role.viewer)], [needs(edge, Role.administrator)]

    def known(id: str) -> Kept:
        kept = edge.review.get(id)
        if kept is None:
            raise HTTPException(404, f"there is no picture {id} for review")
        return kept

    @router.get("/review", dependencies=viewer)
    def list_review(
        state: Literal["open", "added", "dismissed", "all"] = "open",
        most: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[str | None, Query(pattern=r"^[0-9a-f]{16}$", description="only older ones")] = None,
    ) -> list[ReviewAnswer]:
        """Pictures that are kept because the model was unsure or somebody asked, the newest first."""
        found = edge.review.entries(None if state == "all" else state, most, before)
        return [ReviewAnswer.of(kept) for kept in found]

    @router.post(
        "/review",
        status_code=201,
        dependencies=viewer,
        responses={201: {"model": ReviewAnswer}},
        openapi_extra=ONE_PICTURE,
    )
    async def ask_for_review(
        request: Request,
        min_score: Score = None,
        max_iou: MaxIou = None,
        name: Annotated[str, Query(max_length=200, description="of the picture; default: that of its file")] = "",
    ) -> ReviewAnswer:
        """Keep a picture for review, whatever the model finds in it: its bytes as the body, or a form with one file."""
        upload = await read_picture(request, edge.config.limits)
        called = name or upload.name
        return await edge.look(
            upload.data,
            wanted_of(edge, min_score, max_iou),
            source="request",
            name=called,
            then=lambda found, _: ReviewAnswer.of(edge.review.keep(found, "request", called, ["asked"])),
        )

    @router.get("/review/{id}", dependencies=viewer)
    def show_review(id: ReviewId) -> ReviewAnswer:
        """One of them."""
        return ReviewAnswer.of(known(id))

    @router.get("/review/{id}/picture", dependencies=viewer, response_class=Response, responses=JPEG)
    def review_picture(id: ReviewId) -> Response:
        """The picture itself, without boxes."""
        known(id)
        jpeg = edge.review.picture(id)
        if jpeg is None:
            raise HTTPException(404, f"picture {id} is not there any more")
        return Response(jpeg, media_type="image/jpeg")

    @router.put("/review/{id}/boxes", dependencies=administrator)
    def correct(id: ReviewId, body: BoxesBody) -> ReviewAnswer:
        """Keep a draft of what is right, to go on later."""
        known(id)
        return ReviewAnswer.of(edge.review.correct(id, body.boxes))

    @router.post("/review/{id}/add", dependencies=administrator)
    def add_to_training(id: ReviewId, body: BoxesBody) -> ReviewAnswer:
        """Add it to the pictures that this site trains on from its next round on; it does not leave the site."""
        known(id)
        return ReviewAnswer.of(edge.review.add(id, body.boxes))

    @router.post("/review/{id}/dismiss", dependencies=administrator)
    def dismiss(id: ReviewId) -> ReviewAnswer:
        """It needs no correction; if it was added, it is taken out again."""
        known(id)
        return ReviewAnswer.of(edge.review.settle(id, "dismissed"))

    @router.post("/review/{id}/reopen", dependencies=administrator)
    def reopen(id: ReviewId) -> ReviewAnswer:
        """Look at it again; if it was added, it is taken out until it is added again."""
        known(id)
        return ReviewAnswer.of(edge.review.settle(id, "open"))

    @router.delete("/review/{id}", status_code=204, dependencies=administrator)
    def delete_review(id: ReviewId) -> None:
        """Forget the picture; if it was added, it is taken out again."""
        known(id)
        edge.review.delete(id)
