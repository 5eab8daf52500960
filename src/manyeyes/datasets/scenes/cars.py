"""Cars as lofted meshes: any view from one description, with glass, wheels, lights and plates."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from manyeyes.datasets.scenes.paint import Camera, Canvas, Layer, Light, Rng, Thing, Vec, fixed, hull, turn

CAR = 1
# (part of the length from the nose, roof or bonnet height, belt height, width) per cross-section; heights are parts
# of the car's height. The word says what the strip behind the cross-section is made of.
_PROFILES: dict[str, tuple[tuple[float, float, float, float, str], ...]] = {
    "sedan": (
        (0.00, 0.42, 0.40, 0.80, "nose"),
        (0.025, 0.50, 0.48, 0.93, "body"),
        (0.09, 0.57, 0.54, 0.985, "body"),
        (0.27, 0.66, 0.62, 1.0, "wind"),
        (0.40, 0.955, 0.64, 1.0, "cabin"),
        (0.47, 0.995, 0.645, 1.0, "cabin"),
        (0.555, 1.0, 0.65, 1.0, "pillar"),
        (0.58, 1.0, 0.65, 1.0, "cabin"),
        (0.68, 0.975, 0.66, 1.0, "cabin"),
        (0.73, 0.94, 0.665, 1.0, "rear"),
        (0.86, 0.71, 0.67, 0.99, "body"),
        (0.965, 0.68, 0.64, 0.95, "tail"),
        (1.00, 0.60, 0.57, 0.86, "tail"),
    ),
    "hatch": (
        (0.00, 0.42, 0.40, 0.80, "nose"),
        (0.03, 0.50, 0.48, 0.93, "body"),
        (0.10, 0.56, 0.53, 0.985, "body"),
        (0.25, 0.64, 0.60, 1.0, "wind"),
        (0.40, 0.95, 0.61, 1.0, "cabin"),
        (0.47, 0.995, 0.62, 1.0, "cabin"),
        (0.58, 1.0, 0.625, 1.0, "pillar"),
        (0.605, 1.0, 0.625, 1.0, "cabin"),
        (0.76, 0.975, 0.64, 1.0, "pillar"),
        (0.84, 0.945, 0.65, 1.0, "rear"),
        (0.96, 0.66, 0.65, 0.96, "tail"),
        (1.00, 0.56, 0.53, 0.88, "tail"),
    ),
    "suv": (
        (0.00, 0.46, 0.44, 0.84, "nose"),
        (0.025, 0.56, 0.54, 0.95, "body"),
        (0.08, 0.61, 0.585, 0.99, "body"),
        (0.26, 0.66, 0.62, 1.0, "wind"),
        (0.37, 0.95, 0.63, 1.0, "cabin"),
        (0.44, 0.995, 0.635, 1.0, "cabin"),
        (0.55, 1.0, 0.64, 1.0, "pillar"),
        (0.575, 1.0, 0.64, 1.0, "cabin"),
        (0.73, 0.995, 0.65, 1.0, "pillar"),
        (0.755, 0.99, 0.65, 1.0, "cabin"),
        (0.89, 0.96, 0.66, 1.0, "rear"),
        (0.965, 0.66, 0.65, 0.97, "tail"),
        (1.00, 0.56, 0.53, 0.90, "tail"),
    ),
    "van": (
        (0.00, 0.36, 0.34, 0.82, "nose"),
        (0.02, 0.44, 0.42, 0.95, "body"),
        (0.12, 0.52, 0.49, 0.99, "wind"),
        (0.26, 0.93, 0.50, 1.0, "cabin"),
        (0.31, 0.985, 0.50, 1.0, "cabin"),
        (0.40, 1.0, 0.50, 1.0, "pillar"),
        (0.43, 1.0, 0.50, 1.0, "blank"),
        (0.70, 1.0, 0.50, 1.0, "blank"),
        (0.94, 0.99, 0.50, 1.0, "rear"),
        (0.99, 0.60, 0.50, 0.98, "tail"),
        (1.00, 0.44, 0.42, 0.94, "tail"),
    ),
}
_TURNS = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_TYRE = 0.212  # radius as a part of the height of the car
_SIZES = {"sedan": (4.55, 1.80, 1.43), "hatch": (3.95, 1.74, 1.49), "suv": (4.5, 1.88, 1.70), "van": (5.0, 1.98, 2.05)}
_PAINTS = np.array(
    [
        (235, 236, 236), (200, 202, 204), (168, 170, 172), (110, 108, 106), (62, 60, 58), (34, 33, 33), (28, 28, 30),
        (40, 36, 168), (30, 26, 122), (150, 84, 34), (108, 56, 24), (176, 128, 60), (60, 104, 52), (74, 120, 118),
        (44, 150, 212), (30, 110, 205), (140, 166, 186), (88, 104, 128), (120, 60, 84), (196, 190, 150),
    ],
    dtype=np.float64,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CarLook:
    """What a car is like: shape, (length, width, height) in metres, BGR paint, gloss and lamps."""

    shape: str
    size: Vec
    paint: Vec
    glass: Vec
    gloss: float
    lamps: bool
    rim: float


def random_car(rng: Rng, *, lamps: bool = False) -> CarLook:
    """A car drawn at random."""
    shape = str(rng.choice(["sedan", "hatch", "suv", "van"], p=[0.32, 0.30, 0.25, 0.13]))
    size = np.array(_SIZES[shape]) * rng.uniform(0.93, 1.07, 3)
    paint = _PAINTS[rng.integers(7 if rng.random() < 0.45 else len(_PAINTS))] * rng.uniform(0.82, 1.12) + rng.normal(
        0, 7, 3
    )
    glass = np.array([58.0, 52, 46]) * rng.uniform(0.55, 1.3)
    return CarLook(shape, size, np.clip(paint, 16, 246), glass, rng.uniform(0.3, 0.9), lamps, rng.uniform(70, 200))


def _mesh(look: CarLook) -> tuple[Vec, list[str]]:
    """(stations, 13, 3) points, x forwards, and the kind of each strip."""
    rows = _PROFILES[look.shape]
    length, width, height = look.size
    t, top, belt, wide = (np.array([row[i] for row in rows]) for i in range(4))
    top, belt, half = top * height, belt * height, wide * width / 2
    sill = np.full(len(rows), 0.13 * height)
    sill[[0, -1]] += 0.05 * height
    rise = np.clip((top - belt) / (0.33 * height), 0.0, 1.0)
    rail = half * (0.90 - 0.17 * rise)
    ys = np.stack([half * 0.93, half, half * 0.99, half * 0.945, half * 0.945 * 0.48 + rail * 0.52, rail, half * 0], 1)
    zs = np.stack(
        [
            sill,
            sill + 0.35 * (belt - sill),
            sill + 0.78 * (belt - sill),
            belt,
            belt + 0.58 * (top - belt),
            top - 0.03,
            top + 0.012,
        ],
        1,
    )
    ys, zs = np.concatenate([ys, -ys[:, -2::-1]], 1), np.concatenate([zs, zs[:, -2::-1]], 1)
    xs = np.repeat(((0.5 - t) * length)[:, None], 13, 1)
    xs[[0, -1]] -= np.sign(xs[[0, -1]]) * 0.05 * length * (np.abs(ys[[0, -1]]) / (width / 2)) ** 2
    return np.stack([xs, ys, zs], -1), [row[4] for row in rows]


def _materials(kinds: list[str]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """(strips, 12) 0 paint, 1 glass, 2 dark trim."""
    out = np.zeros((len(kinds) - 1, 12), np.int64)
    out[:, [0, 11]] = 2
    for i, kind in enumerate(kinds[:-1]):
        if kind in ("wind", "rear"):
            out[i, 4:8] = 1
            out[i, [5, 6]] = 1
        if kind in ("cabin", "wind", "rear"):
            out[i, [3, 8]] = 1
        if kind == "cabin":
            out[i, [4, 7]] = 1
    return out


class _View:
    """One car seen by one camera: its mesh in pixels and what is needed to paint it."""

    def __init__(self, look: CarLook, at: tuple[float, float], heading: float, camera: Camera) -> None:
        self.look, self.camera = look, camera
        local, self.kinds = _mesh(look)
        self.spin = turn(heading)
        self.base = np.array([at[0], at[1], 0.0])
        self.world = local @ self.spin.T + self.base
        self.pixels, self.depth = camera.project(self.world)
        self.eye = (camera.eye - self.base) @ self.spin
        self.scale = camera.focal / max(float(self.depth.mean()), 0.5)

    def place(self, local: Vec) -> Vec:
        """(n, 3) car coordinates to pixels."""
        return self.camera.project(local @ self.spin.T + self.base)[0]

    def at(self, strip: float, ring: float) -> Vec:
        """(2,) pixels of a point of the surface given in cross-sections and ring steps."""
        i, j = min(int(strip), len(self.pixels) - 2), min(int(ring), 11)
        u, v = strip - i, ring - j
        p = self.pixels
        a = p[i, j] * (1 - v) + p[i, j + 1] * v
        b = p[i + 1, j] * (1 - v) + p[i + 1, j + 1] * v
        return np.asarray(a * (1 - u) + b * u)


def _shade_faces(view: _View, light: Light) -> tuple[Vec, Vec, Vec]:
    """Pixels (n, 4, 2), BGR (n, 3) and order of the visible faces, farthest first."""
    w = view.world
    quads = np.stack([w[:-1, :-1], w[1:, :-1], w[1:, 1:], w[:-1, 1:]], 2).reshape(-1, 4, 3)
    pix = view.pixels
    flat = np.stack([pix[:-1, :-1], pix[1:, :-1], pix[1:, 1:], pix[:-1, 1:]], 2).reshape(-1, 4, 2)
    normal = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    centre = quads.mean(1)
    inside = centre - (view.base + np.array((0.0, 0.0, 0.4 * view.look.size[2])))
    normal *= np.where((normal * inside).sum(1) < 0, -1.0, 1.0)[:, None]
    normal /= np.maximum(np.linalg.norm(normal, axis=1), 1e-9)[:, None]
    ray = centre - view.camera.eye
    ray /= np.linalg.norm(ray, axis=1)[:, None]
    facing = (normal * ray).sum(1)
    mirror = ray - 2 * facing[:, None] * normal
    material = _materials(view.kinds).reshape(-1)
    base = np.stack([view.look.paint, view.look.glass, np.array([38.0, 36, 35])])[material]
    gloss = np.array([0.20 * view.look.gloss, 0.42, 0.04])[material]
    fresnel = (gloss * (0.45 + 0.9 * (1 + facing) ** 2))[:, None]
    sky = np.clip(mirror[:, 2:] * 1.6 + 0.15, 0, 1) * light.sky + np.clip(-mirror[:, 2:], 0, 1) * 40.0
    glint = np.clip(mirror @ light.sun, 0, 1) ** 24 * 190 * light.diffuse * (material < 2)
    bgr = base * light.on(normal) * 1.05 + (sky - base * 0.3) * fresnel + glint[:, None]
    order = np.argsort(-np.linalg.norm(centre - view.camera.eye, axis=1))
    order = order[facing[order] < 0.02]
    return flat, np.clip(bgr, 4, 252), order


# (half width, radius) of the rings of a wheel as parts of the car's half width and the tyre's radius.
_RINGS = np.array([(0.956, 1.0), (0.59, 1.0), (0.99, 1.17), (0.995, 1.0), (1.0, 0.66), (1.0, 0.5), (1.005, 0.6)])


def _rings(view: _View) -> Vec:
    """(2 axles, 2 sides, 7, 20, 2) pixels of the circles of every wheel."""
    length, width, height = view.look.size
    radius = height * _TYRE
    points = np.empty((2, 2, len(_RINGS), len(_TURNS), 3))
    points[..., 0] = np.array([0.325, -0.30])[:, None, None, None] * length
    points[..., 0] += radius * _RINGS[:, 1:] * np.cos(_TURNS)
    points[..., 1] = np.array([-0.5, 0.5])[:, None, None] * width * _RINGS[:, :1]
    points[..., 2] = radius + radius * _RINGS[:, 1:] * np.sin(_TURNS)
    return view.place(points)


def _treads(layer: Layer, rings: Vec) -> None:
    """The tyres below the body."""
    for wheel in rings.reshape(4, len(_RINGS), len(_TURNS), 2):
        layer.poly(hull(wheel[:2].reshape(-1, 2)), (22, 22, 23))


def _wheels(view: _View, layer: Layer, light: Light, rings: Vec) -> None:
    """The wheels of the side that faces the camera."""
    rim = view.look.rim * (light.ambient + 0.35 * light.diffuse)
    size = view.scale * view.look.size[2] * _TYRE
    for k, side in enumerate((-1.0, 1.0)):
        if side * view.eye[1] < 0.5 * view.look.size[1]:
            continue
        for wheel in rings[:, k]:
            layer.poly(wheel[2], (20, 19, 19))
            layer.poly(wheel[3], (36, 35, 35))
            layer.poly(wheel[4], (rim, rim, rim * 0.98))
            if size > 9:
                layer.poly(wheel[5], (rim * 0.5, rim * 0.5, rim * 0.5))
                hub = wheel[6].mean(0)
                for point in wheel[6, ::4]:
                    layer.line(np.stack([hub, point]), (rim, rim, rim), size * 0.16)


def _end(view: _View, layer: Layer, *, front: bool, light: Light) -> None:
    """Lamps, grille, bumper and plate of the nose or the tail."""
    look = view.look
    facing = view.eye[0] - (1 if front else -1) * look.size[0] * 0.42
    if facing * (1 if front else -1) <= 0:
        return
    last = len(view.kinds) - 1.0
    edge = 0.0 if front else last
    inner = 0.95 if front else last - 0.95
    cap = view.pixels[0 if front else -1]

    def across(left: float, right: float, low: float, high: float) -> Vec:
        a, b = (cap[0] * (1 - v) + cap[3] * v for v in (low, high))
        c, d = (cap[12] * (1 - v) + cap[9] * v for v in (low, high))
        return np.stack([a + (c - a) * left, a + (c - a) * right, b + (d - b) * right, b + (d - b) * left])

    tone = light.ambient + 0.4 * light.diffuse
    shape = np.concatenate([cap[:4], cap[5:8], cap[9:]])
    layer.poly(hull(shape), look.paint * tone * 0.86)
    layer.poly(across(0.03, 0.97, 0.0, 0.24), np.array([40.0, 39, 38]) * tone)
    if front:
        layer.poly(across(0.24, 0.76, 0.42, 0.80), np.array([30.0, 29, 28]) * tone)
        lamp = (255, 255, 255) if look.lamps else np.array([225.0, 226, 222]) * min(1.0, tone)
    else:
        layer.poly(across(0.05, 0.95, 0.60, 0.68), look.paint * tone * 0.62)
        lamp = (60, 60, 255) if look.lamps else np.array([34.0, 28, 176]) * tone
    layer.poly(across(0.38, 0.62, 0.30, 0.44), np.array([214.0, 220, 222]) * tone)
    for ring, low, high in ((1.7, 0.0, 0.22), (9.0, 0.78, 1.0)):
        corner = np.stack(
            [view.at(edge, ring), view.at(inner, ring), view.at(inner, ring + 1.3), view.at(edge, ring + 1.3)]
        )
        layer.poly(corner, lamp)
        layer.poly(across(low, high, 0.56, 0.92), lamp)
    if view.scale * look.size[1] > 50 and front:
        mid = across(0.46, 0.54, 0.54, 0.68)
        layer.poly(mid, np.array([200.0, 200, 200]) * tone)


def _side_lines(view: _View, layer: Layer) -> None:
    """Doors, handles and window posts of the side that faces the camera, and the mirrors."""
    look, last = view.look, len(view.kinds) - 1
    sides = [r for r, s in (((0.6, 3.0, 5.0), 1.0), ((11.4, 9.0, 7.0), -1.0)) if s * view.eye[1] > look.size[1] / 2]
    dark, width = look.paint * 0.42, max(1.0, view.scale * 0.014)
    posts = [i for i, kind in enumerate(view.kinds) if kind == "wind" or kind == "pillar" or kind == "rear"]
    for low, belt, roof in sides:
        for i in posts:
            if view.kinds[i] != "rear":
                u = i + (0.5 if view.kinds[i] == "wind" else 0.0)
                layer.line(np.stack([view.at(u, low), view.at(u, (low + belt) / 2), view.at(u, belt)]), dark, width)
        layer.line(view.pixels[1:last, int(belt)], look.paint * 0.55, width)
        if view.scale > 24:
            for i in (p for p in posts if view.kinds[p] == "pillar"):
                v = belt + (0.55 if low < 6 else -0.55) * -1
                layer.line(np.stack([view.at(i + 0.25, v), view.at(i + 0.6, v)]), look.paint * 0.35, width * 1.6)
        for i, kind in enumerate(view.kinds):
            if kind in ("wind", "rear"):
                rail = np.stack([view.at(i, roof), view.at(i + 0.999, roof)])
                layer.line(rail, look.paint * 0.72, view.scale * 0.055)
    for side in (-1.0, 1.0):
        if side * view.eye[1] < -0.5 * look.size[1]:
            continue
        x, y, z = 0.16 * look.size[0], side * look.size[1] * 0.535, look.size[2] * 0.66
        corners = np.array(
            [(x, y, z), (x - 0.16, y, z), (x - 0.16, y, z + 0.14), (x, y, z + 0.12), (x, y - side * 0.15, z)]
        )
        layer.poly(hull(view.place(corners)), look.paint * 0.66)


def car(look: CarLook, at: tuple[float, float], heading: float, camera: Camera) -> Thing:
    """A car that stands at `at` (x, y metres) and points along `heading` (radians, 0 is +x)."""
    view = _View(look, at, heading, camera)
    length, width, _ = look.size
    foot = np.array([(sx * length * 0.47, sy * width * 0.48, 0.0) for sx in (-1, 1) for sy in (-1, 1)]) @ view.spin.T
    return Thing(
        float(np.hypot(*at)), lambda canvas: _paint(canvas, view), [view.world.reshape(-1, 3), foot + view.base]
    )


def _paint(canvas: Canvas, view: _View) -> None:
    low, high = view.pixels.reshape(-1, 2).min(0), view.pixels.reshape(-1, 2).max(0)
    if view.depth.min() < 0.6 or (high < 0).any() or (low > canvas.side).any():
        return
    layer = Layer(low - 4, high + 0.2 * view.scale, canvas.side)
    rings = _rings(view)
    _treads(layer, rings)
    flat, bgr, order = _shade_faces(view, canvas.light)
    points = fixed((flat - layer.origin).reshape(-1, 2)).reshape(-1, 4, 2)
    tones = bgr.tolist()
    for i in order.tolist():
        cv2.fillConvexPoly(layer.bgr, points[i], tones[i], shift=2)
    # No tone is below 4, so what is not black is car.
    layer.mask = cv2.threshold(layer.bgr[..., 1], 0, 255, cv2.THRESH_BINARY)[1].astype(np.uint8, copy=False)
    if view.scale > 14:
        layer.bgr = cv2.GaussianBlur(layer.bgr, (0, 0), max(0.5, view.scale * 0.012)).astype(np.uint8, copy=False)
    if view.scale > 11:
        _side_lines(view, layer)
    for front in (True, False):
        _end(view, layer, front=front, light=canvas.light)
    _wheels(view, layer, canvas.light, rings)
    canvas.stamp(layer, CAR)
