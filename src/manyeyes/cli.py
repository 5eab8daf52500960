"""The command line: one command, one function, no logic."""

from __future__ import annotations

import json
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from manyeyes.errors import ConfigError, ManyeyesError, ResourceError

__all__ = ["app", "main"]

app = typer.Typer(
    name="manyeyes",
    help="Many eyes, one detector: sites train one object detector together without sharing a picture.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(
    no_args_is_help=True, help="Check, convert, split and make datasets.", rich_markup_mode="markdown"
)
app.add_typer(data_app, name="data")
coordinator_app = typer.Typer(
    invoke_without_command=True,
    help="Hold a run among sites on machines of their own, and say who may take part.",
    rich_markup_mode="markdown",
    epilog="Example: `manyeyes coordinator --config federation.yaml`",
)
app.add_typer(coordinator_app, name="coordinator")
node_app = typer.Typer(
    invoke_without_command=True,
    help="Take part with this site's pictures: join a coordinator and train whenever it asks, until Ctrl-C.\n\n"
    "Options win over the environment (MANYEYES_NODE_ID for node_id, and so on for every key), and the environment "
    "over the file.",
    rich_markup_mode="markdown",
    epilog="Examples: `manyeyes node --config node.yaml --node-id A --port 5001`  ·  "
    "`manyeyes node --config node.yaml --hours 22:00-06:00 --memory 4 --bytes-per-day 2GB`  ·  "
    "`MANYEYES_NODE_ID=B MANYEYES_DATA_PATH=/pictures manyeyes node --config node.yaml`",
)
app.add_typer(node_app, name="node")


access_app = typer.Typer(
    no_args_is_help=True,
    help="Say who may use a server that `manyeyes serve` runs: passwords of people, passes of programs.",
    rich_markup_mode="markdown",
)
app.add_typer(access_app, name="access")

models_app = typer.Typer(
    no_args_is_help=True,
    help="See the models of a site's server and choose among them; it may be running, and then changes within seconds.",
    rich_markup_mode="markdown",
)
app.add_typer(models_app, name="models")


class Layout(StrEnum):
    """Dataset layouts that can be written."""

    yolo = "yolo"
    voc = "voc"
    coco = "coco"


class How(StrEnum):
    """Ways to divide a dataset among sites."""

    folder = "folder"
    iid = "iid"
    dirichlet = "dirichlet"
    by_class = "class"


class Engine(StrEnum):
    """How the nodes of `run` are held on this machine."""

    local = "local"
    simulation = "simulation"


class ExportFormat(StrEnum):
    """Formats that a model can be exported to."""

    onnx = "onnx"
    openvino = "openvino"
    torchscript = "torchscript"
    tensorrt = "tensorrt"
    litert = "litert"


class Backend(StrEnum):
    """What runs an exported model."""

    auto = "auto"
    openvino = "openvino"
    onnxruntime = "onnxruntime"


class Precision(StrEnum):
    """In what an exported model computes."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


class RoleOption(StrEnum):
    """What somebody may do at a server."""

    viewer = "viewer"
    administrator = "administrator"


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
BackendOption = Annotated[Backend, typer.Option(help="What runs an exported model; auto: the fastest here.")]
PrecisionOption = Annotated[Precision, typer.Option(help="In what it computes; auto: the fastest, or fp32 to export.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads; default: all this process may use.", min=1)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a key: section.key=value. Repeatable.")
]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Leave out pictures that cannot be used.")]
Size = Annotated[int | None, typer.Option(help="Long side in pixels; default: as trained.", min=32, max=2048)]
CoordinatorFolder = Annotated[Path, typer.Option("--folder", help="The coordinator's state folder.")]
State = Annotated[Path, typer.Option("--state", "--folder", help="The coordinator's state folder.")]
StateConfig = Annotated[Path | None, typer.Option("--config", help="Its YAML file, which names state and run.")]
ServeState = Annotated[Path, typer.Option("--state", help="The server's state folder.")]
ModelHash = Annotated[str, typer.Argument(metavar="HASH", help="Its hash, or how it begins.", show_default=False)]
Names = Annotated[list[str], typer.Option("--name", help="Host name or IP address that nodes reach it by. Repeatable.")]
NodeId = Annotated[str, typer.Argument(help="The node's name in the federation.")]
_LIMITS = "What this site allows"
Seed = Annotated[int, typer.Option(help="Everything random follows from it.", min=0)]


def main() -> None:
    """Entry point: turns errors of ours into one clear message and their exit code."""
    try:
        app(standalone_mode=True)
    except ManyeyesError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold]manyeyes:[/bold] {_escape(str(error))}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        problem = ResourceError(
            f"this command needs {error.name}, which is not installed",
            cure=f"pip install 'manyeyes[{_EXTRAS[error.name]}]'",
        )
        print(f"manyeyes: {problem}", file=sys.stderr)  # noqa: T201 - rich may not be what is there
        sys.exit(problem.exit_code)


_EXTRAS = {
    "torch": "train",
    "torchvision": "train",
    "ultralytics": "train",
    "matplotlib": "train",
    "psutil": "train",
    "tensorboard": "train",
    "flwr": "federation",
    "cryptography": "federation",
}


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))  # noqa: T201 - for scripts, so no terminal styling


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        print(version("manyeyes"))  # noqa: T201
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: `manyeyes demo`  ·  `manyeyes demo --quick --json`")
def demo(
    quick: Annotated[bool, typer.Option(help="Smaller and shorter; the figures mean little.")] = False,
    out: Annotated[Path, typer.Option(help="Folder that holds runs.")] = Path("runs"),
    seed: Seed = 0,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make three synthetic sites, train each alone, all together and on pooled pictures, and compare.

    Leaves everything in runs/demo; an interrupted demo goes on where it was when called again.
    """
    from manyeyes.federation.demo import demo_config, prepare_demo
    from manyeyes.federation.launch import launch
    from manyeyes.report.progress import progress_bar

    console = Console(stderr=as_json)
    config = demo_config(out, quick=quick, seed=seed)
    with progress_bar(console, "Rendering three sites", quiet=quiet) as progress:
        prepare_demo(config, quick=quick, progress=progress)
    again = shlex.join(["manyeyes", "demo", *(["--quick"] if quick else []), "--out", str(out), "--seed", str(seed)])
    summary = launch(config, resume=True, console=console, quiet=quiet, resume_command=again)
    _show_summary(summary, config.run_folder, as_json)


