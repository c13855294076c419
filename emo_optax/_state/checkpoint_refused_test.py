"""Which checkpoints are refused, before anything is written or loaded."""

import dataclasses
import json
import pickle
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import emo_optax
from emo_optax._state.checkpoint_test import OPTIMIZERS, assert_same, begin, make_params, train
from emo_shared import header
from emo_shared.files import read_file, write_file
from emo_shared.files_test import Bomb

# Refused input.


@dataclasses.dataclass
class Odd:
    """A leaf that no file keeps."""


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ("text", "'a/x' is of the type str"),
        (Odd(), "'a/x' is of the type Odd"),
        (np.asarray(["text"]), "'a/x' is of the type ndarray"),
        (np.asarray(Odd()), "'a/x' is of the type ndarray"),
        (np.zeros(2, [("x", np.float32)]), "'a/x' is of the type ndarray"),
        (jax.ShapeDtypeStruct((2,), np.float32), "'a/x' is a jax.ShapeDtypeStruct without data"),
    ],
)
def test_a_leaf_that_has_no_place_is_refused_before_anything_is_written(
    leaf: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=message):
        emo_optax.save_checkpoint(tmp_path / "run", {"a": {"x": leaf}})
    assert not list(tmp_path.iterdir())


def test_a_run_in_the_place_of_the_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"The path of the file comes first, and this is of the type dict"):
        emo_optax.save_checkpoint({}, tmp_path / "run")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'the run' is of the type Odd"):
        emo_optax.save_checkpoint(tmp_path / "run", Odd())
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(emo_optax.CheckpointError, match=r"a zip archive, as torch\.save"):
        emo_optax.load_checkpoint(tmp_path / "run", like={})


def test_saving_inside_of_jit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'x' is traced"):
        jax.jit(lambda x: emo_optax.save_checkpoint(tmp_path / "run", {"x": x}))(1.0)


def test_names_that_read_the_same_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Two leaves have the name 'a/b'"):
        emo_optax.save_checkpoint(tmp_path / "run", {"a": {"b": 1}, "a/b": 2})


