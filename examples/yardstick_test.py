import functools
import inspect
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import emo_optax
import emo_torch
from examples.yardstick import memory, sweeps, tasks, training
from examples.yardstick.optimizers import (
    REFERENCE,
    SHAPES,
    OptaxOptimizer,
    TorchRun,
    contenders,
    make_in_optax,
)
from examples.yardstick.plan import Cell, Settings, run_cell
from examples.yardstick.surfaces import SURFACES, starts

TINY = Settings(
    surface_steps=6,
    task_steps=(("mlp", 3), ("lora", 2)),
    reach=0,
    search_seeds=(0,),
    seeds=(0, 1),
    disturbed_seeds=(0,),
    disturbances=("spike", "loss x 10"),
)
NAMES = list(contenders())
SPREAD = ["emo_sens_shadow", "emo_airy", "emo_fact", "ref_adamw_mini_schedule_free", "adamw", "adafactor"]
"""Optimizers for the cells that take long: with moments, factors or a shadow, and without an emotion."""
FEW = ["emo_sens", "adamw"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tasks, "PRETRAINING_STEPS", 2)
    tasks._pretrained.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    tasks._pretrained.cache_clear()


def quadratic_run(name: str, rate: float, steps: int) -> tuple[list[float], list[float]]:
    """Returns where an optimizer gets on a bowl in Optax, and where in PyTorch."""
    contender = contenders()[name]
    optimizer = make_in_optax(contender, rate, steps)
    point = jnp.asarray([1.0, -2.0])
    state = optimizer.init(point)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    run = TorchRun(contender, [weight], rate, steps)
    for group in run.optimizer.param_groups:
        group["weight_decay"] = 0.0

    for _ in range(steps):
        loss, slope = jax.value_and_grad(lambda at: jnp.sum(at**2))(point)
        updates, state = optimizer.update(slope, state, point, value=loss)
        point = optax.apply_updates(point, updates)
        weight.grad = None
        torch_loss = weight.square().sum()
        torch_loss.backward()
        run.step(torch_loss.detach())
    return np.asarray(point).tolist(), weight.tolist()


def test_the_whole_family_and_every_baseline_is_there() -> None:
    family = {name for name in NAMES if contenders()[name].is_family}
    assert family == {*emo_torch.list_optimizers(), "emo_sens_shadow", "emo_sens_gain_0.05"}
    assert {*SPREAD, REFERENCE} <= {*NAMES}
    baselines = {each.title for each in contenders().values() if not each.is_family}
    assert baselines == {
        *("SGD", "Momentum", "SGD, step decay", "Momentum, step decay", "AdaGrad", "RMSprop", "AdaDelta"),
        *("Adam", "AdamW", "Lion", "Adafactor", "AMSGrad", "RAdam", "AdaBelief", "Adam, warm-up", "Noam"),
    }


# Not these: Adafactor and RAdam are defined differently in the two frameworks, AMSGrad by a
# correction of its maximum, and Lion and AdaBelief are Optax' in both.
@pytest.mark.parametrize("name", sorted({*NAMES} - {"adafactor", "radam", "amsgrad", "lion", "adabelief"}))
def test_an_optimizer_is_the_same_in_both_frameworks(name: str) -> None:
    in_optax, in_torch = quadratic_run(name, 0.05, steps=8)
    np.testing.assert_allclose(in_torch, in_optax, rtol=1e-4)
    assert in_torch != [1.0, -2.0]


@pytest.mark.parametrize("name", NAMES)
def test_who_takes_the_number_of_steps_is_told_it(name: str) -> None:
    contender = contenders()[name]
    run = TorchRun(contender, [torch.nn.Parameter(torch.ones(2))], 0.1, 30)
    assert contender.takes_length == ("ref_max_steps" in run.optimizer.defaults)
    assert run.optimizer.defaults.get("ref_max_steps") == (30 if contender.takes_length else None)
    if contender.is_family:
        twin = getattr(emo_optax, name.replace("_shadow", "").replace("_gain_0.05", ""))
        assert contender.takes_length == ("ref_max_steps" in inspect.signature(twin).parameters)


def test_the_number_of_steps_matters_on_the_surfaces() -> None:
    assert contenders()["ref_adamw_mini_schedule_free"].takes_length
    # Without injections in its first and last fifth, other lengths are other runs.
    points = []
    for length in (3, 300):
        optimizer = make_in_optax(contenders()["ref_adamw_mini_schedule_free"], 0.05, length)
        point = jnp.asarray([1.0, -2.0])
        state = optimizer.init(point)
        for _ in range(3):
            updates, state = optimizer.update(2.0 * point, state, point, value=jnp.sum(point**2))
            point = optax.apply_updates(point, updates)
        points.append(point.tolist())
    assert points[0] != points[1]


