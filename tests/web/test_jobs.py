"""Archives that go wrong in ways nobody foresaw, and results that are read while they grow."""

from __future__ import annotations

import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manyeyes.errors import DataError, ResourceError
from manyeyes.runtime.archive import ArchiveLimits
from manyeyes.web.jobs import Job, Jobs, Look

from .conftest import Server

API = "/api/v1"


def packed(names: list[str]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return memory.getvalue()


def looked(name: str, data: bytes, job: Job) -> dict[str, Any]:
    return {"bytes": len(data)}


def sent(jobs: Jobs, names: list[str], title: str = "week.zip") -> str:
    with jobs.receiving() as path:
        path.write_bytes(packed(names))
        return jobs.submit(path, title, 0.25).id


def ended(jobs: Jobs, id: str) -> Job:
    until = time.monotonic() + 10
    while (job := jobs.get(id)) and job.state in ("waiting", "running"):
        assert time.monotonic() < until
        time.sleep(0.005)
    assert job
    return job


@pytest.fixture
def started(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Jobs]:
    def start(look: Look = looked, most: int = 20) -> Jobs:
        jobs = Jobs(tmp_path / "jobs", look, ArchiveLimits(), most)
        request.addfinalizer(jobs.close)
        return jobs

    return start


@pytest.mark.parametrize(
    "error", [RuntimeError("the driver is gone"), MemoryError(), KeyError("x"), OSError(5, "Input/output error")]
)
def test_an_archive_that_fails_does_not_keep_the_next_from_its_turn(
    started: Callable[..., Jobs], error: Exception, tmp_path: Path
) -> None:
    def look(name: str, data: bytes, job: Job) -> dict[str, Any]:
        if name == "bad.jpg":
            raise error
        return {}

    jobs = started(look)
    bad, good = sent(jobs, ["a.jpg", "bad.jpg", "b.jpg"]), sent(jobs, ["a.jpg"])
    assert ended(jobs, good).state == "done"
    failed = ended(jobs, bad)
    assert (failed.state, failed.looked_at) == ("failed", 1)
    assert failed.error
    assert str(tmp_path) not in failed.error


def test_an_archive_that_is_gone_is_told_without_its_place(started: Callable[..., Jobs], tmp_path: Path) -> None:
    jobs = started()
    jobs.close()
    id = sent(jobs, ["a.jpg"])
    (tmp_path / "jobs" / id / "archive.zip").unlink()
    failed = ended(started(), id)
    assert failed.state == "failed"
    assert failed.error
    assert str(tmp_path) not in failed.error


def test_results_that_are_damaged_fail_their_archive_alone(started: Callable[..., Jobs], tmp_path: Path) -> None:
    jobs = started()
    jobs.close()
    first, second = sent(jobs, ["a.jpg"]), sent(jobs, ["b.jpg"])
    (tmp_path / "jobs" / first / "results.jsonl").write_bytes(b'{"error": \xff\n')
    again = started()
    assert ended(again, first).state == "failed"
    assert ended(again, second).state == "done"


def test_what_was_being_received_when_the_power_went_is_swept_away(
    started: Callable[..., Jobs], tmp_path: Path
) -> None:
    (tmp_path / "jobs" / ".0123456789abcdef").mkdir(parents=True)
    (tmp_path / "jobs" / "0123456789abcdef").mkdir()
    (tmp_path / "jobs" / "0123456789abcdef" / "job.json").write_text("{")
    jobs = started()
    assert jobs.all() == []
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["0123456789abcdef"]


def test_what_is_refused_leaves_nothing(started: Callable[..., Jobs], tmp_path: Path) -> None:
    jobs = started()
    with jobs.receiving() as path:
        path.write_bytes(b"no archive")
        with pytest.raises(DataError, match=r"\.\./a\.zip: cannot be opened"):
            jobs.submit(path, "../a.zip", 0.25)
    assert list((tmp_path / "jobs").iterdir()) == []


def test_the_oldest_that_is_done_makes_room_and_none_that_waits(started: Callable[..., Jobs]) -> None:
    jobs = started(most=2)
    first, second = sent(jobs, ["a.jpg"]), sent(jobs, ["b.jpg"])
    ended(jobs, second)
    third = sent(jobs, ["c.jpg"])
    ended(jobs, third)
    assert {job.id for job in jobs.all()} == {second, third}
    assert jobs.get(first) is None
    jobs.close()
    for _ in range(2):
        sent(jobs, ["d.jpg"])
    with pytest.raises(ResourceError, match="2 archives wait"), jobs.receiving():
        pass


def test_stopping_and_deleting_what_is_gone_already_does_nothing(started: Callable[..., Jobs]) -> None:
    jobs = started()
    id = sent(jobs, ["a.jpg"])
    ended(jobs, id)
    jobs.delete(id)
    jobs.delete(id)
    jobs.stop(id)
    assert jobs.results(id) is None


def test_results_can_be_read_while_they_grow_and_while_they_are_deleted(server: Server, pictures: list[Path]) -> None:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for number in range(300):
            archive.writestr(f"{number}.jpg", pictures[0].read_bytes())
    id = server.client.post(f"{API}/jobs", content=memory.getvalue()).raise_for_status().json()["id"]
    seen = 0
    while server.client.get(f"{API}/jobs/{id}").json()["state"] != "done":
        lines = server.client.get(f"{API}/jobs/{id}/results").raise_for_status().content.splitlines(keepends=True)
        whole = [json.loads(line)["file"] for line in lines if line.endswith(b"\n")]
        assert whole == [f"{number}.jpg" for number in range(len(whole))]
        assert len(whole) >= seen
        seen = len(whole)
    assert seen > 0
    shutil.rmtree(server.edge.config.state / "jobs" / id)
    answer = server.client.get(f"{API}/jobs/{id}/results")
    assert (answer.status_code, answer.content) == (200, b"")
