# SPDX-License-Identifier: Apache-2.0
"""Task SRGAN against its original's formulas, written out a second time, and in the trainer."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import gansparse
from gansparse.compress import RECIPES, TrainConfig, Trainer
from gansparse.data.batches import Batches, EvaluationBatches
from gansparse.data.super_resolution import SuperResolutionFolder
from gansparse.errors import CheckpointError, InputError
from gansparse.metrics import psnr, ssim
from gansparse.metrics.evaluation import real_moments, score_generator
from gansparse.metrics.features import module_extractor
from gansparse.models.msrresnet import MSRResNet
from gansparse.models.srgan import SRGANDiscriminator, SRGANGenerator
from gansparse.sparsity import sparsity_report
from gansparse.tasks.srgan import (
    discriminator_features,
    feature_error,
    quality,
    srgan_task,
    total_variation,
)


class Drawn:
    """Random pictures of two sizes, and their halves."""

    augment = False

    def __init__(self, sides: tuple[int, ...] = (16,) * 12) -> None:
        self.sides = sides

    def __len__(self) -> int:
        return len(self.sides)

    def sample(self, index: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(index)
        side = self.sides[index]
        coarse = torch.rand(1, 3, 4, 4, generator=rng)
        hr = F.interpolate(coarse, size=(side, side + 2), mode="bilinear", align_corners=False)
        return {"lr": F.avg_pool2d(hr, 2)[0], "hr": hr[0]}


def bilinear(lr: torch.Tensor) -> torch.Tensor:
    return F.interpolate(lr, scale_factor=2, mode="bilinear", align_corners=False)


class Bilinear(nn.Module):
    """No network at all; the parameter says on which device it is."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, lr):
        return bilinear(lr)


def tiny(**options):
    torch.manual_seed(1234)
    settings = {"scale": 2, "ngf": 8, "ndf": 4, "blocks": 1, "perceptual": "none"} | options
    return srgan_task(Batches(Drawn(), 4, seed=0), EvaluationBatches(Drawn(), 5), **settings)


def config(recipe: str, **changes) -> TrainConfig:
    settings = {"steps": 6, "sparsity": 0.5, "save_every": 0, "log_every": 1, "recalibration": 2}
    return TrainConfig(recipe=recipe, **settings | changes)


# ---- Terms ---------------------------------------------------------------------------------------


def slopes(images: torch.Tensor) -> torch.Tensor:
    """Four numbers a picture, to stand for a feature network."""
    return torch.stack([images[:, 0, 0, 0], images.amax((1, 2, 3)), images.mean((1, 2, 3))], 1)


@pytest.mark.parametrize("features", [None, slopes])
def test_terms_are_the_originals_formulas(features) -> None:
    task = tiny(perceptual="none" if features is None else features)
    batch = task.batch(0)
    fake = task.generate(task.generator, batch)
    judged_real, judged = (task.judge(task.discriminator, x, batch) for x in (batch["hr"], fake))
    terms = task.generator_terms(judged, fake, batch)
    terms |= task.discriminator_terms(judged_real, judged, batch)
    assert {name: tuple(values.shape) for name, values in terms.items()} == dict.fromkeys(
        ["gen", "rec", "dis"], (4,)
    )
    torch.testing.assert_close(judged, task.discriminator(fake))
    assert 0 < float(judged.detach().min()) < float(judged.detach().max()) < 1
    x, y = fake.detach().double(), batch["hr"].double()
    c, h, w = x.shape[1:]
    rows = ((x[:, :, 1:] - x[:, :, :-1]) ** 2).sum((1, 2, 3)) / (c * (h - 1) * w)
    columns = ((x[..., 1:] - x[..., :-1]) ** 2).sum((1, 2, 3)) / (c * h * (w - 1))
    rec = ((x - y) ** 2).sum((1, 2, 3)) / (c * h * w) + 2e-8 * 2 * (rows + columns)
    if features is not None:
        rec += 0.006 * ((slopes(x) - slopes(y)) ** 2).sum(1) / 3
    want = {"gen": 1 - judged, "rec": rec, "dis": 1 - judged_real + judged}
    for name, value in want.items():
        torch.testing.assert_close(terms[name].double(), value.double(), rtol=1e-6, atol=1e-6)
    # The whole of G's loss, as the original adds it up for a batch.
    total = sum(task.weight(name) * terms[name].mean() for name in ("gen", "rec"))
    assert total.item() == pytest.approx(
        (rec.mean() + 0.001 * (1 - judged).mean()).item(), rel=1e-6
    )


