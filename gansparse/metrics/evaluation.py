# SPDX-License-Identifier: Apache-2.0
"""Scores a generator: Fréchet distance to real pictures, and what a classifier makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gansparse.data.digits import to_float
from gansparse.errors import InputError
from gansparse.metrics.features import Extractor, in_a_line
from gansparse.metrics.frechet import frechet_distance
from gansparse.metrics.moments import FeatureMoments
from gansparse.tasks.gan import View


@dataclass(frozen=True)
class Score:
    """A number and what it depends on.

    Attributes:
        fid: Fréchet distance of the features' Gaussians.
        made_with: `Extractor.describe()` of the feature network.
        num_real: real pictures.
        num_fake: generated pictures.
        confidence: mean of the classifier's highest probability, where it has classes.
        classes: share of the generated pictures in each class, likewise.
    """

    fid: float
    made_with: dict[str, Any]
    num_real: int
    num_fake: int
    confidence: float | None = None
    classes: tuple[float, ...] | None = None

    @property
    def extractor(self) -> str:
        """The feature network in a line: name, features, mode, weights, dtype."""
        return in_a_line(self.made_with)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the extractor's name as "extractor", its other facts beside it."""
        facts = dict(self.made_with)
        return {
            "fid": self.fid,
            "extractor": facts.pop("name"),
            **facts,
            "num_real": self.num_real,
            "num_fake": self.num_fake,
            "confidence": self.confidence,
            "classes": None if self.classes is None else list(self.classes),
        }


def real_moments(
    images: torch.Tensor | Callable[[], Iterator[torch.Tensor]],  # as `View.pictures`
    extractor: Extractor,
    batch_size: int = 500,
    device: str | torch.device = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> FeatureMoments:
    """Statistics of the real pictures' features; ``on_batch`` gets how many there were so far."""
    seen, moments = 0, FeatureMoments(extractor.num_features)
    parts = torch.split(images, batch_size) if isinstance(images, torch.Tensor) else images()
    for part in parts:
        pictures = to_float(part) if part.dtype == torch.uint8 else part
        moments.update(extractor(pictures.to(device)))
        seen += part.shape[0]
        if on_batch is not None:
            on_batch(seen)
    return moments


@torch.no_grad()
def generated(
    view: View,
    generator: nn.Module,
    count: int,
    device: str | torch.device = "cpu",
) -> Iterator[torch.Tensor]:  # each [N, C, H, W]
    """Pictures of the view's batches, the same for every generator."""
    made, index = 0, 0
    while made < count:
        batch = {key: value.to(device) for key, value in view.batch(index).items()}
        fake = view.make(generator, batch)[: count - made]
        made, index = made + fake.shape[0], index + 1
        yield fake


def score_generator(
    view: View,
    generator: nn.Module,
    real: FeatureMoments,
    extractor: Extractor,
    *,
    num_samples: int = 10_000,
    device: str | torch.device = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> Score:
    """Fréchet distance of a generator's pictures to the real ones.

    Args:
        view: what the generator is to make, of which inputs.
        generator: put into eval mode while it is scored.
        real: statistics of the real pictures, by the same extractor.
        extractor: feature network.
        num_samples: pictures to generate; fewer where the view has no inputs for so many.
        device: where to compute.
        on_batch: gets the number of pictures so far.

    Raises:
        InputError: fewer than two samples, or pictures with NaN.
    """
    if num_samples < 2:
        raise InputError(f"num_samples must be at least 2, got {num_samples}")
    num_samples = view.most(num_samples)
    if num_samples < 2:
        what = f"{view.name}: " if view.name else ""
        raise InputError(f"{what}a score takes 2 test pictures or more, got {num_samples}")
    training = generator.training
    generator.eval()
    moments = FeatureMoments(extractor.num_features)
    confidence, classes = 0.0, torch.zeros(0)
    try:
        for fake in generated(view, generator, num_samples, device):
            moments.update(extractor(fake))
            if extractor.classify is not None:
                with torch.no_grad():
                    shares = extractor.classify(fake).softmax(1)
                confidence += float(shares.max(1).values.sum())
                counts = shares.argmax(1).bincount(minlength=shares.shape[1])
                classes = counts if not classes.numel() else classes + counts
            if on_batch is not None:
                on_batch(moments.count)
    finally:
        generator.train(training)
    distance = frechet_distance(real.mean, real.cov, moments.mean, moments.cov)
    if not math.isfinite(distance):
        raise InputError(f"{extractor.name}: the distance is {distance}: check the pictures")
    known = extractor.classify is not None
    return Score(
        fid=distance,
        made_with=extractor.describe(),
        num_real=real.count,
        num_fake=moments.count,
        confidence=confidence / num_samples if known else None,
        classes=tuple((classes / num_samples).tolist()) if known else None,
    )
