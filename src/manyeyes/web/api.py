"""The REST API of a site's server; what each address does stands in its OpenAPI description, /api/v1/openapi.json."""

from __future__ import annotations

import contextlib
import ipaddress
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse

from manyeyes.errors import DataError
from manyeyes.federation.node_status import NodeStatus
from manyeyes.runtime.engine import Found
from manyeyes.web.access import Door, Role
from manyeyes.web.answers import (
    DeletedAnswer,
    FoundAnswer,
    HistoryAnswer,
    JobAnswer,
    ManyAnswer,
    ModelAnswer,
    Problem,
    SeriesAnswer,
    StatusAnswer,
    StreamAnswer,
    TokenAnswer,
    found_values,
)
from manyeyes.web.cameras import camera_of_network, checked_camera
from manyeyes.web.control import add_federation_routes
from manyeyes.web.counting import CountingBody
from manyeyes.web.counting_routes import add_counting_routes
from manyeyes.web.edge import Edge, Wanted
from manyeyes.web.jobs import Job, Sender
from manyeyes.web.jpeg import drawn
from manyeyes.web.models import model_answers
from manyeyes.web.review_routes import add_review_routes
from manyeyes.web.routing import (
    COOKIE,
    JPEG,
    ONE_PICTURE,
    PICTURE,
    PREFIX,
    MaxIou,
    Name,
    Score,
    bodies,
    check_role,
    needs,
    role_of,
    wanted_of,
)
from manyeyes.web.settings import MODEL_HASH, STREAM_NAME
from manyeyes.web.uploads import read_picture, read_pictures, save_archive

__all__ = ["body_limits", "edge_router", "node_router", "on_disk"]

_FORM_SLACK = 100_000
_PIECE = 1 << 20

T = TypeVar("T")

