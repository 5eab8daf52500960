from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import manyeyes

HEAVY = ("torch", "supervision", "torchvision", "flwr", "ultralytics", "ray", "matplotlib")
LIGHT_MODULES = [
    "manyeyes",
    "manyeyes.config",
    "manyeyes.weights",
    "manyeyes.datasets",
    "manyeyes.datasets.classes",
    "manyeyes.learners.learner",
    "manyeyes.learners.average_precision",
    "manyeyes.federation",
    "manyeyes.federation.rounds",
    "manyeyes.federation.strategies",
    "manyeyes.federation.local",
    "manyeyes.federation.transport",
    "manyeyes.federation.coordinator_config",
    "manyeyes.federation.status",
    "manyeyes.federation.status_view",
    "manyeyes.federation.backup",
    "manyeyes.federation.hours",
    "manyeyes.federation.node_status",
    "manyeyes.runtime.counting",
    "manyeyes.runtime.streams",
    "manyeyes.web.node",
]


def test_each_public_name_can_be_imported() -> None:
    for name in manyeyes.__all__:
        assert getattr(manyeyes, name) is not None


def test_each_module_says_what_it_is_and_has_the_names_it_announces() -> None:
    for found in pkgutil.walk_packages(manyeyes.__path__, "manyeyes."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        missing = [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)]
        assert not missing, f"{found.name} announces {missing}"


def test_what_an_edge_box_imports_needs_no_torch() -> None:
    program = "import sys, json, importlib\nseen = {}\n"
    program += f"for name in {LIGHT_MODULES!r}:\n    importlib.import_module(name)\n"
    program += f"    seen[name] = [m for m in {HEAVY!r} if m in sys.modules]\nprint(json.dumps(seen))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {name: [] for name in LIGHT_MODULES}


@pytest.mark.parametrize(
    "module", ["manyeyes.config", "manyeyes.weights", "manyeyes.report.runlog", "manyeyes.federation.hours"]
)
def test_the_examples_in_the_docstrings_hold(module: str) -> None:
    program = f"import doctest, {module} as m; r = doctest.testmod(m); assert r.attempted and not r.failed"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
