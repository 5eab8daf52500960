"""Augmented views of pictures: mosaic, scale and translation, HSV and flip, as YOLO recipes have them, in one warp.

Ultralytics pastes four pictures on a canvas of twice the side, warps the canvas, and rearranges what comes out. The
views drawn here have the same distribution, but each picture is warped straight to its place in the view, mirrored on
the way, and colours come out in the order the model wants. What differs is the interpolation along the seams of a
mosaic, where Ultralytics mixes neighbouring pictures.

Sources: Bochkovskiy et al., YOLOv4, 2020 (mosaic); Ultralytics 8.4, `data/augment.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from manyeyes.config import AugmentSection
from manyeyes.learners.pictures import Picture

__all__ = ["Augmentation", "Layout", "Tile", "View"]

_GREY = 114
# A box is kept when this much of it is in view, it has more than two pixels a side, and it is no line.
_LEAST_SHARE, _LEAST_SIDE, _LARGEST_RATIO = 0.1, 2.0, 100.0


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture on the canvas.

    Attributes:
        index: number of the picture.
        corner: (x, y) of its upper left corner on the canvas, which may lie outside.
        window: x1, y1, x2, y2 of what is seen of it, on the canvas.
    """

    index: int
    corner: tuple[int, int]
    window: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """What is drawn for one view: canvas coordinates c become view coordinates scale · c + shift, then mirrored.

    Attributes:
        canvas: (width, height) that boxes are clipped to.
        tiles: four pictures, or one.
        scale: pixels of the view for one of the canvas.
        shift: (x, y) in pixels of the view.
        flip: mirrored left to right, and upside down.
        gains: of hue, saturation and value, each in [-1, 1].
    """

    canvas: tuple[int, int]
    tiles: tuple[Tile, ...]
    scale: float
    shift: tuple[float, float]
    flip: tuple[bool, bool]
    gains: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class View:
    """An augmented picture.

    Attributes:
        image: (3, imgsz, imgsz) uint8 RGB, channels last in memory.
        objects: (n, 5) float32: class id, then xywh in shares of the side.
    """

    image: Tensor
    objects: Tensor


