# SPDX-License-Identifier: Apache-2.0
"""Gradients of packed tiles: packing, choice and checks need no GPU, the kernels' values one.

The kernels themselves run in tests/kernels/test_sparse_conv2d_tiles_gradient_kernels.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gansparse import _C
from gansparse.errors import InputError
from gansparse.ops import sparse_conv2d, sparse_conv2d_reference, sparse_conv_transpose2d
from gansparse.ops import sparse_conv2d_gradients as gradients
from gansparse.ops.sparse_conv2d_gradients import _gradient_arguments, transposed_tiles
from gansparse.testing import close, same_direction
from gansparse.testing.samples.sparse_conv2d_tiles import TileSample, tile_samples

BLOCK = TileSample("block", (2, 64, 9, 7), 40, pattern="block", sparsity=0.9)
ZEROS = [s for s in tile_samples("tiny") + tile_samples("edge") if s.padding_mode == "zeros"]
names = {"ids": lambda sample: sample.name}


def example(sample: TileSample, device: str = "cpu") -> tuple[dict[str, Any], Tensor]:
    """The sample's arguments, and a gradient of its output."""
    a = sample.arguments(device=device)
    shape = sample.convolve(a["input"].to("meta"), sample.dense().to("meta", sample.dtype)).shape
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    lies = torch.channels_last
    return a, grad.to(dtype=sample.dtype, device=device, memory_format=lies)


# ---- The way back --------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", ZEROS, **names)
def test_gradient_of_the_input_by_the_transposed_tiles(sample: TileSample) -> None:
    """Against torch's of the dense convolution in float64."""
    a, grad = example(sample)
    input = a["input"].double().requires_grad_()
    sample.convolve(input, sample.dense().double()).backward(grad.double())
    made = transposed_tiles(a["weight"])
    values = F.pad(a["weight"].values.flatten(), (1, 0))[made.back.values]

    def reference(grad: Tensor, *arguments: Any) -> Tensor:
        *tensors, g = arguments[:5]
        weight = made.back._replace(values=tensors[0], geometry=type(made.back.geometry)(*g))
        return sparse_conv2d_reference(grad.double(), weight)

    size = (sample.shape[2], sample.shape[3])
    packing = (values, *made.back[1:4])
    grad8 = gradients._to_eights(grad)
    got = gradients._back(reference, grad8, packing, made.back.geometry, size, cut=made.cut)
    sizes = input.detach().abs().requires_grad_()
    sample.convolve(sizes, sample.dense().double().abs()).backward(grad.double().abs())
    close(got, input.grad, terms=sample.dense().numel() // sample.shape[1], scale=sizes.grad)


def test_blocks_that_nobody_has_are_left_out() -> None:
    """A block of 32 x 8 channels is four of 16 x 8, half empty, or four of 32 x 8."""
    weight = torch.zeros(32, 64, 3, 3)
    weight[:, 8:16, 1, 1] = 1.0
    made = transposed_tiles(BLOCK.pack_tiles(weight))
    assert made.back.geometry.vector == 16
    assert made.back.starts.tolist() == [0, 1, 1, 1, 1]
    assert (made.back.values != 0).sum() == 32 * 8


@pytest.mark.parametrize(
    ("sample", "of_input", "of_values"),
    [
        (BLOCK, "own", "own"),
        (replace(BLOCK, sparsity=0.2), "dense", "dense"),
        (replace(BLOCK, rows=16, out=64, sparsity=0.65), "dense", "own"),
        (replace(BLOCK, pattern="2:4", sparsity=0.0), "dense", "dense"),
        (replace(BLOCK, pattern="2:4", sparsity=0.9), "own", "dense"),
    ],
)
def test_dense_where_most_blocks_are_kept(
    sample: TileSample, of_input: str, of_values: str
) -> None:
    """The op's own kernels refuse tensors on the CPU, torch's do not."""
    a, grad = example(sample)
    *tensors, g = a["weight"]
    want = gradients.dense_gradients(grad, a["input"], a["weight"], (True, True))
    ops = torch.ops.gansparse
    both = (ops.sparse_conv2d_tiles_input_gradient, ops.sparse_conv2d_tiles_values_gradient)
    for op, which, expected in zip(both, (of_input, of_values), want, strict=True):
        if which == "own":
            with pytest.raises(InputError, match=r"input must be bfloat16 .* on cuda, got"):
                op(grad, a["input"], *tensors, list(g))
        else:
            assert torch.equal(op(grad, a["input"], *tensors, list(g)), expected)


def test_packing_is_made_once_for_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        gradients, "transposed_tiles", lambda weight: made.append(1) or transposed_tiles(weight)
    )
    a, grad = example(replace(BLOCK, sparsity=0.2))
    *tensors, g = a["weight"]
    op = torch.ops.gansparse.sparse_conv2d_tiles_input_gradient
    first = op(grad, a["input"], *tensors, list(g))
    tensors[0] = tensors[0] * 2  # other values, the same mask
    assert torch.equal(op(grad, a["input"], *tensors, list(g)), 2 * first)
    assert len(made) == 1
    tensors[2].add_(0)  # written to, so maybe another mask
    op(grad, a["input"], *tensors, list(g))
    assert len(made) == 2


