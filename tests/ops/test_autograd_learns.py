# SPDX-License-Identifier: Apache-2.0
"""What torch's autograd must learn of the ops: what they write, and every way to differentiate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gansparse.errors import InputError
from gansparse.ops import (
    feature_moments,
    instance_norm,
    mask_update,
    pack_sparse_conv2d,
    pack_tiles_conv2d,
    pack_winograd_conv2d,
    sparse_conv2d,
    unpack_tiles,
    winograd_conv2d,
)
from gansparse.optim import MaskedAdam


def test_a_step_between_forward_and_backward_is_noticed() -> None:
    """As with torch's own optimizers: G's backward after D's step would use D's new weights."""
    g, d = nn.Linear(3, 3), nn.Linear(3, 1)
    optimizer = MaskedAdam(d.parameters())
    fake = g(torch.ones(2, 3))
    d(fake.detach()).sum().backward()
    loss = d(fake).square().sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_everything_written_is_told() -> None:
    x, w = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3)
    out = torch.empty(1, 4, 4, 4)
    sparse_conv2d(x, pack_sparse_conv2d(w), out=out)
    assert out._version == 1
    winograd_conv2d(x, pack_winograd_conv2d(w), out=out)
    assert out._version == 2
    mask = torch.ones(5, dtype=torch.bool)
    mask_update([torch.randn(5)], [mask], [2])
    assert mask._version == 1
    total, second = torch.zeros(3).double(), torch.zeros(3, 3).double()
    feature_moments(torch.randn(4, 3), total, second)
    assert (total._version, second._version) == (1, 1)
    p = nn.Parameter(torch.ones(2))
    p.grad, optimizer = torch.ones(2), MaskedAdam([p], amsgrad=True)
    optimizer.step()
    before = [p._version, *(optimizer.state[p][k]._version for k in ("exp_avg", "max_exp_avg_sq"))]
    optimizer.step()
    after = [p._version, *(optimizer.state[p][k]._version for k in ("exp_avg", "max_exp_avg_sq"))]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]


@pytest.mark.parametrize("mode", ["none", "reflect"])
def test_forward_derivatives_of_a_convolution(mode: str) -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 3, 3, 3) * (torch.rand(4, 3, 3, 3) > 0.5)
    packed = pack_sparse_conv2d(
        w, padding=1, padding_mode="reflect" if mode == "reflect" else "zeros"
    )
    x, tangent = torch.randn(2, 1, 3, 6, 6)

    def dense(x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), "reflect" if mode == "reflect" else "constant")
        return F.leaky_relu(F.conv2d(padded, w), 0.2)

    got = torch.func.jvp(
        lambda x: sparse_conv2d(x, packed, activation="leaky_relu", slope=0.2), (x,), (tangent,)
    )
    for one, other in zip(got, torch.func.jvp(dense, (x,), (tangent,)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_forward_derivatives_of_a_norm() -> None:
    x, tangent = torch.randn(2, 2, 3, 6, 6)
    got = torch.func.jvp(lambda x: instance_norm(x, activation="tanh"), (x,), (tangent,))
    want = torch.func.jvp(lambda x: F.instance_norm(x).tanh(), (x,), (tangent,))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_winograd_refuses_forward_derivatives() -> None:
    packed, x = pack_winograd_conv2d(torch.randn(4, 3, 3, 3)), torch.randn(1, 3, 6, 6)
    with pytest.raises(InputError, match="has no gradients"):
        torch.func.jvp(lambda x: winograd_conv2d(x, packed), (x,), (x,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "sigmoid"}, "activation must be"),
        ({"weight": torch.ones(1)}, "weight must be"),
        ({"eps": -5.0}, "eps must be"),
        ({"residual": torch.ones(5, 2, 3, 3)}, "residual must be"),
    ],
)
def test_a_norm_refuses_the_same_with_gradients(options: dict[str, object], message: str) -> None:
    for wanted in (False, True):
        x = torch.randn(1, 2, 3, 3, requires_grad=wanted)
        with pytest.raises(InputError, match=message):
            instance_norm(x, **options)  # type: ignore[arg-type]


def test_a_convolution_refuses_a_residual_of_another_shape_with_gradients() -> None:
    packed = pack_sparse_conv2d(torch.randn(4, 3, 3, 3))
    for wanted in (False, True):
        x = torch.randn(1, 3, 6, 6, requires_grad=wanted)
        with pytest.raises(InputError, match="residual must"):
            sparse_conv2d(x, packed, residual=torch.ones(1, 4, 1, 1))


@pytest.mark.parametrize("vector_size", [1, 4, 8])
def test_what_a_mask_leaves_out_is_left_out(vector_size: int) -> None:
    """Also of a vector that is kept for its other weights, and where the weight is NaN."""
    torch.manual_seed(1)
    w, mask = torch.randn(16, 3, 3, 3), torch.rand(16, 3, 3, 3) > 0.6
    mask[0] = False
    given = torch.where(mask, w, float("nan"))
    packed = pack_sparse_conv2d(given, mask=mask, vector_size=vector_size)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(
        sparse_conv2d(x, packed), F.conv2d(x, w * mask), rtol=1e-5, atol=1e-5
    )


def test_tiles_leave_out_what_a_mask_leaves_out() -> None:
    w, mask = torch.randn(16, 8, 3, 3), torch.ones(16, 8, 3, 3, dtype=torch.bool)
    mask[3] = False
    packed = pack_tiles_conv2d(w, pattern="block", rows=16, mask=mask)
    assert not unpack_tiles(packed)[3].any()
