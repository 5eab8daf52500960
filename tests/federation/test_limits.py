"""Each limit of a site before it trains, and while it does; the words that reach the coordinator."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from manyeyes.config import ModelSection, TrainSection
from manyeyes.datasets import load_dataset
from manyeyes.errors import DataError, LimitError
from manyeyes.federation.audit import AuditLog, read_audit
from manyeyes.federation.flower_node import _told
from manyeyes.federation.form import ModelForm
from manyeyes.federation.hours import DayHours
from manyeyes.federation.limits import Limits
from manyeyes.federation.messages import EVALUATE, FIT, EvaluatePlan, evaluate_request, fit_request
from manyeyes.federation.site import Site
from manyeyes.federation.traffic import Traffic
from manyeyes.federation.transport import Record, Request
from manyeyes.learners.learner import FitPlan, Template
from manyeyes.learners.models import build_template

TRAIN = TrainSection(imgsz=128, batch=4, epochs=1, precision="fp32", device="cpu")
HERE = Limits(device="cpu", threads=1)
NOON = datetime(2026, 3, 2, 12)


@pytest.fixture(scope="module")
def template() -> Template:
    return build_template(ModelSection(weights="base"), ("person", "car"), imgsz=128)


def fit(template: Template, **changes: object) -> Request:
    plan = FitPlan(train=TRAIN.model_copy(update=changes), round=0, rounds=2, node_id="A")
    return Request("1", "A", FIT, fit_request(template.weights, plan, template.form_hash))


def ask_test(template: Template) -> Request:
    plan = EvaluatePlan(imgsz=128)
    return Request("2", "A", EVALUATE, evaluate_request(template.weights, plan, template.form_hash))


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def test_outside_its_hours_a_site_tests_and_does_not_train(template: Template, scenes: Path, tmp_path: Path) -> None:
    limits = replace(HERE, hours=DayHours.parse(["22:00-06:00"]))
    clock = Clock(NOON)
    site = Site("A", load_dataset(scenes / "a_office"), tmp_path, limits=limits, now=clock)
    with pytest.raises(LimitError, match="between 22:00-06:00 of its local time, and it is 12:00 there") as caught:
        site(fit(template), ModelForm.of(template, "run"))
    assert caught.value.key == "hours"
    assert site(ask_test(template), ModelForm.of(template, "run")).values["metrics"]["num_images"] > 0
    clock.now = NOON.replace(hour=23)
    assert site(fit(template), ModelForm.of(template, "run")).values["num_examples"] == 9


def test_a_round_that_would_not_end_in_the_hours_is_refused_by_the_time_the_last_took(
    template: Template, scenes: Path, tmp_path: Path
) -> None:
    limits = replace(HERE, hours=DayHours.parse(["08:00-12:00"]))
    clock = Clock(NOON - timedelta(hours=1))
    site = Site("A", load_dataset(scenes / "a_office"), tmp_path, limits=limits, now=clock)
    site(fit(template), ModelForm.of(template, "run"))
    clock.now = NOON - timedelta(microseconds=1000)
    with pytest.raises(LimitError, match=r"0 s are left, and a round such as this takes about \d+ s there"):
        site(fit(template), ModelForm.of(template, "run"))
    clock.now = NOON - timedelta(seconds=5)
    with pytest.raises(LimitError, match=r"5 s are left, and a round such as this takes about .* (min|h) there"):
        site(fit(template, epochs=2000), ModelForm.of(template, "run"))


def test_training_ends_with_the_hours_and_leaves_nothing(template: Template, scenes: Path, tmp_path: Path) -> None:
    limits = replace(HERE, hours=DayHours.parse(["08:00-12:00"]))
    clock, seen = Clock(NOON - timedelta(minutes=1)), []

    def watch(at: object) -> None:
        seen.append(at)
        clock.now = NOON

    site = Site("A", load_dataset(scenes / "a_office"), tmp_path, limits=limits, now=clock, progress=watch)
    with pytest.raises(LimitError, match="which ended before the round did"):
        site(fit(template, epochs=500, optimizer="adamw"), ModelForm.of(template, "run"))
    assert len(seen) == 1
    assert not list(tmp_path.iterdir())


def test_too_few_pictures_take_no_part_and_are_not_counted_aloud(
    template: Template, scenes: Path, tmp_path: Path
) -> None:
    site = Site("A", load_dataset(scenes / "a_office"), tmp_path, limits=replace(HERE, min_pictures=10))
    for request in (fit(template), ask_test(template)):
        with pytest.raises(LimitError, match="fewer training pictures than the 10") as caught:
            site(request, ModelForm.of(template, "run"))
        assert "9" not in str(caught.value)
    enough = Site("A", load_dataset(scenes / "a_office"), tmp_path, limits=replace(HERE, min_pictures=9))
    assert enough(fit(template), ModelForm.of(template, "run")).values["num_examples"] == 9


def test_another_kind_of_model_than_was_agreed_is_refused(template: Template, scenes: Path, tmp_path: Path) -> None:
    data = load_dataset(scenes / "a_office")
    agreed = Site("A", data, tmp_path, limits=replace(HERE, architecture=template.architecture))
    assert agreed(fit(template), ModelForm.of(template, "run")).values["num_examples"] == 9
    other = Site("A", data, tmp_path, limits=replace(HERE, architecture="yolov8s/cv3=128"))
    with pytest.raises(LimitError, match=f"agreed to train a yolov8s/cv3=128, and a {template.architecture} was asked"):
        other(fit(template), ModelForm.of(template, "run"))


def test_a_plan_that_cannot_fit_into_the_memory_is_refused_before_any_is_taken(
    template: Template, scenes: Path, tmp_path: Path
) -> None:
    site = Site("A", load_dataset(scenes / "a_office"), tmp_path, limits=replace(HERE, memory=2.5))
    with pytest.raises(LimitError, match=r"allows 2\.5 GB of memory, and a batch of 4 pictures at 2048 px needs about"):
        site(fit(template, imgsz=2048), ModelForm.of(template, "run"))
    assert not list(tmp_path.iterdir())
    assert site(fit(template), ModelForm.of(template, "run")).values["num_examples"] == 9


def test_a_session_that_takes_more_memory_than_was_reckoned_is_given_up(
    template: Template, scenes: Path, tmp_path: Path
) -> None:
    site = Site("A", load_dataset(scenes / "a_office"), tmp_path, limits=replace(HERE, memory=0.2))
    site._memory_at_rest = -(10**9)
    with pytest.raises(LimitError, match=r"allows 0\.2 GB of memory, and training took \d+\.\d\d GB"):
        site(fit(template), ModelForm.of(template, "run"))


def test_an_answer_that_would_go_beyond_the_bytes_of_the_day_is_not_worked_for(
    template: Template, scenes: Path, tmp_path: Path
) -> None:
    traffic = Traffic(tmp_path, AuditLog(tmp_path))
    request = fit(template)
    length = len(request.record.to_bytes())
    data, state = load_dataset(scenes / "a_office"), tmp_path / "training"
    site = Site("A", data, state, limits=replace(HERE, bytes_per_day=2 * length - 10**6))
    traffic.received(length)
    with pytest.raises(LimitError, match=r"at most \d+\.\d MB a day, of which 12\.1 MB are used, and the answer would"):
        site(request, ModelForm.of(template, "run"), traffic.counted)
    roomy = Site("A", data, state, limits=replace(HERE, bytes_per_day=2 * length + 10**6))
    answer = roomy(request, ModelForm.of(template, "run"), traffic.counted)
    assert traffic.down + len(answer.to_bytes()) <= 2 * length + 10**6
    AuditLog(tmp_path).answer(request, answer, answer.to_bytes())
    spent = Site("A", data, state, limits=replace(HERE, bytes_per_day=2 * length))
    traffic.received(length)
    with pytest.raises(LimitError, match=r"the answer would take 0\.0 MB"):
        spent(ask_test(template), ModelForm.of(template, "run"), traffic.counted)


@pytest.mark.parametrize("freeze", [0, 10, 22])
def test_an_answer_is_never_longer_than_was_reckoned(
    template: Template, scenes: Path, tmp_path: Path, freeze: int
) -> None:
    traffic = Traffic(tmp_path, AuditLog(tmp_path))
    site = Site("A", load_dataset(scenes / "a_office"), tmp_path, limits=HERE)
    reckoned: list[int] = []
    site._check_traffic = reckoned.append  # type: ignore[method-assign]
    request = fit(template, freeze=freeze)
    traffic.received(len(request.record.to_bytes()))
    answer = len(site(request, ModelForm.of(template, "run"), traffic.counted).to_bytes())
    assert answer <= reckoned[0] < answer + 250_000


def test_a_refusal_tells_the_coordinator_what_to_do_and_no_file_of_the_site(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    request = Request("1", "A", FIT, Record())
    try:
        replace(HERE, min_pictures=50).check_pictures(3)
    except LimitError as error:
        said = _told(error, request, log)
    assert said.endswith("with which it takes part. Hold the rounds without it until it has more.")
    hidden = DataError("cannot be read", file="/pictures/of/somebody", cure="Mount /pictures.")
    assert _told(hidden, request, log) == "cannot be read"
    assert [entry["values"]["reason"] for entry in read_audit(log.path)] == [said, "cannot be read"]
