# SPDX-License-Identifier: Apache-2.0
"""The public generators and discriminators, and the two calls that load any of them.

Each row of `GENERATORS` and `DISCRIMINATORS` tells its files by a few kernels that no other row
has at those keys. All else about a file (variant, sizes, scale) the row's module reads off the
keys and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gansparse.errors import CheckpointError
from gansparse.models import cyclegan, dcgan, msrresnet, pix2pix, srgan, stargan
from gansparse.models.checkpoint import State, read_state, some, written_as


@dataclass(frozen=True)
class Layout:
    """A kind of network as its public files hold it."""

    name: str
    kernels: Mapping[str, int]  # key → height and width; all of them tell the layout
    build: Callable[[State, str | Path], nn.Module]  # of a state, and the path it came from
    default: Callable[[], nn.Module]  # the network at the originals' sizes

    def recognise(self, state: State) -> bool:
        """Whether the state holds this layout's kernels."""
        return all(
            key in state and state[key].shape[2:] == (size, size)
            for key, size in self.kernels.items()
        )


GENERATORS = (
    Layout(
        "DCGAN generator",
        {"main.0.weight": 4, "main.3.weight": 4},
        dcgan.generator_from_state,
        dcgan.DCGANGenerator,
    ),
    Layout(
        "Pix2Pix U-Net",
        {"model.model.0.weight": 4, "model.model.3.weight": 4},
        pix2pix.generator_from_state,
        pix2pix.UNetGenerator,
    ),
    Layout(
        "CycleGAN ResNet",
        {"model.1.weight": 7, "model.4.weight": 3},
        cyclegan.generator_from_state,
        cyclegan.ResNetGenerator,
    ),
    Layout(
        "StarGAN generator",
        {"main.0.weight": 7, "main.3.weight": 4},
        stargan.generator_from_state,
        stargan.StarGANGenerator,
    ),
    Layout(
        "SRGAN generator",
        {"block1.0.weight": 9, "block2.conv1.weight": 3},
        srgan.generator_from_state,
        srgan.SRGANGenerator,
    ),
    Layout(
        "BasicSR MSRResNet",
        {"conv_first.weight": 3, "upconv1.weight": 3},
        msrresnet.generator_from_state,
        msrresnet.MSRResNet,
    ),
)

DISCRIMINATORS = (
    Layout(
        "DCGAN discriminator",
        {"main.2.weight": 4, "main.5.weight": 4},
        dcgan.discriminator_from_state,
        dcgan.DCGANDiscriminator,
    ),
    Layout(
        "PatchGAN discriminator",  # of Pix2Pix and CycleGAN
        {"model.0.weight": 4, "model.2.weight": 4},
        pix2pix.discriminator_from_state,
        pix2pix.PatchGANDiscriminator,
    ),
    Layout(
        "Pix2Pix pixel discriminator",
        {"net.0.weight": 1, "net.2.weight": 1},
        pix2pix.discriminator_from_state,
        pix2pix.PixelDiscriminator,
    ),
    Layout(
        "StarGAN discriminator",
        {"main.2.weight": 4, "main.4.weight": 4},
        stargan.discriminator_from_state,
        stargan.StarGANDiscriminator,
    ),
    Layout(
        "SRGAN discriminator",
        {"net.0.weight": 3, "net.2.weight": 3},
        srgan.discriminator_from_state,
        srgan.SRGANDiscriminator,
    ),
)


def load_generator(path: str | Path) -> nn.Module:
    """The generator in a public file: which one, and its sizes, is read off keys and shapes.

    Reads a `.pth` of a state_dict (BasicSR's `params_ema` or `params`, too) or a safetensors file,
    with or without the prefixes of DataParallel and torch.compile. No code of the file runs. Files
    of `gansparse.sparsity.save_packed` and `save_shrunk` are read, too.

    Args:
        path: of the weights.

    Returns:
        A network in training mode, float32, on the CPU; its `state_dict()` is in the same layout.

    Raises:
        CheckpointError: missing, damaged, or none of `GENERATORS`; the message names the nearest
            one and the first key that differs.

    Example:
        >>> from gansparse.models import shipped
        >>> type(load_generator(shipped("dcgan_mnist_g.safetensors"))).__name__
        'DCGANGenerator'
    """
    if written_as(path) == "shrunk":
        from gansparse.sparsity.shrunk import load_shrunk  # a room above this one

        return load_shrunk(path)
    return _load(path, GENERATORS, "generator", DISCRIMINATORS, "load_discriminator")


def load_discriminator(path: str | Path) -> nn.Module:
    """The discriminator in a public file, read as `load_generator` reads generators.

    Args:
        path: of the weights.

    Returns:
        A network in training mode, float32, on the CPU; its `state_dict()` is in the same layout.

    Raises:
        CheckpointError: missing, damaged, or none of `DISCRIMINATORS`; the message names the
            nearest one and the first key that differs.

    Example:
        >>> from gansparse.models import shipped
        >>> type(load_discriminator(shipped("dcgan_mnist_d.safetensors"))).__name__
        'DCGANDiscriminator'
    """
    return _load(path, DISCRIMINATORS, "discriminator", GENERATORS, "load_generator")


def _load(
    path: str | Path, rows: tuple[Layout, ...], kind: str, others: tuple[Layout, ...], call: str
) -> nn.Module:
    state = read_state(path)
    for row in rows:
        if row.recognise(state):
            return row.build(state, path)
    for row in others:
        if row.recognise(state):
            raise CheckpointError(f"{path}: no {kind} but a {row.name}; use {call}")
    own = "; gansparse.sparsity.load_packed(path, module) fills a network of your own"
    remedy = own if written_as(path) == "packed" else ""
    raise CheckpointError(f"{path}: no {kind} known here: {_nearest(state, rows)}{remedy}")


def _nearest(state: State, rows: tuple[Layout, ...]) -> str:
    """Which layout shares most keys with the state, and the first keys in which they differ."""
    with torch.device("meta"):
        layouts = {row.name: row.default().state_dict() for row in rows}
    name, layout = max(layouts.items(), key=lambda item: len(item[1].keys() & state.keys()))
    missing = [key for key in layout if key not in state]
    if len(missing) == len(layout):
        return f"the first key is {next(iter(state))!r}; known are {', '.join(layouts)}"
    if missing:
        return f"nearest is the {name}, which has {some(missing)}, too"
    for key, value in layout.items():
        if state[key].shape[2:] != value.shape[2:]:
            shape = list(state[key].shape)
            return f"nearest is the {name}, but {key} has shape {shape}, not {list(value.shape)}"
    odd = [key for key in state if key not in layout]
    return f"nearest is the {name}, which has no {some(odd)}"
