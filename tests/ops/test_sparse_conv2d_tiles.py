# SPDX-License-Identifier: Apache-2.0
"""sparse_conv2d on CUDA: packing and checks need no GPU, the six tests by the op need one.

The kernel itself runs in tests/kernels/test_sparse_conv2d_kernels.py, without a GPU.
"""

from __future__ import annotations

import math
from collections import Counter
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
from gansparse.ops import (
    PackedTiles,
    pack_sparse_conv2d,
    pack_sparse_conv_transpose2d,
    pack_tiles_conv2d,
    pack_tiles_conv_transpose2d,
    sparse_conv2d,
    sparse_conv2d_reference,
    sparse_conv_transpose2d,
    unpack_sparse_conv2d,
    unpack_tiles,
)
from gansparse.ops._library import describe
from gansparse.ops.sparse_conv2d import _gradients
from gansparse.ops.sparse_conv2d_tiles import tile_places
from gansparse.testing import close, same_direction
from gansparse.testing.samples.sparse_conv2d_tiles import TileSample, tile_samples

TINY = tile_samples("tiny")
SMALL = TINY + tile_samples("edge")
# The same for warpgroups, which want steps of 32 channels at one tap.
WHOLE = [replace(s, pattern="2:4", rows=128, sparsity=0.5) for s in SMALL if s.pattern != "vector"]
MODEL = tile_samples("model")
COLUMNS = [
    replace(s, name=f"{s.name} vector", pattern="vector", rows=16, sparsity=0.75) for s in MODEL
]
names = {"ids": lambda case: case.name}


def run(sample: TileSample, arguments: dict[str, Any]) -> Tensor:
    return (sparse_conv_transpose2d if sample.transposed else sparse_conv2d)(**arguments)


def finish(z: Tensor, a: dict[str, Any]) -> Tensor:
    if a["bias"] is not None:
        z = z + a["bias"].to(z.dtype)[:, None, None]
    if a["residual"] is not None:
        z = z + a["residual"].to(z.dtype)
    if a["activation"] in ("leaky_relu", "prelu"):
        slope = torch.as_tensor(a["slope"], dtype=torch.float64, device=z.device)
        return F.prelu(z, slope.to(z.dtype).reshape(-1))
    return z if a["activation"] == "none" else getattr(torch, a["activation"])(z)


# ---- Packing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SMALL + WHOLE[15::5], **names)
def test_packing_loses_nothing(sample: TileSample) -> None:
    weight = sample.dense()
    packed = sample.pack_tiles(weight)
    if sample.transposed:
        expected = unpack_sparse_conv2d(
            pack_sparse_conv_transpose2d(
                weight, stride=sample.stride, padding=sample.padding,
                output_padding=sample.output_padding, vector_size=sample.rows,
            )
        )  # fmt: skip
    else:
        expected = weight
    assert torch.equal(unpack_tiles(packed).float(), expected)


