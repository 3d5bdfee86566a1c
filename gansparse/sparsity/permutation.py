# SPDX-License-Identifier: Apache-2.0
"""In which order of its columns a matrix keeps most under 2:4.

The problem is that of Pool & Yu 2021 (Channel Permutations for N:M Sparsity, NeurIPS): columns are
put into fours, each row keeps the two largest scores of each four, and the sum of what is kept
shall be large. The order within a four, and that of the fours, doesn't matter.

All exchanges of two columns are scored at once. A four that loses column j keeps, in row r, the
largest of the other three, a_j, and the larger of their second largest, b_j, and the newcomer x_i:

    V[i, j] = Σ_r a_j + Σ_r max(b_j, x_i),   2 max(b, x) = b + x + |b − x|

so that one L1 distance of all b to all x gives V. Exchanging i and j, of different fours, gains
V[i, j] + V[j, i] − V[i, i] − V[j, j]. The best exchanges that share no four are made together,
then V is renewed where fours have changed, until nothing is gained. From there some random
exchanges and the same again, which is kept if it is better; so `rounds` times.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from gansparse.errors import InputError

#: No climb has needed a tenth of these; rounding shall not make one endless.
_SWEEPS = 1000

#: Share of the fours that random exchanges change before a further round.
_SHAKEN = 1 / 8

#: Differences between two looks at the clock: a fifth of a second on one core.
_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class Permutation:
    """What a search found.

    Args:
        order: int64 [C]; the columns, in the order that was found.
        before: sum of the scores that 2:4 keeps of the columns as they were.
        after: the same in the new order, never less.
        finished: False where the time limit ended the search.
    """

    order: Tensor
    before: float
    after: float
    finished: bool


def kept_by_two_of_four(
    scores: Tensor,  # [R, C], C a multiple of 4
) -> float:
    """Sum of the two largest scores of each four neighbouring columns, in every row.

    Example:
        >>> kept_by_two_of_four(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
        7.0
    """
    fours = torch.unflatten(scores.double(), 1, (-1, 4))
    return float(fours.topk(2, dim=2).values.sum())


def search_permutation(
    scores: Tensor,  # [R, C], ≥ 0
    *,
    rounds: int = 10,
    time_limit: float = math.inf,
    seed: int = 0,
) -> Permutation:
    """Look for an order of the columns in which 2:4 keeps more.

    Args:
        scores: what each weight is worth; float, on any device; C a multiple of 4.
        rounds: how often the search goes on from the best order, shaken; 0: only straight uphill.
        time_limit: seconds after which the best so far is returned, the order as it was if there
            is nothing better yet. Where it isn't reached, the result depends on nothing but scores,
            rounds and seed; where it is, on how fast the machine was, too.
        seed: of the shaking.

    Raises:
        InputError: an argument breaks a rule.

    Example:
        >>> scores = torch.tensor([[9.0, 8.0, 7.0, 6.0, 1.0, 1.0, 1.0, 1.0]])
        >>> found = search_permutation(scores)
        >>> found.before, found.after
        (19.0, 30.0)
    """
    if scores.dim() != 2 or scores.shape[1] % 4 or not scores.is_floating_point():
        got = f"{scores.dtype} {list(scores.shape)}"
        raise InputError(f"scores must be floating point [R, C] with C a multiple of 4, got {got}")
    if rounds < 0 or not time_limit >= 0:
        raise InputError(f"rounds and time_limit must be ≥ 0, got {rounds} and {time_limit}")
    deadline = time.monotonic() + time_limit
    before = kept_by_two_of_four(scores)
    best = _Climb(scores.T.float().contiguous(), deadline)
    best.climb()
    finished = not best.cut
    source = torch.Generator().manual_seed(seed)
    for _ in range(rounds if best.fours > 1 else 0):
        if not finished:
            break
        other = best.copy()
        other.shake(source)
        other.climb()
        finished = not other.cut
        if finished:
            better = other.total() > best.total()
        else:  # without its last sums
            kept = [kept_by_two_of_four(scores[:, climb.order]) for climb in (other, best)]
            better = kept[0] > kept[1]
        if better:
            best = other
    after = kept_by_two_of_four(scores[:, best.order])
    if after < before:  # by rounding, where there is nothing to gain
        return Permutation(torch.arange(scores.shape[1]), before, before, finished)
    return Permutation(best.order.cpu(), before, after, finished)


class _Climb:
    """An order of the columns, and what each exchange would bring.

    At the deadline it is ``cut``: the order is one still, but not all values are those of it.
    """

    def __init__(
        self,
        columns: Tensor,  # [C, R]
        deadline: float = math.inf,
    ) -> None:
        self.columns = columns
        self.deadline = deadline
        self.cut = False
        self.sums = columns.sum(1)
        self.order = torch.arange(len(columns), device=columns.device)
        self.fours = len(columns) // 4
        self.values = columns.new_empty(len(columns), len(columns))  # V
        self.renew(list(range(self.fours)))

    def copy(self) -> _Climb:
        """Another that starts from here."""
        other = object.__new__(_Climb)
        other.__dict__ = {**self.__dict__, "order": self.order.clone()}
        other.values = self.values.clone()
        return other

    def total(self) -> float:
        """What all fours keep."""
        return float(self.values.diagonal().sum(dtype=torch.float64)) / 4

    def renew(self, changed: list[int]) -> None:
        """Columns of V whose fours have changed, as far as there is time."""
        some = max(1, _AT_ONCE // max(1, 4 * self.columns.numel()))
        for first in range(0, len(changed), some):
            if time.monotonic() >= self.deadline:
                self.cut = True
                return
            self._renew(changed[first : first + some])

    def _renew(self, changed: list[int]) -> None:
        members = self.order.view(-1, 4)[changed]  # [K, 4]
        first, second = [], []
        for place in range(4):
            others = [self.columns[members[:, (place + k) % 4]] for k in (1, 2, 3)]
            high, low = torch.maximum(*others[:2]), torch.minimum(*others[:2])
            first.append(torch.maximum(high, others[2]).sum(1))
            second.append(torch.maximum(low, torch.minimum(high, others[2])))
        b = torch.stack(second, 1).flatten(0, 1)  # [4 K, R]
        larger = (self.sums[:, None] + b.sum(1) + torch.cdist(self.columns, b, p=1.0)) / 2
        self.values[:, members.flatten()] = larger + torch.stack(first, 1).flatten()

    def climb(self) -> None:
        """Exchange columns while that gains anything and there is time."""
        # What the rounding of a sum of R may pretend to gain.
        noise = torch.finfo(self.columns.dtype).eps * self.columns.shape[1] ** 0.5
        for _ in range(_SWEEPS):
            if self.cut:
                return
            values = self.values[self.order][:, self.order]
            kept = values.diagonal()
            both = kept[:, None] + kept
            gains = values + values.T - both
            gains[gains <= noise * both] = 0
            gains = gains.view(self.fours, 4, self.fours, 4).permute(0, 2, 1, 3).flatten(2)
            gain, which = gains.max(2)  # [fours, fours], of the 16 exchanges between two
            changed = self._exchange(gain.triu(1), which)
            if not changed:
                return
            self.renew(changed)

    def _exchange(self, gain: Tensor, which: Tensor) -> list[int]:
        """The best exchanges that share no four; the fours that they change."""
        one, other = gain.nonzero(as_tuple=True)
        best = gain[one, other].argsort(descending=True, stable=True)
        one, other = one[best], other[best]
        changed: set[int] = set()
        places: list[list[int]] = []
        for a, b, pair in zip(*(x.tolist() for x in (one, other, which[one, other])), strict=True):
            if a not in changed and b not in changed:
                changed |= {a, b}
                places.append([4 * a + pair // 4, 4 * b + pair % 4])
        self._swap(torch.tensor(places, device=self.order.device))
        return sorted(changed)

    def _swap(
        self,
        places: Tensor,  # [K, 2]
    ) -> None:
        if len(places):
            self.order[places] = self.order[places.flip(1)]

    def shake(self, source: torch.Generator) -> None:
        """Exchange random columns of pairs of fours."""
        pairs = max(1, round(self.fours * _SHAKEN / 2))
        fours = torch.randperm(self.fours, generator=source)[: 2 * pairs].view(2, pairs)
        members = torch.randint(4, fours.shape, generator=source)
        self._swap((4 * fours + members).T.to(self.order.device))
        self.renew(sorted(fours.flatten().tolist()))
