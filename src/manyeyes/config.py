"""The configuration of a run: one YAML file, one pydantic section a topic, every cross-field check in one place.

Relative paths of data and weights are resolved against `data_root` (itself relative to the configuration file),
`output` against the working folder.

>>> config = parse_config({"name": "two", "sites": [{"node_id": "A", "data": "a"}, {"node_id": "B", "data": "b"}]})
>>> config.train.imgsz, config.federation.rounds
(320, 5)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from manyeyes.errors import ConfigError, nearest

__all__ = [
    "AugmentSection",
    "EvaluateSection",
    "FedAdamSection",
    "FedAvgMSection",
    "FedAvgSection",
    "FedNovaSection",
    "FedProxSection",
    "FedYogiSection",
    "FederationSection",
    "ModelSection",
    "NodeTrainSection",
    "RunConfig",
    "ScaffoldSection",
    "Section",
    "SimulationSection",
    "SiteSection",
    "StrategySection",
    "TrainSection",
    "check_training_fits_rounds",
    "dump_config",
    "fill_in",
    "load_config",
    "parse_config",
    "read_values",
    "validate",
]

NODE_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


class Section(BaseModel):
    """A section refuses keys it does not know and values it cannot use."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Section = TypeVar("_Section", bound=Section)


class ModelSection(Section):
    """Which detector, and from what it starts."""

    name: Literal["yolov8n", "yolov8s", "yolov8m", "yolov8l", "yolov8x"] = "yolov8n"
    weights: str = Field("base", description="'base' (shipped), 'scratch', or a .pt or .safetensors file")


class SiteSection(Section):
    """One site: its name and its dataset."""

    node_id: str = Field(pattern=NODE_ID_PATTERN)
    data: Path = Field(description="data.yaml or folder, in YOLO, Pascal VOC or COCO layout")
    annotates: tuple[str, ...] | None = Field(None, description="classes looked for here; default: its own list")
    hours: float | None = Field(
        None, gt=0, description="most hours the site's machine may train in the whole run, alone and together"
    )

    @field_validator("hours", mode="before")
    @classmethod
    def _is_no_time_of_day(cls, value: Any) -> Any:
        if isinstance(value, str) and ":" in value:
            raise ValueError(
                f"is the number of hours that the whole run may take, got {value!r}; hours of the day are a matter of"
                " the node that trains: `hours` in its node.yaml"
            )
        return value


class AugmentSection(Section):
    """Augmentation of training pictures; names and meanings as in Ultralytics."""

    mosaic: float = Field(1.0, ge=0, le=1, description="probability")
    hsv_h: float = Field(0.015, ge=0, le=1, description="fraction")
    hsv_s: float = Field(0.7, ge=0, le=1, description="fraction")
    hsv_v: float = Field(0.4, ge=0, le=1, description="fraction")
    fliplr: float = Field(0.5, ge=0, le=1, description="probability")
    flipud: float = Field(0.0, ge=0, le=1, description="probability; where pictures have no up and down")
    scale: float = Field(0.5, ge=0, lt=1, description="gain ±")
    translate: float = Field(0.1, ge=0, le=1, description="fraction ±")


