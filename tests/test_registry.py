"""The models of a site on its disk."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manyeyes.errors import WeightsError
from manyeyes.registry import Made, Registry
from manyeyes.runtime.model_file import file_hash


@pytest.fixture(scope="module")
def files(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One network in three files."""
    import onnx

    folder = tmp_path_factory.mktemp("models")
    model = onnx.load(onnx_file)
    for name in "abc":
        model.producer_name = name
        onnx.save(model, folder / f"{name}.onnx")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def filled(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of them; only copied."""
    folder = tmp_path_factory.mktemp("filled") / "models"
    registry = Registry(folder)
    for path in files:
        registry.add(path)
    return folder


@pytest.fixture
def registry(filled: Path, tmp_path: Path) -> Registry:
    return Registry(shutil.copytree(filled, tmp_path / "models"))


def folder_of(registry: Registry) -> Path:
    return registry.measured.parent


def test_a_model_is_known_by_the_hash_of_its_file(registry: Registry, files: list[Path]) -> None:
    entries = registry.entries()
    assert {entry.hash for entry in entries} == {file_hash(path) for path in files}
    assert {entry.label for entry in entries} == {"a.onnx", "b.onnx", "c.onnx"}
    for entry in entries:
        assert entry.info.names == ("person", "car")
        assert entry.num_bytes == registry.path(entry.hash).stat().st_size
        assert file_hash(registry.path(entry.hash)) == entry.hash


def test_the_newest_is_the_first(registry: Registry, files: list[Path]) -> None:
    assert [entry.label for entry in registry.entries()] == ["c.onnx", "b.onnx", "a.onnx"]


def test_adding_it_again_changes_nothing(registry: Registry, files: list[Path]) -> None:
    before = registry.entries()
    assert registry.add(files[0], label="another") == next(entry for entry in before if entry.label == "a.onnx")
    assert registry.entries() == before


def test_it_is_known_how_a_model_was_made(registry: Registry, files: list[Path], tmp_path: Path) -> None:
    made = Registry(tmp_path / "others")
    parent = made.add(files[0]).hash
    made.add(files[1], label="streets, round 3", made=Made("streets", 3, 0.625, (parent,)))
    child = Registry(tmp_path / "others").entries()[0]
    assert (child.label, child.run, child.round, child.map50, child.parents) == (
        "streets, round 3",
        "streets",
        3,
        0.625,
        (parent,),
    )
    # What an earlier version wrote says nothing of all this.
    about = tmp_path / "others" / parent / "about.json"
    values = {
        key: value
        for key, value in json.loads(about.read_text()).items()
        if key not in ("run", "map50", "parents", "digest")
    }
    about.write_text(json.dumps(values))
    assert made.entry(parent).run is None


def test_the_model_is_a_copy(registry: Registry, files: list[Path], tmp_path: Path) -> None:
    mine = shutil.copy(files[0], tmp_path / "mine.onnx")
    entry = registry.add(Path(mine))
    Path(mine).write_bytes(b"")
    assert registry.path(entry.hash).stat().st_size == entry.num_bytes


def test_the_beginning_of_a_hash_is_enough_if_no_other_begins_so(registry: Registry) -> None:
    name = registry.entries()[0].hash
    assert registry.entry(name[:12]).hash == registry.entry(name.upper()).hash == name
    for wrong in ("", "x", "../..", name + "0", "0" * 64):
        with pytest.raises(WeightsError, match="no model here"):
            registry.entry(wrong)


def test_what_is_no_model_of_ours_is_not_taken(registry: Registry, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.onnx"
    rubbish.write_bytes(b"\x80\x04cos\nsystem\n.")
    for path in (rubbish, tmp_path / "nothing.onnx", tmp_path / "weights.pt", tmp_path):
        with pytest.raises(WeightsError):
            registry.add(path)
    assert len(registry.entries()) == 3
    assert not [path for path in folder_of(registry).iterdir() if path.name.startswith(".")]


def test_a_changed_file_is_not_given_out_and_is_mended_by_adding_it_again(
    registry: Registry, files: list[Path]
) -> None:
    entry = registry.entries()[-1]
    path = registry.path(entry.hash)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(WeightsError, match="was changed since it was added"):
        registry.path(entry.hash)
    assert registry.add(files[0]).hash == entry.hash
    assert file_hash(registry.path(entry.hash)) == entry.hash


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"hash": "' + b"0" * 64])
def test_a_damaged_entry_is_passed_over_and_mended_by_adding_it_again(
    registry: Registry, files: list[Path], content: bytes
) -> None:
    entry = registry.entries()[-1]
    (folder_of(registry) / entry.hash / "about.json").write_bytes(content)
    assert len(registry.entries()) == 2
    assert registry.add(files[0]).hash == entry.hash
    assert len(registry.entries()) == 3


def test_an_entry_that_speaks_of_another_model_is_passed_over(registry: Registry) -> None:
    first, second, _ = (folder_of(registry) / entry.hash / "about.json" for entry in registry.entries())
    shutil.copy(first, second)
    assert len(registry.entries()) == 2


def test_what_else_lies_in_the_folder_is_no_model(registry: Registry) -> None:
    for name in ("notes", "A" * 64, "0" * 63, "..."):
        (folder_of(registry) / name).mkdir()
        shutil.copy(folder_of(registry) / registry.entries()[0].hash / "about.json", folder_of(registry) / name)
    assert len(registry.entries()) == 3


def test_one_goes_back_in_the_order_in_which_models_were_used(registry: Registry) -> None:
    a, b, c = (entry.hash for entry in reversed(registry.entries()))
    for name in (a, b, c, b):
        registry.use(name)
    assert registry.used == [b, c, a]
    assert Registry(folder_of(registry)).used == [b, c, a]
    registry.drop_used()
    registry.drop_used()
    assert registry.used == [a]
    with pytest.raises(WeightsError, match="this one is the first"):
        registry.drop_used()


def test_a_model_that_was_deleted_is_not_gone_back_to(registry: Registry) -> None:
    a, b, c = (entry.hash for entry in reversed(registry.entries()))
    for name in (a, b, c):
        registry.use(name)
    shutil.rmtree(folder_of(registry) / b)
    assert registry.used == [c, a]
    with pytest.raises(WeightsError):
        registry.use(b)


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "3", "null", '"abc"', "[[]]", "[{}, 1, null]", '["../.."]', "[" * 100_000]
)
def test_a_damaged_list_of_used_models_is_as_good_as_none(registry: Registry, text: str) -> None:
    (folder_of(registry) / "use.json").write_text(text)
    assert registry.used == []
    name = registry.entries()[0].hash
    registry.use(name)
    assert registry.used == [name]


def test_an_empty_site_has_no_models(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "none")
    assert (registry.entries(), registry.used) == ([], [])
    with pytest.raises(WeightsError):
        registry.path("0" * 64)
    assert not (tmp_path / "none").exists()


def test_many_may_add_and_use_at_the_same_time(files: list[Path], tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models")
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for path in files[number % 3 :] + files[: number % 3]:
                registry.use(registry.add(path).hash)
                assert registry.used
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(registry.entries()) == len(registry.used) == 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.integers(0, 2), st.none()), max_size=12))
def test_used_models_are_a_list_without_repetition(registry: Registry, steps: list[int | None]) -> None:
    (folder_of(registry) / "use.json").unlink(missing_ok=True)
    names = sorted(entry.hash for entry in registry.entries())
    expected: list[str] = []
    for step in steps:
        if step is not None:
            registry.use(names[step])
            expected = [names[step], *(name for name in expected if name != names[step])]
        elif len(expected) > 1:
            registry.drop_used()
            expected.pop(0)
        assert registry.used == expected
    if expected:
        assert json.loads((folder_of(registry) / "use.json").read_text())["used"] == expected


def test_what_an_earlier_version_wrote_of_used_models_still_holds(registry: Registry) -> None:
    names = [entry.hash for entry in registry.entries()]
    (folder_of(registry) / "use.json").write_text(json.dumps(names[:2]))
    assert registry.used == names[:2]
    assert registry.damage() == []


def damage_of(registry: Registry) -> str:
    return "\n".join(map(str, registry.damage()))


def test_a_list_of_used_models_that_was_changed_or_deleted_is_damage_and_says_nothing(registry: Registry) -> None:
    names = [entry.hash for entry in registry.entries()]
    use = folder_of(registry) / "use.json"
    registry.use(names[0])
    use.write_text(use.read_text().replace(names[0], names[1]))
    assert registry.used == []
    assert "use.json: was changed since it was written. Say which model" in damage_of(registry)
    registry.use(names[0])
    assert registry.damage() == []
    use.unlink()
    assert "use.json: is missing. Say which model is to be used" in damage_of(registry)
    with pytest.raises(WeightsError, match="is missing"):
        registry.forget(names[1])
    registry.use(names[0])
    assert registry.damage() == []


def test_a_site_that_has_used_no_model_yet_is_whole(files: list[Path], tmp_path: Path) -> None:
    registry = Registry(tmp_path / "models")
    registry.add(files[0])
    registry.check_used()
    assert (registry.damage(), registry.used, registry.wanted) == ([], [], None)


@pytest.mark.parametrize("changes", [{"map50": 0.99}, {"added": 1e308}, {"added": -1.0}])
def test_an_entry_without_its_digest_is_damaged(registry: Registry, changes: dict[str, float]) -> None:
    name = registry.entries()[0].hash
    about = folder_of(registry) / name / "about.json"
    values = {**json.loads(about.read_text()), **changes}
    del values["digest"]
    about.write_text(json.dumps(values))
    assert len(registry.entries()) == 2
    assert f"{name}/about.json: " in damage_of(registry)
    with pytest.raises(WeightsError, match=r"about\.json: "):  # not: there is no such model
        registry.entry(name)


def test_what_the_server_needs_is_not_forgotten_when_it_cannot_be_read_what_that_is(registry: Registry) -> None:
    held = folder_of(registry) / "held.json"
    night = registry.entries()[1].hash
    registry.hold({"night": night})
    held.write_text("[")
    assert "held.json: is damaged. Start the server again: it writes the file anew." in damage_of(registry)
    with pytest.raises(WeightsError, match=r"held\.json: is damaged"):
        registry.forget(night)
    with pytest.raises(WeightsError, match=r"held\.json: is damaged"):
        registry.spare(keep=1)
    registry.hold({})
    assert registry.damage() == []


@pytest.mark.parametrize("file", ["model.onnx", "about.json"])
def test_a_file_that_cannot_be_read_is_named_and_the_others_are_listed(registry: Registry, file: str) -> None:
    name = registry.entries()[0].hash
    path = folder_of(registry) / name / file
    path.unlink()
    path.symlink_to(path.name)  # a file that even root cannot open
    (error,) = registry.damage()
    assert name in str(error.file)
    assert len(registry.entries()) >= 2
    with pytest.raises(WeightsError):
        registry.path(name)


def test_why_a_file_cannot_be_read_is_said_without_the_advice_to_delete_it(registry: Registry) -> None:
    use = folder_of(registry) / "use.json"
    use.unlink()
    use.mkdir()
    assert "use.json: cannot be read (Is a directory). See to its permissions, and to the disk." in damage_of(registry)


def test_what_a_killed_process_left_is_in_nobodys_way(registry: Registry, files: list[Path]) -> None:
    folder = folder_of(registry)
    a, b, c = (entry.hash for entry in reversed(registry.entries()))
    for left in (f".{a}", ".adding-killed"):
        (folder / left / "inside").mkdir(parents=True)
    (folder / ".mine").mkdir()
    outside = shutil.move(folder / b, folder.parent / "outside")
    (folder / b).symlink_to(outside)
    shutil.rmtree(folder / c)
    (folder / c).write_text("a plain file")
    for name in (a, b, c):
        assert registry.forget(name) == name
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == [".mine"]
    assert (outside / "model.onnx").exists()
    (folder / c).write_text("a plain file")
    assert registry.add(files[2]).hash == c
    assert registry.path(c).is_file()


def test_a_model_that_changes_while_it_is_copied_does_not_enter(
    registry: Registry, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Path(shutil.copy(files[0], tmp_path / "mine.onnx"))
    shutil.rmtree(folder_of(registry) / file_hash(mine))
    copy = shutil.copyfile

    def late(source: Path, target: Path) -> None:
        source.write_bytes(files[1].read_bytes())
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", late)
    with pytest.raises(WeightsError, match="was changed while it was copied"):
        registry.add(mine)
    assert len(registry.entries()) == 2
    assert registry.damage() == []


def test_what_is_forgotten_while_it_is_looked_at_is_no_damage(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = registry.entries()[0].hash
    path = Registry.path

    def late(self: Registry, asked: str) -> Path:
        if asked == name:
            shutil.rmtree(folder_of(self) / name)
        return path(self, asked)

    monkeypatch.setattr(Registry, "path", late)
    assert registry.damage() == []
