# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d on CUDA in float32, by packed lists: checks and the transposed packing need no GPU.

The kernels themselves run in tests/kernels/test_sparse_conv2d_lists_kernels.py, without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gansparse import _C
from gansparse.errors import InputError
from gansparse.ops import PackedConv2d, sparse_conv2d, sparse_conv_transpose2d
from gansparse.ops import sparse_conv2d_gradients as gradients
from gansparse.ops.sparse_conv2d import _gradients
from gansparse.testing import close, same_direction
from gansparse.testing.samples import sparse_conv_transpose2d as transposed
from gansparse.testing.samples.sparse_conv2d import Sample, samples

TINY = samples("tiny") + transposed.samples("tiny")
SMALL = TINY + samples("edge") + transposed.samples("edge")
MODEL = samples("model") + transposed.samples("model")
names = {"ids": lambda case: ("transposed-" if getattr(case, "transposed", 0) else "") + case.name}


def run(sample: Sample, arguments: dict[str, Any]) -> Tensor:
    return (sparse_conv_transpose2d if sample.transposed else sparse_conv2d)(**arguments)


def moved(a: dict[str, Any], to: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """All tensors elsewhere, those of the weight too."""
    *tensors, geometry = a["weight"]
    out = {name: to(value) if isinstance(value, Tensor) else value for name, value in a.items()}
    return out | {"weight": PackedConv2d(*map(to, tensors), geometry)}


def on_cuda(sample: Sample) -> dict[str, Any]:
    return moved(sample.arguments(), lambda tensor: tensor.cuda())


def by_schema(a: dict[str, Any]) -> tuple[Any, ...]:
    *tensors, geometry = a["weight"]
    number, slopes = (0.0, a["slope"]) if isinstance(a["slope"], Tensor) else (a["slope"], None)
    options = (a["bias"], a["residual"], a["activation"], number, slopes)
    return a["input"], *tensors, list(geometry), *options


# ---- The way back: the transposed packing, on the CPU --------------------------------------------

ZEROS = [s for s in SMALL if s.padding_mode == "zeros" and min(s.shape) > 0]
BACK = [s for s in ZEROS if s in TINY or s.transposed or "stride" in s.name or "padding" in s.name]


@pytest.mark.parametrize("sample", BACK, **names)
def test_gradient_of_the_input_by_the_transposed_packing(sample: Sample) -> None:
    """Against torch's of the dense convolution in float64."""
    a = sample.arguments()
    input = a["input"].double().requires_grad_()
    y = sample.convolve(input, sample.dense().double())
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    y.backward(grad.double())
    *tensors, g = a["weight"]
    got = torch.ops.gansparse.sparse_conv2d_input_gradient(
        grad, *tensors, list(g), *sample.shape[2:]
    )
    size = input.detach().abs().requires_grad_()
    sample.convolve(size, sample.dense().double().abs()).backward(grad.double().abs())
    close(got, input.grad, terms=sample.dense().numel() // sample.shape[1], scale=size.grad)


def test_the_transposed_packing_is_made_once_for_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = gradients.transposed_packing
    monkeypatch.setattr(
        gradients, "transposed_packing", lambda weight: made.append(1) or original(weight)
    )
    *tensors, g = samples("tiny")[0].arguments()["weight"]
    op, grad = torch.ops.gansparse.sparse_conv2d_input_gradient, torch.ones(2, 6, 9, 7)
    first = op(grad, *tensors, list(g), 9, 7)
    tensors[0] = tensors[0] * 2  # other values, the same mask
    assert torch.equal(op(grad, *tensors, list(g), 9, 7), 2 * first)
    assert len(made) == 1
    tensors[1].copy_(tensors[1].flip(0))  # other weights were kept
    assert not torch.equal(op(grad, *tensors, list(g), 9, 7), 2 * first)
    assert len(made) == 2


@pytest.mark.parametrize("sample", [TINY[0], TINY[3], TINY[4], transposed.samples("tiny")[0]],
                         **names)  # fmt: skip
def test_opcheck_of_the_gradient_of_the_input(sample: Sample) -> None:
    a = sample.arguments()
    *tensors, g = a["weight"]
    grad = torch.ones(sample.convolve(a["input"], sample.dense()).shape)
    op = torch.ops.gansparse.sparse_conv2d_input_gradient.default
    torch.library.opcheck(op, (grad, *tensors, list(g), *sample.shape[2:]))


@pytest.mark.parametrize("sample", [TINY[0], TINY[2], transposed.samples("tiny")[0]], **names)
def test_fakes_on_cuda(sample: Sample) -> None:
    """Forward and back through the ops' fakes: devices, shapes, checks; no GPU."""
    real = sample.arguments()
    with FakeTensorMode(allow_non_fake_inputs=True):
        a = moved(real, lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda"))
        y = run(sample, a)
        ctx = SimpleNamespace(
            saved_tensors=(a["input"], *a["weight"][:4]), geometry=list(a["weight"].geometry),
            fused=False, biases=y.shape[1], added=False, needs_input_grad=(True, True),
        )  # fmt: skip
        of_input, of_values, *_, of_bias, _, _, _, _ = _gradients(ctx, torch.empty_like(y))
        with pytest.raises(InputError, match=r"bias must be float32 \[6\] on cuda:0, got float16"):
            run(sample, a | {"bias": torch.empty(6, dtype=torch.half, device="cuda")})
    assert y.shape == sample.convolve(real["input"], sample.dense()).shape
    leaves = (a["input"], a["weight"].values, a["bias"])
    for gradient, leaf in zip((of_input, of_values, of_bias), leaves, strict=True):
        assert gradient.shape == leaf.shape
        assert gradient.device.type == "cuda"


# ---- Refusals: by description, so that no GPU is needed ------------------------------------------

GOOD = next(sample for sample in samples("tiny") if sample.name == "prelu-each")


def described(value: Any, index: int = 0) -> Any:
    """The description of this tensor on a GPU; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    name = str(value.dtype).removeprefix("torch.")
    return _C.TensorSpec(list(value.shape), list(value.stride()), name, "cuda", index)


def call(gradient: bool, changes: dict[str, Callable[[Any], Any]]) -> None:
    """The core with described arguments; what changes give is described, unless it is already."""
    a = GOOD.arguments()
    values, offsets, starts, rows, geometry = a["weight"]
    fields = {"input": a["input"], "offsets": offsets, "starts": starts, "rows": rows,
              "geometry": geometry}  # fmt: skip
    if gradient:
        fields |= {"grad": a["residual"], "output": values}
    else:
        fields |= {"values": values, "bias": a["bias"], "residual": a["residual"],
                   "activation": "prelu", "slope": a["slope"], "out": a["residual"]}  # fmt: skip
    for name, change in changes.items():
        fields[name] = change(fields[name])
    function = _C.sparse_conv2d_gradient if gradient else _C.sparse_conv2d
    function(**{name: described(value) for name, value in fields.items()})


@pytest.mark.parametrize("gradient", [False, True])
def test_good_arguments_are_not_refused(gradient: bool) -> None:
    call(gradient, {})


LISTS: list[tuple[dict[str, Callable[[Any], Any]], str]] = [
    ({"input": lambda x: x.half()}, r"input must be float32 \[N, 5, H, W\] on cuda:0, got float16"),
    ({"input": lambda x: x[:, :4]}, r"input must be float32 \[N, 5, H, W\] on cuda:0"),
    ({"input": lambda x: x.to(memory_format=torch.channels_last)}, r"input must be contiguous"),
    ({"input": lambda x: described(x, 1)}, r"weight.offsets must be int16 \[\d+\] on cuda:1"),
    ({"offsets": lambda x: x.int()}, r"weight.offsets must be int16 \[\d+\] on cuda:0, got int32"),
    ({"starts": lambda x: x[1:]}, r"weight.starts must be int32 \[7\] on cuda:0, got int32 \[6\]"),
    ({"rows": lambda x: x[1:]}, r"weight.rows must be int32 \[6\] on cuda:0, got int32 \[5\]"),
    ({"geometry": lambda g: g._replace(stride=3)}, r"weight.geometry.stride must be 1 or 2, got 3"),
    (
        {
            "input": lambda _: _C.TensorSpec(
                [2**20, 5, 32, 32], [5 * 2**10, 2**10, 32, 1], "float32", "cuda", 0
            )
        },
        r"input must have at most 2\^31 elements on cuda",
    ),
]


@pytest.mark.parametrize(("changes", "message"), LISTS)
@pytest.mark.parametrize("gradient", [False, True])
def test_refuses(gradient: bool, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"sparse_conv2d: .*{message}"):
        call(gradient, changes)


@pytest.mark.parametrize(
    ("gradient", "changes", "message"),
    [
        (False, {"values": lambda x: x.half()}, r"weight.values must be float32 .* on cuda:0"),
        (False, {"bias": lambda x: x[:5]}, r"bias must be float32 \[6\] on cuda:0, got"),
        (False, {"residual": lambda x: x[:, 1:]}, r"residual must be float32 \[2, 6, 9, 7\] on cu"),
        (False, {"slope": lambda x: x[:3]}, r"slope must be float32 \[6\] on cuda:0"),
        (False, {"out": lambda x: x[:1]}, r"out must be float32 \[2, 6, 9, 7\] on cuda:0"),
        (True, {"grad": lambda x: x.double()}, r"grad must be float32 \[2, 6, 9, 7\] on cuda:0"),
        (True, {"grad": lambda x: x[:, :, 1:]}, r"grad must be float32 \[2, 6, 9, 7\] on cuda:0"),
        (True, {"output": lambda x: x[1:]}, r"output must be float32 \[\d+, 1\] on cuda:0, got"),
    ],
)  # fmt: skip
def test_refuses_what_only_one_takes(gradient: bool, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"sparse_conv2d: .*{message}"):
        call(gradient, changes)


def test_refuses_the_gradient_of_the_values_on_the_cpu() -> None:
    a = GOOD.arguments()
    _, offsets, starts, rows, g = a["weight"]
    op = torch.ops.gansparse.sparse_conv2d_values_gradient
    with pytest.raises(InputError, match=r"input must be on cuda, got float32 .* on cpu"):
        op(a["residual"], a["input"], offsets, starts, rows, list(g))


# ---- On a GPU ------------------------------------------------------------------------------------


def finish(z: Tensor, a: dict[str, Any]) -> Tensor:
    """Bias, residual and activation, as torch has them."""
    if a["bias"] is not None:
        planes = a["bias"][:, None, None]
        if len(planes) > z.shape[1]:  # one a phase
            high, wide = z.shape[2:]
            planes = F.pixel_shuffle(planes, 2).repeat(1, high, wide)[:, :high, :wide]
        z = z + planes
    z = z if a["residual"] is None else z + a["residual"]
    if a["activation"] in ("leaky_relu", "prelu"):
        slope = torch.as_tensor(a["slope"], device=z.device).to(z.dtype).reshape(-1)
        return F.prelu(z, slope)
    return z if a["activation"] == "none" else getattr(torch, a["activation"])(z)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", SMALL + MODEL, **names)
def test_values(sample: Sample) -> None:
    """Against torch's dense convolution in float64, and cuDNN's in float32 (TF32 off) as close."""
    a, weight = on_cuda(sample), sample.dense().cuda()
    wide = moved(a, lambda t: t.double() if t.is_floating_point() else t)
    want = finish(sample.convolve(wide["input"], weight.double()), wide)
    sizes = moved(wide, lambda t: t.abs() if t.is_floating_point() else t)
    scale = finish(
        sample.convolve(sizes["input"], weight.double().abs()), sizes | {"activation": "none"}
    )
    scale = scale * max(1.0, float(torch.as_tensor(a["slope"]).abs().max()))
    terms = weight.numel() // sample.out * (4 if sample.transposed else 1) + 4
    close(run(sample, a), want, terms=terms, scale=scale, name="ours")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        dense = finish(sample.convolve(a["input"], weight), a)
    # Winograd's transforms, which cuDNN may choose, lose a few bits more.
    close(dense, want, terms=64 * terms, scale=scale, name="cuDNN")


@pytest.mark.cuda
@pytest.mark.parametrize("sample", TINY + MODEL[:1] + MODEL[-1:], **names)
def test_gradients(sample: Sample) -> None:
    """Against those of the dense convolution in float64; ours have the same bits twice."""
    a, dense = on_cuda(sample), sample.dense().cuda().double().requires_grad_()
    trained = {n: a[n] for n in ("input", "bias", "residual", "slope") if isinstance(a[n], Tensor)}
    trained["values"] = a["weight"].values
    for tensor in trained.values():
        tensor.requires_grad_()
    y = run(sample, a)
    grad = torch.randn(y.shape, device="cuda")
    got = torch.autograd.grad(y, list(trained.values()), grad, retain_graph=True)
    again = torch.autograd.grad(y, list(trained.values()), grad)
    for name, one, other in zip(trained, got, again, strict=True):
        # torch's own gradient of a mirrored padding adds in any order.
        if name == "values" or (name == "input" and sample.padding_mode == "zeros"):
            assert torch.equal(one, other)
    wide = {n: a[n].detach().double().requires_grad_() for n in trained if n != "values"}
    z = finish(sample.convolve(wide["input"], dense), a | wide)
    z.backward(grad.double())
    kept = sample.pack(dense.grad.float().cpu(), dense.detach().cpu() != 0).values
    pixels, count = y.numel() // y.shape[1], dense.numel()
    for name, value in zip(trained, got, strict=True):
        want = kept.double() if name == "values" else wide[name].grad
        terms = 4 * (count if name == "input" else pixels * count)
        same_direction(value, want, terms=terms, name=name)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", TINY, **names)
def test_opcheck_and_compile(sample: Sample) -> None:
    a = on_cuda(sample)
    torch.library.opcheck(torch.ops.gansparse.sparse_conv2d.default, by_schema(a))
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(sample, a), run(sample, a))


@pytest.mark.cuda
def test_without_pictures() -> None:
    a = on_cuda(replace(TINY[0], shape=(0, 5, 9, 7)))
    a["weight"].values.requires_grad_()
    run(TINY[0], a).sum().backward()
    assert not a["weight"].values.grad.any()


@pytest.mark.cuda
@pytest.mark.parametrize("sample", TINY, **names)
def test_stays_within_its_arrays(sample: Sample) -> None:
    a = on_cuda(sample)
    want = run(sample, a | {"activation": "relu"})
    whole = torch.full((want.numel() + 256,), torch.nan, device="cuda")
    output = whole[128:-128].view(want.shape)
    *tensors, g = a["weight"]
    stream = torch.cuda.current_stream().cuda_stream
    _C.sparse_conv2d(
        a["input"], *tensors, g, a["bias"], a["residual"], "relu", a["slope"], output, stream
    )
    assert torch.equal(output, want)
    assert whole[:128].isnan().all()
    assert whole[-128:].isnan().all()
