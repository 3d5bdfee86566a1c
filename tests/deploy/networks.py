# SPDX-License-Identifier: Apache-2.0
"""Networks of a user's own, with what can go wrong when a graph is fused; what a plan owes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from gansparse.deploy import CompiledGenerator

TOLERANCE = 1e-4  # of the contract


@torch.no_grad()
def assert_same(compiled: nn.Module, network: nn.Module, *inputs: torch.Tensor) -> None:
    torch.manual_seed(0)
    want = network(*[x.clone() for x in inputs])
    torch.manual_seed(0)
    got = compiled(*[x.clone() for x in inputs])
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= TOLERANCE * max(1.0, float(want.abs().max()))


def convolutions(compiled: CompiledGenerator) -> dict[str, str]:
    """Layer → kernel."""
    return {row.layer: row.kernel for row in compiled.explain().rows if row.sparsity is not None}


def seeded(network: nn.Module, zeros: float = 0.6) -> nn.Module:
    """Random weights with zeros, norms that do something; in eval mode."""
    source = torch.Generator().manual_seed(0)
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=source)
            if value.dim() == 4:
                noise *= torch.rand(value.shape, generator=source) > zeros
                noise /= value[0].numel() ** 0.5
            value.copy_(1 + noise.abs() / 4 if key.endswith("running_var") else noise)
    return network.eval()


def picture(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (2, 3, 8, 10), generator=torch.Generator().manual_seed(7))


def conv(channels: int = 3, out: int = 3, taps: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, out, taps, padding=taps // 2)


class TwoReaders(nn.Module):
    """A convolution whose output is read twice: its activation can't be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = conv(), nn.BatchNorm2d(3), conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(F.relu(self.norm(y))) + y


class TwoReadersOfASum(nn.Module):
    """A residual sum that the next block and the skip after it read, twice in one sum at last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(), conv(), conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + self.first(x)
        z = F.leaky_relu(self.second(y) + y, 0.3)
        out: torch.Tensor = self.third(z)
        return (out + out) * z


class InPlace(nn.Module):
    """Writes over what a skip reads later, as junyanz's U-Net does, and over its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(), conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        below = self.second(F.leaky_relu(y, 0.2, inplace=True))
        y += 1
        below.mul_(2).relu_()
        return torch.cat([y, below], 1)


class WrittenBetween(nn.Module):
    """What a convolution has read is written over before the sum that it is fused with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(), conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z = self.second(y)
        y.relu_()
        return z + y


class Shared(nn.Module):
    """One convolution, called twice, once with an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(torch.tanh(self.layer(x)))
        return out


class Branch(nn.Module):
    """Python asks for a tensor's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 0:
            x = -x
        out: torch.Tensor = self.layer(x)
        return out


class Around(nn.Module):
    """Convolutions before and after a submodule."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.before, self.inner, self.after = conv(), inner, conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.after(self.inner(F.relu(self.before(x))))
        return out


class WritesIntoViews(nn.Module):
    """Reads a view of what was written over."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = conv()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        view = y[:, :1]
        y.relu_()
        return y + view


class Functional(nn.Module):
    """No modules for what has functions, a weight that is computed, shapes in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
        self.gain = nn.Parameter(torch.zeros(4, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, h, _ = x.shape
        y = F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight * self.gain, stride=2)
        if h % 2 == 0:
            y = torch.relu(y)
        return y.reshape(n, -1).view(n, 4, h // 2, -1).mean(1, keepdim=True) + torch.ones(1, 1)


class NormFirst(nn.Module):
    """BatchNorm before the convolution: foldable where no zeros are padded."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.layer = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(self.norm(x))
        return out
