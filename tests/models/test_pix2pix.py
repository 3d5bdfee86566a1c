# SPDX-License-Identifier: Apache-2.0
"""U-Net, PatchGAN and pixel D against junyanz' layout and arithmetic, written out a second time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from random_states import Shapes, State, norm_shapes, parameters_of, random_state, shapes_of

import gansparse
from gansparse.errors import CheckpointError, InputError
from gansparse.models.pix2pix import (
    PatchGANDiscriminator,
    PixelDiscriminator,
    UNetGenerator,
    discriminator_from_state,
    generator_from_state,
)

# ---- The public layout ---------------------------------------------------------------------------


def kernel(key: str, *shape: int, bias: int = 0) -> Shapes:
    return {f"{key}.weight": shape} | ({f"{key}.bias": (bias,)} if bias else {})


def normed(key: str, channels: int, norm: str) -> Shapes:
    return norm_shapes(key, channels) if norm == "batch" else {}


def level_key(level: int) -> str:
    return "model.model.1" + ".model.3" * (level - 1) + ".model"


def unet_shapes(
    ngf: int = 64, downs: int = 8, norm: str = "batch", nc_in: int = 3, nc_out: int = 3
) -> Shapes:
    biased = int(norm == "instance")
    widths = [ngf * min(2**level, 8) for level in range(downs)]
    shapes = kernel("model.model.0", ngf, nc_in, 4, 4, bias=biased * ngf)
    for level in range(1, downs):
        outer, inner = widths[level - 1 : level + 1]
        innermost = level == downs - 1
        key, up = level_key(level), 3 if innermost else 5
        shapes |= kernel(f"{key}.1", inner, outer, 4, 4, bias=biased * inner)
        if not innermost:
            shapes |= normed(f"{key}.2", inner, norm)
        joined = inner if innermost else 2 * inner
        shapes |= kernel(f"{key}.{up}", joined, outer, 4, 4, bias=biased * outer)
        shapes |= normed(f"{key}.{up + 1}", outer, norm)
    return shapes | kernel("model.model.3", 2 * ngf, nc_out, 4, 4, bias=nc_out)


def patch_shapes(nc: int = 6, ndf: int = 64, layers: int = 3, norm: str = "batch") -> Shapes:
    biased = int(norm == "instance")
    widths = [ndf * min(2**level, 8) for level in range(layers + 1)]
    shapes = kernel("model.0", ndf, nc, 4, 4, bias=ndf)
    for level in range(1, layers + 1):
        outer, inner = widths[level - 1 : level + 1]
        shapes |= kernel(f"model.{3 * level - 1}", inner, outer, 4, 4, bias=biased * inner)
        shapes |= normed(f"model.{3 * level}", inner, norm)
    return shapes | kernel(f"model.{3 * layers + 2}", 1, widths[-1], 4, 4, bias=1)


def pixel_shapes(nc: int = 6, ndf: int = 64, norm: str = "batch") -> Shapes:
    biased = int(norm == "instance")
    return (
        kernel("net.0", ndf, nc, 1, 1, bias=ndf)
        | kernel("net.2", 2 * ndf, ndf, 1, 1, bias=biased * 2 * ndf)
        | normed("net.3", 2 * ndf, norm)
        | kernel("net.5", 1, 2 * ndf, 1, 1, bias=biased)
    )


# ---- The public arithmetic -----------------------------------------------------------------------


def normalise(state: State, key: str, x: torch.Tensor, running: bool = False) -> torch.Tensor:
    """BatchNorm where the state has weights for it, else InstanceNorm; ε = 1e-5."""
    if f"{key}.weight" not in state:
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    if running:
        variance, mean = state[f"{key}.running_var"], state[f"{key}.running_mean"]
    weight, bias = state[f"{key}.weight"], state[f"{key}.bias"]
    scale = (weight / (variance + 1e-5).sqrt()).view(1, -1, 1, 1)
    return (x - mean.view(1, -1, 1, 1)) * scale + bias.view(1, -1, 1, 1)


def down(state: State, key: str, x: torch.Tensor, stride: int = 2) -> torch.Tensor:
    padding = state[f"{key}.weight"].shape[-1] // 4
    return F.conv2d(x, state[f"{key}.weight"], state.get(f"{key}.bias"), stride, padding)


def up(state: State, key: str, x: torch.Tensor) -> torch.Tensor:
    return F.conv_transpose2d(x, state[f"{key}.weight"], state.get(f"{key}.bias"), 2, 1)


def public_unet(
    state: State, images: torch.Tensor, downs: int, *, running: bool = False, dropout: bool = True
) -> torch.Tensor:
    skips = [down(state, "model.model.0", images)]
    for level in range(1, downs):
        key = level_key(level)
        x = down(state, f"{key}.1", F.leaky_relu(skips[-1], 0.2))
        skips.append(x if level == downs - 1 else normalise(state, f"{key}.2", x, running))
    x = skips.pop()
    for level in reversed(range(1, downs)):
        key, place = level_key(level), 3 if level == downs - 1 else 5
        x = normalise(state, f"{key}.{place + 1}", up(state, f"{key}.{place}", x.relu()), running)
        if dropout and 4 <= level < downs - 1:
            x = F.dropout(x, 0.5)
        x = torch.cat([skips.pop(), x], 1)
    return up(state, "model.model.3", x.relu()).tanh()


def public_patch(state: State, images: torch.Tensor, layers: int) -> torch.Tensor:
    x = F.leaky_relu(down(state, "model.0", images), 0.2)
    for level in range(1, layers + 1):
        x = down(state, f"model.{3 * level - 1}", x, 2 if level < layers else 1)
        x = F.leaky_relu(normalise(state, f"model.{3 * level}", x), 0.2)
    return down(state, f"model.{3 * layers + 2}", x, 1)


def public_pixel(state: State, images: torch.Tensor) -> torch.Tensor:
    x = F.leaky_relu(down(state, "net.0", images, 1), 0.2)
    x = F.leaky_relu(normalise(state, "net.3", down(state, "net.2", x, 1)), 0.2)
    return down(state, "net.5", x, 1)


def statistics(shapes: Shapes) -> State:
    """Running statistics alone, as InstanceNorm kept them until PyTorch 0.4."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {key: torch.ones(shape) for key, shape in shapes.items() if key.endswith(names)}


