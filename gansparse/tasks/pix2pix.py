# SPDX-License-Identifier: Apache-2.0
"""Task Pix2Pix: a picture of domain b from its counterpart in a (Isola et al., CVPR 2017).

Losses, weights and update order are those of junyanz/pytorch-CycleGAN-and-pix2pix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gansparse.data.sampling import generator_for
from gansparse.errors import InputError
from gansparse.models.pix2pix import (
    LiveBatchNorm2d,
    LiveDropout,
    PatchGANDiscriminator,
    PixelDiscriminator,
    UNetGenerator,
    drawn_from,
)
from gansparse.tasks.adversarial import (
    CountedBatches,
    FirstSamples,
    count_samples,
    gan_losses,
    per_sample_l1,
    width_for_share,
    with_fresh_weights,
)
from gansparse.tasks.gan import Batch, GANTask, Terms, View


def pix2pix_task(
    batches: CountedBatches,
    evaluation: CountedBatches | None = None,
    *,
    generator: nn.Module | None = None,
    discriminator: nn.Module | None = None,
    ngf: int = 64,
    num_downs: int = 8,
    ndf: int = 64,
    patch_layers: int = 3,
    gan_mode: str = "vanilla",
    seed: int = 0,
    **options: Any,
) -> GANTask:
    """Pix2Pix as in the paper: U-Net, D of both pictures, 100 times L1, D updated before G.

    ====  ==========================================================================
    term  loss of a sample
    ====  ==========================================================================
    gen   D takes (a, G(a)) for real, mean over the patches
    rec   mean |G(a) - b|, weight 100
    dis   half of: D takes (a, b) for real and (a, G(a)) for fake, mean over the patches
    ====  ==========================================================================

    The U-Net's dropout is its source of noise. Here it is a function of the sample, so two
    generators get the same noise for the same sample, in whatever batch, and scores repeat.
    Pictures to be scored are made one by one, as the authors make them: each is normalised by its
    own statistics.

    Args:
        batches: step -> {"a", "b"}: pairs of pictures [N, C, H, W], float in [-1, 1];
            ``len``: batches in an epoch.
        evaluation: index -> such a batch of the test set, in order; ``len``: batches that hold all
            of it once. None: nothing to score.
        generator: the trained generator; a random U-Net where none is given. Whether dropout and
            batch statistics stay live while it is scored is its own choice
            (`UNetGenerator.live_in_eval`).
        discriminator: the trained discriminator of a and b side by side [N, 2 C, H, W]; a random
            one where none is given.
        ngf: base width of a random generator.
        num_downs: its halvings: 8 is U-Net-256, 7 is U-Net-128.
        ndf: base width of a random discriminator.
        patch_layers: its halvings; 0: the discriminator of single pixels.
        gan_mode: ``vanilla``, ``lsgan`` or ``wgan`` (`gan_losses`).
        seed: of the noise.
        **options: further fields of `GANTask`.

    Raises:
        InputError: no such ``gan_mode``, sizes that make no network, or a ``pool_size``.

    Example:
        >>> pair = {"a": torch.zeros(2, 3, 32, 32), "b": torch.ones(2, 3, 32, 32)}
        >>> class Pairs:
        ...     def __len__(self):
        ...         return 1
        ...     def __call__(self, index):
        ...         return pair
        >>> task = pix2pix_task(Pairs(), ngf=2, ndf=2, num_downs=5)
        >>> task.generate(task.generator, task.batch(0)).shape
        torch.Size([2, 3, 32, 32])
    """
    generator_loss, discriminator_loss = gan_losses(gan_mode)
    if options.get("pool_size"):
        raise InputError("pix2pix: pool_size must be 0: D would see an older fake beside another a")
    if generator is None or discriminator is None:
        first = batches(0)
        channels, painted = first["a"].shape[1], first["b"].shape[1]
        if generator is None:
            generator = UNetGenerator(channels, painted, ngf, num_downs=num_downs)
        if discriminator is None:
            discriminator = _discriminator(channels + painted, ndf, patch_layers)
    original: nn.Module = generator
    critic: nn.Module = discriminator

    def batch(step: int) -> Batch:
        return _with_noise(batches(step), seed, "latent", step)

    def generator_terms(judged: torch.Tensor, fake: torch.Tensor, batch: Batch) -> Terms:
        return {"gen": generator_loss(judged), "rec": per_sample_l1(fake, batch["b"])}

    def discriminator_terms(real: torch.Tensor, fake: torch.Tensor, batch: Batch) -> Terms:
        return {"dis": 0.5 * discriminator_loss(real, fake)}

    defaults: dict[str, Any] = {"weights": {"rec": 100.0}, "lr_decay": "half"}
    if isinstance(original, UNetGenerator):
        defaults["small_generator"] = lambda share: _small_unet(original, share)
    return GANTask(
        name="pix2pix",
        generator=original,
        discriminator=critic,
        batch=batch,
        generate=_generate,
        generator_terms=generator_terms,
        discriminator_terms=discriminator_terms,
        views=() if evaluation is None else (_view(evaluation),),
        real=lambda batch: batch["b"],
        judge=lambda module, picture, batch: module(torch.cat([batch["a"], picture], 1)),
        new_generator=lambda: with_fresh_weights(original),
        new_discriminator=lambda: with_fresh_weights(critic),
        steps_per_epoch=len(batches),
        **(defaults | options),
    )


def _with_noise(batch: Batch, seed: int, stream: str, index: int) -> Batch:
    """The batch, and "noise" [N] int64, the seed of each sample's dropout."""
    rng = generator_for(seed, stream, index)
    return {**batch, "noise": torch.randint(2**62, (batch["a"].shape[0],), generator=rng)}


