import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import emo_torch
from emo_torch._rules import adam, factors, lion

WIDE = torch.float64


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=WIDE)


def close(ours: Tensor, theirs: Any) -> None:
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-14, atol=1e-300)


def test_adam_s_moments_are_not_corrected() -> None:
    exp_avg, exp_avg_sq = tensor([0.0, 2.0]), tensor([0.0, 4.0])
    update = emo_torch.scale_by_uncorrected_adam(
        tensor([2.0, -4.0]), exp_avg, exp_avg_sq, b1=0.5, b2=0.75, eps=0.5
    )
    close(exp_avg, [1.0, -1.0])
    close(exp_avg_sq, [1.0, 7.0])
    close(update, [1.0 / 1.5, -1.0 / (math.sqrt(7.0) + 0.5)])


def test_the_first_step_of_adam_s_moments_is_the_root_of_ten_long() -> None:
    update = emo_torch.scale_by_uncorrected_adam(tensor([5.0]), tensor([0.0]), tensor([0.0]), eps=0.0)
    close(update, [math.sqrt(10.0)])


def test_lion_takes_the_sign_before_it_moves_the_momentum() -> None:
    exp_avg = tensor([2.0, 2.0, 0.0, -8.0])
    update = emo_torch.scale_by_lion(tensor([-4.0, -1.0, 0.0, 8.0]), exp_avg, b1=0.5, b2=0.75)
    close(update, [-1.0, 1.0, 0.0, 0.0])
    close(exp_avg, [0.5, 1.25, 0.0, -4.0])


def test_lion_s_default_decay_rates() -> None:
    exp_avg = tensor([1.0, 1.0])
    # 0.9 - 0.1 * 8.9 is just above 0, 0.9 - 0.1 * 9.1 just below.
    update = emo_torch.scale_by_lion(tensor([-8.9, -9.1]), exp_avg)
    close(update, [1.0, -1.0])
    close(exp_avg, [0.99 - 0.089, 0.99 - 0.091])


def test_rows_average_all_axes_but_the_first_and_columns_the_first() -> None:
    row, column = torch.zeros(2, 1, dtype=WIDE), torch.zeros(1, 3, dtype=WIDE)
    grad = tensor([[1.0, 2.0, 2.0], [4.0, 4.0, 4.0]])
    update = emo_torch.scale_by_factors(grad, row, column, b1=0.75, eps=0.0)
    close(row, [[math.sqrt(3.0) / 4], [1.0]])
    close(column, [[math.sqrt(8.5) / 4, math.sqrt(10.0) / 4, math.sqrt(10.0) / 4]])
    close(update[1], [4 / math.sqrt(math.sqrt(8.5) / 4), *[4 / math.sqrt(math.sqrt(10.0) / 4)] * 2])


def test_eps_is_inside_the_means_and_beside_the_root() -> None:
    row, column = torch.zeros(1, 1, dtype=WIDE), torch.zeros(1, 1, dtype=WIDE)
    update = emo_torch.scale_by_factors(tensor([[3.0]]), row, column, b1=0.0, eps=7.0)
    close(row, [[4.0]])
    close(column, [[4.0]])
    close(update, [[3.0 / 11.0]])


def test_a_tensor_s_factors_have_its_first_axis_and_its_others() -> None:
    generator = np.random.default_rng(0)
    grad = generator.normal(size=(2, 3, 4, 5))
    row, column = torch.zeros(2, 1, 1, 1, dtype=WIDE), torch.zeros(1, 3, 4, 5, dtype=WIDE)
    update = emo_torch.scale_by_factors(tensor(grad), row, column, b1=0.0, eps=1e-3)
    rows = np.sqrt(np.array([np.mean(part**2) for part in grad]) + 1e-3).reshape(2, 1, 1, 1)
    columns = np.sqrt((grad[:1] ** 2 + grad[1:] ** 2) / 2 + 1e-3)
    close(row, rows)
    close(column, columns)
    close(update, grad / (np.sqrt(rows * columns) + 1e-3))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 2)])
def test_the_factors_of_nothing_rest(shape: tuple[int, ...]) -> None:
    row = torch.full((shape[0],) + (1,) * (len(shape) - 1), 0.5)
    column = torch.full((1, *shape[1:]), 0.5)
    for many in (False, True):
        if many:
            (update,) = factors.multi_tensor_scale_by_factors([torch.zeros(shape)], [row], [column])
        else:
            update = emo_torch.scale_by_factors(torch.zeros(shape), row, column)
        assert update.shape == shape
        assert bool(torch.all(row == 0.5))
        assert bool(torch.all(column == 0.5))


def test_factored_moments_are_adam_s_below_two_dimensions() -> None:
    for grad in (tensor(3.0), tensor([3.0, -2.0])):
        moments = {"exp_avg": torch.zeros_like(grad), "exp_avg_sq": torch.zeros_like(grad)}
        update = emo_torch.scale_by_factored_moments(grad, moments, b1=0.5, b2=0.75, eps=0.5)
        close(moments["exp_avg"], grad / 2)
        close(moments["exp_avg_sq"], grad.square() / 4)
        close(update, (grad / 2) / (grad.abs() / 2 + 0.5))


def test_factored_moments_are_factors_from_two_dimensions_on() -> None:
    moments = {"row": torch.zeros(1, 1, dtype=WIDE), "column": torch.zeros(1, 1, dtype=WIDE)}
    update = emo_torch.scale_by_factored_moments(tensor([[3.0]]), moments, b1=0.75, b2=0.1, eps=0.0)
    close(moments["row"], [[0.75]])
    close(update, [[4.0]])


@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_many_tensors_are_scaled_as_one(eps: float) -> None:
    torch.manual_seed(0)
    shapes = ((4, 3), (5,), (), (2, 3, 2), (1,), (0,), (0, 2), (3, 0), (1, 1))
    grads = [torch.randn(shape, dtype=WIDE) for shape in shapes]

    def fresh() -> list[dict[str, Tensor]]:
        optimizer = emo_torch.EmoAiry([torch.ones(1)])
        return [optimizer.init_moments(grad, WIDE) for grad in grads]

    ours, theirs = fresh(), fresh()
    for _ in range(3):
        updates = factors.multi_tensor_scale_by_factored_moments(grads, ours, b1=0.8, b2=0.9, eps=eps)
        for grad, update, moments, twin in zip(grads, updates, ours, theirs, strict=True):
            expected = emo_torch.scale_by_factored_moments(grad, twin, b1=0.8, b2=0.9, eps=eps)
            assert update.shape == grad.shape
            assert torch.equal(update, expected)
            assert all(torch.equal(moments[name], twin[name]) for name in twin)


def test_no_rule_changes_its_gradient() -> None:
    grad = torch.randn(3, 2)
    kept = grad.clone()
    emo_torch.scale_by_uncorrected_adam(grad, torch.zeros(3, 2), torch.zeros(3, 2))
    emo_torch.scale_by_lion(grad, torch.zeros(3, 2))
    emo_torch.scale_by_factors(grad, torch.zeros(3, 1), torch.zeros(1, 2))
    pair = [torch.zeros(3, 2), torch.zeros(3, 2)]
    adam.multi_tensor_scale_by_uncorrected_adam([grad], pair[:1], pair[1:])
    lion.multi_tensor_scale_by_lion([grad], pair[:1])
    factors.multi_tensor_scale_by_factors([grad], [torch.zeros(3, 1)], [torch.zeros(1, 2)])
    assert torch.equal(grad, kept)
