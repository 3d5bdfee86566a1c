# SPDX-License-Identifier: Apache-2.0
"""Networks whose channels stand in the order in which 2:4 pruning keeps most of them.

2:4 keeps two of four *neighbouring* input channels, and which channels are neighbours is an
accident of training. The input channels of a layer are the output channels of others, through
norms, activations, sums, concatenations and pixel shuffles. Put into another order everywhere, the
filters that make them, their biases, what norms and PReLUs have for them, and the weights that read
them, they leave the network's function as it was, and its files in their own layout.

`gansparse.sparsity.channels` finds which channels belong together. Those that occur equally often
in each of the tensors involved can take each other's place; those of the network's input or output,
and what an unknown operation reads or makes, stay where they are.
"""

from __future__ import annotations

import copy
import io
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gansparse.sparsity.channels import ChannelMap, filters_first, map_channels
from gansparse.sparsity.effect import Effect
from gansparse.sparsity.granularity import unit_form
from gansparse.sparsity.layers import Layer, Selector, find_layers, select_layers
from gansparse.sparsity.permutation import search_permutation
from gansparse.sparsity.shrink import check_equal


@dataclass(frozen=True)
class PermutedChannels:
    """One row of the report: channels that were put into another order.

    Args:
        layers: that read them.
        channels: how many.
        before: share of the layers' scores that 2:4 kept; the mean of several layers.
        after: the share that it keeps now.
        seconds: of the search.
        finished: False where the time limit ended it.
    """

    layers: tuple[str, ...]
    channels: int
    before: float
    after: float
    seconds: float
    finished: bool


@dataclass(frozen=True)
class PermutationReport:
    """What `permute_channels` did; ``print`` it for a table.

    Args:
        rows: channels in their new order.
        left: layers that read what they read before → why.
    """

    rows: tuple[PermutedChannels, ...]
    left: dict[str, str]

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table("read by", "channels", "2:4 kept", "keeps now", "seconds", "")
        for row in self.rows:
            cells = [f"{row.channels}", f"{row.before:.2%}", f"{row.after:.2%}"]
            note = "" if row.finished else "ended by the time limit"
            table.add_row(", ".join(row.layers), *cells, f"{row.seconds:.1f}", note)
        for name, reason in self.left.items():
            table.add_row(name, "", "", "", "", reason)
        text = io.StringIO()
        Console(file=text, width=140).print(table)
        return text.getvalue().rstrip("\n")


def permute_channels(
    model: nn.Module,
    *inputs: Any,
    include: Iterable[Selector] | Selector | None = None,
    exclude: Iterable[Selector] | Selector = (),
    effects: Mapping[str, Effect] | None = None,
    rounds: int = 10,
    time_limit: float = math.inf,
    seed: int = 0,
) -> PermutationReport:
    """Put the model's channels into an order in which 2:4 keeps more, before it is pruned.

    The model computes what it did, but for rounding and which channels a live dropout draws.

    Args:
        model: any; changed in place, its parameters stay the same objects.
        inputs: what it is called with, for shapes and to check the result.
        include: layers that will be pruned, as for `Pruner`.
        exclude: likewise.
        effects: by layer name, from `measure_effects`, where they will score the weights; measure
            them again afterwards, their channels have moved.
        rounds: of each search, see `search_permutation`.
        time_limit: seconds for all searches together; where it isn't reached, the same model,
            rounds and seed give the same order. With 0 the order stays as it is.
        seed: of the searches.

    Raises:
        InputError: the model can't be traced or called with these inputs, a selector matches no
            layer, or another order of channels changes the output; the model is as it was.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> with torch.no_grad():
        ...     _ = model[2].weight[:, :4].mul_(9)
        >>> report = permute_channels(model, torch.randn(1, 3, 9, 9))
        >>> report.rows[0].layers, report.rows[0].after > report.rows[0].before + 0.1
        (('2',), True)
        >>> report.left
        {'0': 'what it reads has to stay where it is'}
    """
    channels = map_channels(model, inputs)
    pruned = select_layers(find_layers(model), include, exclude)
    readers = {x.name: _ids(channels, channels.inputs[x.name].atoms) for x in pruned
               if x.name in channels.inputs}  # fmt: skip
    deadline = time.monotonic() + time_limit
    moves: dict[int, int] = {}  # channel → the one that takes its place
    rows = []
    for fours in _fours(channels, readers):
        own = [channel for four in fours for channel in four]
        reading = [layer for layer in pruned if set(own) & set(readers.get(layer.name, ()))]
        scores = [_scores(x, readers[x.name], own, (effects or {}).get(x.name)) for x in reading]
        start = time.monotonic()
        found = search_permutation(
            torch.cat(scores), rounds=rounds, time_limit=max(0.0, deadline - start), seed=seed
        )
        moves |= dict(zip(own, (own[i] for i in found.order.tolist()), strict=True))
        whole = float(sum(score.sum(dtype=torch.float64) for score in scores)) or 1.0
        rows.append(
            PermutedChannels(
                tuple(layer.name for layer in reading), len(own),
                found.before / whole, found.after / whole,
                time.monotonic() - start, found.finished,
            )
        )  # fmt: skip
    moved = copy.deepcopy(model)
    _move(moved, channels, moves)
    check_equal(model, moved, inputs, "with its channels in another order")
    _move(model, channels, moves)
    done = {name for row in rows for name in row.layers}
    left = {x.name: _why(channels, x.name) for x in pruned if x.name not in done}
    return PermutationReport(tuple(rows), left)


