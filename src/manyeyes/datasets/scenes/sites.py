"""The four domains: where things stand, how they are lit and what the camera makes of them."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from manyeyes.datasets.scenes import props
from manyeyes.datasets.scenes.cars import car, random_car
from manyeyes.datasets.scenes.paint import (
    SUPERSAMPLE,
    Camera,
    Canvas,
    Image,
    Light,
    Rng,
    Thing,
    Vec,
    colour,
    fill,
    grain3,
    make_sun,
    texture,
)
from manyeyes.datasets.scenes.persons import person, random_person, random_pose
from manyeyes.errors import DataError, nearest

CLASSES = ("person", "car")
DOMAINS = ("a_office", "b_crossroads", "c_night", "generic")


def check_imgsz(imgsz: int) -> None:
    """Raises DataError unless `imgsz` is a multiple of 32 from 64 to 2048."""
    if not 64 <= imgsz <= 2048 or imgsz % 32:
        raise DataError(
            f"imgsz must be a multiple of 32 from 64 to 2048, got {imgsz}", key="imgsz", cure="Take 320, for example."
        )


def check_domain(domain: str) -> None:
    """Raises DataError, with the nearest name, unless `domain` is one of DOMAINS."""
    if domain not in DOMAINS:
        hint = nearest(domain, DOMAINS)
        cure = f"Did you mean {hint!r}?" if hint else f"Take one of {', '.join(DOMAINS)}."
        raise DataError(f"unknown domain {domain!r}", key="domain", cure=cure)


def render_scene(
    domain: str, imgsz: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """One picture of a domain.

    Args:
        domain: one of DOMAINS.
        imgsz: side of the picture in pixels, a multiple of 32 from 64 to 2048.
        rng: source of all chance; the same state gives the same picture.

    Returns:
        The picture, (imgsz, imgsz, 3) uint8 BGR; tight boxes of what is visible, (n, 4) float32 xyxy pixels; class
        ids, (n,) int64 indices into CLASSES. An object of which less than a quarter of its own area is visible
        (hidden by others or outside the frame), or whose box has a side under 8 pixels, has no box.

    Raises:
        DataError: an unknown domain or a bad size.
    """
    canvas = compose(domain, imgsz, rng)
    xyxy, class_id = canvas.boxes()
    small = cv2.resize(canvas.bgr, (imgsz, imgsz), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return _LENSES[domain](small, rng), xyxy, class_id


def compose(domain: str, imgsz: int, rng: np.random.Generator) -> Canvas:
    """A painted scene before the camera's noise, at twice `imgsz`, with the id of every pixel.

    Raises:
        DataError: an unknown domain or a bad size.
    """
    check_domain(domain)
    check_imgsz(imgsz)
    return _SITES[domain](imgsz * SUPERSAMPLE, rng)


def _paint_all(canvas: Canvas, things: list[Thing]) -> None:
    for item in sorted(things, key=lambda t: -t.distance):
        item.paint(canvas)


# -- a: office ------------------------------------------------------------------------------------------------------


def _office(side: int, rng: Rng) -> Canvas:
    camera = Camera(side, side * rng.uniform(0.72, 1.0), rng.uniform(1.5, 2.5), rng.uniform(0.05, 0.27))
    sun = make_sun(rng.uniform(2.4, 3.9), rng.uniform(0.9, 1.3))
    light = Light(sun, 0.42, 0.66, np.array([1.0, 1.0, 0.97]), np.array([238.0, 240, 236]), 0.34, 0.022)
    canvas = Canvas(camera, light, rng)
    depth, half = float(rng.uniform(6.5, 11)), float(rng.uniform(3.0, 5.0))
    _room(canvas, depth, half)
    things = _furniture(rng, depth, half, camera)
    canvas.shadows(things)
    _paint_all(canvas, things)
    return canvas


def _room(canvas: Canvas, depth: float, half: float) -> None:
    """Floor, walls, ceiling with light panels, windows, boards and a door."""
    rng, high = canvas.rng, 2.9
    wall = (
        np.array([(214, 222, 226), (196, 206, 206), (220, 214, 204), (186, 200, 212), (206, 216, 204)])[rng.integers(5)]
        * 1.0
    )
    floor = (
        np.array([(112, 112, 116), (96, 110, 128), (124, 150, 178), (150, 150, 146), (104, 92, 84)])[rng.integers(5)]
        * 1.0
    )
    canvas.gradient(floor * 0.9, floor * 1.08)
    canvas.ground_texture(str(rng.choice(["grain", "tiles", "planks", "asphalt"])), 60.0)
    near = 0.3
    flat = [(-half, near, high), (half, near, high), (half, depth, high), (-half, depth, high)]
    canvas.wall(flat, np.array([216.0, 220, 222]), np.array([192.0, 196, 198]), "plaster")
    for x in np.arange(-half + 0.8, half - 0.6, 1.9):
        for y in np.arange(1.2, depth - 0.5, 2.2):
            panel = [(x, y, high), (x + 1.0, y, high), (x + 1.0, y + 0.9, high), (x, y + 0.9, high)]
            canvas.wall(panel, (255, 255, 253))
    canvas.wall(
        [(-half, depth, 0), (half, depth, 0), (half, depth, high), (-half, depth, high)],
        wall * 1.02,
        wall * 0.9,
        "plaster",
    )
    for s in (-1.0, 1.0):
        quad = [(s * half, near, 0), (s * half, depth, 0), (s * half, depth, high), (s * half, near, high)]
        canvas.wall(quad, wall * (0.9 if s < 0 else 0.97), wall * 0.78, "plaster")
        canvas.wall(
            [(s * half, near, 0), (s * half, depth, 0), (s * half, depth, 0.1), (s * half, near, 0.1)], wall * 0.5
        )
    canvas.wall([(-half, depth, 0), (half, depth, 0), (half, depth, 0.1), (-half, depth, 0.1)], wall * 0.5)
    x = -half + 0.4
    while x < half - 1.3:
        width = float(rng.uniform(0.9, 2.2))
        _on_wall(canvas, x, min(x + width, half - 0.2), depth)
        x += width + float(rng.uniform(0.3, 1.0))


def _on_wall(canvas: Canvas, left: float, right: float, depth: float) -> None:
    rng, y = canvas.rng, depth - 0.01
    kind = rng.choice(["window", "poster", "board", "door", "none"], p=[0.42, 0.2, 0.14, 0.12, 0.12])

    def quad(low: float, high: float) -> Vec:
        return np.array([(left, y, low), (right, y, low), (right, y, high), (left, y, high)])

    if kind == "window":
        pixels = props.wall_picture(canvas, quad(0.85, 2.4), np.array([226.0, 208, 186]))
        _outside(canvas, pixels, right - left)
        bar = np.array([70.0, 68, 66])
        fill(canvas.bgr, props.inside(pixels, 0.48, 0.0, 0.52, 1.0), colour(bar))
    elif kind == "poster":
        tone = props.LOUD[rng.integers(8)] * 0.5 + 110
        pixels = props.wall_picture(canvas, quad(1.0, 2.2), tone, "cloud")
        for _ in range(4):
            u, v = rng.uniform(0.05, 0.6, 2)
            fill(
                canvas.bgr,
                props.inside(pixels, u, v, u + rng.uniform(0.1, 0.35), v + rng.uniform(0.08, 0.35)),
                colour(props.LOUD[rng.integers(8)]),
            )
    elif kind == "board":
        pixels = props.wall_picture(canvas, quad(0.9, 2.1), np.array([244.0, 246, 246]))
        for _ in range(6):
            u, v = rng.uniform(0.05, 0.7), rng.uniform(0.08, 0.9)
            fill(
                canvas.bgr,
                props.inside(pixels, u, v, u + rng.uniform(0.08, 0.28), v + 0.025),
                colour(props.LOUD[rng.integers(8)]),
            )
    elif kind == "door":
        props.wall_picture(canvas, quad(0.0, 2.1), props.WOOD[rng.integers(5)], "wood")


def _outside(canvas: Canvas, pixels: Vec, width: float) -> None:
    """What is seen through a window: sky, a house front, trees and now and then a whole car in the street."""
    rng = canvas.rng
    canvas.face(props.inside(pixels, 0, 0, 1, 0.62), (236, 216, 190), (240, 232, 222))
    u = 0.0
    while u < 1.0:
        step = rng.uniform(0.15, 0.4)
        tone = np.array([168.0, 176, 184]) * rng.uniform(0.75, 1.1)
        canvas.face(props.inside(pixels, u, rng.uniform(0.1, 0.5), min(1.0, u + step), 0.66), tone, tone * 0.9)
        u += step
    canvas.face(props.inside(pixels, 0, 0.64, 1, 1), (150, 152, 150), (136, 138, 136))
    if width > 1.1 and rng.random() < 0.12:
        _car_outside(canvas, pixels)


def _car_outside(canvas: Canvas, pixels: Vec) -> None:
    """A whole car in the street behind a window, if it fits between the frames."""
    rng, inner = canvas.rng, canvas.camera
    low, high = pixels.min(0), pixels.max(0)
    span = float(high[0] - low[0])
    distance = 4.6 * inner.focal / (span * rng.uniform(0.5, 0.7))
    middle = (low + high) / 2 + (0.0, 0.34 * float(high[1] - low[1]))
    x = (float(middle[0]) - canvas.side / 2) * distance / inner.focal
    dip = np.arctan((float(middle[1]) - canvas.side / 2) / inner.focal) + inner.pitch
    street = Camera(canvas.side, inner.focal, distance * float(np.tan(dip)) + 0.6, inner.pitch)
    item = car(random_car(rng), (x, distance), float(rng.integers(2)) * np.pi + rng.normal(0, 0.3), street)
    shape = street.project(item.casts[0])[0]
    if (shape.min(0) > low).all() and (shape.max(0) < high).all():
        canvas.camera = street
        item.paint(canvas)
        canvas.camera = inner


def _furniture(rng: Rng, depth: float, half: float, camera: Camera) -> list[Thing]:
    things: list[Thing] = []
    for y in np.arange(2.6 + rng.uniform(0, 0.7), depth - 1.2, rng.uniform(1.7, 2.3)):
        for x in np.arange(-half + 1.0, half - 0.6, rng.uniform(1.9, 2.5)):
            if rng.random() < 0.62:
                things += _workplace(rng, (float(x + rng.normal(0, 0.15)), float(y)), camera)
    for _ in range(int(rng.integers(1, 4))):
        at = _free(rng, half * 0.85, 2.0, depth - 0.5)
        pose = random_pose(rng, str(rng.choice(["stand", "walk"])))
        things.append(person(random_person(rng, hatted=0.03), pose, at, rng.uniform(0, 2 * np.pi), camera))
    for _ in range(int(rng.integers(2, 6))):
        at = _free(rng, half * 0.95, 2.2, depth - 0.4)
        things.append(_office_clutter(rng, at, half, depth))
    return things


def _workplace(rng: Rng, at: tuple[float, float], camera: Camera) -> list[Thing]:
    """A desk, a chair and often somebody at it, seen from the front, the back or the side."""
    yaw = float(rng.choice([0.0, np.pi, np.pi / 2, -np.pi / 2], p=[0.42, 0.34, 0.12, 0.12]) + rng.normal(0, 0.05))
    away = np.array([-np.sin(yaw), np.cos(yaw)])
    seat = (float(at[0] + away[0] * 0.62), float(at[1] + away[1] * 0.62))
    heading = yaw - np.pi / 2 + float(rng.normal(0, 0.15))
    things = props.desk(rng, at, yaw, int(rng.integers(0, 3)))
    things.append(props.chair(rng, seat, heading))
    if rng.random() < 0.55:
        things.append(person(random_person(rng, hatted=0.03), random_pose(rng, "sit"), seat, heading, camera))
    return things


def _office_clutter(rng: Rng, at: tuple[float, float], half: float, depth: float) -> Thing:
    kind = rng.choice(["shelf", "plant", "coats", "pillar", "crate", "cabinet", "cooler"])
    if kind == "shelf":
        return props.shelf(rng, (at[0], depth - 0.3), float(rng.uniform(0.8, 1.6)), float(rng.uniform(1.2, 2.1)))
    if kind == "plant":
        return props.plant(rng, at, float(rng.uniform(0.9, 1.9)))
    if kind == "coats":
        return props.post(rng, at, 1.75, 0.05, (70, 84, 100), "coats")
    if kind == "pillar":
        return props.post(rng, at, 2.9, float(rng.uniform(0.25, 0.45)), (206, 210, 212))
    if kind == "cooler":
        return props.crate(rng, at, (0.32, 0.32, 1.3), (226, 214, 200))
    tall = 1.3 if kind == "cabinet" else rng.uniform(0.3, 0.8)
    return props.crate(rng, at, (rng.uniform(0.4, 0.7), 0.45, tall), props.LOUD[rng.integers(8)] * 0.7 + 50, "grain")


def _free(rng: Rng, half: float, near: float, far: float) -> tuple[float, float]:
    """A place on the floor that a camera with a field of about 55° sees."""
    y = float(rng.uniform(near, far))
    return float(np.clip(rng.uniform(-0.55, 0.55) * y, -half, half)), y


# -- b: crossroads --------------------------------------------------------------------------------------------------


def _day(rng: Rng) -> Light:
    if rng.random() < 0.7:
        sun = make_sun(rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.15))
        return Light(sun, 0.62, 0.52, np.array([0.90, 0.98, 1.05]), shadow=0.5, soft=0.006)
    return Light(make_sun(0.4, 1.3), 0.22, 0.74, sky=np.array([214.0, 210, 206]), shadow=0.25, soft=0.03)


def _sky(canvas: Canvas) -> None:
    rng = canvas.rng
    top = np.array([(214, 160, 112), (208, 190, 176), (228, 196, 158)])[rng.integers(3)] * rng.uniform(0.9, 1.06)
    low = top * 0.35 + np.array([232.0, 232, 230]) * 0.65
    horizon = int(np.clip(canvas.camera.horizon, 0, canvas.side))
    canvas.gradient(top, low, 0, horizon)
    if horizon > 8:
        # Clouds flatten towards the horizon, so the texture is squeezed in height.
        a, b, rows = int(rng.integers(300)), int(rng.integers(200)), int(np.clip(horizon * 0.45, 16, 200))
        patch = cv2.resize(texture("cloud")[a : a + rows, b : b + 300], (canvas.side, horizon)).astype(np.float32)
        puffs = np.clip((patch - 118) * rng.uniform(0.8, 1.8), 0, 255).astype(np.uint8)
        sky = canvas.bgr[:horizon]
        white = np.full_like(sky, 248)
        cover = cv2.merge([puffs, puffs, puffs])
        canvas.bgr[:horizon] = cv2.add(
            cv2.multiply(sky, cv2.bitwise_not(cover), scale=1 / 255), cv2.multiply(white, cover, scale=1 / 255)
        )


def _crossroads(side: int, rng: Rng) -> Canvas:
    camera = Camera(side, side * rng.uniform(1.0, 1.5), rng.uniform(5.0, 9.0), rng.uniform(0.22, 0.42))
    canvas = Canvas(camera, _day(rng), rng)
    _sky(canvas)
    centre = (float(rng.normal(0, 2.0)), float(camera.height / np.tan(camera.pitch) * rng.uniform(0.8, 1.1)))
    yaw = float(rng.uniform(-0.65, 0.65))
    width = float(rng.uniform(6.5, 8.5))
    _roads(canvas, centre, yaw, width)
    things = _traffic(rng, camera, centre, yaw, width) + _street(rng, camera, centre, yaw, width)
    canvas.shadows(things)
    _paint_all(canvas, things)
    return canvas


def _along(centre: tuple[float, float], yaw: float, s: ArrayLike, t: ArrayLike) -> Vec:
    """(n, 2) ground metres from (n,) lengths along and across a road."""
    s, t = np.asarray(s, dtype=np.float64), np.asarray(t, dtype=np.float64)
    c, d = np.cos(yaw), np.sin(yaw)
    return np.stack([centre[0] + s * c - t * d, centre[1] + s * d + t * c], -1)


def _strip(centre: tuple[float, float], yaw: float, s0: float, s1: float, t0: float, t1: float) -> Vec:
    return _along(centre, yaw, [s0, s1, s1, s0], [t0, t0, t1, t1])


def _roads(canvas: Canvas, centre: tuple[float, float], yaw: float, width: float) -> None:
    rng = canvas.rng
    paving = np.array([(150, 158, 164), (130, 142, 154), (92, 128, 112), (160, 160, 158)])[rng.integers(4)] * 1.0
    canvas.gradient(paving * 0.98, paving, canvas.camera.horizon)
    tar = np.array([96.0, 94, 92]) * rng.uniform(0.75, 1.2)
    half = width / 2
    for grow, tone in ((0.35, paving * 1.12 + 12), (0.0, tar)):
        for angle in (yaw, yaw + np.pi / 2):
            canvas.ground(_strip(centre, angle, -70, 70, -half - grow, half + grow), tone)
    marks = []
    for angle in (yaw, yaw + np.pi / 2):
        for way in (-1.0, 1.0):
            for k in range(9):
                s = way * (half + 5.5 + k * 4.2)
                marks.append(_strip(centre, angle, s, s + way * 2.2, -0.08, 0.08))
            lane = (0.1, half - 0.2) if way < 0 else (-half + 0.2, -0.1)
            marks.append(_strip(centre, angle, way * (half + 4.4), way * (half + 4.9), -lane[1], -lane[0]))
            for t in np.arange(-half + 0.35, half - 0.3, 1.0):
                marks.append(_strip(centre, angle, way * (half + 0.8), way * (half + 3.6), t, t + 0.5))
    canvas.grounds(marks, (226, 230, 230))
    canvas.ground_texture("asphalt", 26.0)


def _traffic(rng: Rng, camera: Camera, centre: tuple[float, float], yaw: float, width: float) -> list[Thing]:
    """Cars in their lanes, turning, and parked; people on the pavements and the crossings."""
    things: list[Thing] = []
    taken: list[Vec] = []

    def put(place: Vec, heading: float) -> None:
        if place[1] < 5 or any(np.hypot(*(place - other)) < 4.6 for other in taken):
            return
        taken.append(place)
        things.append(car(random_car(rng), (float(place[0]), float(place[1])), heading, camera))

    for _ in range(int(rng.integers(6, 14))):
        angle = yaw + (np.pi / 2 if rng.random() < 0.5 else 0.0)
        way = 1.0 if rng.random() < 0.5 else -1.0
        s = float(rng.choice([rng.uniform(-18, 26), -way * (width / 2 + rng.uniform(5, 20))]))
        put(
            _along(centre, angle, s, -way * width * 0.25 + rng.normal(0, 0.15)),
            angle + (0 if way > 0 else np.pi) + rng.normal(0, 0.04),
        )
    if rng.random() < 0.5:
        put(_along(centre, yaw, rng.uniform(-2, 2), rng.uniform(-2, 2)), rng.uniform(0, 2 * np.pi))
    for k in range(6):
        if rng.random() < 0.4:
            put(
                _along(centre, yaw, (k - 3) * 5.6 + rng.normal(0, 0.2) + 8 * np.sign(k - 2.5), width / 2 + 1.3),
                yaw + np.pi * rng.integers(2),
            )
    for _ in range(int(rng.integers(2, 9))):
        angle = yaw + (np.pi / 2 if rng.random() < 0.5 else 0.0)
        s, t = rng.uniform(-20, 20), float(rng.choice([-1.0, 1.0])) * (width / 2 + rng.uniform(0.8, 3.0))
        if rng.random() < 0.35:
            s, t = float(rng.choice([-1.0, 1.0])) * (width / 2 + 2.2), rng.uniform(-3, 3)
        place = _along(centre, angle, s, t)
        if place[1] > 4 and all(np.hypot(*(place - other)) > 2.4 for other in taken):
            pose = random_pose(rng, "walk" if rng.random() < 0.75 else "stand")
            things.append(
                person(random_person(rng), pose, (float(place[0]), float(place[1])), rng.uniform(0, 2 * np.pi), camera)
            )
    return things


def _street(rng: Rng, camera: Camera, centre: tuple[float, float], yaw: float, width: float) -> list[Thing]:
    """Houses, trees, lamps, signals, signs, bins and hedges off the road."""
    things: list[Thing] = []
    edge = width / 2
    for a in (-1.0, 1.0):
        for b in (-1.0, 1.0):
            corner = _along(centre, yaw, a * (edge + 1.0), b * (edge + 1.0))
            if corner[1] > 4 and rng.random() < 0.8:
                cap, tall = str(rng.choice(["signal", "sign", "lamp"])), rng.uniform(2.6, 5.0)
                things.append(props.post(rng, (float(corner[0]), float(corner[1])), tall, 0.12, (84, 84, 82), cap))
            for _ in range(3):
                s, t = a * (edge + rng.uniform(2.4, 13)), b * (edge + rng.uniform(2.4, 9))
                x, y = _along(centre, yaw, s, t).tolist()
                if y > 7:
                    things.append(_street_clutter(rng, (x, y)))
            size = (float(rng.uniform(9, 16)), float(rng.uniform(8, 12)), float(rng.uniform(6, 15)))
            x, y = _along(centre, yaw, a * (edge + 6 + size[0] / 2), b * (edge + 8 + size[1] / 2)).tolist()
            if y - size[1] > centre[1]:
                things.append(props.building(rng, (x, y), size, yaw))
    for x in np.arange(-48, 49, 12.0):
        size = (12.0, 8.0, float(rng.uniform(5, 16)))
        things.append(props.building(rng, (float(x), centre[1] + 46 + rng.uniform(0, 6)), size))
    return things


def _street_clutter(rng: Rng, at: tuple[float, float]) -> Thing:
    kind = rng.choice(["tree", "bush", "bin", "container", "lamp", "post"], p=[0.34, 0.2, 0.12, 0.12, 0.12, 0.10])
    if kind == "tree":
        return props.tree(rng, at, float(rng.uniform(3.0, 6.5)))
    if kind == "bush":
        return props.bush(rng, at, float(rng.uniform(0.8, 1.8)))
    if kind == "lamp":
        return props.post(rng, at, 5.5, 0.13, (96, 98, 98), "lamp")
    if kind == "post":
        return props.post(
            rng, at, float(rng.uniform(0.8, 1.5)), float(rng.uniform(0.2, 0.5)), props.LOUD[rng.integers(8)]
        )
    bgr = props.LOUD[rng.integers(8)]
    size = (0.6, 0.6, 1.1) if kind == "bin" else (rng.uniform(2.0, 4.0), 1.6, rng.uniform(1.1, 1.6))
    return props.crate(rng, at, size, bgr, "grain")


# -- c: car park at night -------------------------------------------------------------------------------------------


def _night(side: int, rng: Rng) -> Canvas:
    camera = Camera(side, side * rng.uniform(0.9, 1.25), rng.uniform(3.2, 6.0), rng.uniform(0.14, 0.30))
    light = Light(
        make_sun(rng.uniform(0, 6.3), 1.1), 0.45, 0.62, sky=np.array([120.0, 130, 140]), shadow=0.45, soft=0.012
    )
    canvas = Canvas(camera, light, rng)
    canvas.gradient((60, 44, 34), (92, 84, 84), 0, camera.horizon)
    canvas.gradient((112, 112, 112), (104, 104, 104), camera.horizon)
    things, lamps, beams = _car_park(canvas)
    canvas.ground_texture("asphalt", 24.0)
    canvas.shadows(things)
    _paint_all(canvas, things)
    _darkness(canvas, lamps, beams)
    return canvas


def _car_park(canvas: Canvas) -> tuple[list[Thing], list[Vec], list[tuple[Vec, Vec]]]:
    """Stalls with cars, people between them, lamp posts: the things, the lamps (x, y, z) and the beams' ends."""
    rng, camera = canvas.rng, canvas.camera
    yaw, first = float(rng.uniform(-0.35, 0.35)), float(rng.uniform(8, 11))
    things: list[Thing] = []
    beams: list[tuple[Vec, Vec]] = []
    fullness = rng.uniform(0.25, 0.65)
    taken: list[Vec] = []
    lines: list[Vec] = []
    for row in range(3):
        y = first + row * 6.2 + (3.4 if row >= 2 else 0.0)
        facing = yaw + (np.pi / 2 if row % 2 else -np.pi / 2)
        for k in range(-6, 7):
            x = k * 2.7
            lines.append(_strip((0.0, y), yaw, x - 1.4, x - 1.3, -2.5, 2.5))
            place = _along((0.0, y), yaw, x, rng.normal(0, 0.2))
            if rng.random() < fullness and place[1] > 5 and abs(place[0]) < 0.58 * place[1] + 2:
                heading = facing + (np.pi if rng.random() < 0.3 else 0.0) + rng.normal(0, 0.04)
                taken.append(place)
                things.append(car(random_car(rng), (float(place[0]), float(place[1])), heading, camera))
    canvas.grounds(lines, (186, 190, 192))
    if rng.random() < 0.6:
        place = _along((0.0, first + 9.6), yaw, rng.uniform(-5, 5), 1.2)
        heading = yaw + np.pi * float(rng.integers(2)) + rng.normal(0, 0.2)
        things.append(car(random_car(rng, lamps=True), (float(place[0]), float(place[1])), heading, camera))
        ahead = np.array([np.cos(heading), np.sin(heading), 0.0])
        nose = np.array([place[0], place[1], 0.6]) + ahead * 2.3
        beams.append((nose, nose + ahead * 9))
    for _ in range(int(rng.integers(1, 6))):
        at = _free(rng, 12, 6.0, 20.0)
        if any(np.hypot(*(other - at)) < 1.7 for other in taken):
            continue
        pose = random_pose(rng, "walk" if rng.random() < 0.6 else "stand")
        things.append(person(random_person(rng), pose, at, rng.uniform(0, 2 * np.pi), camera))
    lamps = []
    for _ in range(int(rng.integers(2, 5))):
        x, y = _free(rng, 14, 9.0, 27.0)
        things.append(props.post(rng, (x, y), 5.0, 0.14, (96, 98, 98), "lamp"))
        lamps.append(np.array([x + (1.4 if x < 0 else -1.4), y, 4.8]))
    for _ in range(int(rng.integers(1, 5))):
        things.append(_street_clutter(rng, _free(rng, 16, 8.0, 30.0)))
    for x in np.arange(-40, 41, 14.0):
        size = (14.0, 6.0, float(rng.uniform(3, 11)))
        things.append(props.building(rng, (float(x), 44.0), size, lit=0.16))
    return things, lamps, beams


