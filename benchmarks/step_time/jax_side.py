"""The optimizers of Optax and of `emo_optax`, ready to be stepped."""

import gc
import inspect
import random
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import emo_optax
from benchmarks.step_time.members import MEMBERS
from benchmarks.step_time.plan import COMPILED, LEARNING_RATE, STANDSTILL, Variant
from benchmarks.step_time.problems import Arrays, Problem, gradients, lora_shapes, parameters
from benchmarks.step_time.rounds import FIRST_LOSS, check_emotion, loss_for


def make(name: str, **options: Any) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer of the family or of Optax; all take the loss as `value`."""
    like = "lion" if name == STANDSTILL else name
    return optax.with_extra_args_support(_maker(like)(LEARNING_RATE, **options))


def _maker(name: str) -> Callable[..., optax.GradientTransformation]:
    maker: Callable[..., optax.GradientTransformation] = getattr(
        emo_optax if name in MEMBERS else optax, name
    )
    return maker


class Step:
    """One step of an optimizer: jitted, and counting how often it was traced.

    Args:
        optimizer: the optimizer.
        donate: whether its parameters and its state are donated.
        moves: whether it does anything, and not just return them.
    """

    def __init__(
        self, optimizer: optax.GradientTransformationExtraArgs, *, donate: bool = True, moves: bool = True
    ) -> None:
        self.traces = 0

        def step(params: Any, state: Any, grads: Any, loss: jax.Array) -> tuple[Any, Any]:
            self.traces += 1
            if not moves:
                return params, state
            updates, state = optimizer.update(grads, state, params, value=loss)
            return optax.apply_updates(params, updates), state

        self.jitted = jax.jit(step, donate_argnums=(0, 1) if donate else ())

    def compile(self, *arguments: Any) -> tuple[float, Any]:
        """Returns the seconds for tracing, lowering and compiling, and the compiled program."""
        start = time.perf_counter()
        compiled = self.jitted.lower(*arguments).compile()
        return time.perf_counter() - start, compiled

    def __call__(self, params: Any, state: Any, grads: Any, loss: jax.Array) -> tuple[Any, Any]:
        """Takes the step."""
        new_params, new_state = self.jitted(params, state, grads, loss)
        return new_params, new_state

    @property
    def cached(self) -> int:
        """How many programs were compiled for it."""
        return int(self.jitted._cache_size())  # type: ignore[attr-defined]


class JaxSide:
    """Parameters and gradients in JAX, and the steps that were compiled for them."""

    def __init__(self, problem: Problem) -> None:
        self.parameter_arrays = parameters(problem)
        self.gradient_arrays = gradients(problem)
        self._grads = [jnp.array(array) for array in self.gradient_arrays]
        self._steps: dict[str, tuple[Step, dict[str, Any]]] = {}

    def runner(self, variant: Variant) -> "JaxRunner":
        """Returns an optimizer on parameters of its own and on the gradients of all."""
        optimizer = make(variant.make, **variant.options)
        params = _copies(self.parameter_arrays)
        state = optimizer.init(params)
        if variant.name not in self._steps:
            step = Step(optimizer, donate=variant.donate, moves=variant.make != STANDSTILL)
            seconds, compiled = step.compile(params, state, self._grads, jnp.float32(FIRST_LOSS))
            memory = compiled.memory_analysis()
            beyond = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            self._steps[variant.name] = step, {"temporaries": beyond, "compilation": seconds}
        step, costs = self._steps[variant.name]
        return JaxRunner(variant, step, params, state, self._grads, costs)

    def close(self) -> None:
        """Forgets arrays and programs."""
        self.parameter_arrays, self.gradient_arrays, self._grads, self._steps = [], [], [], {}


def _copies(arrays: Arrays) -> list[jax.Array]:
    # Copies: JAX may share memory with NumPy, and donated arrays are overwritten.
    return [jnp.array(array, copy=True) for array in arrays]


class JaxRunner:
    """One optimizer of Optax or of the family.

    Args:
        variant: which one.
        step: its step.
        params: its parameters.
        state: its state.
        grads: the gradients.
        costs: the known costs of the compiled program.
    """

    def __init__(
        self, variant: Variant, step: Step, params: Any, state: Any, grads: Any, costs: dict[str, Any]
    ) -> None:
        self._variant = variant
        self._step = step
        self._params = params
        self._state = state
        self._grads = grads
        self._costs = costs
        self._loss = jnp.float32(FIRST_LOSS)
        self._order = random.Random(variant.name)

    def prepare(self, size: float | None) -> None:
        """Chooses the loss that gives the wanted emotion scalar."""
        if size is not None:
            emotion = emo_optax.get_emotion(self._state)
            self._loss = jnp.float32(loss_for(float(emotion.short), float(emotion.long), size))
        jax.block_until_ready(self._loss)

    def run(self) -> None:
        """Takes one step."""
        self._params, self._state = self._step(self._params, self._state, self._grads, self._loss)
        jax.block_until_ready((self._params, self._state))

    def check(self, size: float | None) -> None:
        """Raises a `RuntimeError` if the scalar or the shadow differs from the wanted one."""
        if size is not None:
            emotion = emo_optax.get_emotion(self._state)
            scalar, ratio = float(emotion.scalar), float(emotion.shadow_ratio)
            check_emotion(self._variant.name, scalar, ratio, size, shadow=self._variant.shadow)

    def move(self) -> None:
        """Copies parameters and state: where XLA's arrays lie decides up to a fifth of a step's time."""
        leaves, form = jax.tree.flatten((self._params, self._state))
        self._params, self._state = (), ()
        # One after the other, so that each comes to lie where another one lay.
        for index in self._order.sample(range(len(leaves)), len(leaves)):
            leaves[index] = jax.block_until_ready(jnp.copy(leaves[index]))
        self._params, self._state = jax.tree.unflatten(form, leaves)
        self.run()  # Not timed: the first one in new memory is another.

    def costs(self) -> dict[str, Any]:
        """Returns bytes beyond parameters and state, seconds to compile, traces and programs so far."""
        return {**self._costs, "traces": self._step.traces, "programs": self._step.cached}


def time_compilation(
    leaves: int, repeats: int, advance: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Times tracing, lowering and compiling, interleaved.

    Args:
        leaves: the number of leaves, LoRA's.
        repeats: how often each is compiled.
        advance: called after every round.

    Returns:
        For each name in `COMPILED` the seconds.
    """
    # The memory of programs compiled once a process belongs to no measurement.
    for name in COMPILED:
        _compile_new(name, 2)
    seconds: dict[str, list[float]] = {name: [] for name in COMPILED}
    order, source = list(COMPILED), random.Random(leaves)
    for _ in range(repeats):
        source.shuffle(order)
        for name in order:
            seconds[name].append(_compile_new(name, leaves))
        advance()
    return seconds


