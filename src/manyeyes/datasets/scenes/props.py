"""Furniture, plants and street furniture: what hides objects, and what a detector must learn to pass over."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from manyeyes.datasets.scenes.paint import Canvas, Rng, Thing, Vec, colour, fill, fixed, turn

Point = tuple[float, float]
WOOD = np.array([(96, 136, 176), (70, 104, 146), (150, 176, 198), (206, 210, 212), (58, 72, 92)], dtype=np.float64)
LOUD = np.array(
    [
        (40, 36, 168),
        (150, 84, 34),
        (60, 104, 52),
        (44, 150, 212),
        (120, 60, 84),
        (226, 226, 224),
        (58, 54, 52),
        (130, 140, 60),
    ],
    dtype=np.float64,
)


def thing(at: Point, paint: Callable[[Canvas], None], *casts: Vec) -> Thing:
    """A thing at `at` (x, y metres)."""
    return Thing(float(np.hypot(*at)), paint, list(casts))


def block(at: Point, size: ArrayLike, yaw: float = 0.0, base: float = 0.0) -> Vec:
    """(8, 3) corners of a box, to cast a shadow."""
    unit = np.array([(x, y, z) for z in (0.0, 1.0) for y in (-0.5, 0.5) for x in (-0.5, 0.5)])
    return np.asarray((unit * np.asarray(size)) @ turn(yaw).T + (at[0], at[1], base))


def inside(quad: Vec, left: float, top: float, right: float, bottom: float) -> Vec:
    """(4, 2) part of a face (corners below-left, below-right, above-right, above-left), 0 … 1 from above left."""
    a, b, c, d = quad

    def mix(u: float, v: float) -> Vec:
        return np.asarray((d * (1 - u) + c * u) * (1 - v) + (a * (1 - u) + b * u) * v)

    return np.stack([mix(left, bottom), mix(right, bottom), mix(right, top), mix(left, top)])


def crate(rng: Rng, at: Point, size: ArrayLike, bgr: ArrayLike, kind: str | None = None) -> Thing:
    """A plain box: cabinet, carton, container, bin."""
    yaw = float(rng.uniform(-0.3, 0.3))
    label = rng.random() < 0.5

    def paint(canvas: Canvas) -> None:
        faces = canvas.box((*at, 0.0), size, yaw, bgr, kind)
        if len(faces[0]) and label:
            fill(canvas.bgr, inside(faces[0], 0.3, 0.15, 0.7, 0.4), colour(np.asarray(bgr) * 0.6 + 60))
            fill(canvas.bgr, inside(faces[0], 0.1, 0.5, 0.9, 0.52), colour(np.asarray(bgr) * 0.45))

    return thing(at, paint, block(at, size, yaw))


def desk(rng: Rng, at: Point, yaw: float, screens: int) -> list[Thing]:
    """A desk with monitors, papers and mugs; its user sits on the +y side when yaw is 0."""
    wood = WOOD[rng.integers(len(WOOD))] * rng.uniform(0.85, 1.1)
    width, spin = float(rng.uniform(1.3, 1.8)), turn(yaw)
    screen_bgr = np.clip(rng.uniform(60, 230, 3), 0, 255)
    backs = abs(np.cos(yaw)) > 0 and np.cos(yaw) > 0
    offsets = rng.uniform(-0.1, 0.1, 4) + np.linspace(-0.35, 0.35, 4)
    panel, clutter = rng.random() < 0.7, int(rng.integers(1, 5))
    bits = [
        (
            rng.uniform(-0.6, 0.6),
            rng.uniform(-0.3, 0.25),
            rng.uniform(0.05, 0.25),
            rng.uniform(0.02, 0.14),
            LOUD[rng.integers(8)],
        )
        for _ in range(clutter)
    ]

    def spot(x: float, y: float, z: float) -> Vec:
        return np.asarray(spin @ (x, y, 0.0) + (at[0], at[1], z))

    def paint(canvas: Canvas) -> None:
        for x in (-width / 2 + 0.05, width / 2 - 0.05):
            canvas.box(spot(x, 0, 0), (0.05, 0.6, 0.71), yaw, wood * 0.62)
        if panel:
            canvas.box(spot(0, -0.25, 0.25), (width - 0.1, 0.03, 0.46), yaw, wood * 0.8)
        canvas.box(spot(0, 0, 0.71), (width, 0.75, 0.035), yaw, wood, "wood", fade=0.8)
        for x, y, w, h, bgr in bits:
            canvas.box(spot(x * width / 1.6, y, 0.745), (w, w * 0.8, h), yaw + x, bgr)
        for i in range(screens):
            x = float(offsets[i + (0 if screens > 2 else 1)])
            canvas.box(spot(x, -0.12, 0.745), (0.22, 0.16, 0.015), yaw, (40, 40, 42))
            canvas.box(spot(x, -0.12, 0.755), (0.05, 0.04, 0.16), yaw, (52, 52, 54))
            faces = canvas.box(spot(x, -0.12, 0.86), (0.58, 0.04, 0.35), yaw, (46, 45, 44))
            for face, lit in ((faces[0], not backs), (faces[1], backs)):
                if len(face) and lit:
                    canvas.face(inside(face, 0.03, 0.04, 0.97, 0.92), screen_bgr * 1.05, screen_bgr * 0.8)
                    if np.ptp(face[:, 0]) < 30:
                        continue
                    for v in np.linspace(0.15, 0.75, 5):
                        fill(
                            canvas.bgr,
                            inside(face, 0.1, v, 0.35 + 0.5 * ((v * 7) % 1), v + 0.05),
                            colour(screen_bgr * 0.55),
                        )

    return [thing(at, paint, block(at, (width, 0.75, 0.1), yaw, 0.65))]


def chair(rng: Rng, at: Point, heading: float) -> Thing:
    """An office chair whose sitter faces `heading`; the back stands behind."""
    bgr = (LOUD * 0.7 + 15)[rng.integers(len(LOUD))] if rng.random() < 0.5 else np.array([48.0, 46, 46])
    yaw = heading - np.pi / 2
    ahead = np.array([np.cos(heading), np.sin(heading)])

    def paint(canvas: Canvas) -> None:
        x, y = at
        a = np.arange(10) * 0.628 + yaw
        reach = np.where(np.arange(10) % 2, 0.05, 0.3)
        star = canvas.camera.project(np.stack([x + reach * np.cos(a), y + reach * np.sin(a), np.full(10, 0.05)], 1))[0]
        fill(canvas.bgr, star, (40, 40, 40))
        fill(canvas.ids, star, (0,))
        canvas.box((x, y, 0.06), (0.06, 0.06, 0.36), yaw, (90, 90, 92))
        back = (x - ahead[0] * 0.24, y - ahead[1] * 0.24, 0.52)
        first = ahead[1] < 0
        if first:
            canvas.box(back, (0.44, 0.06, 0.5), yaw, bgr, "grain")
        canvas.box((x, y, 0.41), (0.48, 0.46, 0.08), yaw, bgr, "grain")
        if not first:
            canvas.box(back, (0.44, 0.06, 0.5), yaw, bgr, "grain")

    return Thing(float(np.hypot(*at)) - 0.12 * float(ahead[1]), paint, [block(at, (0.5, 0.5, 0.5), yaw)])


def shelf(rng: Rng, at: Point, width: float, height: float) -> Thing:
    """A shelf full of coloured folders."""
    wood = WOOD[rng.integers(len(WOOD))]
    rows = int(rng.integers(3, 6))
    spines = [np.sort(rng.uniform(0.03, 0.97, int(rng.integers(4, 12)))) for _ in range(rows)]
    tones = [LOUD[rng.integers(len(LOUD), size=len(s))] * rng.uniform(0.6, 1.1) for s in spines]

    def paint(canvas: Canvas) -> None:
        face = canvas.box((*at, 0.0), (width, 0.35, height), 0.0, wood, "wood")[0]
        if not len(face):
            return
        for r in range(rows):
            top, low = (r + 0.12) / rows, (r + 0.95) / rows
            canvas.face(inside(face, 0.03, top, 0.97, low), wood * 0.32, wood * 0.48)
            for i in range(len(spines[r]) - 1):
                left, right = spines[r][i], min(spines[r][i + 1], spines[r][i] + 0.12)
                tall = top + (low - top) * (0.12 + 0.2 * ((i * 7919) % 5) / 5)
                fill(canvas.bgr, inside(face, left, tall, right - 0.008, low), colour(tones[r][i]))

    return thing(at, paint, block(at, (width, 0.35, height)))


def plant(rng: Rng, at: Point, size: float) -> Thing:
    """A pot plant of `size` metres."""
    pot, green = LOUD[rng.integers(len(LOUD))], np.array([50.0, 110, 60]) * rng.uniform(0.7, 1.2)
    puffs = [(rng.normal(0, 0.14), rng.normal(0, 0.1), rng.uniform(0.5, 0.9)) for _ in range(4)]

    def paint(canvas: Canvas) -> None:
        canvas.box((*at, 0.0), (0.3, 0.3, 0.32), 0.4, pot)
        canvas.box((*at, 0.3), (0.04, 0.04, size * 0.4), 0.0, (40, 60, 80))
        for dx, dy, z in puffs:
            canvas.clump((at[0] + dx * size, at[1] + dy, 0.2 + z * size), 0.5 * size, green)

    return thing(at, paint, block(at, (0.4, 0.4, size * 0.6)))


def post(rng: Rng, at: Point, height: float, width: float, bgr: ArrayLike, cap: str = "") -> Thing:
    """A pole or pillar; `cap` is "", "lamp", "signal", "sign" or "coats"."""
    loud, kind, arm = LOUD[rng.integers(len(LOUD), size=3)], int(rng.integers(3)), 1.0 if at[0] < 0 else -1.0
    base = np.asarray(bgr, dtype=np.float64)

    def paint(canvas: Canvas) -> None:
        x, y = at
        canvas.box((x, y, 0), (width, width, height), 0.3, base)
        if cap == "lamp":
            canvas.box((x + arm * 0.7, y, height - 0.06), (1.5, 0.08, 0.08), 0.0, base)
            canvas.box((x + arm * 1.4, y, height - 0.16), (0.55, 0.22, 0.12), 0.0, base * 1.2 + 30)
        if cap == "signal":
            canvas.box((x, y - 0.1, height - 0.9), (0.34, 0.28, 0.95), 0.0, (34, 34, 34))
            middle, depth = canvas.camera.project(np.array([(x, y - 0.26, height - 0.2 - 0.27 * i) for i in range(3)]))
            for i, lit in enumerate(((50, 50, 240), (40, 190, 250), (120, 230, 60))):
                r = 0.1 * canvas.camera.focal / max(float(depth[i]), 0.5)
                disc = middle[i] + r * np.stack([np.cos(np.linspace(0, 6.0, 9)), np.sin(np.linspace(0, 6.0, 9))], 1)
                fill(canvas.bgr, disc, colour(np.array(lit) * (1.0 if i == kind else 0.25)))
        if cap == "sign":
            middle, depth = canvas.camera.project(np.array([x, y - 0.08, height]))
            r = 0.34 * canvas.camera.focal / max(float(depth), 0.5)
            a = np.linspace(0, 2 * np.pi, (4, 4, 17)[kind]) + (0.785, 0.0, 0.0)[kind]
            disc = np.stack([np.cos(a), np.sin(a)], 1)
            canvas.face(middle + r * disc, loud[0], loud[0])
            fill(canvas.bgr, middle + 0.72 * r * disc, (235, 236, 236))
        if cap == "coats":
            for i, dx in enumerate((-0.14, 0.12, 0.02)):
                points = np.array(
                    [(x + dx + u, y - 0.1, z) for u, z in ((-0.05, 1.6), (0.05, 1.6), (0.19, 0.75), (-0.17, 0.72))]
                )
                pixels = canvas.camera.project(points)[0]
                canvas.face(pixels, loud[i] * 0.8, loud[i] * 0.5, "cloud")

    return thing(at, paint, block(at, (width, width, height)))


def tree(rng: Rng, at: Point, height: float, bgr: ArrayLike | None = None) -> Thing:
    """A tree of `height` metres."""
    green = np.array([44.0, 104, 74]) * rng.uniform(0.7, 1.25, 3) if bgr is None else np.asarray(bgr)
    crown = height * rng.uniform(0.5, 0.66)
    puffs = [(rng.normal(0, 0.22), rng.normal(0, 0.18), rng.uniform(0.5, 0.9)) for _ in range(5)]

    def paint(canvas: Canvas) -> None:
        tone = canvas.light.ambient + 0.45 * canvas.light.diffuse * canvas.light.tint
        canvas.box((*at, 0.0), (0.05 * height, 0.05 * height, height * 0.5), 0.5, (52, 70, 92), "wood")
        for dx, dy, z in sorted(puffs, key=lambda p: -p[1]):
            canvas.clump((at[0] + dx * crown, at[1] + dy * crown, z * height), crown * 0.8, green * tone)

    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.stack(
        [at[0] + crown * 0.55 * np.cos(angle), at[1] + crown * 0.55 * np.sin(angle), np.full(12, height * 0.68)], 1
    )
    return thing(at, paint, ring, block(at, (0.05 * height, 0.05 * height, height * 0.5)))


def bush(rng: Rng, at: Point, size: float) -> Thing:
    """A bush of `size` metres, sometimes as red or violet as a car."""
    green = np.array([50.0, 100, 66]) * rng.uniform(0.7, 1.3, 3)
    flowers = green if rng.random() < 0.7 else LOUD[rng.integers(len(LOUD))]

    def paint(canvas: Canvas) -> None:
        tone = canvas.light.ambient + 0.45 * canvas.light.diffuse * canvas.light.tint
        for dx, z, bgr in ((-0.45, 0.3, green), (0.45, 0.32, flowers), (0.0, 0.42, green)):
            canvas.clump((at[0] + dx * size, at[1], z * size), size, bgr * tone)

    return thing(at, paint, block(at, (size * 1.5, size * 0.8, size * 0.6)))


def _panes(face: Vec, bays: int, floors: int, left: float, top: float) -> NDArray[np.int32]:
    """(floors, bays, 4, 2) fixed-point corners of the windows of a face."""
    u = (np.arange(bays)[:, None] + [left, 1 - left, 1 - left, left]) / bays
    v = (np.arange(floors)[:, None] + [0.98 - top, 0.98 - top, top, top]) / floors
    u, v = u[None, :, :, None], v[:, None, :, None]
    return fixed((face[3] * (1 - u) + face[2] * u) * (1 - v) + (face[0] * (1 - u) + face[1] * u) * v)


def building(rng: Rng, at: Point, size: tuple[float, float, float], yaw: float = 0.0, lit: float = 0.0) -> Thing:
    """A house with rows of windows; `lit` is the part of them that shine."""
    palette = np.array(
        [(150, 172, 196), (120, 140, 176), (176, 184, 190), (110, 128, 150), (196, 206, 214), (98, 104, 146)]
    )
    bgr = palette[rng.integers(len(palette))] * rng.uniform(0.8, 1.08)
    kind = str(rng.choice(["brick", "grain"]))
    floors, bays = max(1, int(size[2] / 3.2)), max(2, int(size[0] / 2.6))
    shine = rng.random((2, floors, bays + 20)) < lit
    sky = rng.uniform(0.0, 1.0, (2, floors, bays + 20))

    def paint(canvas: Canvas) -> None:
        faces = canvas.box((*at, 0.0), size, yaw, bgr, kind)
        for k, (index, length) in enumerate(((0, size[0]), (2 if at[0] > 0 else 3, size[1]))):
            face, n = faces[index], max(2, int(length / 2.6))
            if not len(face) or np.ptp(face[:, 0]) < 10:
                continue
            if np.ptp(face[:, 1]) > 90:
                cv2.fillPoly(
                    canvas.bgr,
                    list(_panes(face, n, floors, 0.215, 0.19).reshape(-1, 4, 2)),
                    colour(bgr * 0.5 + 96),
                    shift=2,
                )
            quads = _panes(face, n, floors, 0.24, 0.22)
            shades = np.where(shine[k, :, :n], 3, (sky[k, :, :n] * 3).astype(int) % 3)
            for index_, glass in enumerate(((62, 54, 46), (92, 82, 70), (112, 100, 86), (120, 200, 240))):
                chosen = list(quads[shades == index_])
                if chosen:
                    cv2.fillPoly(canvas.bgr, chosen, glass, shift=2)

    return thing(at, paint, block(at, size, yaw))


def wall_picture(canvas: Canvas, corners: Vec, bgr: ArrayLike, kind: str | None = None) -> Vec:
    """Paint a framed picture or board on a wall, (4, 3) metres from below left; gives its (4, 2) pixels."""
    pixels = canvas.camera.project(corners)[0]
    middle = pixels.mean(0)
    canvas.face(middle + (pixels - middle) * 1.05, np.array([66.0, 64, 62]), np.array([52.0, 50, 48]))
    canvas.face(pixels, bgr, np.asarray(bgr) * 0.9, kind)
    return pixels
