# SPDX-License-Identifier: Apache-2.0
"""Pictures that a comparison kept: read and checked, and chosen from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gansparse.errors import GansparseError, InputError
from gansparse.files import load_tensors
from gansparse.report.entry import REMEDY

Picture = NDArray[np.float32]  # [C, H, W] in [-1, 1], C 1 or 3
Pictures = Sequence[Picture]  # of any sizes; an array [K, C, H, W] for one
Samples = dict[str, Pictures]  # by the name of the view: a domain, a direction


def load_samples(path: Path) -> Samples:
    """Pictures of a generator, view by view (`gansparse.compress.samples` tells the file's form).

    Raises:
        InputError: the file is missing or broken, or holds no pictures.
    """
    try:
        tensors, header = load_tensors(path)
        views = json.loads(header.get("views", '[""]'))
        if not isinstance(views, list) or not all(isinstance(view, str) for view in views):
            raise ValueError
    except GansparseError as error:
        raise InputError(f"{error}; {REMEDY}") from None
    except ValueError:
        raise InputError(f'{path}: "views" in its header is no list of names; {REMEDY}') from None
    return {
        view: _pictures(path, tensors, f"images.{index}" if index else "images")
        for index, view in enumerate(views)
    }


def first_of(
    samples: Mapping[str, Pictures], most: int
) -> list[tuple[str, Picture]]:  # (view, picture)
    """The first pictures, as many of each view; one of each at least.

    Example:
        >>> black = np.zeros((1, 2, 2), np.float32)
        >>> [view for view, _ in first_of({"a to b": [black] * 9, "b to a": [black] * 9}, 5)]
        ['a to b', 'a to b', 'b to a', 'b to a']
    """
    each = max(1, most // max(1, len(samples)))
    return [(view, one) for view, pictures in samples.items() for one in pictures[:each]]


def _pictures(path: Path, tensors: Mapping[str, torch.Tensor], name: str) -> Pictures:
    """A tensor [K, C, H, W], or one for each picture."""
    if name in tensors:
        whole = tensors[name]
        if whole.ndim != 4 or whole.shape[1] not in (1, 3) or not whole.numel():
            raise _odd(path, name, "[K, C, H, W], C 1 or 3", whole)
        parts = list(whole)
    else:
        numbered = (f"{name}/{number}" for number in count())
        parts = [tensors[key] for key in takewhile(tensors.__contains__, numbered)]
        if not parts:
            raise InputError(f'{path}: holds no tensor "{name}"; {REMEDY}')
        for one in parts:
            if one.ndim != 3 or one.shape[0] not in (1, 3) or not one.numel():
                raise _odd(path, f"each of {name}", "[C, H, W], C 1 or 3", one)
    if not all(bool(one.isfinite().all()) for one in parts):
        raise InputError(f"{path}: {name} hold NaN or infinite values; the generator diverged")
    return [one.float().numpy() for one in parts]


def _odd(path: Path, name: str, rule: str, got: torch.Tensor) -> InputError:
    return InputError(f"{path}: {name} must be {rule}, got {list(got.shape)}; {REMEDY}")