RoleName = Literal["viewer", "administrator"]
Hash = Annotated[str, PathParameter(pattern=MODEL_HASH, description="the model's hash, or its beginning")]
OtherModel = Annotated[
    str | None,
    Query(pattern=MODEL_HASH, description="another one than that in use, by its hash; what it finds is not remembered"),
]
JobId = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{16}$")]
Time = Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False, description="seconds since 1970")]
Source = Annotated[str | None, Query(max_length=100)]
Hours = Annotated[float, Query(gt=0, le=24 * 366, allow_inf_nan=False)]
ClassName = Annotated[str | None, Query(alias="class", max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoginBody(_Body):
    """A password; whose it is, it says itself."""

    password: str = Field(max_length=1000)


class SceneBody(_Body):
    """Day, night, or null for the rule."""

    scene: Literal["day", "night"] | None


class StreamBody(_Body):
    """A camera of this machine, its number or /dev/videoN, or an address such as rtsp://HOST/PATH."""

    name: str = Field(pattern=STREAM_NAME)
    source: str = Field(min_length=1, max_length=1000)


class TokenBody(_Body):
    """A pass for a program."""

    name: str = Field(pattern=r"^[^\x00-\x20./\\\x7f][^\x00-\x1f/\\\x7f]{0,99}$", description="for people")
    role: RoleName = "viewer"


def body_limits(edge: Edge) -> dict[str, int]:
    """Most bytes of a request's body, by path; see `Rules`."""
    limits = edge.config.limits
    one, archive = limits.picture_bytes + _FORM_SLACK, limits.zip_bytes + _FORM_SLACK
    return {
        f"{PREFIX}/detect": one,
        f"{PREFIX}/detect/picture": one,
        f"{PREFIX}/review": one,
        f"{PREFIX}/detect/many": min(limits.pictures * one, archive),
        f"{PREFIX}/jobs": archive,
    }


def on_disk() -> frozenset[str]:
    """Paths whose bodies go to the disk as they come."""
    return frozenset({f"{PREFIX}/detect/many", f"{PREFIX}/jobs"})


def edge_router(edge: Edge, status: NodeStatus | None = None) -> APIRouter:
    """All addresses below /api/v1.

    Args:
        edge: what they are about.
        status: of the node that this server belongs to, if it does.
    """
    refusals: dict[int | str, dict[str, Any]] = {
        code: {"model": Problem} for code in (400, 401, 403, 404, 408, 409, 413, 415, 421, 422, 429, 500, 503, 507)
    }
    router = APIRouter(prefix=PREFIX, responses=refusals)
    for add in (_detection, _jobs, _models, _streams, add_counting_routes, _history, add_review_routes, _login):
        add(router, edge)
    add_federation_routes(router, edge, status, edge.overlay)
    return router


def node_router(door: Door, status: NodeStatus) -> APIRouter:
    """What there is below /api/v1 at a node whose site has no model yet."""
    router = APIRouter(prefix=PREFIX)
    _login(router, door)
    add_federation_routes(router, door, status, None)
    return router


# -- detection --------------------------------------------------------------------------------------------------------


def _detection(router: APIRouter, edge: Edge) -> None:
    viewer = [needs(edge, Role.viewer)]
    limits = edge.config.limits

    async def looked(request: Request, wanted: Wanted, then: Callable[[Found, str | None], T]) -> T:
        upload = await read_picture(request, limits)
        return await edge.look(upload.data, wanted, source="request", name=upload.name, then=then)

    @router.post("/detect", dependencies=viewer, responses={200: {"model": FoundAnswer}}, openapi_extra=ONE_PICTURE)
    async def detect(
        request: Request, min_score: Score = None, max_iou: MaxIou = None, model: OtherModel = None
    ) -> Response:
        """Find objects in one picture: its bytes as the body, or a form with one file."""
        wanted = wanted_of(edge, min_score, max_iou, await _known_model(edge, model))
        return JSONResponse(await looked(request, wanted, found_values))

    @router.post(
        "/detect/picture",
        dependencies=viewer,
        response_class=Response,
        responses=JPEG,
        openapi_extra=ONE_PICTURE,
    )
    async def detect_and_draw(request: Request, min_score: Score = None, max_iou: MaxIou = None) -> Response:
        """Find objects in one picture and draw them: a JPEG, as large as the picture was looked at."""
        return Response(
            await looked(request, wanted_of(edge, min_score, max_iou), lambda found, _: drawn(found)),
            media_type="image/jpeg",
        )

    many = bodies(form={"files": {"type": "array", "items": PICTURE}})

    @router.post("/detect/many", dependencies=viewer, responses={200: {"model": ManyAnswer}}, openapi_extra=many)
    async def detect_many(request: Request, min_score: Score = None, max_iou: MaxIou = None) -> Response:
        """Find objects in the pictures of a form; one that cannot be looked at says why, and the others go on."""
        answers = []
        wanted = wanted_of(edge, min_score, max_iou)
        async with contextlib.aclosing(read_pictures(request, limits)) as uploads:
            async for upload in uploads:
                answer: dict[str, Any] = {"file": upload.name, "found": None, "error": None}
                try:
                    answer["found"] = await edge.look(
                        upload.data, wanted, source="request", name=upload.name, then=found_values
                    )
                except DataError as error:
                    answer["error"] = str(error)
                answers.append(answer)
        return JSONResponse({"pictures": answers})


# -- jobs -------------------------------------------------------------------------------------------------------------


def _jobs(router: APIRouter, edge: Edge) -> None:
    viewer, administrator = [needs(edge, Role.viewer)], [needs(edge, Role.administrator)]
    archive = bodies("application/zip", "application/octet-stream", form={"file": PICTURE})

    def known(id: str) -> Job:
        job = edge.jobs.get(id)
        if job is None:
            raise HTTPException(404, f"there is no job {id}")
        return job

    @router.post(
        "/jobs",
        status_code=202,
        dependencies=viewer,
        responses={202: {"model": JobAnswer}},
        openapi_extra=archive,
    )
    async def add_job(
        request: Request, min_score: Score = None, max_iou: MaxIou = None, model: OtherModel = None
    ) -> JobAnswer:
        """Look at all pictures of a ZIP archive, one after the other; ask for the job to see how far it is."""
        _check_room(edge, request)
        wanted = wanted_of(edge, min_score, max_iou, await _known_model(edge, model))
        with edge.jobs.receiving() as path:
            name = await save_archive(request, path)
            by: Sender = "administrator" if role_of(edge, request) is Role.administrator else "viewer"
            submit = partial(edge.jobs.submit, max_iou=wanted.max_iou, model=wanted.model, by=by)
            return JobAnswer.of(await anyio.to_thread.run_sync(submit, path, name, wanted.min_score))

    @router.get("/jobs", dependencies=viewer)
    def list_jobs() -> list[JobAnswer]:
        """All archives, the newest first."""
        return [JobAnswer.of(job) for job in edge.jobs.all()]

    @router.get("/jobs/{id}", dependencies=viewer)
    def show_job(id: JobId) -> JobAnswer:
        """One archive and how far it is."""
        return JobAnswer.of(known(id))

    @router.get(
        "/jobs/{id}/results",
        dependencies=viewer,
        response_class=Response,
        responses={200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}}},
    )
    def job_results(id: JobId) -> StreamingResponse:
        """What was found so far: one JSON object a line, with `file` and either `detections` or `error`."""
        known(id)
        path = edge.jobs.results(id)
        return StreamingResponse(_lines(path), media_type="application/jsonl")

    @router.post("/jobs/{id}/stop", dependencies=viewer)
    def stop_job(request: Request, id: JobId) -> JobAnswer:
        """Look at no more of its pictures; what was found stays. A viewer stops none that an administrator sent."""
        check_role(edge, request, Role[known(id).by])
        edge.jobs.stop(id)
        return JobAnswer.of(known(id))

    @router.delete("/jobs/{id}", status_code=204, dependencies=administrator)
    def delete_job(id: JobId) -> None:
        """Stop it, and delete archive and results."""
        known(id)
        edge.jobs.delete(id)


