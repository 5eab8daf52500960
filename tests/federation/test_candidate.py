"""A model that came must earn its place: exported, tested on the site's own pictures, compared with what is used."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from manyeyes.datasets import Dataset, load_dataset
from manyeyes.errors import UpdateRefusedError
from manyeyes.federation.candidate import take_candidate
from manyeyes.federation.form import ModelForm
from manyeyes.federation.keys import AUTHORITY, make_authority
from manyeyes.federation.local_server import LocalServer, Promote
from manyeyes.federation.messages import PUBLISH, PublishPlan, Signature, publish_request, read_published
from manyeyes.federation.signature import Signer
from manyeyes.federation.site import Site
from manyeyes.federation.transport import Request
from manyeyes.learners.learner import Template
from manyeyes.registry import MODELS, Registry
from manyeyes.runtime.promotion import roll_back
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
    assert later.split == "val"
    assert later.map50_95 is not None
    assert later.map50_95 <= later.map50
    assert take_candidate(worse_of(worse), site, registry, run="first", round=5, promote="always")
    assert registry.used[1] == first


def test_a_site_that_wants_none_by_itself_only_keeps_it(base: Template, site: Dataset, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    assert not take_candidate(base, site, registry, run="x", round=1, promote="never")
    assert registry.used == []
    assert len(registry.entries()) == 1


@pytest.mark.parametrize("file", ["model.onnx", "about.json"])
def test_nothing_is_put_in_place_of_a_damaged_model_with_which_it_cannot_be_compared(
    base: Template, worse: Template, site: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    """Else whoever can spoil one file could have any model used."""
    registry = Registry(tmp_path)
    take_candidate(base, site, registry, run="x", round=1, promote="always")
    before = registry.wanted
    next(tmp_path.glob(f"*/{file}")).write_bytes(b"cut")
    assert not take_candidate(worse, site, registry, run="y", round=2, promote="no_worse")
    assert registry.wanted == before
    assert "of the models that were used none is whole. Say which model is to be used" in caplog.text


def test_nothing_is_put_in_place_of_a_model_that_is_not_here(
    base: Template, worse: Template, site: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(tmp_path)
    take_candidate(base, site, registry, run="x", round=1, promote="always")
    shutil.rmtree(tmp_path / registry.used[0])
    assert not take_candidate(worse, site, registry, run="y", round=2, promote="no_worse")
    assert registry.used == []
    assert "names a model as the one in use that is not here" in caplog.text


def test_on_pictures_without_objects_no_model_earns_its_place(
    base: Template, worse: Template, site: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = tuple(replace(s, xyxy=s.xyxy[:0], class_id=s.class_id[:0]) for s in site.split("val"))
    backgrounds = replace(site, splits={**site.splits, "val": empty})
    for number, data in enumerate((backgrounds, replace(site, annotates=frozenset()))):
        registry = Registry(tmp_path / str(number))
        assert take_candidate(base, data, registry, run="x", round=1, promote="no_worse")
        assert not take_candidate(worse, data, registry, run="x", round=2, promote="no_worse")
        assert registry.entry(registry.used[0]).round == 1
    assert "no val or test pictures with objects here to compare it on" in caplog.text


def test_a_model_that_computes_no_boxes_is_kept_and_never_used(
    base: Template, site: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its weights are finite, what they give is not."""
    blind = replace(site, splits={"train": site.split("train")})
    huge = {n: np.full_like(a, 3e38) if n.endswith("conv.weight") else a for n, a in base.weights.items()}
    overflowing = replace(base, weights=Weights(huge))
    choices: tuple[Promote, ...] = ("no_worse", "always")
    for promote in choices:
        registry = Registry(tmp_path / promote)
        assert not take_candidate(overflowing, blind, registry, run="x", round=1, promote=promote)
        assert (len(registry.entries()), registry.used) == (1, [])
    assert "is kept and not used: " in caplog.text
    assert "fails its test" in caplog.text


def test_a_model_that_was_put_to_use_meanwhile_is_what_must_be_reached(
    base: Template, worse: Template, site: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path)
    take_candidate(worse_of(worse), site, registry, run="x", round=1, promote="always")
    take_candidate(base, site, registry, run="x", round=2, promote="never")
    good = next(entry.hash for entry in registry.entries() if entry.round == 2)
    use, asked = Registry.use, []

    def slowly(self: Registry, name: str, *, instead_of: str | None = None) -> bool:
        if not asked:
            asked.append(name)
            use(self, good)
        return use(self, name, instead_of=instead_of)

    monkeypatch.setattr(Registry, "use", slowly)
    assert not take_candidate(worse, site, registry, run="x", round=3, promote="no_worse")
    assert asked
    assert registry.used[0] == good


Forged = Callable[[Signer, Signer, ModelForm, Weights], tuple[ModelForm, int, Weights, Signature]]

