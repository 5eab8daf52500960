"""A coordinator in one file: its state folder and its run, taken while it works, put back where there is nothing.

The archive is a plain tar file:

    state/…        authority, certificate, their private keys, members
    run/…          checkpoints, run log, configuration, report, final weights
    backup.json    last: format, when, name of the run, and for each file its length and SHA-256

Checkpoints are whole files that are replaced, never changed, and are copied before the run log, so the log never tells
less than they hold. What is made anew at each start (the secret of the tasks, the status), what is on its way to and
from nodes, and the logs of Flower's processes are left out.

Whoever has the file can pass for the coordinator: it holds private keys and is readable by its owner only.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manyeyes.config import NODE_ID_PATTERN
from manyeyes.errors import DataError, ResourceError, RunError
from manyeyes.federation.coordinator_config import CHECKPOINTS, DATABASE
from manyeyes.federation.keys import AUTHORITY
from manyeyes.federation.status import STATUS
from manyeyes.report.runlog import RUNLOG

__all__ = ["Backup", "make_backup", "read_backup", "restore_backup"]

_MANIFEST = "backup.json"
_STATE, _RUN = "state", "run"
_MADE_ANEW = frozenset({"tasks.secret", STATUS, DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"})
_NOT_NEEDED = frozenset({"logs", "flwr"})
_CHUNK = 1 << 20
_MAX_MANIFEST = 64 << 20


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["manyeyes-backup-1"]
    made: float
    name: str | None = Field(pattern=NODE_ID_PATTERN)
    files: dict[str, _File]


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds.

    Attributes:
        name: of the run; None if it holds the state folder alone.
        made: seconds since 1970.
        files, num_bytes: how many, and how long they are together.
    """

    name: str | None
    made: float
    files: int
    num_bytes: int


def make_backup(target: Path, state: Path, run: Path | None) -> Backup:
    """Write a coordinator into one archive; it may be running.

    Args:
        target: a new file, made readable by its owner only.
        state: the coordinator's state folder.
        run: the run's folder; None if there is none yet.

    Raises:
        RunError: the state folder is not a coordinator's.
        ResourceError: the target is there already, or something cannot be read or written.
    """
    if not (state / AUTHORITY).exists():
        raise RunError("holds no coordinator", file=state, cure="Name its state folder or its configuration.")
    run = run if run and run.is_dir() else None
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ResourceError(
            "is there already, and backups are never overwritten", file=target, cure="Choose another name."
        ) from error
    except OSError as error:
        raise ResourceError(f"cannot be written ({error.strerror})", file=target) from error
    try:
        with os.fdopen(handle, "wb") as file:
            backup = _write(file, state, run)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ResourceError(f"cannot be written ({error.strerror or error})", file=target) from error
        raise
    return backup


def read_backup(source: Path) -> Backup:
    """What a backup holds, after every byte of it was checked; writes nothing.

    Raises:
        DataError: it is no backup, is cut off or was changed, or names a file that has no place in one.
    """
    manifest = _verified(source)
    size = sum(file.size for file in manifest.files.values())
    return Backup(manifest.name, manifest.made, len(manifest.files), size)


def restore_backup(source: Path, state: Path, runs: Path) -> tuple[Backup, Path | None]:
    """Put a coordinator back; `--resume` goes on with it.

    Args:
        source: the archive.
        state: the state folder, which must not be there or be empty.
        runs: the folder that holds runs; that of this run must not be there or be empty.

    Returns:
        What was put back, and the run's folder.

    Raises:
        DataError: the archive is no backup, is cut off or was changed.
        ResourceError: there is something in a folder already, the disk has no room, or it cannot be written.
    """
    backup = read_backup(source)
    run = runs / backup.name if backup.name else None
    targets = {_STATE: state} | ({_RUN: run} if run else {})
    for folder in targets.values():
        _refuse_unless_empty(folder)
    try:
        with contextlib.ExitStack() as stack:
            staged = {part: stack.enter_context(_staging(folder)) for part, folder in targets.items()}
            _refuse_too_large(backup, next(iter(staged.values())))
            _extract(source, staged)
            for part, folder in targets.items():
                with contextlib.suppress(FileNotFoundError):
                    folder.rmdir()
                staged[part].replace(folder)
    except tarfile.TarError as error:
        raise _damaged(source, str(error)) from error
    except OSError as error:
        raise ResourceError(f"could not be put back ({error.strerror})", file=error.filename or source) from error
    return backup, run


