"""`manyeyes models` as a person types it, on a registry of real models and beside a server that runs."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manyeyes import cli
from manyeyes.errors import WeightsError
from manyeyes.registry import MODELS, Made, Registry
from manyeyes.web.settings import ServeConfig

from .conftest import started

API = "/api/v1"
DAY = 86_400

Models = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def filled(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a server with one model from a file and three of a federation, a day apart; only copied."""
    import onnx

    state = tmp_path_factory.mktemp("filled") / "serve"
    registry, model = Registry(state / MODELS), onnx.load(onnx_file)
    parents: tuple[str, ...] = ()
    for number in range(4):
        model.producer_name = str(number)
        path = state.parent / f"own_{number}.onnx"
        onnx.save(model, path)
        made = Made("harbour", number, 0.5 + number / 10, parents, 0.4, "test") if number else None
        entry = registry.add(path, label=f"harbour, round {number}" if number else None, made=made)
        parents = (entry.hash,)
    return state


@pytest.fixture
def state(filled: Path, tmp_path: Path) -> Path:
    return shutil.copytree(filled, tmp_path / "serve")


@pytest.fixture
def hashes(state: Path) -> list[str]:
    """From the oldest to the newest."""
    return [entry.hash for entry in reversed(Registry(state / MODELS).entries())]


@pytest.fixture
def models(state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Models:
    def call(*arguments: object) -> tuple[int, str, str]:
        """Run `manyeyes models ARGUMENTS`: exit code, standard output, standard error."""
        monkeypatch.setattr(sys, "argv", ["manyeyes", "models", *map(str, arguments), "--state", str(state)])
        monkeypatch.setenv("COLUMNS", "160")
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call


def listed(models: Models) -> dict[str, dict[str, Any]]:
    code, out, _ = models("list", "--json")
    assert code == 0
    return {model["hash"]: model for model in json.loads(out)["models"]}


def put_to_use(state: Path, *names: str) -> None:
    for name in names:
        Registry(state / MODELS).use(name)


def test_the_list_says_where_each_model_comes_from_and_which_is_used(
    models: Models, state: Path, hashes: list[str]
) -> None:
    put_to_use(state, hashes[0], hashes[2])
    Registry(state / MODELS).hold({"night": hashes[0]})
    code, out, _ = models("list")
    assert code == 0
    rows = {line.split()[0]: " ".join(line.split()) for line in out.splitlines() if line[:12].strip() in _short(hashes)}
    assert list(rows) == _short(reversed(hashes))
    assert f"{hashes[2][:12]} in use 0.700 federation harbour, round 2 {hashes[1][:12]}" in rows[hashes[2][:12]]
    assert "used before, night file own_0.onnx" in rows[hashes[0][:12]]
    assert "use" not in rows[hashes[3][:12]]
    values = listed(models)[hashes[2]]
    assert (values["run"], values["round"], values["map50"], values["parents"]) == ("harbour", 2, 0.7, [hashes[1]])
    assert (values["in_use"], values["promoted"], values["origin"]) == (True, True, "federation")


def _short(hashes: Any) -> list[str]:
    return [name[:12] for name in hashes]


def test_one_model_is_shown_whole(models: Models, hashes: list[str]) -> None:
    code, out, _ = models("show", hashes[1][:8])
    assert code == 0
    for words in (
        hashes[1],
        "never used",
        "0.600 on this site's test pictures",
        "mAP50-95   0.400",
        hashes[0],
        "person, car",
    ):
        assert words in out
    assert json.loads(models("show", hashes[1][:8], "--json")[1])["label"] == "harbour, round 1"


def test_a_model_is_put_to_use_by_the_beginning_of_its_hash_and_taken_back(
    models: Models, state: Path, hashes: list[str]
) -> None:
    put_to_use(state, hashes[0])
    assert models("promote", hashes[2][:8])[0] == 0
    assert [name for name, model in listed(models).items() if model["in_use"]] == [hashes[2]]
    assert models("rollback")[0] == 0
    assert [name for name, model in listed(models).items() if model["in_use"]] == [hashes[0]]
    code, _, said = models("rollback")
    assert (code, "there is no model to go back to: this one is the first" in said) == (2, True)


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.1)


