"""Draws docs/images/page-*.jpg: the page with synthetic scenes, as a headless Chromium shows it.

    python scripts/page_pictures.py

Needs the built page and a Chromium (the program CHROMIUM names, or one of the usual ones).
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from unittest.mock import patch

import numpy as np
from playwright.sync_api import Browser, expect, sync_playwright

from manyeyes.config import ModelSection
from manyeyes.datasets.scenes import write_scenes
from manyeyes.federation.audit import AuditLog
from manyeyes.federation.messages import EVALUATE, FIT, update_reply
from manyeyes.federation.node_status import NodeStatus, RoundDone
from manyeyes.federation.transport import Record, Request
from manyeyes.learners.export import export_model
from manyeyes.learners.learner import Template
from manyeyes.learners.models import build_template
from manyeyes.web.counting import CountingBody
from manyeyes.web.edge import open_edge
from manyeyes.web.node import node_app
from manyeyes.web.serving import LOOPBACK, listen, serving
from manyeyes.web.settings import ServeConfig
from manyeyes.weights import Update, Weights

IMAGES = Path(__file__).parents[1] / "docs" / "images"
sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.mjpeg import camera  # noqa: E402 - the camera of the tests

SIDE = 320
DESK, PHONE = (1280, 800), (390, 844)


def main() -> int:
    """Draw them all."""
    with tempfile.TemporaryDirectory() as folder, site(Path(folder)) as (address, pictures), browser() as chromium:
        draw(chromium, address, pictures, "page-light", DESK, "light", "en-GB")
        draw(chromium, address, pictures, "page-dark", DESK, "dark", "zh-CN")
        draw(chromium, address, pictures, "page-phone", PHONE, "light", "en-GB")
        for view, colours, language in (
            ("review", "light", "en-GB"),
            ("cameras", "dark", "en-GB"),
            ("history", "light", "en-GB"),
            ("federation", "light", "zh-CN"),
        ):
            draw_view(chromium, address, view, colours, language)
    return 0


@contextmanager
def site(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """A node's server with the shipped base model, a camera and six rounds behind it: its address, and pictures."""
    write_scenes(folder / "scenes", images=9, imgsz=SIDE, seed=5)
    template = build_template(ModelSection(weights="base"), ("person", "car"), imgsz=SIDE)
    model = export_model(template, folder / "base.onnx").path
    config = ServeConfig(model=model, state=folder / "serve", threads=1, cameras_anywhere=True)
    status = member(folder, template)
    with ExitStack() as stack:
        edge = stack.enter_context(open_edge(config))
        listener = stack.enter_context(listen(LOOPBACK, 0, key="port"))
        limit = config.limits.picture_bytes
        stack.enter_context(serving(node_app(status, edge), listener, "pictures", message_bytes=limit))
        scenes = sorted((folder / "scenes" / "b_crossroads").rglob("*.jpg"))
        port = stack.enter_context(camera([path.read_bytes() for path in scenes[:1]], pause=0.2))
        edge.streams.add("gate", f"http://127.0.0.1:{port}/live.mjpg")
        zone = {"name": "crossing", "points": [(0.1, 0.3), (0.9, 0.3), (0.95, 0.95), (0.05, 0.95)]}
        edge.counting.want("gate", CountingBody.model_validate({"zones": [zone]}))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", scenes


def member(folder: Path, template: Template) -> NodeStatus:
    """A node in the seventh of twenty rounds, with the log of what it sent in six."""
    node_folder = folder / "node"
    node_folder.mkdir()
    now, rounds = time.time(), [0.412, 0.446, 0.471, 0.466, 0.502, 0.519, 0.541]
    done = [
        RoundDone("crossroads", round, now - 900 * (7 - round), 280.0 + 9 * round, before, after)
        for round, (before, after) in enumerate(itertools.pairwise(rounds), start=1)
    ]
    status = NodeStatus("gate-north", coordinator="https://coordinator.example:9443", folder=node_folder)
    status.not_ready, status.pictures, status.training, status.last_seen = None, 184, True, now
    status.round, status.rounds, status.epoch, status.epochs, status.seconds_left = 7, 20, 2, 3, 214.0
    status.training_seconds = sum(one.seconds for one in done)
    status.rounds_done.extend(done)
    sent = AuditLog(node_folder)
    for one in done:
        # What a node sends in a round: an update of the size of this model's, then the result of its test.
        send(sent, FIT, one.time - 40, update_reply(update_of(template), template.form_hash))
        send(sent, EVALUATE, one.time, Record(values={"metrics": {"map50": one.after}}))
    day = date.fromtimestamp(now)
    status.today = lambda: (2 * sent.bytes_on(day), sent.bytes_on(day))
    return status


def update_of(template: Template) -> Update:
    """An update of all of a model's numbers, every one of them 0."""
    trained = {name: np.zeros_like(array) for name, array in template.weights.items()}
    return Update(Weights(trained), Weights({}), 184, {"loss": 2.1})


def send(log: AuditLog, kind: str, at: float, record: Record) -> None:
    """Note an answer as if it had been sent at that time."""
    with patch("time.time", return_value=at):
        log.answer(Request(f"{kind}-{at:.0f}", "gate-north", kind, Record()), record, record.to_bytes())


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


def draw_view(chromium: Browser, address: str, view: str, colours: str, language: str) -> None:
    """One picture of another view, once it has something to show."""
    width, height = DESK
    context = chromium.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if colours == "dark" else "light",
        locale=language,
    )
    page = context.new_page()
    page.goto(f"{address}/#{view}")
    shown = {"review": ".card-row", "cameras": ".live-curve", "history": ".curve canvas", "federation": ".curve canvas"}
    expect(page.locator(shown[view]).first).to_be_visible(timeout=60_000)
    page.wait_for_timeout(8000 if view == "cameras" else 1000)
    page.screenshot(path=IMAGES / f"page-{view}.jpg", quality=85)
    context.close()


if __name__ == "__main__":
    sys.exit(main())
