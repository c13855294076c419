from typing import Any

import jax.numpy as jnp
import pytest

import emo_optax
from emo_optax import _public


def test_every_optimizer_is_made_by_its_name_and_steps() -> None:
    params = jnp.ones((2, 3))
    for name in emo_optax.list_optimizers():
        for spelling in (name, name.replace("_", "").upper()):
            optimizer = emo_optax.create_optimizer(spelling, 0.5, weight_decay=0.0)
            updates, state = optimizer.update(params, optimizer.init(params), params, value=1.0)
            assert float(jnp.max(updates)) < 0
            # One has no emotion, but losses that it remembers; the third generation has a pulse.
            is_third = name.endswith("3") or name in ("emo_tion", "emo_void")
            others = emo_optax.get_divergence if name.startswith("ref_") else emo_optax.get_emotion
            look: Any = emo_optax.get_pulse if is_third else others
            if name.startswith("emo_pilot"):
                assert int(emo_optax.get_pilot(state).steps) == 1
            else:
                assert int(look(state).felt) == 1


def test_every_optimizer_has_a_name() -> None:
    members = {name for name in vars(_public) if name.startswith(("emo_", "ref_"))}
    assert members <= set(emo_optax.list_optimizers())


def test_an_unknown_name_is_refused_with_those_that_are_near() -> None:
    with pytest.raises(ValueError, match=r"'emo_sense'; did you mean 'emo_sens'.* Known are emo_airy, "):
        emo_optax.create_optimizer("emo_sense")
    with pytest.raises(ValueError, match=r"named 'xyz'\. Known are"):
        emo_optax.create_optimizer("xyz")


def test_options_are_passed_on() -> None:
    with pytest.raises(ValueError, match="Invalid theta"):
        emo_optax.create_optimizer("emo_sens", theta=-1.0)
    with pytest.raises(TypeError, match="thetta"):
        emo_optax.create_optimizer("emo_sens", thetta=1.0)
