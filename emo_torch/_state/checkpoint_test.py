"""States after saving, copying and loading."""

import random
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import emo_torch
from emo_torch._state.state_test import assert_same, assert_twins, groups, model, train

# Checkpoint files.

OPTIMIZERS: dict[str, Any] = {
    "emo_sens": lambda params: emo_torch.EmoSens(params, lr=torch.tensor(0.1), use_shadow=True),
    "emo_airy": lambda params: emo_torch.EmoAiry(params, rounding="stochastic"),
    "emo_cats": lambda params: emo_torch.EmoCats(params, moment_dtype=torch.bfloat16),
    "emo_navi": emo_torch.EmoNavi,
    "emo_fact": emo_torch.EmoFact,
    "emo_lynx": emo_torch.EmoLynx,
    "emo_clan": emo_torch.EmoClan,
    "emo_neco": lambda params: emo_torch.EmoNeco(params, rounding="kahan"),
    "emo_zeal": emo_torch.EmoZeal,
    "emotional": lambda params: emo_torch.Emotional(torch.optim.AdamW(params, lr=0.1), use_shadow=True),
}


def begin(name: str) -> tuple[torch.nn.Module, Any]:
    """A model, of a narrow and a wide layer, and its optimizer with two groups."""
    net = model()
    next(net.children()).to(torch.bfloat16)
    return net, OPTIMIZERS[name](groups(net))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_in_a_checkpoint_goes_on_as_if_it_had_not_been_broken_off(name: str, tmp_path: Path) -> None:
    net, optimizer = begin(name)
    train(net, optimizer, 0, 5)
    run = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 5}
    emo_torch.save_checkpoint(tmp_path / "run", run)
    loaded = emo_torch.load_checkpoint(tmp_path / "run")
    assert_same(loaded, run)
    twin, resumed = begin(name)
    twin.load_state_dict(loaded["model"])
    resumed.load_state_dict(loaded["optimizer"])
    train(net, optimizer, 5)
    train(twin, resumed, loaded["step"])
    assert_twins(twin, resumed, net, optimizer)


def bits(tree: Any) -> Any:
    """Tensors as their dtypes, shapes, strides and bytes, which equal themselves where NaN does not."""
    if isinstance(tree, Tensor):
        flat = tree.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8)
        return tree.dtype, tree.shape, tree.stride(), flat.tolist()
    if isinstance(tree, dict):
        return type(tree), {key: bits(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree), [bits(value) for value in tree]
    return type(tree), repr(tree)


def test_every_kind_of_leaf_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    some = torch.arange(256, dtype=torch.uint8)
    image = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    names = ("bool", "int8", "uint16", "int32", "int64", "float16", "float8_e4m3fn", "float8_e5m2")
    tree: dict[Any, Any] = {name: (some % 2).to(getattr(torch, name)) for name in names}
    tree["nan"] = torch.tensor(0x7FC12345, dtype=torch.int32).view(torch.float32)
    tree["all of bfloat16"] = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    tree["conjugate"] = torch.tensor([1 + 2j]).conj()
    tree["a/b"], tree["a"], tree["__metadata__"] = torch.ones(1), {"b": torch.zeros(1)}, torch.ones(2)
    tree["channels last"] = image.to(memory_format=torch.channels_last)
    tree["strided"] = torch.arange(4.0)
    tree["numbers"] = [True, 2**100, -0.0, 1e-300, float("inf"), float("nan"), None, "ë\udc80", (), [], {}]
    tree["keys"] = {0: "a", "0": "b", 1.5: "c", None: "d", False + 2: (1, (2, [3]))}
    tree["dtype"], tree["counts"] = torch.bfloat16, Counter({3: 2})
    tree["random"], tree["Python's"] = torch.get_rng_state(), random.getstate()
    tree["empty"] = [torch.zeros(0, 3), torch.zeros(())]
    tree["ordered"] = OrderedDict(z=1, a=torch.ones(1))
    trees: list[Any] = [tree, torch.ones(2), [], None, 1.5]
    for each in trees:
        emo_torch.save_checkpoint(tmp_path / "run", each)
        assert bits(emo_torch.load_checkpoint(tmp_path / "run")) == bits(each)
    emo_torch.save_checkpoint(
        tmp_path / "run", {"every other": torch.arange(8.0)[::2], "f": np.float64(0.1)}
    )
    loaded = emo_torch.load_checkpoint(tmp_path / "run")
    assert loaded["every other"].tolist() == [0.0, 2.0, 4.0, 6.0]
    assert (type(loaded["f"]), loaded["f"]) == (float, 0.1)


def test_tensors_that_are_one_and_the_same_are_so_again(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    tied = [weight, weight.detach(), weight.T, weight[0], weight.clone(), torch.zeros(0), torch.zeros(0)]
    emo_torch.save_checkpoint(tmp_path / "run", tied)
    assert len(load_file(tmp_path / "run")) == 6
    loaded = emo_torch.load_checkpoint(tmp_path / "run")
    assert_same(loaded, [tensor.detach() for tensor in tied])
    assert loaded[0] is loaded[1]
    loaded[0].fill_(7.0)
    assert_same(loaded[2:], [tensor.detach() for tensor in tied[2:]])


def test_the_versions_of_modules_survive(tmp_path: Path) -> None:
    net = torch.nn.BatchNorm1d(2)
    state = net.state_dict()
    emo_torch.save_checkpoint(tmp_path / "run", state)
    loaded = emo_torch.load_checkpoint(tmp_path / "run")
    assert loaded._metadata == state._metadata  # type: ignore[attr-defined]
    assert loaded._metadata[""]["version"] == 2


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.9**step),
    "MultiStepLR": lambda opt: torch.optim.lr_scheduler.MultiStepLR(opt, [2, 3, 3]),
    "ReduceLROnPlateau": lambda opt: torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0),
    "OneCycleLR": lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, 0.5, 20, cycle_momentum=False),
    "CyclicLR": lambda opt: torch.optim.lr_scheduler.CyclicLR(opt, 0.1, 0.5, 3, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda opt: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "SequentialLR": lambda opt: torch.optim.lr_scheduler.SequentialLR(
        opt,
        [torch.optim.lr_scheduler.ConstantLR(opt), torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)],
        [2],
    ),
    "SWALR": lambda opt: torch.optim.swa_utils.SWALR(opt, 0.3),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    def make() -> tuple[Any, Any]:
        optimizer = emo_torch.EmoSens(groups(model()), lr=0.1)
        return optimizer, SCHEDULERS[name](optimizer)

    def go(optimizer: Any, scheduler: Any) -> list[float]:
        rates = []
        for step in range(4):
            optimizer.step(loss=1.0 + step)
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            with warnings.catch_warnings():  # SequentialLR itself makes the call that it warns of.
                warnings.simplefilter("ignore")
                scheduler.step(*([1.0] if plateau else []))
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    optimizer, scheduler = make()
    go(optimizer, scheduler)
    run = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    emo_torch.save_checkpoint(tmp_path / "run", run)
    loaded = emo_torch.load_checkpoint(tmp_path / "run")
    resumed, again = make()
    resumed.load_state_dict(loaded["optimizer"])
    again.load_state_dict(loaded["scheduler"])
    assert go(resumed, again) == go(optimizer, scheduler)


def test_a_gradient_scaler_goes_through_a_checkpoint(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    emo_torch.save_checkpoint(tmp_path / "run", scaler.state_dict())
    assert emo_torch.load_checkpoint(tmp_path / "run") == scaler.state_dict()
