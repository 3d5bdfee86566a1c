# SPDX-License-Identifier: Apache-2.0
import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from gansparse.compress.quantize import EMQuantizer, plain, quantize
from gansparse.errors import InputError
from gansparse.sparsity.layers import find_layers


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(weight, alpha, beta, top):
    z = ((weight - beta) / alpha).round().clamp(0, top)
    return float((z * alpha + beta - weight).square().mean())


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_em_finds_what_a_search_over_all_levels_finds(bits):
    """Least mean squared error over a fine grid of (alpha, beta), symmetric about the mean."""
    weight = normal(4000).double()
    top = 2**bits - 1
    fitted = EMQuantizer(weight, bits)(weight)
    em = float((fitted - weight).square().mean())
    grid = min(
        error(weight, alpha, float(weight.mean()) - alpha * top / 2, top)
        for alpha in torch.linspace(0.2, 3.0, 500).tolist()
    )
    assert em <= grid * 1.02


def test_each_round_of_em_lowers_the_error():
    weight = normal(1000)
    quantizer = EMQuantizer(weight, 3).eval()
    low, high = weight.double().aminmax()
    quantizer.alpha.copy_((high - low) / 7)
    quantizer.beta.copy_(low)
    errors = []
    for _ in range(10):
        errors.append(float((quantizer(weight) - weight).square().mean()))
        quantizer.fit(weight, 1)
    assert all(b <= a for a, b in pairwise(errors))
    assert errors[-1] < 0.7 * errors[0]


def test_the_gradient_passes_the_rounding():
    weight = normal(50).requires_grad_()
    (EMQuantizer(weight, 2)(weight) * torch.arange(50.0)).sum().backward()
    torch.testing.assert_close(weight.grad, torch.arange(50.0))


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_equal_weights_stay_what_they_are(value):
    weight = torch.full((3, 3), value)
    torch.testing.assert_close(EMQuantizer(weight, 4)(weight), weight)


def test_bits_out_of_range_are_refused():
    for bits in (0, 17):
        with pytest.raises(InputError, match=f"bits must be 1..16, got {bits}"):
            EMQuantizer(torch.ones(2), bits)


def test_a_quantized_module_becomes_an_ordinary_one_with_the_same_output():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 3)).eval()
    keys = list(net.state_dict())
    quantize(find_layers(net), 3)
    picture = normal(1, 2, 8, 8)
    expected = net(picture)
    stripped = plain(copy.deepcopy(net))
    assert sorted(stripped.state_dict()) == sorted(keys)
    assert torch.equal(stripped(picture), expected)
    assert stripped[0].weight.unique().numel() <= 8
    assert "parametrizations" in " ".join(net.state_dict())  # the copy's master goes on
