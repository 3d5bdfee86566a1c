# SPDX-License-Identifier: Apache-2.0
"""The six tests of the op masked_adam. It has no gradient: the second is that it says so.

The optimizer over it is tested in tests/optim/test_masked_adam_optimizer.py.
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
from gansparse.ops import masked_adam, masked_adam_reference
from gansparse.testing import RedZones, close
from gansparse.testing.samples.masked_adam import REFUSALS, Refusal, Sample, samples

WRITTEN = ("params", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")
SMALL = samples("tiny") + samples("edge")
# Roundings on the way to a weight: two moments, root, quotient, product, sum, and as many
# coefficients that were rounded when they were made.
TERMS = 16

names = {"ids": lambda case: case.name}


def to_float64(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments in float64: the truth starts from the very same numbers."""

    def widen(value: Any) -> Any:
        if isinstance(value, list):
            return [widen(item) for item in value]
        if isinstance(value, torch.Tensor):
            return value.clone() if value.dtype in (torch.bool, torch.uint8) else value.double()
        return value

    return {name: widen(value) for name, value in arguments.items()}


def scales(arguments: dict[str, Any]) -> dict[str, list[torch.Tensor]]:
    """For each result, the size of what is added up to make it: the formula over magnitudes."""
    sizes = to_float64(arguments)
    for name in ("params", "grads", "exp_avgs"):
        sizes[name] = [value.abs() for value in sizes[name]]
    sizes["maximize"] = True  # −|grad| moves against the weight: everything adds up
    sizes["grads"] = [-g for g in sizes["grads"]]
    sizes["masks"] = None
    before = [value.clone() for value in sizes["params"]]
    masked_adam_reference(**sizes)
    sizes["params"] = [b + (p - b).abs() for b, p in zip(before, sizes["params"], strict=True)]
    return sizes


def check_values(sample: Sample, device: str, dtype: torch.dtype) -> None:
    got = sample.arguments(device, dtype)
    want = to_float64(got)
    allowed = scales(got)
    masked_adam(**got)
    masked_adam_reference(**want)
    for name in WRITTEN:
        for i, value in enumerate(got.get(name) or []):
            close(value, want[name][i], terms=TERMS, scale=allowed[name][i], name=f"{name}[{i}]")
    for i, mask in enumerate(got["masks"]):
        if mask is not None:
            for name in WRITTEN:
                if name in got:
                    assert not got[name][i][mask == 0].any(), f"{name}[{i}] is not 0 where pruned"


# ---- 1. Values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SMALL, **names)
def test_values(sample: Sample, device: str) -> None:
    check_values(sample, device, torch.float32)


def test_values_of_a_whole_generator(place: str) -> None:
    check_values(samples("model")[0], place, torch.float32)


@pytest.mark.parametrize("sample", SMALL, **names)
def test_values_in_float64(sample: Sample, device: str) -> None:
    check_values(sample, device, torch.float64)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sample", SMALL, **names)
def test_values_in_16_bits(sample: Sample, dtype: torch.dtype) -> None:
    check_values(sample, "cuda", dtype)


def test_nan_outside_the_mask_goes_nowhere(device: str) -> None:
    arguments = Sample("nan", ((1000,),)).arguments(device)
    pruned = arguments["masks"][0] == 0
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
        arguments[name][0][pruned] = torch.tensor([torch.nan, torch.inf], device=device).repeat(
            int(pruned.sum())
        )[: int(pruned.sum())]
    masked_adam(**arguments)
    assert arguments["params"][0].isfinite().all()
    assert not arguments["params"][0][pruned].any()


def test_nan_inside_the_mask_stays_visible(device: str) -> None:
    arguments = Sample("nan", ((1000,),), 0.0, {"amsgrad": True}).arguments(device)
    arguments["grads"][0][123] = torch.nan
    masked_adam(**arguments)
    assert arguments["params"][0].isnan().nonzero().tolist() == [[123]]
    assert arguments["max_exp_avg_sqs"][0].isnan().nonzero().tolist() == [[123]]