def _darkness(canvas: Canvas, lamps: list[Vec], beams: list[tuple[Vec, Vec]]) -> None:
    """Multiply the picture by the light that reaches it, and add glows."""
    rng, camera, side = canvas.rng, canvas.camera, canvas.side
    n = side // 8
    level = np.full((n, n, 3), np.array([0.22, 0.17, 0.155]) * rng.uniform(0.75, 1.25), np.float32)
    glow = np.zeros((n, n, 3), np.float32)
    yy, xx = np.mgrid[0:n, 0:n].astype(np.float32) * 8.0
    warm = np.array([(0.45, 0.78, 1.0), (0.9, 0.96, 1.0), (0.6, 0.86, 1.0)])[rng.integers(3)].astype(np.float32)
    for lamp in lamps:
        foot, depth = camera.project(lamp * (1, 1, 0))
        radius = 6.0 * camera.focal / max(float(depth), 3.0)
        flat = radius * max(0.25, float(np.sin(camera.pitch + 0.15)))
        pool = np.exp(-(((xx - foot[0]) / radius) ** 2) - ((yy - foot[1] + flat * 0.3) / (flat * 1.4)) ** 2)
        level += pool[..., None] * warm * 0.62
        head = camera.project(lamp)[0]
        away = (xx - head[0]) ** 2 + (yy - head[1]) ** 2
        glow += (np.exp(-away / (0.075 * radius) ** 2) * 260 + np.exp(-away / (0.45 * radius) ** 2) * 52)[
            ..., None
        ] * warm
    for nose, end in beams:
        (a, b), depth = camera.project(np.stack([nose, end * (1, 1, 0)]))
        wide = 1.6 * camera.focal / max(float(depth[0]), 3.0)
        along = np.clip(
            ((xx - a[0]) * (b[0] - a[0]) + (yy - a[1]) * (b[1] - a[1])) / max(float(((b - a) ** 2).sum()), 1.0), 0, 1
        )
        off = (xx - a[0] - along * (b[0] - a[0])) ** 2 + (yy - a[1] - along * (b[1] - a[1])) ** 2
        level += (np.exp(-off / (wide * (0.5 + along)) ** 2) * (1 - along) * 0.7)[..., None].astype(np.float32)
        glow += (np.exp(-((xx - a[0]) ** 2 + (yy - a[1]) ** 2) / (0.3 * wide) ** 2) * 150)[..., None].astype(np.float32)
    factor = cv2.resize(np.clip(level * 200, 0, 255).astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)
    halo = cv2.resize(np.clip(glow, 0, 255).astype(np.uint8), (side, side), interpolation=cv2.INTER_LINEAR)
    dark = cv2.multiply(canvas.bgr, factor, scale=1 / 200)
    canvas.bgr = cv2.add(dark, halo).astype(np.uint8, copy=False)


