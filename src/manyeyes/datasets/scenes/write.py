"""Scenes as datasets on disk, and sheets of them for the documentation."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from manyeyes.datasets.sample import SPLITS
from manyeyes.datasets.scenes.sites import CLASSES, DOMAINS, check_domain, check_imgsz, render_scene
from manyeyes.errors import DataError, ResourceError

Picture = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]
Progress = Callable[[int, int], None]
_BOX_COLOURS = ((80, 220, 255), (255, 170, 60))


def split_sizes(domain: str, images: int) -> dict[str, int]:
    """Pictures per split of one domain; the car park at night has a third of the others'."""
    train = max(1, images // 3) if domain == "c_night" else images
    return {"train": train, "val": max(4, round(train * 0.2)), "test": max(4, round(train * 0.4))}


def write_scenes(
    folder: Path | str,
    *,
    images: int,
    imgsz: int,
    seed: int,
    domains: Sequence[str] = ("a_office", "b_crossroads", "c_night"),
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Write one dataset in YOLO layout per domain.

    The same (seed, domain, split, index) gives the same bytes whatever the counts and the order.

    Args:
        folder: new or empty folder; a domain's dataset becomes folder/domain with data.yaml, images/ and labels/.
        images: training pictures of the largest sites; c_night gets a third, val a fifth and test two fifths of the
            training pictures, at least 4.
        imgsz: side of the pictures in pixels, a multiple of 32 from 64 to 2048.
        seed: not negative.
        domains: names out of DOMAINS.
        progress: called with (pictures done, pictures in all).

    Returns:
        The folder of each domain.

    Raises:
        DataError: a bad argument, or a folder that is not empty.
        ResourceError: the folder cannot be written.
    """
    target = Path(folder)
    _check(target, images, imgsz, seed, domains)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        total = sum(sum(split_sizes(d, images).values()) for d in domains)
        done = 0
        for domain in domains:
            for split, count in split_sizes(domain, images).items():
                done = _write_split(part / domain, domain, split, count, imgsz, seed, (done, total), progress)
            _write_yaml(part / domain)
        part.chmod(0o755)
        if target.exists():
            target.rmdir()
        part.rename(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {domain: target / domain for domain in domains}


def _unwritable(target: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"cannot write the scenes: {error.strerror}", file=target, cure="Choose a folder you may write to."
    )


def _check(target: Path, images: int, imgsz: int, seed: int, domains: Sequence[str]) -> None:
    if images < 1:
        raise DataError(f"images must be at least 1, got {images}", key="images", cure="Ask for one picture or more.")
    if seed < 0:
        raise DataError(f"seed must not be negative, got {seed}", key="seed", cure="Take 0 or more.")
    check_imgsz(imgsz)
    if not domains or len(set(domains)) != len(domains):
        raise DataError("domains must name each domain once", key="domains", cure=f"Choose from {', '.join(DOMAINS)}.")
    for domain in domains:
        check_domain(domain)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(
            "the target is not an empty folder", file=target, cure="Name a new folder, or empty this one first."
        )


def _write_split(
    root: Path,
    domain: str,
    split: str,
    count: int,
    imgsz: int,
    seed: int,
    state: tuple[int, int],
    progress: Progress | None,
) -> int:
    images, labels = root / "images" / split, root / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    done, total = state
    for i in range(count):
        rng = np.random.default_rng([seed, DOMAINS.index(domain), SPLITS.index(split), i])
        image, xyxy, class_id = render_scene(domain, imgsz, rng)
        packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        (images / f"{i:05d}.jpg").write_bytes(packed.tobytes())
        (labels / f"{i:05d}.txt").write_text(_label_lines(xyxy, class_id, imgsz), encoding="utf-8")
        done += 1
        if progress:
            progress(done, total)
    return done


def _label_lines(xyxy: NDArray[np.float32], class_id: NDArray[np.int64], imgsz: int) -> str:
    centre, size = (xyxy[:, :2] + xyxy[:, 2:]) / (2 * imgsz), (xyxy[:, 2:] - xyxy[:, :2]) / imgsz
    rows = zip(class_id.tolist(), np.concatenate([centre, size], 1).tolist(), strict=True)
    return "".join(f"{c} " + " ".join(f"{v:.6f}" for v in row) + "\n" for c, row in rows)


def _write_yaml(root: Path) -> None:
    lines = ["path: ."] + [f"{split}: images/{split}" for split in SPLITS] + ["names:"]
    lines += [f"  {i}: {name}" for i, name in enumerate(CLASSES)]
    (root / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def contact_sheet(
    pictures: Path | str | Sequence[Picture], columns: int, path: Path | str, *, boxes: bool = True, limit: int = 64
) -> Path:
    """Write a grid of pictures as one image file.

    Args:
        pictures: a folder of pictures (.jpg or .png, at any depth, spread evenly by name), whose labels are looked
            for in the folder "labels" beside "images"; or (picture (h, w, 3) BGR, xyxy (n, 4), class ids (n,)) triples.
        columns: pictures in a row.
        path: file to write; the ending says the format.
        boxes: draw the boxes.
        limit: pictures at most.

    Returns:
        `path`.

    Raises:
        DataError: no pictures, or columns < 1.
        ResourceError: the file cannot be written.
    """
    if columns < 1:
        raise DataError(f"columns must be at least 1, got {columns}", key="columns", cure="Take 4, for example.")
    found = _read_folder(Path(pictures), limit) if isinstance(pictures, str | Path) else list(pictures)[:limit]
    if not found:
        raise DataError(
            "no pictures for the sheet", file=str(pictures)[:200], cure="Give a folder with .jpg or .png files."
        )
    side = found[0][0].shape[:2]
    tiles = [_tile(picture, side, boxes) for picture in found]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    out = Path(path)
    _, packed = cv2.imencode(out.suffix or ".png", np.vstack(rows))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(packed.tobytes())
    except OSError as error:
        raise ResourceError(
            f"cannot write the sheet: {error.strerror}", file=out, cure="Choose another path."
        ) from error
    return out


def _tile(picture: Picture, side: tuple[int, ...], boxes: bool) -> NDArray[np.uint8]:
    image, xyxy, class_id = picture
    scale = np.array([side[1] / image.shape[1], side[0] / image.shape[0]] * 2)
    tile = cv2.resize(image, (side[1], side[0]), interpolation=cv2.INTER_AREA)
    if boxes:
        for box, c in zip(np.round(xyxy * scale).astype(int).tolist(), class_id.tolist(), strict=True):
            cv2.rectangle(tile, (box[0], box[1]), (box[2] - 1, box[3] - 1), _BOX_COLOURS[c % 2], 1)
    return cv2.copyMakeBorder(tile, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255)).astype(np.uint8, copy=False)


def _read_folder(folder: Path, limit: int) -> list[Picture]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".png"})
    # Spread over the whole folder: the first ones by name are all of one site.
    step = max(1.0, len(files) / limit)
    return [_read_picture(files[int(i * step)]) for i in range(min(limit, len(files)))]


def _read_picture(file: Path) -> Picture:
    image = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DataError("not a picture that can be read", file=file, cure="Remove the file or replace it.")
    h, w = image.shape[:2]
    names = list(file.parts)
    if "images" in names:
        names[len(names) - 1 - names[::-1].index("images")] = "labels"
    label = Path(*names).with_suffix(".txt")
    text = label.read_text(encoding="utf-8").split("\n") if label != file and label.is_file() else []
    rows = np.array([[float(v) for v in line.split()] for line in text if line.strip()]).reshape(-1, 5)
    centre, half = rows[:, 1:3], rows[:, 3:5] / 2
    xyxy = (np.concatenate([centre - half, centre + half], 1) * (w, h, w, h)).astype(np.float32)
    return image.astype(np.uint8, copy=False), xyxy, rows[:, 0].astype(np.int64)
