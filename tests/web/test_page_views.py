"""The page's views of review, cameras, history and the federation, in a real browser against real servers."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, Playwright, WebSocket, expect

from manyeyes.config import AugmentSection, TrainSection
from manyeyes.datasets import load_dataset
from manyeyes.federation.audit import AUDIT, AuditLog
from manyeyes.federation.form import ModelForm
from manyeyes.federation.keys import AUTHORITY, make_authority
from manyeyes.federation.messages import FIT, PUBLISH, PublishPlan, fit_request, publish_request, read_update
from manyeyes.federation.node import NodeConfig, _Node, status_of
from manyeyes.federation.node_status import NodeStatus, RoundDone
from manyeyes.federation.pause import Pause
from manyeyes.federation.signature import Signer
from manyeyes.federation.transport import Request
from manyeyes.learners.detector import DetectorLearner
from manyeyes.learners.learner import FitPlan, Template, silent
from manyeyes.web.edge import open_edge
from manyeyes.web.node import node_app, node_page
from manyeyes.web.serving import LOOPBACK, listen, serving
from manyeyes.web.settings import ReviewSection, ServeConfig
from manyeyes.weights import Weights, add
from mjpeg import camera

from .conftest import Server, chromium, opened, serious_findings, started

API = "/api/v1"


@pytest.fixture(scope="module")
def site(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that takes whatever it finds for a doubt, and cameras on this machine."""
    config = ServeConfig(
        model=onnx_file,
        state=tmp_path_factory.mktemp("views") / "serve",
        threads=1,
        backend="openvino",
        precision="fp32",
        cameras_anywhere=True,
        review=ReviewSection(low=0.01, high=1, sources=("request",)),
    )
    with started(config) as server:
        yield server


def detect(server: Server, picture: Path, name: str | None = None) -> str:
    """Have a picture looked at; returns the id under which it is kept for review."""
    files = {"file": (name or picture.name, picture.read_bytes())}
    answer = server.client.post(f"{API}/detect?min_score=0.01", files=files).raise_for_status()
    return str(answer.json()["review"])


def go(page: Page, view: str) -> None:
    page.locator(f".tabs a[href='#{view}']").click()


# -- review -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def doubts(site: Server, page: Page, pictures: list[Path]) -> Iterator[list[str]]:
    """Three pictures that wait for review, the newest first; the page shows them."""
    ids = [detect(site, path, f"{path.stem}.jpg") for path in pictures[:3]]
    go(page, "review")
    expect(page.locator(".card-row")).to_have_count(3)
    expect(page.locator(".stage .zoom")).not_to_be_empty()
    yield ids[::-1]
    for entry in site.client.get(f"{API}/review?state=all&most=1000").json():
        site.client.delete(f"{API}/review/{entry['id']}").raise_for_status()


def entry(site: Server, id: str) -> dict[str, object]:
    return dict(site.client.get(f"{API}/review/{id}").json())


def objects(page: Page) -> Locator:
    return page.locator(".detections li")


def only_box(page: Page, id: str) -> None:
    """Delete every box, and make one in the middle; by keyboard."""
    page.locator(".card-row button").first.click()
    page.keyboard.press("j")
    expect(page.locator(f".fill[data-picture='{id}']")).to_have_count(0)
    page.keyboard.press("k")
    expect(page.locator(f".fill[data-picture='{id}']")).to_be_visible()
    expect(objects(page)).not_to_have_count(0)
    while objects(page).count():
        before = objects(page).count()
        page.keyboard.press("]")
        page.keyboard.press("Delete")
        expect(objects(page)).to_have_count(before - 1)
    page.keyboard.press("n")
    expect(objects(page)).to_have_count(1)


