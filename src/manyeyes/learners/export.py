"""Write a trained detector for other programs to run, and keep the file only if it finds what PyTorch finds.

    onnx         one file, for ONNX Runtime, OpenVINO and most others; any picture size
    openvino     a folder with model.xml and model.bin; also quantised to 8 bits on a site's own pictures
    torchscript  one file, for libtorch
    tensorrt     one file, made with NVIDIA's TensorRT for the GPU of this machine
    litert       one file, made with Google's LiteRT, for phones

The first two are run here picture by picture beside PyTorch before they are kept; the others are run too wherever what
they need is installed, and say what that is where it is not.
"""

from __future__ import annotations

import importlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from manyeyes.datasets.classes import known_part
from manyeyes.datasets.pictures import find_pictures
from manyeyes.datasets.sample import Dataset, Sample
from manyeyes.datasets.scenes import write_scenes
from manyeyes.errors import ConfigError, DataError, ResourceError, WeightsError
from manyeyes.learners.learner import Metrics, Template
from manyeyes.learners.parity import TOLERANCES, Parity, TorchNetwork, as_input, compare, measure
from manyeyes.learners.pictures import picture_bytes
from manyeyes.runtime.engine import Precision
from manyeyes.runtime.model_file import METADATA, OPENVINO_XML, ModelInfo
from manyeyes.runtime.network import Network
from manyeyes.runtime.onnx_network import OnnxNetwork
from manyeyes.runtime.openvino_network import OpenVinoNetwork, ov, precisions_here
from manyeyes.runtime.vision import Canvas, Decoded, Geometry, decode

__all__ = ["FORMATS", "Exported", "Format", "default_path", "export_model"]

T = TypeVar("T")
Tell = Callable[[str], None]

Format = Literal["onnx", "openvino", "torchscript", "tensorrt", "litert"]
FORMATS: tuple[Format, ...] = ("onnx", "openvino", "torchscript", "tensorrt", "litert")

