"""Divide the pictures of one dataset among sites, as studies of federated learning do.

The pure functions take one label a picture and return one index array a site; each picture goes to exactly one
site. In detection the label of a picture is its most frequent class (-1 without objects), as in most published
detection partitions: it steers who holds what, the boxes stay as they are. Of a tie it is the class with the fewest
boxes in the whole dataset: by the lower id, class 0 would collect every tie where pictures show each class once.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manyeyes.datasets.sample import SPLITS, Dataset, Sample
from manyeyes.errors import DataError, ResourceError, nearest

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "PARTITIONS",
    "by_class",
    "by_folder",
    "dirichlet",
    "dominant_class",
    "draw_partition",
    "iid",
    "partition_table",
    "split_dataset",
]

PARTITIONS = ("folder", "iid", "dirichlet", "class")

_DRAWS = 1000
# Parts of the layouts' own paths: they say nothing about where a picture was taken.
_LAYOUT_FOLDERS = frozenset({"images", "JPEGImages", "train", "val", "valid", "validation", "test", ""})
# Okabe and Ito's palette (2008), told apart with every kind of colour vision; grey is for the rest.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C6BB1")
_REST_COLOUR = "#BDBDBD"
_INK = "#333333"

Indices = NDArray[np.int64]


def dominant_class(sample: Sample, totals: ArrayLike) -> int:
    """The class id most boxes of a picture have; of a tie the rarest in the whole dataset; -1 if it has none.

    Args:
        sample: the picture.
        totals: (classes,) boxes of each class in the whole dataset; where these tie too, the lower id wins.
    """
    if not len(sample.class_id):
        return -1
    counts = np.bincount(sample.class_id)
    tied = np.flatnonzero(counts == counts.max())
    return int(tied[np.asarray(totals)[tied].argmin()])


def iid(labels: ArrayLike, n_sites: int, seed: int, *, strata: ArrayLike | None = None) -> list[Indices]:
    """Deal the pictures out at random, so that every site has the same number (plus or minus one).

    Args:
        labels: (n,) one a picture; only their number counts.
        n_sites: how many sites.
        seed: the same seed gives the same partition.
        strata: (n,) the split of each picture; each split is divided for itself.

    Returns:
        n_sites arrays of indices into `labels`, ascending.

    Raises:
        DataError: a split has fewer pictures than there are sites.
    """
    labels, strata = _arrays(labels, strata, n_sites)
    rng = np.random.default_rng(seed)
    parts: list[list[Indices]] = [[] for _ in range(n_sites)]
    for stratum in np.unique(strata):
        shuffled = rng.permutation(np.flatnonzero(strata == stratum))
        for site, piece in enumerate(np.array_split(shuffled, n_sites)):
            parts[site].append(piece)
    return _finished(parts, strata, 1)


def dirichlet(
    labels: ArrayLike,
    n_sites: int,
    seed: int,
    alpha: float,
    *,
    strata: ArrayLike | None = None,
    min_pictures: int = 1,
) -> list[Indices]:
    """For each label, divide its pictures in proportions drawn from Dirichlet(alpha, …, alpha).

    Small alpha gives sites that hold few classes (0.1: nearly one), large alpha tends to `iid` in proportions.
    All splits share one draw. It is repeated, up to 1000 times, until every site has `min_pictures` in each split.
    Follows Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution", 2019, in the variant
    that draws a class's proportions over the sites (Yurochkin et al., 2019).

    Args:
        labels: (n,) the label of each picture.
        n_sites: how many sites.
        seed: the same seed gives the same partition.
        alpha: concentration, > 0.
        strata: (n,) the split of each picture.
        min_pictures: smallest number of pictures of a site in each split.

    Returns:
        n_sites arrays of indices into `labels`, ascending.

    Raises:
        DataError: alpha is not positive, or no draw gave every site enough.
    """
    labels, strata = _arrays(labels, strata, n_sites)
    if not (np.isfinite(alpha) and alpha > 0):
        raise DataError(f"alpha must be a number > 0, got {alpha}", key="alpha")
    _require_enough(strata, n_sites, min_pictures)
    rng = np.random.default_rng(seed)
    for _ in range(_DRAWS):
        site_of = _draw_dirichlet(labels, strata, n_sites, alpha, rng)
        parts = [np.flatnonzero(site_of == site) for site in range(n_sites)]
        if _has_enough(parts, strata, min_pictures):
            return parts
    raise DataError(
        f"{_DRAWS} draws with alpha {alpha} left a site with fewer than {min_pictures} pictures in some split",
        key="alpha",
        cure="Use a larger alpha, fewer sites or more pictures.",
    )


def _draw_dirichlet(
    labels: Indices, strata: NDArray[Any], n_sites: int, alpha: float, rng: np.random.Generator
) -> Indices:
    """(n,) the site of each picture."""
    site_of = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        share = rng.dirichlet(np.full(n_sites, alpha))
        for stratum in np.unique(strata):
            members = rng.permutation(np.flatnonzero((labels == label) & (strata == stratum)))
            # A random offset instead of plain rounding: else the last site gains each leftover picture.
            bounds = np.floor(np.cumsum(share)[:-1] * len(members) + rng.random()).astype(np.int64)
            for site, piece in enumerate(np.split(members, np.minimum(bounds, len(members)))):
                site_of[piece] = site
    return site_of


def by_class(labels: ArrayLike, n_sites: int, seed: int, *, strata: ArrayLike | None = None) -> list[Indices]:
    """Give each site classes of its own: the largest class goes to the site with the fewest pictures so far.

    With more sites than classes, the sites are dealt to the classes, most to the largest, and share its pictures
    evenly. Pictures without objects are dealt out evenly. A split may lack a site's classes: it is then empty there.

    Args:
        labels: (n,) the label of each picture, -1 without objects.
        n_sites: how many sites.
        seed: which of a class's sites gets which picture.
        strata: (n,) the split of each picture.

    Returns:
        n_sites arrays of indices into `labels`, ascending.

    Raises:
        DataError: fewer pictures with objects than sites.
    """
    labels, strata = _arrays(labels, strata, n_sites)
    rng = np.random.default_rng(seed)
    owners = _owners({int(label): int((labels == label).sum()) for label in np.unique(labels[labels >= 0])}, n_sites)
    owners[-1] = list(range(n_sites))
    parts: list[list[Indices]] = [[] for _ in range(n_sites)]
    for label, sites in owners.items():
        for stratum in np.unique(strata):
            members = rng.permutation(np.flatnonzero((labels == label) & (strata == stratum)))
            for site, piece in zip(sites, np.array_split(members, len(sites)), strict=True):
                parts[site].append(piece)
    return _finished(parts, np.zeros_like(labels), 1)


def _owners(counts: dict[int, int], n_sites: int) -> dict[int, list[int]]:
    """The sites that hold each class, given its number of pictures."""
    owners: dict[int, list[int]] = {label: [] for label in counts}
    if not counts:
        return owners
    largest_first = sorted(counts, key=lambda label: (-counts[label], label))
    load = [0] * n_sites
    for label in largest_first:
        site = load.index(min(load))
        owners[label].append(site)
        load[site] += counts[label]
    for site in range(len(counts), n_sites):
        neediest = max(largest_first, key=lambda label: counts[label] / len(owners[label]))
        owners[neediest].append(site)
    return owners


def by_folder(folders: Sequence[str], n_sites: int | None = None, seed: int = 0) -> list[Indices]:
    """One site a folder, in the order of their names; with fewer sites, the largest folders are dealt out first.

    Args:
        folders: (n,) the folder of each picture, e.g. the camera.
        n_sites: how many sites; None for one a folder.
        seed: not used: there is nothing to draw. It makes the call like the others'.

    Returns:
        n_sites arrays of indices into `folders`, ascending.

    Raises:
        DataError: fewer folders than sites.
    """
    counts = Counter(folders)
    names = sorted(counts)
    n_sites = len(names) if n_sites is None else n_sites
    _arrays(np.zeros(len(folders)), None, n_sites)
    if n_sites > len(names):
        shown = ", ".join(repr(name or ".") for name in names[:8])
        raise DataError(
            f"{n_sites} sites need as many folders, got {len(names)}: {shown}",
            key="sites",
            cure="Use fewer sites, or divide by iid, dirichlet or class.",
        )
    site_of = {name: site for site, name in enumerate(names)}
    if n_sites < len(names):
        load = [0] * n_sites
        for name in sorted(names, key=lambda name: (-counts[name], name)):
            site_of[name] = load.index(min(load))
            load[site_of[name]] += counts[name]
    sites = np.array([site_of[folder] for folder in folders], dtype=np.int64)
    return [np.flatnonzero(sites == site) for site in range(n_sites)]


def _arrays(labels: ArrayLike, strata: ArrayLike | None, n_sites: int) -> tuple[Indices, NDArray[Any]]:
    labels = np.asarray(labels, dtype=np.int64)
    if n_sites < 1:
        raise DataError(f"there must be at least 1 site, got {n_sites}", key="sites")
    return labels, np.zeros_like(labels) if strata is None else np.asarray(strata)


def _require_enough(strata: NDArray[Any], n_sites: int, minimum: int) -> None:
    counts = np.unique(strata, return_counts=True)[1]
    if not len(counts) or counts.min() < n_sites * minimum:
        smallest = int(counts.min()) if len(counts) else 0
        raise DataError(
            f"{n_sites} sites with {minimum} pictures each are more than a split of {smallest} pictures can serve",
            key="sites",
            cure="Use fewer sites.",
        )


def _has_enough(parts: Sequence[Indices], strata: NDArray[Any], minimum: int) -> bool:
    return all((strata[part] == stratum).sum() >= minimum for part in parts for stratum in np.unique(strata))


def _finished(parts: Sequence[Sequence[Indices]], strata: NDArray[Any], minimum: int) -> list[Indices]:
    whole = [np.sort(np.concatenate(pieces)).astype(np.int64) for pieces in parts]
    if not _has_enough(whole, strata, minimum) or not len(strata):
        raise DataError(
            f"there are too few pictures for {len(parts)} sites: one would stay empty",
            key="sites",
            cure="Use fewer sites.",
        )
    return whole


def split_dataset(
    dataset: Dataset, how: str, sites: int | None = None, *, alpha: float = 0.5, seed: int = 0
) -> list[Dataset]:
    """Divide a dataset among sites; train, val and test alike.

    Args:
        how: one of `PARTITIONS`. "folder": by the folders pictures lie in, those of the layout itself (images,
            train, …) left out.
        sites: how many; for "folder" None means one a folder.
        alpha: for "dirichlet".
        seed: the same seed gives the same partition.

    Returns:
        One dataset a site, with the same names, annotated classes and pictures' paths.

    Raises:
        DataError: an unknown `how`, no number of sites, or too few pictures or folders.
    """
    if how not in PARTITIONS:
        close = nearest(how, PARTITIONS)
        hint = f"Did you mean {close!r}?" if close else f"Known are {', '.join(PARTITIONS)}."
        raise DataError(f"there is no partition {how!r}", key="how", cure=hint)
    if sites is None and how != "folder":
        raise DataError(f"the partition {how!r} needs a number of sites", cure="Say how many: --sites 3.")
    pairs = [(split, sample) for split in SPLITS for sample in dataset.split(split)]
    parts = _parts(
        [sample for _, sample in pairs], [split for split, _ in pairs], dataset.root, how, sites, alpha, seed
    )
    return [_subset(dataset, [pairs[index] for index in part]) for part in parts]


def _parts(
    samples: Sequence[Sample], strata: Sequence[str], root: Path, how: str, sites: int | None, alpha: float, seed: int
) -> list[Indices]:
    if how == "folder" or sites is None:
        return by_folder([_place(sample.image, root) for sample in samples], sites, seed)
    ids = np.concatenate([sample.class_id for sample in samples]) if samples else np.empty(0, np.int64)
    totals = np.bincount(ids)
    labels = [dominant_class(sample, totals) for sample in samples]
    if how == "iid":
        return iid(labels, sites, seed, strata=strata)
    if how == "dirichlet":
        return dirichlet(labels, sites, seed, alpha, strata=strata)
    return by_class(labels, sites, seed, strata=strata)


def _place(image: Path, root: Path) -> str:
    base = root if root.is_dir() else root.parent
    folder = (image.relative_to(base) if image.is_relative_to(base) else image).parent
    return "/".join(part for part in folder.parts if part not in _LAYOUT_FOLDERS)


def _subset(dataset: Dataset, pairs: Sequence[tuple[str, Sample]]) -> Dataset:
    splits = {split: tuple(sample for each, sample in pairs if each == split) for split in SPLITS}
    return dataclasses.replace(dataset, splits={split: samples for split, samples in splits.items() if samples})


# --- who holds what ---


def _class_names(datasets: Sequence[Dataset]) -> list[str]:
    return list(dict.fromkeys(name for dataset in datasets for name in dataset.names))


def _boxes(dataset: Dataset, classes: Sequence[str]) -> NDArray[np.int64]:
    """(classes,) boxes of each class in train, or in all splits of a dataset without train."""
    samples = dataset.split("train") or [sample for split in SPLITS for sample in dataset.split(split)]
    counts: Counter[str] = Counter(dataset.names[index] for sample in samples for index in sample.class_id.tolist())
    return np.array([counts[name] for name in classes], dtype=np.int64)


def _site_names(datasets: Sequence[Dataset], names: Sequence[str] | None) -> list[str]:
    if names is not None and len(names) != len(datasets):
        raise DataError(f"{len(datasets)} sites need as many names, got {len(names)}", key="names")
    return [f"site {index}" for index in range(len(datasets))] if names is None else list(names)


def partition_table(datasets: Sequence[Dataset], names: Sequence[str] | None = None) -> Table:
    """Who holds what: pictures of each split and boxes of each class in train, a row a site.

    Args:
        datasets: one a site; their class names may differ.
        names: the sites' names; "site 0", "site 1", … if None.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    classes = _class_names(datasets)
    table = Table(box=SIMPLE_HEAD, caption="Left: pictures. Right: boxes in train.", caption_justify="left")
    table.add_column("site")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for name in classes:
        table.add_column(Text(name), justify="right")
    for site, dataset in zip(_site_names(datasets, names), datasets, strict=True):
        pictures = [f"{len(dataset.split(split)):,}" for split in SPLITS]
        table.add_row(Text(site), *pictures, *(f"{count:,}" if count else "–" for count in _boxes(dataset, classes)))
    return table