def _ids(channels: ChannelMap, atoms: Iterable[int]) -> list[int]:
    return [channels.find(atom) for atom in atoms]


def _why(channels: ChannelMap, name: str) -> str:
    fixed = channels.inputs.get(name)
    if fixed is None:
        return channels.others[name]
    pinned = set(_ids(channels, channels.pinned))
    if pinned.issuperset(_ids(channels, fixed.atoms)):
        return "what it reads has to stay where it is"
    return "what it reads makes no two fours that can be exchanged"


def _fours(
    channels: ChannelMap, readers: Mapping[str, Sequence[int]]
) -> list[list[tuple[int, ...]]]:
    """Sets of channels that can take each other's place, in the fours in which they are read.

    Channels at the end of a layer that make no four stay dense and where they are.
    """
    everywhere: dict[int, Counter[int]] = defaultdict(Counter)  # channel → tensor → how often
    tensors = [x.atoms for x in channels.inputs.values()]
    for number, atoms in enumerate(
        (*tensors, *channels.outputs.values(), *channels.per_channel.values())
    ):
        for channel in _ids(channels, atoms):
            everywhere[channel][number] += 1
    pinned = set(_ids(channels, channels.pinned))
    alike: dict[frozenset[tuple[int, int]], set[int]] = defaultdict(set)
    for channel, counts in everywhere.items():
        if channel not in pinned:
            alike[frozenset(counts.items())].add(channel)
    found = []
    for members in alike.values():
        fours: dict[frozenset[int], tuple[int, ...]] = {}
        for own in readers.values():
            for first in range(0, len(own) // 4 * 4, 4):
                four = tuple(own[first : first + 4])
                if members.intersection(four):
                    fours.setdefault(frozenset(four), four)
        several = Counter(channel for four in fours for channel in four)
        whole = all(len(four) == 4 and four <= members for four in fours)
        if len(fours) > 1 and whole and max(several.values()) == 1:
            found.append(list(fours.values()))
    return found


def _scores(
    layer: Layer, reads: Sequence[int], own: Sequence[int], effect: Effect | None
) -> Tensor:  # [O · T (· how often it reads a channel), len(own)]
    """What the layer's weights are worth that read these channels, over the layer's mean."""
    magnitude = unit_form(layer.weight, transposed=layer.transposed, groups=layer.groups)
    magnitude = magnitude if effect is None else effect.scaled(magnitude)
    places = defaultdict(list)
    for place, channel in enumerate(reads):
        places[channel].append(place)
    at = torch.tensor([places[channel] for channel in own], device=magnitude.device)  # [own, times]
    taken = torch.unflatten(magnitude[0][:, at.T.flatten()], 1, at.T.shape)  # [O, times, own, T]
    return taken.permute(0, 1, 3, 2).flatten(0, 2) / (float(magnitude.mean()) or 1.0)


@torch.no_grad()
def _move(model: nn.Module, channels: ChannelMap, moves: Mapping[int, int]) -> None:
    """Give each channel's place to another, in all tensors."""

    def order(atoms: Sequence[int]) -> Tensor:
        own = _ids(channels, atoms)
        places: dict[int, list[int]] = defaultdict(list)
        for place, channel in enumerate(own):
            places[channel].append(place)
        # The first time that a channel occurs, the other one's first place takes it, and so on.
        turns = {channel: iter(places[moves.get(channel, channel)]) for channel in places}
        return torch.tensor([next(turns[channel]) for channel in own])

    for name, layer in channels.layers.items():
        module = model.get_submodule(name)
        out, read = order(channels.outputs[name]), order(channels.inputs[name].atoms)
        device = layer.weight.device
        weight = filters_first(layer, module.get_parameter("weight"))
        weight.copy_(weight[out.to(device)][:, read.to(device)])
        if isinstance(module.bias, Tensor):
            module.bias.copy_(module.bias[out.to(device)])
    for name, atoms in channels.per_channel.items():
        for value in model.get_submodule(name).state_dict().values():
            if value.dim():
                value.copy_(value[order(atoms).to(value.device)])
