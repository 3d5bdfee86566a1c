# SPDX-License-Identifier: Apache-2.0
"""One training by several processes (torchrun): each takes its share of every batch.

The batch stays what it is in one process, so does the loss: means are taken over all processes,
BatchNorms normalise by the whole batch, the pool of fakes is one, gradients and running statistics
are averaged, and every process then takes the same step. A network of the user's own that draws
random numbers draws others in each process. With one process nothing here does anything.
"""

from __future__ import annotations

import atexit
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from gansparse.errors import InputError


def start(device: torch.device) -> torch.device:
    """Joins the processes that torchrun started, if it did; the device of this one.

    NCCL between CUDA devices, else gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return device


def _leave() -> None:
    """Ends the communication before the interpreter goes.

    After the last message gloo's threads still let go of its tensors, for which they need the
    interpreter; one that asks for it while it ends aborts the process ("terminate called without
    an active exception"). Sleeping lets them have it. (A barrier would hang if a process failed.)
    """
    time.sleep(0.2)
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(
    batch: Mapping[str, torch.Tensor],  # each [N, ...]
) -> Mapping[str, torch.Tensor]:  # each [N / processes, ...]
    """This process's part of a batch.

    Raises:
        InputError: the batch can't be divided evenly.
    """
    count = processes()
    if count == 1:
        return batch
    sizes = {value.shape[0] for value in batch.values()}
    if any(size % count for size in sizes):
        raise InputError(
            f"batches of {max(sizes)} can't be shared by {count} processes: choose a multiple"
        )
    return {name: value.chunk(count)[rank()] for name, value in batch.items()}


def average(value: torch.Tensor) -> torch.Tensor:
    """The mean over all processes of a detached tensor."""
    if processes() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / processes()


def as_the_first(tensors: Iterable[torch.Tensor]) -> None:
    """Each tensor becomes what it is in process 0, in place."""
    if processes() == 1:
        return
    for tensor in tensors:
        first = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(first, 0)
        tensor.copy_(first)


def average_values(values: dict[str, float]) -> dict[str, float]:
    """Means over all processes of numbers by name; the same names everywhere."""
    if processes() == 1 or not values:
        return values
    means = average(torch.tensor(list(values.values()), dtype=torch.float64))
    return dict(zip(values, means.tolist(), strict=True))


def average_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Each gradient becomes the mean over all processes, in place; one message for all of them."""
    if processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    flat = average(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def average_buffers(module: nn.Module) -> None:
    """Running statistics become their means over all processes, in place."""
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if processes() == 1 or not buffers:
        return
    flat = average(torch.cat([buffer.flatten() for buffer in buffers]))
    parts = torch.split(flat, [buffer.numel() for buffer in buffers])
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view_as(buffer))


def of_the_whole(
    change: Callable[[Any], Any],
    held: Any,  # tensor [N / processes, ...], or a dict of such
) -> Any:
    """This process's part of what ``change`` makes of the whole batch; each process computes it."""
    if processes() == 1:
        return change(held)

    def gathered(value: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(value.contiguous()) for _ in range(processes())]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    made = change(tree_map(gathered, held))
    return tree_map(lambda value: value.chunk(processes())[rank()], made)


def synchronised_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """The module, its BatchNorms changed so that they see the whole batch (`whole_batches`).

    On CUDA torch's own, where a BatchNorm is one of torch's three.
    """
    if processes() == 1:
        return module
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    if device.type == "cuda" and type(module) in _TORCHS_OWN:
        synchronised: nn.Module = convert(module)
        return synchronised
    if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
        kind: Any = type(module)
        module.__class__ = _whole_batch_norm(kind)
    for name, child in module.named_children():
        setattr(module, name, synchronised_norms(child, device))
    return module


_TORCHS_OWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_shared = False  # what networks are called with now is a share of a batch


@contextmanager
def whole_batches() -> Iterator[None]:
    """In here all processes call the same networks, each on its share of a batch."""
    global _shared
    before, _shared = _shared, True
    try:
        yield
    finally:
        _shared = before


@functools.cache
def _whole_batch_norm(kind: Any) -> Any:
    """A subclass of a BatchNorm that normalises by the statistics of the whole batch."""

    class WholeBatchNorm(kind):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            live = self.training or self.running_mean is None or getattr(self, "live", False)
            if not (_shared and live):
                alone: torch.Tensor = super().forward(x)
                return alone
            return _normalise(self, x)

    return WholeBatchNorm


def _normalise(
    norm: Any,
    x: torch.Tensor,  # [N / processes, C, ...]
) -> torch.Tensor:  # the same
    def mean_of(value: torch.Tensor) -> torch.Tensor:  # [C], over all processes, with a gradient
        total: torch.Tensor = all_reduce(value.mean(dims))  # type: ignore[no-untyped-call]
        return total / processes()

    dims = [0, *range(2, x.dim())]
    shape = (1, -1, *[1] * (x.dim() - 2))
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    mean = mean_of(wide)
    centred = wide - mean.view(shape)
    variance = mean_of(centred.square())
    made = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.weight is not None:
        made = made * norm.weight.view(shape) + norm.bias.view(shape)
    if norm.training and norm.running_mean is not None:
        with torch.no_grad():
            norm.num_batches_tracked += 1
            count = x.numel() // x.shape[1] * processes()
            share = norm.momentum
            if share is None:
                share = 1.0 / float(norm.num_batches_tracked)
            norm.running_mean.lerp_(mean, share)
            norm.running_var.lerp_(variance * count / max(1, count - 1), share)
    normalised: torch.Tensor = made.to(x.dtype)
    return normalised
