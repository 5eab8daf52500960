"""Pictures in ZIP archives of strangers: nothing is written, no name is believed, and no entry grows without end."""

from __future__ import annotations

import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from manyeyes.datasets.pictures import is_picture
from manyeyes.errors import DataError

__all__ = ["ArchiveLimits", "Packed", "PackedPictures"]

# Encrypted, of an unknown method, cut off, or damaged in a way that its method finds before the checksum is compared.
_UNPACK_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,  # a method may ask for a window of gigabytes before it gives a byte
)
_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"})
# Of one entry in the table of contents; the longest names of common systems have 255 bytes.
_DIRECTORY_BYTES = 600
_ENTRY_BEGINS = b"PK\x01\x02"
# Folders and what systems put beside each file are entries too, and not counted as files.
_PER_ENTRY, _FEW = 3, 100
_SIGNATURE, _SIZE_OF_DIRECTORY, _PLACE = 0, 5, 9
_ZIP64, _ZIP64_BYTES = b"PK\x06\x06", 76


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may ask for.

    Attributes:
        entries: files in it.
        entry_bytes: of one file, unpacked.
        all_bytes: of all files, unpacked.
        ratio: how many times larger a file may become.
    """

    entries: int = 1_000_000
    entry_bytes: int = 200_000_000
    all_bytes: int = 1_000_000_000_000
    ratio: int = 1000


@dataclass(frozen=True, slots=True)
class Packed:
    """One file of an archive.

    Attributes:
        name: as the archive says it; for people, never a path.
        data: of a picture; None with an error.
        error: why it is not looked at.
    """

    name: str
    data: bytes | None = None
    error: str | None = None


class PackedPictures:
    """The pictures of a ZIP archive, and what else is in it with the reason why it is not looked at.

    Args:
        path: of the archive.
        limits: what it may ask for.

    Raises:
        DataError: it is no ZIP archive, or asks for more than the limits as a whole.
    """

    def __init__(self, path: Path, limits: ArchiveLimits = ArchiveLimits()) -> None:
        self._limits = limits
        if (
            _directory(path, limits.entries * _DIRECTORY_BYTES).count(_ENTRY_BEGINS)
            > limits.entries * _PER_ENTRY + _FEW
        ):
            raise DataError(f"holds more than {limits.entries} files", file=path, cure="Divide it.")
        try:
            self._archive = zipfile.ZipFile(path)
        except _UNPACK_ERRORS as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise DataError(f"cannot be opened as a ZIP archive ({reason})", file=path) from error
        entries = [entry for entry in self._archive.infolist() if not _by_the_way(entry)]
        if len(entries) > limits.entries:
            raise DataError(f"holds {len(entries)} files, more than {limits.entries}", file=path, cure="Divide it.")
        if sum(entry.file_size for entry in entries) > limits.all_bytes:
            raise DataError(
                f"is larger than {limits.all_bytes / 1e9:g} GB when it is unpacked", file=path, cure="Divide it."
            )
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def close(self) -> None:
        """Let the file go."""
        self._archive.close()

    def read(self, start: int = 0) -> Iterator[Packed]:
        """Its files in their order, one at a time in memory.

        Args:
            start: how many of them are passed over.
        """
        for entry in self._entries[start:]:
            error = self._refused(entry)
            yield Packed(entry.filename, error=error) if error else self._unpacked(entry)

    def _refused(self, entry: zipfile.ZipInfo) -> str | None:
        plain = _plain(entry.filename)
        if entry.filename.startswith(("/", "\\")) or ".." in plain.parts or ":" in plain.parts[0]:
            return "has a name that leads out of the archive"
        if stat.S_ISLNK(entry.external_attr >> 16):
            return "is a link"
        if plain.suffix.lower() in _ARCHIVES:
            return "is an archive in an archive, which is not opened"
        if not is_picture(Path(plain.name)):
            return "is no picture by its name"
        if entry.file_size > self._limits.entry_bytes:
            return self._too_large()
        return None

    def _unpacked(self, entry: zipfile.ZipInfo) -> Packed:
        # Headers may lie about the size: what comes out is counted.
        by_ratio = max(entry.compress_size, 1024) * self._limits.ratio
        most = min(self._limits.entry_bytes, by_ratio)
        try:
            with self._archive.open(entry) as file:
                data = file.read(most + 1)
        except _UNPACK_ERRORS as error:
            return Packed(entry.filename, error=f"cannot be unpacked ({error})")
        if len(data) > most:
            grows = f"becomes more than {self._limits.ratio} times larger when it is unpacked"
            return Packed(entry.filename, error=grows if most == by_ratio else self._too_large())
        return Packed(entry.filename, data)

    def _too_large(self) -> str:
        return f"is larger than {self._limits.entry_bytes / 1e6:g} MB when it is unpacked"


def _plain(name: str) -> PurePosixPath:
    plain = PurePosixPath(name.replace("\\", "/"))
    return plain if plain.parts else PurePosixPath("_")


def _by_the_way(entry: zipfile.ZipInfo) -> bool:
    """Folders, and what systems put into archives beside the files of people."""
    if entry.filename.endswith("/"):  # `is_dir` fails for a name without letters
        return True
    plain = _plain(entry.filename)
    return plain.name.startswith(".") or plain.name == "Thumbs.db" or plain.parts[0] == "__MACOSX"


def _directory(path: Path, most: int) -> bytes:
    """The table of contents as it lies in the file; empty where there is none.

    zipfile makes an object of hundreds of bytes of each entry before anything can be asked. Its own search for the end
    of the archive is used, since any other could be led to another end than the one it takes.

    Raises:
        DataError: it is longer than `most` bytes.
    """
    try:
        with path.open("rb") as file:
            end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
            if not end:
                return b""
            size = int(end[_SIZE_OF_DIRECTORY])
            if size > most:
                raise DataError("has too long a table of contents", file=path, cure="Divide it.")
            file.seek(max(0, end[_PLACE] - size - (_ZIP64_BYTES if end[_SIGNATURE] == _ZIP64 else 0)))
            return file.read(size)
    except _UNPACK_ERRORS:
        return b""
