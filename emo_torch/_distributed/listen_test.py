"""`listen` with parameters that FSDP has sharded, whose gradients come late or into local parts."""

import pytest

import emo_torch
from emo_torch._distributed.processes_test import Place, in_processes
from emo_torch._distributed.training_test import own_share, sharded


@pytest.mark.parametrize("is_synced", [True, False])
@pytest.mark.parametrize("set_to_none", [True, False])
@in_processes(2)
def test_every_pass_of_a_step_is_heard(place: Place, is_synced: bool, set_to_none: bool) -> None:
    net, other = sharded(place), sharded(place)
    optimizers = [emo_torch.EmoSens(each.parameters(), lr=1e-3) for each in (net, other)]
    with emo_torch.listen(*optimizers):
        for step in range(2):
            losses = []
            for part in range(3):
                inputs, targets = own_share(3 * step + part, place)
                net.set_requires_gradient_sync(is_synced or part == 2)  # type: ignore[operator]
                loss = (net(inputs) - targets).square().mean() / 3
                loss.backward()
                losses.append(loss.item())
            collected = optimizers[0]._collected
            assert collected.raw_sum is not None
            assert float(collected.raw_sum) == pytest.approx(sum(losses))
            optimizers[0].step()
            optimizers[0].zero_grad(set_to_none)
    assert optimizers[0].emotion.felt == 2
    with pytest.raises(emo_torch.LossMissingError):
        optimizers[1].step()
