# SPDX-License-Identifier: Apache-2.0
"""Red zones: tensors that lie between guards, so that a write next to them is found."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

GUARD_ITEMS = 64
_INTEGER_GUARD = 0x5A


@dataclass
class RedZones:
    """Hands out tensors that lie between guards, and tells whether the guards are whole.

    A read beyond a float tensor gives NaN, which spoils the result; a write beyond any tensor is
    found by `check`.

    Args:
        offset: items to shift every tensor by, so that it is not aligned to more than one item.

    Example:
        >>> zones = RedZones()
        >>> x = zones.copy(torch.ones(3))
        >>> x.add_(1)
        tensor([2., 2., 2.])
        >>> zones.check()
    """

    offset: int = 0
    _buffers: list[tuple[Tensor, int, int]] = field(default_factory=list)

    def copy(self, tensor: Tensor) -> Tensor:
        """The tensor's values and strides (it must be dense), in new memory between guards."""
        inner = self._allocate(tensor.numel(), tensor.dtype, tensor.device)
        twin = inner.as_strided(tensor.shape, tensor.stride(), inner.storage_offset())
        return twin.copy_(tensor)

    def output(self, *shape: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """An uninitialised output: NaN (integers: a pattern), so an unwritten element is found."""
        count = 1
        for size in shape:
            count *= size
        return self._allocate(count, dtype, torch.device(device)).view(shape)

    def check(self) -> None:
        """Require that nothing was written outside the tensors.

        Raises:
            AssertionError: which guard was written to, and where.
        """
        for number, (buffer, start, end) in enumerate(self._buffers):
            whole = buffer.isnan() if buffer.is_floating_point() else buffer == _guard(buffer.dtype)
            whole[start:end] = True
            broken = (~whole).nonzero().flatten().tolist()
            assert not broken, (
                f"tensor {number} of {end - start} items: written at "
                f"{[position - start for position in broken[:8]]} relative to its start"
            )

    def _allocate(self, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        start = GUARD_ITEMS + self.offset
        buffer = torch.full((count + 2 * start,), _guard(dtype), dtype=dtype, device=device)
        self._buffers.append((buffer, start, start + count))
        return buffer[start : start + count]


def _guard(dtype: torch.dtype) -> float:
    if dtype == torch.bool:
        return 1
    return torch.nan if dtype.is_floating_point else _INTEGER_GUARD
