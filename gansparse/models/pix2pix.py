# SPDX-License-Identifier: Apache-2.0
"""Pix2Pix's U-Net, PatchGAN and pixel discriminator (Isola et al., CVPR 2017).

Keys are those of junyanz/pytorch-CycleGAN-and-pix2pix, so its files load as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gansparse.errors import CheckpointError, InputError
from gansparse.models.checkpoint import (
    State,
    drop_instance_statistics,
    fill,
    kernel_shape,
)

_MIN_DOWNS = 5  # ngf, 2 ngf, 4 ngf and 8 ngf channels, and the bottleneck
_UNET = "a U-Net of Pix2Pix"
_PATCH = "a PatchGAN discriminator"
_PIXEL = "a pixel discriminator"


class LiveBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that, while `live`, uses the batch's own statistics in eval mode, too.

    In eval mode it leaves the running statistics alone.
    """

    live = True

    def forward(
        self,
        x: torch.Tensor,  # [N, C, H, W]
    ) -> torch.Tensor:  # [N, C, H, W]
        """Each channel normalised."""
        if self.training or not self.live:
            normalised: torch.Tensor = super().forward(x)
            return normalised
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


class LiveDropout(nn.Dropout):
    """Dropout that, while `live`, drops in eval mode, too; `drawn_from` fixes what."""

    live = True

    def forward(
        self,
        x: torch.Tensor,  # [N, ...]
    ) -> torch.Tensor:  # same shape
        """Some elements zero, the others scaled."""
        sources = _SOURCES.get()
        if sources is None or not (self.training or self.live):
            return F.dropout(x, self.p, self.training or self.live)
        drawn = [torch.rand(x.shape[1:], generator=rng, device=x.device) for rng in sources]
        return x * (torch.stack(drawn) >= self.p).to(x.dtype) / (1.0 - self.p)


_SOURCES: ContextVar[list[torch.Generator] | None] = ContextVar("sources", default=None)


@contextmanager
def drawn_from(
    seeds: torch.Tensor,  # [N] int64
    device: torch.device,
) -> Iterator[None]:
    """In here `LiveDropout` drops from each sample what follows from its own seed.

    Whatever batch the sample is in, and however it lies in memory.
    """
    sources = [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]
    token = _SOURCES.set(sources)
    try:
        yield
    finally:
        _SOURCES.reset(token)


def make_norm(norm: str, channels: int) -> nn.Module:
    """The norm layer of that name: `batch` (affine) or `instance` (neither affine nor tracking).

    Raises:
        InputError: another name.
    """
    if norm not in ("batch", "instance"):
        raise InputError(f"norm must be 'batch' or 'instance', got {norm!r}")
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.InstanceNorm2d(channels)