def _lines(path: Path | None) -> Iterator[bytes]:
    """What is in the file now: it may grow, or be deleted, while it is sent."""
    with contextlib.suppress(FileNotFoundError):
        if path:
            with path.open("rb") as file:
                left = os.fstat(file.fileno()).st_size
                while left and (piece := file.read(min(left, _PIECE))):
                    left -= len(piece)
                    yield piece


def _check_room(edge: Edge, request: Request) -> None:
    wanted = int(request.headers.get("content-length", "0"))  # a number, and no long one: see Guard
    # A form lies on the disk twice for a moment.
    if 2 * wanted > shutil.disk_usage(edge.config.state).free:
        raise HTTPException(507, "there is no room on the disk for this archive")


# -- models -----------------------------------------------------------------------------------------------------------


def _models(router: APIRouter, edge: Edge) -> None:
    viewer, administrator = [needs(edge, Role.viewer)], [needs(edge, Role.administrator)]

    def answers() -> list[ModelAnswer]:
        return model_answers(edge.registry, edge.host.in_use)

    @router.get("/status", dependencies=viewer)
    def status(request: Request) -> StatusAnswer:
        """The server as a whole."""
        engine, metrics = edge.host.engine, edge.metrics
        return StatusAnswer(
            version=version("manyeyes"),
            model=engine.model_hash,
            label=edge.registry.label(engine.model_hash),
            classes=list(engine.names),
            scene=edge.host.scene,
            ordered=edge.host.forced,
            backend=engine.backend,
            precision=engine.precision,
            imgsz=engine.imgsz,
            seconds=time.time() - edge.began,
            pictures=metrics.pictures,
            waiting=metrics.waiting,
            sure_from=edge.config.review.high,
            model_changes=edge.host.changes,
            taken_back=edge.host.taken_back,
            role=(role_of(edge, request) or Role.viewer).name,
            guarded=edge.guarded,
        )

    @router.get("/models", dependencies=viewer)
    def list_models() -> list[ModelAnswer]:
        """The models of this site, the newest first. New ones come from its own machine or its federation alone."""
        return answers()

    @router.post("/models/{hash}/use", dependencies=administrator)
    def use_model(hash: Hash) -> list[ModelAnswer]:
        """Change to a model: it is opened, warmed and tested beside the present one, which serves meanwhile."""
        edge.host.use(_model_of(edge, hash))
        return answers()

    @router.post("/models/roll-back", dependencies=administrator)
    def roll_back() -> list[ModelAnswer]:
        """Change to the model that was used before."""
        edge.host.roll_back()
        return answers()

    @router.put("/scene", status_code=204, dependencies=administrator)
    def order_scene(body: SceneBody) -> None:
        """Look with the model for the day or for the night from now on; null gives the choice back to the rule."""
        edge.host.force(body.scene)


