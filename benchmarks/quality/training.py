"""One compiled program trains a task with all learning rates and all seeds of a contender at once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from benchmarks.quality.contenders import Contender
from benchmarks.quality.task import Task


class Trouble(NamedTuple):
    """The disturbances of a run; every field is a number, so that all runs share a program.

    Attributes:
        unit: the loss, and so its gradient, is multiplied by this number.
        spike_step: the step, counted from 0, whose gradient is multiplied by `spike`.
        spike: the factor of that gradient.
        first: the first step, counted from 0, with labels of other examples.
        last: the step after the last of them.
        loud: the factor of the inputs in these steps.
        missing: the share of steps whose loss and gradient are NaN.
    """

    unit: float = 1.0
    spike_step: float = -1.0
    spike: float = 1.0
    first: float = -1.0
    last: float = -1.0
    loud: float = 1.0
    missing: float = 0.0


NO_TROUBLE = Trouble()


def train(
    task: Task,
    contender: Contender,
    rates: Sequence[float],
    seeds: Sequence[int],
    steps: int,
    *,
    troubles: Sequence[Trouble] = (NO_TROUBLE,),
    batch_size: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Trains a task with every combination of trouble, learning rate and seed.

    Args:
        task: the task.
        contender: the optimizer.
        rates: the learning rates, each > 0.
        seeds: each decides the first weights and the batches.
        steps: how many steps to take, > 0.
        troubles: the disturbances.
        batch_size: how many examples make one step; `None` for the usual number of the task.

    Returns:
        By row of the tables, the losses on the test data, shape `[troubles, rates, seeds]`; NaN or infinite
        where a run diverged. Where a task has known data, the losses on it are in the rows
        `f"{row}, known"`.
    """
    pairs = [(trouble, rate) for trouble in troubles for rate in rates]
    given = jax.tree.map(lambda *each: jnp.asarray(each, jnp.float32), *(trouble for trouble, _ in pairs))
    run = _program(task, contender, steps, batch_size or task.batch_size)
    found = run(jnp.asarray(seeds), jnp.asarray([rate for _, rate in pairs], jnp.float32), given)
    shape = (len(seeds), len(troubles), len(rates))
    return {
        row: np.moveaxis(np.asarray(losses, np.float64).reshape(shape), 0, 2)
        for row, losses in found.items()
    }


def _program(
    task: Task, contender: Contender, steps: int, batch_size: int
) -> Callable[..., dict[str, jax.Array]]:
    inputs, targets = (jnp.asarray(each) for each in task.train())
    count = len(inputs)

    def loss_at(params: Any, frozen: Any, key: jax.Array, step: jax.Array, trouble: Trouble) -> jax.Array:
        pick, other = jax.random.randint(key, (2, batch_size), 0, count)
        is_bad = (step >= trouble.first) & (step < trouble.last)
        x, y = inputs[pick], targets[jnp.where(is_bad, other, pick)]
        if jnp.issubdtype(x.dtype, jnp.floating):
            x = x * jnp.where(is_bad, trouble.loud, 1.0)
        return trouble.unit * task.loss(params, frozen, x, y)

    def one(seed: jax.Array, rates: jax.Array, troubles: Trouble) -> dict[str, jax.Array]:
        key = jax.random.fold_in(jax.random.key(7), seed)
        frozen, start = task.frozen(key), task.start(key)
        keys = jax.random.split(jax.random.fold_in(key, 1), steps)

        def made(rate: jax.Array) -> optax.GradientTransformationExtraArgs:
            return optax.with_extra_args_support(contender.make(rate, steps))

        def step(carry: Any, now: Any) -> Any:
            index, key = now

            def each(carry: Any, rate: jax.Array, trouble: Trouble) -> Any:
                params, state = carry
                loss, grads = jax.value_and_grad(loss_at)(params, frozen, key, index, trouble)
                is_missing = jax.random.uniform(jax.random.fold_in(key, 2)) < trouble.missing
                factor = jnp.where(index == trouble.spike_step, trouble.spike, 1.0)
                factor = jnp.where(is_missing, jnp.nan, factor)
                loss = jnp.where(is_missing, jnp.nan, loss)
                grads = jax.tree.map(lambda g: g * factor, grads)
                updates, state = made(rate).update(grads, state, params, value=loss)
                return optax.apply_updates(params, updates), state

            return jax.vmap(each)(carry, rates, troubles), None

        carry = jax.vmap(lambda rate: (start, made(rate).init(start)))(rates)
        carry, _ = jax.lax.scan(step, carry, (jnp.arange(steps), keys))
        measure = task.measure or task.loss
        found = {}
        for row, evaluated in contender.evaluated.items():
            params = jax.vmap(lambda pair, f=evaluated: f(pair[1], pair[0]))(carry)
            sets = {row: task.test()} | ({f"{row}, known": task.known()} if task.known else {})
            for title, data in sets.items():
                found[title] = jax.vmap(lambda p, d=data: measure(p, frozen, *d))(params)
        return found

    return jax.jit(jax.vmap(one, (0, None, None)))