def init_weights(module: nn.Module) -> None:
    """Convolutions from N(0, 0.02) without bias, BatchNorm scales from N(1, 0.02)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class UNetLevel(nn.Module):
    """One level of the U-Net: down, whatever lies below, up; joined with its input.

    Args:
        outer: channels of its input, and of what its way up adds to it.
        inner: channels below.
        below: the next level; None at the bottleneck.
        norm: `batch` or `instance`; with `instance` the convolutions have a bias.
        dropout: drops half of the output while training, and live.
    """

    def __init__(
        self, outer: int, inner: int, below: UNetLevel | None, *, norm: str, dropout: bool = False
    ) -> None:
        super().__init__()
        bias = norm == "instance"
        down: list[nn.Module] = [
            nn.LeakyReLU(0.2),
            nn.Conv2d(outer, inner, 4, 2, 1, bias=bias),
        ]
        if below is not None:
            down += [_live_norm(norm, inner), below]
        joined = inner if below is None else 2 * inner
        up: list[nn.Module] = [
            nn.ReLU(True),
            nn.ConvTranspose2d(joined, outer, 4, 2, 1, bias=bias),
            _live_norm(norm, outer),
        ]
        if dropout:
            up.append(LiveDropout(0.5))
        self.model = nn.Sequential(*down, *up)

    def forward(
        self,
        x: torch.Tensor,  # [N, outer, H, W], H and W even
    ) -> torch.Tensor:  # [N, 2 outer, H, W]: the input, then what the way up made
        """Input and output of the level, side by side."""
        return torch.cat([x, self.model(x)], 1)


class _Outermost(nn.Module):
    """The level at full resolution: no norm, no joining; Tanh at its end."""

    def __init__(
        self, in_channels: int, out_channels: int, ngf: int, below: UNetLevel, *, norm: str
    ) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(in_channels, ngf, 4, 2, 1, bias=norm == "instance"),
            below,
            nn.ReLU(True),
            nn.ConvTranspose2d(2 * ngf, out_channels, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(
        self,
        images: torch.Tensor,  # [N, in_channels, H, W]
    ) -> torch.Tensor:  # [N, out_channels, H, W], in [-1, 1]
        out: torch.Tensor = self.model(images)
        return out


def _live_norm(norm: str, channels: int) -> nn.Module:
    return LiveBatchNorm2d(channels) if norm == "batch" else make_norm(norm, channels)


class UNetGenerator(nn.Module):
    """Picture to picture through a U-Net: Pix2Pix's generator.

    Its authors test it as they train it: dropout and the batch's own statistics stay live, as the
    source of its noise. So they do here in eval mode, too, unless `live_in_eval(False)` is called;
    FIDs of the two choices differ. Draw from a seeded generator for the same pictures again.

    Args:
        in_channels: channels of the input picture.
        out_channels: channels of the output picture.
        ngf: channels after the first convolution.
        num_downs: halvings; 8 is U-Net-256, 7 is U-Net-128. Height and width must be multiples
            of 2 ** num_downs.
        norm: `batch`, or `instance`, with which the convolutions have a bias.
        dropout: drops half of the features in the 8 ngf levels above the bottleneck.

    Raises:
        InputError: fewer than 5 halvings, or another norm.

    Example:
        >>> net = UNetGenerator(ngf=2, num_downs=5)
        >>> net(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
        >>> once = net.eval().live_in_eval(False)(torch.ones(1, 3, 32, 32))
        >>> torch.equal(once, net(torch.ones(1, 3, 32, 32)))
        True
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        ngf: int = 64,
        *,
        num_downs: int = 8,
        norm: str = "batch",
        dropout: bool = True,
    ) -> None:
        super().__init__()
        if num_downs < _MIN_DOWNS:
            raise InputError(f"unet: num_downs must be at least {_MIN_DOWNS}, got {num_downs}")
        self.num_downs = num_downs
        level = UNetLevel(8 * ngf, 8 * ngf, None, norm=norm)
        for _ in range(num_downs - _MIN_DOWNS):
            level = UNetLevel(8 * ngf, 8 * ngf, level, norm=norm, dropout=dropout)
        for width in (4 * ngf, 2 * ngf, ngf):
            level = UNetLevel(width, 2 * width, level, norm=norm)
        self.model = _Outermost(in_channels, out_channels, ngf, level, norm=norm)
        self.apply(init_weights)

    def live_in_eval(self, live: bool = True) -> UNetGenerator:
        """Chooses whether dropout and batch statistics stay live in eval mode; returns itself."""
        for module in self.modules():
            if isinstance(module, (LiveBatchNorm2d, LiveDropout)):
                module.live = live
        return self

    def forward(
        self,
        images: torch.Tensor,  # [N, in_channels, H, W], in [-1, 1]
    ) -> torch.Tensor:  # [N, out_channels, H, W], in [-1, 1]
        """Translated pictures.

        Raises:
            InputError: height or width is no multiple of 2 ** num_downs.
        """
        step = 2**self.num_downs
        height, width = images.shape[-2:]
        if height % step or width % step:
            raise InputError(
                f"unet: height and width must be multiples of {step}, got {height}x{width}; "
                "crop or resize the picture"
            )
        out: torch.Tensor = self.model(images)
        return out


