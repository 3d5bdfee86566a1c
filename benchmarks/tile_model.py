# SPDX-License-Identifier: Apache-2.0
"""What sparse_conv2d on tensor cores should take, by arithmetic, and the rates of a GPU.

`benchmarks/cost_model.py` prints the tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gansparse.testing.samples.sparse_conv2d import Sample
from gansparse.testing.samples.sparse_conv2d_tiles import TileSample

TILE_PIXELS, CHANNELS, POSITION_BYTES = 128, 32, 80
#: Of columns: those of a step, most tiles of rows a block, and how often its rows of 16 bytes meet
#: in a bank, by channels of a list and kept share: counted in what the packing makes of
#: 256 x 256 3 x 3 kept by chance.
COLUMN_STEP, COLUMN_WARPS = 16, 16
SLOWEST = 1.77  # deviations by which the largest of 16 normal numbers is above the mean
BANKS = {32: {0.5: 1.21, 0.25: 1.33, 0.1: 1.47}, 64: {0.5: 1.16, 0.25: 1.27, 0.1: 1.42}}
#: Of 2:4 on warpgroups: rows and pixels (rows, columns) of a block; rows of a product.
GROUP_ROWS, GROUP_TILE, PRODUCT_ROWS = 128, (32, 8), 64
GRADIENT_WARPS, GRADIENT_SUMS, SHARED_LIMIT = 16, 64, 227 << 10


@dataclass(frozen=True)
class Gpu:
    """Rates of an H200.

    Args:
        clock: Hz.
        processors: multiprocessors.
        dense: multiply-adds a cycle and multiprocessor of dense 16-bit tensor cores at their peak.
        mma: share of that peak that mma reaches, published for Hopper; the rest needs wgmma.
        mma_sparse: speed of mma.sp over mma, published for Hopper (2 on paper).
        wgmma_sparse: share of the sparse peak that wgmma.sp reaches; assumed, as dense wgmma's.
        shared: bytes a cycle and multiprocessor between registers and shared memory or first cache.
        cache: bytes a second out of the second cache.
        memory: bytes a second, copy.
        cudnn: multiply-adds a second times two that cuDNN's dense convolution may reach.
        fma: multiply-adds a cycle and multiprocessor in float32.
        issue: instructions of warps a cycle and multiprocessor.
        cudnn32: as cudnn, in float32 by matrix products.
        winograd: how much fewer multiply-adds may make 3 x 3 kernels of stride 1 faster.
        double: multiply-adds a cycle and multiprocessor of float64 tensor cores.
        widen: numbers a cycle and multiprocessor that become float64.
        blas: multiply-adds a second times two of cuBLAS in float64: 76 % of the datasheet's peak,
            as published for an H100.
        launch: seconds of a launch that the next one waits for.
    """

    clock: float = 1.755e9
    processors: int = 132
    dense: int = 2048
    mma: float = 0.63
    mma_sparse: float = 1.45
    wgmma_sparse: float = 0.8
    shared: int = 128
    cache: float = 5.5e12
    memory: float = 4.3e12
    cudnn: float = 650e12
    fma: int = 128
    issue: int = 4
    cudnn32: float = 45e12
    winograd: float = 1.6
    double: int = 128
    widen: int = 16
    blas: float = 51e12
    launch: float = 3e-6


def halo(sample: Sample, rows: int = 8, columns: int = 16) -> int:
    """Input pixels a block of output pixels keeps."""
    kernel = sample.kernel if isinstance(sample.kernel, int) else sample.kernel[0]
    taps, stride = (kernel // 2 + 1, 1) if sample.transposed else (kernel, sample.stride)
    return ((rows - 1) * stride + taps) * ((columns - 1) * stride + taps)


def times(sample: TileSample, kept: float, gpu: Gpu) -> dict[str, float]:
    """Seconds by each limit, and of a dense convolution."""
    n, c, h, w = sample.shape
    kernel = sample.kernel if isinstance(sample.kernel, int) else sample.kernel[0]
    up = sample.stride**2 if sample.transposed else 1
    taps = kernel**2 // up
    pixels = n * h * w if sample.transposed else n * h * w // sample.stride**2
    sparse = sample.pattern == "2:4"
    if sample.rows == GROUP_ROWS:
        return group_times(sample, gpu)
    if sample.pattern == "vector":
        return column_times(sample, kept, gpu)
    row_tiles = -(-sample.out // sample.rows) * up
    row_warps = 4 if sample.rows < 64 and row_tiles > 2 else 2
    blocks = -(-pixels // TILE_PIXELS) * -(-row_tiles // row_warps)
    steps = blocks * c / CHANNELS * taps * kept  # of blocks
    rows = row_warps * sample.rows
    fused = rows * TILE_PIXELS * CHANNELS  # multiply-adds a step, zeros of 2:4 counted
    rate = gpu.dense * gpu.mma * (gpu.mma_sparse if sparse else 1)
    cycles = 1 / (gpu.clock * gpu.processors)
    # ---- Bytes a step: weights (2:4: half and metadata), the pixels of each warp's 64 ----
    weights = rows * (CHANNELS + 4 if sparse else 2 * CHANNELS)
    staged = halo(sample) * 2 * CHANNELS / (taps * kept)
    first = 2 * row_warps * 64 * 2 * CHANNELS + 2 * weights + staged
    out = sample.out * up * pixels * 2
    dense = 2 * sample.out * up * c * taps * pixels
    return {
        "tensor": steps * fused / rate * cycles,
        "shared": steps * first / gpu.shared * cycles,
        "cache": steps * (weights + staged) / gpu.cache,
        "memory": (n * c * h * w * 2 + out) / gpu.memory,
        "dense": max(dense / gpu.cudnn, (n * c * h * w * 2 + out) / gpu.memory),
    }


def column_times(sample: TileSample, kept: float, gpu: Gpu) -> dict[str, float]:
    """The same for columns: blocks beside each other have 16 tiles of rows, rounds count whole."""
    n, c, h, w = sample.shape
    kernel = sample.kernel if isinstance(sample.kernel, int) else sample.kernel[0]
    up = sample.stride**2 if sample.transposed else 1
    taps, window = kernel**2 // up, kernel // 2 + 1 if sample.transposed else kernel
    pixels = n * h * w if sample.transposed else n * h * w // sample.stride**2
    row_tiles = -(-sample.out // sample.rows) * up
    warps = -(-row_tiles // -(-row_tiles // COLUMN_WARPS))
    blocks = -(-pixels // TILE_PIXELS) * -(-row_tiles // warps)
    stride = 1 if sample.transposed else sample.stride
    channels = 64 if stride == 1 and window <= 3 and row_tiles > 8 else CHANNELS
    chunks = -(-c // channels)
    turned = window * (7 * stride + window) * 2 * 16 * channels  # 8 x 16 pixels
    room = SHARED_LIMIT // (2 * turned + halo(sample) * (2 * channels + 16))
    beside = gpu.processors * max(1, min(COLUMN_WARPS // warps, room))
    rounds = math.ceil(blocks / beside) * beside / gpu.processors * chunks / gpu.clock
    # ---- Of a list's channels: steps, a half more for what fills up the last, of the warp that has
    # the most by chance, as all wait for it; bytes ----
    columns = channels * taps
    slowest = SLOWEST * math.sqrt(columns * kept * (1 - kept))
    steps = warps * ((columns * kept + slowest) / COLUMN_STEP + 0.5)
    gathered = steps * COLUMN_STEP * TILE_PIXELS * 2 * BANKS[channels][kept]
    staged = halo(sample) * 2 * channels
    weights = steps * COLUMN_STEP * (sample.rows + 1) * 2
    out = sample.out * up * pixels * 2
    moved = (n * c * h * w * 2 + out) / gpu.memory
    products = steps * COLUMN_STEP * sample.rows * TILE_PIXELS
    return {
        "tensor": rounds * products / (gpu.dense * gpu.mma),
        "shared": rounds * (gathered + 2 * turned + staged + weights) / gpu.shared,
        "cache": blocks * chunks * (weights + staged) / gpu.cache,
        "memory": moved,
        "dense": max(2 * sample.out * up * c * taps * pixels / gpu.cudnn, moved),
    }


def input_gradient(sample: TileSample, kept: float, gpu: Gpu) -> tuple[int, dict[str, float]]:
    """Of the packing with channels exchanged, where blocks were kept by chance: its rows, times.

    A block of it is kept if any of the 2 or 4 blocks is that it has a part of.
    """
    n, c, h, w = sample.shape
    stride, up = sample.stride, sample.transposed
    size = (h * stride, w * stride) if up else (h // stride, w // stride)
    back = replace(sample, shape=(n, sample.out, *size), out=c, transposed=not up and stride == 2,
                   pattern="block")  # fmt: skip
    found = [(rows, times(replace(back, rows=rows), 1 - (1 - kept) ** (rows // 8), gpu))
             for rows in (16, 32)]  # fmt: skip
    return min(found, key=lambda each: max(t for k, t in each[1].items() if k != "dense"))


def weight_gradient(sample: TileSample, kept: float, gpu: Gpu) -> dict[str, float]:
    """Of the kept blocks' weights, after the plan of csrc/ops/sparse_conv2d/sparse_conv2d_tiles.h.

    ``dense`` is the dense convolution's, as in `times`.
    """
    n, c, h, w = sample.shape
    kernel = sample.kernel if isinstance(sample.kernel, int) else sample.kernel[0]
    up = sample.stride**2 if sample.transposed else 1
    taps, v = kernel**2 // up, sample.rows
    pixels = n * h * w if sample.transposed else n * h * w // sample.stride**2
    row_tiles, lists, tiles = -(-sample.out // v) * up, -(-c // CHANNELS), -(-pixels // TILE_PIXELS)
    steps, positions = taps * kept, halo(sample)  # steps of a list

    def plan(rows: int, chunks: int) -> tuple[float, int, int, int]:
        """Bytes a list and tile of pixels, the group, and how many blocks it takes."""
        buffer = chunks * positions * POSITION_BYTES + TILE_PIXELS * (rows * v * 2 + 16)
        again = int(1.25 * steps * chunks * rows * v / (GRADIENT_WARPS * GRADIENT_SUMS)) + 1
        buffers = 2 if 2 * (buffer + 4 * positions) + 1024 <= SHARED_LIMIT else 1
        return buffer / (rows * chunks) * again / buffers, rows, chunks, again

    sizes = [(r, k) for r in (1, 2, 4, 8, 16) for k in (1, 2, 4, 8)
             if r < 2 * row_tiles and k < 2 * lists]  # fmt: skip
    _, rows, chunks, again = min(plan(*size) for size in sizes)
    groups = -(-row_tiles // rows) * -(-lists // chunks)
    splits = max(1, min(gpu.processors // groups, tiles))
    turns = -(-tiles // splits) * -(-groups * splits // gpu.processors)  # tiles of one processor
    # ---- A group's tile of pixels ----
    blocks = 4 * steps * min(rows, row_tiles) * min(chunks, lists)
    staged = chunks * positions * 2 * CHANNELS + TILE_PIXELS * rows * v * 2
    warps = min(rows, row_tiles) * math.ceil(steps * chunks * v / GRADIENT_SUMS)
    reads = 4 * blocks * (512 + 64) + warps * TILE_PIXELS * v * 2
    weights = row_tiles * lists * steps * CHANNELS * v
    out = sample.out * up * pixels * 2
    moved = (n * c * h * w * 2 + out) / gpu.memory
    return {
        "tensor": turns * blocks * 8 * v * TILE_PIXELS / (gpu.dense * gpu.mma) / gpu.clock,
        "shared": turns * (reads + again * staged) / gpu.shared / gpu.clock,
        "cache": (tiles * groups * again * staged + 8 * splits * weights) / gpu.cache,
        "memory": moved,
        "dense": max(2 * sample.out * up * c * taps * pixels / gpu.cudnn, moved),
    }


def group_times(sample: TileSample, gpu: Gpu) -> dict[str, float]:
    """The same for 2:4 on warpgroups: a block a multiprocessor, so the last round counts whole."""
    n, c, h, w = sample.shape
    kernel = sample.kernel if isinstance(sample.kernel, int) else sample.kernel[0]
    up = sample.stride**2 if sample.transposed else 1
    stride, window = (1, kernel // 2 + 1) if sample.transposed else (sample.stride, kernel)
    taps = kernel**2 // up
    high, wide = (h, w) if sample.transposed else (h // sample.stride, w // sample.stride)
    # ---- Blocks: pictures close together, or apart; rounds of one a multiprocessor ----
    close = -(-((high - 1) * stride + window) // stride)
    rows = min(-(-(n * close - close + high) // GROUP_TILE[0]), n * -(-high // GROUP_TILE[0]))
    blocks = rows * -(-wide // GROUP_TILE[1]) * -(-sample.out // GROUP_ROWS) * up
    steps = -(-c // CHANNELS) * taps
    rounds = math.ceil(blocks / gpu.processors) * steps / gpu.clock
    # ---- Of a step: bytes of weights with metadata, of input with its halo, read by products ----
    pixels = GROUP_TILE[0] * GROUP_TILE[1]
    weights = GROUP_ROWS * (CHANNELS + 4)
    staged = halo(sample, *GROUP_TILE) * 2 * CHANNELS / taps
    read = GROUP_ROWS // PRODUCT_ROWS * pixels * 2 * CHANNELS
    out = sample.out * up * n * high * wide
    moved = 2 * (n * c * h * w + out)
    return {
        "tensor": rounds * GROUP_ROWS * pixels * CHANNELS / (2 * gpu.dense * gpu.wgmma_sparse),
        "shared": rounds * (read + staged) / gpu.shared,
        "cache": blocks * steps * (weights + staged) / gpu.cache,
        "memory": moved / gpu.memory,
        "dense": max(2 * out * c * taps / gpu.cudnn, moved / gpu.memory),
    }
