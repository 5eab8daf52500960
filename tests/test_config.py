from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from manyeyes.config import RunConfig, TrainSection, dump_config, load_config, parse_config
from manyeyes.errors import ConfigError

SITES = [{"node_id": "A", "data": "a"}, {"node_id": "B", "data": "b/data.yaml"}]
CONFIGS = Path(__file__).parents[1] / "configs"
# That of a server is another kind: see tests/web/test_settings.py.
SHIPPED = sorted(path for path in CONFIGS.glob("**/*.yaml") if path.name != "serve.yaml")


def write(folder: Path, **sections: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({"name": "two", "sites": SITES, **sections}))
    return path


def load(folder: Path, overrides: Sequence[str] = (), **sections: Any) -> RunConfig:
    return load_config(write(folder, **sections), overrides)


def refusal(folder: Path, overrides: Sequence[str] = (), **sections: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(folder, overrides, **sections)
    return caught.value


def test_there_are_shipped_configurations() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_survives_being_written_out(path: Path) -> None:
    config = load_config(path)
    again = parse_config(yaml.safe_load(dump_config(config)))
    assert dump_config(again) == dump_config(config)
    assert again.train == config.train
    assert again.federation == config.federation


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.train == TrainSection()
    assert config.federation.strategy.name == "fedavg"
    assert config.run_folder == Path("runs/two")


@pytest.mark.parametrize(
    ("sections", "key", "guess"),
    [
        ({"trian": {}}, "trian", "'train'"),
        ({"train": {"optimiser": "sgd"}}, "train.optimiser", "'optimizer'"),
        ({"train": {"augment": {"mosiac": 1}}}, "train.augment.mosiac", "'mosaic'"),
        ({"federation": {"round": 3}}, "federation.round", "'rounds'"),
        ({"sites": [{"node_id": "A", "dat": "a"}]}, "sites.0.dat", "'data'"),
        ({"federation": {"strategy": {"name": "fedavg", "server_lrr": 1}}}, "federation.strategy", "'server_lr'"),
        ({"federation": {"strategy": {"name": "fedavg", "mu": 1}}}, "federation.strategy.mu", "belongs to fedprox"),
        ({"federation": {"strategy": {"mu": 1}}}, "federation.strategy.mu", "belongs to fedprox"),
    ],
)
def test_an_unknown_key_is_named_with_file_place_and_what_was_meant(
    tmp_path: Path, sections: dict[str, Any], key: str, guess: str
) -> None:
    error = refusal(tmp_path, **sections)
    assert error.file == str(tmp_path / "run.yaml")
    assert error.key is not None
    assert error.key.startswith(key)
    assert guess in str(error)


def test_a_key_unlike_any_other_lists_the_known_ones(tmp_path: Path) -> None:
    assert "imgsz" in str(refusal(tmp_path, train={"zebra": 1}))


@pytest.mark.parametrize(
    "names", [("fraction", "min_nodes"), ("fraction_fit", "min_fit_clients")], ids=["ours", "flower's"]
)
def test_cohort_keys_have_the_names_flower_users_know(tmp_path: Path, names: tuple[str, str]) -> None:
    federation = load(tmp_path, federation={names[0]: 0.5, names[1]: 2}).federation
    assert (federation.fraction, federation.min_nodes) == (0.5, 2)


def test_two_names_of_one_thing_are_not_both_taken(tmp_path: Path) -> None:
    message = str(refusal(tmp_path, federation={"fraction": 0.5, "fraction_fit": 0.6}))
    assert "another name of 'fraction'" in message


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"])
def test_a_strategy_may_be_given_by_its_name_alone(tmp_path: Path, strategy: str) -> None:
    assert load(tmp_path, federation={"strategy": strategy}).federation.strategy.name == strategy
    assert load(tmp_path, [f"federation.strategy={strategy}"]).federation.strategy.name == strategy


def test_scaffold_is_refused_where_its_mean_gradient_cannot_be_told(tmp_path: Path) -> None:
    fitting = {"strategy": "scaffold", "weighting": "equal"}
    assert load(tmp_path, federation=fitting).federation.strategy.name == "scaffold"

    assert "set federation.weighting to equal" in str(refusal(tmp_path, federation={"strategy": "scaffold"}))
    for train, says in (({"optimizer": "adamw"}, "train.optimizer sgd"), ({"ema": 0.99}, "train.ema null")):
        assert f"scaffold needs {says}" in str(refusal(tmp_path, federation=fitting, train=train))
        assert load(tmp_path, federation={"strategy": "fedavg"}, train=train)


def test_models_are_mixed_only_where_their_statistics_may_be(tmp_path: Path) -> None:
    mixed = {"finetune_after": 2, "finetune_mix": 0.5}
    assert "needs train.batchnorm frozen" in str(refusal(tmp_path, federation=mixed))
    assert load(tmp_path, federation=mixed, train={"batchnorm": "frozen"}).federation.finetune_mix == 0.5


def test_a_strategy_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    error = refusal(tmp_path, federation={"strategy": "fedsgd"})
    assert error.key == "federation.strategy"
    assert "'fedprox'" in str(error)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.lr=0.01", lambda c: c.train.lr == 0.01),
        ("train.lr=1e-3", lambda c: c.train.lr == 0.001),
        ("train.augment.mosaic=0", lambda c: c.train.augment.mosaic == 0),
        ("train.clip_norm=null", lambda c: c.train.clip_norm is None),
        ("sites.1.node_id=C", lambda c: [s.node_id for s in c.sites] == ["A", "C"]),
        ("sites.0.annotates=[person, car]", lambda c: c.sites[0].annotates == ("person", "car")),
        ("compare=[together]", lambda c: c.compare == ("together",)),
        ("federation.strategy.mu=0.5", lambda c: c.federation.strategy.mu == 0.5),
        ("name=other", lambda c: c.name == "other"),
    ],
)
def test_a_set_option_wins_over_the_file(tmp_path: Path, override: str, read: Any) -> None:
    assert read(load(tmp_path, [override], train={"lr": 0.3}, federation={"strategy": "fedprox"}))


