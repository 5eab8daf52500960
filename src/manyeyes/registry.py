"""The models of a site: kept under the hash of their files, used by it, and given back when a newer one disappoints."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from manyeyes.errors import ConfigError, ResourceError, WeightsError
from manyeyes.runtime.model_file import ModelInfo, file_hash, parts_of
from manyeyes.weights import write_atomically

__all__ = ["MODELS", "PROMOTE", "Entry", "Held", "Made", "Registry", "open_registry", "used_meanwhile"]

MODELS = "models"
"""Name of the registry's folder in the state folder of a server."""

Held = Literal["night", "second opinion"]
"""What a server needs a model for beside the one in use."""

Split = Literal["val", "test"]

_ABOUT = "about.json"
_USE = "use.json"
_HELD = "held.json"
_LOCK = "lock"
# How far back one can go.
_REMEMBERED = 20
_HASH_LENGTH = 64
_HASH = re.compile(rf"[0-9a-f]{{{_HASH_LENGTH}}}")
_ADDING = ".adding-"
_LEFT = re.compile(rf"\.{_HASH.pattern}$|{re.escape(_ADDING)}")
_DAY = 86_400.0
# Dates that a program can show.
_Time = Annotated[float, Field(ge=0, le=1e11)]
_Share = Annotated[float, Field(ge=0, le=1)]

PROMOTE = "Say which model is to be used: `manyeyes models promote HASH`."

