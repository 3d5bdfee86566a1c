# SPDX-License-Identifier: Apache-2.0
"""Data sets in the layouts people have."""

from gansparse.data.digits import Digits, as_images, load_digits, to_float
from gansparse.data.folder import PictureFolder, read_picture

__all__ = ["Digits", "PictureFolder", "as_images", "load_digits", "read_picture", "to_float"]
