# SPDX-License-Identifier: Apache-2.0
"""mask_update: new masks in place, so that exactly the lowest scores of each tensor go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gansparse import _C
from gansparse.ops._arrays import takes_arrays
from gansparse.ops._library import current_stream, define, describe


@takes_arrays
def mask_update(
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    prune: Sequence[int],
    *,
    magnitude: bool = True,
    monotone: bool = True,
) -> None:
    r"""Prune, of each tensor, exactly the lowest scores; equal scores in the order of memory.

    .. math::
        \text{mask}_i \leftarrow [\, \mathrm{rank}(|s_i|) \ge \text{prune} \,]

    where what is pruned already ranks below all else if `monotone`: then, with a `prune` that does
    not fall, what was pruned stays pruned. A NaN ranks highest, so it stays where it is seen.
    On CUDA nothing waits for the device, and a CUDA graph can capture the call.

    There is no gradient through this op. T is float32 or float64, on CUDA also float16 or bfloat16.
    No two tensors may overlap in memory.

    Args:
        scores: [P] each, T, dense in any order of dimensions (channels_last, say): the weights
            themselves, or what else tells how much each is worth.
        masks: [P] each, bool or uint8, strides of the score, 0 = pruned; written, and read if
            `monotone`.
        prune: how many elements of each tensor go.
        magnitude: rank by absolute values.
        monotone: what is pruned already goes first.

    Raises:
        InputError: an argument breaks a rule; the message names it and what it was.

    Example:
        >>> mask = torch.ones(5, dtype=torch.bool)
        >>> mask_update([torch.tensor([3.0, -1.0, 0.5, 1.0, -4.0])], [mask], [2])
        >>> mask.tolist()
        [True, False, False, True, True]
    """
    if len(scores) == 0:
        return
    with torch.no_grad():
        torch.ops.gansparse.mask_update(scores, masks, prune, magnitude, monotone)


def mask_update_reference(
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    prune: Sequence[int],
    *,
    magnitude: bool = True,
    monotone: bool = True,
) -> None:
    """The same in plain torch, for scores in row-major order: to be read, not to be fast."""
    for score, mask, count in zip(scores, masks, prune, strict=True):
        rank = (score.abs() if magnitude else score).flatten().argsort(stable=True)  # NaN: last
        if monotone:
            rank = rank[mask.flatten()[rank].ne(0).long().argsort(stable=True)]
            # Among what is pruned already the order is that of memory.
            gone = int(mask.eq(0).sum())
            rank[:gone] = rank[:gone].sort().values
        new = torch.ones_like(rank)
        new[rank[:count]] = 0
        mask.copy_(new.view(mask.shape))


def _run(
    scores: list[Tensor], masks: list[Tensor], prune: list[int], magnitude: bool, monotone: bool
) -> None:
    _C.mask_update(scores, masks, prune, magnitude, monotone, current_stream(scores[0]))


def _fake(
    scores: list[Tensor], masks: list[Tensor], prune: list[int], magnitude: bool, monotone: bool
) -> None:
    _C.mask_update(describe(scores), describe(masks), [int(n) for n in prune], magnitude, monotone)


define(
    "mask_update(Tensor[] scores, Tensor(a!)[] masks, SymInt[] prune, bool magnitude, "
    "bool monotone) -> ()",
    _run,
    _fake,
)
