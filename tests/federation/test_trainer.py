"""The trainer in its own process: the same answers as in this one, and what happens when it ends."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from manyeyes.config import ModelSection, TrainSection
from manyeyes.datasets import load_dataset
from manyeyes.errors import ConfigError, DataError, LimitError, ProtocolError, ResourceError, RunError
from manyeyes.federation.form import ModelForm
from manyeyes.federation.limits import Limits
from manyeyes.federation.messages import EVALUATE, FIT, EvaluatePlan, evaluate_request, fit_request
from manyeyes.federation.site import Site
from manyeyes.federation.traffic import Counted
from manyeyes.federation.trainer import SiteSettings, Trainer
from manyeyes.federation.transport import Request
from manyeyes.learners.learner import FitPlan, Progress, Template
from manyeyes.learners.models import build_template

TRAIN = TrainSection(imgsz=128, batch=4, epochs=1, precision="fp32", device="cpu", threads=1)
PICTURES = 9


@pytest.fixture(scope="module")
def template() -> Template:
    return build_template(ModelSection(weights="base"), ("person", "car"), imgsz=128)


@pytest.fixture
def settings(scenes: Path, tmp_path: Path) -> SiteSettings:
    shutil.copytree(scenes / "a_office", tmp_path / "pictures")
    limits = Limits(device="cpu", threads=1)
    return SiteSettings("A", tmp_path / "pictures", None, None, tmp_path / "state", limits)


class Watched:
    """A trainer, what it told, and something to do while it trains."""

    def __init__(self, settings: SiteSettings) -> None:
        self.told: list[Progress] = []
        self.pictures: list[tuple[int | None, str | None]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.trainer = Trainer(settings, progress=self._progress, pictures=lambda *told: self.pictures.append(told))

    def _progress(self, at: Progress) -> None:
        self.told.append(at)
        self.meanwhile()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the process with a signal, as the system or a defect of a library would."""
        process = self.process
        process.send_signal(number)
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)

    @property
    def process(self) -> psutil.Process:
        return next(child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline()))


@pytest.fixture
def watched(settings: SiteSettings) -> Iterator[Watched]:
    watched = Watched(settings)
    with closing(watched.trainer):
        assert watched.trainer.start() == PICTURES
        yield watched


def fit(template: Template, **changes: object) -> Request:
    plan = FitPlan(train=TRAIN.model_copy(update=changes), round=0, rounds=2, node_id="A")
    return Request("1", "A", FIT, fit_request(template.weights, plan, template.form_hash))


def form(template: Template) -> ModelForm:
    return ModelForm.of(template, "run")


def without_seconds(values: object) -> object:
    return {**values, "metrics": {k: v for k, v in values["metrics"].items() if "second" not in k}}  # type: ignore[dict-item,index,misc]


def test_it_answers_what_a_site_in_this_process_answers(
    watched: Watched, template: Template, scenes: Path, tmp_path: Path
) -> None:
    site = Site("A", load_dataset(scenes / "a_office"), tmp_path / "here", limits=Limits(device="cpu", threads=1))
    here, there = site(fit(template), form(template)), watched.trainer(fit(template), form(template), Counted())
    assert here.arrays.keys() == there.arrays.keys()
    assert all((here.arrays[name] == there.arrays[name]).all() for name in here.arrays)
    test = Request("2", "A", EVALUATE, evaluate_request(template.weights, EvaluatePlan(imgsz=128), template.form_hash))
    assert site(test, form(template)).values == watched.trainer(test, form(template), Counted()).values
    assert watched.told[-1].epoch_done
    assert watched.pictures == [(PICTURES, None)] * 2


