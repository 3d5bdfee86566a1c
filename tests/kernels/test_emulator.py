# SPDX-License-Identifier: Apache-2.0
"""The emulator catches what it is there to catch, and says nothing about sound kernels."""

from __future__ import annotations

from pathlib import Path

import building
import pytest

# Kernel → (the variant that must catch it, what its report says).
FAULTS = {
    "missing_barrier": ("thread", "data race"),
    "missing_second_barrier": ("thread", "data race"),
    "missing_warp_barrier": ("thread", "data race"),
    "plain_counter": ("thread", "data race"),
    "dynamic_shared_race": ("thread", "data race"),
    "global_out_of_bounds": ("address", "heap-buffer-overflow"),
    "shared_out_of_bounds": ("address", "global-buffer-overflow|out of bounds"),
    "dynamic_shared_out_of_bounds": ("address", "heap-buffer-overflow"),
    "misaligned_vector": ("plain", ""),
    "exit_before_barrier": (
        "plain",
        "divergent __syncthreads in block (0, 0, 0): 10 threads have exited, "
        "54 threads wait in __syncthreads at ",
    ),
    "barrier_in_a_branch": ("plain", "divergent __syncthreads in block (0, 0, 0): 10 threads wait"),
    "shuffle_in_a_branch": (
        "plain",
        "deadlock in block (0, 0, 0): 32 threads have exited, "
        "32 threads wait in __shfl_xor_sync at ",
    ),
    "shuffle_outside_its_mask": ("plain", "reads from a lane outside its mask at "),
    "different_warp_operations": ("plain", "lanes of one mask call different operations"),
    "missing_barrier_after_copies": ("thread", "data race"),
    "missing_barrier_after_word_copies": ("thread", "data race"),
    "copies_asked_for_too_early": ("thread", "data race"),
    "missing_barrier_of_moments": ("thread", "data race"),
    "misaligned_matrix": ("plain", ""),
    "product_in_a_branch": (
        "plain",
        "deadlock in block (0, 0, 0): 32 threads have exited, 32 threads wait in multiply at ",
    ),
    "metadata_falls": ("plain", "metadata does not rise"),
}
KERNEL_ERROR = 3
TRAP = -4  # SIGILL


@pytest.mark.parametrize("kernel", FAULTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_catches(kernel: str, seed: int, programs: Path) -> None:
    variant, report = FAULTS[kernel]
    program = building.build("broken_driver", variant, programs)
    done = building.run(program, variant, kernel, "broken", str(seed))
    output = done.stdout + done.stderr
    expected = building.VARIANTS[variant].status or (TRAP if not report else KERNEL_ERROR)
    assert done.returncode == expected, output
    assert any(words in output for words in report.split("|")), output
    if report:
        assert "broken_driver.cpp:" in output, "a report names the line"


@pytest.mark.parametrize("kernel", [*FAULTS, "reductions"])
def test_lets_sound_kernels_be(kernel: str, variant: str, programs: Path) -> None:
    program = building.build("broken_driver", variant, programs)
    for seed in ("0", "1", "2"):
        done = building.run(program, variant, kernel, "sound", seed)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("driver", ["language_driver", "tensor_core_driver"])
def test_language(driver: str, variant: str, programs: Path) -> None:
    program = building.build(driver, variant, programs)
    for seed in ("0", "1", "2"):
        done = building.run(program, variant, seed)
        assert done.returncode == 0, done.stdout + done.stderr
