# SPDX-License-Identifier: Apache-2.0
"""StarGAN against the layout and the arithmetic of yunjey/stargan, written out a second time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from random_states import (
    Shapes,
    State,
    conv_shapes,
    norm_shapes,
    parameters_of,
    random_state,
    shapes_of,
)
from torch import nn

import gansparse
from gansparse.errors import CheckpointError, InputError
from gansparse.models.stargan import (
    StarGANDiscriminator,
    StarGANGenerator,
    discriminator_from_state,
    generator_from_state,
)

# ---- The public layout ---------------------------------------------------------------------------


def generator_shapes(conv_dim: int = 64, c_dim: int = 5, blocks: int = 6, nc: int = 3) -> Shapes:
    d = conv_dim
    shapes = {"main.0.weight": (d, nc + c_dim, 7, 7)} | norm_shapes("main.1", d)
    shapes |= {"main.3.weight": (2 * d, d, 4, 4)} | norm_shapes("main.4", 2 * d)
    shapes |= {"main.6.weight": (4 * d, 2 * d, 4, 4)} | norm_shapes("main.7", 4 * d)
    for i in range(9, 9 + blocks):
        shapes |= {f"main.{i}.main.0.weight": (4 * d, 4 * d, 3, 3)}
        shapes |= norm_shapes(f"main.{i}.main.1", 4 * d)
        shapes |= {f"main.{i}.main.3.weight": (4 * d, 4 * d, 3, 3)}
        shapes |= norm_shapes(f"main.{i}.main.4", 4 * d)
    i = 9 + blocks
    shapes |= {f"main.{i}.weight": (4 * d, 2 * d, 4, 4)} | norm_shapes(f"main.{i + 1}", 2 * d)
    shapes |= {f"main.{i + 3}.weight": (2 * d, d, 4, 4)} | norm_shapes(f"main.{i + 4}", d)
    return shapes | {f"main.{i + 6}.weight": (nc, d, 7, 7)}


def discriminator_shapes(
    image_size: int = 128, conv_dim: int = 64, c_dim: int = 5, layers: int = 6, nc: int = 3
) -> Shapes:
    widths = [nc] + [conv_dim * 2**i for i in range(layers)]
    shapes: Shapes = {}
    for i in range(layers):
        shapes |= conv_shapes(f"main.{2 * i}", widths[i + 1], widths[i], 4, 4)
    side = image_size // 2**layers
    shapes["conv1.weight"] = (1, widths[-1], 3, 3)
    shapes["conv2.weight"] = (c_dim, widths[-1], side, side)
    return shapes


def public_generator(state: State, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The authors' generator in training mode, the mode in which they use it."""

    def normed(x: torch.Tensor, key: str) -> torch.Tensor:
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        weight, bias = (state[f"{key}.{name}"].view(1, -1, 1, 1) for name in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    maps = labels.view(*labels.shape, 1, 1).repeat(1, 1, *images.shape[2:])
    x = torch.cat([images, maps], 1)
    for i, stride, padding in ((0, 1, 3), (3, 2, 1), (6, 2, 1)):
        x = F.conv2d(x, state[f"main.{i}.weight"], stride=stride, padding=padding)
        x = F.relu(normed(x, f"main.{i + 1}"))
    i = 9
    while f"main.{i}.main.0.weight" in state:
        y = F.conv2d(x, state[f"main.{i}.main.0.weight"], padding=1)
        y = F.relu(normed(y, f"main.{i}.main.1"))
        y = F.conv2d(y, state[f"main.{i}.main.3.weight"], padding=1)
        x = x + normed(y, f"main.{i}.main.4")
        i += 1
    for j in (i, i + 3):
        x = F.conv_transpose2d(x, state[f"main.{j}.weight"], stride=2, padding=1)
        x = F.relu(normed(x, f"main.{j + 1}"))
    return torch.tanh(F.conv2d(x, state[f"main.{i + 6}.weight"], padding=3))


def public_discriminator(state: State, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, i = images, 0
    while f"main.{i}.weight" in state:
        x = F.conv2d(x, state[f"main.{i}.weight"], state[f"main.{i}.bias"], stride=2, padding=1)
        x = F.leaky_relu(x, 0.01)
        i += 2
    source = F.conv2d(x, state["conv1.weight"], padding=1)
    return source, F.conv2d(x, state["conv2.weight"])[:, :, 0, 0]


def domains(n: int, c_dim: int) -> torch.Tensor:
    return (torch.arange(n * c_dim).view(n, c_dim) % 3 == 0).float()


# ---- Default sizes -------------------------------------------------------------------------------


def test_generator_has_the_public_layout() -> None:
    with torch.device("meta"):
        net = StarGANGenerator()
    assert shapes_of(net) == generator_shapes()
    assert len(net.state_dict()) == 103
    assert parameters_of(net) == 8_430_528


@pytest.mark.parametrize(("image_size", "parameters"), [(128, 44_762_048), (256, 44_884_928)])
def test_discriminator_has_the_public_layout(image_size: int, parameters: int) -> None:
    with torch.device("meta"):
        net = StarGANDiscriminator(image_size)
    assert shapes_of(net) == discriminator_shapes(image_size)
    assert len(net.state_dict()) == 14
    assert parameters_of(net) == parameters


# ---- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize(("c_dim", "blocks", "nc"), [(5, 6, 3), (15, 2, 3), (1, 1, 1)])
def test_public_generator_loads_and_agrees(tmp_path, prefix, c_dim, blocks, nc) -> None:
    state = random_state(generator_shapes(4, c_dim, blocks, nc))
    path = tmp_path / "200000-G.ckpt"
    torch.save({prefix + key: value for key, value in state.items()}, path)
    net = gansparse.load_generator(path)
    assert isinstance(net, StarGANGenerator)
    images, labels = torch.rand(2, nc, 64, 64) * 2 - 1, domains(2, c_dim)
    want = public_generator(state, images, labels)
    for mode in (net.eval(), net.train()):
        torch.testing.assert_close(mode(images, labels), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("image_size", "c_dim", "layers"), [(128, 5, 6), (256, 13, 6), (32, 1, 3)])
def test_public_discriminator_loads_and_agrees(tmp_path, image_size, c_dim, layers) -> None:
    state = random_state(discriminator_shapes(image_size, 4, c_dim, layers))
    torch.save(state, tmp_path / "200000-D.ckpt")
    net = gansparse.load_discriminator(tmp_path / "200000-D.ckpt")
    assert isinstance(net, StarGANDiscriminator)
    assert net.image_size == image_size
    images = torch.rand(2, 3, image_size, image_size) * 2 - 1
    for got, want in zip(net(images), public_discriminator(state, images), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_what_was_loaded_is_written_back_unchanged() -> None:
    for shapes, from_state in (
        (generator_shapes(4, 5, 2), generator_from_state),
        (discriminator_shapes(16, 4, 5, 3), discriminator_from_state),
    ):
        state = random_state(shapes)
        back = from_state(state, "a file").state_dict()
        assert set(back) == set(state)
        assert all(torch.equal(back[key], value) for key, value in state.items())


# ---- Training mode is the only mode --------------------------------------------------------------


def with_plain_norms(net: StarGANGenerator) -> StarGANGenerator:
    """The same network with PyTorch's own instance norms, as the original has them."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.InstanceNorm2d):
                plain = nn.InstanceNorm2d(child.num_features, affine=True, track_running_stats=True)
                plain.load_state_dict(child.state_dict())
                setattr(module, name, plain)
    return net


def test_eval_gives_what_training_mode_gives() -> None:
    state = random_state(generator_shapes(4, 5, 2))
    ours = generator_from_state(state, "a file").eval()
    original = with_plain_norms(generator_from_state(state, "a file"))
    images, labels = torch.rand(2, 3, 32, 32), domains(2, 5)
    want = original.train()(images, labels)
    torch.testing.assert_close(ours(images, labels), want, rtol=0, atol=1e-5)
    assert (original.eval()(images, labels) - want).abs().max() > 0.1  # yunjey/stargan issue 102


def test_only_training_updates_the_running_statistics() -> None:
    state = random_state(generator_shapes(4, 5, 2))
    images, labels = torch.rand(2, 3, 32, 32), domains(2, 5)
    evaluated, trained = (generator_from_state(state, "a file") for _ in range(2))
    original = with_plain_norms(generator_from_state(state, "a file"))
    evaluated.eval()(images, labels)
    trained.train()(images, labels)
    original.train()(images, labels)
    for key, value in state.items():
        assert torch.equal(evaluated.state_dict()[key], value)
        assert torch.equal(trained.state_dict()[key], original.state_dict()[key])
    key = "main.1.running_mean"
    assert not torch.equal(trained.state_dict()[key], state[key])


# ---- CelebA and RaFD at once ---------------------------------------------------------------------


def test_both_data_sets_at_once() -> None:
    """5 attributes, 8 expressions and a mask of 2 go in; D tells 5 + 8 domains."""
    with torch.device("meta"):
        generator = StarGANGenerator(c_dim=5 + 8 + 2)
        discriminator = StarGANDiscriminator(c_dim=5 + 8)
    assert shapes_of(generator)["main.0.weight"] == (64, 18, 7, 7)
    assert shapes_of(discriminator)["conv2.weight"] == (13, 2048, 2, 2)
    loaded = generator_from_state(random_state(generator_shapes(4, 15, 1)), "a file")
    assert loaded.c_dim == 15


# ---- Range and refusals --------------------------------------------------------------------------


def test_pictures_are_in_minus_one_to_one() -> None:
    net = generator_from_state(random_state(generator_shapes(4, 2, 1)), "a file")
    pictures = net(torch.rand(4, 3, 16, 16) * 2 - 1, domains(4, 2))
    assert pictures.min() < -0.9
    assert 0.9 < pictures.max() <= 1
    assert pictures.min() >= -1


@pytest.mark.parametrize("shape", [(2, 4), (2, 6), (1, 5), (5,)])
def test_labels_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"labels must have shape \[2, 5\], got \["):
        StarGANGenerator(4, repeat_num=1)(torch.zeros(2, 3, 8, 8), torch.zeros(shape))


def test_pictures_too_small_for_the_discriminator_are_refused() -> None:
    with pytest.raises(InputError, match="image_size must be at least 64 for 6 layers, got 32"):
        StarGANDiscriminator(image_size=32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("main.0.weight"), "misses 'main.0.weight'"),
        (lambda s: s.pop("main.9.main.0.weight"), "misses 'main.9.main.0.weight'"),
        (lambda s: s.pop("main.1.running_mean"), "misses 'main.1.running_mean'"),
        (lambda s: s.update({"extra": torch.ones(1)}), "a key too many, 'extra'"),
        (
            lambda s: s.update({"main.3.weight": torch.ones(8, 5, 4, 4)}),
            r"main.3.weight must have shape \[8, 4, 4, 4\], got \[8, 5, 4, 4\]",
        ),
        (lambda s: s["main.7.bias"].fill_(float("inf")), "main.7.bias holds NaN or infinity"),
    ],
)
def test_odd_files_are_named(change, message: str) -> None:
    state = random_state(generator_shapes(4, 5, 2))
    change(state)
    with pytest.raises(CheckpointError, match=message) as caught:
        generator_from_state(state, "odd.ckpt")
    assert str(caught.value).startswith("odd.ckpt")
    assert "\n" not in str(caught.value)
