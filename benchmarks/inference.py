"""Claims: on a plain CPU ours finds objects several times faster than `ultralytics.YOLO.predict`, and finds the same.

    python benchmarks/inference.py                 YOLOv8n from COCO at 640 px, all cores
    python benchmarks/inference.py --threads 1     one core
    python benchmarks/inference.py --quick         two turns, no mAP, not kept

In one process, turn by turn on the same pictures: `YOLO.predict` with PyTorch and with its own ONNX and OpenVINO
exports, ONNX Runtime and OpenVINO by themselves, and ours in every precision that this processor has.

    network     milliseconds of the network alone on 640 × 640 pixels. Of Ultralytics what it reports as "inference".
    end to end  from the bytes of a 1280 × 720 JPEG to boxes, scores and classes. PyTorch and ours see 640 × 384 pixels
                then; an export with one shape sees 640 × 640.

mAP50-95 is measured on the street pictures beside the checkout (test, three sites, their own classes), through each of
our engines from the bytes of a file, and through PyTorch. int8 is calibrated on their training pictures.

Needs ../shared/data/weights/yolov8n.pt and ../shared/data/streets.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cells import Claim, arguments, claim, save_cell, show

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SITES = {
    "a_indoor": ("person", "chair", "tv"),
    "b_day": ("car", "person", "traffic light"),
    "c_night": ("car", "person", "traffic light"),
}
SIDE = 640
Times = dict[str, list[float]]


def export_all(folder: Path, quick: bool) -> dict[str, Path]:
    """Our files: fp32 (computed in bf16 too), and int8, which takes a minute to make."""
    from manyeyes.datasets.classes import pool
    from manyeyes.learners.export import export_model
    from manyeyes.learners.models import open_template

    template = open_template(SHARED / "weights" / "yolov8n.pt")
    together = pool({site: known(site, template.names) for site in SITES})
    fp32 = export_model(template, folder / "ours.onnx").path
    if quick:
        return {"fp32": fp32}
    int8 = export_model(
        template, folder / "ours_int8", format="openvino", precision="int8", data=together, max_drop=100
    ).path
    return {"fp32": fp32, "int8": int8}


def known(site: str, names: tuple[str, ...]) -> Any:
    """A site's pictures with the model's class ids."""
    from manyeyes.datasets import load_dataset
    from manyeyes.datasets.classes import known_part

    return known_part(load_dataset(SHARED / "streets" / site, annotates=SITES[site]), names)


def pictures() -> tuple[list[bytes], list[bytes]]:
    """Street pictures as 640 × 640 and as 1280 × 720 JPEGs."""
    import cv2

    from manyeyes.runtime.vision import decode

    files = sorted((SHARED / "streets" / "b_day" / "images" / "test").iterdir())[:8]
    read = [decode(file.read_bytes()).picture for file in files]

    def encoded(size: tuple[int, int]) -> list[bytes]:
        return [cv2.imencode(".jpg", cv2.resize(p, size, interpolation=cv2.INTER_AREA))[1].tobytes() for p in read]

    return encoded((SIDE, SIDE)), encoded((1280, 720))


def ultralytics_contenders(folder: Path, threads: int) -> dict[str, Callable[[bytes], float]]:
    """Each takes the bytes of a picture, and returns what it says the network took, in seconds."""
    import cv2
    import numpy as np
    import torch
    from ultralytics import YOLO

    shutil.copy(SHARED / "weights" / "yolov8n.pt", folder / "yolov8n.pt")
    models = {"YOLO.predict, PyTorch": YOLO(folder / "yolov8n.pt")}
    for form in ("onnx", "openvino"):
        more = {"simplify": False} if form == "onnx" else {}
        file = YOLO(folder / "yolov8n.pt").export(format=form, imgsz=SIDE, verbose=False, **more)
        models[f"YOLO.predict, its {form} export"] = YOLO(file, task="detect")

    def contender(model: Any) -> Callable[[bytes], float]:
        def ask(data: bytes) -> float:
            torch.set_num_threads(threads)
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            found = model.predict(picture, imgsz=SIDE, conf=0.25, device="cpu", verbose=False)[0]
            found.boxes.xyxy.numpy(), found.boxes.conf.numpy(), found.boxes.cls.numpy()
            return float(found.speed["inference"]) / 1000

        return ask

    return {name: contender(model) for name, model in models.items()}


def raw_contenders(files: Mapping[str, Path], threads: int) -> dict[str, Callable[[], object]]:
    """The networks by themselves, as a short program would run them."""
    import numpy as np
    import onnxruntime

    from manyeyes.runtime.openvino_network import ov, precisions_here

    image = np.random.default_rng(0).random((1, 3, SIDE, SIDE), np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(files["fp32"]), options, providers=["CPUExecutionProvider"])
    contenders: dict[str, Callable[[], object]] = {"ONNX Runtime fp32": lambda: session.run(None, {"images": image})}
    core = ov.Core()
    kinds = {kind: ({"fp32": "f32", "bf16": "bf16"}[kind], files["fp32"]) for kind in precisions_here()}
    if "int8" in files:
        kinds["int8"] = ("bf16" if "bf16" in kinds else "f32", files["int8"] / "model.xml")
    for kind, (hint, path) in kinds.items():
        model = core.read_model(path)
        model.reshape([1, 3, SIDE, SIDE])
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = core.compile_model(model, "CPU", settings)
        contenders[f"OpenVINO {kind}"] = compiled_run(compiled, image)
    return contenders


def compiled_run(compiled: Any, image: Any) -> Callable[[], object]:
    """Calls a compiled model."""
    return lambda: compiled(image)


def our_engines(files: Mapping[str, Path], threads: int) -> dict[str, Any]:
    """Ours, by precision; fp32 as OpenVINO and as ONNX Runtime run it."""
    from manyeyes.runtime.engine import possible_engines

    engines = [engine for path in files.values() for engine in possible_engines(path, threads=threads)]
    return {f"ours {engine.precision}, {engine.backend}": engine for engine in engines}


def measure(turns: int, threads: int, folder: Path, quick: bool) -> tuple[Times, Times, dict[str, Any]]:
    """Seconds of the network and end to end, by contender; and our engines."""
    files = export_all(folder, quick)
    square, wide = pictures()
    theirs, raw, ours = (
        ultralytics_contenders(folder, threads),
        raw_contenders(files, threads),
        our_engines(files, threads),
    )
    network: Times = {name: [] for name in (*theirs, *raw, *ours)}
    whole: Times = {name: [] for name in (*theirs, *ours)}
    for turn in range(turns + 1):  # the first warms up
        for index in range(len(square)):
            for name, ask in theirs.items():
                network[name].append(ask(square[index]))
                whole[name].append(timed(ask, wide[index]))
            for name, run in raw.items():
                network[name].append(timed(run))
            for name, engine in ours.items():
                network[name].append(engine.network_seconds(repeats=1))
                whole[name].append(timed(engine.predict, wide[index]))
        if turn == 0:
            for times in (*network.values(), *whole.values()):
                times.clear()
        print(f"turn {turn} of {turns}", file=sys.stderr)
    return network, whole, ours


def timed(call: Callable[..., object], *given: object) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call(*given)
    return time.perf_counter() - began


def average_precisions(engines: Mapping[str, Any]) -> dict[str, float]:
    """mAP50-95 on the mixed street test pictures, by engine; and PyTorch's."""
    from dataclasses import replace

    from manyeyes.learners.average_precision import average_precision
    from manyeyes.learners.models import open_template
    from manyeyes.learners.parity import TorchNetwork
    from manyeyes.runtime.engine import Engine

    template = open_template(SHARED / "weights" / "yolov8n.pt")
    samples = []
    for site, classes in SITES.items():
        annotated = frozenset(template.names.index(name) for name in classes)
        samples += [replace(sample, annotates=annotated) for sample in known(site, template.names).split("test")]
    everyone = {"PyTorch fp32": Engine(TorchNetwork.of(template), "", SIDE), **engines}
    scores = {}
    for name, engine in everyone.items():
        found = [engine.predict(sample.image.read_bytes(), min_score=0.001) for sample in samples]
        scores[name] = average_precision(found, samples, template.names).map50_95
        print(f"{name}: mAP50-95 {scores[name]:.4f}", file=sys.stderr)
    return scores


