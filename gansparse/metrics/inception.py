# SPDX-License-Identifier: Apache-2.0
"""The Inception network of the Fréchet Inception Distance (FID).

FID (Heusel et al., NeurIPS 2017) is defined by one network, the Inception v3 (Szegedy et al., CVPR
2016) that Google released on 2015-12-05; `inception_weights` knows the file that holds it. It is
not torchvision's Inception v3: average pools leave the padding out of the mean, the last block
pools with a maximum, and it tells 1008 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gansparse.errors import InputError
from gansparse.files import load_tensors
from gansparse.metrics.inception_weights import check_hash
from gansparse.metrics.pictures import MODES, for_inception
from gansparse.metrics.precision import plain_float32
from gansparse.models.checkpoint import fill, strip_prefixes

NUM_CLASSES = 1008
# Pictures a pass on a CPU: with more, every large activation is a fresh mapping of the system's,
# whose page faults take a fifth of the time; with fewer, laying the weights out for each pass does.
CPU_BATCH = 8
_ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


# ---- The network, as a table ---------------------------------------------------------------------
# A chain is a row of steps. A step is a convolution, a list of convolutions of the same input whose
# channels are joined, a block of several such chains, or a pool. Names are those of the weights.


class Conv(NamedTuple):
    """A convolution without bias, its BatchNorm and ReLU; padded to the same size at stride 1."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


class Block(NamedTuple):
    """Chains of the same input, whose channels are joined."""

    name: str
    branches: Branches


Pool = Callable[[torch.Tensor], torch.Tensor]
Step = Conv | list[Conv] | Block | Pool
Branches = Sequence[Sequence[Step]]


def average(x: torch.Tensor) -> torch.Tensor:
    """3x3, same size; TensorFlow's mean is of the pixels inside the picture alone."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def maximum(x: torch.Tensor) -> torch.Tensor:
    """3x3, same size."""
    return F.max_pool2d(x, 3, stride=1, padding=1)


def halving(x: torch.Tensor) -> torch.Tensor:
    """3x3 maximum with stride 2."""
    return F.max_pool2d(x, 3, stride=2)


def block_a(pool_channels: int) -> Branches:
    """At 35x35 pixels."""
    return (
        [Conv("branch1x1", 64)],
        [Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))],
        [
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3)),
        ],
        [average, Conv("branch_pool", pool_channels)],
    )


def block_b() -> Branches:
    """From 35x35 to 17x17."""
    return (
        [Conv("branch3x3", 384, (3, 3), 2)],
        [
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3), 2),
        ],
        [halving],
    )


def block_c(width: int) -> Branches:
    """At 17x17, with 7x7 windows as rows and columns."""
    return (
        [Conv("branch1x1", 192)],
        [
            Conv("branch7x7_1", width),
            Conv("branch7x7_2", width, (1, 7)),
            Conv("branch7x7_3", 192, (7, 1)),
        ],
        [
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, (7, 1)),
            Conv("branch7x7dbl_3", width, (1, 7)),
            Conv("branch7x7dbl_4", width, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ],
        [average, Conv("branch_pool", 192)],
    )


def block_d() -> Branches:
    """From 17x17 to 8x8."""
    return (
        [Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2)],
        [
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2),
        ],
        [halving],
    )


def block_e(pool: Pool) -> Branches:
    """At 8x8. The network's last block pools with a maximum."""
    return (
        [Conv("branch1x1", 320)],
        [
            Conv("branch3x3_1", 384),
            [Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))],
        ],
        [
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            [Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))],
        ],
        [pool, Conv("branch_pool", 192)],
    )