def draw_partition(datasets: Sequence[Dataset], path: Path | str, names: Sequence[str] | None = None) -> Path:
    """Draw who holds what as stacked bars: boxes of each class in train, in numbers and in shares of the site.

    Classes beyond the eight with most boxes are drawn together.

    Args:
        datasets: one a site; their class names may differ.
        path: the picture to write; its suffix (.png, .svg, .pdf) says the format.
        names: the sites' names; "site 0", "site 1", … if None.

    Returns:
        The path.

    Raises:
        ResourceError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ResourceError(
            "drawing needs matplotlib, which is not installed", cure="Run `pip install manyeyes[train]`."
        ) from error
    sites, path = _site_names(datasets, names), Path(path)
    counts, classes = _largest_classes(datasets)
    figure = Figure(figsize=(10, 1.9 + 0.42 * len(sites)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    _draw_bars(left, counts, classes, sites, "boxes in train")
    _draw_bars(right, shares, classes, sites, "share of the site's boxes, %")
    for row, total in enumerate(counts.sum(axis=1)):
        left.annotate(f" {total:,}", (total, row), va="center", fontsize=8, color=_INK)
    left.margins(x=0.1)
    left.set_xlim(left=0)
    right.set_xlim(0, 100)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 6), frameon=False, fontsize=9)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ResourceError(f"the picture cannot be written: {error}", file=path) from error
    return path


def _largest_classes(datasets: Sequence[Dataset]) -> tuple[NDArray[np.int64], list[str]]:
    """(sites, shown classes) boxes, and the classes' names; the last may be the sum of all others."""
    classes = _class_names(datasets)
    counts = np.array([_boxes(dataset, classes) for dataset in datasets], dtype=np.int64).reshape(-1, len(classes))
    held = [index for index in np.argsort(-counts.sum(axis=0), kind="stable").tolist() if counts[:, index].any()]
    if len(held) <= len(_COLOURS):
        shown, rest = sorted(held), []
    else:
        shown, rest = sorted(held[: len(_COLOURS)]), held[len(_COLOURS) :]
    columns = [counts[:, index] for index in shown] + ([counts[:, rest].sum(axis=1)] if rest else [])
    names = [classes[index] for index in shown] + ([f"{len(rest)} others"] if rest else [])
    return np.array(columns, dtype=np.int64).reshape(len(names), len(datasets)).T, names


def _draw_bars(axes: Any, values: NDArray[Any], classes: Sequence[str], sites: Sequence[str], title: str) -> None:
    start = np.zeros(len(sites))
    for column, name in enumerate(classes):
        colour = (*_COLOURS, _REST_COLOUR)[column]
        axes.barh(
            range(len(sites)),
            values[:, column],
            left=start,
            label=name,
            color=colour,
            height=0.68,
            edgecolor="white",
            linewidth=0.6,
        )
        start = start + values[:, column]
    axes.set_yticks(range(len(sites)), sites)
    axes.set_ylim(len(sites) - 0.4, -0.6)
    axes.set_xlabel(title, color=_INK, fontsize=9)
    axes.locator_params(axis="x", integer=True)
    axes.tick_params(length=0, colors=_INK, labelsize=9)
    axes.grid(axis="x", color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for spine in axes.spines.values():
        spine.set_visible(False)
