# SPDX-License-Identifier: Apache-2.0
"""MaskedAdam as an optimizer: agrees with torch's, holds masks, resumes to the bit."""

from __future__ import annotations

import copy
import inspect
import io
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gansparse.errors import InputError
from gansparse.optim import MaskedAdam, MaskedAdamW
from gansparse.testing import close

STEPS = 20
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
OPTIONS = [
    {},
    {"betas": (0.5, 0.999), "lr": 2e-4},
    {"weight_decay": 0.1},
    {"amsgrad": True},
    {"maximize": True, "weight_decay": 0.01},
    {"decoupled_weight_decay": True, "weight_decay": 0.05},
    {"eps": 1e-4, "amsgrad": True, "maximize": True},
]


def network(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ConvTranspose2d(5, 7, 4), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 3, 3)
    ).to(device)


def masks_for(net: nn.Module, sparsity: float = 0.5) -> dict[nn.Parameter, torch.Tensor]:
    torch.manual_seed(1)
    return {
        p: (torch.rand(p.shape) >= sparsity).to(p.device) for p in net.parameters() if p.ndim == 4
    }


def backward(net: nn.Module, step: int) -> None:
    """Gradients that are the same for every copy of the network in the same state."""
    device = next(net.parameters()).device
    x = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(step)).to(device)
    net.zero_grad()
    net(x).square().mean().backward()


