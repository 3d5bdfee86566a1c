# SPDX-License-Identifier: Apache-2.0
"""Arrays of other libraries go into the ops by DLPack: nothing is copied, streams are honoured."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gansparse import _C, ops
from gansparse.errors import InputError
from gansparse.ops import (
    PackedTiles,
    feature_moments,
    mask_update,
    masked_adam,
    pack_sparse_conv2d,
    pack_sparse_conv_transpose2d,
    pack_tiles_conv2d,
    sparse_conv2d,
    sparse_conv_transpose2d,
)
from gansparse.testing.samples import feature_moments as moments
from gansparse.testing.samples import mask_update as masks
from gansparse.testing.samples import masked_adam as adam


class OnlyDLPack:
    """An array of a library that nobody knows."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> object:
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()


def as_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.numpy().copy()


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "numpy": as_numpy,
    "unknown": lambda tensor: OnlyDLPack(tensor.clone()),
}
OPS: dict[str, tuple[Callable[..., None], Callable[[], dict[str, Any]]]] = {
    "masked_adam": (masked_adam, lambda: adam.samples("tiny")[2].arguments()),
    "mask_update": (mask_update, lambda: masks.samples("tiny")[0].arguments()),
    "feature_moments": (feature_moments, lambda: moments.samples("tiny")[1].arguments()),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def converted(value: Any, convert: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return convert(value)
    return [converted(item, convert) for item in value] if isinstance(value, list) else value


def as_tensors(value: Any) -> list[Tensor]:
    """All arrays of an argument."""
    if isinstance(value, list):
        return [tensor for item in value for tensor in as_tensors(item)]
    if isinstance(value, Tensor):  # torch 2.9 exports none from a device that is not current
        return [value]
    return [torch.from_dlpack(value)] if hasattr(value, "__dlpack__") else []


@pytest.mark.parametrize("op", [*_C.OPS, "sparse_conv_transpose2d"])
def test_every_op_takes_arrays(op: str) -> None:
    class Half:
        """Has no __dlpack_device__."""

        def __dlpack__(self) -> None:
            """Is not even called."""

    run = getattr(ops, op)
    needed = [p for p in inspect.signature(run).parameters.values() if p.default is p.empty]
    numbers = {"prune": [0], "lr": 0.1}
    given = {p.name: numbers.get(p.name, [Half()]) for p in needed}
    with pytest.raises(InputError, match=rf"^{op}: {needed[0].name}\[0\] cannot be shared"):
        run(**given)


@every_kind
@pytest.mark.parametrize("op", OPS)
def test_written_in_place(op: str, kind: str) -> None:
    run, make = OPS[op]
    want = make()
    got = {name: converted(value, KINDS[kind]) for name, value in make().items()}
    run(**want)
    run(**got)
    before = make()
    changed = 0
    for name in want:
        arrays = [as_tensors(arguments[name]) for arguments in (want, got, before)]
        for one, two, old in zip(*arrays, strict=True):
            assert torch.equal(one, two), name
            changed += not torch.equal(one, old)
    assert changed, "the op has written nothing"


@every_kind
def test_convolutions_return_tensors(kind: str) -> None:
    x, residual = torch.randn(2, 3, 6, 5), torch.randn(2, 8, 6, 5)
    weight, bias, slope = torch.randn(8, 3, 3, 3), torch.randn(8), torch.rand(8)
    packed = pack_sparse_conv2d(weight, padding=(1, 1))
    options = {"residual": residual, "activation": "prelu", "slope": slope}
    foreign = {name: converted(value, KINDS[kind]) for name, value in options.items()}
    want = sparse_conv2d(x, packed, bias, **options)
    got = sparse_conv2d(KINDS[kind](x), packed, KINDS[kind](bias), **foreign)
    assert isinstance(got, Tensor)
    assert torch.equal(got, want)
    packed = pack_sparse_conv_transpose2d(weight.transpose(0, 1).contiguous(), stride=2)
    want = sparse_conv_transpose2d(x, packed, bias)
    assert torch.equal(sparse_conv_transpose2d(KINDS[kind](x), packed, KINDS[kind](bias)), want)


def test_views_keep_their_strides() -> None:
    x = np.random.default_rng(0).random((2, 6, 5, 3), np.float32).transpose(0, 3, 1, 2)
    packed = pack_sparse_conv2d(torch.randn(4, 3, 3, 3))
    assert torch.equal(sparse_conv2d(x, packed), sparse_conv2d(torch.from_numpy(x), packed))


def read_only() -> np.ndarray:
    array = np.zeros((2, 2))
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({"second": np.zeros((2, 2))[::-1]}, "second must have no negative strides: copy it"),
        ({"second": read_only()}, "second must be writable: copy it"),
        ({"total": np.array(["a", "b"])}, "total cannot be shared through DLPack: "),
        ({"total": np.zeros(2, "f")}, "total must be float64 .*, got float32"),
    ],
    ids=["reversed", "read-only", "text", "dtype"],
)
def test_refuses(spoiled: dict[str, Any], message: str) -> None:
    good = {"features": np.ones((3, 2), "f"), "total": np.zeros(2), "second": np.zeros((2, 2))}
    with pytest.raises(InputError, match=f"feature_moments: {message}"):
        feature_moments(**good | spoiled)
    assert not good["total"].any()


