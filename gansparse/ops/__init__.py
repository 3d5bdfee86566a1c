# SPDX-License-Identifier: Apache-2.0
"""Operators over the native core, registered with torch as ``torch.ops.gansparse.*``.

Every op has one file here (public function, reference in plain torch, fake) and one room under
``csrc/ops``. ``csrc/README.md`` tells how to add one.
"""

from __future__ import annotations

from gansparse.ops.feature_moments import feature_moments, feature_moments_reference
from gansparse.ops.masked_adam import masked_adam, masked_adam_reference

__all__ = [
    "feature_moments",
    "feature_moments_reference",
    "masked_adam",
    "masked_adam_reference",
]
