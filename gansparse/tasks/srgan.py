# SPDX-License-Identifier: Apache-2.0
"""Task SRGAN: super resolution (Ledig et al. 2017), trained as leftthomas/SRGAN does it.

Pictures are in [0, 1], but those of the view in [-1, 1], as the metrics take them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from gansparse.data.batches import EvaluationBatches, Samples
from gansparse.errors import InputError
from gansparse.metrics.psnr_ssim import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from gansparse.models.msrresnet import MSRResNet
from gansparse.models.srgan import SRGANDiscriminator, SRGANGenerator
from gansparse.models.vgg import vgg16_features
from gansparse.tasks.adversarial import (
    CountedBatches,
    FirstSamples,
    count_samples,
    per_sample,
    width_for_share,
)
from gansparse.tasks.gan import Batch, Fake, GANTask, Terms, View

ADVERSARIAL_WEIGHT, PERCEPTUAL_WEIGHT, TV_WEIGHT = 0.001, 0.006, 2e-8

Generator: TypeAlias = SRGANGenerator | MSRResNet
Features = Callable[[torch.Tensor], torch.Tensor]  # [N, 3, H, W] in [0, 1] -> [N, ...]
Pair = tuple[torch.Tensor, torch.Tensor]  # lr, hr: [C, h, w] or [N, C, h, w], float in [0, 1]


def total_variation(
    images: torch.Tensor,  # [N, C, H, W]
) -> torch.Tensor:  # [N]
    """Twice the mean squared step from row to row plus that from column to column.

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
        tensor([2.])
    """
    return 2.0 * (per_sample(images.diff(dim=2).square()) + per_sample(images.diff(dim=3).square()))


def feature_error(
    features: Features,
    fake: torch.Tensor,  # [N, C, H, W], in [0, 1]
    hr: torch.Tensor,  # [N, C, H, W], in [0, 1]
) -> torch.Tensor:  # [N], float32
    """Mean squared difference of features: of two like pictures, so in float32 throughout."""
    if isinstance(features, nn.Module):
        features.to(fake.device)
    with torch.autocast(fake.device.type, enabled=False):
        with torch.no_grad():
            wanted = features(hr.float())
        return per_sample((features(fake.float()) - wanted).square())


def discriminator_features(discriminator: SRGANDiscriminator) -> nn.Module:
    """A frozen copy of D's convolutions: all before its average over the picture."""
    layers = list(copy.deepcopy(discriminator.net))
    average = next(i for i, layer in enumerate(layers) if isinstance(layer, nn.AdaptiveAvgPool2d))
    return nn.Sequential(*layers[:average]).eval().requires_grad_(False)


def perceptual_features(
    perceptual: str | Path | Features | None, discriminator: SRGANDiscriminator | None
) -> Features | None:
    """What the perceptual term compares; see `srgan_task`.

    Raises:
        InputError: "discriminator", but none was given.
        CheckpointError: not VGG16's weights.
    """
    if perceptual is None:
        perceptual = "none" if discriminator is None else "discriminator"
        instead = {
            "none": "there is no perceptual term, only pixels count",
            "discriminator": "the perceptual term compares features of the discriminator given",
        }
        warnings.warn(
            f"srgan: no weights of VGG16, so {instead[perceptual]}; give the path of torchvision's "
            f"vgg16 file as perceptual= (--vgg), or say {perceptual!r} there",
            stacklevel=3,
        )
    if perceptual == "none":
        return None
    if perceptual == "discriminator":
        if discriminator is None:
            raise InputError("srgan: perceptual='discriminator' needs a trained discriminator")
        return discriminator_features(discriminator)
    if isinstance(perceptual, (str, Path)):
        return vgg16_features(perceptual)
    if isinstance(perceptual, nn.Module):
        return perceptual.eval().requires_grad_(False)
    return perceptual


