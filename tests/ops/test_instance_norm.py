# SPDX-License-Identifier: Apache-2.0
"""The six tests of the op instance_norm. Its CUDA kernels also run in tests/kernels, emulated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gansparse import _C
from gansparse.errors import InputError
from gansparse.ops import instance_norm, instance_norm_reference
from gansparse.testing import RedZones, close
from gansparse.testing.samples.instance_norm import REFUSALS, Refusal, Sample, samples

TINY = samples("tiny")
SMALL = TINY + samples("edge")
# With moments, which the CUDA kernels take; of some more parts than the last one joins.
WITH_MOMENTS = [
    replace(TINY[3], name="moments", parts=5, mean=30.0),
    replace(TINY[6], name="moments-of-many-parts", parts=100),
]
names = {"ids": lambda case: case.name}


def arguments_of(sample: Sample, place: str) -> dict[str, Any]:
    return sample.arguments(place, torch.bfloat16 if place == "cuda" else torch.float32)


def truth(a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """In float64, with torch's own variance; and the sizes of the terms of each element."""
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in a.items()}
    x, residual = wide["input"], wide["residual"]
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    scale = (variance + a["eps"]).rsqrt()
    if wide["weight"] is not None:
        scale = scale * wide["weight"].view(-1, 1, 1)
    z, sizes = (x - mean) * scale, (x.abs() + mean.abs()) * scale.abs()
    if wide["bias"] is not None:
        z, sizes = z + wide["bias"].view(-1, 1, 1), sizes + wide["bias"].abs().view(-1, 1, 1)
    if residual is not None:
        z, sizes = z + residual, sizes + residual.abs()
    steepest = 1.0
    if a["activation"] in ("leaky_relu", "prelu"):
        slope = torch.as_tensor(wide["slope"], dtype=torch.float64, device=x.device).reshape(-1)
        z, steepest = F.prelu(z, slope), max(1.0, float(slope.abs().max()))
    elif a["activation"] != "none":
        z = getattr(torch, a["activation"])(z)
    return z, sizes * steepest


def check(got: Tensor, a: dict[str, Any]) -> None:
    """Rounding to T, and sums and scale in float32, which a variance near eps makes no worse.

    Subnormal numbers of T, which float16's are from 6e-5 down, have one distance.
    """
    lies = torch.channels_last if got.is_cuda else torch.contiguous_format
    assert got.is_contiguous(memory_format=lies)
    if not got.numel():
        assert got.shape == a["input"].shape
        return
    want, sizes = truth(a)
    ratio = torch.finfo(torch.float32).eps / torch.finfo(got.dtype).eps
    pixels = want.shape[2] * want.shape[3]
    rounded = torch.maximum(want.abs(), torch.full_like(want, torch.finfo(got.dtype).tiny)) / 2
    scale = rounded + 4 * ratio * pixels**0.5 * sizes
    close(got, want, terms=1, scale=scale)


# ---- 1. Values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SMALL, **names)
def test_values(sample: Sample, place: str) -> None:
    a = arguments_of(sample, place)
    check(instance_norm(**a), a)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", [*TINY, *samples("model")], **names)
def test_values_in_float16(sample: Sample) -> None:
    a = sample.arguments("cuda", torch.float16)
    check(instance_norm(**a), a)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", WITH_MOMENTS, **names)
def test_values_with_moments(sample: Sample) -> None:
    a = sample.arguments("cuda", torch.bfloat16)
    check(instance_norm(**a), a)


@pytest.mark.parametrize("sample", TINY + WITH_MOMENTS, **names)
def test_values_of_the_reference(sample: Sample) -> None:
    a = sample.arguments()
    check(instance_norm_reference(**a), a)


def test_values_of_any_layout() -> None:
    a = TINY[3].arguments()
    last = {"memory_format": torch.channels_last}
    other = a | {
        "input": a["input"].contiguous(**last),
        "residual": a["residual"].contiguous(**last),
    }
    assert torch.equal(instance_norm(**other), instance_norm(**a))


def test_nan_spoils_its_channel_only() -> None:
    a = TINY[2].arguments()
    a["input"][1, 3, 4, 5] = torch.nan
    bad = instance_norm(**a).isnan()
    assert bad[1, 3].all()
    assert bad.sum() == bad[1, 3].numel()


def test_same_bits_whatever_the_threads() -> None:
    a = Sample("threads", (7, 24, 40, 40)).arguments()
    want = instance_norm(**a)
    torch.set_num_threads(3)
    assert torch.equal(instance_norm(**a), want)


# ---- 2. Gradients: plain torch's -----------------------------------------------------------------


