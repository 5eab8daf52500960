"""Persons as jointed figures: a skeleton in the world, clothed in shaded hulls of spheres."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from manyeyes.datasets.scenes.paint import Camera, Canvas, Layer, Light, Rng, Thing, Vec, colour, fixed, grain3, turn

PERSON = 0
_CLOTH = np.array(
    [
        (30, 28, 28), (58, 54, 52), (96, 92, 90), (150, 146, 142), (226, 226, 224), (238, 236, 230), (98, 62, 34),
        (140, 92, 48), (70, 40, 26), (180, 150, 110), (44, 40, 150), (52, 48, 190), (40, 30, 96), (60, 92, 52),
        (76, 120, 96), (130, 140, 60), (46, 150, 206), (80, 120, 180), (150, 178, 200), (108, 130, 150), (120, 70, 110),
        (176, 130, 190), (190, 170, 90), (70, 76, 60),
    ],
    dtype=np.float64,
)  # fmt: skip
_TROUSERS = np.array(
    [
        (34, 30, 28),
        (60, 54, 50),
        (92, 66, 42),
        (120, 84, 52),
        (70, 48, 34),
        (104, 128, 150),
        (96, 98, 100),
        (56, 70, 76),
    ],
    dtype=np.float64,
)
_SKIN = np.array(
    [(178, 202, 232), (150, 178, 218), (122, 154, 200), (92, 122, 172), (64, 90, 138), (44, 62, 98)], dtype=np.float64
)
_HAIR = np.array(
    [
        (24, 22, 24),
        (34, 40, 52),
        (38, 56, 84),
        (62, 96, 142),
        (110, 160, 200),
        (150, 152, 154),
        (214, 216, 216),
        (36, 60, 128),
    ],
    dtype=np.float64,
)
_UNIT = np.stack(
    [np.cos(np.linspace(0, 2 * np.pi, 12, endpoint=False)), np.sin(np.linspace(0, 2 * np.pi, 12, endpoint=False))], 1
)


@dataclass(frozen=True, slots=True)
class PersonLook:
    """What a person is like: height in metres, girth, BGR colours, garments and things carried."""

    height: float
    girth: float
    top: Vec
    inner: Vec
    bottom: Vec
    skin: Vec
    hair: Vec
    shoes: Vec
    sleeves: float
    garment: str
    hair_style: str
    extras: frozenset[str]


@dataclass(slots=True)
class Part:
    """A hull of spheres: (k, 3) centres in metres, (k,) radii and a BGR colour."""

    centres: Vec
    radii: Vec
    bgr: Vec
    bias: float = 0.0
    kind: str = ""
    pixels: Vec = field(default_factory=lambda: np.zeros((0, 2)))


def random_person(rng: Rng, *, hatted: float = 0.12) -> PersonLook:
    """A person drawn at random; `hatted` is the chance of a hat or helmet."""

    def pick(palette: Vec) -> Vec:
        return np.asarray(
            np.clip(palette[rng.integers(len(palette))] * rng.uniform(0.8, 1.2) + rng.normal(0, 6, 3), 14, 246)
        )

    garment = str(rng.choice(["plain", "open", "striped", "coat", "dress"], p=[0.36, 0.26, 0.14, 0.14, 0.10]))
    style = str(rng.choice(["short", "long", "bun", "bald"], p=[0.5, 0.32, 0.1, 0.08]))
    extras = {n for n, p in (("backpack", 0.16), ("bag", 0.16), ("glasses", 0.25), ("hat", hatted)) if rng.random() < p}
    return PersonLook(
        height=float(np.clip(rng.normal(1.71, 0.09), 1.45, 1.98)),
        girth=float(np.clip(rng.normal(1.05, 0.13), 0.8, 1.45)),
        top=pick(_CLOTH), inner=pick(_CLOTH),
        bottom=pick(_TROUSERS if rng.random() < 0.8 else _CLOTH),
        skin=pick(_SKIN), hair=pick(_HAIR), shoes=pick(_CLOTH[:9]), sleeves=float(rng.choice([0.5, 1.0, 1.0])),
        garment=garment, hair_style=style, extras=frozenset(extras),
    )  # fmt: skip


def random_pose(rng: Rng, kind: str) -> dict[str, float]:
    """Joint angles in radians for "stand", "walk" or "sit"; forwards is positive, `_l` and `_r` are the sides."""
    n = rng.normal
    pose = {"lean": n(0.02, 0.04), "nod": n(0.05, 0.12), "look": n(0, 0.35), "seat": 0.0}
    for s in "lr":
        pose |= {
            f"hip_{s}": n(0, 0.07),
            f"knee_{s}": abs(n(0, 0.08)),
            f"arm_{s}": n(0.0, 0.14),
            f"out_{s}": abs(n(0.12, 0.08)),
        }
        pose |= {f"elbow_{s}": abs(n(0.25, 0.2))}
    if kind == "walk":
        swing, lead = rng.uniform(0.28, 0.6), 1.0 if rng.random() < 0.5 else -1.0
        phase = float(rng.uniform(-1, 1))
        pose |= {
            "hip_l": swing * phase,
            "hip_r": -swing * phase,
            "arm_l": -0.8 * swing * phase,
            "arm_r": 0.8 * swing * phase,
        }
        pose["knee_l" if lead > 0 else "knee_r"] += rng.uniform(0.1, 0.9)
        pose["lean"] += 0.06
    if kind == "sit":
        pose |= {"seat": rng.uniform(0.44, 0.5), "lean": n(0.1, 0.14)}
        for s in "lr":
            pose |= {
                f"hip_{s}": n(1.5, 0.07),
                f"knee_{s}": n(1.45, 0.2),
                f"arm_{s}": n(0.55, 0.25),
                f"elbow_{s}": n(1.0, 0.35),
            }
    gesture = rng.random()
    if gesture < 0.14:
        pose |= {"arm_r": n(0.7, 0.2), "elbow_r": n(2.0, 0.2)}
    elif gesture < 0.22:
        pose |= {"arm_l": n(1.4, 0.3), "elbow_l": n(0.3, 0.2), "out_l": 0.3}
    elif gesture < 0.32 and kind != "sit":
        pose |= {"arm_l": 0.4, "arm_r": 0.4, "elbow_l": 1.75, "elbow_r": 1.75, "out_l": -0.1, "out_r": -0.1}
    elif gesture < 0.36:
        pose |= {"arm_r": n(2.6, 0.2), "elbow_r": n(0.4, 0.2), "out_r": 0.3}
    elif gesture < 0.43 and kind != "sit":
        pose |= {"lean": 0.8, "hip_l": -0.1, "hip_r": 0.1, "arm_l": 0.9, "arm_r": 0.8, "nod": 0.1}
    return pose


def _direction(pitch: float, out: float, side: float) -> Vec:
    """Unit vector of a limb that hangs down, swung forwards by `pitch` and sideways by `out`."""
    return np.array([np.sin(pitch) * np.cos(out), side * np.sin(out), -np.cos(pitch) * np.cos(out)])


def _joints(look: PersonLook, pose: dict[str, float]) -> dict[str, Vec]:
    """Joint positions (3,) in metres, x forwards, y left, feet on the ground or hips on the seat."""
    h, g = look.height, look.girth
    joints = {"hip": np.zeros(3)}
    up = np.array([np.sin(pose["lean"]), 0.0, np.cos(pose["lean"])])
    chest, neck = up * 0.30 * h, up * 0.335 * h
    nod = pose["lean"] * 0.5 + pose["nod"]
    head = neck + np.array([np.sin(nod) + 0.12, 0.0, np.cos(nod)]) * 0.088 * h
    joints |= {"chest": chest, "neck": neck, "head": head, "up": up}
    for s, side in (("l", 1.0), ("r", -1.0)):
        hip = np.array([0.0, side * 0.052 * h * g**0.5, 0.0])
        knee = hip + _direction(pose[f"hip_{s}"], 0.04, side) * 0.245 * h
        shin = pose[f"hip_{s}"] - pose[f"knee_{s}"]
        foot = knee + _direction(shin, 0.0, side) * 0.235 * h
        shoulder = chest + np.array([0.0, side * 0.112 * h * g**0.4, 0.0])
        arm = pose[f"arm_{s}"] + 0.4 * pose["lean"]
        elbow = shoulder + _direction(arm, pose[f"out_{s}"], side) * 0.17 * h
        hand = elbow + _direction(arm + pose[f"elbow_{s}"], pose[f"out_{s}"] * 0.3, side) * 0.155 * h
        joints |= {f"hip_{s}": hip, f"knee_{s}": knee, f"foot_{s}": foot, f"shoulder_{s}": shoulder}
        joints |= {f"elbow_{s}": elbow, f"hand_{s}": hand}
    floor = min(joints["foot_l"][2], joints["foot_r"][2]) - 0.035 * h
    rise = np.array([0.0, 0.0, pose["seat"] + 0.06 if pose["seat"] else -floor])
    return {k: v if k == "up" else v + rise for k, v in joints.items()}


def _legs(look: PersonLook, j: dict[str, Vec]) -> list[Part]:
    h, g, parts = look.height, look.girth, []
    bare = look.garment == "dress" or (look.sleeves < 1 and look.top.sum() % 3 < 1)
    for s in "lr":
        shin = look.skin if bare else look.bottom
        toe = j[f"foot_{s}"] + np.array([0.085 * h, 0.0, -0.022 * h])
        heel = j[f"foot_{s}"] + np.array([-0.012 * h, 0.0, -0.012 * h])
        parts.append(Part(np.stack([heel, toe]), np.array([0.026, 0.018]) * h, look.shoes))
        parts.append(Part(np.stack([j[f"knee_{s}"], j[f"foot_{s}"]]), np.array([0.036 * g, 0.026]) * h, shin, 0.01))
        parts.append(
            Part(np.stack([j[f"hip_{s}"], j[f"knee_{s}"]]), np.array([0.052 * g, 0.038 * g]) * h, look.bottom, 0.02)
        )
    if look.garment in ("dress", "coat"):
        hem = [j["hip_l"] * 0.25 + j["knee_l"] * 0.75, j["hip_r"] * 0.25 + j["knee_r"] * 0.75]
        centres = np.stack([j["hip_l"], j["hip_r"], *hem])
        parts.append(Part(centres, np.array([0.058, 0.058, 0.056, 0.056]) * h * g, look.top, 0.05, "skirt"))
    return parts


def _trunk(look: PersonLook, j: dict[str, Vec]) -> list[Part]:
    h, g = look.height, look.girth
    up = j["up"]
    belly = j["hip"] + up * 0.10 * h
    wide = np.array([0.0, 0.035 * h * g, 0.0])
    inset = 0.82 * (j["shoulder_l"] - j["chest"])
    centres = np.stack([j["chest"] + inset, j["chest"] - inset, belly + wide, belly - wide, j["hip_l"], j["hip_r"]])
    centres[4:] += up * 0.01 * h
    radii = np.array([0.045, 0.045, 0.066 * g, 0.066 * g, 0.056 * g, 0.056 * g]) * h
    parts = [
        Part(np.stack([j["neck"] - up * 0.03 * h, j["head"]]), np.array([0.034, 0.03]) * h, look.skin * 0.9, -0.02)
    ]
    parts.append(Part(centres, radii, look.top, 0.06, look.garment))
    if "backpack" in look.extras:
        back = np.array([-0.085 * h * g, 0.0, 0.0])
        corners = np.stack(
            [belly + back + wide, belly + back - wide, j["chest"] + back + wide, j["chest"] + back - wide]
        )
        parts.append(Part(corners, np.full(4, 0.045 * h), look.inner * 0.8))
    return parts


def _arms(look: PersonLook, j: dict[str, Vec]) -> list[Part]:
    h, g, parts = look.height, look.girth, []
    for s in "lr":
        a, b, c = j[f"shoulder_{s}"], j[f"elbow_{s}"], j[f"hand_{s}"]
        tip = c + (c - b) * 0.22
        parts.append(Part(np.stack([c, tip]), np.array([0.018, 0.016]) * h, look.skin))
        lower = look.top if look.sleeves == 1.0 else look.skin
        parts.append(Part(np.stack([b, c]), np.array([0.027 * g, 0.019]) * h, lower, 0.0))
        parts.append(Part(np.stack([a, b]), np.array([0.037, 0.029]) * h * g, look.top, 0.01))
    if "bag" in look.extras:
        low = j["hand_l"] - np.array([0.0, 0.0, 0.13 * h])
        wide, deep = np.array([0.07 * h, 0.0, 0.0]), np.array([0.0, 0.0, 0.1 * h])
        corners = np.stack(
            [
                low + wide,
                low - wide,
                low + wide * 0.9 - deep,
                low - wide * 0.9 - deep,
            ]
        )
        parts.append(Part(corners, np.full(4, 0.014 * h), look.inner * 0.7))
    return parts


def _head(look: PersonLook, j: dict[str, Vec], gaze: float) -> list[Part]:
    h, head = look.height, j["head"]
    ahead = np.array([np.cos(gaze), np.sin(gaze), 0.0])
    top = np.array([0.0, 0.0, 0.016 * h])
    face = np.stack([head + ahead * 0.014 * h - top, head + ahead * 0.010 * h + top * 0.6])
    parts = [Part(face, np.array([0.044, 0.050]) * h, look.skin, 0.0, "face")]
    if look.hair_style != "bald":
        cap = np.stack([head - ahead * 0.014 * h + top * 1.1, head - ahead * 0.018 * h])
        parts.append(Part(cap, np.array([0.052, 0.050]) * h, look.hair, -0.005, "hair"))
        fringe = head + ahead * 0.014 * h + top * 2.2
        parts.append(
            Part(np.stack([fringe, cap[0] + top * 0.4]), np.array([0.034, 0.044]) * h, look.hair, 0.06, "hair")
        )
    if look.hair_style == "long":
        fall = j["neck"] - ahead * 0.035 * h - np.array([0.0, 0.0, 0.03 * h])
        parts.append(
            Part(np.stack([head - ahead * 0.02 * h, fall]), np.array([0.052, 0.046]) * h, look.hair, 0.0, "hair")
        )
    if look.hair_style == "bun":
        knot = head - ahead * 0.055 * h + top
        parts.append(Part(np.stack([knot, knot + top * 0.4]), np.array([0.022, 0.022]) * h, look.hair, 0.0, "hair"))
    if "hat" in look.extras:
        brim = np.stack([head + ahead * 0.055 * h + top * 1.9, head + top * 1.9])
        parts.append(Part(brim, np.array([0.016, 0.052]) * h, look.inner, 0.07))
        parts.append(
            Part(np.stack([head + top * 2.2, head + top * 2.6]), np.array([0.052, 0.048]) * h, look.inner, 0.075)
        )
    return parts


def person(
    look: PersonLook,
    pose: dict[str, float],
    at: tuple[float, float],
    heading: float,
    camera: Camera,
    floor: float = 0.0,
) -> Thing:
    """A person who stands or sits at `at` (x, y metres) on `floor` and faces `heading` (radians, 0 is +x)."""
    joints = _joints(look, pose)
    parts = _legs(look, joints) + _trunk(look, joints) + _arms(look, joints) + _head(look, joints, pose["look"])
    spin, base = turn(heading), np.array([at[0], at[1], floor])
    for part in parts:
        part.centres = part.centres @ spin.T + base
    ahead = spin @ np.array([np.cos(pose["look"]), np.sin(pose["look"]), 0.0])
    ring = np.array([(0.05, 0.0, 0.0), (-0.05, 0.0, 0.0), (0.0, 0.05, 0.0), (0.0, -0.05, 0.0)])
    casts = [(p.centres[:, None] + ring).reshape(-1, 3) for p in parts if p.kind != "hair"]
    return Thing(float(np.hypot(*at)), lambda canvas: _paint(canvas, parts, ahead, spin, look), casts)


def _paint(canvas: Canvas, parts: list[Part], ahead: Vec, spin: Vec, look: PersonLook) -> None:
    camera, light = canvas.camera, canvas.light
    centres = np.concatenate([p.centres for p in parts])
    radii = np.concatenate([p.radii for p in parts])
    pixels, depth = camera.project(centres)
    if depth.min() < 0.4:
        return
    scaled = radii * camera.focal / depth
    around = pixels[:, None] + scaled[:, None, None] * _UNIT
    low, high = around.reshape(-1, 2).min(0), around.reshape(-1, 2).max(0)
    if (high < 0).any() or (low > canvas.side).any():
        return
    layer = Layer(low, high, canvas.side)
    splits = np.cumsum([len(p.centres) for p in parts])[:-1]
    order = [float(np.mean(d)) - p.bias for p, d in zip(parts, np.split(depth, splits), strict=True)]
    starts = [0, *splits.tolist(), len(radii)]
    tone = _tone(light)
    levels, rims = _levels(pixels - layer.origin, scaled, light)
    for i in np.argsort(-np.array(order)).tolist():
        part, span = parts[i], slice(starts[i], starts[i + 1])
        _limb(layer, [level[span].reshape(-1, 2) for level in levels], part.bgr * tone, rims)
        _details(layer, part, pixels[span], scaled[span], ahead, spin, look, tone, canvas)
    layer.apply_shade(max(0.0, float(np.median(scaled)) * 0.22))
    if float(np.median(scaled)) > 4:
        folds = grain3("cloth", layer.mask.shape, int(depth[0] * 1000))
        layer.bgr = cv2.multiply(layer.bgr, folds, scale=1 / 128).astype(np.uint8, copy=False)
    canvas.stamp(layer, PERSON)


def _tone(light: Light) -> Vec:
    return light.ambient + light.diffuse * 0.55 * light.tint


def _levels(middle: Vec, radius: Vec, light: Light) -> tuple[list[NDArray[np.int32]], list[float]]:
    """Fixed-point circles (k, 12, 2) of every sphere, from the rim to the bright core, and the shade of each."""
    side = np.array([light.sun[0], -light.sun[2] * 0.5]) * 0.34
    away = 1.0 - 0.5 * max(0.0, float(light.sun[1]))
    strength = light.diffuse / (light.diffuse + light.ambient) * away
    steps = ((1.0, 0.0, 104 - 46 * strength), (0.78, 0.5, 122 - 8 * strength), (0.5, 1.0, 132 + 26 * strength))
    circles = [fixed(middle[:, None] + radius[:, None, None] * (_UNIT * size + side * move)) for size, move, _ in steps]
    return circles, [value for _, _, value in steps]


def _limb(layer: Layer, circles: list[NDArray[np.int32]], bgr: Vec, shades: list[float]) -> None:
    """Fill the hull of the circles, bright towards the light and dark at the rim."""
    outline = cv2.convexHull(circles[0])
    cv2.fillConvexPoly(layer.bgr, outline, colour(bgr), shift=2)
    cv2.fillConvexPoly(layer.mask, outline, (255,), shift=2)
    cv2.fillConvexPoly(layer.shade, outline, (shades[0],), shift=2)
    for circle, shade in zip(circles[1:], shades[1:], strict=True):
        cv2.fillConvexPoly(layer.shade, cv2.convexHull(circle), (shade,), shift=2)


def _details(
    layer: Layer,
    part: Part,
    middle: Vec,
    radius: Vec,
    ahead: Vec,
    spin: Vec,
    look: PersonLook,
    tone: Vec,
    canvas: Canvas,
) -> None:
    """Faces, stripes, open jackets and belts, where they can be seen."""
    size = float(radius.mean())
    toward = canvas.camera.eye - part.centres[0]
    toward /= float(np.linalg.norm(toward))
    if part.kind == "face" and size > 5:
        _features(layer, part, middle, size, ahead, toward, look, tone, canvas)
    if len(middle) != 6 or size < 5:
        return
    a, b, c, d = middle[0], middle[1], middle[4], middle[5]
    facing = float((spin @ np.array([1.0, 0.0, 0.0])) @ toward)
    if part.kind == "striped" and float(np.hypot(*(a - b))) > 1.3 * size:
        for v in np.linspace(0.0, 0.95, 6):
            ends = np.stack([a + (c - a) * v, b + (d - b) * v])
            ends += (ends - ends[::-1]) * 0.12
            layer.line(ends, look.inner * tone, size * 0.22)
    if part.kind in ("open", "coat") and facing > 0.15:
        neck, mid = (a + b) / 2, (c + d) / 2
        lean = (spin @ np.array([1.0, 0.0, 0.0]))[0] * size * 0.8
        neck, mid = neck + np.array((lean, -size * 0.5)), mid + np.array((lean, size * 0.6))
        half = (a - b) * 0.20 * facing
        strip = np.stack([neck + half, neck - half, mid - half * 0.7, mid + half * 0.7])
        layer.poly(strip, look.inner * tone, solid=False)
        layer.line(np.stack([neck + half, mid + half * 0.7]), look.top * tone * 0.6, size * 0.07)
        layer.line(np.stack([neck - half, mid - half * 0.7]), look.top * tone * 0.6, size * 0.07)


def _features(
    layer: Layer,
    part: Part,
    middle: Vec,
    size: float,
    ahead: Vec,
    toward: Vec,
    look: PersonLook,
    tone: Vec,
    canvas: Canvas,
) -> None:
    """Eyes, nose and mouth on the side of the head that looks at the camera."""
    if float(ahead @ toward) < 0.2:
        return
    across = np.array([-ahead[1], ahead[0], 0.0])
    r, centre = float(part.radii[1]), part.centres.mean(0)
    marks = [centre + ahead * r * 0.95 + across * r * s * 0.4 + np.array([0, 0, r * 0.18]) for s in (-1, 1)]
    mouth = [centre + ahead * r * 0.92 + across * r * s * 0.26 + np.array([0, 0, -r * 0.5]) for s in (-1, 1)]
    nose = [centre + ahead * r * k + np.array([0, 0, r * z]) for k, z in ((1.0, 0.15), (1.12, -0.12))]
    points = canvas.camera.project(np.stack(marks + mouth + nose))[0]
    for eye in points[:2]:
        layer.poly(eye + _UNIT * (size * 0.10, size * 0.085), look.hair * 0.35 * tone, solid=False)
        brow = eye + size * np.array([(-0.16, -0.22), (0.16, -0.22)])
        layer.line(brow, look.hair * 0.7 * tone, size * 0.08)
        if "glasses" in look.extras:
            ring = eye + _UNIT * size * 0.22
            layer.line(np.concatenate([ring, ring[:1]]), (30, 28, 28), size * 0.05)
    layer.line(points[2:4], look.skin * (0.6, 0.55, 0.72) * tone, size * 0.09)
    layer.line(points[4:6], look.skin * 0.78 * tone, size * 0.08)
