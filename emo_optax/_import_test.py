import subprocess
import sys

ALONE = """
import sys
import warnings

sys.modules["torch"] = sys.modules["flax"] = None
import jax

before = {name: getattr(jax.config, name) for name in ("jax_enable_x64", "jax_numpy_dtype_promotion")}
filters, hook = list(warnings.filters), sys.excepthook
random = sys.modules["random"].getstate()
import emo_optax

assert before == {name: getattr(jax.config, name) for name in before}
assert (filters, hook) == (list(warnings.filters), sys.excepthook)
assert random == sys.modules["random"].getstate()
assert not jax.extend.backend.backends_are_initialized() if hasattr(jax, "extend") else True

import jax.numpy as jnp

params = jnp.ones((2, 2))
for member in (emo_optax.emo_sens, emo_optax.emo_airy, emo_optax.emo_cats):
    optimizer = member(0.01, use_shadow=True)
    updates, state = optimizer.update(params, optimizer.init(params), params, value=1.0)
    assert float(jnp.max(updates)) < 0
    assert int(emo_optax.get_emotion(state).felt) == 1
print("used alone")
"""


def test_the_package_alone_imports_without_side_effects_and_works() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE], capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n")[-2:] == ["used alone", ""], done.stderr
    assert done.stderr == ""


def test_everything_public_is_made_here() -> None:
    import emo_optax

    public = {name for name in vars(emo_optax) if not name.startswith("_")}
    for name in public - {"ARRAYS_VERSION", "CHECKPOINT_VERSION", "integrations"}:
        assert vars(emo_optax)[name].__module__.startswith("emo_optax.")
        assert vars(emo_optax)[name].__doc__
