# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel of sparse_conv2d, run by the emulator on what the real packing makes.

Truth is torch's dense convolution of the masked weight in float64, which knows nothing of tiles.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import building
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gansparse.ops import PackedTiles
from gansparse.testing import close
from gansparse.testing.samples.sparse_conv2d_tiles import TileSample, tile_samples

ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2, "prelu": 2, "tanh": 3}
H100_SHARED = 227 << 10
Column = partial(TileSample, pattern="vector", rows=16)
names = {"ids": lambda sample: sample.name}


def record(tensor: Tensor | None) -> np.ndarray | None:
    """The bytes, pictures as [N, H, W, C]."""
    if tensor is None or tensor.numel() == 0:
        return None
    if tensor.dim() == 4 and tensor.shape[1] > 0 and tensor.is_floating_point():
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


def damaged(weight: PackedTiles) -> list[PackedTiles]:
    """Its lists with places and starts out of range."""
    return [
        weight._replace(places=torch.full_like(weight.places, 32000)),
        weight._replace(places=torch.full_like(weight.places, -5)),
        weight._replace(starts=torch.full_like(weight.starts, 10**6)),
        weight._replace(starts=-weight.starts - 1),
    ]


def in_emulator(
    sample: TileSample, a: dict[str, Any], variant: str, programs: Path, folder: Path,
    limit: int = H100_SHARED,
) -> tuple[Tensor, list[int]]:  # fmt: skip
    """The kernel's output [N, O, OH, OW], and the plan."""
    return launched(sample, a, variant, programs, folder, limit=limit)[:2]


def launched(
    sample: TileSample, a: dict[str, Any], variant: str, programs: Path, folder: Path,
    *, limit: int = H100_SHARED, moments: bool = False,
) -> tuple[Tensor, list[int], Tensor]:  # fmt: skip
    """Output, plan, and the moments that were wanted: [N, P, 3, O]."""
    program = building.build("sparse_conv2d_driver", variant, programs)
    values, metadata, places, starts, g = a["weight"]
    n, _, h, w = sample.shape
    high, wide = g.output_size(h, w)
    slopes = a["slope"] if isinstance(a["slope"], Tensor) else None
    step = int(slopes is not None and len(slopes) > 1)
    numbers = [*g, n, h, w, high, wide, ACTIVATIONS[a["activation"]], step, limit]
    numbers += [("block", "2:4", "vector").index(sample.pattern), moments]
    slope = 0.0 if slopes is not None else a["slope"]
    flat = [values.flatten(), metadata.flatten(), places.flatten(), starts]
    records = [np.array(numbers), np.array([slope], np.float32), record(a["input"])]
    records += [*map(record, flat), record(a["bias"]), record(a["residual"]), record(slopes)]
    name = str(sample.dtype).removeprefix("torch.")
    found = building.in_both_orders(program, variant, folder, records, name)
    output = torch.frombuffer(bytearray(found[0]), dtype=sample.dtype)
    plan = np.frombuffer(found[1], np.int64).tolist()
    left = torch.from_numpy(np.frombuffer(found[2], np.float32).copy())
    pictures = output.view(n, high, wide, sample.out).permute(0, 3, 1, 2)
    return pictures, plan, left.view(n, -1, 3, sample.out)


def finish(z: Tensor, a: dict[str, Any]) -> Tensor:
    if a["bias"] is not None:
        z = z + a["bias"].double()[:, None, None]
    if a["residual"] is not None:
        z = z + a["residual"].double()
    if a["activation"] in ("leaky_relu", "prelu"):
        return F.prelu(z, torch.as_tensor(a["slope"]).double().reshape(-1))
    return z if a["activation"] == "none" else getattr(torch, a["activation"])(z)


