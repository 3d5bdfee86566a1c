# SPDX-License-Identifier: Apache-2.0
"""Fréchet distance, feature statistics, feature extractors, and the evaluation of a generator."""

from __future__ import annotations

from gansparse.metrics.frechet import frechet_distance, frechet_distance_from_features
from gansparse.metrics.moments import FeatureMoments

__all__ = ["FeatureMoments", "frechet_distance", "frechet_distance_from_features"]