def test_total_variation_has_its_share_of_the_gradient() -> None:
    """2e-8 of it drowns in the other terms' rounding, so it is checked by itself."""
    images = torch.rand(3, 2, 5, 7, dtype=torch.float64)
    want = [
        2
        * (x.diff(dim=1).square().sum() / (2 * 4 * 7) + x.diff(dim=2).square().sum() / (2 * 5 * 6))
        for x in images
    ]
    torch.testing.assert_close(
        total_variation(images).double(), torch.stack(want), rtol=1e-6, atol=0
    )


def test_a_perfect_picture_costs_its_total_variation_alone() -> None:
    task = tiny(perceptual=slopes)
    batch = task.batch(0)
    terms = task.generator_terms(torch.ones(4), batch["hr"], batch)
    want = 2e-8 * total_variation(batch["hr"])
    assert float(want.min()) > 0
    torch.testing.assert_close(terms["rec"], want, rtol=1e-6, atol=0)
    assert terms["gen"].tolist() == [0.0] * 4


def test_weights_and_training_are_the_originals() -> None:
    task = tiny()
    assert dict(task.weights) == {"gen": 0.001}
    assert (task.lr, task.betas, task.lr_decay, task.g_every) == (1e-3, (0.9, 0.999), "none", 1)
    assert task.g_first
    assert task.fresh_fakes
    assert task.steps_per_epoch == 3
    assert not tiny(fresh_fakes=False).fresh_fakes


# ---- The perceptual term -------------------------------------------------------------------------


def test_discriminator_as_feature_network_is_a_frozen_copy() -> None:
    torch.manual_seed(0)
    discriminator = SRGANDiscriminator(ndf=4)
    for layer in discriminator.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # one pass gives it all statistics, as training would
    discriminator(torch.rand(4, 3, 32, 32))
    with pytest.warns(UserWarning, match="no weights of VGG16, so the perceptual term compares"):
        task = tiny(discriminator=discriminator, perceptual=None)
    features = discriminator_features(discriminator)
    image = torch.rand(2, 3, 32, 48)
    assert features(image).shape == (2, 32, 2, 3)
    expected = features(image)
    head = copy.deepcopy(discriminator).eval().net[:-4]  # average, convolution, ReLU, convolution
    torch.testing.assert_close(expected, head(image))
    with torch.no_grad():
        for p in discriminator.parameters():
            p.add_(1.0)
    assert torch.equal(features(image), expected)
    batch = task.batch(0)
    fake = task.generate(task.generator, batch).detach().requires_grad_()
    rec = task.generator_terms(torch.ones(4), fake, batch)["rec"]
    plain = tiny().generator_terms(torch.ones(4), fake, batch)["rec"]
    want = 0.006 * (features(fake) - features(batch["hr"])).square().mean((1, 2, 3))
    assert float(want.detach().min()) > 1e-6
    torch.testing.assert_close(rec - plain, want, rtol=1e-3, atol=1e-7)
    rec.mean().backward()
    assert float(fake.grad.abs().max()) > 0
    assert all(p.grad is None for p in features.parameters())


def test_without_a_feature_network_the_task_says_so() -> None:
    with pytest.warns(UserWarning, match="there is no perceptual term, only pixels count"):
        tiny(perceptual=None)
    with pytest.raises(InputError, match="'discriminator' needs a trained discriminator"):
        tiny(perceptual="discriminator")
    with pytest.raises(CheckpointError, match="no weights file at nowhere.pth"):
        tiny(perceptual="nowhere.pth")


