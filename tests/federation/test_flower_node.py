"""A node beside a SuperNode that goes away."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from manyeyes.errors import RunError
from manyeyes.federation.audit import AuditLog
from manyeyes.federation.flower import packed
from manyeyes.federation.flower_node import Work, serve_requests
from manyeyes.federation.transport import Record


class Gone:
    """A SuperNode that hands out one task and is not there any more."""

    asked = 0

    def client(self, *what: str) -> Any:
        return nullcontext(
            SimpleNamespace(AcquireTask=self.acquire, PullTaskInput=self.refuse, SendTaskHeartbeat=self.refuse)
        )

    def acquire(self, request: object) -> Any:
        self.asked += 1
        return SimpleNamespace(token="1") if self.asked == 1 else self.refuse(request)

    def refuse(self, request: object) -> Any:
        raise httpx.ConnectError("[Errno 111] Connection refused")

    def runs(self) -> bool:
        return False

    def trouble(self) -> str:
        return "SIGKILL"


def test_a_supernode_that_ends_within_a_request_is_said_in_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    supernode: Any = Gone()
    with caplog.at_level(logging.WARNING), pytest.raises(RunError, match=r"the SuperNode has ended \(SIGKILL\)"):
        serve_requests(supernode, lambda request, form: Record(), AuditLog(tmp_path), lambda: False, work=Work())
    (record,) = caplog.records
    assert record.getMessage() == (
        "a request was not answered, since the SuperNode could not be reached: [Errno 111] Connection refused"
    )
    assert record.exc_info is None


def test_what_a_round_sends_to_all_is_one_and_the_same_to_flower() -> None:
    data = bytes(100_000)
    ours, theirs = (get_all_nested_objects(packed(data, {"node_id": node, "values": "{}"})) for node in "AB")
    sizes = {object_id: len(part.deflate()) for object_id, part in {**ours, **theirs}.items()}
    assert sum(sizes[object_id] for object_id in ours.keys() - theirs.keys()) < 1000
    assert sum(sizes[object_id] for object_id in ours.keys() & theirs.keys()) > len(data)
