# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from gansparse.errors import CheckpointError, InputError
from gansparse.files import save_tensors
from gansparse.models import (
    DCGANDiscriminator,
    DCGANGenerator,
    load_dcgan_discriminator,
    load_dcgan_generator,
)

# pytorch/examples, dcgan/main.py, nc = 1: key -> shape of the convolutions.
G_KERNELS = {
    "main.0.weight": (100, 512, 4, 4),
    "main.3.weight": (512, 256, 4, 4),
    "main.6.weight": (256, 128, 4, 4),
    "main.9.weight": (128, 64, 4, 4),
    "main.12.weight": (64, 1, 4, 4),
}
D_KERNELS = {
    "main.0.weight": (64, 1, 4, 4),
    "main.2.weight": (128, 64, 4, 4),
    "main.5.weight": (256, 128, 4, 4),
    "main.8.weight": (512, 256, 4, 4),
    "main.11.weight": (1, 512, 4, 4),
}


def kernels(module):
    return {k: tuple(v.shape) for k, v in module.state_dict().items() if v.ndim == 4}


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_generator_has_the_public_layout():
    net = DCGANGenerator()
    assert kernels(net) == G_KERNELS
    assert count(net) == 3_574_656
    assert len(net.state_dict()) == 25
    assert count(DCGANGenerator(nc=3)) == 3_576_704


def test_discriminator_has_the_public_layout():
    net = DCGANDiscriminator()
    assert kernels(net) == D_KERNELS
    assert len(net.state_dict()) == 20
    assert count(DCGANDiscriminator(nc=3)) == 2_765_568


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_sizes_fit_each_other(size):
    generator = DCGANGenerator(nz=5, ngf=4, image_size=size)
    pictures = generator(torch.randn(3, 5))
    assert pictures.shape == (3, 1, size, size)
    assert pictures.abs().max() <= 1
    assert DCGANDiscriminator(ndf=4, image_size=size)(pictures).shape == (3,)


def test_odd_size_is_refused():
    with pytest.raises(InputError, match="image_size must be one of"):
        DCGANGenerator(image_size=48)


@pytest.mark.parametrize("end", ["safetensors", "pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_sizes_are_read_off_the_file(tmp_path, end, prefix):
    pairs = [
        (DCGANGenerator(nz=7, ngf=3, nc=2, image_size=32), load_dcgan_generator),
        (DCGANDiscriminator(ndf=3, nc=2, image_size=32), load_dcgan_discriminator),
    ]
    for net, load in pairs:
        path = tmp_path / f"net.{end}"
        state = {prefix + key: value for key, value in net.state_dict().items()}
        save_tensors(path, state) if end == "safetensors" else torch.save(state, path)
        loaded = load(path)
        assert type(loaded) is type(net)
        for key, value in net.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)


def test_half_precision_files_load_as_float32(tmp_path):
    net = DCGANGenerator(nz=4, ngf=2, image_size=16)
    save_tensors(
        tmp_path / "h.safetensors",
        {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()},
    )
    assert (
        next(load_dcgan_generator(tmp_path / "h.safetensors").parameters()).dtype == torch.float32
    )


def broken(change):
    state = DCGANGenerator(nz=4, ngf=2, image_size=16).state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("main.1.bias"), "misses 'main.1.bias'"),
        (lambda s: s.update({"extra": torch.ones(1)}), "a key too many, 'extra'"),
        (
            lambda s: s.update({f"x{i}": torch.ones(1) for i in range(5)}),
            "5 keys too many, 'x0', 'x1', 'x2' and 2 more",
        ),
        (
            lambda s: [s.pop(f"main.1.{k}") for k in ("weight", "bias")],
            "misses 'main.1.bias', 'main.1.weight'$",
        ),
        (
            lambda s: s.update({"main.1.bias": torch.ones(3)}),
            r"main.1.bias must have shape \[4\], got \[3\]",
        ),
        (lambda s: s["main.0.weight"].fill_(float("nan")), "main.0.weight holds NaN"),
        (lambda s: [s.pop(k) for k in list(s) if s[k].ndim == 4], "no convolution under main.N"),
    ],
)
def test_odd_files_are_named(tmp_path, change, message):
    torch.save(broken(change), tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=message) as error:
        load_dcgan_generator(tmp_path / "odd.pth")
    assert "\n" not in str(error.value)
    assert "odd.pth" in str(error.value)


# ---- Against the public arithmetic ---------------------------------------------------------------


def public_generator(nz, ngf, nc, image_size):
    """The layers of pytorch/examples, and of the 28x28 variant for MNIST."""
    widths = {28: (8, 4, 2, 1), 32: (4, 2, 1), 64: (8, 4, 2, 1)}[image_size]
    layers, channels = [], nz
    for width in widths:
        stride, padding = (1, 0) if channels == nz else (2, 1)
        layers += [
            nn.ConvTranspose2d(channels, ngf * width, 4, stride, padding, bias=False),
            nn.BatchNorm2d(ngf * width),
            nn.ReLU(),
        ]
        channels = ngf * width
    last = (1, 1, 2) if image_size == 28 else (4, 2, 1)
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, nc, *last, bias=False), nn.Tanh())


def public_discriminator(ndf, nc, image_size):
    """The same, sigmoid and all, which ours leaves to the loss."""
    widths = {28: (1, 2, 4), 32: (1, 2, 4), 64: (1, 2, 4, 8)}[image_size]
    layers, channels = [], nc
    for width in widths:
        layers.append(nn.Conv2d(channels, ndf * width, 4, 2, 1, bias=False))
        if channels != nc:
            layers.append(nn.BatchNorm2d(ndf * width))
        layers.append(nn.LeakyReLU(0.2))
        channels = ndf * width
    last = (4, 2, 1) if image_size == 28 else (4, 1, 0)
    end = nn.Conv2d(channels, 1, *last, bias=False)
    return nn.Sequential(*layers, end, nn.Sigmoid(), nn.Flatten(0))


@pytest.mark.parametrize("image_size", [28, 32, 64])
def test_public_files_load_and_agree(tmp_path, image_size):
    torch.manual_seed(image_size)
    originals = (public_generator(7, 4, 1, image_size), public_discriminator(4, 1, image_size))
    inputs = (torch.randn(3, 7, 1, 1), torch.rand(3, 1, image_size, image_size) * 2 - 1)
    loads = (load_dcgan_generator, load_dcgan_discriminator)
    for original, x, load in zip(originals, inputs, loads, strict=True):
        state = {f"main.{key}": value for key, value in original.state_dict().items()}
        torch.save(state, tmp_path / "net.pth")
        net = load(tmp_path / "net.pth")
        assert set(net.state_dict()) == set(state)
        for mode in (True, False):
            got, want = net.train(mode)(x), original.train(mode)(x)
            if load is load_dcgan_discriminator:
                got = got.flatten().sigmoid()
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_the_layout_for_28x28_pictures():
    net = DCGANGenerator(image_size=28)
    assert kernels(net) == {**G_KERNELS, "main.12.weight": (64, 1, 1, 1)}
    assert (net(torch.randn(2, 100)).shape) == (2, 1, 28, 28)
    discriminator = DCGANDiscriminator(image_size=28)
    wanted = {key: D_KERNELS[key] for key in ("main.0.weight", "main.2.weight", "main.5.weight")}
    assert kernels(discriminator) == {**wanted, "main.8.weight": (1, 256, 4, 4)}
