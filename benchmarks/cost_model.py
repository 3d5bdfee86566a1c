# SPDX-License-Identifier: Apache-2.0
"""What the layers of sparse_conv2d on CUDA should take, by arithmetic: the tables of docs/cuda.md.

    python -m benchmarks.cost_model

Nothing here is measured by us on a GPU. Rates stand below; held against `make bench` on a machine
with one, a wrong line here is the first thing to learn from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gansparse.testing.samples.sparse_conv2d_tiles import TileSample, tile_samples

TILE_PIXELS, CHANNELS, POSITION_BYTES = 128, 32, 80
#: Pattern, rows, kept share of blocks.
PATTERNS = (("2:4", 64, 1.0), ("2:4", 32, 1.0), ("block", 32, 0.5), ("block", 32, 0.25),
            ("block", 32, 0.1), ("block", 16, 0.25), ("block", 16, 0.1))  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """Rates of an H200.

    Args:
        clock: Hz.
        processors: multiprocessors.
        dense: multiply-adds a cycle and multiprocessor of dense 16-bit tensor cores at their peak.
        mma: share of that peak that mma reaches, published for Hopper; the rest needs wgmma.
        mma_sparse: speed of mma.sp over mma, published for Hopper (2 on paper).
        shared: bytes a cycle and multiprocessor between registers and shared memory or first cache.
        cache: bytes a second out of the second cache.
        memory: bytes a second, copy.
        cudnn: multiply-adds a second times two that cuDNN's dense convolution may reach.
    """

    clock: float = 1.755e9
    processors: int = 132
    dense: int = 2048
    mma: float = 0.63
    mma_sparse: float = 1.45
    shared: int = 128
    cache: float = 5.5e12
    memory: float = 4.3e12
    cudnn: float = 650e12


def halo(sample: TileSample) -> int:
    """Input pixels a block keeps: 8 x 16 output pixels."""
    kernel = sample.kernel if isinstance(sample.kernel, int) else sample.kernel[0]
    taps, stride = (kernel // 2 + 1, 1) if sample.transposed else (kernel, sample.stride)
    return (7 * stride + taps) * (15 * stride + taps)


def times(sample: TileSample, kept: float, gpu: Gpu) -> dict[str, float]:
    """Seconds by each limit, and of a dense convolution."""
    n, c, h, w = sample.shape
    kernel = sample.kernel if isinstance(sample.kernel, int) else sample.kernel[0]
    up = sample.stride**2 if sample.transposed else 1
    taps = kernel**2 // up
    pixels = n * h * w if sample.transposed else n * h * w // sample.stride**2
    sparse = sample.pattern == "2:4"
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


def main() -> None:
    gpu = Gpu()
    print("| layer, batch 16 | pattern, rows | kept | tensor | shared | cache | memory | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for sample in tile_samples("model"):
        for pattern, rows, kept in PATTERNS:
            found = times(replace(sample, pattern=pattern, rows=rows), kept, gpu)
            dense = found.pop("dense")
            slowest = max(found.values())
            cells = [
                f"**{1e6 * t:.0f}**" if t == slowest else f"{1e6 * t:.0f}" for t in found.values()
            ]
            share = kept * (0.5 if pattern == "2:4" else 1)
            name = f"{sample.name} ({1e6 * dense:.0f})"
            print(f"| {name} | {pattern}, {rows} | {share:.0%} | {' | '.join(cells)} "
                  f"| {dense / slowest:.1f} |")  # fmt: skip


if __name__ == "__main__":
    main()
