from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

_SCRIPT = """
import json, resource, statistics, sys
import psutil, torch
from manyeyes.learners import memory

def faults():
    # Of the median tensor: one that finds no room among small blocks is put elsewhere, for the first time.
    counts = []
    for _ in range(15):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(10_000_000)
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(counts)

memory._SHORT = float(sys.argv[1])
plain = faults()
with memory.freed_memory_kept(torch.device("cpu")):
    kept = faults()
    held = psutil.Process().memory_info().rss
print(json.dumps({"plain": plain, "kept": kept, "held": held, "after": psutil.Process().memory_info().rss}))
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")


def figures(short: float) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(short)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_a_tensor_of_forty_megabytes_is_not_fetched_from_the_kernel_page_by_page_each_time() -> None:
    found = figures(short=60.0)
    assert found["plain"] > 1000
    assert found["kept"] < found["plain"] / 20
    assert found["after"] > found["held"] - 20e6


def test_after_a_long_session_the_system_gets_its_memory_back() -> None:
    found = figures(short=0.0)
    assert found["after"] < found["held"] - 30e6