@pytest.mark.parametrize("sample", TINY, **names)
def test_only_what_is_kept_is_packed(sample: TileSample) -> None:
    """A step for each four blocks, or 16 columns, that hold something, rounded up in each list."""
    packed = sample.pack_tiles(sample.dense())
    together = packed.geometry.block
    width, most = (1, 16) if sample.pattern == "vector" else (8, 4)
    g, kept = packed.geometry, unpack_tiles(packed) != 0
    rows = kept.view(g.out_channels, -1, *kept.shape[1:]).transpose(0, 1)
    missing = -g.out_channels % g.vector
    blocks = F.pad(rows.float(), (0, 0, 0, 0, 0, -g.in_channels % together, 0, missing)) != 0
    blocks = blocks.unflatten(1, (-1, g.vector)).unflatten(3, (-1, together // width, width))
    counts = blocks.any(5).any(2).flatten(4).sum((3, 4))  # [phase, tile, chunk]
    wanted = (-(-counts // most)).permute(1, 0, 2).flatten()
    assert packed.starts.diff().tolist() == wanted.tolist()


def test_steps_of_128_rows_are_32_channels_at_a_tap() -> None:
    sample = TileSample("whole", (1, 40, 4, 4), 130, sparsity=0.7, rows=128)
    packed = sample.pack_tiles(sample.dense())
    assert torch.equal(packed.places % 4, torch.arange(4).expand_as(packed.places))
    assert torch.equal(packed.places // 4, packed.places[:, :1].expand(-1, 4) // 4)
    kept = F.pad((sample.dense() != 0).float(), (0, 0, 0, 0, 0, 24, 0, 126))
    blocks = kept.unflatten(1, (-1, 32)).unflatten(0, (-1, 128)).amax((1, 3))  # [tile, chunk, R, S]
    assert packed.starts.diff().tolist() == blocks.sum((2, 3)).flatten().int().tolist()


@pytest.mark.parametrize(
    ("sparsity", "channels", "most"),
    [(0.5, 32, 1.25), (0.75, 32, 1.4), (0.9, 32, 1.55), (0.5, 64, 1.2), (0.75, 64, 1.35)],
)
def test_columns_that_are_read_together_lie_in_different_banks(
    sparsity: float, channels: int, most: float
) -> None:
    """Rows of 16 bytes of channels that are equal modulo 8 meet in a bank, but for the same row."""
    sample = TileSample("banks", (1, 256, 4, 4), 64, pattern="vector", rows=16, sparsity=sparsity,
                        list_channels=channels)  # fmt: skip
    places = sample.pack_tiles(sample.dense()).places.view(-1, 8).tolist()
    meet = [max(Counter(place % 8 for place in set(eight)).values()) for eight in places]
    assert sum(meet) / len(meet) < most
    # No order is better where a list has more columns of one bank than eights.
    assert max(meet) <= 4


@pytest.mark.parametrize(
    ("pattern", "rows", "width"), [("block", 16, 8), ("2:4", 32, 8), ("vector", 16, 1)]
)
def test_what_fills_a_step_up_is_read_already(pattern: Any, rows: int, width: int) -> None:
    """With ones for all values nothing is there but in blocks that hold something."""
    sample = TileSample("fill", (1, 40, 4, 4), 64, pattern=pattern, rows=rows, sparsity=0.8)
    packed = sample.pack_tiles(sample.dense())
    assert (packed.places[:, 1:] == packed.places[:, :-1]).any(), "some step is filled up"
    ones = packed._replace(values=torch.ones_like(packed.values))
    read, kept = (
        F.max_pool3d((x != 0).float()[None].flatten(3), (rows, width, 1), (rows, width, 1))
        for x in (unpack_tiles(ones), sample.dense())
    )
    assert torch.equal(read, kept)


def test_metadata_names_the_two_that_stayed() -> None:
    """Row 3, products 20 … 23: bits 16 + 4 … of lane 13; row 11's of the same lane, higher up."""
    weight = torch.zeros(32, 32, 1, 1)
    weight[0, ::8] = 1.0  # all four blocks are kept, so product k is channel k
    weight[3, [21, 23]] = 1.0
    weight[11, [20, 22]] = 2.0
    weight[19, [22, 23]] = 3.0  # rows from 16 on: lanes 2 and 3 of four
    metadata = pack_tiles_conv2d(weight).metadata[0, 0].long() & 0xFFFFFFFF
    place = 4 * (20 % 16 // 4)
    assert metadata[13] >> place & 0xF == 1 | 3 << 2
    assert metadata[13] >> 16 + place & 0xF == 0 | 2 << 2
    assert metadata[15] >> place & 0xF == 2 | 3 << 2


def test_a_row_with_fewer_than_two_is_filled_up_in_order() -> None:
    weight = torch.zeros(32, 8, 1, 1)
    weight[:, 3] = 1.0
    packed = pack_tiles_conv2d(weight)
    assert packed.metadata[0, 0, 0] & 0xF == 0 | 3 << 2
    assert torch.equal(unpack_tiles(packed).float(), weight)


def test_places_are_where_the_values_were() -> None:
    sample = TileSample("places", (1, 40, 4, 4), 40, sparsity=0.3)
    packed = sample.pack_tiles(sample.dense())
    matrix = F.pad(sample.dense(), (0, 0, 0, 0, 0, 24, 0, 24))
    found = matrix.flatten()[tile_places(packed)]
    real = packed.values != 0
    assert torch.equal(found[real], packed.values.float()[real])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "4:8"}, r"pattern must be 2:4, block or vector, got '4:8'"),
        ({"rows": 16}, r"rows must be 32, 64 or 128 for pattern 2:4, got 16"),
        ({"pattern": "block", "rows": 64}, r"rows must be 16 or 32 for pattern block, got 64"),
        ({"list_channels": 64}, r"list_channels must be 32, or 64 for vector, got 64"),
        ({"pattern": "vector"}, r"rows must be 16 for pattern vector, got 32"),
        ({"dtype": torch.float32}, r"dtype must be float16 or bfloat16, got torch.float32"),
        ({"weight": torch.zeros(4, 12, 3, 3)}, r"multiple of 8 input channels, got 12"),
        ({"weight": torch.zeros(4, 8, 10, 1)}, r"at most 9 x 9 taps, got 10 x 1"),
        ({"weight": torch.ones(4, 8, 1, 1)}, r"at most two of each four neighbouring input"),
        ({"stride": 3}, r"stride must be 1 or 2, got 3"),
    ],
)
def test_refuses_to_pack(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack_tiles_conv2d(**{"weight": torch.zeros(4, 8, 3, 3), **changes})


def test_refuses_to_pack_transposed() -> None:
    with pytest.raises(InputError, match="padding must be less than the kernel, got 3 for 3"):
        pack_tiles_conv_transpose2d(torch.zeros(8, 4, 3, 3), padding=3)


# ---- 1. Values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", TINY, **names)
def test_values_of_the_reference(sample: TileSample) -> None:
    a = sample.arguments()
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in a.items()}
    want = finish(sample.convolve(a["input"].double(), sample.dense().double()), a)
    close(sparse_conv2d_reference(**wide), want, terms=10**4)


def check_values(sample: TileSample) -> None:
    """Against cuDNN in float32 with TF32 off, on the very same numbers."""
    a = sample.arguments(device="cuda")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        input, weight = a["input"].float(), sample.dense().cuda()
        want = finish(sample.convolve(input, weight), a)
        none = {k: v.abs() if isinstance(v, Tensor) else v for k, v in a.items()}
        sizes = finish(sample.convolve(input.abs(), weight.abs()), none | {"activation": "none"})
    terms = math.prod(weight.shape[1:]) * (4 if sample.transposed else 1) + 4
    ratio = torch.finfo(torch.float32).eps / torch.finfo(sample.dtype).eps
    steepest = max(1.0, float(torch.as_tensor(a["slope"]).abs().max()))
    scale = want.abs() / 2 + 2 * ratio * math.sqrt(terms) * sizes * steepest + 2.0**-14
    close(run(sample, a), want.double(), terms=1, scale=scale)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", SMALL + MODEL + COLUMNS, **names)
def test_values(sample: TileSample) -> None:
    check_values(sample)


@pytest.mark.cuda
@pytest.mark.parametrize("sample", WHOLE + [replace(s, rows=128) for s in MODEL], **names)
def test_values_on_warpgroups(sample: TileSample) -> None:
    """Where the device and the build have them; elsewhere one line tells what is missing."""
    built = "90a" in str(_C.build_info()["cuda_architectures"])
    if built and torch.cuda.get_device_capability() == (9, 0):
        check_values(sample)
    else:
        with pytest.raises(RuntimeError, match=r"128 rows need .* capability 9\.0 and a build for"):
            run(sample, sample.arguments(device="cuda"))


# ---- 2. Gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [TINY[0], TINY[3], TINY[7], *TINY[-5:], WHOLE[0]], **names)
def test_gradients_of_the_packed_weight(sample: TileSample) -> None:
    """The backward formula on the CPU, in bfloat16, against the dense one in float64."""
    a = sample.arguments()
    *tensors, g = a["weight"]
    input, dense = a["input"].double().requires_grad_(), sample.dense().double().requires_grad_()
    y = sample.convolve(input, dense)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(sample.dtype)
    y.backward(grad.double())
    ctx = SimpleNamespace(
        saved_tensors=(a["input"], *tensors), geometry=list(g), fused=False,
        biases=y.shape[1], added=False, needs_input_grad=(True, True),
    )  # fmt: skip
    grad_input, grad_values, *_, grad_bias, _, _, _, _ = _gradients(ctx, grad)
    assert None not in (grad_input, grad_values, grad_bias)
    pixels = y.numel() // y.shape[1]
    terms = 4 * math.prod(dense.shape[1:])
    same_direction(grad_input, input.grad, terms=terms, name="input")
    close(grad_bias, grad.double().sum((0, 2, 3)), terms=4 * pixels)
    unpacked = unpack_tiles(PackedTiles(grad_values, *tensors[1:], g))
    masked = dense.grad * (dense != 0)
    pack = pack_sparse_conv_transpose2d if sample.transposed else pack_sparse_conv2d
    extra = {"output_padding": sample.output_padding} if sample.transposed else {}
    options = {"stride": sample.stride, "padding": sample.padding, "vector_size": sample.rows}
    want = unpack_sparse_conv2d(pack(masked.float(), mask=dense != 0, **options, **extra))
    assert not unpacked[want == 0].any(), "what was pruned has no gradient"
    same_direction(unpacked, want.double(), terms=4 * pixels, name="values")


@pytest.mark.cuda
@pytest.mark.parametrize("sample", TINY, **names)
def test_gradients(sample: TileSample) -> None:
    got = sample.arguments(device="cuda")
    values = got["weight"].values.requires_grad_()
    got["input"].requires_grad_()
    y = run(sample, got)
    y.float().square().sum().backward()
    assert got["input"].grad.isfinite().all()
    assert values.grad.shape == values.shape
    assert not values.grad[values == 0].any()


# ---- 3. opcheck, 4. compile ----------------------------------------------------------------------


def by_schema(a: dict[str, Any]) -> tuple[Any, ...]:
    *tensors, geometry = a["weight"]
    slope = a["slope"]
    number, slopes = (0.0, slope) if isinstance(slope, Tensor) else (slope, None)
    options = (a["bias"], a["residual"], a["activation"], number, slopes)
    return a["input"], *tensors, list(geometry), *options


@pytest.mark.cuda
@pytest.mark.parametrize("sample", TINY, **names)
def test_opcheck(sample: TileSample) -> None:
    op = torch.ops.gansparse.sparse_conv2d_tiles.default
    torch.library.opcheck(op, by_schema(sample.arguments(device="cuda")))


@pytest.mark.cuda
@pytest.mark.parametrize("sample", TINY[:4], **names)
def test_compile(sample: TileSample) -> None:
    a = sample.arguments(device="cuda")
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(sample, a), run(sample, a))


# ---- 5. Refusals: by description, so that no GPU is needed ---------------------------------------

GOOD = next(sample for sample in TINY if sample.name == "prelu-each")


def on_cuda(tensor: Tensor | None) -> Any:
    """The description of this tensor on a GPU."""
    if tensor is None:
        return None
    name = str(tensor.dtype).removeprefix("torch.")
    return _C.TensorSpec(list(tensor.shape), list(tensor.stride()), name, "cuda", 0)


def call(**changes: Any) -> None:
    """The core with described arguments; changes are tensors to describe, or plain values."""
    a = GOOD.arguments()
    values, metadata, places, starts, geometry = a["weight"]
    fields = {
        "input": a["input"], "values": values, "metadata": metadata, "places": places,
        "starts": starts, "geometry": geometry, "bias": a["bias"], "residual": a["residual"],
        "activation": "prelu", "slope": a["slope"],
        "output": torch.empty_like(a["residual"]),
    }  # fmt: skip
    for name, change in changes.items():
        fields[name] = change(fields[name])
    described = {k: on_cuda(v) if isinstance(v, Tensor) else v for k, v in fields.items()}
    _C.sparse_conv2d_tiles(**described)


def test_good_arguments_are_not_refused() -> None:
    call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": lambda x: x.float()}, r"input must be bfloat16 \[N, 16, H, W\] on cuda, got fl"),
        ({"input": describe}, r"input must be bfloat16 \[N, 16, H, W\] on cuda, got bf"),
        ({"input": lambda x: x[:, :8]}, r"input must be bfloat16 \[N, 16, H, W\] on cuda"),
        ({"input": lambda x: x.contiguous()}, r"input must be channels_last, got bfloat16"),
        ({"residual": lambda x: x.contiguous()}, r"residual must be channels_last"),
        ({"residual": lambda x: x[:, :, 1:]}, r"residual must be bfloat16 \[2, 32, 9, 7\] on cuda"),
        ({"bias": lambda x: x.half()}, r"bias must be float32 \[32\] on cuda:0, got float16"),
        ({"slope": lambda x: x[:3]}, r"slope must be float32 \[32\] on cuda:0, got float32 \[3\]"),
        ({"activation": lambda _: "gelu"}, r"activation must be none, relu, .* got gelu"),
        ({"values": lambda x: x.float()}, r"weight.values must be float16 or bfloat16, got f"),
        ({"values": lambda x: x[1:]}, r"weight.values must be bfloat16 \[\d+, 2, 1, 32, 8\]"),
        ({"metadata": lambda x: x[1:]}, r"weight.metadata must be int32 \[\d+, 1, 32\]"),
        ({"places": lambda x: x.int()}, r"weight.places must be int16 \[\d+, 4\]"),
        ({"starts": lambda x: x[1:]}, r"weight.starts must be int32 \[2\] on cuda:0"),
        ({"geometry": lambda g: g._replace(block=16)}, r"geometry.block must be 32 on CUDA"),
        ({"geometry": lambda g: g._replace(vector=16)}, r"vector must be 32, 64 or 128 for 2:4, g"),
        ({"geometry": lambda g: g._replace(in_channels=12)}, r"in_channels must be a multiple"),
        ({"geometry": lambda g: g._replace(taps_h=11, patch=1)}, r"must be"),
        ({"geometry": lambda g: g._replace(stride=3)}, r"stride must be 1 or 2, got 3"),
        ({"output": lambda x: x[:, :16]}, r"output must be bfloat16 \[2, 32, 9, 7\] on cuda"),
    ],
)  # fmt: skip
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"sparse_conv2d: .*{message}"):
        call(**changes)


