# SPDX-License-Identifier: Apache-2.0
"""Pictures that a comparison keeps for its report, and the file they are kept in.

A safetensors file whose header names the task's views, in order, as JSON under "views". The first
view's pictures are the tensor "images", those of the others "images.1", "images.2", ..., each
[K, C, H, W] in [-1, 1]. Where a view's pictures differ in size they are tensors [C, H, W] with a
number after a stroke: "images.1/0", "images.1/1", ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from gansparse.files import save_tensors
from gansparse.metrics.evaluation import generated
from gansparse.metrics.pictures import as_float
from gansparse.tasks.gan import Batch, View

SHOWN_PICTURES = 64
#: Fewer of large pictures: no more values than this, 16 MB in half precision; but four at least.
SHOWN_VALUES = 2**23
LEAST_PICTURES = 4

Pictures = list[torch.Tensor]  # each [C, H, W], float32 in [-1, 1], on the CPU


def samples(view: View, generator: nn.Module, device: torch.device) -> Pictures:
    """The first pictures that a generator makes for a view; the same inputs for all generators."""
    generator.eval()
    view = replace(view, batch=view.shown or view.batch)
    pictures: Pictures = []
    values = 0
    for made in generated(view, generator, view.most(SHOWN_PICTURES), device):
        for picture in as_float(made).cpu():
            values += picture.numel()
            if values > SHOWN_VALUES and len(pictures) >= LEAST_PICTURES:
                return pictures
            pictures.append(picture)
    return pictures


def beside(view: View, name: str, device: torch.device) -> Pictures:
    """What belongs beside a view's first pictures (`View.beside`); nothing where it has none."""
    found = view.beside
    if found is None or name not in found((view.shown or view.batch)(0)):
        return []

    def make(_: nn.Module, batch: Batch) -> torch.Tensor:  # [N, C, H, W]
        return found(batch)[name]

    return samples(replace(view, make=make), nn.Identity(), device)


def save_samples(path: Path, views: Mapping[str, Sequence[torch.Tensor]]) -> None:
    """Writes the pictures of each view, in half precision: finer than a screen's 8 bits.

    Args:
        path: of the file; it is whole or not there.
        views: name -> pictures [C, H, W].

    Raises:
        OutputError: it could not be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    for index, pictures in enumerate(views.values()):
        name = f"images.{index}" if index else "images"
        if len({picture.shape for picture in pictures}) == 1:
            tensors[name] = torch.stack(list(pictures)).half()
        else:
            tensors |= {f"{name}/{i}": picture.half() for i, picture in enumerate(pictures)}
    save_tensors(path, tensors, {"views": json.dumps(list(views))})
