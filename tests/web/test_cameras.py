"""Which cameras may be named, and by whom."""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.errors import ConfigError, DataError
from manyeyes.web.cameras import camera_of_network, checked_camera
from manyeyes.web.settings import load_serve_config


def leading_to(*addresses: str) -> Any:
    """A name server that gives these addresses for every name; for an address, itself."""

    def resolve(host: str, port: int) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            if not addresses:
                raise OSError("no such name") from None
            return list(addresses)

    return resolve


@pytest.mark.parametrize("source", ["0", "12", "/dev/video0", "/dev/video12"])
def test_a_camera_of_this_machine_is_one(source: str) -> None:
    assert checked_camera(source) == camera_of_network(source, leading_to()) == source


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://10.0.0.7/live",
        "rtsp://10.0.0.7:8554/live?channel=1&subtype=0",
        "rtsps://user:p%40ss@192.168.1.20:322/cam",
        "http://172.16.0.4:8080/video.mjpg",
        "https://[fd00::7]/live",
        "rtsp://100.64.1.2/tailnet",
        "rtsp://[64:ff9b::a00:7]/live",
    ],
)
def test_an_address_in_the_network_is_one(source: str) -> None:
    assert checked_camera(source) == camera_of_network(source, leading_to()) == source


def test_a_name_becomes_the_address_that_was_checked_and_all_else_stays() -> None:
    resolve = leading_to("192.168.1.20")
    source = "rtsp://user:a:b@gate.example:8554/live/1?x=http://10.0.0.1/&y=%20"
    assert camera_of_network(source, resolve) == source.replace("gate.example", "192.168.1.20")
    assert camera_of_network("RTSP://Gate.Example/live", resolve) == "rtsp://192.168.1.20/live"
    assert camera_of_network("http://gate.example/", leading_to("fd00::7")) == "http://[fd00::7]/"
    assert checked_camera(source) == source


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "169.254.1.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "224.0.0.251",
        "255.255.255.255",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "ff02::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:0:0:0:0:0:80ff:fffe",
    ],
)
def test_a_name_that_leads_where_no_camera_is_does_not_become_one(address: str) -> None:
    for addresses in ([address], ["192.168.1.20", address], [address, "192.168.1.20"]):
        with pytest.raises(DataError, match="leads to this machine itself"):
            camera_of_network("rtsp://gate.example/live", leading_to(*addresses))


def test_a_name_that_nobody_knows_is_told() -> None:
    with pytest.raises(DataError, match="cannot be found"):
        camera_of_network("rtsp://gate.example/live", leading_to())


WRONG = [
    "",
    " 0",
    "0 ",
    "٣",
    "100",
    "-1",
    "0x0",
    "/dev/video",
    "/dev/video0/../sda",
    "/dev/video0\n",
    "video.mp4",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "concat:a|b",
    "rtmp://10.0.0.7/live",
    "udp://10.0.0.7",
    "rtsp+http://10.0.0.7",
    "crypto:http://10.0.0.7",
    "http:",
    "http:/10.0.0.7",
    "http:///x",
    "http://",
    "http://:80/",
    "http://user@/",
    "http://10.0.0.7:0/",
    "http://10.0.0.7:99999/",
    "http://10.0.0.7:80a/",
    "http://[10.0.0.7]/",
    "http://[::1",
    "http://[fd00::1%25eth0]/",
    "http://10.0.0.7 /",
    "http://10.0.0.7/\t",
    "http://10.0.0.7\\@evil.example/",
    "http://10.0.0.7/a|b",
    'http://10.0.0.7/"',
    "http://10.0.0.7/<x>",
    "http://10.0.0.7/\u202e",
    "http://ex\u00e4mple/",
    "http://-i/",
    "http://_/",
    " http://10.0.0.7/",
    "\x00http://10.0.0.7/",
    "ht\ntp://10.0.0.7/",
    "http://" + "a" * 254,
    "http://10.0.0.7/" + "a" * 1000,
]


@pytest.mark.parametrize("source", WRONG)
def test_what_is_no_camera_is_none_for_anybody(source: str) -> None:
    for check in (checked_camera, lambda text: camera_of_network(text, leading_to("10.0.0.7"))):
        with pytest.raises(DataError, match="is no camera"):
            check(source)


def test_a_password_in_an_address_is_not_told_again() -> None:
    for source in ("rtsp://boss:hunter2@127.0.0.1/", "rtsp://boss:hunter2@no.example/", "ftp://boss:hunter2@10.0.0.1/"):
        with pytest.raises(DataError) as refused:
            camera_of_network(source, leading_to())
        assert "hunter2" not in str(refused.value)


def test_no_text_keeps_it_busy() -> None:
    began = time.monotonic()
    for text in ("a" * 900 + "!", "a-" * 400, "a." * 400 + "\n", "[" * 900, "@" * 900, ":" * 900):
        with pytest.raises(DataError):
            camera_of_network(f"http://{text}", leading_to("10.0.0.7"))
    assert time.monotonic() - began < 1


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40), st.from_regex(r"(rtsp|http|https|file)://[a-z0-9.:@\[\]/?#%|-]{0,30}", fullmatch=True)
    )
)
def test_what_is_taken_leads_to_the_address_that_was_checked(source: str) -> None:
    try:
        taken = camera_of_network(source, leading_to("10.0.0.7"))
    except DataError:
        return
    assert checked_camera(taken) == taken
    assert taken.isdecimal() or taken.startswith(("/dev/video", "rtsp://", "rtsps://", "http://", "https://"))
    if "://" in taken:
        place = taken.partition("://")[2]
        for end in "/?#":
            place = place.partition(end)[0]
        host = place.rpartition("@")[2]
        host = host[1 : host.index("]")] if host.startswith("[") else host.partition(":")[0]
        address = ipaddress.ip_address(host)
        wrong = (address.is_loopback, address.is_link_local, address.is_unspecified, address.is_multicast)
        assert not any(wrong)


def config_with(folder: Path, streams: str) -> Path:
    path = folder / "serve.yaml"
    path.write_text(f"streams: {streams}\n")
    return path


def test_the_configuration_may_name_what_only_this_machine_reaches(tmp_path: Path) -> None:
    path = config_with(tmp_path, "{gate: 'rtsp://user:pw@127.0.0.1:8554/live', desk: '0'}")
    assert load_serve_config(path, {}).streams == {"gate": "rtsp://user:pw@127.0.0.1:8554/live", "desk": "0"}


@pytest.mark.parametrize(
    "streams", ["{gate: 'file:///etc/passwd'}", "{'../gate': '0'}", "{'': '0'}", "{gate: 'a b:hunter2'}"]
)
def test_the_configuration_names_cameras_and_nothing_else(tmp_path: Path, streams: str) -> None:
    with pytest.raises(ConfigError, match="streams") as refused:
        load_serve_config(config_with(tmp_path, streams), {})
    assert "hunter2" not in str(refused.value)
