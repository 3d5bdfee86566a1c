# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel of feature_moments, run by the emulator against the float64 reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import building
import numpy as np
import pytest
import torch

from gansparse.ops import feature_moments_reference
from gansparse.testing import close
from gansparse.testing.samples.feature_moments import Sample, samples

# Around steps of 8 and 16 rows, two turns of shared memory, a tile of 64 features, of which a warp
# has 32, and a triangle of tiles.
EDGES = [Sample(f"{n}x{f}", n, f) for n in (1, 15, 16, 17) for f in (1, 63, 64, 65)]
EDGES += [Sample(f"{n}x33", n, 33) for n in (0, 7, 8, 9, 31, 32, 33)]
EDGES.append(Sample("50x200", 50, 200, shifted=False))
DTYPES = (torch.float64, torch.float16, torch.bfloat16)
SUMS = ("total", "second", "shift")
names = {"ids": lambda sample: getattr(sample, "name", None)}


def records(arguments: dict[str, Any]) -> list[np.ndarray | None]:
    """What the driver reads."""
    features = arguments["features"]
    sums = [None if (x := arguments[name]) is None else x.numpy() for name in SUMS]
    return [np.array(features.shape), features.view(torch.uint8).numpy(), *sums]


def check(sample: Sample, dtype: torch.dtype, variant: str, programs: Path, folder: Path) -> None:
    program = building.build("feature_moments_driver", variant, programs)
    arguments = sample.arguments(dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    found = building.in_both_orders(program, variant, folder, records(arguments), name)
    total, second = (torch.frombuffer(bytearray(r), dtype=torch.float64) for r in found)

    largest = 1 + (float(arguments["features"].double().abs().max()) if sample.rows else 0)
    if arguments["shift"] is not None:
        largest += float(arguments["shift"].abs().max())
    above = arguments["second"].triu(1)
    feature_moments_reference(**arguments)
    terms = 4 * (4 * sample.rows + 1)  # as in tests/ops/test_feature_moments.py
    scale = (sample.rows + 4) * largest
    close(total, arguments["total"], terms=terms, scale=scale, name="total")
    second = second.view(sample.width, sample.width)
    want = arguments["second"].tril() + above
    close(second, want, terms=terms, scale=scale * largest, name="second")
    assert torch.equal(second.triu(1), above), "written above the diagonal"


@pytest.mark.parametrize("sample", [*samples("tiny"), *EDGES], **names)
def test_values(sample: Sample, programs: Path, tmp_path: Path) -> None:
    check(sample, torch.float32, "plain", programs, tmp_path)


@pytest.mark.parametrize("sample", [Sample("17x65", 17, 65), Sample("25x31", 25, 31)], **names)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_other_dtypes(
    sample: Sample, dtype: torch.dtype, programs: Path, tmp_path: Path
) -> None:
    check(sample, dtype, "plain", programs, tmp_path)


CHECKED = {f"feature_moments_kernel<{name}>": dtype for dtype, name in building.TYPES.items()}


@pytest.mark.parametrize("kernel", CHECKED)
def test_no_race_and_in_bounds(kernel: str, variant: str, programs: Path, tmp_path: Path) -> None:
    check(Sample("33x65", 33, 65), CHECKED[kernel], variant, programs, tmp_path)
    assert building.launched(tmp_path) == {kernel}


def test_a_missing_barrier_is_found(programs: Path, tmp_path: Path) -> None:
    program = building.build("feature_moments_driver", "thread", programs)
    building.write_arguments(tmp_path / "arguments", records(Sample("33x65", 33, 65).arguments()))
    for seed in ("0", "1"):
        files = (tmp_path / "arguments", tmp_path / "results")
        done = building.run(program, "thread", *files, "float32", "broken", seed)
        assert done.returncode == building.VARIANTS["thread"].status, done.stdout + done.stderr
        assert "data race" in done.stderr
