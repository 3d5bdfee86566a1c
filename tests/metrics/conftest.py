# SPDX-License-Identifier: Apache-2.0
"""Weights that every Inception of a test run shares."""

from pathlib import Path

import pytest
import torch
from peers import random_inception


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state_dict of FID's Inception with random weights, as the public file is stored."""
    path = tmp_path_factory.mktemp("weights") / "random_inception.pth"
    torch.save(random_inception(), path)
    return path
