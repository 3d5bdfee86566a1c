# SPDX-License-Identifier: Apache-2.0
"""Optimizers that hold pruned weights at zero."""

from __future__ import annotations

from gansparse.optim.masked_adam import MaskedAdam, MaskedAdamW

__all__ = ["MaskedAdam", "MaskedAdamW"]
