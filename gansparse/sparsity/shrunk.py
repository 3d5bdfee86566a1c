# SPDX-License-Identifier: Apache-2.0
"""Networks whose layers have lost channels: how they are rebuilt, saved and loaded.

A shrunk network is the network it was, with smaller tensors under the same keys. Its classes give
all layers one width and can't make it, so its layers are resized in place. A file holds the state
and, in the header's ``gansparse`` entry, what the state's shapes don't tell.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gansparse.errors import CheckpointError, InputError
from gansparse.files import load_tensors, save_tensors
from gansparse.models.checkpoint import State, fill
from gansparse.models.families import GENERATORS
from gansparse.sparsity.channels import NORMS

_FORMAT = "gansparse shrunk 1"


class SpreadConv2d(nn.Conv2d):
    """A convolution that computes some of its output channels; the others are their bias.

    What a filter-pruned convolution becomes when its empty channels are needed, because another
    layer's are added to them. ``weight`` has one filter for each computed channel, ``bias`` one
    number for every channel.

    Attributes:
        channels: int64 [L], the computed output channels, ascending; not in the ``state_dict``.
    """

    channels: Tensor

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
    ) -> Tensor:  # [N, O, H', W']
        """The convolution with empty filters where it has none."""
        return _spread(self, self._conv_forward(x, self.weight, _computed_bias(self)))


class SpreadConvTranspose2d(nn.ConvTranspose2d):
    """`SpreadConv2d` for a transposed convolution: ``weight`` is [C, L, R, S].

    Attributes:
        channels: int64 [L], the computed output channels, ascending; not in the ``state_dict``.
    """

    channels: Tensor

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        output_size: list[int] | None = None,
    ) -> Tensor:  # [N, O, H', W']
        """The convolution with empty filters where it has none."""
        assert isinstance(self.padding, tuple)  # a transposed convolution's is never a word
        sizes = (self.stride, self.padding, self.kernel_size)
        padding = self._output_padding(x, output_size, *sizes, 2, self.dilation)  # type: ignore
        made = F.conv_transpose2d(
            x,
            self.weight,
            _computed_bias(self),
            self.stride,
            self.padding,
            padding,
            dilation=self.dilation,
        )
        return _spread(self, made)


Spread = SpreadConv2d | SpreadConvTranspose2d
#: What a convolution of this very class becomes when it computes only some of its channels.
SPREADS: dict[type[nn.Module], type[Spread]] = {
    nn.Conv2d: SpreadConv2d,
    nn.ConvTranspose2d: SpreadConvTranspose2d,
}


def _computed_bias(layer: Spread) -> Tensor | None:
    return None if layer.bias is None else layer.bias[layer.channels]


def _spread(layer: Spread, made: Tensor) -> Tensor:
    shape = (made.shape[0], layer.out_channels, made.shape[2], made.shape[3])
    if layer.bias is None:
        out = made.new_zeros(shape)
    else:
        out = layer.bias.to(made.dtype).view(-1, 1, 1).expand(shape)
    return out.index_copy(1, layer.channels, made)


def rebuild(
    module: nn.Module,
    state: Mapping[str, Tensor],
    spread: Mapping[str, Tensor],
    features: Mapping[str, int],
) -> None:
    """Give the module's layers these tensors, and the numbers of channels that go with them.

    Args:
        module: changed in place; hooks, dtypes, devices and ``requires_grad`` stay.
        state: tensors by key; what is missing stays as it is.
        spread: convolution → bool [O], the output channels that it computes.
        features: norm without any tensor → its channels.
    """
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        changed = name in features
        for key, old in [*layer._parameters.items(), *layer._buffers.items()]:
            new = state.get(prefix + key)
            if old is None or new is None:
                continue
            changed = True
            tensor = new.to(old)
            if isinstance(old, nn.Parameter):
                tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
            setattr(layer, key, tensor)
        if name in spread:
            layer.__class__ = SPREADS[type(layer)]  # the same settings and hooks, another forward
            channels = spread[name].nonzero().flatten().to(layer.weight.device)
            layer.register_buffer("channels", channels, persistent=False)
        if changed:
            _count(layer, spread.get(name), features.get(name))


def _count(layer: nn.Module, spread: Tensor | None, features: int | None) -> None:
    """Set the numbers of channels that the layer's tensors have."""
    if isinstance(layer, _ConvNd):
        first, second = layer.weight.shape[:2]
        inner = second * layer.groups
        layer.in_channels, layer.out_channels = (
            (first, inner) if layer.transposed else (inner, first)
        )
        if spread is not None:
            layer.out_channels = len(spread)
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = layer.weight.numel()
    elif isinstance(layer, NORMS):
        tensors = [x for x in (layer.weight, layer.running_mean) if x is not None]
        layer.num_features = len(tensors[0]) if tensors else features or layer.num_features


