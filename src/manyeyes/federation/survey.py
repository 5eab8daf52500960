"""Looks at the sites of a run and at this machine, for the advice that `advise.py` gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from manyeyes.config import RunConfig, fill_in, load_config
from manyeyes.datasets import SPLITS, Dataset, Sample
from manyeyes.errors import ResourceError
from manyeyes.federation.advise import (
    HEAD,
    PLANNED,
    Advice,
    Choice,
    SiteFacts,
    Situation,
    Traffic,
    check_hours,
    estimate,
    filled,
    recommend,
    warnings,
    within_hours,
)
from manyeyes.federation.client import expand_personal
from manyeyes.federation.experiment import CONFIG_FILE
from manyeyes.federation.messages import EvaluatePlan, evaluate_request, fit_request, update_reply
from manyeyes.federation.strategies import build_strategy
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan
from manyeyes.learners.models import build_template, known_names
from manyeyes.learners.pictures import read_picture
from manyeyes.learners.speed import Speed, measure_speed
from manyeyes.learners.training import pick_device
from manyeyes.weights import Update

__all__ = ["look_at", "plan_run", "survey"]

Progress = Callable[[int, int], None]

# Pictures whose brightness is looked at: enough to tell day from night.
_LOOKED_AT = 12


def survey(config: RunConfig, sites: Mapping[str, Dataset], progress: Progress) -> Advice:
    """Advise on a run: look at its sites, measure this machine for some seconds, plan.

    Args:
        config: keys of `train` and `federation` that it states are kept.
        sites: as `open_sites` gives them.
        progress: called with (measurements done, measurements in all).

    Raises:
        ConfigError: no plan ends in the hours that the sites allow, or values that are stated forbid every plan.
        WeightsError: the starting weights cannot be read.
        ResourceError: not even one picture a step fits into memory, or the device is missing.
    """
    learner = _learner(config, sites)
    situation = _look_around(config, sites, learner)
    forced = _batch_that_fits(config, situation, learner)
    first = filled(config, recommend(config, situation, forced))
    speed = _measure(first, sites, learner, progress)
    choices = within_hours(config, situation, speed, forced)
    planned = filled(config, choices)
    cost = estimate(planned, situation, speed, _traffic(planned, learner))
    return Advice(planned, situation, choices, cost, speed, warnings(situation))


def plan_run(config: RunConfig, sites: Mapping[str, Dataset], progress: Progress) -> tuple[RunConfig, Advice | None]:
    """The configuration as it is to be run, and the advice its plan comes from; None if it had a plan.

    A run that was begun goes on with the plan that is kept in its folder. A plan that is stated is only compared with
    the hours the sites allow.

    Raises:
        ConfigError: the plan cannot end in the hours that the sites allow.
        ManyeyesError: as `survey`.
    """
    kept = config.run_folder / CONFIG_FILE
    if kept.exists():
        return (config if config.has_plan else _with_plan_of(load_config(kept), config)), None
    if not config.has_plan:
        advice = survey(config, sites, progress)
        return advice.config, advice
    if any(site.hours for site in config.sites):
        learner = _learner(config, sites)
        learner.check_batch_fits(config.train)
        check_hours(config, _look_around(config, sites, learner), _measure(config, sites, learner, progress))
    return config, None


def _with_plan_of(kept: RunConfig, config: RunConfig) -> RunConfig:
    sections = {"train": kept.train, "federation": kept.federation, "evaluate": kept.evaluate}
    values = {key: getattr(sections[section], name) for key in PLANNED for section, name in [key.split(".")]}
    return fill_in(config, values)


def _learner(config: RunConfig, sites: Mapping[str, Dataset]) -> DetectorLearner:
    names = next(iter(sites.values())).names
    template = build_template(config.model, names, seed=config.seed)
    return DetectorLearner(template, device=config.train.device, threads=config.train.threads)


# -- the sites --------------------------------------------------------------------------------------------------------


def _look_around(config: RunConfig, sites: Mapping[str, Dataset], learner: DetectorLearner) -> Situation:
    weights = learner.template.weights
    return Situation(
        sites=tuple(look_at(site.node_id, sites[site.node_id], site.hours) for site in config.sites),
        known=frozenset(known_names(config.model)),
        weights=config.model.weights,
        device=pick_device(config.train.device).type,
        free_disk=shutil.disk_usage(_existing(config.run_folder)).free,
        head_inputs=tuple(
            (weights[f"model.{HEAD}.cv2.{scale}.0.conv.weight"].shape[1], 8 << scale) for scale in range(3)
        ),
    )


def look_at(site: str, data: Dataset, hours: float | None = None) -> SiteFacts:
    """What a site has; decodes a few of its pictures.

    Args:
        site: its node id.
        data: its pictures, with training pictures among them.
        hours: most hours its machine may train.

    Raises:
        DataError: a picture cannot be decoded.
    """
    samples = data.split("train")
    counts = np.bincount(np.concatenate([s.class_id for s in samples]), minlength=len(data.names))
    sides = np.concatenate([_object_sides(sample) for sample in samples])
    few = samples[:: max(1, len(samples) // _LOOKED_AT)][:_LOOKED_AT]
    return SiteFacts(
        site=site,
        pictures={split: len(data.split(split)) for split in SPLITS},
        objects={name: int(counts[i]) for i, name in enumerate(data.names) if name in data.annotates},
        long_side=float(np.median([max(sample.width, sample.height) for sample in samples])),
        object_side=float(np.median(sides)) if len(sides) else 0.0,
        brightness=float(np.mean([read_picture(sample.image).mean() for sample in few])),
        hours=hours,
    )


def _object_sides(sample: Sample) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """√area of each object as a share of the picture's longer side, (n,)."""
    areas = (sample.xyxy[:, 2:] - sample.xyxy[:, :2]).prod(axis=1)
    return np.asarray(np.sqrt(areas) / max(sample.width, sample.height), dtype=np.float32)


