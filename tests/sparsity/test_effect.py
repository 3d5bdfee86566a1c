# SPDX-License-Identifier: Apache-2.0
"""What weights are scored by: what they add to the normalised output of their layer."""

import copy
import itertools

import pytest
import torch
from torch import nn

from gansparse.sparsity import Pruner, find_layers, measure_effects


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(norm):
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2),
        norm(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 4, stride=2, groups=2),
        norm(6),
        nn.Tanh(),
        nn.Conv2d(6, 2, 1),
    )
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)) and module.affine:
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.uniform_(module.bias, -1, 1)
    net.train()
    for seed in range(30):
        net(draw(4, 4, 7, 7, seed=seed))
    return net.eval()


NORMS = {
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,
    "affine instance": lambda c: nn.InstanceNorm2d(c, affine=True),
    "tracking instance": lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True),
    "none": lambda c: nn.Identity(),
}
PICTURES = draw(16, 4, 7, 7, seed=99) * torch.tensor([0.1, 1, 3, 0.5])[:, None, None]


def effects_of(net):
    return measure_effects(net, lambda m: m(PICTURES))


@torch.no_grad()
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_scores_are_the_formula(norm):
    """Weight by weight, from the definition."""
    net = network(norm)
    pruner = Pruner(net, 0.5, effects=effects_of(net))
    x = PICTURES
    for place, module in enumerate(net):
        layer = next((x for x in find_layers(net) if x.module is module), None)
        made = module(x)
        if layer is not None:
            rms = x.square().mean((0, 2, 3)).sqrt()
            behind = net[place + 1] if place + 1 < len(net) else None
            scale = torch.ones(made.shape[1])
            if isinstance(behind, (nn.BatchNorm2d, nn.InstanceNorm2d)):
                tracked = behind.running_var
                variance = made.var((2, 3), unbiased=False).mean(0) if tracked is None else tracked
                scale = (variance + behind.eps).rsqrt()
                scale = scale if behind.weight is None else scale * behind.weight.abs()
            scores = pruner._magnitude(layer)
            groups, own, reads, taps = scores.shape
            for g, o, c, t in itertools.product(*map(range, (groups, own, reads, taps))):
                weight = layer.weight.flatten(2)
                into, out = g * reads + c, g * own + o
                w = weight[into, o, t] if layer.transposed else weight[out, c, t]
                expected = float(w.detach().abs() * rms[into] * scale[out])
                assert float(scores[g, o, c, t]) == pytest.approx(expected, rel=1e-5, abs=1e-12)
        x = made


@torch.no_grad()
@pytest.mark.parametrize("granularity", ["element", "kernel", "filter"])
def test_what_a_norm_undoes_changes_no_choice(granularity):
    """Filters of another size behind whose norm everything is as it was: the same masks."""
    net = network(nn.BatchNorm2d)
    other = copy.deepcopy(net)
    size = torch.tensor([9.0, 0.2, 1, 30, 0.05, 2, 1, 7])
    other[0].weight.mul_(size[:, None, None, None])
    other[0].bias.mul_(size)
    other[1].running_mean.mul_(size)
    other[1].running_var.copy_((other[1].running_var + other[1].eps) * size**2 - other[1].eps)
    torch.testing.assert_close(other(PICTURES), net(PICTURES), rtol=1e-4, atol=1e-4)

    def mask(model, **options):
        pruner = Pruner(model, 0.5, granularity, schedule="one-shot", include="0", **options)
        copied = copy.deepcopy(model)
        pruner.prune_to(0.5)
        model.load_state_dict(copied.state_dict())
        return pruner.masks[model[0].weight]

    assert torch.equal(mask(net, effects=effects_of(net)), mask(other, effects=effects_of(other)))
    if granularity == "filter":  # magnitudes see nothing but the sizes
        assert not torch.equal(mask(net), mask(other))


@torch.no_grad()
def test_a_quiet_input_counts_less():
    net = nn.Conv2d(2, 1, 1, bias=False)
    net.weight.copy_(torch.tensor([2.0, 1.0]).view(1, 2, 1, 1))
    loud = torch.tensor([0.1, 1.0]).view(1, 2, 1, 1).expand(4, 2, 3, 3)
    pruner = Pruner(net, 0.5, effects=measure_effects(net, lambda m: m(loud)))
    pruner.prune_to(0.5)
    assert net.weight.flatten().tolist() == [0.0, 1.0]


def test_the_norms_training_changes_the_scores():
    net = network(nn.BatchNorm2d)
    effect = effects_of(net)["0"]
    before = effect.outputs()
    with torch.no_grad():
        net[1].weight.mul_(3)
    torch.testing.assert_close(effect.outputs(), 3 * before)


def test_measuring_changes_nothing():
    net = network(nn.BatchNorm2d).train()
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    effects_of(net)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert net.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_layers_that_are_not_reached_keep_their_magnitude():
    net = nn.ModuleDict({"used": nn.Conv2d(2, 2, 1), "idle": nn.Conv2d(2, 2, 1)})
    effects = measure_effects(net, lambda m: m["used"](torch.ones(1, 2, 2, 2)))
    assert list(effects) == ["used"]
    pruner = Pruner(net, 0.5, effects=effects)
    idle = next(layer for layer in pruner.layers if layer.name == "idle")
    assert torch.equal(pruner._magnitude(idle).flatten(), net["idle"].weight.abs().flatten())


def test_linear_layers_and_single_pictures():
    net = nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 1, 1))
    effects = measure_effects(net, lambda m: m(torch.full([5, 3], 2.0)))
    assert effects["0"].inputs.tolist() == [2.0, 2.0, 2.0]
    single = measure_effects(net[2], lambda m: m(torch.full([2, 4, 4], 3.0)))
    assert single[""].inputs.tolist() == [3.0, 3.0]
