"""Recipes, and the lists in compiled code, which must equal the lists of the rules."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch import _kernels as _fused
from emo_torch._kernels import cuda, cuda_kernels, library
from emo_torch._kernels.describe import MOST_RULES, describe
from emo_torch._members.by_name import MEMBERS
from emo_torch._members.options import options_of
from emo_torch._pieces.weight_decay import MODES
from emo_torch._rules.family_rules import (
    ADAM,
    CAUTIOUS_SIGN,
    FACTORS,
    FIRST_STEP_RULES,
    KERNELS,
    LION,
    MOMENTS,
    NONE,
    SOFTSIGN,
)
from emo_torch._rules.recipe import FirstStep, Group, Recipe, Rule, State
from emo_torch._step.emo_optimizer import EmoOptimizer

CPU_C = (Path(_fused.__file__).parent / "cpu.c").read_text()


def _enum(comment: str) -> list[str]:
    """Returns the names of the `enum` after a comment."""
    found = re.search(re.escape(comment) + r".*?\*/\s*enum \{([^}]*)\}", CPU_C, re.DOTALL)
    assert found is not None
    return [name.strip() for name in found[1].split(",")]


def test_the_enums_in_c_are_the_lists_in_python() -> None:
    assert _enum("In the order of RULES") == [rule.kernel for rule in KERNELS]
    assert [mode.upper() for mode in MODES] == _enum("In the order of MODES")
    assert [f"KEEP_{name.upper()}" for name in _fused.FILTERS] == _enum("In the order of FILTERS")
    firsts = {"none": "NO_FIRST", "softsign": "FIRST_SOFTSIGN", "cautious_sign": "FIRST_CAUTIOUS"}
    assert [firsts[rule.name] for rule in FIRST_STEP_RULES] == _enum("In the order of FIRST_STEPS")
    assert len(CPU_C.split("Rule rule[")) == 2
    assert f"Rule rule[{MOST_RULES}];" in CPU_C


def test_triton_knows_the_rules_by_the_numbers_of_c() -> None:
    names = [rule.name for rule in KERNELS if rule.on_cuda]
    assert list(cuda.RULES) == names
    assert names[:5] == [rule.name for rule in KERNELS[:5]]
    kernels: Any = cuda_kernels
    # The kernel takes every other number for the softsign.
    kinds = ["ADAM", "LION", "CAUTIOUS", "FACTORS", "SIGN", "FRESH"]
    numbers = [getattr(kernels, kind) for kind in kinds]
    assert [rule.kernel for rule in KERNELS if rule.kernel in kinds and rule.on_cuda] == kinds
    assert [getattr(number, "value", number) for number in numbers] == [
        *(0, 1, 2, 4),
        *(names.index("sign"), names.index("fresh_sign")),
    ]
    assert [rule.kernel for rule in KERNELS[:5]] == ["ADAM", "LION", "CAUTIOUS", "SOFTSIGN", "FACTORS"]


def test_every_moment_of_the_family_is_known_as_one() -> None:
    for member in MEMBERS.values():
        # "step" is in the state of many optimizers, and does not show which optimizer made the state.
        for ndim in range(4):
            assert set(member.make.recipe.moment_names(ndim)) <= {*MOMENTS, "step"}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_derives_from_its_recipe_and_from_no_other_member(name: str) -> None:
    cls = MEMBERS[name].make
    assert cls.__bases__[0] not in {member.make for member in MEMBERS.values()}
    assert cls.__bases__[0].__module__.startswith("emo_torch._step.")
    assert cls.rule == cls.recipe.name
    assert cls.has_cuda_kernel == cls.recipe.on_cuda
    if issubclass(cls, emo_torch.EmoOptimizer):
        assert cls.shadow_effect == (cls.recipe.filter is not None)
        assert not {"moment_names", "init_moments", "keep_of", "step_tensors"} & cls.__dict__.keys()
    for shape in ((), (3,), (3, 4), (2, 3, 4)):
        param = torch.nn.Parameter(torch.ones(shape))
        param.grad = torch.ones(shape)
        optimizer = emo_torch.create_optimizer(name, [param])
        optimizer.step(loss=1.0)
        made = optimizer.state[param].keys() - {"shadow", "shadow_exists", "average"}
        assert made == set(cls.recipe.moment_names(len(shape)))


def test_a_recipe_of_several_rules_says_which_one_and_has_a_title() -> None:
    def choose(scalar: Tensor) -> Tensor:
        return (scalar > 0.5).long()

    with pytest.raises(ValueError, match="has 0 rules"):
        Recipe(())
    with pytest.raises(ValueError, match="2 rules and choose=None"):
        Recipe((ADAM, LION), title="two")
    with pytest.raises(ValueError, match="1 rules and choose=<function"):
        Recipe((ADAM,), choose)
    with pytest.raises(ValueError, match="needs a title"):
        Recipe((ADAM, LION), choose)
    with pytest.raises(ValueError, match="needs a title"):
        Recipe((ADAM,), first=FirstStep((NONE, SOFTSIGN), choose))


def _optimizer(recipe: Recipe, **options: Any) -> EmoOptimizer:
    """Returns an optimizer over new parameters that a recipe steps."""

    class Made(EmoOptimizer):
        def __init__(self, params: Any, fused: bool | None = None, foreach: bool | None = None) -> None:
            defaults = emo_torch.EmoSens([torch.zeros(1, requires_grad=True)]).defaults
            known = {name: value for name, value in defaults.items() if name != "differentiable"}
            given = {name: value for name, value in options_of(locals()).items() if name in known}
            super().__init__(params, {**known, "theta": 0.4, "lr": 0.01, **given})

    Made.recipe = recipe
    Made.shadow_effect = recipe.filter is not None
    Made.rule = recipe.name
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 4), (6,), (), (2, 3, 4))
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return Made([torch.nn.Parameter(param) for param in drawn], **options)


def _trained(recipe: Recipe, **options: Any) -> dict[str, Tensor]:
    optimizer = _optimizer(recipe, **options)
    generator = torch.Generator().manual_seed(1)
    params = optimizer.param_groups[0]["params"]
    for loss in (1.0, 2.0, 1.5, 4.0, 1.0):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64) * 0.5
        optimizer.step(loss=loss)
    found = {f"param {index}": param.detach() for index, param in enumerate(params)}
    for index, param in enumerate(params):
        found |= {f"{name} {index}": moment for name, moment in optimizer.state[param].items()}
    return found


def _halves(scalar: Tensor) -> Tensor:
    return (scalar.abs() > 0.5).long()


def _plain_single(grad: Tensor, moments: State) -> Tensor:
    moments["exp_avg"].add_(grad)
    return moments["exp_avg"].clone()


def _plain_multi(grads: list[Tensor], moments: list[State]) -> list[Tensor]:
    return [_plain_single(*pair) for pair in zip(grads, moments, strict=True)]


PLAIN = Rule("plain", LION.moments, LION.init, _plain_single, _plain_multi, reads=())
"""A rule that has no kernel."""
RECIPES = {
    "softsign, filtered": Recipe((SOFTSIGN,)),
    "cautious sign, own decay rates": Recipe((CAUTIOUS_SIGN.named("own_", (0.5, 0.6)),), filter=None),
    "factors, filtered by element": Recipe((FACTORS,), filter="elements"),
    "adam, filtered by row": Recipe((ADAM,), filter="rows_and_columns"),
    "two rules, filtered": Recipe((ADAM.named("a_"), LION.named("b_")), _halves, title="two"),
    "two rules with factors, filtered": Recipe((FACTORS.named("a_"), LION), _halves, title="two"),
    "a first step for vectors, too": Recipe(
        (LION,), first=FirstStep((NONE, CAUTIOUS_SIGN), _halves, least_ndim=1), title="first"
    ),
    "a first step before lion": Recipe(
        (LION,), filter=None, first=FirstStep((NONE, CAUTIOUS_SIGN), _halves), title="first"
    ),
    "a first step in another order": Recipe(
        (FACTORS,), filter=None, first=FirstStep((CAUTIOUS_SIGN, NONE), _halves), title="first"
    ),
    "a rule without a kernel": Recipe((PLAIN,)),
}


@pytest.mark.parametrize("title", RECIPES)
def test_any_recipe_steps_alike_in_every_way(title: str) -> None:
    recipe = RECIPES[title]
    readable = _trained(recipe, foreach=False)
    for options in ({"foreach": True}, {"fused": True} if library() is not None else {}, {}):
        other = _trained(recipe, **options)
        assert other.keys() == readable.keys()
        for name, value in readable.items():
            torch.testing.assert_close(other[name], value, rtol=1e-11, atol=1e-13, msg=f"{options}, {name}")


def test_only_known_recipes_reach_compiled_code() -> None:
    group: Group = {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "theta": 1e-4}
    known = {title for title, recipe in RECIPES.items() if describe(recipe, **group) is not None}
    assert known == {
        "softsign, filtered",
        "cautious sign, own decay rates",
        "two rules, filtered",
        "a first step in another order",
    }