class TrainSection(Section):
    """What a node does with its own pictures in one round."""

    epochs: float = Field(1.0, gt=0, description="passes over the site's pictures in one round")
    steps: int | None = Field(None, ge=1, description="optimiser steps in one round, instead of epochs")
    batch: int = Field(8, ge=1, description="pictures per optimiser step, over all accumulated parts")
    accumulate: int = Field(1, ge=1, description="parts a batch is computed in")
    imgsz: int = Field(320, ge=64, le=2048, multiple_of=32, description="side in pixels")
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.005, gt=0, description="learning rate at the start")
    final_lr: float = Field(0.01, gt=0, le=1, description="share of lr that is left at the end of the last round")
    optimizer_state: Literal["auto", "kept", "fresh"] = Field(
        "auto", description="kept: a node's optimiser goes on where it was in its last round; auto: kept with adamw"
    )
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    momentum: float = Field(0.9, ge=0, lt=1, description="Nesterov momentum, or AdamW's beta1")
    weight_decay: float = Field(0.0005, ge=0)
    warmup_epochs: float = Field(0.5, ge=0, description="while an optimiser begins: in a node's first round")
    clip_norm: float | None = Field(
        # Ultralytics clips at 10 what it sums over a batch; ours is the mean, and this the same for a batch of 8.
        1.25,
        gt=0,
        description="largest L2 norm of a gradient, the mean over a batch; null for none",
    )
    ema: float | None = Field(None, gt=0, lt=1, description="decay per step of an average of the weights")
    freeze: int = Field(0, ge=0, le=22, description="leading layers that are not trained; 22 trains the head alone")
    cache_views: int = Field(
        0,
        ge=0,
        le=64,
        description="augmented views of each picture whose frozen features are kept on disk and used again; 0: none",
    )
    batchnorm: Literal["train", "frozen"] = Field(
        "train", description="frozen: normalise by the running statistics the session starts with, and keep them"
    )
    close_mosaic: float = Field(0.2, ge=0, le=1, description="last share of the whole run without mosaic")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = False
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = Field(None, ge=1, description="CPU threads of a row; default: its share of the cores")
    augment: AugmentSection = AugmentSection()

    @model_validator(mode="after")
    def _parts_fill_the_batch(self) -> TrainSection:
        if self.batch % self.accumulate:
            raise ValueError(f"batch ({self.batch}) must be a multiple of accumulate ({self.accumulate})")
        if self.cache_views and not self.freeze:
            raise ValueError("cache_views keeps the features of frozen layers: it needs freeze of at least 1")
        if self.precision == "fp16" and not self.device.startswith("cuda"):
            raise ValueError("precision fp16 needs device cuda; use bf16 or auto on a CPU")
        return self

    @property
    def keeps_optimizer_state(self) -> bool:
        """Whether a node's optimiser goes on where it was in its last round."""
        return self.optimizer_state == "kept" or (self.optimizer_state == "auto" and self.optimizer == "adamw")


class NodeTrainSection(Section):
    """What one node is asked for in place of the keys of `train`; what is left out stays as it is there."""

    epochs: float | None = Field(None, gt=0, description="in place of train.epochs, and of train.steps")
    steps: int | None = Field(None, ge=1, description="in place of train.steps, or of train.epochs")
    batch: int | None = Field(None, ge=1)
    accumulate: int | None = Field(None, ge=1)
    imgsz: int | None = Field(None, ge=64, le=2048, multiple_of=32, description="side in pixels; tests keep theirs")

    @model_validator(mode="after")
    def _says_one_length(self) -> NodeTrainSection:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are two ways to say how long a node trains: keep one")
        return self

    def applied_to(self, train: TrainSection) -> TrainSection:
        """`train` with these keys in their place.

        Raises:
            ValueError: together they cannot be used, such as a batch that is not a multiple of its parts.
        """
        stated = self.model_dump(exclude_none=True)
        if self.epochs is not None:
            stated["steps"] = None
        return TrainSection.model_validate({**train.model_dump(), **stated})


class FedAvgSection(Section):
    """Weighted mean (McMahan et al. 2017)."""

    name: Literal["fedavg"] = "fedavg"
    server_lr: float = Field(1.0, gt=0)


class FedProxSection(Section):
    """FedAvg with a proximal term at the nodes (Li et al. 2020)."""

    name: Literal["fedprox"]
    mu: float = Field(0.01, gt=0)
    server_lr: float = Field(1.0, gt=0)


class FedAvgMSection(Section):
    """Server momentum (Hsu et al. 2019)."""

    name: Literal["fedavgm"]
    server_lr: float = Field(1.0, gt=0)
    server_momentum: float = Field(0.9, ge=0, lt=1)


