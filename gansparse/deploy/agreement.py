# SPDX-License-Identifier: Apache-2.0
"""How far a plan's output may be, and is, from the generator's."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gansparse.deploy import cuda
from gansparse.deploy.capture import copied, leaves, random_state
from gansparse.deploy.plan import TOLERANCE

_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout}


def allowed_gap(dtype: torch.dtype) -> float:
    """How far a plan's output may be from the generator's, without asking how exact that is."""
    return max(TOLERANCE, torch.finfo(dtype).eps)


def output_gap(
    original: nn.Module, plan: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype
) -> float:
    """How far the plan's output is from the generator's, as a share of the largest number above 1.

    Where rounding alone moves the generator's output as far from what it is in float64, that is
    how far the plan's may be from it, too: then the gap is 0.
    """

    def run(module: nn.Module, *values: Any) -> list[Tensor]:
        torch.manual_seed(0)
        with _NoDropout():
            return leaves(module(*copied(values)))

    # The plan first: what it would find in modules that the original has just run is no merit.
    got = run(plan, *inputs)
    torch.manual_seed(0)
    seeded = random_state()
    expected = run(original, *inputs)
    drew = random_state() != seeded
    if [t.dtype for t in got] != [t.dtype for t in expected]:
        return math.inf
    gap = _distance(expected, got)
    if gap <= allowed_gap(dtype) or drew:  # in float64 it would draw other numbers
        return gap
    wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    try:
        with cuda.no_search():
            exact = run(copy.deepcopy(original).double(), *wide)
    except (RuntimeError, ValueError, TypeError):  # it holds to float32
        return gap
    rounding = _distance(exact, expected)
    return 0.0 if _distance(exact, got) <= 2 * rounding else gap


def changed(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs of the same form with other numbers in them, none far from where they were."""
    return tuple(
        x.flip(list(range(x.dim()))) * 0.75 + 0.125
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for x in inputs
    )


def _distance(one: list[Tensor], other: list[Tensor]) -> float:
    gaps = [0.0]
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            return math.inf
        if a.numel():
            scale = max(1.0, float(a.abs().max()))
            gaps.append(float((a.double() - b.double()).abs().max()) / scale)
    return max(gaps) if not any(map(math.isnan, gaps)) else math.nan


class _NoDropout(TorchFunctionMode):
    """Live dropout lets all through: what is left can be compared."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        return function(*args, **kwargs)
