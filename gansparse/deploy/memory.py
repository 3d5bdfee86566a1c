# SPDX-License-Identifier: Apache-2.0
"""Memory for large tensors between layers, kept from call to call.

Small tensors torch's allocator gives the same pages again: a call of a compiled StarGAN-128 has no
page fault once warm. Those above 32 MB glibc takes from the system on each call and gives back, and
smaller ones, too, when they are the last on its heap. The faults cost as much as a sparse layer:
SRGAN's last pixel shuffle with its convolution (38 MB) takes, at 90 % zeros, 32.8 ms with them and
16.1 ms without, one thread of a Zen 5. So the sparse kernels write large tensors into buffers, one
set a thread; tensors that are not alive together share one, and so do plans of other shapes, each
buffer as large as the largest that it had to hold.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

#: Bytes from which a tensor is worth a buffer.
LARGE = 4 << 20
#: What the module with the buffers is called in the graph.
MEMORY = "memory"


class Buffers(nn.Module):
    """Each thread's buffers; what they hold is not part of any state.

    A thread runs one plan at a time, and what is in a buffer does not leave the plan, so all plans
    of a generator share one of these.
    """

    def __init__(self) -> None:
        super().__init__()
        self._own = threading.local()

    def forward(self, slot: int, shape: tuple[int, ...]) -> Tensor:
        """The slot's memory as float32 of this shape, with whatever is in it."""
        slots: dict[Any, Tensor] = self._own.__dict__
        made, numbers = slots.get(slot), math.prod(shape)
        if made is None or made.numel() < numbers:
            slots.pop(slot, None)  # before there is another
            with torch.inference_mode(False):  # such tensors may be used anywhere
                slots[slot] = made = torch.empty(numbers)
        return made[:numbers].view(shape)


def add_buffers(
    module: fx.GraphModule, writers: Collection[fx.Node], steps: Collection[str]
) -> int:
    """Give the writers of large tensors buffers, as their third argument.

    A tensor in a buffer must not leave the graph: all of its readers must be steps, which make new
    tensors.

    Args:
        module: is changed.
        writers: nodes of steps that can write into what they are given.
        steps: targets of all steps.

    Returns:
        The number of buffers.
    """
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    used: list[tuple[torch.Size, int]] = []  # slot → its shape, and its last reader so far
    for node in writers:
        value = node.meta["value"]
        inside = all(user.op == "call_module" and user.target in steps for user in node.users)
        if value.numel() * value.element_size() < LARGE or not inside:
            continue
        last = max((order[user] for user in node.users), default=order[node])
        free = [s == value.shape and until < order[node] for s, until in used]
        slot = free.index(True) if any(free) else len(used)
        used[slot : slot + 1] = [(value.shape, last)]
        with module.graph.inserting_before(node):
            buffer = module.graph.call_module(MEMORY, (slot, tuple(value.shape)))
        node.args = (*node.args, buffer)
    return len(used)
