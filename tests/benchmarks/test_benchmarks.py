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


EXPLAIN = """
import contextlib, io, json, runpy, sys
said, folder, scripts = {}, sys.argv[1], sys.argv[2:]
sys.path.insert(0, folder)
for script in scripts:
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(f"{folder}/{script}", run_name="__main__")
        except SystemExit as end:
            said[script] = end.code, out.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, tuple[int, str]]:
    """Exit code and words of each with --help; all in one process, which imports torch once."""
    command = [sys.executable, "-c", EXPLAIN, str(BENCHMARKS), *SCRIPTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_explains_itself(script: str, said: dict[str, tuple[int, str]]) -> None:
    code, text = said[script]
    assert code == 0
    assert "--quick" in text
    assert "--json" in text


def test_kept_cells_say_configuration_seed_commit_and_samples() -> None:
    for path in (BENCHMARKS / "results").rglob("*.json"):
        cell = json.loads(path.read_text())
        assert {"commit", "machine", "seed", "samples"} <= set(cell), path
