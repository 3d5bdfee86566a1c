# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel of feature_moments, run by the emulator against the float64 reference."""

from __future__ import annotations

from pathlib import Path

import building
import numpy as np
import pytest
import torch

from gansparse.ops import feature_moments_reference
from gansparse.testing import close
from gansparse.testing.samples.feature_moments import Sample, samples

# Around a step of 16 rows, a tile of 64 features, and a triangle of tiles.
EDGES = [Sample(f"{n}x{f}", n, f) for n in (1, 15, 16, 17) for f in (1, 63, 64, 65)]
EDGES.append(Sample("33x200", 33, 200, shifted=False))


def check(sample: Sample, dtype: torch.dtype, variant: str, programs: Path, folder: Path) -> None:
    program = building.build("feature_moments_driver", variant, programs)
    arguments = sample.arguments(dtype=dtype)
    shift = arguments["shift"]
    shape = np.array([sample.rows, sample.width])
    features = arguments["features"].view(torch.uint8).numpy()
    sums = [arguments[name].numpy() for name in ("total", "second")]
    records = [shape, features, *sums, None if shift is None else shift.numpy()]
    building.write_arguments(folder / "arguments", records)
    name = str(dtype).removeprefix("torch.")
    results = []
    for seed in ("0", "1"):
        to = folder / f"results{seed}"
        done = building.run(program, variant, folder / "arguments", to, name, seed)
        assert done.returncode == 0, done.stdout + done.stderr
        results.append(building.read_results(to))
    assert results[0] == results[1], "the order of threads changes the result"
    total, second = (torch.frombuffer(bytearray(r), dtype=torch.float64) for r in results[0])

    largest = float(arguments["features"].double().abs().max()) + 1
    if shift is not None:
        largest += float(shift.abs().max())
    above = arguments["second"].triu(1)
    feature_moments_reference(**arguments)
    terms = 4 * (4 * sample.rows + 1)  # as in tests/ops/test_feature_moments.py
    scale = (sample.rows + 4) * largest
    close(total, arguments["total"], terms=terms, scale=scale, name="total")
    second = second.view(sample.width, sample.width)
    want = arguments["second"].tril() + above
    close(second, want, terms=terms, scale=scale * largest, name="second")
    assert torch.equal(second.triu(1), above), "written above the diagonal"


@pytest.mark.parametrize("sample", [*samples("tiny"), *EDGES], ids=lambda sample: sample.name)
def test_values(sample: Sample, programs: Path, tmp_path: Path) -> None:
    check(sample, torch.float32, "plain", programs, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_values_of_other_dtypes(dtype: torch.dtype, programs: Path, tmp_path: Path) -> None:
    check(Sample("17x65", 17, 65), dtype, "plain", programs, tmp_path)


@pytest.mark.parametrize("sample", [samples("tiny")[1], EDGES[-2]], ids=lambda sample: sample.name)
def test_no_race_and_in_bounds(
    sample: Sample, variant: str, programs: Path, tmp_path: Path
) -> None:
    check(sample, torch.float32, variant, programs, tmp_path)
