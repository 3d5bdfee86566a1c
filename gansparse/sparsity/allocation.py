# SPDX-License-Identifier: Apache-2.0
"""How one ratio for the model becomes a ratio for each layer."""

from __future__ import annotations

from collections.abc import Sequence

from gansparse.sparsity.layers import Layer


def erdos_renyi_kernel(layers: Sequence[Layer], sparsity: float) -> dict[str, float]:
    """Erdős-Rényi-Kernel ratios: small layers keep more, the sum is that of one ratio for all.

    A layer keeps weights in proportion to the sum of its weight's dimensions, C + O + R + S, and
    not to their product; where that would be more than it has, it stays dense and the others
    share the rest (Mocanu et al. 2018; for convolutions Evci et al. 2020, section 3).

    Args:
        layers: what is pruned together.
        sparsity: share of all their weights to prune, 0 ≤ sparsity < 1.

    Returns:
        ratio by layer name; their mean, weighed by the layers' sizes, is ``sparsity``.

    Example:
        >>> from torch import nn
        >>> from gansparse.sparsity.layers import find_layers
        >>> layers = find_layers(nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 1, 3)))
        >>> {name: round(ratio, 3) for name, ratio in erdos_renyi_kernel(layers, 0.9).items()}
        {'0': 0.914, '1': 0.0}
    """
    sizes = {layer.name: layer.weight.numel() for layer in layers}
    shares = {layer.name: sum(layer.weight.shape) for layer in layers}
    budget = (1.0 - sparsity) * sum(sizes.values())  # weights that stay
    free = [name for name in sizes if sizes[name]]
    ratios = dict.fromkeys(sizes, 0.0)
    while free:
        scale = budget / sum(shares[name] for name in free)
        dense = [name for name in free if scale * shares[name] >= sizes[name]]
        if not dense:
            return ratios | {name: 1.0 - scale * shares[name] / sizes[name] for name in free}
        budget -= sum(sizes[name] for name in dense)
        free = [name for name in free if name not in dense]
    return ratios
