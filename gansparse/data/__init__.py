# SPDX-License-Identifier: Apache-2.0
"""Data sets in the layouts people have, augmented as the originals do, and drawn ones to try."""

from gansparse.data.batches import Batches, EvaluationBatches, Samples
from gansparse.data.digits import Digits, as_images, load_digits, load_idx, to_float
from gansparse.data.folder import PictureFolder, read_picture
from gansparse.data.labelled import AttributeFolder, ClassFolder, LabelledPictures
from gansparse.data.pairs import AlignedFolder, UnalignedFolder
from gansparse.data.plain import PictureSamples
from gansparse.data.super_resolution import SuperResolutionFolder
from gansparse.data.synthetic import write_synthetic

__all__ = [
    "AlignedFolder",
    "AttributeFolder",
    "Batches",
    "ClassFolder",
    "Digits",
    "EvaluationBatches",
    "LabelledPictures",
    "PictureFolder",
    "PictureSamples",
    "Samples",
    "SuperResolutionFolder",
    "UnalignedFolder",
    "as_images",
    "load_digits",
    "load_idx",
    "read_picture",
    "to_float",
    "write_synthetic",
]