def test_refuses_an_item_by_its_number() -> None:
    arguments = OPS["mask_update"][1]()
    scores = [score.numpy() for score in arguments.pop("scores")]
    scores[1] = scores[1][::-1]
    with pytest.raises(InputError, match=r"mask_update: scores\[1\] must have no negative strides"):
        mask_update(scores, **arguments)


# ---- Streams and devices -------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("op", OPS)
def test_runs_where_its_arrays_are(op: str) -> None:
    """On the second device, while the first is current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine lacks a second CUDA device")
    run, make = OPS[op]
    want = {name: converted(value, lambda t: t.to("cuda:0")) for name, value in make().items()}
    got = {name: converted(value, lambda t: t.to("cuda:1")) for name, value in make().items()}
    run(**want)
    run(**got)
    assert torch.cuda.current_device() == 0
    for name in want:
        for one, two in zip(as_tensors(want[name]), as_tensors(got[name]), strict=True):
            assert torch.equal(one, two.to("cuda:0")), name


def test_exports_happen_on_the_arrays_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.9 refuses others; here with a device that only records, and an export that fails."""
    calls: list[Any] = []

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            calls.append(("enter", self.index))

        def __exit__(self, *_: object) -> None:
            calls.append(("exit", self.index))

    class Elsewhere:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 1

        def __dlpack__(self, stream: int) -> object:
            calls.append(("export", stream))
            raise BufferError("no")

    monkeypatch.setattr(torch.cuda, "device", Device)
    spare = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(BufferError, match="no"):
        _C.feature_moments(Elsewhere(), spare, torch.zeros(3, 3).double())
    assert calls == [("enter", 1), ("export", -1), ("exit", 1)]


MANY = 1 << 24
LONG = 10**8  # cycles: some 50 ms, in which an unordered kernel would long have run


@pytest.fixture(params=["cupy's stream", "torch's stream", "both", "neither"])
def streams(request: pytest.FixtureRequest) -> Any:
    """CuPy, while it and torch have their own streams current, or do not."""
    cupy = pytest.importorskip("cupy")
    ours = torch.cuda.Stream() if request.param in ("torch's stream", "both") else None
    theirs = request.param in ("cupy's stream", "both")
    stream = cupy.cuda.Stream(non_blocking=True) if theirs else cupy.cuda.Stream.null
    with torch.cuda.stream(ours), stream:
        yield cupy
    torch.cuda.synchronize()


def late(cupy: Any) -> None:
    """Keep both current streams busy: what does not wait for them reads what is not there yet."""
    handle = cupy.cuda.get_current_stream().ptr
    theirs = torch.cuda.ExternalStream(handle) if handle else torch.cuda.default_stream()
    for stream in (torch.cuda.current_stream(), theirs):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(LONG)


@pytest.mark.cuda
def test_cupys_arrays_are_ready_before_and_after(streams: Any) -> None:
    """CuPy writes late, the op runs, CuPy reads at once."""
    scores, mask = streams.zeros(MANY, "f"), streams.ones(MANY, bool)
    late(streams)
    scores += streams.arange(MANY, dtype="f") - MANY // 2  # the lowest are in the middle
    mask_update([scores], [mask], [MANY // 2])
    kept = mask.copy()  # on CuPy's stream
    assert int(kept.sum()) == MANY // 2
    assert not kept[MANY // 4 + 1 : MANY // 4 * 3].any()


@pytest.mark.cuda
def test_torch_may_go_on_with_what_it_gets(streams: Any) -> None:
    """Weights written late by torch, the picture by CuPy, the result read on torch's stream."""
    torch.manual_seed(0)
    *tensors, geometry = pack_tiles_conv2d(torch.randn(32, 16, 3, 3), "block", dtype=torch.float16)
    packed = PackedTiles(*(tensor.cuda() for tensor in tensors), geometry)
    x = streams.random.default_rng(0).random((1, 16, 9, 9), dtype="f").astype("e")
    want = sparse_conv2d(torch.from_dlpack(x).clone(), packed)
    torch.cuda.synchronize()
    values = packed.values.clone()
    fresh, picture = torch.zeros_like(values), streams.zeros_like(x)
    late(streams)
    fresh.copy_(values)
    picture += x
    got = sparse_conv2d(picture, packed._replace(values=fresh))
    assert torch.equal(got.clone(), want)
