"""The trainer of a node, in a process of its own: what ends it, a crash or a lack of memory, does not end the node.

The process is begun afresh (never forked: torch's threads do not survive that) and stays warm from request to request.
It is handed each request as bytes, and sends back over one pipe how far it is and at last the answer, or the error
that refuses it. The node's own process needs neither torch nor the pictures.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from manyeyes.datasets import Dataset
from manyeyes.datasets.overlay import OVERLAY, Overlay
from manyeyes.errors import ConfigError, DataError, ManyeyesError, ResourceError, RunError
from manyeyes.federation.child import begin, how_it_ended, settle
from manyeyes.federation.form import ModelForm
from manyeyes.federation.limits import Limits
from manyeyes.federation.local_server import LocalServer
from manyeyes.federation.site_pictures import SitePictures, out_of_reach
from manyeyes.federation.traffic import Counted
from manyeyes.federation.transport import Record, Request
from manyeyes.learners.learner import ProgressCallback, silent

if TYPE_CHECKING:
    from manyeyes.federation.site import Site

__all__ = ["SiteSettings", "Trainer"]

# A crash may be chance, and the round need not miss this site for it. Twice is no chance.
_ATTEMPTS = 2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """What the process makes its site from.

    Attributes:
        node_id: its name in the federation.
        data_path, annotates: its pictures, and the classes looked for there; None for those the data set names.
        model_path: weights of the kind of model that is trained here; None for any kind.
        state: where personal tensors and whatever else outlives a round is kept.
        limits: what it allows, and where it computes.
        server: the one at this site that gets models, if there is one.
    """

    node_id: str
    data_path: Path
    annotates: tuple[str, ...] | None
    model_path: Path | None
    state: Path
    limits: Limits
    server: LocalServer | None = None


class Trainer:
    """Answers requests as `Site` does, from another process.

    Args:
        settings: of the site.
        progress: told how far each fit is.
        pictures: told at each request how many training pictures there are; or None, and why.
    """

    def __init__(
        self,
        settings: SiteSettings,
        *,
        progress: ProgressCallback = silent,
        pictures: Callable[[int | None, str | None], None] = lambda count, reason: None,
    ) -> None:
        self._settings, self._progress, self._pictures = settings, progress, pictures
        self._process: _Process | None = None

    def start(self) -> int:
        """Begin the process, and wait until it is ready; returns how many pictures it has found to train on.

        Raises:
            ConfigError, WeightsError: there are no weights of the agreed kind, or they are of no YOLOv8 detector.
            DataError: the pictures cannot be trained on.
            ResourceError, RunError: the process ended without a word.
        """
        self._process = _Process(self._settings)
        last = self._listen(self._process)
        if last.kind != "ready":
            self.close()
            raise _error_of(last)
        count: int = last.content
        return count

    def __call__(self, request: Request, form: ModelForm, counted: Counted) -> Record:
        """Train or test. Where the process ends meanwhile, another begins the request anew, once.

        Args:
            request: what is asked.
            form: of the model.
            counted: today's messages, this request included.

        Raises:
            ResourceError, RunError: the process ended without a word, and the one after it too.
            ManyeyesError: what `Site` raises.
        """
        asked = (replace(request, record=Record()), request.record.to_bytes(), form, counted)
        for _ in range(_ATTEMPTS):
            process = self._process or self._begin_again()
            process.send(asked)
            last = self._listen(process)
            if last.kind == "answer":
                return Record.from_bytes(last.content)
            if last.kind == "failed":
                break
            self.close()
            _log.warning("request %s: %s", request.request_id, last.content)
        raise _error_of(last)

    def close(self) -> None:
        """End the process at once; what it has on disk is whole, since files are written atomically."""
        if self._process:
            self._process.kill()
        self._process = None

    def _begin_again(self) -> _Process:
        try:
            self.start()
        except DataError as error:
            refusal = out_of_reach(self._settings.data_path, error)
            self._pictures(None, refusal.reason)
            raise refusal from error
        assert self._process
        return self._process

    def _listen(self, process: _Process) -> _Message:
        """Pass on what comes from the process until its last word on what it was asked."""
        try:
            while (message := process.receive()).kind in ("progress", "pictures"):
                if message.kind == "progress":
                    self._progress(message.content)
                else:
                    self._pictures(*message.content)
        except BaseException:
            # What it would still send belongs to no request any more.
            self.close()
            raise
        return message


class _Message(NamedTuple):
    """kind is one of ready, progress, pictures, answer, failed, and ended, which is told in place of the process."""

    kind: str
    content: Any


class _Process:
    """The process, seen from outside."""

    def __init__(self, settings: SiteSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=_work, args=(settings, theirs), name=f"manyeyes trainer of {settings.node_id}", daemon=True
        )
        begin(self._process)
        theirs.close()  # so that the pipe ends when the process does

    def send(self, asked: object) -> None:
        # One that has ended meanwhile is found out when its answer is waited for.
        with suppress(OSError):
            self._pipe.send(asked)

    def receive(self) -> _Message:
        try:
            return _Message(*self._pipe.recv())
        except (EOFError, OSError):
            self._process.join()
            return _Message("ended", _ended(self._process.exitcode))

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _ended(exit_code: int | None) -> ManyeyesError:
    """What the coordinator's operator is told, who knows nothing of the site's machine."""
    if exit_code == -signal.SIGKILL:
        return ResourceError(
            "the trainer of this site was ended by SIGKILL, as systems do where memory runs out",
            cure="Let the site give its trainer less to do: a smaller train.batch or train.imgsz.",
        )
    how = how_it_ended(exit_code)
    return RunError(f"the trainer of this site crashed ({how})", cure="What it said before stands in the node's log.")


def _error_of(message: _Message) -> Exception:
    if isinstance(message.content, ManyeyesError):
        return message.content
    return RuntimeError(f"the trainer failed\n{message.content}")


# -- in the process -------------------------------------------------------------------------------------------------


def _work(settings: SiteSettings, pipe: Connection) -> None:
    """Answer what comes through the pipe until it ends, which it does with the node."""
    settle()

    def tell(kind: str, content: Any) -> None:
        try:
            pipe.send((kind, content))
        except OSError as error:
            raise SystemExit from error

    with _failures_told(tell):
        overlay = Overlay(settings.server.state / OVERLAY) if settings.server else None
        pictures = SitePictures(settings.data_path, settings.annotates, overlay)
        site = _site(settings, pictures, tell)
        tell("ready", len(pictures.data.split("train")))
        while True:
            request, data, form, counted = _next(pipe)
            with _failures_told(tell):
                record = site(replace(request, record=Record.from_bytes(data)), form, counted)
                tell("answer", record.to_bytes())


def _site(settings: SiteSettings, pictures: SitePictures, tell: Callable[[str, Any], None]) -> Site:
    from manyeyes.federation.site import Site

    def current() -> Dataset:
        try:
            data = pictures.current()
        except DataError as error:
            tell("pictures", (None, error.reason))
            raise
        tell("pictures", (len(data.split("train")), None))
        return data

    return Site(
        settings.node_id,
        pictures.data,
        settings.state,
        limits=replace(settings.limits, architecture=_agreed(settings.model_path)),
        progress=partial(tell, "progress"),
        refresh=current,
        server=settings.server,
    )


def _agreed(path: Path | None) -> str | None:
    """The architecture of the weights a site has agreed to train; nothing in them is executed.

    Raises:
        ConfigError: there is no such file.
        WeightsError: it holds no YOLOv8 detector.
    """
    from manyeyes.learners.models import open_template

    if path is None:
        return None
    if not path.is_file():
        raise ConfigError(
            "there is no such file",
            file=path,
            key="model_path",
            cure="Put the weights there that were agreed on, or leave model_path out to train any kind of model.",
        )
    return open_template(path).architecture


def _next(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError) as error:
        raise SystemExit from error


@contextmanager
def _failures_told(tell: Callable[[str, Any], None]) -> Iterator[None]:
    try:
        yield
    except ManyeyesError as error:
        tell("failed", error)
    except Exception:  # noqa: BLE001 - the node raises it, with this traceback
        tell("failed", traceback.format_exc())
