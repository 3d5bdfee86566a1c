# SPDX-License-Identifier: Apache-2.0
"""Masks: which weights of one layer stay, at six granularities and with exact counts.

A layer's weight is first brought into one form, ``[G, O, C, T]``: G convolution groups, O output
and C input channels *of a group*, T = R·S taps. A granularity then says which of these weights live
and die together; such a set is a *unit*, and its score is the mean magnitude of its weights:

============ ================================================== ========================
granularity  one unit                                           scores
============ ================================================== ========================
``element``  one weight                                         ``[G, O, C, T]``
``vector``   one tap of one input channel, in a block of V      ``[G, ⌈O/V⌉, C, T]``
             neighbouring output channels (the last block of a
             layer may be smaller)
``block``    one tap of V neighbouring output and 8 neighbouring ``[G, ⌈O/V⌉, ⌈C/8⌉, T]``
             input channels (the last ones of a layer may be
             fewer): with V 16 or 32 what tensor cores skip
``kernel``   the T taps between one input and one output        ``[G, O, C]``
``filter``   all weights of one output channel                  ``[G, O]``
``2:4``      four neighbouring input channels at one tap, which ``[G, O, C//4, T]``
             lose their two smallest weights; the last C % 4
             channels stay dense
============ ================================================== ========================

Three rules hold everywhere. *Exact*: ``round(sparsity · units)`` units go, the lowest scores first,
equal scores by index. *Never empty*: the best unit of a layer stays, whatever the rounding says.
*Monotone*: given the previous mask, what was pruned stays pruned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gansparse import _C
from gansparse.errors import InputError
from gansparse.ops import mask_update

Granularity = Literal["element", "vector", "block", "kernel", "filter", "2:4"]
Norm = Literal["l1", "l2"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)

#: Input channels of one ``block``: what `gansparse.ops.pack_tiles_conv2d` keeps or leaves out.
BLOCK_CHANNELS = 8

#: Devices on which `gansparse.ops.mask_update` selects; on the CPU it isn't faster than the below.
_BY_OP = {"cuda"} if _C.build_info()["cuda"] else set()

#: The score of a unit that an earlier mask has pruned: below every magnitude.
_GONE = -1.0


@dataclass(frozen=True)
class Pattern:
    """What is pruned together, and how a group of weights is scored.

    Args:
        granularity: one of ``GRANULARITIES``.
        vector_size: output channels that share one pattern, V; ``vector`` and ``block`` read it.
        norm: ``l1`` scores a unit by the mean of ``|w|``, ``l2`` by the mean of ``w²``. A mean and
            not a sum, so that the smaller last units of a layer compete on equal terms.
    """

    granularity: Granularity = "element"
    vector_size: int = 16
    norm: Norm = "l1"

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            known = ", ".join(GRANULARITIES)
            raise InputError(f"granularity must be one of {known}, got {self.granularity!r}")
        if self.norm not in get_args(Norm):
            raise InputError(f"norm must be l1 or l2, got {self.norm!r}")
        whole = isinstance(self.vector_size, int) and not isinstance(self.vector_size, bool)
        if not whole or self.vector_size < 1:
            raise InputError(f"vector_size must be a whole number ≥ 1, got {self.vector_size!r}")

    def scores(self, magnitude: Tensor) -> Tensor:
        """Score every unit.

        Args:
            magnitude: [G, O, C, T], floating point, ``|w|``, or −1 where already pruned.

        Returns:
            one score a unit, shaped as the module's table says; −1 for a unit that is already gone.
        """
        groups, out, channels, taps = magnitude.shape
        if self.granularity == "element":
            return magnitude
        if self.granularity == "2:4":
            quads = _quads(magnitude)
            # What pruning a quad costs: the two weights that it loses. A quad that has lost two
            # already holds exactly −1 twice.
            loss = torch.where(_two_smallest(quads), quads, 0).sum(dim=3)
            return loss.div_(2)
        gone = magnitude < 0
        weighed = magnitude.double()
        if self.norm == "l2":
            weighed = weighed.square()
        if tile := self._tile():
            rows, columns = tile
            sizes = self._tile_sizes(magnitude)  # [⌈O/rows⌉, ⌈C/columns⌉, 1]
            down, across = sizes.shape[:2]
            padded = weighed.new_zeros(groups, down * rows, across * columns, taps)
            padded[:, :out, :channels] = weighed  # torch 2.6 pads no empty tensor
            tiles = padded.view(groups, down, rows, across, columns, taps)
            mean = tiles.sum(dim=(2, 4)) / sizes
            return mean.masked_fill_(gone[:, ::rows, ::columns], _GONE)
        if self.granularity == "kernel":
            return weighed.mean(dim=3).masked_fill_(gone.all(dim=3), _GONE)
        return weighed.mean(dim=(2, 3)).masked_fill_(gone.all(dim=3).all(dim=2), _GONE)

    def expand(self, kept: Tensor, magnitude: Tensor) -> Tensor:
        """From one verdict a unit to one a weight.

        Args:
            kept: bool, the shape of ``scores``.
            magnitude: [G, O, C, T], what the scores were made of.

        Returns:
            bool [G, O, C, T], True where a weight stays.
        """
        if self.granularity == "element":
            return kept
        if tile := self._tile():
            _, out, channels, _ = magnitude.shape
            mask = kept.repeat_interleave(tile[0], dim=1)[:, :out]
            return mask.repeat_interleave(tile[1], dim=2)[:, :, :channels]
        if self.granularity == "kernel":
            return kept[..., None].expand_as(magnitude)
        if self.granularity == "filter":
            return kept[..., None, None].expand_as(magnitude)
        quads = _quads(magnitude)
        stays = kept.unsqueeze(3) | ~_two_smallest(quads)
        mask = torch.ones_like(magnitude, dtype=torch.bool)
        mask[:, :, : 4 * quads.shape[2]] = stays.flatten(2, 3)
        return mask

    def weights_per_unit(self, scores: Tensor, magnitude: Tensor) -> Tensor:
        """How many weights pruning each unit removes: int64, the shape of ``scores``."""
        if self._tile():
            return self._tile_sizes(magnitude).expand_as(scores)
        channels, taps = magnitude.shape[2:]
        each = {"element": 1, "kernel": taps, "filter": channels * taps, "2:4": 2}
        return torch.full_like(scores, each[self.granularity], dtype=torch.int64)

    def _tile(self) -> tuple[int, int] | None:
        """Output and input channels of a unit that is smaller than its kernels, or None."""
        tiles = {"vector": (self.vector_size, 1), "block": (self.vector_size, BLOCK_CHANNELS)}
        return tiles.get(self.granularity)

    def _tile_sizes(self, magnitude: Tensor) -> Tensor:
        """Weights of each such unit, int64 [⌈O/rows⌉, ⌈C/columns⌉, 1]: fewer at the far ends."""
        rows, columns = (
            (count - torch.arange(0, count, size, device=magnitude.device)).clamp(max=size)
            for count, size in zip(magnitude.shape[1:3], self._tile() or (), strict=True)
        )
        return (rows[:, None] * columns)[..., None]


def make_mask(
    weight: Tensor,
    sparsity: float,
    granularity: Granularity = "element",
    *,
    transposed: bool = False,
    groups: int = 1,
    vector_size: int = 16,
    norm: Norm = "l1",
    previous: Tensor | None = None,
) -> Tensor:
    """Choose the weights of one layer that stay.

    Args:
        weight: [O, C/groups, R, S] of a convolution, [C, O/groups, R, S] of a transposed one, [O,
            C] of a linear layer; 1-D and 3-D convolutions alike. float32, float64, float16 or
            bfloat16.
        sparsity: share of the units to prune, 0 ≤ sparsity < 1; at most 0.5 for ``2:4``, where it
            is twice the share of quads that become 2:4 (0.5: all of them).
        granularity: what is pruned together, see the module's table.
        transposed: the weight belongs to a transposed convolution, whose filters lie along
            dimension 1.
        groups: the convolution's groups. Units never cross a group.
        vector_size: output channels of one ``vector`` or ``block``.
        norm: score of a group of weights, mean ``|w|`` (l1) or mean ``w²`` (l2).
        previous: an earlier mask of this weight at the same granularity; what it prunes stays
            pruned.

    Returns:
        bool tensor of the weight's shape and strides, True where the weight stays.

    Raises:
        InputError: sparsity, granularity, groups or the weight's shape or values break a rule.

    Example:
        >>> weight = torch.tensor([[3.0, -1.0, 0.5, 2.0]])
        >>> make_mask(weight, 0.5).tolist()
        [[True, False, False, True]]
        >>> make_mask(weight.T, 0.5, "filter").flatten().tolist()
        [True, False, False, True]
    """
    pattern = Pattern(granularity, vector_size, norm)
    sparsity = check_sparsity(sparsity, granularity)
    magnitude = unit_form(weight, transposed=transposed, groups=groups, previous=previous)
    scores = pattern.scores(magnitude)
    kept = keep_highest_each([scores], [units_to_prune(sparsity, scores.numel(), granularity)])
    mask = pattern.expand(kept[0], magnitude)
    return weight_form(mask, weight, transposed=transposed)


def check_sparsity(sparsity: object, granularity: str = "element") -> float:
    """Refuse what is no share of weights that can be pruned, and return it as a float.

    >>> check_sparsity(-1)
    Traceback (most recent call last):
    gansparse.errors.InputError: sparsity must be a number with 0 ≤ sparsity < 1, got -1
    """
    if not isinstance(sparsity, (int, float)) or isinstance(sparsity, bool):
        raise InputError(f"sparsity must be a number with 0 ≤ sparsity < 1, got {sparsity!r}")
    if not 0 <= sparsity < 1:
        hint = f" ({sparsity:g} % is {sparsity / 100:g})" if 1 < sparsity < 100 else ""
        raise InputError(f"sparsity must be a number with 0 ≤ sparsity < 1, got {sparsity!r}{hint}")
    if granularity == "2:4" and sparsity > 0.5:
        raise InputError(f"sparsity must be at most 0.5 at granularity 2:4, got {sparsity!r}")
    return float(sparsity)


def units_to_prune(sparsity: float, units: int, granularity: str) -> int:
    """``round(sparsity · units)``, but never all of them; 2:4 prunes every quad at 0.5."""
    if granularity == "2:4":  # a pruned quad keeps half of its weights, so none can empty the layer
        return round(2 * sparsity * units)
    return min(round(sparsity * units), max(units - 1, 0))


def keep_highest(scores: Tensor, prune: int) -> Tensor:
    """Drop exactly ``prune`` entries, the lowest first and equal ones by index; True where kept."""
    if prune == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    flat = scores.flatten()
    threshold = _kth_lowest(flat, prune)
    kept = flat > threshold
    spared = flat.numel() - prune - int(kept.count_nonzero())  # ties that must stay: the last ones
    if spared:
        ties = (flat == threshold).nonzero().flatten()
        kept[ties[-spared:]] = True
    return kept.view(scores.shape)


def keep_highest_each(scores: Sequence[Tensor], prune: Sequence[int]) -> list[Tensor]:
    """`keep_highest` for each of several tensors; on CUDA at once, without waiting for the device.

    >>> keep_highest_each([torch.tensor([3.0, 1.0]), torch.ones(3)], [1, 2])
    [tensor([ True, False]), tensor([False, False,  True])]
    """
    kept = [
        torch.empty_like(score, dtype=torch.bool)
        if score.device.type in _BY_OP
        else keep_highest(score, count)
        for score, count in zip(scores, prune, strict=True)
    ]
    for kind in dict.fromkeys((score.device, score.dtype) for score in scores):
        if kind[0].type in _BY_OP:
            own = [i for i, score in enumerate(scores) if (score.device, score.dtype) == kind]
            mask_update(
                [scores[i] for i in own],
                [kept[i] for i in own],
                [prune[i] for i in own],
                magnitude=False,
                monotone=False,
            )
    return kept


def _kth_lowest(scores: Tensor, k: int) -> Tensor:
    """The k-th lowest of [N] finite scores ≥ 0 (or −1), k from 1: a radix select on their bits.

    The bits of floats ≥ 0, read as integers, are in the order of the floats. So a histogram over
    the upper 16 bits finds the bucket that holds the answer, and only that bucket is sorted. For
    2 million float32 on one core 5 ms, against 22 of ``kthvalue`` and 200 of a sort.
    """
    bits = scores.element_size() * 8
    upper = scores.view(torch.int32 if bits == 32 else torch.int64) >> (bits - 16)
    bucket_of = upper.clamp_(min=-1).add_(1)  # −1, the only negative score, has bucket 0 to itself
    filled = bucket_of.bincount().cumsum(0)
    bucket = int(torch.searchsorted(filled, k))
    inside = scores[bucket_of == bucket]
    lowest, highest = inside.aminmax()
    if lowest == highest:
        return lowest
    before = int(filled[bucket - 1]) if bucket else 0
    return inside.sort().values[k - before - 1]


def unit_form(
    weight: Tensor, *, transposed: bool, groups: int, previous: Tensor | None = None
) -> Tensor:
    """The magnitudes of a layer as [G, O, C, T], with −1 where ``previous`` is False.

    16-bit weights become float32; the others keep their dtype.
    """
    shape = list(weight.shape)
    axis = 0  # the channels that a group divides: output, or input of a transposed convolution
    if weight.dim() < 2:
        raise InputError(f"weight must be [O, C, ...] or [C, O, ...], got shape {shape}")
    if not weight.is_floating_point():
        raise InputError(f"weight must be floating point, got {weight.dtype}")
    if groups < 1 or shape[axis] % groups:
        raise InputError(f"groups must divide dimension 0 of the weight, got {groups} for {shape}")
    if previous is not None and (previous.shape != weight.shape or previous.dtype != torch.bool):
        got = f"{previous.dtype} {list(previous.shape)}"
        raise InputError(f"previous must be a bool mask of shape {shape}, got {got}")
    if previous is not None and previous.device != weight.device:
        raise InputError(f"mask is on {previous.device}, weight on {weight.device}; move both")
    magnitude = weight.detach().abs()
    if magnitude.element_size() < 4:
        magnitude = magnitude.float()
    if magnitude.numel() and not math.isfinite(magnitude.max().item()):  # max lets NaN through
        raise InputError(f"weight of shape {shape} holds NaN or infinite values")
    if previous is not None:
        magnitude = magnitude.mul_(previous).add_(~previous, alpha=_GONE)
    split = magnitude.reshape(groups, shape[0] // groups, shape[1], math.prod(shape[2:]))
    return split.transpose(1, 2).contiguous() if transposed else split.contiguous()


def weight_form(mask: Tensor, weight: Tensor, *, transposed: bool) -> Tensor:
    """Back from [G, O, C, T] to the weight's own shape and strides."""
    if transposed:
        mask = mask.transpose(1, 2)
    result = torch.empty_like(weight, dtype=torch.bool, requires_grad=False)
    return result.copy_(mask.reshape(weight.shape))


def _quads(magnitude: Tensor) -> Tensor:
    """Input channels in fours: [G, O, C//4, 4, T]; the last C % 4 are left out."""
    groups, out, channels, taps = magnitude.shape
    whole = channels // 4
    return magnitude[:, :, : 4 * whole].reshape(groups, out, whole, 4, taps)


def _two_smallest(quads: Tensor) -> Tensor:
    """Mark the two smallest of four along dimension 3, equal ones by index; bool [G, O, Q, 4, T].

    A weight is one of them when fewer than two others come before it: six comparisons, no sort.
    """
    before = torch.zeros_like(quads, dtype=torch.int8)
    for left in range(4):
        for right in range(left + 1, 4):
            left_first = quads[:, :, :, left] <= quads[:, :, :, right]
            before[:, :, :, right] += left_first
            before[:, :, :, left] += ~left_first
    return before < 2
