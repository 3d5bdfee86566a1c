# SPDX-License-Identifier: Apache-2.0
"""Which filters can only go together, and what else of a removed filter's channel has to go.

A filter pruned alone leaves its bias behind and the shift of the norm that follows; and where
layers are added up (residual blocks), the sum keeps every channel that any of them still makes. So
that a pruned network really becomes smaller (`gansparse.sparsity.shrink`), a channel goes as a
whole: the filters of all layers that make it, their biases, and the scales and shifts of the norms
that read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gansparse.sparsity.channels import NORMS, map_channels
from gansparse.sparsity.granularity import keep_highest, units_to_prune
from gansparse.sparsity.layers import Layer

_GONE = -1.0


@dataclass(frozen=True)
class FilterChannels:
    """A network's channels by number; two filters of the same number make one channel.

    Args:
        filters: layer → int64 [O], the channel that each of its filters makes.
        parameters: a bias, or a norm's scale or shift, by name → int64 [O], the channel of each
            entry; −1 where a channel can't vanish whatever is pruned.
        outputs: the layers whose channels are the network's output.
    """

    filters: dict[str, Tensor]
    parameters: dict[str, Tensor]
    outputs: tuple[str, ...]

    @staticmethod
    def joined(parts: Mapping[str, FilterChannels]) -> FilterChannels:
        """Those of a network that consists of these parts, by the parts' names."""
        filters: dict[str, Tensor] = {}
        parameters: dict[str, Tensor] = {}
        outputs: list[str] = []
        first = 0
        for name, part in parts.items():
            prefix = f"{name}." if name else ""
            for mine, theirs in ((filters, part.filters), (parameters, part.parameters)):
                for key, ids in theirs.items():
                    mine[prefix + key] = torch.where(ids < 0, ids, ids + first)
            outputs += [prefix + layer for layer in part.outputs]
            first = 1 + max((int(ids.max()) for ids in filters.values()), default=-1)
        return FilterChannels(filters, parameters, tuple(outputs))


def filter_channels(generator: nn.Module, *inputs: Any) -> FilterChannels:
    """Which filters make one channel, and which biases and norms give it a value.

    Args:
        generator: any; it is not changed.
        inputs: what it is called with.

    Raises:
        InputError: the generator can't be traced or called with these inputs.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 3))
        >>> channels = filter_channels(net, torch.randn(2, 3, 6, 6))
        >>> sorted(channels.parameters), channels.outputs
        (['0.bias', '1.bias', '1.weight', '2.bias'], ('2',))
    """
    channels = map_channels(generator, inputs)
    fixed = {channels.find(atom) for atom in channels.pinned}
    made = {channels.find(atom) for atom, why in channels.pinned.items() if why == "the output"}
    filters = {name: [channels.find(x) for x in own] for name, own in channels.outputs.items()}
    readers = {name: [channels.find(x) for x in own] for name, own in channels.per_channel.items()}
    parameters = {}
    for name, ids in {**filters, **readers}.items():
        module = generator.get_submodule(name)
        if name in readers and not isinstance(module, NORMS):
            continue  # a slope makes 0 of 0
        vanishing = torch.tensor([-1 if channel in fixed else channel for channel in ids])
        for key, parameter in module.named_parameters(prefix=name):
            if parameter.dim() == 1:
                parameters[key] = vanishing
    return FilterChannels(
        {name: torch.tensor(ids) for name, ids in filters.items()},
        parameters,
        tuple(name for name, ids in filters.items() if made.intersection(ids)),
    )