def fixed_gradients(net: nn.Module, step: int) -> None:
    """Gradients that do not depend on the weights: differences are the optimizer's alone."""
    generator = torch.Generator().manual_seed(step)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(p.device)


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def apart(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    difference = (got.detach() - want.detach()).abs().max()
    return float(difference) / max(1.0, float(want.detach().abs().max()))


# ---- Agreement with torch ------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_without_masks_is_torchs_adam(options: dict[str, Any], device: str) -> None:
    ours, theirs = network(device), network(device)
    one = MaskedAdam(ours.parameters(), **options)
    torchs = dict(options)  # before 2.7 torch's Adam does not know this one
    adamw = torchs.pop("decoupled_weight_decay", False)
    other = (torch.optim.AdamW if adamw else torch.optim.Adam)(theirs.parameters(), **torchs)
    for step in range(STEPS):
        for net, optimizer in ((ours, one), (theirs, other)):
            fixed_gradients(net, step)
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert apart(a, b) <= 2e-7
        assert one.state[a]["step"] == other.state[b]["step"] == STEPS
        for name, value in other.state[b].items():
            if name != "step":
                # The first moment is a mean of gradients of size 1, which cancel in part.
                scale = 1.0 if name == "exp_avg" else value
                close(one.state[a][name], value.double(), terms=4 * STEPS, scale=scale, name=name)


def test_without_masks_adamw_is_torchs() -> None:
    ours, theirs = network(), network()
    one, other = MaskedAdamW(ours.parameters()), torch.optim.AdamW(theirs.parameters())
    for step in range(STEPS):
        for net, optimizer in ((ours, one), (theirs, other)):
            fixed_gradients(net, step)
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert apart(a, b) <= 2e-7


@pytest.mark.parametrize("device", DEVICES)
def test_with_masks_is_adam_between_two_multiplications(device: str) -> None:
    ours, theirs = network(device), network(device)
    one = MaskedAdam(ours.parameters(), lr=1e-2, masks=masks_for(ours))
    other = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    masks = masks_for(theirs)
    for p, mask in masks.items():
        p.data.mul_(mask)
    for step in range(STEPS):
        fixed_gradients(ours, step)
        one.step()
        fixed_gradients(theirs, step)
        for p, mask in masks.items():
            p.grad.mul_(mask)
        other.step()
        for p, mask in masks.items():
            p.data.mul_(mask)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert apart(a, b) <= 2e-7


# ---- Masks ---------------------------------------------------------------------------------------


def test_pruned_weights_and_moments_stay_zero() -> None:
    net = network()
    masks = masks_for(net)
    optimizer = MaskedAdam(net.parameters(), lr=0.1, amsgrad=True, weight_decay=0.1, masks=masks)
    for p, mask in masks.items():
        assert not p.detach()[~mask].any(), "zero at once, before any step"
    for step in range(3):
        backward(net, step)
        optimizer.step()
        for p, mask in masks.items():
            for value in (p.detach(), *(v for k, v in optimizer.state[p].items() if k != "step")):
                assert not value[~mask].any()
                assert value[mask].all()


def test_masks_can_be_replaced_and_changed_in_place() -> None:
    net = network()
    optimizer = MaskedAdam(net.parameters(), lr=0.1, masks=masks_for(net, 0.2))
    backward(net, 0)
    optimizer.step()
    denser = masks_for(net, 0.8)
    optimizer.set_masks(denser)
    for p, mask in denser.items():
        assert not p.detach()[~mask].any()
        assert not optimizer.state[p]["exp_avg"][~mask].any()
    for mask in denser.values():
        mask.zero_()
    backward(net, 1)
    optimizer.step()
    assert not any(p.detach().any() for p in denser)
    optimizer.set_masks({})
    backward(net, 2)
    optimizer.step()
    assert all(p.detach().all() for p in denser if p.grad.all())


def test_refused_masks_change_nothing() -> None:
    net, other = network(), network()
    before = masks_for(net)
    optimizer = MaskedAdam(net.parameters(), masks=before)
    weight = net[0].weight
    stranger = {other[0].weight: torch.ones_like(weight, dtype=torch.bool)}
    with pytest.raises(InputError, match=r"masks must belong to parameters of this optimizer"):
        optimizer.set_masks(stranger)
    with pytest.raises(InputError, match=r"parameters of this optimizer, got one for '0.weight'"):
        optimizer.set_masks({"0.weight": torch.ones_like(weight, dtype=torch.bool)})
    with pytest.raises(InputError, match=r"must be bool or uint8 \[5, 7, 4, 4\].*got float32"):
        optimizer.set_masks({weight: torch.ones_like(weight)})
    with pytest.raises(InputError, match=r"must be bool or uint8 \[5, 7, 4, 4\].*got bool \[5, 7"):
        optimizer.set_masks({weight: torch.ones(5, 7, dtype=torch.bool)})
    flipped = torch.ones(4, 4, 7, 5, dtype=torch.bool).permute(3, 2, 0, 1)
    with pytest.raises(InputError, match=r"must have its parameter's strides"):
        optimizer.set_masks({weight: flipped})
    assert optimizer.masks == before


# ---- State ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}], ids=str)
def test_resumes_to_the_bit(options: dict[str, Any], device: str) -> None:
    net = network(device)
    optimizer = MaskedAdam(net.parameters(), lr=1e-2, masks=masks_for(net, 0.3), **options)
    for step in range(4):
        fixed_gradients(net, step)  # cuDNN's may differ from run to run
        optimizer.step()
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin = network(device)
    twin.load_state_dict(saved["net"])
    theirs = masks_for(twin, 0.9)  # to be overwritten by the saved ones, in place
    resumed = MaskedAdam(twin.parameters(), masks=theirs)
    twin.load_state_dict(saved["net"])  # the wrong masks have pruned it
    resumed.load_state_dict(saved["optimizer"])
    for step in range(4, 8):
        for model, opt in ((net, optimizer), (twin, resumed)):
            fixed_gradients(model, step)
            opt.step()
    assert same_bits(net, twin)
    for p, mask in theirs.items():
        assert resumed.masks[p] is mask


def test_saved_without_masks_loads_without() -> None:
    net = network()
    plain = MaskedAdam(net.parameters())
    document = plain.state_dict()
    masked = MaskedAdam(net.parameters(), masks=masks_for(net))
    masked.load_state_dict(document)
    assert masked.masks == {}


def test_takes_over_from_torchs_adam_and_back() -> None:
    net = network()
    first = torch.optim.Adam(net.parameters(), lr=1e-2)
    backward(net, 0)
    first.step()
    masks = masks_for(net)
    second = MaskedAdam(net.parameters(), masks=masks)
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["lr"] == 1e-2
    assert second.masks == masks
    backward(net, 1)
    second.step()
    assert second.state[net[0].weight]["step"] == 2
    first.load_state_dict({k: v for k, v in second.state_dict().items() if k != "masks"})
    backward(net, 2)
    first.step()
    assert first.state[net[0].weight]["step"] == 3


def test_takes_over_from_an_adamw_that_does_not_say_so() -> None:
    net = network()
    first = torch.optim.AdamW(net.parameters(), weight_decay=0.1)
    document = first.state_dict()
    document["param_groups"][0].pop("decoupled_weight_decay", None)  # as torch 2.6 writes it
    second = MaskedAdamW(net.parameters())
    second.load_state_dict(document)
    assert second.param_groups[0]["decoupled_weight_decay"]
    assert second.param_groups[0]["weight_decay"] == 0.1


def test_copies_carry_their_masks() -> None:
    net = network()
    optimizer = MaskedAdam(net.parameters(), lr=1e-2, masks=masks_for(net))
    backward(net, 0)
    optimizer.step()
    twin, copied = copy.deepcopy((net, optimizer))
    for model, opt in ((net, optimizer), (twin, copied)):
        backward(model, 1)
        opt.step()
    assert same_bits(net, twin)
    assert len(copied.masks) == 2


def test_state_of_16_bit_parameters_stays_float32_when_loaded() -> None:
    p = nn.Parameter(torch.randn(4, dtype=torch.bfloat16))
    optimizer = MaskedAdam([p])
    optimizer._new_state(optimizer.param_groups[0], p)
    optimizer.state[p]["exp_avg"].fill_(1 + 2**-20)  # not a bfloat16
    document = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(document)
    assert optimizer.state[p]["exp_avg"].dtype == torch.float32
    assert torch.equal(optimizer.state[p]["exp_avg"], document["state"][0]["exp_avg"])


# ---- Being an ordinary optimizer ----------------------------------------------------------------


def test_groups_closure_schedule_and_missing_gradients() -> None:
    net = network()
    first, *rest = net.parameters()
    optimizer = MaskedAdam([{"params": [first], "lr": 0.5}, {"params": rest}], lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)

    def closure() -> float:
        backward(net, 0)
        rest[-1].grad = None
        return 7.0

    before = [p.detach().clone() for p in net.parameters()]
    assert optimizer.step(closure) == 7.0
    after = list(net.parameters())
    assert math.isclose(apart(after[0], before[0]), 0.5, rel_tol=1e-3)
    assert math.isclose(apart(after[2], before[2]), 1e-3, rel_tol=1e-2)
    assert torch.equal(after[-1], before[-1])
    assert rest[-1] not in optimizer.state
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 1e-4])