def test_a_set_option_reaches_a_section_that_stands_empty_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text() + "train:\n")
    assert load_config(path, ["train.lr=0.2"]).train.lr == 0.2
    assert load_config(path, ["train.augment.mosaic=0"]).train.augment.mosaic == 0


def test_a_set_option_may_follow_another(tmp_path: Path) -> None:
    strategy = load(tmp_path, ["federation.strategy=fedprox", "federation.strategy.mu=0.5"]).federation.strategy
    assert (strategy.name, getattr(strategy, "mu", None)) == ("fedprox", 0.5)


@pytest.mark.parametrize(
    "override",
    [
        "train.lr",
        "=3",
        "sites.9.data=x",
        "sites.-1.data=x",
        "sites.²=x",
        "sites.first.data=x",
        "name.x=1",
        "train.lr.x=1",
        "train.lr=[1",
        "train.optimiser=sgd",
        "sites=3",
    ],
)
def test_a_set_option_that_leads_nowhere_is_refused(tmp_path: Path, override: str) -> None:
    error = refusal(tmp_path, [override], train={"lr": 0.1})
    assert override.split("=")[0] in str(error)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"batch": 8, "accumulate": 3}}, "multiple of accumulate (3)"),
        ({"train": {"precision": "fp16", "device": "cpu"}}, "fp16 needs device cuda"),
        ({"train": {"imgsz": 100}}, "train.imgsz: Input should be a multiple of 32, got 100"),
        ({"train": {"imgsz": 32}}, "train.imgsz"),
        ({"train": {"lr": 0}}, "train.lr"),
        ({"train": {"lr": float("nan")}}, "train.lr: Input should be a finite number, got nan"),
        ({"train": {"momentum": float("inf")}}, "train.momentum"),
        ({"train": {"freeze": 23}}, "train.freeze"),
        ({"train": {"cache_views": 2}}, "needs freeze of at least 1"),
        ({"train": {"cache_views": 65, "freeze": 22}}, "train.cache_views"),
        ({"train": {"device": "tpu"}}, "train.device"),
        ({"train": None}, "train"),
        ({"federation": {"rounds": 0}}, "federation.rounds"),
        ({"federation": {"fraction": 0}}, "federation.fraction"),
        ({"federation": {"min_nodes": 3}}, "federation.min_nodes is 3, but there are 2 sites"),
        ({"federation": {"strategy": ["fedavg"]}}, "federation.strategy"),
        ({"sites": []}, "sites"),
        ({"sites": [*SITES, SITES[0]]}, "A stands twice"),
        ({"sites": [{"node_id": "../../etc", "data": "a"}]}, "sites.0.node_id"),
        ({"name": "a/b"}, "name"),
        ({"seed": -1}, "seed"),
        ({"compare": ["alone"]}, "compare must name 'together'"),
        ({"model": {"name": "yolov9"}}, "model.name"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_place(tmp_path: Path, sections: dict[str, Any], words: str) -> None:
    error = refusal(tmp_path, **sections)
    assert words in str(error)
    assert str(tmp_path / "run.yaml") in str(error)


def test_how_many_more_mistakes_follow_is_said(tmp_path: Path) -> None:
    assert "(1 more after it)" in str(refusal(tmp_path, train={"lr": -1, "batch": 0}))


def test_paths_are_relative_to_data_root_which_is_relative_to_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, data_root="pictures", model={"weights": "w/start.pt"})
    assert [site.data for site in config.sites] == [tmp_path / "pictures/a", tmp_path / "pictures/b/data.yaml"]
    assert config.model.weights == str(tmp_path / "pictures/w/start.pt")
    assert config.output == Path("runs")


