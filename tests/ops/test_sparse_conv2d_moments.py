# SPDX-License-Identifier: Apache-2.0
"""The six tests of sparse_conv2d_moments. Its kernels also run in tests/kernels, emulated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gansparse import _C
from gansparse.errors import InputError
from gansparse.ops import (
    PackedTiles,
    instance_norm,
    sparse_conv2d,
    sparse_conv2d_moments,
    sparse_conv2d_moments_reference,
)
from gansparse.testing import close, close_moments
from gansparse.testing.samples.sparse_conv2d_tiles import TileSample, tile_samples

SMALL = [
    replace(s, residual=False, activation="none", slopes=0)
    for s in tile_samples("tiny") + tile_samples("edge")
]
TINY = SMALL[: len(tile_samples("tiny"))]
MODEL = tile_samples("model")
names = {"ids": lambda case: case.name}


def arguments_of(sample: TileSample, device: str = "cpu") -> dict[str, Any]:
    a = sample.arguments(device=device)
    return {name: a[name] for name in ("input", "weight", "bias")}


# ---- 1. Values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", TINY, **names)
def test_values_of_the_reference(sample: TileSample) -> None:
    a = arguments_of(sample)
    y, moments = sparse_conv2d_moments_reference(**a)
    close_moments(moments, y)


def on_tiles(sample: TileSample) -> None:
    a = arguments_of(sample, "cuda")
    y, moments = sparse_conv2d_moments(**a)
    assert torch.equal(y, sparse_conv2d(**a))
    close_moments(moments, y)
    again = sparse_conv2d_moments(**a)
    assert torch.equal(moments, again[1])
    if sample.out % 8 == 0:
        normed = instance_norm(y, moments=moments)
        deviation = y.double() - y.double().mean((2, 3), keepdim=True)  # torch refuses 1 x 1
        want = deviation * (deviation.square().mean((2, 3), keepdim=True) + 1e-5).rsqrt()
        close(normed, want, terms=16, scale=max(1.0, float(want.abs().max())))


@pytest.mark.cuda
@pytest.mark.parametrize("sample", SMALL + MODEL, **names)
def test_values(sample: TileSample) -> None:
    on_tiles(sample)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", MODEL + SMALL[::7], **names)
def test_values_on_warpgroups(sample: TileSample) -> None:
    sample = replace(sample, pattern="2:4", rows=128, sparsity=0.5, list_channels=None)
    built = "90a" in str(_C.build_info()["cuda_architectures"])
    if built and torch.cuda.get_device_capability() == (9, 0):
        on_tiles(sample)
    else:
        with pytest.raises(RuntimeError, match=r"128 rows need .* capability 9\.0"):
            sparse_conv2d_moments(**arguments_of(sample, "cuda"))


# ---- 2. Gradients, 3. opcheck, 4. compile --------------------------------------------------------


def test_no_gradient() -> None:
    a = arguments_of(TINY[0])
    a["input"].requires_grad_()
    with pytest.raises(
        InputError, match=r"computes no gradients: call sparse_conv2d, or call it u"
    ):
        sparse_conv2d_moments(**a)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", TINY[:4], **names)
def test_opcheck(sample: TileSample) -> None:
    a = arguments_of(sample, "cuda")
    *tensors, geometry = a["weight"]
    op = torch.ops.gansparse.sparse_conv2d_moments.default
    torch.library.opcheck(op, (a["input"], *tensors, list(geometry), a["bias"]))


@pytest.mark.cuda
@pytest.mark.parametrize("sample", TINY[:2], **names)
def test_compile(sample: TileSample) -> None:
    a = arguments_of(sample, "cuda")
    torch._dynamo.reset()
    compiled = torch.compile(sparse_conv2d_moments, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(**a), sparse_conv2d_moments(**a), strict=True):
        assert torch.equal(one, other)


# ---- 5. Refusals: by description, so that no GPU is needed ---------------------------------------


def faked(a: dict[str, Any]) -> dict[str, Any]:
    """On a GPU that is not there; within a FakeTensorMode."""

    def fake(value: Tensor) -> Tensor:
        settings: Any = {"dtype": value.dtype, "device": "cuda"}
        return torch.empty_strided(value.shape, value.stride(), **settings)

    *tensors, geometry = a["weight"]
    bias = None if a["bias"] is None else fake(a["bias"])
    return {"input": fake(a["input"]), "weight": PackedTiles(*map(fake, tensors), geometry),
            "bias": bias}  # fmt: skip


@pytest.mark.parametrize("sample", SMALL, **names)
def test_fakes_have_the_shapes_that_kernels_want(sample: TileSample) -> None:
    """The core has checked them by the plan that its kernels go by."""
    a = arguments_of(sample)
    y, moments = sparse_conv2d_moments_reference(**a)
    with FakeTensorMode(allow_non_fake_inputs=True):
        made, left = sparse_conv2d_moments(**faked(a))
    assert made.shape == y.shape
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert left.dtype == torch.float32
    assert left.shape == (len(y), left.shape[1], *moments.shape[2:])
    # A part is 128 pixels of one phase, of which the last of a row or column may be missing.
    assert left.shape[1] * 128 >= y.shape[2] * y.shape[3]


def test_refuses() -> None:
    a = arguments_of(TINY[0])
    with FakeTensorMode(allow_non_fake_inputs=True):
        good = faked(a)
        flat = torch.empty(2, 16, 9, dtype=torch.bfloat16, device="cuda")
        for changes, message in (
            ({"input": good["input"].float()}, r"input must be bfloat16 \[N, 16, H, W\] on cuda"),
            ({"input": flat}, r"input must be bfloat16 \[N, 16, H, W\] on cuda"),
            ({"bias": good["input"]}, r"bias must be float32 \[32\] on cuda:0, got"),
        ):
            with pytest.raises(InputError, match=f"sparse_conv2d: {message}"):
                sparse_conv2d_moments(**good | changes)
    with pytest.raises(InputError, match=r"input must be bfloat16 \[N, 16, H, W\] on cuda, got"):
        sparse_conv2d_moments(**a)


def on_cuda(tensor: Tensor) -> Any:
    """The description of this tensor on a GPU."""
    name = str(tensor.dtype).removeprefix("torch.")
    return _C.TensorSpec(list(tensor.shape), list(tensor.stride()), name, "cuda", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"moments": torch.zeros(2, 2, 3, 32)}, r"moments must be float32 \[2, 1, 3, 32\] on c"),
        ({"moments": torch.zeros(2, 1, 3, 32).half()}, r"moments must be float32 \[2, 1, 3, 32\]"),
        ({"activation": "relu"}, r"moments must be None where a residual or an activation follows"),
        ({"residual": torch.zeros(2, 32, 9, 7)}, r"moments must be None where a residual or an ac"),
    ],
)
def test_refuses_moments_of_something_else(changes: dict[str, Any], message: str | None) -> None:
    a = arguments_of(TINY[0])
    values, metadata, places, starts, geometry = a["weight"]
    last = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    fields: dict[str, Any] = {
        "input": a["input"], "values": values, "metadata": metadata, "places": places,
        "starts": starts, "geometry": geometry, "bias": None, "residual": None,
        "activation": "none", "slope": 0.0, "output": torch.empty(2, 32, 9, 7).to(**last),
        "moments": torch.zeros(2, 1, 3, 32),
    }  # fmt: skip
    fields |= changes
    if fields["residual"] is not None:
        fields["residual"] = fields["residual"].to(**last)
    described = {k: on_cuda(v) if isinstance(v, Tensor) else v for k, v in fields.items()}
    if message is None:
        return _C.sparse_conv2d_tiles(**described)
    with pytest.raises(InputError, match=f"sparse_conv2d: {message}"):
        _C.sparse_conv2d_tiles(**described)


# ---- 6. Red zones: in the emulator, by AddressSanitizer; here with the memory of torch -----------


@pytest.mark.cuda
@pytest.mark.parametrize("sample", TINY, **names)
def test_stays_within_its_arrays(sample: TileSample) -> None:
    a = arguments_of(sample, "cuda")
    want, moments = sparse_conv2d_moments(**a)
    whole = torch.full((moments.numel() + 256,), torch.nan, device="cuda")
    left = whole[128:-128].view(moments.shape)
    *tensors, geometry = a["weight"]
    stream, output = torch.cuda.current_stream().cuda_stream, torch.empty_like(want)
    _C.sparse_conv2d_tiles(
        a["input"], *tensors, geometry, a["bias"], None, "none", 0.0, output, stream, left
    )
    assert torch.equal(left, moments)
    assert whole[:128].isnan().all()
    assert whole[-128:].isnan().all()