def test_gradients() -> None:
    a = replace(TINY[6], residual=True).arguments()
    for value in a.values():
        if isinstance(value, Tensor):
            value.requires_grad_()
    leaves = [v for v in a.values() if isinstance(v, Tensor)]
    got = torch.autograd.grad(instance_norm(**a).square().sum(), leaves)
    wide = {k: v.detach().double().requires_grad_() if isinstance(v, Tensor) else v
            for k, v in a.items()}  # fmt: skip
    z = F.instance_norm(wide["input"], None, None, wide["weight"], wide["bias"], eps=a["eps"])
    y = F.prelu(z + wide["residual"], wide["slope"])
    want = torch.autograd.grad(
        y.square().sum(), [v for v in wide.values() if isinstance(v, Tensor)]
    )
    for one, other in zip(got, want, strict=True):
        close(one, other, terms=4 * a["input"][:, 0].numel())


# ---- 3. opcheck, 4. compile ----------------------------------------------------------------------


def by_schema(a: dict[str, Any]) -> tuple[Any, ...]:
    slope = a["slope"]
    number, slopes = (0.0, slope) if isinstance(slope, Tensor) else (slope, None)
    head = (a["input"], a["weight"], a["bias"], a["eps"], a["residual"], a["activation"])
    return *head, number, slopes, a["moments"]


@pytest.mark.parametrize("sample", [TINY[0], TINY[4], TINY[6]], **names)
def test_opcheck(sample: Sample, place: str) -> None:
    op = torch.ops.gansparse.instance_norm.default
    torch.library.opcheck(op, by_schema(arguments_of(sample, place)))


@pytest.mark.parametrize("sample", [TINY[4], TINY[6]], **names)
def test_compile(sample: Sample, place: str) -> None:
    a = arguments_of(sample, place)
    torch._dynamo.reset()
    compiled = torch.compile(instance_norm, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**a), instance_norm(**a))


# ---- 5. Refusals ---------------------------------------------------------------------------------

GOOD = replace(TINY[6], residual=True)


@pytest.mark.parametrize("refusal", REFUSALS, **names)
@pytest.mark.parametrize("fake", [False, True])
def test_refuses(refusal: Refusal, fake: bool) -> None:
    a = GOOD.arguments()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        if fake:
            a = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in a.items()}
        a[refusal.argument] = refusal.spoil(a[refusal.argument])
    with mode if fake else torch.no_grad(), pytest.raises(InputError, match=refusal.message):
        instance_norm(**a)


def on_cuda(tensor: Tensor) -> Any:
    """The description of this tensor on a GPU."""
    name = str(tensor.dtype).removeprefix("torch.")
    return _C.TensorSpec(list(tensor.shape), list(tensor.stride()), name, "cuda", 0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x, None),
        (lambda x: x.float(), r"input must be float16 or bfloat16 \[N, C, H, W\] on cuda, got fl"),
        (lambda x: x[:, :12], r"input must have a multiple of 8 channels on cuda, got bfloat16"),
        (lambda x: x.contiguous(), r"input must be channels_last, got bfloat16"),
    ],
)
def test_refuses_on_cuda(spoil: Any, message: str | None) -> None:
    x = TINY[0].arguments(dtype=torch.bfloat16)["input"]
    x = spoil(x.contiguous(memory_format=torch.channels_last))
    arguments = (on_cuda(x), None, None, 1e-5, None, "none", 0.0, on_cuda(x))
    if message is None:
        return _C.instance_norm(*arguments, moments=on_cuda(torch.zeros(2, 5, 3, 16)))
    with pytest.raises(InputError, match=message):
        _C.instance_norm(*arguments)


@pytest.mark.parametrize("shape", [(1, 5, 3, 16), (2, 0, 3, 16), (2, 5, 2, 16), (2, 5, 3, 8), (2,)])
def test_refuses_moments(shape: tuple[int, ...]) -> None:
    x = TINY[0].arguments(dtype=torch.bfloat16)["input"]
    x = on_cuda(x.contiguous(memory_format=torch.channels_last))
    for dtype in (torch.float32, torch.float64):
        bad = on_cuda(torch.zeros(shape if dtype == torch.float32 else (2, 5, 3, 16), dtype=dtype))
        with pytest.raises(InputError, match=r"moments must be float32 \[2, P, 3, 16\] on cuda:0"):
            _C.instance_norm(x, None, None, 1e-5, None, "none", 0.0, x, moments=bad)


# ---- 6. Red zones --------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SMALL, **names)
def test_stays_within_its_arrays(sample: Sample, place: str) -> None:
    zones = RedZones(0 if place == "cuda" else 1)
    free = arguments_of(sample, place)
    guarded = {k: zones.copy(v) if isinstance(v, Tensor) else v for k, v in free.items()}
    output = zones.copy(torch.full_like(free["input"], torch.nan))
    a = list(by_schema(guarded))
    slope = a[7] if sample.slopes else a[6]
    stream = torch.cuda.current_stream().cuda_stream if place == "cuda" else 0
    _C.instance_norm(*a[:6], slope, output, stream)
    zones.check()
    assert torch.equal(output, instance_norm(**free))
