"""The models of a site: kept under the hash of their files, used by it, and given back when a newer one disappoints."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from manyeyes.errors import ResourceError, WeightsError
from manyeyes.runtime.model_file import ModelInfo, file_hash, parts_of
from manyeyes.weights import write_atomically

__all__ = ["MODELS", "Entry", "Made", "Registry"]

MODELS = "models"
"""Name of the registry's folder in the state folder of a server."""

_ABOUT = "about.json"
_USE = "use.json"
# How far back one can go.
_REMEMBERED = 20
_HASH_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a model.

    Attributes:
        hash: SHA-256 of its files, in hexadecimal: its name here.
        label: what people call it: the name of the file that it came in.
        added: when, in seconds since 1970.
        num_bytes: of its files.
        info: what its file says of itself.
        round: of the run it was made in; None where it was exported by hand.
        run: name of that run.
        map50: mean AP50 on this site's validation pictures when it came; None where it was not tested.
        parents: hashes of the models here that it was made from.
    """

    hash: str
    label: str
    added: float
    num_bytes: int
    info: ModelInfo
    round: int | None = None
    run: str | None = None
    map50: float | None = None
    parents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """How a model was made; see `Entry`."""

    run: str
    round: int
    map50: float | None = None
    parents: tuple[str, ...] = ()


_ENTRY = TypeAdapter(Entry)


class Registry:
    """A folder of exported models, and which of them is used; many threads may ask.

    Args:
        folder: made when the first model comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.RLock()

    def add(self, path: Path, *, label: str | None = None, made: Made | None = None) -> Entry:
        """Copy an exported model in; one that is here already is only looked up.

        Args:
            path: an ONNX file or an OpenVINO folder.
            label: what people call it; default: its name.
            made: how, if a federation made it.

        Raises:
            WeightsError: it is missing, damaged, or no model of ours.
            ResourceError: the folder cannot be written.
        """
        parts = parts_of(path)
        name = file_hash(path)
        with self._lock:
            if self._holds(name):
                return self.entry(name)
            num_bytes = sum(part.stat().st_size for part in parts)
            entry = Entry(name, label or path.name, time.time(), num_bytes, _info_of(path))
            if made:
                entry = replace(entry, **asdict(made))
            self._copy_in(path, entry)
        return entry

    def _holds(self, name: str) -> bool:
        """Whether a model is here, whole; what a power cut left of one makes room."""
        if not (self._folder / name).is_dir():
            return False
        try:
            self.path(name)
        except WeightsError:
            shutil.rmtree(self._folder / name, ignore_errors=True)
            return False
        return True

    def _copy_in(self, path: Path, entry: Entry) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".") as temporary:
                fresh = Path(temporary) / entry.hash
                fresh.mkdir()
                for part in parts_of(path):
                    shutil.copyfile(part, fresh / (f"model{part.suffix}" if path.is_file() else part.name))
                values = {**asdict(entry), "info": entry.info.model_dump()}
                write_atomically(fresh / _ABOUT, json.dumps(values, indent=1) + "\n")
                fresh.replace(self._folder / entry.hash)
        except OSError as error:
            raise ResourceError(f"cannot be written ({error.strerror})", file=self._folder) from error
        # What was copied is what was looked at.
        self.path(entry.hash)

    def entries(self) -> list[Entry]:
        """All models, the newest first; a damaged one is left out."""
        found = []
        for about in self._folder.glob(f"{'[0-9a-f]' * _HASH_LENGTH}/{_ABOUT}"):
            try:
                found.append(_read(about))
            except WeightsError:
                continue
        return sorted(found, key=lambda entry: (-entry.added, entry.hash))

    def entry(self, name: str) -> Entry:
        """One model by its hash, or by the first letters of it that no other has.

        Raises:
            WeightsError: there is none, or several.
        """
        fitting = [entry for entry in self.entries() if name and entry.hash.startswith(name)]
        if len(fitting) != 1:
            raise WeightsError(
                f"{'several models' if fitting else 'no model'} here: hash begins with {name[:_HASH_LENGTH]!r}",
                cure="Look at the list of models.",
            )
        return fitting[0]

    def path(self, name: str) -> Path:
        """Where a model lies, after its files were compared with its hash.

        Raises:
            WeightsError: there is none, or its files were changed.
        """
        entry = self.entry(name)
        folder = self._folder / entry.hash
        path = folder / "model.onnx" if (folder / "model.onnx").is_file() else folder
        if file_hash(path) != entry.hash:
            raise WeightsError(
                "was changed since it was added: its hash is another",
                file=path,
                cure=f"Delete the folder {folder} and add the model again.",
            )
        return path

    @property
    def measured(self) -> Path:
        """Where it is kept how fast models run here; see `open_engine`."""
        return self._folder / "measured.json"

    @property
    def version(self) -> tuple[int, ...]:
        """Another one when models were added or another is used, by whichever process."""
        times = []
        for path in (self._folder, self._folder / _USE):
            with suppress(OSError):
                times.append(path.stat().st_mtime_ns)
        return tuple(times)

    @property
    def used(self) -> list[str]:
        """Hashes of the models that were put to use: the present one first, then what was used before it."""
        try:
            names = json.loads((self._folder / _USE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return []
        here = {entry.hash for entry in self.entries()}
        return [name for name in names if isinstance(name, str) and name in here] if isinstance(names, list) else []

    def use(self, name: str) -> None:
        """From now on this model is the one in use.

        Raises:
            WeightsError: there is none.
            ResourceError: the folder cannot be written.
        """
        with self._lock:
            chosen = self.entry(name).hash
            before = [other for other in self.used if other != chosen]
            self._write_used([chosen, *before][:_REMEMBERED])

    def drop_used(self) -> None:
        """The model in use is not any more: the one before it is.

        Raises:
            WeightsError: there was none before it.
            ResourceError: the folder cannot be written.
        """
        with self._lock:
            used = self.used
            if len(used) < 2:
                raise WeightsError("there is no model to go back to: this one is the first")
            self._write_used(used[1:])

    def _write_used(self, names: list[str]) -> None:
        write_atomically(self._folder / _USE, json.dumps(names, indent=1) + "\n")


def _info_of(path: Path) -> ModelInfo:
    # OpenVINO reads both kinds; it takes a second to import.
    from manyeyes.runtime.openvino_network import OpenVinoNetwork

    return OpenVinoNetwork(path, precision="fp32", threads=1).info


def _read(about: Path) -> Entry:
    try:
        entry = _ENTRY.validate_json(about.read_bytes())
    except (OSError, ValidationError) as error:
        raise WeightsError("is damaged", file=about) from error
    if entry.hash != about.parent.name:
        raise WeightsError("belongs to another model", file=about)
    return entry
