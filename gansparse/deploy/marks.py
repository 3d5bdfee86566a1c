# SPDX-License-Identifier: Apache-2.0
"""Whether a generator still holds the numbers that its plans were made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Marks(NamedTuple):
    """What a module held: its submodules, parameters and buffers, and how often each was written.

    Attributes:
        held: the dictionary that holds it, its name there, and itself.
        tensors: of these, those that have a counter: inference mode's have none.
        state: of the tensors.
    """

    held: list[tuple[dict[str, Any], str, Any]]
    tensors: list[Tensor]
    state: list[int]

    def hold(self) -> bool:
        """Whether all is as it was. Quick: it is asked on each call."""
        for where, name, value in self.held:
            if where.get(name) is not value:
                return False
        return _state(self.tensors) == self.state

    def still(self) -> Marks:
        """Those that hold: what the module's own run has changed may change again."""
        held = [each for each in self.held if each[0].get(each[1]) is each[2]]
        count, now = len(self.tensors), _state(self.tensors)
        same = [i for i in range(count) if now[i::count] == self.state[i::count]]
        tensors = [self.tensors[i] for i in same]
        return Marks(held, tensors, _state(tensors))


def marks(module: nn.Module) -> Marks:
    """Of all that the module holds. TorchScript's modules always run as they are: not of these."""
    held = [
        (where, name, value)
        for part in module.modules()
        if not isinstance(part, torch.jit.ScriptModule)
        for where in (part._modules, part._parameters, part._buffers)
        for name, value in where.items()
    ]
    tensors = [t for _, _, t in held if isinstance(t, Tensor) and not t.is_inference()]
    return Marks(held, tensors, _state(tensors))


def _state(tensors: list[Tensor]) -> list[int]:
    """Torch counts what is written into a tensor; data that are assigned lie elsewhere."""
    return [t._version for t in tensors] + [t.data_ptr() for t in tensors]
