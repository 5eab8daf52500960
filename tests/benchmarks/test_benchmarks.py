from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if path.name not in ("cells.py", "make_results.py"))


@pytest.mark.slow
def test_round_cost_runs_quickly_and_prints_claims_with_raw_samples() -> None:
    command = [sys.executable, str(BENCHMARKS / "round_cost.py"), "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    for claim in json.loads(done.stdout):
        assert set(claim) == {"claim", "ours", "peer", "ratio", "target", "better"}
        assert claim["ours"]
        assert claim["peer"]
        assert claim["better"] in ("higher", "lower")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_explains_itself(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout
    assert "--json" in done.stdout


def test_kept_cells_say_configuration_seed_commit_and_samples() -> None:
    for path in (BENCHMARKS / "results").rglob("*.json"):
        cell = json.loads(path.read_text())
        assert {"commit", "machine", "seed", "samples"} <= set(cell), path
