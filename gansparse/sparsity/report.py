# SPDX-License-Identifier: Apache-2.0
"""How sparse a model is, layer by layer, and whether it obeys its masks."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gansparse.errors import InputError
from gansparse.sparsity.granularity import BLOCK_CHANNELS, unit_form
from gansparse.sparsity.layers import Layer, find_layers


@dataclass(frozen=True)
class LayerSparsity:
    """One row of the report.

    Args:
        layer: the layer's name in the model.
        type: the name of its class.
        shape: of its weight.
        weights: how many weights it has.
        zeros: how many of them are exactly 0 (or masked, if masks were given).
        pattern: the coarsest pattern that the zeros form: dense, filter, kernel, block-32, -16,
            -8, -4, vector-32, -16, -8, -4, 2:4 or element.
        macs: multiply-adds of one forward pass; None without an example input.
        macs_left: those that remain when zeros are skipped; None without an example input.
    """

    layer: str
    type: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    pattern: str
    macs: int | None = None
    macs_left: int | None = None

    @property
    def sparsity(self) -> float:
        """Share of zeros; 0 for a layer with no weights."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class SparsityReport:
    """The rows of ``sparsity_report``; ``print`` it for a table."""

    rows: tuple[LayerSparsity, ...]

    @property
    def total(self) -> LayerSparsity:
        """The sum of all rows."""
        macs = [row.macs for row in self.rows if row.macs is not None]
        left = [row.macs_left for row in self.rows if row.macs_left is not None]
        return LayerSparsity(
            layer="total",
            type="",
            shape=(),
            weights=sum(row.weights for row in self.rows),
            zeros=sum(row.zeros for row in self.rows),
            pattern="",
            macs=sum(macs) if macs else None,
            macs_left=sum(left) if left else None,
        )

    @property
    def sparsity(self) -> float:
        """Share of zeros in all rows together."""
        return self.total.sparsity

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, ready for JSON."""
        rows = [
            {**asdict(row), "shape": list(row.shape), "sparsity": row.sparsity}
            for row in (*self.rows, self.total)
        ]
        return {"layers": rows[:-1], "total": rows[-1]}

    def to_markdown(self) -> str:
        """The table in GitHub's form."""
        head, *body = self._cells()
        ruler = [
            "---" if name in ("layer", "type", "shape", "pattern") else "---:" for name in head
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in (head, ruler, *body))

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        head, *body = self._cells()
        table = Table()
        for name in head:
            left = name in ("layer", "type", "shape", "pattern")
            table.add_column(name, justify="left" if left else "right", no_wrap=True)
        for line in body[:-1]:
            table.add_row(*line)
        table.add_section()
        table.add_row(*body[-1])
        text = io.StringIO()
        Console(file=text, width=max(120, sum(map(len, head)) + 60)).print(table)
        return text.getvalue().rstrip("\n")

    def _cells(self) -> list[list[str]]:
        """Head, rows and total as text."""
        with_macs = self.total.macs is not None
        head = ["layer", "type", "shape", "weights", "zeros", "sparsity", "pattern"]
        lines = [head + (["MACs", "MACs left"] if with_macs else [])]
        for row in (*self.rows, self.total):
            line = [
                row.layer or "(the model)",
                row.type,
                "×".join(map(str, row.shape)),
                f"{row.weights:,}",
                f"{row.zeros:,}",
                f"{row.sparsity:.2%}",
                row.pattern,
            ]
            if with_macs:
                line += ["–" if n is None else f"{n:,}" for n in (row.macs, row.macs_left)]
            lines.append(line)
        return lines


