# SPDX-License-Identifier: Apache-2.0
"""Compression: Table 1 as a table (`recipes`), the losses of eq. 3-9, one trainer for all."""

from gansparse.compress.api import Evaluation, compress, default_steps, evaluate, load_task
from gansparse.compress.compare import Comparison, Entry
from gansparse.compress.config import Reading, TrainConfig
from gansparse.compress.recipes import RECIPES, Recipe
from gansparse.compress.trainer import Result, Trainer

__all__ = [
    "RECIPES",
    "Comparison",
    "Entry",
    "Evaluation",
    "Reading",
    "Recipe",
    "Result",
    "TrainConfig",
    "Trainer",
    "compress",
    "default_steps",
    "evaluate",
    "load_task",
]
