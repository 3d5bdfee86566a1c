# SPDX-License-Identifier: Apache-2.0
"""Gradients of packed tiles in the emulator: of the values, and of the input by the tiles' kernel.

Truth is torch's gradient of the dense convolution in float64, which knows nothing of tiles.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import building
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_sparse_conv2d_kernels import in_emulator as convolve_in_emulator
from test_sparse_conv2d_kernels import record
from torch import Tensor

from gansparse.ops import (
    PackedTiles,
    pack_sparse_conv2d,
    pack_sparse_conv_transpose2d,
    unpack_sparse_conv2d,
    unpack_tiles,
)
from gansparse.ops.sparse_conv2d_gradients import _gradient_arguments, transposed_tiles
from gansparse.testing import close
from gansparse.testing.samples.sparse_conv2d_tiles import TileSample

H100_SHARED = 227 << 10
names = {"ids": lambda sample: getattr(sample, "name", None)}


def truth(
    sample: TileSample, input: Tensor, grad: Tensor, *, sizes: bool = False
) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of the dense weight in float64, or the sizes of their terms."""
    input, weight, grad = (t.detach().double() for t in (input, sample.dense(), grad))
    if sizes:
        input, weight, grad = input.abs(), weight.abs(), grad.abs()
    input.requires_grad_()
    weight.requires_grad_()
    sample.convolve(input, weight).backward(grad)
    assert input.grad is not None
    assert weight.grad is not None
    return input.grad, weight.grad * (sample.dense() != 0)


def allowed(want: Tensor, sizes: Tensor, terms: int, dtype: torch.dtype) -> Tensor:
    """The scale for `close` with one term: rounding to T, and sums in float32."""
    ratio = torch.finfo(torch.float32).eps / torch.finfo(dtype).eps
    return want.abs() / 2 + 2 * ratio * math.sqrt(terms) * sizes + 2.0**-14


def example(sample: TileSample) -> tuple[dict[str, Any], Tensor]:
    """The sample's arguments, and a gradient of its output."""
    a = sample.arguments()
    shape = sample.convolve(a["input"].to("meta"), sample.dense().to("meta", sample.dtype)).shape
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    return a, grad.to(sample.dtype, memory_format=torch.channels_last)


# ---- Values --------------------------------------------------------------------------------------


def in_emulator(
    sample: TileSample, a: dict[str, Any], grad: Tensor, variant: str, programs: Path,
    folder: Path, *, splits: int = 1, limit: int = H100_SHARED,
) -> tuple[Tensor, list[int]]:  # fmt: skip
    """The gradient of the packed values, and the plan."""
    program = building.build("sparse_conv2d_tiles_gradient_driver", variant, programs)
    input, values, places, starts, g, grad = _gradient_arguments(grad, a["input"], a["weight"])
    n, _, h, w = input.shape
    numbers = [*g, n, h, w, *grad.shape[2:], limit, splits]
    records = [np.array(numbers), record(input), record(values.flatten())]
    records += [record(places.flatten()), record(starts), record(grad)]
    name = str(sample.dtype).removeprefix("torch.")
    found = building.in_both_orders(program, variant, folder, records, name)
    got = torch.frombuffer(bytearray(found[0]), dtype=sample.dtype).view(values.shape)
    return got, np.frombuffer(found[1], np.int64).tolist()


def unpacked(sample: TileSample, dense: Tensor) -> Tensor:
    """A dense weight as `unpack_tiles` gives it, in float64 of which float32 is left."""
    pack = pack_sparse_conv_transpose2d if sample.transposed else pack_sparse_conv2d
    extra = {"output_padding": sample.output_padding} if sample.transposed else {}
    kept = sample.dense() != 0
    options = {"stride": sample.stride, "padding": sample.padding, "vector_size": sample.rows}
    return unpack_sparse_conv2d(pack(dense.float(), mask=kept, **options, **extra)).double()