def check_close(sample: TileSample, a: dict[str, Any], got: Tensor) -> None:
    """One rounding to the output's dtype, and float32 sums before it."""
    input, weight = a["input"].double(), sample.dense().double()
    want = finish(sample.convolve(input, weight), a)
    magnitudes = {k: v.abs() if isinstance(v, Tensor) else v for k, v in a.items()}
    sizes = finish(sample.convolve(input.abs(), weight.abs()), magnitudes | {"activation": "none"})
    steepest = max(1.0, float(torch.as_tensor(a["slope"]).abs().max()))
    terms = math.prod(weight.shape[1:]) * (4 if sample.transposed else 1) + 4
    ratio = torch.finfo(torch.float32).eps / torch.finfo(sample.dtype).eps
    scale = want.abs() / 2 + ratio * math.sqrt(terms) * sizes * steepest
    if sample.dtype == torch.float16:  # below 2^-14 the spacing stays 2^-24
        scale = scale + 2.0**-14
    close(got, want, terms=1, scale=scale)


def check(sample: TileSample, variant: str, programs: Path, folder: Path, **limit: int) -> None:
    a = sample.arguments()
    got, _ = in_emulator(sample, a, variant, programs, folder, **limit)
    check_close(sample, a, got)


@pytest.mark.parametrize("sample", tile_samples("tiny") + tile_samples("edge"), **names)
def test_values(sample: TileSample, programs: Path, tmp_path: Path) -> None:
    check(sample, "plain", programs, tmp_path)


# Each configuration of the kernel, with two and four row tiles a block of which not all are there;
# more chunks than buffers, a halo, a last tile that is not full.
CASES = [
    TileSample("2:4", (1, 72, 5, 5), 40, residual=True, activation="relu"),
    TileSample("2:4-four-tiles", (1, 40, 3, 3), 70, 1, padding=0),
    TileSample("rows-64", (1, 40, 3, 3), 70, rows=64),
    TileSample("block-16", (1, 40, 5, 5), 20, 3, 2, pattern="block", rows=16, sparsity=0.5),
    TileSample("block-32", (1, 40, 3, 3), 40, pattern="block", sparsity=0.5, activation="tanh"),
    TileSample("transposed", (1, 8, 3, 3), 16, 4, 2, transposed=True, pattern="block", rows=16),
    Column("vector-by-64", (1, 72, 5, 5), 130, sparsity=0.8, residual=True),
    Column("vector-three-lists", (1, 72, 5, 5), 130, sparsity=0.8, list_channels=32),
    Column("vector-by-32", (1, 72, 3, 9), 20, 4, 2, sparsity=0.5, activation="tanh"),
    Column("vector-transposed", (1, 8, 3, 3), 16, 4, 2, transposed=True),
]
CASES += [
    replace(sample, name=f"{sample.name}-float16", dtype=torch.float16)
    for sample in CASES
    if sample.name in ("2:4", "rows-64", "block-16", "block-32", "vector-by-64", "vector-by-32")
]


def kernel_of(sample: TileSample) -> str:
    number = building.TYPES[sample.dtype]
    if sample.pattern == "vector":
        channels = sample.pack_tiles(sample.dense()).geometry.block
        return f"sparse_conv2d_columns_kernel<{number}, {channels}>"
    config = f"{sample.rows // 16}, {'true' if sample.pattern == '2:4' else 'false'}, 8"
    return f"sparse_conv2d_tiles_kernel<{number}, TileConfig<{config}> >"


CHECKED = {kernel_of(sample) for sample in CASES}


@pytest.mark.parametrize("sample", CASES, **names)
def test_no_race_and_in_bounds(
    sample: TileSample, variant: str, programs: Path, tmp_path: Path
) -> None:
    check(sample, variant, programs, tmp_path)
    assert building.launched(tmp_path) == {kernel_of(sample)}


@pytest.mark.parametrize(("limit", "buffers"), [(48 << 10, 2), (140 << 10, 3), (227 << 10, 4)])
def test_values_with_every_number_of_buffers(
    limit: int, buffers: int, programs: Path, tmp_path: Path
) -> None:
    sample = TileSample("buffers", (1, 192, 8, 16), 32)
    a = sample.arguments()
    got, plan = in_emulator(sample, a, "plain", programs, tmp_path, limit)
    assert plan[:3] == [1, 8, 16] or plan[:3] == [1, 16, 8]
    assert plan[4] == buffers
    assert plan[5] <= limit
    check_close(sample, a, got)


