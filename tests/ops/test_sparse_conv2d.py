# SPDX-License-Identifier: Apache-2.0
"""The six tests of sparse_conv2d, and of sparse_conv_transpose2d, which has the same kernels.

Truth is torch's dense convolution of the masked weight in float64. It knows nothing of packing.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gansparse import _C
from gansparse.errors import InputError
from gansparse.ops import (
    PackedConv2d,
    pack_sparse_conv2d,
    pack_sparse_conv_transpose2d,
    sparse_conv2d,
    sparse_conv2d_reference,
    sparse_conv_transpose2d,
    sparse_conv_transpose2d_reference,
    unpack_sparse_conv2d,
)
from gansparse.testing import RedZones, close, same_direction, timing
from gansparse.testing.samples import sparse_conv_transpose2d as transposed
from gansparse.testing.samples.sparse_conv2d import REFUSALS, Refusal, Sample, samples

TINY = samples("tiny") + transposed.samples("tiny")
SMALL = TINY + samples("edge") + transposed.samples("edge")
names = {"ids": lambda case: ("transposed-" if getattr(case, "transposed", 0) else "") + case.name}
every_simd = pytest.mark.parametrize("backend", ["plain", "avx2", "avx512"], indirect=True)


def run(sample: Sample, arguments: dict[str, Any]) -> Tensor:
    return (sparse_conv_transpose2d if sample.transposed else sparse_conv2d)(**arguments)


def finish(z: Tensor, a: dict[str, Any]) -> Tensor:
    """Bias, residual and activation, in z's dtype."""
    if a["bias"] is not None:
        planes = a["bias"].to(z.dtype)[:, None, None]
        if len(planes) > z.shape[1]:  # one a phase
            high, wide = z.shape[2:]
            planes = F.pixel_shuffle(planes, 2).repeat(1, high, wide)[:, :high, :wide]
        z = z + planes
    if a["residual"] is not None:
        z = z + a["residual"].to(z.dtype)
    if a["activation"] in ("leaky_relu", "prelu"):
        slope = torch.as_tensor(a["slope"]).to(z.dtype).reshape(-1)
        return F.prelu(z, slope)
    return z if a["activation"] == "none" else getattr(torch, a["activation"])(z)