def test_a_server_that_runs_follows(models: Models, state: Path, hashes: list[str], pictures: list[Path]) -> None:
    put_to_use(state, hashes[0])
    with started(ServeConfig(state=state, threads=1, backend="openvino", precision="fp32")) as server:

        def looks() -> str:
            return str(server.client.post(f"{API}/detect", content=pictures[0].read_bytes()).json()["model"])

        assert looks() == hashes[0]
        models("promote", hashes[3])
        until(lambda: looks() == hashes[3])
        models("promote", hashes[1])
        until(lambda: looks() == hashes[1])
        models("rollback")
        until(lambda: looks() == hashes[3])
        assert server.client.get(f"{API}/status").json()["taken_back"] == 0
        # What nobody needs can go while it runs.
        assert models("forget", hashes[1])[0] == 0
        assert hashes[1] not in {model["hash"] for model in server.client.get(f"{API}/models").json()}
        assert looks() == hashes[3]


def test_what_is_needed_is_not_forgotten(models: Models, state: Path, hashes: list[str]) -> None:
    put_to_use(state, hashes[3], hashes[0], hashes[1])
    Registry(state / MODELS).hold({"second opinion": hashes[2]})
    reasons = {1: "the model in use", 0: "the model to go back to", 2: "the model for the second opinion"}
    for number, reason in reasons.items():
        code, _, said = models("forget", hashes[number])
        assert code == 2
        assert f"is {reason}, and stays. Put another model to use first." in said
        assert hashes[number] in said
    # Also if only one of several must stay: either all go, or none.
    assert models("forget", hashes[3], hashes[1])[0] == 2
    assert set(listed(models)) == set(hashes)
    assert models("forget", hashes[3])[0] == 0
    assert set(listed(models)) == set(hashes[:3])
    assert sorted(path.name for path in (state / MODELS).iterdir() if path.is_dir()) == sorted(hashes[:3])


def test_nothing_is_forgotten_while_it_is_not_known_what_is_in_use(
    models: Models, state: Path, hashes: list[str]
) -> None:
    (state / MODELS / "use.json").write_text("[")
    for arguments in ((hashes[0],), ("--keep", 1, "--yes")):
        code, _, said = models("forget", *arguments)
        assert (code, "use.json: is damaged. Say which model is to be used" in said) == (2, True)
    put_to_use(state, hashes[3])
    # A damaged one that nobody needs can go as any other.
    (state / MODELS / hashes[0] / "about.json").write_text("{")
    assert models("forget", hashes[0])[0] == 0
    assert models("list")[0] == 0


def test_by_a_rule_those_go_first_that_were_never_used(models: Models, state: Path, hashes: list[str]) -> None:
    put_to_use(state, hashes[0], hashes[1], hashes[2])
    Registry(state / MODELS).use(hashes[1])  # now used: 1, 2, 0; never: 3, which is the newest
    assert json.loads(models("forget", "--keep", 1, "--dry-run", "--json")[1]) == [hashes[0]]
    assert set(listed(models)) == set(hashes)
    code, _, said = models("forget", "--keep", 1)
    assert (code, "Say --yes, or look at --dry-run." in said) == (2, True)
    assert models("forget", "--keep", 3, "--yes")[0] == 0
    assert set(listed(models)) == set(hashes[1:])
    assert json.loads(models("forget", "--keep", 3, "--json", "--yes")[1]) == []


def test_old_models_go_by_their_age(models: Models, state: Path, hashes: list[str], onnx_file: Path) -> None:
    put_to_use(state, hashes[3])
    registry, now = Registry(state / MODELS), time.time()
    for age, name in zip((40, 20, 10, 0), hashes, strict=True):
        entry = registry.entry(name)
        _write_about(state, name, added=now - age * DAY, label=entry.label)
    assert json.loads(models("forget", "--older-than", 15, "--dry-run", "--json")[1]) == hashes[:2]
    assert models("forget", "--older-than", 30.5, "--yes")[0] == 0
    assert set(listed(models)) == set(hashes[1:])