# -- generic --------------------------------------------------------------------------------------------------------


def _generic(side: int, rng: Rng) -> Canvas:
    camera = Camera(side, side * rng.uniform(0.8, 1.6), rng.uniform(1.2, 5.0), rng.uniform(0.02, 0.35))
    if rng.random() < 0.5:
        light = _day(rng)
    else:
        tint = np.clip(rng.normal(1.0, 0.1, 3), 0.8, 1.2)
        light = Light(make_sun(rng.uniform(0, 6.3), rng.uniform(0.5, 1.4)), 0.5, 0.55, tint, shadow=0.4, soft=0.02)
    canvas = Canvas(camera, light, rng)
    if rng.random() < 0.45:
        _sky(canvas)
    else:
        tone = rng.uniform(80, 225) + rng.normal(0, 18, 3)
        canvas.gradient(tone * rng.uniform(0.6, 1.0), tone, 0, camera.horizon)
    _terrain(canvas)
    things = _strangers(rng, camera)
    canvas.shadows(things)
    _paint_all(canvas, things)
    return canvas


def _terrain(canvas: Canvas) -> None:
    rng = canvas.rng
    grounds = (
        ((60, 128, 96), "grass", 30.0), ((150, 196, 220), "asphalt", 30.0), ((150, 160, 168), "paving", 48.0),
        ((170, 170, 172), "grain", 40.0), ((96, 120, 150), "planks", 60.0), ((230, 228, 224), "cloud", 20.0),
    )  # fmt: skip
    bgr, kind, scale = grounds[rng.integers(len(grounds))]
    tone = np.array(bgr, dtype=np.float64) * rng.uniform(0.7, 1.1)
    canvas.gradient(tone * 0.92, tone, canvas.camera.horizon)
    for _ in range(int(rng.integers(0, 5))):
        at = _free(rng, 20, 3.0, 30.0)
        a = np.sort(rng.uniform(0, 2 * np.pi, 6))
        blob = np.stack([at[0] + np.cos(a) * rng.uniform(1, 4), at[1] + np.sin(a) * rng.uniform(1, 4)], 1)
        canvas.ground(blob, tone * rng.uniform(0.7, 1.2) + rng.normal(0, 12, 3))
    canvas.ground_texture(kind, scale)