@contextmanager
def _drawing_from(batch: Batch) -> Iterator[None]:
    """What is drawn at random in here is a function of the batch."""
    a = batch["a"]
    with torch.random.fork_rng([a.device] if a.is_cuda else []):
        torch.manual_seed(int(batch["noise"][0]))  # of what a user's own network draws
        with drawn_from(batch["noise"], a.device):
            yield


def _generate(generator: nn.Module, batch: Batch) -> torch.Tensor:  # [N, C, H, W]
    with _drawing_from(batch):
        fake: torch.Tensor = generator(batch["a"])
    return fake


def _view(evaluation: CountedBatches) -> View:
    def batch(index: int) -> Batch:
        return _with_noise(evaluation(index), 0, "evaluation", index)

    def beside(batch: Batch) -> Batch:
        return {"input": batch["a"], "truth": batch["b"]}

    def make(generator: nn.Module, batch: Batch) -> torch.Tensor:  # [N, C, H, W]
        fakes = []
        each = (torch.split(batch[name], 1) for name in ("a", "noise"))
        for a, noise in zip(*each, strict=True):
            with _drawing_from({"a": a, "noise": noise}):
                fakes.append(generator(a))
        return torch.cat(fakes)

    count = count_samples(evaluation, "b")
    return View("a to b", FirstSamples(evaluation, "b", count), batch, make, count, beside)


def _discriminator(channels: int, ndf: int, patch_layers: int) -> nn.Module:
    if patch_layers == 0:
        return PixelDiscriminator(channels, ndf)
    return PatchGANDiscriminator(channels, ndf, patch_layers)


def _small_unet(net: UNetGenerator, share: float) -> UNetGenerator:
    """A random U-Net like this one in all but its width."""
    layers: Any = net.model.model
    first, last = layers[0], layers[3]
    kinds = [m for m in net.modules() if isinstance(m, (LiveBatchNorm2d, LiveDropout))]

    def build(width: int) -> UNetGenerator:
        return UNetGenerator(
            first.in_channels,
            last.out_channels,
            width,
            num_downs=net.num_downs,
            norm="batch" if first.bias is None else "instance",
            dropout=any(isinstance(m, LiveDropout) for m in kinds),
        ).live_in_eval(all(m.live for m in kinds))

    return width_for_share(build, share, first.out_channels)
