"""What all routes of the API share: where they lie, who may ask, and how their bodies are described."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Query, Request
from fastapi import Path as PathParameter
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from manyeyes.runtime.vision import MAX_IOU
from manyeyes.web.access import Door, Role
from manyeyes.web.edge import Edge, Wanted
from manyeyes.web.settings import STREAM_NAME

__all__ = [
    "COOKIE",
    "JPEG",
    "ONE_PICTURE",
    "PICTURE",
    "PREFIX",
    "MaxIou",
    "Name",
    "Score",
    "bodies",
    "check_role",
    "needs",
    "role_of",
    "wanted_of",
]

PREFIX = "/api/v1"
COOKIE = "manyeyes"
_BEARER = "bearer "
PICTURE = {"type": "string", "format": "binary"}
JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {"schema": PICTURE}}}}

Name = Annotated[str, PathParameter(pattern=STREAM_NAME)]
Score = Annotated[
    float | None, Query(ge=0.01, le=1, allow_inf_nan=False, description="lowest one shown; default: the server's")
]
MaxIou = Annotated[
    float | None,
    Query(
        ge=0.1,
        le=0.95,
        allow_inf_nan=False,
        description=f"of two boxes of a class that overlap by more, the better one is shown; default: {MAX_IOU}",
    ),
]


def role_of(door: Door, connection: HTTPConnection) -> Role | None:
    """What somebody may do: by the token of a program, or the session of a browser."""
    if not door.guarded:
        return Role.administrator
    header = connection.headers.get("authorization", "")
    if header.lower().startswith(_BEARER):
        return door.access.role_of_token(header[len(_BEARER) :].strip())
    return door.access.role_of_session(connection.cookies.get(COOKIE, ""))


def check_role(door: Door, request: Request, role: Role) -> None:
    """Refuse whoever has less than this role.

    Raises:
        HTTPException: they have, or nobody knows who asks.
    """
    found = role_of(door, request)
    if found is None:
        raise HTTPException(401, "needs a password or a token", {"WWW-Authenticate": "Bearer"})
    if found < role:
        raise HTTPException(403, f"needs the role of {role.name}")


def needs(door: Door, role: Role) -> Any:
    """A dependency of a route: whoever asks has at least this role."""

    def check(request: Request) -> None:
        check_role(door, request, role)

    return Depends(check)


def bodies(*types: str, form: dict[str, Any]) -> dict[str, Any]:
    """For OpenAPI: bytes as they are, or a form."""
    content: dict[str, Any] = {kind: {"schema": PICTURE} for kind in types}
    content["multipart/form-data"] = {"schema": {"type": "object", "properties": form, "required": list(form)}}
    return {"requestBody": {"required": True, "content": content}}


ONE_PICTURE = bodies("image/jpeg", "image/png", "image/webp", "application/octet-stream", form={"file": PICTURE})


def wanted_of(edge: Edge, min_score: float | None, max_iou: float | None, model: str | None = None) -> Wanted:
    """How to look, where what a request leaves open is the server's."""
    return Wanted(min_score or edge.config.min_score, max_iou or MAX_IOU, model)
