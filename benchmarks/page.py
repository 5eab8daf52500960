"""Claims: the page is small and there at once, pans 300 boxes on a large picture, and stays smooth in an upload.

    python benchmarks/page.py                 YOLOv8n from COCO at 640 px
    python benchmarks/page.py --model PATH    an exported model
    python benchmarks/page.py --quick         short, not kept

Measured by a headless Chromium (the program CHROMIUM names, or one of the usual ones) that draws in software at
60 frames a second, on the machine that serves the page.

    size            all files of the built page, each packed by gzip; peer: the limit of 150 kB.
    first paint     milliseconds until something of the page is seen, of new visits; peer: 1000.
    panning         a picture of 4000 × 3000 pixels with 300 boxes is moved at each frame: milliseconds from frame to
                    frame; peer: the frames of an empty page in the same browser.
    upload          500 pictures are chosen at once: milliseconds from frame to frame until all have their boxes; the
                    same peer. The browser shares the machine with the server and its engine, so a frame can be late
                    without any work of the page. Therefore a second upload, which Chromium traces: the processor time
                    that the page's own code took in each piece; peer: the time of a frame.

Needs ../shared/data/weights/yolov8n.pt, or --model.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from cells import Claim, arguments, claim, save_cell, show
from inference import export_all
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from server_load import served

from manyeyes.web.page import STATIC

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = (4000, 3000)
BOXES = 300
FILES = 500
BYTES = 150_000
PAINT_MS = 1000.0
# A frame that comes later than one and a half of an empty page's is one that was left out before it.
LATE = 1.5

# Notes when each frame comes, and what ran longer than 50 ms in one piece (W3C, Long Tasks).
WATCH = """() => {
    window.frames_ = [];
    window.tasks_ = [];
    new PerformanceObserver(list => list.getEntries().forEach(task => tasks_.push(task.duration)))
        .observe({entryTypes: ["longtask"]});
    const note = time => { frames_.push(time); window.watching_ = requestAnimationFrame(note); };
    requestAnimationFrame(note);
}"""
STOP = "() => { cancelAnimationFrame(watching_); return [frames_, tasks_]; }"

# Moves the pointer, pressed, on a circle: a step for each frame.
PAN = """([x, y, frames]) => new Promise(done => {
    const viewer = document.querySelector(".viewer");
    const send = (kind, at) => viewer.dispatchEvent(new PointerEvent(kind, {
        bubbles: true, pointerId: 1, button: 0, buttons: 1, pointerType: "mouse",
        clientX: x + 160 * Math.cos(at / 20), clientY: y + 120 * Math.sin(at / 20)}));
    viewer.setPointerCapture = () => {};
    send("pointerdown", 0);
    let at = 0;
    const step = () => {
        send("pointermove", ++at);
        if (at < frames) requestAnimationFrame(step);
        else { send("pointerup", at); done(); }
    };
    requestAnimationFrame(step);
})"""


def main() -> int:
    """Measure, keep the cell, print the claims."""
    parser = arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", type=Path, help="an exported model")
    options = parser.parse_args()
    if not (STATIC / "index.html").exists():
        parser.error("the page was not built: python hatch_build.py")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or export_all(Path(folder), quick=True)["fp32"]
        samples = measure(model, Path(folder) / "state", quick=options.quick)
    if not options.quick:
        save_cell("page", "chromium", {"seed": 0, "config": {"boxes": BOXES, "files": FILES}, "samples": samples})
    show(claims_of(samples), options.json)
    return 0


def claims_of(samples: dict[str, Any]) -> list[Claim]:
    """The claims of a cell."""
    idle = samples["idle_ms"]
    late = [_late(samples["upload_ms"], idle)]
    return [
        claim("Bytes of the page, packed, against the limit", [samples["bytes"]], [BYTES], 1.0, "lower"),
        claim("First paint, milliseconds against a second", samples["paint_ms"], [PAINT_MS], 1.0, "lower"),
        claim(
            f"Frames while {BOXES} boxes on {SIZE[0]} × {SIZE[1]} pixels are panned, against an empty page",
            [1000 / statistics.mean(samples["pan_ms"])],
            [1000 / statistics.mean(idle)],
            0.98,
            "higher",
        ),
        claim(f"Share of frames that came late in an upload of {FILES} files", late, [1.0], 0.0, "lower"),
        claim(
            f"Longest piece of the page's own work in an upload of {FILES} files, ms of processor against a frame",
            [max(samples["upload_work_ms"])],
            [statistics.median(idle)],
            1.0,
            "lower",
        ),
    ]


def _late(times: list[float], idle: list[float]) -> float:
    usual = statistics.median(idle)
    return sum(time > LATE * usual for time in times) / len(times)


def measure(model: Path, state: Path, *, quick: bool) -> dict[str, Any]:
    """All figures, from a server of its own."""
    with served([model], state) as (port, _), browser() as chromium:
        address = f"http://127.0.0.1:{port}"
        paints = [first_paint(chromium, address) for _ in range(3 if quick else 15)]
        page = chromium.new_page(viewport={"width": 1440, "height": 900})
        page.goto("about:blank")
        idle, _ = watched(page, lambda: page.wait_for_timeout(1000 if quick else 4000))
        page.goto(address)
        pan, pan_tasks = panning(page, 120 if quick else 600)
        page.close()
        page = visited(chromium, address)
        files = pictures(state.parent, 40 if quick else FILES)
        upload, upload_tasks = watched(page, lambda: upload_all(page, files))
        page.close()
        page = visited(chromium, address)
        upload_work = traced(page, lambda: upload_all(page, files))
    return {
        "bytes": sum(len(gzip.compress(path.read_bytes())) for path in STATIC.rglob("*") if path.is_file()),
        "paint_ms": paints,
        "idle_ms": idle,
        "pan_ms": pan,
        "pan_long_tasks_ms": pan_tasks,
        "upload_ms": upload,
        "upload_long_tasks_ms": upload_tasks,
        "upload_work_ms": upload_work,
    }


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise SystemExit(f"no Chromium: set CHROMIUM to its path, or install one of {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, chromium_sandbox=os.geteuid() != 0)
        yield chromium
        chromium.close()


def first_paint(chromium: Browser, address: str) -> float:
    """Milliseconds from the visit to the first content, with nothing cached."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(address)
    expect(page.locator(".drop")).to_be_visible()
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    context.close()
    return float(paint)


