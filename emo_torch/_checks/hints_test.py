"""Arguments of other optimizers are explained, and a learning rate for another generation warns once."""

import inspect
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import emo_torch
from emo_torch._checks import hints as _hints

GENERATIONS_1_AND_2: list[Any] = [
    emo_torch.EmoSens,
    emo_torch.EmoAiry,
    emo_torch.EmoCats,
    emo_torch.EmoNavi,
    emo_torch.EmoFact,
    emo_torch.EmoLynx,
    emo_torch.EmoClan,
    emo_torch.EmoNeco,
    emo_torch.EmoZeal,
]
MEMBERS: list[Any] = [*GENERATIONS_1_AND_2, emo_torch.RefAdamWMiniScheduleFree]


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(2))


@pytest.fixture(autouse=True)
def every_warning_is_an_error() -> Iterator[None]:
    """Large learning rates warn here too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # A warning of torch.compile under one release of Python, as in pyproject.toml.
        warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0")
        yield


# Keywords.


@pytest.mark.parametrize("keyword", _hints.FOREIGN_KEYWORDS)
@pytest.mark.parametrize("cls", MEMBERS)
def test_a_foreign_keyword_is_explained(cls: Any, keyword: str) -> None:
    if keyword in inspect.signature(cls).parameters:
        return  # It has this option itself.
    with pytest.raises(TypeError) as caught:
        cls([weight()], **{keyword: 1})
    origin, here = _hints.FOREIGN_KEYWORDS[keyword]
    message = str(caught.value)
    assert message.startswith(f"{cls.__name__}() got an unexpected keyword argument {keyword!r}.")
    assert origin in message
    assert here in message


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("stopcoef", ("v3.8.6+", "v3.9.1", "EmoSens3")),
        ("notify", ("v3.9.1", "EmoSens3", "should_stop")),
        ("fftmode", ("v3.8.6", "a tenth of `lr`")),
        ("writer", ("v3.1", "v3.6.1", "v3.7.1", "emo_torch.get_metrics(optimizer)")),
        ("lr_max", ("v3.3", "schedule")),
        ("lr_min", ("v3.3", "schedule")),
        ("histwarmup", ("EmoPulse v3.9.3+",)),
        ("boost", ("EmoPulse v3.9.3+",)),
        ("shadow_weight", ("pytorch_optimizer", "3.7 to 4.1", "`shadow_rate`")),
        ("weight_decouple", ("pytorch_optimizer", "`weight_decay_mode`", '"l2"')),
        ("fixed_decay", ("pytorch_optimizer", '`weight_decay_mode="absolute"`')),
        ("learning_rate", ("Optax", "It is `lr` here")),
        ("b1", ("Optax", "`betas`")),
        ("amsgrad", ("torch.optim.Adam", "leave it out")),
        ("nesterov", ("torch.optim.SGD", "leave it out")),
    ],
)
def test_the_text_names_the_version_and_what_it_is_here(keyword: str, words: tuple[str, ...]) -> None:
    options: dict[str, Any] = {keyword: 1}
    with pytest.raises(TypeError) as caught:
        emo_torch.EmoSens([weight()], **options)
    assert all(word in str(caught.value) for word in words)


def test_every_foreign_keyword_is_named_at_once() -> None:
    with pytest.raises(TypeError) as caught:
        emo_torch.EmoSens([weight()], stopcoef=0.07, notify=True)  # type: ignore[call-arg]
    assert "'stopcoef'" in str(caught.value)
    assert "'notify'" in str(caught.value)


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [("weight_deacy", "weight_decay"), ("beta", "betas"), ("Theta", "theta"), ("use-shadow", "use_shadow")],
)
def test_a_misspelt_option_is_asked_back(keyword: str, meant: str) -> None:
    options: dict[str, Any] = {keyword: 1}
    with pytest.raises(TypeError, match=f"{keyword!r}. Did you mean {meant!r}\\?"):
        emo_torch.EmoSens([weight()], **options)


def test_a_keyword_like_nothing_here_gets_the_list() -> None:
    with pytest.raises(TypeError, match="The options of EmoNavi are params, lr, betas, eps, weight_decay"):
        emo_torch.EmoNavi([weight()], xyzzy=1)  # type: ignore[call-arg]


def test_hints_reach_every_way_to_make_an_optimizer() -> None:
    class Mine(emo_torch.EmoSens):
        def __init__(self, params: Any, **options: Any) -> None:
            super().__init__(params, **options)

    with pytest.raises(TypeError, match="EmoPulse"):
        emo_torch.create_optimizer("emo_sens", [weight()], boost=10.0)
    with pytest.raises(TypeError, match=r"Mine\(\) got an unexpected keyword argument 'stopcoef'"):
        Mine([weight()], stopcoef=0.3)
    with pytest.raises(TypeError, match="Did you mean 'theta'"):
        emo_torch.Emotional(torch.optim.SGD([weight()], lr=0.1), tetha=0.1)  # type: ignore[call-arg]
    assert Mine([weight()], theta=0.5).param_groups[0]["theta"] == 0.5


@pytest.mark.parametrize("cls", MEMBERS)
def test_signatures_stay_as_they_are_written(cls: Any) -> None:
    parameters = inspect.signature(cls).parameters
    assert list(parameters)[:3] == ["params", "lr", "betas"]
    assert not any(each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL) for each in parameters.values())
    assert parameters["lr"].annotation == "float | Tensor"
    assert cls.__init__.__qualname__ == f"{cls.__name__}.__init__"


@pytest.mark.parametrize("cls", GENERATIONS_1_AND_2)
@pytest.mark.parametrize(
    "arguments",
    [
        (1e-3, 1e-8, (0.9, 0.995)),  # v3.6: eps before betas.
        (1e-3, 1e-8, (0.9, 0.995), 0.01),
        (1e-3, 1e-3, 1e-8, (0.9, 0.999)),  # pytorch_optimizer 3.9: lr_max and lr_min before betas.
    ],
)
def test_the_order_of_other_versions_is_refused_with_the_reason(cls: Any, arguments: Any) -> None:
    with pytest.raises(TypeError, match=r"Invalid betas: .*a pair.*v3.6: lr, eps, betas.*by name"):
        cls([weight()], *arguments)


# The learning rate.


def warned(make: Any, *args: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(*args, **options)
    assert all(issubclass(each.category, emo_torch.EmoWarning) for each in caught)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("lr", [0.1, 1.0, 1, torch.tensor(1.0), torch.tensor([0.5], dtype=torch.float64)])
@pytest.mark.parametrize("cls", GENERATIONS_1_AND_2)
def test_a_large_learning_rate_warns_once_for_each_class(cls: Any, lr: Any) -> None:
    (message,) = warned(cls, [weight()], lr=lr)
    assert (
        f"A learning rate of {float(lr):g} is very large for {cls.__name__}. `lr` is a step size" in message
    )
    assert warned(cls, [weight()], lr=lr) == []
    assert warned(cls, [weight()], lr=5.0) == []


@pytest.mark.parametrize("name", ["EmoSens", "EmoAiry", "EmoCats"])
def test_the_warning_names_the_third_generation(name: str) -> None:
    (message,) = warned(getattr(emo_torch, name), [weight()], 1.0)
    assert "from v3.7 on" in message
    assert f"that third generation is {name}3 here" in message


@pytest.mark.parametrize(("name", "rate"), [("EmoNavi", "6e-5"), ("EmoFact", "1e-4"), ("EmoLynx", "8e-5")])
def test_the_warning_names_the_rate_of_version_3_6(name: str, rate: str) -> None:
    (message,) = warned(getattr(emo_torch, name), [weight()], 1.0)
    assert f"v3.6 {rate} is advised" in message


def test_a_class_does_not_warn_for_another() -> None:
    assert len(warned(emo_torch.EmoSens, [weight()], lr=1.0)) == 1
    assert len(warned(emo_torch.EmoNavi, [weight()], lr=1.0)) == 1
    assert len(warned(emo_torch.EmoZeal, [weight()], lr=1.0)) == 1
    assert len(warned(emo_torch.EmoFact, [weight()], lr=1.0)) == 1


def test_a_subclass_of_a_user_warns_as_its_base_and_a_member_of_another_generation_not_at_all() -> None:
    class Mine(emo_torch.EmoSens):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, lr)

    Mine.__module__ = "of_a_user"
    assert "for EmoSens" in warned(Mine, [weight()], 1.0)[0]
    _hints._warned.clear()
    Mine.__module__ = "emo_torch._emo_mine"
    assert warned(Mine, [weight()], 1.0) == []


def test_only_rates_that_are_stepped_with_count() -> None:
    assert warned(emo_torch.EmoSens, [{"params": [weight()], "lr": 1e-3}], lr=1.0) == []
    groups = [{"params": [weight()], "lr": 1e-3}, {"params": [weight()], "lr": 0.5}]
    assert "0.5" in warned(emo_torch.EmoSens, groups)[0]
    optimizer = emo_torch.EmoCats([weight()])
    (message,) = warned(optimizer.add_param_group, {"params": [weight()], "lr": 2.0})
    assert "A learning rate of 2" in message


@pytest.mark.parametrize("lr", [0.0, 1e-3, 0.0999, torch.tensor(0.05)])
def test_a_usual_learning_rate_does_not_warn(lr: Any) -> None:
    for cls in GENERATIONS_1_AND_2:
        cls([weight()], lr=lr)  # A warning would be an error here.


def test_others_do_not_warn() -> None:
    emo_torch.RefAdamWMiniScheduleFree([weight()], lr=1.0)
    emo_torch.Emotional(torch.optim.SGD([weight()], lr=1.0))


def test_schedules_files_and_steps_do_not_warn() -> None:
    param = weight()
    optimizer = emo_torch.EmoSens([param], lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1000.0)
    for _ in range(3):
        param.grad = torch.ones(2)
        optimizer.step(loss=1.0)
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 1.0
    emo_torch.EmoSens([weight()]).load_state_dict(optimizer.state_dict())


def test_a_rate_on_a_device_is_not_waited_for() -> None:
    class OnADevice(torch.Tensor):
        """A tensor whose value takes a sync with its device."""

        def __float__(self) -> float:
            raise AssertionError("a sync")

    lr = torch.tensor(1.0).as_subclass(OnADevice)
    _hints.warn_of_large_rate(emo_torch.EmoSens([weight()]), lr)
    _hints.warn_of_large_rate(emo_torch.EmoSens([weight()]), torch.tensor(1.0, device="meta"))


def test_nothing_breaks_the_graph_of_a_compiled_step() -> None:
    param = weight()
    (message,) = warned(emo_torch.EmoSens, [param], lr=1.0, foreach=True)
    assert message
    _hints._warned.clear()
    optimizer = emo_torch.EmoSens([param], lr=1e-3)
    optimizer.param_groups[0]["lr"] = torch.tensor(1.0)
    param.grad = torch.ones(2)

    @torch.compile(fullgraph=True, backend="eager")
    def step(loss: torch.Tensor) -> None:
        optimizer.step(loss=loss)

    step(torch.tensor(1.0))
    assert not _hints._warned


def test_the_warning_points_at_the_code_that_made_the_optimizer_and_is_said_once() -> None:
    code = (
        "import torch, emo_torch\n"
        "make = lambda: emo_torch.EmoSens([torch.nn.Parameter(torch.ones(2))], lr=1.0)\n"
        "make()\n"
        "make()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.count("EmoWarning: A learning rate of 1 is very large for EmoSens.") == 1
    assert result.stderr.startswith("<string>:2: EmoWarning")


def test_the_category_can_be_filtered() -> None:
    assert issubclass(emo_torch.EmoWarning, UserWarning)
    warnings.simplefilter("ignore", emo_torch.EmoWarning)
    emo_torch.EmoSens([weight()], lr=1.0)
