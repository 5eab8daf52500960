"""The main job: every site alone, all together, and all pictures pooled; same start, same test.

Each row of the table is a run of rounds. "Alone" is a federation of one site, "pooled" a federation of one node that
holds every picture; so all rows pass through the same code at equal epochs a picture.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, Self

import cv2
import numpy as np
import yaml

from manyeyes.config import (
    FedAvgSection,
    FederationSection,
    RunConfig,
    SimulationSection,
    TrainSection,
    dump_config,
    load_config,
)
from manyeyes.datasets import Dataset, Problem, Sample, check_decodable, load_dataset, raise_problem
from manyeyes.datasets.classes import pool, relabel, union_names
from manyeyes.datasets.detections import Detections
from manyeyes.errors import ConfigError, DataError, Interrupted, RunError, WeightsError
from manyeyes.federation.checkpoint import check_same_settings
from manyeyes.federation.client import Client, expand_personal
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.membership import check_buffer, cohort_size
from manyeyes.federation.rounds import RowResult, never, run_rounds
from manyeyes.federation.side_by_side import Job, run_side_by_side
from manyeyes.federation.simulation import SimulationTransport, SiteNodes, VirtualNodes
from manyeyes.federation.transport import Transport
from manyeyes.learners.learner import FitPlan, Learner, Metrics, Progress
from manyeyes.learners.pictures import read_picture
from manyeyes.learners.training import cores
from manyeyes.report.provenance import provenance
from manyeyes.report.runlog import FINETUNED, Emit, RunLog
from manyeyes.signals import Stop
from manyeyes.weights import Weights, write_atomically

__all__ = ["CONFIG_FILE", "Experiment", "TestableLearner", "open_sites"]

CONFIG_FILE = "config.yaml"
"""In a run's folder: what was run, with every default written out."""

_EXAMPLES = "examples.json"
_FREE = (
    "output",
    "data_root",
    "compare",
    "rows_at_once",
    "train.device",
    "train.threads",
    "federation.engine",
    "federation.simulation.processes",
    "federation.deadline",
    "federation.late",
    "evaluate.every",
    "evaluate.examples",
)
# With mode async every round depends on them.
_FREE_IN_SYNC = ("federation.staleness_exponent", "federation.max_staleness")
_SHOWN_SCORE = 0.25
# A row that sees fewer pictures than this, each as often as it is seen, is trained before another process has begun.
_WORTH_A_PROCESS = 1000


class TestableLearner(Learner, Protocol):
    """What an experiment asks of a learner beyond a round."""

    def expected_tensors(self, plan: FitPlan) -> tuple[frozenset[str], frozenset[str]]:
        """Names an update must hold: (delta, buffers)."""

    def test_sites(
        self, weights: Mapping[str, Weights], sites: Mapping[str, Dataset], split: str, imgsz: int
    ) -> dict[str, Metrics]:
        """Metrics of each site's weights on its pictures, and under "mixed" on all pictures as one set."""

    def detect(self, weights: Weights, images: Sequence[Path], imgsz: int) -> list[Detections]:
        """Objects found in pictures."""

    def rows_that_fit(self, plan: TrainSection) -> int:
        """How many rows this machine can train at the same time, by its cores and the memory that is free."""

    def sharing(self, processes: int, threads: int | None) -> Self:
        """The same learner for one of several processes, which is sent there as bytes."""

    def check_batch_fits(self, plan: TrainSection, at_once: int, setting: str) -> None:
        """Refuse a batch that cannot fit into memory in so many processes at the same time, which `setting` says."""

    def check_views_fit(
        self, rows: Mapping[str, Sequence[Dataset]], plan: FitPlan, folder: Path, at_once: int
    ) -> dict[str, int]:
        """Refuse views that the disk has no room for; the bytes that those of each row will take."""

    def forget(self, folder: Path) -> None:
        """Delete below a folder what `fit` kept there to save time."""

    def check_labels(self, site: str, data: Dataset, imgsz: int) -> None:
        """Refuse a site whose class ids are swapped."""

    def save(self, path: Path, weights: Weights) -> None:
        """Write a model that can be opened elsewhere; the suffix says how."""


