"""Properties that hold for all parameters, options and losses."""

import copy
import pickle
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import HealthCheck, given, settings

from parity_tests import sequences
from parity_tests.compare import differences
from parity_tests.drive import Arrays, OptaxDrive, TorchDrive
from parity_tests.family import FAMILY, optax_options, torch_options
from parity_tests.tolerances import bound

LONG = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
SHORT = settings(LONG, max_examples=25)
STEPS = 12

shapes = st.dictionaries(
    st.sampled_from("abcdef"), st.lists(st.integers(0, 4), max_size=4).map(tuple), min_size=1, max_size=4
)
# XLA takes numbers below the smallest normal number for zero, and PyTorch does not.
finite = st.floats(-1e3, 1e3, allow_nan=False, allow_subnormal=False)
losses = st.lists(
    st.one_of(finite, st.sampled_from([float("nan"), float("inf"), float("-inf")])),
    min_size=STEPS,
    max_size=STEPS,
)
options = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.floats(1e-5, 1e-1),
        "betas": st.tuples(st.floats(0.0, 0.99), st.floats(0.0, 0.999)),
        "eps": st.floats(1e-8, 1e-3),
        # A decay of 1e-291 makes gradients of numbers that XLA takes for zero.
        "weight_decay": st.just(0.0) | st.floats(1e-8, 0.1),
        "weight_decay_mode": st.sampled_from(["decoupled", "absolute", "l2"]),
        "use_shadow": st.booleans(),
        "shadow_ratio": st.sampled_from(["v2.0", "v1.0"]),
        "shadow_rate": st.floats(0.01, 1.0),
        "theta": st.floats(0.0, 0.5),
        "short_factor": st.floats(0.05, 1.0),
        "long_factor": st.floats(0.005, 1.0),
        "gain": st.floats(0.0, 10.0),
    },
)

# Options that a member lacks are left out, so that each is driven with its own options.
runs = st.builds(
    lambda name, chosen: (name, FAMILY[name].known(chosen)), st.sampled_from(list(FAMILY)), options
)


def _drive(side: Any, name: str, start: Arrays, chosen: dict[str, Any], fed: list[float]) -> Arrays:
    drive = side(FAMILY[name], start, chosen)
    for step, loss in enumerate(fed):
        drive.step(sequences.gradients(start, step), loss)
    arrays: Arrays = {f"param/{key}": value for key, value in drive.params().items()} | drive.state()
    return arrays


