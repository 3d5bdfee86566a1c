# SPDX-License-Identifier: Apache-2.0
"""Data sets in the layouts people have."""

from gansparse.data.digits import Digits, as_images, load_digits, to_float

__all__ = ["Digits", "as_images", "load_digits", "to_float"]
