# SPDX-License-Identifier: Apache-2.0
"""Metric objects, what they are made of, feature extractors, and the evaluation of a generator.

Every metric object has `update`, `compute`, `result`, `reset`, `merge_state`, `to`, `state_dict`
and `load_state_dict`, and in torch.distributed computes over all ranks: see `metric`.
"""

from __future__ import annotations

from gansparse.metrics.features import Extractor, get_extractor, module_extractor
from gansparse.metrics.fid import FrechetInceptionDistance, fid_infinity, fid_interval
from gansparse.metrics.frechet import frechet_distance, frechet_distance_from_features
from gansparse.metrics.inception_score import InceptionScore
from gansparse.metrics.kid import KernelInceptionDistance
from gansparse.metrics.lpips import LearnedPerceptualImagePatchSimilarity
from gansparse.metrics.moments import FeatureMoments
from gansparse.metrics.precision_recall import PrecisionRecall
from gansparse.metrics.psnr_ssim import (
    PeakSignalNoiseRatio,
    StructuralSimilarityIndexMeasure,
    psnr,
    ssim,
)
from gansparse.metrics.statistics import Statistics, load_statistics, statistics_of

__all__ = [
    "Extractor",
    "FeatureMoments",
    "FrechetInceptionDistance",
    "InceptionScore",
    "KernelInceptionDistance",
    "LearnedPerceptualImagePatchSimilarity",
    "PeakSignalNoiseRatio",
    "PrecisionRecall",
    "Statistics",
    "StructuralSimilarityIndexMeasure",
    "fid_infinity",
    "fid_interval",
    "frechet_distance",
    "frechet_distance_from_features",
    "get_extractor",
    "load_statistics",
    "module_extractor",
    "psnr",
    "ssim",
    "statistics_of",
]