# Features by their number, and the steps from the features before to these.
NETWORK: dict[int, Sequence[Step]] = {
    64: (
        Conv("Conv2d_1a_3x3", 32, (3, 3), 2),
        Conv("Conv2d_2a_3x3", 32, (3, 3), padded=False),
        Conv("Conv2d_2b_3x3", 64, (3, 3)),
        halving,
    ),
    192: (
        Conv("Conv2d_3b_1x1", 80),
        Conv("Conv2d_4a_3x3", 192, (3, 3), padded=False),
        halving,
    ),
    768: (
        Block("Mixed_5b", block_a(32)),
        Block("Mixed_5c", block_a(64)),
        Block("Mixed_5d", block_a(64)),
        Block("Mixed_6a", block_b()),
        Block("Mixed_6b", block_c(128)),
        Block("Mixed_6c", block_c(160)),
        Block("Mixed_6d", block_c(160)),
        Block("Mixed_6e", block_c(192)),
    ),
    2048: (
        Block("Mixed_7a", block_d()),
        Block("Mixed_7b", block_e(average)),
        Block("Mixed_7c", block_e(maximum)),
    ),
}
DIMS = tuple(NETWORK)


# ---- The modules ---------------------------------------------------------------------------------


class ConvNorm(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, row: Conv) -> None:
        super().__init__()
        padded = row.padded and row.stride == 1
        padding = (row.kernel[0] // 2, row.kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(
            in_channels, row.channels, row.kernel, row.stride, padding=padding, bias=False
        )
        self.bn: nn.Module = nn.BatchNorm2d(row.channels, eps=0.001)

    def forward(
        self,
        x: torch.Tensor,  # [N, C, H, W]
    ) -> torch.Tensor:  # [N, O, H', W']
        """Features, at least 0."""
        folded = isinstance(self.bn, nn.Identity)
        if folded and x.device.type == "cpu" and x.dtype == torch.float32 and _ONEDNN:
            return F.relu_(self._by_onednn(x))
        return F.relu_(self.bn(self.conv(x)))

    def _by_onednn(self, x: torch.Tensor) -> torch.Tensor:
        """What torch itself would call, but for small batches on one thread.

        There it takes 1x1 convolutions elsewhere, at four fifths of the network's speed.
        """
        conv = self.conv
        padding = (int(conv.padding[0]), int(conv.padding[1]))
        return torch.mkldnn_convolution(
            x, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups
        )

    def fold(self) -> None:
        """BatchNorm becomes part of the convolution: w γ / σ, and the bias β - μ γ / σ."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.bn)
            self.bn = nn.Identity()


class Steps(nn.Module):
    """A module whose children are named by rows of the table."""

    def build(self, steps: Sequence[Step], channels: int) -> int:
        """Adds the children of a chain; from the channels that go in to those that come out."""
        for step in steps:
            if isinstance(step, Conv):
                self.add_module(step.name, ConvNorm(channels, step))
                channels = step.channels
            elif isinstance(step, Block):
                block = Mixed(channels, step.branches)
                self.add_module(step.name, block)
                channels = block.channels
            elif isinstance(step, list):
                channels = sum(self.build([row], channels) for row in step)
        return channels

    def run(self, steps: Sequence[Step], x: torch.Tensor) -> torch.Tensor:
        """A chain's output."""
        for step in steps:
            if isinstance(step, (Conv, Block)):
                x = self._modules[step.name](x)  # type: ignore[misc]
            elif isinstance(step, list):
                x = torch.cat([self.run([row], x) for row in step], 1)
            else:
                x = step(x)
        return x


class Mixed(Steps):
    """A block: the joined outputs of its branches."""

    def __init__(self, channels: int, branches: Branches) -> None:
        super().__init__()
        self.branches = branches
        self.channels = sum(self.build(steps, channels) for steps in branches)

    def forward(
        self,
        x: torch.Tensor,  # [N, C, H, W]
    ) -> torch.Tensor:  # [N, channels, H', W']
        """The branches' features, in the table's order."""
        return torch.cat([self.run(steps, x) for steps in self.branches], 1)


def check_choice(mode: str, dims: int) -> None:
    """Refuses what is no mode or no number of features.

    Raises:
        InputError: the message lists those there are.
    """
    for name, got, known in (("mode", mode, tuple(MODES)), ("dims", dims, DIMS)):
        if got not in known:
            listed = ", ".join(map(str, known))
            raise InputError(f"inception: {name} must be one of {listed}, got {got!r}")