def test_a_module_of_ones_own_is_frozen() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
    tiny(perceptual=module)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())


def test_features_are_compared_in_float32_under_autocast() -> None:
    module = nn.Conv2d(3, 2, 3).eval()
    fake, hr = torch.rand(2, 2, 3, 8, 8).unbind()
    plain = feature_error(module, fake, hr)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(fake).dtype == torch.bfloat16
        assert torch.equal(feature_error(module, fake, hr), plain)


# ---- Figures -------------------------------------------------------------------------------------


def test_figures_of_test_sets() -> None:
    samples = Drawn((32, 40, 36))
    pairs = [tuple(samples.sample(i, torch.Generator()).values()) for i in range(3)]
    measures = quality({"drawn": samples, "pairs": pairs}, scale=2)
    generator = Bilinear().train()
    figures = measures(generator)
    assert generator.training
    assert measures(generator) == figures
    for name, metric in (("PSNR", psnr), ("SSIM", ssim)):
        want = [
            metric(2 * bilinear(lr[None]) - 1, 2 * hr[None] - 1, border=2).item()
            for lr, hr in pairs
        ]
        assert figures[f"drawn {name}"] == pytest.approx(sum(want) / 3, rel=1e-12)
        assert figures[f"pairs {name}"] == figures[f"drawn {name}"]
    assert figures["drawn PSNR"] > 30


def test_a_test_set_must_not_be_augmented(tmp_path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="augment=False"):
        tiny(tests={"a": SuperResolutionFolder(tmp_path, scale=2, crop_size=16)})


@pytest.mark.data
def test_public_weights_reach_their_figure_through_the_task() -> None:
    root = os.environ.get("GANSPARSE_DATA")
    if not root:
        pytest.skip("GANSPARSE_DATA is not set")
    generator = gansparse.load_generator(Path(root, "weights", "srgan_x4_netG.pth"))
    set5 = SuperResolutionFolder(Path(root, "sr", "Set5"), augment=False)
    crops = SuperResolutionFolder(Path(root, "sr", "Set5"), crop_size=32)
    task = srgan_task(
        Batches(crops, 2, seed=0),
        generator=generator,
        discriminator=SRGANDiscriminator(ndf=4),
        perceptual="none",
        tests={"Set5": set5},
    )
    figures = task.measures(task.generator)
    assert figures.keys() == {"Set5 PSNR", "Set5 SSIM"}
    assert figures["Set5 PSNR"] == pytest.approx(30.66, abs=0.02)
    assert task.fresh_generator().state_dict().keys() == generator.state_dict().keys()


def test_the_view_scores_whole_pictures_in_the_range_of_the_metrics() -> None:
    samples = Drawn((16, 24, 20, 16))
    task = srgan_task(
        Batches(Drawn(), 4, seed=0), EvaluationBatches(samples, 1), scale=2, perceptual="none"
    )
    (view,) = task.views
    assert view.num_samples == 4
    real = list(view.pictures())
    assert [tuple(x.shape) for x in real] == [(1, 3, s, s + 2) for s in samples.sides]
    hr = samples.sample(1, torch.Generator())["hr"]
    assert torch.equal(real[1][0], 2 * hr - 1)
    assert torch.equal(view.make(Bilinear(), view.batch(1)), 2 * bilinear(view.batch(1)["lr"]) - 1)
    extractor = module_extractor("extremes", lambda x: torch.stack([x.amax((1, 2, 3))], 1), 1)
    score = score_generator(view, Bilinear(), real_moments(view.pictures, extractor), extractor)
    assert (score.num_real, score.num_fake) == (4, 4)
    assert score.fid < 0.05


# ---- Training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_trainer_runs_it(recipe: str) -> None:
    task = tiny()
    result = Trainer(task, config(recipe)).run()
    assert len(result.history) == 6
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in result.history)
    count = sum(int(p.count_nonzero()) for p in result.generator.parameters())
    dense = sum(p.numel() for p in task.generator.parameters())
    assert count < (0.75 if recipe not in "am" else 1.0) * dense + 1