@pytest.mark.parametrize("name", ["input", "values"])
def test_opcheck_on_the_cpu(name: str) -> None:
    """Where torch's dense convolution does it."""
    a, grad = example(replace(BLOCK, pattern="2:4", sparsity=0.0))
    *tensors, g = a["weight"]
    op = getattr(torch.ops.gansparse, f"sparse_conv2d_tiles_{name}_gradient").default
    torch.library.opcheck(op, (grad, a["input"], *tensors, list(g)))


# ---- Refusals, by description --------------------------------------------------------------------


def call(**changes: Any) -> None:
    """The core's gradient of the values with arguments described as on a GPU."""
    a, grad = example(BLOCK)
    keys = ("input", "values", "places", "starts", "geometry", "grad")
    arguments = _gradient_arguments(grad, a["input"], a["weight"])
    fields = dict(zip(keys, arguments, strict=True)) | {"output": a["weight"].values}
    for name, change in changes.items():
        fields[name] = change(fields[name])

    def described(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        name = str(x.dtype).removeprefix("torch.")
        return _C.TensorSpec(list(x.shape), list(x.stride()), name, "cuda", 0)

    _C.sparse_conv2d_tiles_gradient(**{k: described(v) for k, v in fields.items()})


def test_good_arguments_are_not_refused() -> None:
    call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": lambda x: x.float()}, r"input must be bfloat16 \[N, 64, H, W\] on cuda, got fl"),
        ({"input": lambda x: x.contiguous()}, r"input must be channels_last, got bfloat16"),
        ({"grad": lambda x: x.contiguous()}, r"grad must be channels_last, got bfloat16"),
        ({"grad": lambda x: x.float()}, r"grad must be bfloat16 \[2, 40, 9, 7\] on cuda:0, got fl"),
        ({"grad": lambda x: x[:, :, 1:]}, r"grad must be bfloat16 \[2, 40, 9, 7\] on cuda:0"),
        ({"values": lambda x: x[:, :, :1]}, r"vector must|weight.values must be"),
        ({"places": lambda x: x.int()}, r"weight.places must be int16 \[\d+, 4\]"),
        ({"starts": lambda x: x[1:]}, r"weight.starts must be int32 \[5\] on cuda:0"),
        ({"geometry": lambda g: [44, *g[1:]]}, r"out_channels must be filled up to a multiple of"),
        ({"output": lambda x: x[1:]}, r"output must be bfloat16 \[\d+, 2, 2, 32, 8\] on cuda:0"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"sparse_conv2d: .*({message})"):
        call(**changes)


def test_refuses_2_4() -> None:
    packed = replace(BLOCK, pattern="2:4").arguments()["weight"]
    fields = {"values": packed.values, "places": packed.places, "starts": packed.starts}
    with pytest.raises(InputError, match=r"weight.values must be of block tiles, got bfloat16"):
        call(**{name: lambda _, x=x: x for name, x in fields.items()})


# ---- On a GPU ------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("sample", [BLOCK, *tile_samples("tiny")], **names)
def test_gradients(sample: TileSample) -> None:
    """Against those of the dense convolution in float64; ours have the same bits twice."""
    a, grad = example(replace(sample, activation="none", residual=False), "cuda")
    a["weight"].values.requires_grad_()
    a["input"].requires_grad_()
    op = sparse_conv_transpose2d if sample.transposed else sparse_conv2d
    y = op(**a)
    trained = (a["input"], a["weight"].values)
    got = torch.autograd.grad(y, trained, grad, retain_graph=True)
    if sample.name == "block":
        again = torch.autograd.grad(y, trained, grad)
        assert all(torch.equal(one, other) for one, other in zip(got, again, strict=True))
    input = a["input"].detach().double().requires_grad_()
    dense = sample.dense().cuda().double().requires_grad_()
    sample.convolve(input, dense).backward(grad.double())
    same_direction(got[0], input.grad, terms=4 * math.prod(dense.shape[1:]), name="input")
    kept = sample.dense().cuda() != 0
    want = sample.pack_tiles((dense.grad * kept).float().cpu(), kept.cpu()).values
    terms = 4 * grad.numel() // grad.shape[1]
    same_direction(got[1].cpu(), want.double(), terms=terms, name="values")


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["input", "values"])
def test_opcheck(name: str) -> None:
    a, grad = example(BLOCK, "cuda")
    *tensors, g = a["weight"]
    op = getattr(torch.ops.gansparse, f"sparse_conv2d_tiles_{name}_gradient").default
    torch.library.opcheck(op, (grad, a["input"], *tensors, list(g)))
