"""Sites that do not agree on labels: the model's classes are the union of theirs, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from manyeyes.datasets.sample import SPLITS, Dataset, Sample
from manyeyes.errors import DataError

__all__ = ["known_part", "pool", "relabel", "shared_names", "union_names"]


def union_names(datasets: Mapping[str, Dataset]) -> tuple[str, ...]:
    """Names of all classes that at least one site annotates, in the order they are first met.

    Args:
        datasets: site → dataset.

    Raises:
        DataError: two names differ only in case, spaces or punctuation, so they are one class or will be taken for it.
    """
    first_met: dict[str, tuple[str, str]] = {}
    for site, dataset in datasets.items():
        for name in dataset.names:
            if name not in dataset.annotates:
                continue
            known, where = first_met.setdefault(_plain(name), (name, site))
            if known != name:
                raise DataError(
                    f"site {site} says {name!r}, site {where} says {known!r}: are they one class?",
                    file=dataset.root,
                    key="names",
                    cure="Spell them the same way, or give them names that differ by more than case and spaces.",
                )
    return tuple(name for name, _ in first_met.values())


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum()) or name


def shared_names(datasets: Mapping[str, Dataset]) -> tuple[str, ...]:
    """Names of the classes that every site annotates, in the order of the first site."""
    first, *others = datasets.values()
    return tuple(n for n in first.names if n in first.annotates and all(n in other.annotates for other in others))


def known_part(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The same pictures with a model's class ids, for the classes that both know by name.

    Raises:
        DataError: there is no such class.
    """
    common = frozenset(dataset.annotates) & frozenset(names)
    if not common:
        raise DataError(
            f"the model knows {', '.join(names[:8])}{' …' if len(names) > 8 else ''}; the dataset has "
            f"{', '.join(sorted(dataset.annotates))}: no class in common",
            file=dataset.root,
        )
    return relabel(replace(dataset, annotates=common), names)


def relabel(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The same pictures with class ids of the union.

    Boxes of classes that were not looked for, at the site or in their picture, are dropped: where only some objects of
    a class are marked, they would teach that the others are background.

    Raises:
        DataError: an annotated class is not among `names`.
    """
    missing = sorted(set(dataset.annotates) - set(names))
    if missing:
        raise DataError(f"annotates {missing}, which the model does not have", file=dataset.root, key="names")
    new_id = np.array([names.index(n) if n in names else -1 for n in dataset.names], dtype=np.int64)
    annotated = frozenset(i for i, name in enumerate(dataset.names) if name in dataset.annotates)
    splits = {
        split: [_relabel(sample, new_id, annotated) for sample in samples] for split, samples in dataset.splits.items()
    }
    return Dataset(dataset.root, tuple(names), splits, dataset.annotates)


def _relabel(sample: Sample, new_id: np.ndarray[tuple[int], np.dtype[np.int64]], annotated: frozenset[int]) -> Sample:
    class_id = new_id[sample.class_id]
    looked_for = annotated if sample.annotates is None else sample.annotates
    keep = (class_id >= 0) & np.isin(sample.class_id, sorted(looked_for))
    annotates = None
    if sample.annotates is not None:
        annotates = frozenset(int(new_id[i]) for i in sample.annotates if new_id[i] >= 0)
    return replace(sample, xyxy=sample.xyxy[keep], class_id=class_id[keep], annotates=annotates)


def pool(datasets: Mapping[str, Dataset]) -> Dataset:
    """All sites' pictures as one dataset; each picture remembers which classes were looked for in it.

    The datasets must have been relabelled to the same names.
    """
    first = next(iter(datasets.values()))
    splits: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    for dataset in datasets.values():
        if dataset.names != first.names:
            raise DataError(f"cannot pool {dataset.names} with {first.names}: relabel them first", file=dataset.root)
        looked_for = frozenset(i for i, name in enumerate(dataset.names) if name in dataset.annotates)
        for split, samples in dataset.splits.items():
            splits.setdefault(split, []).extend(
                sample if sample.annotates is not None else replace(sample, annotates=looked_for) for sample in samples
            )
    annotates = frozenset(name for dataset in datasets.values() for name in dataset.annotates)
    return Dataset(first.root, first.names, splits, annotates)
