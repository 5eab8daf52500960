from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manyeyes.report.runlog import read_runlog

from .synthetic import SyntheticRun, write_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests may add files to it, and change none."""
    folder = tmp_path_factory.mktemp("runs") / "three-sites"
    write_run(folder)
    return folder


@pytest.fixture(scope="session")
def events(run_folder: Path) -> list[dict[str, Any]]:
    return list(read_runlog(run_folder / "runlog.jsonl"))


@pytest.fixture
def new_run(tmp_path: Path) -> Iterator[SyntheticRun]:
    """A run that is begun; the test says how it goes on."""
    run = SyntheticRun(tmp_path / "run")
    run.start()
    yield run
    run.log.close()