# -- writing -----------------------------------------------------------------------------------------------------------


def _write(file: IO[bytes], state: Path, run: Path | None) -> Backup:
    files: dict[str, _File] = {}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        if run:
            _add_run(archive, files, run)
        for path in _files_of(state):
            _add(archive, files, PurePosixPath(_STATE, *path.relative_to(state).parts), path)
        manifest = _Manifest(
            format="manyeyes-backup-1", made=round(time.time(), 3), name=run.name if run else None, files=files
        )
        content = manifest.model_dump_json(indent=1).encode()
        archive.addfile(_entry(_MANIFEST, len(content), 0o600), io.BytesIO(content))
    return Backup(manifest.name, manifest.made, len(files), sum(f.size for f in files.values()))


def _add_run(archive: tarfile.TarFile, files: dict[str, _File], run: Path) -> None:
    """Checkpoints first, the newest before the others; the run log last: it may tell more than they hold."""

    def add(path: Path) -> bool:
        return _add(archive, files, PurePosixPath(_RUN, *path.relative_to(run).parts), path)

    def checkpoints() -> list[Path]:
        return [path for path in _files_of(run) if path.parent == run / CHECKPOINTS][::-1]

    # Only the last two are kept, so those that were listed may be gone when a slow disk comes to them.
    while listed := checkpoints():
        added = [add(path) for path in listed]
        if any(added):
            break
    for path in sorted(_files_of(run), key=lambda path: path.name == RUNLOG):
        if path.parent != run / CHECKPOINTS:
            add(path)


def _files_of(folder: Path) -> Iterator[Path]:
    """What is worth keeping: no links, no sockets, nothing half-written."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inner.parts)
        if path.is_file() and not path.is_symlink() and not hidden and inner.parts[0] not in _NOT_NEEDED | _MADE_ANEW:
            yield path


def _add(archive: tarfile.TarFile, files: dict[str, _File], name: PurePosixPath, path: Path) -> bool:
    """Add a file as long as it is now; False if it is gone, as a checkpoint that was replaced by a later one."""
    try:
        source = path.open("rb")
    except FileNotFoundError:
        return False
    with source:
        status = os.fstat(source.fileno())
        reader = _Hashing(source, status.st_size)
        archive.addfile(_entry(str(name), status.st_size, status.st_mode & 0o777, status.st_mtime), reader)
        files[str(name)] = _File(size=status.st_size, sha256=reader.hash.hexdigest())
    return True


def _entry(name: str, size: int, mode: int, modified: float | None = None) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, mode
    entry.mtime = round(time.time() if modified is None else modified)
    return entry


class _Hashing(io.RawIOBase):
    """The first bytes of a file that may grow while it is read, and their hash."""

    def __init__(self, source: IO[bytes], size: int) -> None:
        self._source, self._left = source, size
        self.hash = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        self.hash.update(data)
        return data


# -- reading -----------------------------------------------------------------------------------------------------------


def _verified(source: Path) -> _Manifest:
    """The manifest, after every file was compared with it."""
    try:
        found, manifest = _digests(source)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise _damaged(source, str(error)) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", file=source) from error
    for name in sorted(found.keys() | manifest.files.keys()):
        if found.get(name) != manifest.files.get(name):
            raise _damaged(source, f"{name} is not as it was when the backup was made")
    if manifest.name is None and any(name.startswith(f"{_RUN}/") for name in found):
        raise _damaged(source, "it holds a run without a name")
    return manifest


def _digests(source: Path) -> tuple[dict[str, _File], _Manifest]:
    """Length and hash of every file as it is now, and the manifest, which is the last."""
    found: dict[str, _File] = {}
    manifest: _Manifest | None = None
    for entry, content in _entries(source):
        if manifest:
            raise _damaged(source, f"{entry.name} stands after {_MANIFEST}")
        if entry.name == _MANIFEST:
            manifest = _read_manifest(source, entry, content)
            continue
        _check_name(source, entry)
        if entry.name in found:
            raise _damaged(source, f"{entry.name} stands in it twice")
        found[entry.name] = _File(size=entry.size, sha256=_copy(content, None))
    if manifest is None:
        raise _damaged(source, f"{_MANIFEST} is missing: it is cut off, or no backup of manyeyes")
    return found, manifest


def _entries(source: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Every member with its content; only plain files have a place here."""
    with tarfile.open(source, mode="r:") as archive:
        for entry in archive:
            content = archive.extractfile(entry) if entry.isreg() else None
            if content is None:
                raise _damaged(source, f"{entry.name} is not a plain file")
            yield entry, content