class _AdaptiveSection(Section):
    server_lr: float = Field(0.01, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    tau: float = Field(0.001, gt=0)


class FedAdamSection(_AdaptiveSection):
    """Adaptive server optimiser (Reddi et al. 2021)."""

    name: Literal["fedadam"]


class FedYogiSection(_AdaptiveSection):
    """Adaptive server optimiser with Yogi's second moment (Reddi et al. 2021)."""

    name: Literal["fedyogi"]


class FedNovaSection(Section):
    """Normalised averaging for sites that take different numbers of steps (Wang et al. 2020)."""

    name: Literal["fednova"]
    server_lr: float = Field(1.0, gt=0)


class ScaffoldSection(Section):
    """Control variates against the drift of sites that differ (Karimireddy et al. 2020)."""

    name: Literal["scaffold"]
    server_lr: float = Field(1.0, gt=0)


StrategySection = Annotated[
    FedAvgSection
    | FedProxSection
    | FedAvgMSection
    | FedAdamSection
    | FedYogiSection
    | FedNovaSection
    | ScaffoldSection,
    Discriminator("name"),
]


Weighting = Literal["examples", "equal", "inverse_sqrt", "contribution"]
"""What an update counts by: its site's pictures, one, one divided by the root of its site's pictures, or what the
site's updates were worth to the others so far."""


class SimulationSection(Section):
    """Virtual nodes on one machine, to try a plan before sites are asked."""

    nodes: int | None = Field(
        None, ge=1, le=100_000, description="virtual nodes made of the sites' pictures; default: the sites themselves"
    )
    pictures: int = Field(8, ge=1, description="training pictures of each, drawn from those of one site")
    processes: int | None = Field(None, ge=1, le=256, description="nodes at work at a time; default: one a core")


class FederationSection(Section):
    """How rounds are held."""

    model_config = ConfigDict(populate_by_name=True)

    engine: Literal["local", "simulation"] = Field(
        "local", description="simulation: several nodes at work at a time on this machine, in processes of their own"
    )
    simulation: SimulationSection = SimulationSection()
    rounds: int = Field(5, ge=1)
    fraction: float = Field(
        1.0, gt=0, le=1, validation_alias=AliasChoices("fraction", "fraction_fit"), description="share of nodes a round"
    )
    min_nodes: int = Field(
        1, ge=1, validation_alias=AliasChoices("min_nodes", "min_fit_clients"), description="least nodes a round"
    )
    strategy: StrategySection = FedAvgSection()
    weighting: Weighting = Field("examples", description="what a site's update counts by")
    contribution_smoothing: float = Field(
        0.6, ge=0, lt=1, description="share of its score that a site keeps from round to round"
    )
    contribution_scale: float = Field(
        0.05, gt=0, le=1, description="mAP50 that a site's update must cost or bring another for its full effect"
    )
    contribution_floor: float = Field(
        0.05, gt=0, le=1, description="least that a site's update counts by, where the best one counts by 1"
    )
    per_node: dict[Annotated[str, Field(pattern=NODE_ID_PATTERN)], NodeTrainSection] = Field(
        default_factory=dict,
        description="node_id: what it is asked for in place of epochs, steps, batch, imgsz of train",
    )
    personal: tuple[str, ...] = Field((), description="patterns of tensor names that stay at the node, or 'bn'")
    finetune_after: int = Field(
        0,
        ge=0,
        description="rounds' worth of training that each node goes on for itself after the last round; what it learns"
        " then stays there, as its own model",
    )
    finetune_lr: float = Field(1.0, gt=0, le=1, description="share of train.lr that it begins with")
    finetune_mix: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of what it learned in its own model; the rest is the common one, so that it forgets less",
    )
    mode: Literal["sync", "async"] = Field(
        "sync",
        description="sync: a round waits for all that it asked. async: it ends with the first `buffer` updates, whoever"
        " they are of and from whichever round, and who has answered is given the newest model at once",
    )
    buffer: int | None = Field(
        None,
        ge=1,
        description="updates that end a round of mode async; default: half as many as nodes are at work, rounded up",
    )
    deadline: float | None = Field(None, gt=0, description="seconds a round waits for updates")
    late: Literal["drop", "next_round"] = Field(
        "drop",
        description="what becomes of an update that comes after the deadline; next_round: merged when it comes, as it"
        " always is with mode async",
    )
    staleness_exponent: float = Field(
        0.5, ge=0, le=10, description="a late update counts by (1 + rounds it is late)^-this; 0: as any other"
    )
    max_staleness: int = Field(
        4, ge=1, le=1000, description="rounds: a later update is refused, and its node asked again"
    )
    keep: Literal["last", "best"] = Field(
        "last", description="the round a row ends with; best: highest mean of the sites' validation mAP50"
    )

    @model_validator(mode="before")
    @classmethod
    def _strategy_by_name(cls, values: Any) -> Any:
        strategy = values.get("strategy") if isinstance(values, Mapping) else None
        if isinstance(strategy, str):
            return {**values, "strategy": {"name": strategy}}
        if isinstance(strategy, Mapping) and "name" not in strategy:
            return {**values, "strategy": {"name": "fedavg", **strategy}}
        return values

    @model_validator(mode="after")
    def _virtual_nodes_can_be_made(self) -> FederationSection:
        if self.engine == "local" and self.simulation != SimulationSection():
            raise ValueError("simulation is of federation.engine simulation: state that too, or leave it out")
        if self.simulation.nodes is None:
            return self
        for key in ("personal", "finetune_after", "per_node"):
            if getattr(self, key):
                raise ValueError(
                    f"simulation.nodes does not go with federation.{key}, which is about the sites themselves: leave"
                    " one of them out"
                )
        return self

    @model_validator(mode="after")
    def _nothing_is_stated_in_vain(self) -> FederationSection:
        needs = {
            "late: next_round, or mode: async": (self.late == "next_round", ("staleness_exponent",)),
            "finetune_after": (self.finetune_after > 0, ("finetune_lr", "finetune_mix")),
            "weighting: contribution": (
                self.weighting == "contribution",
                ("contribution_smoothing", "contribution_scale", "contribution_floor"),
            ),
        }
        for need, (there, keys) in needs.items():
            for key in keys:
                if not there and getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} does nothing without federation.{need}: state that too, or leave it out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _asynchronous_rounds_merge_late(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("mode") == "async" and "late" not in values:
            return {**values, "late": "next_round"}
        return values

    @model_validator(mode="after")
    def _asynchronous_rounds_can_be_held(self) -> FederationSection:
        if self.mode == "sync":
            if self.buffer is not None:
                raise ValueError("buffer is of federation.mode async: a synchronous round waits for all that it asked")
            return self
        if self.late == "drop":
            raise ValueError("mode async merges every update when it comes: leave federation.late out")
        if isinstance(self.strategy, ScaffoldSection):
            raise ValueError(
                "mode async does not go with strategy scaffold: a site's control variate would be of another round than"
                " the server's; choose fedavg, or federation.mode sync"
            )
        if self.keep == "best":
            raise ValueError(
                "mode async does not go with keep best: who is at work does not test, so rounds are tested by different"
                " sites and cannot be compared; keep the last"
            )
        if self.buffer is not None and self.buffer < self.min_nodes:
            raise ValueError(
                f"buffer ({self.buffer}) must be at least federation.min_nodes ({self.min_nodes}): both count the"
                " updates of a round"
            )
        return self

    @model_validator(mode="after")
    def _late_updates_can_be_merged(self) -> FederationSection:
        if self.late == "drop" or self.mode == "async":
            return self
        if self.deadline is None:
            raise ValueError("late next_round needs federation.deadline: without one every update is waited for")
        if isinstance(self.strategy, ScaffoldSection):
            raise ValueError(
                "late next_round does not go with strategy scaffold: a site's control variate would be of another round"
                " than the server's; set federation.late to drop"
            )
        return self

    @model_validator(mode="after")
    def _control_variates_count_alike(self) -> FederationSection:
        # With a plain mean of the control variates a weighted mean of the models still ends at the plain optimum.
        if isinstance(self.strategy, ScaffoldSection) and self.weighting != "equal":
            raise ValueError("strategy scaffold counts every site alike: set federation.weighting to equal")
        return self


class EvaluateSection(Section):
    """How models are tested."""

    every: int = Field(1, ge=1, description="rounds between tests on the validation pictures")
    nodes: int | None = Field(
        None, ge=1, description="nodes that test a round's model, drawn anew each time; default: all of them"
    )
    imgsz: int | None = Field(None, ge=32, le=2048, multiple_of=32, description="side in pixels; default: as trained")
    examples: int = Field(6, ge=0, le=50, description="test pictures shown in the report")


def check_training_fits_rounds(train: TrainSection, federation: FederationSection) -> None:
    """Refuse what cannot hold between the two sections.

    Raises:
        ValueError: says which and why.
    """
    for node, own in federation.per_node.items():
        try:
            own.applied_to(train)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"federation.per_node.{node} does not go with train: {reason}") from error
    if federation.simulation.nodes and train.cache_views:
        raise ValueError(
            "train.cache_views does not go with federation.simulation.nodes: every virtual node would keep views of its"
            " own on the disk"
        )
    if federation.finetune_mix < 1 and train.batchnorm != "frozen":
        raise ValueError(
            "federation.finetune_mix below 1 needs train.batchnorm frozen: the mean of two models' statistics is not"
            " what the mean of the models would see"
        )
    if isinstance(federation.strategy, FedNovaSection):
        _check_steps_can_be_counted(train)
    if not isinstance(federation.strategy, ScaffoldSection):
        return
    if train.optimizer != "sgd":
        raise ValueError(
            "federation.strategy scaffold needs train.optimizer sgd: it reads the mean gradient off how far the"
            f" weights moved, which the scaled steps of {train.optimizer} do not tell"
        )
    if train.keeps_optimizer_state:
        raise ValueError(
            "federation.strategy scaffold needs train.optimizer_state fresh: it reads the mean gradient off how far"
            " the weights moved, part of which would come from earlier rounds"
        )
    if train.ema is not None:
        raise ValueError(
            "federation.strategy scaffold needs train.ema null: it reads the mean gradient off how far the weights"
            " moved, which their average does not tell"
        )


