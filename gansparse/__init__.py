# SPDX-License-Identifier: Apache-2.0
"""gansparse: prune a trained GAN under the supervision of its own discriminator.

The package is light to import: subpackages load on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import Any

__version__ = _version("gansparse")

_SUBMODULES = (
    "compress",
    "data",
    "deploy",
    "errors",
    "export",
    "metrics",
    "models",
    "nn",
    "ops",
    "optim",
    "report",
    "runtimes",
    "sparsity",
    "tasks",
    "testing",
)
# Functions that stand at the top, too → where they live.
_FUNCTIONS = {"load_discriminator": "models.families", "load_generator": "models.families"}

__all__ = ["__version__", *_FUNCTIONS, *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"gansparse.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"gansparse.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'gansparse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
