# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of instance_norm, run by the emulator, against float64."""

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
from test_sparse_conv2d_kernels import record
from torch import Tensor

from gansparse.testing import close
from gansparse.testing.samples.instance_norm import Sample, samples

ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2, "prelu": 2, "tanh": 3}
H100_BLOCKS = 4 * 132
names = {"ids": lambda sample: getattr(sample, "name", None)}


def in_emulator(
    a: dict[str, Any], variant: str, programs: Path, folder: Path, blocks: int = H100_BLOCKS
) -> tuple[Tensor, list[int]]:
    """The kernels' output, and the plan: rounds, tiles, slabs, parts that the last one joins."""
    program = building.build("instance_norm_driver", variant, programs)
    x, slopes = a["input"], a["slope"] if isinstance(a["slope"], Tensor) else None
    n, c, h, w = x.shape
    step = int(slopes is not None and len(slopes) > 1)
    moments = a["moments"]
    parts = 0 if moments is None else moments.shape[1]
    numbers = [n, h * w, c, ACTIVATIONS[a["activation"]], step, blocks, parts]
    scalars = [a["eps"], 0.0 if slopes is not None else a["slope"]]
    records = [np.array(numbers), np.array(scalars, np.float32)]
    records += map(record, (x, a["weight"], a["bias"], a["residual"], slopes))
    records.append(record(None if moments is None else moments.flatten()))
    name = str(x.dtype).removeprefix("torch.")
    found = building.in_both_orders(program, variant, folder, records, name)
    output = torch.frombuffer(bytearray(found[0]), dtype=x.dtype)
    plan = np.frombuffer(found[1], np.int64).tolist()
    return output.view(n, h, w, c).permute(0, 3, 1, 2), plan


def check(got: Tensor, a: dict[str, Any]) -> None:
    """Against float64: rounding to T, and float32's roundings of mean, variance and what follows.

    Differences from the mean are as exact as the mean, whose error is √terms roundings of the
    pixels' size; a deviation that small (a constant channel's) makes them no larger than that.
    """
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in a.items()}
    x = wide["input"]
    variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
    scale = (variance + a["eps"]).rsqrt()
    if a["weight"] is not None:
        scale = scale * wide["weight"].view(-1, 1, 1)
    z = (x - mean) * scale
    sizes = (x.abs() + mean.abs()) * scale.abs()
    for added in (wide["bias"], wide["residual"]):
        if added is not None:
            added = added.view(-1, 1, 1) if added.dim() == 1 else added
            z, sizes = z + added, sizes + added.abs()
    steepest = 1.0
    if a["activation"] in ("leaky_relu", "prelu"):
        slope = torch.as_tensor(wide["slope"], dtype=torch.float64).reshape(-1)
        z, steepest = F.prelu(z, slope), max(1.0, float(slope.abs().max()))
    elif a["activation"] != "none":
        z = getattr(torch, a["activation"])(z)
    ratio = torch.finfo(torch.float32).eps / torch.finfo(got.dtype).eps
    terms = math.sqrt(x.shape[2] * x.shape[3]) + 4
    # float16's smallest step is 2^-24.
    close(got, z, terms=1, scale=z.abs() / 2 + ratio * terms * sizes * steepest + 2.0**-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sample", samples("tiny"), **names)
def test_values(sample: Sample, dtype: torch.dtype, programs: Path, tmp_path: Path) -> None:
    a = sample.arguments(dtype=dtype)
    check(in_emulator(a, "plain", programs, tmp_path)[0], a)


@pytest.mark.parametrize("sample", [s for s in samples("edge") if min(s.shape) > 0], **names)
def test_values_at_the_borders(sample: Sample, programs: Path, tmp_path: Path) -> None:
    a = sample.arguments(dtype=torch.bfloat16)
    got, plan = in_emulator(a, "plain", programs, tmp_path)
    assert plan[1] <= 64
    check(got, a)


@pytest.mark.parametrize(("blocks", "tiles"), [(1, 1), (2, 2), (100, 9)])
def test_values_of_any_number_of_tiles(
    blocks: int, tiles: int, programs: Path, tmp_path: Path
) -> None:
    """A mean of 30 deviations, joined over rounds and tiles of which the last is not full."""
    a = Sample("tiles", (1, 8, 5, 230), mean=30.0, affine=True).arguments(dtype=torch.float16)
    got, plan = in_emulator(a, "plain", programs, tmp_path, blocks)
    assert plan[1] == tiles
    check(got, a)


@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize(("parts", "joined"), [(1, 1), (64, 64), (65, 33), (200, 50)])
def test_values_with_moments(
    parts: int, joined: int, mean: float, programs: Path, tmp_path: Path
) -> None:
    """Of parts that differ in size, many of one pixel and some of none."""
    sample = Sample("moments", (2, 72, 9, 14), affine=True, mean=mean, parts=parts)
    a = sample.arguments(dtype=torch.float16)
    got, plan = in_emulator(a, "plain", programs, tmp_path)
    assert plan[3] == joined
    check(got, a)


def test_wrong_moments_give_a_wrong_norm(programs: Path, tmp_path: Path) -> None:
    """So the input is not summed once more."""
    a = Sample("moments", (1, 8, 5, 5), parts=3).arguments(dtype=torch.float16)
    a["moments"][:, :, 1] += 1
    got, _ = in_emulator(a, "plain", programs, tmp_path)
    with pytest.raises(AssertionError, match="elements are off"):
        check(got, a)


# Two slabs of which one is not full, five tiles, a residual and a slope for each channel.
SLABS = Sample("slabs", (1, 72, 3, 200), True, True, "prelu", 72)


def kernels_of(dtype: torch.dtype, parts: int) -> set[str]:
    sums = f"instance_norm_sums_kernel<{building.TYPES[dtype]}>"
    first = {0: {sums}, 7: set(), 70: {"instance_norm_join_kernel"}}
    return {f"instance_norm_apply_kernel<{building.TYPES[dtype]}>"} | first[parts]


HALVES = (torch.bfloat16, torch.float16)
CHECKED = {name for dtype in HALVES for parts in (0, 7, 70) for name in kernels_of(dtype, parts)}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("parts", "joined"), [(0, 5), (7, 7), (70, 35)])
def test_no_race_and_in_bounds(
    parts: int, joined: int, dtype: torch.dtype, variant: str, programs: Path, tmp_path: Path
) -> None:
    a = replace(SLABS, parts=parts).arguments(dtype=dtype)
    got, plan = in_emulator(a, variant, programs, tmp_path)
    assert plan == [1, 5, 2, joined]
    check(got, a)
    assert building.launched(tmp_path) == kernels_of(dtype, parts)


def test_constant_channels_become_the_bias(programs: Path, tmp_path: Path) -> None:
    a = Sample("constant", (2, 16, 9, 70), affine=True, constant=True, mean=200.0).arguments(
        dtype=torch.bfloat16
    )
    got, _ = in_emulator(a, "plain", programs, tmp_path)
    want = a["bias"].to(torch.bfloat16)[::2].view(-1, 1, 1).expand(8, 9, 70)
    assert torch.equal(got[0, ::2], want)
