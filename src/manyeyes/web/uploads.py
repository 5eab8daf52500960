"""Bodies of requests: a picture as it is or in a form, several in a form, an archive to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from manyeyes.web.settings import LimitSection

__all__ = ["Upload", "read_picture", "read_pictures", "save_archive"]

_FORM = "multipart/form-data"
_MOST_FIELDS = 16
_LONGEST_NAME = 200
_PIECE = 1 << 20


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
    uploads = await _form_files(request, limits, 1)
    return uploads[0]


async def read_pictures(request: Request, limits: LimitSection) -> list[Upload]:
    """All files of a request's form, in their order.

    Raises:
        HTTPException: it is no form, or holds no file or too many.
    """
    if not _is_form(request):
        raise HTTPException(415, f"must be {_FORM}, each picture a field `files`")
    return await _form_files(request, limits, limits.pictures)


async def save_archive(request: Request, path: Path) -> str:
    """Write the archive of a request, its body or the only file of its form, to a file; returns its name.

    Raises:
        HTTPException: there is none.
    """
    if _is_form(request):
        async with request.form(max_files=1, max_fields=_MOST_FIELDS) as form:
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


async def _form_files(request: Request, limits: LimitSection, most: int) -> list[Upload]:
    async with request.form(max_files=most, max_fields=_MOST_FIELDS) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise HTTPException(400, "holds no file")
        return [await _read(file, limits.picture_bytes) for file in files]


async def _read(file: UploadFile, most: int) -> Upload:
    data = await file.read(most + 1)
    return Upload(_plain(file.filename), data if len(data) <= most else None)


def _plain(name: str | None) -> str:
    printable = "".join(letter for letter in name or "" if letter.isprintable())
    return PurePosixPath(printable.replace("\\", "/")).name[-_LONGEST_NAME:]