def _assert_equal(ours: Arrays, theirs: Arrays, chosen: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {"version", "rule"}:
        gap = differences(ours[key][None], theirs[key][None], bound(key, "float64", chosen))[0]
        assert gap.excess <= 1.0, key


@LONG
@given(shapes=shapes, run=runs, fed=losses)
def test_both_packages_agree(
    shapes: dict[str, tuple[int, ...]], run: tuple[str, dict[str, Any]], fed: list[float]
) -> None:
    name, chosen = run
    with jax.enable_x64(True):
        start = sequences.params("float64", shapes=shapes)
        _assert_equal(
            _drive(OptaxDrive, name, start, chosen, fed),
            _drive(TorchDrive, name, start, chosen, fed),
            chosen,
        )


@LONG
@given(shapes=shapes, run=runs, fed=losses)
def test_jit_and_donation_change_nothing(
    shapes: dict[str, tuple[int, ...]], run: tuple[str, dict[str, Any]], fed: list[float]
) -> None:
    name, chosen = run
    with jax.enable_x64(True):
        start = sequences.params("float64", shapes=shapes)
        optimizer = FAMILY[name].optax(**optax_options(FAMILY[name].known(chosen)))

        def step(params: Any, state: Any, grads: Any, loss: Any) -> tuple[Any, Any]:
            updates, state = optimizer.update(grads, state, params, value=loss)
            return optax.apply_updates(params, updates), state

        def trial(function: Any) -> Any:
            params = {key: jnp.array(value) for key, value in start.items()}
            state = optimizer.init(params)
            for index, loss in enumerate(fed[:4]):
                grads = jax.tree.map(jnp.asarray, sequences.gradients(start, index))
                params, state = function(params, state, grads, loss)
            return jax.tree.leaves((params, state))

        eager, jitted, donated = (
            trial(step),
            trial(jax.jit(step)),
            trial(jax.jit(step, donate_argnums=(0, 1))),
        )
        for one, other, third in zip(eager, jitted, donated, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
            # Around a branch, XLA rounds a donated program's sums in another order.
            np.testing.assert_allclose(other, third, rtol=1e-12, atol=1e-12)


@SHORT
@given(shapes=shapes, run=runs, fed=losses, data=st.data())
def test_the_order_of_parameters_changes_nothing(
    shapes: dict[str, tuple[int, ...]], run: tuple[str, dict[str, Any]], fed: list[float], data: Any
) -> None:
    name, chosen = run
    start = sequences.params("float64", shapes=shapes)
    order = data.draw(st.permutations(list(start)))
    plain = _drive(TorchDrive, name, start, chosen, fed)
    permuted = TorchDrive(FAMILY[name], {key: start[key] for key in order}, chosen)
    for step, loss in enumerate(fed):
        permuted.step(sequences.gradients(start, step), loss)
    for key, value in permuted.params().items():
        np.testing.assert_array_equal(value, plain[f"param/{key}"])


@SHORT
@given(shapes=shapes, run=runs, fed=losses)
def test_groups_are_as_optimizers_of_their_own_fed_the_same_losses(
    shapes: dict[str, tuple[int, ...]], run: tuple[str, dict[str, Any]], fed: list[float]
) -> None:
    name, chosen = run
    start = sequences.params("float64", shapes=shapes)
    together = TorchDrive(FAMILY[name], start, chosen)
    params = list(together._params.values())
    member = FAMILY[name]
    options = torch_options(member.known(chosen))
    together.optimizer = member.torch([{"params": [param]} for param in params], **options)
    alone = {key: TorchDrive(FAMILY[name], {key: value}, chosen) for key, value in start.items()}
    for step, loss in enumerate(fed):
        grads = sequences.gradients(start, step)
        together.step(grads, loss)
        for key, drive in alone.items():
            drive.step({key: grads[key]}, loss)
    for key, drive in alone.items():
        np.testing.assert_array_equal(together.params()[key], drive.params()[key])


@SHORT
@given(shapes=shapes, run=runs, fed=losses)
def test_going_up_is_going_down_the_negated_problem(
    shapes: dict[str, tuple[int, ...]], run: tuple[str, dict[str, Any]], fed: list[float]
) -> None:
    name, chosen = run
    start = sequences.params("float64", shapes=shapes)
    up = TorchDrive(FAMILY[name], start, {**chosen, "maximize": True})
    down = TorchDrive(FAMILY[name], start, chosen)
    for step, loss in enumerate(fed):
        grads = sequences.gradients(start, step)
        up.step(grads, loss)
        down.step({key: -grad for key, grad in grads.items()}, -loss)
    for key, value in up.params().items():
        np.testing.assert_array_equal(value, down.params()[key])


@SHORT
@given(shapes=shapes, run=runs, fed=losses)
def test_all_tensors_at_once_are_as_one_by_one(
    shapes: dict[str, tuple[int, ...]], run: tuple[str, dict[str, Any]], fed: list[float]
) -> None:
    name, chosen = run
    start = sequences.params("float64", shapes=shapes)
    one = _drive(TorchDrive, name, start, {**chosen, "foreach": False}, fed)
    _assert_equal(_drive(TorchDrive, name, start, {**chosen, "foreach": True}, fed), one, chosen)


@SHORT
@given(shapes=shapes, run=runs, fed=losses, stop=st.integers(0, STEPS - 1))
def test_a_resumed_run_is_the_uninterrupted_one(
    shapes: dict[str, tuple[int, ...]], run: tuple[str, dict[str, Any]], fed: list[float], stop: int
) -> None:
    name, chosen = run
    start = sequences.params("float64", shapes=shapes)
    whole = TorchDrive(FAMILY[name], start, chosen)
    resumed = TorchDrive(FAMILY[name], start, chosen)
    for step, loss in enumerate(fed):
        if step == stop:
            saved = copy.deepcopy(resumed.optimizer.state_dict())
            resumed = TorchDrive(FAMILY[name], resumed.params(), chosen)
            resumed.optimizer.load_state_dict(saved)
        grads = sequences.gradients(start, step)
        whole.step(grads, loss)
        resumed.step(grads, loss)
    for key, value in (whole.params() | whole.state()).items():
        np.testing.assert_array_equal((resumed.params() | resumed.state())[key], value)


@LONG
@given(run=runs, fed=losses, stop=st.integers(0, STEPS - 1))
def test_a_pickled_state_goes_on_bit_for_bit(
    run: tuple[str, dict[str, Any]], fed: list[float], stop: int
) -> None:
    name, chosen = run
    with jax.enable_x64(True):
        start = sequences.params("float64", shapes={"matrix": (2, 3), "vector": (3,)})
        whole = OptaxDrive(FAMILY[name], start, chosen)
        resumed = OptaxDrive(FAMILY[name], start, chosen)
        resumed._step = whole._step
        for step, loss in enumerate(fed):
            if step == stop:
                resumed._state = jax.tree.map(jnp.asarray, pickle.loads(pickle.dumps(resumed._state)))
            grads = sequences.gradients(start, step)
            whole.step(grads, loss)
            resumed.step(grads, loss)
        for key, value in (whole.params() | whole.state()).items():
            np.testing.assert_array_equal((resumed.params() | resumed.state())[key], value)
