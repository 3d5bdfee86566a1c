# SPDX-License-Identifier: Apache-2.0
"""A user's own GAN: two modules that are not ours and a loss or two, through the Python API."""

import copy
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from gansparse.compress import compress
from gansparse.compress.start import check_fit
from gansparse.data import load_digits, to_float
from gansparse.errors import InputError
from gansparse.files import load_tensors
from gansparse.metrics.evaluation import real_moments, score_generator
from gansparse.metrics.features import lenet_extractor
from gansparse.sparsity import Pruner, sparsity_report
from gansparse.tasks import latent_task
from gansparse.tasks.gan import reinitialised


def data_root() -> Path:
    root = os.environ.get("GANSPARSE_DATA")
    if not root:
        pytest.skip("GANSPARSE_DATA is not set: no public 28x28 GAN to compress")
    return Path(root)


class Generator(nn.Module):
    """The public 28x28 MNIST generator, written by somebody else (data/README.md)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Identity()]
        plan = [(100, 128, 4, 1, 0), (128, 64, 3, 2, 1), (64, 32, 4, 2, 1), (32, 1, 4, 2, 1)]
        for c, o, k, s, p in plan:
            layers.append(nn.ConvTranspose2d(c, o, k, s, p, bias=False))
            if o > 1:
                layers += [nn.BatchNorm2d(o), nn.LeakyReLU(0.2, True)]
        self.layer_stack = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z):
        return self.layer_stack(z)


class Discriminator(nn.Module):
    """Its discriminator: ends in a sigmoid, so its loss is BCE on probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_stack = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(32, 64, 4, 2, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(64, 128, 3, 2, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(128, 1, 4, 1, 0, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, images):
        return self.layer_stack(images)


def bce_for_generator(judged):
    return -torch.log(judged.clamp_min(1e-7))


def bce_for_discriminator(real, fake):
    return -torch.log(real.clamp_min(1e-7)) - torch.log((1 - fake).clamp_min(1e-7))


@pytest.mark.data
def test_the_public_28x28_gan_is_compressed(tmp_path):
    root = data_root()
    generator = Generator()
    folder = root / "weights" / "mnist_dcgan28"
    generator.load_state_dict(load_tensors(folder / "generator.pth")[0])
    discriminator = Discriminator()
    discriminator.load_state_dict(load_tensors(folder / "discriminator.pth")[0])
    images = load_digits(root / "mnist").images[:4000, None]

    task = latent_task(
        name="mnist28",
        generator=generator,
        discriminator=discriminator,
        images=images,
        latent_shape=(100, 1, 1),
        generator_loss=bce_for_generator,
        discriminator_loss=bce_for_discriminator,
        batch_size=32,
    )
    extractor = lenet_extractor()
    real = real_moments(images, extractor)

    def fid(net):
        return score_generator(task.views[0], net, real, extractor, num_samples=1000).fid

    dense = fid(generator)
    untuned = Generator()
    untuned.load_state_dict(generator.state_dict())
    Pruner(untuned, 0.75, schedule="one-shot").step(0, 1)
    broken = fid(untuned)
    result = compress(task, sparsity=0.75, steps=120, ema=0.95, out=tmp_path, lr=5e-4)
    compressed = fid(result.generator)

    assert sparsity_report(result.generator).total.sparsity == pytest.approx(0.75, abs=0.001)
    assert broken > 2 * dense, "pruning alone ruins it, or this test shows nothing"
    assert compressed < 0.5 * (dense + broken)
    # The file loads into the user's own module, unchanged.
    fresh = Generator()
    fresh.load_state_dict(load_tensors(tmp_path / "generator.safetensors")[0])


def own_pair():
    generator = nn.Sequential(nn.Flatten(), nn.Linear(6, 3 * 8 * 8), nn.Unflatten(1, (3, 8, 8)))
    discriminator = nn.Sequential(
        nn.Conv2d(3, 4, 4, 2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(36, 1)
    )
    return generator, discriminator


def test_a_gan_of_linear_layers_with_a_wasserstein_loss():
    """Losses that change sign, a generator without convolutions, pictures as floats."""
    generator, discriminator = own_pair()
    task = latent_task(
        generator=generator,
        discriminator=discriminator,
        images=torch.rand(20, 3, 8, 8) * 2 - 1,
        latent_shape=(6,),
        batch_size=5,
        generator_loss=lambda judged: -judged,
        discriminator_loss=lambda real, fake: fake - real,
    )
    with pytest.raises(InputError, match="nothing to prune"):
        compress(task, sparsity=0.5, steps=2)
    result = compress(task, sparsity=0.5, steps=4, include=("1",))
    assert float((result.generator[1].weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


def test_a_fresh_copy_has_other_weights_and_the_same_shape():
    generator, _ = own_pair()
    fresh = reinitialised(generator)
    assert fresh[1].weight.shape == generator[1].weight.shape
    assert not torch.equal(fresh[1].weight, generator[1].weight)


def test_a_layer_that_cannot_be_reset_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(InputError, match="Odd has parameters but no reset_parameters"):
        reinitialised(nn.Sequential(Odd()))


def test_pictures_as_bytes_and_as_floats_are_the_same_to_the_task():
    images = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    generator, discriminator = own_pair()
    nets = {"generator": generator, "discriminator": discriminator, "latent_shape": (6,)}
    tasks = [latent_task(images=x, batch_size=4, **nets) for x in (images, to_float(images))]
    torch.testing.assert_close(tasks[0].batch(1)["real"], tasks[1].batch(1)["real"])


def own_task(**changes):
    generator, discriminator = own_pair()
    settings = {"images": torch.zeros(8, 3, 8, 8), "latent_shape": (6,), "batch_size": 4}
    settings |= {"generator": generator, "discriminator": discriminator}
    return latent_task(**settings | changes)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(8, 8, 8), r"\[M, C, H, W\], uint8 or float .*, got float32 \[8, 8, 8\]"),
        (torch.zeros(8, 3, 8, 8, dtype=torch.int64), "got int64"),
        (torch.zeros(8, 3, 8, 8).index_fill(0, torch.tensor(5), torch.nan), "picture 5 has NaN"),
    ],
)
def test_pictures_that_are_none_are_refused(images, message):
    with pytest.raises(InputError, match=message):
        own_task(images=images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_shape": (5,)}, "the generator does not take its inputs: .*mat1 and mat2"),
        ({"images": torch.zeros(8, 3, 12, 12)}, "does not take the real pictures: .*mat1 and mat2"),
        ({"images": torch.zeros(8, 1, 8, 8)}, "does not take the real pictures: .* 3 channels"),
        (
            {"discriminator": nn.Conv2d(3, 1, 3)},
            r"one logit a picture, got 144 of .*\[4, 3, 8, 8\]",
        ),
    ],
)
def test_networks_that_do_not_fit_are_named_before_any_step(changes, message):
    steps = []
    with pytest.raises(InputError, match=message) as error:
        compress(own_task(**changes), steps=2, include=("1",), on_step=steps.append)
    assert "\n" not in str(error.value)
    assert not steps


def test_looking_whether_networks_fit_changes_nothing():
    """Not a bit of their state, and not their mode."""
    generator = nn.Sequential(own_pair()[0], nn.BatchNorm2d(3))
    before = copy.deepcopy(generator.state_dict())
    check_fit(own_task(generator=generator), generator.train(), None)
    assert generator.training
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())
