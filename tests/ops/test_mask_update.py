# SPDX-License-Identifier: Apache-2.0
"""The six tests of the op mask_update. It has no gradient: the second is that it says so."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gansparse import _C
from gansparse.errors import InputError
from gansparse.ops import mask_update, mask_update_reference
from gansparse.sparsity.granularity import keep_highest
from gansparse.testing import RedZones
from gansparse.testing.samples.mask_update import REFUSALS, Refusal, Sample, samples

SMALL = samples("tiny") + samples("edge")
names = {"ids": lambda case: case.name}


def by_sorting(arguments: dict[str, Any]) -> list[list[int]]:
    """The masks in the order of memory: Python sorts (pruned before, NaN, score, index)."""
    out = []
    for score, mask, count in zip(
        arguments["scores"], arguments["masks"], arguments["prune"], strict=True
    ):
        if score.dim() == 4 and not score.is_contiguous():
            score, mask = (x.permute(0, 2, 3, 1) for x in (score, mask))
        values, before = score.double().flatten().tolist(), mask.flatten().tolist()
        keys = []
        for i, value in enumerate(values):
            if arguments["monotone"] and not before[i]:
                keys.append((0, 0.0, i))
            elif value != value:
                keys.append((2, 0.0, i))
            else:
                keys.append((1, abs(value) if arguments["magnitude"] else value + 0.0, i))
        kept = [1] * len(keys)
        for _, _, i in sorted(keys)[:count]:
            kept[i] = 0
        out.append(kept)
    return out


def in_memory(mask: torch.Tensor) -> list[int]:
    if mask.dim() == 4 and not mask.is_contiguous():
        mask = mask.permute(0, 2, 3, 1)
    return mask.flatten().int().tolist()


def check_values(sample: Sample, device: str, dtype: torch.dtype) -> None:
    arguments = sample.arguments(device, dtype)
    want = by_sorting(arguments)
    mask_update(**arguments)
    for mask, wanted in zip(arguments["masks"], want, strict=True):
        assert in_memory(mask) == wanted


# ---- 1. Values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sample", SMALL, **names)
def test_values(sample: Sample, dtype: torch.dtype, place: str) -> None:
    check_values(sample, place, dtype)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sample", SMALL, **names)
def test_values_in_16_bits(sample: Sample, dtype: torch.dtype) -> None:
    check_values(sample, "cuda", dtype)


@pytest.mark.parametrize("sample", [s for s in SMALL if not s.channels_last], **names)
def test_values_of_the_reference(sample: Sample) -> None:
    arguments = sample.arguments()
    want = by_sorting(arguments)
    mask_update_reference(**arguments)
    assert [in_memory(mask) for mask in arguments["masks"]] == want


def test_values_of_a_real_layer_agree_with_the_pruner(place: str) -> None:
    """Two hundred thousand weights, step by step, as `gansparse.sparsity` chooses them."""
    weight = torch.randn(64, 350, 3, 3, generator=torch.Generator().manual_seed(0)).to(place)
    mask = torch.ones_like(weight, dtype=torch.bool)
    expected = mask.clone()
    for share in (0.1, 0.5, 0.75, 0.9):
        count = round(share * weight.numel())
        mask_update([weight], [mask], [count])
        expected = keep_highest(torch.where(expected, weight.abs(), -1.0), count)
        assert torch.equal(mask, expected)
        assert int((~mask).sum()) == count


def test_same_bits_whatever_the_threads() -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        arguments = Sample("threads", ((300_001,), (17,)), 0.6, levels=5).arguments()
        mask_update(**arguments)
        results.append(arguments["masks"])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_core_takes_numpy_arrays() -> None:
    mask = np.ones(4, dtype=bool)
    _C.mask_update([np.array([2.0, -1.0, 3.0, 0.0], dtype="f")], [mask], [2], True, True)
    assert mask.tolist() == [True, False, True, False]


@pytest.mark.cuda
def test_a_graph_captures_it() -> None:
    arguments = samples("tiny")[0].arguments("cuda")
    want = by_sorting(arguments)
    before = [mask.clone() for mask in arguments["masks"]]
    graph = torch.cuda.CUDAGraph()
    mask_update(**arguments)
    with torch.cuda.graph(graph):
        mask_update(**arguments)
    for mask, old in zip(arguments["masks"], before, strict=True):
        mask.copy_(old)
    graph.replay()
    assert [in_memory(mask) for mask in arguments["masks"]] == want


# ---- 2. Gradients: there are none ----------------------------------------------------------------


def test_no_gradient_flows() -> None:
    arguments = samples("tiny")[0].arguments()
    arguments["scores"] = [score.requires_grad_() for score in arguments["scores"]]
    mask_update(**arguments)
    assert all(score.grad is None for score in arguments["scores"])
    assert not any(mask.requires_grad for mask in arguments["masks"])


# ---- 3. opcheck, 4. compile ----------------------------------------------------------------------


@pytest.mark.parametrize("sample", samples("tiny")[:6], **names)
def test_opcheck(sample: Sample, place: str) -> None:
    arguments = tuple(sample.arguments(place).values())
    torch.library.opcheck(torch.ops.gansparse.mask_update.default, arguments)


@pytest.mark.parametrize("sample", samples("tiny")[:4], **names)
def test_compile(sample: Sample, place: str) -> None:
    eager, compiled = sample.arguments(place), sample.arguments(place)
    mask_update(**eager)
    torch._dynamo.reset()
    torch.compile(mask_update, fullgraph=True, backend="aot_eager")(**compiled)
    for one, two in zip(eager["masks"], compiled["masks"], strict=True):
        assert torch.equal(one, two)


# ---- 5. Refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", REFUSALS, **names)
def test_refuses(refusal: Refusal) -> None:
    arguments = samples("tiny")[0].arguments()
    refusal.spoil(arguments)
    before = copy.deepcopy(arguments["masks"])
    with pytest.raises(InputError, match=refusal.message):
        mask_update(**arguments)
    for one, two in zip(arguments["masks"], before, strict=True):
        assert torch.equal(one, two), "a refused call must change nothing"


@pytest.mark.parametrize("refusal", REFUSALS, **names)
def test_refuses_fakes_alike(refusal: Refusal) -> None:
    real = samples("tiny")[0].arguments()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        arguments = real | {k: [mode.from_tensor(x) for x in real[k]] for k in ("scores", "masks")}
        refusal.spoil(arguments)
        with pytest.raises(InputError, match=refusal.message):
            mask_update(**arguments)


# ---- 6. Red zones --------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("sample", SMALL, **names)
def test_stays_within_its_arrays(sample: Sample, offset: int, place: str) -> None:
    zones = RedZones(offset)
    guarded, free = sample.arguments(place), sample.arguments(place)
    for name in ("scores", "masks"):
        guarded[name] = [zones.copy(x) for x in guarded[name]]
    mask_update(**guarded)
    mask_update(**free)
    zones.check()
    for one, two in zip(guarded["masks"], free["masks"], strict=True):
        assert torch.equal(one, two)
