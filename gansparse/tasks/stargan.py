# SPDX-License-Identifier: Apache-2.0
"""Task StarGAN: one generator for many domains, WGAN-GP with classifier and cycle.

Losses, weights and order of updates are those of Choi et al. 2018 (yunjey/stargan).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from gansparse.data.batches import EvaluationBatches, Samples
from gansparse.data.sampling import generator_for
from gansparse.errors import InputError
from gansparse.models.stargan import ResidualBlock, StarGANDiscriminator, StarGANGenerator
from gansparse.tasks.adversarial import (
    CountedBatches,
    FirstSamples,
    gan_losses,
    per_sample_l1,
    width_for_share,
)
from gansparse.tasks.gan import Batch, Fake, GANTask, Terms, View, pictures_of

HAIR_COLOURS = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")  # nobody has two
Judged = tuple[torch.Tensor, torch.Tensor]  # source [N, 1, S, S], domains [N, c_dim]: logits

_generator_loss, _discriminator_loss = gan_losses("wgan")


class LabelledSamples(Samples, Protocol):
    """Samples whose labels are known before a picture is read (`gansparse.data.labelled`)."""

    labels: torch.Tensor  # [M, c_dim], zeros and ones
    label_names: tuple[str, ...]


def domain_loss(
    logits: torch.Tensor,  # [N, c_dim]
    labels: torch.Tensor,  # [N, c_dim], zeros and ones
    classes: bool,
) -> torch.Tensor:  # [N]
    """Binary cross entropy summed over attributes, or cross entropy where a sample has one class.

    Example:
        >>> domain_loss(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 1.0]]), classes=False)
        tensor([2.0794])
    """
    if classes:
        return F.cross_entropy(logits, labels, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)


def target_labels(
    labels: torch.Tensor,  # [N, c_dim], zeros and ones
    domain: int,
    names: Sequence[str],
    classes: bool,
) -> torch.Tensor:  # [N, c_dim]
    """The labels that ask for a domain, as the original makes them to test a generator.

    A class replaces the old one, and so does a hair colour; any other attribute is reversed.

    Args:
        labels: of the pictures as they are.
        domain: its number.
        names: of all domains.
        classes: each picture is of one class.

    Example:
        >>> names = ("Black_Hair", "Blond_Hair", "Male")
        >>> blond_man = torch.tensor([[0.0, 1.0, 1.0]])
        >>> [target_labels(blond_man, i, names, classes=False).tolist() for i in (0, 2)]
        [[[1.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]]
    """
    target = labels.clone()
    rivals = range(len(names)) if classes else [i for i, n in enumerate(names) if n in HAIR_COLOURS]
    if domain in rivals:
        target[:, list(rivals)] = 0.0
        target[:, domain] = 1.0
    else:
        target[:, domain] = 1.0 - target[:, domain]
    return target


def gradient_penalty(
    discriminator: nn.Module,
    fake: torch.Tensor,  # [N, C, H, W]
    batch: Batch,  # real [N, C, H, W], epsilon [N, 1, 1, 1]
) -> torch.Tensor:  # [N], float32
    """(|gradient of D's source logits| - 1)² between real and fake (Gulrajani et al. 2017).

    Taken at ``epsilon * real + (1 - epsilon) * fake``. Where gradients are recorded it has one with
    respect to D's weights and to ``fake``; the penalty's own gradient is taken in any case.
    """
    recorded = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast(fake.device.type, enabled=False):
        # In the dtype of epsilon and real, float32, also where fake was made in bfloat16.
        between = batch["epsilon"] * batch["real"] + (1.0 - batch["epsilon"]) * fake
        if not between.requires_grad:
            between.requires_grad_()
        source, _ = discriminator(between)
        (gradient,) = torch.autograd.grad(source.sum(), between, create_graph=recorded)
        norm = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return torch.square(norm - 1.0)


class _Chosen:
    """Some samples of a set."""

    def __init__(self, samples: Samples, indices: list[int]) -> None:
        self.samples, self.indices = samples, indices
        self.augment = getattr(samples, "augment", False)
        self.name = getattr(samples, "name", type(samples).__name__)

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        return self.samples.sample(self.indices[index], rng)


def domain_view(
    samples: LabelledSamples,
    domain: int,
    *,
    classes: bool,
    batch_size: int = 16,
    num_workers: int = 0,
    on_damaged: str = "raise",
) -> View:
    """Pictures of all other domains translated into one, against the real pictures of that one.

    Args:
        samples: the test set, built with ``augment=False``.
        domain: number of the target domain.
        classes: each picture is of one class.
        batch_size: pictures a batch.
        num_workers: processes that read ahead.
        on_damaged: as `EvaluationBatches`.

    Raises:
        InputError: fewer than two pictures on either side, or samples that are augmented.
    """
    name = samples.label_names[domain]
    inside, outside = (
        _Chosen(samples, torch.nonzero(samples.labels[:, domain] == value).flatten().tolist())
        for value in (1, 0)
    )
    if min(len(inside), len(outside)) < 2:
        raise InputError(
            f"stargan: domain {name} can't be scored: the test set has {len(inside)} pictures in "
            f"it and {len(outside)} in others, and needs at least 2 of each"
        )
    reading: dict[str, Any] = {"num_workers": num_workers, "on_damaged": on_damaged}
    real, others = (EvaluationBatches(part, batch_size, **reading) for part in (inside, outside))

    everything = EvaluationBatches(samples, batch_size, **reading)

    def translated(batches: EvaluationBatches) -> Callable[[int], Batch]:
        def batch(index: int) -> Batch:
            found = batches(index)
            target = target_labels(found["label"], domain, samples.label_names, classes)
            return {"real": found["image"], "target": target}

        return batch

    return View(
        name,
        FirstSamples(real, "image", len(inside)),
        translated(others),
        translate,
        num_samples=len(outside),
        beside=lambda batch: {"input": batch["real"]},
        shown=translated(everything),  # the same inputs for every domain
    )


def translate(generator: nn.Module, batch: Batch) -> torch.Tensor:  # [N, C, H, W]
    """The batch's pictures in their target domains."""
    fake: torch.Tensor = generator(batch["real"], batch["target"])
    return fake


def _generate(generator: nn.Module, batch: Batch) -> Fake:
    fake = translate(generator, batch)
    return {"fake": fake, "rec": generator(fake, batch["label"])}


def _judge(discriminator: nn.Module, images: Fake, batch: Batch) -> Judged:
    source, domains = discriminator(pictures_of(images)["fake"])
    return source.float(), domains.float()


def _discriminator_terms(judged_real: Judged, judged_fake: Judged, batch: Batch) -> Terms:
    return {"dis": _discriminator_loss(judged_real[0], judged_fake[0])}


def _penalty_terms(discriminator: nn.Module, fake: Fake, batch: Batch) -> Terms:
    return {"gp": gradient_penalty(discriminator, pictures_of(fake)["fake"], batch)}


def stargan_task(
    batches: CountedBatches,
    evaluation: LabelledSamples | None = None,
    *,
    generator: StarGANGenerator | None = None,
    discriminator: StarGANDiscriminator | None = None,
    classes: bool | None = None,
    conv_dim: int = 64,
    g_repeat_num: int = 6,
    d_repeat_num: int = 6,
    lambda_cls: float = 1.0,
    lambda_rec: float = 10.0,
    lambda_gp: float = 10.0,
    n_critic: int = 5,
    num_workers: int = 0,
    on_damaged: str = "raise",
    seed: int = 0,
    **options: Any,
) -> GANTask:
    """StarGAN as in the paper: 128x128, batch 16, 200,000 steps of D (Yu & Pool 2020, section 5).

    G's targets are the batch's own labels in another order. D learns in every step, on source,
    domains and gradient penalty at once; G in every ``n_critic``-th, after it. Adam 1e-4
    (0.5, 0.999), which falls to 0 in the second half; the original lowers it every 1,000 steps,
    here it falls evenly. New networks have torch's own initial weights, as the original's.

    Args:
        batches: step -> {"image": [N, C, S, S] in [-1, 1], "label": [N, c_dim]} to train on.
        evaluation: the test set; each of its domains gives a view. None: nothing to score.
        generator: the trained generator; a random one where none is given.
        discriminator: the trained discriminator; likewise.
        classes: each picture is of one class, so that D's domains are judged by cross entropy, as
            the original does for RaFD; False: of several attributes, as for CelebA. None: as the
            labels of ``evaluation``, or else of the first batch, show.
        conv_dim: width of the first layer of networks that are not given.
        g_repeat_num: residual blocks of a generator that is not given.
        d_repeat_num: layers of a discriminator that is not given.
        lambda_cls: weight of the classification terms.
        lambda_rec: weight of the reconstruction.
        lambda_gp: weight of the gradient penalty.
        n_critic: steps of D to one of G.
        num_workers: processes that read test pictures ahead.
        on_damaged: what becomes of a damaged one, as `EvaluationBatches`.
        seed: of target labels and of the gradient penalty's places.
        **options: further fields of `GANTask`.

    Raises:
        InputError: networks that don't fit the data, labels that are no classes, or a domain that
            the test set has too few pictures of.
    """
    first = batches(0)
    channels, size = first["image"].shape[1:3]
    labels = first["label"] if evaluation is None else evaluation.labels
    c_dim = labels.shape[1]
    one_class = _one_hot(labels) if classes is None else classes
    if generator is None:
        generator = StarGANGenerator(conv_dim, c_dim, g_repeat_num, channels)
    if discriminator is None:
        discriminator = StarGANDiscriminator(size, conv_dim, c_dim, d_repeat_num, channels)
    _check_fit(generator, StarGANGenerator, {"c_dim": c_dim})
    _check_fit(discriminator, StarGANDiscriminator, {"c_dim": c_dim, "image_size": size})
    width, blocks, nc = _sizes(generator)
    if nc != channels:
        raise InputError(f"stargan: the generator makes {nc} channels, but the data has {channels}")

    def batch(step: int) -> Batch:
        found = batches(step)
        label = found["label"]
        if one_class and not _one_hot(label):
            raise InputError(
                "stargan: labels must hold one class each; for attributes classes=False"
            )
        count = label.shape[0]
        order = torch.randperm(count, generator=generator_for(seed, "latent", step))
        epsilon = torch.rand(count, 1, 1, 1, generator=generator_for(seed, "penalty", step))
        return {"real": found["image"], "label": label, "target": label[order], "epsilon": epsilon}

    def generator_terms(judged: Judged, fake: Fake, batch: Batch) -> Terms:
        source, domains = judged
        return {
            "gen": _generator_loss(source),
            "cla": domain_loss(domains, batch["target"], one_class),
            "rec": per_sample_l1(fake["rec"], batch["real"]),
        }

    def real_terms(judged: Judged, batch: Batch) -> Terms:
        return {"cla": domain_loss(judged[1], batch["label"], one_class)}

    def of_width(conv_dim: int) -> StarGANGenerator:
        return StarGANGenerator(conv_dim, c_dim, blocks, channels)

    defaults: dict[str, Any] = {
        "lr": 1e-4,
        "lr_decay": "half",
        "steps_per_epoch": len(batches),
        "new_generator": lambda: of_width(width),
        "small_generator": lambda share: width_for_share(of_width, share, width),
    }
    if evaluation is not None:
        defaults["views"] = tuple(
            domain_view(
                evaluation,
                domain,
                classes=one_class,
                num_workers=num_workers,
                on_damaged=on_damaged,
            )
            for domain in range(c_dim)
        )
    return GANTask(
        name="stargan",
        generator=generator,
        discriminator=discriminator,
        batch=batch,
        generate=_generate,
        generate_for_d=lambda module, batch: {"fake": translate(module, batch)},
        judge=_judge,
        generator_terms=generator_terms,
        discriminator_terms=_discriminator_terms,
        penalty_terms=_penalty_terms,
        real_terms=real_terms,
        weights={"cla": lambda_cls, "rec": lambda_rec, "gp": lambda_gp},
        g_every=n_critic,
        **defaults | options,
    )


def _check_fit(net: nn.Module, kind: type[nn.Module], sizes: dict[str, int]) -> None:
    if not isinstance(net, kind):
        raise InputError(f"stargan: needs a {kind.__name__}, got a {type(net).__name__}")
    for name, size in sizes.items():
        if getattr(net, name) != size:
            raise InputError(
                f"stargan: the {kind.__name__} has {name} {getattr(net, name)}, but the data {size}"
            )


def _one_hot(
    labels: torch.Tensor,  # [N, c_dim]
) -> bool:
    return bool((labels.sum(1) == 1).all())


def _sizes(generator: StarGANGenerator) -> tuple[int, int, int]:
    """conv_dim, repeat_num and nc."""
    first = generator.main[0]
    assert isinstance(first, nn.Conv2d)
    blocks = sum(isinstance(layer, ResidualBlock) for layer in generator.main)
    return first.out_channels, blocks, first.in_channels - generator.c_dim
