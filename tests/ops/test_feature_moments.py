# SPDX-License-Identifier: Apache-2.0
"""The six tests of the op feature_moments. It has no gradient: the second is that it says so.

What is made of the sums is tested in tests/metrics/test_moments.py.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gansparse import _C
from gansparse.errors import InputError
from gansparse.ops import feature_moments, feature_moments_reference
from gansparse.testing import RedZones, close
from gansparse.testing.samples.feature_moments import REFUSALS, Refusal, Sample, samples

SMALL = samples("tiny") + samples("edge")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
names = {"ids": lambda case: case.name}


def scales(arguments: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The size of what is added up to make each sum: the formula over magnitudes."""
    magnitudes = {name: x if x is None else x.double().abs() for name, x in arguments.items()}
    if magnitudes["shift"] is not None:
        magnitudes["shift"] = -magnitudes["shift"]
    total, second = magnitudes["total"], magnitudes["second"]
    feature_moments_reference(**magnitudes)
    return total, second


def check_values(sample: Sample, device: str, dtype: torch.dtype) -> None:
    got = sample.arguments(device, dtype)
    want = copy.deepcopy(got)
    above = got["second"].triu(1)
    total_scale, second_scale = scales(copy.deepcopy(got))
    feature_moments(**got)
    feature_moments_reference(**want)
    # A sum of N deviations (one rounding each) or products (three) and the old value; the
    # reference adds up in another order and is as far from the truth.
    terms = 4 * (4 * sample.rows + 1)
    close(got["total"], want["total"], terms=terms, scale=total_scale, name="total")
    lower, want_lower = got["second"].tril(), want["second"].tril()
    close(lower, want_lower, terms=terms, scale=second_scale, name="second")
    assert torch.equal(got["second"].triu(1), above), "written above the diagonal"


# ---- 1. Values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", SMALL, **names)
def test_values(sample: Sample, dtype: torch.dtype, device: str) -> None:
    check_values(sample, device, dtype)


def test_values_of_digit_features(place: str) -> None:
    check_values(samples("model")[0], place, torch.float32)


def test_products_of_float32_are_exact(device: str) -> None:
    """Where no sum rounds, nothing does: integers, and features of 24 bits without a shift."""
    x = torch.tensor([[1.0 + 2.0**-23, 3.0]], device=device)
    total = torch.zeros(2, dtype=torch.float64, device=device)
    second = torch.zeros(2, 2, dtype=torch.float64, device=device)
    feature_moments(x, total, second)
    assert total.tolist() == [1.0 + 2.0**-23, 3.0]
    assert second.tolist() == [[1.0 + 2.0**-22 + 2.0**-46, 0.0], [3.0 + 3 * 2.0**-23, 9.0]]


def test_nan_stays_visible(device: str) -> None:
    arguments = Sample("nan", 20, 30).arguments(device)
    arguments["features"][3, 7] = torch.nan
    feature_moments(**arguments)
    assert arguments["total"].isnan().nonzero().tolist() == [[7]]
    spoilt = arguments["second"].isnan()
    assert spoilt[7, :8].all()
    assert spoilt[7:, 7].all()
    assert int(spoilt.sum()) == 30


def test_same_bits_whatever_the_threads(backend: str) -> None:
    device, counts = ("cuda", (1, 1)) if backend == "cuda" else ("cpu", (1, 2, 3, 1))
    sample = Sample("threads", 300, 600)
    results = []
    before = torch.get_num_threads()
    for threads in counts:
        torch.set_num_threads(threads)
        arguments = sample.arguments(device)
        feature_moments(**arguments)
        results.append(arguments)
    torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0]["total"], other["total"])
        assert torch.equal(results[0]["second"], other["second"])


def test_core_takes_numpy_arrays(backend: str) -> None:
    arrays: Any = pytest.importorskip("cupy") if backend == "cuda" else np
    x = arrays.ones((2, 3), dtype="f")
    total, second = arrays.zeros(3), arrays.zeros((3, 3))
    _C.feature_moments(x, total, second, shift=arrays.full(3, 0.5))
    assert total.tolist() == [1.0, 1.0, 1.0]
    assert second.tolist() == [[0.5, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0.5]]


# ---- 2. Gradients: there are none ----------------------------------------------------------------


def test_no_gradient_flows() -> None:
    arguments = samples("tiny")[0].arguments()
    arguments["features"].requires_grad_()
    feature_moments(**arguments)
    assert not arguments["total"].requires_grad
    assert not arguments["second"].requires_grad


# ---- 3. opcheck, 4. compile ----------------------------------------------------------------------


@pytest.mark.parametrize("sample", samples("tiny"), **names)
def test_opcheck(sample: Sample, place: str) -> None:
    arguments = tuple(sample.arguments(place).values())
    torch.library.opcheck(torch.ops.gansparse.feature_moments.default, arguments)


@pytest.mark.parametrize("sample", samples("tiny"), **names)
def test_compile(sample: Sample, place: str) -> None:
    eager, compiled = sample.arguments(place), sample.arguments(place)
    feature_moments(**eager)
    torch.compile(feature_moments, fullgraph=True, backend="aot_eager")(**compiled)
    assert torch.equal(eager["total"], compiled["total"])
    assert torch.equal(eager["second"], compiled["second"])


# ---- 5. Refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", REFUSALS, **names)
def test_refuses(refusal: Refusal) -> None:
    arguments = samples("tiny")[1].arguments()
    refusal.spoil(arguments)
    before = copy.deepcopy(arguments)
    with pytest.raises(InputError, match=refusal.message):
        feature_moments(**arguments)
    assert torch.equal(arguments["total"], before["total"]), "a refused call must change nothing"
    assert torch.equal(arguments["second"], before["second"])


@pytest.mark.parametrize("refusal", REFUSALS, **names)
def test_refuses_fakes_alike(refusal: Refusal) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = samples("tiny")[1].arguments()
        refusal.spoil(arguments)
        with pytest.raises(InputError, match=refusal.message):
            feature_moments(**arguments)


@pytest.mark.cuda
def test_refuses_mixed_devices() -> None:
    arguments = samples("tiny")[1].arguments("cuda")
    arguments["total"] = arguments["total"].cpu()
    with pytest.raises(InputError, match=r"total must be float64 \[5\] on cuda:0, got float64"):
        feature_moments(**arguments)


# ---- 6. Red zones --------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("sample", SMALL, **names)
def test_stays_within_its_arrays(sample: Sample, offset: int, device: str) -> None:
    zones = RedZones(offset)
    guarded, free = sample.arguments(device), sample.arguments(device)
    for name, value in guarded.items():
        guarded[name] = value if value is None else zones.copy(value)
    feature_moments(**guarded)
    feature_moments(**free)
    zones.check()
    assert torch.equal(guarded["total"], free["total"])
    assert torch.equal(guarded["second"], free["second"])
