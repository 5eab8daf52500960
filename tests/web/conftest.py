from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import pytest
from playwright.sync_api import Browser, Page, Playwright, Route, sync_playwright

from manyeyes.web.edge import Edge, open_edge
from manyeyes.web.node import node_app
from manyeyes.web.serving import LOOPBACK, listen, serving
from manyeyes.web.settings import ServeConfig

# What a page of the server itself sends.
OWN = {"x-manyeyes": "1"}
FRONTEND = Path(__file__).parents[2] / "frontend"
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Server:
    edge: Edge
    address: str
    client: httpx.Client


@contextmanager
def started(config: ServeConfig) -> Iterator[Server]:
    """A real server on a free port of loopback."""
    with ExitStack() as stack:
        edge = stack.enter_context(open_edge(config))
        listener = stack.enter_context(listen(LOOPBACK, 0, key="port"))
        limits = config.limits
        stack.enter_context(
            serving(
                node_app(edge=edge),
                listener,
                "test",
                connections=limits.connections,
                message_bytes=limits.picture_bytes,
                patience=limits.patience,
            )
        )
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = stack.enter_context(httpx.Client(base_url=address, trust_env=False, timeout=60))
        yield Server(edge, address, client)


@pytest.fixture
def config(onnx_file: Path, tmp_path: Path) -> ServeConfig:
    return ServeConfig(model=onnx_file, state=tmp_path / "serve", threads=1, backend="openvino", precision="fp32")


@pytest.fixture
def server(config: ServeConfig) -> Iterator[Server]:
    with started(config) as server:
        yield server


@pytest.fixture(scope="session")
def pictures(scenes: Path) -> list[Path]:
    """Synthetic scenes with persons and cars, as JPEG files."""
    return sorted(scenes.rglob("*.jpg"))[:6]


@pytest.fixture
def another_model(onnx_file: Path, tmp_path: Path) -> Path:
    """The same network in another file: another hash."""
    import onnx

    model = onnx.load(onnx_file)
    model.producer_name = "another"
    path = tmp_path / "another.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


def chromium(playwright: Playwright, camera: str = "", answer: str = "") -> Browser:
    """A headless Chromium with a made-up camera that pages may use, or as the values of its two switches say."""
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _CHROMIUM)), None)
    if program is None:
        reason = f"no Chromium: set CHROMIUM to its path, or install one of {', '.join(_CHROMIUM)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    arguments = [f"--use-fake-device-for-media-stream{camera}", f"--use-fake-ui-for-media-stream{answer}"]
    # Chromium's sandbox refuses to run as root.
    return playwright.chromium.launch(
        executable_path=program, args=arguments, chromium_sandbox=hasattr(os, "geteuid") and os.geteuid() != 0
    )


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    browser = chromium(playwright)
    yield browser
    browser.close()


@contextmanager
def opened(
    browser: Browser, address: str, view: str = "", language: str = "en-GB", scheme: Literal["light", "dark"] = "light"
) -> Iterator[Page]:
    """The page of a server. What it asks of another one is refused, and fails the test, as an error in it does."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 800}, locale=language, color_scheme=scheme, permissions=["camera"]
    )
    page = context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))

    def pass_own(route: Route) -> None:
        if route.request.url.startswith(address):
            route.continue_()
        else:
            failures.append(f"asks for {route.request.url}")
            route.abort()

    context.route("**/*", pass_own)
    page.goto(f"{address}/#{view}")
    yield page
    context.close()
    assert not failures


@pytest.fixture
def page(browser: Browser, site: Server) -> Iterator[Page]:
    """The page, newly opened, of the server that the test's own module calls `site`."""
    with opened(browser, site.address) as page:
        yield page


def serious_findings(page: Page) -> list[str]:
    """What axe-core finds that keeps people out, now."""
    page.evaluate((FRONTEND / "node_modules" / "axe-core" / "axe.min.js").read_text())
    found = page.evaluate("axe.run()")["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]
