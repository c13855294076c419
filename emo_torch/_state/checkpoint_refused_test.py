"""Which checkpoints are refused, before anything is written or loaded."""

import json
import pickle
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import emo_torch
from emo_shared import header
from emo_shared.files import read_file, write_file
from emo_shared.files_test import Bomb
from emo_torch._state.checkpoint_test import OPTIMIZERS, begin
from emo_torch._state.state_test import assert_same, through_a_file, train

# Checkpoint files that are refused.


@pytest.mark.parametrize(
    ("leaf", "error", "message"),
    [
        (np.ones(2), TypeError, "'a/0' is of the type ndarray"),
        (np.float32(1.0), TypeError, "'a/0' is of the type float32"),
        (defaultdict(int), TypeError, "'a/0' is of the type defaultdict"),
        (b"bytes", TypeError, "'a/0' is of the type bytes"),
        (print, TypeError, "'a/0' is of the type builtin_function_or_method"),
        (emo_torch.EmotionState(*(torch.ones(7))), TypeError, "'a/0' is of the type EmotionState"),
        ({torch.ones(1): 1}, TypeError, "of the type Tensor"),
        (torch.ones(2, dtype=torch.complex128), ValueError, "'a/0' has the dtype complex128"),
        (torch.ones(2, device="meta"), ValueError, "'a/0' has .* the device meta"),
        (torch.ones(2).to_sparse(), ValueError, "'a/0' has .* the layout torch.sparse_coo"),
    ],
)
def test_a_leaf_that_has_no_place_is_refused_before_anything_is_written(
    leaf: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        emo_torch.save_checkpoint(tmp_path / "run", {"a": [leaf]})
    assert not list(tmp_path.iterdir())


def test_a_run_in_the_place_of_the_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"The path of the file comes first, and this is of the type dict"):
        emo_torch.save_checkpoint({}, tmp_path / "run")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'the run' is of the type object"):
        emo_torch.save_checkpoint(tmp_path / "run", object())
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(emo_torch.CheckpointError, match=r"a zip archive, as torch\.save"):
        emo_torch.load_checkpoint(tmp_path / "run")


def refused(path: Path, good: Any, bad: Any, error: type[Exception], message: str) -> None:
    """Asserts that a tree is refused over a good checkpoint, which stays alone in its folder."""
    emo_torch.save_checkpoint(path, good)
    whole = path.read_bytes()
    with pytest.raises(error, match=message):
        emo_torch.save_checkpoint(path, bad)
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def nested(levels: int) -> Any:
    tree: Any = torch.ones(1)
    for level in range(levels):
        tree = ([tree], (tree,), {"x": tree})[level % 3]
    return tree


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"a\ud800": torch.ones(1)}, ValueError, r"name of an array contains a lone surrogate, '\\ud800'"),
        (nested(101), ValueError, "at most 100 levels"),
        ({"n": 10**5000}, ValueError, "'n' is an integer of 16610 bits.*hex"),
        ({"x": torch.empty((0, 2**40, 2**20)), "y": torch.empty((2**33, 0))}, None, ""),
    ],
)
def test_a_tree_that_could_not_be_loaded_replaces_nothing(
    tree: Any, error: type[Exception] | None, message: str, tmp_path: Path
) -> None:
    if error is not None:
        refused(tmp_path / "run", {"good": 1}, tree, error, message)
        return
    emo_torch.save_checkpoint(tmp_path / "run", tree)
    assert_same(emo_torch.load_checkpoint(tmp_path / "run"), tree)


def test_a_tree_that_holds_itself_replaces_nothing(tmp_path: Path) -> None:
    tree: list[Any] = []
    tree.append(tree)
    refused(tmp_path / "run", {"good": 1}, tree, ValueError, "or holds itself")


def test_a_long_list_of_numbers_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "LONGEST", 1000)
    refused(
        tmp_path / "run", {"good": 1}, {"order": list(range(1000))}, ValueError, "allows 1000.*as arrays"
    )


