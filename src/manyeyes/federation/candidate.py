"""A new global model at a site: it must earn its place before it is used there."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from manyeyes.datasets import Dataset
from manyeyes.datasets.classes import known_part
from manyeyes.errors import DataError, WeightsError
from manyeyes.federation.local_server import Promote
from manyeyes.learners.export import export_model
from manyeyes.learners.learner import Metrics, Template
from manyeyes.learners.parity import measure
from manyeyes.registry import Made, Registry
from manyeyes.runtime.openvino_network import OpenVinoNetwork

__all__ = ["take_candidate"]

_log = logging.getLogger(__name__)


def take_candidate(
    template: Template, data: Dataset, registry: Registry, *, run: str, round: int, promote: Promote
) -> bool:
    """Export a model that came, test it on the site's own pictures, and use it if it is no worse than what is used.

    Args:
        template: the model with its weights.
        data: the site's pictures; tested on are those of "val", or else "test".
        registry: of the site's server; the model is added to it whether it is used or not.
        run: that it was made in.
        round: of that run.
        promote: "no_worse", "always" or "never".

    Returns:
        Whether it is the one in use now.

    Raises:
        ManyeyesError: it cannot be exported, finds something else than PyTorch, or the registry cannot be written.
    """
    pictures = data if data.split("val") or data.split("test") else None
    with tempfile.TemporaryDirectory() as folder:
        exported = export_model(template, Path(folder) / "model.onnx", data=pictures)
        map50 = exported.metrics[1].map50 if exported.metrics else None
        made = Made(run, round, map50, _before(registry, run, round))
        entry = registry.add(exported.path, label=f"{run}, round {round}", made=made)
    used = registry.used[:1]
    if used == [entry.hash]:
        return True
    if promote == "never":
        return False
    if used and promote == "no_worse" and pictures and exported.metrics:
        new, old = _score(exported.metrics[1], data), _score(_of_used(registry, used[0], pictures), data)
        _log.info("%s: mAP50-95 %.3f on this site's pictures, the model in use %.3f", entry.label, new, old)
        if new < old:
            return False
    registry.use(entry.hash)
    return True


def _before(registry: Registry, run: str, round: int) -> tuple[str, ...]:
    """The model here that a run gave last before a round."""
    earlier = [entry for entry in registry.entries() if entry.run == run and (entry.round or 0) < round]
    return (max(earlier, key=lambda entry: entry.round or 0).hash,) if earlier else ()


def _of_used(registry: Registry, name: str, pictures: Dataset) -> Metrics | None:
    """How the model in use does; None where it cannot be opened any more, or finds nothing that the site looks for."""
    try:
        network = OpenVinoNetwork(registry.path(name), precision="fp32", threads=1)
        known = known_part(pictures, network.info.names)
    except (WeightsError, DataError) as error:
        _log.warning("the model in use: %s", error)
        return None
    names = network.info.names
    samples = list(known.split("val") or known.split("test"))
    annotated = frozenset(names.index(name) for name in known.annotates)
    return measure(network, samples, annotated, network.info.imgsz)


def _score(metrics: Metrics | None, data: Dataset) -> float:
    """Mean AP50-95 over the classes that the site looks for; one that a model does not know counts as not found."""
    if metrics is None or not data.annotates:
        return 0.0
    return sum(metrics.ap.get(name, 0.0) for name in data.annotates) / len(data.annotates)