@pytest.mark.parametrize(
    ("out", "limit", "buffers"), [(256, 227 << 10, 2), (256, 160 << 10, 1), (32, 227 << 10, 1)]
)
def test_columns_with_either_number_of_buffers(
    out: int, limit: int, buffers: int, programs: Path, tmp_path: Path
) -> None:
    """One where three blocks are to lie beside each other, or where there is room for no more."""
    sample = Column("buffers", (1, 192, 8, 16), out, sparsity=0.75)
    a = sample.arguments()
    got, plan = in_emulator(sample, a, "plain", programs, tmp_path, limit)
    assert plan[:3] == [1, 8, 16] or plan[:3] == [1, 16, 8]
    assert plan[4] == buffers
    assert plan[5] <= limit
    check_close(sample, a, got)


def test_many_small_pictures_fit_into_little_shared_memory(programs: Path, tmp_path: Path) -> None:
    """The fewest blocks, of 32 pictures with much halo each, would need 512 KB."""
    sample = TileSample("small", (32, 8, 2, 2), 16, 9, padding=4, pattern="block", rows=16)
    a = sample.arguments()
    limit = 99 << 10
    got, plan = in_emulator(sample, a, "plain", programs, tmp_path, limit)
    assert plan[5] <= limit
    check_close(sample, a, got)


@pytest.mark.parametrize("sample_of", [TileSample, Column], ids=["2:4", "vector"])
def test_lists_out_of_range_read_nothing_else(
    sample_of: Any, programs: Path, tmp_path: Path
) -> None:
    """A damaged file gives wrong sums, never a wrong access."""
    sample = sample_of("damaged", (1, 40, 5, 5), 40)
    a = sample.arguments()
    for weight in damaged(a["weight"]):
        in_emulator(sample, a | {"weight": weight}, "address", programs, tmp_path)


def test_nan_reaches_what_meets_it(programs: Path, tmp_path: Path) -> None:
    """The outputs that a kept block connects with a NaN, and no others; relu lets it through."""
    sample = TileSample("nan", (1, 16, 20, 9), 40, pattern="block", rows=16, activation="relu")
    a = sample.arguments()
    a["input"] = a["input"].clone(memory_format=torch.channels_last)
    a["input"][0, 9, 4, 5] = torch.nan
    got, _ = in_emulator(sample, a, "plain", programs, tmp_path)
    want = torch.zeros(20, 9, dtype=torch.bool)
    want[3:6, 4:7] = True
    assert torch.equal(got.isnan(), want.expand(1, 40, 20, 9))


def test_nan_reaches_what_meets_its_column(programs: Path, tmp_path: Path) -> None:
    """16 output channels keep a column together; others do not see what it reads."""
    sample = Column("nan", (1, 40, 20, 9), 40, sparsity=0.7)
    a = sample.arguments()
    a["input"] = a["input"].clone(memory_format=torch.channels_last)
    a["input"][0, 33, 4, 5] = torch.nan
    got, _ = in_emulator(sample, a, "plain", programs, tmp_path)
    kept = sample.dense()[:, 33] != 0  # [O, 3, 3]
    want = torch.zeros(40, 20, 9, dtype=torch.bool)
    want[:, 3:6, 4:7] = kept.flip(1, 2)
    assert 0 < int(kept.sum()) < kept.numel()
    assert torch.equal(got.isnan(), want[None])


@pytest.mark.parametrize("pattern", ["block", "2:4", "vector"])
def test_nan_of_a_channel_that_nobody_keeps_reaches_nothing(
    pattern: Any, programs: Path, tmp_path: Path
) -> None:
    """What fills a step up reads nothing that its list would not read."""
    rows = 32 if pattern == "2:4" else 16
    sample = TileSample("nan", (1, 16, 9, 9), rows, pattern=pattern, rows=rows, biased=False)
    a = sample.arguments()
    weight = sample.dense()
    weight[:, :8] = 0
    weight[:, 8:, 0, :2] = 0  # seven blocks, or 56 columns: a step is filled up
    a["weight"] = sample.pack_tiles(weight)
    a["input"] = a["input"].clone(memory_format=torch.channels_last)
    a["input"][:, :8] = torch.nan
    got, _ = in_emulator(sample, a, "plain", programs, tmp_path)
    assert not got.isnan().any()
