from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from safetensors.numpy import save as safetensors_bytes

from manyeyes.errors import ResourceError, UpdateRefusedError, WeightsError
from manyeyes.federation.transport import Record
from manyeyes.weights import (
    ExactMean,
    Weights,
    add,
    check_finite,
    check_same_form,
    l2_norm,
    load_weights,
    save_weights,
    subtract,
    write_atomically,
)

VALUES = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
UPDATES = st.lists(st.tuples(arrays(np.float32, (2, 3), elements=VALUES), st.integers(1, 10_000)), min_size=1)


def model() -> Weights:
    rng = np.random.default_rng(0)
    return Weights(
        {
            "conv.weight": rng.normal(size=(4, 3, 3, 3)),
            "bn.running_var": rng.uniform(size=4),
            "bn.num_batches_tracked": np.array(7, dtype=np.int64),
            "scale": np.array(0.5),
            "empty": np.zeros((0, 3)),
        }
    )


def mean_of(updates: list[tuple[NDArray[np.float32], int]]) -> NDArray[np.float64]:
    mean = ExactMean()
    for values, weight in updates:
        mean.add({"w": values}, weight)
    return mean.result()["w"]


# -- the mean ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(UPDATES.flatmap(lambda updates: st.tuples(st.just(updates), st.permutations(updates))))
def test_the_mean_has_the_same_bits_in_any_order(
    orders: tuple[list[tuple[NDArray[np.float32], int]], list[tuple[NDArray[np.float32], int]]],
) -> None:
    assert mean_of(orders[0]).tobytes() == mean_of(orders[1]).tobytes()


@settings(max_examples=60, deadline=None)
@given(UPDATES)
def test_the_mean_is_the_weighted_average(updates: list[tuple[NDArray[np.float32], int]]) -> None:
    stacked = np.stack([values.astype(np.float64) for values, _ in updates])
    weights = np.array([weight for _, weight in updates])
    expected = np.average(stacked, axis=0, weights=weights)
    scale = np.average(np.abs(stacked), axis=0, weights=weights)  # terms that cancel lose digits in the reference too
    error = np.abs(mean_of(updates) - expected)
    assert (error <= 1e-12 * scale + 2.0**-52).all()


def test_small_steps_keep_their_digits() -> None:
    rng = np.random.default_rng(2)
    updates = [(rng.normal(0, 1e-4, 50).astype(np.float32), int(weight)) for weight in rng.integers(1, 500, 7)]
    stacked = np.stack([values for values, _ in updates]).astype(np.float64)
    expected = np.average(stacked, axis=0, weights=[weight for _, weight in updates])
    np.testing.assert_allclose(mean_of(updates), expected, rtol=0, atol=2.0**-52)


def test_one_update_comes_back_as_it_was() -> None:
    values = np.array([1.5, -2.25, 1e-3, 0.0], dtype=np.float32)
    np.testing.assert_allclose(mean_of([(values, 12345)]), values.astype(np.float64), rtol=0, atol=2.0**-52)


def test_the_mean_keeps_shapes_of_single_numbers() -> None:
    mean = ExactMean()
    mean.add({"n": np.array(3.0), "m": np.zeros((0, 2))}, 2)
    assert mean.result()["n"].shape == ()
    assert mean.result()["m"].shape == (0, 2)


@pytest.mark.parametrize(
    ("values", "weight", "words"),
    [
        ({"a": np.array([np.nan, 0.0]), "b": np.zeros(1)}, 1, "'a' holds NaN"),
        ({"a": np.zeros(2), "b": np.array([-np.inf])}, 1, "'b' holds NaN"),
        ({"a": np.zeros(2), "b": np.array([1e13])}, 1, "too large"),
        ({"a": np.zeros(2), "b": np.array([1e9])}, 2**20, "too large"),
        ({"a": np.zeros(2)}, 1, "same tensors"),
        ({"a": np.zeros(2), "c": np.zeros(1)}, 1, "same tensors"),
        ({"a": np.zeros(2), "b": np.zeros(1), "c": np.zeros(1)}, 1, "same tensors"),
        ({"a": np.zeros(2), "b": np.zeros(3)}, 1, "shapes"),
        ({"a": np.zeros(1), "b": np.zeros(1)}, 1, "shapes"),
        ({"a": np.zeros(2), "b": np.zeros(1)}, 0, "must be positive"),
        ({"a": np.zeros(2), "b": np.zeros(1)}, -3, "must be positive"),
        ({"a": np.zeros(2), "b": np.zeros(1)}, 2**30, "below 2^30"),
    ],
)
def test_an_update_that_cannot_be_merged_changes_nothing(
    values: dict[str, NDArray[np.float64]], weight: int, words: str
) -> None:
    mean = ExactMean()
    mean.add({"a": np.array([1.0, 2.0]), "b": np.array([3.0])}, 5)
    with pytest.raises(UpdateRefusedError, match=words.replace("^", r"\^")):
        mean.add(values, weight)
    mean.add({"a": np.array([3.0, 4.0]), "b": np.array([5.0])}, 5)
    assert mean.total_weight == 10
    assert mean.result()["a"].tolist() == [2.0, 3.0]
    assert mean.result()["b"].tolist() == [4.0]