async def _known_model(edge: Edge, name: str | None) -> str | None:
    return None if name is None else await anyio.to_thread.run_sync(_model_of, edge, name)


def _model_of(edge: Edge, name: str) -> str:
    fitting = [entry.hash for entry in edge.registry.entries() if entry.hash.startswith(name)]
    if len(fitting) != 1:
        raise HTTPException(404, f"there are {len(fitting) or 'no'} models whose hash begins with {name}")
    return fitting[0]


# -- streams ----------------------------------------------------------------------------------------------------------


def _streams(router: APIRouter, edge: Edge) -> None:
    viewer, administrator = [needs(edge, Role.viewer)], [needs(edge, Role.administrator)]

    def answers() -> list[StreamAnswer]:
        return [
            StreamAnswer(
                name=stream.name,
                source=stream.source,
                state=stream.state,
                frames=stream.looked_at,
                skipped=stream.skipped,
                per_second=stream.frames_per_second,
                milliseconds=stream.mean_ms,
                p95_milliseconds=stream.p95_ms,
                error=stream.error,
            )
            for stream in edge.streams.status()
        ]

    def known(name: str) -> None:
        if all(stream.name != name for stream in edge.streams.status()):
            raise HTTPException(404, f"there is no camera {name}")

    @router.get("/streams", dependencies=viewer)
    def list_streams() -> list[StreamAnswer]:
        """All cameras and how they are; their passwords are shown to nobody."""
        return answers()

    @router.post("/streams", status_code=201, dependencies=administrator)
    def add_stream(body: StreamBody) -> list[StreamAnswer]:
        """Watch another camera, until the server ends; lasting ones stand in its configuration.

        A name is looked up once, now. Addresses of this machine itself, link-local ones and those where clouds keep
        their keys are refused.
        """
        source = checked_camera(body.source) if edge.config.cameras_anywhere else camera_of_network(body.source)
        edge.streams.add(body.name, source)
        return answers()

    @router.delete("/streams/{name}", status_code=204, dependencies=administrator)
    def remove_stream(name: Name) -> None:
        """Watch it no more, and forget what was counted at it."""
        known(name)
        edge.streams.remove(name)
        edge.counting.want(name, CountingBody())

    @router.get(
        "/streams/{name}/picture",
        dependencies=viewer,
        response_class=Response,
        responses=JPEG,
    )
    def stream_picture(name: Name) -> Response:
        """The newest frame with its boxes, as a JPEG."""
        known(name)
        found = edge.latest(name)
        if found is None:
            raise HTTPException(503, "no frame has come yet", {"Retry-After": "1"})
        return Response(drawn(found), media_type="image/jpeg")


# -- history ----------------------------------------------------------------------------------------------------------