def test_a_picture_is_corrected_and_added_with_the_keyboard_alone(page: Page, site: Server, doubts: list[str]) -> None:
    chosen = objects(page).locator("[aria-current=true]")
    only_box(page, doubts[0])
    expect(chosen).to_contain_text("person")
    page.keyboard.press("2")
    expect(chosen).to_contain_text("car")
    page.keyboard.press("c")
    page.keyboard.type("per")
    page.keyboard.press("Enter")
    expect(chosen).to_contain_text("person")
    page.keyboard.press("Control+z")
    expect(chosen).to_contain_text("car")
    before = chosen.inner_text()
    page.keyboard.press("Alt+Shift+ArrowRight")
    page.keyboard.press("ArrowDown")
    assert chosen.inner_text() != before
    page.keyboard.press("Escape")
    expect(chosen).to_have_count(0)
    page.keyboard.press("Tab")
    expect(chosen).to_have_count(1)
    scale = page.locator(".zoom").inner_text()
    page.keyboard.press("z")
    expect(page.locator(".zoom")).not_to_have_text(scale)
    expect(page.locator("#corrections")).to_contain_text("belongs to no node")
    page.keyboard.press("Enter")
    expect(page.locator(".notice")).to_contain_text("Added to training")
    expect(page.locator(".card-row")).to_have_count(2)
    added = entry(site, doubts[0])
    assert added["state"] == "added"
    assert [box["class"] for box in added["boxes"]] == ["car"]  # type: ignore[attr-defined]
    # The keyboard is still in the picture, which is the next one now.
    assert page.evaluate("document.activeElement.className") == "viewer"
    page.keyboard.press("x")
    expect(page.locator(".card-row")).to_have_count(1)
    assert entry(site, doubts[1])["state"] == "dismissed"
    page.keyboard.press("u")
    expect(page.locator(".card-row")).to_have_count(2)
    assert entry(site, doubts[1])["state"] == "open"


def test_a_draft_is_kept_and_can_be_given_up(page: Page, site: Server, doubts: list[str]) -> None:
    expect(page.locator(".tabs .count")).to_have_text("3")
    only_box(page, doubts[0])
    expect(page.locator(".badge")).to_have_text("Draft kept")
    ends = time.monotonic() + 10
    while not entry(site, doubts[0])["boxes"]:
        assert time.monotonic() < ends
        page.wait_for_timeout(50)  # requests of the page wait for this process
    page.reload()
    expect(objects(page)).to_have_count(1)
    page.get_by_role("button", name="As the model found it").click()
    expect(objects(page)).not_to_have_count(1)


def test_the_list_is_narrowed_by_state_reason_and_source(page: Page, site: Server, doubts: list[str]) -> None:
    site.client.post(f"{API}/review/{doubts[0]}/dismiss").raise_for_status()
    expect(page.locator(".card-row")).to_have_count(2)
    page.get_by_role("button", name="Dismissed").click()
    expect(page.locator(".card-row")).to_have_count(1)
    page.get_by_role("button", name="All", exact=True).click()
    expect(page.locator(".card-row")).to_have_count(3)
    page.get_by_label("Reason").select_option("asked for")
    expect(page.locator(".card-row")).to_have_count(0)
    expect(page.get_by_text("No picture fits")).to_be_visible()
    page.get_by_label("Reason").select_option("low confidence")
    page.get_by_label("Source").select_option("request")
    expect(page.locator(".card-row")).to_have_count(3)


def test_a_picture_is_deleted_after_a_question_in_the_page(page: Page, site: Server, doubts: list[str]) -> None:
    page.get_by_role("button", name="Delete picture").click()
    page.keyboard.press("Enter")  # the answer that changes nothing has the keyboard
    expect(page.locator(".card-row")).to_have_count(3)
    page.get_by_role("button", name="Delete picture").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator(".card-row")).to_have_count(2)
    assert site.client.get(f"{API}/review/{doubts[0]}").status_code == 404


def test_a_click_in_the_list_enlarges_the_box(page: Page, doubts: list[str]) -> None:
    scale = page.locator(".zoom").inner_text()
    objects(page).first.get_by_role("button").click()
    expect(page.locator(".zoom")).not_to_have_text(scale)