def _write_about(state: Path, name: str, **changes: Any) -> None:
    """As an earlier version wrote it, which said nothing that a change shows by."""
    about = state / MODELS / name / "about.json"
    values = {**json.loads(about.read_text()), **changes}
    for key in ("digest", "run", "map50", "parents"):
        del values[key]
    about.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "ffffffff0"), "no model here: hash begins with 'ffffffff0'"),
        (("promote", "nothing"), "no model here: hash begins with 'nothing'"),
        (("forget",), "HASH: needs either hashes or a rule. Name models, or say --older-than or --keep."),
        (("forget", "0", "--keep", 3), "needs either hashes or a rule"),
        (("rollback",), "there is no model to go back to"),
    ],
)
def test_what_cannot_be_done_is_said(models: Models, arguments: tuple[object, ...], said: str) -> None:
    code, _, error = models(*arguments)
    assert code == 2
    assert said in error


def test_a_folder_without_models_is_named(models: Models, state: Path) -> None:
    shutil.rmtree(state / MODELS)
    code, _, said = models("list")
    assert code == 2
    assert f"{state}: --state: holds no models. Name the state folder of a server." in said
    assert not (state / MODELS).exists()


def test_a_model_that_fails_its_test_is_not_put_to_use(models: Models, state: Path, hashes: list[str]) -> None:
    put_to_use(state, hashes[0])
    broken = _no_numbers(state / MODELS / hashes[3] / "model.onnx", state.parent / "broken.onnx")
    name = Registry(state / MODELS).add(broken).hash
    code, _, said = models("promote", name)
    assert code == 2
    assert "fails its test" in said
    assert listed(models)[hashes[0]]["in_use"]