def check(
    sample: TileSample, variant: str, programs: Path, folder: Path, **options: Any
) -> list[int]:
    a, grad = example(sample)
    got, plan = in_emulator(sample, a, grad, variant, programs, folder, **options)
    assert not got[a["weight"].values == 0].any(), "what was pruned has no gradient"
    want = unpacked(sample, truth(sample, a["input"], grad)[1])
    sizes = unpacked(sample, truth(sample, a["input"], grad, sizes=True)[1])
    terms = grad.numel() // grad.shape[1]
    scale = allowed(want, sizes, terms, sample.dtype)
    close(unpack_tiles(a["weight"]._replace(values=got)), want, terms=1, scale=scale)
    return plan


BLOCK = TileSample("block-16", (1, 40, 5, 5), 40, pattern="block", rows=16, sparsity=0.5)
# With the number of blocks that share the tiles.
SAMPLES = [
    (BLOCK, 1),
    (replace(BLOCK, name="block-32", rows=32, dtype=torch.float16), 1),
    (replace(BLOCK, name="many-tiles", shape=(3, 8, 21, 17), out=24), 3),
    (replace(BLOCK, name="many-lists", shape=(1, 168, 3, 3), out=136, sparsity=0.8), 1),
    (replace(BLOCK, name="all-kept", shape=(1, 136, 3, 3), sparsity=0.0), 1),
    (replace(BLOCK, name="nearly-nothing", shape=(1, 72, 3, 3), sparsity=0.99), 1),
    (replace(BLOCK, name="stride-2", shape=(2, 24, 9, 11), kernel=4, stride=2), 2),
    (replace(BLOCK, name="7x7-stride-2", shape=(1, 8, 13, 9), kernel=7, stride=2, padding=3), 1),
    (replace(BLOCK, name="1x1", kernel=1, padding=0, shape=(130, 16, 1, 1)), 1),
    (replace(BLOCK, name="2x3", kernel=(2, 3), rows=32), 1),
    (replace(BLOCK, name="odd-out", out=21), 1),
    (replace(BLOCK, name="wide-padding", shape=(1, 8, 3, 3), padding=4), 1),
    (replace(BLOCK, name="transposed", kernel=4, stride=2, transposed=True), 1),
    (replace(BLOCK, name="transposed-odd", kernel=3, stride=2, out=3, output_padding=1,
             rows=32, transposed=True), 1),
    (replace(BLOCK, name="transposed-1", out=24, transposed=True), 1),
]  # fmt: skip


@pytest.mark.parametrize(("sample", "splits"), SAMPLES, **names)
def test_values(sample: TileSample, splits: int, programs: Path, tmp_path: Path) -> None:
    check(sample, "plain", programs, tmp_path, splits=splits)


# Several tiles of pixels, with two buffers; and with one, shared by two blocks.
TWO = replace(BLOCK, name="two", shape=(1, 8, 9, 9), out=24, sparsity=0.1)
ONE = replace(BLOCK, name="one", rows=32, shape=(1, 40, 9, 40), kernel=4, stride=2)
CASES = [
    (replace(sample, dtype=dtype), splits, limit)
    for sample, splits, limit in ((TWO, 1, H100_SHARED), (ONE, 2, 70 << 10))
    for dtype in (torch.bfloat16, torch.float16)
]


def kernels_of(sample: TileSample) -> set[str]:
    name = building.TYPES[sample.dtype]
    of_rows = f"sparse_conv2d_tiles_gradient_kernel<{name}, {sample.rows // 16}>"
    return {of_rows, f"sparse_conv2d_tiles_add_kernel<{name}>"}


CHECKED = {kernel for sample, *_ in CASES for kernel in kernels_of(sample)}


