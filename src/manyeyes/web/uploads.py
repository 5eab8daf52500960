"""Bodies of requests: a picture as it is or in a form, several in a form, an archive to a file."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from manyeyes.web.settings import LimitSection

__all__ = ["Upload", "read_picture", "read_pictures", "save_archive", "spooling_to"]

_FORM = "multipart/form-data"
_MOST_FIELDS = 16
_LONGEST_NAME = 200
_PIECE = 1 << 20


@contextmanager
def spooling_to(folder: Path) -> Iterator[None]:
    """Within the block files of forms beyond a megabyte lie in a folder, without a name, until they were read.

    The system's folder for such files is memory on many machines, and an archive has gigabytes. For a process that does
    nothing but serve: it is told to all of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


@dataclass(frozen=True, slots=True)
class Upload:
    """A file somebody sent.

    Attributes:
        name: as they called it, without folders; for people, never a path.
        data: its bytes; None where it is larger than allowed.
    """

    name: str
    data: bytes | None


async def read_picture(request: Request, limits: LimitSection) -> Upload:
    """The one picture of a request: its body, or the only file of its form.

    Raises:
        HTTPException: there is none, there are several, or it is too large.
    """
    if not _is_form(request):
        data = await request.body()
        if not data:
            raise HTTPException(400, "has no body: send the bytes of a picture")
        return Upload("", data)
    (upload,) = [upload async for upload in _form_files(request, limits, 1)]
    return upload


async def read_pictures(request: Request, limits: LimitSection) -> AsyncGenerator[Upload]:
    """All files of a request's form, in their order; one at a time in memory.

    Raises:
        HTTPException: it is no form, or holds no file or too many.
    """
    if not _is_form(request):
        raise HTTPException(415, f"must be {_FORM}, each picture a field `files`")
    async for upload in _form_files(request, limits, limits.pictures):
        yield upload


async def save_archive(request: Request, path: Path) -> str:
    """Write the archive of a request, its body or the only file of its form, to a file; returns its name.

    Raises:
        HTTPException: there is none.
    """
    if _is_form(request):
        async with _form(request, 1) as form:
            file = next((value for value in form.values() if isinstance(value, UploadFile)), None)
            if file is None:
                raise HTTPException(400, "holds no file")
            with path.open("wb") as target:
                while piece := await file.read(_PIECE):
                    target.write(piece)
            return _plain(file.filename)
    with path.open("wb") as target:
        await _copy_body(request, target)
    return "archive.zip"


async def _copy_body(request: Request, target: IO[bytes]) -> None:
    async for piece in request.stream():
        target.write(piece)
    if not target.tell():
        raise HTTPException(400, "has no body: send the bytes of a ZIP archive")


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith(_FORM)


@asynccontextmanager
async def _form(request: Request, most: int) -> AsyncIterator[FormData]:
    try:
        form = await request.form(max_files=most, max_fields=_MOST_FIELDS)
    except ValueError as error:  # the parser's own errors, and those of letters
        raise HTTPException(400, f"is no form that can be read ({error})") from error
    try:
        yield form
    finally:
        await form.close()


async def _form_files(request: Request, limits: LimitSection, most: int) -> AsyncGenerator[Upload]:
    async with _form(request, most) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise HTTPException(400, "holds no file")
        for file in files:
            yield await _read(file, limits.picture_bytes)


async def _read(file: UploadFile, most: int) -> Upload:
    data = await file.read(most + 1)
    return Upload(_plain(file.filename), data if len(data) <= most else None)


def _plain(name: str | None) -> str:
    printable = "".join(letter for letter in name or "" if letter.isprintable())
    return PurePosixPath(printable.replace("\\", "/")).name[-_LONGEST_NAME:]
