# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from gansparse.errors import InputError
from gansparse.ops import mask_update
from gansparse.optim import MaskedAdam
from gansparse.sparsity import (
    AGP,
    GRANULARITIES,
    Pruner,
    check_masked,
    find_layers,
    make_mask,
    measure_effects,
    select_layers,
)
from gansparse.sparsity import granularity as selection
from gansparse.sparsity.pruner import Scope


def make_generator(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.ConvTranspose2d(10, 32, 4),
        nn.BatchNorm2d(32),
        nn.Sequential(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 8, 3)),
        nn.Flatten(),
        nn.Linear(8 * 6 * 6, 4),
    )


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_each_layer_gets_the_mask_of_make_mask(granularity):
    model = make_generator()
    pruner = Pruner(model, 0.5, granularity, "one-shot", vector_size=8)
    before = {layer.name: layer.weight.detach().clone() for layer in pruner.layers}
    assert list(before) == ["0", "2.0", "2.2"]
    assert pruner.step(0, 10)
    for layer in pruner.layers:
        weight = before[layer.name]
        expected = make_mask(weight, 0.5, granularity, transposed=layer.transposed, vector_size=8)
        assert torch.equal(pruner.masks[layer.weight], expected)
        assert torch.equal(layer.weight, weight * expected)
    assert not any(pruner.step(step, 10) for step in range(1, 10))
    assert (model[4].weight != 0).all(), "linear layers are not pruned unless named"


