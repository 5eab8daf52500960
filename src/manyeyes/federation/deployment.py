"""Flower's processes as children of ours: a SuperLink at the coordinator, a SuperNode at a site.

Both listen on loopback alone, hand tasks only to who knows a secret that lives as long as they do, keep their files in
our state folder, and neither look for updates nor report anything to anybody.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from manyeyes.errors import ResourceError, RunError
from manyeyes.federation.flower import RuntimeAddress
from manyeyes.federation.keys import AUTHORITY, NODE_KEY, SERVER
from manyeyes.weights import write_atomically

__all__ = ["superlink", "supernode"]

_LOOPBACK = "127.0.0.1"
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
# How long a node that is stopped goes on trying to send its last answer.
_SEND_SECONDS = 25.0


@contextmanager
def superlink(folder: Path) -> Iterator[RuntimeAddress]:
    """A SuperLink that keeps its state in a coordinator's folder.

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
    command += ["--database", str(folder / "superlink.db"), "--superexec-auth-secret-file", str(secret)]
    with _running(command, folder, port) as process:
        authority = (folder / AUTHORITY).read_bytes()
        yield RuntimeAddress(f"localhost:{port}", secret.read_text(), authority, lambda: process.poll() is None)


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
    with _running(command, folder, port) as process:

        def runs() -> bool:
            return process.poll() is None

        wait = partial(_wait_until_sent, log, begins, runs)
        yield RuntimeAddress(f"{_LOOPBACK}:{port}", secret.read_text(), None, runs, wait)


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


@contextmanager
def _running(command: Sequence[str], folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A child process of Flower's from when it listens until the block is left."""
    log = _log_of(command, folder)
    environment = {
        **os.environ,
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    program = Path(sys.executable).with_name(command[0])
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _TIED, str(os.getpid()), str(program), *command[1:]],
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
        _wait_until_it_listens(process, port, log)
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        process.kill()
        process.wait()


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
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