def test_all_that_can_be_saved_can_be_loaded_deep_in_a_call_stack(tmp_path: Path) -> None:
    tree = {"tree": nested(99), "n": 2**13_999, "odd": {"\ud800": "\udfff"}, "": {"": torch.ones(1)}}
    emo_torch.save_checkpoint(tmp_path / "run", tree)

    def deep(levels: int) -> Any:
        return deep(levels - 1) if levels else emo_torch.load_checkpoint(tmp_path / "run")

    assert_same(deep(400), tree)


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
            r"has the layout 0, written by emo_torch 0\.1\.0; this release reads the layout 1",
        ),
        ({"version": "2"}, "has the layout 2.*Load it with that release, save_arrays of to_arrays"),
        ({"version": None}, "has the layout None"),
        (
            {"format": "emo_optax checkpoint"},
            "not a checkpoint of emo_torch; its format is emo_optax checkpoint",
        ),
        ({"format": None}, "not a checkpoint of emo_torch; its format is unknown"),
        ({"tree": '{"tensor": "y"}'}, "lacks the tensor 'y'"),
    ],
)
def test_another_layout_is_refused_and_says_what_to_do(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    emo_torch.save_checkpoint(path, {"x": torch.ones(2)})
    rewrite(path)
    emo_torch.load_checkpoint(path)
    rewrite(path, **changes)
    with pytest.raises(emo_torch.CheckpointError, match=message):
        emo_torch.load_checkpoint(path)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    emo_torch.save_arrays(tmp_path / "arrays", {"x": np.ones(2)})
    with pytest.raises(emo_torch.CheckpointError, match="read it with load_arrays"):
        emo_torch.load_checkpoint(tmp_path / "arrays")
    save_file({"x": torch.ones(2)}, tmp_path / "foreign")
    with pytest.raises(emo_torch.CheckpointError, match="its format is unknown"):
        emo_torch.load_checkpoint(tmp_path / "foreign")
    with pytest.raises(FileNotFoundError):
        emo_torch.load_checkpoint(tmp_path / "none")


def test_a_checkpoint_that_was_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    emo_torch.save_checkpoint(path, {"w": torch.ones(2, 3), "n": 7})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(emo_torch.CheckpointError, match="cut off or changed"):
            emo_torch.load_checkpoint(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(emo_torch.CheckpointError, match="cut off or changed"):
        emo_torch.load_checkpoint(path)


def test_a_checkpoint_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path, chance, refused = tmp_path / "run", random.Random(0), 0
    net, optimizer = begin("emo_cats")
    train(net, optimizer, 0, 2)
    run = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 2}
    emo_torch.save_checkpoint(path, run)
    whole = path.read_bytes()
    for index in chance.sample(range(len(whole)), 400):
        damaged = bytearray(whole)
        damaged[index] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            loaded = emo_torch.load_checkpoint(path)
        except emo_torch.CheckpointError:
            refused += 1
        else:
            assert_same(loaded, run)
    assert refused > 390


# No code.


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "run", tmp_path / "trace"
    for protocol in (2, 5):
        path.write_bytes(pickle.dumps({"x": Bomb(trace)}, protocol=protocol))
        with pytest.raises(emo_torch.CheckpointError, match="cut off or changed"):
            emo_torch.load_checkpoint(path)
    torch.save({"x": Bomb(trace)}, path)
    with pytest.raises(emo_torch.CheckpointError, match="cut off or changed"):
        emo_torch.load_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(path, weights_only=True)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # It was a bomb.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_everything_that_is_saved_is_plain_tensors_and_json(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    net, optimizer = begin(name)
    train(net, optimizer, 0, 3)
    state = {"model": net.state_dict(), "optimizer": optimizer.state_dict()}
    assert_same(through_a_file(state), state)  # As `torch.save` writes it, too.
    emo_torch.save_checkpoint(path, state)
    assert_same(load_file(path)["model/0.weight"], net.state_dict()["0.weight"])
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    json.loads(metadata["tree"])
    assert metadata.keys() == {"format", "version", "release", "tree", "sha256"}
