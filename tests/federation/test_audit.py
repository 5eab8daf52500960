from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.errors import ResourceError, RunError
from manyeyes.federation.audit import AUDIT, AuditLog, read_audit
from manyeyes.federation.transport import Record, Request

ASKED = Request("7-3-fit-A", "A", "fit", Record())
UPDATE = Record({"delta/w": np.ones((2, 3)), "delta/b": np.ones(2), "buffer/m": np.ones(4)}, {"num_examples": 9})


def filled(folder: Path, entries: int = 3) -> Path:
    log = AuditLog(folder)
    for _ in range(entries):
        log.answer(ASKED, UPDATE, UPDATE.to_bytes())
    log.refusal(ASKED, "asks for too much")
    return log.path


def test_an_entry_says_what_left_and_holds_none_of_it(tmp_path: Path) -> None:
    first, *_, last = read_audit(filled(tmp_path))
    data = UPDATE.to_bytes()
    assert (first["request"], first["kind"], first["sent"]) == ("7-3-fit-A", "fit", "answer")
    assert (first["bytes"], first["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert first["arrays"] == {"delta": {"tensors": 2, "numbers": 8}, "buffer": {"tensors": 1, "numbers": 4}}
    assert first["values"] == {"num_examples": 9}
    assert (last["sent"], last["values"]) == ("refusal", {"reason": "asks for too much"})


def test_a_log_goes_on_after_a_restart_and_after_a_crash_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with path.open("ab") as file:
        file.write(b'{"time": 17')
    AuditLog(tmp_path).answer(ASKED, UPDATE, UPDATE.to_bytes())
    assert len(list(read_audit(path))) == 5


@settings(deadline=None, max_examples=60)
@given(which=st.integers(0, 2), place=st.floats(0, 0.99), flip=st.integers(1, 255), remove=st.booleans())
def test_any_change_of_any_line_but_the_last_shows(
    tmp_path_factory: pytest.TempPathFactory, which: int, place: float, flip: int, remove: bool
) -> None:
    path = filled(tmp_path_factory.mktemp("audit"))
    lines = path.read_bytes().splitlines(keepends=True)
    if remove:
        del lines[which]
    else:
        line = bytearray(lines[which])
        line[int(place * (len(line) - 1))] ^= flip
        lines[which] = bytes(line)
    path.write_bytes(b"".join(lines))
    with pytest.raises(RunError, match="changed after it was written"):
        list(read_audit(path))
    with pytest.raises(RunError, match="changed after it was written"):
        AuditLog(path.parent)


def test_where_the_log_cannot_be_written_nothing_may_leave(tmp_path: Path) -> None:
    (tmp_path / AUDIT).mkdir()
    with pytest.raises((ResourceError, RunError)):
        AuditLog(tmp_path).answer(ASKED, UPDATE, UPDATE.to_bytes())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_refusal_on_a_full_disk_is_written_when_there_is_room(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.answer(ASKED, UPDATE, UPDATE.to_bytes())
    log.path.rename(tmp_path / "kept")
    log.path.symlink_to("/dev/full")
    with pytest.raises(ResourceError, match=r"No space left on device\), so nothing may leave this node"):
        log.answer(ASKED, UPDATE, UPDATE.to_bytes())
    log.refusal(ASKED, "no room")
    log.refusal(ASKED, "still no room")
    log.path.unlink()
    (tmp_path / "kept").rename(log.path)
    log.answer(ASKED, UPDATE, UPDATE.to_bytes())
    entries = list(read_audit(log.path))
    assert [entry["sent"] for entry in entries] == ["answer", "refusal", "refusal", "answer"]
    assert [entry["values"].get("reason") for entry in entries[1:3]] == ["no room", "still no room"]


def test_entries_are_json_in_one_line_each(tmp_path: Path) -> None:
    for line in filled(tmp_path).read_text().splitlines():
        assert isinstance(json.loads(line), dict)
