"""Archives of pictures that are looked at one after the other: progress, an error for each file, on after a restart."""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import TypeAdapter, ValidationError

from manyeyes.errors import DataError, ManyeyesError, ResourceError
from manyeyes.runtime.archive import ArchiveLimits, Packed, PackedPictures
from manyeyes.runtime.vision import MAX_IOU
from manyeyes.weights import write_atomically

__all__ = ["Job", "Jobs", "Look"]

Look = Callable[[str, bytes, "Job"], dict[str, Any]]
"""Name and bytes of a picture and its job → what was found, JSON-ready; raises `DataError` for what is no picture."""

State = Literal["waiting", "running", "done", "stopped", "failed"]
Sender = Literal["viewer", "administrator"]

_ARCHIVE, _ABOUT, _RESULTS = "archive.zip", "job.json", "results.jsonl"
_ID = re.compile(r"[0-9a-f]{16}")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """An archive and how far it is.

    Attributes:
        id: its name here.
        name: of the archive, as its sender called it.
        state: "waiting", "running", "done", "stopped" by somebody, or "failed" as a whole.
        files: in the archive.
        looked_at: files that are done, those with an error among them.
        errors: files that could not be looked at.
        min_score: lowest score kept.
        max_iou: of two boxes of a class that overlap by more, the better one is kept.
        model: hash of another model than the one in use.
        by: role of who sent it; what an administrator sent no viewer stops.
        created, began, ended: in seconds since 1970; None if not yet.
        error: why it failed.
    """

    id: str
    name: str
    state: State
    files: int
    looked_at: int
    errors: int
    min_score: float
    created: float
    began: float | None = None
    ended: float | None = None
    error: str | None = None
    max_iou: float = MAX_IOU
    model: str | None = None
    by: Sender = "viewer"

    @property
    def seconds_left(self) -> float | None:
        """As far as it can be told from the files that are done."""
        if self.state != "running" or not self.looked_at or self.began is None:
            return None
        return (time.time() - self.began) / self.looked_at * (self.files - self.looked_at)


_JOB = TypeAdapter(Job)


