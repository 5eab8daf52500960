"""ZIP archives of strangers; what a server makes of hostile ones stands in tests/web/test_hostile.py."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manyeyes.errors import DataError
from manyeyes.runtime.archive import ArchiveLimits, Packed, PackedPictures

UNLIMITED = ArchiveLimits()
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
# Of what Hypothesis makes each is a file of its own, in the one folder of the test.
FILES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def packed(files: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", method) as archive:
        for name, data in files:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = method
            archive.writestr(entry, data)
    return memory.getvalue()


def read(path: Path, archive: bytes, limits: ArchiveLimits = UNLIMITED, start: int = 0) -> list[Packed]:
    path.write_bytes(archive)
    with closing(PackedPictures(path, limits)) as pictures:
        return list(pictures.read(start))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.zip"


@pytest.mark.parametrize("method", METHODS)
def test_pictures_come_out_as_they_went_in_whatever_they_were_packed_with(path: Path, method: int) -> None:
    files = [("b.jpg", b"abc" * 999), ("day/a.PNG", b""), ("ä 编.webp", bytes(range(256)))]
    assert [(one.name, one.data) for one in read(path, packed(files, method))] == files


def test_what_is_no_picture_says_why(path: Path) -> None:
    files = [("notes.txt", b""), ("b.zip", b""), ("b.tar.gz", b""), ("a.jpg", b"a"), ("jpg", b"")]
    errors = [one.error for one in read(path, packed(files))]
    archive = "is an archive in an archive, which is not opened"
    assert errors == ["is no picture by its name", archive, archive, None, "is no picture by its name"]


def test_what_systems_add_is_passed_over(path: Path) -> None:
    files = [(name, b"") for name in ("__MACOSX/._a.jpg", "a/.DS_Store", "Thumbs.db", "a/Thumbs.db", "a/", "a/b.jpg")]
    assert [one.name for one in read(path, packed(files))] == ["a/b.jpg"]


def test_it_goes_on_where_it_ended(path: Path) -> None:
    files = [(f"{n}.jpg", b"%d" % n) for n in range(9)]
    assert [one.name for one in read(path, packed(files), start=6)] == ["6.jpg", "7.jpg", "8.jpg"]


def test_each_limit_is_told_by_its_number(path: Path) -> None:
    files = [(f"{n}.png", bytes(100_000)) for n in range(5)]
    archive = packed(files)
    with pytest.raises(DataError, match="holds 5 files, more than 4"):
        read(path, archive, ArchiveLimits(entries=4))
    with pytest.raises(DataError, match=r"is larger than 0\.0004 GB when it is unpacked"):
        read(path, archive, ArchiveLimits(all_bytes=400_000))
    assert {one.error for one in read(path, archive, ArchiveLimits(entry_bytes=99_999))} == {
        "is larger than 0.099999 MB when it is unpacked"
    }
    assert {one.error for one in read(path, archive, ArchiveLimits(ratio=50))} == {
        "becomes more than 50 times larger when it is unpacked"
    }
    at_the_limit = ArchiveLimits(entries=5, entry_bytes=100_000, all_bytes=500_000, ratio=100)
    assert [one.data for one in read(path, archive, at_the_limit)] == [bytes(100_000)] * 5


def test_a_small_file_may_grow_as_it_likes(path: Path) -> None:
    # A one-colour icon of 5 kB in 30 bytes harms nobody.
    assert read(path, packed([("a.png", bytes(5000))]), ArchiveLimits(ratio=20))[0].data == bytes(5000)


def test_many_folders_and_companions_do_not_count_as_files_but_not_without_end(path: Path) -> None:
    files = [(name, b"") for n in range(40) for name in (f"{n}/", f"{n}/a.jpg", f"__MACOSX/{n}/._a.jpg")]
    assert len(read(path, packed(files), ArchiveLimits(entries=40))) == 40
    with pytest.raises(DataError, match="holds more than 40 files"):
        read(path, packed([(f"{n}/", b"") for n in range(300)]), ArchiveLimits(entries=40))


@pytest.mark.parametrize(
    "name", ["", "\0a.jpg", "a", ".", "..", "...", "/", "//", "\\", "C:", "a/..", "a//b.jpg", "a/./b.jpg", " "]
)
def test_every_name_has_an_answer(path: Path, name: str) -> None:
    read(path, packed([(name, b"")]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@FILES
@given(st.lists(st.tuples(st.text(max_size=30), st.binary(max_size=50)), max_size=5), st.sampled_from(METHODS))
def test_no_name_leads_out_and_nothing_is_written(tmp_path: Path, files: list[tuple[str, bytes]], method: int) -> None:
    files = [(name.encode("utf-8", "ignore").decode(), data) for name, data in files]
    for one in read(tmp_path / "a.zip", packed(files, method)):
        assert (one.data is None) != (one.error is None)
        if one.data is not None:
            place = (tmp_path / "inside" / one.name.replace("\\", "/")).resolve()
            assert place.is_relative_to(tmp_path / "inside")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


GOOD = {
    method: packed([("a.jpg", b"picture" * 40), ("b.png", bytes(300)), ("c.txt", b"")], method) for method in METHODS
}


@FILES
@given(
    st.sampled_from(METHODS),
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
    st.integers(0, 400),
)
def test_damage_anywhere_is_told_in_words(
    tmp_path: Path, method: int, changes: list[tuple[int, bytes]], cut: int
) -> None:
    data = bytearray(GOOD[method])
    for place, value in changes:
        place %= len(data)
        data[place : place + len(value)] = value
    limits = ArchiveLimits(entries=100, entry_bytes=1000, all_bytes=10_000, ratio=100)
    with suppress(DataError):
        found = read(tmp_path / "a.zip", bytes(data[: len(data) - cut] if cut < 100 else data), limits)
        assert all((one.data is None) != (one.error is None) for one in found)
        assert all(len(one.data or b"") <= 1000 for one in found)


@settings(FILES, max_examples=100)
@given(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.booleans())
def test_whatever_the_end_says_it_is_believed_or_refused(
    tmp_path: Path, files: int, table: int, begins: int, wide: bool
) -> None:

    body = GOOD[zipfile.ZIP_DEFLATED]
    body = body[: body.rindex(b"PK\x05\x06")]
    if wide:
        numbers = (files, files, table << 31, begins << 31)
        body += b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, *numbers)
        body += b"PK\x06\x07" + struct.pack("<IQI", 0, 0, 1)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, files, files, table, begins, 0)
    with suppress(DataError):
        assert len(read(tmp_path / "a.zip", body + end, ArchiveLimits(entries=100))) <= 3
