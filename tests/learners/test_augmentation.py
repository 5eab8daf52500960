"""Views are those of Ultralytics' Mosaic, RandomPerspective, RandomHSV and RandomFlip for the same draws."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ultralytics.data.augment import Compose, Format, Mosaic, RandomFlip, RandomHSV, RandomPerspective
from ultralytics.utils.instance import Instances

from manyeyes.config import AugmentSection
from manyeyes.learners.augmentation import Augmentation, Layout, View

SIDE = 96
SHAPES = [(96, 64), (72, 96), (96, 96), (50, 96), (96, 90)]
STILL = AugmentSection(mosaic=0, hsv_h=0, hsv_s=0, hsv_v=0, fliplr=0, scale=0, translate=0)


def smooth_pictures() -> list[NDArray[np.uint8]]:
    """Colours that change slowly, so that interpolation hardly matters inside of a picture."""
    rng = np.random.default_rng(3)
    small = [rng.integers(0, 256, (4, 4, 3), dtype=np.uint8) for _ in SHAPES]
    return [
        np.asarray(cv2.resize(s, (w, h), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
        for s, (h, w) in zip(small, SHAPES, strict=True)
    ]


PICTURES = smooth_pictures()
CORNERS = np.random.default_rng(4).uniform(0, 1, (len(SHAPES), 6, 2, 2)).astype(np.float32)
BOXES = [np.concatenate([c.min(axis=1), c.max(axis=1)], axis=1) for c in CORNERS]
CLASS_IDS = [np.arange(6) + 10 * index for index in range(len(SHAPES))]


def augmentation(section: AugmentSection) -> Augmentation:
    return Augmentation(PICTURES, BOXES, CLASS_IDS, [frozenset({0})] * len(SHAPES), SIDE, section)


class Dataset:
    """What Ultralytics' mosaic asks of a dataset."""

    cache = "ram"

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        x1, y1, x2, y2 = BOXES[index].T
        xywh = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)
        return {
            "im_file": "",
            "img": PICTURES[index].copy(),
            "ori_shape": SHAPES[index],
            "resized_shape": SHAPES[index],
            "cls": CLASS_IDS[index].astype(np.float32)[:, None],
            "instances": Instances(xywh, np.zeros((0, 1000, 2), np.float32), bbox_format="xywh", normalized=True),
        }


class Partners(Mosaic):  # type: ignore[misc]
    """A mosaic with given partners."""

    def __init__(self, partners: list[int], **settings: Any) -> None:
        super().__init__(Dataset(), **settings)
        self._partners = partners

    def get_indexes(self) -> list[int]:
        return self._partners