def test_what_the_model_was_not_sure_of_is_marked(page: Page, site: Server, doubts: list[str]) -> None:
    sure_from = site.client.get(f"{API}/status").json()["sure_from"]
    slide = page.get_by_role("slider", name="Show boxes from confidence")
    slide.fill("0.1")
    scores = [float(text) for text in objects(page).locator("b").evaluate_all("all => all.map(b => b.lastChild.data)")]
    marked = objects(page).locator("b[data-unsure=true]")
    assert 0 < marked.count() == sum(score < sure_from for score in scores)
    expect(marked.first).to_contain_text("not sure")
    slide.fill("0.25")


def test_a_picture_that_somebody_doubts_goes_to_review(page: Page, site: Server, pictures: list[Path]) -> None:
    page.locator("#input-files").set_input_files(pictures[4])
    expect(objects(page)).not_to_have_count(0)
    page.get_by_role("button", name="Review this picture for training").click()
    expect(page.locator(".notice")).to_contain_text("waits for review")
    entries = site.client.get(f"{API}/review").json()
    assert "asked" in entries[0]["reasons"]
    site.client.delete(f"{API}/review/{entries[0]['id']}").raise_for_status()


def test_who_may_only_look_is_told_so(browser: Browser, site: Server, pictures: list[Path]) -> None:
    id = detect(site, pictures[0])
    with opened(browser, site.address) as page:
        page.route(
            f"**{API}/status",
            lambda route: route.fulfill(json={**site.client.get(f"{API}/status").json(), "role": "viewer"}),
        )
        page.reload()
        go(page, "review")
        expect(page.get_by_text("You may look.")).to_be_visible()
        expect(page.get_by_role("button", name="Add to training")).to_have_count(0)
        expect(page.get_by_role("button", name="New box")).to_have_count(0)
    site.client.delete(f"{API}/review/{id}").raise_for_status()


# -- cameras ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gate(site: Server, pictures: list[Path]) -> Iterator[str]:
    """A camera of the server, called gate; it shows the picture in which the model is surest."""
    model = site.client.get(f"{API}/status").json()["model"]

    def best(path: Path) -> float:
        answer = site.client.post(f"{API}/detect?model={model}", content=path.read_bytes()).raise_for_status()
        return max((box["score"] for box in answer.json()["detections"]), default=0.0)

    with camera([max(pictures, key=best).read_bytes()], pause=0.2) as port:
        source = {"name": "gate", "source": f"http://127.0.0.1:{port}/live.mjpg"}
        site.client.post(f"{API}/streams", json=source).raise_for_status()
        yield "gate"
        site.client.delete(f"{API}/streams/gate")


def counting(site: Server) -> dict[str, Any]:
    return dict(site.client.get(f"{API}/streams/gate/counting").raise_for_status().json())