class Augmentation:
    """Draws augmented views of pictures that are already in memory.

    Args:
        pictures: (h, w, 3) uint8 BGR, long side `imgsz`.
        boxes: (n, 4) float32 xyxy for each picture, in shares of its width and height.
        class_ids: (n,) for each picture.
        annotated: classes annotated in each picture, as sets of class ids. A mosaic is made of pictures with the same
            set: otherwise it would hold corners in which a class was looked for and corners in which it was not.
        imgsz: side of a view, in pixels.
        section: probabilities and ranges.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        boxes: Sequence[NDArray[np.float32]],
        class_ids: Sequence[NDArray[np.int64]],
        annotated: Sequence[frozenset[int]],
        imgsz: int,
        section: AugmentSection,
    ) -> None:
        self.annotated = annotated
        self._pictures, self._boxes, self._class_ids = pictures, boxes, class_ids
        self._imgsz, self._section = imgsz, section
        self._peers: dict[frozenset[int], list[int]] = {}
        for index, classes in enumerate(annotated):
            self._peers.setdefault(classes, []).append(index)

    def draw(self, index: int, *, mosaic: bool, seed: int) -> View:
        """One augmented view of a picture; the same arguments give the same view, whatever was drawn before.

        Args:
            index: number of the picture.
            mosaic: whether three more pictures may be put beside it.
            seed: of all that is drawn.
        """
        return self.render(self.lay_out(index, mosaic, np.random.default_rng(seed)))

    def lay_out(self, index: int, mosaic: bool, rng: np.random.Generator) -> Layout:
        """Draw everything that is random about a view."""
        section, side = self._section, self._imgsz
        if mosaic and rng.random() < section.mosaic:
            canvas = (2 * side, 2 * side)
            tiles = self._mosaic(index, rng)
        else:
            height, width = self._pictures[index].shape[:2]
            canvas = (width, height)
            tiles = (Tile(index, (0, 0), (0, 0, width, height)),)
        scale = rng.uniform(1 - section.scale, 1 + section.scale)
        centre_x, centre_y = rng.uniform(0.5 - section.translate, 0.5 + section.translate, 2) * side
        hue, saturation, value = rng.uniform(-1, 1, 3) * (section.hsv_h, section.hsv_s, section.hsv_v)
        return Layout(
            canvas,
            tiles,
            scale,
            (centre_x - scale * canvas[0] / 2, centre_y - scale * canvas[1] / 2),
            (bool(rng.random() < section.fliplr), bool(rng.random() < section.flipud)),
            (hue, saturation, value),
        )

    def _mosaic(self, index: int, rng: np.random.Generator) -> tuple[Tile, ...]:
        """Four pictures that meet in a point of the middle half of the canvas: upper left, upper right, lower ones."""
        side = self._imgsz
        meet_x, meet_y = (int(meet) for meet in rng.uniform(side / 2, 3 * side / 2, 2))
        peers = self._peers[self.annotated[index]]
        chosen = [index, *(peers[place] for place in rng.integers(len(peers), size=3))]
        tiles = []
        for place, picture in enumerate(chosen):
            height, width = self._pictures[picture].shape[:2]
            x = meet_x - width if place % 2 == 0 else meet_x
            y = meet_y - height if place < 2 else meet_y
            window = (max(x, 0), max(y, 0), min(x + width, 2 * side), min(y + height, 2 * side))
            tiles.append(Tile(picture, (x, y), window))
        return tuple(tiles)

    def render(self, layout: Layout) -> View:
        """The view of a layout."""
        return View(self._image(layout), self._objects(layout))

    def _image(self, layout: Layout) -> Tensor:
        side = self._imgsz
        view = np.full((side, side, 3), _GREY, dtype=np.uint8)
        for tile in layout.tiles:
            self._place(view, layout, tile)
        if any(layout.gains):
            hsv = cv2.cvtColor(view, cv2.COLOR_BGR2HSV)
            cv2.cvtColor(cv2.LUT(hsv, _hsv_table(layout.gains), dst=hsv), cv2.COLOR_HSV2RGB, dst=view)
        else:
            cv2.cvtColor(view, cv2.COLOR_BGR2RGB, dst=view)
        return torch.from_numpy(view).permute(2, 0, 1)

    def _place(self, view: Picture, layout: Layout, tile: Tile) -> None:
        """Warp what is seen of one picture into its rectangle of the view."""
        side, scale = self._imgsz, layout.scale
        corners = [scale * edge + layout.shift[axis % 2] for axis, edge in enumerate(tile.window)]
        # Pixels of the view whose centre shows this tile; centres lie at whole numbers, as OpenCV counts.
        left, top, right, bottom = (min(max(int(np.ceil(corner)), 0), side) for corner in corners)
        if left >= right or top >= bottom:
            return
        (x, y), picture = tile.corner, self._pictures[tile.index]
        seen = picture[tile.window[1] - y : tile.window[3] - y, tile.window[0] - x : tile.window[2] - x]
        warp = np.array([[scale, 0, corners[0] - left], [0, scale, corners[1] - top]])
        size = (right - left, bottom - top)
        if layout.flip[0]:
            warp[0] = -scale, 0, right - 1 - corners[0]
            left, right = side - right, side - left
        if layout.flip[1]:
            warp[1] = 0, -scale, bottom - 1 - corners[1]
            top, bottom = side - bottom, side - top
        target = view[top:bottom, left:right]
        target[:] = cv2.warpAffine(seen, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def _objects(self, layout: Layout) -> Tensor:
        """Boxes in view; Ultralytics clips them to the canvas, warps them and clips them to the view."""
        side = self._imgsz
        boxes = np.concatenate([self._on_canvas(tile) for tile in layout.tiles])
        class_ids = np.concatenate([self._class_ids[tile.index] for tile in layout.tiles])
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, layout.canvas[0])
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, layout.canvas[1])
        whole = boxes * np.float32(layout.scale)
        seen = (whole + np.array([*layout.shift, *layout.shift], dtype=np.float32)).clip(0, side)
        kept = _still_objects(whole, seen)
        x1, y1, x2, y2 = (seen[kept] / side).T
        if layout.flip[0]:
            x1, x2 = 1 - x2, 1 - x1
        if layout.flip[1]:
            y1, y2 = 1 - y2, 1 - y1
        columns = (class_ids[kept], (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))

    def _on_canvas(self, tile: Tile) -> NDArray[np.float32]:
        height, width = self._pictures[tile.index].shape[:2]
        size = np.array([width, height, width, height], dtype=np.float32)
        return self._boxes[tile.index] * size + np.array([*tile.corner, *tile.corner], dtype=np.float32)


def _still_objects(whole: NDArray[np.float32], seen: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which boxes are worth keeping, given xyxy (n, 4) in pixels before and after clipping to the view."""
    width, height = (seen[:, 2:] - seen[:, :2]).T
    area = (whole[:, 2:] - whole[:, :2]).prod(axis=1)
    large = (width > _LEAST_SIDE) & (height > _LEAST_SIDE) & (width * height > _LEAST_SHARE * area)
    return np.asarray(large & (width < _LARGEST_RATIO * height) & (height < _LARGEST_RATIO * width))


def _hsv_table(gains: tuple[float, float, float]) -> NDArray[np.uint8]:
    """(1, 256, 3): what each value of hue, saturation and value becomes."""
    values = np.arange(256, dtype=np.float64)
    table = np.empty((1, 256, 3), dtype=np.uint8)
    table[0, :, 0] = (values + gains[0] * 180) % 180
    table[0, :, 1] = (values * (gains[1] + 1)).clip(0, 255)
    table[0, :, 2] = (values * (gains[2] + 1)).clip(0, 255)
    table[0, 0, 1] = 0  # grey stays grey
    return table