@pytest.mark.parametrize(
    ("granularity", "scope"),
    [("2:4", "layer")]
    + [(kind, scope) for kind in GRANULARITIES for scope in get_args(Scope) if kind != "2:4"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_op_that_selects_on_cuda_makes_the_same_masks(granularity, scope, dtype, monkeypatch):
    """Forced onto the CPU, where the op takes the same arguments; with ties, and step by step."""

    def masks():
        model = make_generator().to(dtype)
        for parameter in model.parameters():
            parameter.data.mul_(20).round_().div_(20)
        model[0] = model[0].float()  # of two dtypes
        pruner = Pruner(model, 0.5, granularity, scope=scope, vector_size=8)
        for sparsity in (0.0, 0.2, 0.5):
            pruner.prune_to(dict.fromkeys(pruner.targets, sparsity))
        return pruner.state_dict()

    expected = masks()
    called = []

    def counted(*args, **options):
        called.append(len(args[0]))
        mask_update(*args, **options)

    monkeypatch.setattr(selection, "_BY_OP", {"cpu"})
    monkeypatch.setattr(selection, "mask_update", counted)
    found = masks()
    assert called
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())
    assert sum(int((~mask).sum()) for mask in found.values()) > 0


@pytest.mark.cuda
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masks_on_cuda_are_those_of_the_cpu(granularity):
    pruners = []
    for device in ("cpu", "cuda"):
        pruners.append(Pruner(make_generator().to(device), 0.5, granularity, vector_size=8))
        pruners[-1].prune_to(0.5)
    for name, mask in pruners[0].state_dict().items():
        assert torch.equal(pruners[1].state_dict()[name].cpu(), mask), name


def test_agp_run_with_the_masked_optimizer():
    """Targets are met exactly, pruned weights stay 0 through training, masks never regrow."""
    model = make_generator()
    pruner = Pruner(model, 0.9, schedule=AGP(frequency=3))
    masks = pruner.masks
    optimizer = MaskedAdam(model.parameters(), lr=1e-2, masks=masks)
    previous = {weight: mask.clone() for weight, mask in masks.items()}
    changes = []
    for step in range(40):
        changes.append(pruner.step(step, 40))
        check_masked(model, masks)
        loss = model(torch.randn(4, 10, 1, 1)[:, :, :, :]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        check_masked(model, masks)
        for weight, mask in masks.items():
            assert not (mask & ~previous[weight]).any()
            wanted = pruner.schedule.sparsity_at(step, 40, 0.9)
            assert int((~mask).sum()) == round(wanted * mask.numel())
        previous = {weight: mask.clone() for weight, mask in masks.items()}
    assert changes == [step in (0, 3, 6, 9, 12, 15, 18, 20) for step in range(40)]
    assert pruner.masks is masks


def test_resume_is_bit_exact():
    def run(model, pruner, optimizer, steps, start=0):
        for step in range(start, steps):
            pruner.step(step, 20)
            torch.manual_seed(step)
            model(torch.randn(4, 10, 1, 1)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    straight = make_generator()
    pruner = Pruner(straight, 0.8)
    run(straight, pruner, torch.optim.SGD(straight.parameters(), 0.1), 20)

    first = make_generator()
    first_pruner = Pruner(first, 0.8)
    run(first, first_pruner, torch.optim.SGD(first.parameters(), 0.1), 7)
    second = make_generator(seed=9)
    second.load_state_dict(first.state_dict())
    second_pruner = Pruner(second, 0.8)
    held = dict(second_pruner.masks)
    second_pruner.load_state_dict(first_pruner.state_dict())
    assert all(second_pruner.masks[weight] is mask for weight, mask in held.items()), "in place"
    run(second, second_pruner, torch.optim.SGD(second.parameters(), 0.1), 20, start=7)

    for a, b in zip(straight.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for key, mask in pruner.state_dict().items():
        assert torch.equal(mask, second_pruner.state_dict()[key])


def test_load_state_dict_takes_all_or_nothing():
    pruner = Pruner(make_generator(), 0.5)
    state = {key: torch.zeros_like(mask) for key, mask in pruner.state_dict().items()}
    for bad, message in (
        ({**state, "2.2.weight": torch.zeros(3, dtype=torch.bool)}, "mask 2.2.weight must be bool"),
        ({**state, "2.2.weight": state["2.2.weight"].float()}, "got torch.float32"),
        ({**state, "odd.weight": torch.zeros(1)}, "missing or unexpected: odd.weight"),
        ({key: state[key] for key in list(state)[1:]}, "missing or unexpected: 0.weight"),
    ):
        with pytest.raises(InputError, match=message):
            pruner.load_state_dict(bad)
        assert all(mask.all() for mask in pruner.masks.values())


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        (None, (), ["0", "2.0", "2.2"]),
        (None, "0", ["2.0", "2.2"]),
        (None, nn.Conv2d, ["0", "2.0"]),
        ("2", (), ["2.0", "2.2"]),
        ("2.*", "Conv2d", ["2.0"]),
        ("2.2.weight", (), ["2.2"]),
        ("Linear", (), ["4"]),
        ([nn.Linear, "ConvTranspose2d"], "0", ["2.0", "4"]),
        ("_ConvNd", "[01]", ["2.0", "2.2"]),
    ],
)
def test_selection(include, exclude, names):
    layers = find_layers(make_generator())
    assert [layer.name for layer in select_layers(layers, include, exclude)] == names


def test_ratios_by_layer():
    model = make_generator()
    pruner = Pruner(model, {"2.2": 0.25, "2": 0.5, nn.ConvTranspose2d: 0.9}, schedule="one-shot")
    assert pruner.targets == {"2.2": 0.25, "2.0": 0.5, "0": 0.9}
    pruner.step(0, 1)
    shares = {x.name: 1 - pruner.masks[x.weight].float().mean().item() for x in pruner.layers}
    assert shares == pytest.approx(pruner.targets, abs=1e-3)


@pytest.mark.parametrize("granularity", ["element", "vector", "kernel", "filter"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.99])
def test_global_scope_against_brute_force(granularity, norm, sparsity):
    model = make_generator(3).double()
    pruner = Pruner(model, sparsity, granularity, scope="global", vector_size=4, norm=norm)
    units = []  # (score, order, weight, indices), one entry a unit, by single-unit masks
    total = 0
    for number, layer in enumerate(pruner.layers):
        weight = layer.weight.detach()
        total += weight.numel()
        filters = weight.transpose(0, 1) if layer.transposed else weight
        form = filters.reshape(*filters.shape[:2], -1)
        index = torch.arange(weight.numel()).view(weight.shape)
        index = (index.transpose(0, 1) if layer.transposed else index).reshape(form.shape)
        if granularity == "element":
            members = index.reshape(-1, 1)
        elif granularity == "kernel":
            members = index.reshape(-1, form.shape[2])
        elif granularity == "filter":
            members = index.reshape(form.shape[0], -1)
        else:
            members = index.unflatten(0, (-1, 4)).permute(0, 2, 3, 1).reshape(-1, 4)
        mean = weight.abs().mean().item()
        values = weight.flatten()[members].abs() / mean
        squared = norm == "l2" and granularity != "element"
        scores = (values.square() if squared else values).mean(dim=1)
        scores[scores.argmax()] = torch.inf
        units += [
            (s, number, i, m) for i, (s, m) in enumerate(zip(scores.tolist(), members, strict=True))
        ]
    allowed, gone = round(sparsity * total), [set() for _ in pruner.layers]
    for score, number, _, members in sorted(units, key=lambda unit: unit[:3]):
        if len(members) > allowed or score == torch.inf:
            break
        allowed -= len(members)
        gone[number].update(members.tolist())
    pruner.prune_to(sparsity)
    for layer, expected in zip(pruner.layers, gone, strict=True):
        mask = pruner.masks[layer.weight]
        assert set((~mask).flatten().nonzero().flatten().tolist()) == expected
        assert mask.any(), "no layer is emptied"


def test_global_scope_is_monotone():
    model = make_generator()
    pruner = Pruner(model, 0.9, scope="global", schedule=AGP(frequency=1))
    previous = pruner.state_dict()
    for step in range(10):
        pruner.step(step, 10)
        for key, mask in pruner.state_dict().items():
            assert not (mask & ~previous[key]).any()
        previous = pruner.state_dict()
    assert pruner.achieved_sparsity() == pytest.approx(0.9, abs=1e-4)


def test_what_cannot_be_pruned_is_said():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 1, 3))
    assert Pruner(model, 0.75, "filter").notes == [
        "layer '2': 75% of 1 units would empty it; one filter stays"
    ]
    assert Pruner(model, 0.5, "2:4").notes == [
        "layer '0': its one input channel stays dense",
        "layer '2': the last 2 of 6 input channels stay dense",
    ]
    assert Pruner(model, 0.75).notes == []


