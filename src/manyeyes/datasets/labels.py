"""The rules every layout reads labels by: class names, annotated classes, boxes, label files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manyeyes.datasets.sample import ProblemHandler, Reporter
from manyeyes.errors import DataError, nearest

__all__ = ["checked_annotates", "checked_boxes", "checked_names", "read_text", "report_orphans"]

# Annotation tools round to whole pixels or to three digits of the side; more than that is a mistake.
_ROUNDING_PX = 1.0
_ROUNDING_SHARE = 1e-3


def checked_names(names: Iterable[object], file: Path, key: str) -> tuple[str, ...]:
    """Class names as they are used everywhere: printable, without blanks around them, unique.

    Raises:
        DataError: a name is not text, is empty, holds control characters or stands there twice.
    """
    checked: list[str] = []
    for name in names:
        if isinstance(name, bool) or not isinstance(name, (str, int, float)):
            raise DataError(
                f"a class name must be text, got {name!r}",
                file=file,
                key=key,
                cure='Put it in quotes: YAML reads no, off and yes as true or false, so write "no".',
            )
        text = str(name).strip()
        if not text or not text.isprintable():
            raise DataError(f"a class name must be printable text, got {name!r}", file=file, key=key)
        if text in checked:
            raise DataError(f"the class name {text!r} stands there twice", file=file, key=key)
        checked.append(text)
    if not checked:
        raise DataError("at least one class name is needed, got none", file=file, key=key)
    return tuple(checked)


def checked_annotates(
    annotates: object, names: Sequence[str], file: Path | str, key: str = "annotates"
) -> frozenset[str]:
    """The classes a site looked for, each one a known name.

    Raises:
        DataError: not a list of names, empty, or a name that is not among `names`.
    """
    if isinstance(annotates, str) or not isinstance(annotates, Iterable):
        raise DataError(f"must be a list of class names, got {annotates!r}", file=file, key=key)
    wanted = [str(name).strip() for name in annotates]
    if not wanted:
        raise DataError("must name at least one class, got none", file=file, key=key)
    for name in wanted:
        if name not in names:
            close = nearest(name, names)
            hint = f"Did you mean {close!r}?" if close else f"Known are {', '.join(names)}."
            raise DataError(f"{name!r} is not a class of this dataset", file=file, key=key, cure=hint)
    return frozenset(wanted)


def checked_boxes(
    xyxy: NDArray[np.float64],
    class_id: NDArray[np.int64],
    keys: Sequence[str],
    size: tuple[int, int],
    n_names: int,
    report: Reporter,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The boxes that can be trained on; every other one is reported and left out.

    A box may reach past the picture by one pixel or a thousandth of the side (rounding): it is clipped silently.

    Args:
        xyxy: (n, 4) corners in pixels.
        class_id: (n,).
        keys: n names for messages, e.g. "line 3".
        size: width and height of the picture in pixels.
        n_names: how many classes there are.

    Returns:
        (m, 4) float32 pixels inside the picture, and (m,) int64.
    """
    width, height = size
    limit = np.array([width, height, width, height], dtype=np.float64)
    slack = np.maximum(_ROUNDING_PX, _ROUNDING_SHARE * limit)
    finite = np.asarray(np.isfinite(xyxy).all(axis=1))
    known = (class_id >= 0) & (class_id < n_names)
    inside = np.asarray(((xyxy >= -slack) & (xyxy <= limit + slack)).all(axis=1))
    clipped = np.clip(xyxy, 0.0, limit).astype(np.float32)
    filled = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    usable = finite & known & inside & filled
    for row in np.flatnonzero(~usable).tolist():
        box = ", ".join(f"{value:g}" for value in xyxy[row])
        if not finite[row]:
            report.error("malformed", f"the box ({box}) is not made of finite numbers", keys[row])
        elif not known[row]:
            report.error("unknown-class", f"class {class_id[row]} has no name: known are 0 to {n_names - 1}", keys[row])
        elif not inside[row]:
            report.error("outside", f"the box ({box}) lies outside the picture of {width} x {height} px", keys[row])
        else:
            report.error("zero-area", f"the box ({box}) px, x1 y1 x2 y2, has no area", keys[row])
    good = _without_duplicates(clipped, class_id, np.flatnonzero(usable), keys, report)
    return clipped[good], class_id[good]


def _without_duplicates(
    xyxy: NDArray[np.float32],
    class_id: NDArray[np.int64],
    rows: NDArray[np.int64],
    keys: Sequence[str],
    report: Reporter,
) -> NDArray[np.int64]:
    seen: dict[tuple[float, ...], int] = {}
    kept = []
    for row in rows.tolist():
        first = seen.setdefault((float(class_id[row]), *xyxy[row].tolist()), row)
        if first == row:
            kept.append(row)
        else:
            report.warning("duplicate-box", f"the same box and class as {keys[first]}; it is used once", keys[row])
    return np.array(kept, dtype=np.int64)


def report_orphans(label_files: Iterable[Path], known: set[Path], handler: ProblemHandler) -> None:
    """Warn of label files that belong to no picture."""
    for label in sorted(set(label_files) - known):
        Reporter(handler, label).warning("orphaned-label", "this label file belongs to no picture")


def read_text(file: Path, report: Reporter) -> str | None:
    """The file's text, or None and the problem "malformed"."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        report.error("malformed", f"the file cannot be read as text: {error}")
        return None
