# SPDX-License-Identifier: Apache-2.0
"""What the trainer needs to know of a GAN: its batches, its networks, its own loss terms.

A term is a tensor of shape [N]: the loss of each sample, not weighted, not averaged, because
eq. 3-8 of Yu & Pool 2020 compare terms before and after compression.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gansparse.errors import InputError

Batch = Mapping[str, torch.Tensor]
Terms = dict[str, torch.Tensor]  # name -> [N], one loss per sample

TERM_NAMES = ("gen", "cla", "rec", "dis", "gp")  # l_Gen, l_Cla, l_Rec, l_Dis, l_GP


def _judge(discriminator: nn.Module, images: torch.Tensor, batch: Batch) -> Any:
    return discriminator(images)


def _no_penalty(discriminator: nn.Module, fake: torch.Tensor, batch: Batch) -> Terms:
    return {}


def reinitialised(module: nn.Module) -> nn.Module:
    """A copy with fresh random weights, through each layer's own ``reset_parameters``."""
    fresh = copy.deepcopy(module)
    for layer in fresh.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
        elif any(True for _ in layer.parameters(recurse=False)):
            raise InputError(
                f"{type(layer).__name__} has parameters but no reset_parameters(): "
                "pass new_generator=/new_discriminator= to the task"
            )
    return fresh


@dataclass
class GANTask:
    """A trained GAN with its data and losses, as the trainer sees it.

    Attributes:
        name: for logs and reports.
        generator: the trained generator G_O.
        discriminator: the trained discriminator D_O.
        batch: step -> batch; must hold ``real`` [N, C, H, W]. A pure function of the step, so
            that a resumed run sees the same batches.
        pictures: the real pictures [M, C, H, W], uint8, or float in the generator's range.
        evaluation: index -> batch to score generators with; the same for all of them.
        generate: (generator, batch) -> fake pictures [N, C, H, W].
        generator_terms: (judged fake, fake, batch) -> {"gen": [N], "cla": [N], "rec": [N]}.
        discriminator_terms: (judged real, judged fake, batch) -> {"dis": [N]}.
        penalty_terms: (discriminator, fake, batch) -> {"gp": [N]}, or nothing.
        regulariser: (discriminator, batch) -> a scalar that the GAN's own training adds to D's loss
            and that does not depend on the generator, so it has no part in eq. 6; or None.
        regulariser_every: D steps between two uses of it (Karras et al. 2020: lazily, times that).
        judge: (discriminator, images, batch) -> what the discriminator says.
        weights: weight of each term in the GAN's own training (alpha, beta, delta of eq. 3, 6).
        new_generator: builds a randomly initialised generator (techniques a, c, f, j, k, o).
        new_discriminator: builds a randomly initialised discriminator (a, c, e, f, j, k).
        small_generator: builds a random generator with that share of the parameters (c, o).
        lr: learning rate of the GAN's own training.
        betas: Adam's betas of the GAN's own training.
        steps_per_epoch: batches in one pass over the data.
        trained_steps: steps that the trained pair took, for the share of cost; None if unknown.
        data_name: where the data came from, for reports.
    """

    name: str
    generator: nn.Module
    discriminator: nn.Module
    batch: Callable[[int], Batch]
    evaluation: Callable[[int], Batch]
    pictures: torch.Tensor
    generate: Callable[[nn.Module, Batch], torch.Tensor]
    generator_terms: Callable[[Any, torch.Tensor, Batch], Terms]
    discriminator_terms: Callable[[Any, Any, Batch], Terms]
    penalty_terms: Callable[[nn.Module, torch.Tensor, Batch], Terms] = _no_penalty
    regulariser: Callable[[nn.Module, Batch], torch.Tensor] | None = None
    regulariser_every: int = 1
    judge: Callable[[nn.Module, torch.Tensor, Batch], Any] = _judge
    weights: Mapping[str, float] = field(default_factory=dict)
    new_generator: Callable[[], nn.Module] | None = None
    new_discriminator: Callable[[], nn.Module] | None = None
    small_generator: Callable[[float], nn.Module] | None = None
    lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    steps_per_epoch: int = 1
    trained_steps: int | None = None
    data_name: str = "user data"

    def __post_init__(self) -> None:
        """Refuses weights for terms that don't exist."""
        for term in self.weights:
            if term not in TERM_NAMES:
                raise InputError(
                    f"task {self.name}: weight for unknown term {term!r}; terms are {TERM_NAMES}"
                )

    def weight(self, term: str) -> float:
        """Weight of a term in the GAN's own loss; 1 where none was given."""
        return float(self.weights.get(term, 1.0))

    def train_further(self) -> None:
        """Lets the GAN's training (technique a) start from this pair."""
        self.new_generator = lambda: copy.deepcopy(self.generator)
        self.new_discriminator = lambda: copy.deepcopy(self.discriminator)

    def fresh_generator(self) -> nn.Module:
        """A generator with random weights."""
        return self.new_generator() if self.new_generator else reinitialised(self.generator)

    def fresh_discriminator(self) -> nn.Module:
        """A discriminator with random weights."""
        if self.new_discriminator:
            return self.new_discriminator()
        return reinitialised(self.discriminator)


def weighted_mean(
    task: GANTask,
    terms: Terms,  # each [N]
) -> torch.Tensor:  # scalar
    """The GAN's own loss: the weighted sum of the terms' batch means."""
    losses = [task.weight(name) * values.mean() for name, values in terms.items()]
    return torch.stack(losses).sum()
