"""A model is put to use by hand while others do the same."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from manyeyes.errors import WeightsError
from manyeyes.registry import Registry
from manyeyes.runtime import promotion
from manyeyes.runtime.engine import Engine


@pytest.fixture
def registry(onnx_file: Path, tmp_path: Path) -> Registry:
    """Of three models; none is in use."""
    registry, model = Registry(tmp_path / "models"), onnx.load(onnx_file)
    for name in "abc":
        model.producer_name = name
        onnx.save(model, tmp_path / f"{name}.onnx")
        registry.add(tmp_path / f"{name}.onnx")
    return registry


def test_one_that_is_put_to_use_while_another_is_gone_back_to_stays(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = (entry.hash for entry in registry.entries())
    registry.use(a)
    registry.use(b)
    test = promotion.self_test

    def slowly(engine: Engine) -> None:
        test(engine)
        registry.use(c)

    monkeypatch.setattr(promotion, "self_test", slowly)
    with pytest.raises(WeightsError, match="another model was put to use meanwhile"):
        promotion.roll_back(registry)
    assert registry.used == [c, b, a]


def test_why_one_cannot_go_back_is_said(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"there is no model to go back to: none was put to use\. Say which"):
        promotion.roll_back(registry)
    registry.use(registry.entries()[0].hash)
    with pytest.raises(WeightsError, match="there is no model to go back to: this one is the first"):
        promotion.roll_back(registry)
    (tmp_path / "models" / "use.json").write_text("[")
    with pytest.raises(WeightsError, match=r"use\.json: is damaged\. Say which"):
        promotion.roll_back(registry)
    with pytest.raises(WeightsError, match="holds no models"):
        promotion.roll_back(Registry(tmp_path / "empty"))