def _compile_new(name: str, leaves: int) -> float:
    optimizer = make(name)
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in lora_shapes(leaves)]
    state = jax.eval_shape(optimizer.init, params)
    gc.collect()  # No measurement shall pay for freeing the memory of an earlier one.
    seconds, _ = Step(optimizer).compile(params, state, params, jax.ShapeDtypeStruct((), jnp.float32))
    return seconds


def count_traces(name: str, problem: Problem, steps: int = 6) -> dict[str, int]:
    """Counts traces while learning rate, loss and step change.

    Args:
        name: the optimizer's name.
        problem: the shapes.
        steps: how many steps.

    Returns:
        How often its step was traced, and how many programs there are.
    """
    maker = _maker(name)
    fixed = set(inspect.signature(maker).parameters) - {"learning_rate"}
    optimizer = optax.with_extra_args_support(
        optax.inject_hyperparams(maker, static_args=fixed)(learning_rate=LEARNING_RATE)
    )
    params = _copies(parameters(problem))
    grads = _copies(gradients(problem))
    state = optimizer.init(params)
    step = Step(optimizer)
    for index in range(steps):
        rate = state.hyperparams["learning_rate"]
        state.hyperparams["learning_rate"] = rate * 0.9
        params, state = step(params, state, grads, jnp.float32(FIRST_LOSS - 0.1 * index))
    return {"traces": step.traces, "programs": step.cached}