@pytest.mark.parametrize(("sample", "splits", "limit"), CASES, **names)
def test_no_race_and_in_bounds(
    sample: TileSample, splits: int, limit: int, variant: str, programs: Path, tmp_path: Path
) -> None:
    plan = check(sample, variant, programs, tmp_path, splits=splits, limit=limit)
    assert plan[3] == (2 if limit == H100_SHARED else 1)
    assert building.launched(tmp_path) == kernels_of(sample)


def test_groups_are_as_large_as_density_and_memory_allow(programs: Path, tmp_path: Path) -> None:
    """256 x 256 channels at 10 %: 128 rows x 128 channels; few blocks need more than one part."""
    layer = replace(BLOCK, shape=(1, 256, 2, 2), out=256, rows=32)
    for sparsity, lists in ((0.9, 4), (0.75, 2)):
        plan = check(replace(layer, sparsity=sparsity), "plain", programs, tmp_path)
        assert plan[:2] == [4, lists]
        assert plan[3] == 2


def test_wrong_lists_stay_within_the_arrays(programs: Path, tmp_path: Path) -> None:
    """A damaged file gives wrong sums, never a wrong access."""
    a, grad = example(BLOCK)
    weight = a["weight"]
    for damage in (
        {"places": torch.full_like(weight.places, 32000)},
        {"places": torch.full_like(weight.places, -5)},
        {"starts": torch.full_like(weight.starts, 10**6)},
        {"starts": -weight.starts - 1},
        {"starts": weight.starts.flip(0)},
    ):
        spoiled = a | {"weight": weight._replace(**damage)}
        in_emulator(BLOCK, spoiled, grad, "address", programs, tmp_path)


# ---- Input ---------------------------------------------------------------------------------------

BACK = [
    BLOCK,
    replace(BLOCK, name="whole-blocks", out=64, sparsity=0.8),
    replace(BLOCK, name="float16", rows=32, dtype=torch.float16, out=20),
    replace(BLOCK, name="stride-2", shape=(2, 24, 9, 11), kernel=4, stride=2),
    replace(BLOCK, name="wide-padding", shape=(1, 8, 3, 3), padding=4),
    replace(BLOCK, name="transposed", kernel=4, stride=2, transposed=True),
    TileSample("2:4-of-blocks", (1, 40, 5, 5), 40, sparsity=0.8),
]


@pytest.mark.parametrize("sample", BACK, **names)
def test_gradient_of_the_input(sample: TileSample, programs: Path, tmp_path: Path) -> None:
    """The tiles' kernel on the packing with the roles of channels exchanged."""
    a, grad = example(sample)
    numbers, metadata, places, starts, g = transposed_tiles(a["weight"]).back
    cut = transposed_tiles(a["weight"]).cut
    high, wide = (sample.shape[2 + i] + 2 * cut[i] for i in (0, 1))
    values = F.pad(a["weight"].values.flatten(), (1, 0))[numbers]
    grad8 = F.pad(grad, (0, 0, 0, 0, 0, -sample.out % 8))
    g = g._replace(
        growth_h=high * g.stride - grad.shape[2] * g.upscale,
        growth_w=wide * g.stride - grad.shape[3] * g.upscale,
    )
    back = TileSample("back", tuple(grad8.shape), sample.shape[1], pattern="block",
                      rows=g.vector, dtype=sample.dtype)  # fmt: skip
    packed = PackedTiles(values, metadata, places, starts, g)
    arguments = {"input": grad8, "weight": packed, "bias": None, "residual": None,
                 "activation": "none", "slope": 0.0}  # fmt: skip
    whole, _ = convolve_in_emulator(back, arguments, "plain", programs, tmp_path)
    got = whole[:, :, cut[0] : high - cut[0], cut[1] : wide - cut[1]]
    want, _ = truth(sample, a["input"], grad)
    sizes, _ = truth(sample, a["input"], grad, sizes=True)
    terms = math.prod(sample.dense().shape) // sample.shape[1]
    close(got, want, terms=1, scale=allowed(want, sizes, terms, sample.dtype))