@pytest.mark.parametrize("name", ["lion", "adabelief"])
def test_what_only_optax_has_is_driven_as_optax_drives_it(name: str) -> None:
    _, driven = quadratic_run(name, 0.05, steps=5)
    make = {"lion": optax.lion, "adabelief": optax.adabelief}[name]
    optimizer = make(0.05)
    point = jnp.asarray([1.0, -2.0])
    state = optimizer.init(point)
    for _ in range(5):
        updates, state = optimizer.update(2.0 * point, state, point)
        point = optax.apply_updates(point, updates)
    np.testing.assert_allclose(driven, point, rtol=1e-5)


def test_the_driver_takes_no_closure() -> None:
    optimizer = OptaxOptimizer([torch.nn.Parameter(torch.ones(2))], 0.1, make=optax.lion)
    with pytest.raises(TypeError, match="backward"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("step decay", [1.0, 1.0, 0.1, 0.01]),
        ("warm-up", [0.25, 1.0, 1.0, 1.0]),
        ("Noam", [0.25, 1.0, math.sqrt(4 / 21), math.sqrt(4 / 31)]),
    ],
)
def test_learning_rates_go_as_they_are_called(shape: str, expected: list[float]) -> None:
    schedule = SHAPES[shape](40)
    np.testing.assert_allclose([float(schedule(step)) for step in (0, 3, 20, 30)], expected, rtol=1e-5)


@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
def test_the_lowest_value_is_the_lowest(surface: Any) -> None:
    x, y = np.meshgrid(np.linspace(-5, 5, 101), np.linspace(-5, 5, 10001))
    lowest = float(np.min(surface.value(x, y)))
    assert lowest == pytest.approx(surface.lowest, abs=1e-4)
    assert starts(surface).shape == (16, 2)
    assert np.abs(starts(surface)).max() <= surface.corner


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_runs(name: str) -> None:
    result = run_cell(Cell("training", name, 2, "mlp", contenders()[name].default, 0))
    assert 0.0 < result["loss"] < 10.0
    # Traced only: compiling takes most of a second for each.
    optimizer = make_in_optax(contenders()[name], 0.1, 2)

    def step(point: jax.Array) -> Any:
        return optimizer.update(point, optimizer.init(point), point, value=jnp.sum(point))

    assert jax.eval_shape(step, jnp.ones(2))[0].shape == (2,)


@pytest.mark.parametrize("name", SPREAD)
def test_optimizers_run_every_kind_of_cell(name: str) -> None:
    for task in ("mlp", "cnn", "transformer", "lora"):
        result = run_cell(Cell("training", name, 2, task, contenders()[name].default, 0))
        assert 0.0 <= result["accuracy"] <= 1.0
        assert 0.0 < result["loss"] < 10.0
        assert ("forgotten" in result) == (task == "lora")
    result = run_cell(Cell("memory", name))
    assert 0.0 <= result["transformer"] < 17.0
    json.dumps(result, allow_nan=False)
    runs = sweeps.trajectories(contenders()[name], 2)
    assert jax.eval_shape(runs, np.asarray([0.1, 0.2], np.float32)).shape == (4, 2, 16, 3, 2)


@functools.cache
def surfaces_of(name: str) -> dict[str, Any]:
    """Returns the results of 6 steps on the surfaces, compiled once for all tests."""
    return run_cell(Cell("surfaces", name, 6))


@pytest.mark.parametrize("name", ["ref_adamw_mini_schedule_free", "noam"])
def test_surfaces_are_run_by_start_and_learning_rate(name: str) -> None:
    results = surfaces_of(name)
    assert list(results) == list(SURFACES)
    for surface, result in results.items():
        for grid, rates in sweeps.GRIDS.items():
            assert np.shape(result["maps"][grid]) == (len(rates), 16)
        begin = starts(SURFACES[surface])
        # A learning rate of 0 stays where it starts; the path begins at the first start.
        heights = SURFACES[surface].value(begin[:, 0], begin[:, 1]) - SURFACES[surface].lowest
        np.testing.assert_allclose(result["maps"]["0 to 5"][0], np.log10(heights), atol=0.051)
        for path in result["paths"].values():
            np.testing.assert_allclose(path[0], begin[0], rtol=1e-3)
            assert len(path) == 7
    json.dumps(results, allow_nan=False)


def test_one_run_of_a_map_is_a_run_by_itself() -> None:
    name = "ref_adamw_mini_schedule_free"
    result = surfaces_of(name)["rosenbrock"]
    optimizer = make_in_optax(contenders()[name], result["default_rate"], 6)
    point = jnp.asarray(starts(SURFACES["rosenbrock"])[0])
    state = optimizer.init(point)
    for expected in result["paths"]["default"]:
        np.testing.assert_allclose(point, expected, rtol=1e-3)
        loss, slope = jax.value_and_grad(lambda at: SURFACES["rosenbrock"].value(at[0], at[1]))(point)
        updates, state = optimizer.update(slope, state, point, value=loss)
        point = optax.apply_updates(point, updates)


@pytest.mark.parametrize("name", ["emo_airy", "adabelief"])
def test_a_cell_gives_the_same_numbers_again(name: str) -> None:
    for cell in (
        Cell("training", name, 4, "cnn", 0.01, 1, "labels"),
        Cell("training", name, 3, "lora", 0.01, 1),
    ):
        assert run_cell(cell) == run_cell(cell)
    other = run_cell(Cell("training", name, 4, "cnn", 0.01, 2, "labels"))
    assert other != run_cell(Cell("training", name, 4, "cnn", 0.01, 1, "labels"))