# ---- Default sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("downs", "norm", "keys", "parameters"),
    [
        (8, "batch", 82, 54_413_955),
        (8, "instance", 32, 54_409_603),
        (7, "batch", 70, 41_828_995),
    ],
)
def test_generator_has_the_public_layout(downs, norm, keys, parameters) -> None:
    with torch.device("meta"):
        net = UNetGenerator(num_downs=downs, norm=norm)
    assert shapes_of(net) == unet_shapes(64, downs, norm)
    assert len(net.state_dict()) == keys
    assert parameters_of(net) == parameters


@pytest.mark.parametrize(
    ("nc", "norm", "keys", "parameters"),
    [(6, "batch", 22, 2_768_705), (3, "instance", 10, 2_764_737)],
)
def test_discriminator_has_the_public_layout(nc, norm, keys, parameters) -> None:
    with torch.device("meta"):
        net = PatchGANDiscriminator(nc, norm=norm)
        assert net(torch.empty(1, nc, 256, 256)).shape == (1, 1, 30, 30)
    assert shapes_of(net) == patch_shapes(nc, norm=norm)
    assert len(net.state_dict()) == keys
    assert parameters_of(net) == parameters


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_pixel_discriminator_has_the_public_layout(norm: str) -> None:
    with torch.device("meta"):
        assert shapes_of(PixelDiscriminator(6, norm=norm)) == pixel_shapes(norm=norm)


