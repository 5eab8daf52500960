"""What `manyeyes serve` is told: one YAML file, and options of the command line that win over it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ByteSize, Field, field_validator, model_validator

from manyeyes.config import Section, read_values, validate
from manyeyes.errors import DataError
from manyeyes.federation.hours import DayHours
from manyeyes.web.cameras import checked_camera

__all__ = [
    "MODEL_HASH",
    "STREAM_NAME",
    "LimitSection",
    "NightSection",
    "ReviewSection",
    "ServeConfig",
    "load_serve_config",
]

STREAM_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
MODEL_HASH = r"^[0-9a-f]{8,64}$"
_PATHS = ("model", "certificate", "key")


class NightSection(Section):
    """Another model for the night, and when it is night: by the clock, by how dark a picture is, or either."""

    model: Path = Field(description="an exported model")
    hours: tuple[str, ...] | None = Field(None, description="of the day: 20:00-06:00")
    darker_than: float | None = Field(None, gt=0, lt=255, description="mean brightness of a picture, 0 to 255")

    @field_validator("hours", mode="before")
    @classmethod
    def _in_one_line(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("hours")
    @classmethod
    def _are_hours(cls, texts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        DayHours.parse(texts or ())
        return texts or None


class LimitSection(Section):
    """What one request, or all of them together, may ask of this machine."""

    picture_bytes: ByteSize = Field(ByteSize(30_000_000), gt=0, description="of one picture")
    picture_pixels: int = Field(100_000_000, ge=1024, description="of one picture; a larger one is not decoded")
    pictures: int = Field(64, ge=1, le=1000, description="in one request")
    zip_bytes: ByteSize = Field(ByteSize(2_000_000_000), gt=0, description="of one archive")
    zip_entries: int = Field(20_000, ge=1, description="in one archive")
    zip_unpacked: ByteSize = Field(ByteSize(20_000_000_000), gt=0, description="of all that is in one archive")
    zip_ratio: int = Field(200, ge=2, description="how many times larger one entry may become when it is unpacked")
    body_memory: ByteSize = Field(ByteSize(1_000_000_000), gt=0, description="of all pictures that come in at a time")
    jobs: int = Field(20, ge=1, description="archives that are kept with what was found in them")
    waiting: int = Field(64, ge=1, description="pictures that may wait for their turn; the next is told to come later")
    connections: int = Field(512, ge=8, description="open at a time")
    patience: float = Field(30.0, gt=0, description="seconds without anything coming in after which a request ends")
    streams: int = Field(16, ge=0, description="cameras")
    history: int = Field(100_000, ge=0, description="pictures whose findings are remembered; 0 remembers none")
    guesses: int = Field(5, ge=1, description="wrong passwords from one address before it must wait")

    @model_validator(mode="after")
    def _hold_together(self) -> Self:
        if self.body_memory < self.picture_bytes:
            raise ValueError("body_memory must be at least picture_bytes: one picture must fit")
        return self


class ReviewSection(Section):
    """Which pictures are kept at the site, so that somebody can correct what the model was unsure of."""

    keep: int = Field(200, ge=0, le=100_000, description="pictures nobody has decided about; 0 keeps none at all")
    low: float = Field(0.25, ge=0.01, le=1, description="an object whose score is from low to high is a doubt")
    high: float = Field(0.5, ge=0.01, le=1)
    second_model: str | None = Field(
        None, description="hash of another model here, or its file: where the two disagree is a doubt"
    )
    track_breaks: bool = Field(True, description="whether an object that is lost on its way is a doubt, where counted")
    every: float = Field(10.0, ge=0, allow_inf_nan=False, description="seconds between two pictures of one camera")
    sources: tuple[Literal["request", "live", "job", "stream"], ...] = ("request", "live", "job", "stream")

    @model_validator(mode="after")
    def _hold_together(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class ServeConfig(Section):
    """A server of one site. Relative paths in the file begin at the file's folder."""

    model: Path | None = Field(None, description="an exported model; default: the one used last")
    night: NightSection | None = None
    state: Path = Field(Path("serve"), description="folder for models, history, jobs, passwords and tokens")
    host: str = Field("127.0.0.1", description="address of this machine to listen on; 0.0.0.0: all of them")
    port: int = Field(5001, ge=0, le=65535)
    names: tuple[str, ...] = Field((), description="host names and addresses that browsers reach it by")
    certificate: Path | None = Field(None, description="PEM file for TLS; it may hold the key too")
    key: Path | None = Field(None, description="PEM file with the certificate's key")
    backend: Literal["auto", "openvino", "onnxruntime"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all this process may use")
    imgsz: int | None = Field(None, ge=32, le=2048, description="long side in pixels; default: as trained")
    min_score: float = Field(0.25, ge=0.01, le=1, description="lowest score shown, where a request says none")
    streams: dict[str, str] = Field(default_factory=dict, description="cameras: name → number, /dev/videoN or address")
    cameras_anywhere: bool = Field(
        False, description="whether the administrator may add cameras at loopback and link-local addresses too"
    )
    review: ReviewSection = ReviewSection()
    limits: LimitSection = LimitSection()

    @field_validator("names", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("streams")
    @classmethod
    def _are_cameras(cls, streams: dict[str, str]) -> dict[str, str]:
        for name, source in streams.items():
            if not re.fullmatch(STREAM_NAME, name):
                raise ValueError(f"a camera's name has letters, digits, '-', '_' and '.', not {name!r}")
            try:
                checked_camera(source)
            except DataError as error:  # without the address: it may hold a password
                raise ValueError(f"{name}: {error}") from error
        return streams

    @model_validator(mode="after")
    def _hold_together(self) -> Self:
        if self.key and not self.certificate:
            raise ValueError("key needs certificate")
        if len(self.streams) > self.limits.streams:
            raise ValueError(f"streams has {len(self.streams)} cameras, and limits.streams is {self.limits.streams}")
        return self

    @property
    def public(self) -> bool:
        """Whether other machines can reach it."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"


def load_serve_config(path: Path | None, options: Mapping[str, Any], overrides: Sequence[str] = ()) -> ServeConfig:
    """Read a server's configuration; the command line wins over the file.

    Args:
        path: a YAML file, or None.
        options: from the command line, by key; None is passed over.
        overrides: ``key=value`` strings from the command line.

    Raises:
        ConfigError: the file is missing, is not YAML, or something holds an unknown key or an impossible value.
    """
    given = {key: value for key, value in options.items() if value is not None}
    values = read_values(path, overrides)
    folder = path.parent if path else Path()
    config = validate(ServeConfig, {**values, **given}, path)
    found: dict[str, Any] = {
        key: value if key in given else folder / value for key in _PATHS if (value := getattr(config, key)) is not None
    }
    if config.night and "night" not in given:
        found["night"] = config.night.model_copy(update={"model": folder / config.night.model})
    second = config.review.second_model
    if second and "review" not in given and not re.fullmatch(MODEL_HASH, second):
        found["review"] = config.review.model_copy(update={"second_model": str(folder / second)})
    return config.model_copy(update=found)