def open_sites(
    config: RunConfig, *, skip_broken: bool = False, on_problem: Callable[[Problem], None] | None = None
) -> dict[str, Dataset]:
    """Read every site of a configuration, with class ids of the union of their classes.

    Every picture is decoded once, so that a broken file is named before any training.

    Args:
        config: names the sites and their folders.
        skip_broken: leave out pictures and boxes that cannot be used instead of refusing the site.
        on_problem: told of every problem that does not stop the reading.

    Raises:
        DataError: a folder is missing, a site has no pictures to train on, a picture or label cannot be used, or sites
            spell one class in two ways.
    """
    tell = on_problem or (lambda problem: None)
    sites: dict[str, Dataset] = {}
    for section in config.sites:

        def handle(problem: Problem) -> None:
            tell(problem)
            if not skip_broken:
                raise_problem(problem)

        data = load_dataset(section.data, annotates=section.annotates, on_problem=handle)
        splits = {name: check_decodable(samples, handle, split=name) for name, samples in data.splits.items()}
        data = replace(data, splits=splits)
        if not data.split("train"):
            raise DataError(
                "has no pictures to train on",
                file=section.data,
                key=f"site {section.node_id}",
                cure="Give it a `train` split, or leave the site out.",
            )
        sites[section.node_id] = data
    names = union_names(sites)
    return {site: relabel(data, names) for site, data in sites.items()}


