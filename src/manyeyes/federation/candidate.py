"""A new global model at a site: it must earn its place before it is used there."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from manyeyes.datasets import Dataset
from manyeyes.datasets.classes import known_part
from manyeyes.errors import DataError, ManyeyesError, WeightsError
from manyeyes.federation.local_server import Promote
from manyeyes.learners.export import export_model
from manyeyes.learners.learner import Metrics, Template
from manyeyes.learners.parity import measure
from manyeyes.registry import PROMOTE, Entry, Made, Registry
from manyeyes.runtime.openvino_network import OpenVinoNetwork
from manyeyes.runtime.promotion import tested

__all__ = ["take_candidate"]

_log = logging.getLogger(__name__)


def take_candidate(
    template: Template,
    data: Dataset,
    registry: Registry,
    *,
    run: str,
    round: int,
    promote: Promote,
    signed: float | None = None,
    margin: float = 0.0,
    keep: int | None = None,
) -> bool:
    """Export a model that came, test it on the site's own pictures, and use it if it is no worse than what is used.

    One that fails the test which `manyeyes models promote` makes is never used, only kept; and so is what is no news: a
    model that was here already, which may have been taken out of use by a person, and one of a run of which a later one
    is here.

    Args:
        template: the model with its weights.
        data: the site's pictures; tested on are those of "val", or else "test".
        registry: of the site's server; the model is added to it whether it is used or not.
        run: that it was made in.
        round: of that run.
        promote: "no_worse", "always" or "never". Without pictures with objects to test on, "no_worse" uses the first
            model alone.
        signed: when the coordinator signed it, in seconds since 1970.
        margin: mAP50-95, from 0 to 1, by which it may be worse and still be "no_worse".
        keep: models of federations that are kept in the registry; see `Registry.spare`. None: all.

    Returns:
        Whether it is the one in use now.

    Raises:
        ManyeyesError: it cannot be exported, finds something else than PyTorch, or the registry cannot be written.
    """
    known = set(data.annotates) & set(template.names)
    pictures = data if known and (data.split("val") or data.split("test")) else None
    with tempfile.TemporaryDirectory() as folder:
        exported = export_model(template, Path(folder) / "model.onnx", data=pictures)
        made = Made(run, round, parents=_before(registry, run, round), signed=signed)
        if exported.metrics:
            made = replace(made, **_figures(exported.metrics[1], data))
        old = _is_no_news(registry, template.weights.value_hash, run, signed)
        entry = registry.add(exported.path, label=f"{run}, round {round}", made=made)
    used = registry.wanted == entry.hash
    if not used and promote != "never" and old:
        _log.warning(
            "%s is kept and not used: %s. `manyeyes models promote %s` uses it.", entry.label, old, entry.hash[:12]
        )
    elif not used and promote != "never" and _passes_test(entry, registry):
        if promote == "always":
            used = registry.use(entry.hash)
        else:
            used = _use_if_no_worse(entry, exported.metrics, data, registry, margin)
    if keep is not None:
        _forget(registry, keep)
    return used


def _figures(metrics: Metrics, data: Dataset) -> dict[str, Any]:
    """What is kept of a test."""
    split = "val" if data.split("val") else "test"
    return {"map50": metrics.map50, "map50_95": metrics.map50_95, "split": split}


def _is_no_news(registry: Registry, weights: str, run: str, signed: float | None) -> str | None:
    """Why a model with these weights is not used by itself, however good it is; None if nothing stands against it."""
    for entry in registry.entries():
        if entry.info.weights == weights:
            return f"it was here already, as {entry.label}"
        if signed is not None and entry.run == run and (entry.signed or 0.0) > signed:
            return f"{entry.label} was signed later, and is here"
    return None


def _forget(registry: Registry, keep: int) -> None:
    try:
        for spare in registry.spare(keep=keep, run_only=True):
            registry.forget(spare.hash)
            _log.info("%s is deleted: %d models of runs are kept", spare.label, keep)
    except ManyeyesError as error:  # somebody has just put it to use, or the disk: it is tried again next time
        _log.warning("no more models are deleted: %s", error)


def _passes_test(entry: Entry, registry: Registry) -> bool:
    try:
        tested(registry, entry.hash)
    except WeightsError as error:
        _log.warning("%s is kept and not used: %s", entry.label, error)
        return False
    return True


def _use_if_no_worse(
    entry: Entry, metrics: tuple[Metrics, Metrics] | None, data: Dataset, registry: Registry, margin: float
) -> bool:
    while True:
        compared = registry.wanted or ""
        if not _is_no_worse(entry, metrics[1] if metrics else None, data, registry, margin):
            return False
        if registry.use(entry.hash, instead_of=compared):
            return True
        _log.info("another model was put to use meanwhile: %s is compared with that one", entry.label)


def _is_no_worse(entry: Entry, metrics: Metrics | None, data: Dataset, registry: Registry, margin: float) -> bool:
    """Whether a model may take the place of the one in use, as far as the site's pictures tell; says why in the log."""
    try:
        registry.check_used()
        used = _sound(registry)
    except WeightsError as error:
        _log.warning("%s is kept and not used, for it is not known what is in use: %s", entry.label, error)
        return False
    if used is None:
        return True
    # On pictures without objects every model is as good as any other.
    if metrics is None or not any(metrics.num_objects.get(name) for name in data.annotates):
        _log.warning(
            "%s is kept and not used: there are no val or test pictures with objects here to compare it on. "
            "`manyeyes models promote %s` uses it, and `promote: always` uses every one.",
            entry.label,
            entry.hash[:12],
        )
        return False
    new, old = _score(metrics, data), _score(_test(used, data), data)
    no_worse = new >= old - margin
    _log.log(
        logging.INFO if no_worse else logging.WARNING,
        "%s: mAP50-95 %.3f on this site's pictures, the model in use %.3f: %s",
        entry.label,
        new,
        old,
        "used" if no_worse else "kept, not used",
    )
    return no_worse


def _before(registry: Registry, run: str, round: int) -> tuple[str, ...]:
    """The model here that a run gave last before a round."""
    earlier = [entry for entry in registry.entries() if entry.run == run and (entry.round or 0) < round]
    return (max(earlier, key=lambda entry: entry.round or 0).hash,) if earlier else ()


def _sound(registry: Registry) -> OpenVinoNetwork | None:
    """The model in use, or, where its files are damaged, the one before it; None where none was used yet.

    Raises:
        WeightsError: all that were used are damaged or gone.
    """
    wanted = registry.wanted
    if wanted is None:
        return None
    for name in registry.used:
        try:
            return OpenVinoNetwork(registry.path(name), precision="fp32", threads=1)
        except WeightsError as error:
            _log.warning("the model in use: %s", error)
    raise WeightsError("of the models that were used none is whole", key=wanted[:12], cure=PROMOTE)


def _test(network: OpenVinoNetwork, pictures: Dataset) -> Metrics | None:
    """How a model does; None where it knows nothing that the site looks for."""
    names = network.info.names
    try:
        known = known_part(pictures, names)
    except DataError as error:
        _log.warning("the model in use: %s", error)
        return None
    samples = list(known.split("val") or known.split("test"))
    annotated = frozenset(names.index(name) for name in known.annotates)
    return measure(network, samples, annotated, network.info.imgsz)


def _score(metrics: Metrics | None, data: Dataset) -> float:
    """Mean AP50-95 over the classes that the site looks for; one that a model does not know counts as not found."""
    if metrics is None:
        return 0.0
    return sum(metrics.ap.get(name, 0.0) for name in data.annotates) / len(data.annotates)