SAVED = {"w": np.ones((2, 3), np.float32), "n": 1, "mu": np.zeros(2, np.float32)}


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({**SAVED, "nu": np.zeros(2)}, "lacks 'nu', which `like` has"),
        ({"w": SAVED["w"]}, "holds leaves that `like` lacks: mu, n"),
        ({**SAVED, "w": np.ones((3, 2), np.float32)}, r"'w' has the shape \(2, 3\) in .*, and \(3, 2\)"),
        ({**SAVED, "w": np.ones((2, 3))}, "'w' is float32 in .*, and float64 in `like`"),
        ({**SAVED, "w": jnp.ones((2, 3), jnp.bfloat16)}, "'w' is float32 in .*, and bfloat16 in `like`"),
        ({**SAVED, "n": 1.0}, "'n' is Python's int in .*, and Python's float in `like`"),
        ({**SAVED, "n": np.asarray(1)}, "'n' is Python's int in .*, and int64 in `like`"),
        ({**SAVED, "w": jax.random.key(0)}, "'w' is float32 in .*, and key<fry> in `like`"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_says_what_to_do(
    like: Any, message: str, tmp_path: Path
) -> None:
    emo_optax.save_checkpoint(tmp_path / "run", SAVED)
    with pytest.raises(emo_optax.CheckpointError, match=message) as caught:
        emo_optax.load_checkpoint(tmp_path / "run", like)
    assert "Nothing was loaded. Make the run as it was" in str(caught.value)


def test_the_state_of_another_optimizer_is_refused_by_its_leaf(tmp_path: Path) -> None:
    params = make_params()
    emo_optax.save_checkpoint(tmp_path / "run", emo_optax.emo_sens().init(params))
    with pytest.raises(emo_optax.CheckpointError, match=r"holds leaves that `like` lacks: .*/nu/w"):
        emo_optax.load_checkpoint(tmp_path / "run", emo_optax.emo_cats().init(params))
    with pytest.raises(emo_optax.CheckpointError, match=r"lacks '.*ratio', which `like` has"):
        emo_optax.load_checkpoint(tmp_path / "run", emo_optax.emo_sens(use_shadow=True).init(params))


def test_a_state_of_another_class_is_refused(tmp_path: Path) -> None:
    """The states of EmoLynx and EmoNeco without a shadow have leaves of the same names and shapes."""
    params, path = make_params(), tmp_path / "run"
    lynx, neco = (make(use_shadow=False).init(params) for make in (emo_optax.emo_lynx, emo_optax.emo_neco))
    emo_optax.save_checkpoint(path, {"state": lynx})
    message = "state of the class ScaleByLionState, and `like` has ScaleByMomentumState in this place"
    with pytest.raises(emo_optax.CheckpointError, match=message):
        emo_optax.load_checkpoint(path, {"state": neco})
    assert_same(emo_optax.load_checkpoint(path, {"state": lynx}), {"state": lynx})
    # A file of an earlier release, which does not have the names of the classes.
    metadata, parts = read_file(path)
    write_file(path, {name: metadata[name] for name in metadata if name != "states"}, parts.values())
    assert_same(emo_optax.load_checkpoint(path, {"state": lynx}), {"state": lynx})


def test_a_state_of_another_class_of_optax_is_refused(tmp_path: Path) -> None:
    params, path = make_params(), tmp_path / "run"
    adam, belief = (emo_optax.emotional(make(1e-2)).init(params) for make in (optax.adam, optax.adabelief))
    emo_optax.save_checkpoint(path, {"state": adam})
    message = "state of the class ScaleByAdamState, and `like` has ScaleByBeliefState in this place"
    with pytest.raises(emo_optax.CheckpointError, match=message):
        emo_optax.load_checkpoint(path, {"state": belief})
    # A state without fields holds nothing.
    held, plain = (optax.EmptyState(), adam), ((), adam)
    emo_optax.save_checkpoint(path, held)
    assert_same(emo_optax.load_checkpoint(path, plain), plain)


def refused(path: Path, good: Any, bad: Any, error: type[Exception], message: str) -> None:
    """Asserts that a tree is refused over a good checkpoint, which stays alone in its folder."""
    emo_optax.save_checkpoint(path, good)
    whole = path.read_bytes()
    with pytest.raises(error, match=message):
        emo_optax.save_checkpoint(path, bad)
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"a\ud800": jnp.ones(1)}, ValueError, r"name of an array contains a lone surrogate, '\\ud800'"),
        (
            {"n": 2**63},
            ValueError,
            r"'n' is an integer of 64 bits; a checkpoint holds integers from -2\^63",
        ),
        ({"n": np.ma.masked_array([1.0], [True])}, TypeError, "'n' is a masked array"),
    ],
)
def test_a_tree_that_could_not_be_loaded_replaces_nothing(
    tree: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    refused(tmp_path / "run", {"good": 1}, tree, error, message)


def test_a_tree_that_holds_itself_replaces_nothing(tmp_path: Path) -> None:
    tree: list[Any] = []
    tree.append(tree)
    refused(tmp_path / "run", {"good": 1}, tree, ValueError, "or holds itself")


def test_names_above_the_limit_of_the_format_replace_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header, "LONGEST", 1000)
    refused(tmp_path / "run", {"good": 1}, {"n" * 1000: 1}, ValueError, "allows 1000.*as arrays")


@pytest.mark.parametrize("dtype", [">i4", ">f8", ">c16", "<f4"])
def test_the_order_of_bytes_makes_no_difference(dtype: str, tmp_path: Path) -> None:
    run = {"x": np.arange(5).astype(dtype)}
    emo_optax.save_checkpoint(tmp_path / "run", run)
    loaded = emo_optax.load_checkpoint(tmp_path / "run", run)
    np.testing.assert_array_equal(loaded["x"], np.arange(5))
    assert loaded["x"].dtype == run["x"].dtype


