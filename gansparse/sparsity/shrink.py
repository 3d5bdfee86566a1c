# SPDX-License-Identifier: Apache-2.0
"""Filter shrink: a filter-pruned network becomes a smaller dense one with the same output.

What an empty filter leaves behind is a constant channel. It can go when every layer that reads the
channel reads a constant, through whatever sums, concatenations and shuffles lie between (see
`gansparse.sparsity.channels`). A reader then loses what its weights w made of the constant c:

* c = 0: nothing.
* A convolution without padding, or whose padding continues the picture, and with a bias: its bias
  takes over c · Σ w, the sum over the taps.
* Any other convolution: with zeros around the picture its borders see less of c than its middle, so
  no bias can stand for it. But all constant channels are multiples of each other. One of them, r,
  stays, and its weights take over those of the others: w_r + Σ c_k / c_r · w_k. Exact everywhere,
  also for transposed convolutions, at the cost of one channel.

An empty filter whose channel has to stay costs nothing to compute either: its convolution becomes a
`SpreadConv2d`, which computes only the other filters.
"""

from __future__ import annotations

import copy
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_map_only

from gansparse.errors import InputError
from gansparse.sparsity.channels import ChannelMap, filters_first, map_channels
from gansparse.sparsity.layers import Layer
from gansparse.sparsity.shrunk import SPREADS, rebuild

#: A convolution is spread when at least this share of the filters that it keeps is empty.
_WORTH_SPREADING = 1 / 8


@dataclass(frozen=True)
class ShrunkLayer:
    """One row of the report.

    Args:
        layer: the layer's name in the network.
        before: its weight's shape.
        after: its weight's shape in the shrunk network.
        empty: filters without any weight.
        stay: reason → the empty filters whose channels stay for it.
        spread: the empty filters are not computed though their channels stay.
        macs_before: multiply-adds of one forward pass with the inputs given.
        macs_after: the same in the shrunk network.
    """

    layer: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    empty: int
    stay: dict[str, int]
    spread: bool
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class ShrinkReport:
    """What `shrink` does to a network; ``print`` it for a table.

    Args:
        rows: the convolutions and linear layers that could be followed.
        others: those that couldn't, and stay as they are: name → why.
        parameters_before: of the whole network.
        parameters_after: the same in the shrunk network.
    """

    rows: tuple[ShrunkLayer, ...]
    others: dict[str, str]
    parameters_before: int
    parameters_after: int

    @property
    def macs_before(self) -> int:
        """Of all rows."""
        return sum(row.macs_before for row in self.rows)

    @property
    def macs_after(self) -> int:
        """Of all rows."""
        return sum(row.macs_after for row in self.rows)

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table("layer", "weight", "shrunk", "empty", "stay", "spread", "why")
        for row in self.rows:
            table.add_row(
                row.layer,
                "×".join(map(str, row.before)),
                "×".join(map(str, row.after)),
                f"{row.empty}",
                f"{sum(row.stay.values())}",
                "yes" if row.spread else "",
                "; ".join(f"{count}: {reason}" for reason, count in row.stay.items()),
            )
        for name, reason in self.others.items():
            table.add_row(name, "", "", "", "", "", reason)
        text = io.StringIO()
        Console(file=text, width=160).print(table)
        if not any(row.empty for row in self.rows):
            text.write(
                "nothing to shrink: no filter is empty. Zeros of other patterns make no layer "
                "smaller; save_packed makes the file smaller.\n"
            )
        return (
            f"{text.getvalue()}parameters {self.parameters_before:,} → {self.parameters_after:,}, "
            f"MACs {self.macs_before:,} → {self.macs_after:,}"
        )


@dataclass
class _Plan:
    """What `rebuild` needs, and the report of it."""

    state: dict[str, Tensor] = field(default_factory=dict)
    spread: dict[str, Tensor] = field(default_factory=dict)
    features: dict[str, int] = field(default_factory=dict)
    rows: list[ShrunkLayer] = field(default_factory=list)


