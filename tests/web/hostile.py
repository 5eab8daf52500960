"""Pictures, archives and bytes as somebody makes them who means no good."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib

PNG = b"\x89PNG\r\n\x1a\n"
CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deflated_zeros(count: int) -> bytes:
    """So many zeros, packed; never all of them in memory."""
    packer = zlib.compressobj(9)
    piece = bytes(1 << 20)
    parts = [packer.compress(piece) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & (1 << 20) - 1)), packer.flush()])


def png(width: int, height: int, *before: bytes, pixels: bytes | None = None) -> bytes:
    """A grey picture; without `pixels` all of it black, and legal."""
    data = deflated_zeros(height * (width + 1)) if pixels is None else pixels
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return PNG + header + b"".join(before) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_that_says(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header tells another size than its pixels have."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def bmp_that_says(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 154, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def tiff_that_says(width: int, height: int) -> bytes:
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 8)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IHH", 8, 0, 0)[:4] + struct.pack("<H", len(tags)) + entries + bytes(4)


def webp_that_says(width: int, height: int) -> bytes:
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas


def packed(*files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED, link: bool = False) -> bytes:
    """A ZIP archive; names may stand in it twice."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", method) as archive:
        for name, data in files:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = method
            entry.external_attr = ((stat.S_IFLNK if link else stat.S_IFREG) | 0o777) << 16
            archive.writestr(entry, data)
    return memory.getvalue()


def changed(archive: bytes, place: int, value: bytes, *, local: int | None = None) -> bytes:
    """An archive with other bytes at a place of each entry in its table, and of each local header."""
    data = bytearray(archive)
    for begins, offset in ((CENTRAL, place), (LOCAL, local)):
        at = -1
        while offset is not None and (at := data.find(begins, at + 1)) >= 0:
            data[at + offset : at + offset + len(value)] = value
    return bytes(data)


def encrypted(archive: bytes) -> bytes:
    return changed(archive, 8, b"\x01\0", local=6)


def unpacks_to(archive: bytes, size: int) -> bytes:
    """An archive that says that its files become so large."""
    return changed(archive, 24, struct.pack("<I", size), local=22)


def ended_by(archive: bytes, *, files: int, table: int, begins: int) -> bytes:
    """An archive with another end: so many files, a table so long that begins there."""
    return archive[: archive.rindex(END)] + END + struct.pack("<HHHHIIH", 0, 0, files, files, table, begins, 0)


def ended_by_zip64(archive: bytes, *, files: int, table: int, begins: int) -> bytes:
    body = archive[: archive.rindex(END)]
    end64 = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, files, files, table, begins)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, len(body), 1)
    return body + end64 + locator + END + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)


def one_file_many_times(archive: bytes, times: int) -> bytes:
    """The only file of an archive, again and again in its table: all lie at the same place."""
    start, end = archive.index(CENTRAL), archive.rindex(END)
    table = archive[start:end] * times
    return ended_by(archive[:start] + table + archive[end:], files=times, table=len(table), begins=start)


def wide_window() -> bytes:
    """An LZMA stream that asks for a window of 4 GiB."""
    data = b"\x09\x04\x05\x00\x5d\xff\xff\xff\xff" + bytes(64)
    archive = packed(("a.jpg", data), method=zipfile.ZIP_STORED)
    return unpacks_to(changed(archive, 10, b"\x0e\0", local=8), 1_000_000)