def sparsity_report(
    model: nn.Module,
    masks: Mapping[nn.Parameter, Tensor] | None = None,
    *,
    example_input: Tensor | tuple[Any, ...] | None = None,
) -> SparsityReport:
    """Count the zeros of every convolution, transposed convolution and linear layer.

    Args:
        model: any ``nn.Module``.
        masks: ``pruner.masks``; then masked weights are counted as zeros, applied or not. Without:
            weights that are 0.
        example_input: what ``model`` is called with once, in eval mode and without gradients, to
            count multiply-adds.

    Returns:
        rows, ``.total``, ``.to_dict()``, ``.to_markdown()``; ``str()`` is a table for the terminal.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([0.0, 2.0]).view(2, 1, 1, 1))
        >>> report = sparsity_report(model, example_input=torch.zeros(1, 1, 5, 5))
        >>> report.rows[0].sparsity, report.total.macs, report.total.macs_left
        (0.5, 50, 25)
    """
    layers = find_layers(model)
    positions = {} if example_input is None else _positions(model, layers, example_input)
    rows = []
    for layer in layers:
        mask = None if masks is None else masks.get(layer.weight)
        zero = layer.weight.detach() == 0
        zero = zero if mask is None else zero | ~mask
        zeros = int(zero.sum())
        at = positions.get(layer.name)
        rows.append(
            LayerSparsity(
                layer=layer.name,
                type=layer.type,
                shape=tuple(layer.weight.shape),
                weights=zero.numel(),
                zeros=zeros,
                pattern=_guess_pattern(zero, layer),
                macs=None if at is None else at * zero.numel(),
                macs_left=None if at is None else at * (zero.numel() - zeros),
            )
        )
    return SparsityReport(tuple(rows))


def check_masked(model: nn.Module, masks: Mapping[nn.Parameter, Tensor]) -> None:
    """Assert that every masked weight of the model is exactly 0.

    Raises:
        InputError: a masked weight is not 0, or a mask belongs to no parameter of the model; the
            message names the layer and how many.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.fill_(1)
        >>> check_masked(layer, {layer.weight: torch.tensor([[True, False]])})
        Traceback (most recent call last):
        gansparse.errors.InputError: weight: 1 of 1 masked weights are not 0
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter, mask in masks.items():
        name = names.get(id(parameter))
        if name is None:
            raise InputError(
                f"a mask of shape {list(mask.shape)} belongs to no parameter of the model"
            )
        masked = ~mask
        wrong = int((parameter.detach()[masked] != 0).sum())
        if wrong:
            raise InputError(f"{name}: {wrong} of {int(masked.sum())} masked weights are not 0")


def _positions(
    model: nn.Module, layers: list[Layer], example_input: Tensor | tuple[Any, ...]
) -> dict[str, int]:
    """How often one forward pass uses each weight of a layer, counted by hooks.

    A convolution's weight meets every output pixel, a transposed convolution's every input pixel, a
    linear layer's every row.
    """
    counts: dict[str, int] = {}
    handles = []
    for layer in layers:

        def count(_: nn.Module, inputs: Any, output: Tensor, layer: Layer = layer) -> None:
            grid = inputs[0] if layer.transposed else output
            taps = layer.weight.dim() - 2
            if taps == 0:
                used = grid.numel() // max(grid.shape[-1], 1)
            else:
                batch = grid.shape[0] if grid.dim() == taps + 2 else 1
                used = batch * math.prod(grid.shape[-taps:])
            counts[layer.name] = counts.get(layer.name, 0) + used

        handles.append(layer.module.register_forward_hook(count))
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            model(*example_input if isinstance(example_input, tuple) else (example_input,))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in training.items():
            module.training = mode
    return counts


def _guess_pattern(zero: Tensor, layer: Layer) -> str:
    """The coarsest pattern that explains these zeros."""
    if not zero.any():
        return "dense"
    # [G, O, C, T], 1 where the weight is zero
    form = unit_form(zero.float(), transposed=layer.transposed, groups=layer.groups)
    gone = form > 0
    out, channels = gone.shape[1:3]
    if torch.equal(gone.all(dim=(2, 3)), gone.any(dim=3).any(dim=2)):
        return "filter"
    if gone.shape[3] > 1 and torch.equal(gone.all(dim=3), gone.any(dim=3)):
        return "kernel"
    for name, columns in (("block", BLOCK_CHANNELS), ("vector", 1)):
        for rows in (32, 16, 8, 4):
            if out >= rows and channels >= columns and _repeats(gone, rows, columns):
                return f"{name}-{rows}"
    whole = channels // 4
    quads = gone[:, :, : 4 * whole].reshape(*gone.shape[:2], whole, 4, gone.shape[3])
    rest = gone[:, :, 4 * whole :]
    return "2:4" if whole and (quads.sum(dim=3) == 2).all() and not rest.any() else "element"


def _repeats(gone: Tensor, rows: int, columns: int) -> bool:
    """Whether [G, O, C, T] is the same in tiles of that many output and input channels."""
    first = gone[:, ::rows, ::columns].repeat_interleave(rows, 1).repeat_interleave(columns, 2)
    return torch.equal(first[:, : gone.shape[1], : gone.shape[2]], gone)
