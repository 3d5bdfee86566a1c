# SPDX-License-Identifier: Apache-2.0
"""Which layers the sparse kernels take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gansparse.deploy.steps import ConvLayer

_MOST_TAPS = 15


def unpackable(layer: ConvLayer) -> str:
    """Why the sparse kernels can't take the layer; empty where they can."""
    taps, stride = tuple(layer.weight.shape[2:]), layer.stride
    rules = {
        f"groups {layer.groups}": layer.groups > 1,
        f"dilation {layer.dilation}": layer.dilation != (1, 1),
        f"stride {stride}": stride not in ((1, 1), (2, 2)),
        f"{taps[0]}x{taps[1]} taps": max(taps) > _MOST_TAPS,
        "all of its weights are 0": not bool(layer.weight.any()),
    }
    if layer.transposed:
        rules[f"padding {layer.padding} of {taps[0]}x{taps[1]} taps, transposed"] = any(
            p >= k for p, k in zip(layer.padding, taps, strict=True)
        )
        rules[f"output_padding {layer.output_padding}"] = max(layer.output_padding) >= stride[0]
    return next((reason for reason, broken in rules.items() if broken), "")
