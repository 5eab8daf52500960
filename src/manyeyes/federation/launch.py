"""From a configuration to a finished run: opens what it names, watches for signals, writes the report."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from manyeyes.config import RunConfig
from manyeyes.datasets import Dataset, Problem
from manyeyes.errors import Interrupted
from manyeyes.federation.advice_text import render_plan
from manyeyes.federation.advise import Advice
from manyeyes.federation.experiment import CONFIG_FILE, Experiment, open_sites
from manyeyes.federation.survey import plan_run, survey
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.models import build_template
from manyeyes.report.live import LiveView
from manyeyes.report.progress import progress_bar
from manyeyes.report.results import write_results
from manyeyes.report.runlog import RunLog, read_runlog
from manyeyes.report.tables import Summary, summarise
from manyeyes.report.tensorboard import TensorBoardWriter
from manyeyes.signals import stop_signals

__all__ = ["advise", "launch"]


def launch(
    config: RunConfig,
    *,
    resume: bool = False,
    skip_broken: bool = False,
    trust_labels: bool = False,
    console: Console | None = None,
    quiet: bool = False,
    resume_command: str = "manyeyes run CONFIG --resume",
) -> Summary:
    """Run a configuration to its table and report.

    Args:
        config: what to run.
        resume: go on with the run in `config.run_folder`, or begin if there is none.
        skip_broken: leave out pictures and boxes that cannot be used.
        trust_labels: do not compare labels with what the starting weights see.
        console: where progress is shown.
        quiet: show no progress.
        resume_command: told to the user after an interruption.

    A configuration without a plan is run with the one `manyeyes advise` gives, which is shown and kept with the run.

    Raises:
        ManyeyesError: anything wrong with configuration, data, weights or machine, before any training.
        Interrupted: the user stopped it.
    """
    console = console or Console(stderr=True)
    notes = _Notes(console, quiet)
    sites = open_sites(config, skip_broken=skip_broken, on_problem=notes)
    config = _planned(config, sites, console, quiet)
    names = next(iter(sites.values())).names
    template = build_template(config.model, names, seed=config.seed, imgsz=config.evaluate.imgsz or config.train.imgsz)
    learner = DetectorLearner(template, device=config.train.device, threads=config.train.threads)
    with stop_signals() as stop:
        experiment = Experiment(config, sites, learner, stop=stop, resume_command=resume_command)
        experiment.check(resume=resume, trust_labels=trust_labels)
        try:
            _run(experiment, config.run_folder, console, quiet)
        except Interrupted:
            write_results(config.run_folder)
            raise
    return write_results(config.run_folder)


def _planned(config: RunConfig, sites: Mapping[str, Dataset], console: Console, quiet: bool) -> RunConfig:
    with progress_bar(console, "Measuring this machine", quiet=quiet) as progress:
        planned, advice = plan_run(config, sites, progress)
    if advice and not quiet:
        render_plan(advice, console)
        console.print(
            "The configuration leaves open how to train, so this plan is used. It is kept in "
            f"{config.run_folder / CONFIG_FILE}; `manyeyes advise` says more.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return planned


def advise(
    config: RunConfig, *, skip_broken: bool = False, console: Console | None = None, quiet: bool = False
) -> Advice:
    """Look at the sites and at this machine and propose a plan; trains some steps and keeps nothing.

    Args:
        config: keys of `train` and `federation` that it states are kept.
        skip_broken: leave out pictures and boxes that cannot be used.
        console: where progress is shown.
        quiet: show no progress.

    Raises:
        ManyeyesError: anything wrong with configuration, data, weights or machine; no plan ends in the sites' hours.
    """
    console = console or Console(stderr=True)
    sites = open_sites(config, skip_broken=skip_broken, on_problem=_Notes(console, quiet))
    with progress_bar(console, "Measuring this machine", quiet=quiet) as progress:
        return survey(config, sites, progress)


def _run(experiment: Experiment, folder: Path, console: Console, quiet: bool) -> None:
    with ExitStack() as stack:
        log = RunLog(folder / "runlog.jsonl")
        stack.callback(log.close)
        log.listeners.append(stack.enter_context(TensorBoardWriter(folder / "tensorboard")))
        log.listeners.append(stack.enter_context(LiveView(console, quiet=quiet)))
        experiment.run(log)
        log.emit("run_finished", summary=summarise(read_runlog(log.path)).to_dict() | {"finished": True})


class _Notes:
    """Shows the first problems of each kind that the sites' data has, and how many there are."""

    _SHOWN = 3

    def __init__(self, console: Console, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._counts: dict[str, int] = {}

    def __call__(self, problem: Problem) -> None:
        count = self._counts[problem.kind] = self._counts.get(problem.kind, 0) + 1
        if self._quiet or count > self._SHOWN:
            return
        self._console.print(f"{problem.kind}: {problem.file}: {problem.reason}", highlight=False, markup=False)
        if count == self._SHOWN:
            self._console.print(f"(more of kind {problem.kind}: see `manyeyes data check`)", highlight=False)
