# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of mask_update, run by the emulator against the reference in plain torch."""

from __future__ import annotations

from pathlib import Path

import building
import numpy as np
import pytest
import torch

from gansparse.ops import mask_update_reference
from gansparse.testing.samples.mask_update import Sample, samples

# Around a round of a warp, its stretch, a block; and more stretches than one turn of the scan.
SIZES = tuple((n,) for n in (1, 31, 33, 1023, 1025, 8191, 8193))
COUNTS = [
    Sample("counts", SIZES, 0.6),
    Sample("counts-ties", SIZES, 0.6, levels=3),
    Sample("none", SIZES, 0.0),
    Sample("all", SIZES, 1.0),
]
FEW = Sample("few", ((5,), (1500,)), 0.6, levels=3)


def check(sample: Sample, dtype: torch.dtype, variant: str, programs: Path, folder: Path) -> None:
    program = building.build("mask_update_driver", variant, programs)
    arguments = sample.arguments(dtype=dtype)
    scores, masks = arguments["scores"], arguments["masks"]
    records: list[np.ndarray | None] = [
        np.array([sample.magnitude, sample.monotone], np.int64),
        np.array([score.numel() for score in scores]),
        np.array(arguments["prune"]),
    ]
    for score, mask in zip(scores, masks, strict=True):
        records += [score.flatten().view(torch.uint8).numpy(), mask.flatten().byte().numpy()]
    name = str(dtype).removeprefix("torch.")
    found = building.in_both_orders(program, variant, folder, records, name)
    mask_update_reference(**arguments)
    for got, mask in zip(found, masks, strict=True):
        assert got == mask.byte().numpy().tobytes()


@pytest.mark.parametrize("sample", [*samples("tiny"), *COUNTS], ids=lambda sample: sample.name)
def test_values(sample: Sample, programs: Path, tmp_path: Path) -> None:
    check(sample, torch.float32, "plain", programs, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sample", [COUNTS[1], samples("tiny")[-2]], ids=lambda s: s.name)
def test_values_of_other_dtypes(
    sample: Sample, dtype: torch.dtype, programs: Path, tmp_path: Path
) -> None:
    check(sample, dtype, "plain", programs, tmp_path)


def test_a_long_tensor_scans_its_ties_in_turns(programs: Path, tmp_path: Path) -> None:
    turn = 256 * 8 * 1024  # stretches that a turn of the scan takes, times their elements
    sample = Sample("long", ((turn + 9000,),), 0.9, 0.0, levels=2)
    check(sample, torch.float32, "plain", programs, tmp_path)


def kernels_of(dtype: torch.dtype) -> set[str]:
    stages = ("count", "count_ties", "write")
    key = "unsigned long" if dtype == torch.float64 else "unsigned int"
    return {
        "mask_update_scan_ties_kernel",
        f"mask_update_choose_kernel<{key}>",
        *(f"mask_update_{stage}_kernel<{building.TYPES[dtype]}>" for stage in stages),
    }


CASES = [(samples("tiny")[0], torch.float32), *((FEW, dtype) for dtype in building.TYPES)]
CHECKED = {kernel for _, dtype in CASES for kernel in kernels_of(dtype)}


@pytest.mark.parametrize(("sample", "dtype"), CASES, ids=lambda x: getattr(x, "name", str(x)))
def test_no_race_and_in_bounds(
    sample: Sample, dtype: torch.dtype, variant: str, programs: Path, tmp_path: Path
) -> None:
    check(sample, dtype, variant, programs, tmp_path)
    assert building.launched(tmp_path) == kernels_of(dtype)