def test_one_that_is_killed_while_it_trains_is_replaced_and_no_bit_is_lost(
    watched: Watched, template: Template, caplog: pytest.LogCaptureFixture
) -> None:
    first = watched.process.pid
    undisturbed = watched.trainer(fit(template), form(template), Counted())

    def kill_once() -> None:
        watched.meanwhile = lambda: None
        watched.kill()

    watched.meanwhile = kill_once
    answer = watched.trainer(fit(template), form(template), Counted())
    assert watched.process.pid != first
    assert all((answer.arrays[name] == undisturbed.arrays[name]).all() for name in undisturbed.arrays)
    assert "request 1: the trainer of this site was ended by SIGKILL" in caplog.text


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (signal.SIGKILL, ResourceError, "ended by SIGKILL, as systems do where memory runs out"),
        (signal.SIGSEGV, RunError, r"crashed \(SIGSEGV\)"),
    ],
)
def test_one_that_dies_again_refuses_the_request_and_serves_the_next(
    watched: Watched, template: Template, number: int, kind: type[Exception], said: str
) -> None:
    watched.meanwhile = lambda: watched.kill(number)
    with pytest.raises(kind, match=said):
        watched.trainer(fit(template), form(template), Counted())
    assert len(watched.told) == 2, "it was tried twice"
    watched.meanwhile = lambda: None
    assert watched.trainer(fit(template), form(template), Counted()).values["num_examples"] == PICTURES


def test_it_may_be_killed_between_two_requests(watched: Watched, template: Template) -> None:
    watched.kill()
    assert watched.trainer(fit(template), form(template), Counted()).values["num_examples"] == PICTURES


def test_errors_of_ours_come_through_whole_and_defects_with_their_traceback(
    settings: SiteSettings, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = replace(settings, limits=replace(settings.limits, epochs=0.5, bytes_per_day=10**7))
    with closing(Trainer(limited)) as trainer:
        trainer.start()
        with pytest.raises(LimitError, match=r"allows epochs up to 0\.5, and 1 were asked for") as caught:
            trainer(fit(template), form(template), Counted())
        assert (caught.value.key, bool(caught.value.cure)) == ("epochs", True)
        with pytest.raises(LimitError, match=r"of which 9\.0 MB are used"):
            trainer(fit(template, epochs=0.5), form(template), Counted(down=8 * 10**6, up=10**6))
        with pytest.raises(ProtocolError, match="must be 'fit' or 'evaluate'"):
            trainer(replace(fit(template), kind="dance"), form(template), Counted())
        with pytest.raises(RuntimeError, match=r"(?s)Traceback.*AttributeError"):
            trainer(fit(template), "no form", Counted())  # type: ignore[arg-type]


def test_pictures_that_are_gone_are_said_and_found_again(
    watched: Watched, settings: SiteSettings, template: Template
) -> None:
    away = settings.data_path.with_name("away")
    for killed in (False, True):
        settings.data_path.rename(away)
        if killed:
            watched.kill()
        with pytest.raises(DataError, match="cannot be read at the moment"):
            watched.trainer(fit(template), form(template), Counted())
        assert watched.pictures[-1] == (None, "this site's pictures cannot be read at the moment")
        away.rename(settings.data_path)
        watched.trainer(fit(template), form(template), Counted())
        assert watched.pictures[-1] == (PICTURES, None)


def test_what_is_wrong_at_the_start_is_said_there(settings: SiteSettings) -> None:
    with pytest.raises(DataError, match="nowhere: does not exist"):
        Trainer(replace(settings, data_path=Path("nowhere"))).start()
    with pytest.raises(ConfigError, match=r"agreed\.pt: model_path: there is no such file"):
        Trainer(replace(settings, model_path=Path("agreed.pt"))).start()
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_it_leaves_signals_to_the_node_and_ends_with_it(settings: SiteSettings) -> None:
    code = (
        "import sys, time; from pathlib import Path; from manyeyes.federation.limits import Limits;"
        "from manyeyes.federation.trainer import *;"
        f"t = Trainer(SiteSettings('A', Path({str(settings.data_path)!r}), None, None, Path('s'), Limits()));"
        "t.start(); print('ready', flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=settings.data_path) as node:
        assert node.stdout
        assert node.stdout.readline() == b"ready\n"
        trainer = next(c for c in psutil.Process(node.pid).children() if "spawn_main" in " ".join(c.cmdline()))
        for number in (signal.SIGINT, signal.SIGTERM):
            trainer.send_signal(number)
        time.sleep(0.5)
        assert trainer.is_running()
        node.kill()
    gone, _ = psutil.wait_procs([trainer], timeout=10)
    assert gone, "a trainer without a node is of no use"
