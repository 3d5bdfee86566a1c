# SPDX-License-Identifier: Apache-2.0
"""Modules over the ops: convolutions that hold and compute only the weights that stayed."""

from gansparse.nn.sparse_conv import SparseConv2d, SparseConvTranspose2d

__all__ = ["SparseConv2d", "SparseConvTranspose2d"]