_OPSET = 17
_CALIBRATION = 128
_CHECKED = 32


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that was kept.

    Attributes:
        path: of it.
        precision: in which it computes.
        num_bytes: its size.
        parity: beside PyTorch; None where this machine cannot run it.
        metrics: PyTorch's and its own, on the pictures that were given; None without.
        note: what a person must know.
    """

    path: Path
    precision: str
    num_bytes: int
    parity: Parity | None
    metrics: tuple[Metrics, Metrics] | None = None
    note: str | None = None

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{self.path} ({self.num_bytes / 1e6:.1f} MB, {self.precision})"]
        if self.parity:
            lines.append(f"Beside PyTorch: {self.parity}.")
        if self.metrics:
            before, after = self.metrics
            lines.append(
                f"mAP50-95 on {after.num_images} pictures: {after.map50_95:.3f} (PyTorch {before.map50_95:.3f}),"
                f" mAP50 {after.map50:.3f} ({before.map50:.3f})."
            )
        return lines + ([self.note] if self.note else [])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "path": str(self.path),
            "precision": self.precision,
            "bytes": self.num_bytes,
            "parity": asdict(self.parity) if self.parity else None,
            "torch": self.metrics[0].to_dict() if self.metrics else None,
            "exported": self.metrics[1].to_dict() if self.metrics else None,
            "note": self.note,
        }


_SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript", "tensorrt": ".engine", "litert": ".tflite"}


def default_path(model: Path, format: str, precision: str) -> Path:
    """Beside the model, with a name that says what it is.

    >>> default_path(Path("runs/final.pt"), "openvino", "int8").as_posix()
    'runs/final_int8_openvino_model'
    """
    kind = "" if precision in ("auto", "fp32") else f"_{precision}"
    # Ultralytics knows a folder by this ending.
    return model.with_name(f"{model.stem}{kind}{_SUFFIXES.get(format, '_openvino_model')}")


def export_model(
    template: Template,
    out: Path,
    *,
    format: Format = "onnx",
    precision: Precision = "auto",
    imgsz: int | None = None,
    data: Dataset | None = None,
    max_drop: float = 1.0,
    tell: Tell = lambda text: None,
) -> Exported:
    """Write a model in another format; nothing is left at `out` if it does not find what PyTorch finds.

    Args:
        template: the model.
        out: file, or folder for OpenVINO; must not exist.
        format: see the head of this file.
        precision: "fp32", "bf16" (checked in bfloat16) or "int8" (OpenVINO alone); "auto" for fp32.
        imgsz: long side in pixels; default: as trained. ONNX and OpenVINO files take others too.
        data: a site's own pictures: "int8" is calibrated on those of "train" and tested on those of "val" (or "test");
            the others are compared on the latter. Default: synthetic pictures.
        max_drop: most points of mAP50-95 that an int8 model may lose.
        tell: told what is being done.

    Raises:
        ConfigError: format and precision do not go together, or int8 without pictures.
        ResourceError: what makes this format is not installed, or `out` exists or cannot be written.
        WeightsError: the exported model finds something else, or loses more than `max_drop`.
        DataError: there are no pictures to calibrate or test with, or one cannot be read.
    """
    precision = "fp32" if precision == "auto" else precision
    _check_possible(format, precision, data)
    wanted = _SUFFIXES.get(format, "")
    if out.suffix != wanted and wanted:
        raise ConfigError(f"is to be a {format} file, so its name must end in {wanted}", file=out, key="--out")
    if out.exists():
        raise ResourceError("exists", file=out, cure="Name another with --out, or move it away.")
    work = _Work(template, precision, imgsz or template.imgsz, data, max_drop, tell)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
            part = Path(folder) / out.name
            exported = _WRITERS[format](work, part)
            part.rename(out)
    except OSError as error:
        raise ResourceError(f"cannot be written ({error.strerror or error})", file=out) from error
    files = [out] if out.is_file() else sorted(out.iterdir())
    return replace(exported, path=out, num_bytes=sum(file.stat().st_size for file in files))


def _check_possible(format: Format, precision: Precision, data: Dataset | None) -> None:
    if precision == "int8" and format != "openvino":
        raise ConfigError(f"int8 is made with OpenVINO, not as {format}", key="--precision", cure="--format openvino")
    if precision == "bf16" and format not in ("onnx", "openvino"):
        raise ConfigError(f"bf16 is checked for ONNX and OpenVINO, not for {format}", key="--precision", cure="fp32")
    if precision == "int8" and data is None:
        raise ConfigError(
            "int8 needs the site's own pictures, to calibrate on and to see what it costs",
            key="--data",
            cure="--data DATA",
        )


class _Work:
    """A model on its way: module, pictures, and the comparison that every file has to pass."""

    def __init__(
        self, template: Template, precision: str, imgsz: int, data: Dataset | None, max_drop: float, tell: Tell
    ) -> None:
        self.template, self.precision, self.imgsz = template, precision, imgsz
        self.max_drop, self.tell = max_drop, tell
        self.data = None if data is None else known_part(data, template.names)
        self.reference = TorchNetwork.of(template)
        self.module: Any = self.reference.module

    def info(self, precision: str | None = None) -> ModelInfo:
        """What the file says of itself."""
        return ModelInfo(
            names=self.template.names,
            imgsz=self.imgsz,
            weights=self.template.weights.value_hash,
            precision=precision or self.precision,
        )

    def split(self, *names: str) -> list[Sample]:
        """Pictures of the first of these splits that has any.

        Raises:
            DataError: none has.
        """
        assert self.data is not None
        for name in names:
            if samples := self.data.split(name):
                return list(samples)
        wanted = " or ".join(f"`{name}`" for name in names)
        raise DataError("has no pictures for this", file=self.data.root, cure=f"Give it a {wanted} split.")

    def pictures(self) -> list[Decoded]:
        """Pictures to compare on."""
        if self.data is not None:
            return [decode(picture_bytes(sample.image)) for sample in _some(self.split("val", "test"), _CHECKED)]
        with tempfile.TemporaryDirectory() as folder:
            write_scenes(Path(folder), images=10, imgsz=min(self.imgsz, 640), seed=1)
            return [decode(path.read_bytes()) for path in _some(find_pictures(Path(folder)), _CHECKED)]

    def compare(self, network: Network, pictures: Sequence[Decoded] | None = None) -> Parity:
        """See `parity.compare`.

        Raises:
            WeightsError: the network finds something else.
        """
        self.tell(f"comparing {network.backend} {network.precision} with PyTorch, picture by picture")
        tolerance = TOLERANCES[network.precision]
        parity = compare(self.reference, network, pictures or self.pictures(), tolerance, self.imgsz)
        if not parity.within(tolerance):
            raise WeightsError(
                # Without figures: a node tells its coordinator the reason, and they are of the site's pictures.
                "the exported model does not find what PyTorch finds, so it was not kept",
                cure=f"Report this with the model and these figures ({parity}); another --format may do.",
            )
        return parity

    def test(self, network: Network) -> tuple[Metrics, Metrics] | None:
        """Average precision of PyTorch and of the network on the given pictures; None without."""
        if self.data is None:
            return None
        self.tell("testing both on the given pictures")
        samples = self.split("val", "test")
        annotated = frozenset(self.template.names.index(name) for name in self.data.annotates)
        before, after = (measure(each, samples, annotated, self.imgsz) for each in (self.reference, network))
        return before, after


def _some(items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly spread."""
    step = max(1, -(-len(items) // most))
    return list(items[::step])


# -- one function a format ------------------------------------------------------------------------------------------


def _write_onnx(work: _Work, path: Path) -> Exported:
    _trace_onnx(work, path, work.info())
    network = OpenVinoNetwork(path, precision=work.precision, threads=_threads())
    parity = work.compare(network)
    if work.precision == "fp32":
        work.compare(OnnxNetwork(path, threads=_threads()))
    return Exported(path, work.precision, 0, parity, work.test(network), _bf16_note(work))


def _trace_onnx(work: _Work, path: Path, info: ModelInfo) -> None:
    """Write the graph, and what the file says of itself."""
    import onnx

    work.tell("writing the ONNX graph")
    head: Any = work.module.model[-1]
    head.export, head.format, head.dynamic = True, "onnx", True
    axes = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch", 2: "anchors"}}
    try:
        with warnings.catch_warnings():
            # The tracer that is to follow it needs another package, and minutes.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                work.module,
                (torch.zeros(1, 3, 64, 96),),
                path,
                dynamo=False,
                opset_version=_OPSET,
                input_names=["images"],
                output_names=["output0"],
                dynamic_axes=axes,
            )
    finally:
        head.export = head.dynamic = False
    model = onnx.load(path)
    for key, value in ((METADATA, info.model_dump_json()), *_for_ultralytics(work)):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _for_ultralytics(work: _Work) -> tuple[tuple[str, str], ...]:
    """Keys under which `ultralytics.YOLO` looks in an ONNX file."""
    names = dict(enumerate(work.template.names))
    size = [work.imgsz, work.imgsz]
    return ("names", str(names)), ("imgsz", str(size)), ("stride", "32"), ("task", "detect"), ("batch", "1")


def _write_openvino(work: _Work, path: Path) -> Exported:
    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "model.onnx"
        _trace_onnx(work, traced, work.info("fp32"))
        # Converted, not only read: what stays two operations (SiLU as x · sigmoid x) would be quantised in between.
        model = ov.convert_model(traced) if work.precision == "int8" else ov.Core().read_model(traced)
    if work.precision == "int8":
        model = _quantised(work, model)
    model.set_rt_info(work.info().model_dump_json(), METADATA)
    path.mkdir()
    ov.save_model(model, path / OPENVINO_XML, compress_to_fp16=False)
    network = OpenVinoNetwork(path, precision=work.precision, threads=_threads())
    if work.precision != "int8":
        return Exported(path, work.precision, 0, work.compare(network), work.test(network), _bf16_note(work))
    metrics = work.test(network)
    assert metrics
    drop = 100 * (metrics[0].map50_95 - metrics[1].map50_95)
    if drop > work.max_drop:
        raise WeightsError(
            f"in int8 the model loses {drop:.1f} points of mAP50-95 ({metrics[0].map50_95:.3f} to"
            f" {metrics[1].map50_95:.3f}), and {work.max_drop:g} are allowed, so it was not kept",
            cure="Calibrate on more pictures, allow more with --max-drop, or take --precision bf16.",
        )
    return Exported(path, "int8", 0, None, metrics)


def _quantised(work: _Work, model: Any) -> Any:
    """To 8 bits, after the ranges that the site's own training pictures give rise to."""
    import nncf

    samples = _some(work.split("train"), _CALIBRATION)
    work.tell(f"quantising on {len(samples)} pictures of this site")

    def as_read(sample: Sample) -> NDArray[np.float32]:
        picture = decode(picture_bytes(sample.image), work.imgsz)
        geometry = Geometry.of(picture.size, work.imgsz)
        canvas = Canvas(geometry.canvas)
        canvas.show(picture.picture, geometry)
        return as_input(canvas).numpy()

    # Boxes are sums of distances in pixels, and need more than 8 bits.
    head = f".*model\\.{len(work.module.model) - 1}/"
    kept = nncf.IgnoredScope(
        patterns=[f"{head}{part}" for part in ("Add.*", "Sub.*", "Mul.*", "Div.*", "dfl.*")],
        types=["Sigmoid"],
        validate=False,
    )
    with _silent_nncf():
        return nncf.quantize(
            model,
            nncf.Dataset(samples, as_read),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
            ignored_scope=kept,
        )


def _write_torchscript(work: _Work, path: Path) -> Exported:
    work.tell("tracing")
    shape = (work.imgsz, work.imgsz)
    head: Any = work.module.model[-1]
    head.export, head.format = True, "torchscript"
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            # Its anchors are made in the first call and kept; what is traced must be a call after that.
            work.module(as_input(Canvas(shape)))
            traced: Any = torch.jit.trace(work.module, as_input(Canvas(shape)), strict=False)  # type: ignore[no-untyped-call]
    finally:
        head.export = False
    traced.save(str(path), _extra_files={METADATA: work.info().model_dump_json()})
    again: Any = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    parity = work.compare(TorchNetwork(again, work.info()), _squares(work))
    return Exported(path, "fp32", 0, parity, note=_one_shape(shape))


def _write_litert(work: _Work, path: Path) -> Exported:
    litert_torch = _needed("litert_torch", "litert-torch", "LiteRT")
    litert = _needed("ai_edge_litert.interpreter", "ai-edge-litert", "LiteRT")
    work.tell("converting")
    shape = (work.imgsz, work.imgsz)
    head: Any = work.module.model[-1]
    head.export, head.format = True, "litert"
    try:
        litert_torch.convert(work.module, (as_input(Canvas(shape)),)).export(str(path))
    finally:
        head.export = False
    interpreter = litert.Interpreter(model_path=str(path), num_threads=_threads())
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(images: torch.Tensor) -> torch.Tensor:
        interpreter.set_tensor(source, images.numpy())
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(target))

    parity = work.compare(TorchNetwork(run, work.info()), _squares(work))
    return Exported(path, "fp32", 0, parity, note=_one_shape(shape))