def watched(page: Page, does: Any) -> tuple[list[float], list[float]]:
    """Milliseconds from frame to frame while something is done, and of long tasks."""
    page.evaluate(WATCH)
    does()
    frames, tasks = page.evaluate(STOP)
    return [round(value, 2) for value in np.diff(frames).tolist()], tasks


def panning(page: Page, frames: int) -> tuple[list[float], list[float]]:
    """The figures of panning; the boxes come from here, everything else is the server's."""
    random.seed(0)
    page.route("**/api/v1/detect*", answer_many)
    page.locator("#input-files").set_input_files({"name": "large.jpg", "mimeType": "image/jpeg", "buffer": large()})
    expect(page.locator(".detections li")).to_have_count(BOXES)
    expect(page.locator(".viewer")).to_be_visible()
    place = page.locator(".viewer").bounding_box()
    assert place
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    page.mouse.move(x, y)
    page.mouse.wheel(0, -400)
    page.wait_for_timeout(500)
    return watched(page, lambda: page.evaluate(PAN, [x, y, frames]))


def answer_many(route: Route) -> None:
    """Boxes all over the picture."""
    boxes = []
    for _ in range(BOXES):
        x, y = random.uniform(0, SIZE[0] - 300), random.uniform(0, SIZE[1] - 300)
        corners = [x, y, x + random.uniform(60, 300), y + random.uniform(60, 300)]
        class_id = random.randrange(8)
        boxes.append({"class": f"class {class_id}", "class_id": class_id, "score": 0.9, "xyxy": corners})
    found = {"width": SIZE[0], "height": SIZE[1], "model": "0" * 64, "scene": "day", "milliseconds": 1.0}
    route.fulfill(json={**found, "detections": boxes})


def large() -> bytes:
    """A JPEG that has detail everywhere."""
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def visited(chromium: Browser, address: str) -> Page:
    """The page in a new window, once it has shown itself."""
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.goto(address)
    expect(page.locator(".drop")).to_be_visible()
    page.wait_for_timeout(1000)
    return page


def pictures(folder: Path, files: int) -> list[Path]:
    """So many pictures of the usual size."""
    noise = np.random.default_rng(1).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((1280, 720), Image.Resampling.BICUBIC)
    paths = [folder / f"picture-{number:03}.jpg" for number in range(files)]
    image.save(paths[0], "JPEG", quality=85)
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    return paths


def upload_all(page: Page, files: list[Path]) -> None:
    """Choose files and wait until each has its boxes."""
    page.locator("#input-files").set_input_files(files)
    expect(page.locator("#queue-progress")).to_have_text(f"{len(files)} of {len(files)} done", timeout=300_000)


def traced(page: Page, does: Callable[[], None]) -> list[float]:
    """Milliseconds of processor that each call of the page's own code took while something was done, those of 1 ms and
    more (Chrome DevTools Protocol, Tracing: thread time of the outermost calls of functions).
    """
    session = page.context.new_cdp_session(page)
    events: list[dict[str, Any]] = []
    ended: list[dict[str, Any]] = []
    session.on("Tracing.dataCollected", lambda found: events.extend(found["value"]))
    session.on("Tracing.tracingComplete", lambda found: ended.append(found))
    session.send("Tracing.start", {"categories": "devtools.timeline", "transferMode": "ReportEvents"})
    does()
    session.send("Tracing.end")
    while not ended:
        page.wait_for_timeout(100)
    calls = [
        event
        for event in events
        if event["name"] == "FunctionCall" and event.get("args", {}).get("data", {}).get("url", "").startswith(page.url)
    ]
    return [event["tdur"] / 1000 for event in calls if event.get("tdur", 0) >= 1000]


if __name__ == "__main__":
    sys.exit(main())