@pytest.mark.parametrize(
    "options", [{"weight_decay": 0.0}, {"weight_decay": 0.1, "decoupled_weight_decay": True}]
)
def test_infinite_weights_leave_their_moments_alone(device: str, options: dict[str, Any]) -> None:
    """As in torch: what does not decay does not enter the gradient, not even as 0 times inf."""
    arguments = Sample("inf", ((1000,),), 0.0, options).arguments(device)
    reference = copy.deepcopy(arguments)
    for each, run in ((arguments, masked_adam), (reference, masked_adam_reference)):
        each["params"][0][::7] = -torch.inf
        run(**each)
        assert (each["params"][0][::7] == -torch.inf).all()
        assert each["exp_avgs"][0].isfinite().all()
        assert each["exp_avg_sqs"][0].isfinite().all()


def test_same_bits_whatever_the_threads(backend: str) -> None:
    if backend == "cuda":
        device, counts = "cuda", (1,)
    else:
        device, counts = "cpu", (1, 2, 3)
    sample = Sample("threads", ((100_003,), (17,), (65_537,)), options={"amsgrad": True})
    results = []
    before = torch.get_num_threads()
    for threads in (*counts, counts[0]):
        torch.set_num_threads(threads)
        arguments = sample.arguments(device)
        masked_adam(**arguments)
        results.append(arguments)
    torch.set_num_threads(before)
    for other in results[1:]:
        for name in WRITTEN:
            for one, two in zip(results[0][name], other[name], strict=True):
                assert torch.equal(one, two)


def test_lr_may_be_a_tensor(device: str) -> None:
    number, tensor = (samples("tiny")[0].arguments(device) for _ in range(2))
    number["lr"] = float(torch.tensor(0.01))
    tensor["lr"] = torch.tensor(0.01, device=device)
    masked_adam(**number)
    masked_adam(**tensor)
    for one, two in zip(number["params"], tensor["params"], strict=True):
        assert torch.equal(one, two)


def test_core_takes_numpy_arrays(backend: str) -> None:
    if backend == "cuda":
        cupy = pytest.importorskip("cupy")
        arrays = cupy
    else:
        arrays = np
    w, g = arrays.ones(5, dtype="f"), arrays.ones(5, dtype="f")
    m, v, mask = (arrays.zeros(5, dtype="f") for _ in range(3))
    mask = arrays.array([1, 1, 0, 1, 1], dtype=bool)
    _C.masked_adam(
        [w], [g], [m], [v], [np.ones((), dtype="f")], masks=[mask], max_exp_avg_sqs=None, lr=0.5,
        beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False,
        maximize=False,
    )  # fmt: skip
    assert w.tolist() == pytest.approx([0.5, 0.5, 0.0, 0.5, 0.5])


# ---- 2. Gradients: there are none, and asking for one is an error --------------------------------


def test_no_gradient_flows() -> None:
    arguments = samples("tiny")[0].arguments()
    arguments["grads"] = [g.requires_grad_() for g in arguments["grads"]]
    masked_adam(**arguments)
    assert not any(p.requires_grad for p in arguments["params"])


# ---- 3. opcheck, 4. compile ----------------------------------------------------------------------


