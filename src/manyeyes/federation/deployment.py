"""Flower's processes as children of ours: a SuperLink at the coordinator, a SuperNode at a site.

Both listen on loopback alone, hand tasks only to who knows a secret that lives as long as they do, keep their files in
our state folder, and neither look for updates nor report anything to anybody.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from manyeyes.errors import ResourceError, RunError
from manyeyes.federation.coordinator_config import DATABASE
from manyeyes.federation.flower import RuntimeAddress
from manyeyes.federation.keys import AUTHORITY, NODE_KEY, SERVER
from manyeyes.weights import write_atomically

__all__ = ["superlink", "supernode"]

_LOOPBACK = "127.0.0.1"
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
# How long a node that is stopped goes on trying to send its last answer.
_SEND_SECONDS = 25.0
# A process that ends more often than this within ten minutes would end again.
_REVIVALS, _REVIVAL_SECONDS = 5, 600.0
# Less room than this on a disk and its database cannot grow by one message.
_LEAST_ROOM = 16 * 2**20

# Of so many lines at the end of a log the last that tells of an error is what a person looks for.
_LAST_LINES = 30
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_log = logging.getLogger(__name__)


@contextmanager
def superlink(folder: Path) -> Iterator[RuntimeAddress]:
    """A SuperLink that keeps its state in a coordinator's folder.

    Its database holds what nodes sent, also after it was merged, since SQLite does not wipe what it deletes. So the
    database goes when the SuperLink does; one that was left by a coordinator that was killed is taken up again.

    Args:
        folder: holds the coordinator's certificate; the SuperLink's files go below it.

    Raises:
        ResourceError: it cannot be started.
        RunError: it ended before it listened; names its log.
    """
    port, secret = _free_port(), _secret(folder)
    tls = {"cert": SERVER, "key": SERVER, "ca-cert": AUTHORITY}
    command = ["flower-superlink", "--host", _LOOPBACK, "--port", str(port)]
    command += [f"--ssl-{kind}file={folder / name}" for kind, name in tls.items()]
    command += ["--enable-supernode-auth", "--isolation", "process", "--disable-runtime-dependency-installation"]
    command += ["--database", str(folder / DATABASE), "--superexec-auth-secret-file", str(secret)]
    try:
        with _Child(command, folder, port) as child:
            authority = (folder / AUTHORITY).read_bytes()
            yield RuntimeAddress(
                f"localhost:{port}", secret.read_text(), authority, child.runs, child.revive, child.trouble
            )
    finally:
        for suffix in ("", "-wal", "-shm"):
            (folder / (DATABASE + suffix)).unlink(missing_ok=True)


@contextmanager
def supernode(folder: Path, coordinator: str, authority: Path) -> Iterator[RuntimeAddress]:
    """A SuperNode that reaches a coordinator.

    Args:
        folder: the node's state folder, which holds its key.
        coordinator: host:port of the coordinator's door.
        authority: certificate of the coordinator's authority.

    Raises:
        ResourceError: it cannot be started.
        RunError: it ended before it listened; names its log.
    """
    port, secret = _free_port(), _secret(folder)
    command = ["flower-supernode", "--superlink", coordinator, "--root-certificates", str(authority)]
    command += ["--auth-supernode-private-key", str(folder / NODE_KEY), "--isolation", "process"]
    command += ["--host", _LOOPBACK, "--port", str(port), "--superexec-auth-secret-file", str(secret)]
    log = _log_of(command, folder)
    begins = log.stat().st_size if log.exists() else 0
    with _Child(command, folder, port) as child:
        wait = partial(_wait_until_sent, log, begins, child.runs)
        yield RuntimeAddress(
            f"{_LOOPBACK}:{port}",
            secret.read_text(),
            None,
            child.runs,
            trouble=child.trouble,
            wait_until_sent=wait,
        )


# What a SuperNode of Flower 1.41 logs when it is done with an answer. It tells nobody else, and when it is stopped
# before, the answer is lost.
_DONE = (b"Sent successfully", b"Failed to send message", b"Ignoring reply message")


def _wait_until_sent(log: Path, begins: int, runs: Callable[[], bool], answers: int) -> None:
    ends = time.monotonic() + _SEND_SECONDS
    while runs() and time.monotonic() < ends:
        with log.open("rb") as file:
            file.seek(begins)
            if sum(line.count(done) for line in file for done in _DONE) >= answers:
                return
        time.sleep(0.2)


def _secret(folder: Path) -> Path:
    path = folder / "tasks.secret"
    write_atomically(path, secrets.token_hex(32), mode=0o600)
    return path


def _free_port() -> int:
    with socket.create_server((_LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


# Becomes the program that is named, and dies when we do, however we die: a SuperNode that outlived its node would go on
# taking the messages of the next one. Linux does this (prctl PR_SET_PDEATHSIG); elsewhere only an orderly end ends it.
_TIED = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class _Child:
    """A child process of Flower's; a context manager within which it listens on its port."""

    def __init__(self, command: Sequence[str], folder: Path, port: int) -> None:
        self._command, self._folder, self._port = command, folder, port
        self._log = _log_of(command, folder)
        self._revivals: list[float] = []
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Child:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def revive(self) -> None:
        """Start it again if it has ended.

        Raises:
            RunError: it ends again and again.
            ResourceError: there is no room for what it keeps.
        """
        free = shutil.disk_usage(self._folder).free
        if free < _LEAST_ROOM:
            raise ResourceError(
                f"only {free / 1e6:.0f} MB are free on this disk, too few for what nodes send",
                file=self._folder,
                cure="Make room, then start again with --resume.",
            )
        if self.runs():
            return
        assert self._process is not None
        _log.warning("%s has ended (%s); it is started again", self._command[0], _how(self._process.returncode))
        now = time.monotonic()
        self._revivals = [when for when in self._revivals if now - when < _REVIVAL_SECONDS] + [now]
        if len(self._revivals) > _REVIVALS:
            raise RunError(
                f"{self._command[0]} ended {len(self._revivals)} times: {self.trouble()}",
                file=self._log,
                cure="Mend what its log says, then start again with --resume.",
            )
        self._start()

    def trouble(self) -> str:
        """The last thing it said."""
        return _last_line(self._log)

    def _start(self) -> None:
        environment = {
            **os.environ,
            "FLWR_HOME": str(self._folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        program = Path(sys.executable).with_name(self._command[0])
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _TIED, str(os.getpid()), str(program), *self._command[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    # Ctrl-C is for us: we end it when the round is kept.
                    start_new_session=True,
                )
        except OSError as error:
            raise ResourceError(
                f"cannot be started ({error.strerror})", file=program, cure="pip install 'manyeyes[federation]'"
            ) from error
        try:
            _wait_until_it_listens(self._process, self._port, self._log)
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        self._process.kill()
        self._process.wait()


def _how(code: int) -> str:
    """An exit code as people say it; negative for the signal that ended a process."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _log_of(command: Sequence[str], folder: Path) -> Path:
    return folder / "logs" / f"{command[0]}.log"


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends:
        with contextlib.suppress(OSError), socket.create_connection((_LOOPBACK, port), timeout=1.0):
            return
        if process.poll() is not None:
            raise RunError(f"{log.stem} ended at once: {_last_line(log)}", file=log)
        time.sleep(0.1)
    raise RunError(f"{log.stem} does not listen after {_START_SECONDS:.0f} s", file=log)


def _last_line(log: Path) -> str:
    text = _COLOURS.sub("", log.read_text(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()][-_LAST_LINES:]
    telling = [line for line in lines if "INFO" not in line and ("error" in line.lower() or "fail" in line.lower())]
    return (telling or lines or ["it said nothing"])[-1]
