# SPDX-License-Identifier: Apache-2.0
"""Random weights for the public layouts, which the tests write down as key -> shape."""

from __future__ import annotations

from math import prod

import torch

Shapes = dict[str, tuple[int, ...]]
State = dict[str, torch.Tensor]


def norm_shapes(key: str, channels: int) -> Shapes:
    """Of a norm with weight, bias and running statistics."""
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{key}.{name}": (channels,) for name in names} | {f"{key}.num_batches_tracked": ()}


def conv_shapes(key: str, *shape: int) -> Shapes:
    """Of a convolution [O, C, R, S] with a bias."""
    return {f"{key}.weight": shape, f"{key}.bias": (shape[0],)}


def random_state(shapes: Shapes, seed: int = 0) -> State:
    """Numbers with which activations keep their size; running variances are positive."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        value = torch.randn(shape, generator=generator) / prod(shape[1:]) ** 0.5
        if key.endswith("running_var"):
            value = value.abs() + 0.5
        elif key.endswith("num_batches_tracked"):
            value = torch.tensor(7)
        state[key] = value
    return state


def shapes_of(module: torch.nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def parameters_of(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
