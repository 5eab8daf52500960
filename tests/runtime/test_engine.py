"""Engines of all backends find the same; the fastest is measured once and remembered; nothing of torch is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from manyeyes.datasets.detections import Detections
from manyeyes.datasets.pictures import find_pictures
from manyeyes.errors import ConfigError, DataError, WeightsError
from manyeyes.learners.export import export_model
from manyeyes.learners.learner import Template
from manyeyes.runtime import engine as engine_module
from manyeyes.runtime.engine import Backend, Engine, open_engine
from manyeyes.runtime.openvino_network import OpenVinoNetwork
from manyeyes.runtime.vision import decode

CLASSES = ("person", "car")


@pytest.fixture
def pictures(scenes: Path) -> list[bytes]:
    return [path.read_bytes() for path in find_pictures(scenes)]


def found(engine: Engine, pictures: list[bytes]) -> list[Detections]:
    return [engine.predict(picture, min_score=0.3) for picture in pictures]


def test_backends_find_the_same(onnx_file: Path, pictures: list[bytes]) -> None:
    one = open_engine(onnx_file, backend="onnxruntime", threads=1)
    other = open_engine(onnx_file, backend="openvino", precision="fp32", threads=1)
    assert (one.backend, one.precision, one.names, one.imgsz) == ("onnxruntime", "fp32", CLASSES, 128)
    pairs = list(zip(found(one, pictures), found(other, pictures), strict=True))
    assert sum(len(a) for a, _ in pairs) > 5
    for a, b in pairs:
        np.testing.assert_array_equal(a.class_id, b.class_id)
        np.testing.assert_allclose(a.xyxy, b.xyxy, atol=0.05)
        np.testing.assert_allclose(a.score, b.score, atol=1e-4)


def test_the_fastest_is_measured_once_for_this_file_and_machine(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = tmp_path / "measured.json"
    first = open_engine(onnx_file, threads=1, measured=measured)
    (kept,) = json.loads(measured.read_text()).values()
    fastest = min(kept, key=lambda row: row[2])
    assert [first.backend, first.precision] == fastest[:2]
    assert {"onnxruntime", "openvino"} == {row[0] for row in kept}

    def never(*_: object) -> float:
        raise AssertionError("it was measured again")

    monkeypatch.setattr(engine_module, "_median_seconds", never)
    again = open_engine(onnx_file, threads=1, measured=measured)
    assert (again.backend, again.precision) == (first.backend, first.precision)
    only = open_engine(onnx_file, threads=1, backend="onnxruntime", measured=measured)
    assert only.backend == "onnxruntime"
    with pytest.raises(AssertionError, match="measured again"):
        open_engine(onnx_file, threads=2, measured=measured)


@pytest.mark.parametrize("damage", ["", "[]", '{"x": 1', "no json"])
def test_a_damaged_record_is_measured_anew(onnx_file: Path, tmp_path: Path, damage: str) -> None:
    measured = tmp_path / "measured.json"
    measured.write_text(damage)
    open_engine(onnx_file, threads=1, measured=measured)
    assert len(json.loads(measured.read_text())) == 1
    (tmp_path / "folder").mkdir()
    open_engine(onnx_file, threads=1, measured=tmp_path / "folder")


def test_what_cannot_be_run_says_what_can(onnx_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be run with onnxruntime in int8 here\. Possible are: openvino fp32"):
        open_engine(onnx_file, backend="onnxruntime", precision="int8")


def test_files_that_are_no_model_of_ours_are_refused(onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no exported model"):
        open_engine(tmp_path / "missing.onnx")
    (tmp_path / "broken.onnx").write_bytes(onnx_file.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="cannot be opened by OpenVINO"):
        open_engine(tmp_path / "broken.onnx")
    import onnx

    foreign = onnx.load(onnx_file)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(WeightsError, match="does not say its classes and size"):
        open_engine(tmp_path / "foreign.onnx")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WeightsError, match=r"model\.xml is missing"):
        open_engine(tmp_path / "folder")


@pytest.mark.parametrize(("backend", "threads"), [("openvino", 1), ("openvino", 2), ("onnxruntime", 2)])
def test_many_threads_may_ask_one_engine_and_get_what_one_gets(
    onnx_file: Path, pictures: list[bytes], backend: Backend, threads: int
) -> None:
    engine = open_engine(onnx_file, backend=backend, precision="fp32", threads=threads)
    assert engine.at_once == (3 if (backend, threads) == ("openvino", 2) else 1)
    expected = found(engine, pictures)
    wrong: list[int] = []

    def ask(start: int) -> None:
        for index in range(start, start + len(pictures)):
            index %= len(pictures)
            if engine.predict(pictures[index], min_score=0.3).to_list(CLASSES) != expected[index].to_list(CLASSES):
                wrong.append(index)

    askers = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for asker in askers:
        asker.start()
    # A measurement in between has the network alone, and disturbs nobody.
    assert engine.network_seconds((96, 128)) > 0
    for asker in askers:
        asker.join()
    assert not wrong


def test_an_engine_that_is_warm_compiles_nothing_more(
    onnx_file: Path, pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(onnx_file, backend="openvino", precision="fp32", threads=2)
    for size in {decode(picture).size for picture in pictures}:
        engine.warm_up(size)
    monkeypatch.setattr(OpenVinoNetwork, "_compiled", lambda *_, **__: pytest.fail("it compiled"))
    with ThreadPoolExecutor(4) as askers:
        assert sum(len(each) for each in askers.map(engine.predict, pictures)) > 5


def test_any_shape_of_picture_can_be_asked_about(onnx_file: Path) -> None:
    engine = open_engine(onnx_file, backend="openvino", precision="fp32", threads=1)
    for height, width in ((1, 500), (500, 1), (33, 47), (128, 128), (300, 64), (64, 300), (90, 160), (160, 90)):
        picture = np.full((height, width, 3), 90, np.uint8)
        assert len(engine.predict(cv2.imencode(".png", picture)[1].tobytes(), min_score=0.9)) == 0
    with pytest.raises(DataError):
        engine.predict(b"nothing")


def test_boxes_fit_a_picture_that_was_decoded_at_half_its_size(onnx_file: Path, scenes: Path) -> None:
    picture = cv2.imread(str(find_pictures(scenes / "b_crossroads")[0]))
    large = cv2.imencode(".jpg", cv2.resize(picture, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC))[1].tobytes()
    engine = open_engine(onnx_file, backend="openvino", precision="fp32", threads=1)
    quick, whole = engine.predict(large, min_score=0.3), engine.predict(decode(large), min_score=0.3)
    assert len(quick) == len(whole) > 0
    np.testing.assert_allclose(quick.xyxy, whole.xyxy, atol=6)
    assert quick.xyxy.max() > 200


def test_it_runs_without_what_trains_and_tells_nobody(onnx_file: Path, scenes: Path, tmp_path: Path) -> None:
    """Not even the home folder is written to; without CI in the environment, which makes OpenVINO quiet."""
    shutil.copy(onnx_file, tmp_path / "m.onnx")
    picture = find_pictures(scenes)[0]
    code = f"""
