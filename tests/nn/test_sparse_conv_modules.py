# SPDX-License-Identifier: Apache-2.0
"""SparseConv2d and SparseConvTranspose2d: the layers they are made of, without the zeros."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from gansparse.errors import CheckpointError, InputError
from gansparse.nn import SparseConv2d, SparseConvTranspose2d
from gansparse.ops import pack_sparse_conv2d
from gansparse.testing.compare import close

LAYERS = {
    "plain": lambda: nn.Conv2d(5, 8, 3, padding=1),
    "reflect": lambda: nn.Conv2d(5, 8, (3, 5), padding=(1, 2), padding_mode="reflect"),
    "stride": lambda: nn.Conv2d(5, 8, 4, 2, 1, bias=False),
    "same": lambda: nn.Conv2d(5, 8, 5, padding="same"),
    "valid": lambda: nn.Conv2d(5, 8, 5, padding="valid"),
    "transposed": lambda: nn.ConvTranspose2d(5, 8, 3, 2, 1, output_padding=1),
    "transposed 1": lambda: nn.ConvTranspose2d(5, 8, 4, bias=False),
}


@torch.no_grad()
def pruned(name: str, seed: int = 0) -> nn.Module:
    layer, source = LAYERS[name](), torch.Generator().manual_seed(seed)
    for value in layer.parameters():
        value.copy_(torch.randn(value.shape, generator=source))
        if value.dim() == 4:
            value *= torch.rand(value.shape, generator=source) > 0.7
    return layer


def sparse(layer: nn.Module, **options):
    made = SparseConvTranspose2d if isinstance(layer, nn.ConvTranspose2d) else SparseConv2d
    return made.from_dense(layer, **options)


@pytest.mark.parametrize("vector_size", [1, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_values(name, vector_size):
    layer, x = pruned(name), torch.randn(2, 5, 9, 11)
    made = sparse(layer, vector_size=vector_size, size=(2, 9, 11))
    want = copy.deepcopy(layer).double()(x.double())
    close(made(x), want.detach(), terms=200)
    residual = torch.randn(want.shape)
    close(made(x, residual), (want + residual).detach(), terms=200)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "prelu", "tanh"])
def test_activations(activation):
    layer, x, slopes = pruned("plain"), torch.randn(1, 5, 6, 6), torch.rand(8)
    base = sparse(layer)
    slope = slopes if activation == "prelu" else 0.3
    made = SparseConv2d(base.packed, layer.bias, activation=activation, slope=slope)
    z = copy.deepcopy(layer).double()(x.double()).detach()
    want = {
        "relu": z.relu(),
        "leaky_relu": nn.functional.leaky_relu(z, 0.3),
        "prelu": nn.functional.prelu(z, slopes.double()),
        "tanh": z.tanh(),
    }[activation]
    close(made(x), want, terms=200)
    assert activation in repr(made)


@pytest.mark.parametrize("name", ["plain", "transposed"])
def test_state_goes_to_a_layer_with_other_zeros(name):
    one, other, x = sparse(pruned(name)), sparse(pruned(name, seed=1)), torch.randn(1, 5, 7, 7)
    assert len(one.values) != len(other.values)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), one(x))
    assert other.packed.geometry == one.packed.geometry
    assert {"values", "offsets", "starts", "rows", "geometry", "bias"} == set(one.state_dict())


def test_states_of_other_layers_are_refused():
    with pytest.raises(
        CheckpointError, match=r"can't take weights packed for \(8, 5, 4, 4, 2, 1, "
    ):
        sparse(pruned("plain")).load_state_dict(sparse(pruned("stride")).state_dict())
    state = sparse(pruned("plain")).state_dict()
    del state["offsets"]
    with pytest.raises(CheckpointError, match="offsets is missing"):
        sparse(pruned("plain")).load_state_dict(state)


def test_copies_share_nothing():
    made, x = sparse(pruned("plain")), torch.randn(1, 5, 7, 7)
    other = copy.deepcopy(made)
    before = made(x)
    other.values.zero_()
    assert torch.equal(made(x), before)
    assert not list(made.parameters())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "groups 2"),
        (nn.Conv2d(4, 4, 3, dilation=2), r"dilation \(2, 2\)"),
        (nn.Conv2d(4, 4, 3, stride=(1, 2)), r"stride \(1, 2\)"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "circular"),
        (nn.Conv2d(4, 4, 2, padding="same"), "even kernel"),
        (nn.Conv2d(4, 4, 3, stride=3), "stride must be 1 or 2"),
        (nn.Conv2d(4, 4, 3).double(), "float32"),
    ],
)
def test_refuses(layer, message):
    with pytest.raises(InputError, match=message):
        SparseConv2d.from_dense(layer)


def test_packed_weights_make_a_layer():
    weight = torch.eye(3).view(3, 3, 1, 1)
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(SparseConv2d(pack_sparse_conv2d(weight))(x), x)


def test_autocast_leaves_it_in_float32():
    layer, x = pruned("plain"), torch.randn(2, 5, 9, 9)
    made = sparse(layer)
    made.values.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = made(x.bfloat16())
        out.sum().backward()
    assert out.dtype == made.values.grad.dtype == torch.float32
    assert torch.equal(out, made(x.bfloat16().float()))