def test_many_large_updates_are_refused_before_the_sum_wraps_around() -> None:
    mean = ExactMean()
    for _ in range(4):
        mean.add({"w": np.array([1e11])}, 10)
    with pytest.raises(UpdateRefusedError, match="too large"):
        mean.add({"w": np.array([1e11])}, 10)
    assert mean.result()["w"].tolist() == pytest.approx([1e11])


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(WeightsError, match="no updates"):
        ExactMean().result()


# -- weights ----------------------------------------------------------------------------------------------------------


def test_weights_are_float32_contiguous_and_keep_counters_and_single_numbers() -> None:
    weights = Weights({"w": np.arange(6.0).reshape(2, 3).T, "n": np.array(5, dtype=np.int64), "s": np.array(2.0)})
    assert weights["w"].dtype == np.float32
    assert weights["w"].flags.c_contiguous
    assert (weights["n"].dtype, weights["n"].shape, int(weights["n"])) == (np.int64, (), 5)
    assert (weights["s"].dtype, weights["s"].shape) == (np.float32, ())


@pytest.mark.parametrize("array", [np.array(["x"]), np.array([1j]), np.array([True]), np.array([None])])
def test_only_numbers_are_weights(array: NDArray[np.generic]) -> None:
    with pytest.raises(WeightsError, match="'w' has type"):
        Weights({"w": array})


def test_the_form_hash_does_not_depend_on_order_or_values() -> None:
    weights = model()
    turned = Weights({name: weights[name] * 0 for name in reversed(list(weights))})
    assert turned.form_hash == weights.form_hash


@pytest.mark.parametrize(
    "change",
    [
        lambda w: Weights({**w, "extra": np.zeros(1)}),
        lambda w: Weights({("x" if n == "scale" else n): a for n, a in w.items()}),
        lambda w: Weights({**w, "scale": np.zeros(1)}),
        lambda w: Weights({**w, "bn.num_batches_tracked": np.array(7, dtype=np.int32)}),
    ],
    ids=["tensor", "name", "shape", "type"],
)
def test_the_form_hash_tells_another_form(change: Callable[[Weights], Weights]) -> None:
    assert change(model()).form_hash != model().form_hash


def test_the_value_hash_tells_one_bit() -> None:
    weights = model()
    other = weights["conv.weight"].copy()
    other.view(np.uint32)[0, 0, 0, 0] ^= 1
    changed = weights.replace({"conv.weight": other})
    assert changed.form_hash == weights.form_hash
    assert changed.value_hash != weights.value_hash
    assert Weights({name: weights[name] for name in reversed(list(weights))}).value_hash == weights.value_hash