def _no_numbers(path: Path, out: Path) -> Path:
    """A model whose weights are no numbers."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, np.nan), tensor.name))
    onnx.save(model, out)
    return out


def _appended(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _said_of(folder: Path, **changes: Any) -> None:
    about = folder / "about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), **changes}))


MEND = "Delete the folder FOLDER and add the model again."
SAY = "Say which model is to be used: `manyeyes models promote HASH`."
UNKNOWN = "f" * 64
# What is done to the model in use, or to the list that names it → which file is named, why, and what helps.
TAMPERED: dict[str, tuple[Callable[[Path, str], object], str, str, str]] = {
    "model file changed": (
        lambda m, h: _appended(m / h / "model.onnx"),
        "HASH/model.onnx",
        "was changed since it was added: its hash is another",
        MEND,
    ),
    "model file gone": (lambda m, h: (m / h / "model.onnx").unlink(), "HASH", "model.xml is missing", "Name an .onnx"),
    "mAP50 embellished": (
        lambda m, h: _said_of(m / h, map50=0.99),
        "HASH/about.json",
        "was changed since it was written",
        MEND,
    ),
    "another run claimed": (
        lambda m, h: _said_of(m / h, run="other"),
        "HASH/about.json",
        "was changed since it was written",
        MEND,
    ),
    "another hash claimed": (
        lambda m, h: _said_of(m / h, hash=UNKNOWN),
        "HASH/about.json",
        "was changed since it was written",
        MEND,
    ),
    "about.json no JSON": (lambda m, h: (m / h / "about.json").write_text("{"), "HASH/about.json", "is damaged", MEND),
    "about.json gone": (lambda m, h: (m / h / "about.json").unlink(), "HASH/about.json", "is damaged", MEND),
    "use.json no JSON": (lambda m, h: (m / "use.json").write_text("["), "use.json", "is damaged", SAY),
    "use.json of other things": (
        lambda m, h: (m / "use.json").write_text('["../../etc"]'),
        "use.json",
        "is damaged",
        SAY,
    ),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_what_was_tampered_with_is_said_and_the_server_goes_on_with_what_it_has(
    models: Models, state: Path, hashes: list[str], pictures: list[Path], case: str
) -> None:
    put_to_use(state, hashes[0], hashes[1])
    tamper, file, reason, cure = TAMPERED[case]
    data = pictures[0].read_bytes()
    with started(ServeConfig(state=state, threads=1, backend="openvino", precision="fp32")) as server:
        tamper(state / MODELS, hashes[1])
        server.edge.host.follow()
        assert server.client.post(f"{API}/detect", content=data).json()["model"] == hashes[1]
        status = server.client.get(f"{API}/status").json()
        assert (status["model"], status["model_changes"], status["taken_back"]) == (hashes[1], 0, 0)
        shown = {model["hash"]: model["in_use"] for model in server.client.get(f"{API}/models").json()}
        assert shown.get(hashes[1], True)
        assert not any(shown[name] for name in shown if name != hashes[1])
        code, out, _ = models("list", "--json")
        folder = state / MODELS
        damaged = json.loads(out)["damaged"]
        assert (code, len(damaged)) == (2, 1)
        assert damaged[0]["file"] == str(folder / file.replace("HASH", hashes[1]))
        assert damaged[0]["reason"] == reason
        assert cure.replace("FOLDER", str(folder / hashes[1])) in damaged[0]["cure"]
        assert f"Damaged: {damaged[0]['file']}: {reason}" in models("list")[1]
        # Nothing else was lost, and another model can be put to use.
        assert models("promote", hashes[2])[0] == 0
        until(lambda: server.client.get(f"{API}/status").json()["model"] == hashes[2])
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(hashes)


def test_a_list_that_names_what_is_not_here_is_put_right_by_the_server(
    models: Models, state: Path, hashes: list[str], pictures: list[Path]
) -> None:
    put_to_use(state, hashes[0], hashes[1])
    with started(ServeConfig(state=state, threads=1, backend="openvino", precision="fp32")) as server:
        use = state / MODELS / "use.json"
        use.write_text(json.dumps([UNKNOWN, hashes[0]]))
        until(lambda: server.client.get(f"{API}/status").json()["taken_back"] == 1)
        assert server.client.get(f"{API}/status").json()["model"] == hashes[1]
        assert Registry(state / MODELS).used == [hashes[1], hashes[0]]


@pytest.mark.parametrize("file", ["model.onnx", "about.json"])
def test_a_server_starts_with_the_model_before_one_that_was_tampered_with(
    state: Path, hashes: list[str], file: str
) -> None:
    put_to_use(state, hashes[0], hashes[1])
    _appended(state / MODELS / hashes[1] / file)
    with started(ServeConfig(state=state, threads=1, backend="openvino", precision="fp32")) as server:
        assert server.client.get(f"{API}/status").json()["model"] == hashes[0]


def test_a_server_starts_with_the_model_before_one_that_fails_its_test(state: Path, hashes: list[str]) -> None:
    broken = _no_numbers(state / MODELS / hashes[3] / "model.onnx", state.parent / "broken.onnx")
    name = Registry(state / MODELS).add(broken).hash
    put_to_use(state, hashes[0], name)
    config = ServeConfig(state=state, threads=1, backend="openvino", precision="fp32")
    with started(config) as server:
        assert server.client.get(f"{API}/status").json()["model"] == hashes[0]
    assert Registry(state / MODELS).wanted == hashes[0]
    # With none before it, that is said.
    (state / MODELS / "use.json").unlink()
    put_to_use(state, name)
    with pytest.raises(WeightsError, match="fails its test"), started(config):
        pass


def test_a_server_follows_on_after_whatever_it_met_in_the_registry(
    models: Models, state: Path, hashes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_to_use(state, hashes[0])
    damage, met = Registry.damage, []

    def failing(self: Registry) -> list[WeightsError]:
        met.append(1)
        if len(met) == 1:
            raise OSError("the disk does not answer")
        return damage(self)

    monkeypatch.setattr(Registry, "damage", failing)
    with started(ServeConfig(state=state, threads=1, backend="openvino", precision="fp32")) as server:
        until(lambda: len(met) > 0)
        models("promote", hashes[1])
        until(lambda: server.client.get(f"{API}/status").json()["model"] == hashes[1])


def test_a_server_does_not_guess_what_a_damaged_list_named(state: Path, hashes: list[str]) -> None:
    put_to_use(state, hashes[0])
    (state / MODELS / "use.json").write_text("[")
    config = ServeConfig(state=state, threads=1, backend="openvino", precision="fp32")
    with pytest.raises(WeightsError, match=r"use\.json: is damaged\. Say which model"), started(config):
        pass
    assert (state / MODELS / "use.json").read_text() == "["


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said(models: Models, state: Path, hashes: list[str]) -> None:
    (state / MODELS).chmod(0o500)
    code, _, said = models("promote", hashes[0])
    (state / MODELS).chmod(0o700)
    assert (code, "cannot be written" in said) == (2, True)
