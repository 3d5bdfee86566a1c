# SPDX-License-Identifier: Apache-2.0
"""The pruner: chooses, at the steps its schedule names, which weights of a model stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from gansparse.errors import InputError
from gansparse.sparsity.allocation import erdos_renyi_kernel
from gansparse.sparsity.effect import Effect
from gansparse.sparsity.filters import ChannelPruning, FilterChannels
from gansparse.sparsity.granularity import (
    Granularity,
    Norm,
    Pattern,
    check_sparsity,
    keep_highest_each,
    unit_form,
    units_to_prune,
    weight_form,
)
from gansparse.sparsity.layers import Layer, Selector, find_layers, matching, select_layers
from gansparse.sparsity.schedule import AGP, Schedule, schedule_by_name

Scope = Literal["layer", "erk", "global"]
SCOPES: tuple[str, ...] = get_args(Scope)


class Pruner:
    """Prunes a model's weights step by step; the model stays an ordinary ``nn.Module``.

    The pruner owns one bool mask a weight and changes it *in place*, so an optimizer that was given
    ``masks`` once follows every change: ``MaskedAdam(model.parameters(), masks=pruner.masks)``.
    Masks are monotone: a weight that is pruned stays pruned.

    Unless ``channels`` is given only weights are masked. After a removed filter the layer still
    adds its bias and a following BatchNorm still outputs its shift, so the channel becomes a
    constant, not nothing.

    Args:
        model: any ``nn.Module``.
        sparsity: target share of the units, 0 ≤ sparsity < 1; or ``{selector: share}`` for ratios
            by
            layer: the first selector that matches counts, and a layer that none matches stays
            dense. ``2:4`` takes 0.5 or 0.
        granularity: ``element``, ``vector``, ``block``, ``kernel``, ``filter`` or ``2:4``; see
            `gansparse.sparsity.granularity`. `permute_channels` first lets ``2:4`` keep more.
        schedule: a schedule or its name; ``AGP()`` if None.
        include: layers to prune, by name pattern, class or class name; None: all convolutions.
        exclude: layers to leave dense, named the same way.
        scope: ``layer`` prunes each layer to the same ratio; ``erk`` each to its own, by
            `erdos_renyi_kernel`, so that small layers keep more; ``global`` ranks all layers' units
            together, each by its score over its layer's mean ``|w|``, and prunes the lowest until
            no further unit fits into ``round(sparsity · weights)``.
        vector_size: output channels of one ``vector`` or ``block``.
        norm: score of a unit, mean ``|w|`` (l1) or mean ``w²`` (l2).
        effects: by layer name, from `measure_effects`: weights are scored by what they add to the
            normalised output of their layer, not by their size alone.
        channels: of the model, from `filter_channels`; for ``filter`` only. Then whole channels go:
            filters that are added up or shuffled into one go together, and with them their biases
            and what the norms after them have for the channel, which are masked, too. The layers
            that make the model's output stay dense, unless ``include`` or a ratio by layer is
            given. Layers that share channels share the mean of their ratios.

    Attributes:
        masks: ``{parameter: bool mask}``, True where the weight stays; live.
        layers: the layers that are pruned.
        notes: one sentence for each layer that can't reach its target, and why.

    Raises:
        InputError: a selector matches no layer, or an argument breaks a rule.

    Example:
        >>> model = nn.Sequential(nn.ConvTranspose2d(8, 16, 4), nn.ReLU(), nn.Conv2d(16, 4, 3))
        >>> pruner = Pruner(model, 0.75, schedule="one-shot", exclude="2")
        >>> pruner.step(0, total_steps=100)
        True
        >>> pruner.achieved_sparsity()
        0.75
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | Mapping[Selector, float],
        granularity: Granularity = "element",
        schedule: Schedule | str | None = None,
        *,
        include: Iterable[Selector] | Selector | None = None,
        exclude: Iterable[Selector] | Selector = (),
        scope: Scope = "layer",
        vector_size: int = 16,
        norm: Norm = "l1",
        channels: FilterChannels | None = None,
        effects: Mapping[str, Effect] | None = None,
    ) -> None:
        self.pattern = Pattern(granularity, vector_size, norm)
        self.schedule: Schedule = (
            schedule_by_name(schedule) if isinstance(schedule, str) else schedule or AGP()
        )
        if scope not in SCOPES:
            raise InputError(f"scope must be {', '.join(SCOPES)}, got {scope!r}")
        if scope != "layer" and (granularity == "2:4" or isinstance(sparsity, Mapping)):
            what = "granularity 2:4" if granularity == "2:4" else "one ratio a layer"
            raise InputError(f"scope {scope} takes one ratio for the model, got {what}")
        self.scope, self.effects = scope, dict(effects or {})
        if channels is not None and granularity != "filter":
            raise InputError(f"channels go whole at granularity filter only, got {granularity!r}")
        chosen = select_layers(find_layers(model), include, exclude)
        if channels is not None and include is None and not isinstance(sparsity, Mapping):
            chosen = [layer for layer in chosen if layer.name not in channels.outputs]
        if not chosen:
            raise InputError("nothing to prune: include minus exclude leaves no layer")
        self.targets = self._targets(chosen, sparsity)
        self.layers = [layer for layer in chosen if layer.name in self.targets]
        self._named = {_key(layer): layer.weight for layer in self.layers}
        self._channels: ChannelPruning | None = None
        if channels is not None:
            self._channels = ChannelPruning(model, self.layers, channels)
            self.targets = self._channels.common(self.layers, self.targets)
            self._named |= {name: own for name, (own, _) in self._channels.parameters.items()}
        self.masks: dict[nn.Parameter, Tensor] = {
            parameter: torch.ones_like(parameter, dtype=torch.bool, requires_grad=False)
            for parameter in self._named.values()
        }
        self.notes = [note for layer in self.layers if (note := self._shortfall(layer))]

    def step(self, step: int, total_steps: int) -> bool:
        """Update masks and weights if the schedule says so; call it before training ``step``.

        Args:
            step: from 0.
            total_steps: length of the run.

        Returns:
            True where at least one mask changed.
        """
        if not self.schedule.is_update_step(step, total_steps):
            return False
        ratios = {
            name: self.schedule.sparsity_at(step, total_steps, target)
            for name, target in self.targets.items()
        }
        return self.prune_to(ratios)

    @torch.no_grad()
    def prune_to(self, sparsity: float | Mapping[str, float]) -> bool:
        """Choose masks for this sparsity now, whatever the schedule, and zero the pruned weights.

        Args:
            sparsity: one ratio, or one for each of ``layers`` by name.

        Returns:
            True where at least one mask changed.
        """
        if not isinstance(sparsity, Mapping):
            sparsity = dict.fromkeys(self.targets, sparsity)
        magnitudes = [self._magnitude(layer) for layer in self.layers]
        scores = [self.pattern.scores(magnitude) for magnitude in magnitudes]
        new: dict[nn.Parameter, Tensor] = {}
        if self._channels is not None:
            kept = self._keep_channels(self._channels, sparsity, scores, new)
        elif self.scope == "global":
            kept = self._keep_globally(next(iter(sparsity.values())), scores, magnitudes)
        else:
            units = zip(scores, self._ordered(sparsity), strict=True)
            kind = self.pattern.granularity
            prune = [units_to_prune(ratio, score.numel(), kind) for score, ratio in units]
            kept = keep_highest_each(scores, prune)
        for layer, stays, magnitude in zip(self.layers, kept, magnitudes, strict=True):
            new[layer.weight] = weight_form(
                self.pattern.expand(stays, magnitude),
                layer.weight,
                transposed=layer.transposed,
            )
        changed = False
        for parameter, mask in self.masks.items():
            if not torch.equal(mask, new[parameter]):
                mask.copy_(new[parameter])
                changed = True
        if changed:
            self.apply_()
        return changed

    @torch.no_grad()
    def apply_(self) -> None:
        """Set every masked weight to +0 in place."""
        for weight, mask in self.masks.items():
            weight.masked_fill_(~mask, 0)

    def achieved_sparsity(self) -> float:
        """Masked share of all weights of the pruned layers."""
        masks = [self.masks[layer.weight] for layer in self.layers]
        weights = sum(mask.numel() for mask in masks)
        return 1 - sum(int(mask.sum()) for mask in masks) / max(weights, 1)

    def named_masks(self) -> dict[str, Tensor]:
        """The masks themselves, by their parameter's name in the model."""
        return {name: self.masks[parameter] for name, parameter in self._named.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The masks by name, bool; with the step it is all that a bit-exact resume needs."""
        return {name: mask.clone() for name, mask in self.named_masks().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the masks of ``state_dict()``, in place; all of them or, on an error, none."""
        expected = self.named_masks()
        if state.keys() != expected.keys():
            odd = ", ".join(sorted(state.keys() ^ expected.keys()))
            raise InputError(f"masks don't belong to this pruner; missing or unexpected: {odd}")
        for key, mask in expected.items():
            if state[key].dtype != torch.bool or state[key].shape != mask.shape:
                got = f"{state[key].dtype} {list(state[key].shape)}"
                raise InputError(f"mask {key} must be bool {list(mask.shape)}, got {got}")
        for key, mask in expected.items():
            mask.copy_(state[key])

    def _targets(
        self, layers: list[Layer], sparsity: float | Mapping[Selector, float]
    ) -> dict[str, float]:
        """Each layer's checked target by name; layers that no selector matches are left out."""
        targets: dict[str, float] = {}
        if not isinstance(sparsity, Mapping):
            ratio = self._checked(sparsity)
            if self.scope == "erk":
                return erdos_renyi_kernel(layers, ratio)
            targets = dict.fromkeys([x.name for x in layers], ratio)
        else:
            for selector, ratio in sparsity.items():
                for layer in matching(layers, selector):
                    targets.setdefault(layer.name, self._checked(ratio))
        if not targets:
            raise InputError("nothing to prune: sparsity names no layer")
        return targets

    def _checked(self, sparsity: float) -> float:
        value = check_sparsity(sparsity, self.pattern.granularity)
        if self.pattern.granularity == "2:4" and value not in (0, 0.5):
            raise InputError(f"sparsity must be 0.5 (or 0) at granularity 2:4, got {value!r}")
        return value

    def _magnitude(self, layer: Layer) -> Tensor:
        """Score of each weight of the layer, [G, O, C, T], −1 where it is pruned already."""
        try:
            magnitude = unit_form(
                layer.weight,
                transposed=layer.transposed,
                groups=layer.groups,
                previous=self.masks[layer.weight],
            )
        except InputError as error:
            raise InputError(f"layer {layer.name!r}: {error}") from None
        effect = self.effects.get(layer.name)
        if effect is None:
            return magnitude
        scaled = effect.scaled(magnitude)
        if not bool(scaled.isfinite().all()):
            raise InputError(
                f"layer {layer.name!r}: its effects are NaN or infinite, as its inputs were"
            )
        return scaled

    def _ordered(self, sparsity: Mapping[str, float]) -> list[float]:
        return [sparsity[layer.name] for layer in self.layers]

    def _keep_channels(
        self,
        channels: ChannelPruning,
        sparsity: Mapping[str, float],
        scores: list[Tensor],
        masks: dict[nn.Parameter, Tensor],
    ) -> list[Tensor]:
        """Each layer's filters that stay; masks of biases and norms are added to ``masks``."""
        ratios = self._ordered(channels.common(self.layers, sparsity))
        removed = channels.removed(scores, ratios[0] if self.scope == "global" else ratios)
        for parameter, ids in channels.parameters.values():
            stays = ~removed[ids] | (ids < 0)
            masks[parameter] = stays.to(parameter.device) & self.masks[parameter]
        return [
            channels.filters(removed, i).view(score.shape).to(score.device) & (score >= 0)
            for i, score in enumerate(scores)
        ]

    def _keep_globally(
        self, sparsity: float, scores: list[Tensor], magnitudes: list[Tensor]
    ) -> list[Tensor]:
        """Rank the units of all layers together; the best unit of each layer is out of the race."""
        ranked = [
            self._normalised(score, magnitude).flatten()
            for score, magnitude in zip(scores, magnitudes, strict=True)
        ]
        everything = torch.cat(ranked)
        prune = round(sparsity * sum(magnitude.numel() for magnitude in magnitudes))
        if self.pattern.granularity != "element":  # units differ in size: how many of them fit?
            sizes = [
                self.pattern.weights_per_unit(score, magnitude).flatten()
                for score, magnitude in zip(scores, magnitudes, strict=True)
            ]
            removed = torch.cat(sizes)[everything.argsort(stable=True)].cumsum(0)
            prune = int((removed <= prune).sum())
        best = sum(1 for score in scores if score.numel())
        kept = keep_highest_each([everything], [min(prune, everything.numel() - best)])[0]
        parts = torch.split(kept, [score.numel() for score in scores])
        return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]

    def _normalised(self, score: Tensor, magnitude: Tensor) -> Tensor:
        """Scores that compare across layers: over the layer's mean, infinite for its best unit."""
        if not score.numel():
            return score
        mean = magnitude.clamp(min=0).mean(dtype=torch.float64).item() or 1.0
        if self.pattern.norm == "l2" and self.pattern.granularity != "element":
            mean = mean**2
        over = torch.where(score >= 0, score / mean, score)
        over.view(-1)[score.argmax()] = torch.inf
        return over

    def _shortfall(self, layer: Layer) -> str:
        """Why this layer can't come within half a unit of its target; empty if it can."""
        target = self.targets[layer.name]
        if target == 0 or self.scope == "global":
            return ""
        magnitude = self._magnitude(layer)
        if self.pattern.granularity == "2:4":
            dense = magnitude.shape[2] % 4
            one = "its one input channel stays" if magnitude.shape[2] == 1 else ""
            several = f"the last {dense} of {magnitude.shape[2]} input channels stay"
            return f"layer {layer.name!r}: {one or several} dense" if dense else ""
        units = self.pattern.scores(magnitude).numel()
        if units and round(target * units) == units:
            return (
                f"layer {layer.name!r}: {target:.0%} of {units} units would empty it; "
                f"one {self.pattern.granularity} stays"
            )
        return ""


def _key(layer: Layer) -> str:
    return f"{layer.name}.weight" if layer.name else "weight"
