# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from gansparse.data.sampling import ShuffledBatches, latents
from gansparse.errors import InputError
from gansparse.tasks.dcgan import r1_penalty


def test_an_epoch_shows_every_picture_once():
    batches = ShuffledBatches(torch.arange(12), batch_size=3, seed=5)
    for epoch in range(3):
        shown = torch.cat([batches(epoch * 4 + i) for i in range(4)])
        assert sorted(shown.tolist()) == list(range(12))
    assert not torch.equal(batches(0), batches(4))


def test_any_step_can_be_asked_for_in_any_order():
    one, two = (ShuffledBatches(torch.arange(50), 8, seed=1) for _ in range(2))
    forward = [one(step) for step in range(20)]
    for step in reversed(range(20)):
        assert torch.equal(two(step), forward[step])


def test_seeds_and_steps_and_streams_differ():
    draws = [
        latents(0, 0, 4, (3,)),
        latents(0, 1, 4, (3,)),
        latents(1, 0, 4, (3,)),
        latents(0, 0, 4, (3,), stream="evaluation"),
    ]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == 4
    assert torch.equal(latents(0, 1, 4, (3,)), draws[1])


@pytest.mark.parametrize("size", [0, 13])
def test_batch_sizes_that_do_not_fit(size):
    with pytest.raises(InputError, match=f"batch size must be 1..12 .* got {size}"):
        ShuffledBatches(torch.arange(12), size, seed=0)


def test_r1_of_a_linear_discriminator_is_half_its_squared_norm():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1)).double()
    penalty = r1_penalty(net, torch.randn(5, 3, 2, 2, dtype=torch.float64))
    torch.testing.assert_close(penalty, 0.5 * net[1].weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(net[1].weight.grad, net[1].weight.detach())
