"""Advice: the rules on sites made up for them, and the survey on real small sites."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.config import AugmentSection, RunConfig, load_config, parse_config
from manyeyes.errors import ConfigError
from manyeyes.federation.advice_text import annotated_config
from manyeyes.federation.advise import (
    HEAD,
    PLANNED,
    SHORT_ROUND,
    SMALL_OBJECT,
    SMALL_SITE,
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
from manyeyes.federation.experiment import open_sites
from manyeyes.federation.survey import look_at, plan_run, survey
from manyeyes.learners.speed import Speed

SPEED = Speed(imgsz=320, training={0: 20.0, HEAD: 50.0}, testing=60.0, start=0.5, machine="a machine")
TRAFFIC = Traffic(fit_down=1000, fit_up=300, test_down=900)


def site(name: str = "A", train: int = 100, **changes: Any) -> SiteFacts:
    facts = SiteFacts(
        site=name,
        pictures={"train": train, "val": 20, "test": 20},
        objects={"person": 200, "car": 200},
        long_side=640.0,
        object_side=0.1,
        brightness=120.0,
    )
    return replace(facts, **changes)


def situation(*sites: SiteFacts, **changes: Any) -> Situation:
    values: dict[str, Any] = {
        "known": frozenset({"person", "car", "dog"}),
        "weights": "yolov8n.pt",
        "device": "cpu",
        "free_disk": 10**12,
        "head_inputs": ((64, 8), (128, 16), (256, 32)),
    }
    return Situation(sites or (site("A"), site("B")), **{**values, **changes})


def config(**sections: Any) -> RunConfig:
    sites = [{"node_id": name, "data": name} for name in "ABC"]
    return parse_config({"name": "advised", "sites": sites, **sections})


def plan(around: Situation, **sections: Any) -> dict[str, Any]:
    return {choice.key: choice.value for choice in recommend(config(**sections), around)}


def reason(around: Situation, key: str, **sections: Any) -> str:
    return next(choice.reason for choice in recommend(config(**sections), around) if choice.key == key)


# -- layers -----------------------------------------------------------------------------------------------------------


def test_small_sites_whose_classes_are_known_take_small_steps_with_the_whole_network() -> None:
    gentle = plan(situation())
    assert (gentle["train.freeze"], gentle["train.batchnorm"], gentle["train.augment"]) == (0, "frozen", {"mosaic": 0})
    assert gentle["train.lr"] < plan(situation(site("A", SMALL_SITE), site("B")))["train.lr"] / 5
    assert "forget" in reason(situation(), "train.freeze")


@pytest.mark.parametrize(
    ("around", "because"),
    [
        (situation(known=frozenset({"person"})), "never seen car"),
        (situation(site("A"), site("B", train=SMALL_SITE)), f"{SMALL_SITE} pictures or more"),
        (situation(weights="base"), "rendered scenes"),
        (situation(weights="scratch", known=frozenset()), "starts from nothing"),
    ],
)
def test_otherwise_the_whole_network_is_trained_and_the_reason_is_said(around: Situation, because: str) -> None:
    assert plan(around)["train.freeze"] == 0
    assert because in reason(around, "train.freeze")


def test_new_classes_get_more_steps_than_known_ones() -> None:
    new = plan(situation(known=frozenset({"person"})))
    assert new["federation.rounds"] * new["train.epochs"] > 2 * plan(situation())["federation.rounds"]
    assert new["train.optimizer"] == "adamw"


# -- image size -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("long_side", "object_side", "imgsz"),
    [(640, 0.1, 640), (500, 0.1, 512), (1920, 0.1, 640), (128, 0.2, 128), (40, 0.5, 64), (640, 0.0, 640)],
)
def test_the_size_is_that_of_the_pictures_up_to_the_usual_one(long_side: float, object_side: float, imgsz: int) -> None:
    around = situation(site(long_side=long_side, object_side=object_side))
    assert plan(around)["train.imgsz"] == imgsz


@given(st.floats(32, 8000), st.floats(0.0005, 1))
def test_the_size_is_one_the_configuration_takes_and_small_objects_raise_it(long_side: float, side: float) -> None:
    around = situation(site(long_side=long_side, object_side=side))
    imgsz = plan(around)["train.imgsz"]
    filled(config(), recommend(config(), around))
    assert imgsz == 1280 or imgsz * side >= 0.999 * SMALL_OBJECT


def test_the_site_with_the_small_objects_is_named() -> None:
    around = situation(site("A"), site("B", object_side=0.01))
    assert plan(around)["train.imgsz"] > 640
    assert "objects at B are small" in reason(around, "train.imgsz")


def test_who_states_at_which_size_is_tested_trains_at_that_size() -> None:
    assert plan(situation(), evaluate={"imgsz": 416})["train.imgsz"] == 416


# -- unlike sites -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "because"),
    [
        ({"objects": {"person": 200}}, "A and B mark different classes"),
        ({"objects": {"person": 390, "car": 10}}, "unequally often"),
        ({"object_side": 0.4}, "objects are 4 times as large at B as at A"),
        ({"brightness": 30.0}, "B is darker than A"),
    ],
)
def test_unlike_sites_keep_batchnorm_frozen(other: dict[str, Any], because: str) -> None:
    unlike, alike = situation(site("A"), site("B", **other), weights="base"), situation(weights="base")
    assert plan(unlike)["train.batchnorm"] == "frozen"
    assert plan(alike)["train.batchnorm"] == "train"
    assert because in reason(unlike, "train.batchnorm")


@pytest.mark.parametrize("train", [20, 100, 1000, 20_000])
def test_rounds_are_short_where_the_server_takes_longer_steps(train: int) -> None:
    around = situation(site("A", train), site("B", train), weights="base")
    of_site = plan(around)
    steps = of_site["train.epochs"] * train / of_site["train.batch"]
    assert 1 <= math.ceil(steps) <= SHORT_ROUND + 1
    assert of_site["federation.strategy"] == {"name": "fedavg", "server_lr": 2.5}
    assert 4 <= of_site["federation.rounds"] <= 120


def test_the_server_takes_plain_steps_where_longer_ones_were_not_measured() -> None:
    around = situation(site("A", 1000), site("B", 1000), weights="base")
    for sections in ({"train": {"epochs": 1}}, {"train": {"lr": 0.01}}, {"train": {"freeze": HEAD}}):
        assert plan(around, **sections)["federation.strategy"]["server_lr"] == 1.0
    assert plan(around, federation={"strategy": "fedadam"})["federation.strategy"].name == "fedadam"


def test_a_much_smaller_site_counts_as_much_as_the_others() -> None:
    assert plan(situation(site("A", 100), site("B", 30)))["federation.weighting"] == "inverse_sqrt"
    assert plan(situation(site("A", 100), site("B", 60)))["federation.weighting"] == "examples"
    assert "B would not be heard" in reason(situation(site("A", 100), site("B", 30)), "federation.weighting")


# -- what is stated ---------------------------------------------------------------------------------------------------

STATED = {
    "train.freeze": 10,
    "train.imgsz": 256,
    "train.batch": 6,
    "train.epochs": 0.5,
    "federation.rounds": 3,
    "train.optimizer": "sgd",
    "train.lr": 0.03,
    "train.weight_decay": 0.1,
    "train.augment": AugmentSection(mosaic=0.3).model_dump(),
    "train.batchnorm": "frozen",
    "federation.weighting": "equal",
    "federation.strategy": {"name": "fedprox", "mu": 0.02, "server_lr": 1.0},
    "train.cache_views": 2,
    "evaluate.every": 3,
}


@given(st.sets(st.sampled_from(PLANNED)))
@settings(deadline=None)
def test_what_is_stated_is_kept_and_all_else_is_chosen(keys: set[str]) -> None:
    if "train.cache_views" in keys:
        keys |= {"train.freeze"}
    sections: dict[str, Any] = {"train": {}, "federation": {"min_nodes": 2}, "evaluate": {}}
    for key in keys:
        section, name = key.split(".")
        sections[section][name] = STATED[key]
    stated = config(**sections)
    choices = recommend(stated, situation())
    planned = filled(stated, choices)
    values = {name: getattr(planned, name).model_dump() for name in sections}
    for key in keys:
        section, name = key.split(".")
        assert values[section][name] == STATED[key]
    assert {choice.key for choice in choices if choice.stated} <= keys
    assert planned.federation.min_nodes == 2
    assert planned.has_plan


def test_a_learning_rate_that_is_stated_keeps_the_optimiser_it_was_written_for() -> None:
    assert plan(situation(weights="base"), train={"lr": 0.01})["train.optimizer"] == "sgd"


def test_scaffold_gets_the_optimiser_it_needs() -> None:
    sections: dict[str, Any] = {"federation": {"strategy": "scaffold", "weighting": "equal"}}
    around = situation(weights="base")
    assert plan(around, **sections)["train.optimizer"] == "sgd"
    filled(config(**sections), recommend(config(**sections), around))


@pytest.mark.parametrize("accumulate", [1, 2, 4, 8])
def test_a_batch_in_parts_stays_divisible(accumulate: int) -> None:
    for device in ("cpu", "cuda"):
        stated = config(train={"accumulate": accumulate})
        filled(stated, recommend(stated, situation(device=device)))


@pytest.mark.parametrize(
    ("sections", "whole"),
    [
        ({}, False),
        ({"train": {"device": "cpu", "threads": 1}, "federation": {"rounds": 3}}, False),
        ({"train": {"lr": 0.1}}, False),
        ({"federation": {"rounds": 3}}, False),
        ({"train": {"lr": 0.1}, "federation": {"rounds": 3}}, True),
    ],
)
def test_a_plan_says_how_long_and_how(sections: dict[str, Any], whole: bool) -> None:
    assert config(**sections).has_plan is whole


def test_views_are_kept_where_they_are_used_again_and_the_disk_has_room() -> None:
    sections: dict[str, Any] = {"federation": {"rounds": 30}, "train": {"freeze": HEAD}}
    assert plan(situation(), **sections)["train.cache_views"] > 0
    assert plan(situation(free_disk=10**8), **sections)["train.cache_views"] == 0
    assert plan(situation(), federation={"rounds": 4}, train={"freeze": HEAD})["train.cache_views"] == 0


# -- what it costs ----------------------------------------------------------------------------------------------------


def test_the_estimate_is_the_sum_of_its_parts() -> None:
    stated = config(train={"imgsz": 640, "epochs": 2, "freeze": HEAD}, federation={"rounds": 5}, evaluate={"every": 2})
    around = situation(site("A", train=100), site("B", train=50))
    cost = estimate(stated, around, SPEED, TRAFFIC)
    # A picture of 640 px costs four of 320; three of the five rounds are tested.
    fit_a, fit_b, test = 0.5 + 200 / 50 * 4, 0.5 + 100 / 50 * 4, 20 / 60 * 4
    a, b = (5 * fit + 3 * test for fit in (fit_a, fit_b))
    assert [s.seconds_together for s in cost.sites] == pytest.approx([a, b])
    assert [s.seconds for s in cost.sites] == pytest.approx([2 * a, 2 * b])
    held_out = 3 * 2 * test
    assert cost.seconds_together == pytest.approx(a + b + held_out)
    pooled = 5 * (0.5 + 300 / 50 * 4) + 2 * held_out
    assert cost.seconds == pytest.approx(2 * (a + b) + 3 * held_out + pooled + 4 * 2 * test)
    assert {(s.bytes_up, s.bytes_down) for s in cost.sites} == {(5 * 300, 5 * 1000 + 3 * 900)}


def test_what_a_site_goes_on_with_for_itself_is_counted() -> None:
    sections: dict[str, Any] = {"train": {"imgsz": 320}, "evaluate": {"every": 100}}
    plain, more, longer = (
        estimate(config(**sections, federation=federation), situation(), SPEED, TRAFFIC).sites[0]
        for federation in ({"rounds": 4}, {"rounds": 4, "finetune_after": 2}, {"rounds": 6})
    )
    assert (more.seconds_together, more.seconds_alone) == (longer.seconds_together, longer.seconds_alone)
    assert more.seconds > plain.seconds
    assert (more.bytes_up, more.bytes_down) == (plain.bytes_up, plain.bytes_down + 1000 + 900)


def limited(hours: float) -> Situation:
    return situation(site("A", hours=hours), site("B", train=250), known=frozenset({"person"}))


@given(st.floats(1e-4, 10))
@settings(deadline=None, max_examples=40)
def test_a_plan_ends_in_the_hours_of_each_site_or_is_refused(hours: float) -> None:
    around = limited(hours)
    refusal, planned = None, config()
    try:
        planned = filled(config(), within_hours(config(), around, SPEED))
    except ConfigError as error:
        refusal = error
    if refusal:
        assert refusal.key == "sites.0.hours"
        assert "more time (sites.0.hours: " in str(refusal)
        assert hours < 0.05
    else:
        assert estimate(planned, around, SPEED, TRAFFIC).sites[0].seconds <= 3600 * hours


def test_short_hours_first_cost_rounds_then_size_then_layers() -> None:
    plans = [within_hours(config(), limited(hours), SPEED) for hours in (10, 0.15, 0.05, 0.0015)]
    values = [{choice.key: choice.value for choice in choices} for choices in plans]
    sizes = [v["train.imgsz"] for v in values]
    assert values[0] == plan(limited(10))
    assert values[1]["federation.rounds"] < values[0]["federation.rounds"]
    assert sizes[1] == sizes[0] > sizes[2] >= sizes[3]
    assert [v["train.freeze"] for v in values] == [0, 0, 0, HEAD]
    assert "would be better" in next(c.reason for c in plans[2] if c.key == "train.imgsz")


def test_a_stated_plan_that_takes_too_long_is_refused_and_every_cure_cures() -> None:
    sections: dict[str, Any] = {"train": {"imgsz": 640, "epochs": 2}, "federation": {"rounds": 20}}
    around = limited(0.4)
    with pytest.raises(ConfigError, match=r"site A may train 0\.4 h.*about 0\.\d+ h") as caught:
        check_hours(config(**sections), around, SPEED)
    cures = dict(
        part.split(")")[0].split(": ") for part in str(caught.value.cure).split("(")[1:] if ": " in part.split(")")[0]
    )
    assert set(cures) == {"federation.rounds", "train.imgsz", "train.freeze", "sites.0.hours"}
    check_hours(config(**sections), limited(float(cures.pop("sites.0.hours"))), SPEED)
    for key, value in cures.items():
        section, name = key.split(".")
        changed = {**sections, section: {**sections[section], name: int(value)}}
        check_hours(config(**changed), around, SPEED)


def test_hours_never_change_what_is_stated() -> None:
    sections: dict[str, Any] = {"federation": {"rounds": 40}, "train": {"freeze": 0, "imgsz": 640}}
    with pytest.raises(ConfigError, match="40 rounds, 100 pictures of 640 px"):
        within_hours(config(**sections), limited(0.1), SPEED)


# -- warnings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("around", "said"),
    [
        (situation(site("A", pictures={"train": 9, "test": 2}), site("B")), "No val pictures at A"),
        (situation(site("A"), site("B", pictures={"train": 9, "val": 2})), "No test pictures at B"),
        (situation(site("A", objects={"person": 50, "car": 3})), "'car' has 3 training objects"),
        (situation(site("A"), site("B", objects={"person": 9})), "Only A marks 'car'"),
        (situation(site("A", objects={"car": 99}), site("B", objects={"dog": 99})), "No class is marked at more than"),
        (situation(site("A")), "only one site"),
        (situation(site("A", objects={"Cars": 99})), "know 'car'. If 'Cars' is the same"),
        (situation(weights="scratch", known=frozenset()), "From scratch"),
    ],
)
def test_what_a_careful_person_would_say_first(around: Situation, said: str) -> None:
    assert any(said in sentence for sentence in warnings(around))


def test_sites_without_faults_get_no_warning() -> None:
    assert warnings(situation()) == ()


# -- the survey, on real pictures and a real machine ------------------------------------------------------------------

MACHINE = {"threads": 1, "device": "cpu", "precision": "fp32"}


def silent(done: int, total: int) -> None:
    pass


def test_look_at_counts_what_a_site_annotates(scenes: Path) -> None:
    sites = open_sites(
        parse_config(
            {
                "name": "two",
                "data_root": str(scenes),
                "sites": [
                    {"node_id": "A", "data": "a_office", "annotates": ["person"]},
                    {"node_id": "C", "data": "c_night"},
                ],
            }
        )
    )
    office, night = look_at("A", sites["A"]), look_at("C", sites["C"], hours=2.0)
    assert set(office.objects) == {"person"}
    assert set(night.objects) == {"person", "car"}
    assert office.long_side == 128
    assert office.training == 9
    assert night.brightness < office.brightness
    assert 0 < office.object_side < 1
    assert night.hours == 2.0


def test_a_survey_gives_a_plan_that_can_be_written_and_read_again(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    stated = load_config(write_config(train={**MACHINE, "batch": 4, "imgsz": 64}, federation={"min_nodes": 2}))
    advice = survey(stated, open_sites(stated), silent)
    path = tmp_path / "planned.yaml"
    path.write_text(annotated_config(advice))
    assert load_config(path) == load_config(write_config(**yaml.safe_load(path.read_text())))
    assert load_config(path).train == advice.config.train
    assert load_config(path).federation == advice.config.federation
    comments = " ".join(line.strip(" #") for line in path.read_text().splitlines() if line.strip().startswith("#"))
    for choice in advice.choices:
        assert choice.stated or choice.reason in comments
    assert advice.config.train.imgsz == 64
    assert advice.speed.training[0] > 0
    assert advice.speed.training[HEAD] > 0
    assert advice.estimate.seconds > advice.estimate.seconds_together > 0


def test_a_stated_plan_without_hours_is_run_as_it_is(write_config: Callable[..., Path]) -> None:
    stated = load_config(write_config())
    assert plan_run(stated, {}, silent) == (stated, None)


def test_a_reason_stands_in_one_line() -> None:
    for choice in recommend(config(), situation()):
        assert isinstance(choice, Choice)
        assert "\n" not in choice.reason
        assert choice.reason