# ---- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize(("downs", "nc_in", "nc_out"), [(5, 3, 3), (6, 1, 3), (7, 3, 1), (8, 3, 3)])
def test_public_generator_loads_and_agrees(tmp_path, prefix, norm, downs, nc_in, nc_out) -> None:
    state = random_state(unet_shapes(2, downs, norm, nc_in, nc_out))
    path = tmp_path / "latest_net_G.pth"
    torch.save({prefix + key: value for key, value in state.items()}, path)
    net = gansparse.load_generator(path)
    assert isinstance(net, UNetGenerator)
    images = torch.rand(2, nc_in, 2**downs, 2**downs) * 2 - 1
    torch.manual_seed(3)
    want = public_unet(state, images, downs)
    torch.manual_seed(3)
    torch.testing.assert_close(net(images), want, rtol=0, atol=1e-5)
    assert want.abs().max() <= 1


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("layers", [1, 3, 5])
def test_public_discriminator_loads_and_agrees(tmp_path, norm, layers) -> None:
    state = random_state(patch_shapes(6, 4, layers, norm))
    torch.save(state, tmp_path / "latest_net_D.pth")
    net = gansparse.load_discriminator(tmp_path / "latest_net_D.pth")
    assert isinstance(net, PatchGANDiscriminator)
    images = torch.rand(2, 6, 128, 128) * 2 - 1
    torch.testing.assert_close(net(images), public_patch(state, images, layers), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_public_pixel_discriminator_loads_and_agrees(tmp_path, norm) -> None:
    state = random_state(pixel_shapes(6, 4, norm))
    torch.save(state, tmp_path / "latest_net_D.pth")
    net = gansparse.load_discriminator(tmp_path / "latest_net_D.pth")
    assert isinstance(net, PixelDiscriminator)
    images = torch.rand(2, 6, 16, 16) * 2 - 1
    torch.testing.assert_close(net(images), public_pixel(state, images), rtol=0, atol=1e-5)


CASES = [
    (unet_shapes(2, 5, "batch"), generator_from_state),
    (unet_shapes(2, 5, "instance"), generator_from_state),
    (patch_shapes(3, 2, 3, "batch"), discriminator_from_state),
    (patch_shapes(3, 2, 3, "instance"), discriminator_from_state),
    (pixel_shapes(3, 2, "instance"), discriminator_from_state),
]


@pytest.mark.parametrize(("shapes", "from_state"), CASES)
def test_what_was_loaded_is_written_back_unchanged(shapes: Shapes, from_state) -> None:
    state = random_state(shapes)
    back = from_state(state, "a file").state_dict()
    assert set(back) == set(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("make_shapes", "from_state"),
    [
        (unet_shapes, generator_from_state),
        (patch_shapes, discriminator_from_state),
        (pixel_shapes, discriminator_from_state),
    ],
)
def test_statistics_of_old_instance_norms_are_dropped(make_shapes, from_state) -> None:
    sizes = {"ngf": 2, "downs": 5} if make_shapes is unet_shapes else {"ndf": 2}
    shapes = make_shapes(**sizes, norm="instance")
    old = random_state(shapes) | statistics(make_shapes(**sizes, norm="batch"))
    assert len(old) > len(shapes)
    assert shapes_of(from_state(old, "a file")) == shapes


# ---- The authors test as they train --------------------------------------------------------------


def test_eval_keeps_dropout_and_batch_statistics_live() -> None:
    state = random_state(unet_shapes(4, 6))
    net = generator_from_state(state, "a file").eval()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.manual_seed(3)
    want = public_unet(state, images, 6)
    torch.manual_seed(3)
    torch.testing.assert_close(net(images), want, rtol=0, atol=1e-5)
    assert not torch.equal(net(images), net(images))
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())


def test_running_statistics_without_dropout_are_a_choice() -> None:
    state = random_state(unet_shapes(4, 6))
    net = generator_from_state(state, "a file").eval().live_in_eval(False)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    want = public_unet(state, images, 6, running=True, dropout=False)
    torch.testing.assert_close(net(images), want, rtol=0, atol=1e-5)
    live = public_unet(state, images, 6, dropout=False)
    assert (live - want).abs().max() > 0.1
    assert not torch.equal(net.live_in_eval()(images), net(images))


def test_training_does_not_depend_on_the_choice() -> None:
    net = UNetGenerator(ngf=2, num_downs=6).live_in_eval(False).train()
    images = torch.rand(2, 3, 64, 64)
    assert not torch.equal(net(images), net(images))
    assert net.state_dict()["model.model.1.model.2.num_batches_tracked"] == 2


# ---- Weights at the start ------------------------------------------------------------------------


def test_weights_start_as_the_originals() -> None:
    net = UNetGenerator(ngf=8, num_downs=5).state_dict()
    assert net["model.model.1.model.3.model.1.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert net["model.model.1.model.2.weight"].mean() == pytest.approx(1, abs=0.02)
    assert net["model.model.1.model.2.weight"].std() == pytest.approx(0.02, rel=0.7)
    assert not net["model.model.3.bias"].any()


# ---- Refusals ------------------------------------------------------------------------------------


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="num_downs must be at least 5, got 4"):
        UNetGenerator(num_downs=4)
    for make in (UNetGenerator, PatchGANDiscriminator, PixelDiscriminator):
        with pytest.raises(InputError, match="norm must be 'batch' or 'instance', got 'layer'"):
            make(norm="layer")
    with pytest.raises(InputError, match="must be multiples of 32, got 32x48; crop or resize"):
        UNetGenerator(ngf=1, num_downs=5)(torch.zeros(1, 3, 32, 48))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.model.3.weight"), "misses 'model.model.3.weight'"),
        (lambda s: s.pop("model.model.1.model.1.weight"), "misses 'model.model.1.model.1.weight'"),
        (lambda s: s.pop("model.model.1.model.2.bias"), "misses 'model.model.1.model.2.bias'"),
        (lambda s: s.update({"extra": torch.ones(1)}), "a key too many, 'extra'"),
        (
            lambda s: s.update({"model.model.0.weight": torch.ones(3)}),
            r"model.model.0.weight must have 4 dimensions, got shape \[3\]",
        ),
        (lambda s: [s.pop(k) for k in list(s) if k.count("model.") > 4], "at least 5 times, got 3"),
    ],
)
def test_odd_files_are_named(change, message: str) -> None:
    state = random_state(unet_shapes(2, 5))
    change(state)
    with pytest.raises(CheckpointError, match=message) as caught:
        generator_from_state(state, "odd.pth")
    assert str(caught.value).startswith("odd.pth")
    assert "\n" not in str(caught.value)
