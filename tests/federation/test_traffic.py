from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from manyeyes.errors import RunError
from manyeyes.federation.audit import AUDIT, AuditLog, read_audit
from manyeyes.federation.traffic import TRAFFIC, Traffic
from manyeyes.federation.transport import Record, Request

ASKED = Request("1", "A", "fit", Record())
UPDATE = Record({"delta/w": np.ones(100)}, {"num_examples": 9})


def answer(log: AuditLog) -> int:
    data = UPDATE.to_bytes()
    log.answer(ASKED, UPDATE, data)
    return len(data)


def test_a_restart_forgets_nothing_of_the_day(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    traffic = Traffic(tmp_path, log)
    traffic.received(500)
    sent = answer(log)
    log.refusal(ASKED, "no")
    traffic.received(300)
    for account in (traffic, Traffic(tmp_path, AuditLog(tmp_path))):
        assert (account.down, account.up, account.last_request) == (800, sent + 2, 300)
    assert sum(entry["bytes"] for entry in read_audit(tmp_path / AUDIT)) == sent + 2


def test_midnight_begins_anew(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    clock = [datetime.now()]
    traffic = Traffic(tmp_path, log, lambda: clock[0])
    traffic.received(500)
    answer(log)
    assert not traffic.holds_another(1000)
    clock[0] += timedelta(days=1)
    assert (traffic.down, traffic.up) == (0, 0)
    assert traffic.holds_another(1000)
    traffic.received(40)
    assert (traffic.down, traffic.last_request) == (40, 40)


def test_another_request_must_fit_whole(tmp_path: Path) -> None:
    traffic = Traffic(tmp_path, AuditLog(tmp_path))
    assert traffic.holds_another(1)
    traffic.received(400)
    assert traffic.holds_another(800)
    assert not traffic.holds_another(799)
    assert traffic.holds_another(None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"day": "2026-11-31", "bytes_down": 1, "last_request": 1}',
        '{"day": "2026-11-21", "bytes_down": -1, "last_request": 0}',
        '{"day": "2026-11-21", "bytes_down": 1.5, "last_request": 1}',
        '{"day": "2026-11-21", "bytes_down": 1, "last_request": 2}',
    ],
)
def test_a_damaged_account_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / TRAFFIC).write_text(text)
    with pytest.raises(RunError, match=rf"{TRAFFIC}: cannot be read .* Delete it"):
        Traffic(tmp_path, AuditLog(tmp_path))


def test_an_audit_log_with_a_foreign_last_line_is_refused(tmp_path: Path) -> None:
    answer(AuditLog(tmp_path))
    (tmp_path / AUDIT).write_text('{"previous": "' + "0" * 64 + '"}\n')
    with pytest.raises(RunError, match="no node has written"):
        AuditLog(tmp_path)
