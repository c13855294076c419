import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch import blend_with_shadow, shadow_ratio_v1, shadow_ratio_v2
from emo_torch._pieces.shadow_system import multi_tensor_blend_with_shadow

WIDE = torch.float64


@pytest.mark.parametrize(
    ("scalar", "ratio"),
    [
        (0.0, 0.0),
        (0.1, 0.0),
        (-0.1, 0.0),
        (0.101, 0.101),
        (-0.101, 0.101),
        (-0.6, 0.6),
        (1.0, 1.0),
        (-1.0, 1.0),
    ],
)
def test_the_ratio_of_v2_is_the_size_of_the_scalar_above_a_tenth(scalar: float, ratio: float) -> None:
    assert shadow_ratio_v2(torch.tensor(scalar, dtype=WIDE)).item() == ratio


@pytest.mark.parametrize(
    ("scalar", "ratio"),
    [
        *((0.0, 0.0), (0.3, 0.0), (-0.3, 0.0), (0.301, 0.3), (-0.301, 0.3)),
        *((0.6, 0.3), (-0.6, 0.3), (0.601, 0.8202), (-0.601, 0.1), (1.0, 0.9), (-1.0, 0.1)),
    ],
)
def test_the_ratio_of_v1_has_four_pieces(scalar: float, ratio: float) -> None:
    assert shadow_ratio_v1(torch.tensor(scalar, dtype=WIDE)).item() == pytest.approx(ratio, abs=1e-15)


