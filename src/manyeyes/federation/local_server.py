"""The server at a site, as far as its node must know it; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["LocalServer", "Promote"]

Promote = Literal["no_worse", "always", "never"]


@dataclass(frozen=True, slots=True)
class LocalServer:
    """`manyeyes serve` at this site.

    Attributes:
        state: its state folder.
        promote: whether a model that came is used: if it is "no_worse" than the one in use, "always" or "never".
        authority: file with the certificate of whoever may sign models.
        margin: mAP50-95, from 0 to 1, by which one may be worse on the site's pictures and still count as no worse.
        keep: models of federations that are kept; of those that nobody needs the others are deleted. None: all.
    """

    state: Path
    promote: Promote
    authority: Path
    margin: float = 0.0
    keep: int | None = None