def test_parameters_of_two_dtypes_and_layouts() -> None:
    torch.manual_seed(0)
    singles = nn.Parameter(torch.randn(3, 4, 5, 5).contiguous(memory_format=torch.channels_last))
    doubles = nn.Parameter(torch.randn(6, dtype=torch.float64))
    twins = [nn.Parameter(p.detach().clone()) for p in (singles, doubles)]
    one, other = MaskedAdam([singles, doubles]), torch.optim.Adam(twins)
    for mine, theirs in zip((singles, doubles), twins, strict=True):
        mine.grad = torch.randn(mine.shape, dtype=mine.dtype)  # row-major, unlike its parameter
        theirs.grad = mine.grad.clone()
    one.step()
    other.step()
    assert torch.allclose(singles, twins[0], rtol=0, atol=2e-7)
    assert torch.allclose(doubles, twins[1], rtol=0, atol=1e-15)


def test_learning_rate_as_a_tensor() -> None:
    ours, theirs = network(), network()
    rate = torch.tensor(0.01)
    one = MaskedAdam(ours.parameters(), lr=rate)
    other = MaskedAdam(theirs.parameters(), lr=float(rate))
    for net, optimizer in ((ours, one), (theirs, other)):
        backward(net, 0)
        optimizer.step()
    assert same_bits(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0, got -1.0"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\] must be at least 0 and less than 1, got 1.0"),
        ({"betas": (0.9, 1.5)}, r"betas\[1\] must be"),
        ({"eps": -1e-8}, "eps must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"differentiable": True}, "differentiable must be False"),
    ],
    ids=str,
)
def test_refuses_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskedAdam(network().parameters(), **options)


def test_takes_the_arguments_of_torchs_adam() -> None:
    torchs = set(inspect.signature(torch.optim.Adam).parameters)
    assert torchs <= set(inspect.signature(MaskedAdam).parameters)
    ours, theirs = network(), network()
    one = MaskedAdam(ours.parameters(), lr=1e-2, foreach=False, fused=True, differentiable=False)
    other = MaskedAdam(theirs.parameters(), lr=1e-2)
    for net, optimizer in ((ours, one), (theirs, other)):
        fixed_gradients(net, 0)
        optimizer.step()
    assert same_bits(ours, theirs)