def by_schema(arguments: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments in the order of the schema."""
    a = {"eps": 1e-8, "weight_decay": 0.0, "decoupled_weight_decay": False, "maximize": False}
    a |= {"max_exp_avg_sqs": [], "betas": (0.9, 0.999), **arguments}
    lists = ("params", "grads", "exp_avgs", "exp_avg_sqs", "steps", "masks", "max_exp_avg_sqs")
    options = ("eps", "weight_decay", "decoupled_weight_decay", "maximize")
    return *(a[name] for name in lists), a["lr"], None, *a["betas"], *(a[name] for name in options)


@pytest.mark.parametrize("sample", samples("tiny"), **names)
def test_opcheck(sample: Sample, place: str) -> None:
    torch.library.opcheck(
        torch.ops.gansparse.masked_adam.default, by_schema(sample.arguments(place))
    )


@pytest.mark.parametrize("sample", [samples("tiny")[2], samples("tiny")[-1]], **names)
def test_compile(sample: Sample, place: str) -> None:
    eager, compiled = sample.arguments(place), sample.arguments(place)
    masked_adam(**eager)
    torch.compile(masked_adam, fullgraph=True, backend="aot_eager")(**compiled)
    for name in WRITTEN:
        for one, two in zip(eager.get(name, []), compiled.get(name, []), strict=True):
            assert torch.equal(one, two)


# ---- 5. Refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", REFUSALS, **names)
def test_refuses(refusal: Refusal) -> None:
    arguments = samples("tiny")[0].arguments()
    refusal.spoil(arguments)
    before = copy.deepcopy(arguments)
    with pytest.raises(InputError, match=refusal.message):
        masked_adam(**arguments)
    for one, two in zip(arguments["params"], before["params"], strict=True):
        assert torch.equal(one, two), "a refused call must change nothing"


@pytest.mark.parametrize("refusal", [r for r in REFUSALS if not r.needs_values], **names)
def test_refuses_fakes_alike(refusal: Refusal) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = samples("tiny")[0].arguments()
        refusal.spoil(arguments)
        with pytest.raises(InputError, match=refusal.message):
            masked_adam(**arguments)


@pytest.mark.cuda
def test_refuses_mixed_devices() -> None:
    arguments = samples("tiny")[0].arguments("cuda")
    arguments["grads"][0] = arguments["grads"][0].cpu()
    with pytest.raises(InputError, match=r"grads\[0\] must be float32 .* on cuda:0, got float32"):
        masked_adam(**arguments)


def test_refuses_what_is_no_array() -> None:
    arguments = {
        "masks": None,
        "max_exp_avg_sqs": None,
        "lr": 0.1,
        "beta1": 0.9,
        "beta2": 0.9,
        "eps": 0.0,
        "weight_decay": 0.0,
    }
    flags = {"decoupled_weight_decay": False, "maximize": False}
    with pytest.raises(InputError, match=r"params\[0\] must be an array .*, got str"):
        _C.masked_adam(["x"], ["x"], ["x"], ["x"], ["x"], **arguments, **flags)
    with pytest.raises(InputError, match=r"params must be a list of arrays, got ndarray"):
        _C.masked_adam(np.ones(3), [], [], [], [], **arguments, **flags)


# ---- 6. Red zones --------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("sample", SMALL, **names)
def test_stays_within_its_arrays(sample: Sample, offset: int, device: str) -> None:
    zones = RedZones(offset)
    guarded, free = sample.arguments(device), sample.arguments(device)
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs", "masks", "max_exp_avg_sqs"):
        if name in guarded:
            guarded[name] = [None if x is None else zones.copy(x) for x in guarded[name]]
    masked_adam(**guarded)
    masked_adam(**free)
    zones.check()
    for name in WRITTEN:
        for one, two in zip(guarded.get(name, []), free.get(name, []), strict=True):
            close(one, two.double(), terms=TERMS, name=name)


def test_red_zones_find_a_stray_write() -> None:
    zones = RedZones()
    x = zones.copy(torch.ones(4))
    x.as_strided((1,), (1,), x.storage_offset() + 4).zero_()
    with pytest.raises(AssertionError, match=r"tensor 0 of 4 items: written at \[4\]"):
        zones.check()


def test_closeness_lets_no_nan_through() -> None:
    want = torch.ones(3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="1 of 3 elements are off"):
        close(torch.tensor([1.0, torch.nan, 1.0]), want, terms=1)
    with pytest.raises(AssertionError, match="shape"):
        close(torch.ones(2), want, terms=1)
