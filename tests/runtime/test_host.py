"""Models that are changed while somebody looks with them."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manyeyes.datasets.detections import Detections
from manyeyes.errors import DataError, ResourceError, WeightsError
from manyeyes.registry import Registry
from manyeyes.runtime.engine import Engine, open_engine
from manyeyes.runtime.host import Found, Host, Night
from manyeyes.runtime.vision import MAX_IOU, Decoded, Picture


class Failing:
    """An engine that fails from its `after`th picture on, its test left out; until then it is a real one."""

    def __init__(self, engine: Engine, after: int) -> None:
        self._engine, self.left = engine, after + 1
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def predict(self, picture: bytes | Decoded, *, min_score: float = 0.25, max_iou: float = MAX_IOU) -> Detections:
        with self._lock:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("the driver is gone")
        return self._engine.predict(picture, min_score=min_score, max_iou=max_iou)

    look = Engine.look


class Blind:
    """An engine that finds nothing, or no numbers, in anything."""

    def __init__(self, engine: Engine, boxes: int, value: float) -> None:
        self._engine, self._boxes, self._value = engine, boxes, value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def predict(self, picture: bytes | Decoded, *, min_score: float = 0.25, max_iou: float = MAX_IOU) -> Detections:
        xyxy = np.full((self._boxes, 4), self._value, np.float32)
        return Detections(xyxy, np.ones(self._boxes, np.float32), np.zeros(self._boxes, np.int64))

    look = Engine.look


@dataclass
class Site:
    """A registry with four models, and how each is opened."""

    registry: Registry
    models: list[str]
    engines: dict[str, Engine]
    wrong: dict[str, Callable[[Engine], Any]] = field(default_factory=dict)

    def opener(self, model: str) -> Engine:
        path = self.registry.path(model)
        if model not in self.engines:  # it takes a moment, and any number may look with it
            self.engines[model] = open_engine(path, backend="openvino", precision="fp32", threads=1)
        return self.wrong.get(model, lambda engine: engine)(self.engines[model])

    def host(self, night: Night | None = None) -> Host:
        return Host(self.registry, self.opener, self.models[0], night)


@pytest.fixture(scope="module")
def filled(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """One network in four files; only copied."""
    import onnx

    folder = tmp_path_factory.mktemp("models")
    model = onnx.load(onnx_file)
    for name in "abcd":
        model.producer_name = name
        onnx.save(model, folder / f"{name}.onnx")
    registry = Registry(folder / "registry")
    return Site(registry, [registry.add(path).hash for path in sorted(folder.glob("*.onnx"))], {})


@pytest.fixture
def site(filled: Site, tmp_path: Path) -> Site:
    shutil.copytree(filled.registry.measured.parent, tmp_path / "models")
    return Site(Registry(tmp_path / "models"), filled.models, filled.engines)


@pytest.fixture(scope="module")
def picture(scenes: Path) -> bytes:
    return sorted(scenes.rglob("*.jpg"))[0].read_bytes()


@contextmanager
def under_load(host: Host, picture: bytes, threads: int = 4) -> Iterator[list[Found]]:
    """Within the block some threads look at a picture again and again; an error of theirs ends the test."""
    found: list[Found] = []
    errors: list[BaseException] = []
    ended = threading.Event()

    def look() -> None:
        try:
            while not ended.is_set():
                found.append(host.look(picture))
        except BaseException as error:
            errors.append(error)
            raise

    workers = [threading.Thread(target=look) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield found
    finally:
        ended.set()
        for worker in workers:
            worker.join(timeout=30)
    assert not errors
    assert found


def boxes(found: Found) -> list[dict[str, Any]]:
    return found.detections.to_list(found.engine.names)


def flat(value: int) -> Decoded:
    pixels: Picture = np.full((64, 96, 3), value, np.uint8)
    return Decoded(pixels, (64, 96))


def test_models_change_under_load_and_not_one_picture_is_lost(site: Site, picture: bytes) -> None:
    host = site.host()
    expected = boxes(host.look(picture))
    with under_load(host, picture) as found:
        for model in (*site.models[1:], *site.models):
            before = len(found)
            assert host.use(model).hash == model
            while len(found) < before + 4:
                time.sleep(0.005)
    assert all(boxes(each) == expected for each in found)
    assert {each.engine.model_hash for each in found} == set(site.models)
    assert host.changes == 7
    assert host.taken_back == 0
    assert site.registry.used == [site.models[n] for n in (3, 2, 1, 0)]


@pytest.mark.parametrize("after", [0, 1, 20])
def test_a_model_that_fails_after_some_pictures_is_taken_back_and_the_picture_is_still_looked_at(
    site: Site, picture: bytes, after: int
) -> None:
    site.wrong[site.models[1]] = lambda engine: Failing(engine, after)
    host = site.host()
    expected = boxes(host.look(picture))
    host.use(site.models[1])
    found = [host.look(picture) for _ in range(after + 3)]
    assert all(boxes(each) == expected for each in found)
    assert [each.engine.model_hash for each in found] == [site.models[1]] * after + [site.models[0]] * 3
    assert (host.taken_back, host.engine.model_hash) == (1, site.models[0])
    assert site.registry.used == [site.models[0]]


@pytest.mark.parametrize("failing", [(1, 2), (1, 2, 3)])
def test_models_that_were_changed_in_haste_are_all_taken_back(
    site: Site, picture: bytes, failing: tuple[int, ...]
) -> None:
    host = site.host()
    expected = boxes(host.look(picture))
    for number in failing:
        site.wrong[site.models[number]] = lambda engine: Failing(engine, 0)
        host.use(site.models[number])
    found = host.look(picture)
    assert boxes(found) == expected
    assert found.engine.model_hash == host.engine.model_hash == site.models[0]
    assert host.taken_back == 2  # of three, the one in the middle is not kept open
    assert site.registry.used[0] == site.models[0]


@pytest.mark.parametrize("after", [0, 7])
def test_it_is_taken_back_once_though_it_fails_for_many_at_a_time(site: Site, picture: bytes, after: int) -> None:
    site.wrong[site.models[1]] = lambda engine: Failing(engine, after)
    host = site.host()
    with under_load(host, picture, threads=6) as found:
        host.use(site.models[1])
        while not host.taken_back:
            time.sleep(0.005)
        before = len(found)
        while len(found) < before + 12:
            time.sleep(0.005)
    assert host.taken_back == 1
    assert host.look(picture).engine.model_hash == site.models[0]


def test_a_full_disk_does_not_keep_a_failing_model_in_use(
    site: Site, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.wrong[site.models[1]] = lambda engine: Failing(engine, 0)
    host = site.host()
    host.use(site.models[1])

    def full(*_: object, **__: object) -> None:
        raise ResourceError("cannot be written (No space left on device)")

    monkeypatch.setattr(site.registry, "drop_used", full)
    assert host.look(picture).engine.model_hash == site.models[0]
    assert host.taken_back == 1


def test_the_only_model_has_nothing_to_go_back_to(site: Site, picture: bytes) -> None:
    site.wrong[site.models[0]] = lambda engine: Failing(engine, 0)
    host = site.host()
    with pytest.raises(RuntimeError, match="the driver is gone"):
        host.look(picture)
    assert host.taken_back == 0


def test_a_model_that_has_proved_itself_is_not_taken_back_for_one_bad_picture(site: Site, picture: bytes) -> None:
    site.wrong[site.models[1]] = lambda engine: Failing(engine, 200)
    host = site.host()
    host.use(site.models[1])
    for _ in range(200):
        host.look(flat(90))
    with pytest.raises(RuntimeError, match="the driver is gone"):
        host.look(picture)
    assert host.engine.model_hash == site.models[1]


def test_a_picture_that_is_none_is_not_the_models_fault(site: Site) -> None:
    host = site.host()
    host.use(site.models[1])
    with pytest.raises(DataError):
        host.look(b"no picture")
    assert (host.taken_back, host.engine.model_hash) == (0, site.models[1])


@pytest.mark.parametrize(
    "wrong",
    [lambda engine: Failing(engine, -1), lambda engine: Blind(engine, 0, 1.0), lambda engine: Blind(engine, 9, np.nan)],
    ids=["it fails", "it finds nothing", "it computes no numbers"],
)
def test_a_model_that_fails_its_test_is_refused_and_the_old_one_stays(
    site: Site, picture: bytes, wrong: Callable[[Engine], Any]
) -> None:
    site.wrong[site.models[1]] = wrong
    host = site.host()
    with under_load(host, picture, threads=2) as found, pytest.raises(WeightsError, match="fails its test"):
        host.use(site.models[1])
    assert {each.engine.model_hash for each in found} == {site.models[0]}
    assert site.registry.used == [site.models[0]]
    assert host.changes == 0


def test_a_file_that_was_changed_is_not_used(site: Site) -> None:
    host = site.host()
    path = site.registry.path(site.models[1])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="was changed since it was added"):
        host.use(site.models[1])
    assert host.engine.model_hash == site.models[0]


def test_one_goes_back_model_by_model(site: Site) -> None:
    host = site.host()
    for model in site.models[1:]:
        host.use(model)
    assert [host.roll_back().hash for _ in range(3)] == site.models[2::-1]
    with pytest.raises(WeightsError, match="this one is the first"):
        host.roll_back()
    assert host.engine.model_hash == site.models[0]


def test_one_does_not_go_back_to_a_model_that_fails_now(site: Site, picture: bytes) -> None:
    host = site.host()
    host.use(site.models[1])
    site.wrong[site.models[0]] = lambda engine: Failing(engine, -1)
    with pytest.raises(WeightsError, match="fails its test"):
        host.roll_back()
    assert host.look(picture).engine.model_hash == site.models[1]
    assert site.registry.used == [site.models[1], site.models[0]]


def test_one_that_is_put_to_use_while_another_is_gone_back_to_stays(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = site.host()
    host.use(site.models[1])

    def meanwhile(engine: Engine) -> Engine:
        site.registry.use(site.models[2])
        return engine

    site.wrong[site.models[0]] = meanwhile
    with pytest.raises(WeightsError, match="another model was put to use meanwhile"):
        host.roll_back()
    assert site.registry.wanted == site.models[2]


def test_a_host_begins_with_the_first_model_that_passes_its_test(site: Site, picture: bytes) -> None:
    site.wrong[site.models[0]] = lambda engine: Blind(engine, 0, 1.0)
    host = Host(site.registry, site.opener, site.models[0], or_else=site.models[1:])
    assert host.look(picture).engine.model_hash == site.models[1] == site.registry.wanted
    site.wrong |= dict.fromkeys(site.models, site.wrong[site.models[0]])
    with pytest.raises(WeightsError, match="fails its test"):
        Host(site.registry, site.opener, site.models[0], or_else=site.models[1:])


def test_the_model_in_use_is_not_opened_again(site: Site) -> None:
    host = site.host()
    engine = host.engine
    host.use(site.models[0])
    assert host.engine is engine
    assert host.changes == 0


# -- night ------------------------------------------------------------------------------------------------------------


def test_by_the_clock_the_night_has_its_model(site: Site, picture: bytes) -> None:
    now = {"night": False}
    host = site.host(Night(site.models[1], is_night=lambda: now["night"]))
    for night in (False, True, False):
        now["night"] = night
        found = host.look(picture)
        assert (found.scene, found.engine.model_hash) == (
            ("night", site.models[1]) if night else ("day", site.models[0])
        )
        assert host.engine.model_hash == found.engine.model_hash


@pytest.mark.parametrize("brightness", [0, 39, 40, 200])
def test_in_a_dark_picture_it_is_night(site: Site, brightness: int) -> None:
    host = site.host(Night(site.models[1], darker_than=40))
    assert host.look(flat(brightness)).scene == ("night" if brightness < 40 else "day")


def test_a_bright_picture_at_night_is_a_nights_one(site: Site) -> None:
    host = site.host(Night(site.models[1], is_night=lambda: True, darker_than=40))
    assert host.look(flat(200)).scene == "night"


def test_an_order_holds_against_clock_and_brightness_until_it_is_taken_back(site: Site) -> None:
    host = site.host(Night(site.models[1], is_night=lambda: True, darker_than=40))
    host.force("day")
    assert [host.look(flat(value)).scene for value in (0, 200)] == ["day", "day"]
    assert host.engine.model_hash == site.models[0]
    host.force("night")
    assert host.look(flat(200)).engine.model_hash == site.models[1]
    host.force(None)
    assert (host.forced, host.look(flat(0)).scene) == (None, "night")


def test_without_a_model_for_the_night_none_can_be_ordered(site: Site) -> None:
    host = site.host()
    with pytest.raises(WeightsError, match="no model for the night"):
        host.force("night")
    host.force("day")
    assert host.look(flat(0)).scene == "day"


def test_the_model_of_the_day_changes_while_it_is_night(site: Site, picture: bytes) -> None:
    host = site.host(Night(site.models[1], is_night=lambda: True))
    with under_load(host, picture, threads=2) as found:
        host.use(site.models[2])
    assert {each.engine.model_hash for each in found} == {site.models[1]}
    host.force("day")
    assert host.look(picture).engine.model_hash == site.models[2]


def test_a_new_model_is_judged_by_its_own_pictures_and_not_by_those_of_the_night(site: Site, picture: bytes) -> None:
    site.wrong[site.models[2]] = lambda engine: Failing(engine, 0)
    host = site.host(Night(site.models[1], darker_than=40))
    host.use(site.models[2])
    for _ in range(250):
        host.look(flat(0))
    assert host.look(picture).engine.model_hash == site.models[0]
    assert host.taken_back == 1