@pytest.mark.parametrize("ratio", [shadow_ratio_v1, shadow_ratio_v2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratios_keep_dtype_and_shape(ratio: object, dtype: torch.dtype) -> None:
    assert callable(ratio)
    answer = ratio(torch.tensor(0.7, dtype=dtype))
    assert (answer.dtype, answer.shape) == (dtype, ())


class Blended:
    """Two parameters of which one has a shadow already."""

    def __init__(self, *, many: bool, dtype: torch.dtype = WIDE) -> None:
        self.many = many
        self.params = [torch.tensor([3.0, 5.0], dtype=dtype), torch.tensor([[8.0]], dtype=dtype)]
        self.shadows = [torch.tensor([1.0, 1.0], dtype=dtype), torch.tensor([[-9.0]], dtype=dtype)]
        self.exists = [torch.tensor(True), torch.tensor(False)]

    def blend(self, ratio: float, **options: float) -> None:
        share = torch.tensor(ratio, dtype=self.params[0].dtype)
        if self.many:
            multi_tensor_blend_with_shadow(self.params, self.shadows, self.exists, share, **options)
            return
        for param, shadow, exists in zip(self.params, self.shadows, self.exists, strict=True):
            blend_with_shadow(param, shadow, exists, share, **options)

    def numbers(self) -> list[object]:
        return [tensor.tolist() for tensor in (*self.params, *self.shadows, *self.exists)]


@pytest.fixture(params=[False, True], ids=["single", "many"])
def many(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_the_parameter_is_pulled_first_and_the_shadow_follows_the_new_one(many: bool) -> None:
    both = Blended(many=many)
    both.blend(0.5)
    # To (3 + 1) / 2 and (5 + 1) / 2; the shadow goes a twentieth of the way there.
    assert both.numbers() == [[2.0, 3.0], [[8.0]], [1.05, 1.1], [[8.0]], True, True]


def test_the_first_time_the_shadow_is_a_copy_and_nothing_else_happens(many: bool) -> None:
    both = Blended(many=many)
    both.blend(1.0)
    assert both.params[1].item() == both.shadows[1].item() == 8.0
    assert both.exists[1]
    both.shadows[1].fill_(0.0)
    both.blend(0.25)
    assert both.params[1].item() == 6.0
    assert both.shadows[1].item() == pytest.approx(0.3, abs=1e-15)


def test_the_shadow_rests_while_the_ratio_is_zero(many: bool) -> None:
    both, before = Blended(many=many), Blended(many=many).numbers()
    both.blend(0.0)
    assert both.numbers() == before


def test_a_ratio_of_one_puts_the_parameter_on_its_shadow(many: bool) -> None:
    both = Blended(many=many)
    both.blend(1.0)
    assert both.numbers()[0] == both.numbers()[2] == [1.0, 1.0]


def test_the_shadow_rate_is_an_option(many: bool) -> None:
    both = Blended(many=many)
    both.blend(0.5, shadow_rate=1.0)
    assert both.shadows[0].tolist() == both.params[0].tolist() == [2.0, 3.0]


def test_a_shadow_is_copied_to_the_last_bit_and_keeps_its_dtype(many: bool) -> None:
    both = Blended(many=many, dtype=torch.float32)
    both.params[1].fill_(0.1)
    both.shadows[1].fill_(1e30)
    both.blend(0.7)
    assert torch.equal(both.shadows[1], both.params[1])
    assert {tensor.dtype for tensor in (*both.params, *both.shadows)} == {torch.float32}


def test_names_stand_for_the_two_ratios_and_functions_for_themselves() -> None:
    def seen(ratio: object) -> float:
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = emo_torch.EmoSens([weight], use_shadow=True, shadow_ratio=ratio)  # type: ignore[arg-type]
        for loss in (1.0, 1.4, 1.4):
            weight.grad = torch.ones(1)
            optimizer.step(loss=loss)
        return optimizer.emotion.shadow_ratio.item() / optimizer.emotion.scalar.item()

    scalar = torch.tanh(torch.tensor(5 * (0.4 * 0.51 - 0.4 * 0.0199))).item()
    assert seen("v2.0") == pytest.approx(1.0)
    assert seen("v1.0") == pytest.approx((0.7 + 0.2 * scalar) / scalar, rel=1e-5)
    assert seen(lambda s: s * 0.125) == pytest.approx(0.125)


def test_the_ratio_that_is_shown_is_what_was_applied() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = emo_torch.EmoSens([weight], use_shadow=True)
    shown = []
    for loss in (1.0, 2.0, 2.0):
        weight.grad = torch.ones(1)
        optimizer.step(loss=loss)
        shown.append(optimizer.emotion.shadow_ratio.item())
    # On the second step the shadow is made, so only the third pulls.
    assert shown[:2] == [0.0, 0.0]
    assert shown[2] == optimizer.emotion.scalar.item() > 0.9


def test_a_parameter_whose_first_gradient_comes_late_gets_a_shadow_of_its_own() -> None:
    early, late = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.full((1,), 4.0))
    optimizer = emo_torch.EmoSens([early, late], lr=0.0, use_shadow=True)
    for loss in (1.0, 2.0, 2.0, 2.0):
        early.grad = torch.ones(1)
        optimizer.step(loss=loss)
    assert late not in optimizer.state
    late.grad = torch.ones(1)
    optimizer.step(loss=2.0)
    state = optimizer.state[late]
    assert (late.item(), state["shadow"].item(), bool(state["shadow_exists"])) == (4.0, 4.0, True)


def test_without_a_shadow_there_is_none_in_the_state() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = emo_torch.EmoSens([weight])
    for loss in (1.0, 9.0, 1.0):
        weight.grad = torch.ones(1)
        optimizer.step(loss=loss)
    assert optimizer.state[weight].keys() == {"exp_avg", "exp_avg_sq"}
    assert optimizer.emotion.shadow_ratio.item() == 0.0


def test_a_shadow_may_be_turned_on_and_off_on_the_way() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = emo_torch.EmoSens([weight], lr=0.0)

    def step(loss: float) -> Tensor:
        weight.grad = torch.zeros(1)
        optimizer.step(loss=loss)
        return weight.detach().clone()

    step(1.0)
    optimizer.param_groups[0]["use_shadow"] = True
    step(2.0)
    assert optimizer.state[weight]["shadow"].item() == 1.0
    with torch.no_grad():
        weight.fill_(3.0)
    assert step(2.0).item() < 3.0
    optimizer.param_groups[0]["use_shadow"] = False
    before = weight.detach().clone()
    assert torch.equal(step(5.0), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shadow_at_rest_stays_as_it_is_beside_what_is_not_finite(
    many: bool, value: float, dtype: torch.dtype
) -> None:
    both = Blended(many=many, dtype=dtype)
    for tensor in (both.params[0], both.shadows[0], both.params[1]):
        tensor.view(-1)[0] = value
    before = both.numbers()
    both.blend(0.0)
    assert repr(both.numbers()) == repr(before)
    both.blend(0.5)  # The other one's shadow becomes a copy.
    assert repr(both.shadows[1].tolist()) == repr(both.params[1].tolist()) == repr([[value]])