def _write_tensorrt(work: _Work, path: Path) -> Exported:
    trt = _needed("tensorrt", "tensorrt", "TensorRT")
    if not torch.cuda.is_available():
        raise ResourceError("TensorRT builds for the GPU of this machine, and there is none", key="--format")
    shape = (work.imgsz, work.imgsz)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    with tempfile.TemporaryDirectory() as folder:
        traced = Path(folder) / "model.onnx"
        _trace_onnx(work, traced, work.info())
        if not parser.parse_from_file(str(traced)):
            raise WeightsError(f"TensorRT cannot read the graph ({parser.get_error(0)})")
    work.tell("building for this GPU, which takes minutes")
    settings, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, *[(1, 3, *shape)] * 3)
    settings.add_optimization_profile(profile)
    # TF32 is on by default and has fewer bits than is said here.
    settings.clear_flag(trt.BuilderFlag.TF32)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise WeightsError("TensorRT could not build the model for this GPU")
    path.write_bytes(bytes(plan))
    engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
    context = engine.create_execution_context()
    source, target = engine.get_tensor_name(0), engine.get_tensor_name(1)

    def run(images: torch.Tensor) -> torch.Tensor:
        images = images.cuda().contiguous()
        context.set_input_shape(source, tuple(images.shape))
        output = torch.empty(tuple(context.get_tensor_shape(target)), device="cuda")
        context.set_tensor_address(source, images.data_ptr())
        context.set_tensor_address(target, output.data_ptr())
        context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        return output.cpu()

    parity = work.compare(TorchNetwork(run, work.info()), _squares(work))
    return Exported(path, "fp32", 0, parity, note=f"{_one_shape(shape)} For this kind of GPU alone.")


