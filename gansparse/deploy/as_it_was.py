# SPDX-License-Identifier: Apache-2.0
"""What `explain` says of a generator that runs as it was: its layers, with the time of each."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gansparse.deploy import measure
from gansparse.deploy.capture import copied, leaves
from gansparse.deploy.plan import Row, shape_text


def as_it_was(module: nn.Module, inputs: tuple[Any, ...]) -> list[Row]:
    """A row for each call of a submodule that has none of its own, in the order of the calls.

    Each runs again by itself on what it read; what the module computes between them has no row. A
    module that calls no such submodule where Python sees it has one row. There is none on devices
    other than CPU and CUDA.

    Args:
        module: in eval mode.
        inputs: what it is called with.
    """
    tensors = leaves((inputs, list(module.parameters())))
    device = tensors[0].device if tensors else measure.CPU
    if device.type not in ("cpu", "cuda"):
        return []  # nothing is known of its clock
    calls: list[tuple[str, nn.Module, Any, Any, Any]] = []

    def after(name: str, part: nn.Module, read: Any, named: Any, made: Any) -> None:
        calls.append((name, part, read, named, made))

    handles = [
        part.register_forward_hook(partial(after, name), with_kwargs=True)
        for name, part in module.named_modules()
        if name and not list(part.children()) and not isinstance(part, torch.jit.ScriptModule)
    ]
    forked = torch.random.fork_rng(devices=[] if device.index is None else [device.index])
    with torch.inference_mode(False), torch.no_grad(), forked:
        given = copied(inputs)
        try:
            made = module(*given)
        finally:
            for handle in handles:
                handle.remove()
        if not calls:
            calls = [(type(module).__name__, module, given, {}, made)]
        rows = [_row(*call, device) for call in calls]
    seen: dict[str, int] = {}
    for row in rows:
        seen[row.layer] = count = seen.get(row.layer, 0) + 1
        row.layer += f" #{count}" if count > 1 else ""
    return rows


def _row(name: str, part: nn.Module, read: Any, named: Any, made: Any, device: torch.device) -> Row:
    try:
        times = measure.interleaved(
            {"torch": partial(part, *read, **named)}, seconds=0.01, device=device
        )
    except Exception:  # whatever the module's own code does when it is called once more
        times = {}
    weight = getattr(part, "weight", None)
    sparsity = None
    if isinstance(weight, Tensor) and weight.dim() > 1:
        sparsity = 1 - float((weight != 0).sum()) / max(1, weight.numel())
    first = [*leaves((read, named))[:1], *leaves(made)[:1]]
    shape = " → ".join(shape_text(tensor.shape) for tensor in first)
    return Row(name, shape, sparsity, "torch", times, "runs as it was")