def test_the_generator_of_basicsr_is_compressed_too() -> None:
    torch.manual_seed(0)
    task = tiny(generator=MSRResNet(2, 8, 2))
    result = Trainer(task, config("b", sparsity=0.75)).run()
    assert isinstance(result.generator, MSRResNet)
    assert sparsity_report(result.generator).total.sparsity == pytest.approx(0.75, abs=0.01)
    assert isinstance(task.small_generator(0.5), MSRResNet)
    # Fresh ones begin near the bilinear picture, as BasicSR's.
    lr = task.batch(0)["lr"]
    with torch.no_grad():
        assert float((task.fresh_generator()(lr) - bilinear(lr)).abs().max()) < 0.05


def test_training_sharpens_a_random_generator() -> None:
    task = tiny(tests={"set": Drawn((24, 24))})
    before = task.measures(task.fresh_generator())
    result = Trainer(task, config("a", steps=60, ema=0.9)).run()
    after = task.measures(result.generator)
    assert after["set PSNR"] > before["set PSNR"] + 1
    assert after["set SSIM"] > before["set SSIM"] + 0.15
    rec = [row["terms"]["rec"] for row in result.history]
    assert rec[-1] < 0.5 * rec[0]


@pytest.mark.parametrize("fresh", [True, False])
def test_d_sees_what_the_new_g_makes(fresh: bool) -> None:
    task = tiny(fresh_fakes=fresh)
    judge, seen = task.judge, []

    def spy(module, images, batch):
        seen.append(images.detach().clone())
        return judge(module, images, batch)

    trainer = Trainer(replace(task, judge=spy), config("a", steps=1, recalibration=0))
    seen.clear()  # of what looks whether the networks fit
    batch = task.batch(0)
    with torch.no_grad():
        old = copy.deepcopy(trainer.g_c)(batch["lr"])
    trainer.run()
    shown_to_g, real, shown_to_d = seen
    assert torch.equal(shown_to_g, old)
    assert torch.equal(real, batch["hr"])
    with torch.no_grad():
        new = trainer.g_c.train()(batch["lr"])
    assert not torch.equal(new, old)
    assert torch.equal(shown_to_d, new if fresh else old)


def test_a_run_in_two_parts_ends_as_one_in_one(tmp_path) -> None:
    class Stopped(Exception):
        pass

    def stop(row):
        if row["step"] == 4:
            raise Stopped

    settings = config("b", save_every=3)
    whole = Trainer(tiny(), settings).run()
    with pytest.raises(Stopped):
        Trainer(tiny(), settings, out=tmp_path).run(stop)
    second = Trainer(tiny(), settings, out=tmp_path, resume=True)
    assert second.step == 3
    resumed = second.run()
    for a, b in (
        (whole.generator, resumed.generator),
        (whole.discriminator, resumed.discriminator),
    ):
        values = b.state_dict()
        assert all(torch.equal(value, values[name]) for name, value in a.state_dict().items())
    assert resumed.history == whole.history


def test_small_generators_have_the_share_asked_for() -> None:
    task = tiny(generator=SRGANGenerator(2, 32, 2, old=True))
    dense = sum(p.numel() for p in task.generator.parameters())
    small = task.small_generator(0.25)
    counts = [
        sum(p.numel() for p in SRGANGenerator(2, width, 2, old=True).parameters())
        for width in range(1, 33)
    ]
    assert sum(p.numel() for p in small.parameters()) == min(
        counts, key=lambda count: abs(count - 0.25 * dense)
    )


def test_data_of_another_scale_is_refused() -> None:
    task = tiny(scale=4)
    with pytest.raises(InputError, match=r"makes \[3, 32, 36\] of \[3, 8, 9\], but hr is \[3, 16"):
        task.generate(task.generator, task.batch(0))


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_another_gans_networks_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="srgan: can't be trained with a Identity"):
        tiny(**{name: nn.Identity()})
