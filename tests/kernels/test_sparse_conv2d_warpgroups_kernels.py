# SPDX-License-Identifier: Apache-2.0
"""The kernel of sparse_conv2d on warpgroups, run by the emulator on what the real packing makes.

As test_sparse_conv2d_kernels.py, whose truth this is measured with: a dense float64 convolution.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import building
import pytest
import torch
from test_sparse_conv2d_kernels import H100_SHARED, check, check_close, damaged, in_emulator

from gansparse.testing.samples.sparse_conv2d_tiles import TileSample

Layer = partial(TileSample, rows=128)
half = torch.float16
names = {"ids": lambda sample: sample.name}

# Blocks of 128 rows, 32 rows of 8 pixels and 32 channels, and what is no multiple of these.
SAMPLES = [
    Layer("two-tiles-of-a-picture", (1, 32, 40, 8), 128),
    Layer("pictures-stand-close", (5, 72, 5, 10), 40, residual=True, activation="relu"),
    Layer("float16", (1, 40, 7, 7), 136, dtype=half, residual=True, activation="tanh"),
    Layer("odd-channels", (2, 8, 4, 4), 133, activation="leaky_relu", residual=True),
    Layer("prelu", (1, 24, 5, 5), 13, activation="prelu", slopes=13, biased=False, dtype=half),
    Layer("no-padding", (1, 8, 1, 130), 8, (1, 3), padding=0),
    Layer("1x1", (1, 104, 6, 6), 32, 1, padding=0),
    Layer("4x4-stride-2", (1, 40, 11, 13), 136, 4, 2, padding=1),
    Layer("4x4-stride-2-close", (3, 8, 8, 8), 16, 4, 2, padding=1, dtype=half),
    Layer("7x7-reflect", (2, 8, 9, 9), 64, 7, padding=3, padding_mode="reflect"),
    Layer("9x9-stride-2-replicate", (1, 8, 11, 8), 8, 9, 2, 4, "replicate"),
    Layer("transposed", (2, 40, 5, 9), 24, 4, 2, 1, transposed=True),
    Layer("transposed-odd", (3, 8, 5, 3), 129, 3, 2, 1, output_padding=1, transposed=True),
    Layer("transposed-stride-1", (1, 8, 6, 6), 16, 3, 1, 1, transposed=True, dtype=half),
    Layer("taps-pruned", (1, 72, 6, 6), 40, sparsity=0.8),
    Layer("chunks-pruned", (1, 328, 4, 4), 16, 1, padding=0, sparsity=0.8),
    Layer("nothing-kept", (1, 40, 5, 5), 32, sparsity=1.0),
]


@pytest.mark.parametrize("sample", SAMPLES, **names)
def test_values(sample: TileSample, programs: Path, tmp_path: Path) -> None:
    check(sample, "plain", programs, tmp_path)


CASES = [
    Layer("many-chunks", (1, 136, 3, 3), 40, (1, 2), padding=0, residual=True),
    Layer("chunks-pruned", (1, 200, 2, 9), 30, 1, padding=0, sparsity=0.7),
    Layer("chunks-pruned-float16", (1, 200, 2, 9), 30, 1, padding=0, sparsity=0.7, dtype=half),
    Layer("transposed", (2, 8, 5, 3), 16, 4, 2, 1, transposed=True),
]


def kernel_of(sample: TileSample) -> str:
    return f"sparse_conv2d_warpgroups_kernel<{building.TYPES[sample.dtype]}>"


CHECKED = {kernel_of(sample) for sample in CASES}


@pytest.mark.parametrize("sample", CASES, **names)
def test_no_race_and_in_bounds(
    sample: TileSample, variant: str, programs: Path, tmp_path: Path
) -> None:
    check(sample, variant, programs, tmp_path)
    assert building.launched(tmp_path) == {kernel_of(sample)}


@pytest.mark.parametrize(("kernel", "stride", "buffers"), [(4, 2, 2), (3, 2, 3), (3, 1, 4)])
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_values_with_every_number_of_buffers(
    kernel: int, stride: int, buffers: int, sparsity: float, programs: Path, tmp_path: Path
) -> None:
    sample = Layer("buffers", (1, 136, 6, 6), 32, kernel, stride, sparsity=sparsity)
    a = sample.arguments()
    got, plan = in_emulator(sample, a, "plain", programs, tmp_path)
    assert plan[4] == buffers
    check_close(sample, a, got)


@pytest.mark.parametrize(
    ("shape", "tiles", "period"),
    [
        ((1, 8, 64, 64), 2 * 8, 64),  # two tiles high: nothing between pictures
        ((16, 8, 32, 32), 16 * 4, 32),
        ((16, 8, 16, 16), 9 * 2, 18),  # 16 pictures of 16 + 2 rows are 286
        ((16, 8, 4, 4), 3, 6),
    ],
)
def test_pictures_stand_as_close_as_saves_tiles(
    shape: tuple[int, ...], tiles: int, period: int, programs: Path, tmp_path: Path
) -> None:
    sample = Layer("tower", shape, 8, sparsity=1.0)
    _, plan = in_emulator(sample, sample.arguments(), "plain", programs, tmp_path)
    assert plan[:3] == [tiles, period, period % 32 != 0]


@pytest.mark.parametrize("stride", [1, 2])
def test_every_layer_fits_into_shared_memory(stride: int, programs: Path, tmp_path: Path) -> None:
    """9 x 9 has the largest halo."""
    sample = Layer("large", (1, 264, 9, 9), 8, 9, stride, 4, sparsity=1.0)
    _, plan = in_emulator(sample, sample.arguments(), "plain", programs, tmp_path)
    assert plan[5] <= H100_SHARED


def test_lists_out_of_range_read_nothing_else(programs: Path, tmp_path: Path) -> None:
    """A damaged file gives wrong sums, never a wrong access."""
    sample = Layer("damaged", (1, 40, 5, 5), 40)
    a = sample.arguments()
    for weight in damaged(a["weight"]):
        in_emulator(sample, a | {"weight": weight}, "address", programs, tmp_path)


def test_nan_stays_in_its_picture(programs: Path, tmp_path: Path) -> None:
    """Pictures stand close, yet none sees another's pixels."""
    sample = Layer("nan", (4, 8, 6, 9), 16)
    a = sample.arguments()
    a["input"] = a["input"].clone(memory_format=torch.channels_last)
    a["input"][1, :, 5, 4] = torch.nan
    got, plan = in_emulator(sample, a, "plain", programs, tmp_path)
    assert plan[2] == 1
    want = torch.zeros(4, 16, 6, 9, dtype=torch.bool)
    want[1, :, 4:6, 3:6] = True
    assert torch.equal(got.isnan(), want)