def click_at(page: Page, *shares: tuple[float, float]) -> None:
    box = page.locator(".viewer").bounding_box()
    assert box
    for x, y in shares:
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def test_a_camera_is_watched_and_objects_are_counted(page: Page, site: Server, gate: str) -> None:
    go(page, "cameras")
    expect(page.locator(".camera")).to_contain_text("running", timeout=20_000)
    expect(page.locator(".statistics .chip").first).to_be_visible(timeout=20_000)
    expect(page.get_by_role("img", name="Objects in sight")).to_be_visible(timeout=20_000)
    page.get_by_role("button", name="Draw a line").click()
    click_at(page, (0.4, 0.4), (0.6, 0.5))
    expect(page.get_by_label("Name of Line 1")).to_be_visible(timeout=20_000)
    page.get_by_role("button", name="Draw a zone").click()
    click_at(page, (0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95), (0.05, 0.05))
    expect(page.get_by_label("Name of Zone 1")).to_be_visible(timeout=20_000)
    page.get_by_label("Name of Line 1").fill("north gate")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Name of north gate")).to_be_visible(timeout=20_000)
    page.get_by_role("button", name="Draw a line").click()
    for key in ("Enter", "Shift+ArrowRight", "Enter"):
        page.keyboard.press(key)
    expect(page.get_by_role("group", name="Line 1")).to_be_visible(timeout=20_000)
    page.get_by_role("button", name="Remove Line 1").click()
    expect(page.get_by_role("group", name="Line 1")).to_have_count(0)
    ends = time.monotonic() + 20
    while [line["name"] for line in counting(site)["lines"]] != ["north gate"]:
        assert time.monotonic() < ends
        page.wait_for_timeout(50)  # requests of the page wait for this process
    wanted = counting(site)
    assert len(wanted["zones"][0]["points"]) == 4
    expect(page.get_by_role("group", name="Zone 1").locator("tbody td").nth(3)).to_have_text(
        re.compile(r"\d"), timeout=20_000
    )
    page.get_by_role("button", name="Count from 0").click()
    ends = time.monotonic() + 10
    while counting(site)["since"] <= wanted["since"]:
        assert time.monotonic() < ends
        page.wait_for_timeout(50)  # requests of the page wait for this process


def test_a_frame_goes_to_review_with_one_button(page: Page, site: Server, gate: str) -> None:
    go(page, "cameras")
    button = page.get_by_role("button", name="Review this frame")
    expect(button).to_be_enabled(timeout=20_000)
    button.click()
    expect(page.locator(".notice")).to_contain_text("waits for review")
    (kept,) = site.client.get(f"{API}/review").json()
    assert kept["name"].startswith("gate ")
    site.client.delete(f"{API}/review/{kept['id']}").raise_for_status()


def test_a_camera_that_is_none_says_why_and_one_that_is_gone_is_said(page: Page, site: Server) -> None:
    go(page, "cameras")
    page.get_by_label("Name", exact=True).fill("yard")
    page.get_by_label("Address").fill("ftp://10.0.0.1/")
    page.get_by_role("button", name="Add a camera").click()
    expect(page.get_by_role("alert").filter(has_text="is no camera")).to_be_visible()
    page.get_by_label("Address").fill("http://127.0.0.1:9/none")
    page.get_by_role("button", name="Add a camera").click()
    expect(page.locator(".camera")).to_contain_text("cannot be opened", timeout=20_000)
    expect(page.locator(".stage").get_by_role("alert")).to_contain_text("cannot be opened", timeout=20_000)
    page.get_by_role("button", name="Remove yard").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator(".camera")).to_have_count(0)
    assert site.client.get(f"{API}/streams").json() == []


def test_the_browsers_own_camera_is_looked_at_one_frame_at_a_time(page: Page) -> None:
    go(page, "cameras")
    answers: list[dict[str, Any]] = []

    def follow(socket: WebSocket) -> None:
        if socket.url.endswith("/live"):
            socket.on("framereceived", lambda text: answers.append(json.loads(text)))

    page.on("websocket", follow)
    page.locator("#own-camera").click()
    expect(page.locator(".facts")).to_contain_text("pictures a second", timeout=20_000)
    page.wait_for_timeout(700)
    assert len(answers) > 1
    # The server leaves frames out where a newer one comes before it has begun: none had to be.
    assert {answer["skipped"] for answer in answers} == {0}
    page.get_by_role("button", name="Draw a line").click()
    click_at(page, (0.4, 0.4), (0.6, 0.5))
    expect(page.get_by_role("group", name="Line 1")).to_contain_text("Nobody yet")
    page.locator("#own-camera").click()
    expect(page.get_by_text("Choose a camera")).to_be_visible()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"answer": "=deny"}, "does not allow this page to use the camera"),
        ({"camera": "=device-count=0"}, "This device has no camera"),
    ],
)
def test_an_own_camera_that_is_denied_or_not_there_is_said(
    playwright: Playwright, site: Server, flags: dict[str, str], said: str
) -> None:
    other = chromium(playwright, **flags)
    page = other.new_page(locale="en-GB")
    page.goto(site.address)
    go(page, "cameras")
    page.locator("#own-camera").click()
    expect(page.locator(".stage").get_by_role("alert")).to_contain_text(said)
    other.close()


