"""The command of a site: join a coordinator, train when asked, until stopped."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self, cast
from urllib.parse import urlsplit

from pydantic import ByteSize, Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from manyeyes.config import NODE_ID_PATTERN, Section, read_values, validate
from manyeyes.errors import (
    ConfigError,
    DataError,
    LimitError,
    ManyeyesError,
    ProtocolError,
    ResourceError,
    RunError,
    WeightsError,
    nearest,
)
from manyeyes.federation.audit import AuditLog
from manyeyes.federation.form import ModelForm
from manyeyes.federation.hours import DayHours
from manyeyes.federation.joining import Place, Watcher, claimed, serve
from manyeyes.federation.limits import Limits
from manyeyes.federation.local_server import LocalServer, Promote
from manyeyes.federation.messages import EVALUATE, FIT, map50_of, plan_of
from manyeyes.federation.node_status import NodeStatus
from manyeyes.federation.pause import Pause
from manyeyes.federation.traffic import Traffic
from manyeyes.federation.trainer import SiteSettings, Trainer
from manyeyes.federation.transport import Record, Request
from manyeyes.learners.learner import Progress, ProgressCallback, silent

__all__ = ["NodeConfig", "load_node_config", "run_node", "status_of"]

ENVIRONMENT = "MANYEYES_"

_HTTPS_PORT = 443
_PATHS = ("data_path", "authority", "model_path", "serve")

_log = logging.getLogger(__name__)


class NodeConfig(Section):
    """What a site says of itself. One file can serve many nodes: environment and command line win over it."""

    node_id: str = Field(pattern=NODE_ID_PATTERN)
    coordinator_url: str = Field(description="https://NAME:PORT of the coordinator")
    authority: Path = Field(Path("ca.crt"), description="the file ca.crt that the coordinator's operator gave out")
    data_path: Path = Field(description="data.yaml or folder, in YOLO, Pascal VOC or COCO layout")
    annotates: tuple[str, ...] | None = Field(None, description="classes looked for here; default: its own list")
    state: Path | None = Field(None, description="the node's folder; default: nodes/NODE_ID")
    port: int | None = Field(
        None, ge=0, le=65535, description="of this machine alone, for /healthz, /readyz and /metrics; default: none"
    )
    model_path: Path | None = Field(
        None, description="weights of the kind of model that is trained here; default: any kind"
    )
    epochs: float | None = Field(None, gt=0, description="most epochs that one round may ask for")
    batch_size: int | None = Field(None, ge=1, description="largest batch that may be asked for")
    imgsz: int | None = Field(None, ge=32, description="largest side in pixels that may be asked for")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores this process may use")
    memory: float | None = Field(None, gt=0, description="most gigabytes of main memory that the trainer may take")
    hours: tuple[str, ...] | None = Field(None, description="of the day, in which it may train: 22:00-06:00")
    min_pictures: int | None = Field(None, ge=1, description="least training pictures with which it takes part")
    bytes_per_day: ByteSize | None = Field(None, gt=0, description="most bytes up and down together, such as 2 GB")
    serve: Path | None = Field(
        None, description="state folder of `manyeyes serve` at this site, which gets the models of runs; default: none"
    )
    promote: Promote = Field(
        "no_worse", description="whether a model that came is used there: no_worse (than the one in use), always, never"
    )
    promote_margin: float = Field(
        0.0, ge=0, lt=1, description="mAP50-95 that a model may be worse by, on this site's pictures, to be used there"
    )
    keep_models: int | None = Field(
        20, ge=2, description="models of runs that are kept there; older ones that nobody needs go. null: all"
    )
    patience: float = Field(60.0, gt=0, description="seconds without anything coming in after which it is given up")

    @field_validator("coordinator_url")
    @classmethod
    def _is_https(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ValueError("must be https://NAME or https://NAME:PORT")
        return url

    @field_validator("annotates", "hours", mode="before")
    @classmethod
    def _in_one_line(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("hours", mode="before")
    @classmethod
    def _is_no_number(cls, value: object) -> object:
        if isinstance(value, (int, float)):
            raise ValueError(
                "must be hours of the day such as '22:00-06:00'; how many hours a whole run may take is said in the"
                " configuration of `manyeyes advise` and `manyeyes run`, under sites"
            )
        return value

    @field_validator("bytes_per_day", mode="wrap")
    @classmethod
    def _is_a_size(cls, value: object, read: ValidatorFunctionWrapHandler) -> ByteSize | None:
        try:
            return cast("ByteSize | None", read(value))
        except ValidationError as error:
            raise ValueError(f"must be a number of bytes such as '2 GB' or '500 MB', got {value!r}") from error

    @field_validator("hours")
    @classmethod
    def _are_hours(cls, texts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        DayHours.parse(texts or ())
        return texts or None

    @model_validator(mode="after")
    def _hold_together(self) -> Self:
        if self.promote_margin and self.promote != "no_worse":
            raise ValueError(
                f"promote_margin is for promote: no_worse; with {self.promote!r} models are not compared: leave it out"
            )
        return self

    @property
    def folder(self) -> Path:
        """The node's state folder."""
        return self.state or Path("nodes") / self.node_id

    @property
    def place(self) -> Place:
        """Where the node serves, and whom."""
        parts = urlsplit(self.coordinator_url)
        return Place(
            self.node_id,
            str(parts.hostname),
            parts.port or _HTTPS_PORT,
            self.authority,
            self.folder,
            patience=self.patience,
        )

    @property
    def server(self) -> LocalServer | None:
        """The one at this site that gets models, if there is one."""
        if self.serve is None:
            return None
        return LocalServer(self.serve, self.promote, self.authority, self.promote_margin, self.keep_models)

    @property
    def limits(self) -> Limits:
        """What it allows, apart from the kind of model, which `model_path` says."""
        return Limits(
            self.epochs,
            self.batch_size,
            self.imgsz,
            self.device,
            self.threads,
            memory=self.memory,
            hours=DayHours.parse(self.hours) if self.hours else None,
            min_pictures=self.min_pictures,
            bytes_per_day=self.bytes_per_day,
        )


