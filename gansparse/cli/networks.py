# SPDX-License-Identifier: Apache-2.0
"""A generator from a file alone, or from a user's own code and a file."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gansparse.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

NetworkOption = Annotated[
    str | None,
    typer.Option(
        help="MODULE:NAME: makes the network of your own that the weights are for, as "
        "my_models:Generator; MODULE is looked for here, too."
    ),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option("--input", help="With --network: an input's shape, as 1x3x256x256; for each."),
]


def network_and_inputs(
    weights: Path | None,
    network: str | None,
    shapes: list[str] | None,
    size: int | None,
    batch: int,
    eval_mode: bool = False,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The generator in eval mode, and random inputs for it.

    Args:
        weights: its file; None: as the network is made, or the DCGAN that comes with the package.
        network: as of `NetworkOption`; None: a public generator, told by the file's keys.
        shapes: as of `InputOption`.
        size: height and width, of a public generator.
        batch: pictures, of a public generator.
        eval_mode: as of `EvalOption`.

    Raises:
        InputError: no such network, or shapes that are none.
        CheckpointError: unusable weights.
    """
    import torch

    from gansparse.models import UNetGenerator, example_inputs, load_generator, shipped
    from gansparse.models.checkpoint import fill, read_state

    if network is None:
        if shapes:
            raise InputError("--input goes with --network; public generators take --size, --batch")
        net = load_generator(weights or shipped("dcgan_mnist_g.safetensors")).eval()
        if eval_mode and isinstance(net, UNetGenerator):
            net.live_in_eval(False)
        return net, example_inputs(net, size, batch)
    if not shapes:
        raise InputError("--network needs --input for each of its inputs, as 1x3x256x256")
    if size is not None or batch != 1:
        raise InputError("--size and --batch are for public generators; --input tells the shape")
    net = _made(network)
    if weights is not None:
        fill(net, read_state(weights), weights, network)
    source = torch.Generator().manual_seed(0)
    return net.eval(), tuple(torch.rand(_shape(text), generator=source) for text in shapes)


def _made(name: str) -> nn.Module:
    from torch import nn

    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")
    try:
        made: Any = getattr(importlib.import_module(module), attribute)
        net = made if isinstance(made, nn.Module) else made()
    except Exception as error:  # whatever the user's own code raises
        raise InputError(f"--network {name}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
    if not isinstance(net, nn.Module):
        raise InputError(f"--network {name}: made a {type(net).__name__}, not an nn.Module")
    return net


def _shape(text: str) -> list[int]:
    sizes = text.lower().replace("×", "x").split("x")
    if not all(re.fullmatch("0*[1-9][0-9]{0,8}", word) for word in sizes):
        raise InputError(f"--input is a shape as 1x3x256x256, got {text!r}")
    return [int(word) for word in sizes]
