# SPDX-License-Identifier: Apache-2.0
"""Every metric object with pictures small enough to try everything on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gansparse.metrics import (
    FrechetInceptionDistance,
    InceptionScore,
    KernelInceptionDistance,
    LearnedPerceptualImagePatchSimilarity,
    PeakSignalNoiseRatio,
    PrecisionRecall,
    StructuralSimilarityIndexMeasure,
)
from gansparse.metrics.features import Extractor
from gansparse.metrics.metric import FeatureMetric, Metric
from gansparse.metrics.pictures import as_float

TOTAL = 60  # pictures of each kind


def pooled(images: torch.Tensor) -> torch.Tensor:
    """12 numbers of a picture: its colours' means in four quarters."""
    return torch.nn.functional.adaptive_avg_pool2d(as_float(images), 2).flatten(1)


QUARTERS = Extractor("quarters", 12, features=pooled, classify=lambda images: 9 * pooled(images))


def mean_gap(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """In the place of LPIPS: a distance of two batches in [-1, 1]."""
    return (x - y).abs().mean((1, 2, 3), keepdim=True)


METRICS: dict[str, Callable[..., Metric]] = {
    "fid": lambda **sync: FrechetInceptionDistance(QUARTERS, **sync),
    "fid-kept": lambda **sync: FrechetInceptionDistance(QUARTERS, keep_features=True, **sync),
    "kid": lambda **sync: KernelInceptionDistance(QUARTERS, subsets=5, subset_size=20, **sync),
    "inception-score": lambda **sync: InceptionScore(QUARTERS, splits=3, **sync),
    "precision-recall": lambda **sync: PrecisionRecall(QUARTERS, neighbours=2, **sync),
    "psnr": lambda **sync: PeakSignalNoiseRatio(border=2, **sync),
    "ssim": lambda **sync: StructuralSimilarityIndexMeasure(**sync),
    "lpips": lambda **sync: LearnedPerceptualImagePatchSimilarity("gap", mean_gap, **sync),
}


def pictures(seed: int) -> torch.Tensor:
    """[TOTAL, 3, 16, 16] uint8, smooth, so that features and SSIM have something to see."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(TOTAL, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")
    return smooth.mul(50).add(110 + 10 * seed).clamp(0, 255).to(torch.uint8)


REAL, FAKE = pictures(0), pictures(1)


def feed(metric: Metric, start: int = 0, stop: int = TOTAL, device: str = "cpu") -> Any:
    """The metric, with the pictures start … stop."""
    real, fake = REAL[start:stop].to(device), FAKE[start:stop].to(device)
    if isinstance(metric, FeatureMetric):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    elif isinstance(metric, InceptionScore):
        metric.update(fake)
    else:
        metric.update(fake, real)
    return metric


def numbers(value: Any) -> tuple[float, ...]:
    """What `compute` gave, as a tuple."""
    return tuple(value) if isinstance(value, tuple) else (value,)
