# SPDX-License-Identifier: Apache-2.0
"""What G and D minimise in each technique of Table 1; `trainer.py` takes the steps."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gansparse.compress.config import TrainConfig
from gansparse.compress.losses import (
    References,
    consistency,
    feature_distance,
    inner_layers,
    output_distance,
    tapped,
    weighted_layers,
)
from gansparse.compress.recipes import Recipe
from gansparse.errors import InputError
from gansparse.tasks.gan import Batch, Fake, GANTask, Terms, pictures_of, weighted_mean

Losses = dict[str, torch.Tensor]  # name -> scalar, weighted


@dataclass
class Made:
    """What the generators made of a batch.

    Attributes:
        fake_o: G_O's fake, out of the graph; None where the row has no G_O.
        fake_c: G_C's.
        layers_o: outputs of G_O's inner layers, where the technique compares them.
        layers_c: of G_C's.
    """

    fake_o: Fake
    fake_c: Fake
    layers_o: list[torch.Tensor] = field(default_factory=list)
    layers_c: list[torch.Tensor] = field(default_factory=list)


class Objective:
    """The losses of one technique on one task.

    Args:
        task: the GAN's own terms.
        recipe: the technique's row.
        config: the paper's open points.
        d_update: how D is updated (`start.d_update_rule`).
    """

    def __init__(self, task: GANTask, recipe: Recipe, config: TrainConfig, d_update: str) -> None:
        self.task, self.recipe, self.config, self.d_update = task, recipe, config, d_update
        self.references = References()
        if recipe.objective == "distillation" and not recipe.has_d and not self.imitates_outputs:
            raise InputError(
                f"recipe {recipe.key} has nothing but the distance of the outputs to minimise: "
                "output_term must not be none, and output_weight not 0"
            )

    @property
    def imitates_outputs(self) -> bool:
        """Whether the distance of the two generators' outputs is minimised."""
        reading = self.config.reading
        return reading.output_term != "none" and reading.output_weight > 0

    @property
    def d_sees_original(self) -> bool:
        """Whether D's loss needs G_O's pictures."""
        updates = ("consistency", "adversarial-original")
        return self.recipe.objective == "imitation" or self.d_update in updates

    def tapped(self, generator: nn.Module | None) -> AbstractContextManager[list[torch.Tensor]]:
        """Collects the outputs of the generator's inner layers, where the technique needs them."""
        if self.recipe.objective != "layers" or generator is None:
            return nullcontext([])
        return tapped(inner_layers(generator))

    def d_loss(self, d: nn.Module, batch: Batch, fake_o: Fake, fake_c: Fake) -> torch.Tensor:
        """What D minimises, a scalar; both fakes are out of the graph."""
        task = self.task
        real = fake_o if self.recipe.objective == "imitation" else task.real(batch)
        judged_real = task.judge(d, real, batch)
        if self.d_update == "consistency":  # eq. 6, minimised by D itself
            terms_o, terms_c = (
                self._d_terms(d, batch, fake, judged_real, task.judge(d, fake, batch))
                for fake in (fake_o, fake_c)
            )
            return self._gap(terms_o, terms_c)
        fake = fake_o if self.d_update == "adversarial-original" else fake_c
        judged = task.judge(d, fake, batch)
        sides = batch
        if self.recipe.objective == "imitation":  # a penalty lies between what D tells apart
            sides = _with_real(batch, fake_o)
        loss = weighted_mean(task, self._d_terms(d, batch, fake, judged_real, judged, sides))
        if self.recipe.objective == "imitation":
            judged_real = task.judge(d, task.real(batch), batch)
        if own := task.real_terms(judged_real, batch):
            loss = loss + weighted_mean(task, own)
        return loss

    def g_losses(self, d: nn.Module | None, batch: Batch, made: Made) -> Losses:
        """What the generator minimises: the sum of these.

        Args:
            d: the discriminator, its parameters frozen; None where the row has none.
            batch: of the task.
            made: by both generators.
        """
        reading, kind = self.config.reading, self.recipe.objective
        losses: Losses = {}
        if kind == "layers":
            return {"layers": feature_distance(made.layers_o, made.layers_c)}
        if kind in ("distillation", "self-supervised") and self.imitates_outputs:
            distance = output_distance(made.fake_o, made.fake_c, reading.output_term)
            losses["output"] = reading.output_weight * distance
        if kind == "self-supervised":
            assert d is not None
            return losses | self._supervised(d, batch, made)
        if d is not None:  # distillation: the joint loss of Aguinaldo et al. 2019
            judged = self.task.judge(d, made.fake_c, batch)
            losses |= self._own(self.task.generator_terms(judged, made.fake_c, batch), 1.0)
        return losses

    def _supervised(self, d: nn.Module, batch: Batch, made: Made) -> Losses:
        """Eq. 3, 6, 9: the same terms on both paths, judged by the same D."""
        reading = self.config.reading
        with torch.no_grad():
            judged_real = self.task.judge(d, self.task.real(batch), batch)
            gen_o, dis_o, features_o = self._terms(d, batch, made.fake_o, judged_real)
        gen_c, dis_c, features_c = self._terms(d, batch, made.fake_c, judged_real)
        losses = {
            "L_GC": self._gap(gen_o, gen_c),
            "L_DC": self.config.lambda_ * self._gap(dis_o, dis_c),
        }
        if reading.adversarial_weight:
            losses |= self._own(gen_c, reading.adversarial_weight)
        if reading.feature_weight:
            losses["features"] = reading.feature_weight * feature_distance(features_o, features_c)
        return losses

    def _own(self, terms: Terms, weight: float) -> Losses:
        """The GAN's own generator loss."""
        task = self.task
        return {name: weight * task.weight(name) * value.mean() for name, value in terms.items()}

    def _gap(self, terms_o: Terms, terms_c: Terms) -> torch.Tensor:
        reading = self.config.reading
        floors = self.references.floors(terms_o, reading.normaliser_floor)
        return consistency(self.task, terms_o, terms_c, reading.reduction, floors)

    def _terms(
        self, d: nn.Module, batch: Batch, fake: Fake, judged_real: Any
    ) -> tuple[Terms, Terms, list[torch.Tensor]]:
        """Generator's and discriminator's terms of one path; D's features on the way."""
        with tapped(weighted_layers(d)) as features:
            judged = self.task.judge(d, fake, batch)
        gen = self.task.generator_terms(judged, fake, batch)
        return gen, self._d_terms(d, batch, fake, judged_real, judged), features

    def _d_terms(
        self,
        d: nn.Module,
        batch: Batch,
        fake: Fake,
        judged_real: Any,
        judged: Any,
        sides: Batch | None = None,
    ) -> Terms:
        terms = self.task.discriminator_terms(judged_real, judged, batch)
        return terms | self.task.penalty_terms(d, fake, batch if sides is None else sides)


def _with_real(batch: Batch, fake: Fake) -> Batch:
    """The batch with these pictures for its real ones, if it has such."""
    pictures = list(pictures_of(fake).values())
    return {**batch, "real": pictures[0]} if "real" in batch and len(pictures) == 1 else batch