# -- the machine ------------------------------------------------------------------------------------------------------


def _batch_that_fits(config: RunConfig, situation: Situation, learner: DetectorLearner) -> dict[str, Choice]:
    """Half the batch, and half again, until it fits into memory; empty if the usual one does."""
    forced: dict[str, Choice] = {}
    while True:
        train = filled(config, recommend(config, situation, forced)).train
        try:
            learner.check_batch_fits(train)
            return forced
        except ResourceError:
            if "batch" in config.train.model_fields_set or train.batch <= train.accumulate:
                raise
            reason = "pictures a training step looks at; more do not fit into this machine's memory"
            forced = {"train.batch": Choice("train.batch", train.batch // 2, reason)}


def _measure(config: RunConfig, sites: Mapping[str, Dataset], learner: DetectorLearner, progress: Progress) -> Speed:
    """The speed of this machine for the layers the run trains, and for the head alone."""
    largest = max(sites.values(), key=lambda data: len(data.split("train")))
    freezes = sorted({config.train.freeze, HEAD})
    return measure_speed(learner, largest, config.train, freezes, progress=progress)


def _traffic(config: RunConfig, learner: DetectorLearner) -> Traffic:
    """Sizes of the messages of a node, counted on messages with the same tensors."""
    template = learner.template
    plan = FitPlan(train=config.train, round=0, rounds=config.federation.rounds)
    personal = expand_personal(config.federation.personal, template.weights)
    delta, buffers = (
        template.weights.select((names - personal).__contains__) for names in learner.expected_tensors(plan)
    )
    control = build_strategy(config.federation.strategy).control(delta, {}, len(config.sites))
    update = Update(delta, buffers, 1, {}, control)
    test = EvaluatePlan(imgsz=config.train.imgsz, personal=config.federation.personal)
    return Traffic(
        fit_down=len(fit_request(template.weights, plan, template.form_hash, control).to_bytes()),
        fit_up=len(update_reply(update, template.form_hash).to_bytes()),
        test_down=len(evaluate_request(template.weights, test, template.form_hash).to_bytes()),
    )


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())
