# SPDX-License-Identifier: Apache-2.0
"""Masks against a brute force that walks over single weights with Python loops and float64."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from gansparse.errors import InputError
from gansparse.ops import pack_tiles_conv2d, pack_tiles_conv_transpose2d
from gansparse.sparsity import GRANULARITIES, make_mask


def units_by_hand(shape, granularity, transposed, groups, vector_size):
    """Every unit as a list of weight indices, in the documented order of units."""
    taps = list(itertools.product(*(range(n) for n in shape[2:])))
    inner = shape[0] // groups  # channels of one group along dimension 0
    outs, ins = (shape[1], inner) if transposed else (inner, shape[1])

    def index(g, o, c, tap):
        return (g * inner + c, o, *tap) if transposed else (g * inner + o, c, *tap)

    units = []
    for g in range(groups):
        if granularity == "filter":
            units += [[index(g, o, c, t) for c in range(ins) for t in taps] for o in range(outs)]
        elif granularity == "kernel":
            units += [[index(g, o, c, t) for t in taps] for o in range(outs) for c in range(ins)]
        elif granularity == "element":
            units += [[index(g, o, c, t)] for o in range(outs) for c in range(ins) for t in taps]
        elif granularity == "vector":
            for start in range(0, outs, vector_size):
                block = range(start, min(start + vector_size, outs))
                units += [[index(g, o, c, t) for o in block] for c in range(ins) for t in taps]
        elif granularity == "block":
            for start, first in itertools.product(range(0, outs, vector_size), range(0, ins, 8)):
                rows = range(start, min(start + vector_size, outs))
                columns = range(first, min(first + 8, ins))
                units += [[index(g, o, c, t) for o in rows for c in columns] for t in taps]
        else:
            for o in range(outs):
                for q in range(ins // 4):
                    units += [[index(g, o, 4 * q + i, t) for i in range(4)] for t in taps]
    return units


def mask_by_hand(weight, sparsity, granularity, transposed, groups, vector_size, norm):
    mask = torch.ones(weight.shape, dtype=torch.bool)
    if weight.numel() == 0:
        return mask
    units = units_by_hand(weight.shape, granularity, transposed, groups, vector_size)
    power = 2 if norm == "l2" else 1
    magnitudes = [[abs(weight[i].item()) for i in unit] for unit in units]
    if granularity == "2:4":
        removed = [sorted(range(4), key=lambda i, m=m: (m[i], i))[:2] for m in magnitudes]
        scores = [sum(m[i] for i in two) for m, two in zip(magnitudes, removed, strict=True)]
        prune = round(2 * sparsity * len(units))
    else:
        removed = [range(len(unit)) for unit in units]
        scores = [math.fsum(v**power for v in m) / len(m) for m in magnitudes]
        prune = min(round(sparsity * len(units)), len(units) - 1)
    for which in sorted(range(len(units)), key=lambda i: (scores[i], i))[:prune]:
        for member in removed[which]:
            mask[units[which][member]] = False
    return mask


def random_cases(count, seed):
    chance = random.Random(seed)
    for number in range(count):
        groups = chance.choice([1, 1, 1, 2, 3])
        taps = [chance.randint(1, 3) for _ in range(chance.choice([0, 1, 2, 2, 2, 3]))]
        shape = (groups * chance.randint(1, 9), chance.randint(1, 13), *taps)
        yield pytest.param(
            dict(
                shape=shape,
                groups=groups,
                transposed=chance.random() < 0.5,
                sparsity=chance.choice([0.0, 0.05, 0.25, 0.5, 0.5, 0.75, 0.9, 0.999]),
                vector_size=chance.choice([1, 3, 4, 8, 16]),
                norm=chance.choice(["l1", "l2"]),
                whole_numbers=chance.random() < 0.5,  # many ties
                seed=number,
            ),
            id=f"{number}-{'x'.join(map(str, shape))}-g{groups}",
        )


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("case", list(random_cases(40, seed=5)))
def test_agrees_with_brute_force(case, granularity):
    generator = torch.Generator().manual_seed(case["seed"])
    weight = torch.randn(case["shape"], generator=generator, dtype=torch.float64)
    if case["whole_numbers"]:
        weight = (2 * weight).round()
    sparsity = min(case["sparsity"], 0.5) if granularity == "2:4" else case["sparsity"]
    how = (case["transposed"], case["groups"], case["vector_size"], case["norm"])
    expected = mask_by_hand(weight, sparsity, granularity, *how)
    options = dict(zip(("transposed", "groups", "vector_size", "norm"), how, strict=True))
    # float32 holds the whole numbers exactly; others are compared in float64
    dtype = torch.float32 if case["whole_numbers"] else torch.float64
    mask = make_mask(weight.to(dtype), sparsity, granularity, **options)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("transposed", [False, True])
def test_masks_grow_monotonically(granularity, transposed):
    weight = torch.randn(20, 24, 3, 3, generator=torch.Generator().manual_seed(1))
    previous = torch.ones_like(weight, dtype=torch.bool)
    for step in range(11):
        sparsity = 0.05 * step if granularity == "2:4" else 0.09 * step
        how = dict(transposed=transposed, previous=previous, vector_size=8)
        mask = make_mask(weight, sparsity, granularity, **how)
        assert not (mask & ~previous).any()
        # other weights, same previous mask: the pruned ones would score well, and must stay out
        assert not (make_mask(weight.flip(0), sparsity, granularity, **how) & ~previous).any()
        previous = mask
    if granularity == "2:4":
        inputs = mask if not transposed else mask.transpose(0, 1)
        kept = inputs.reshape(inputs.shape[0], -1, 4, 3, 3).sum(dim=2)
        assert (kept == 2).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_count_is_exact_on_a_real_layer(dtype, sparsity):
    """A size where selection takes its fast path, in each dtype; 16-bit weights have many ties."""
    weight = torch.randn(64, 48, 4, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
    mask = make_mask(weight, sparsity)
    assert int((~mask).sum()) == round(sparsity * weight.numel())
    assert weight.abs()[mask].min() >= weight.abs()[~mask].max()


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 3.0, 3e38])
def test_equal_weights_go_by_index(value):
    mask = make_mask(torch.full((4, 5), value), 0.35)
    assert mask.flatten().tolist() == [False] * 7 + [True] * 13


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (3, 0, 2, 2), (3, 3, 0, 2), (0, 0)])
def test_empty_weight(granularity, shape):
    for transposed in (False, True):
        mask = make_mask(torch.empty(shape), 0.5, granularity, transposed=transposed)
        assert mask.shape == shape


@pytest.mark.parametrize("granularity", ["element", "vector", "block", "kernel", "filter"])
def test_never_empties_a_layer(granularity):
    assert make_mask(torch.ones(1, 1), 0.9, granularity).all()
    weight = torch.arange(1.0, 25.0).view(2, 3, 2, 2)
    mask = make_mask(weight, 0.999, granularity, vector_size=2)
    assert mask[1, 2, 1, 1], "the best unit stays"
    assert not mask.all()


def test_filters_of_a_transposed_convolution_lie_along_dimension_1():
    weight = torch.ones(3, 4, 2, 2)
    weight[:, 2] = 0.1
    assert not make_mask(weight, 0.25, "filter", transposed=True)[:, 2].any()
    grouped = torch.nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False)
    grouped.weight.data.mul_(make_mask(grouped.weight, 0.5, "filter", transposed=True, groups=2))
    out = grouped(torch.randn(1, 4, 5, 5))
    assert int((out == 0).flatten(2).all(dim=2).sum()) == 3


def test_mask_has_the_strides_of_the_weight():
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    mask = make_mask(weight, 0.5)
    assert mask.stride() == weight.stride()
    assert torch.equal(mask, make_mask(weight.contiguous(), 0.5))


def test_weight_is_not_changed_and_needs_no_gradient():
    weight = torch.randn(4, 4, requires_grad=True)
    before = weight.detach().clone()
    mask = make_mask(weight, 0.5, previous=torch.rand(4, 4) > 0.2)
    assert not mask.requires_grad
    assert torch.equal(weight, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sparsity=1.5), r"0 ≤ sparsity < 1, got 1.5"),
        (dict(sparsity=75), r"got 75 \(75 % is 0.75\)"),
        (dict(sparsity=1), "got 1$"),
        (dict(sparsity=-0.1), "got -0.1"),
        (dict(sparsity=math.nan), "got nan"),
        (dict(sparsity="half"), "got 'half'"),
        (dict(sparsity=True), "got True"),
        (dict(sparsity=0.6, granularity="2:4"), "at most 0.5 at granularity 2:4, got 0.6"),
        (dict(granularity="row"), "granularity must be one of element, .* got 'row'"),
        (dict(groups=3), r"groups must divide dimension 0 .* got 3 for \[4, 4\]"),
        (dict(groups=0), "groups must divide"),
        (dict(vector_size=0), "vector_size must be a whole number ≥ 1, got 0"),
        (dict(vector_size=2.0), "vector_size must be a whole number ≥ 1, got 2.0"),
        (dict(norm="l3"), "norm must be l1 or l2, got 'l3'"),
        (dict(weight=torch.ones(4)), r"weight must be \[O, C, ...\]"),
        (dict(weight=torch.ones(4, 4).int()), "weight must be floating point, got torch.int32"),
        (dict(weight=torch.full((2, 2), math.nan)), "holds NaN or infinite"),
        (dict(weight=torch.tensor([[1.0, -math.inf]])), "holds NaN or infinite"),
        (dict(previous=torch.ones(4, 3) > 0), r"previous must be a bool mask of shape \[4, 4\]"),
        (dict(previous=torch.ones(4, 4)), "previous must be a bool mask"),
    ],
)
def test_refuses(arguments, message):
    arguments = {"weight": torch.ones(4, 4), "sparsity": 0.5, **arguments}
    with pytest.raises(InputError, match=message) as caught:
        make_mask(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("out", [64, 40])
def test_blocks_are_what_the_cuda_kernel_keeps(out, transposed, rows):
    """Packed for tensor cores, there is one block for each unit that stays, and no other."""
    shape = (48, out, 4, 4) if transposed else (out, 48, 3, 3)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    mask = make_mask(weight, 0.75, "block", transposed=transposed, vector_size=rows)
    units = -(-out // rows) * 48 // 8 * math.prod(shape[2:])
    kept = units - round(0.75 * units)
    how = {"rows": rows, "stride": 2, "padding": 1}
    pack = pack_tiles_conv_transpose2d if transposed else pack_tiles_conv2d
    packed = pack(weight * mask, "block", **how)
    assert int((packed.values != 0).sum()) == int(mask.sum())
    steps = packed.starts.diff()  # of four blocks; only the last step of a list may have fewer
    assert kept <= 4 * int(steps.sum()) <= kept + 3 * int((steps > 0).sum())
    everywhere = pack(weight * make_mask(weight, 0.75, transposed=transposed), "block", **how)
    assert 4 * int(everywhere.starts[-1]) >= units, "zeros without a pattern leave nothing out"