def truth(sample: Sample, a: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The result in float64, and the size of what is added up to make each element."""
    input, weight = a["input"].double(), sample.dense().double()
    size = sample.convolve(input.abs(), weight.abs())
    magnitudes = {k: v.abs() if isinstance(v, Tensor) else v for k, v in a.items()}
    slope = max(1.0, float(torch.as_tensor(a["slope"]).abs().max()))
    size = finish(size, magnitudes | {"activation": "none"}) * slope
    return finish(sample.convolve(input, weight), a), size


def terms(sample: Sample) -> int:
    """Rounded operations an element: a multiply-add a weight, bias, residual, activation."""
    return math.prod(sample.dense().shape[1:]) * (4 if sample.transposed else 1) + 4


# ---- 1. Values -----------------------------------------------------------------------------------


@every_simd
@pytest.mark.parametrize("sample", SMALL, **names)
def test_values(sample: Sample, backend: str) -> None:
    arguments = sample.arguments()
    want, scale = truth(sample, arguments)
    close(run(sample, arguments), want, terms=terms(sample), scale=scale)


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("vector", [1, 4])
@every_simd
def test_values_with_every_patch(vector: int, patch: int, backend: str) -> None:
    for size in ((1, 6, 11, 13), (5, 6, 4, 4)):
        sample = Sample("patch", size, 9, kernel=4, stride=2, vector_size=vector, residual=True)
        arguments = sample.arguments()
        geometry = arguments["weight"].geometry
        arguments["weight"] = repacked(sample.dense(), geometry._replace(patch=patch))
        want, scale = truth(sample, arguments)
        close(sparse_conv2d(**arguments), want, terms=terms(sample), scale=scale)


def repacked(weight: Tensor, geometry: Any) -> PackedConv2d:
    from gansparse.ops import sparse_conv2d_packing

    layer = sparse_conv2d_packing.Layer(weight, weight != 0, geometry)
    return sparse_conv2d_packing.pack_layer(layer)


@pytest.mark.parametrize("sample", [samples("model")[0], transposed.samples("model")[2]], **names)
def test_values_of_whole_layers(sample: Sample) -> None:
    arguments = sample.arguments()
    want, scale = truth(sample, arguments)
    close(run(sample, arguments), want, terms=terms(sample), scale=scale)


def test_values_of_a_layer_that_is_too_large_to_be_kept_in_lanes() -> None:
    sample = Sample("large", (1, 1900, 5, 5), 260, sparsity=0.99)
    arguments = sample.arguments()
    want, scale = truth(sample, arguments)
    close(run(sample, arguments), want, terms=terms(sample), scale=scale)


@pytest.mark.parametrize("sample", TINY, **names)
def test_values_of_the_reference(sample: Sample) -> None:
    arguments = sample.arguments()
    want, scale = truth(sample, arguments)
    reference = sparse_conv_transpose2d_reference if sample.transposed else sparse_conv2d_reference
    close(reference(**arguments), want, terms=terms(sample), scale=scale)


@pytest.mark.parametrize("sample", [s for s in SMALL if not s.transposed], **names)
def test_packing_loses_nothing(sample: Sample) -> None:
    weight = sample.dense()
    packed = sample.pack(weight)
    assert torch.equal(unpack_sparse_conv2d(packed), weight)
    kept = weight != 0
    if sample.vector_size == 1:
        assert len(packed.values) == int(kept.sum())


def test_a_mask_keeps_weights_that_are_zero() -> None:
    mask = torch.rand(4, 3, 3, 3) < 0.5
    packed = pack_sparse_conv2d(torch.zeros(4, 3, 3, 3), mask=mask)
    assert len(packed.values) == int(mask.sum())


@every_simd
def test_nan_stays_visible_and_goes_no_further(backend: str) -> None:
    """A NaN reaches the outputs whose kept weights meet it; relu lets it through, and no other."""
    weight = torch.zeros(2, 3, 3, 3)
    weight[0, 1, 1, 1] = weight[1, 2, 1, 1] = 1.0
    packed = pack_sparse_conv2d(weight, padding=1)
    input = torch.ones(1, 3, 20, 20)
    input[0, 1, 4, 5] = torch.nan
    input[0, 2, 7, 7] = -torch.inf
    for activation in ("none", "relu", "leaky_relu"):
        got = sparse_conv2d(input, packed, activation=activation)
        assert got.isnan().nonzero().tolist() == [[0, 0, 4, 5]]
        assert got[0, 1, 7, 7] == (0 if activation == "relu" else -torch.inf)


@every_simd
def test_result_goes_where_it_is_told(backend: str) -> None:
    for sample in (TINY[0], TINY[11], TINY[-1]):  # plain, tanh, transposed
        arguments = sample.arguments()
        want = run(sample, arguments)
        out = torch.full_like(want, torch.nan)
        assert run(sample, arguments | {"out": out}) is out
        assert torch.equal(out, want)
        reference = sparse_conv2d_reference(**(arguments | {"out": torch.empty_like(want)}))
        assert torch.equal(reference, sparse_conv2d_reference(**arguments))


def test_refuses_out_with_gradients_and_overlap() -> None:
    a = TINY[0].arguments()
    out = torch.empty_like(sparse_conv2d(**a))
    flat = torch.zeros(a["input"].numel() + out.numel())
    input = flat[: a["input"].numel()].view_as(a["input"])
    for first, fits in ((len(flat) - out.numel(), True), (len(flat) - out.numel() - 1, False)):
        part = flat[first:][: out.numel()].view_as(out)
        if fits:
            sparse_conv2d(**(a | {"input": input, "out": part}))
            continue
        with pytest.raises(InputError, match=r"out must not overlap input, got float32 \[2, 6, 9"):
            sparse_conv2d(**(a | {"input": input, "out": part}))
    with pytest.raises(InputError, match="out must not overlap residual"):
        sparse_conv2d(**(a | {"residual": out, "out": out}))
    a["input"].requires_grad_()
    with pytest.raises(InputError, match="out must be None .* where gradients are wanted"):
        sparse_conv2d(**a, out=out)


@every_simd
def test_any_memory_format_goes_in(backend: str) -> None:
    sample = Sample("format", (2, 5, 17, 18), 6, residual=True)
    arguments = sample.arguments()
    want = sparse_conv2d(**arguments)
    for name in ("input", "residual"):
        arguments[name] = arguments[name].to(memory_format=torch.channels_last)
    assert torch.equal(sparse_conv2d(**arguments), want)
    assert sparse_conv2d(**arguments).is_contiguous()


@every_simd
def test_same_bits_whatever_the_threads(backend: str) -> None:
    for sample in (
        Sample("tiles", (2, 32, 48, 48), 64),
        Sample("chunks", (1, 64, 4, 4), 600, fitted=True, vector_size=4),
    ):
        arguments, results = sample.arguments(), []
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(sparse_conv2d(**arguments))
        assert all(torch.equal(results[0], other) for other in results[1:])


def test_patches_are_smaller_where_a_thread_would_wait() -> None:
    weight = torch.ones(8, 64, 4, 4)
    for count, patch in ((1, 4), (2, 2)):
        with timing.threads(count):
            packed = pack_sparse_conv_transpose2d(weight, stride=2, padding=1, size=(1, 16, 16))
        assert packed.geometry.patch == patch


def test_two_python_threads_at_once() -> None:
    cases = [Sample("one", (1, 20, 40, 40), 30), Sample("two", (1, 33, 24, 24), 50, kernel=5)]
    arguments = [case.arguments() for case in cases]
    want = [sparse_conv2d(**a) for a in arguments]
    wrong = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(sparse_conv2d(**arguments[i]), want[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_packed_weights_save_and_load(tmp_path: Any) -> None:
    arguments = samples("tiny")[0].arguments()
    weight = arguments["weight"]
    tensors = weight._asdict() | {"geometry": torch.tensor(weight.geometry)}
    torch.save(tensors, tmp_path / "packed.pt")
    loaded = torch.load(tmp_path / "packed.pt", weights_only=True)
    loaded["geometry"] = type(weight.geometry)(*loaded["geometry"].tolist())
    again = arguments | {"weight": PackedConv2d(**loaded)}
    assert torch.equal(sparse_conv2d(**again), sparse_conv2d(**arguments))


# ---- 2. Gradients --------------------------------------------------------------------------------

TRAINED = ("input", "bias", "residual", "slope")


@pytest.mark.parametrize("sample", TINY, **names)
def test_gradients(sample: Sample) -> None:
    """Those of the dense convolution in float64, at the places that stayed."""
    got, want = sample.arguments(), sample.arguments()
    values = got["weight"].values.requires_grad_()
    dense = sample.dense()
    mask = dense != 0
    dense = dense.double().requires_grad_()
    for name in TRAINED:
        if isinstance(got[name], Tensor):
            got[name].requires_grad_()
            want[name] = want[name].double().requires_grad_()
    y = run(sample, got)
    z = finish(sample.convolve(want["input"], dense), want)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(5))
    (y * weights).sum().backward()
    (z * weights.double()).sum().backward()
    kept = sample.pack(dense.grad.float(), mask)
    pixels = y.numel() // y.shape[1]
    same_direction(values.grad, kept.values, terms=4 * pixels, name="values")
    for name in TRAINED:
        if isinstance(got[name], Tensor):
            count = 4 * terms(sample) * (1 if name == "input" else pixels)
            same_direction(got[name].grad, want[name].grad, terms=count, name=name)


def test_no_gradient_is_made_up_for_a_fused_activation() -> None:
    a = samples("tiny")[0].arguments()
    *tensors, geometry = a["weight"]
    x = a["input"].requires_grad_()
    op = torch.ops.gansparse.sparse_conv2d
    y = op(x, *tensors, geometry, None, None, "relu", 0.0, None)
    with pytest.raises(NotImplementedError, match="which has these gradients"):
        y.sum().backward()


def test_a_step_of_training_leaves_the_mask_alone() -> None:
    a = samples("tiny")[0].arguments()
    before = unpack_sparse_conv2d(a["weight"]) != 0
    values = a["weight"].values.requires_grad_()
    optimizer = torch.optim.SGD([values], lr=0.1)
    first = sparse_conv2d(**a).square().mean()
    first.backward()
    optimizer.step()
    assert sparse_conv2d(**a).square().mean() < first
    assert torch.equal(unpack_sparse_conv2d(a["weight"]) != 0, before)


# ---- 3. opcheck, 4. compile ----------------------------------------------------------------------


def by_schema(a: dict[str, Any]) -> tuple[Any, ...]:
    *tensors, geometry = a["weight"]
    slope = a["slope"]
    number, slopes = (0.0, slope) if isinstance(slope, Tensor) else (slope, None)
    options = (a["bias"], a["residual"], a["activation"], number, slopes)
    return a["input"], *tensors, list(geometry), *options


@pytest.mark.parametrize("sample", TINY, **names)
def test_opcheck(sample: Sample) -> None:
    torch.library.opcheck(torch.ops.gansparse.sparse_conv2d.default, by_schema(sample.arguments()))


def test_opcheck_of_the_op_with_out() -> None:
    a = TINY[0].arguments()
    op = torch.ops.gansparse.sparse_conv2d_out.default
    torch.library.opcheck(op, (*by_schema(a), torch.empty_like(sparse_conv2d(**a))))


@pytest.mark.parametrize("sample", [TINY[0], TINY[2], transposed.samples("tiny")[0]], **names)
def test_opcheck_with_gradients(sample: Sample) -> None:
    a = sample.arguments()
    for tensor in (a["input"], a["weight"].values, a["bias"]):
        tensor.requires_grad_()
    torch.library.opcheck(torch.ops.gansparse.sparse_conv2d.default, by_schema(a))


@pytest.mark.parametrize("sample", TINY, **names)
def test_compile(sample: Sample) -> None:
    arguments = sample.arguments()
    torch._dynamo.reset()  # or it counts the samples as one function compiled too often
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(sample, arguments), run(sample, arguments))


# ---- 5. Refusals ---------------------------------------------------------------------------------

GOOD = next(sample for sample in samples("tiny") if sample.name == "prelu-each")


@pytest.mark.parametrize("refusal", REFUSALS, **names)
def test_refuses(refusal: Refusal) -> None:
    arguments = GOOD.arguments()
    sparse_conv2d(**arguments)
    refusal.spoil(arguments)
    with pytest.raises(InputError, match=refusal.message):
        sparse_conv2d(**arguments)


@pytest.mark.parametrize("refusal", [r for r in REFUSALS if not r.needs_values], **names)
def test_refuses_fakes_alike(refusal: Refusal) -> None:
    real = GOOD.arguments()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        arguments = {
            name: mode.from_tensor(value) if isinstance(value, Tensor) else value
            for name, value in real.items()
        }
        *tensors, geometry = real["weight"]
        arguments["weight"] = PackedConv2d(*map(mode.from_tensor, tensors), geometry)
        refusal.spoil(arguments)
        with pytest.raises(InputError, match=refusal.message):
            sparse_conv2d(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(2, 2)}, r"weight must be float32 with 4 dimensions, got .* \[2, 2"),
        (
            {"weight": torch.zeros(1, 1, 3, 3).double()},
            r"weight must be float32 .* got torch.float64",
        ),
        ({"weight": torch.zeros(1, 1, 16, 3)}, r"at most 15 x 15 taps, got \[1, 1, 16, 3\]"),
        ({"stride": 3}, r"stride must be 1 or 2, got 3"),
        ({"vector_size": 5}, r"vector_size must be 1, 4, 8, 16, 32, 64 or 128, got 5"),
        ({"padding_mode": "circular"}, r"padding_mode must be one of .*, got 'circular'"),
        ({"mask": torch.ones(1)}, r"mask must be bool \[4, 4, 3, 3\], got torch.float32 \[1\]"),
    ],
)
def test_refuses_to_pack(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack_sparse_conv2d(**{"weight": torch.ones(4, 4, 3, 3), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"padding": 3}, r"padding must be less than the kernel, got 3 for 3"),
        ({"output_padding": 1}, r"output_padding must be at least 0 and less than stride, got 1"),
    ],
)
def test_refuses_to_pack_transposed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack_sparse_conv_transpose2d(torch.ones(4, 4, 3, 3), **changes)


# ---- 6. Red zones --------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("sample", SMALL, **names)
@every_simd
def test_stays_within_its_arrays(sample: Sample, offset: int, backend: str) -> None:
    zones = RedZones(offset)
    free = sample.arguments()
    want = run(sample, free | {"activation": "relu"})
    guarded = {k: zones.copy(v) if isinstance(v, Tensor) else v for k, v in free.items()}
    *tensors, geometry = (zones.copy(t) if isinstance(t, Tensor) else t for t in free["weight"])
    output = zones.output(*want.shape, dtype=torch.float32)
    _C.sparse_conv2d(
        guarded["input"], *tensors, geometry, guarded["bias"], guarded["residual"], "relu",
        guarded["slope"], output,
    )  # fmt: skip
    zones.check()
    assert torch.equal(output, want)


@every_simd
def test_wrong_offsets_read_nothing_but_the_scratch(backend: str) -> None:
    """A damaged file gives wrong sums, never a wrong access."""
    a = samples("tiny")[0].arguments()
    a["weight"] = a["weight"]._replace(offsets=torch.full_like(a["weight"].offsets, -1))
    assert sparse_conv2d(**a).shape == (2, 6, 9, 7)
