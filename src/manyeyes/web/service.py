"""`manyeyes serve` as a person sees it: opens what is needed, says where it listens, ends on Ctrl-C."""

from __future__ import annotations

import ssl
import time

from rich.console import Console

from manyeyes.errors import ConfigError
from manyeyes.runtime.engine import Engine
from manyeyes.signals import stop_signals
from manyeyes.web.edge import open_edge
from manyeyes.web.node import node_app
from manyeyes.web.serving import listen, serving
from manyeyes.web.settings import ServeConfig
from manyeyes.web.uploads import spooling_to

__all__ = ["serve_site"]

_POLL_SECONDS = 0.2


def serve_site(config: ServeConfig, *, console: Console, quiet: bool = False) -> None:
    """Serve until Ctrl-C or SIGTERM; pictures that are being looked at are answered, unfinished jobs go on next time.

    Raises:
        ConfigError: a public address without a password, no model, a certificate that cannot be used.
        ManyeyesError: anything else that keeps it from starting.
    """
    tls = _tls(config)
    with (
        stop_signals() as stop,
        open_edge(config) as edge,
        spooling_to(config.state / "spool"),
        listen(config.host, config.port, key="port") as listener,
    ):
        limits = config.limits
        with serving(
            node_app(edge=edge),
            listener,
            "manyeyes-serve",
            tls=tls,
            connections=limits.connections,
            message_bytes=limits.picture_bytes,
            patience=limits.patience,
        ):
            if not quiet:
                _greet(console, config, int(listener.getsockname()[1]), edge.host.engine)
            while not stop():
                time.sleep(_POLL_SECONDS)
        if not quiet:
            console.print(f"{stop()}: ended after {edge.metrics.pictures} pictures.", highlight=False)


def _greet(console: Console, config: ServeConfig, port: int, engine: Engine) -> None:
    scheme = "https" if config.certificate else "http"
    host = next(iter(config.names), "127.0.0.1" if not config.public or config.host == "0.0.0.0" else config.host)
    address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    lines = [
        f"Model: {len(engine.names)} classes, {engine.imgsz} px, {engine.backend} in {engine.precision}",
        f"Serving at {address} until Ctrl-C: open it in a browser, or for example",
        f"  curl -H 'Content-Type: image/jpeg' --data-binary @picture.jpg {address}/api/v1/detect",
        f"The API: {address}/api/v1/openapi.json",
    ]
    if config.public and not config.certificate:
        lines.append("Without --certificate passwords and pictures can be read by whoever listens on the way.")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _tls(config: ServeConfig) -> ssl.SSLContext | None:
    if config.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.certificate, config.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"cannot be used as a certificate ({error.strerror or error})",
            file=config.certificate,
            key="certificate",
            cure="Name a PEM file with the certificate and its key, or the key by --key.",
        ) from error
    return context
