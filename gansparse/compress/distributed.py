# SPDX-License-Identifier: Apache-2.0
"""One training by several processes (torchrun): each takes its share of every batch.

The batch stays what it is in one process, so does the loss: means are taken over all processes,
gradients are averaged, and every process then takes the same step. With one process nothing here
does anything.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

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


def gather(value: Any) -> list[Any]:
    """Every process's value, in their order."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    dist.all_gather_object(values, value)
    return values


def synchronised_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """BatchNorms that see the whole batch: torch has them for CUDA only.

    On the CPU several processes' BatchNorms see their own shares, as in a smaller batch; so do
    those of a network that has a kind of its own.
    """
    if processes() == 1 or device.type != "cuda":
        return module
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        synchronised: nn.Module = convert(module)
        return synchronised
    for name, child in module.named_children():
        setattr(module, name, synchronised_norms(child, device))
    return module