def test_refuses_tensors_on_the_cpu() -> None:
    with pytest.raises(InputError, match=r"input must be bfloat16 \[N, 16, H, W\] on cuda, got"):
        sparse_conv2d(**GOOD.arguments())


@pytest.mark.parametrize("sample", TINY, **names)
def test_fakes_have_shape_and_layout_and_are_refused_alike(sample: TileSample) -> None:
    a = sample.arguments()
    with FakeTensorMode(allow_non_fake_inputs=True):

        def fake(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            like = {"dtype": value.dtype, "device": "cuda"}
            return torch.empty_strided(value.shape, value.stride(), **like)

        *tensors, geometry = a["weight"]
        faked = {name: fake(value) for name, value in a.items()}
        faked["weight"] = PackedTiles(*map(fake, tensors), geometry)
        y = run(sample, faked)
        with pytest.raises(InputError, match=r"input must be .* on cuda, got float32 .* on cuda:0"):
            run(sample, faked | {"input": faked["input"].float()})
    assert y.shape == sample.convolve(a["input"].float(), sample.dense()).shape
    assert (y.dtype, y.device.type) == (sample.dtype, "cuda")
    assert y.is_contiguous(memory_format=torch.channels_last)


# ---- 6. Red zones: in the emulator, by AddressSanitizer; here with the memory of torch -----------


@pytest.mark.cuda
@pytest.mark.parametrize("sample", TINY, **names)
def test_stays_within_its_arrays(sample: TileSample) -> None:
    a = sample.arguments(device="cuda")
    want = run(sample, a | {"activation": "relu"})
    whole = torch.full((want.numel() + 256,), torch.nan, dtype=sample.dtype, device="cuda")
    n, o, h, w = want.shape
    output = whole[128:-128].view(n, h, w, o).permute(0, 3, 1, 2)
    *tensors, geometry = a["weight"]
    stream = torch.cuda.current_stream().cuda_stream
    _C.sparse_conv2d_tiles(
        a["input"], *tensors, geometry, a["bias"], a["residual"], "relu", a["slope"], output, stream
    )
    assert torch.equal(output, want)
    assert whole[:128].isnan().all()
    assert whole[-128:].isnan().all()
