# SPDX-License-Identifier: Apache-2.0
"""Forward hooks: what they do to the output and elsewhere stays, or the generator is refused."""

from __future__ import annotations

from functools import partial

import networks
import pytest
import torch
from networks import assert_same, conv, picture, seeded
from torch import nn

from gansparse import deploy
from gansparse.errors import InputError
from gansparse.sparsity import Pruner

NOTHING = "its hook returns nothing, and may have an effect elsewhere"


def network() -> nn.Sequential:
    return seeded(nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv()))


def test_what_a_hook_returns_is_in_the_plan():
    net = network()
    net[0].register_forward_hook(lambda layer, given, out: out * 2)
    net[2].register_forward_pre_hook(lambda layer, given: (given[0] + 1,))
    compiled = deploy.compile(net, picture())
    assert not compiled.explain().whole
    assert_same(compiled, net, picture())


@pytest.mark.parametrize("inner", [networks.Branch, networks.WritesIntoViews])
def test_hooks_of_what_stays_whole_run_once(inner):
    net = seeded(networks.Around(inner()))
    net.inner.register_forward_hook(lambda layer, given, out: out * 2)
    net.inner.register_forward_pre_hook(lambda layer, given: (given[0] - 0.1,))
    compiled = deploy.compile(net, picture())
    assert compiled.explain().verdict == "runs as planned"
    assert list(compiled.explain().whole) == ["inner"]
    assert_same(compiled, net, picture())


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", ["2", ""])
def test_what_only_looks_sees_every_call(first, name):
    net, seen = network(), []
    part = net.get_submodule(name)
    if first:
        part.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    else:
        part.register_forward_hook(lambda layer, given, out: seen.append(out))
    compiled = deploy.compile(net, picture())
    if name:
        assert compiled.explain().whole == {"2": NOTHING}
    else:
        assert compiled.explain().verdict == f"runs as it was: it can't be captured: {NOTHING}"
    net(picture())
    want = seen[-1]
    seen.clear()
    compiled(picture())
    (got,) = seen
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_what_only_looks_sees_all_channels():
    net, seen = seeded(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 3))), []
    Pruner(net, 0.5, "filter").prune_to(0.5)
    net[0].register_forward_hook(lambda layer, given, out: seen.append(out.shape[1]))
    compiled = deploy.compile(net, picture())
    assert "not shrunk: its hooks would find fewer channels" in compiled.explain().notes
    seen.clear()
    compiled(picture())
    assert seen == [8]


def test_a_weight_that_a_hook_sets_is_in_the_plan():
    """As in a StyleGAN's equalized learning rate."""

    def scale(layer, given):
        layer.weight = layer.weight_orig * 0.5

    net = network()
    weight = net[2].weight
    del net[2]._parameters["weight"]
    net[2].register_parameter("weight_orig", weight)
    net[2].weight = weight.data
    net[2].register_forward_pre_hook(scale)
    compiled = deploy.compile(net, picture())
    assert not compiled.explain().whole
    assert_same(compiled, net, picture())


def test_a_hook_of_the_generator_that_asks_for_numbers():
    net = network()
    net.register_forward_hook(lambda layer, given, out: out * float(out.detach().mean()))
    compiled = deploy.compile(net, picture())
    assert "it can't be captured: DataDependent" in compiled.explain().verdict
    assert_same(compiled, net, picture())


def gain_of(net, layer, given, out):
    return out * net.gain


class Gained(nn.Sequential):
    def of_its_own(self, layer, given, out):
        return out * self.gain


GLOBAL = network()


def test_hooks_that_name_the_generator_are_refused():
    net = network()
    net.register_buffer("gain", torch.tensor(2.0))
    given = {
        "the generator": lambda layer, given, out: out * net.gain,
        "4": lambda layer, given, out, other=net[4]: out + other.bias.sum(),
        "4.bias": (lambda bias: lambda layer, given, out: out + bias.sum())(net[4].bias),
        "gain": (lambda known: lambda layer, given, out: out * known["gain"])({"gain": net.gain}),
    }
    for named, hook in given.items():
        handle = net[2].register_forward_hook(hook)
        with pytest.raises(InputError, match=f"compile: a hook of 2 names {named} itself, not its"):
            deploy.compile(net, picture())
        handle.remove()
    GLOBAL.register_forward_pre_hook(lambda layer, given: (given[0] + len(GLOBAL),))
    with pytest.raises(InputError, match="a hook of the generator names the generator itself"):
        deploy.compile(GLOBAL, picture())


def test_hooks_that_are_given_the_generator_have_the_copy():
    """Bound methods and partial functions are copied with what they hold."""
    net = Gained(*network())
    net.register_buffer("gain", torch.tensor(2.0))
    net[0].register_forward_hook(net.of_its_own)
    net[2].register_forward_hook(partial(gain_of, net))
    compiled = deploy.compile(net.eval(), picture())
    with torch.no_grad():
        want = net(picture())
        net.gain.fill_(5)  # later changes to it have no effect
        assert torch.allclose(compiled(picture()), want, atol=1e-4)
        assert torch.allclose(compiled.original(picture()), want, atol=1e-6)