def of_ultralytics(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> View:
    """What its transforms make of a layout: the generators hand them the layout's values, in the order they ask."""
    mosaic = len(layout.tiles) == 4
    meet_x, meet_y = layout.tiles[3].corner if mosaic else (0, 0)
    centre = [(layout.shift[a] + layout.scale * layout.canvas[a] / 2) / SIDE for a in (0, 1)]
    asked = [0.0, meet_y, meet_x] if mosaic else [1.0]
    queue: Iterator[float] = iter([*asked, 0, 0, 0, layout.scale, 0, 0, *centre, 1.0])
    with monkeypatch.context() as patch:
        patch.setattr(random, "uniform", lambda low, high: next(queue))
        flips = iter(layout.flip)
        patch.setattr(random, "random", lambda: 0.0 if next(flips) else 1.0)
        patch.setattr(np.random, "uniform", lambda low, high, size: np.array(layout.gains))
        transforms = Compose(
            [
                Partners([tile.index for tile in layout.tiles[1:]], imgsz=SIDE, p=0.5),
                RandomPerspective(size=(SIDE, SIDE)),
                RandomHSV(*[float(any(layout.gains))] * 3),
                RandomFlip(direction="horizontal", p=0.5),
                RandomFlip(direction="vertical", p=0.5),
                Format(bbox_format="xywh", normalize=True, batch_idx=False, bgr=0.0),
            ]
        )
        made = transforms(Dataset().get_image_and_label(layout.tiles[0].index))
    return View(made["img"], torch.cat((made["cls"].view(-1, 1), made["bboxes"].view(-1, 4)), dim=1))


def inside(layout: Layout) -> NDArray[np.bool_]:
    """Pixels of the view at least two pixels away from every border of a picture."""
    border = np.zeros((SIDE, SIDE), dtype=bool)
    at = np.arange(SIDE)
    for tile in layout.tiles:
        x1, y1, x2, y2 = (layout.scale * edge + layout.shift[axis % 2] for axis, edge in enumerate(tile.window))
        margin = 2 + layout.scale
        for edge in (x1, x2):
            border[:, np.abs(at - edge) < margin] = True
        for edge in (y1, y2):
            border[np.abs(at - edge) < margin] = True
    return ~border[:: -1 if layout.flip[1] else 1, :: -1 if layout.flip[0] else 1]


@pytest.mark.parametrize("mosaic", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_a_view_is_that_of_ultralytics(mosaic: bool, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = augmentation(AugmentSection(hsv_h=0, hsv_s=0, hsv_v=0, flipud=0.5))
    layout = ours.lay_out(seed % len(SHAPES), mosaic, np.random.default_rng(seed))
    view, theirs = ours.render(layout), of_ultralytics(layout, monkeypatch)
    torch.testing.assert_close(view.objects, theirs.objects, atol=1e-4, rtol=0)
    apart = (view.image.int() - theirs.image.int()).abs().amax(dim=0).numpy()
    assert apart[inside(layout)].max() <= 2


@pytest.mark.parametrize("seed", range(6))
def test_colours_change_as_those_of_ultralytics(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hue is coarse where a colour is nearly grey or dark: single pixels may differ, on the whole they agree."""
    ours = augmentation(AugmentSection())
    layout = ours.lay_out(seed % len(SHAPES), True, np.random.default_rng(seed))
    apart = (ours.render(layout).image.int() - of_ultralytics(layout, monkeypatch).image.int()).abs().float()
    assert float(apart.amax(dim=0).numpy()[inside(layout)].mean()) < 1.5


def test_draws_lie_in_the_ranges_asked_for() -> None:
    section = AugmentSection(scale=0.3, translate=0.2, fliplr=0.25, flipud=0.4, hsv_h=0.1, hsv_s=0.5, hsv_v=0.3)
    ours = augmentation(section)
    layouts = [ours.lay_out(1, True, np.random.default_rng(seed)) for seed in range(2000)]
    meets = np.array([layout.tiles[3].corner for layout in layouts]) / SIDE
    scales = np.array([layout.scale for layout in layouts])
    centres = np.array([np.array(s.shift) + s.scale * SIDE for s in layouts]) / SIDE
    gains = np.array([layout.gains for layout in layouts])
    for values, low, high in (
        (meets, 0.5, 1.5),
        (scales, 0.7, 1.3),
        (centres, 0.3, 0.7),
        (gains / (0.1, 0.5, 0.3), -1, 1),
    ):
        assert low - 0.011 <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
    assert np.mean([layout.flip for layout in layouts], axis=0) == pytest.approx([0.25, 0.4], abs=0.04)
    partners = np.bincount([tile.index for layout in layouts for tile in layout.tiles[1:]], minlength=len(SHAPES))
    assert partners / partners.sum() == pytest.approx(1 / len(SHAPES), abs=0.03)
    assert {layout.tiles[0].index for layout in layouts} == {1}


@pytest.mark.parametrize(("probability", "mosaic", "expected"), [(1, True, 1.0), (0.3, True, 0.3), (1, False, 0.0)])
def test_a_mosaic_is_as_frequent_as_asked(probability: float, mosaic: bool, expected: float) -> None:
    ours = augmentation(AugmentSection(mosaic=probability))
    found = [len(ours.lay_out(0, mosaic, np.random.default_rng(seed)).tiles) == 4 for seed in range(800)]
    assert np.mean(found) == pytest.approx(expected, abs=0.06)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(SHAPES) - 1), st.booleans(), st.integers(0, 2**32 - 1))
def test_objects_of_a_view_lie_in_it_and_are_worth_keeping(index: int, mosaic: bool, seed: int) -> None:
    view = augmentation(AugmentSection(scale=0.9, translate=0.5)).draw(index, mosaic=mosaic, seed=seed)
    xy, wh = view.objects[:, 1:3], view.objects[:, 3:]
    assert ((xy - wh / 2 >= -1e-6) & (xy + wh / 2 <= 1 + 1e-6)).all()
    assert (wh * SIDE > 1.999).all()
    assert set(view.objects[:, 0].tolist()) <= {float(i) for ids in CLASS_IDS for i in ids}


def test_a_view_depends_on_its_seed_alone() -> None:
    ours = augmentation(AugmentSection())
    first = ours.draw(1, mosaic=True, seed=5)
    ours.draw(3, mosaic=False, seed=8)
    random.seed(1)
    again = ours.draw(1, mosaic=True, seed=5)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.objects, again.objects)
    assert not torch.equal(first.image, ours.draw(1, mosaic=True, seed=6).image)


def test_drawing_leaves_pictures_boxes_and_other_generators_as_they_were() -> None:
    pictures, boxes = [p.copy() for p in PICTURES], [b.copy() for b in BOXES]
    random.seed(2)
    np.random.seed(2)
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    for index in range(len(SHAPES)):
        augmentation(AugmentSection()).draw(index, mosaic=index % 2 == 0, seed=index)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[union-attr]
    for now, then in zip([*PICTURES, *BOXES], [*pictures, *boxes], strict=True):
        np.testing.assert_array_equal(now, then)


def test_without_augmentation_the_picture_is_letterboxed_with_its_boxes() -> None:
    view = augmentation(STILL).draw(1, mosaic=True, seed=0)
    picture = torch.from_numpy(PICTURES[1][:, :, ::-1].copy()).permute(2, 0, 1)
    assert torch.equal(view.image[:, 12:84], picture)
    assert (view.image[:, :12] == 114).all()
    assert (view.image[:, 84:] == 114).all()
    x1, y1, x2, y2 = BOXES[1].T
    large = ((x2 - x1) * 96 > 2) & ((y2 - y1) * 72 > 2)
    expected = np.stack([(x1 + x2) / 2, (12 + (y1 + y2) / 2 * 72) / 96, x2 - x1, (y2 - y1) * 0.75], axis=1)[large]
    np.testing.assert_allclose(view.objects[:, 1:].numpy(), expected, atol=1e-5)
