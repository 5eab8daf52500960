"""Draws docs/images/page-*.jpg: the page with synthetic scenes, as a headless Chromium shows it.

    python scripts/page_pictures.py

Needs the built page and a Chromium (the program CHROMIUM names, or one of the usual ones).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

from manyeyes.config import ModelSection
from manyeyes.datasets.scenes import write_scenes
from manyeyes.learners.export import export_model
from manyeyes.learners.models import build_template
from manyeyes.web.edge import open_edge
from manyeyes.web.node import node_app
from manyeyes.web.serving import LOOPBACK, listen, serving
from manyeyes.web.settings import ServeConfig

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIDE = 320
DESK, PHONE = (1280, 800), (390, 844)


def main() -> int:
    """Draw them all."""
    with tempfile.TemporaryDirectory() as folder, site(Path(folder)) as (address, pictures), browser() as chromium:
        draw(chromium, address, pictures, "page-light", DESK, "light", "en-GB")
        draw(chromium, address, pictures, "page-dark", DESK, "dark", "zh-CN")
        draw(chromium, address, pictures, "page-phone", PHONE, "light", "en-GB")
    return 0


@contextmanager
def site(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """A server with the shipped base model: its address, and pictures for it."""
    write_scenes(folder / "scenes", images=9, imgsz=SIDE, seed=5)
    template = build_template(ModelSection(weights="base"), ("person", "car"), imgsz=SIDE)
    model = export_model(template, folder / "base.onnx").path
    config = ServeConfig(model=model, state=folder / "serve", threads=1)
    with ExitStack() as stack:
        edge = stack.enter_context(open_edge(config))
        listener = stack.enter_context(listen(LOOPBACK, 0, key="port"))
        limit = config.limits.picture_bytes
        stack.enter_context(serving(node_app(edge=edge), listener, "pictures", message_bytes=limit))
        scenes = sorted((folder / "scenes" / "b_crossroads").rglob("*.jpg"))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", scenes


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        raise SystemExit(f"no Chromium: set CHROMIUM to its path, or install one of {', '.join(names)}")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, chromium_sandbox=os.geteuid() != 0)
        yield chromium
        chromium.close()


def draw(
    chromium: Browser, address: str, pictures: list[Path], name: str, size: tuple[int, int], colours: str, language: str
) -> None:
    """One picture of the page, after it has looked at some."""
    width, height = size
    context = chromium.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if colours == "dark" else "light",
        locale=language,
    )
    page = context.new_page()
    page.goto(address)
    page.locator("#input-files").set_input_files(pictures)
    expect(page.locator(".row[data-state=done]")).to_have_count(len(pictures), timeout=60_000)
    expect(page.locator(".viewer")).to_be_visible()
    page.locator("input[type=range]").first.fill("0.45")
    page.keyboard.press("l")
    page.wait_for_timeout(300)
    IMAGES.mkdir(exist_ok=True)
    page.screenshot(path=IMAGES / f"{name}.jpg", quality=85)
    context.close()


if __name__ == "__main__":
    sys.exit(main())
