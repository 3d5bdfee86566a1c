# SPDX-License-Identifier: Apache-2.0
"""Moments that the CUDA kernels of sparse_conv2d leave of their output, run by the emulator.

Truth is float64, of the very numbers that the kernel has stored; whether these are right
test_sparse_conv2d_kernels.py tells of a run without moments, to which they are compared.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sparse_conv2d_kernels import H100_SHARED, launched

from gansparse.testing import close_moments
from gansparse.testing.samples.sparse_conv2d_tiles import TileSample

names = {"ids": lambda sample: sample.name}
Layer = TileSample
Block = partial(TileSample, pattern="block", rows=16, sparsity=0.5)
Column = partial(TileSample, pattern="vector", rows=16, sparsity=0.5)
Group = partial(TileSample, rows=128)
half = torch.float16

# Each configuration; tiles that are not full, small pictures, channels past a tile's rows, phases.
SAMPLES = [
    Layer("plain", (2, 16, 9, 7), 32),
    Layer("one-picture-of-many-tiles", (1, 8, 33, 17), 40, dtype=half),
    Layer("rows-64", (2, 8, 8, 16), 136, rows=64, biased=False),
    Layer("small-pictures", (5, 8, 3, 3), 70),
    Layer("one-pixel", (3, 8, 1, 1), 32),
    Layer("row-of-pixels", (1, 8, 1, 130), 32, (1, 3), padding=(0, 1)),
    Layer("stride-2", (2, 8, 23, 21), 32, 4, 2, 1),
    Block("block-16", (2, 8, 12, 12), 20),
    TileSample("block-32", (1, 8, 12, 12), 40, pattern="block", sparsity=0.5, dtype=half),
    Layer("transposed", (2, 16, 5, 9), 32, 4, 2, 1, transposed=True),
    Block("transposed-odd", (2, 8, 5, 9), 24, 3, 2, 1, transposed=True),
    Layer("nothing-kept", (1, 8, 5, 5), 32, sparsity=1.0),
    Column("vector", (2, 8, 12, 12), 20),
    Column("vector-small-pictures", (5, 8, 3, 3), 272, dtype=half),
    Column("vector-transposed-odd", (2, 8, 5, 9), 24, 3, 2, 1, transposed=True),
    Group("rows-128", (2, 16, 9, 7), 136),
    Group("rows-128-many-tiles", (1, 8, 40, 17), 24, dtype=half),
    Group("rows-128-stride-2", (2, 8, 11, 13), 16, 4, 2, 1),
    Group("rows-128-transposed", (2, 8, 5, 9), 16, 3, 2, 1, transposed=True),
]


def arguments(sample: TileSample, mean: float = 0.0) -> dict[str, Any]:
    a = sample.arguments()
    return a | {"bias": a["bias"] + mean} if mean else a


@pytest.mark.parametrize("sample", SAMPLES, **names)
def test_moments_of_what_is_stored(sample: TileSample, programs: Path, tmp_path: Path) -> None:
    a = arguments(sample)
    y, plan, moments = launched(sample, a, "plain", programs, tmp_path, moments=True)
    close_moments(moments, y)
    plain, other_plan, none = launched(sample, a, "plain", programs, tmp_path)
    assert torch.equal(y, plain)
    assert none.numel() == 0
    # Pictures of a tile; with 128 rows, whether they stand close.
    which = 2 if sample.rows == 128 else 0
    assert plan[which] == 1 - which // 2
    if sample.name in (
        "small-pictures",
        "vector-small-pictures",
        "one-pixel",
        "rows-128",
        "rows-128-stride-2",
    ):
        assert other_plan[which] > plan[which]


@pytest.mark.parametrize(
    "sample", [Layer("plain", (1, 16, 16, 16), 32, dtype=half),
               Group("rows-128", (1, 16, 16, 16), 16, dtype=half)], **names
)  # fmt: skip
def test_a_large_mean_does_no_harm(sample: TileSample, programs: Path, tmp_path: Path) -> None:
    """A hundred deviations: neither sums of squares in float32 would do, nor a pixel too many."""
    y, _, moments = launched(
        sample, arguments(sample, 1000.0), "plain", programs, tmp_path, moments=True
    )
    close_moments(moments, y)
    flat, pixels = y.float().flatten(2), y.shape[2] * y.shape[3]
    squares = flat.square().sum(2) - flat.sum(2).square() / pixels
    naive = torch.stack([torch.full_like(squares, pixels), flat.mean(2), squares], 1)[:, None]
    with pytest.raises(AssertionError, match="distances"):
        close_moments(naive, y)
    moments[:, 0, 1] *= (moments[:, 0, 0] - 1) / moments[:, 0, 0]  # a pixel was taken for 0
    with pytest.raises(AssertionError, match="mean"):
        close_moments(moments, y)


@pytest.mark.parametrize(
    "sample",
    [
        Layer("constant", (2, 8, 9, 7), 40, sparsity=1.0, dtype=half),
        Group("constant-128", (2, 8, 9, 7), 40, sparsity=1.0),
    ],
    **names,
)
def test_constant_channels_have_no_variance(
    sample: TileSample, programs: Path, tmp_path: Path
) -> None:
    """The bias, rounded as it is stored."""
    y, _, moments = launched(sample, arguments(sample), "plain", programs, tmp_path, moments=True)
    assert torch.equal(moments[0, 0, 1], y[0, :, 0, 0].float())
    assert not moments[:, :, 2].any()


@pytest.mark.parametrize(
    "sample",
    [
        Layer("2:4-four-tiles", (1, 40, 3, 3), 70, 1, padding=0),
        Layer("rows-64", (2, 8, 9, 15), 70, rows=64),
        Block("transposed-odd", (1, 8, 5, 9), 24, 3, 2, 1, transposed=True),
        Column("vector", (2, 8, 9, 15), 24),
        Group("rows-128", (2, 8, 5, 9), 20, 3, 2, 1, transposed=True),
    ],
    **names,
)
def test_no_race_and_in_bounds(
    sample: TileSample, variant: str, programs: Path, tmp_path: Path
) -> None:
    y, _, moments = launched(sample, arguments(sample), variant, programs, tmp_path, moments=True)
    close_moments(moments, y)


def test_parts_do_not_depend_on_the_device(programs: Path, tmp_path: Path) -> None:
    """Where the arrangement that would does not fit into shared memory, the launch refuses it."""
    sample = Block("long-row", (1, 8, 2, 300), 16, 9, 2, 4, sparsity=0.0)
    for moments in (True, False):
        _, plan, left = launched(
            sample, arguments(sample), "plain", programs, tmp_path, moments=moments
        )
        assert (plan[:3] == [1, 1, 128]) == moments
        assert (plan[5] > H100_SHARED) == moments
        assert left.shape[1] == 2 * moments