class PatchGANDiscriminator(nn.Module):
    """Picture to a map of logits, one a patch; Pix2Pix and CycleGAN share it.

    Args:
        in_channels: channels of the picture; of input and output together for Pix2Pix.
        ndf: channels after the first convolution.
        num_layers: convolutions of stride 2; 3 of them see 70x70 pixels.
        norm: `batch`, or `instance`, with which all convolutions have a bias.

    Raises:
        InputError: another norm.

    Example:
        >>> PatchGANDiscriminator(in_channels=6, ndf=4)(torch.randn(2, 6, 64, 64)).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(
        self, in_channels: int = 3, ndf: int = 64, num_layers: int = 3, norm: str = "batch"
    ) -> None:
        super().__init__()
        bias = norm == "instance"
        layers: list[nn.Module] = [nn.Conv2d(in_channels, ndf, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        channels = ndf
        for level in range(1, num_layers + 1):
            width = ndf * min(2**level, 8)
            stride = 2 if level < num_layers else 1
            layers += [
                nn.Conv2d(channels, width, 4, stride, 1, bias=bias),
                make_norm(norm, width),
                nn.LeakyReLU(0.2, True),
            ]
            channels = width
        layers.append(nn.Conv2d(channels, 1, 4, 1, 1))
        self.model = nn.Sequential(*layers)
        self.apply(init_weights)

    def forward(
        self,
        images: torch.Tensor,  # [N, in_channels, H, W], in [-1, 1]
    ) -> torch.Tensor:  # [N, 1, H / 2^num_layers - 2, W / 2^num_layers - 2], logits
        """Logits of the patches: positive means real."""
        out: torch.Tensor = self.model(images)
        return out


class PixelDiscriminator(nn.Module):
    """Picture to a logit for each pixel: Pix2Pix's 1x1 PatchGAN.

    Args:
        in_channels: channels of the picture; of input and output together for Pix2Pix.
        ndf: channels after the first convolution.
        norm: `batch`, or `instance`, with which all convolutions have a bias.

    Raises:
        InputError: another norm.

    Example:
        >>> PixelDiscriminator(in_channels=6, ndf=4)(torch.randn(2, 6, 8, 8)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, in_channels: int = 3, ndf: int = 64, norm: str = "batch") -> None:
        super().__init__()
        bias = norm == "instance"
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, ndf, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(ndf, 2 * ndf, 1, bias=bias),
            make_norm(norm, 2 * ndf),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(2 * ndf, 1, 1, bias=bias),
        )
        self.apply(init_weights)

    def forward(
        self,
        images: torch.Tensor,  # [N, in_channels, H, W], in [-1, 1]
    ) -> torch.Tensor:  # [N, 1, H, W], logits
        """Logits of the pixels: positive means real."""
        out: torch.Tensor = self.net(images)
        return out


def read_norm(state: State, bias: str) -> tuple[str, State]:
    """Which norm the weights are of, and the weights without what that norm does not have.

    Args:
        state: of a network whose convolutions have a bias with InstanceNorm only.
        bias: key of such a bias.
    """
    if bias in state:
        return "instance", drop_instance_statistics(state)
    return "batch", state


def generator_from_state(state: State, path: str | Path) -> UNetGenerator:
    """The U-Net that these weights are of: channels, ngf, halvings and norm come from the keys.

    Keys do not tell dropout: it is there, as its authors have it.

    Raises:
        CheckpointError: not a U-Net of Pix2Pix; the message names the key.
    """
    norm, state = read_norm(state, "model.model.0.bias")
    first = kernel_shape(state, "model.model.0.weight", path, _UNET)
    last = kernel_shape(state, "model.model.3.weight", path, _UNET)
    downs = max(key.count("model.") for key in state) - 1  # each level nests one deeper
    if downs < _MIN_DOWNS:
        raise CheckpointError(
            f"{path}: {_UNET} halves at least {_MIN_DOWNS} times, got {downs}; was the file cut?"
        )
    net = UNetGenerator(first[1], last[1], first[0], num_downs=downs, norm=norm)
    fill(net, state, path, _UNET)
    return net


def discriminator_from_state(
    state: State, path: str | Path
) -> PatchGANDiscriminator | PixelDiscriminator:
    """The PatchGAN or pixel discriminator that these weights are of, Pix2Pix's or CycleGAN's.

    Raises:
        CheckpointError: neither of them; the message names the key.
    """
    net: PatchGANDiscriminator | PixelDiscriminator
    if "net.0.weight" in state:
        norm, state = read_norm(state, "net.2.bias")
        first = kernel_shape(state, "net.0.weight", path, _PIXEL)
        net = PixelDiscriminator(first[1], first[0], norm)
        fill(net, state, path, _PIXEL)
        return net
    norm, state = read_norm(state, "model.2.bias")
    first = kernel_shape(state, "model.0.weight", path, _PATCH)
    last = max(int(key.split(".")[1]) for key in state if _is_kernel_of_model(key, state))
    net = PatchGANDiscriminator(first[1], first[0], (last - 2) // 3, norm)
    fill(net, state, path, _PATCH)
    return net


def _is_kernel_of_model(key: str, state: State) -> bool:
    parts = key.split(".")
    return parts[0] == "model" and len(parts) == 3 and parts[1].isdigit() and state[key].ndim == 4