_NONE_BEFORE = "there is no model to go back to"
_FIRST = f"{_NONE_BEFORE}: this one is the first"


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
        map50: mean AP50 on this site's pictures when it came; None where it was not tested.
        parents: hashes of the models here that it was made from.
        map50_95: as `map50`, but the mean over overlaps from 0.5 to 0.95, which decides on its use.
        split: the pictures that it was tested on, "val" or "test".
        signed: when the coordinator signed it, in seconds since 1970.
    """

    hash: str
    label: str
    added: _Time
    num_bytes: int
    info: ModelInfo
    round: int | None = None
    run: str | None = None
    map50: _Share | None = None
    parents: tuple[str, ...] = ()
    map50_95: _Share | None = None
    split: Split | None = None
    signed: _Time | None = None

    @property
    def origin(self) -> Literal["federation", "file"]:
        """Whether a federation made it, or somebody put its file here, at this machine."""
        return "file" if self.run is None else "federation"


@dataclass(frozen=True, slots=True)
class Made:
    """How a model was made; see `Entry`."""

    run: str
    round: int
    map50: float | None = None
    parents: tuple[str, ...] = ()
    map50_95: float | None = None
    split: Split | None = None
    signed: float | None = None


class _Used(BaseModel):
    """The list of used models on the disk; the digest shows what was changed by hand or by the disk."""

    model_config = ConfigDict(extra="forbid", strict=True)

    used: list[str]
    digest: str


_ENTRY = TypeAdapter(Entry)
# What came with the digest; an entry of an earlier version has neither.
_NEWER = ("run", "map50", "parents")
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
# An earlier version wrote the list alone.
_USED = TypeAdapter(_Used | list[str])
_HELD_FORM: TypeAdapter[dict[Held, str]] = TypeAdapter(dict[Held, str])


class Registry:
    """A folder of exported models, and which of them is used; many threads and processes may ask.

    Args:
        folder: made when the first model comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

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
        with self._changing():
            if self._holds(name):
                return self.entry(name)
            num_bytes = sum(part.stat().st_size for part in parts)
            entry = Entry(name, label or path.name, time.time(), num_bytes, _info_of(path))
            if made:
                entry = replace(entry, **asdict(made))
            self._copy_in(path, entry)
        return entry

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Nobody else changes the registry in this block: no thread, and no other process, such as the site's node."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = (self._folder / _LOCK).open("a")
        except OSError as error:
            raise ResourceError(f"cannot be written ({error.strerror})", file=self._folder) from error
        with self._lock, file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._clear()
            yield

    def _clear(self) -> None:
        """Away with what a process left that was killed while it held the lock."""
        with suppress(OSError):
            for path in self._folder.iterdir():
                if _LEFT.match(path.name):
                    _remove(path)

    def _holds(self, name: str) -> bool:
        """Whether a model is here, whole; what a power cut left of one makes room."""
        try:
            self.path(name)
        except WeightsError:
            with suppress(OSError):  # it is in the way then, which is said
                _remove(self._folder / name)
            return False
        return True

    def _copy_in(self, path: Path, entry: Entry) -> None:
        try:
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=_ADDING) as temporary:
                fresh = Path(temporary) / entry.hash
                fresh.mkdir()
                for part in parts_of(path):
                    copy = fresh / (f"model{part.suffix}" if path.is_file() else part.name)
                    shutil.copyfile(part, copy)
                    _sync(copy)
                if file_hash(_model_in(fresh)) != entry.hash:
                    raise WeightsError("was changed while it was copied", file=path, cure="Add it again.")
                values = {**asdict(entry), "info": entry.info.model_dump()}
                values["digest"] = _digest(values)
                write_atomically(fresh / _ABOUT, json.dumps(values, indent=1) + "\n")
                _sync(fresh)
                self._begin_used()
                fresh.replace(self._folder / entry.hash)
                _sync(self._folder)
        except OSError as error:
            raise ResourceError(f"cannot be written ({error.strerror})", file=self._folder) from error

    def _begin_used(self) -> None:
        """Where models are, so is the list of used ones, be it empty: one that is missing was deleted."""
        if not self._hashes() and not (self._folder / _USE).exists():
            self._write_used([])

    def entries(self) -> list[Entry]:
        """All models, the newest first; a damaged one is left out."""
        found = []
        for name in self._hashes():
            with suppress(WeightsError):
                found.append(_read(self._folder / name / _ABOUT))
        return sorted(found, key=lambda entry: (-entry.added, entry.hash))

    def _hashes(self) -> list[str]:
        """Names of the folders here that a model may lie in.

        Raises:
            WeightsError: the folder is there and cannot be read.
        """
        try:
            return sorted(path.name for path in self._folder.iterdir() if _HASH.fullmatch(path.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unreadable(self._folder, error) from error

    def entry(self, name: str) -> Entry:
        """One model by its hash, or by the first letters of it that no other has.

        Raises:
            WeightsError: there is none, or several; or what was written of it is damaged.
        """
        return _read(self._folder / _only(self._hashes(), name, self._folder) / _ABOUT)

    def label(self, name: str) -> str:
        """What people call a model; the beginning of its hash where what was written of it is damaged."""
        return next((entry.label for entry in self.entries() if entry.hash == name), name[:12])

    def path(self, name: str) -> Path:
        """Where a model lies, after its files were compared with its hash.

        Raises:
            WeightsError: there is none, or its files were changed.
        """
        entry = self.entry(name)
        folder = self._folder / entry.hash
        path = _model_in(folder)
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
        """Hashes of the models that were put to use: the present one first, then what was used before it.

        Those that are not here any more are left out; a damaged list is as good as none.
        """
        here = {entry.hash for entry in self.entries()}
        return [name for name in self._listed() if name in here]

    @property
    def wanted(self) -> str | None:
        """The model that the list of used ones names first, be it here or not; None where nothing is listed."""
        return next(iter(self._listed()), None)

    @property
    def previous(self) -> str | None:
        """The model to go back to; None where there is none."""
        here = {entry.hash for entry in self.entries()}
        return next((name for name in self._listed()[1:] if name in here), None)

    def to_go_back(self) -> tuple[str, str]:
        """Hashes of the model in use and of the one before it, as of one moment.

        Raises:
            WeightsError: there is none before it; or the list of used models is damaged.
        """
        names, here = self._read_used(), {entry.hash for entry in self.entries()}
        if not here:
            raise WeightsError("holds no models", file=self._folder)
        for name in names[1:]:
            if name in here:
                return names[0], name
        raise WeightsError(_FIRST if names else f"{_NONE_BEFORE}: none was put to use", file=self._folder, cure=PROMOTE)

    def check_used(self) -> None:
        """Refuse a list of used models that is damaged: of such a one it is not known what is in use.

        Raises:
            WeightsError: it is damaged, or names a model as the one in use that is not here.
        """
        names = self._read_used()
        if names and names[0] not in self._hashes():
            reason = "names a model as the one in use that is not here"
            raise _damaged_use(self._folder / _USE, reason, key=names[0][:12])

    def _listed(self) -> list[str]:
        with suppress(WeightsError):
            return self._read_used()
        return []

    def _read_used(self) -> list[str]:
        here, path = self._hashes(), self._folder / _USE  # models first: the list was there before any
        try:
            read = _USED.validate_json(path.read_bytes())
        except FileNotFoundError as error:
            if here:
                raise _damaged_use(path, "is missing") from error
            return []
        except OSError as error:
            raise _unreadable(path, error) from error
        except ValidationError as error:
            raise _damaged_use(path) from error
        names = read if isinstance(read, list) else read.used
        if not all(_HASH.fullmatch(name) for name in names):
            raise _damaged_use(path)
        if isinstance(read, _Used) and read.digest != _digest({"used": names}):
            raise _damaged_use(path, "was changed since it was written")
        return names

    def use(self, name: str, *, instead_of: str | None = None) -> bool:
        """From now on this model is the one in use.

        Args:
            name: its hash, or the first letters of it that no other has.
            instead_of: hash of the one in use, "" for none; if it is another by now, nothing is changed. None:
                whichever it is.

        Returns:
            Whether it is in use now.

        Raises:
            WeightsError: there is none.
            ResourceError: the folder cannot be written.
        """
        with self._changing():
            chosen, listed = self.entry(name).hash, self._listed()
            if instead_of is not None and (listed[0] if listed else "") != instead_of:
                return False
            self._put_first(chosen, listed)
        return True

    def drop_used(self, name: str | None = None, *, back_to: str | None = None) -> bool:
        """The model in use is not any more: the one before it is.

        Args:
            name: hash of that model; if another is in use by now, nothing is changed. None: whichever it is.
            back_to: hash of the one that is used again; default: the one before it.

        Returns:
            Whether anything was changed.

        Raises:
            WeightsError: there was none before it, or the one to go back to is not here.
            ResourceError: the folder cannot be written.
        """
        with self._changing():
            listed = self._listed()
            if name is not None and listed[:1] != [name]:
                return False
            back = back_to or self.previous
            if back is None:
                raise WeightsError(_FIRST, file=self._folder, cure=PROMOTE)
            if back not in self._hashes():
                raise WeightsError("the model to go back to is not here", file=self._folder / back, cure=PROMOTE)
            self._put_first(back, listed[1:])
        return True

    def _put_first(self, name: str, others: Iterable[str]) -> None:
        here = set(self._hashes())  # a damaged one keeps its place: it may be mended
        names = [name, *(other for other in others if other != name and other in here)]
        self._write_used(names[:_REMEMBERED])

    def _write_used(self, names: list[str]) -> None:
        path = self._folder / _USE
        try:
            self._read_used()
        except WeightsError:  # somebody may want to know what it was
            with suppress(OSError):
                path.replace(path.with_suffix(".damaged"))
        values = {"used": names, "digest": _digest({"used": names})}
        write_atomically(path, json.dumps(values, indent=1) + "\n")

    @property
    def held(self) -> dict[Held, str]:
        """Hashes of the models that the server needs beside the one in use, by what for; as of its last start."""
        with suppress(WeightsError):
            return self._read_held()
        return {}

    def _read_held(self) -> dict[Held, str]:
        path = self._folder / _HELD
        try:
            return _HELD_FORM.validate_json(path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _unreadable(path, error) from error
        except ValidationError as error:
            raise WeightsError(
                "is damaged", file=path, cure="Start the server again: it writes the file anew."
            ) from error

    def hold(self, models: Mapping[Held, str]) -> None:
        """Say which models the server needs beside the one in use, so that nobody deletes them.

        Raises:
            ResourceError: the folder cannot be written.
        """
        with suppress(WeightsError):
            if models == self._read_held():
                return
        write_atomically(self._folder / _HELD, json.dumps(dict(models), indent=1) + "\n")

    def forget(self, name: str) -> str:
        """Delete a model, damaged or not.

        Args:
            name: its hash, or the first letters of it that no other has.

        Returns:
            Its hash.

        Raises:
            WeightsError: there is none, or several; or it is in use, the one to go back to, or held.
            ResourceError: it cannot be deleted.
        """
        with self._changing():
            chosen = self.forgettable(name)
            self._delete(chosen)
        return chosen

    def forgettable(self, name: str) -> str:
        """The hash of a model, damaged or not, that can be forgotten; see `forget`.

        Raises:
            WeightsError: there is none, or several; or it is in use, the one to go back to, or held; or what says so is
                damaged.
        """
        self._check_needed()
        chosen = _only(self._hashes(), name, self._folder)
        if reason := self._needed().get(chosen):
            raise WeightsError(
                f"is {reason}, and stays", file=self._folder / chosen, cure="Put another model to use first."
            )
        return chosen

    def _check_needed(self) -> None:
        """Refuse what says which models must stay, if it is damaged."""
        self.check_used()
        self._read_held()

    def _needed(self) -> dict[str, str]:
        """Hashes of the models that must stay → why."""
        reasons: dict[str | None, str] = {name: f"the model for the {what}" for what, name in self.held.items()}
        reasons |= {self.previous: "the model to go back to", self.wanted: "the model in use"}
        return {name: reason for name, reason in reasons.items() if name}

    def _delete(self, name: str) -> None:
        gone = self._folder / f".{name}"
        try:
            # First out of sight: of a model that is half deleted nobody must find the other half.
            (self._folder / name).replace(gone)
            _remove(gone)
        except OSError as error:
            raise ResourceError(f"cannot be deleted ({error.strerror})", file=self._folder / name) from error

    def spare(self, *, days: float | None = None, keep: int | None = None, run_only: bool = False) -> list[Entry]:
        """Models that nobody needs, as a rule that bounds the registry would have it: those to `forget`.

        What was never used goes before what was, and the older before the newer; never the newest, or one that
        must stay.

        Args:
            days: only such as came longer ago.
            keep: only as many as there are beyond this number.
            run_only: of those that a federation made alone; others are not counted either.

        Raises:
            WeightsError: what says which models must stay is damaged.
        """
        self._check_needed()
        used, needed = self.used, self._needed()
        entries = [entry for entry in self.entries() if not run_only or entry.origin == "federation"]
        order = {name: place for place, name in enumerate(reversed(used))}
        spare = sorted(
            (entry for entry in entries[1:] if entry.hash not in needed),
            key=lambda entry: (order.get(entry.hash, -1), entry.added),
        )
        if keep is not None:
            spare = spare[: max(0, len(entries) - keep)]
        latest = time.time() - _DAY * (days or 0)
        return [entry for entry in spare if days is None or entry.added < latest]

    def damage(self) -> list[WeightsError]:
        """What here was tampered with or is damaged: each with file, reason and cure. Reads all files."""
        found: list[WeightsError] = []
        try:
            names = self._hashes()
        except WeightsError as error:
            return [error]
        for name in names:
            try:
                self.path(name)
            except WeightsError as error:
                if name in self._hashes():  # else it was forgotten meanwhile
                    found.append(error)
        for check in (self.check_used, self._read_held):
            try:
                check()
            except WeightsError as error:
                found.append(error)
        return found


def open_registry(state: Path) -> Registry:
    """The registry of a server that has had a model.

    Args:
        state: the server's state folder.

    Raises:
        ConfigError: there is none.
    """
    folder = state / MODELS
    if not folder.is_dir():
        raise ConfigError("holds no models", file=state, key="--state", cure="Name the state folder of a server.")
    return Registry(folder)


def used_meanwhile() -> WeightsError:
    """The refusal of a change that was decided on while another model was in use."""
    return WeightsError("another model was put to use meanwhile", cure="Look at the list of models, and try again.")


def _only(names: Iterable[str], beginning: str, folder: Path) -> str:
    """The one name that begins so, in capitals or not.

    Raises:
        WeightsError: there is none, or several.
    """
    fitting = [name for name in names if beginning and name.startswith(beginning.lower())]
    if len(fitting) != 1:
        raise WeightsError(
            f"{'several models' if fitting else 'no model'} here: hash begins with {beginning[:_HASH_LENGTH]!r}",
            file=folder,
            cure="Look at the list of models.",
        )
    return fitting[0]


def _damaged_use(path: Path, reason: str = "is damaged", key: str | None = None) -> WeightsError:
    return WeightsError(reason, file=path, key=key, cure=PROMOTE)


def _unreadable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(
        f"cannot be read ({error.strerror})", file=path, cure="See to its permissions, and to the disk."
    )


def _model_in(folder: Path) -> Path:
    """The file of a model or, for OpenVINO, the folder itself."""
    return path if os.path.lexists(path := folder / "model.onnx") else folder


def _remove(path: Path) -> None:
    """A folder with all that is in it, or whatever else has this name; what a link points at stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """A power cut must not leave less of a file, or of a folder's names, than whoever reads on was told."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _info_of(path: Path) -> ModelInfo:
    # OpenVINO reads both kinds; it takes a second to import.
    from manyeyes.runtime.openvino_network import OpenVinoNetwork

    return OpenVinoNetwork(path, precision="fp32", threads=1).info


def _read(about: Path) -> Entry:
    cure = f"Delete the folder {about.parent} and add the model again."
    try:
        values = _OBJECT.validate_json(about.read_bytes())
        # What an earlier version wrote has none.
        digest = values.pop("digest", None)
        entry = _ENTRY.validate_python(values)
    except (FileNotFoundError, ValidationError) as error:
        raise WeightsError("is damaged", file=about, cure=cure) from error
    except OSError as error:
        raise _unreadable(about, error) from error
    if digest != _digest(values) and (digest is not None or any(key in values for key in _NEWER)):
        raise WeightsError("was changed since it was written", file=about, cure=cure)
    if entry.hash != about.parent.name:
        raise WeightsError("belongs to another model", file=about, cure=cure)
    return entry


def _digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of what is said of a model: shows what was changed by hand or by the disk, not by a forger."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
