"""The command of a site: join a coordinator, train when asked, until stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from manyeyes.config import NODE_ID_PATTERN, Section, read_values, validate
from manyeyes.datasets import Dataset, check_decodable, load_dataset, raise_problem
from manyeyes.errors import ConfigError, DataError, RunError
from manyeyes.federation.audit import AuditLog
from manyeyes.federation.deployment import supernode
from manyeyes.federation.flower import serve_requests
from manyeyes.federation.keys import NODE_KEY, read_certificate
from manyeyes.federation.site import Limits, Site
from manyeyes.learners.learner import ProgressCallback, silent

__all__ = ["NodeConfig", "load_node_config", "run_node"]

_HTTPS_PORT = 443
_REST_SECONDS = 5.0

_log = logging.getLogger(__name__)


class NodeConfig(Section):
    """What a site says of itself. One file can serve many nodes: the command line wins over it."""

    node_id: str = Field(pattern=NODE_ID_PATTERN)
    coordinator_url: str = Field(description="https://NAME:PORT of the coordinator")
    authority: Path = Field(Path("ca.crt"), description="the file ca.crt that the coordinator's operator gave out")
    data_path: Path = Field(description="data.yaml or folder, in YOLO, Pascal VOC or COCO layout")
    annotates: tuple[str, ...] | None = Field(None, description="classes looked for here; default: its own list")
    state: Path | None = Field(None, description="the node's folder; default: nodes/NODE_ID")
    epochs: float | None = Field(None, gt=0, description="most epochs that one round may ask for")
    batch_size: int | None = Field(None, ge=1, description="largest batch that may be asked for")
    imgsz: int | None = Field(None, ge=32, description="largest side in pixels that may be asked for")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores this process may use")
    patience: float = Field(60.0, gt=0, description="seconds without anything coming in after which it is given up")

    @field_validator("coordinator_url")
    @classmethod
    def _is_https(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ValueError("must be https://NAME or https://NAME:PORT")
        return url

    @property
    def folder(self) -> Path:
        """The node's state folder."""
        return self.state or Path("nodes") / self.node_id

    @property
    def address(self) -> str:
        """host:port of the coordinator."""
        parts = urlsplit(self.coordinator_url)
        host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
        return f"{host}:{parts.port or _HTTPS_PORT}"

    @property
    def limits(self) -> Limits:
        """What it allows."""
        return Limits(self.epochs, self.batch_size, self.imgsz, self.device, self.threads)


def load_node_config(path: Path, overrides: Mapping[str, object]) -> NodeConfig:
    """Read a node's configuration; relative paths of data and authority are resolved against the file's folder.

    Args:
        path: a YAML file.
        overrides: from the command line; None is passed over.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds an unknown key or an impossible value.
    """
    values = read_values(path) | {key: value for key, value in overrides.items() if value is not None}
    config = validate(NodeConfig, values, path)
    found = {"data_path": path.parent / config.data_path, "authority": path.parent / config.authority}
    return config.model_copy(update=found)


def run_node(
    config: NodeConfig,
    stop: Callable[[], str | None],
    *,
    ready: Callable[[Dataset], None] = lambda data: None,
    progress: ProgressCallback = silent,
) -> None:
    """Serve a site until `stop` names a signal.

    Args:
        config: of the node.
        stop: asked several times a second.
        ready: called with the site's pictures when the node is about to join.
        progress: told how far each fit is.

    Raises:
        ManyeyesError: anything wrong with the key, the authority or the data, before anybody is reached.
    """
    data = _open(config)
    if not (config.folder / NODE_KEY).exists():
        raise ConfigError(
            "this node has no key",
            file=config.folder / NODE_KEY,
            cure=f"manyeyes node init --node-id {config.node_id} --folder {config.folder}",
        )
    read_certificate(config.authority)
    site = Site(config.node_id, data, config.folder / "training", limits=config.limits, progress=progress)
    audit = AuditLog(config.folder)
    ready(data)
    while not stop():
        try:
            with supernode(config.folder, config.address, config.authority) as address:
                serve_requests(address, site, audit, lambda: stop() is not None, patience=config.patience)
        except RunError as error:
            # Flower's process ends when the coordinator refuses its key or is away for long; the node stays.
            _log.warning("%s; trying again", error)
            _rest(stop)


def _rest(stop: Callable[[], str | None]) -> None:
    ends = time.monotonic() + _REST_SECONDS
    while time.monotonic() < ends and not stop():
        time.sleep(0.2)


def _open(config: NodeConfig) -> Dataset:
    data = load_dataset(config.data_path, annotates=config.annotates)
    for split, samples in data.splits.items():
        check_decodable(samples, raise_problem, split=split)
    if not data.split("train"):
        raise DataError("has no pictures to train on", file=config.data_path, cure="Give it a `train` split.")
    return data