@app.command(
    epilog="Examples: `manyeyes advise mine.yaml`  ·  `manyeyes advise mine.yaml --write planned.yaml`  ·  "
    "`manyeyes advise mine.yaml --set sites.0.hours=2 --json`"
)
def advise(
    config: Annotated[Path, typer.Argument(help="A configuration file: name and sites suffice.", show_default=False)],
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    write: Annotated[
        Path | None, typer.Option(help="Write a complete configuration with the plan and its reasons: a new file.")
    ] = None,
    skip_broken: SkipBroken = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look at the sites and this machine, and propose how to train: settings, reasons, time and traffic.

    Trains for some seconds to measure this machine and keeps nothing. What the file states about training is kept; what
    it leaves out is proposed.
    """
    from manyeyes.config import load_config
    from manyeyes.federation.advice_text import refuse_existing, render_advice, write_config
    from manyeyes.federation.launch import advise

    loaded = load_config(config, overrides)
    if write:
        refuse_existing(write)
    advice = advise(loaded, skip_broken=skip_broken, console=Console(stderr=True), quiet=quiet)
    if as_json:
        _print_json(advice.to_dict())
    else:
        render_advice(advice, Console())
    if write:
        write_config(advice, write)
        command = shlex.join(["manyeyes", "run", str(write)])
        Console(stderr=True).print(f"Written. Go on with: {command}", highlight=False, markup=False, soft_wrap=True)


@app.command(
    epilog="Examples: `manyeyes run configs/streets.yaml --set train.freeze=22 --set name=streets-head`  ·  "
    "`manyeyes run configs/streets.yaml --engine simulation --set federation.simulation.nodes=1000 "
    "--set federation.fraction=0.05 --set 'compare=[together]'` (docs/scale.md)"
)
def run(
    config: Annotated[Path, typer.Argument(help="A configuration file; see configs/.", show_default=False)],
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished round.")] = False,
    skip_broken: SkipBroken = False,
    trust_labels: Annotated[
        bool, typer.Option("--trust-labels", help="Do not check whether a site's class ids are swapped.")
    ] = False,
    engine: Annotated[
        Engine | None, typer.Option(help="simulation: several nodes at work at a time, perhaps virtual ones.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the sites of a configuration alone, together and pooled, and compare.

    A configuration that does not say how to train is run with the plan that `manyeyes advise` proposes.
    """
    from manyeyes.config import load_config
    from manyeyes.federation.launch import launch

    overrides = [*overrides, *([f"federation.engine={engine.value}"] if engine else [])]
    loaded = load_config(config, overrides)
    again = shlex.join(["manyeyes", "run", str(config), *(w for o in overrides for w in ("--set", o)), "--resume"])
    summary = launch(
        loaded,
        resume=resume,
        skip_broken=skip_broken,
        trust_labels=trust_labels,
        console=Console(stderr=as_json),
        quiet=quiet,
        resume_command=again,
    )
    _show_summary(summary, loaded.run_folder, as_json)


@app.command(epilog="Example: `manyeyes val runs/demo/rows/together/final.pt path/to/data.yaml --split test`")
def val(
    model: Annotated[Path, typer.Argument(help="A .pt or .safetensors model.", show_default=False)],
    data: Annotated[Path, typer.Argument(help="A dataset: YOLO, Pascal VOC or COCO layout.", show_default=False)],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    imgsz: Annotated[
        int | None, typer.Option(help="Long side in pixels; default: as trained.", min=32, max=2048)
    ] = None,
    as_json: Json = False,
) -> None:
    """Test a model on a dataset: average precision for each class."""
    from manyeyes.datasets import load_dataset
    from manyeyes.learners.detector import DetectorLearner
    from manyeyes.learners.models import open_template
    from manyeyes.learners.predict import validate
    from manyeyes.report.tables import metrics_table

    learner = DetectorLearner(open_template(model))
    metrics = validate(learner, load_dataset(data), split, imgsz or learner.template.imgsz)
    if as_json:
        _print_json(metrics.to_dict())
    else:
        Console().print(metrics_table(metrics))


@app.command(
    epilog="Examples: `manyeyes predict runs/demo/rows/together/final.pt pictures/ --out found --conf 0.4`  ·  "
    "`manyeyes predict model.onnx clip.mp4 a.zip --json`  ·  `manyeyes predict model.onnx rtsp://CAMERA/live`"
)
def predict(
    model: Annotated[
        Path, typer.Argument(help="A .pt or .safetensors model, or one that was exported.", show_default=False)
    ],
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Pictures, folders, ZIP archives, videos, the number of a camera, rtsp:// addresses.",
            show_default=False,
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for pictures and videos with boxes drawn in.")] = None,
    conf: Annotated[float, typer.Option(help="Lowest score shown.", min=0.01, max=1.0)] = 0.25,
    imgsz: Size = None,
    every: Annotated[int, typer.Option(help="Of videos and cameras only every so many frames.", min=1)] = 1,
    backend: BackendOption = Backend.auto,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a picture and line.")] = False,
) -> None:
    """Find objects in pictures, videos and what cameras see. A camera is watched until Ctrl-C."""
    from manyeyes.report.predictions import show_predictions
    from manyeyes.runtime.predict import predict
    from manyeyes.runtime.sources import is_live, read_sources

    engine = _open_any(model, backend, precision, threads, imgsz)
    ahead = 0 if any(is_live(source) for source in sources) else 2
    predictions = predict(engine, read_sources(sources, every=every), min_score=conf, ahead=ahead)
    if show_predictions(predictions, engine.names, out=out, as_json=as_json):
        raise typer.Exit(2)


def _open_any(model: Path, backend: Backend, precision: Precision, threads: int | None, imgsz: int | None) -> Any:
    """An engine for any model: PyTorch for what comes out of training, the fastest here for what was exported.

    Raises:
        ConfigError: PyTorch is to run in a backend or precision of exported models.
    """
    from manyeyes.runtime.engine import open_engine
    from manyeyes.runtime.model_file import is_exported

    if is_exported(model):
        measured = model.with_name(f".{model.name}.measured.json")
        return open_engine(
            model, backend=backend.value, precision=precision.value, threads=threads, imgsz=imgsz, measured=measured
        )
    if backend is not Backend.auto or precision is not Precision.auto:
        raise ConfigError(
            "is run by PyTorch in fp32; --backend and --precision are for exported models",
            file=model,
            cure="manyeyes export MODEL writes one.",
        )
    from manyeyes.learners.predict import open_trained

    return open_trained(model, imgsz=imgsz, threads=threads)


@app.command(
    epilog="Examples: `manyeyes export runs/demo/rows/together/final.pt`  ·  "
    "`manyeyes export final.pt --format openvino --precision int8 --data my_site --max-drop 1`"
)
def export(
    model: Annotated[Path, typer.Argument(help="A .pt or .safetensors model.", show_default=False)],
    form: Annotated[ExportFormat, typer.Option("--format", help="What to write.")] = ExportFormat.onnx,
    precision: PrecisionOption = Precision.auto,
    out: Annotated[Path | None, typer.Option(help="File to write, or folder for OpenVINO; default: beside it.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="The site's own pictures, to compare and to calibrate int8 on.")
    ] = None,
    max_drop: Annotated[float, typer.Option(help="Most points of mAP50-95 that int8 may lose.", min=0)] = 1.0,
    imgsz: Size = None,
    as_json: Json = False,
) -> None:
    """Write a model for fast use without PyTorch, and keep it only if it finds what PyTorch finds."""
    from manyeyes.datasets import load_dataset
    from manyeyes.learners.export import default_path, export_model
    from manyeyes.learners.models import open_template
    from manyeyes.report.exported import show_exported

    console = Console(stderr=True)
    exported = export_model(
        open_template(model),
        out or default_path(model, form.value, precision.value),
        format=form.value,
        precision=precision.value,
        imgsz=imgsz,
        data=None if data is None else load_dataset(data),
        max_drop=max_drop,
        tell=lambda text: console.print(text, style="dim", highlight=False),
    )
    if as_json:
        _print_json(exported.to_dict())
    else:
        show_exported(exported, Console())


@app.command(
    epilog="Examples: `manyeyes bench model.onnx`  ·  "
    "`manyeyes bench model.onnx --pictures my_site/images --threads 2 --json`"
)
def bench(
    model: Annotated[Path, typer.Argument(help="An exported model.", show_default=False)],
    pictures: Annotated[
        Path | None, typer.Option(help="Picture or folder to measure on; default: a made-up one, 1280 × 720.")
    ] = None,
    imgsz: Size = None,
    threads: ThreadsOption = None,
    seconds: Annotated[float, typer.Option(help="To measure each possibility.", min=0.1)] = 3.0,
    as_json: Json = False,
) -> None:
    """Measure how fast a model runs on this machine, in every backend and precision that can run it."""
    from manyeyes.report.exported import show_speeds
    from manyeyes.runtime.bench import measure_speeds

    speeds = measure_speeds(model, pictures, imgsz=imgsz, threads=threads, seconds=seconds)
    if as_json:
        _print_json([speed.to_dict() for speed in speeds])
    else:
        show_speeds(speeds, Console())


@app.command(
    epilog="Examples: `manyeyes serve model.onnx --port 5001`  ·  "
    "`manyeyes serve model.onnx --night night.onnx --night-hours 20:00-06:00`  ·  "
    "`manyeyes serve model.onnx --host 0.0.0.0 --name eyes.example.org --certificate server.pem`"
)
def serve(
    context: typer.Context,
    model: Annotated[
        Path | None,
        typer.Argument(help="An exported model; default: the one used last.", show_default=False),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file: cameras, limits and all that options say.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: 5001; 0 takes a free one.", min=0, max=65535)] = None,
    names: Annotated[
        list[str] | None, typer.Option("--name", help="Host name that browsers reach it by. Repeatable.")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Its state folder; default: serve.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM file for TLS; it may hold the key too.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file with the certificate's key.")] = None,
    night: Annotated[Path | None, typer.Option(help="Another model for the night.")] = None,
    night_hours: Annotated[str | None, typer.Option(help="When it is night: 20:00-06:00")] = None,
    darker_than: Annotated[
        float | None, typer.Option(help="Mean brightness of a picture, 0 to 255, below which it is night in it.")
    ] = None,
    backend: BackendOption = Backend.auto,
    precision: PrecisionOption = Precision.auto,
    threads: ThreadsOption = None,
    imgsz: Size = None,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    quiet: Quiet = False,
) -> None:
    """Find objects for browsers, programs and cameras over HTTP, until Ctrl-C.

    On this machine alone unless --host says otherwise; other machines need a password (`manyeyes access password`).
    """
    from manyeyes.web.service import serve_site
    from manyeyes.web.settings import load_serve_config

    stated = {k: v for k, v in context.params.items() if k in _SERVE_OPTIONS and v not in (None, "auto", ())}
    if night:
        stated["night"] = {"model": night, "hours": night_hours, "darker_than": darker_than}
    elif night_hours or darker_than:
        raise ConfigError("say when it is night, and no model is named for it", key="--night", cure="--night MODEL")
    settings = load_serve_config(config, stated, overrides)
    serve_site(settings, console=Console(stderr=True), quiet=quiet)


_SERVE_OPTIONS = frozenset(
    "model host port names state certificate key backend precision threads imgsz".split()  # noqa: SIM905 - readable
)


@access_app.command("password", epilog="Example: `manyeyes access password --state serve --role viewer`")
def access_password(
    state: ServeState = Path("serve"),
    role: Annotated[RoleOption, typer.Option(help="Whose password it is.")] = RoleOption.administrator,
) -> None:
    """Set the password of those who administer a server, or of those who may only look."""
    from manyeyes.web.access import Access, Role

    if sys.stdin.isatty():
        password = typer.prompt(
            f"New password of the {role.value}", hide_input=True, confirmation_prompt=True, err=True
        )
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    Access(state).set_password(Role[role.value], password)
    Console(stderr=True).print(
        f"The {role.value} has a new password; sessions that were begun with another have ended."
    )


@access_app.command("token", epilog="Example: `manyeyes access token line-3-robot --state serve`")
def access_token(
    name: Annotated[str, typer.Argument(help="Of the program, for people.", show_default=False)],
    state: ServeState = Path("serve"),
    role: Annotated[RoleOption, typer.Option(help="What it may do.")] = RoleOption.viewer,
) -> None:
    """Make a program's pass; it is shown this once. Send it as `Authorization: Bearer PASS`."""
    from manyeyes.web.access import Access, Role

    print(Access(state).make_token(name, Role[role.value]))  # noqa: T201


@access_app.command("tokens", epilog="Example: `manyeyes access tokens --json`")
def access_tokens(state: ServeState = Path("serve"), as_json: Json = False) -> None:
    """Show which programs have a pass."""
    from datetime import datetime

    from manyeyes.web.access import Access

    tokens = Access(state).tokens()
    if as_json:
        _print_json([{"name": token.name, "role": token.role.name, "created": token.created} for token in tokens])
        return
    for token in tokens:
        made = datetime.fromtimestamp(token.created).isoformat(sep=" ", timespec="minutes")
        print(f"{token.name:24} {token.role.name:14} since {made}")  # noqa: T201
    if not tokens:
        print("No program has a pass.")  # noqa: T201


@access_app.command("revoke", epilog="Example: `manyeyes access revoke line-3-robot`")
def access_revoke(
    name: Annotated[str, typer.Argument(help="Of the program.", show_default=False)],
    state: ServeState = Path("serve"),
) -> None:
    """Take a program's pass back; a server that is running notices at once."""
    from manyeyes.web.access import Access

    Access(state).revoke_token(name)
    print(f"{name} has no pass any more.")  # noqa: T201


@models_app.command("list", epilog="Examples: `manyeyes models list`  ·  `manyeyes models list --state serve --json`")
def models_list(state: ServeState = Path("serve"), as_json: Json = False) -> None:
    """Show the models of a site, the newest first; exit code 2 if any of it is damaged or was tampered with."""
    from manyeyes.registry import open_registry
    from manyeyes.web.models import list_values, model_answers, show_models

    registry = open_registry(state)
    answers, damage = model_answers(registry), registry.damage()
    if as_json:
        _print_json(list_values(answers, damage))
    else:
        show_models(answers, damage, Console())
    if damage:
        raise typer.Exit(2)


@models_app.command("show", epilog="Examples: `manyeyes models show 3fa9c2`  ·  `manyeyes models show 3fa9c2 --json`")
def models_show(name: ModelHash, state: ServeState = Path("serve"), as_json: Json = False) -> None:
    """Show all that is known of one model, after its files were compared with its hash."""
    from manyeyes.registry import open_registry

    registry = open_registry(state)
    chosen = registry.entry(name).hash
    registry.path(chosen)
    _tell_model(registry, chosen, as_json)


def _tell_model(registry: Any, chosen: str, as_json: bool) -> None:
    from manyeyes.web.models import model_answers, show_model

    answer = next(answer for answer in model_answers(registry) if answer.hash == chosen)
    if as_json:
        _print_json(answer.model_dump())
    else:
        show_model(answer, Console())


@models_app.command("promote", epilog="Example: `manyeyes models promote 3fa9c2 --state serve`")
def models_promote(name: ModelHash, state: ServeState = Path("serve"), as_json: Json = False) -> None:
    """Put a model to use, once it has passed its test; however good it is on this site's pictures."""
    from manyeyes.registry import open_registry
    from manyeyes.runtime.promotion import promote

    registry = open_registry(state)
    _tell_model(registry, promote(registry, name).hash, as_json)


@models_app.command("rollback", epilog="Example: `manyeyes models rollback --state serve`")
def models_rollback(state: ServeState = Path("serve"), as_json: Json = False) -> None:
    """Put the model to use again that was used before."""
    from manyeyes.registry import open_registry
    from manyeyes.runtime.promotion import roll_back

    registry = open_registry(state)
    _tell_model(registry, roll_back(registry).hash, as_json)


@models_app.command(
    "forget",
    epilog="Examples: `manyeyes models forget 3fa9c2`  ·  `manyeyes models forget --keep 10 --dry-run`  ·  "
    "`manyeyes models forget --older-than 90 --yes --json`",
)
def models_forget(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[HASH]...", help="Their hashes, or how they begin.")
    ] = None,
    state: ServeState = Path("serve"),
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Those that came longer ago and that nobody needs.", min=0)
    ] = None,
    keep: Annotated[
        int | None, typer.Option(metavar="N", help="Those that nobody needs beyond so many models.", min=1)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which, and delete nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Delete models. The one in use, the one before it, that for the night and the second opinion stay.

    With --older-than and --keep those go first that were never used, and the newest model stays.
    """
    from manyeyes.registry import open_registry
    from manyeyes.web.models import chosen_to_forget

    registry = open_registry(state)
    chosen = chosen_to_forget(registry, names or (), days=older_than, keep=keep)
    if as_json:
        _print_json(chosen)
    else:
        for name in chosen:
            print(f"{name}  {registry.label(name)}")  # noqa: T201
    if dry_run or not chosen:
        return
    if not names:
        _ask(f"Delete {len(chosen)} models?", yes)
    for name in chosen:
        registry.forget(name)


@app.command(
    epilog="Examples: `manyeyes status`  ·  `manyeyes status --config federation.yaml --watch`  ·  "
    "`manyeyes status --state coordinator --json`"
)
def status(
    state: State = Path("coordinator"),
    config: StateConfig = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON; with --watch one object a line.")] = False,
) -> None:
    """Show what a coordinator is at: nodes, rounds, figures. It may be running or have ended.

    Reads its files alone, so it works from any terminal on the coordinator's machine and disturbs nothing. What is not
    known is called unknown.
    """
    from manyeyes.federation.status import read_status
    from manyeyes.federation.status_view import show_status, tell_status, watch_status

    folder, run = _coordinator_folders(state, config)
    if watch and as_json:
        tell_status(lambda: read_status(folder, run))
    elif watch:
        watch_status(lambda: read_status(folder, run), Console())
    elif as_json:
        _print_json(read_status(folder, run).to_dict())
    else:
        show_status(read_status(folder, run), Console())


def _coordinator_folders(state: Path, config: Path | None) -> tuple[Path, Path | None]:
    """The state folder and, if a configuration names one, the run's."""
    if config is None:
        return state, None
    from manyeyes.federation.coordinator_config import load_coordinator_config

    settings = load_coordinator_config(config)
    return settings.state, settings.run_folder


@app.command(epilog="Example: `manyeyes report runs/demo`")
def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, e.g. runs/demo.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Show a run's table and write its report.html again; also of a coordinator's run that is going on."""
    from manyeyes.report.results import rewrite_results

    _show_summary(rewrite_results(folder), folder, as_json)


def _show_summary(summary: Any, folder: Path, as_json: bool) -> None:
    from manyeyes.report.results import render_results

    if as_json:
        _print_json(summary.to_dict())
        return
    console = Console()
    render_results(summary, console)
    console.print(f"Report: {folder / 'report.html'}", highlight=False, soft_wrap=True)


@data_app.command(epilog="Example: `manyeyes data check path/to/dataset --json`")
def check(
    path: Annotated[Path, typer.Argument(help="The dataset's folder or data.yaml.", show_default=False)],
    near_duplicates: Annotated[bool, typer.Option(help="Also look for pictures that are nearly the same.")] = True,
    as_json: Json = False,
) -> None:
    """Examine a dataset; exit code 0 if it can be trained on, 2 if not."""
    from manyeyes.datasets import check_dataset
    from manyeyes.report.progress import progress_bar

    with progress_bar(Console(stderr=True), "Reading pictures", quiet=as_json) as progress:
        result = check_dataset(path, near_duplicates=near_duplicates, progress=progress)
    if as_json:
        _print_json(result.to_dict())
    else:
        result.render(Console())
    raise typer.Exit(result.exit_code)


@data_app.command(epilog="Example: `manyeyes data convert voc_folder --to yolo --out yolo_folder`")
def convert(
    path: Annotated[Path, typer.Argument(help="The dataset to read.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    to: Annotated[Layout, typer.Option(help="Layout to write.")] = Layout.yolo,
    link: Annotated[bool, typer.Option(help="Link to the pictures instead of copying them.")] = False,
) -> None:
    """Write a dataset in another layout."""
    from manyeyes.datasets import load_dataset, save_dataset

    folder = save_dataset(load_dataset(path), out, to.value, link=link)
    Console().print(f"Written: {folder}", highlight=False, soft_wrap=True)


@data_app.command(epilog="Example: `manyeyes data split dataset --sites 3 --how dirichlet --alpha 0.3 --out sites`")
def split(
    path: Annotated[Path, typer.Argument(help="The dataset to divide.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A new folder; it gets site_0, site_1, … and who_holds_what.png.")],
    sites: Annotated[int | None, typer.Option(help="How many; `folder` alone can do without.", min=1)] = None,
    how: Annotated[How, typer.Option(help="By folder, evenly, Dirichlet(α), or by class.")] = How.iid,
    alpha: Annotated[float, typer.Option(help="Dirichlet's α: small is uneven.", min=0.001)] = 0.5,
    seed: Seed = 0,
    link: Annotated[bool, typer.Option(help="Link to the pictures instead of copying them.")] = False,
) -> None:
    """Divide a dataset among sites, and show who holds what."""
    from manyeyes.datasets import draw_partition, load_dataset, partition_table, save_sites, split_dataset

    parts = split_dataset(load_dataset(path), how.value, sites, alpha=alpha, seed=seed)
    save_sites(parts, out, link=link)
    Console().print(partition_table(parts))
    draw_partition(parts, out / "who_holds_what.png")
    Console().print(f"Written: {out}", highlight=False, soft_wrap=True)


@data_app.command(epilog="Example: `manyeyes data scenes --out scenes --images 150 --imgsz 320 --seed 1`")
def scenes(
    out: Annotated[Path, typer.Option(help="A new folder.")],
    images: Annotated[int, typer.Option(help="Training pictures of the largest sites.")] = 150,
    imgsz: Annotated[int, typer.Option(help="Side in pixels, a multiple of 32.")] = 320,
    seed: Seed = 0,
    domains: Annotated[
        list[str], typer.Option("--domain", help="a_office, b_crossroads, c_night or generic. Repeatable.")
    ] = ["a_office", "b_crossroads", "c_night"],  # noqa: B006 - Typer copies it
    sheet: Annotated[bool, typer.Option(help="Also write contact_sheet.jpg with the boxes.")] = True,
) -> None:
    """Render synthetic sites: an office, a crossroads by day, a car park at night."""
    from manyeyes.datasets.scenes import contact_sheet, write_scenes
    from manyeyes.report.progress import progress_bar

    console = Console(stderr=True)
    with progress_bar(console, "Rendering", quiet=False) as progress:
        folders = write_scenes(out, images=images, imgsz=imgsz, seed=seed, domains=domains, progress=progress)
    if sheet:
        contact_sheet(out, 6, out / "contact_sheet.jpg", limit=30)
    for folder in folders.values():
        Console().print(f"Written: {folder}", highlight=False, soft_wrap=True)


@coordinator_app.callback()
def coordinator(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML file: see docs/deployment.md.")] = None,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished round.")] = False,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve figures for Prometheus on 127.0.0.1 at this port.", min=1, max=65535)
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Open the door to admitted nodes, hold the rounds and keep the model."""
    if context.invoked_subcommand:
        return
    from manyeyes.federation.coordinator_config import load_coordinator_config
    from manyeyes.federation.service import serve_coordinator

    given = [*overrides, *([f"metrics_port={metrics_port}"] if metrics_port else [])]
    settings = load_coordinator_config(_given(config, "manyeyes coordinator --config federation.yaml"), given)
    serve_coordinator(settings, resume=resume, console=Console(stderr=True), quiet=quiet)


@coordinator_app.command(
    epilog="Examples: `manyeyes coordinator backup harbour.tar --config federation.yaml`  ·  "
    "`manyeyes coordinator backup harbour.tar`"
)
def backup(
    file: Annotated[Path, typer.Argument(help="A new file.", show_default=False)],
    state: State = Path("coordinator"),
    config: StateConfig = None,
) -> None:
    """Write the coordinator into one file: keys, members, checkpoints, run log. It may be running.

    The file holds private keys, so it is readable by its owner only. Keep it as safe as the coordinator itself: whoever
    has it can pass for the coordinator.
    """
    from manyeyes.federation.backup import make_backup
    from manyeyes.federation.status import read_status
    from manyeyes.report.tables import format_bytes

    folder, run = _coordinator_folders(state, config)
    made = make_backup(file, folder, run or read_status(folder).run)
    what = f"run {made.name}" if made.name else "no run (name it with --config, if there is one)"
    print(f"{file}: {made.files} files, {format_bytes(made.num_bytes)}, {what}. It holds private keys.")  # noqa: T201


@coordinator_app.command(epilog="Example: `manyeyes coordinator restore harbour.tar --state coordinator --output runs`")
def restore(
    file: Annotated[Path, typer.Argument(help="What `manyeyes coordinator backup` wrote.", show_default=False)],
    state: State = Path("coordinator"),
    output: Annotated[Path, typer.Option(help="Folder that holds runs.")] = Path("runs"),
) -> None:
    """Check a backup and put it back into empty folders; `--resume` goes on with the run.

    Who was shut out after the backup was made is let in again: compare `manyeyes coordinator members`.
    """
    from datetime import datetime

    from manyeyes.federation.backup import restore_backup

    backup, run = restore_backup(file, state, output)
    made = datetime.fromtimestamp(backup.made).isoformat(sep=" ", timespec="seconds")
    print(f"{state}: as it was on {made}. Who was shut out since must be shut out again.")  # noqa: T201
    if run:
        again = shlex.join(["manyeyes", "coordinator", "--config", "federation.yaml", "--resume"])
        print(f"{run}: go on with: {again}")  # noqa: T201


@coordinator_app.command("init", epilog="Example: `manyeyes coordinator init --name eyes.example.org --name 10.0.0.5`")
def coordinator_init(names: Names, folder: CoordinatorFolder = Path("coordinator")) -> None:
    """Make the coordinator's own authority and its certificate."""
    from manyeyes.federation.keys import AUTHORITY, make_authority

    mark = make_authority(folder, names)
    print(f"The authority is in {folder / AUTHORITY}: give this file to every node.")  # noqa: T201
    print(f"Its fingerprint, to be compared at each node: {mark}")  # noqa: T201


@coordinator_app.command("renew", epilog="Example: `manyeyes coordinator renew --name eyes.example.org`")
def coordinator_renew(names: Names, folder: CoordinatorFolder = Path("coordinator")) -> None:
    """Make a new certificate before the old one expires; nodes need do nothing."""
    from manyeyes.federation.keys import SERVER, renew_server

    renew_server(folder, names)
    print(f"{folder / SERVER} is new. A coordinator that is running takes it when it is started again.")  # noqa: T201


@coordinator_app.command(epilog="Example: `manyeyes coordinator admit A --key from_A/node.pub`")
def admit(
    node_id: NodeId,
    key: Annotated[Path, typer.Option(help="The file node.pub that `manyeyes node init` made.")],
    folder: CoordinatorFolder = Path("coordinator"),
) -> None:
    """Let a node take part. Compare the fingerprint with the one its operator reads to you first."""
    from manyeyes.federation.admission import Members
    from manyeyes.federation.keys import read_public_key

    member = Members(folder).admit(node_id, read_public_key(key))
    print(f"{member.node_id} may take part. Its fingerprint: {member.fingerprint}")  # noqa: T201


@coordinator_app.command(epilog="Example: `manyeyes coordinator revoke B`")
def revoke(node_id: NodeId, folder: CoordinatorFolder = Path("coordinator")) -> None:
    """Shut a node out. Its key is never let in again."""
    from manyeyes.federation.admission import Members

    member = Members(folder).revoke(node_id)
    print(f"{member.node_id} is shut out. Its fingerprint was: {member.fingerprint}")  # noqa: T201


@coordinator_app.command(
    epilog="Examples: `manyeyes coordinator withdraw B`  ·  "
    "`manyeyes coordinator withdraw B --config federation.yaml --rebuild --dry-run`"
)
def withdraw(
    node_id: NodeId,
    config: Annotated[Path | None, typer.Option(help="YAML file of the run the node took part in.")] = None,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Hold the run again without the node.")] = False,
    name: Annotated[str | None, typer.Option("--as", help="Name of the new run; default: RUN-without-NODE.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="The coordinator's state folder; default: as in the configuration.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Shut a node out for good, and train the model again without it if asked to.

    Says first what will be done and what it costs. The old run and its model stay until you delete them. A rebuild
    starts where the node had no part yet, at worst from the starting weights, and needs the other nodes.
    """
    from manyeyes.federation.coordinator_config import load_coordinator_config
    from manyeyes.federation.service import withdraw_node
    from manyeyes.federation.withdrawal import plan_withdrawal

    settings = load_coordinator_config(config, overrides) if config else None
    state = folder or (settings.state if settings else Path("coordinator"))
    settings = settings and settings.model_copy(update={"state": state})
    plan = plan_withdrawal(settings, state, node_id, rebuild=rebuild, name=name)
    if as_json:
        _print_json(plan.to_dict())
    else:
        for line in plan.lines():
            print(line)  # noqa: T201
    if dry_run:
        return
    _ask(f"Withdraw {node_id}?", yes)
    words = ["manyeyes", "coordinator", "--config", str(config), *(w for o in overrides for w in ("--set", o))]
    again = shlex.join([*words, "--set", f"name={plan.rebuild.name}", "--resume"]) if plan.rebuild else ""
    withdraw_node(settings, state, plan, again=again, console=Console(stderr=True), quiet=quiet)


def _ask(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here whether that is wanted", cure="Say --yes, or look at --dry-run.")
    typer.confirm(question, abort=True, err=True)


@coordinator_app.command(epilog="Example: `manyeyes coordinator members --json`")
def members(folder: CoordinatorFolder = Path("coordinator"), as_json: Json = False) -> None:
    """Show who may take part, and who was shut out."""
    from dataclasses import asdict

    from manyeyes.federation.admission import Members

    register = list(Members(folder))
    if as_json:
        _print_json([{**asdict(member), "fingerprint": member.fingerprint} for member in register])
        return
    for member in register:
        state = f"shut out {member.revoked}" if member.revoked else f"since {member.admitted}"
        state = f"withdrawn {member.withdrawn}" if member.withdrawn else state
        print(f"{member.node_id:16} {member.fingerprint}  {state}")  # noqa: T201
    if not register:
        print("Nobody has been admitted yet.")  # noqa: T201


@node_app.callback()
def node(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML file: see docs/deployment.md.")] = None,
    node_id: Annotated[str | None, typer.Option("--node-id", help="The node's name.")] = None,
    data_path: Annotated[Path | None, typer.Option(help="Its pictures.")] = None,
    state: Annotated[Path | None, typer.Option(help="Its state folder; default: nodes/NODE_ID.")] = None,
    coordinator_url: Annotated[str | None, typer.Option(help="https://NAME:PORT of the coordinator.")] = None,
    port: Annotated[int | None, typer.Option(help="Show /healthz, /readyz and /metrics on this loopback port.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    model_path: Annotated[
        Path | None, typer.Option(help="Train no other kind of model than these weights.", rich_help_panel=_LIMITS)
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Most epochs a round.", rich_help_panel=_LIMITS)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Largest batch.", rich_help_panel=_LIMITS)] = None,
    imgsz: Annotated[int | None, typer.Option(help="Largest side in pixels.", rich_help_panel=_LIMITS)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", rich_help_panel=_LIMITS)] = None,
    memory: Annotated[float | None, typer.Option(help="Most gigabytes of memory.", rich_help_panel=_LIMITS)] = None,
    hours: Annotated[
        str | None, typer.Option(help="When it may train: 22:00-06:00,12:00-13:00", rich_help_panel=_LIMITS)
    ] = None,
    min_pictures: Annotated[
        int | None, typer.Option(help="Least training pictures to take part.", rich_help_panel=_LIMITS)
    ] = None,
    bytes_per_day: Annotated[
        str | None, typer.Option(help="Most bytes up and down together: 2GB", rich_help_panel=_LIMITS)
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - Typer copies it
    quiet: Quiet = False,
) -> None:
    """Join a coordinator and train on this site's pictures whenever it asks, until Ctrl-C."""
    if context.invoked_subcommand:
        return
    from manyeyes.federation.node import load_node_config, status_of
    from manyeyes.federation.node_service import serve_node
    from manyeyes.web.node import node_page

    path = _given(config, "manyeyes node --config node.yaml --node-id A")
    given = {key: value for key, value in context.params.items() if key not in ("config", "overrides", "quiet")}
    settings, console = load_node_config(path, given, overrides), Console(stderr=True)
    status = status_of(settings)
    with node_page(status, settings.port, settings.serve, settings.threads) as listening:
        if listening and not quiet:
            console.print(f"Status: http://127.0.0.1:{listening}/readyz and /metrics", highlight=False, soft_wrap=True)
        serve_node(settings, status=status, console=console, quiet=quiet)


def _given(config: Path | None, example: str) -> Path:
    if config is None:
        raise ConfigError("needs --config", cure=f"For example: {example}")
    return config


@node_app.command("init", epilog="Example: `manyeyes node init --node-id A`")
def node_init(
    node_id: Annotated[str, typer.Option("--node-id", help="The node's name in the federation.")],
    folder: Annotated[Path | None, typer.Option("--folder", help="Its state folder; default: nodes/NODE_ID.")] = None,
) -> None:
    """Make this node's key; the private half never leaves this machine."""
    from manyeyes.federation.keys import NODE_PUBLIC, make_node_key

    state = folder or Path("nodes") / node_id
    mark = make_node_key(state, node_id)
    print(f"Send {state / NODE_PUBLIC} to the coordinator's operator, and read this fingerprint to them:")  # noqa: T201
    print(mark)  # noqa: T201


@node_app.command(epilog="Example: `manyeyes node peers --folder nodes/A`  ·  `manyeyes node peers --json`")
def peers(
    folder: Annotated[Path, typer.Option("--folder", help="The node's state folder.")],
    as_json: Json = False,
) -> None:
    """Show whom this node takes part with, by the keys its coordinator told; compare them over the telephone."""
    from dataclasses import asdict

    from manyeyes.federation.peers import PEERS, Peers

    known = list(Peers(folder))
    if as_json:
        _print_json([{**asdict(peer), "fingerprint": peer.fingerprint} for peer in known])
        return
    if not known:
        print(f"{folder / PEERS}: no coordinator has told of anybody yet.")  # noqa: T201
    for peer in known:
        until = f", until {peer.until}" if peer.until else ""
        print(f"{peer.node_id:16} {peer.fingerprint}  since {peer.since}{until}")  # noqa: T201


@node_app.command(epilog="Example: `manyeyes node audit --folder nodes/A`  ·  `manyeyes node audit --json`")
def audit(
    folder: Annotated[Path, typer.Option("--folder", help="The node's state folder.")],
    as_json: Json = False,
) -> None:
    """Show everything that left this node, after checking that no line of the log was changed."""
    from datetime import datetime

    from manyeyes.federation.audit import AUDIT, read_audit
    from manyeyes.report.tables import format_bytes

    entries = list(read_audit(folder / AUDIT))
    if as_json:
        _print_json(entries)
        return
    for entry in entries:
        when = datetime.fromtimestamp(entry["time"]).isoformat(sep=" ", timespec="seconds")
        numbers = sum(kind["numbers"] for kind in entry["arrays"].values())
        what = f"{numbers:,} numbers of weights" if numbers else ", ".join(entry["values"])
        print(f"{when}  {entry['kind']:9} {entry['sent']:8} {format_bytes(entry['bytes']):>9}  {what}")  # noqa: T201
    print(f"{len(entries)} entries, none changed since it was written.")  # noqa: T201


if __name__ == "__main__":
    main()