def _strangers(rng: Rng, camera: Camera) -> list[Thing]:
    things: list[Thing] = []
    taken: list[Vec] = []

    def place(near: float, far: float, gap: float) -> tuple[float, float] | None:
        at = np.array(_free(rng, 30, near, far))
        if any(np.hypot(*(at - other)) < gap for other in taken):
            return None
        taken.append(at)
        return float(at[0]), float(at[1])

    for _ in range(int(rng.integers(0, 5))):
        at = place(7.0, 24.0, 4.0)
        if at:
            things.append(car(random_car(rng), at, rng.uniform(0, 2 * np.pi), camera))
    for _ in range(int(rng.integers(1, 6))):
        at = place(3.5, 14.0, 0.8)
        if at:
            pose = random_pose(rng, str(rng.choice(["stand", "walk", "sit"], p=[0.45, 0.45, 0.1])))
            things.append(person(random_person(rng), pose, at, rng.uniform(0, 2 * np.pi), camera))
    for _ in range(int(rng.integers(2, 9))):
        at = place(4.0, 26.0, 1.2)
        if at:
            things.append(_shape(rng, at))
    return things


def _shape(rng: Rng, at: tuple[float, float]) -> Thing:
    kind = rng.integers(4)
    bgr = rng.uniform(30, 230, 3)
    if kind == 0:
        return props.crate(rng, at, rng.uniform(0.3, 2.4, 3), bgr, str(rng.choice(["grain", "wood", "cloud"])))
    if kind == 1:
        return props.post(
            rng, at, float(rng.uniform(1, 3)), float(rng.uniform(0.1, 0.5)), bgr, str(rng.choice(["", "coats", "sign"]))
        )
    if kind == 2:
        return props.bush(rng, at, float(rng.uniform(0.6, 1.8)))
    return props.tree(rng, at, float(rng.uniform(2, 5)), rng.uniform(30, 160, 3))


