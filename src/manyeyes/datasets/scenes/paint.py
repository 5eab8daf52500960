"""Camera, light, textures and the canvas that keeps an id for every pixel.

World axes: x to the right, y away from the camera, z up, in metres; the ground is z = 0. Colours are BGR, 0 … 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.uint8]
Vec = NDArray[np.float64]
Rng = np.random.Generator

MIN_VISIBLE = 0.25
MIN_SIDE = 8.0
SUPERSAMPLE = 2
_NEAR = 0.25
_LIMIT = 7000.0
_CORNERS = np.array([(x, y, z) for z in (0.0, 1.0) for y in (-0.5, 0.5) for x in (-0.5, 0.5)])
_FACES = np.array([(0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5), (4, 5, 7, 6)])
_NORMALS = np.array([(0.0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0), (0, 0, 1)])


def colour(value: Vec | Sequence[float]) -> tuple[float, float, float]:
    """A BGR triple that OpenCV takes, limited to 0 … 255."""
    b, g, r = value.tolist() if isinstance(value, np.ndarray) else value
    return (min(max(b, 0.0), 255.0), min(max(g, 0.0), 255.0), min(max(r, 0.0), 255.0))


def turn(yaw: float) -> Vec:
    """(3, 3) rotation about the vertical axis by `yaw` radians."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([(c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0)])


def fixed(points: Vec) -> NDArray[np.int32]:
    """(n, 2) pixels as the fixed-point integers (2 fractional bits) of the fill functions."""
    return (np.minimum(np.maximum(points, -_LIMIT), _LIMIT) * 4.0).astype(np.int32)


def fill(image: NDArray[np.uint8], points: Vec, value: Sequence[float]) -> None:
    """Fill a polygon of (n, 2) pixels in place."""
    if len(points) >= 3:
        cv2.fillPoly(image, [fixed(points)], value, shift=2)