# What somebody between coordinator and site could try → how it is refused.
FORGED: dict[str, tuple[Forged, str]] = {
    "signed by another coordinator": (
        lambda ours, theirs, form, weights: (form, 3, weights, theirs.sign(form, 3, weights)),
        "authority does not know. If the coordinator has a new authority, ask its operator for ca.crt",
    ),
    "our certificate with another's signature": (
        lambda ours, theirs, form, weights: (
            form,
            3,
            weights,
            theirs.sign(form, 3, weights).model_copy(update={"certificate": ours.sign(form, 3, weights).certificate}),
        ),
        "not what was signed",
    ),
    "signed for another run": (
        lambda ours, theirs, form, weights: (
            form,
            3,
            weights,
            ours.sign(form.model_copy(update={"run": "other"}), 3, weights),
        ),
        "not what was signed",
    ),
    "signed for another round": (
        lambda ours, theirs, form, weights: (form, 4, weights, ours.sign(form, 3, weights)),
        "not what was signed",
    ),
    "signed for other weights": (
        lambda ours, theirs, form, weights: (form, 3, weights, ours.sign(form, 3, _one_bit_off(weights))),
        "not what was signed: it was changed on its way. Ask for it to be published again.",
    ),
    "signed for another time": (
        lambda ours, theirs, form, weights: (
            form,
            3,
            weights,
            ours.sign(form, 3, weights).model_copy(update={"signed": 1.0}),
        ),
        "not what was signed",
    ),
    "no signature": (
        lambda ours, theirs, form, weights: (
            form,
            3,
            weights,
            ours.sign(form, 3, weights).model_copy(update={"value": ""}),
        ),
        "not what was signed",
    ),
    "no certificate": (
        lambda ours, theirs, form, weights: (
            form,
            3,
            weights,
            ours.sign(form, 3, weights).model_copy(update={"certificate": ""}),
        ),
        "authority does not know",
    ),
}


def _one_bit_off(weights: Weights) -> Weights:
    name = next(name for name, array in weights.items() if array.dtype == np.float32)
    return weights.replace({name: np.nextafter(weights[name], np.float32(9))})


@pytest.mark.parametrize("case", FORGED)
def test_a_model_nobody_stands_for_is_refused_and_changes_nothing(
    base: Template, site: Dataset, onnx_file: Path, tmp_path: Path, case: str
) -> None:
    for name in ("ours", "theirs"):
        make_authority(tmp_path / name, ["localhost"])
    registry = Registry(tmp_path / "serve" / MODELS)
    registry.use(registry.add(onnx_file).hash)
    before = {path: path.read_bytes() for path in sorted(tmp_path.glob("serve/**/*")) if path.is_file()}
    server = LocalServer(tmp_path / "serve", "always", tmp_path / "ours" / AUTHORITY)
    forge, said = FORGED[case]
    ours, theirs = Signer(tmp_path / "ours"), Signer(tmp_path / "theirs")
    form, round, weights, signature = forge(ours, theirs, ModelForm.of(base, "first"), base.weights)
    plan = PublishPlan(round=round, signature=signature)
    request = Request("1", "A", PUBLISH, publish_request(weights, plan, base.form_hash))
    with pytest.raises(UpdateRefusedError, match=re.escape(said)):
        Site("A", site, tmp_path / "state", server=server)(request, form)
    assert {path: path.read_bytes() for path in sorted(tmp_path.glob("serve/**/*")) if path.is_file()} == before