def test_select_and_replace() -> None:
    weights = model()
    assert list(weights.select(lambda name: name.startswith("bn"))) == ["bn.running_var", "bn.num_batches_tracked"]
    assert weights.replace({"scale": np.array(2.0)})["scale"] == 2.0
    for wrong in ({"scales": np.array(2.0)}, {"scale": np.zeros(1)}):
        with pytest.raises(WeightsError, match="cannot replace 'scale"):
            weights.replace(wrong)


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, 5, elements=VALUES), arrays(np.float32, 5, elements=VALUES))
def test_what_was_subtracted_can_be_added(before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
    start = Weights({"w": before, "stays": np.ones(2), "n": np.array(1)})
    delta = subtract({"w": after}, start)
    back = add(start, delta)
    spacing = np.spacing(np.maximum(np.abs(before), np.abs(after)))
    assert (np.abs(back["w"] - after) <= 2 * spacing).all()
    assert (np.sign(delta["w"]) == np.sign(after - before)).all()
    assert back["stays"].tolist() == [1, 1]
    assert back["n"].shape == ()


def test_the_norm_is_over_all_floating_point_tensors_together() -> None:
    weights = Weights({"a": np.array([3.0, 0.0]), "b": np.array(4.0), "n": np.array(1000)})
    assert l2_norm(weights) == 5.0
    many = np.full(2_000_000, 1e-4, dtype=np.float32)  # float32 sums of so many squares lose digits
    assert l2_norm({"w": many}) == pytest.approx(math.sqrt(2e6) * 1e-4, rel=1e-6)


def test_another_form_is_refused_by_the_first_difference() -> None:
    template = model()
    check_same_form(model(), template, what="the update of A")
    extra = Weights({**template, "evil": np.zeros(1)})
    with pytest.raises(UpdateRefusedError, match=r"update of A has unknown tensors \['evil'\]"):
        check_same_form(extra, template, what="the update of A")
    with pytest.raises(UpdateRefusedError, match=r"lacks \['scale'\]"):
        check_same_form(template.select(lambda name: name != "scale"), template, what="x")
    with pytest.raises(UpdateRefusedError, match=r"'scale' is float32\(1,\), expected float32\(\)"):
        check_same_form(Weights({**template, "scale": np.zeros(1)}), template, what="x")
    with pytest.raises(UpdateRefusedError, match="int32"):
        check_same_form({**template, "bn.num_batches_tracked": np.array(7, dtype=np.int32)}, template, what="x")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(value: float) -> None:
    check_finite(model(), what="x")
    with pytest.raises(UpdateRefusedError, match="update of A: tensor 'scale' holds NaN or infinity"):
        check_finite(Weights({**model(), "scale": np.array(value)}), what="the update of A")


# -- files ------------------------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back_bit_by_bit(tmp_path: Path) -> None:
    weights = model()
    save_weights(tmp_path / "new" / "w.safetensors", weights, {"names": "[]"})
    loaded, metadata = load_weights(tmp_path / "new" / "w.safetensors")
    assert loaded.value_hash == weights.value_hash
    assert {name: array.shape for name, array in loaded.items()} == {n: a.shape for n, a in weights.items()}
    assert metadata == {"names": "[]"}


def test_arrays_that_are_not_contiguous_are_saved_right(tmp_path: Path) -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    save_weights(tmp_path / "w.safetensors", {"w": turned, "n": np.array(3)})
    loaded, metadata = load_weights(tmp_path / "w.safetensors")
    assert loaded["w"].tolist() == turned.tolist()
    assert loaded["n"].shape == ()
    assert metadata == {}


def test_a_message_keeps_shapes_and_bits() -> None:
    weights = model()
    record = Record.from_bytes(Record({**weights, "turned": weights["conv.weight"].T}, {"round": 3}).to_bytes())
    assert record.values == {"round": 3}
    for name, array in weights.items():
        assert record.arrays[name].shape == array.shape
        assert record.arrays[name].dtype == array.dtype
        assert record.arrays[name].tobytes() == array.tobytes()
    assert record.arrays["turned"].tolist() == weights["conv.weight"].T.tolist()


def test_half_precision_files_are_read_as_float32(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(safetensors_bytes({"w": np.ones(2, dtype=np.float16)}))
    assert load_weights(tmp_path / "w.safetensors")[0]["w"].dtype == np.float32


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100, b"\xff" * 16, None])
def test_a_file_that_is_no_weights_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        load_weights(path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, model())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="not a readable"):
        load_weights(path)


def test_a_type_numpy_does_not_have_is_refused(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\x00\x00")
    with pytest.raises(WeightsError, match="bfloat16"):
        load_weights(tmp_path / "w.safetensors")


def test_an_existing_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["state.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("place", ["file/below.json", "folder"], ids=["parent is a file", "a folder stands there"])
def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("here")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ResourceError, match=place):
        write_atomically(tmp_path / place, "content")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "here"


FULL_DISK = """
import resource, signal, sys
import numpy as np
from manyeyes.errors import ResourceError
from manyeyes.weights import save_weights
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_weights(sys.argv[1], {"w": np.zeros(10_000)})
except ResourceError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": np.zeros(3)})
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    assert "cannot be written" in done.stdout
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
