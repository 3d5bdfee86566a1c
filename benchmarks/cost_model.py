# SPDX-License-Identifier: Apache-2.0
"""What the layers of sparse_conv2d on CUDA should take, by arithmetic: the tables of docs/cuda.md.

    python -m benchmarks.cost_model

Nothing here is measured by us on a GPU. Rates stand in tile_model.py; held against `make gpu` on a
machine with one, a wrong line here is the first thing to learn from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from benchmarks.tile_model import (
    GROUP_TILE,
    TILE_PIXELS,
    Gpu,
    halo,
    input_gradient,
    times,
    weight_gradient,
)
from gansparse.testing.samples import feature_moments as moments
from gansparse.testing.samples import instance_norm as norms
from gansparse.testing.samples import sparse_conv_transpose2d as transposed
from gansparse.testing.samples.sparse_conv2d import Sample, samples
from gansparse.testing.samples.sparse_conv2d_tiles import tile_samples

#: Pattern, rows, kept share of blocks.
PATTERNS = (("2:4", 128, 1.0), ("2:4", 64, 1.0), ("2:4", 32, 1.0), ("block", 32, 0.5),
            ("block", 32, 0.25), ("block", 32, 0.1), ("block", 16, 0.25),
            ("block", 16, 0.1), ("vector", 16, 0.5), ("vector", 16, 0.25),
            ("vector", 16, 0.1))  # fmt: skip
#: Of lists in float32: pattern, rows of a warp that share a weight's loads, kept share.
LISTS = (("element", 1, 0.25), ("element", 1, 0.1), ("element", 1, 0.05),
         ("vector-16", 4, 0.5), ("vector-16", 4, 0.25), ("vector-16", 4, 0.1))  # fmt: skip
#: Of gradients: rows, kept share of blocks.
GRADIENTS = ((32, 0.5), (32, 0.25), (32, 0.1), (16, 0.25), (16, 0.1))
LIST_ROWS, WARP_ROWS, LIST_THREADS = 32, 4, 256
LIST_TILE = (16, 32)
#: Of a weight with 16 pixels a lane, by rows that share it: reads of 128 bytes from shared memory,
#: and instructions, counted in what nvcc 13.0 makes for sm_90.
WEIGHT_READS, WEIGHT_INSTRUCTIONS = {1: 16.5, 4: 17.25}, {1: 50.25, 4: 99.5}
#: Instructions of a warp beside that: for a list, a block of channels, a position, its channel.
LIST_INSTRUCTIONS, BLOCK_INSTRUCTIONS, POSITION_INSTRUCTIONS, COPY_INSTRUCTIONS = 78, 230, 25, 5.5
#: Of feature_moments: features on each side of a block's and of a warp's tile; instructions of a
#: warp for a row, counted in what nvcc 13.0 makes for sm_90 in float32.
MOMENT_TILE, MOMENT_WARP, MOMENT_INSTRUCTIONS = 64, 32, 13
#: Of the Fréchet distance: how often checks and copies read or write a matrix.
FRECHET_PASSES = 25
#: Instructions of a lane for a value of which tiles leave moments, counted in what nvcc makes.
LEAVING_INSTRUCTIONS = {"mma.sp": 9, "wgmma.sp": 7}
#: How many times as fast as cuDNN 2:4 tiles are taken to be in a generator's largest layers.
FASTER = {"mma.sp": 1.3, "wgmma.sp": 1.7}
#: Channels of a block of instance_norm, and its blocks a multiprocessor.
SLAB, NORM_BLOCKS = 64, 4


class Step(NamedTuple):
    """Convolutions of a generator that are alike.

    Args:
        size: rows, and columns, of the output.
        out: channels of the output.
        terms: products of an output pixel.
        count: of these layers.
        normed: whether an InstanceNorm follows.
        residuals: of these norms that add one.
        tiles: whether it is counted as faster by 2:4 tiles, which then leave moments.
    """

    size: int
    out: int
    terms: int
    count: int = 1
    normed: bool = True
    residuals: int = 0
    tiles: bool = False


GENERATORS = {
    "CycleGAN 256": (
        Step(256, 64, 3 * 49), Step(128, 128, 64 * 9), Step(64, 256, 128 * 9),
        Step(64, 256, 256 * 9, 18, residuals=9, tiles=True),
        Step(128, 128, 256 * 9 // 4), Step(256, 64, 128 * 9 // 4),
        Step(256, 3, 64 * 49, normed=False),
    ),
    "StarGAN 128": (
        Step(128, 64, 8 * 49), Step(64, 128, 64 * 16), Step(32, 256, 128 * 16),
        Step(32, 256, 256 * 9, 12, residuals=6, tiles=True),
        Step(64, 128, 256 * 16 // 4), Step(128, 64, 128 * 16 // 4),
        Step(128, 3, 64 * 49, normed=False),
    ),
}  # fmt: skip


def list_times(sample: Sample, shared_by: int, kept: float, gpu: Gpu) -> dict[str, float]:
    """The same for lists in float32."""
    n, c, h, w = sample.shape
    kernel = sample.kernel if isinstance(sample.kernel, int) else sample.kernel[0]
    up = sample.stride**2 if sample.transposed else 1
    taps = kernel**2 // up
    pixels = n * h * w if sample.transposed else n * h * w // sample.stride**2
    rows = sample.out * up
    ends = (c, sample.out) if sample.transposed else (sample.out, c)
    zeros = torch.zeros(*ends, kernel, kernel)
    channels = sample.pack(zeros).geometry.block  # which no value decides
    # ---- A warp's work for a block of channels: four rows, a tile of pixels ----
    tiles = -(-pixels // (LIST_TILE[0] * LIST_TILE[1]))
    warps = tiles * -(-rows // WARP_ROWS) * -(-c // channels)
    weights = kept * min(channels, c) * taps * WARP_ROWS / shared_by
    reads = weights * WEIGHT_READS[shared_by]
    positions = halo(sample, *LIST_TILE)
    copies = positions * channels / LIST_THREADS
    instructions = (
        weights * WEIGHT_INSTRUCTIONS[shared_by]
        + LIST_INSTRUCTIONS * WARP_ROWS / shared_by
        + BLOCK_INSTRUCTIONS
        + POSITION_INSTRUCTIONS * positions / LIST_THREADS
        + COPY_INSTRUCTIONS * copies
    )
    cycles = warps / (gpu.clock * gpu.processors)
    moved = 4 * (n * c * h * w + sample.out * up * pixels)
    staged = 4 * positions * channels * warps * WARP_ROWS / LIST_ROWS
    dense = 2 * rows * c * taps * pixels
    faster = gpu.winograd if (kernel, sample.stride, sample.transposed) == (3, 1, False) else 1.0
    return {
        "fma": kept * dense / 2 / (gpu.fma * gpu.clock * gpu.processors),
        "issue": instructions / gpu.issue * cycles,
        "shared": (reads + copies) * cycles,
        "cache": (staged + 6 * kept * rows * c * taps * tiles) / gpu.cache,
        "memory": moved / gpu.memory,
        "dense": max(dense / gpu.cudnn32, moved / gpu.memory),
        "winograd": max(dense / gpu.cudnn32 / faster, moved / gpu.memory),
    }


def norm_times(sample: norms.Sample, gpu: Gpu) -> tuple[float, float]:
    """Seconds of instance_norm in 16 bits, bound by memory; and if the second read is cached."""
    n, c, h, w = sample.shape
    size = 2 * n * c * h * w
    others = size * (2 if sample.residual else 1) + size  # residual, output, first read
    return (others + size) / gpu.memory, others / gpu.memory + size / gpu.cache


def moment_times(sample: moments.Sample, gpu: Gpu) -> dict[str, float]:
    """Seconds of feature_moments in float32 by each limit."""
    n, f = sample.rows, sample.width
    strips = -(-f // MOMENT_TILE)
    tiles = strips * (strips + 1) // 2
    most = -(-tiles // gpu.processors) * n / gpu.clock  # of a processor: rows of its tiles
    read = 2 * MOMENT_TILE**2 // MOMENT_WARP  # each warp both sides of its tile
    return {
        "tensor": most * MOMENT_TILE**2 / gpu.double,
        "issue": most * (MOMENT_TILE / MOMENT_WARP) ** 2 * MOMENT_INSTRUCTIONS / gpu.issue,
        "shared": most * 8 * (read + 2 * MOMENT_TILE) / gpu.shared,
        "cache": 4 * 2 * MOMENT_TILE * tiles * n / gpu.cache,
        "memory": (4 * n * f + 8 * f**2) / gpu.memory,  # half of `second`, read and written
        "widen": most * 2 * MOMENT_TILE / gpu.widen,
    }


def frechet_times(features: int, best: bool, gpu: Gpu) -> dict[str, float]:
    """Seconds of frechet_distance's steps, which follow one another, for well-conditioned float64.

    Eigenvalues take 4/3 F³ flops until the matrix is tridiagonal, in one stage: for each column
    half of them multiply what is left of the matrix by a vector, the other half update it.

    Args:
        features: F.
        best: products at the peak; each column reads a triangle of what is left, out of the second
            cache, and no launch is waited for. If not: as cuBLAS, all of it from memory, and one.
        gpu: rates.
    """
    cube = features**3
    rate = 2 * gpu.double * gpu.clock * gpu.processors if best else gpu.blas
    return {
        "checks": FRECHET_PASSES * 8 * features**2 / gpu.memory,
        "factor": cube / 3 / rate,
        "products": 4 * cube / rate,  # S L and Lᵀ (S L), zeros of L included
        "updates": 2 * cube / 3 / rate,
        "reads": 8 * cube / 6 / gpu.cache if best else 8 * cube / 3 / gpu.memory,
        "launches": 0.0 if best else features * gpu.launch,
    }


def leaving_times(kernel: str, step: Step, batch: int, gpu: Gpu) -> dict[str, float]:
    """Seconds that a layer's moments save its norm; to make them, beside no products; to move them.

    Args:
        kernel: of tiles.
        step: the layer.
        batch: pictures.
        gpu: rates.
    """
    values, slabs = batch * step.out * step.size**2, batch * -(-step.out // SLAB)
    blocks = slabs * -(-NORM_BLOCKS * gpu.processors // slabs)
    part = TILE_PIXELS if kernel == "mma.sp" else GROUP_TILE[0] * GROUP_TILE[1]
    parts = -(-(step.size**2) // part)
    # ---- Made, written, and read by each of the norm's blocks ----
    made = LEAVING_INSTRUCTIONS[kernel] * values / 32 / gpu.issue / gpu.clock / gpu.processors
    moved = 12 * batch * parts * step.out / gpu.memory
    read = 8 * blocks * parts * SLAB / gpu.cache
    return {"saved": 2 * values / gpu.memory, "made": made, "moved": moved + read}


def generator_times(kernel: str, steps: tuple[Step, ...], gpu: Gpu) -> dict[str, float]:
    """Seconds of a generator's convolutions and norms at batch 16 in 16 bits.

    Args:
        kernel: of tiles.
        steps: the generator's layers.
        gpu: rates.
    """
    batch, kinds = 16, ("dense", "ours", "norms", "saved", "made", "moved")
    found = dict.fromkeys(kinds, 0.0)
    for step in steps:
        pixels = batch * step.size**2 * step.out
        dense = step.count * 2 * pixels * step.terms / gpu.cudnn
        found["dense"] += dense
        found["ours"] += dense / FASTER[kernel] if step.tiles else dense
        passes = 3 * step.count + step.residuals if step.normed else 0
        found["norms"] += 2 * pixels * passes / gpu.memory
        if step.tiles:
            for kind, time in leaving_times(kernel, step, batch, gpu).items():
                found[kind] += step.count * time
    return found


def cells(times_by: dict[str, float]) -> str:
    """In microseconds, the largest bold."""
    slowest = max(times_by.values())
    each = (f"**{1e6 * t:.0f}**" if t == slowest else f"{1e6 * t:.0f}" for t in times_by.values())
    return " | ".join(each)


def main() -> None:
    gpu = Gpu()
    print("| layer, batch 16 | pattern, rows | kept | tensor | shared | cache | memory | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for sample in tile_samples("model"):
        for pattern, rows, kept in PATTERNS:
            found = times(replace(sample, pattern=pattern, rows=rows), kept, gpu)
            dense = found.pop("dense")
            share = kept * (0.5 if pattern == "2:4" else 1)
            name = f"{sample.name} ({1e6 * dense:.0f})"
            print(f"| {name} | {pattern}, {rows} | {share:.0%} | {cells(found)} "
                  f"| {dense / max(found.values()):.1f} |")  # fmt: skip
    limits = "tensor | shared | cache | memory | ratio"
    print(f"\n| layer, batch 16 | rows, kept | input: rows | {limits} | weights: {limits} |")
    print("|" + "---|" * 13)
    for sample in tile_samples("model"):
        for rows, kept in GRADIENTS:
            layer = replace(sample, pattern="block", rows=rows)
            of_input, of_weight = (input_gradient(layer, kept, gpu),
                                   weight_gradient(layer, kept, gpu))  # fmt: skip
            both = []
            for found in (of_input[1], of_weight):
                dense = found.pop("dense")
                both.append(f"{cells(found)} | {dense / max(found.values()):.1f}")
            print(f"| {sample.name} ({1e6 * dense:.0f}) | {rows}, {kept:.0%} | {of_input[0]} "
                  f"| {both[0]} | {both[1]} |")  # fmt: skip
    print("\n| layer, batch 16 | pattern | kept | fma | issue | shared | cache | memory | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for layer in samples("model") + transposed.samples("model"):
        for pattern, shared_by, kept in LISTS:
            vector = 1 if shared_by == 1 else 16
            sized = replace(layer, shape=(16, *layer.shape[1:]), fitted=False, vector_size=vector)
            found = list_times(sized, shared_by, kept, gpu)
            dense, winograd = found.pop("dense"), found.pop("winograd")
            slowest = max(found.values())
            ratio = f"{dense / slowest:.1f}"
            if winograd < dense:
                ratio = f"{winograd / slowest:.1f} to {ratio}"
            print(f"| {layer.name} ({1e6 * dense:.0f}) | {pattern} | {kept:.0%} | {cells(found)} "
                  f"| {ratio} |")  # fmt: skip

    print("\n| norm, bfloat16 | µs by memory | with the second read cached |")
    print("|---|---|---|")
    for norm in norms.samples("model"):
        far, near = norm_times(norm, gpu)
        print(f"| {norm.name} | {1e6 * far:.0f} | {1e6 * near:.0f} |")

    print("\n| moments, float32 | tensor | issue | shared | cache | memory | widening |")
    print("|---|---|---|---|---|---|---|")
    for batch in [*moments.samples("model"), moments.Sample("inception-50k", 50_000, 2048)]:
        print(f"| {batch.name} | {cells(moment_times(batch, gpu))} |")

    print("\n| Fréchet, 2048, ms | checks | factor | products | updates | reads | launches | sum |")
    print("|---|---|---|---|---|---|---|---|")
    for name, best in (("at best", True), ("as assumed", False)):
        found = frechet_times(2048, best, gpu)
        each = " | ".join(f"{1e3 * t:.2f}" for t in (*found.values(), sum(found.values())))
        print(f"| {name} | {each} |")

    print("\n| ms | tiles | dense convolutions | ours | norms | moments save "
          "| making | moving | ratio without | with |")  # fmt: skip
    print("|" + "---|" * 10)
    for name, steps in GENERATORS.items():
        for kernel, faster in FASTER.items():
            found = generator_times(kernel, steps, gpu)
            theirs, ours = (found["norms"] + found[kind] for kind in ("dense", "ours"))
            hidden = ours - found["saved"] + found["moved"]
            shown = hidden + found["made"]
            each = " | ".join(f"{1e3 * t:.2f}" for t in found.values())
            print(f"| {name} | {kernel}, {faster} | {each} | {theirs / ours:.2f} "
                  f"| {theirs / shown:.2f} to {theirs / hidden:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
