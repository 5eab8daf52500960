"""A main process that is killed, as the system does it where memory runs out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil


def assert_children_end(script: Path, lines: list[str], told: str) -> None:
    """Run lines of Python as a main process, kill it once it has told something, and expect its processes to end.

    Args:
        script: where the lines are written, after those that find the tests.
        lines: what the process does; it must guard what it starts, since its own processes import it.
        told: the first line that it, or one of its processes, prints while they are at work.
    """
    script.write_text("\n".join(["import sys", f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})", *lines]))
    main = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert main.stdout
    assert main.stdout.readline() == f"{told}\n"
    children = psutil.Process(main.pid).children(recursive=True)
    assert children
    main.kill()
    main.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    main.stdout.close()
