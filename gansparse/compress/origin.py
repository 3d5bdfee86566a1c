# SPDX-License-Identifier: Apache-2.0
"""What a run was made of beside its configuration: the pair, the losses, the batches.

Kept beside checkpoints and results, so that nothing of one pair is taken for another's.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gansparse.tasks.gan import Batch, GANTask

#: What a message calls it.
_NAMES = {
    "task": "task", "data": "data", "generator": "generator", "discriminator": "discriminator",
    "weights": "loss weights", "options": "options of the task", "batch": "size of batches",
    "lr": "learning rate of the task", "betas": "betas", "lr_decay": "lr_decay of the task",
    "g_first": "order of updates", "fresh_fakes": "fakes for D", "g_every": "steps of D to G's",
    "pool_size": "size of the pool of fakes", "regulariser_every": "steps between regularisations",
}  # fmt: skip


#: Fields of the task that decide how a step is taken.
_OPTIMISATION = (
    "lr", "betas", "lr_decay", "g_first", "fresh_fakes", "g_every", "pool_size",
    "regulariser_every",
)  # fmt: skip


def origin_of(task: GANTask, batch: Batch) -> dict[str, Any]:
    """What tells a task from another, JSON-ready.

    Args:
        task: before anything was trained.
        batch: one of its own, for shapes.
    """
    shapes = {name: list(value.shape) for name, value in sorted(batch.items())}
    made: dict[str, Any] = {
        "task": task.name,
        "data": task.data_name,
        "place": _place(task.data_name),
        "generator": digest(task.generator),
        "discriminator": digest(task.discriminator),
        "weights": dict(task.weights),
        "options": dict(task.trained_with),
        "batch": shapes,
        **{name: getattr(task, name) for name in _OPTIMISATION},
    }
    plain: dict[str, Any] = json.loads(json.dumps(made))
    return plain


def changes(found: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """What differs, for a message; "" where nothing does. What was not written down may be all."""
    differ = [key for key in _NAMES if key in found and key in own and found[key] != own[key]]
    if "data" in differ:  # "mnist" and "./mnist" are one; runs from before keep the name alone
        place = found.get("place") or _place(found["data"])
        if place is not None and place == own.get("place"):
            differ.remove("data")
    return ", ".join(_NAMES[key] for key in differ)


def _place(name: str) -> str | None:
    """A digest of where data lie that have their folder's name, "celeba (train)", say."""
    folder, phase = name, ""
    if not os.path.exists(folder) and (found := re.fullmatch(r"(.+)( \(\w+\))", name)):
        folder, phase = found.groups()
    if not os.path.exists(folder):
        return None
    return hashlib.sha256((os.path.realpath(folder) + phase).encode()).hexdigest()


def digest(module: nn.Module) -> str:
    """SHA-256 of a network's weights."""
    made = hashlib.sha256()
    for name, value in module.state_dict().items():
        made.update(name.encode())
        made.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return made.hexdigest()
