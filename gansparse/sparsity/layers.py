# SPDX-License-Identifier: Apache-2.0
"""The layers of a model that can be pruned, and how a user names some of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter

from gansparse.errors import InputError

#: A name pattern (``"up*"``, ``"main.3"``), the name of a class (``"Linear"``) or the class itself.
Selector = str | type[nn.Module]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

#: What is pruned unless the user says otherwise: every convolution, transposed or not.
_PRUNED = _CONVOLUTIONS + _TRANSPOSED  # unless layers are chosen


@dataclass(frozen=True)
class Layer:
    """One layer that holds a weight one can prune.

    Args:
        name: as ``model.named_modules()`` gives it.
        module: the layer itself.
        weight: [O, C/groups, R, S], [C, O/groups, R, S] if transposed, or [O, C].
        transposed: its filters lie along dimension 1.
        groups: of the convolution; 1 for a linear layer.
    """

    name: str
    module: nn.Module
    weight: nn.Parameter
    transposed: bool
    groups: int

    @property
    def type(self) -> str:
        """The name of the layer's class."""
        return type(self.module).__name__


def find_layers(model: nn.Module) -> list[Layer]:
    """Every convolution, transposed convolution and linear layer of the model, in its order.

    A weight that several modules share is listed once, under its first name.

    >>> [layer.name for layer in find_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))]
    ['0']
    """
    layers: list[Layer] = []
    seen: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)):
            continue
        weight = module._parameters.get("weight")
        if weight is None:
            raise InputError(
                f"layer {name!r} ({type(module).__name__}) has a parametrized weight; remove the "
                "parametrization (spectral or weight norm) before pruning"
            )
        if isinstance(weight, UninitializedParameter):
            raise InputError(f"layer {name!r} has no weight yet; run the model once before pruning")
        if id(weight) not in seen:
            seen.add(id(weight))
            groups = 1 if isinstance(module, nn.Linear) else int(module.groups)
            layers.append(Layer(name, module, weight, isinstance(module, _TRANSPOSED), groups))
    return layers


def select_layers(
    layers: Sequence[Layer],
    include: Iterable[Selector] | Selector | None = None,
    exclude: Iterable[Selector] | Selector = (),
) -> list[Layer]:
    """Those layers that ``include`` names and ``exclude`` doesn't.

    Args:
        layers: what there is to choose from.
        include: selectors; None: every convolution and transposed convolution. A string is first a
            pattern for layer names (``*`` and ``?`` as in the shell, a container's name stands for
            all layers in it), then the name of a class.
        exclude: selectors of the same form.

    Raises:
        InputError: a selector matches no layer; the message lists what there is.
    """
    excluded = {layer.name for each in _tuple(exclude) for layer in matching(layers, each)}
    if include is None:
        included = {x.name for x in layers if isinstance(x.module, _PRUNED)}
    else:
        included = {layer.name for each in _tuple(include) for layer in matching(layers, each)}
    return [layer for layer in layers if layer.name in included - excluded]


def matching(layers: Sequence[Layer], selector: Selector) -> list[Layer]:
    """The layers that one selector names; at least one, or an InputError.

    >>> matching(find_layers(nn.Sequential(nn.Linear(1, 1))), "Linar")
    Traceback (most recent call last):
    gansparse.errors.InputError: no layer matches 'Linar', did you mean 'Linear'? Layers: 0 (Linear)
    """
    if isinstance(selector, str):
        by_name = [x for x in layers if _name_matches(x.name, selector)]
        found = by_name or [x for x in layers if selector in _class_names(x.module)]
    elif isinstance(selector, type):
        found = [x for x in layers if isinstance(x.module, selector)]
    else:
        raise InputError(f"a layer is named by a string or a class, got {selector!r}")
    if found:
        return found
    shown = selector if isinstance(selector, str) else selector.__name__
    known = list(dict.fromkeys([x.name for x in layers] + [x.type for x in layers]))
    close = difflib.get_close_matches(shown, known, n=1)
    hint = f", did you mean {close[0]!r}?" if close else "."
    listed = ", ".join(f"{x.name or '(the model)'} ({x.type})" for x in layers) or "none"
    raise InputError(f"no layer matches {shown!r}{hint} Layers: {listed}")


def _name_matches(name: str, pattern: str) -> bool:
    # "up" means the container and all in it; "up.0.weight" is what state_dict() calls the layer
    # "up.0".
    pattern = pattern.removesuffix(".weight")
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _class_names(module: nn.Module) -> set[str]:
    return {cls.__name__ for cls in type(module).__mro__}


def _tuple(selectors: Iterable[Selector] | Selector) -> tuple[Selector, ...]:
    if isinstance(selectors, (str, type)):
        return (selectors,)
    return tuple(selectors)
