# SPDX-License-Identifier: Apache-2.0
"""Closeness with a computed tolerance: eps of the dtype, √(rounded operations), scale of the terms.

All functions fail on NaN and on infinities that do not match, and say what was allowed and what
was found.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def close(
    got: Tensor, want: Tensor, *, terms: int, scale: Tensor | float | None = None, name: str = ""
) -> None:
    """Require ``|got - want| ≤ eps · √terms · scale`` for every element.

    Args:
        got: the result; its dtype gives eps.
        want: the truth, computed in float64.
        terms: how many rounded operations lead to one element (a dot product over K has about K).
        scale: size of what was added up to make an element, as a number or one for each; the
            largest ``|want|`` unless told.
        name: what is compared, for the message.

    Raises:
        AssertionError: an element is further off, or shapes differ.

    Example:
        >>> close(torch.tensor([1.0]), torch.tensor([1.0000001], dtype=torch.float64), terms=4)
    """
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}"
    if got.numel() == 0:
        return
    got64, want64 = got.detach().double().cpu(), want.detach().double().cpu()
    if scale is None:
        scale = float(want64.abs().max())
    if isinstance(scale, Tensor):
        scale = scale.double().cpu()
    eps = torch.finfo(got.dtype).eps
    allowed = torch.as_tensor(eps * math.sqrt(terms) * scale, dtype=torch.float64)
    allowed = allowed.expand_as(want64)
    error = (got64 - want64).abs()
    # Equal infinities are equal (their difference is NaN); any other NaN compares false and fails.
    fine = (error <= allowed) | (got64 == want64)
    if bool(fine.all()):
        return
    worst = int(torch.where(fine, -1.0, error.nan_to_num(nan=math.inf)).argmax())
    raise AssertionError(
        f"{name or 'result'}: {int((~fine).sum())} of {fine.numel()} elements are off; worst at "
        f"{worst}: got {got64.flatten()[worst]:.9g}, expected {want64.flatten()[worst]:.9g}, "
        f"error {error.flatten()[worst]:.3g}, allowed {allowed.flatten()[worst]:.3g}"
    )


def same_direction(got: Tensor, want: Tensor, *, terms: int, name: str = "gradient") -> None:
    """Require a gradient to agree as a whole: length, direction, and no bias to one side.

    A few elements near zero may be far off in relative terms and do no harm; a small error with
    the same sign everywhere may be within every element's tolerance and still mislead training.

    Args:
        got: the result; its dtype gives eps.
        want: the truth, computed in float64.
        terms: how many rounded operations lead to one element.
        name: what is compared, for the message.

    Raises:
        AssertionError: relative L2 error, angle or mean error is above eps · √terms.
    """
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}"
    if got.numel() == 0:
        return
    got64, want64 = got.detach().double().cpu().flatten(), want.detach().double().cpu().flatten()
    allowed = torch.finfo(got.dtype).eps * math.sqrt(terms)
    length = float(want64.norm())
    error = got64 - want64
    found = {
        "relative L2 error": float(error.norm()) / length if length else float(error.norm()),
        "1 - cosine": 1 - float(got64 @ want64) / (float(got64.norm()) * length) if length else 0.0,
        "bias": abs(float(error.mean())) / float(want64.abs().mean()) if length else 0.0,
    }
    wrong = {what: value for what, value in found.items() if not value <= allowed}
    assert not wrong, f"{name}: {wrong}, allowed {allowed:.3g}"


def close_moments(
    moments: Tensor,  # [N, P, 3, C]
    pictures: Tensor,  # [N, C, H, W]
) -> None:
    """Require that moments of parts of pictures, joined, are those of the pictures.

    No pixel may be missing or counted twice, and sums err as float32's do. A mean that errs by d
    adds n d² to the sum of distances from it.

    Args:
        moments: count, mean, and sum of squared distances from it, of each part and channel.
        pictures: exactly what they are of.

    Raises:
        AssertionError: a number is further off than rounding allows.

    Example:
        >>> x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
        >>> close_moments(torch.tensor([2.0, 2.0, 2.0]).view(1, 1, 3, 1), x)
    """
    x = pictures.double().flatten(2).cpu()
    counts, means, distances = moments.double().cpu().unbind(2)
    pixels, terms = x.shape[2], x.shape[2] + 8
    assert torch.equal(counts, counts[:, :, :1].expand_as(counts)), "count: channels differ"
    assert bool((counts.sum(1) == pixels).all()), f"count: {counts.sum(1)}, expected {pixels}"
    assert not means[counts == 0].any(), "mean: a part without pixels has one"
    mean = (counts * means).sum(1) / pixels
    close(mean.float(), x.mean(2), terms=terms, scale=x.abs().mean(2), name="mean")
    got = (distances + counts * (means - mean[:, None]).square()).sum(1)
    want = (x - x.mean(2, keepdim=True)).square().sum(2)
    squares = torch.finfo(torch.float32).eps * math.sqrt(terms) * x.square().sum(2)
    close(got.float(), want, terms=terms, scale=want + squares, name="distances")
