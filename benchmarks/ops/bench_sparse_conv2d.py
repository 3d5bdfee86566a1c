# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d and sparse_conv_transpose2d against torch's dense convolution.

On the CPU in both layouts. On CUDA, against cuDNN with benchmark mode on: packed tiles in 16 bits,
channels_last; packed lists in float32, TF32 off, in both layouts; and the training steps of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.harness import OURS, Candidate, Case
from gansparse.ops import (
    PackedConv2d,
    pack_winograd_conv2d,
    pack_winograd_conv_transpose2d,
    sparse_conv2d,
    sparse_conv2d_moments,
    sparse_conv_transpose2d,
    winograd_conv2d,
)
from gansparse.testing.samples import sparse_conv_transpose2d as transposed
from gansparse.testing.samples.sparse_conv2d import Sample, samples
from gansparse.testing.samples.sparse_conv2d_tiles import TileSample, tile_samples

SPARSITIES = (0.0, 0.25, 0.5, 0.75, 0.9)
PATTERNS = {"element": 1, "vector-4": 4, "vector-16": 16}
# Pattern, output channels of a block or column, sparsities: 2:4 halves what stays in blocks.
TILES = (("2:4", 32, (0.0, 0.5)), ("2:4", 64, (0.0, 0.5)), ("2:4", 128, (0.0, 0.5)),
         ("block", 16, SPARSITIES), ("block", 32, SPARSITIES),
         ("vector", 16, (0.5, 0.75, 0.9)))  # fmt: skip
# Of lists in float32 on CUDA.
LISTS = (("element", 1, (0.0, 0.75, 0.9, 0.95)), ("vector-16", 16, (0.0, 0.5, 0.75, 0.9)))


def cases(threads: list[int], device: str) -> Iterator[Case]:
    """Every layer with every pattern at every sparsity."""
    if device != "cpu":
        yield from tile_cases()
        yield from list_cases()
        return
    for sample in samples("model") + transposed.samples("model"):
        patterns = dict(PATTERNS)
        if sample.kernel == (4 if sample.transposed else 3):
            patterns["winograd"] = 0
        for pattern, vector_size in patterns.items():
            for sparsity in SPARSITIES if vector_size else (0.0,):
                layer = replace(sample, vector_size=vector_size or 1, sparsity=sparsity)
                for count in threads:
                    yield Case(
                        "sparse_conv2d",
                        f"{sample.name} {pattern}",
                        partial(candidates, layer, winograd=not vector_size),
                        threads=count,
                        sparsity=sparsity,
                        flops=flops(layer),
                    )


def tile_cases() -> Iterator[Case]:
    """The layers of batch 16, and the first also of batch 1 and in training."""
    layers = tile_samples("model")
    layers.append(replace(layers[0], name="cyclegan-256@64 b1", shape=(1, *layers[0].shape[1:])))
    for sample in layers:
        for pattern, rows, sparsities in TILES:
            if rows == 128 and torch.cuda.get_device_capability() != (9, 0):
                continue
            for sparsity in sparsities:
                layer = replace(sample, pattern=pattern, rows=rows, sparsity=sparsity)
                kept = (1 - sparsity) * (0.5 if pattern == "2:4" else 1.0)
                yield Case(
                    "sparse_conv2d",
                    f"{sample.name} {pattern} x{rows}",
                    partial(tile_candidates, layer),
                    threads=1,
                    sparsity=1 - kept,
                    flops=flops(layer),
                    device="cuda",
                    dtype=layer.dtype,
                )
    training = replace(layers[0], pattern="block", padding_mode="zeros")
    for sparsity in (0.75, 0.9):
        layer = replace(training, sparsity=sparsity)
        yield Case(
            "sparse_conv2d",
            f"{layer.name} block x32 training",
            partial(training_candidates, layer),
            threads=1,
            sparsity=sparsity,
            flops=3 * flops(layer),
            device="cuda",
            dtype=layer.dtype,
        )


def tile_candidates(sample: TileSample) -> dict[str, Candidate]:
    torch.backends.cudnn.benchmark = True
    arguments = sample.arguments(device="cuda")
    run = sparse_conv_transpose2d if sample.transposed else sparse_conv2d
    lies = torch.channels_last
    weight = sample.dense().to("cuda", sample.dtype, memory_format=lies)
    bias = arguments["bias"].to(sample.dtype)

    @torch.inference_mode()
    def ours() -> None:
        run(**arguments)

    @torch.inference_mode()
    def cudnn() -> None:
        sample.convolve(arguments["input"], weight, bias)

    moments = partial(sparse_conv2d_moments, *(arguments[n] for n in ("input", "weight", "bias")))
    return {
        OURS: ours,
        "with moments": torch.inference_mode()(moments),
        "cudnn dense channels_last": cudnn,
    }