class InceptionV3(Steps):
    """The Inception of FID, from pictures to features.

    As built, its `state_dict` has the 566 entries of the public weights. `fold` makes it faster and
    leaves 190; `from_file` does so. It computes in float32, without TF32 or autocast, and is in
    eval mode from the start: statistics of the batch would make features depend on its size.

    Args:
        mode: how pictures are resized and scaled: "pytorch-fid", "clean" or "tf1"; see
            `gansparse.metrics.pictures`.
        dims: number of features: 64 (first pool), 192 (second pool), 768 (before the auxiliary
            classifier) or 2048 (last pool). All are means over the picture.

    Raises:
        InputError: no such mode, or no such number of features.

    Example:
        >>> net = InceptionV3(dims=64)
        >>> len(net.state_dict()), net(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        (566, torch.Size([2, 64]))
    """

    def __init__(self, mode: str = "pytorch-fid", dims: int = 2048) -> None:
        super().__init__()
        check_choice(mode, dims)
        self.mode, self.dims = mode, dims
        channels = 3
        for steps in NETWORK.values():
            channels = self.build(steps, channels)
        self.fc = nn.Linear(channels, NUM_CLASSES)
        self.eval()

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        mode: str = "pytorch-fid",
        dims: int = 2048,
        *,
        sha256: str = "",
    ) -> InceptionV3:
        """The network with a file's weights, folded, in eval mode, without gradients.

        Args:
            path: a state_dict with the names of the public weights, .pth or .safetensors.
            mode: see the class.
            dims: see the class.
            sha256: what the file's SHA-256 must begin with; the public weights' begins
                with `inception_weights.SHA256`.

        Raises:
            CheckpointError: missing, damaged, of another network, or of another hash.
            InputError: no such mode or dims.
        """
        net = cls(mode, dims)
        state, _ = load_tensors(path)
        check_hash(Path(path), sha256)
        fill(net, strip_prefixes(state), path, "FID's Inception (torchvision's is another network)")
        return net.fold()

    def fold(self) -> InceptionV3:
        """Folds every BatchNorm, lays the weights out channels last; no gradients from here on."""
        self.eval().requires_grad_(False)
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        to: Any = self.to  # older torch's annotation lacks memory_format
        to(memory_format=torch.channels_last)
        return self

    def forward(
        self,
        images: torch.Tensor,  # [N, 1 or 3, H, W], uint8, or float in [-1, 1]
    ) -> torch.Tensor:  # [N, dims], float32
        """Features of the pictures. Floats are rounded to 8 bits first, grey becomes RGB."""
        return self.of_prepared(for_inception(images, self.mode))

    def of_prepared(
        self,
        inputs: torch.Tensor,  # [N, 3, 299, 299], float32, from `pictures.for_inception`
    ) -> torch.Tensor:  # [N, dims], float32
        """Features of pictures that are resized and scaled already."""
        return self._features(inputs, self.dims)

    def logits(
        self,
        images: torch.Tensor,  # [N, 1 or 3, H, W], uint8, or float in [-1, 1]
        bias: bool = False,
    ) -> torch.Tensor:  # [N, 1008], float32
        """Class logits; without the layer's bias, as the Inception Score is defined.

        Salimans et al. (NeurIPS 2016) left the bias out, and all numbers since have done so.
        """
        features = self._features(for_inception(images, self.mode), 2048)
        with plain_float32(features.device):
            return F.linear(features, self.fc.weight, self.fc.bias if bias else None)

    def _features(self, inputs: torch.Tensor, dims: int) -> torch.Tensor:
        if not inputs.shape[0]:
            return torch.zeros(0, dims, device=inputs.device)
        few = CPU_BATCH if inputs.device.type == "cpu" else inputs.shape[0]
        with plain_float32(inputs.device):
            return torch.cat(
                [self._features_of_few(part, dims) for part in torch.split(inputs, few)]
            )

    def _features_of_few(self, inputs: torch.Tensor, dims: int) -> torch.Tensor:
        x = inputs.contiguous(memory_format=torch.channels_last)
        for known, steps in NETWORK.items():
            x = self.run(steps, x)
            if known == dims:
                break
        return x.mean((2, 3))
