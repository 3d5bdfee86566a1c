# SPDX-License-Identifier: Apache-2.0
"""Pruning: which weights stay (granularity), when they go (schedule), and who decides (pruner)."""

from gansparse.sparsity.allocation import erdos_renyi_kernel
from gansparse.sparsity.granularity import GRANULARITIES, Granularity, Pattern, make_mask
from gansparse.sparsity.layers import Layer, find_layers, select_layers
from gansparse.sparsity.pruner import Pruner
from gansparse.sparsity.report import SparsityReport, check_masked, sparsity_report
from gansparse.sparsity.schedule import AGP, SCHEDULES, OneShot, Schedule, schedule_by_name

__all__ = [
    "AGP",
    "GRANULARITIES",
    "SCHEDULES",
    "Granularity",
    "Layer",
    "OneShot",
    "Pattern",
    "Pruner",
    "Schedule",
    "SparsityReport",
    "check_masked",
    "erdos_renyi_kernel",
    "find_layers",
    "make_mask",
    "schedule_by_name",
    "select_layers",
    "sparsity_report",
]
