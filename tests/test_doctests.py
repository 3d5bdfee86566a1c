# SPDX-License-Identifier: Apache-2.0
"""Every example in a docstring runs and gives what it says."""

import doctest
import importlib
import pkgutil

import pytest

import gansparse

MODULES = [
    module.name
    for module in pkgutil.walk_packages(gansparse.__path__, "gansparse.")
    if not module.name.endswith(("__main__", "_C"))
]


def test_there_are_modules_with_examples():
    assert "gansparse.metrics.frechet" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0, "see the captured output"
