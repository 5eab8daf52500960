"""What the API answers, for its description in OpenAPI and for whoever reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from manyeyes.datasets.overlay import MarkedBox
from manyeyes.registry import Entry
from manyeyes.runtime.engine import Found
from manyeyes.web.counting import CountingBody
from manyeyes.web.history import Seen
from manyeyes.web.jobs import Job
from manyeyes.web.review import Kept, Reason, ReviewState

__all__ = [
    "AloneAnswer",
    "Box",
    "CountingAnswer",
    "DeletedAnswer",
    "FederationAnswer",
    "FoundAnswer",
    "HistoryAnswer",
    "JobAnswer",
    "ManyAnswer",
    "ModelAnswer",
    "OneOfMany",
    "Problem",
    "ReviewAnswer",
    "RoundAnswer",
    "SentAnswer",
    "SeriesAnswer",
    "StatusAnswer",
    "StreamAnswer",
    "TokenAnswer",
    "found_values",
]


class _Answer(BaseModel):
    model_config = ConfigDict(populate_by_name=True)


class Problem(_Answer):
    """Why something cannot be done, and what helps."""

    reason: str
    cure: str | None = None


class Box(_Answer):
    """One object."""

    name: str = Field(alias="class")
    class_id: int
    score: float = Field(description="0 to 1")
    xyxy: tuple[float, float, float, float] = Field(description="corners in pixels: left, top, right, bottom")


class FoundAnswer(_Answer):
    """What was found in one picture."""

    width: int = Field(description="of the picture, in pixels")
    height: int
    model: str = Field(description="hash of the model that looked")
    scene: Literal["day", "night"] = Field(description="for which that model is")
    milliseconds: float = Field(description="from the picture's bytes to its boxes")
    detections: list[Box]
    review: str | None = Field(None, description="id under which it is offered for review: the model was unsure")


class OneOfMany(_Answer):
    """One picture of several: what was found, or why it was not looked at."""

    file: str
    found: FoundAnswer | None
    error: str | None


class ManyAnswer(_Answer):
    """Several pictures, in the order in which they were sent."""

    pictures: list[OneOfMany]


class JobAnswer(_Answer):
    """An archive and how far it is."""

    id: str
    name: str
    state: Literal["waiting", "running", "done", "stopped", "failed"]
    files: int
    looked_at: int
    errors: int
    min_score: float
    max_iou: float
    model: str | None = Field(description="hash of another model than the one in use")
    created: float = Field(description="seconds since 1970")
    began: float | None
    ended: float | None
    error: str | None
    seconds_left: float | None

    @classmethod
    def of(cls, job: Job) -> JobAnswer:
        """From a job."""
        return cls.model_validate(job, from_attributes=True)


class ModelAnswer(_Answer):
    """A model of this site."""

    hash: str
    label: str
    added: float = Field(description="seconds since 1970")
    bytes: int
    classes: list[str]
    imgsz: int = Field(description="long side in pixels it was trained at")
    precision: str
    round: int | None = Field(description="of the run it was made in")
    origin: Literal["federation", "file"] = Field(description="file: somebody put it here, at this machine")
    run: str | None = Field(description="of the federation")
    map50: float | None = Field(description="mAP50 on this site's pictures when it came")
    map50_95: float | None = Field(description="mAP50-95 on the same pictures, by which it was compared")
    split: Literal["val", "test"] | None = Field(description="the pictures that it was tested on")
    parents: list[str] = Field(description="hashes of the models here that it was made from")
    promoted: bool = Field(description="whether it was ever put to use")
    in_use: bool
    night: bool = Field(description="whether it looks at night")

    @classmethod
    def of(cls, entry: Entry, used: Sequence[str], in_use: str | None, night: str | None) -> ModelAnswer:
        """From the registry's entry.

        Args:
            entry: of the model.
            used: hashes of the models that were put to use.
            in_use, night: hashes of the model in use, and of that for the night.
        """
        return cls(
            hash=entry.hash,
            label=entry.label,
            added=entry.added,
            bytes=entry.num_bytes,
            classes=list(entry.info.names),
            imgsz=entry.info.imgsz,
            precision=entry.info.precision,
            round=entry.round,
            origin=entry.origin,
            run=entry.run,
            map50=entry.map50,
            map50_95=entry.map50_95,
            split=entry.split,
            parents=list(entry.parents),
            promoted=entry.hash in used,
            in_use=entry.hash == in_use,
            night=entry.hash == night,
        )


class StreamAnswer(_Answer):
    """A camera and how it is."""

    name: str
    source: str = Field(description="without user name, password and query")
    state: str
    frames: int
    skipped: int = Field(description="frames that a newer one took the place of")
    per_second: float
    milliseconds: float | None = Field(description="mean, from a frame's arrival to its boxes")
    p95_milliseconds: float | None
    error: str | None


class HistoryAnswer(_Answer):
    """One picture that was looked at."""

    id: int
    time: float = Field(description="seconds since 1970")
    source: str
    name: str
    model: str
    counts: dict[str, int] = Field(description="class → objects")
    milliseconds: float

    @classmethod
    def of(cls, seen: Seen) -> HistoryAnswer:
        """From the history."""
        return cls.model_validate(seen, from_attributes=True)


class SeriesAnswer(_Answer):
    """Objects found over time."""

    since: float = Field(alias="from", description="where the first span begins, in seconds since 1970")
    step: float = Field(description="length of a span in seconds")
    classes: dict[str, list[int]] = Field(description="class → objects in each span")


class ReviewAnswer(_Answer):
    """A picture that is kept for review."""

    id: str
    time: float = Field(description="seconds since 1970")
    source: str
    name: str
    model: str = Field(description="hash of the model that looked")
    classes: list[str] = Field(description="of that model: those that boxes may have")
    reasons: list[Reason]
    width: int = Field(description="of the kept picture, in whose pixels boxes are")
    height: int
    detections: list[Box]
    boxes: list[MarkedBox] | None = Field(description="as somebody corrected them so far")
    state: ReviewState

    @classmethod
    def of(cls, kept: Kept) -> ReviewAnswer:
        """From what is kept."""
        return cls.model_validate(kept, from_attributes=True)


class Crossed(_Answer):
    """Objects of a class at a line."""

    entered: int = Field(alias="in")
    left: int = Field(alias="out")


class Inside(Crossed):
    """Objects of a class at a zone."""

    now: int = Field(description="that are in it")


class Counts(_Answer):
    """What was counted: name → class → objects."""

    lines: dict[str, dict[str, Crossed]]
    zones: dict[str, dict[str, Inside]]


class CountingAnswer(CountingBody):
    """What is counted at a camera."""

    counts: Counts
    since: float | None = Field(description="when counting began, seconds since 1970; null where nothing is counted")


class RoundAnswer(_Answer):
    """A round that this site's node has trained in."""

    run: str
    round: int
    time: float = Field(description="when the node had done its part, seconds since 1970")
    before: float | None = Field(description="mAP50 of the model it came with, on this site's validation pictures")
    after: float | None = Field(description="mAP50 of the model that all sites' parts gave, on the same pictures")
    seconds: float = Field(description="that training took here")


