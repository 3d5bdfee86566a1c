# SPDX-License-Identifier: Apache-2.0
"""Loads trained networks from state_dicts: the family's sizes are read off the keys and shapes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from torch import nn

from gansparse.errors import CheckpointError
from gansparse.files import load_tensors
from gansparse.models.dcgan import DCGANDiscriminator, DCGANGenerator

State = dict[str, torch.Tensor]
_PREFIXES = ("module.", "_orig_mod.")


def shipped(name: str) -> Path:
    """Path of a weights file that comes with the package (`dcgan_mnist_g.safetensors`, say)."""
    return Path(str(files("gansparse") / "weights" / name))


def strip_prefixes(state: State) -> State:
    """Keys without what DataParallel and torch.compile put before them."""
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            return strip_prefixes({key[len(prefix) :]: value for key, value in state.items()})
    return state


def load_dcgan_generator(path: str | Path) -> DCGANGenerator:
    """A DCGAN generator in pytorch/examples' layout; nz, ngf, nc and size come from the shapes.

    Raises:
        CheckpointError: missing, damaged, or not a DCGAN generator; the message names the key.
    """
    state = _read(path)
    weights = _convolutions(state, path, "generator")
    levels = len(weights)
    if levels < 3:
        raise CheckpointError(f"{path}: a DCGAN generator has at least 3 layers, got {levels}")
    net = DCGANGenerator(
        nz=weights[0].shape[0],
        ngf=weights[-1].shape[0],
        nc=weights[-1].shape[1],
        image_size=2 ** (levels + 1),
    )
    fill(net, state, path, "a DCGAN of pytorch/examples' layout")
    return net


def load_dcgan_discriminator(path: str | Path) -> DCGANDiscriminator:
    """A DCGAN discriminator in pytorch/examples' layout; its sizes come from the shapes.

    Raises:
        CheckpointError: missing, damaged, or not a DCGAN discriminator.
    """
    state = _read(path)
    weights = _convolutions(state, path, "discriminator")
    levels = len(weights)
    if levels < 3:
        raise CheckpointError(f"{path}: a DCGAN discriminator has at least 3 layers, got {levels}")
    net = DCGANDiscriminator(
        ndf=weights[0].shape[0], nc=weights[0].shape[1], image_size=2 ** (levels + 1)
    )
    fill(net, state, path, "a DCGAN of pytorch/examples' layout")
    return net


def _read(path: str | Path) -> State:
    state, _ = load_tensors(path)
    return strip_prefixes({k: v.float() if v.is_floating_point() else v for k, v in state.items()})


def _convolutions(state: State, path: str | Path, what: str) -> list[torch.Tensor]:
    kernels = [
        state[key]
        for key in sorted(state, key=_position)
        if key.startswith("main.") and state[key].ndim == 4
    ]
    if not kernels:
        raise CheckpointError(
            f"{path}: not a DCGAN {what}: no convolution under main.N.weight; first key is "
            f"{next(iter(state))!r}"
        )
    return kernels


def _position(key: str) -> int:
    parts = key.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else -1


def fill(net: nn.Module, state: State, path: str | Path, what: str) -> None:
    """Loads exactly the network's own keys and shapes, all finite.

    Args:
        net: gets the tensors.
        state: from the file at `path`.
        path: for the message.
        what: the network with its article, for the message.

    Raises:
        CheckpointError: a key or shape is wrong, or a number is not finite; the key is named.
    """
    own = net.state_dict()
    missing = sorted(set(own) - set(state))
    odd = sorted(set(state) - set(own))
    if missing or odd:
        fault = f"misses {missing[0]!r}" if missing else f"has a key too many, {odd[0]!r}"
        raise CheckpointError(f"{path}: not the weights of {what}: it {fault}")
    for key, value in own.items():
        if state[key].shape != value.shape:
            raise CheckpointError(
                f"{path}: {key} must have shape {list(value.shape)}, got {list(state[key].shape)}"
            )
        if not bool(torch.isfinite(state[key].float()).all()):
            raise CheckpointError(f"{path}: {key} holds NaN or infinity; use an older checkpoint")
    net.load_state_dict(state)
