"""The page for people, as frontend/ was built into the package: it holds nothing, and asks the API for all it shows."""

from __future__ import annotations

import gzip
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["STATIC", "add_page"]

STATIC = Path(__file__).parent / "static"
"""Where the build puts the page."""

# The names of assets hold a hash of what is in them; index.html names the newest.
_FOR_GOOD = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"
# Pictures and fonts are packed already.
_PACKABLE = frozenset({".html", ".js", ".css", ".svg"})


@dataclass(frozen=True, slots=True)
class _File:
    plain: bytes
    packed: bytes | None
    media_type: str


def add_page(app: FastAPI, static: Path = STATIC) -> None:
    """Serve the page at / and what it is made of at /assets.

    Args:
        app: that gets the two addresses.
        static: folder of the built page; read once, so that no request chooses what is opened.
    """
    files = {path.relative_to(static).as_posix(): _read(path) for path in sorted(static.rglob("*")) if path.is_file()}

    @app.get("/", include_in_schema=False)
    def index(request: Request) -> Response:
        if "index.html" not in files:
            raise HTTPException(404, "the page was not built: `make setup` builds it")
        return _answer(request, files["index.html"], _ASK_AGAIN)

    @app.get("/assets/{name}", include_in_schema=False)
    def asset(request: Request, name: str) -> Response:
        file = files.get(f"assets/{name}")
        if file is None:
            raise HTTPException(404, "there is no such part of the page")
        return _answer(request, file, _FOR_GOOD)


def _read(path: Path) -> _File:
    plain = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return _File(plain, gzip.compress(plain, mtime=0) if path.suffix in _PACKABLE else None, kind)


def _answer(request: Request, file: _File, cache: str) -> Response:
    headers = {"cache-control": cache, "vary": "accept-encoding"}
    if file.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.packed, headers=headers | {"content-encoding": "gzip"}, media_type=file.media_type)
    return Response(file.plain, headers=headers, media_type=file.media_type)
