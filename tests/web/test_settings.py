from __future__ import annotations

from pathlib import Path

import pytest

from manyeyes.errors import ConfigError
from manyeyes.web.settings import ServeConfig, load_serve_config

EXAMPLE = Path(__file__).parents[2] / "configs" / "serve.yaml"


def test_the_example_holds_the_defaults() -> None:
    config = load_serve_config(EXAMPLE, {})
    assert config.model == EXAMPLE.parent / "final.onnx"
    assert config.model_copy(update={"model": None}) == ServeConfig()


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("model: a.onnx\nport: 6000\nnight: {model: n.onnx, hours: '20:00-06:00'}\n")
    config = load_serve_config(file, {"model": Path("b.onnx"), "port": None}, ["limits.zip_bytes=5MB", "port=7000"])
    assert (config.model, config.port, config.limits.zip_bytes) == (Path("b.onnx"), 7000, 5_000_000)
    assert config.night is not None
    assert config.night.model == tmp_path / "n.onnx"
    assert load_serve_config(None, {"port": 1234}).port == 1234


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 5001", r"serve\.yaml: prot: unknown key\. Did you mean 'port'\?"),
        ("port: 70000", r"serve\.yaml: port: .*65535"),
        ("limits: {zip_bytes: many}", r"serve\.yaml: limits\.zip_bytes"),
        ("limits: {zipbytes: 1}", r"limits\.zipbytes: unknown key\. Did you mean 'zip_bytes'"),
        ("night: {model: n.onnx, hours: [late]}", r"night\.hours.*must be hours of the day"),
        ("night: {model: n.onnx, darker_than: 300}", r"night\.darker_than"),
        ("key: k.pem", "key needs certificate"),
        ("streams: {a: 0}", r"streams\.a"),
        ("streams: {a: 'file:///etc/passwd'}", "camera"),
        ("- a", "must hold keys and values"),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_serve_config(file, {})


@pytest.mark.parametrize(
    ("host", "public"), [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("box", True)]
)
def test_what_others_can_reach_is_public(host: str, public: bool) -> None:
    assert ServeConfig(host=host).public is public