def list_cases() -> Iterator[Case]:
    """Layers of batch 16 in float32, one also of batch 1; and of that one training at 90 %."""
    layers = [
        replace(sample, shape=(16, *sample.shape[1:]), fitted=False)
        for sample in samples("model") + transposed.samples("model")
        if sample.name not in ("srgan-output@192", "pix2pix-up@4", "dcgan-up@4")
    ]
    cyclegan = next(sample for sample in layers if sample.name == "cyclegan-256@64")
    one = replace(cyclegan, name="cyclegan-256@64 b1", shape=(1, *cyclegan.shape[1:]))
    training = replace(cyclegan, padding_mode="zeros")
    for sample, pattern, vector_size, sparsity, trained in (
        *((s, p, v, z, False) for s in (*layers, one) for p, v, many in LISTS for z in many),
        (training, "element", 1, 0.9, True),
        (training, "element", 1, 0.95, True),
    ):
        layer = replace(sample, vector_size=vector_size, sparsity=sparsity)
        yield Case(
            "sparse_conv2d",
            f"{sample.name} {pattern} float32{' training' if trained else ''}",
            partial(training_candidates if trained else list_candidates, layer),
            threads=1,
            sparsity=sparsity,
            flops=flops(layer) * (3 if trained else 1),
            device="cuda",
        )


def on_cuda(sample: Sample) -> tuple[dict[str, Any], torch.Tensor]:
    """Arguments of the op, and the dense weight, of tiles as they lie; TF32 off."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    if isinstance(sample, TileSample):
        weight = sample.dense().to("cuda", sample.dtype, memory_format=torch.channels_last)
        return sample.arguments(device="cuda"), weight
    arguments = {
        name: value.cuda() if isinstance(value, torch.Tensor) else value
        for name, value in sample.arguments().items()
    }
    *tensors, geometry = arguments["weight"]
    arguments["weight"] = PackedConv2d(*(tensor.cuda() for tensor in tensors), geometry)
    return arguments, sample.dense().cuda()


def list_candidates(sample: Sample) -> dict[str, Candidate]:
    arguments, weight = on_cuda(sample)
    input, bias = arguments["input"], arguments["bias"]
    run = sparse_conv_transpose2d if sample.transposed else sparse_conv2d
    last = [x.to(memory_format=torch.channels_last) for x in (input, weight)]

    @torch.inference_mode()
    def ours() -> None:
        run(**arguments)

    @torch.inference_mode()
    def cudnn(input: torch.Tensor, weight: torch.Tensor) -> None:
        sample.convolve(input, weight, bias)

    return {
        OURS: ours,
        "cudnn dense": partial(cudnn, input, weight),
        "cudnn dense channels_last": partial(cudnn, *last),
    }


def training_candidates(sample: Sample) -> dict[str, Candidate]:
    """Forward and backward; the gradient of cuDNN's weight is masked."""
    arguments, weight = on_cuda(sample)
    mask = weight != 0
    leaves = [arguments["input"], arguments["bias"], arguments["weight"].values, weight]
    for leaf in leaves:
        leaf.requires_grad_()
    input, bias, values, _ = leaves
    dense_bias = bias.detach().to(weight.dtype).requires_grad_()
    grad = torch.ones_like(sample.convolve(input, weight))

    def ours() -> None:
        torch.autograd.grad(sparse_conv2d(**arguments), (input, values, bias), grad)

    def cudnn() -> None:
        y = sample.convolve(input, weight, dense_bias)
        torch.autograd.grad(y, (input, weight, dense_bias), grad)[1].mul_(mask)

    return {OURS: ours, "cudnn dense and mask": cudnn}


def candidates(sample: Sample, *, winograd: bool = False) -> dict[str, Candidate]:
    """One layer with its bias; torch's also with input and weight in channels_last."""
    arguments, weight = sample.arguments(), sample.dense()
    input, bias = arguments["input"], arguments["bias"]
    run = sparse_conv_transpose2d if sample.transposed else sparse_conv2d
    if winograd:
        run = winograd_conv2d
        if sample.transposed:
            arguments["weight"] = pack_winograd_conv_transpose2d(weight, stride=2, padding=1)
        else:
            arguments["weight"] = pack_winograd_conv2d(
                weight, padding=sample.padding, padding_mode=sample.padding_mode
            )
    last = [x.to(memory_format=torch.channels_last) for x in (input, weight)]

    @torch.inference_mode()
    def ours() -> None:
        run(**arguments)

    @torch.inference_mode()
    def torchs(input: torch.Tensor, weight: torch.Tensor) -> None:
        sample.convolve(input, weight, bias)

    return {
        OURS: ours,
        "torch dense": partial(torchs, input, weight),
        "torch dense channels_last": partial(torchs, *last),
    }


def flops(sample: Sample) -> int:
    """Of the weights that stayed. Each meets every output pixel, transposed: every input pixel."""
    input = torch.empty(sample.shape, device="meta")
    weight = sample.dense()
    pixels = input if sample.transposed else sample.convolve(input, weight.to("meta"))
    return 2 * int((weight != 0).sum()) * sample.shape[0] * pixels[0, 0].numel()