def test_an_own_camera_that_is_unplugged_is_said_and_used_again(page: Page) -> None:
    # What a browser tells a page when a camera is pulled out and put in again; no program can do that to this one's.
    page.evaluate(
        """() => {
            const devices = navigator.mediaDevices;
            const open = devices.getUserMedia.bind(devices);
            devices.getUserMedia = async wanted => {
                if (window.away_) throw new DOMException("", "NotFoundError");
                return (window.stream_ = await open(wanted));
            };
            window.tell_ = away => {
                window.away_ = away;
                if (away) stream_.getTracks().forEach(track => {
                    track.stop();
                    track.dispatchEvent(new Event("ended"));
                });
                devices.dispatchEvent(new Event("devicechange"));
            };
        }"""
    )
    go(page, "cameras")
    page.locator("#own-camera").click()
    expect(page.locator(".facts")).to_contain_text("pictures a second", timeout=20_000)
    page.evaluate("tell_(true)")
    alert = page.locator(".banner")
    expect(alert).to_contain_text("was unplugged")
    page.wait_for_timeout(700)  # answers that were on their way change nothing
    expect(alert).to_contain_text("was unplugged")
    page.evaluate("tell_(false)")
    expect(alert).to_have_count(0)
    expect(page.locator(".facts")).to_contain_text("pictures a second", timeout=20_000)


# -- history ----------------------------------------------------------------------------------------------------------


def test_history_is_searched_and_forgotten(page: Page, site: Server, pictures: list[Path]) -> None:
    site.client.delete(f"{API}/history?before={time.time() + 1}").raise_for_status()
    for path in pictures[:3]:
        found = {"file": (f"{path.parent.name} {path.name}", path.read_bytes())}
        site.client.post(f"{API}/detect?min_score=0.05", files=found).raise_for_status()
    go(page, "history")
    rows = page.locator(".table tbody tr")
    expect(rows).to_have_count(3)
    totals = site.client.get(f"{API}/history/totals").json()
    for name, total in totals.items():
        expect(page.locator("#history-totals")).to_contain_text(f"{name} {total}")
    expect(page.get_by_role("img", name="Objects found over time")).to_be_visible()
    name = next(iter(totals))
    page.get_by_label("Class").select_option(name)
    wanted = site.client.get(f"{API}/history", params={"class": name}).json()
    expect(rows).to_have_count(len(wanted))
    expect(page.locator("#history-totals")).to_contain_text(f"In all: {name} {totals[name]}")
    page.get_by_label("Class").select_option("Any class")
    page.get_by_role("button", name="From – until").click()
    page.get_by_label("Until").fill("2020-01-01T00:00")
    page.keyboard.press("Tab")
    expect(rows).to_have_count(0)
    page.get_by_role("button", name="Hour", exact=True).click()
    expect(rows).to_have_count(3)
    rows.first.get_by_role("button").click()
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Delete what is shown").click()
    page.keyboard.press("Escape")
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="Delete what is shown").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator(".notice")).to_contain_text("2 entries were deleted")
    expect(page.get_by_text("Nothing was found in this time").first).to_be_visible()
    assert site.client.get(f"{API}/history").json() == []


# -- federation -------------------------------------------------------------------------------------------------------


def test_a_server_alone_says_so_and_changes_its_models(page: Page, site: Server) -> None:
    go(page, "federation")
    expect(page.get_by_role("heading", name="This server works alone")).to_be_visible()
    expect(page.locator("[data-used=true]")).to_contain_text("in use")


