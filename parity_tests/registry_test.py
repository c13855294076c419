"""The registries of both packages belong together, and everything that is exported is in them."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import emo_optax
import emo_torch
from emo_optax import _public as optax_names
from emo_optax._members.by_name import MEMBERS as OPTAX
from emo_optax._state import bridge as _bridge
from emo_torch import _public as torch_names
from emo_torch._members.by_name import MEMBERS as TORCH
from emo_torch._members.options import NOT_OPTIONS
from emo_torch._rules.family_rules import MOMENTS
from parity_tests.family import FAMILY, optax_options, torch_options


def test_both_packages_have_the_same_members() -> None:
    assert list(OPTAX) == list(TORCH) == sorted(TORCH, key=list(OPTAX).index)
    for name, member in TORCH.items():
        assert OPTAX[name].generation == member.generation
        assert OPTAX[name].make.__name__ == name
        assert member.make.__name__.lower() == name.replace("_", "")
    assert list(FAMILY) == [member.make.__name__ for member in TORCH.values()]


def test_what_is_exported_are_the_members_of_the_registry() -> None:
    bases = {emo_torch.LossOptimizer, emo_torch.EmoOptimizer, emo_torch.Emotional, emo_torch.Autopilot}
    exported = {
        thing
        for thing in vars(torch_names).values()
        if isinstance(thing, type) and issubclass(thing, emo_torch.LossOptimizer)
    }
    assert exported - bases == {member.make for member in TORCH.values()}
    functions = {
        name: thing
        for name, thing in vars(optax_names).items()
        if name.startswith(("emo_", "ref_")) and inspect.isfunction(thing)
    }
    assert functions == {name: member.make for name, member in OPTAX.items()}


@pytest.mark.parametrize("name", TORCH)
def test_every_option_of_the_signature_reaches_the_groups(name: str) -> None:
    cls = TORCH[name].make
    signature = set(inspect.signature(cls).parameters) - NOT_OPTIONS - {"decoupled_weight_decay"}
    defaults = emo_torch.create_optimizer(name, [torch.zeros(1, requires_grad=True)]).defaults
    made = {"weight_decay_divisor", "differentiable", "train_mode", "peak_lr"}
    assert defaults.keys() - signature <= made
    assert signature <= defaults.keys()


def test_both_bridges_have_the_same_names() -> None:
    """The names of `emo_optax` are written by hand: the packages do not import each other."""
    named = {name for fields in _bridge._TREES.values() for name in fields.values()}
    prefixes = {rule.prefix for rule in TORCH["emo_clan"].make.recipe.rules}
    assert set(_bridge._SWITCHED) == prefixes
    plain = {name for name in MOMENTS if not name.startswith(tuple(prefixes))}
    # Optax counts the steps of EmoPilot once, and the bridge writes the count for every parameter.
    assert named - {"compensation"} == plain - {"step"}
    assert set(_bridge._RULES.values()) == {member.make.recipe.name for member in TORCH.values()}


@pytest.mark.parametrize("name", FAMILY)
def test_a_member_has_the_same_arrays_on_both_sides(name: str) -> None:
    member = FAMILY[name]
    cls = {each.make.__name__: each.make for each in TORCH.values()}[name]
    options = member.known({"use_shadow": True})
    start = {"matrix": np.ones((3, 2), np.float32), "vector": np.ones(4, np.float32)}
    state = member.optax(**optax_options(options)).init({key: jnp.asarray(at) for key, at in start.items()})
    params = {key: torch.nn.Parameter(torch.tensor(at)) for key, at in start.items()}
    optimizer = member.torch(list(params.values()), **torch_options(options))
    ours, theirs = emo_optax.to_arrays(state), emo_torch.to_arrays(optimizer, params.items())
    assert ours.keys() == theirs.keys()
    assert ours["rule"].tobytes() == theirs["rule"].tobytes() == cls.rule.encode()
    for key, param in params.items():
        of_param = {kind for kind, _, at in (full.partition("/") for full in theirs) if at == key}
        assert of_param - {"shadow", "average"} == set(cls.recipe.moment_names(param.ndim))
