from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def test_the_example_holds_a_round_and_says_what_came_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "examples" / "one_round.py"
    spec = importlib.util.spec_from_file_location("one_round", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    scores = example.main(images=9, imgsz=96)
    assert set(scores) == {"before", "after"}
    said = capsys.readouterr().out
    assert "a_office: 9 pictures, 12." in said
    assert "c_night: 3 pictures, 12." in said