import sys
def hook(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise RuntimeError(f"{{event}} {{arguments}}")
sys.addaudithook(hook)
for name in ("torch", "ultralytics", "flwr", "torchvision", "nncf", "onnx"):
    sys.modules[name] = None
sys.argv = ["manyeyes", "predict", "m.onnx", {str(picture)!r}, "--conf", "0.05", "--threads", "1", "--json"]
from manyeyes.cli import main
main()
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    strace = shutil.which("strace")
    watched = [strace, "-f", "-qq", "-e", "trace=connect,sendto", "-o", "calls.txt"] if strace else []
    done = subprocess.run(
        [*watched, sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["detections"]
    assert not list(home.iterdir())
    assert not strace or "AF_INET" not in (tmp_path / "calls.txt").read_text()


def test_an_openvino_folder_is_opened_too(
    base: Template, tmp_path: Path, pictures: list[bytes], onnx_file: Path
) -> None:
    path = export_model(base, tmp_path / "model", format="openvino").path
    engine = open_engine(path, precision="fp32", threads=1)
    assert (engine.backend, engine.names) == ("openvino", CLASSES)
    one = open_engine(onnx_file, backend="openvino", precision="fp32", threads=1)
    for a, b in zip(found(engine, pictures), found(one, pictures), strict=True):
        np.testing.assert_allclose(a.xyxy, b.xyxy, atol=0.05)
    assert engine.model_hash != one.model_hash
