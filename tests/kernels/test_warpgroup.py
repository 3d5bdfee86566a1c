# SPDX-License-Identifier: Apache-2.0
"""A warpgroup's asynchronous products: their values, and that every slip is found."""

from __future__ import annotations

from pathlib import Path

import building
import pytest

VALUES, KERNEL_ERROR = 1, 3
# What is wrong → (the variant that must catch it, the status, what the report says).
FAULTS = {
    "wait_copies": ("plain", VALUES, "sums are wrong"),
    "barrier": ("thread", building.VARIANTS["thread"].status, "data race"),
    "fence_products": ("plain", KERNEL_ERROR, "fence_products is missing after a copy"),
    "begin_products": ("plain", KERNEL_ERROR, "begin_products is missing"),
    "commit_products": ("plain", VALUES, "sums are wrong"),
    "wait_products": ("plain", VALUES, "65536 of 65536 sums are wrong"),
    "wait of one": ("plain", VALUES, "65536 of 65536 sums are wrong"),
    "registers": ("plain", KERNEL_ERROR, "registers of A changed before the wait"),
    "shared memory": ("plain", KERNEL_ERROR, "shared memory of B changed before the wait"),
    "start": ("plain", VALUES, "sums are wrong"),
    "row step": ("plain", VALUES, "sums are wrong"),
    "column step": ("plain", VALUES, "sums are wrong"),
    "out of bounds": ("address", building.VARIANTS["address"].status, "heap-buffer-overflow"),
    "swizzle": ("plain", KERNEL_ERROR, "asks for a swizzle"),
    "lanes differ": ("plain", KERNEL_ERROR, "lanes have different descriptors"),
    "falling metadata": ("plain", KERNEL_ERROR, "metadata does not rise"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_catches(fault: str, programs: Path) -> None:
    variant, status, report = FAULTS[fault]
    program = building.build("warpgroup_driver", variant, programs)
    for seed in ("0", "1"):
        done = building.run(program, variant, fault, seed)
        assert done.returncode == status, done.stdout + done.stderr
        assert report in done.stdout + done.stderr


def test_products(variant: str, programs: Path) -> None:
    program = building.build("warpgroup_driver", variant, programs)
    for seed in ("0", "1", "2"):
        done = building.run(program, variant, "sound", seed)
        assert done.returncode == 0, done.stdout + done.stderr
