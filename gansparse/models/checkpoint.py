# SPDX-License-Identifier: Apache-2.0
"""From a file of weights to a filled network: what all families share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from gansparse.errors import CheckpointError
from gansparse.files import load_tensors

State = dict[str, torch.Tensor]
_PREFIXES = ("module.", "_orig_mod.")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def shipped(name: str) -> Path:
    """Path of a weights file that comes with the package (`dcgan_mnist_g.safetensors`, say)."""
    return Path(str(files("gansparse") / "weights" / name))


def read_state(path: str | Path) -> State:
    """A file's tensors as float32, keys without wrappers' prefixes, in a dict without metadata.

    Raises:
        CheckpointError: missing, damaged, no tensors in it, or a shrunk network's.
    """
    if written_as(path) == "shrunk":
        raise CheckpointError(f"{path}: a shrunk network's weights; read them with load_shrunk")
    if written_as(path) == "packed":
        from gansparse.sparsity.packed import unpacked  # a room above this one

        state = unpacked(path)
    else:
        state, _ = load_tensors(path)
    if not state:
        raise CheckpointError(f"{path}: holds no tensors; save the module's state_dict()")
    return strip_prefixes({k: v.float() if v.is_floating_point() else v for k, v in state.items()})


def written_as(path: str | Path) -> str:
    """``packed`` or ``shrunk`` where `gansparse.sparsity` wrote the file so; else empty."""
    try:
        with safe_open(path, framework="pt") as file:
            index = json.loads((file.metadata() or {})["gansparse"])
        project, kind, _ = index["format"].split()
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError):
        return ""  # another file; who reads it says what is wrong with it
    return str(kind) if project == "gansparse" else ""


def strip_prefixes(state: State) -> State:
    """Keys without what DataParallel and torch.compile put before them."""
    for prefix in _PREFIXES:
        if state and all(key.startswith(prefix) for key in state):
            return strip_prefixes({key[len(prefix) :]: value for key, value in state.items()})
    return state


def drop_instance_statistics(state: State) -> State:
    """The state without running statistics of norms that have no weight.

    InstanceNorm without an affine part kept statistics, unused, until PyTorch 0.4; files from then
    carry them still.
    """
    return {key: value for key, value in state.items() if not _is_instance_statistic(key, state)}


def _is_instance_statistic(key: str, state: State) -> bool:
    norm, _, name = key.rpartition(".")
    return name in _STATISTICS and f"{norm}.weight" not in state


def kernel_shape(state: State, key: str, path: str | Path, what: str) -> torch.Size:
    """Shape of a convolution's weight, from which a family reads its sizes.

    Args:
        state: from the file at `path`.
        key: of the weight.
        path: for the message.
        what: the network with its article, for the message.

    Raises:
        CheckpointError: no such key, or it isn't a convolution's.
    """
    if key not in state:
        raise CheckpointError(f"{path}: not the weights of {what}: it misses {key!r}")
    shape = state[key].shape
    if len(shape) != 4:
        raise CheckpointError(f"{path}: {key} must have 4 dimensions, got shape {list(shape)}")
    return shape


def some(keys: Sequence[str]) -> str:
    """The first three, and how many there are more.

    Example:
        >>> some(["a", "b", "c", "d", "e"]), some(["a"])
        ("'a', 'b', 'c' and 2 more", "'a'")
    """
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return ", ".join(map(repr, keys[:3])) + more


def fill(net: nn.Module, state: State, path: str | Path, what: str) -> None:
    """Loads exactly the network's own keys and shapes, weights floating point, all finite.

    Only `num_batches_tracked` may be absent, as from files older than PyTorch 0.4.1: it counts
    from zero.

    Args:
        net: gets the tensors.
        state: from the file at `path`.
        path: for the message.
        what: the network with its article, for the message.

    Raises:
        CheckpointError: a key, shape or dtype is wrong, or a number is not finite; the key is
            named, of keys that are missing or odd three and how many more.
    """
    own = net.state_dict()
    absent = set(own) - set(state)
    missing = sorted(key for key in absent if not key.endswith("num_batches_tracked"))
    odd = sorted(set(state) - set(own))
    if missing or odd:
        many = "a key" if len(odd) == 1 else f"{len(odd)} keys"
        fault = f"misses {some(missing)}" if missing else f"has {many} too many, {some(odd)}"
        raise CheckpointError(f"{path}: not the weights of {what}: it {fault}")
    for key, value in own.items():
        if key in absent:
            continue
        if state[key].shape != value.shape:
            raise CheckpointError(
                f"{path}: {key} must have shape {list(value.shape)}, got {list(state[key].shape)}"
            )
        if value.is_floating_point() and not state[key].is_floating_point():
            raise CheckpointError(
                f"{path}: {key} must be floating point, got {state[key].dtype}; save the network "
                "as it was trained"
            )
        if not bool(torch.isfinite(state[key].float()).all()):
            raise CheckpointError(f"{path}: {key} holds NaN or infinity; use an older checkpoint")
    net.load_state_dict(state)
