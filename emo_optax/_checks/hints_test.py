"""Arguments of other optimizers are explained, and a learning rate for another generation warns once."""

import inspect
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import emo_optax
from emo_optax._checks import hints as _hints

GENERATIONS_1_AND_2: list[Any] = [
    emo_optax.emo_sens,
    emo_optax.emo_airy,
    emo_optax.emo_cats,
    emo_optax.emo_navi,
    emo_optax.emo_fact,
    emo_optax.emo_lynx,
    emo_optax.emo_clan,
    emo_optax.emo_neco,
    emo_optax.emo_zeal,
]
MEMBERS: list[Any] = [getattr(emo_optax, name) for name in emo_optax.list_optimizers()]


@pytest.fixture(autouse=True)
def every_warning_is_an_error() -> Iterator[None]:
    """Large learning rates warn here too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# Keywords.


@pytest.mark.parametrize("keyword", _hints.FOREIGN_KEYWORDS)
@pytest.mark.parametrize("make", MEMBERS)
def test_a_foreign_keyword_is_explained(make: Any, keyword: str) -> None:
    if keyword in inspect.signature(make).parameters:
        return  # It has this option itself.
    with pytest.raises(TypeError) as caught:
        make(**{keyword: 1})
    origin, here = _hints.FOREIGN_KEYWORDS[keyword]
    message = str(caught.value)
    assert message.startswith(f"{make.__name__}() got an unexpected keyword argument {keyword!r}.")
    assert origin in message
    assert here in message


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("stopcoef", ("v3.8.6+", "v3.9.1", "emo_sens3")),
        ("notify", ("v3.9.1", "emo_sens3", "should_stop")),
        ("fftmode", ("v3.8.6", "a tenth of `learning_rate`")),
        ("writer", ("v3.1", "v3.6.1", "v3.7.1", "emo_optax.get_metrics(state)")),
        ("lr_max", ("v3.3", "schedule")),
        ("lr_min", ("v3.3", "schedule")),
        ("histwarmup", ("EmoPulse v3.9.3+",)),
        ("boost", ("EmoPulse v3.9.3+",)),
        ("shadow_weight", ("pytorch_optimizer", "3.7 to 4.1", "`shadow_rate`")),
        ("weight_decouple", ("pytorch_optimizer", "`weight_decay_mode`", '"l2"')),
        ("fixed_decay", ("pytorch_optimizer", '`weight_decay_mode="absolute"`')),
        ("lr", ("PyTorch", "It is `learning_rate` here")),
        ("betas", ("PyTorch", "`b1` and `b2`")),
        ("amsgrad", ("torch.optim.Adam", "leave it out")),
        ("nesterov", ("optax.adam", "leave it out")),
    ],
)
def test_the_text_names_the_version_and_what_it_is_here(keyword: str, words: tuple[str, ...]) -> None:
    with pytest.raises(TypeError) as caught:
        emo_optax.emo_sens(**{keyword: 1})  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in words)


def test_every_foreign_keyword_is_named_at_once() -> None:
    with pytest.raises(TypeError) as caught:
        emo_optax.emo_sens(stopcoef=0.07, notify=True)  # type: ignore[call-arg]
    assert "'stopcoef'" in str(caught.value)
    assert "'notify'" in str(caught.value)


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        ("weight_deacy", "weight_decay"),
        ("learning_rates", "learning_rate"),
        ("Theta", "theta"),
        ("use-shadow", "use_shadow"),
    ],
)
def test_a_misspelt_option_is_asked_back(keyword: str, meant: str) -> None:
    with pytest.raises(TypeError, match=f"{keyword!r}. Did you mean {meant!r}\\?"):
        emo_optax.emo_sens(**{keyword: 1})  # type: ignore[arg-type]


def test_a_keyword_like_nothing_here_gets_the_list() -> None:
    with pytest.raises(TypeError, match="The options of emo_navi are learning_rate, b1, b2, eps,"):
        emo_optax.emo_navi(xyzzy=1)  # type: ignore[call-arg]


def test_hints_reach_every_way_to_make_an_optimizer() -> None:
    with pytest.raises(TypeError, match="EmoPulse"):
        emo_optax.create_optimizer("emo_sens", boost=10.0)
    with pytest.raises(TypeError, match="Did you mean 'theta'"):
        emo_optax.emotional(optax.sgd(0.1), tetha=0.1)  # type: ignore[call-arg]


@pytest.mark.parametrize("make", MEMBERS)
def test_signatures_stay_as_they_are_written_and_can_be_injected(make: Any) -> None:
    parameters = inspect.signature(make).parameters
    assert list(parameters)[:4] == ["learning_rate", "b1", "b2", "eps"]
    assert not any(each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL) for each in parameters.values())
    assert parameters["learning_rate"].annotation == optax.ScalarOrSchedule
    static = [name for name in ("mask", "shadow_ratio", "moment_dtype") if name in parameters]
    optimizer = optax.inject_hyperparams(make, static_args=static)(learning_rate=0.01)
    state = optimizer.init(jnp.ones(2))
    assert float(state.hyperparams["learning_rate"]) == np.float32(0.01)


@pytest.mark.parametrize("make", GENERATIONS_1_AND_2)
@pytest.mark.parametrize(
    "arguments",
    [
        (1e-3, (0.9, 0.999)),  # PyTorch's betas.
        (1e-3, 1e-8, (0.9, 0.995)),  # v3.6: eps before betas.
        (1e-3, 1e-3, 1e-8, (0.9, 0.999)),  # pytorch_optimizer 3.9: lr_max and lr_min before betas.
    ],
)
def test_the_order_of_other_versions_is_refused_with_the_reason(make: Any, arguments: Any) -> None:
    with pytest.raises(TypeError, match=r"Invalid (b1|b2|eps): .*v3.6: lr, eps, betas.*by name"):
        make(*arguments)


# The learning rate.


def warned(make: Any, *args: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(*args, **options)
    assert all(issubclass(each.category, emo_optax.EmoWarning) for each in caught)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize(
    "rate",
    [0.1, 1.0, 1, np.float32(0.5), np.asarray(0.5), optax.constant_schedule(0.5), lambda _: 0.5],
)
@pytest.mark.parametrize("make", GENERATIONS_1_AND_2)
def test_a_large_learning_rate_warns_once_for_each_member(make: Any, rate: Any) -> None:
    (message,) = warned(make, rate)
    number = float(rate(0) if callable(rate) else rate)
    assert f"A learning rate of {number:g} is very large for {make.__name__}. " in message
    assert warned(make, rate) == []
    assert warned(make, learning_rate=5.0) == []


@pytest.mark.parametrize("name", ["sens", "airy", "cats"])
def test_the_warning_names_the_third_generation(name: str) -> None:
    (message,) = warned(getattr(emo_optax, f"emo_{name}"), learning_rate=1.0)
    assert "from v3.7 on" in message
    assert f"that third generation is emo_{name}3 here" in message


@pytest.mark.parametrize(("name", "rate"), [("navi", "6e-5"), ("fact", "1e-4"), ("lynx", "8e-5")])
def test_the_warning_names_the_rate_of_version_3_6(name: str, rate: str) -> None:
    (message,) = warned(getattr(emo_optax, f"emo_{name}"), 1.0)
    assert f"v3.6 {rate} is advised" in message


@pytest.mark.parametrize(
    "rate",
    [
        0.0,
        1e-3,
        0.0999,
        np.float32(0.05),
        optax.constant_schedule(0.05),
        optax.cosine_decay_schedule(0.05, 10),
        optax.warmup_constant_schedule(0.0, 0.05, 10),
        optax.linear_schedule(1.0, 0.0, 10),  # One that changes at every step.
        optax.piecewise_constant_schedule(1.0, {5: 0.1}),
    ],
)
def test_a_usual_learning_rate_and_one_that_changes_do_not_warn(rate: Any) -> None:
    for make in GENERATIONS_1_AND_2:
        make(rate)  # A warning would be an error here.


def test_others_do_not_warn() -> None:
    emo_optax.ref_adamw_mini_schedule_free(1.0)
    emo_optax.emotional(optax.sgd(1.0))


def test_an_array_is_not_waited_for_and_nothing_is_traced_again() -> None:
    traces = []

    @jax.jit
    def step(params: jax.Array, rate: jax.Array) -> Any:
        traces.append(1)
        optimizer = emo_optax.emo_sens(rate)
        updates, _ = optimizer.update(params, optimizer.init(params), params, value=1.0)
        return updates

    for rate in (1.0, 2.0):
        step(jnp.ones(2), jnp.float32(rate))
    assert len(traces) == 1
    on_device = jnp.float32(1.0)
    with jax.transfer_guard_device_to_host("disallow"):
        _hints.warn_of_large_rate("emo_sens", on_device)
    optimizer = optax.inject_hyperparams(emo_optax.emo_cats)(learning_rate=1.0)
    state = optimizer.init(jnp.ones(2))
    optimizer.update(jnp.ones(2), state, jnp.ones(2), value=1.0)
    assert not _hints._warned


def test_a_schedule_is_not_called_with_a_step() -> None:
    steps = []

    def schedule(step: Any) -> Any:
        steps.append(step * 1.0)
        return steps[-1]

    emo_optax.emo_sens(schedule)
    assert steps == []


def test_the_warning_points_at_the_code_that_made_the_optimizer_and_is_said_once() -> None:
    code = "import emo_optax\nmake = lambda: emo_optax.emo_sens(1.0)\nmake()\nmake()\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.count("EmoWarning: A learning rate of 1 is very large for emo_sens.") == 1
    assert "<string>:2: EmoWarning" in result.stderr


def test_the_category_can_be_filtered() -> None:
    assert issubclass(emo_optax.EmoWarning, UserWarning)
    warnings.simplefilter("ignore", emo_optax.EmoWarning)
    emo_optax.emo_sens(1.0)