# -- cameras --------------------------------------------------------------------------------------------------------


def _noise(image: Image, rng: Rng, kind: str, amount: float) -> Image:
    """Add a texture's grain, other for each channel."""
    h, w = image.shape[:2]
    shifts = rng.integers(0, 10_000, 3).tolist()
    planes = cv2.merge([np.ascontiguousarray(grain3(kind, (h, w), s)[..., 0]) for s in shifts])
    return cv2.addWeighted(image, 1.0, planes, amount, -128 * amount).astype(np.uint8, copy=False)


def _tone_curve(image: Image, gain: ArrayLike, lift: float = 0.0) -> Image:
    levels = np.arange(256)[:, None] * np.broadcast_to(np.asarray(gain, dtype=np.float64), (3,)) + lift
    table = np.clip(levels, 0, 255).astype(np.uint8).reshape(256, 1, 3)
    return cv2.LUT(image, table).astype(np.uint8, copy=False)


def _ceiling_camera(image: Image, rng: Rng) -> Image:
    cast = np.array([1.0, 1.015, 0.97]) * rng.uniform(0.86, 1.04)
    return _noise(_tone_curve(image, cast, 4.0), rng, "grain", 0.25)


def _street_camera(image: Image, rng: Rng) -> Image:
    return _noise(_tone_curve(image, np.array([0.97, 1.0, 1.02]) * rng.uniform(0.92, 1.06)), rng, "grain", 0.2)


def _night_camera(image: Image, rng: Rng) -> Image:
    """Blur, shot noise and hard compression."""
    soft = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.9)).astype(np.uint8, copy=False)
    noisy = _noise(soft, rng, "white", rng.uniform(0.8, 1.5))
    packed = cv2.imencode(".jpg", noisy, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(38, 65))])[1]
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), dtype=np.uint8)


def _any_camera(image: Image, rng: Rng) -> Image:
    return _noise(_tone_curve(image, rng.uniform(0.85, 1.1, 3)), rng, "grain", float(rng.uniform(0.1, 0.6)))


_SITES: dict[str, Callable[[int, Rng], Canvas]] = {
    "a_office": _office,
    "b_crossroads": _crossroads,
    "c_night": _night,
    "generic": _generic,
}
_LENSES: dict[str, Callable[[Image, Rng], Image]] = {
    "a_office": _ceiling_camera,
    "b_crossroads": _street_camera,
    "c_night": _night_camera,
    "generic": _any_camera,
}
