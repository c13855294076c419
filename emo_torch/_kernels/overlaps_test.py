"""Parameters whose step writes memory of another parameter are found, and no others."""

import torch

from emo_torch._kernels.overlaps import overlapping, overlapping_parameters


def test_a_shared_byte_is_found_and_neighbours_are_not() -> None:
    memory = torch.zeros(100)
    apart = [[memory[:50]], [memory[50:90]], [memory[90:]]]
    grads = [torch.zeros(each.shape) for (each,) in apart]
    assert overlapping(apart, grads) == set()
    assert overlapping([[memory[:51]], *apart[1:]], grads) == {0, 1}
    # The first tensor contains the second one and reaches the third one, which is apart from the second.
    assert overlapping([[memory[:91]], [memory[3:7]], [memory[90:]], [torch.zeros(3)]], []) == {0, 1, 2}


def test_a_gradient_counts_where_the_memory_is_written() -> None:
    memory, grad = torch.zeros(100), torch.zeros(50)
    written = [[memory[:50]], [torch.zeros(50)], [torch.zeros(50)]]
    assert overlapping(written, [grad, grad, memory[40:]]) == {0, 2}
    assert overlapping(written, [memory[:50], grad, grad]) == {0}


def test_dtypes_and_strides_do_not_hide_memory() -> None:
    memory = torch.zeros(8, 8)
    assert overlapping([[memory.t()[7:]], [memory[7:]]], []) == {0, 1}
    assert overlapping([[memory.view(torch.float64)[:, :2]], [memory[:, 2:]]], []) == {0, 1}
    assert overlapping([[memory[:4, ::2]], [memory[4:]]], []) == set()


def test_what_has_no_address_or_no_elements_is_apart() -> None:
    empty, sparse = torch.zeros(0, 3), torch.eye(3).to_sparse()
    assert overlapping([[empty], [empty], [sparse], [sparse]], [empty, empty, sparse, sparse]) == set()
    assert overlapping([], []) == set()


def test_moments_count_and_one_flag_for_all_shadows_does_not() -> None:
    params, flag, moment = [torch.zeros(3), torch.zeros(3)], torch.tensor(True), torch.zeros(6)
    states = [
        {"shadow_exists": flag, "exp_avg": moment[:3]},
        {"shadow_exists": flag, "exp_avg": moment[3:]},
    ]
    assert overlapping_parameters(params, params[:0], states) == set()
    states[0]["exp_avg"] = moment[1:4]
    assert overlapping_parameters(params, params[:0], states) == {0, 1}
