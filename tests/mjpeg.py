"""A camera that speaks MJPEG over HTTP, on loopback."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from typing import Any

__all__ = ["camera"]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        server: Any = self.server
        try:
            for data in cycle(server.jpegs):
                if server.dies:
                    return
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                time.sleep(server.pause)
        except OSError:
            return

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def camera(jpegs: Sequence[bytes], *, port: int = 0, pause: float = 0.03) -> Iterator[int]:
    """Within the block a camera sends JPEGs again and again, as IP cameras do; yields its port.

    Args:
        jpegs: its frames.
        port: where; 0 takes a free one.
        pause: seconds between frames.
    """
    server: Any = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    server.jpegs, server.pause, server.dies = jpegs, pause, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.dies = True
        server.shutdown()
        server.server_close()
