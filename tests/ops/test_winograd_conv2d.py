# SPDX-License-Identifier: Apache-2.0
"""The six tests of winograd_conv2d. Truth is torch's direct convolution in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_sparse_conv2d import finish
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gansparse import _C
from gansparse.errors import InputError
from gansparse.ops import (
    PackedWinograd,
    pack_winograd_conv2d,
    pack_winograd_conv_transpose2d,
    winograd_conv2d,
    winograd_conv2d_reference,
)
from gansparse.ops.sparse_conv2d import _margins
from gansparse.ops.sparse_conv2d_packing import conv_transpose2d_layer
from gansparse.ops.winograd_conv2d import _POINTS
from gansparse.testing import RedZones, close
from gansparse.testing.samples.sparse_conv2d import Sample

A, B = 0.75, 1.5
# Bᵀ and Aᵀ of F(4, 3), written down from the points.
TO_POINTS = torch.tensor([
    [A * A * B * B, 0, -A * A - B * B, 0, 1, 0],
    *([0, -p * q * q, -q * q, p, 1, 0] for p, q in ((A, B), (-A, B), (B, A), (-B, A))),
    [0, A * A * B * B, 0, -A * A - B * B, 0, 1],
], dtype=torch.float64)  # fmt: skip
FROM_POINTS = torch.tensor(
    [[float(p == 0) if k == 0 and p == 0 else p**k for p in (0, A, -A, B, -B)] + [float(k == 3)]
     for k in range(4)], dtype=torch.float64,
)  # fmt: skip
dense = partial(Sample, sparsity=0.0)
up = partial(dense, transposed=True, stride=2, kernel=4)
FEW = (2, 5, 9, 7)
TINY = [
    dense("plain", FEW, 6),
    dense("no-bias", FEW, 6, biased=False),
    dense("reflect", FEW, 6, padding_mode="reflect"),
    dense("replicate", FEW, 6, padding_mode="replicate"),
    dense("relu", FEW, 6, activation="relu"),
    dense("leaky", FEW, 6, activation="leaky_relu"),
    dense("prelu-each", FEW, 6, activation="prelu", slopes=6, residual=True),
    dense("tanh", FEW, 6, activation="tanh"),
    up("up", FEW, 6),
    up("up-all-options", FEW, 6, residual=True, activation="prelu", slopes=6),
]
EDGE = [
    dense("empty-batch", (0, 3, 8, 8), 4),
    *(dense(f"picture-{h}x{w}", (1, 3, h, w), 4)
      for h, w in ((1, 1), (1, 40), (15, 17), (16, 16), (17, 33), (8, 32), (4, 70))),
    *(dense(f"channels-{c}", (1, c, 6, 6), 3) for c in (1, 7, 8, 9)),
    *(dense(f"out-{o}", (1, 4, 5, 5), o) for o in (1, 7, 9, 257)),
    *(dense(f"batch-{n}-of-{h}x{h}", (n, 5, h, h), 6) for n, h in ((3, 4), (17, 1), (5, 8))),
    dense("no-padding", (2, 4, 20, 20), 4, padding=0),
    dense("wide-padding", (1, 4, 5, 5), 4, padding=3),
    up("up-odd", (1, 4, 6, 5), 9, output_padding=1),
    up("up-stride-1", (1, 4, 6, 5), 9, kernel=3, stride=1),
    up("up-more-than-a-chunk", (1, 4, 4, 4), 70),
]  # fmt: skip
names = {"ids": lambda case: case.name}
every_simd = pytest.mark.parametrize("backend", ["plain", "avx2", "avx512"], indirect=True)


def arguments(sample: Sample) -> dict[str, Any]:
    a = sample.arguments()
    if sample.transposed:
        packed = pack_winograd_conv_transpose2d(
            sample.dense(), stride=sample.stride, padding=sample.padding,
            output_padding=sample.output_padding,
        )  # fmt: skip
    else:
        packed = pack_winograd_conv2d(
            sample.dense(), padding=sample.padding, padding_mode=sample.padding_mode
        )
    return a | {"weight": packed}


def added_up(sample: Sample, a: dict[str, Any]) -> Tensor:
    """The size of what is added up at the points to make each output, in float64."""
    g, weight = a["weight"].geometry, sample.dense()
    if sample.transposed:
        weight = conv_transpose2d_layer(
            weight, sample.stride, sample.padding, sample.output_padding, None, vector_size=8
        ).weight
    left, right, top, bottom = _margins(a["input"], g)
    x = F.pad(
        a["input"], (left, right, top, bottom), ("constant", "reflect", "replicate")[g.padding]
    )
    high, wide = (size - 2 for size in x.shape[2:])
    x = F.pad(x, (0, -wide % 4, 0, -high % 4)).double().abs()
    patches = x.unfold(2, 6, 4).unfold(3, 6, 4)  # [N, C, y, x, 6, 6]
    to, back, points = TO_POINTS.abs(), FROM_POINTS.abs(), torch.tensor(_POINTS).double().abs()
    inputs = torch.einsum("ai,ncyxij,bj->abncyx", to, patches, to)
    weights = torch.einsum("ai,ocij,bj->aboc", points, weight.double().abs(), points)
    sums = torch.einsum("aboc,abncyx->abnoyx", weights, inputs)
    made = torch.einsum("ia,abnoyx,jb->noyixj", back, sums, back)
    made = made.flatten(4, 5).flatten(2, 3)[:, :, :high, :wide]
    size = F.pixel_shuffle(made, g.upscale)[:, :, : g.output_size(*a["input"].shape[2:])[0]]
    return size[..., : g.output_size(*a["input"].shape[2:])[1]]


def check(got: Tensor, sample: Sample, a: dict[str, Any]) -> None:
    want = finish(sample.convolve(a["input"].double(), sample.dense().double()), a)
    magnitudes = {k: v.abs() if isinstance(v, Tensor) else v for k, v in a.items()}
    scale = finish(added_up(sample, a), magnitudes | {"activation": "none"})
    slope = max(1.0, float(torch.as_tensor(a["slope"]).abs().max()))
    # Two transforms of two times six terms, the products of C channels, bias and activation.
    close(got, want, terms=sample.shape[1] + 2 * 12 + 4, scale=scale * slope)


# ---- 1. Values -----------------------------------------------------------------------------------


@every_simd
@pytest.mark.parametrize("sample", TINY + EDGE, **names)
def test_values(sample: Sample, backend: str) -> None:
    a = arguments(sample)
    check(winograd_conv2d(**a), sample, a)


def test_values_of_a_whole_layer_are_near_the_direct_ones() -> None:
    sample = dense("stargan", (1, 128, 32, 32), 128)
    a = arguments(sample)
    want = finish(sample.convolve(a["input"].double(), sample.dense().double()), a)
    assert float((winograd_conv2d(**a) - want).abs().max() / want.abs().max()) < 5e-6


@pytest.mark.parametrize("sample", TINY, **names)
def test_values_of_the_reference(sample: Sample) -> None:
    a = arguments(sample)
    check(winograd_conv2d_reference(**a), sample, a)


@every_simd
def test_same_bits_whatever_the_threads(backend: str) -> None:
    a = arguments(dense("chunks", (1, 40, 20, 24), 300))
    results = []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        results.append(winograd_conv2d(**a))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_any_memory_format_goes_in() -> None:
    a = arguments(replace(TINY[0], residual=True))
    want = winograd_conv2d(**a)
    for name in ("input", "residual"):
        a[name] = a[name].to(memory_format=torch.channels_last)
    assert torch.equal(winograd_conv2d(**a), want)


# ---- 2. Gradients, 3. opcheck, 4. compile --------------------------------------------------------


def test_no_gradient() -> None:
    a = arguments(TINY[0])
    want = winograd_conv2d(**a)
    a["input"].requires_grad_()
    with pytest.raises(InputError, match=r"winograd_conv2d has no gradients: call it under"):
        winograd_conv2d(**a)
    with torch.no_grad():
        assert torch.equal(winograd_conv2d(**a), want)


@pytest.mark.parametrize("sample", [TINY[0], TINY[6], TINY[-2]], **names)
def test_opcheck(sample: Sample) -> None:
    a = arguments(sample)
    slope, out = a["slope"], winograd_conv2d(**a)
    number, slopes = (0.0, slope) if isinstance(slope, Tensor) else (slope, None)
    values, geometry = a["weight"]
    given = (a["input"], values, list(geometry), a["bias"], a["residual"], a["activation"])
    torch.library.opcheck(
        torch.ops.gansparse.winograd_conv2d.default, (*given, number, slopes, out)
    )


@pytest.mark.parametrize("sample", [TINY[0], TINY[-1]], **names)
def test_compile(sample: Sample) -> None:
    a = arguments(sample)
    torch._dynamo.reset()
    compiled = torch.compile(winograd_conv2d, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**a), winograd_conv2d(**a))


# ---- 5. Refusals ---------------------------------------------------------------------------------

REFUSALS = {
    "values": (
        lambda a: {"weight": a["weight"]._replace(values=a["weight"].values[1:])},
        r"weight.values must be float32 \[36, 1, 5, 8\] on cpu, got float32 \[35, 1, 5, 8\]",
    ),
    "taps": (
        lambda a: {"weight": a["weight"]._replace(geometry=_with(a, taps_h=4))},
        r"weight.geometry.taps_h must be 3 for Winograd, got 4",
    ),
    "stride": (
        lambda a: {"weight": a["weight"]._replace(geometry=_with(a, stride=2))},
        r"weight.geometry.stride must be 1 for Winograd, got 2",
    ),
    "patch": (
        lambda a: {"weight": a["weight"]._replace(geometry=_with(a, patch=2))},
        r"weight.geometry.patch must be 4 for Winograd, got 2",
    ),
    "vector": (
        lambda a: {"weight": a["weight"]._replace(geometry=_with(a, vector=16))},
        r"weight.geometry.vector must be 8 for Winograd, got 16",
    ),
    "input": (
        lambda a: {"input": a["input"][:, :4]},
        r"input must be float32 \[N, 5, H, W\] on cpu, got float32 \[2, 4, 9, 7\]",
    ),
    "bias": (lambda a: {"bias": a["bias"][1:]}, r"bias must be float32 \[6\] on cpu, got .* \[5\]"),
    "out": (lambda a: {"out": torch.empty(2)}, r"out must be float32 \[2, 6, 9, 7\]"),
}  # fmt: skip


def _with(a: dict[str, Any], **numbers: int) -> Any:
    return a["weight"].geometry._replace(**numbers)


@pytest.mark.parametrize("faked", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize("case", REFUSALS)
def test_refuses(case: str, faked: bool) -> None:
    spoil, message = REFUSALS[case]
    a = arguments(TINY[0])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        if faked:
            fake = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in a.items()}
            a = fake | {"weight": a["weight"]._replace(values=mode.from_tensor(a["weight"].values))}
        a = a | spoil(a)
        if faked:
            with pytest.raises(InputError, match=message):
                winograd_conv2d(**a)
    if not faked:
        a = arguments(TINY[0])
        with pytest.raises(InputError, match=message):
            winograd_conv2d(**(a | spoil(a)))


def test_refuses_to_pack() -> None:
    with pytest.raises(InputError, match="must have a window of 3 x 3, got 5 x 5"):
        pack_winograd_conv2d(torch.ones(2, 2, 5, 5))
    with pytest.raises(InputError, match="must have a window of 3 x 3, got 4 x 4"):
        pack_winograd_conv_transpose2d(torch.ones(2, 2, 4, 4))


# ---- 6. Red zones --------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [TINY[0], TINY[6], *EDGE], **names)
@every_simd
def test_stays_within_its_arrays(sample: Sample, backend: str) -> None:
    zones = RedZones(offset=3)
    free = arguments(sample)
    want = winograd_conv2d(**free)
    guarded = {k: zones.copy(v) if isinstance(v, Tensor) else v for k, v in free.items()}
    values, geometry = free["weight"]
    guarded["weight"] = PackedWinograd(zones.copy(values), geometry)
    out = zones.output(*want.shape, dtype=torch.float32)
    assert winograd_conv2d(**guarded, out=out) is out
    zones.check()
    assert torch.equal(out, want)
    assert _C.simd_level() == backend