def shrink(generator: nn.Module, *inputs: Any, spread: bool = True) -> nn.Module:
    """The generator without its empty filters: smaller tensors, the same keys and the same output.

    Channels that a network adds up go only together: where each layer lost other filters than those
    it is added to, their sum keeps its width, and the layers are spread.

    Args:
        generator: pruned at granularity ``filter``; it is left as it is. What holds is its eval
            mode as it stands: a U-Net whose statistics are live in eval mode gives, live, what it
            gave; its live dropout draws for fewer channels, so other random numbers.
        inputs: what the generator is called with, for shapes and to check the result; any batch
            and size that it takes.
        spread: convolutions whose empty filters have to stay compute only the others; with False
            they stay dense.

    Returns:
        A network of the same class, in the same mode, dtype and device. Without empty filters,
        an equal copy.

    Raises:
        InputError: the generator can't be traced, can't be called with these inputs, or its code
            needs the channels that it had; the message says what and why.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
        >>> _ = net[0].weight.data[:6].fill_(0)
        >>> shrink(net, torch.randn(1, 3, 9, 9))[2].weight.shape
        torch.Size([3, 2, 3, 3])
    """
    plan, _ = _plan(generator, inputs, spread)
    small = copy.deepcopy(generator)
    if all(row.before == row.after and not row.spread for row in plan.rows):
        return small
    rebuild(small, plan.state, plan.spread, plan.features)
    check_equal(generator, small, inputs, "shrunk")
    return small


def shrink_report(generator: nn.Module, *inputs: Any, spread: bool = True) -> ShrinkReport:
    """What `shrink` would remove, what it would leave, and why.

    Args:
        generator: pruned at granularity ``filter``.
        inputs: what it is called with.
        spread: as for `shrink`.

    Raises:
        InputError: the generator can't be traced or called with these inputs.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
        >>> _ = net[0].weight.data[:6].fill_(0)
        >>> report = shrink_report(net, torch.randn(1, 3, 9, 9))
        >>> report.parameters_before, report.parameters_after
        (443, 113)
    """
    plan, channels = _plan(generator, inputs, spread)
    parameters = sum(p.numel() for p in generator.parameters())
    own = dict(generator.named_parameters())
    saved = sum(own[key].numel() - new.numel() for key, new in plan.state.items() if key in own)
    return ShrinkReport(tuple(plan.rows), channels.others, parameters, parameters - saved)


def _plan(generator: nn.Module, inputs: tuple[Any, ...], spread: bool) -> tuple[_Plan, ChannelMap]:
    channels = map_channels(generator, inputs)
    stays = _staying(channels)
    plan = _Plan()
    for name in channels.layers:
        _plan_layer(plan, name, channels, stays, spread)
    for name, atoms in channels.per_channel.items():
        keep = torch.tensor([channels.find(atom) in stays for atom in atoms])
        plan.features[name] = int(keep.sum())
        for key, value in generator.get_submodule(name).state_dict().items():
            if value.dim():
                plan.state[f"{name}.{key}"] = value[keep.to(value.device)]
    return plan, channels


def _staying(channels: ChannelMap) -> dict[int, str]:
    """Atoms that can't go → why."""
    stays = {channels.find(atom): reason for atom, reason in channels.pinned.items()}
    for name, read in channels.inputs.items():
        for atom, constant in zip(read.atoms, read.constants.tolist(), strict=True):
            if math.isnan(constant):
                stays.setdefault(channels.find(atom), f"not constant where {name} reads it")
    for name, read in channels.inputs.items():
        if _has_bias_for_constants(channels.layers[name]):
            continue
        sizes = read.constants.abs().nan_to_num(0.0)
        # One that stays already will do, but not a small one: its rounding would be multiplied.
        large = (sizes >= sizes.max() / 2).nonzero().flatten().tolist()
        if sizes.max() > 0 and not any(channels.find(read.atoms[i]) in stays for i in large):
            largest = channels.find(read.atoms[int(sizes.argmax())])
            stays[largest] = f"its constant stands for all constants that {name} reads"
    for name, atoms in channels.outputs.items():
        if not any(channels.find(atom) in stays for atom in atoms):
            stays[channels.find(atoms[0])] = f"{name} would be left without a filter"
    return stays


def _has_bias_for_constants(layer: Layer) -> bool:
    """Whether a constant input gives a constant output, and there is a bias to take it."""
    module = layer.module
    if layer.transposed or module.bias is None:
        return False
    if not isinstance(module, _ConvNd) or module.padding_mode != "zeros":
        return True
    return module.padding == "valid" or set(module.padding) == {0}