def hull(points: Vec) -> Vec:
    """(k, 2) convex hull of (n, 2) points."""
    return np.asarray(cv2.convexHull(points.astype(np.float32)), dtype=np.float64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera over the ground.

    Attributes:
        side: side of the square picture in pixels.
        focal: focal length in pixels.
        height: metres above the ground.
        pitch: radians downwards.
    """

    side: int
    focal: float
    height: float
    pitch: float

    @property
    def horizon(self) -> float:
        """The row of the horizon in pixels."""
        return self.side / 2 - self.focal * float(np.tan(self.pitch))

    @property
    def eye(self) -> Vec:
        """(3,) position in metres."""
        return np.array([0.0, 0.0, self.height])

    def project(self, points: Vec) -> tuple[Vec, Vec]:
        """(…, 3) metres to (…, 2) pixels and (…) metres of depth."""
        x, y, z = points[..., 0], points[..., 1], points[..., 2] - self.height
        c, s = math.cos(self.pitch), math.sin(self.pitch)
        depth = y * c - z * s
        k = self.focal / np.maximum(depth, _NEAR)
        pixels = np.empty((*points.shape[:-1], 2))
        pixels[..., 0] = self.side / 2 + k * x
        pixels[..., 1] = self.side / 2 - k * (y * s + z * c)
        return pixels, depth

    def polygon(self, points: Vec) -> Vec:
        """(n, 3) metres to (m, 2) pixels, cut to a wide view; m is 0 where nothing is left."""
        pixels, depth = self.project(points)
        if depth.min() > 0.5 and np.abs(pixels).max() < _LIMIT:
            return pixels
        c, s, reach = math.cos(self.pitch), math.sin(self.pitch), 3.0 * self.side / self.focal
        # A corner far outside overflows OpenCV's fixed-point coordinates, and clamping it would bend the edges.
        planes = np.array([(0.0, c, -s), (1.0, c * reach, -s * reach), (-1.0, c * reach, -s * reach)])
        below = np.array([(0.0, s + c * reach, c - s * reach)])
        for normal, least in zip(np.concatenate([planes, below]), (_NEAR, 0.0, 0.0, 0.0), strict=True):
            over = (points - self.eye) @ normal - least
            if (over >= 0).all():
                continue
            kept = []
            for a, b, da, db in zip(
                points, np.roll(points, -1, 0), over.tolist(), np.roll(over, -1).tolist(), strict=True
            ):
                if da >= 0:
                    kept.append(a)
                if (da >= 0) != (db >= 0):
                    kept.append(a + (b - a) * (da / (da - db)))
            if len(kept) < 3:
                return np.zeros((0, 2))
            points = np.array(kept)
        return self.project(points)[0]

    def ground_to_pixels(self) -> Vec:
        """(3, 3) homography from ground metres (x, y, 1) to pixels."""
        c, s, f, m = np.cos(self.pitch), np.sin(self.pitch), self.focal, self.side / 2
        rows = np.array(
            [(f, m * c, m * self.height * s), (0.0, m * c - f * s, m * self.height * s + f * self.height * c)]
        )
        return np.vstack([rows, (0.0, c, self.height * s)])


@dataclass(frozen=True, slots=True)
class Light:
    """One far light and a sky.

    Attributes:
        sun: (3,) unit vector towards the light.
        diffuse, ambient: strengths, about 1 together.
        tint: (3,) BGR factors of the direct light.
        sky: (3,) BGR colour that glossy surfaces mirror.
        shadow: darkness of cast shadows, 0 … 1.
        soft: blur of cast shadows as a part of the picture's side.
    """

    sun: Vec
    diffuse: float = 0.6
    ambient: float = 0.55
    tint: Vec = field(default_factory=lambda: np.ones(3))
    sky: Vec = field(default_factory=lambda: np.array([235.0, 215.0, 195.0]))
    shadow: float = 0.45
    soft: float = 0.006

    def on(self, normals: Vec) -> Vec:
        """(n, 3) unit normals to (n, 3) BGR factors."""
        direct = np.maximum(normals @ self.sun, 0.0)[:, None] * self.tint
        return self.ambient * (0.82 + 0.18 * normals[:, 2:3]) + self.diffuse * direct


def make_sun(azimuth: float, elevation: float) -> Vec:
    """(3,) unit vector towards a light, radians."""
    return np.array(
        [np.cos(elevation) * np.sin(azimuth), np.cos(elevation) * np.cos(azimuth), np.sin(elevation)], dtype=np.float64
    )


@lru_cache(maxsize=32)
def texture(name: str) -> Image:
    """(512, 512) tileable texture around 128; `name` is one of the kinds in the source."""
    n = 512
    rng = np.random.default_rng(sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**32)
    fx, fy = np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n))
    slope, stretch = {
        "grain": (0.25, 1),
        "plaster": (0.9, 1),
        "cloth": (1.3, 0.6),
        "asphalt": (0.55, 1),
        "cloud": (1.9, 1),
        "wood": (1.1, 14),
        "grass": (0.7, 0.5),
    }.get(name, (0.6, 1))
    radius = np.hypot(fx, fy * stretch) if stretch >= 1 else np.hypot(fx / stretch, fy)
    radius[0, 0] = 1.0
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((n, n))) / np.maximum(radius, 1 / n) ** slope).real
    noise = (noise - noise.mean()) / noise.std()
    base = 128 + noise * {
        "asphalt": 13,
        "cloud": 34,
        "wood": 15,
        "grass": 24,
        "grain": 9,
        "plaster": 3.5,
        "cloth": 15,
    }.get(name, 8)
    yy, xx = np.mgrid[0:n, 0:n]
    if name == "tiles":
        base -= 26.0 * ((xx % 64 < 2) | (yy % 64 < 2))
        base += rng.normal(0, 7, (8, 8)).repeat(64, 0).repeat(64, 1)
    if name == "paving":
        base -= 30.0 * (((xx + 32 * (yy // 32 % 2)) % 64 < 3) | (yy % 32 < 3))
        base += rng.normal(0, 9, (16, 8)).repeat(32, 0).repeat(64, 1)
    if name == "brick":
        base -= 24.0 * (((xx + 16 * (yy // 16 % 2)) % 32 < 2) | (yy % 16 < 2))
        base += rng.normal(0, 10, (32, 16)).repeat(16, 0).repeat(32, 1)
    if name == "planks":
        base += rng.normal(0, 12, (8, 2)).repeat(64, 0).repeat(256, 1) - 30.0 * (yy % 64 < 2)
    return np.asarray(np.clip(base, 20, 235), dtype=np.uint8)


@lru_cache(maxsize=8)
def leaves(kind: int) -> tuple[Image, Image]:
    """(192, 192) brightness around 128 and (192, 192) mask of one clump of leaves."""
    rng = np.random.default_rng(1000 + kind)
    n = 192
    bright = np.full((n, n), 70, np.uint8)
    mask = np.zeros((n, n), np.uint8)
    angle, radius = rng.uniform(0, 2 * np.pi, 420), np.sqrt(rng.uniform(0, 1, 420)) * rng.uniform(60, 92, 420)
    spots = np.stack([96 + radius * np.cos(angle), 96 + radius * np.sin(angle) * rng.uniform(0.8, 1.0)], 1)
    for x, y in spots[np.argsort(-spots[:, 1] + rng.normal(0, 34, 420))]:
        value = float(np.clip(150 - (y - 60) * 0.62 - (x - 96) * 0.2 + rng.normal(0, 22), 40, 235))
        axes = (int(rng.integers(5, 15)), int(rng.integers(4, 9)))
        for image, v in ((bright, value), (mask, 255.0)):
            cv2.ellipse(image, (int(x), int(y)), axes, float(rng.uniform(0, 180)) if v != 255.0 else 0.0, 0, 360, v, -1)
    mask = np.where(bright != 70, mask, 0).astype(np.uint8)
    return bright, mask


@dataclass(slots=True)
class Thing:
    """Something that stands in the scene.

    Attributes:
        distance: metres from the camera; the farthest is painted first.
        paint: draws it.
        casts: point clouds (n, 3) whose convex shadows fall on the ground.
    """

    distance: float
    paint: Callable[[Canvas], None]
    casts: list[Vec] = field(default_factory=list)


class Layer:
    """A patch for one object: colour, shade (128 = unchanged) and mask, in the canvas's coordinates."""

    def __init__(self, low: Vec, high: Vec, side: int) -> None:
        low, high = np.clip(low, -0.6 * side, 1.6 * side), np.clip(high, -0.6 * side, 1.6 * side)
        self.origin = np.floor(low) - 2.0
        width, height = (np.ceil(high) + 3.0 - self.origin).astype(int).tolist()
        self.bgr: Image = np.zeros((height, width, 3), np.uint8)
        self.shade: Image = np.full((height, width), 128, np.uint8)
        self.mask: Image = np.zeros((height, width), np.uint8)

    def poly(self, points: Vec, bgr: Vec | Sequence[float], *, solid: bool = True) -> None:
        """Fill a polygon; `solid` adds it to the mask."""
        if len(points) >= 3:
            where = [fixed(points - self.origin)]
            cv2.fillPoly(self.bgr, where, colour(bgr), shift=2)
            if solid:
                cv2.fillPoly(self.mask, where, (255,), shift=2)

    def line(self, points: Vec, bgr: Vec | Sequence[float], width: float) -> None:
        """Draw an open line of `width` pixels on the colour only."""
        cv2.polylines(self.bgr, [fixed(points - self.origin)], False, colour(bgr), max(1, round(width)), shift=2)

    def apply_shade(self, sigma: float) -> None:
        """Blur the shade by `sigma` pixels and multiply it into the colour."""
        soft = cv2.GaussianBlur(self.shade, (0, 0), sigma) if sigma > 0.4 else self.shade
        self.bgr = cv2.multiply(self.bgr, cv2.merge([soft, soft, soft]), scale=1 / 128).astype(np.uint8, copy=False)


def _move(by: Vec, scale: float) -> Vec:
    """(3, 3) from a texture's pixels to ground metres, moved so that its seams fall elsewhere in every scene."""
    return np.array([(1 / scale, 0.0, by[0]), (0.0, 1 / scale, by[1]), (0.0, 0.0, 1.0)])


class Canvas:
    """The picture while it is painted, at twice its final size.

    Attributes:
        bgr: (side, side, 3) uint8.
        ids: (side, side) uint8; 0 is no object, k is the k-th object.
        classes, areas: class and own area in pixels (occlusion and frame left out) of every object.
    """

    def __init__(self, camera: Camera, light: Light, rng: Rng) -> None:
        self.camera, self.light, self.rng, self.side = camera, light, rng, camera.side
        self.bgr: Image = np.zeros((self.side, self.side, 3), np.uint8)
        self.ids: NDArray[np.uint8] = np.zeros((self.side, self.side), np.uint8)
        self.classes: list[int] = []
        self.areas: list[int] = []

    # -- backdrop ---------------------------------------------------------------------------------------------------

    def gradient(self, top: ArrayLike, bottom: ArrayLike, first: float = 0, last: float | None = None) -> None:
        """Fill the rows `first` to `last` with a vertical gradient."""
        a, b = int(np.clip(first, 0, self.side)), int(np.clip(self.side if last is None else last, 0, self.side))
        if b > a:
            t = np.linspace(0, 1, b - a)[:, None, None]
            ramp = np.clip(np.asarray(top) * (1 - t) + np.asarray(bottom) * t, 0, 255).astype(np.uint8)
            self.bgr[a:b] = cv2.resize(ramp, (self.side, b - a), interpolation=cv2.INTER_NEAREST)

    def ground(self, points: ArrayLike, bgr: Vec) -> None:
        """Fill a polygon of (n, 2) metres on the ground."""
        flat = np.asarray(points, dtype=np.float64)
        fill(self.bgr, self.camera.polygon(np.column_stack([flat, np.zeros(len(flat))])), colour(bgr))

    def grounds(self, strips: Sequence[Vec], bgr: Sequence[float]) -> None:
        """Fill polygons of (4, 2) metres on the ground that do not overlap, in one colour."""
        flat = np.zeros((len(strips), 4, 3))
        flat[..., :2] = np.stack(strips)
        pixels, depth = self.camera.project(flat)
        plain = (depth.min(1) > 1.0) & (np.abs(pixels).max((1, 2)) < _LIMIT)
        cv2.fillPoly(self.bgr, list(fixed(pixels[plain])), bgr, shift=2)
        for points in flat[~plain]:
            fill(self.bgr, self.camera.polygon(points), bgr)

    def wall(self, points: ArrayLike, top: ArrayLike, bottom: ArrayLike | None = None, kind: str | None = None) -> None:
        """Fill a polygon of (n, 3) metres with a vertical gradient and a texture; it hides what lies behind."""
        pixels = self.camera.polygon(np.asarray(points, dtype=np.float64))
        if len(pixels):
            self.face(pixels, top, top if bottom is None else bottom, kind)

    def face(self, pixels: Vec, top: ArrayLike, bottom: ArrayLike, kind: str | None = None) -> None:
        """Fill a polygon of (n, 2) pixels with a vertical gradient and a texture; it hides what lies behind."""
        points = fixed(pixels)
        left, above, wide, tall = cv2.boundingRect(points)
        x, y = max(left // 4, 0), max(above // 4, 0)
        w, h = min((left + wide) // 4 + 2, self.side) - x, min((above + tall) // 4 + 2, self.side) - y
        if w <= 0 or h <= 0:
            return
        cv2.fillPoly(self.ids, [points], (0,), shift=2)
        top, bottom = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
        if w * h < 1200 or min(w, h) < 12 or (kind is None and abs(float(top[1] - bottom[1])) < 3):
            cv2.fillPoly(self.bgr, [points], colour((top + bottom) / 2), shift=2)
            return
        mask = np.zeros((h, w), np.uint8)
        cv2.fillPoly(mask, [points - np.array((4 * x, 4 * y), np.int32)], (255,), shift=2)
        ends = np.clip(np.stack([top, bottom]), 0, 255).astype(np.uint8)[:, None]
        patch = cv2.resize(
            cv2.resize(ends, (1, h), interpolation=cv2.INTER_LINEAR), (w, h), interpolation=cv2.INTER_NEAREST
        )
        if kind is not None:
            patch = cv2.multiply(patch, grain3(kind, (h, w), x * 3 + y), scale=1 / 128)
        cv2.copyTo(patch, mask, self.bgr[y : y + h, x : x + w])

    def ground_texture(self, kind: str, scale: float, strength: float = 1.0) -> None:
        """Multiply the ground by a texture; `scale` is its pixels per metre."""
        half = self.side // 2
        first = int(np.clip(self.camera.horizon / 2 + 2, 0, half))
        if first >= half:
            return
        shrink = np.array([(0.5, 0.0, 0.0), (0.0, 0.5, -first), (0.0, 0.0, 1.0)])
        matrix = shrink @ self.camera.ground_to_pixels() @ _move(self.rng.uniform(-9, 9, 2), scale)
        warped = cv2.warpPerspective(
            texture(kind), matrix, (half, half - first), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
        )
        fade = np.clip((np.arange(half - first, dtype=np.float32) + 4) / (0.22 * half), 0, 1)[:, None] * strength
        warped = ((np.asarray(warped, dtype=np.float32) - 128) * fade + 128).astype(np.uint8)
        large = cv2.resize(warped, (self.side, self.side - 2 * first), interpolation=cv2.INTER_LINEAR)
        self.bgr[2 * first :] = cv2.multiply(self.bgr[2 * first :], cv2.merge([large, large, large]), scale=1 / 128)

    def shadows(self, things: Sequence[Thing]) -> None:
        """Darken the ground where things cast shadows."""
        quarter = self.side // 4
        field_ = np.full((quarter, quarter), 255, np.uint8)
        sun, value = self.light.sun, (255 * (1 - self.light.shadow),)
        slope = sun[:2] / max(sun[2], 0.2)
        clouds = [c for thing in things for c in thing.casts]
        if clouds:
            flat = np.concatenate(clouds)
            flat[:, :2] -= flat[:, 2:] * slope
            flat[:, 2] = 0.0
            pixels, depth = self.camera.project(flat)
            points = np.clip(pixels, -_LIMIT, _LIMIT).astype(np.int32)
            cuts = np.cumsum([0] + [len(c) for c in clouds])
            least = np.minimum.reduceat(depth, cuts[:-1])
            for a, b, near in zip(cuts[:-1].tolist(), cuts[1:].tolist(), least.tolist(), strict=True):
                if near > _NEAR:
                    cv2.fillConvexPoly(field_, cv2.convexHull(points[a:b]), value, shift=2)
        field_ = cv2.GaussianBlur(field_, (0, 0), max(0.6, self.light.soft * quarter)).astype(np.uint8, copy=False)
        large = cv2.resize(field_, (self.side, self.side), interpolation=cv2.INTER_LINEAR)
        cool = cv2.addWeighted(large, 0.86, large, 0.0, 255 * 0.14)
        self.bgr = cv2.multiply(self.bgr, cv2.merge([cool, large, large]), scale=1 / 255).astype(np.uint8, copy=False)

    # -- things -----------------------------------------------------------------------------------------------------

    def box(
        self,
        at: ArrayLike,
        size: ArrayLike,
        yaw: float,
        bgr: ArrayLike,
        kind: str | None = None,
        fade: float = 0.82,
    ) -> list[Vec]:
        """Paint a box standing at `at` (its centre below) and return the (4, 2) pixels of its five faces.

        A face that looks away gives an empty array. Faces come as front (−y), back, left, right, top.
        """
        spin = turn(yaw)
        corners = (_CORNERS * np.asarray(size)) @ spin.T + np.asarray(at)
        pixels, depth = self.camera.project(corners)
        normals = _NORMALS @ spin.T
        if depth.min() < _NEAR or (pixels.max(0) < 0).any() or (pixels.min(0) > self.side).any():
            return [np.zeros((0, 2))] * 5
        tint = self.light.on(normals)
        base, size_ = np.asarray(bgr, dtype=np.float64), float(np.ptp(pixels, axis=0).max())
        seen: list[Vec] = []
        toward = ((corners[_FACES[:, 0]] - self.camera.eye) * normals).sum(1) < 0
        for i, face in enumerate(_FACES):
            if not toward[i]:
                seen.append(np.zeros((0, 2)))
                continue
            top, quad = base * tint[i], pixels[face]
            if size_ < 24:
                points = [fixed(quad)]
                cv2.fillPoly(self.bgr, points, colour(top * 0.92), shift=2)
                cv2.fillPoly(self.ids, points, (0,), shift=2)
            else:
                self.face(quad, top, top * (1.0 if i == 4 else fade), kind)
            seen.append(quad)
        return seen

    def clump(self, at: ArrayLike, size: float, bgr: ArrayLike) -> None:
        """Paint leaves of `size` metres across around the point `at`."""
        pixels, depth = self.camera.project(np.asarray(at, dtype=np.float64))
        side = int(self.camera.focal / max(float(depth), 0.5) * size)
        if float(depth) < 0.5 or not 3 <= side <= self.side:
            return
        bright, mask = leaves(int(self.rng.integers(8)))
        if self.rng.random() < 0.5:
            mask, bright = mask[:, ::-1], bright[:, ::-1]
        x, y = (int(pixels[0]) - side // 2, int(pixels[1]) - side // 2)
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, self.side), min(y + side, self.side)
        if x1 <= x0 or y1 <= y0:
            return
        method = cv2.INTER_AREA if side < 192 else cv2.INTER_LINEAR
        cut = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
        small = cv2.resize(bright, (side, side), interpolation=method)[cut]
        edge = (cv2.resize(mask, (side, side), interpolation=method)[cut] > 120).astype(np.uint8) * 255
        flat = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
        flat[:] = np.clip(np.asarray(bgr, dtype=np.float64), 0, 255).astype(np.uint8)
        patch = cv2.multiply(flat, cv2.merge([small, small, small]), scale=1 / 128)
        cv2.copyTo(patch, edge, self.bgr[y0:y1, x0:x1])
        self.ids[y0:y1, x0:x1][edge > 0] = 0

    def stamp(self, layer: Layer, class_id: int) -> None:
        """Paint an object's layer and give its pixels a new id."""
        area = int(cv2.countNonZero(layer.mask))
        x, y = layer.origin.astype(int).tolist()
        h, w = layer.mask.shape
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, self.side), min(y + h, self.side)
        if not area or x1 <= x0 or y1 <= y0 or len(self.classes) >= 254:
            return
        self.classes.append(class_id)
        self.areas.append(area)
        cut = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
        mask = np.ascontiguousarray(layer.mask[cut])
        cv2.copyTo(np.ascontiguousarray(layer.bgr[cut]), mask, self.bgr[y0:y1, x0:x1])
        self.ids[y0:y1, x0:x1][mask > 0] = len(self.classes)

    def boxes(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(n, 4) float32 tight xyxy boxes of what is visible, in final pixels, and (n,) int64 classes.

        Objects with less than a quarter of their own area visible, or a side under 8 pixels, are left out.
        """
        kept, classes = [], []
        for i, (class_id, area) in enumerate(zip(self.classes, self.areas, strict=True)):
            mask = (self.ids == i + 1).view(np.uint8)
            visible = cv2.countNonZero(mask)
            if visible < MIN_VISIBLE * area:
                continue
            x, y, w, h = cv2.boundingRect(mask)
            if min(w, h) >= MIN_SIDE * SUPERSAMPLE:
                kept.append((x, y, x + w, y + h))
                classes.append(class_id)
        xyxy = np.array(kept, np.float32).reshape(-1, 4) / np.float32(SUPERSAMPLE)
        return xyxy, np.array(classes, np.int64)


def grain3(kind: str, size: tuple[int, ...], shift: int) -> Image:
    """(h, w, 3) crop of a texture, tiled where it is too small."""
    plain, (height, width) = texture(kind), size
    n = plain.shape[0]
    a, b = shift % 97, shift % 131
    if a + height > n or b + width > n:
        plain = np.tile(plain, (-(-(a + height) // n), -(-(b + width) // n)))
    cut = np.ascontiguousarray(plain[a : a + height, b : b + width])
    return np.asarray(cv2.merge([cut, cut, cut]), dtype=np.uint8)