def test_how_much_worse_a_model_may_be_is_said_by_the_site(
    base: Template, worse: Template, site: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(tmp_path)
    take_candidate(base, site, registry, run="x", round=1, promote="no_worse")
    with caplog.at_level(logging.INFO):
        assert not take_candidate(worse, site, registry, run="x", round=2, promote="no_worse")
    told = re.search(r"mAP50-95 (0\.\d+) on this site's pictures, the model in use (0\.\d+): kept, not", caplog.text)
    assert told
    difference = float(told[2]) - float(told[1])
    # Others that are as bad: what was here already is not used by itself.
    for number, (margin, used) in enumerate(((difference - 0.005, False), (difference + 0.005, True))):
        other = _moved(worse, 1.0001 + number / 1000)
        assert take_candidate(other, site, registry, run="x", round=3, promote="no_worse", margin=margin) is used


def test_without_pictures_to_compare_on_only_the_first_is_used_by_itself(
    base: Template, worse: Template, site: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blind = replace(site, splits={"train": site.split("train")})
    registry = Registry(tmp_path)
    assert take_candidate(base, blind, registry, run="x", round=1, promote="no_worse")
    assert not take_candidate(worse, blind, registry, run="x", round=2, promote="no_worse")
    assert registry.entry(registry.used[0]).round == 1
    assert f"`manyeyes models promote {registry.entries()[0].hash[:12]}` uses it" in caplog.text
    assert take_candidate(worse_of(worse), blind, registry, run="x", round=3, promote="always")


@pytest.mark.parametrize("promote", ["no_worse", "always"])
def test_a_model_that_a_person_took_out_of_use_is_not_used_again_by_itself(
    base: Template, site: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, promote: Promote
) -> None:
    registry = Registry(tmp_path)
    take_candidate(_moved(base), site, registry, run="x", round=1, signed=100.0, promote="always")
    take_candidate(base, site, registry, run="x", round=2, signed=200.0, promote="always")
    first = registry.used[1]
    roll_back(registry)
    assert not take_candidate(base, site, registry, run="x", round=2, signed=300.0, promote=promote)
    assert registry.used == [first]
    assert "is kept and not used: it was here already, as x, round 2. `manyeyes models promote" in caplog.text


@pytest.mark.parametrize("promote", ["no_worse", "always"])
def test_an_older_model_of_a_run_that_is_handed_over_later_is_not_used_by_itself(
    base: Template, site: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, promote: Promote
) -> None:
    registry = Registry(tmp_path)
    take_candidate(base, site, registry, run="x", round=2, signed=200.0, promote="always")
    assert not take_candidate(_moved(base), site, registry, run="x", round=1, signed=100.0, promote=promote)
    assert registry.entry(registry.used[0]).signed == 200.0
    assert "is kept and not used: x, round 2 was signed later, and is here" in caplog.text
    # Of another run nothing is known that speaks against it.
    assert take_candidate(_moved(base, 1.0002), site, registry, run="y", round=1, signed=100.0, promote="always")


def test_nothing_is_put_in_place_of_what_a_damaged_list_does_not_name(
    base: Template, worse: Template, site: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(tmp_path)
    take_candidate(base, site, registry, run="x", round=1, promote="no_worse")
    (tmp_path / "use.json").write_text("[")
    assert not take_candidate(worse, site, registry, run="x", round=2, promote="no_worse")
    assert (tmp_path / "use.json").read_text() == "["
    assert len(registry.entries()) == 2
    assert "use.json: is damaged. Say which model is to be used: `manyeyes models promote HASH`." in caplog.text


def test_where_the_model_in_use_is_damaged_the_one_before_it_is_what_must_be_reached(
    base: Template, worse: Template, site: Dataset, tmp_path: Path
) -> None:
    registry = Registry(tmp_path)
    take_candidate(base, site, registry, run="x", round=1, promote="always")
    take_candidate(_moved(base), site, registry, run="x", round=2, promote="always")
    registry.path(registry.used[0]).write_bytes(b"cut")
    assert not take_candidate(worse, site, registry, run="x", round=3, promote="no_worse")


def _moved(template: Template, factor: float = 1.0001) -> Template:
    """The same model with other bits."""
    name = next(name for name in template.weights if name.startswith("model.22.cv2"))
    return replace(template, weights=template.weights.replace({name: template.weights[name] * np.float32(factor)}))


def test_of_the_models_of_runs_only_so_many_are_kept_and_a_bad_one_pushes_no_good_one_out(
    base: Template, worse: Template, site: Dataset, onnx_file: Path, tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "models")
    model = onnx.load(onnx_file)
    model.producer_name = "somebody"
    onnx.save(model, tmp_path / "own.onnx")
    own = registry.add(tmp_path / "own.onnx").hash
    take_candidate(_moved(base, 1.0002), site, registry, run="x", round=1, promote="always", keep=2)
    take_candidate(_moved(base), site, registry, run="x", round=2, promote="always", keep=2)
    first, second = registry.used[::-1]
    take_candidate(worse, site, registry, run="x", round=3, promote="no_worse", keep=2)
    take_candidate(worse_of(worse), site, registry, run="x", round=4, promote="no_worse", keep=2)
    rounds = {entry.hash: entry.round for entry in registry.entries()}
    # The file that somebody put here stays, and so do the two that are needed; of the others the newest.
    assert rounds == {own: None, first: 1, second: 2, registry.entries()[0].hash: 4}


def worse_of(template: Template) -> Template:
    """Another one that finds nothing."""
    zeros = {n: np.zeros_like(a) for n, a in template.weights.items() if n.startswith("model.22.cv2")}
    return replace(template, weights=template.weights.replace(zeros))


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


def test_a_picture_that_is_taken_out_while_a_model_is_tested_does_not_cost_the_model(
    base: Template, scenes: Path, tmp_path: Path
) -> None:
    make_authority(tmp_path / "ours", ["localhost"])
    folder = shutil.copytree(scenes / "a_office", tmp_path / "site")
    before = load_dataset(folder)
    before.split("val")[0].image.unlink()
    seen = iter([before])
    after = replace(before, splits={**before.splits, "val": before.split("val")[1:]})
    form, server = (
        ModelForm.of(base, "first"),
        LocalServer(tmp_path / "serve", "no_worse", tmp_path / "ours" / AUTHORITY),
    )
    node = Site("A", before, tmp_path / "state", server=server, refresh=lambda: next(seen, after))
    plan = PublishPlan(round=3, signature=Signer(tmp_path / "ours").sign(form, 3, base.weights))
    answer = node(Request("1", "A", PUBLISH, publish_request(base.weights, plan, base.form_hash)), form)
    assert read_published(answer, base.weights) is True