def _plan_layer(
    plan: _Plan, name: str, channels: ChannelMap, stays: dict[int, str], spread: bool
) -> None:
    """Slice one layer: fold the constants of the inputs that go, then cut inputs and outputs."""
    layer, read = channels.layers[name], channels.inputs[name]
    outputs = [channels.find(atom) for atom in channels.outputs[name]]
    reads = torch.tensor([channels.find(atom) in stays for atom in read.atoms])
    makes = torch.tensor([atom in stays for atom in outputs])
    weight, bias = _folded(layer, read.constants.nan_to_num(0.0), reads)
    weight = weight[:, reads]
    empty = (weight == 0).flatten(1).all(1)
    computes = makes
    share = float(empty[makes].double().mean())
    if spread and type(layer.module) in SPREADS and _WORTH_SPREADING <= share < 1:
        computes = makes & ~empty
        plan.spread[name] = computes[makes]
    prefix = f"{name}." if name else ""
    plan.state[f"{prefix}weight"] = filters_first(layer, weight[computes]).contiguous()
    if bias is not None:
        plan.state[f"{prefix}bias"] = bias[makes]
    after = tuple(plan.state[f"{prefix}weight"].shape)
    staying = [stays[outputs[o]] for o in (empty & makes).nonzero().flatten().tolist()]
    positions = channels.positions[name]
    plan.rows.append(
        ShrunkLayer(
            layer=name,
            before=tuple(layer.weight.shape),
            after=after,
            empty=int(empty.sum()),
            stay=dict(Counter(staying)),
            spread=name in plan.spread,
            macs_before=positions * layer.weight.numel(),
            macs_after=positions * math.prod(after),
        )
    )


def _folded(layer: Layer, constants: Tensor, reads: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight as [O, C, taps...] and bias, float64, with what the constants that go gave them.

    Args:
        layer: left as it is.
        constants: [C], of its inputs; 0 for those that vary, too.
        reads: bool [C], the inputs that stay.
    """
    weight = filters_first(layer, layer.weight.detach()).to("cpu", torch.float64, copy=True)
    own_bias = layer.module.bias
    bias = own_bias.detach().to("cpu", torch.float64) if isinstance(own_bias, Tensor) else None
    gone = ((constants != 0) & ~reads).nonzero().flatten()
    if not len(gone):
        return weight, bias
    if bias is not None and _has_bias_for_constants(layer):
        taps = weight[:, gone].reshape(len(weight), len(gone), -1).sum(2)
        return weight, bias + taps @ constants[gone]
    one = int((constants.abs() * reads).argmax())
    ratios = (constants[gone] / constants[one]).view(-1, *[1] * (weight.dim() - 2))
    weight[:, one] += (weight[:, gone] * ratios).sum(1)
    return weight, bias


@torch.no_grad()
def check_equal(
    generator: nn.Module, changed: nn.Module, inputs: tuple[Any, ...], how: str
) -> None:
    """Refuse a network that differs in the first half of its digits: rounding is far below."""
    what = type(generator).__name__
    with _repeatable(generator), _repeatable(changed):
        expected = _tensors(generator(*_copied(inputs)))
        try:
            got = _tensors(changed(*_copied(inputs)))
        except (RuntimeError, ValueError) as error:
            line = str(error).splitlines()[0]
            raise InputError(f"{what} needs the channels that it has: {line}") from None
    for one, other in zip(expected, got, strict=True):
        gap = float((one - other).abs().max()) if one.shape == other.shape else math.inf
        scale = max(1.0, float(one.abs().max()))
        if not gap <= scale * torch.finfo(one.dtype).eps ** 0.5:
            raise InputError(
                f"{what}: {how}, its output differs by {gap:g}; its forward depends on the "
                "number or order of its channels"
            )


def _copied(inputs: tuple[Any, ...]) -> Any:
    """The same with tensors of their own: a network may write into its input."""
    return tree_map_only(Tensor, torch.clone, inputs)


def _tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of what a network returns."""
    if isinstance(output, (list, tuple)):
        return [tensor for each in output for tensor in _tensors(each)]
    if isinstance(output, Mapping):
        return _tensors(list(output.values()))
    return [output] if isinstance(output, Tensor) and output.is_floating_point() else []


@contextmanager
def _repeatable(network: nn.Module) -> Iterator[None]:
    """Eval mode without live dropout; all as it was in the end."""
    training = {module: module.training for module in network.modules()}
    dropouts = [module for module in network.modules() if isinstance(module, _DropoutNd)]
    rates = [module.p for module in dropouts]
    try:
        network.eval()
        for dropout in dropouts:
            dropout.p = 0.0
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for dropout, rate in zip(dropouts, rates, strict=True):
            dropout.p = rate
