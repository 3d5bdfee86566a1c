# SPDX-License-Identifier: Apache-2.0
"""Pruning: which weights stay (granularity), when they go (schedule), and who decides (pruner).

`permute_channels` lets 2:4 keep more. And what is left of it: `shrink` makes filter-pruned networks
smaller, `save_packed` any file.
"""

from gansparse.sparsity.allocation import erdos_renyi_kernel
from gansparse.sparsity.effect import Effect, measure_effects
from gansparse.sparsity.filters import FilterChannels, filter_channels
from gansparse.sparsity.granularity import GRANULARITIES, Granularity, Pattern, make_mask
from gansparse.sparsity.layers import Layer, find_layers, select_layers
from gansparse.sparsity.packed import load_packed, save_packed
from gansparse.sparsity.permutation import Permutation, search_permutation
from gansparse.sparsity.permute import PermutationReport, PermutedChannels, permute_channels
from gansparse.sparsity.pruner import SCOPES, Pruner
from gansparse.sparsity.report import SparsityReport, check_masked, sparsity_report
from gansparse.sparsity.schedule import AGP, SCHEDULES, OneShot, Schedule, schedule_by_name
from gansparse.sparsity.shrink import ShrinkReport, shrink, shrink_report
from gansparse.sparsity.shrunk import load_shrunk, save_shrunk

__all__ = [
    "AGP",
    "GRANULARITIES",
    "SCHEDULES",
    "SCOPES",
    "Effect",
    "FilterChannels",
    "Granularity",
    "Layer",
    "OneShot",
    "Pattern",
    "Permutation",
    "PermutationReport",
    "PermutedChannels",
    "Pruner",
    "Schedule",
    "ShrinkReport",
    "SparsityReport",
    "check_masked",
    "erdos_renyi_kernel",
    "filter_channels",
    "find_layers",
    "load_packed",
    "load_shrunk",
    "make_mask",
    "measure_effects",
    "permute_channels",
    "save_packed",
    "save_shrunk",
    "schedule_by_name",
    "search_permutation",
    "select_layers",
    "shrink",
    "shrink_report",
    "sparsity_report",
]
