"""What a run was made with: versions and machine."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["provenance"]


def provenance() -> dict[str, str]:
    """Versions of this program and of PyTorch, and the machine, for the run log."""
    return {
        "manyeyes": _version("manyeyes"),
        "torch": _version("torch"),
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