def test_refuses_sparse_gradients_and_16_bits_on_the_cpu() -> None:
    table = nn.Embedding(10, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(InputError, match="gradients must be dense"):
        MaskedAdam(table.parameters()).step()
    half = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    half.grad = torch.ones_like(half)
    optimizer = MaskedAdam([half])
    with pytest.raises(InputError, match=r"params\[0\] must be float32 or float64"):
        optimizer.step()
    assert optimizer.state[half]["step"] == 0, "a refused step is not counted"


# ---- In a CUDA graph ----------------------------------------------------------------------------


def on_a_gpu() -> tuple[nn.Parameter, torch.Tensor]:
    """A parameter with a gradient, and a learning rate, on a GPU that there need not be."""
    with FakeTensorMode():
        p = nn.Parameter(torch.ones(3, device="cuda"))
        p.grad = torch.ones_like(p)
        return p, torch.full((), 1e-3, device="cuda")


def capture(monkeypatch: pytest.MonkeyPatch, capturing: bool = True) -> list[list[nn.Parameter]]:
    """As if a graph were captured; returns what will have been stepped."""
    stepped: list[list[nn.Parameter]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(MaskedAdam, "_step_together", lambda self, group, own: stepped.append(own))
    return stepped


@pytest.mark.parametrize("first", [0, 1])
def test_a_graph_that_would_repeat_a_step_count_is_refused(
    monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    on_cpu = nn.Parameter(torch.ones(3))
    on_cpu.grad = torch.ones_like(on_cpu)
    on_gpu, rate = on_a_gpu()
    count = torch.zeros(())
    groups = [{"params": [p]} for p in (on_cpu, on_gpu)]
    stepped = capture(monkeypatch)
    optimizer = MaskedAdam([groups[first], groups[1 - first]], lr=rate)
    with pytest.raises(InputError, match=r"repeat one step count.*capturable=True") as caught:
        optimizer.step()
    assert "\n" not in str(caught.value)
    assert not stepped
    optimizer.param_groups[1 - first]["capturable"] = True
    optimizer.step()
    assert len(stepped) == 2
    optimizer.state[on_gpu]["step"] = count  # which has not followed the option
    with pytest.raises(InputError, match="step count, which is on the CPU"):
        optimizer.step()


def test_a_graph_that_would_not_see_the_learning_rate_change_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_gpu, rate = on_a_gpu()
    optimizer = MaskedAdam([on_gpu], lr=torch.tensor(1e-3), capturable=True)
    stepped = capture(monkeypatch)
    with pytest.raises(InputError, match="lr change, a tensor on cpu: put it on the parameters'"):
        optimizer.step()
    assert not stepped
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    assert stepped == [[on_gpu]]


def test_what_no_graph_captures_may_be_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu, _ = on_a_gpu()
    optimizer = MaskedAdam([on_gpu], lr=torch.tensor(1e-3))
    stepped = capture(monkeypatch, capturing=False)
    optimizer.step()
    assert stepped == [[on_gpu]]


# ---- CUDA only -----------------------------------------------------------------------------------


@pytest.mark.cuda
def test_a_captured_graph_counts_steps_and_follows_the_learning_rate() -> None:
    ours, theirs = network("cuda"), network("cuda")
    rate = torch.tensor(1e-2, device="cuda")
    one = MaskedAdam(ours.parameters(), lr=rate, capturable=True, masks=masks_for(ours))
    other = MaskedAdam(theirs.parameters(), lr=float(rate), masks=masks_for(theirs))
    for net, optimizer in ((ours, one), (theirs, other)):
        fixed_gradients(net, 0)
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one.step()
    for i in range(3):
        rate.fill_(1e-2 / (i + 1))
        other.param_groups[0]["lr"] = float(rate)
        graph.replay()
        other.step()
    assert same_bits(ours, theirs)
    assert one.state[ours[0].weight]["step"].item() == 4


@pytest.mark.cuda
def test_runs_on_the_current_stream() -> None:
    p = nn.Parameter(torch.zeros(1 << 22, device="cuda"))
    optimizer = MaskedAdam([p], lr=1.0)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # a step on another stream would overtake this
        p.grad = torch.ones_like(p)
        optimizer.step()
    stream.synchronize()
    assert torch.allclose(p, torch.full_like(p, -1.0))