def quality(
    tests: Mapping[str, Samples | Sequence[Pair]], scale: int
) -> Callable[[nn.Module], dict[str, float]]:
    """A function that gives a generator's PSNR in dB and SSIM on test sets.

    On Y, rounded to bytes, a border as wide as the scale cut off, mean over a set's pictures.

    Args:
        tests: name -> `SuperResolutionFolder` built with ``augment=False``, or a list of (lr, hr).
        scale: of the generator.

    Raises:
        InputError: samples that are augmented.
    """
    sets = {
        name: test if isinstance(test, Sequence) else EvaluationBatches(test, 1)
        for name, test in tests.items()
    }

    @torch.no_grad()
    def measures(generator: nn.Module) -> dict[str, float]:
        device = next(generator.parameters()).device
        training = generator.training
        generator.eval()
        figures: dict[str, float] = {}
        try:
            for name, pairs in sets.items():
                psnr = PeakSignalNoiseRatio(border=scale)
                ssim = StructuralSimilarityIndexMeasure(border=scale)
                for lr, hr in _pairs(pairs):
                    sr = _signed(generator(lr.to(device)))
                    for metric in (psnr, ssim):
                        metric.update(sr, _signed(hr.to(device)))
                figures |= {f"{name} PSNR": psnr.compute(), f"{name} SSIM": ssim.compute()}
        finally:
            generator.train(training)
        return figures

    return measures


def _pairs(
    test: EvaluationBatches | Sequence[Pair],
) -> Iterator[Pair]:  # each [N, C, h, w], [N, C, H, W]
    if isinstance(test, EvaluationBatches):
        for index in range(len(test)):
            batch = test(index)
            yield batch["lr"], batch["hr"]
    else:
        for lr, hr in test:
            yield lr.reshape(-1, *lr.shape[-3:]), hr.reshape(-1, *hr.shape[-3:])


def _signed(
    images: torch.Tensor,  # [N, C, H, W], in [0, 1]
) -> torch.Tensor:  # [N, C, H, W], in [-1, 1]
    return 2.0 * images - 1.0


def whole_pictures_view(evaluation: CountedBatches) -> View:
    """Enlarged pictures against the real ones, both shifted to [-1, 1]."""
    count = count_samples(evaluation, "hr")
    return View(
        "",
        FirstSamples(evaluation, "hr", count, _signed),
        evaluation,
        lambda generator, batch: _signed(generator(batch["lr"])),
        num_samples=count,
        beside=lambda batch: {"input": _signed(batch["lr"]), "truth": _signed(batch["hr"])},
    )


def _generate(generator: nn.Module, batch: Batch) -> Fake:
    fake: torch.Tensor = generator(batch["lr"])
    if fake.shape != batch["hr"].shape:
        raise InputError(
            f"srgan: the generator makes {list(fake.shape[1:])} of {list(batch['lr'].shape[1:])}, "
            f"but hr is {list(batch['hr'].shape[1:])}: build the data with the generator's scale"
        )
    return fake


def _discriminator_terms(
    judged_real: torch.Tensor,  # [N], probabilities
    judged_fake: torch.Tensor,  # [N], probabilities
    batch: Batch,
) -> Terms:
    return {"dis": 1.0 - judged_real + judged_fake}


