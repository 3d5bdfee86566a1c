# SPDX-License-Identifier: Apache-2.0
"""What is CUDA's own in a compiled generator: its kernels and norms, and how exact they must be.

`gansparse.deploy.cuda_graph` has what concerns the whole generator.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gansparse import _C
from gansparse.deploy.packable import unpackable
from gansparse.deploy.steps import (
    Conv,
    ConvLayer,
    Kernel,
    Norm,
    Slope,
    Sparse,
    activate,
    vector_sizes,
)
from gansparse.ops import (
    instance_norm,
    pack_tiles_conv2d,
    pack_tiles_conv_transpose2d,
    sparse_conv2d,
    sparse_conv2d_moments,
    sparse_conv_transpose2d,
)
from gansparse.ops.sparse_conv2d_tiles import TilePattern

#: That kernels take.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Patterns and rows of tiles.
_TILES: tuple[tuple[TilePattern, int], ...] = (
    ("2:4", 32), ("2:4", 64), ("2:4", 128), ("block", 16), ("block", 32), ("vector", 16),
)  # fmt: skip
#: Tiles of so many rows are for devices of this compute capability and no other.
_WARPGROUP_ROWS, _WARPGROUP_CAPABILITY = 128, (9, 0)
#: Tiles that keep more than this can't win: blocks are dense ones then, and columns are gathered.
_WORTH_KEPT = {"block": 0.9, "vector": 0.6}
_BLOCK_CHANNELS = 8
_MOST_TILE_TAPS = 9
#: Bytes of shared memory that a block may have where vector tiles take lists of 64 channels.
_ROOM_FOR_LISTS = 160 << 10
#: What rounds a layer's output: convolution, bias, residual, activation.
_ROUNDINGS = 4


def on_cuda(device: torch.device) -> bool:
    """Whether the device runs what is in here."""
    return device.type == "cuda"


# ---- cuDNN's settings ----------------------------------------------------------------------------


@dataclass
class _Searching:
    """How many calls want cuDNN to search, and what the user had set before the first of them."""

    calls: int = 0
    before: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


_SEARCHING = _Searching()


@contextmanager
def searching() -> Iterator[None]:
    """Let cuDNN measure its algorithms for each new shape, then restore the user's setting.

    Its choices are kept by thread and shape, whatever the setting was: what a thread has run
    before without it keeps the algorithm it had.
    """
    state, cudnn = _SEARCHING, torch.backends.cudnn
    with state.lock:
        if not state.calls:
            state.before = cudnn.benchmark
        state.calls += 1
        cudnn.benchmark = True
    try:
        yield
    finally:
        with state.lock:
            state.calls -= 1
            if not state.calls:
                cudnn.benchmark = state.before


@contextmanager
def no_search() -> Iterator[None]:
    """For what runs once."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def tf32() -> bool:
    """Whether cuDNN may round float32 factors; yes, where torch's old and new settings differ."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return True


# ---- How exact -----------------------------------------------------------------------------------


def tolerance(dtype: torch.dtype, terms: int) -> float:
    """How far a kernel may be from the truth, as a share of the largest sum in the layer.

    Each of up to four roundings of the output moves it by eps / 2; sums of so many products in
    float32 err by eps √terms; and TF32, where the user allows it, rounds both factors to 11 bits.

    Example:
        >>> tolerance(torch.bfloat16, 2304) / torch.finfo(torch.bfloat16).eps
        2.000732421875
    """
    factors = 0.0
    if dtype == torch.float32 and tf32():
        factors = 2.0**-10
    sums = torch.finfo(torch.float32).eps * math.sqrt(terms)
    return _ROUNDINGS / 2 * torch.finfo(dtype).eps + factors + sums


def truth(layer: ConvLayer, read: Sequence[Tensor | None], dense: Tensor) -> tuple[Tensor, float]:
    """The layer's output in float64, and how far a kernel's may be from it.

    Twice as far as torch's own is from it is always allowed: cuDNN may take a Winograd transform.

    Args:
        layer: as it was fused.
        read: its input, and its residual or None.
        dense: torch's output.
    """

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) else value

    plain = replace(layer, weight=wide(layer.weight), bias=wide(layer.bias), activation="none")
    x, residual = map(wide, read)
    with no_search():
        z = Conv(plain)(x, residual)
    if not z.numel():
        return z, 0.0
    size = float(z.abs().max()) + (0.0 if residual is None else float(residual.abs().max()))
    y = activate(z, layer.activation, wide(layer.slope))
    most = tolerance(layer.weight.dtype, layer.filters[0].numel()) * size
    return y, max(most, 2 * float((dense - y).abs().max()))


# ---- Kernels -------------------------------------------------------------------------------------


class Tiles(nn.Module):
    """The layer by `gansparse.ops.sparse_conv2d` on tensor cores, in channels_last.

    Args:
        layer: what to compute; float16 or bfloat16.
        pattern: of the tiles.
        rows: output channels of a tile.

    Raises:
        InputError: the layer can't be packed so.
    """

    def __init__(self, layer: ConvLayer, pattern: TilePattern, rows: int) -> None:
        super().__init__()
        pack: Callable[..., Any] = pack_tiles_conv2d
        settings: dict[str, Any] = {"padding_mode": layer.pad_mode}
        if layer.transposed:
            pack, settings = pack_tiles_conv_transpose2d, {"output_padding": layer.output_padding}
        if pattern == "vector" and not _has_room(layer.weight.device):
            settings["list_channels"] = 32
        self.packed = pack(
            layer.weight.float(), pattern, rows=rows, dtype=layer.weight.dtype,
            stride=layer.stride[0], padding=layer.padding, **settings,
        )  # fmt: skip
        slope = layer.slope.float() if isinstance(layer.slope, Tensor) else layer.slope
        if isinstance(slope, Tensor) and slope.numel() > 1 and layer.shuffle > 1:
            slope = slope.repeat_interleave(layer.shuffle**2)
        self.bias = None if layer.bias is None else layer.bias.float()
        self.settings: dict[str, Any] = {"activation": layer.activation, "slope": slope}
        self.transposed, self.shuffle = layer.transposed, layer.shuffle

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        residual: Tensor | None = None,  # [N, O, OH, OW]
    ) -> Tensor:  # [N, O', OH, OW], O' after the shuffle
        """The layer."""
        run = sparse_conv_transpose2d if self.transposed else sparse_conv2d
        y = run(x, self.packed, self.bias, residual=residual, **self.settings)
        if self.shuffle == 1:
            return y
        return F.pixel_shuffle(y, self.shuffle).contiguous(memory_format=torch.channels_last)

    @property
    def leaves_moments(self) -> bool:
        """Whether it can leave the moments of its output for a norm."""
        return self.shuffle == 1 and self.settings["activation"] == "none"


def kernels(layer: ConvLayer, size: tuple[int, ...]) -> dict[str, Kernel]:
    """The ways to run a layer, by name; the first two are cuDNN's, and always there.

    A way that fails when it is made or first run (on a device too old, say) is no candidate.

    Args:
        layer: as it was fused.
        size: [N, C, H, W] of its input.
    """
    found = {
        "torch": Kernel("NCHW", lambda: Conv(layer, "NCHW", sparse_filters=True)),
        "torch channels_last": Kernel(
            "channels_last", lambda: Conv(layer, "channels_last", sparse_filters=True)
        ),
    }
    if unpackable(layer):
        return found
    if layer.weight.dtype == torch.float32:
        n, _, high, wide = size
        for vector in vector_sizes(layer):
            name = "sparse" if vector == 1 else f"sparse vector-{vector}"
            found[name] = Kernel("NCHW", partial(_lists, layer, vector, (n, high, wide)))
        return found
    channels, *taps = layer.filters.shape[1:]
    if channels % _BLOCK_CHANNELS or max(taps) > _MOST_TILE_TAPS:
        return found
    for pattern, rows in _TILES:
        if rows == _WARPGROUP_ROWS and not _has_warpgroups(layer.weight.device):
            continue
        if pattern == "2:4":
            may_win = two_of_four(layer)
        else:
            together = 1 if pattern == "vector" else _BLOCK_CHANNELS
            may_win = kept_blocks(layer, rows, together) <= _WORTH_KEPT[pattern]
        if may_win:
            make = partial(Tiles, layer, pattern, rows)
            found[f"{pattern} x{rows}"] = Kernel("channels_last", make)
    return found


def _has_warpgroups(device: torch.device) -> bool:
    """Whether its tensor cores take 2:4 matrices from warpgroups."""
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) == _WARPGROUP_CAPABILITY


def _has_room(device: torch.device) -> bool:
    """Whether its blocks may have shared memory for lists of 64 channels (sm_86 and 89 don't)."""
    if device.type != "cuda":
        return True
    found = torch.cuda.get_device_properties(device)
    return getattr(found, "shared_memory_per_block_optin", 0) >= _ROOM_FOR_LISTS


def _lists(layer: ConvLayer, vector: int, size: tuple[int, int, int]) -> nn.Module:
    """The lists of the CPU's kernel, which are packed there."""
    device = layer.weight.device
    host: Any = {name: getattr(layer, name) for name in ("weight", "bias", "slope")}
    host = {name: t.cpu() if isinstance(t, Tensor) else t for name, t in host.items()}
    return Sparse(replace(layer, **host), vector, size).to(device)


def two_of_four(layer: ConvLayer) -> bool:
    """Whether each filter has at most two of each four neighbouring input channels at a tap."""
    kept = torch.unflatten(layer.filters != 0, 1, (-1, 4))
    return bool((kept.sum(2) <= 2).all())


def kept_blocks(layer: ConvLayer, rows: int, together: int = _BLOCK_CHANNELS) -> float:
    """The share of blocks of so many filters x input channels at a tap that hold a weight."""
    kept = (layer.filters != 0).float()[None]  # [1, O, C, R, S]
    out, channels = kept.shape[1:3]
    kept = F.pad(kept, (0, 0, 0, 0, 0, -channels % together, 0, -out % rows))
    tile = (rows, together, 1)
    return float(F.max_pool3d(kept.flatten(3), tile, tile).mean())


def has_own_norm(x: Tensor) -> bool:
    """Whether `gansparse.ops.instance_norm` has a CUDA kernel for these pictures."""
    fits = x.dtype != torch.float32 and x.shape[1] % _BLOCK_CHANNELS == 0
    return x.is_cuda and fits and _built_for(x.device)


@functools.cache
def _built_for(device: torch.device) -> bool:
    """Whether the kernels were built, and for devices like this one."""
    return "cuda" in _C.OPS["instance_norm"] and torch.cuda.get_device_capability(device) >= (8, 0)


class ChannelsLastNorm(Norm):
    """`Norm` that keeps channels_last.

    In float16 and bfloat16, with a multiple of 8 channels, by `gansparse.ops.instance_norm`, which
    reads its input twice, with a convolution's moments once, and writes once. Else by torch's
    reductions: two more passes, and of 16 bits the variance is the mean square less the squared
    mean: where a mean is 30 times the deviation, that errs by 1e-4, far below the inputs' own
    rounding.

    Args:
        norm: the same, in NCHW.
    """

    def __init__(self, norm: Norm) -> None:
        super().__init__(
            cast("Tensor | None", norm.weight), cast("Tensor | None", norm.bias), norm.eps,
            activation=norm.activation, slope=norm.slope, fused=norm.fused,
        )  # fmt: skip
        for name in ("weight", "bias", "slope"):
            value = getattr(norm, name)
            wide = value.float() if isinstance(value, Tensor) else value
            if isinstance(wide, float):
                self.wide_slope: Slope = wide
            else:
                self.register_buffer(f"wide_{name}", wide, persistent=False)

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        residual: Tensor | None = None,  # [N, C, H, W]
        moments: Tensor | None = None,  # [N, P, 3, C], where the norm is our own
    ) -> Tensor:  # [N, C, H, W]
        """The norm and what follows."""
        if has_own_norm(x):
            return instance_norm(
                x, cast("Tensor | None", self.wide_weight), cast("Tensor | None", self.wide_bias),
                eps=self.eps, residual=residual, activation=self.activation, slope=self.wide_slope,
                moments=moments,
            )  # fmt: skip
        x = x.contiguous(memory_format=torch.channels_last)
        if x.dtype == torch.float32:
            var, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        else:
            mean = x.mean((2, 3), keepdim=True, dtype=torch.float32)
            length = torch.linalg.vector_norm(x, 2, (2, 3), True, dtype=torch.float32)
            var = (length.square() / (x.shape[2] * x.shape[3]) - mean.square()).clamp_(min=0)
        scale = (var + self.eps).rsqrt_()
        if self.weight is not None:
            scale = scale * cast(Tensor, self.weight).view(-1, 1, 1)
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + cast(Tensor, self.bias).view(-1, 1, 1)
        y = torch.addcmul(shift, x, scale, out=torch.empty_like(x))
        if residual is not None:
            y = y.add_(residual)
        return activate(y, self.activation, self.slope)


class NormedTiles(nn.Module):
    """A convolution by tiles and the InstanceNorm after it, which reads its input once.

    Args:
        tiles: leaves the moments of its output.
        norm: takes them.
    """

    def __init__(self, tiles: Tiles, norm: ChannelsLastNorm) -> None:
        super().__init__()
        self.tiles, self.norm = tiles, norm

    def forward(
        self,
        x: Tensor,  # [N, C, H, W]
        residual: Tensor | None = None,  # [N, O, OH, OW], of the norm
    ) -> Tensor:  # [N, O, OH, OW]
        """Both."""
        y, moments = sparse_conv2d_moments(x, self.tiles.packed, self.tiles.bias)
        made: Tensor = self.norm(y, residual, moments)
        return made