class Experiment:
    """One configuration, run to its table.

    Args:
        config: what to run.
        sites: node id → dataset, as `open_sites` gives them.
        learner: trains and tests; its template holds the weights every row starts from.
        stop: asked often; names the signal that asks the run to stop.
        resume_command: what the user types to go on after an interruption.
    """

    def __init__(
        self,
        config: RunConfig,
        sites: Mapping[str, Dataset],
        learner: TestableLearner,
        *,
        stop: Stop = never,
        resume_command: str = "manyeyes run CONFIG --resume",
    ) -> None:
        self.config, self.sites, self.learner = config, dict(sites), learner
        self.stop, self.resume_command = stop, resume_command
        self.folder = config.run_folder
        self.imgsz = config.evaluate.imgsz or config.train.imgsz

    # -- the run ------------------------------------------------------------------------------------------------

    def check(self, *, resume: bool = False, trust_labels: bool = False) -> None:
        """Refuse before any training what would fail or mislead later; writes nothing.

        Raises:
            RunError: the folder holds a run and `resume` is False, or the run was begun with other settings.
            ConfigError: `federation.personal` names no tensor, no site has pictures to choose the best round by, or
                updates of asynchronous rounds would come too late to be merged.
            ResourceError: a batch cannot fit into the memory, or the views on the disk.
            DataError: a site's class ids look swapped, or no site has test pictures.
        """
        kept = self.folder / CONFIG_FILE
        if kept.exists():
            if not resume:
                raise RunError(
                    "holds a run already",
                    file=self.folder,
                    cure="Go on with --resume, or start another with --set name=OTHER.",
                )
            check_same_settings(_compared(load_config(kept)), _compared(self.config))
        if not any(data.split("test") for data in self.sites.values()):
            raise DataError(
                "no site has test pictures, so nothing could be compared", cure="Give sites a `test` split."
            )
        if self.config.federation.keep == "best" and not any(data.split("val") for data in self.sites.values()):
            raise ConfigError(
                "no site has validation pictures to tell which round is best",
                key="federation.keep",
                cure="Give sites a `val` split, or keep the last round.",
            )
        check_buffer(self.config.federation, self.config.federation.simulation.nodes or len(self.sites))
        if self.config.federation.weighting == "contribution":
            self._check_judges()
        expand_personal(self.config.federation.personal, self.learner.template.weights)
        plans = [own.applied_to(self.config.train) for own in self.config.federation.per_node.values()]
        at_once, setting = self._most_at_once()
        for train in (self.config.train, *plans):
            self.learner.check_batch_fits(train, at_once, setting)
        self._view_bytes()
        if not trust_labels:
            for site, data in self.sites.items():
                self.learner.check_labels(site, data, self.imgsz)

    def _most_at_once(self) -> tuple[int, str]:
        """How many processes may train at the same time, and the setting that says so."""
        federation = self.config.federation
        if federation.engine != "simulation":
            return self.config.rows_at_once or 1, "rows_at_once"
        nodes = federation.simulation.nodes or len(self.sites)
        asked = max(
            cohort_size(nodes, federation.fraction, federation.min_nodes),
            min(nodes, self.config.evaluate.nodes or nodes),
        )
        return min(federation.simulation.processes or cores(), asked), "federation.simulation.processes"

    def _check_judges(self) -> None:
        judging = [site for site, data in self.sites.items() if any(len(s.class_id) for s in data.split("val"))]
        if len(judging) < 2:
            raise ConfigError(
                f"contribution needs 2 sites with objects on validation pictures, and there are {len(judging)}",
                key="federation.weighting",
                cure="Give sites a `val` split, or set federation.weighting to equal.",
            )

    def run(self, log: RunLog) -> None:
        """Train and test every row; what is finished is on disk and is not done again when resumed.

        Args:
            log: told of everything; its file lies in the run's folder.

        Raises:
            RunError: too few nodes answered, or the settings differ from those of the run that is resumed.
            Interrupted: the user stopped it.
        """
        config = self.config.model_copy(update={"rows_at_once": self._at_once})
        write_atomically(self.folder / CONFIG_FILE, dump_config(config))
        rows = self._rows()
        log.emit("run_started", **self._description(rows), rows_at_once=self._at_once)
        view_bytes = self._view_bytes()
        if view_bytes:
            log.emit("views_planned", views=self.config.train.cache_views, bytes=view_bytes)
        try:
            if self._at_once > 1:
                run_side_by_side(self._jobs(), self._at_once, log.emit, self.stop)
            else:
                for row in rows:
                    self.run_row(row, log.emit)
        except Interrupted as signal:
            reason = f"stopped by {signal.reason}; finished rounds are kept"
            log.emit("interrupted", signal=signal.reason, resume=self.resume_command)
            raise Interrupted(reason, cure=f"Go on with: {self.resume_command}") from signal
        self._write_examples()

    def _rows(self) -> dict[str, tuple[str, ...]]:
        """Row → the sites whose pictures it is trained on."""
        everybody = tuple(self.sites)
        rows: dict[str, tuple[str, ...]] = {}
        for kind in ("untrained", "alone", "together", "pooled"):
            if kind not in self.config.compare:
                continue
            if kind == "alone":
                rows |= {f"alone-{site}": (site,) for site in everybody}
            else:
                rows[kind] = () if kind == "untrained" else everybody
        return rows

    def run_row(self, row: str, emit: Emit) -> None:
        """Train and test one row, unless that is done.

        Args:
            row: one of those that the configuration compares.
            emit: told of everything.

        Raises:
            RunError: too few nodes answered.
            Interrupted: `stop` named a signal, which is the error's reason.
        """
        folder, emit, nodes = self.folder / "rows" / row, partial(emit, row=row), self._rows()[row]
        tested = folder / "test.json"
        if tested.exists():
            return
        if row == "untrained":
            result = RowResult(self.learner.template.weights, 0, 0, 0.0, 0, kept=0)
            emit("row_started", nodes=[], rounds=0, resumed_from=None)
            emit("row_finished", bytes_down=0, bytes_up=0, seconds=0.0, kept=0, score=None)
            clients: dict[str, Client] = {}
        else:
            clients = self._clients(row, nodes, folder)
            result = self._train(row, clients, folder, emit)
        self._stop_if_asked()
        weights = self._own_weights(row, result, clients)
        metrics = self.learner.test_sites(weights, self.sites, "test", self.imgsz)
        for where, values in metrics.items():
            emit("evaluated", round=result.kept, where=where, split="test", metrics=values.to_dict())
        self._find_in_examples(row, weights, folder)
        self.learner.save(folder / "final.safetensors", result.weights)
        self.learner.save(folder / "final.pt", result.weights)
        if row == "together" and self.config.federation.finetune_after:
            self._test_finetuned(clients, folder, emit)
        self.learner.forget(folder)
        write_atomically(tested, json.dumps({where: m.to_dict() for where, m in metrics.items()}, indent=2))

    def _test_finetuned(self, clients: Mapping[str, Client], folder: Path, emit: Emit) -> None:
        """Each site's own model, made from that of "together", on its own test pictures."""
        for site, client in clients.items():
            try:
                own = client.finetuned()
            except WeightsError as error:
                emit("warning", reason=f"{site} has no model of its own: {error.reason}")
                continue
            self.learner.save(folder / "finetuned" / f"{site}.pt", own)
            self.learner.save(folder / "finetuned" / f"{site}.safetensors", own)
            if self.sites[site].split("test"):
                metrics = self.learner.evaluate(own, self.sites[site], "test", self.imgsz)
                fields = {"round": self._total_rounds, "where": site, "split": "test"}
                emit("evaluated", **{"row": FINETUNED, **fields}, metrics=metrics.to_dict())

    @property
    def _total_rounds(self) -> int:
        """Of each row's training, in rounds; those of a node's own at the end included."""
        return self.config.federation.rounds + self.config.federation.finetune_after

    @cached_property
    def _at_once(self) -> int:
        """Rows to train at the same time: as configured, else as many as the machine allows if they are worth it.

        A resumed run goes on as it was begun: with another number of threads the last bits would differ.
        """
        config, train, rounds = self.config, self.config.train, self._total_rounds
        trained = {row: nodes for row, nodes in self._rows().items() if nodes}
        kept = self.folder / CONFIG_FILE
        if config.federation.engine == "simulation":
            return 1  # the cores are for the nodes
        stated = config.rows_at_once or (load_config(kept).rows_at_once if kept.exists() else None)
        if stated:
            return min(stated, len(trained))
        visits = sum(
            rounds * (train.steps * train.batch if train.steps else train.epochs * len(self.sites[site].split("train")))
            for nodes in trained.values()
            for site in nodes
        )
        if visits < _WORTH_A_PROCESS * len(trained):
            return 1
        return min(self.learner.rows_that_fit(train), len(trained))

    def _jobs(self) -> dict[str, Job]:
        """What trains each row in a process of its own; those that take longest come first."""
        rows = self._rows()
        pictures = {row: sum(len(self.sites[site].split("train")) for site in nodes) for row, nodes in rows.items()}
        config = self.config
        threads = config.train.threads or max(1, cores() // self._at_once)
        config = config.model_copy(update={"train": config.train.model_copy(update={"threads": threads})})
        learner = self.learner.sharing(self._at_once, threads)
        return {
            row: partial(_run_row, config, self.sites, learner, row)
            for row in sorted(rows, key=pictures.__getitem__, reverse=True)
        }

    def _view_bytes(self) -> dict[str, int]:
        """Row → bytes its views will take on the disk; empty where none are kept."""
        config = self.config
        if not config.train.cache_views:
            return {}
        rows = {
            row: [client.data for client in self._clients(row, nodes, self.folder / "rows" / row).values()]
            for row, nodes in self._rows().items()
            if nodes
        }
        plan = FitPlan(train=config.train, round=0, rounds=config.federation.rounds, seed=config.seed)
        return self.learner.check_views_fit(rows, plan, self.folder, self._at_once)

    def _clients(self, row: str, nodes: Sequence[str], folder: Path) -> dict[str, Client]:
        if row == "pooled":
            everything = pool({site: self.sites[site] for site in nodes})
            return {"pooled": Client("pooled", self.learner, everything, folder / "nodes" / "pooled")}
        return {site: Client(site, self.learner, self.sites[site], folder / "nodes" / site) for site in nodes}

    def _train(self, row: str, clients: Mapping[str, Client], folder: Path, emit: Emit) -> RowResult:
        with self._transport(row, clients, folder, emit) as transport:
            return run_rounds(
                transport,
                self.learner.template,
                train=self.config.train,
                federation=self.config.federation if row == "together" else _single(self.config.federation),
                evaluate=self.config.evaluate,
                seed=self.config.seed,
                expected=self.learner.expected_tensors,
                folder=folder / "checkpoints",
                emit=emit,
                resume=True,
                stop=self.stop,
                held_out=self._test_held_out,
                settings={"sites": {site: str(client.data.root.resolve()) for site, client in clients.items()}},
            )

    def _transport(
        self, row: str, clients: Mapping[str, Client], folder: Path, emit: Emit
    ) -> AbstractContextManager[Transport]:
        federation = self.config.federation
        if row != "together" or federation.engine == "local":
            return nullcontext(LocalTransport(clients, _ProgressTeller(emit, self._stop_if_asked)))
        simulation = federation.simulation
        processes = simulation.processes or cores()
        learner = self.learner.sharing(processes, self.config.train.threads or max(1, cores() // processes))
        if simulation.nodes is None:
            sites = {site: client.data for site, client in clients.items()}
            return SimulationTransport(list(clients), SiteNodes(sites, learner, folder / "nodes"), processes=processes)
        virtual = VirtualNodes(
            self.sites, learner, folder / "nodes", simulation.nodes, simulation.pictures, self.config.seed
        )
        return SimulationTransport(virtual.names(), virtual, processes=processes)

    def _test_held_out(self, weights: Weights) -> Metrics:
        """The validation pictures of all sites as one set: the curve on which the rows can be compared."""
        return self.learner.test_sites(dict.fromkeys(self.sites, weights), self.sites, "val", self.imgsz)["mixed"]

    def _own_weights(self, row: str, result: RowResult, clients: Mapping[str, Client]) -> dict[str, Weights]:
        """What each site would use: the row's weights, with its own personal layers where it keeps some."""
        personal = self.config.federation.personal
        if row != "together" or not personal:
            return dict.fromkeys(self.sites, result.weights)
        return {site: clients[site].own_weights(result.weights, personal, result.kept) for site in self.sites}

    def _stop_if_asked(self) -> None:
        signal = self.stop()
        if signal:
            raise Interrupted(signal)

    # -- what the report needs ----------------------------------------------------------------------------------

    def _description(self, rows: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
        rounds = self._total_rounds
        return {
            "name": self.config.name,
            "seed": self.config.seed,
            "template": {
                "architecture": self.learner.template.architecture,
                "weights": self.config.model.weights,
                "form_hash": self.learner.template.form_hash,
                "value_hash": self.learner.template.weights.value_hash,
            },
            "names": list(self.learner.template.names),
            **provenance(),
            "sites": [_describe_site(site, data) for site, data in self.sites.items()],
            "rows": [
                {"row": row, "rounds": rounds if nodes else 0, "nodes": ["pooled"] if row == "pooled" else list(nodes)}
                for row, nodes in rows.items()
            ],
        }

    def _examples(self) -> dict[str, list[Sample]]:
        """Test pictures for the report: a few of each site, drawn by the run's seed among those with objects."""
        each = -(-self.config.evaluate.examples // len(self.sites))
        chosen: dict[str, list[Sample]] = {}
        for number, (site, data) in enumerate(self.sites.items()):
            candidates = [sample for sample in data.split("test") if len(sample.class_id)]
            order = np.random.default_rng([self.config.seed, number]).permutation(len(candidates))[:each]
            chosen[site] = [candidates[i] for i in sorted(order)]
        return chosen

    def _find_in_examples(self, row: str, weights: Mapping[str, Weights], folder: Path) -> None:
        """Keep what a row's model finds in the example pictures of the sites it is shown for."""
        found: dict[str, list[list[list[float]]]] = {}
        for site, samples in self._examples().items():
            if row in (f"alone-{site}", "together"):
                detections = self.learner.detect(weights[site], [s.image for s in samples], self.imgsz)
                found[site] = [_rows_of(d.above(_SHOWN_SCORE)) for d in detections]
        if found:
            write_atomically(folder / _EXAMPLES, json.dumps(found))

    def _write_examples(self) -> None:
        """Copies of the example pictures, with what "alone" and "together" found in them, for the report."""
        folder = self.folder / "examples"
        shutil.rmtree(folder, ignore_errors=True)
        index: list[dict[str, Any]] = []
        for site, samples in self._examples().items():
            found = {row: self._found_by(row, site) for row in (f"alone-{site}", "together")}
            for number, sample in enumerate(samples):
                name = f"{site}_{number:02d}.jpg"
                scale = _write_small(sample, folder / name)
                truth = [[*map(float, b * scale), int(c)] for b, c in zip(sample.xyxy, sample.class_id, strict=True)]
                rows = {row: _scaled(boxes[number], scale) for row, boxes in found.items() if boxes}
                index.append({"site": site, "image": name, "truth": truth, "rows": rows})
        write_atomically(folder / "index.json", json.dumps(index))

    def _found_by(self, row: str, site: str) -> list[list[list[float]]]:
        path = self.folder / "rows" / row / _EXAMPLES
        found: list[list[list[float]]] = json.loads(path.read_text()).get(site, []) if path.exists() else []
        return found


class _ProgressTeller:
    """Turns a fit's progress into events, and lets a signal stop the fit."""

    def __init__(self, emit: Emit, stop_if_asked: Callable[[], None]) -> None:
        self._emit, self._stop_if_asked = emit, stop_if_asked

    def __call__(self, progress: Progress) -> None:
        self._stop_if_asked()
        fields = {
            "round": progress.round + 1,
            "node": progress.node_id,
            "epoch": progress.epoch,
            "epochs": progress.epochs,
            "losses": dict(progress.losses),
            "images_per_second": round(progress.images_per_second, 2),
        }
        self._emit("progress", **fields, step=progress.step, steps=progress.steps, seconds_left=progress.seconds_left)
        if progress.epoch_done:
            self._emit("epoch_finished", **fields)


def _run_row(
    config: RunConfig, sites: Mapping[str, Dataset], learner: TestableLearner, row: str, emit: Emit, stop: Stop
) -> None:
    Experiment(config, sites, learner, stop=stop).run_row(row, emit)


def _compared(config: RunConfig) -> dict[str, Any]:
    """The settings that must be the same in every row of a table."""
    values: dict[str, Any] = yaml.safe_load(dump_config(config))
    free = {*_FREE, *(_FREE_IN_SYNC if config.federation.mode == "sync" else ())}
    if config.federation.keep == "best":
        free.remove("evaluate.every")  # it decides which rounds can be kept
    for path in free:
        *parents, last = path.split(".")
        section = values
        for parent in parents:
            section = section[parent]
        section.pop(last, None)
    for site in values["sites"]:
        site.pop("hours")
    return values


def _single(federation: FederationSection) -> FederationSection:
    """The federation of one node, of as many rounds: no server optimiser, nothing personal, nobody to wait for."""
    update = {"strategy": FedAvgSection(), "fraction": 1.0, "min_nodes": 1, "personal": ()}
    update |= {
        "engine": "local",
        "simulation": SimulationSection(),
        "mode": "sync",
        "buffer": None,
        "deadline": None,
        "late": "drop",
    }
    update |= {"rounds": federation.rounds + federation.finetune_after, "finetune_after": 0}
    if federation.weighting == "contribution":
        update |= {"weighting": "equal"}
    return federation.model_copy(update=update)


def _describe_site(site: str, data: Dataset) -> dict[str, Any]:
    def objects(samples: Sequence[Sample]) -> dict[str, int]:
        ids = np.concatenate([s.class_id for s in samples]) if samples else np.zeros(0, dtype=np.int64)
        counts = np.bincount(ids, minlength=len(data.names))
        return {name: int(counts[i]) for i, name in enumerate(data.names) if name in data.annotates}

    return {
        "node_id": site,
        "annotates": [name for name in data.names if name in data.annotates],
        "pictures": {split: len(samples) for split, samples in data.splits.items()},
        "objects": {split: objects(samples) for split, samples in data.splits.items()},
    }


def _write_small(sample: Sample, path: Path, side: int = 640) -> float:
    """Write a copy of at most `side` pixels; returns the scale."""
    picture = read_picture(sample.image)
    scale = float(min(1.0, side / max(picture.shape[:2])))
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    done, data = cv2.imencode(".jpg", cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    if not done:
        raise DataError("cannot be encoded as a JPEG", file=sample.image)
    write_atomically(path, data.tobytes())
    return scale


def _rows_of(detections: Detections) -> list[list[float]]:
    return [
        [*map(float, box), round(float(score), 3), int(class_id)]
        for box, score, class_id in zip(detections.xyxy, detections.score, detections.class_id, strict=True)
    ]


def _scaled(boxes: Sequence[Sequence[float]], scale: float) -> list[list[float]]:
    return [[*(round(v * scale, 1) for v in box[:4]), *box[4:]] for box in boxes]