def test_a_shared_weight_is_pruned_once():
    layer = nn.Conv2d(4, 4, 3)
    pruner = Pruner(nn.Sequential(layer, nn.ReLU(), layer), 0.5)
    assert len(pruner.masks) == 1


def test_state_dict_of_the_model_stays_ordinary():
    model = make_generator()
    keys = list(model.state_dict())
    Pruner(model, 0.5, schedule="one-shot").step(0, 1)
    assert list(model.state_dict()) == keys
    make_generator(1).load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sparsity=1.5), "sparsity must be .* got 1.5"),
        (dict(sparsity={"0": 1.5}), "sparsity must be .* got 1.5"),
        (dict(sparsity={}), "sparsity names no layer"),
        (dict(sparsity={"up": 0.5}), r"no layer matches 'up'. Layers: 0 \(ConvTranspose2d\), 2.0"),
        (dict(include="2.1"), "no layer matches '2.1', did you mean '2.2'"),
        (dict(exclude="Conv2D"), "no layer matches 'Conv2D', did you mean 'Conv2d'"),
        (dict(include=[nn.Conv3d]), "no layer matches 'Conv3d'"),
        (dict(include=[3]), "named by a string or a class, got 3"),
        (dict(include="0", exclude="0"), "include minus exclude leaves no layer"),
        (dict(granularity="2:4", sparsity=0.4), "must be 0.5 .* got 0.4"),
        (dict(granularity="rows"), "got 'rows'"),
        (dict(schedule="linear"), "got 'linear'"),
        (dict(scope="model"), "scope must be layer, erk, global, got 'model'"),
        (dict(scope="global", sparsity={"0": 0.5}), "got one ratio a layer"),
        (dict(scope="global", granularity="2:4"), "got granularity 2:4"),
        (dict(scope="erk", granularity="2:4"), "scope erk takes one ratio .* got granularity 2:4"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        Pruner(make_generator(), **{"sparsity": 0.5, **arguments})
    assert "\n" not in str(caught.value)


def test_refuses_weights_it_cannot_prune():
    with pytest.raises(InputError, match="nothing to prune"):
        Pruner(nn.ReLU(), 0.5)
    normed = nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 2, 3))
    with pytest.raises(InputError, match="layer '0'.* remove the parametrization"):
        Pruner(nn.Sequential(normed), 0.5)
    with pytest.raises(InputError, match="run the model once"):
        Pruner(nn.Sequential(nn.LazyConv2d(2, 3)), 0.5)
    model = make_generator()
    model[2][0].weight.data[0, 0, 0, 0] = torch.nan
    pruner = Pruner(make_generator(), 0.5)
    pruner.layers[1].weight.data.copy_(model[2][0].weight.data)
    with pytest.raises(InputError, match=r"layer '2.0': weight .* holds NaN"):
        pruner.step(0, 10)


def test_effects_that_are_not_finite_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    effects = measure_effects(model, lambda m: m(torch.full([1, 3, 8, 8], float("nan"))))
    with pytest.raises(InputError, match="layer '0': its effects are NaN or infinite, as its in"):
        Pruner(model, 0.5, effects=effects).prune_to(0.5)
