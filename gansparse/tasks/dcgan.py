# SPDX-License-Identifier: Apache-2.0
"""Task DCGAN: pictures from noise, non-saturating loss (Radford et al. 2016; Goodfellow 2014)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gansparse.data.batches import Batches, EvaluationBatches, Samples
from gansparse.data.digits import to_float
from gansparse.data.sampling import ShuffledBatches, latents
from gansparse.errors import InputError
from gansparse.models.dcgan import DCGANDiscriminator, DCGANGenerator
from gansparse.tasks.adversarial import FirstSamples, width_for_share
from gansparse.tasks.gan import Batch, GANTask, Terms


def generator_terms(
    judged_fake: torch.Tensor,  # [N], logits
    fake: torch.Tensor,
    batch: Batch,
) -> Terms:
    """l_Gen: binary cross entropy of D's logits against "real"."""
    return {"gen": F.softplus(-judged_fake)}


def discriminator_terms(
    judged_real: torch.Tensor,  # [N], logits
    judged_fake: torch.Tensor,  # [N], logits
    batch: Batch,
) -> Terms:
    """l_Dis: binary cross entropy of real pictures against "real" and fakes against "fake"."""
    return {"dis": F.softplus(-judged_real) + F.softplus(judged_fake)}


def r1_penalty(discriminator: nn.Module, real: torch.Tensor) -> torch.Tensor:
    """Half the mean squared gradient norm of D's logits at real pictures (Mescheder et al. 2018).

    It keeps D from judging by ever finer details, so what it says of a picture stays useful.
    """
    real = real.detach().requires_grad_()
    with torch.autocast(real.device.type, enabled=False):
        logits = discriminator(real).sum()
        (gradient,) = torch.autograd.grad(logits, real, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()


def _as_float(images: torch.Tensor) -> torch.Tensor:
    return to_float(images) if images.dtype == torch.uint8 else images.float()


def _check_images(images: torch.Tensor) -> None:
    fits = images.dtype == torch.uint8 or images.is_floating_point()
    if images.ndim != 4 or not fits:
        raise InputError(
            "images must be [M, C, H, W], uint8 or float in the generator's range, got "
            f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
        )
    for index, picture in enumerate(images if images.is_floating_point() else ()):
        if not bool(picture.isfinite().all()):
            raise InputError(f"images: picture {index} has NaN or infinite pixels; leave it out")


def latent_task(
    *,
    generator: nn.Module,
    discriminator: nn.Module,
    images: torch.Tensor | Samples,  # [M, C, H, W], uint8, or float in the generator's range
    latent_shape: tuple[int, ...],
    batch_size: int = 64,
    seed: int = 0,
    name: str = "gan",
    generator_loss: Callable[[torch.Tensor], torch.Tensor] | None = None,
    discriminator_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    num_workers: int = 0,
    on_damaged: str = "raise",
    evaluation_seed: int = 0,
    **options: Any,
) -> GANTask:
    """Any GAN that makes pictures from noise: a pair of modules, pictures, two loss functions.

    Args:
        generator: maps latents [N, *latent_shape] to pictures.
        discriminator: maps pictures to logits, one a sample.
        images: the training pictures; or what reads them, {"real": [C, H, W]} at a time
            (`gansparse.data.PictureSamples`).
        latent_shape: shape of one latent, ``(100, 1, 1)`` say.
        batch_size: samples a step.
        seed: of batches and latents.
        name: for logs and reports.
        generator_loss: logits of fakes -> loss of each sample [N]; default: non-saturating BCE.
        discriminator_loss: logits of real, of fake -> loss of each sample [N]; default: BCE.
        num_workers: processes that read pictures which are not in memory.
        on_damaged: as `Batches`.
        evaluation_seed: of the latents that generators are scored with, whatever ``seed`` is.
        **options: further fields of `GANTask` (``lr``, ``betas``, ``new_generator``, ...).

    Raises:
        InputError: images of another shape or dtype, or with NaN; a batch size that doesn't fit.
    """
    batches: ShuffledBatches | Batches
    pictures: torch.Tensor | Callable[[], Iterator[torch.Tensor]]
    if isinstance(images, torch.Tensor):
        _check_images(images)
        batches, pictures = ShuffledBatches(images, batch_size, seed), images
    else:
        reading: dict[str, Any] = {"num_workers": num_workers, "on_damaged": on_damaged}
        batches = Batches(images, batch_size, seed, **reading)
        every = EvaluationBatches(images, 100, **reading)
        pictures = FirstSamples(every, "real", len(images))

    def batch(step: int) -> Batch:
        found = batches(step)
        return {
            "real": _as_float(found) if isinstance(found, torch.Tensor) else found["real"],
            "z": latents(seed, step, batch_size, latent_shape),
        }

    def evaluation(index: int) -> Batch:
        return {"z": latents(evaluation_seed, index, 100, latent_shape, stream="evaluation")}

    def judge(module: nn.Module, pictures: torch.Tensor, batch: Batch) -> torch.Tensor:
        judged: torch.Tensor = module(pictures).flatten().float()
        if judged.shape[0] != pictures.shape[0]:
            raise InputError(
                f"task {name}: the discriminator must give one logit a picture, got "
                f"{judged.shape[0]} of pictures {list(pictures.shape)}; give it pictures of the "
                "size it was trained on, or average its patches"
            )
        return judged

    def own_generator_terms(judged: torch.Tensor, fake: torch.Tensor, batch: Batch) -> Terms:
        assert generator_loss is not None
        return {"gen": generator_loss(judged.flatten())}

    def own_discriminator_terms(real: torch.Tensor, fake: torch.Tensor, batch: Batch) -> Terms:
        assert discriminator_loss is not None
        return {"dis": discriminator_loss(real.flatten(), fake.flatten())}

    return GANTask(
        name=name,
        generator=generator,
        discriminator=discriminator,
        batch=batch,
        evaluation=evaluation,
        pictures=pictures,
        generate=lambda module, batch: module(batch["z"]),
        generator_terms=own_generator_terms if generator_loss else generator_terms,
        discriminator_terms=own_discriminator_terms if discriminator_loss else discriminator_terms,
        judge=judge,
        steps_per_epoch=len(batches),
        **options,
    )


def dcgan_task(
    images: torch.Tensor | Samples,  # [M, nc, image_size, image_size], uint8
    *,
    generator: DCGANGenerator | None = None,
    discriminator: DCGANDiscriminator | None = None,
    nz: int = 100,
    ngf: int = 64,
    ndf: int = 64,
    batch_size: int = 64,
    seed: int = 0,
    r1: float = 0.0,
    **options: Any,
) -> GANTask:
    """DCGAN as in the paper: nz 100, ngf = ndf = 64, 64x64 (Yu & Pool 2020, section 5).

    Args:
        images: the training pictures; or what reads them, as in `latent_task`.
        generator: the trained generator; a random one where none is given.
        discriminator: the trained discriminator; likewise.
        nz: length of the latent vector.
        ngf: base width of a generator that is not given.
        ndf: base width of a discriminator that is not given.
        batch_size: samples a step.
        seed: of batches and latents.
        r1: weight of the R1 penalty in D's own training, taken every 8th step; 0: none.
        **options: further fields of `GANTask`.
    """
    if r1 < 0:
        raise InputError(f"r1 must be at least 0, got {r1}")
    if r1:
        options |= {
            "regulariser": lambda module, batch: r1 * r1_penalty(module, batch["real"]),
            "regulariser_every": 8,
        }
    if isinstance(images, torch.Tensor):
        channels, size = images.shape[1], images.shape[-1]
    else:
        damaged = options.get("on_damaged", "raise")
        first = EvaluationBatches(images, 1, on_damaged=damaged)(0)["real"]
        channels, size = first.shape[1], first.shape[-1]
    if generator is not None:  # what is built later is as wide as what was trained
        nz, ngf = generator.nz, generator.ngf
    if discriminator is not None:
        ndf = discriminator.ndf

    def new_generator() -> nn.Module:
        return DCGANGenerator(nz, ngf, channels, size)

    def new_discriminator() -> nn.Module:
        return DCGANDiscriminator(ndf, channels, size)

    def small_generator(share: float) -> nn.Module:
        return width_for_share(lambda width: DCGANGenerator(nz, width, channels, size), share, ngf)

    return latent_task(
        generator=generator if generator is not None else new_generator(),
        discriminator=discriminator if discriminator is not None else new_discriminator(),
        images=images,
        latent_shape=(nz, 1, 1),
        batch_size=batch_size,
        seed=seed,
        name="dcgan",
        new_generator=new_generator,
        new_discriminator=new_discriminator,
        small_generator=small_generator,
        **options,
    )