def _history(router: APIRouter, edge: Edge) -> None:
    viewer, administrator = [needs(edge, Role.viewer)], [needs(edge, Role.administrator)]

    @router.get("/history", dependencies=viewer)
    def history(
        most: Annotated[int, Query(ge=1, le=1000)] = 100,
        before: Annotated[int | None, Query(ge=0, le=2**62, description="only older ones than this id")] = None,
        source: Source = None,
        name: ClassName = None,
        since: Time = None,
        until: Time = None,
    ) -> list[HistoryAnswer]:
        """Pictures that were looked at, the newest first; of the pictures themselves nothing is kept."""
        edge.history.flush()
        found = edge.history.latest(most, before=before, source=source, name=name, since=since, until=until)
        return [HistoryAnswer.of(seen) for seen in found]

    @router.get("/history/totals", dependencies=viewer)
    def totals(hours: Hours = 24) -> dict[str, int]:
        """Objects found in the last hours, by class."""
        edge.history.flush()
        return edge.history.totals(time.time() - 3600 * hours)

    @router.get("/history/series", dependencies=viewer)
    def series(
        hours: Hours = 24,
        bins: Annotated[int, Query(ge=1, le=1000)] = 96,
        source: Source = None,
    ) -> SeriesAnswer:
        """Objects found in the last hours by class, counted in equal spans of time."""
        edge.history.flush()
        step = 3600 * hours / bins
        since = time.time() - 3600 * hours
        return SeriesAnswer(since=since, step=step, classes=edge.history.series(since, step, bins, source))

    @router.delete("/history/{id}", status_code=204, dependencies=administrator)
    def forget(id: Annotated[int, PathParameter(ge=0, le=2**62)]) -> None:
        """Forget one picture."""
        edge.history.flush()
        if not edge.history.delete(id):
            raise HTTPException(404, f"there is no picture {id} in the history")

    @router.delete("/history", dependencies=administrator)
    def forget_before(
        before: Annotated[float, Query(ge=0, le=1e11, allow_inf_nan=False, description="seconds since 1970")],
        source: Source = None,
        name: ClassName = None,
        since: Time = None,
    ) -> DeletedAnswer:
        """Forget what was seen before a time: all of it, or that of one source or class, or since another time."""
        edge.history.flush()
        return DeletedAnswer(deleted=edge.history.delete_before(before, source, name, since=since))


# -- access -----------------------------------------------------------------------------------------------------------


def _login(router: APIRouter, door: Door) -> None:
    administrator = [needs(door, Role.administrator)]

    @router.post("/login", status_code=204)
    def login(request: Request, response: Response, body: LoginBody) -> None:
        """Begin a session with a password."""
        address = _address(request)
        wait = door.guesses.begin(address)
        if wait > 0:
            seconds = str(math.ceil(wait))
            raise HTTPException(429, f"too many wrong passwords: wait {seconds} seconds", {"Retry-After": seconds})
        role = door.access.role_of_password(body.password)
        if role is None:
            raise HTTPException(401, "is not the password")
        door.guesses.right(address)
        secure = request.url.scheme == "https"
        session = door.access.begin_session(role)
        response.set_cookie(COOKIE, session, httponly=True, samesite="strict", secure=secure, path="/")

    @router.post("/logout", status_code=204)
    def logout(request: Request, response: Response) -> None:
        """End the session."""
        door.access.end_session(request.cookies.get(COOKIE, ""))
        response.delete_cookie(COOKIE, path="/")

    @router.get("/tokens", dependencies=administrator)
    def list_tokens() -> list[TokenAnswer]:
        """Passes of programs; the passes themselves are not kept."""
        return [TokenAnswer(name=t.name, role=t.role.name, created=t.created) for t in door.access.tokens()]

    @router.post("/tokens", status_code=201, dependencies=administrator)
    def make_token(body: TokenBody) -> TokenAnswer:
        """Make a pass for a program: it is shown this once, and sent as `Authorization: Bearer PASS`."""
        token = door.access.make_token(body.name, Role[body.role])
        return TokenAnswer(name=body.name, role=body.role, created=time.time(), token=token)

    @router.delete("/tokens/{name}", status_code=204, dependencies=administrator)
    def revoke_token(name: Annotated[str, PathParameter(max_length=100)]) -> None:
        """Take a pass back."""
        if all(token.name != name for token in door.access.tokens()):
            raise HTTPException(404, f"there is no token {name!r}")
        door.access.revoke_token(name)


def _address(request: Request) -> str:
    """Who guesses: an address, or the network of a house where addresses are free (RFC 6177)."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host
