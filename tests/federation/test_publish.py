"""The model of a run is handed to the nodes when the run is over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manyeyes.errors import RunError
from manyeyes.federation.form import ModelForm
from manyeyes.federation.keys import make_authority
from manyeyes.federation.messages import published_reply
from manyeyes.federation.publish import publish
from manyeyes.federation.signature import Signer
from manyeyes.federation.transport import Reply, Request
from manyeyes.weights import Weights

FORM = ModelForm(architecture="yolov8n/cv3=2", names=("person", "car"), imgsz=128, run="first")
WEIGHTS = Weights({"a": np.arange(6, dtype=np.float32)})


class Line:
    """Reaches two nodes, and breaks after so many answers."""

    def __init__(self, answers: int) -> None:
        self._left, self._answers = [], answers  # type: list[Request], int

    def nodes(self) -> Sequence[str]:
        return ["A", "B"]

    def send(self, requests: Sequence[Request]) -> None:
        self._left += requests

    def receive(self, timeout: float | None) -> list[Reply]:
        self._answers -= 1
        if self._answers < 0:
            raise RunError("the SuperLink has ended")
        request = self._left.pop(0)
        return [Reply(request.request_id, request.node_id, published_reply(True, WEIGHTS.form_hash))]

    def cancel(self, request_ids: Sequence[str]) -> list[str]:
        return []


@pytest.mark.parametrize("answers", [0, 1])
def test_a_run_whose_model_could_not_be_handed_over_is_not_a_failed_one(tmp_path: Path, answers: int) -> None:
    make_authority(tmp_path, ["localhost"])
    told: list[tuple[str, dict[str, Any]]] = []
    publish(
        Line(answers),
        FORM,
        WEIGHTS,
        3,
        Signer(tmp_path),
        lambda event, **values: told.append((event, values)),
        lambda: None,
    )
    assert [event for event, _ in told] == ["published"] * answers + ["warning"]
    reason = "the model was not handed to the nodes: the SuperLink has ended"
    assert told[-1][1] == {"round": 3, "reason": reason}