def load_node_config(
    path: Path,
    options: Mapping[str, object],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> NodeConfig:
    """Read a node's configuration: the command line wins over the environment, and that over the file.

    Relative paths of data, authority and weights start at the file's folder if they stand in the file, else at the
    working folder.

    Args:
        path: a YAML file.
        options: from the command line, by key; None is passed over.
        overrides: ``key=value`` strings from the command line; values are read as YAML.
        environment: its variables MANYEYES_KEY are values; an empty one is passed over. Default: of this process.

    Raises:
        ConfigError: the file is missing, is not YAML, or something holds an unknown key or an impossible value.
    """
    given = {key: value for key, value in options.items() if value is not None}
    overridden = {override.partition("=")[0].strip().partition(".")[0] for override in overrides}
    surrounding = _from_environment(os.environ if environment is None else environment)
    origins = {key: ENVIRONMENT + key.upper() for key in surrounding}
    origins |= {key: f"--set {key}" for key in overridden}
    origins |= {key: f"--{key.replace('_', '-')}" for key in given}
    values = read_values(path)
    values |= {key: value for key, value in surrounding.items() if key not in overridden}
    values |= {key: value for key, value in read_values(path, overrides).items() if key in overridden}
    values |= given
    try:
        config = validate(NodeConfig, values, path)
    except ConfigError as error:
        raise _with_origin(error, origins) from error
    folders = {key: Path.cwd() if key in origins else path.parent for key in _PATHS}
    found = {key: folders[key] / value for key in _PATHS if (value := getattr(config, key)) is not None}
    return config.model_copy(update=found)


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    values = {}
    for name, value in environment.items():
        if not name.startswith(ENVIRONMENT):
            continue
        key = name.removeprefix(ENVIRONMENT).lower()
        if key not in NodeConfig.model_fields or name != name.upper():
            known = [ENVIRONMENT + field.upper() for field in NodeConfig.model_fields]
            guess = nearest(name.upper(), known)
            raise ConfigError(
                "unknown variable of the environment",
                key=name,
                cure=f"Did you mean {guess!r}?" if guess else f"Known are: {', '.join(known)}.",
            )
        if value:
            values[key] = value
    return values


def _with_origin(error: ConfigError, origins: Mapping[str, str]) -> ConfigError:
    """The error with the place its value comes from, where that is not the file."""
    key = (error.key or "").partition(".")[0]
    if key in origins:
        return ConfigError(error.reason, key=origins[key], cure=error.cure)
    if error.reason.startswith("Field required"):
        cure = f"State it there, as --{key.replace('_', '-')}, or as {ENVIRONMENT}{key.upper()} in the environment."
        return ConfigError(error.reason, file=error.file, key=error.key, cure=cure)
    return error


def status_of(config: NodeConfig) -> NodeStatus:
    """What is known of a node before it is started."""
    return NodeStatus(config.node_id, config.coordinator_url, config.folder)


def run_node(
    config: NodeConfig,
    stop: Callable[[], str | None],
    *,
    status: NodeStatus | None = None,
    ready: Callable[[int], None] = lambda pictures: None,
    progress: ProgressCallback = silent,
) -> None:
    """Serve a site until `stop` names a signal.

    Args:
        config: of the node.
        stop: asked several times a second.
        status: kept up to date.
        ready: called with the number of training pictures when the node is about to join.
        progress: told how far each fit is.

    Raises:
        ManyeyesError: anything wrong with the key, the authority, the weights or the data, before anybody is reached;
            or the coordinator that is reached first is another one, or knows this node by another name.
    """
    place = config.place
    with claimed(place) as audit, closing(_Node(config, audit, status or status_of(config), progress)) as node:
        node.start()

        def about_to_join() -> None:
            ready(node.status.pictures)
            node.warn_of_limits()

        serve(place, audit, node.answer, stop, ready=about_to_join, watcher=node.watcher)


class _Node:
    """A node's parts, from its start to its end."""

    def __init__(self, config: NodeConfig, audit: AuditLog, status: NodeStatus, progress: ProgressCallback) -> None:
        self.status = status
        self._limits, self._progress = config.limits, progress
        self._traffic = Traffic(config.folder, audit)
        self._pause = Pause(config.folder)
        self._asked: Request | None = None
        settings = SiteSettings(
            config.node_id,
            config.data_path,
            config.annotates,
            config.model_path,
            config.folder / "training",
            config.limits,
            config.server,
        )
        self._trainer = Trainer(settings, progress=self._watch, pictures=self._count)
        self._said: str | None = None
        status.today = lambda: (self._traffic.down, self._traffic.up)

    def start(self) -> None:
        """Raises what is wrong with the pictures or the weights."""
        self.status.pictures = self._trainer.start()

    def close(self) -> None:
        self._trainer.close()

    def warn_of_limits(self) -> None:
        """Say at the start what will make this node refuse whatever it is asked for."""
        try:
            self._limits.check_pictures(self.status.pictures)
        except LimitError as error:
            _log.warning("min_pictures: %s: every request will be refused", error.reason)

    @property
    def watcher(self) -> Watcher:
        """What the node is told by whoever serves it."""
        return Watcher(self._waits, self._away, self._received, self._refused)

    def _waits(self, reason: str | None) -> None:
        self.status.not_ready, self._said = reason, None

    def _away(self) -> str | None:
        """Until midnight, so that no further request comes in: it would go beyond the bytes of the day."""
        limit = self._limits.bytes_per_day
        if self._traffic.holds_another(limit):
            return None
        used = self._traffic.down + self._traffic.up
        text = (
            f"bytes_per_day: {used / 1e6:.1f} of {(limit or 0) / 1e6:.1f} MB are used, and a request like the last"
            f" takes {self._traffic.last_request / 1e6:.1f} MB. Away until midnight."
        )
        self.status.not_ready = text
        if text != self._said:
            _log.warning("%s", text)
        self._said = text
        return "until midnight"

    # -- what happens to a request ------------------------------------------------------------------------------

    def _received(self, num_bytes: int) -> None:
        self.status.heard()
        self._traffic.received(num_bytes)

    def answer(self, request: Request, form: ModelForm) -> Record:
        if request.kind == FIT:
            self._pause.check()
            self._asked = request
        began, status = time.monotonic(), self.status
        status.training = request.kind == FIT
        try:
            record = self._trainer(request, form, self._traffic.counted)
        finally:
            seconds = time.monotonic() - began
            if status.training:
                status.training_seconds += seconds
            status.training = False
            status.epoch = status.epochs = status.seconds_left = None
        status.answered[request.kind] += 1
        self._note(form.run, request, record, seconds)
        return record

    def _note(self, run: str, request: Request, record: Record, seconds: float) -> None:
        """For the site's own people: what a round was to its model."""
        asked = plan_of(request.record)
        if request.kind == FIT and not asked.get("finetune"):
            self.status.trained(run, asked["round"] + 1, seconds)
        elif request.kind == EVALUATE and asked.get("split") == "val" and not asked.get("finetuned"):
            self.status.tested(run, asked["round"], map50_of(record))

    def _refused(self, error: Exception) -> None:
        self.status.refused[_kind_of(error)] += 1

    def _count(self, pictures: int | None, reason: str | None) -> None:
        self.status.not_ready = reason
        if pictures is not None:
            self.status.pictures = pictures

    def _watch(self, at: Progress) -> None:
        self.status.round, self.status.epoch, self.status.epochs = at.round + 1, at.epoch, at.epochs
        self.status.seconds_left = at.seconds_left
        if self._asked:  # the trainer has read its plan by now
            self.status.rounds = plan_of(self._asked.record)["rounds"]
        self._progress(at)


def _kind_of(error: Exception) -> str:
    kinds = {DataError: "data", ProtocolError: "protocol", WeightsError: "protocol", ResourceError: "resource"}
    if isinstance(error, LimitError):
        return error.key or "limit"
    if isinstance(error, RunError):
        return "training"
    named = next((name for kind, name in kinds.items() if isinstance(error, kind)), None)
    return named or ("other" if isinstance(error, ManyeyesError) else "defect")