def written(folder: Path) -> None:
    """The log of a node that has sent one update."""
    folder.mkdir(parents=True)
    entry = {
        "time": time.time(),
        "request": "1",
        "kind": "fit",
        "sent": "answer",
        "bytes": 6_071_220,
        "sha256": hashlib.sha256(b"").hexdigest(),
        "arrays": {"delta": {"tensors": 184, "numbers": 3_011_043}},
        "values": {"num_examples": 184},
        "previous": "0" * 64,
    }
    (folder / AUDIT).write_text(json.dumps(entry) + "\n")


@contextmanager
def member(config: ServeConfig, status: NodeStatus) -> Iterator[str]:
    """A node's server, as `node_page` has it once there is a model; yields its address."""
    with ExitStack() as stack:
        edge = stack.enter_context(open_edge(config, {"federation": lambda: status.progress}))
        listener = stack.enter_context(listen(LOOPBACK, 0, key="port"))
        stack.enter_context(serving(node_app(status, edge), listener, "test", message_bytes=10**6))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_node_shows_its_rounds_and_what_it_sent_and_can_be_paused(
    browser: Browser, config: ServeConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "node"
    written(folder)
    status = NodeStatus("north", coordinator="https://localhost:9443", folder=folder, not_ready=None, pictures=184)
    status.round, status.rounds, status.epoch, status.epochs, status.training = 2, 5, 1, 3, True
    status.seconds_left = 75.0
    status.rounds_done.append(RoundDone("first", 1, time.time(), 60.0, 0.4, 0.5))
    with member(config, status) as address, opened(browser, address, "federation") as page:
        expect(page.get_by_role("heading", name="north")).to_be_visible()
        expect(page.locator(".headline")).to_have_text(
            "Round 2 of 5 · pass 1 of 3 over this site's pictures · 1 min 15 s left"
        )
        expect(page.locator(".tile").first).to_contain_text("up from 0.400")
        expect(page.get_by_role("img", name="mAP50 over 1 rounds, last 0.500")).to_be_visible()
        row = page.locator(".table-scroll.tall")
        expect(row).to_contain_text("3,011,043 numbers in 184 arrays")
        row.get_by_role("button", name="training").click()
        expect(row).to_contain_text("num_examples")
        page.get_by_role("button", name="Pause taking part").click()
        expect(page.locator(".state")).to_have_text("Paused")
        assert Pause(folder).paused
        page.get_by_role("button", name="Take part again").click()
        expect(page.locator(".state")).to_have_text("Training")
        assert not Pause(folder).paused
        # Told by the server: nobody loads the page anew.
        status.training, status.seconds_left = False, None
        status.rounds_done.append(RoundDone("first", 2, time.time(), 60.0, 0.5, 0.625))
        expect(page.locator(".tile").first).to_contain_text("0.625", timeout=10_000)
        expect(page.locator(".headline")).to_contain_text("waits for the others")


def test_a_node_without_a_model_shows_its_federation(browser: Browser, tmp_path: Path) -> None:
    status = NodeStatus("north", folder=tmp_path, not_ready="waits to be admitted")
    with node_page(status, 0) as port, opened(browser, f"http://127.0.0.1:{port}") as page:
        expect(page.get_by_role("heading", name="No model yet")).to_be_visible()
        expect(page.get_by_text("waits to be admitted")).to_be_visible()


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["review", "cameras", "history", "federation"])
def test_a_view_is_in_order_in_both_languages(view: str, browser: Browser, site: Server, pictures: list[Path]) -> None:
    id = detect(site, pictures[0])
    for language, scheme in (("en-GB", "dark"), ("zh-CN", "light")):
        with opened(browser, site.address, view, language, scheme) as page:
            expect(page.locator(".tabs a[aria-current=page]")).to_have_attribute("href", f"#{view}")
            expect(page.locator("main h2").first).to_be_visible()
            page.wait_for_timeout(300)
            text = page.locator("main").inner_text()
            assert bool(re.search(r"[\u4e00-\u9fff]", text)) == (language == "zh-CN")
            assert not serious_findings(page)
            page.set_viewport_size({"width": 390, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
    site.client.delete(f"{API}/review/{id}").raise_for_status()


# -- the loop ---------------------------------------------------------------------------------------------------------

# It learns the picture by heart: what is tested is the way through, not how well a model learns.
TRAIN = TrainSection(
    imgsz=128,
    batch=4,
    steps=60,
    lr=0.003,
    precision="fp32",
    device="cpu",
    threads=1,
    augment=AugmentSection(mosaic=0, hsv_h=0, hsv_s=0, hsv_v=0, fliplr=0, scale=0, translate=0),
)


@pytest.fixture
def pale_car(scenes: Path, tmp_path: Path) -> Path:
    """A car in a mist, of which the model is unsure."""
    sample = load_dataset(scenes / "b_crossroads").split("train")[0]
    car = cv2.resize(cv2.imread(str(sample.image))[40:90, 10:60], (128, 128))
    path = tmp_path / "pale.jpg"
    cv2.imwrite(str(path), (0.7 * car + 0.3 * 128).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])
    return path


@pytest.fixture
def few(scenes: Path, tmp_path: Path) -> Path:
    """A site with two pictures to train on."""
    folder = Path(shutil.copytree(scenes / "b_crossroads", tmp_path / "few"))
    for path in sorted(folder.rglob("train/*.jpg"))[2:]:
        path.unlink()
    return folder


@pytest.mark.slow
def test_what_was_corrected_in_the_page_is_found_after_the_next_round_without_a_reload(
    browser: Browser, base: Template, config: ServeConfig, few: Path, pale_car: Path, tmp_path: Path
) -> None:
    make_authority(tmp_path / "authority", ["localhost"])
    node = NodeConfig(
        node_id="A",
        coordinator_url="https://localhost:5000",
        data_path=few,
        state=tmp_path / "node",
        serve=config.state,
        authority=tmp_path / "authority" / AUTHORITY,
        promote="always",
        device="cpu",
        threads=1,
    )
    status, form = status_of(node), ModelForm.of(base, "first")
    with (
        member(config, status) as address,
        opened(browser, address) as page,
        closing(_Node(node, AuditLog(node.folder), status, silent)) as trained,
    ):
        trained.start()
        page.locator("#input-files").set_input_files(pale_car)
        score = page.locator(".detections li b")
        expect(score).to_have_count(1)
        unsure = float(score.inner_text().split()[-1])
        assert unsure < 0.5
        go(page, "review")
        expect(page.locator(".card-row")).to_have_count(1)
        expect(objects(page)).to_have_count(1)
        page.keyboard.press("j")
        page.keyboard.press("]")
        for _ in range(2):  # the model's box begins too high
            page.keyboard.press("Shift+ArrowDown")
        for _ in range(2):
            page.keyboard.press("Alt+Shift+ArrowUp")
        expect(page.locator(".badge")).to_have_text("Draft kept")
        page.keyboard.press("Enter")
        expect(page.locator("#corrections")).to_contain_text("1 added picture for the next round")
        go(page, "pictures")
        # The next round: this site's part, merged, signed and handed out.
        plan = FitPlan(train=TRAIN, round=0, rounds=1, node_id="A")
        answer = trained.answer(Request("1", "A", FIT, fit_request(base.weights, plan, base.form_hash)), form)
        assert answer.values["num_examples"] == 3
        update = read_update(answer, base.weights, *DetectorLearner(base).expected_tensors(plan))
        weights = Weights({**base.weights, **update.buffers, **add(base.weights, update.delta)})
        published = PublishPlan(round=1, signature=Signer(tmp_path / "authority").sign(form, 1, weights))
        trained.answer(Request("2", "A", PUBLISH, publish_request(weights, published, base.form_hash)), form)
        expect(page.locator(".notice")).to_contain_text("The model in use is now", timeout=30_000)
        expect(score.first).to_have_text(re.compile(r"0\.[6-9]\d|1\.00"), timeout=30_000)