def watched(disturbance: str, steps: int) -> list[tuple[float, float, list[int]]]:
    """Returns the loss, the gradient's norm and the labels of every step; the weights stay put."""
    seen = []
    network = tasks._perceptron(0)

    def keep_weights(_: int) -> torch.nn.Module:
        return network

    def watch(_: int, loss: torch.Tensor, batch: tasks.Batch) -> None:
        gradients = [param.grad for param in network.parameters() if param.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        seen.append((float(loss), float(norm), batch[1].tolist()))

    task = tasks.tasks()["mlp"]._replace(network=keep_weights)
    training.train(task, contenders()["sgd"], 0.0, 0, steps, disturbance, watch)
    return seen


def test_one_gradient_is_100_fold() -> None:
    plain, disturbed = watched("", 8), watched("spike", 8)
    ratios = [norm / other for (_, norm, _), (_, other, _) in zip(disturbed, plain, strict=True)]
    np.testing.assert_allclose(ratios, [1, 1, 1, 1, 100, 1, 1, 1], rtol=1e-5)
    assert [loss for loss, _, _ in disturbed] == [loss for loss, _, _ in plain]


def test_20_batches_have_random_labels() -> None:
    plain, disturbed = watched("", 50), watched("labels", 50)
    differ = [labels != other for (_, _, labels), (_, _, other) in zip(disturbed, plain, strict=True)]
    assert differ == [25 <= step < 45 for step in range(50)]


@pytest.mark.parametrize("disturbance", training.DISTURBANCES[2:])
def test_the_loss_is_scaled_and_the_gradients_with_it(disturbance: str) -> None:
    factor = float(disturbance.split()[-1])
    plain, disturbed = watched("", 3), watched(disturbance, 3)
    for (loss, norm, _), (scaled, scaled_norm, _) in zip(plain, disturbed, strict=True):
        assert scaled == pytest.approx(factor * loss, rel=1e-5)
        assert scaled_norm == pytest.approx(factor * norm, rel=1e-5)


def test_the_family_is_told_the_loss() -> None:
    run = TorchRun(contenders()["emo_sens"], [torch.nn.Parameter(torch.ones(2))], 0.1, 10)
    run.step(torch.tensor(3.0))
    assert float(run.optimizer.emotion.short) == 3.0  # type: ignore[attr-defined]
    # No emotion here, but a memory of the losses all the same.
    run = TorchRun(
        contenders()["ref_adamw_mini_schedule_free"], [torch.nn.Parameter(torch.ones(2))], 0.1, 10
    )
    run.step(torch.tensor(3.0))
    assert int(run.optimizer.divergence.steps) == 1  # type: ignore[attr-defined]


def test_a_diverged_training_ends() -> None:
    steps = []
    result = training.train(
        tasks.tasks()["mlp"],
        contenders()["sgd"],
        1e30,
        0,
        50,
        watch=lambda step, *_: steps.append(step),
    )
    assert result == {"loss": None, "accuracy": 0.0}
    assert len(steps) < 10


def test_adapters_begin_with_nothing_and_are_all_that_learns() -> None:
    plain, adapted = tasks._transformer(0), tasks.add_adapters(tasks._transformer(0))
    text = tasks._whole(tasks.texts().first_test)
    assert tasks.score(plain, text) == tasks.score(adapted, text)
    names = {name for name, param in adapted.named_parameters() if param.requires_grad}
    assert len(names) == 10
    assert all(name.endswith((".down", ".up")) for name in names)


def test_no_text_is_both_learnt_and_tested() -> None:
    texts = tasks.texts()
    assert len(texts.first) > 5 * len(texts.first_test) > 3000
    assert len(texts.second) > 2 * len(texts.second_test) > 1500
    inputs, targets = tasks._whole(texts.first_test)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_state_is_counted_in_bytes() -> None:
    weight = torch.nn.Parameter(torch.ones(10))
    counts = {}
    for name in ("sgd", "momentum", "lion", "emo_cats"):
        run = TorchRun(contenders()[name], [weight], 0.1, 10)
        weight.grad = torch.ones(10)
        run.step(torch.tensor(1.0))
        counts[name] = memory.state_bytes(run.optimizer)
    assert counts["sgd"] == 0
    assert counts["momentum"] == 40
    # Beside the moments: Lion's learning rate and count; the emotion, about 42 numbers.
    assert 40 < counts["lion"] < 80
    assert 160 < counts["emo_cats"] < 280


def test_the_width_counts_decades() -> None:
    rates = np.logspace(-3, 0, 7)
    heights = np.asarray([9.0, 2.0, 1.4, 1.0, 1.51, np.inf, np.inf])
    assert sweeps.width_in_decades(rates, heights, arrived=0.0) == 1.0
    assert sweeps.width_in_decades(rates, heights, arrived=1.01) == 1.5