def _check_steps_can_be_counted(train: TrainSection) -> None:
    if train.ema is not None:
        raise ValueError(
            "federation.strategy fednova needs train.ema null: it divides by how far the steps went, which an average"
            " of the weights has not gone"
        )
    if train.optimizer == "sgd" and train.keeps_optimizer_state:
        raise ValueError(
            "federation.strategy fednova with sgd needs train.optimizer_state fresh: a momentum from earlier rounds"
            " would move the weights by more than this round's steps"
        )


class RunConfig(Section):
    """A whole run: the rows of its table are trained from the same weights."""

    name: str = Field(pattern=NODE_ID_PATTERN)
    seed: int = Field(0, ge=0, lt=2**31)
    data_root: Path = Path()
    output: Path = Path("runs")
    sites: tuple[SiteSection, ...] = Field(min_length=1)
    compare: tuple[Literal["untrained", "alone", "together", "pooled"], ...] = ("alone", "together", "pooled")
    rows_at_once: int | None = Field(
        None, ge=1, description="rows trained at the same time; default: as many as cores and memory allow"
    )
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    federation: FederationSection = FederationSection()
    evaluate: EvaluateSection = EvaluateSection()

    @model_validator(mode="after")
    def _sites_fit_the_federation(self) -> RunConfig:
        ids = [site.node_id for site in self.sites]
        repeated = sorted({i for i in ids if ids.count(i) > 1})
        if repeated:
            raise ValueError(f"node_id must be unique among the sites, {', '.join(repeated)} stands twice")
        count = self.federation.simulation.nodes or len(ids)
        kind = "virtual nodes" if self.federation.simulation.nodes else "sites"
        if self.federation.min_nodes > count:
            raise ValueError(f"federation.min_nodes is {self.federation.min_nodes}, but there are {count} {kind}")
        if (self.federation.buffer or 0) > count:
            raise ValueError(
                f"federation.buffer is {self.federation.buffer}, but there are {count} {kind}: each answers a model"
                " once, so it would never be full"
            )
        if unknown := sorted(self.federation.per_node.keys() - set(ids)):
            raise ValueError(f"federation.per_node names {', '.join(unknown)}, which is not among the sites")
        if "together" not in self.compare:
            raise ValueError("compare must name 'together': it is the model this project is about")
        if (self.evaluate.nodes or 0) > count:
            raise ValueError(f"evaluate.nodes is {self.evaluate.nodes}, but there are {count} {kind}")
        if self.federation.keep == "best" and self.evaluate.nodes:
            raise ValueError(
                "evaluate.nodes does not go with federation.keep best: rounds that are tested by different nodes cannot"
                " be compared"
            )
        if self.federation.weighting == "contribution" and count < 3:
            raise ValueError(
                "federation.weighting contribution needs at least 3 sites: of two that differ none can say which is"
                " wrong"
            )
        return self

    @model_validator(mode="after")
    def _training_fits_the_rounds(self) -> RunConfig:
        check_training_fits_rounds(self.train, self.federation)
        return self

    @property
    def has_plan(self) -> bool:
        """Whether it says how long and how to train; if not, `manyeyes.federation.survey` plans what it leaves open."""
        return "rounds" in self.federation.model_fields_set and bool(self.train.model_fields_set - _WHERE)

    @property
    def run_folder(self) -> Path:
        """Where everything this run makes is kept."""
        return self.output / self.name


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration file.

    Args:
        path: a YAML file.
        overrides: ``section.key=value`` strings that win over the file; values are read as YAML. A number
            addresses an element of a list: ``sites.0.data=other``.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds an unknown key or an impossible value.
    """
    path = Path(path)
    return parse_config(read_values(path, overrides), file=path)


def read_values(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys and values of a YAML file, or of none, with overrides such as `load_config` takes.

    Raises:
        ConfigError: the file is missing or is not YAML, or an override is not one.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not YAML: {' '.join(str(error).split())}", file=path) from error
    if not isinstance(values, dict):
        raise ConfigError("must hold keys and values at the top, such as `name: demo`", file=path)
    for override in overrides:
        _apply_override(values, override)
    return values


def validate(section: type[_Section], values: Mapping[str, Any], file: Path | None = None) -> _Section:
    """A section from its values.

    Raises:
        ConfigError: an unknown key or an impossible value; names file, key, reason and cure.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise _as_config_error(error, file, section) from error


