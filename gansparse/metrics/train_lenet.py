# SPDX-License-Identifier: Apache-2.0
"""Trains the LeNet-5 whose features measure digits. `gansparse train lenet` calls this."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from gansparse.data.digits import Digits, as_images, to_float
from gansparse.data.sampling import generator_for
from gansparse.errors import InputError
from gansparse.metrics.features import for_lenet
from gansparse.models.lenet import LeNet


def as_lenet_input(digits: Digits) -> torch.Tensor:  # [N, 1, 32, 32], float32 in [0, 1]
    """Digits by the road a GAN's pictures take: 28 -> 64 bilinear, bytes, 64 -> 32 antialiased."""
    parts = [for_lenet(to_float(part)) for part in torch.split(as_images(digits), 4096)]
    return torch.cat(parts)


def train_lenet(
    train: Digits,
    *,
    epochs: int = 12,
    batch_size: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> LeNet:
    """Adam with a one-cycle rate, on digits moved by up to two pixels.

    Args:
        train: training digits.
        epochs: passes over them.
        batch_size: digits a step.
        lr: highest learning rate.
        seed: of weights, order and moves.
        on_epoch: gets epoch and mean loss.

    Returns:
        The network in eval mode.

    Raises:
        InputError: fewer digits than a step takes.
    """
    if len(train) < batch_size:
        raise InputError(f"{train.source}: a step takes {batch_size} digits, got {len(train)}")
    torch.manual_seed(seed)
    net = LeNet().train()
    images, labels = as_lenet_input(train), train.labels
    steps = epochs * (len(train) // batch_size)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for epoch in range(epochs):
        rng = generator_for(seed, "data", epoch)
        order = torch.randperm(len(train), generator=rng)
        total, count = 0.0, 0
        for index in order[: len(order) // batch_size * batch_size].view(-1, batch_size):
            dx, dy = torch.randint(-2, 3, (2,), generator=rng).tolist()
            moved = torch.roll(images[index], (dy, dx), dims=(2, 3))
            loss = F.cross_entropy(net(moved), labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total, count = total + float(loss.detach()), count + 1
        if on_epoch is not None:
            on_epoch(epoch, total / count)
    return net.eval()


@torch.no_grad()
def accuracy(net: LeNet, test: Digits) -> float:
    """Share of digits named right."""
    parts = zip(
        torch.split(as_lenet_input(test), 1000), torch.split(test.labels, 1000), strict=True
    )
    right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in parts)
    return right / len(test)