class Jobs:
    """All archives of a server, worked on by one thread.

    Args:
        folder: where they are kept.
        look: finds objects in one picture.
        limits: of an archive.
        most: archives kept; the oldest that are done make room.

    Raises:
        ResourceError: the folder cannot be written.
    """

    def __init__(self, folder: Path, look: Look, limits: ArchiveLimits, most: int) -> None:
        self._folder, self._look, self._limits, self._most = folder, look, limits, most
        self._changed = threading.Condition()
        self._closed = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"cannot be written ({error.strerror})", file=folder) from error
        self._jobs = {job.id: job for job in self._kept()}
        self._thread = threading.Thread(target=self._work, name="manyeyes-jobs", daemon=True)
        self._thread.start()

    @contextmanager
    def receiving(self) -> Iterator[Path]:
        """Within the block an archive may be written to the path; what is not submitted is gone after it.

        Raises:
            ResourceError: all places are taken by archives that are not done.
        """
        self._make_room()
        folder = self._folder / f".{secrets.token_hex(8)}"
        folder.mkdir()
        try:
            yield folder / _ARCHIVE
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def submit(
        self,
        archive: Path,
        name: str,
        min_score: float,
        *,
        max_iou: float = MAX_IOU,
        model: str | None = None,
        by: Sender = "viewer",
    ) -> Job:
        """Put an archive that was received into the queue; the rest is as of `Job`.

        Raises:
            DataError: it is no ZIP archive, holds no file, or is beyond the limits.
        """
        try:
            with closing(PackedPictures(archive, self._limits)) as pictures:
                files = len(pictures)
        except DataError as error:
            raise DataError(error.reason, file=name, cure=error.cure) from error
        if not files:
            raise DataError("holds no file", file=name)
        id, now = archive.parent.name[1:], time.time()
        job = Job(id, name, "waiting", files, 0, 0, min_score, now, max_iou=max_iou, model=model, by=by)
        write_atomically(archive.with_name(_ABOUT), _JOB.dump_json(job))
        archive.parent.rename(self._folder / job.id)
        with self._changed:
            self._jobs[job.id] = job
            self._changed.notify_all()
        return job

    def all(self) -> list[Job]:
        """The newest first."""
        with self._changed:
            return sorted(self._jobs.values(), key=lambda job: (-job.created, job.id))

    def get(self, id: str) -> Job | None:
        """One of them."""
        with self._changed:
            return self._jobs.get(id)

    def results(self, id: str) -> Path | None:
        """The file of what was found so far, one JSON object a line; None where there is none yet."""
        path = self._folder / id / _RESULTS
        return path if self.get(id) and path.is_file() else None

    def stop(self, id: str) -> None:
        """Look at no more of its files; what was found stays."""
        with self._changed:
            job = self._jobs.get(id)
            if job and job.state in ("waiting", "running"):
                self._keep(replace(job, state="stopped", ended=time.time()))

    def delete(self, id: str) -> None:
        """Stop it, and forget archive and results."""
        with self._changed:
            self.stop(id)
            self._jobs.pop(id, None)
            shutil.rmtree(self._folder / id, ignore_errors=True)

    def close(self) -> None:
        """End after the present picture; unfinished jobs go on when the server is started again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=30)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while job := self._next():
            try:
                self._run(job)
            except Exception as error:  # noqa: BLE001 - whatever one archive leads to, the next has its turn
                _log.exception("job %s fails", job.id)
                self._fail(job.id, _reason(error))

    def _fail(self, id: str, reason: str) -> None:
        with self._changed:
            if id not in self._jobs:
                return
            # Should even this not be written, it must not be taken up again.
            self._jobs[id] = replace(self._jobs[id], state="failed", ended=time.time(), error=reason)
            with suppress(ManyeyesError):
                self._keep(self._jobs[id])

    def _next(self) -> Job | None:
        with self._changed:
            while not self._closed:
                waiting = [job for job in self._jobs.values() if job.state in ("waiting", "running")]
                if waiting:
                    return min(waiting, key=lambda job: job.created)
                self._changed.wait()
        return None

    def _run(self, job: Job) -> None:
        folder = self._folder / job.id
        done, errors = _whole_lines(folder / _RESULTS)
        job = replace(job, state="running", began=time.time(), looked_at=done, errors=errors)
        if not self._goes_on(job, keep=True):
            return
        with (
            closing(PackedPictures(folder / _ARCHIVE, self._limits)) as pictures,
            (folder / _RESULTS).open("ab") as out,
        ):
            for packed in pictures.read(done):
                job = self._one(job, packed, out)
                if not self._goes_on(job):
                    return
        with self._changed:
            if job.id in self._jobs:
                self._keep(replace(job, state="done", ended=time.time()))
                (folder / _ARCHIVE).unlink(missing_ok=True)

    def _one(self, job: Job, packed: Packed, out: IO[bytes]) -> Job:
        line: dict[str, Any] = {"file": packed.name}
        error = packed.error
        if packed.data is not None:
            try:
                line |= self._look(packed.name, packed.data, job)
            except DataError as refused:
                error = str(refused)
        if error:
            line["error"] = error
        out.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        out.flush()
        return replace(job, looked_at=job.looked_at + 1, errors=job.errors + bool(error))

    def _goes_on(self, job: Job, *, keep: bool = False) -> bool:
        """Show how far it is; False where somebody stopped it or the server ends."""
        with self._changed:
            known = self._jobs.get(job.id)
            if known is None or known.state == "stopped":
                return False
            if keep:
                self._keep(job)
            self._jobs[job.id] = job
            return not self._closed

    # -- the folder ---------------------------------------------------------------------------------------------------

    def _keep(self, job: Job) -> None:
        self._jobs[job.id] = job
        write_atomically(self._folder / job.id / _ABOUT, _JOB.dump_json(job))

    def _kept(self) -> Iterator[Job]:
        for folder in self._folder.iterdir():
            if not _ID.fullmatch(folder.name):
                shutil.rmtree(folder, ignore_errors=True)  # was being received when the server ended
                continue
            about = folder / _ABOUT
            try:
                job = _JOB.validate_json(about.read_bytes())
            except (OSError, ValidationError):
                _log.warning("%s is damaged and passed over", about)
                continue
            if job.id == folder.name:
                yield job

    def _make_room(self) -> None:
        with self._changed:
            over = [job for job in self._jobs.values() if job.state not in ("waiting", "running")]
            while len(self._jobs) >= self._most:
                if not over:
                    raise ResourceError(
                        f"{self._most} archives wait for their turn already", cure="Come again when one is done."
                    )
                oldest = min(over, key=lambda job: job.created)
                over.remove(oldest)
                self.delete(oldest.id)


def _reason(error: Exception) -> str:
    """For whoever asks; no path of this machine."""
    if isinstance(error, ManyeyesError):
        return error.reason
    if isinstance(error, OSError):
        return f"the disk does not do what it should ({error.strerror})"
    return "something went wrong here; the server's log says more"


def _whole_lines(path: Path) -> tuple[int, int]:
    """Lines of a file and how many of them are errors, after half a line that a crash left was cut off."""
    if not path.is_file():
        return 0, 0
    with path.open("r+b") as file:
        lines = file.readlines()
        if lines and not lines[-1].endswith(b"\n"):
            file.truncate(sum(len(line) for line in lines[:-1]))
            lines.pop()
    return len(lines), sum(b'"error":' in line and "error" in json.loads(line) for line in lines)
