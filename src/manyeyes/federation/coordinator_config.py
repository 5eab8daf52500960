"""What a coordinator is told: its configuration, readable without PyTorch or Flower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import Field, model_validator

from manyeyes.config import (
    NODE_ID_PATTERN,
    EvaluateSection,
    FederationSection,
    ModelSection,
    Section,
    TrainSection,
    check_training_fits_rounds,
    read_values,
    validate,
)

__all__ = ["CHECKPOINTS", "DATABASE", "CoordinatorConfig", "dump_coordinator_config", "load_coordinator_config"]

CHECKPOINTS = "checkpoints"
"""In a run's folder: the state after each of the last rounds."""
DATABASE = "superlink.db"
"""In a coordinator's state folder while it is at work: what is on its way to and from nodes."""


class CoordinatorConfig(Section):
    """What a coordinator holds: one run among the nodes that it lets in."""

    name: str = Field(pattern=NODE_ID_PATTERN)
    seed: int = Field(0, ge=0, lt=2**31)
    host: str = Field("0.0.0.0", description="address to listen on")
    port: int = Field(5000, ge=0, le=65535)
    state: Path = Field(Path("coordinator"), description="the folder that `manyeyes coordinator init` made")
    output: Path = Path("runs")
    names: tuple[str, ...] = Field(min_length=1, description="classes of all sites")
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    federation: FederationSection = FederationSection()
    evaluate: EvaluateSection = EvaluateSection()
    test_start: bool = Field(True, description="nodes test the weights the run begins with, so that gains are known")
    publish: bool = Field(True, description="hand the run's model, signed, to the nodes; each site decides on its use")
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="port for Prometheus, on loopback alone; default: none"
    )

    @model_validator(mode="after")
    def _training_fits_the_rounds(self) -> CoordinatorConfig:
        check_training_fits_rounds(self.train, self.federation)
        if self.federation.engine != "local":
            raise ValueError("federation.engine is of manyeyes run: a coordinator's nodes are on machines of their own")
        if self.federation.keep == "best" and self.evaluate.nodes:
            raise ValueError(
                "evaluate.nodes does not go with federation.keep best: rounds that are tested by different nodes cannot"
                " be compared"
            )
        return self

    @property
    def run_folder(self) -> Path:
        """Where everything this run makes is kept."""
        return self.output / self.name


def load_coordinator_config(path: Path, overrides: Sequence[str] = ()) -> CoordinatorConfig:
    """Read a coordinator's configuration; a relative path of weights is resolved against the file's folder.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds an unknown key or an impossible value.
    """
    config = validate(CoordinatorConfig, read_values(path, overrides), path)
    if config.model.weights in ("base", "scratch"):
        return config
    weights = str(path.parent / config.model.weights)
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": weights})})


def dump_coordinator_config(config: CoordinatorConfig) -> str:
    """The configuration as YAML with every default written out; paths are absolute, so that it can be used again."""
    values = config.model_dump(mode="json")
    values |= {"state": str(config.state.resolve()), "output": str(config.output.resolve())}
    if config.model.weights not in ("base", "scratch"):
        values["model"]["weights"] = str(Path(config.model.weights).resolve())
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
