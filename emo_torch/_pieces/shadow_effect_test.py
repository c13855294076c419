import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch

from emo_torch import EmoAiry, filter_by_emotion, keep_elements, keep_rows_and_columns, step_scale

WIDE = torch.float64


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=WIDE)


def test_an_element_stays_where_the_cube_root_of_its_size_reaches_the_tolerance() -> None:
    gradient = tensor([0.0, 0.124, 0.125, 0.126, -0.124, -0.125, -0.126])
    expected = [False, False, True, True, False, True, True]
    assert keep_elements(gradient, tensor(0.5)).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, WIDE])
def test_the_default_tolerance_stops_elements_under_a_trillionth(dtype: torch.dtype) -> None:
    gradient = torch.tensor([0.0, 0.99e-12, 1.01e-12, -0.99e-12, -1.01e-12], dtype=dtype)
    kept = keep_elements(gradient, torch.tensor(1e-4, dtype=dtype))
    assert kept.tolist() == [False, False, True, False, True]


def test_without_a_tolerance_every_element_stays() -> None:
    assert keep_elements(tensor([0.0, -1e-300, 1.0]), tensor(0.0)).all()


def test_a_vector_needs_the_cube_root_of_its_square_above_the_tolerance() -> None:
    keep = keep_rows_and_columns()
    # 0.25^1.5 is an eighth; on the bound an element is stopped.
    gradient = tensor([0.0, 0.125, 0.1251, -0.125, -0.1251])
    assert keep(gradient, tensor(0.25)).tolist() == [False, False, True, False, True]
    assert keep(tensor(0.1251), tensor(0.25)).item() is True
    assert keep(tensor([0.0, 1e-300]), tensor(0.0)).tolist() == [False, True]


def test_a_matrix_needs_its_row_and_its_column_above_the_tolerance() -> None:
    # Row means of the squares: 8, 0.02; column means: 8.02, 0.02, 4.
    gradient = tensor([[4.0, 0.0, np.sqrt(8.0)], [0.2, 0.2, 0.0]])
    keep = keep_rows_and_columns(eps=0.0)
    assert keep(gradient, tensor(0.0)).all()
    assert keep(gradient, tensor(1.0)).tolist() == [[True, False, True], [False, False, False]]
    assert not keep(gradient, tensor(2.01)).any()
    # 4^(1/3) = 1.587 stands between these two.
    assert keep(gradient, tensor(1.58)).tolist() == [[True, False, True], [False] * 3]
    assert keep(gradient, tensor(1.60)).tolist() == [[True, False, False], [False] * 3]


def test_eps_is_added_to_the_means_before_the_test() -> None:
    gradient = torch.zeros(2, 2, dtype=WIDE)
    assert keep_rows_and_columns(eps=8.0)(gradient, tensor(1.99)).all()
    assert not keep_rows_and_columns(eps=8.0)(gradient, tensor(2.0)).any()
    assert keep_rows_and_columns()(gradient, tensor(2e-4)).all()


def test_more_dimensions_have_rows_over_all_axes_but_the_first() -> None:
    gradient = torch.zeros(2, 2, 2, dtype=WIDE)
    gradient[0, 0, 0], gradient[0, 1, 1] = 2.0, 2.0
    kept = keep_rows_and_columns(eps=0.0)(gradient, tensor(1.0))
    # The first row's mean is 2; columns (0, 0) and (1, 1) have a mean of 2.
    expected = torch.zeros(2, 2, 2, dtype=torch.bool)
    expected[0, 0, 0] = expected[0, 1, 1] = True
    assert torch.equal(kept, expected)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 2)])
def test_nothing_to_keep_in_nothing(shape: tuple[int, ...]) -> None:
    for keep in (keep_elements, keep_rows_and_columns()):
        kept = keep(torch.zeros(shape), torch.tensor(1e-4))
        assert kept.shape == shape
        assert kept.dtype == torch.bool


def test_what_is_stopped_is_zero_even_where_it_was_not_finite() -> None:
    update = tensor([np.nan, np.inf, -3.0, 4.0])
    gradient = tensor([0.0, 0.0, 1.0, 1.0])
    filtered = filter_by_emotion(update, gradient, tensor(1e-4), keep_elements)
    assert filtered.tolist() == [0.0, 0.0, -3.0, 4.0]
    assert filtered.dtype == WIDE


@pytest.mark.parametrize(("scalar", "scale"), [(0.0, 1.0), (0.25, 0.75), (-0.75, 0.25), (1.0, 0.0)])
def test_the_step_shrinks_by_the_size_of_the_scalar(scalar: float, scale: float) -> None:
    assert step_scale(torch.tensor(scalar)).item() == scale


def test_the_test_of_rows_and_columns_can_be_made_in_traced_code() -> None:
    keep = keep_rows_and_columns(1e-3)
    # PyTorch 2.11 and 2.12 cannot trace the making of one whose field is not read.
    assert not dataclasses.is_dataclass(keep)
    assert "__eq__" not in vars(type(keep))
    assert repr(pickle.loads(pickle.dumps(keep))) == repr(copy.deepcopy(keep)) == repr(keep)


@pytest.mark.parametrize("shape", [(4,), (4, 3), ()])
def test_a_compiled_step_of_emo_airy_is_one_graph(shape: tuple[int, ...]) -> None:
    results = []
    for is_compiled in (False, True):
        param = torch.nn.Parameter(torch.ones(shape))
        optimizer = EmoAiry([param], lr=1e-2, theta=0.3, foreach=False)
        param.grad = torch.full(shape, 0.5)
        optimizer.step(loss=torch.tensor(1.0))  # Makes the state.
        step = torch.compile(optimizer.step, backend="eager", fullgraph=True)
        (step if is_compiled else optimizer.step)(loss=torch.tensor(2.0))
        results.append(param.detach())
    assert results[0].equal(results[1])