def claims_of(network: Times, whole: Times, scores: Mapping[str, float]) -> list[Claim]:
    """Against PyTorch in Ultralytics, and against OpenVINO by itself."""
    peer = "YOLO.predict, PyTorch"
    best = min((name for name in whole if name.startswith("ours")), key=lambda name: statistics.median(whole[name]))
    claims = [
        claim(f"{what}, pictures/s: {best} / {peer}", rates(times[best]), rates(times[peer]), target, "higher")
        for what, times, target in (
            ("network alone, 640 × 640", network, 4.0),
            ("bytes of a 1280 × 720 JPEG to boxes", whole, 3.0),
        )
    ]
    for name in network:
        kind = name.removeprefix("ours ").removesuffix(", openvino")
        if name.endswith(", openvino"):
            text = f"network alone, 640 × 640, seconds: {name} / OpenVINO {kind} by itself"
            claims.append(claim(text, network[name], network[f"OpenVINO {kind}"], 1.15, "lower"))
    for name, score in scores.items():
        allowed = {"bf16": 0.3, "int8": 1.0}.get(name.removeprefix("ours ").partition(",")[0], 0.1)
        if name.startswith("ours"):
            lost = 100 * (scores["PyTorch fp32"] - score)
            claims.append(
                claim(f"points of mAP50-95 lost: {name} / allowed", [max(0.0, lost)], [allowed], 1.0, "lower")
            )
    return claims


def rates(seconds: list[float]) -> list[float]:
    """Pictures a second."""
    return [1 / value for value in seconds]


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=6, help="of eight pictures each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"YOLO_CONFIG_DIR": folder, "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
        network, whole, engines = measure(
            1 if options.quick else options.turns, options.threads, Path(folder), options.quick
        )
        scores = {} if options.quick else average_precisions(engines)
    claims = claims_of(network, whole, scores)
    if not options.json:
        print(f"{'':42}  network  end to end  mAP50-95")
        for name, times in network.items():
            late = f"{1000 * statistics.median(whole[name]):8.1f} ms" if name in whole else ""
            score = f"{scores[name]:.4f}" if name in scores else ""
            print(f"{name:42}{1000 * statistics.median(times):6.1f} ms  {late:11}  {score}")
    if not options.quick:
        about = {"seed": 0, "threads": options.threads, "network": network, "end_to_end": whole, "map50_95": scores}
        save_cell("inference", f"yolov8n-640-{options.threads}", json.loads(json.dumps({**about, "samples": claims})))
    show(claims, options.json)


if __name__ == "__main__":
    main()