def test_absolute_paths_stay_what_they_are(tmp_path: Path) -> None:
    sites = [{"node_id": "A", "data": str(tmp_path / "elsewhere")}]
    config = load(tmp_path, data_root="pictures", sites=sites, output=str(tmp_path / "out"))
    assert config.sites[0].data == tmp_path / "elsewhere"
    assert config.run_folder == tmp_path / "out/two"


@pytest.mark.parametrize(
    ("federation", "needs"),
    [
        ({"staleness_exponent": 1.0}, "late: next_round, or mode: async"),
        ({"finetune_mix": 0.5}, "finetune_after"),
        ({"contribution_floor": 0.2}, "weighting: contribution"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(tmp_path: Path, federation: dict[str, object], needs: str) -> None:
    with pytest.raises(ConfigError, match=f"does nothing without federation.{needs}"):
        load(tmp_path, federation=federation)


@pytest.mark.parametrize("weights", ["base", "scratch"])
def test_words_for_weights_are_no_paths(tmp_path: Path, weights: str) -> None:
    assert load(tmp_path, data_root="pictures", model={"weights": weights}).model.weights == weights


def test_what_is_written_out_is_the_same_run_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(
        tmp_path,
        output=str(tmp_path / "out"),
        data_root="pictures",
        model={"weights": "start.pt"},
        train={"ema": 0.99, "steps": 3, "clip_norm": None},
        federation={"strategy": {"name": "fedyogi", "tau": 0.01}, "fraction_fit": 0.5, "personal": ["bn"]},
    )
    (tmp_path / "written.yaml").write_text(dump_config(config))
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    assert load_config(tmp_path / "written.yaml") == config


def test_relative_output_is_fixed_when_the_run_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert yaml.safe_load(dump_config(load(tmp_path)))["output"] == str(tmp_path / "runs")


@pytest.mark.parametrize("text", ["a: [b", "a: \x00", "- a\n- b", "", "just words", "\t- x: y"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(path)


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: !!python/object/apply:os.system ['exit 0']\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(path)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / name)


def test_hours_of_the_day_are_not_taken_for_the_hours_of_a_run() -> None:
    with pytest.raises(ConfigError, match=r"sites\.0\.hours: is the number of hours .* got '22:00-06:00'.*node\.yaml"):
        parse_config({"name": "x", "sites": [{"node_id": "A", "data": "a", "hours": "22:00-06:00"}]})