def rewrite(path: Path, **changes: str | None) -> None:
    """Changes the metadata of a file, with a digest that fits."""
    metadata, parts = read_file(path)
    told = {**metadata, **changes}
    write_file(path, {name: text for name, text in told.items() if text is not None}, parts.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"version": "0"},
            r"has the layout 0, written by emo_optax 0\.1\.0; this release reads the layout 2",
        ),
        ({"version": "1"}, "has the layout 1.*Load it with that release, save_arrays of to_arrays"),
        ({"version": None}, "has the layout None"),
        (
            {"format": "emo_torch checkpoint"},
            "not a checkpoint of emo_optax; its format is emo_torch",
        ),
        ({"format": None}, "not a checkpoint of emo_optax; its format is unknown"),
    ],
)
def test_another_layout_is_refused_and_says_what_to_do(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    emo_optax.save_checkpoint(path, SAVED)
    rewrite(path)
    emo_optax.load_checkpoint(path, SAVED)
    rewrite(path, **changes)
    with pytest.raises(emo_optax.CheckpointError, match=message):
        emo_optax.load_checkpoint(path, SAVED)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    emo_optax.save_arrays(tmp_path / "arrays", {"x": np.ones(2)})
    with pytest.raises(emo_optax.CheckpointError, match="read it with load_arrays"):
        emo_optax.load_checkpoint(tmp_path / "arrays", {"x": np.ones(2)})
    save_file({"x": np.ones(2)}, tmp_path / "foreign")
    with pytest.raises(emo_optax.CheckpointError, match="its format is unknown"):
        emo_optax.load_checkpoint(tmp_path / "foreign", {"x": np.ones(2)})
    with pytest.raises(FileNotFoundError):
        emo_optax.load_checkpoint(tmp_path / "none", {"x": np.ones(2)})


def test_a_checkpoint_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run = {"w": jnp.ones((2, 3)), "n": 7}
    emo_optax.save_checkpoint(path, run)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(emo_optax.CheckpointError, match="cut off or changed"):
            emo_optax.load_checkpoint(path, run)
    path.write_bytes(whole + b"\0")
    with pytest.raises(emo_optax.CheckpointError, match="cut off or changed"):
        emo_optax.load_checkpoint(path, run)


def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path, chance, refused = tmp_path / "run", random.Random(0), 0
    optimizer = OPTIMIZERS["emo_cats"]
    run = train(optimizer, begin(optimizer), 0, 2)
    emo_optax.save_checkpoint(path, run)
    whole = path.read_bytes()
    flips = chance.sample(range(len(whole)), 400)
    for index in flips:
        damaged = bytearray(whole)
        damaged[index] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = emo_optax.load_checkpoint(path, run)
        except emo_optax.CheckpointError:
            refused += 1
        else:
            assert_same(loaded, run)
    assert refused > 390


# No code.


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "run", tmp_path / "trace"
    path.write_bytes(pickle.dumps({"x": Bomb(trace)}))
    with pytest.raises(emo_optax.CheckpointError, match="cut off or changed"):
        emo_optax.load_checkpoint(path, {"x": 1})
    assert not trace.exists()


def test_everything_that_is_saved_is_plain_arrays_and_json(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for optimizer in OPTIMIZERS.values():
        run = train(optimizer, begin(optimizer), 0, 2)
        emo_optax.save_checkpoint(path, run)
        arrays = load_file(path)
        np.testing.assert_array_equal(arrays["params/w"], run["params"]["w"])
        with safe_open(path, framework="np") as file:
            metadata = file.metadata()
        assert json.loads(metadata["dtypes"]).keys() == arrays.keys()
        assert json.loads(metadata["dtypes"])["step"] == "Python's int"
