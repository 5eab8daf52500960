"""`manyeyes serve` and `manyeyes access` as a person uses them: as commands."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from manyeyes.federation.keys import AUTHORITY, SERVER, make_authority


def manyeyes(*words: object, input: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "manyeyes.cli", *map(str, words)]
    return subprocess.run(command, input=input, capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def serve(*words: object, cwd: Path | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address that the command says, and the process."""
    command = [sys.executable, "-m", "manyeyes.cli", "serve", *map(str, words), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=cwd)
    try:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(2)]
        found = re.search(r"https?://\S+", lines[1])
        assert found, lines
        yield found[0], process
    finally:
        process.kill()
        process.wait()


def test_it_serves_until_ctrl_c_and_ends_well(onnx_file: Path, scenes: Path, tmp_path: Path) -> None:
    picture = next(scenes.rglob("*.jpg")).read_bytes()
    with serve(onnx_file, "--state", tmp_path / "serve", "--threads", "1") as (address, process):
        answer = httpx.post(f"{address}/api/v1/detect", content=picture, trust_env=False, timeout=30)
        assert answer.status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert process.stderr is not None
        assert "ended after 1 pictures" in process.stderr.read()


def test_large_forms_lie_in_its_own_folder_and_leave_nothing_there(
    onnx_file: Path, pictures: list[Path], tmp_path: Path
) -> None:
    # A JPEG may have anything after its end.
    large = pictures[0].read_bytes() + bytes(8 << 20)
    with serve(onnx_file, "--threads", "1", cwd=tmp_path) as (address, _):
        for _ in range(3):
            files = {"file": ("a.jpg", large)}
            httpx.post(f"{address}/api/v1/detect", files=files, trust_env=False, timeout=30).raise_for_status()
    assert list((tmp_path / "serve" / "spool").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["serve"]


def test_it_speaks_tls_with_the_certificate_of_a_coordinator(onnx_file: Path, tmp_path: Path) -> None:
    make_authority(tmp_path / "keys", ["127.0.0.1", "localhost"])
    certificate = tmp_path / "keys" / SERVER
    words = (onnx_file, "--state", tmp_path / "serve", "--threads", "1", "--certificate", certificate)
    with serve(*words) as (address, _):
        assert address.startswith("https://")
        import ssl

        trusting = ssl.create_default_context(cafile=str(tmp_path / "keys" / AUTHORITY))
        answer = httpx.get(f"{address}/api/v1/status", verify=trusting, trust_env=False, timeout=30)
        assert answer.status_code == 200
        assert "strict-transport-security" in answer.headers


def test_a_public_address_needs_a_password(onnx_file: Path, tmp_path: Path) -> None:
    state = tmp_path / "serve"
    refused = manyeyes("serve", onnx_file, "--state", state, "--host", "0.0.0.0")
    assert refused.returncode == 2
    assert "there is no password" in refused.stderr
    assert f"manyeyes access password --state {state}" in refused.stderr
    short = manyeyes("access", "password", "--state", state, input="short\n")
    assert short.returncode == 2
    assert "10 characters" in short.stderr
    assert manyeyes("access", "password", "--state", state, input="four words of mine\n").returncode == 0
    assert (state / "passwords.json").stat().st_mode & 0o077 == 0
    token = manyeyes("access", "token", "robot", "--state", state).stdout.strip()
    assert token.startswith("me_")
    with serve(onnx_file, "--state", state, "--threads", "1", "--host", "0.0.0.0") as (address, _):
        status = f"{address}/api/v1/status"
        assert httpx.get(status, trust_env=False, timeout=30).status_code == 401
        bearer = {"authorization": f"Bearer {token}"}
        assert httpx.get(status, headers=bearer, trust_env=False, timeout=30).status_code == 200
        assert manyeyes("access", "revoke", "robot", "--state", state).returncode == 0
        assert httpx.get(status, headers=bearer, trust_env=False, timeout=30).status_code == 401


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no model is named, and none was used before"),
        (("missing.onnx",), "does not exist, or is no exported model"),
        (("MODEL", "--night-hours", "20:00-06:00"), "no model is named for it"),
        (("MODEL", "--certificate", "missing.pem"), "cannot be used as a certificate"),
        (("MODEL", "--set", "limits.zip=1"), "limits.zip: unknown key"),
    ],
)
def test_what_cannot_be_ends_with_the_reason(
    onnx_file: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    began = time.monotonic()
    given = [str(onnx_file) if word == "MODEL" else word for word in words]
    refused = manyeyes("serve", *given, "--state", tmp_path / "serve")
    assert refused.returncode == 2
    assert message in " ".join(refused.stderr.split())
    assert "Traceback" not in refused.stderr
    assert time.monotonic() - began < 60
