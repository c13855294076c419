import pytest
import torch

from emo_torch import went_quiet


def quiet(scalars: list[float], felt: int = 32, **bounds: float) -> bool:
    return bool(went_quiet(torch.tensor(scalars, dtype=torch.float64), torch.tensor(felt), **bounds))


@pytest.mark.parametrize(("felt", "expected"), [(0, False), (31, False), (32, True), (5000, True)])
def test_needs_32_losses(felt: int, expected: bool) -> None:
    assert quiet([0.01] * 32, felt) is expected


def test_the_mean_is_of_sizes_so_that_signs_do_not_cancel() -> None:
    assert quiet([0.049, -0.049] * 16)
    assert not quiet([0.051, -0.051] * 16)


def test_both_bounds_are_strict() -> None:
    assert not quiet([0.25] * 32, mean_below=0.25)
    assert quiet([0.25] * 32, mean_below=0.2500001)
    # Half 0.5, half 0: a mean of 0.25 and a variance of 0.0625, exactly.
    assert not quiet([0.5, 0.0] * 16, mean_below=0.3, variance_below=0.0625)
    assert quiet([0.5, 0.0] * 16, mean_below=0.3, variance_below=0.0625001)


def test_the_default_bounds_are_a_twentieth_and_a_two_hundredth() -> None:
    assert quiet([0.0499] * 32)
    assert not quiet([0.0501] * 32)
    # One loud step among 32: a mean of x / 32, a variance of x^2 31 / 1024.
    assert quiet([0.0] * 31 + [0.40])  # 0.00484
    assert not quiet([0.0] * 31 + [0.41])  # 0.00509


def test_the_variance_is_over_32_and_not_31() -> None:
    # 0.404^2 * 31 / 1024 is 0.00494, over 31 it would be 0.0051.
    assert quiet([0.404] + [0.0] * 31)


def test_the_answer_is_a_tensor() -> None:
    answer = went_quiet(torch.zeros(32), torch.tensor(32, dtype=torch.int32))
    assert answer.dtype == torch.bool
    assert answer.shape == ()