def _check_name(source: Path, entry: tarfile.TarInfo) -> None:
    """Nothing may come to lie outside its folder: names are plain, relative, and begin with a known part."""
    parts = PurePosixPath(entry.name).parts
    plain = "/".join(parts) == entry.name and "\\" not in entry.name and "\0" not in entry.name
    if not plain or len(parts) < 2 or parts[0] not in (_STATE, _RUN) or any(part.startswith(".") for part in parts):
        raise _damaged(source, f"{entry.name!r} has no place in a backup")
    try:
        tarfile.data_filter(entry, "/nowhere")
    except tarfile.FilterError as error:
        raise _damaged(source, str(error)) from error


def _read_manifest(source: Path, entry: tarfile.TarInfo, content: IO[bytes]) -> _Manifest:
    if entry.size > _MAX_MANIFEST:
        raise _damaged(source, f"{_MANIFEST} is too long")
    try:
        return _Manifest.model_validate_json(content.read())
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(source, f"{_MANIFEST}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _extract(source: Path, staged: dict[str, Path]) -> None:
    """Write every file below its part's folder, and compare once more: what was read first may have changed since."""
    expected = _verified(source).files
    for entry, content in _entries(source):
        if entry.name == _MANIFEST:
            continue
        _check_name(source, entry)
        part, *inner = PurePosixPath(entry.name).parts
        path = staged[part].joinpath(*inner)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # As the data filter has it: nothing that is executable, and writable by the owner alone.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, entry.mode & 0o644 | 0o600)
        with os.fdopen(handle, "wb") as file:
            digest = _copy(content, file)
            file.flush()
            os.fsync(file.fileno())
        if _File(size=entry.size, sha256=digest) != expected[entry.name]:
            raise _damaged(source, f"{entry.name} changed while it was read")


def _copy(content: IO[bytes], target: IO[bytes] | None) -> str:
    """SHA-256 of what is left of a stream, which is written to `target` if there is one."""
    digest = hashlib.sha256()
    while chunk := content.read(_CHUNK):
        digest.update(chunk)
        if target:
            target.write(chunk)
    return digest.hexdigest()


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is to be, which takes its place when all is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _refuse_unless_empty(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ResourceError(
            "is not an empty folder, and nothing is overwritten",
            file=folder,
            cure="Move it away, or name another with --state and --output.",
        )


def _refuse_too_large(backup: Backup, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < backup.num_bytes:
        raise ResourceError(
            f"the disk has {free // 2**20} MiB left, and {backup.num_bytes // 2**20} MiB are needed",
            file=folder.parent,
            cure="Make room.",
        )


def _damaged(source: Path, reason: str) -> DataError:
    return DataError(f"cannot be used: {reason}", file=source, cure="Take another backup.")
