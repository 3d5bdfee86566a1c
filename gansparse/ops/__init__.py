# SPDX-License-Identifier: Apache-2.0
"""Operators over the native core, registered with torch as ``torch.ops.gansparse.*``.

Every op has one file here (public function, reference in plain torch, fake) and one room under
``csrc/ops``. ``csrc/README.md`` tells how to add one.

Where an op takes tensors it takes CuPy's and NumPy's arrays, too, without a copy: the first
argument tells. CuPy's current stream is honoured beside torch's.
"""

from __future__ import annotations

from gansparse.ops.feature_moments import feature_moments, feature_moments_reference
from gansparse.ops.instance_norm import instance_norm, instance_norm_reference
from gansparse.ops.mask_update import mask_update, mask_update_reference
from gansparse.ops.masked_adam import masked_adam, masked_adam_reference
from gansparse.ops.sparse_conv2d import sparse_conv2d, sparse_conv2d_reference
from gansparse.ops.sparse_conv2d_moments import (
    sparse_conv2d_moments,
    sparse_conv2d_moments_reference,
)
from gansparse.ops.sparse_conv2d_packing import (
    PackedConv2d,
    pack_sparse_conv2d,
    pack_sparse_conv_transpose2d,
    unpack_sparse_conv2d,
)
from gansparse.ops.sparse_conv2d_tiles import (
    PackedTiles,
    pack_tiles_conv2d,
    pack_tiles_conv_transpose2d,
    unpack_tiles,
)
from gansparse.ops.sparse_conv_transpose2d import (
    sparse_conv_transpose2d,
    sparse_conv_transpose2d_reference,
)
from gansparse.ops.winograd_conv2d import (
    PackedWinograd,
    pack_winograd_conv2d,
    pack_winograd_conv_transpose2d,
    winograd_conv2d,
    winograd_conv2d_reference,
)

__all__ = [
    "PackedConv2d",
    "PackedTiles",
    "PackedWinograd",
    "feature_moments",
    "feature_moments_reference",
    "instance_norm",
    "instance_norm_reference",
    "mask_update",
    "mask_update_reference",
    "masked_adam",
    "masked_adam_reference",
    "pack_sparse_conv2d",
    "pack_sparse_conv_transpose2d",
    "pack_tiles_conv2d",
    "pack_tiles_conv_transpose2d",
    "pack_winograd_conv2d",
    "pack_winograd_conv_transpose2d",
    "sparse_conv2d",
    "sparse_conv2d_moments",
    "sparse_conv2d_moments_reference",
    "sparse_conv2d_reference",
    "sparse_conv_transpose2d",
    "sparse_conv_transpose2d_reference",
    "unpack_sparse_conv2d",
    "unpack_tiles",
    "winograd_conv2d",
    "winograd_conv2d_reference",
]