class ChannelPruning:
    """Prunes whole channels: the units are channels, each with the filters that make it.

    Layers that share channels form a group. A channel's score is the mean over its filters, each
    scored over the mean of its layer. Layers that the map doesn't hold are groups of their own.

    Args:
        model: whose parameters are named.
        layers: what is pruned.
        channels: of the model.

    Attributes:
        parameters: name → (parameter, int64 [O]: the number of its channel here, or −1).
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer], channels: FilterChannels) -> None:
        own, free = [], 1 + max((int(x.max()) for x in channels.filters.values()), default=-1)
        for layer in layers:
            count = layer.weight.shape[1] * layer.groups if layer.transposed else None
            count = layer.weight.shape[0] if count is None else count
            own.append(channels.filters.get(layer.name, torch.arange(free, free + count)))
            free += count
        numbers, inverse = torch.unique(torch.cat(own), return_inverse=True)
        self._ids = inverse.split([len(ids) for ids in own])
        self._weights = torch.zeros(len(numbers))  # that go with each channel
        for layer, ids in zip(layers, self._ids, strict=True):
            each = torch.full([len(ids)], layer.weight.numel() / len(ids))
            self._weights.index_add_(0, ids, each)
        self._groups = self._grouped()
        # What a layer outside `layers` makes, too, doesn't vanish.
        pruned = {layer.name for layer in layers}
        others = [ids for name, ids in channels.filters.items() if name not in pruned]
        kept = torch.cat([*others, torch.tensor([-1])])
        self.parameters: dict[str, tuple[nn.Parameter, Tensor]] = {}
        for name, ids in channels.parameters.items():
            at = torch.searchsorted(numbers, ids).clamp(max=len(numbers) - 1)
            at = torch.where((numbers[at] == ids) & ~torch.isin(ids, kept), at, -1)
            if (at >= 0).any():
                self.parameters[name] = (model.get_parameter(name), at)

    def _grouped(self) -> list[list[int]]:
        """Layers, by their place, that share a channel."""
        groups: list[tuple[set[int], list[int]]] = []
        for place, ids in enumerate(self._ids):
            own, members = set(ids.tolist()), [place]
            for other in [group for group in groups if own & group[0]]:
                groups.remove(other)
                own, members = own | other[0], other[1] + members
            groups.append((own, members))
        return [members for _, members in groups]

    def common(self, layers: Sequence[Layer], sparsity: Mapping[str, float]) -> dict[str, float]:
        """One ratio for the layers of a group: their mean, weighed by the layers' sizes."""
        ratios = dict(sparsity)
        for group in self._groups:
            sizes = {layers[i].name: layers[i].weight.numel() for i in group}
            weighed = sum(sparsity[name] * size for name, size in sizes.items())
            ratios |= dict.fromkeys(sizes, weighed / sum(sizes.values()))
        return ratios

    def removed(
        self,
        scores: Sequence[Tensor],  # of each layer's filters, [G, O], −1 where gone
        sparsity: Sequence[float] | float,
    ) -> Tensor:  # bool [channels]
        """The channels that go.

        Args:
            scores: layer by layer.
            sparsity: of the weights of all layers, which are ranked together; or one ratio a layer,
                the same in a group, whose channels are ranked together.
        """
        score = self._scores([each.detach().flatten().double().cpu() for each in scores])
        removed = torch.zeros(len(score), dtype=torch.bool)
        everything = isinstance(sparsity, (int, float))
        for group in [list(range(len(self._ids)))] if everything else self._groups:
            numbers = torch.unique(torch.cat([self._ids[i] for i in group]))
            rest = score[numbers]
            if isinstance(sparsity, (int, float)):
                weights = self._weights[numbers]
                falling = weights[rest.argsort(stable=True)].cumsum(0)
                prune = int((falling <= round(sparsity * float(weights.sum()))).sum())
            else:
                prune = units_to_prune(sparsity[group[0]], len(numbers), "filter")
            prune = min(prune, int(rest.isfinite().sum()))
            removed[numbers] = ~keep_highest(rest, prune)
        return removed

    def filters(self, removed: Tensor, layer: int) -> Tensor:
        """Which filters of a layer stay, bool [O]."""
        return ~removed[self._ids[layer]]

    def _scores(self, scores: Sequence[Tensor]) -> Tensor:
        """float64 [channels]: −1 where gone, infinite for the best of each layer."""
        total, alive, count = torch.zeros(3, len(self._weights), dtype=torch.float64)
        for ids, score in zip(self._ids, scores, strict=True):
            positive = score.clamp(min=0)
            total.index_add_(0, ids, positive / (float(positive.mean()) or 1.0))
            alive.index_add_(0, ids, (score >= 0).double())
            count.index_add_(0, ids, torch.ones_like(score))
        mean = torch.where(alive > 0, total / count, _GONE)
        for ids in self._ids:
            if not mean[ids].isinf().any():
                mean[ids[mean[ids].argmax()]] = torch.inf
        return mean
