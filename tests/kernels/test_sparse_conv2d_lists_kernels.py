# SPDX-License-Identifier: Apache-2.0
"""The float32 CUDA kernels of sparse_conv2d, run by the emulator on what the real packing makes.

Truth is torch's dense convolution of the masked weight in float64, and its gradient, which know
nothing of lists.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import building
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gansparse.testing import close
from gansparse.testing.samples import sparse_conv_transpose2d as transposed
from gansparse.testing.samples.sparse_conv2d import Sample, samples

ACTIVATIONS = {"none": 0, "relu": 1, "leaky_relu": 2, "prelu": 2, "tanh": 0}  # tanh is torch's
H100_SHARED = 227 << 10
MANY, FEW = 16, 4  # pixels of a lane
names = {"ids": lambda case: ("transposed-" if getattr(case, "transposed", 0) else "") + case.name}


def in_emulator(
    sample: Sample, a: dict[str, Any], variant: str, programs: Path, folder: Path, *,
    pixels: int = MANY, grad: Tensor | None = None, splits: int = 1, limit: int = H100_SHARED,
) -> Tensor:  # fmt: skip
    """The output [N, O, OH, OW] or, with `grad`, the gradient of the packed values [K, V]."""
    program = building.build("sparse_conv2d_driver", variant, programs)
    values, offsets, starts, rows, g = a["weight"]
    n, _, h, w = a["input"].shape
    given = isinstance(a["slope"], Tensor)
    slopes = a["slope"] if given else torch.tensor([a["slope"]])
    numbers = [*g, n, h, w, *g.output_size(h, w), ACTIVATIONS[a["activation"]]]
    numbers += [int(len(slopes) > 1), limit, pixels, splits, int(given)]
    tensors = (a["input"], values, offsets, starts, rows, a["bias"], a["residual"], slopes, grad)
    records = [np.array(numbers)]
    records += [None if t is None else t.detach().contiguous().numpy() for t in tensors]
    found = building.in_both_orders(program, variant, folder, records, "float32")
    high, wide = g.output_size(h, w)
    output = torch.frombuffer(bytearray(found[0]), dtype=torch.float32)
    return output.view(values.shape if grad is not None else (n, g.out_channels, high, wide))


def finish(z: Tensor, a: dict[str, Any]) -> Tensor:
    if a["bias"] is not None:
        planes = a["bias"].double()[:, None, None]
        if len(planes) > z.shape[1]:  # one a phase
            high, wide = z.shape[2:]
            planes = F.pixel_shuffle(planes, 2).repeat(1, high, wide)[:, :high, :wide]
        z = z + planes
    if a["residual"] is not None:
        z = z + a["residual"].double()
    if a["activation"] in ("leaky_relu", "prelu"):
        return F.prelu(z, torch.as_tensor(a["slope"]).double().reshape(-1))
    return z.relu() if a["activation"] == "relu" else z


def check(sample: Sample, variant: str, programs: Path, folder: Path, **options: Any) -> None:
    a = sample.arguments()
    got = in_emulator(sample, a, variant, programs, folder, **options)
    input, weight = a["input"].double(), sample.dense().double()
    want = finish(sample.convolve(input, weight), a)
    magnitudes = {k: v.abs() if isinstance(v, Tensor) else v for k, v in a.items()}
    sizes = finish(sample.convolve(input.abs(), weight.abs()), magnitudes | {"activation": "none"})
    terms = math.prod(weight.shape[1:]) * (4 if sample.transposed else 1) + 4
    steepest = max(1.0, float(torch.as_tensor(a["slope"]).abs().max()))
    close(got, want, terms=terms, scale=sizes * steepest)


def check_gradient(
    sample: Sample, variant: str, programs: Path, folder: Path, splits: int = 1
) -> None:
    a = sample.arguments()
    input, dense = a["input"].double(), sample.dense().double().requires_grad_()
    mask = dense.detach() != 0
    y = sample.convolve(input, dense)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(7))
    y.backward(grad.double())
    want = sample.pack(dense.grad.float(), mask).values
    dense.grad = None
    sample.convolve(input.abs(), dense).backward(grad.double().abs())
    sizes = sample.pack(dense.grad.float(), mask).values
    got = in_emulator(sample, a, variant, programs, folder, grad=grad, splits=splits)
    # `want` itself was rounded to float32 in the packing.
    close(got, want.double(), terms=y.numel() // y.shape[1] + 1, scale=sizes)


# ---- Forward -------------------------------------------------------------------------------------

TINY = [s for s in samples("tiny") + transposed.samples("tiny") if s.activation != "tanh"]
# Around the borders of a block: 32 rows, 512 pixels in one of many arrangements (128 with few
# pixels), lists of 32 weights and a few more, chunks of 256 rows, several blocks of channels.
EDGE = [
    Sample("7x7-stride-2", (1, 3, 19, 21), 5, 7, 2, 3, "reflect"),
    Sample("4x4-stride-2", (2, 3, 18, 11), 5, 4, 2, 2, "replicate"),
    Sample("2x3", (1, 3, 9, 40), 5, (2, 3), 1, 1),
    Sample("1x1", (1, 45, 3, 130), 33, 1, 1, 0),
    Sample("9x9-output", (1, 5, 20, 20), 3, 9, padding=4),
    Sample("16-wide", (1, 4, 16, 16), 6),
    Sample("8-wide-stride-2", (9, 13, 16, 16), 4, 4, 2),
    Sample("many-small", (130, 3, 2, 2), 4, fitted=True),
    Sample("more-than-a-chunk", (1, 20, 3, 3), 257, sparsity=0.5),
    Sample("more-than-a-chunk-vector", (1, 20, 3, 3), 257, vector_size=16, residual=True),
    Sample("vector-64", (1, 4, 5, 5), 70, vector_size=64),
    Sample("nothing-kept", (1, 4, 8, 8), 4, sparsity=1.0),
    Sample("all-kept", (1, 8, 8, 8), 4, sparsity=0.0),
    Sample("wide-padding", (1, 4, 5, 5), 4, padding=3),
    Sample("7-stride-2", (1, 3, 5, 9), 5, 7, 2, 3, output_padding=1, transposed=True),
    Sample("vector-more-than-a-chunk", (1, 4, 4, 4), 70, 4, 2, vector_size=16, transposed=True),
]


@pytest.mark.parametrize("sample", TINY + EDGE, **names)
def test_values(sample: Sample, programs: Path, tmp_path: Path) -> None:
    check(sample, "plain", programs, tmp_path)


def kernel_of(sample: Sample, pixels: int) -> str:
    vector = "false" if sample.vector_size == 1 else "true"
    return f"sparse_conv2d_lists_kernel<{vector}, {pixels}>"


# More than a batch of weights and a block of channels; rows and pixels beyond the last.
ELEMENT = Sample("element", (1, 37, 5, 5), 35, sparsity=0.5, residual=True, activation="relu")
VECTOR = Sample("vector", (2, 12, 4, 4), 40, 4, 2, vector_size=8, activation="leaky_relu")
CASES = [(sample, pixels) for sample in (ELEMENT, VECTOR) for pixels in (MANY, FEW)]
CASES.append((Sample("transposed", (1, 18, 3, 3), 10, 4, 2, transposed=True), MANY))
OF_GRADIENT = {"sparse_conv2d_gradient_kernel", "sparse_conv2d_add_kernel"}
CHECKED = {kernel_of(*case) for case in CASES} | OF_GRADIENT


@pytest.mark.parametrize(("sample", "pixels"), CASES, ids=lambda x: getattr(x, "name", None))
def test_no_race_and_in_bounds(
    sample: Sample, pixels: int, variant: str, programs: Path, tmp_path: Path
) -> None:
    check(sample, variant, programs, tmp_path, pixels=pixels)
    assert building.launched(tmp_path) == {kernel_of(sample, pixels)}


@pytest.mark.parametrize("sample", [TINY[2], TINY[4], TINY[5], TINY[-1]], **names)
def test_values_with_few_pixels_a_lane(sample: Sample, programs: Path, tmp_path: Path) -> None:
    check(sample, "plain", programs, tmp_path, pixels=FEW)


def test_nan_goes_no_further_than_what_was_kept(programs: Path, tmp_path: Path) -> None:
    weight = torch.zeros(2, 3, 3, 3)
    weight[0, 1, 1, 1] = weight[1, 2, 1, 1] = 1.0
    sample = Sample("nan", (1, 3, 20, 20), 2, biased=False, activation="relu")
    input = torch.ones(1, 3, 20, 20)
    input[0, 1, 4, 5] = torch.nan
    input[0, 2, 7, 7] = -torch.inf
    a = sample.arguments() | {"input": input, "weight": sample.pack(weight)}
    got = in_emulator(sample, a, "plain", programs, tmp_path)
    assert got.isnan().nonzero().tolist() == [[0, 0, 4, 5]]
    assert got[0, 1, 7, 7] == 0


# ---- Gradient of the weights ---------------------------------------------------------------------

# With the number of blocks that share the tiles.
GRADIENTS = [
    (Sample("more-than-a-part", (1, 20, 5, 7), 18, sparsity=0.3), 1),
    (Sample("many-tiles", (3, 4, 40, 21), 5), 3),
    (Sample("stride-2", (1, 5, 18, 11), 6, 4, 2), 1),
    (Sample("vector", (1, 5, 9, 7), 20, vector_size=16), 2),
    (Sample("more-than-a-chunk", (1, 3, 3, 3), 257), 1),
    (Sample("transposed", (1, 5, 5, 4), 6, 3, 2, output_padding=1, transposed=True), 1),
]


@pytest.mark.parametrize(("sample", "splits"), GRADIENTS, ids=lambda x: getattr(x, "name", None))
def test_gradient(sample: Sample, splits: int, programs: Path, tmp_path: Path) -> None:
    check_gradient(sample, "plain", programs, tmp_path, splits)


@pytest.mark.parametrize("variant", ["thread", "address"])
def test_gradient_has_no_race_and_is_in_bounds(
    variant: str, programs: Path, tmp_path: Path
) -> None:
    sample = Sample("element", (1, 5, 5, 34), 9, 2, padding=0, sparsity=0.2)
    check_gradient(sample, variant, programs, tmp_path, splits=2)
    assert building.launched(tmp_path) == OF_GRADIENT


# ---- Damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [MANY, FEW])
@pytest.mark.parametrize("vector", [1, 4])
def test_wrong_lists_stay_within_the_arrays(
    vector: int, pixels: int, programs: Path, tmp_path: Path
) -> None:
    """A damaged file gives wrong sums, never a wrong access."""
    sample = Sample("damaged", (1, 5, 5, 5), 8, vector_size=vector)
    a = sample.arguments()
    weight = a["weight"]
    for damage in (
        {"offsets": torch.full_like(weight.offsets, -1)},
        {"starts": torch.full_like(weight.starts, 10**6)},
        {"starts": -weight.starts - 1},
        {"rows": weight.rows - 10**6},
        {"rows": weight.rows + 7},
    ):
        spoiled = a | {"weight": weight._replace(**damage)}
        in_emulator(sample, spoiled, "address", programs, tmp_path, pixels=pixels)
        in_emulator(sample, spoiled, "address", programs, tmp_path, grad=torch.ones(1, 8, 5, 5))