def parse_config(values: Mapping[str, Any], *, file: Path | None = None) -> RunConfig:
    """Validate a configuration that is already in memory; `file` is where its relative paths begin.

    Raises:
        ConfigError: an unknown key or an impossible value; names file, key, reason and cure.
    """
    config = validate(RunConfig, values, file)
    folder = file.parent if file else Path()
    root = folder / config.data_root
    sites = tuple(site.model_copy(update={"data": root / site.data}) for site in config.sites)
    model = config.model
    if model.weights not in ("base", "scratch"):
        model = model.model_copy(update={"weights": str(root / model.weights)})
    return config.model_copy(update={"data_root": root, "sites": sites, "model": model})


def fill_in(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The configuration with values for keys of its sections that it does not state; others stay.

    Args:
        config: a configuration.
        values: by key, e.g. ``{"train.lr": 0.001, "federation.rounds": 8}``.

    Raises:
        ConfigError: a value cannot stand beside those that are stated.
    """
    filled: dict[str, Any] = {key: getattr(config, key) for key in config.model_fields_set}
    for name in ("train", "federation", "evaluate"):
        section: Section = getattr(config, name)
        stated = {key: getattr(section, key) for key in section.model_fields_set}
        new = {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}
        filled[name] = {**new, **stated}
    return validate(RunConfig, filled)


def dump_config(config: RunConfig) -> str:
    """The configuration as YAML with every default written out; paths are absolute, so that it can be run again."""
    values = config.model_dump(mode="json")
    values["data_root"] = str(config.data_root.resolve())
    values["output"] = str(config.output.resolve())
    for site, section in zip(values["sites"], config.sites, strict=True):
        site["data"] = str(section.data.resolve())
    if config.model.weights not in ("base", "scratch"):
        values["model"]["weights"] = str(Path(config.model.weights).resolve())
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: must be section.key=value", cure="For example --set train.lr=0.01")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError("the value is not YAML", key=f"--set {key}", cure="Quote it.") from error
    *parents, last = key.strip().split(".")
    place: Any = values
    for parent in parents:
        place = _step_into(place, parent, key)
    if isinstance(place, list):
        _step_into(place, last, key)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"there is no {last!r} to set here", key=f"--set {key}")


def _step_into(place: Any, part: str, key: str) -> Any:
    if isinstance(place, dict):
        inner = place.get(part)
        if inner is None:  # also a section that stands in the file with nothing below it
            inner = place[part] = {}
        if isinstance(inner, str) and part == "strategy":
            inner = place[part] = {"name": inner}
        return inner
    if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
        return place[int(part)]
    raise ConfigError(f"there is no {part!r} to set here", key=f"--set {key}")


def _as_config_error(error: ValidationError, file: Path | None, root: type[Section]) -> ConfigError:
    # A misspelt key is also a missing one: the spelling is what the user can see.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"]]
    if location[:2] == ["federation", "strategy"] and len(location) > 2:
        del location[2]  # pydantic names the branch of the union, which is no key of the file
    key = ".".join(location) or None
    more = f" ({len(error.errors()) - 1} more after it)" if len(error.errors()) > 1 else ""
    if first["type"] == "extra_forbidden":
        return ConfigError(f"unknown key{more}", file=file, key=key, cure=_known_instead(first["loc"], root))
    reason = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    if not isinstance(given, (Mapping, BaseModel)) and first["type"] not in ("missing", "value_error"):
        reason = f"{reason}, got {given!r}"
    return ConfigError(f"{reason}{more}", file=file, key=key)


def _known_instead(loc: Sequence[int | str], root: type[Section]) -> str:
    *parents, wrong = (str(part) for part in loc)
    if parents == ["federation"] and wrong in _ALIASES:
        return f"It is another name of {_ALIASES[wrong]!r}, which stands there too: keep one."
    if parents[:2] == ["federation", "strategy"]:
        known = sorted(_STRATEGIES[parents[2]].model_fields)
        elsewhere = [name for name, section in _STRATEGIES.items() if wrong in section.model_fields]
        if elsewhere:
            return f"It belongs to {', '.join(elsewhere)}; {parents[2]} knows {', '.join(known)}."
    else:
        known = _known_keys(parents, root)
    guess = nearest(wrong, known)
    return f"Did you mean {guess!r}?" if guess else f"Known here: {', '.join(known)}."


def _known_keys(parents: Sequence[str], root: type[Section]) -> list[str]:
    section: type[BaseModel] = root
    for part in parents:
        if part in ("sites", "per_node"):
            section = SiteSection if part == "sites" else NodeTrainSection
        elif not part.isdecimal() and section is not NodeTrainSection:
            section = type(section.model_fields[part].default)
    return sorted(section.model_fields)


# Keys of `train` that say where is computed, not what is trained: with nothing but these there is no plan yet.
_WHERE = {"device", "threads", "precision"}
_ALIASES = {"fraction_fit": "fraction", "min_fit_clients": "min_nodes"}
_STRATEGIES: dict[str, type[Section]] = {
    "fedavg": FedAvgSection,
    "fedprox": FedProxSection,
    "fedavgm": FedAvgMSection,
    "fedadam": FedAdamSection,
    "fedyogi": FedYogiSection,
    "fednova": FedNovaSection,
    "scaffold": ScaffoldSection,
}
