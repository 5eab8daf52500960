"""A model that came must earn its place: exported, tested on the site's own pictures, compared with what is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from manyeyes.datasets import Dataset, load_dataset
from manyeyes.errors import UpdateRefusedError
from manyeyes.federation.candidate import take_candidate
from manyeyes.federation.form import ModelForm
from manyeyes.federation.keys import AUTHORITY, make_authority
from manyeyes.federation.local_server import LocalServer
from manyeyes.federation.messages import PUBLISH, PublishPlan, publish_request, read_published
from manyeyes.federation.signature import Signer
from manyeyes.federation.site import Site
from manyeyes.federation.transport import Request
from manyeyes.learners.learner import Template
from manyeyes.registry import MODELS, Registry
from manyeyes.weights import Weights


@pytest.fixture
def site(scenes: Path) -> Dataset:
    return load_dataset(scenes / "a_office")


@pytest.fixture
def worse(base: Template) -> Template:
    """One that finds nothing: its scores are of no object."""
    spoilt = {
        name: np.zeros_like(array) if name.startswith("model.22.cv3") else array for name, array in base.weights.items()
    }
    return replace(base, weights=Weights(spoilt))


def test_the_first_is_used_and_a_worse_one_is_kept_but_not_used(
    base: Template, worse: Template, site: Dataset, tmp_path: Path
) -> None:
    registry = Registry(tmp_path)
    assert take_candidate(base, site, registry, run="first", round=2, promote="no_worse")
    first = registry.used[0]
    entry = registry.entry(first)
    assert (entry.label, entry.run, entry.round, entry.parents) == ("first, round 2", "first", 2, ())
    assert entry.map50
    assert take_candidate(base, site, registry, run="first", round=2, promote="no_worse")
    assert not take_candidate(worse, site, registry, run="first", round=4, promote="no_worse")
    assert registry.used == [first]
    later, _ = registry.entries()
    assert (later.round, later.parents) == (4, (first,))
    assert later.map50 is not None
    assert later.map50 < entry.map50
    assert take_candidate(worse, site, registry, run="first", round=4, promote="always")
    assert registry.used[1] == first


def test_a_site_that_wants_none_by_itself_only_keeps_it(base: Template, site: Dataset, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert not take_candidate(base, site, registry, run="x", round=1, promote="never")
    assert registry.used == []
    assert len(registry.entries()) == 1


def test_a_model_in_use_that_is_damaged_is_worse_than_any(
    base: Template, worse: Template, site: Dataset, tmp_path: Path
) -> None:
    registry = Registry(tmp_path)
    take_candidate(base, site, registry, run="x", round=1, promote="always")
    next(tmp_path.glob("*/model.onnx")).write_bytes(b"cut")
    assert take_candidate(worse, site, registry, run="y", round=2, promote="no_worse")


def test_a_node_takes_only_what_its_authority_stands_for(base: Template, site: Dataset, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        make_authority(tmp_path / name, ["localhost"])
    form = ModelForm.of(base, "first")
    server = LocalServer(tmp_path / "serve", "no_worse", tmp_path / "ours" / AUTHORITY)
    node = Site("A", site, tmp_path / "state", server=server)

    def asked(signer: Signer, round: int = 3) -> Request:
        plan = PublishPlan(round=round, signature=signer.sign(form, 3, base.weights))
        return Request("1", "A", PUBLISH, publish_request(base.weights, plan, base.form_hash))

    for request in (asked(Signer(tmp_path / "theirs")), asked(Signer(tmp_path / "ours"), round=4)):
        with pytest.raises(UpdateRefusedError):
            node(request, form)
    assert not (tmp_path / "serve").exists()
    answer = node(asked(Signer(tmp_path / "ours")), form)
    assert read_published(answer, base.weights) is True
    assert Registry(tmp_path / "serve" / MODELS).entries()[0].round == 3
    # One without a server keeps nothing, and says so.
    alone = Site("A", site, tmp_path / "state")
    assert read_published(alone(asked(Signer(tmp_path / "ours")), form), base.weights) is False