class AloneAnswer(_Answer):
    """A server that belongs to no node."""

    member: Literal[False] = False


class FederationAnswer(_Answer):
    """This site's node in its federation."""

    member: Literal[True] = True
    node_id: str
    coordinator: str
    not_ready: str | None = Field(description="why it cannot take part at the moment")
    paused: bool
    pictures: int = Field(description="training pictures, corrections among them")
    corrections: int = Field(description="pictures that were added at this site's server")
    training: bool
    round: int | None
    rounds: int | None
    epoch: int | None
    epochs: int | None
    seconds_left: float | None
    last_seen: float | None = Field(description="when the coordinator was last heard from, seconds since 1970")
    bytes_today: dict[Literal["down", "up"], int]
    training_seconds: float = Field(description="since the node was started")
    rounds_done: list[RoundAnswer]


class SentAnswer(_Answer):
    """One message that left this site."""

    time: float = Field(description="seconds since 1970")
    kind: str = Field(description="what was asked for: fit, evaluate or publish")
    sent: str = Field(description="answer, or refusal")
    bytes: int
    arrays: dict[str, dict[str, int]] = Field(description="kind of array → how many tensors, and numbers in all")
    values: dict[str, Any] = Field(description="everything else that was in it")
    sha256: str


class DeletedAnswer(_Answer):
    """What was forgotten."""

    deleted: int


class StatusAnswer(_Answer):
    """The server as a whole."""

    version: str
    model: str
    label: str
    classes: list[str]
    scene: Literal["day", "night"]
    ordered: Literal["day", "night"] | None = Field(description="the scene somebody ordered; null where the rule holds")
    backend: str
    precision: str
    imgsz: int
    seconds: float = Field(description="since it was started")
    pictures: int
    waiting: int
    sure_from: float = Field(description="score of an object that the model is sure of; see `review.high`")
    model_changes: int
    taken_back: int = Field(description="new models that failed and were taken back by themselves")
    role: Literal["viewer", "administrator"] = Field(description="of who asks")
    guarded: bool = Field(description="whether a password is needed")


class TokenAnswer(_Answer):
    """A program's pass; the pass itself is shown once."""

    name: str
    role: Literal["viewer", "administrator"]
    created: float
    token: str | None = None


def found_values(found: Found, review: str | None = None) -> dict[str, Any]:
    """`FoundAnswer` as plain values; made for each picture, so without a detour.

    Args:
        found: in the picture.
        review: id under which it is offered for review.
    """
    return {
        "width": found.size[1],
        "height": found.size[0],
        "model": found.engine.model_hash,
        "scene": found.scene,
        "milliseconds": round(1000 * found.seconds, 2),
        "detections": found.detections.to_list(found.engine.names),
        "review": review,
    }
