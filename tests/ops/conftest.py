# SPDX-License-Identifier: Apache-2.0
"""Every op's tests run on each device and, on the CPU, with each instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gansparse import _C


@pytest.fixture(params=["plain", "avx2", "avx512", pytest.param("cuda", marks=pytest.mark.cuda)])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The implementation under test, in force for the test."""
    if request.param == "cuda":
        yield request.param
        return
    if request.param not in _C.build_info()["simd_available"]:
        pytest.skip(f"this machine lacks simd {request.param}")
    before = _C.simd_level()
    _C.set_simd_level(request.param)
    yield request.param
    _C.set_simd_level(before)


@pytest.fixture
def device(backend: str) -> str:
    """Where the implementation under test wants its tensors."""
    return "cuda" if backend == "cuda" else "cpu"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def place(request: pytest.FixtureRequest) -> str:
    """A device, for tests that no instruction set can change."""
    return str(request.param)