def save_shrunk(shrunk: nn.Module, path: str | Path, of: nn.Module) -> None:
    """Writes a shrunk network as safetensors, atomically.

    Args:
        shrunk: what `gansparse.sparsity.shrink` made.
        path: target with the ending ``.safetensors``; its folder is made.
        of: what it was made of; its sizes are written, too.

    Raises:
        InputError: another ending, or ``of`` has other keys.
        OutputError: it could not be written; an older file of that name is untouched.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"save_shrunk: the file must end with .safetensors, got {path}")
    state, dense = shrunk.state_dict(), of.state_dict()
    if state.keys() != dense.keys():
        raise InputError(f"save_shrunk: of must be what was shrunk, got a {type(of).__name__}")
    layers, dense_layers = dict(shrunk.named_modules()), dict(of.named_modules())
    index = {
        "format": _FORMAT,
        "module": type(shrunk).__name__,
        "shapes": {k: list(v.shape) for k, v in dense.items() if v.shape != state[k].shape},
        "spread": {
            name: "".join(
                "01"[o in set(layer.channels.tolist())] for o in range(layer.out_channels)
            )
            for name, layer in layers.items()
            if isinstance(layer, Spread)
        },
        "features": {
            name: layer.num_features
            for name, layer in layers.items()
            if isinstance(layer, NORMS)
            and not layer.state_dict()
            and layer.num_features != dense_layers[name].num_features
        },
    }
    save_tensors(path, state, {"gansparse": json.dumps(index)})


def load_shrunk(path: str | Path, module: nn.Module | None = None) -> nn.Module:
    """A shrunk network from its file.

    Args:
        path: of a file that `save_shrunk` wrote.
        module: a network of the class and sizes from before it was shrunk; it is left as it is.
            None: the public generator whose keys the file has, as `gansparse.load_generator` finds
            it, in training mode.

    Returns:
        The shrunk network.

    Raises:
        CheckpointError: missing, damaged, not a shrunk network's file, or another network's; the
            message names the first key that differs.
    """
    state, metadata = load_tensors(path)
    try:
        index: dict[str, Any] = json.loads(metadata["gansparse"])
        known = index["format"] == _FORMAT
    except (KeyError, ValueError):
        known = False
    if not known:
        raise CheckpointError(f"{path}: not a file of save_shrunk; read others with load_generator")
    shapes = {key: tuple(index["shapes"].get(key, value.shape)) for key, value in state.items()}
    net = _of_family(state, shapes, path) if module is None else copy.deepcopy(module)
    what = f"a shrunk {index['module']}, which doesn't fit {type(net).__name__}"
    own = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    for key in sorted(own.keys() | shapes.keys()):
        if own.get(key) != shapes.get(key):
            raise CheckpointError(
                f"{path}: {what}: {key} was {shapes.get(key, 'absent')} before, "
                f"and is {own.get(key, 'absent')} in the module"
            )
    spread = {k: torch.tensor([c == "1" for c in v]) for k, v in index["spread"].items()}
    rebuild(net, state, spread, index["features"])
    fill(net, state, path, what)
    return net


def _of_family(state: State, shapes: Mapping[str, tuple[int, ...]], path: str | Path) -> nn.Module:
    """The public generator whose state had these shapes."""
    dense = {k: torch.zeros((), dtype=v.dtype).expand(shapes[k]) for k, v in state.items()}
    for row in GENERATORS:
        if row.recognise(dense):
            return row.build(dense, path)
    raise CheckpointError(f"{path}: no public generator; pass the module that it was shrunk from")