def srgan_task(
    batches: CountedBatches,
    evaluation: CountedBatches | None = None,
    *,
    generator: Generator | None = None,
    discriminator: SRGANDiscriminator | None = None,
    perceptual: str | Path | Features | None = None,
    tests: Mapping[str, Samples | Sequence[Pair]] | None = None,
    scale: int = 4,
    ngf: int = 64,
    ndf: int = 64,
    blocks: int = 5,
    **options: Any,
) -> GANTask:
    """SRGAN as in the paper: crops of 88 pixels, batch 64, 100 epochs (Yu & Pool 2020, section 5).

    l_Gen is 1 - D(fake), with weight 0.001; l_Rec the mean squared error of pixels + 0.006 of
    features + 2e-8 total variation; l_Dis 1 - D(hr) + D(fake), where D gives probabilities. Adam
    with its default settings. G learns first, and D then sees what the new G makes. The original's
    versions differ in this: older ones begin with D, newer ones show D the pictures of before G's
    step (``fresh_fakes=False``). New networks have torch's own initial weights, as the original's;
    an MSRResNet has BasicSR's.

    The original's features are those after the fifth pool of an ImageNet VGG16, whose weights
    (528 MB) don't come with this package. It feeds it pictures in [0, 1], without the mean and
    deviation that VGG16 was trained with, and so it is done here.

    Args:
        batches: step -> {"lr": [N, C, h, w], "hr": [N, C, scale h, scale w]} to train on.
        evaluation: the same of whole pictures, to be scored. None: nothing to score.
        generator: the trained generator, of leftthomas/SRGAN or BasicSR; else a random SRGAN.
        discriminator: the trained discriminator; a random one where none is given.
        perceptual: the path of VGG16's weights in torchvision's layout; "discriminator": features
            of the given discriminator, frozen as it is now; "none": no such term; or a function of
            pictures [N, 3, H, W] in [0, 1] (a module is frozen and put into eval mode). None: with
            a warning "discriminator" where one is given, else "none".
        tests: sets to measure PSNR and SSIM on, by name; see `quality`.
        scale: of a generator that is not given: 2, 4 or 8.
        ngf: width of a generator that is not given.
        ndf: width of a discriminator that is not given.
        blocks: residual blocks of a generator that is not given.
        **options: further fields of `GANTask`.

    Raises:
        InputError: a scale that there is not, networks of another GAN, or nothing to take features
            from.
        CheckpointError: not VGG16's weights.
    """
    kinds = (generator, (SRGANGenerator, MSRResNet)), (discriminator, SRGANDiscriminator)
    for net, kind in kinds:
        if not isinstance(net, kind) and net is not None:
            raise InputError(f"srgan: can't be trained with a {type(net).__name__}")
    features = perceptual_features(perceptual, discriminator)
    if generator is None:
        generator = SRGANGenerator(scale, ngf, blocks, batches(0)["hr"].shape[1])
    of_width, width, channels = _builder(generator)
    if discriminator is None:
        discriminator = SRGANDiscriminator(ndf, channels)

    def generator_terms(judged: torch.Tensor, fake: Fake, batch: Batch) -> Terms:
        hr = batch["hr"]
        rec = per_sample((fake.float() - hr).square()) + TV_WEIGHT * total_variation(fake.float())
        if features is not None:
            rec = rec + PERCEPTUAL_WEIGHT * feature_error(features, fake, hr)
        return {"gen": 1.0 - judged, "rec": rec}

    defaults: dict[str, Any] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "g_first": True,
        "fresh_fakes": True,
        "steps_per_epoch": len(batches),
        "new_generator": lambda: of_width(width),
        "small_generator": lambda share: width_for_share(of_width, share, width),
    }
    if evaluation is not None:
        defaults["views"] = (whole_pictures_view(evaluation),)
    if tests:
        defaults["measures"] = quality(tests, generator.scale)
    return GANTask(
        name="srgan",
        generator=generator,
        discriminator=discriminator,
        batch=batches,
        real=lambda batch: batch["hr"],
        generate=_generate,
        judge=lambda module, images, batch: module(images).float(),
        generator_terms=generator_terms,
        discriminator_terms=_discriminator_terms,
        weights={"gen": ADVERSARIAL_WEIGHT},
        **defaults | options,
    )


def _builder(generator: Generator) -> tuple[Callable[[int], Generator], int, int]:
    """Width -> a new generator that is like this one in all else; its width and its channels."""
    scale = generator.scale
    build: Callable[[int], Generator]
    if isinstance(generator, MSRResNet):
        first, blocks = generator.conv_first, len(generator.body)
        build = partial(MSRResNet, scale, num_block=blocks, nc=first.in_channels)
    else:
        parts: Any = list(generator.children())  # head, residual blocks, trunk, tail
        first, blocks, old = parts[0][0], len(parts) - 3, isinstance(parts[-2][1], nn.PReLU)
        build = partial(SRGANGenerator, scale, blocks=blocks, nc=first.in_channels, old=old)
    return build, first.out_channels, first.in_channels