_WRITERS: dict[Format, Callable[[_Work, Path], Exported]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torchscript": _write_torchscript,
    "tensorrt": _write_tensorrt,
    "litert": _write_litert,
}


def _needed(module: str, package: str, name: str) -> Any:
    """A package that only one format needs.

    Raises:
        ResourceError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResourceError(
            f"{name} is not installed here",
            key="--format",
            cure=f"pip install {package}, on a machine that it supports.",
        ) from error


def _squares(work: _Work) -> list[Decoded]:
    """The pictures on squares: formats with one shape take no other."""
    squares = []
    for picture, size in work.pictures():
        side = max(size)
        square = np.full((side, side, 3), 114, np.uint8)
        square[: size[0], : size[1]] = picture
        squares.append(Decoded(square, (side, side)))
    return squares


def _one_shape(shape: tuple[int, int]) -> str:
    return f"It takes pictures of {shape[1]} × {shape[0]} pixels and no others: scale and pad them."


def _bf16_note(work: _Work) -> str | None:
    if work.precision == "bf16" and "bf16" not in precisions_here():
        return (
            "This processor has no bfloat16 instructions: it was emulated for the comparison, and fp32 is faster here."
        )
    return None


def _threads() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def _silent_nncf() -> Iterator[None]:
    """It shows progress in its own way, and warns of what is so by design."""
    log = logging.getLogger("nncf")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        log.setLevel(level)
