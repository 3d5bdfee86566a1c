# SPDX-License-Identifier: Apache-2.0
"""Where compiled kernels are kept, and whether this machine can run them."""

from __future__ import annotations

from pathlib import Path

import building
import pytest


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest) -> Path:
    """The folder of compiled kernels, kept between runs."""
    if reason := building.why_not():
        pytest.skip(f"this machine lacks emulator: {reason}")
    return request.config.cache.mkdir("kernels")


@pytest.fixture(params=list(building.VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)
