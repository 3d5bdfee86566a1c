# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: a folder per saved step, safetensors for tensors, JSON for the rest.

``checkpoints/step-000400/`` appears by one rename, whole or not at all; the newest one and the
one before it are kept.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from gansparse.errors import CheckpointError
from gansparse.files import atomic_folder, load_tensors, read_json, save_tensors, write_json

KEPT = 2
_NAME = re.compile(r"^step-(\d{6,})$")


def pack(tree: Any, tensors: dict[str, torch.Tensor], prefix: str = "") -> Any:
    """Moves the tensors of nested dicts and lists into ``tensors``; returns the JSON that is left.

    Example:
        >>> tensors = {}
        >>> pack({"lr": 0.1, "state": [torch.ones(1)]}, tensors)
        {'lr': 0.1, 'state': [{'$tensor': 'state.0'}]}
    """
    if isinstance(tree, torch.Tensor):
        tensors[prefix] = tree
        return {"$tensor": prefix}
    inner = f"{prefix}." if prefix else ""
    if isinstance(tree, dict):
        if all(isinstance(key, str) for key in tree):
            return {key: pack(value, tensors, f"{inner}{key}") for key, value in tree.items()}
        items = [[key, pack(value, tensors, f"{inner}{key}")] for key, value in tree.items()]
        return {"$items": items}
    if isinstance(tree, (list, tuple)):
        return [pack(value, tensors, f"{inner}{i}") for i, value in enumerate(tree)]
    return tree


def unpack(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of `pack` (tuples come back as lists)."""
    if isinstance(tree, dict):
        if "$tensor" in tree:
            return tensors[tree["$tensor"]]
        if "$items" in tree:
            return {key: unpack(value, tensors) for key, value in tree["$items"]}
        return {key: unpack(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    return tree


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Writes the state of a step and removes all but the newest two, and what was half-written.

    Raises:
        OutputError: it could not be written; the checkpoints before it are untouched.
    """
    target = folder / f"step-{step:06d}"
    tensors: dict[str, torch.Tensor] = {}
    skeleton = pack(state, tensors)
    for left in folder.glob(".step-*"):  # by a run that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    with atomic_folder(target) as temporary:
        save_tensors(temporary / "state.safetensors", tensors)
        write_json(temporary / "state.json", {"step": step, "state": skeleton})
    for _, old in _found(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint's folder, or None."""
    found = _found(folder)
    return found[-1][1] if found else None


def load_checkpoint(path: Path) -> tuple[int, dict[str, Any]]:
    """Step and state of one checkpoint.

    Raises:
        CheckpointError: missing or damaged, with the remedy.
    """
    try:
        document = read_json(path / "state.json")
        tensors, _ = load_tensors(path / "state.safetensors")
        return int(document["step"]), unpack(document["state"], tensors)
    except (CheckpointError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: damaged; delete it to resume from the checkpoint before ({error})"
        ) from None


def _found(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    matches = ((_NAME.match(item.name), item) for item in folder.iterdir())
    return sorted((int(match[1]), item) for match, item in matches if match)
