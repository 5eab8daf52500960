"""A coordinator in one file, and back."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from manyeyes.errors import DataError, Interrupted, ResourceError, RunError
from manyeyes.federation import backup as backup_module
from manyeyes.federation.admission import Members
from manyeyes.federation.backup import make_backup, read_backup, restore_backup
from manyeyes.federation.coordinator_config import DATABASE
from manyeyes.federation.keys import AUTHORITY, make_authority
from manyeyes.federation.local import LocalTransport
from manyeyes.federation.status import read_status
from report.nodes_run import NodesRun

from .linear import FULL, Log, clients, hold


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A coordinator's folder with one member, and what is not worth keeping."""
    folder = tmp_path / "coordinator"
    make_authority(folder, ["localhost"])
    Members(folder).admit("A", ec.generate_private_key(ec.SECP256R1()).public_key())
    for name in (
        "tasks.secret",
        "status.json",
        "logs/flower-superlink.log",
        "flwr/cache",
        ".members.json.x",
        DATABASE,
        f"{DATABASE}-wal",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that was stopped after two rounds of four."""
    folder = tmp_path / "runs" / "harbour"
    told = NodesRun(folder)
    log = Log()

    def emit(event: str, **fields: object) -> None:
        log(event, **fields)
        told.emit(event, **fields)

    def stop() -> str | None:
        return "Ctrl-C" if len(log.of("round_finished")) == 2 else None

    with pytest.raises(Interrupted):
        hold(folder, transport=LocalTransport(clients(tmp_path / "nodes")), emit=emit, stop=stop, **FULL)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_put_back_is_what_was_there(state: Path, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "harbour.tar"
    made = make_backup(target, state, run)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert read_backup(target) == made
    back, folder = restore_backup(target, tmp_path / "new" / "coordinator", tmp_path / "new" / "runs")
    assert (back, folder) == (made, tmp_path / "new" / "runs" / "harbour")
    assert folder
    assert files(folder) == files(run)
    before, after = files(state), files(tmp_path / "new" / "coordinator")
    assert after.keys() == {"ca.crt", "ca.key", "server.pem", "members.json"}
    assert all(after[name] == before[name] for name in after)
    for name in ("ca.key", "server.pem", "members.json"):
        assert stat.S_IMODE((tmp_path / "new" / "coordinator" / name).stat().st_mode) == 0o600, name
    restored = read_status(tmp_path / "new" / "coordinator", folder)
    assert (restored.summary.rounds_done if restored.summary else None, len(restored.nodes)) == (2, 3)
    assert not list((tmp_path / "new").rglob(".*"))


def test_a_run_goes_on_from_a_backup_in_the_same_bits(state: Path, run: Path, tmp_path: Path) -> None:
    whole = hold(tmp_path / "whole", **FULL)
    make_backup(tmp_path / "harbour.tar", state, run)
    # Everything at the coordinator is lost; the nodes keep what is theirs.
    _, folder = restore_backup(tmp_path / "harbour.tar", tmp_path / "new", tmp_path / "elsewhere")
    assert folder
    log = Log()
    again = hold(folder, transport=LocalTransport(clients(tmp_path / "nodes")), emit=log, resume=True, **FULL)
    assert again.weights.value_hash == whole.weights.value_hash
    assert log.of("row_started")[0]["resumed_from"] == 2


def test_checkpoints_that_are_replaced_meanwhile_are_taken_anew(
    state: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = backup_module._files_of
    first = True

    def replaced(folder: Path) -> Iterator[Path]:
        nonlocal first
        found = list(listed(folder))
        if first and folder == run:
            first = False
            for path in sorted((run / "checkpoints").glob("round-*"), reverse=True):
                path.rename(path.with_name(f"round-{int(path.stem[-4:]) + 2:04d}.safetensors"))
        return iter(found)

    monkeypatch.setattr(backup_module, "_files_of", replaced)
    make_backup(tmp_path / "x.tar", state, run)
    _, folder = restore_backup(tmp_path / "x.tar", tmp_path / "new", tmp_path / "elsewhere")
    assert folder
    assert sorted(path.name for path in (folder / "checkpoints").glob("round-*")) == [
        "round-0003.safetensors",
        "round-0004.safetensors",
    ]


def test_nothing_is_overwritten(state: Path, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "harbour.tar"
    make_backup(target, state, run)
    before = target.read_bytes()
    with pytest.raises(ResourceError, match="never overwritten"):
        make_backup(target, state, run)
    assert target.read_bytes() == before
    with pytest.raises(ResourceError, match=r"coordinator: is not an empty folder"):
        restore_backup(target, state, tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match=r"harbour: is not an empty folder"):
        restore_backup(target, tmp_path / "new", tmp_path / "runs")
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    restore_backup(target, tmp_path / "new", tmp_path / "elsewhere")
    assert (tmp_path / "new" / AUTHORITY).exists(), "an empty folder is fine"


def test_what_is_no_coordinator_is_not_backed_up(tmp_path: Path, state: Path) -> None:
    with pytest.raises(RunError, match="holds no coordinator"):
        make_backup(tmp_path / "x.tar", tmp_path / "nowhere", None)
    assert not (tmp_path / "x.tar").exists()
    with pytest.raises(ResourceError, match="cannot be written"):
        make_backup(tmp_path / "no" / "x.tar", state, None)


def refused(source: Path, tmp_path: Path) -> str:
    """What is said of an archive that must not be taken; nothing may be left behind."""
    with pytest.raises(DataError) as caught:
        restore_backup(source, tmp_path / "new", tmp_path / "elsewhere")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "elsewhere").exists()
    return str(caught.value)


def test_a_backup_that_was_changed_or_cut_off_is_refused(state: Path, run: Path, tmp_path: Path) -> None:
    target = tmp_path / "harbour.tar"
    make_backup(target, state, run)
    content = target.read_bytes()
    middle = content.index(b"BEGIN CERTIFICATE") + 40
    target.write_bytes(content[:middle] + b"#" + content[middle + 1 :])
    assert "state/ca.crt is not as it was when the backup was made" in refused(target, tmp_path)
    for length in (0, 700, len(content) // 2, content.rindex(b"backup.json") - 300):
        target.write_bytes(content[:length])
        assert "cannot be used" in refused(target, tmp_path)
    target.write_text("a tar file? no")
    assert "cannot be used" in refused(target, tmp_path)
    target.unlink()
    assert "No such file" in refused(target, tmp_path)


def rewritten(source: Path, change: Callable[[tarfile.TarInfo], tarfile.TarInfo | None]) -> Path:
    """The archive with entries that somebody made by hand."""
    target = source.with_name("changed.tar")
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for entry in old:
            content = old.extractfile(entry)
            changed = change(entry)
            assert content
            if changed is not None:
                new.addfile(changed, io.BytesIO(content.read()) if changed.isreg() else None)
    return target


@pytest.mark.parametrize(
    "name", ["../ca.crt", "/etc/ca.crt", "state/../../ca.crt", "state//ca.crt", "other/ca.crt", "state", "state/.x"]
)
def test_a_name_that_leads_elsewhere_is_refused(name: str, state: Path, tmp_path: Path) -> None:
    make_backup(tmp_path / "good.tar", state, None)

    def rename(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        return entry.replace(name=name) if entry.name == "state/ca.crt" else entry

    assert "has no place in a backup" in refused(rewritten(tmp_path / "good.tar", rename), tmp_path)
    assert not (tmp_path / "ca.crt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_only_plain_files_are_put_back(kind: bytes, state: Path, tmp_path: Path) -> None:
    make_backup(tmp_path / "good.tar", state, None)

    def link(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        if entry.name == "state/ca.crt":
            entry.type, entry.linkname, entry.size = kind, "/etc/passwd", 0
        return entry

    said = refused(rewritten(tmp_path / "good.tar", link), tmp_path)
    assert "is not a plain file" in said or "cannot be used" in said


def test_a_file_too_many_or_too_few_is_refused(state: Path, tmp_path: Path) -> None:
    make_backup(tmp_path / "good.tar", state, None)
    less = rewritten(tmp_path / "good.tar", lambda entry: None if entry.name == "state/members.json" else entry)
    assert "state/members.json is not as it was" in refused(less, tmp_path)
    with tarfile.open(tmp_path / "good.tar", "a") as archive:
        entry = tarfile.TarInfo("state/members.json")
        archive.addfile(entry, io.BytesIO(b""))
    assert "stands after backup.json" in refused(tmp_path / "good.tar", tmp_path)


def test_a_disk_without_room_is_told_before_anything_is_written(
    state: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_backup(tmp_path / "x.tar", state, run)
    monkeypatch.setattr(backup_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 5})())
    with pytest.raises(ResourceError, match="the disk has 0 MiB left"):
        restore_backup(tmp_path / "x.tar", tmp_path / "new", tmp_path / "elsewhere")
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.rglob(".new*"))
