from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from manyeyes.errors import ResourceError
from manyeyes.report.tensorboard import TensorBoardWriter

from .synthetic import SITES, SyntheticRun


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events: Any = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_scalars_are_readable(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    with TensorBoardWriter(tmp_path / "tensorboard") as writer:
        run.log.listeners.append(writer)
        run.start()
        run.row("alone-A", ["A"], last=1)
        run.row("together", SITES)
        run.finish_row("together", SITES)
    run.log.close()
    found = curves(tmp_path / "tensorboard" / "together")
    assert [step for step, _ in found["loss/B/box"]] == [1, 2, 3, 4, 5]
    assert found["bytes/up"] == [(n, 4_200_000.0) for n in range(1, 6)]
    assert [step for step, _ in found["mAP50/mixed"]] == [1, 2, 3, 4, 5]
    assert found["test/mAP50/mixed"] == [(5, pytest.approx(0.701))]
    assert found["test/AP50/mixed/car"] == [(5, pytest.approx(0.671))]
    assert len(curves(tmp_path / "tensorboard" / "alone-A")["bytes/down"]) == 1


def test_a_resumed_run_goes_on_and_counts_nothing_twice(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    for first, last, resumed in ((1, 3, False), (3, 5, True)):
        with TensorBoardWriter(tmp_path / "tensorboard") as writer:
            run.log.listeners[:] = [writer]
            run.row("together", SITES, first=first, last=last, resumed=resumed)
    run.log.close()
    found = curves(tmp_path / "tensorboard" / "together")
    assert [step for step, _ in found["bytes/up"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in found["loss/C/cls"]] == [1, 2, 3, 4, 5]


def test_without_tensorboard_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with pytest.raises(ResourceError, match=r"pip install manyeyes\[train\]"):
        TensorBoardWriter(tmp_path)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from manyeyes.report.tensorboard import TensorBoardWriter as T\n"
    code += "w = T(Path(sys.argv[1])); w({'event': 'round_finished', 'row': 'r', 'round': 1, 'time': 1.0}); w.close()\n"
    code += "assert not {'torch', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
