# SPDX-License-Identifier: Apache-2.0
"""Networks whose output depends on more than one run shows: right, or left as they were."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gansparse.deploy import compile, measure


@pytest.fixture(autouse=True)
def plans_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the times are."""
    wins = {"before": 2.0, "after": 1.0}
    real = measure.interleaved

    def interleaved(runs: Any, *args: Any, **options: Any) -> Any:
        return wins if runs.keys() == wins.keys() else real(runs, *args, **options)

    monkeypatch.setattr(measure, "interleaved", interleaved)


class AdaIN(nn.Module):
    """Its affine is set from outside, as MUNIT does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight: Tensor | None = None
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        flat = x.reshape(1, n * c, h, w)
        mean, var = self.mean.repeat(n), self.var.repeat(n)
        return F.batch_norm(flat, mean, var, self.weight, None, True).view(n, c, h, w)


class Styled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.style = nn.Conv2d(3, 4, 3), AdaIN(), nn.Linear(2, 4)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        self.norm.weight = self.style(style).flatten()
        out: Tensor = self.norm(self.conv(x))
        return out


class Peak(nn.Module):
    def forward(self, x: Tensor) -> float:
        return float(x.abs().max())


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.peak, self.conv = Peak(), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        peak = self.peak(x)
        out: Tensor = self.conv(x / peak) * peak
        return out


class Conditional(nn.Module):
    def __init__(self, norm: str) -> None:
        super().__init__()
        self.conv, self.gain, self.norm = nn.Conv2d(3, 4, 3), nn.Linear(2, 4, bias=False), norm
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h, gain = self.conv(x), self.gain(c).flatten()
        if self.norm == "instance":
            return F.instance_norm(h, weight=1 + gain, bias=gain)
        return F.batch_norm(h, self.mean, self.var, 1 + gain, gain, False)


def pictures(*others: Tensor) -> tuple[Tensor, ...]:
    return (torch.randn(1, 3, 8, 8), *others)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], tuple[Tensor, ...]]] = {
    "state set by the parent": (
        Styled, pictures(torch.randn(1, 2)), pictures(torch.randn(1, 2)),
    ),
    "a number of a submodule": (Scaled, pictures(), (5 * torch.randn(1, 3, 8, 8),)),
    "instance norm by an input that was 0": (
        lambda: Conditional("instance"), pictures(torch.zeros(1, 2)), pictures(torch.ones(1, 2)),
    ),
    "batch norm by an input that was 0": (
        lambda: Conditional("batch"), pictures(torch.zeros(1, 2)), pictures(torch.ones(1, 2)),
    ),
    "batch norm by an input": (
        lambda: Conditional("batch"), pictures(torch.ones(1, 2)), pictures(-torch.ones(1, 2)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_other_inputs(case: str) -> None:
    make, example, other = CASES[case]
    torch.manual_seed(0)
    net = make().eval()
    fast = compile(net, example)
    with torch.no_grad():
        for inputs in (example, other, example):
            torch.testing.assert_close(fast(*inputs), net(*inputs), rtol=0, atol=1e-4)


def test_a_norm_by_an_input_is_planned() -> None:
    """The plan computes it; before, it was dropped and the plan refused."""
    fast = compile(Conditional("batch").eval(), pictures(torch.ones(1, 2)))
    assert fast.explain().verdict == "runs as planned"


class Noisy(nn.Module):
    """Noise in the form of a parameter, as StyleGAN begins."""

    def __init__(self) -> None:
        super().__init__()
        self.const, self.conv = nn.Parameter(torch.randn(1, 3, 8, 8)), nn.Conv2d(3, 4, 3)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.conv(self.const + torch.randn_like(self.const)) + z
        return out


def test_noise_is_drawn_anew() -> None:
    net, z = Noisy().eval(), torch.randn(1, 1, 1, 1)
    fast = compile(net, z)
    assert not torch.equal(fast(z), fast(z))
    torch.manual_seed(5)
    got = fast(z)
    torch.manual_seed(5)
    with torch.no_grad():
        torch.testing.assert_close(got, net(z), rtol=0, atol=1e-4)


class Holder(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def test_a_state_loaded_through_a_module_that_holds_it() -> None:
    first, second = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()) for _ in range(2))
    (x,) = pictures()
    held = Holder(compile(first, x))
    held.net(x)
    held.load_state_dict(Holder(compile(second, x)).state_dict())
    with torch.no_grad():
        torch.testing.assert_close(held.net(x), second(x), rtol=0, atol=1e-4)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mask = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), torch.sigmoid(self.mask)


def test_a_constant_that_is_given_out_is_the_callers() -> None:
    net, (x,) = Masked().eval(), pictures()
    fast = compile(net, x)
    fast(x)[1].mul_(0)
    with torch.no_grad():
        torch.testing.assert_close(fast(x)[1], net(x)[1])


class Casting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = self.conv(x)
        return out


def test_autocast_inside() -> None:
    net, (x,) = Casting().eval(), pictures()
    fast = compile(net, x)
    with torch.no_grad():
        want = net(x)
    got = fast(x)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got.float(), want.float(), rtol=0, atol=0.05)


class Output(OrderedDict[str, Any]):
    @property
    def image(self) -> Tensor:
        picture: Tensor = self["image"]
        return picture


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Output:
        return Output(image=self.conv(x))


def test_outputs_keep_their_class() -> None:
    net, (x,) = Named().eval(), pictures()
    fast = copy.deepcopy(compile(net, x))
    with torch.no_grad():
        torch.testing.assert_close(fast(x).image, net(x).image)


def double(x: Tensor) -> Tensor:
    return x.mul_(2)


def clear(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


def rectify(x: Tensor) -> Tensor:
    return F.relu(x.detach(), inplace=True)


class Writes(nn.Module):
    """Into its input, before its convolution."""

    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.write = nn.Conv2d(3, 4, 3), write

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.write(x))
        return out


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("write", [double, clear, rectify, nn.ReLU(inplace=True)])
def test_what_it_does_to_its_input(write: Any, layout: torch.memory_format) -> None:
    """It does once, on each call; the example stays as it is."""
    net, (example,) = Writes(write).eval(), pictures()
    given = example.clone()
    fast = compile(net, example)
    assert torch.equal(example, given)
    told = fast.explain().verdict
    assert told == "runs as it was: it can't be captured: it writes into its input"
    for size in (8, 9):
        one = torch.randn(1, 3, size, size).contiguous(memory_format=layout)
        other = one.clone()
        with torch.no_grad():
            assert torch.equal(fast(one), net(other))
        assert torch.equal(one, other)
