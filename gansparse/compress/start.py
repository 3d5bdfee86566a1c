# SPDX-License-Identifier: Apache-2.0
"""What a run starts from: networks, pruner and D's update, read off the recipe's row."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from gansparse.compress import distributed
from gansparse.compress.config import TrainConfig
from gansparse.compress.norms import put_gradients_right
from gansparse.compress.quantize import quantize
from gansparse.compress.recipes import Recipe
from gansparse.errors import GansparseError, InputError
from gansparse.sparsity import (
    AGP,
    Effect,
    FilterChannels,
    OneShot,
    Pruner,
    filter_channels,
    measure_effects,
    permute_channels,
)
from gansparse.sparsity.layers import find_layers, select_layers
from gansparse.tasks.gan import Batch, GANTask


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on its device, in training mode, its convolutions channels_last."""
    put_gradients_right(module)
    to: Any = module.to  # torch's annotation lacks memory_format
    placed: nn.Module = to(device, memory_format=torch.channels_last)
    return placed.train()


def original_generator(task: GANTask, recipe: Recipe, device: torch.device) -> nn.Module | None:
    """G_O, frozen and in eval mode, where the row uses it beside the sparse generator."""
    if "dense +" not in recipe.generators:
        return None
    return place(copy.deepcopy(task.generator), device).eval().requires_grad_(False)


def starting_generator(task: GANTask, recipe: Recipe, config: TrainConfig) -> nn.Module:
    """The generator to be deployed, as the row's column "G init" says."""
    if recipe.smaller:
        if task.small_generator is None:
            raise InputError(
                f"recipe {recipe.key!r} needs a smaller generator: "
                "give the task small_generator=, which builds one of a given share"
            )
        return task.small_generator(1.0 - config.sparsity)
    fresh = recipe.g_init == "random"
    return trainable(task.fresh_generator() if fresh else copy.deepcopy(task.generator))


def trainable(module: nn.Module) -> nn.Module:
    """The module; where it was handed over frozen as a whole, as teachers are, it learns again."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        module.requires_grad_(True)
    return module


def starting_discriminator(task: GANTask, recipe: Recipe) -> nn.Module | None:
    """D, as the row says; None where it has none."""
    if not recipe.has_d:
        return None
    fresh = "random" in recipe.d
    return trainable(task.fresh_discriminator() if fresh else copy.deepcopy(task.discriminator))


def check_fit(task: GANTask, generator: nn.Module, d: nn.Module | None) -> None:
    """Refuses networks that don't take the data or each other's pictures, before any step.

    Raises:
        InputError: which doesn't take what, and torch's word for it.
    """
    networks = [generator] if d is None else [generator, d]
    batch = first_batch(generator, task)
    fault = "the generator does not take its inputs"
    try:
        with torch.no_grad():
            for network in networks:
                network.eval()  # BatchNorms must not notice
            fake = task.generate(generator, batch)
            if d is not None:
                fault = "the discriminator does not take the real pictures"
                task.judge(d, task.real(batch), batch)
                fault = "the discriminator does not take the generator's pictures"
                task.judge(d, fake, batch)
    except (GansparseError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"task {task.name}: {fault}: {line}; G and D must be a pair that was trained together, "
            "on pictures of this size"
        ) from error
    finally:
        for network in networks:
            network.train()


def d_update_rule(recipe: Recipe, config: TrainConfig) -> str:
    """How D is updated: the row's answer, or for row b the chosen reading."""
    if not recipe.d_learns:
        return "fixed"
    if recipe.objective == "self-supervised":
        return config.reading.d_update
    # Row k distils and takes L-Do without L-Dc; all others train D against what they deploy.
    original = recipe.objective == "distillation" and "Dc" not in recipe.losses
    return "adversarial-original" if original else "adversarial-compressed"


def make_pruner(
    module: nn.Module, recipe: Recipe, config: TrainConfig, task: GANTask | None = None
) -> Pruner | None:
    """The pruner of the row's schedule; None where nothing is pruned.

    Args:
        module: to prune; at granularity 2:4 its channels may come into another order, see
            `reorder_channels`.
        recipe: the row.
        config: what the row leaves open.
        task: whose generator the module is; None where it is no generator, so that its weights'
            magnitudes decide, and filters' weights alone are pruned.

    Raises:
        InputError: a layer name that matches nothing, an unknown granularity or scope.
    """
    if not recipe.prunes:
        return None
    granularity: Any = config.granularity  # the pruner refuses what it doesn't know
    scope: Any = "layer" if granularity == "2:4" else config.scope
    channels, effects, note, exclude = None, None, "", [*config.exclude]
    if task is not None:
        batch = first_batch(module, task)
        if granularity == "2:4" and config.order == "searched" and recipe.objective != "layers":
            note = reorder_channels(module, config, task, batch)
            distributed.as_the_first(module.state_dict().values())
        if granularity == "filter":
            try:
                found = generator_channels(module, task, batch)
            except InputError as error:
                left = "the layer that makes the picture is not known and may lose channels of it"
                if config.filters == "channels":
                    left = "removed filters leave their bias and norm behind"
                note = f"{left}: {error}"
            else:
                if config.filters == "channels":
                    channels = found
                elif not config.include:
                    exclude += found.outputs
        if config.criterion == "effect":
            effects = measure_effects(module, lambda generator: task.generate(generator, batch))
    pruner = Pruner(
        module,
        config.sparsity,
        granularity=granularity,
        schedule=AGP() if recipe.schedule == "agp" else OneShot(),
        include=config.include or None,
        exclude=exclude,
        scope=scope,
        vector_size=config.vector_size,
        channels=channels,
        effects=effects,
    )
    pruner.notes += [note] if note else []
    return pruner


def reorder_channels(module: nn.Module, config: TrainConfig, task: GANTask, batch: Batch) -> str:
    """Put channels into the order in which 2:4 keeps most, as the configuration scores weights.

    The same module and configuration come to the same order, unless there was no time for all of
    the search. Technique l, which compares inner layers of G_O and G_C channel by channel, does
    without.

    Returns:
        Why the order is as it was, or that the search was cut short, if so.
    """
    deadline, cut, fault = time.monotonic() + config.order_seconds, False, ""
    effects: dict[str, Effect] = {}
    if config.criterion == "effect":
        effects = measure_effects(module, lambda generator: task.generate(generator, batch))
    pruned = select_layers(find_layers(module), config.include or None, config.exclude)
    for name, inputs in generator_calls(module, task, batch).items():
        prefix = f"{name}." if name else ""
        own = [x.name.removeprefix(prefix) for x in pruned if x.name.startswith(prefix)]
        known = {k.removeprefix(prefix): v for k, v in effects.items() if k.startswith(prefix)}
        try:
            if own:
                report = permute_channels(
                    module.get_submodule(name),
                    *inputs,
                    include=own,
                    effects=known,
                    time_limit=max(0.0, deadline - time.monotonic()),
                    seed=config.seed,
                )
                cut = cut or not all(row.finished for row in report.rows)
        except InputError as error:
            fault = f"2:4 takes the channels in the order that they had: {error}"
            break
    ended = (
        f"2:4: order_seconds={config.order_seconds:g} ended the search for an order of channels, "
        "so the same seed may give another run"
    )
    return "; ".join([ended] * cut + [fault] * bool(fault))


class Beginning:
    """What a pruner has from the run's start that a resumed run can't find again.

    A search that was cut short comes to another order of channels the next time.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner

    def state_dict(self) -> dict[str, Any]:
        """What was measured of the layers, and the notes."""
        effects = self.pruner.effects.items()
        return {
            "effects": {name: {"inputs": x.inputs, "variance": x.variance} for name, x in effects},
            "notes": list(self.pruner.notes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse; measured values in place."""
        for name, effect in self.pruner.effects.items():
            effect.inputs.copy_(state["effects"][name]["inputs"])
            effect.variance.copy_(state["effects"][name]["variance"])
        self.pruner.notes = list(state["notes"])


def first_batch(module: nn.Module, task: GANTask) -> Batch:
    """The task's first batch, where the module is."""
    device = next(module.parameters()).device
    return {key: value.to(device) for key, value in task.batch(0).items()}


def generator_channels(module: nn.Module, task: GANTask, batch: Batch) -> FilterChannels:
    """The channels of the task's generator, or of each of its generators, as the batch runs them.

    Raises:
        InputError: one of them can't be traced.
    """
    calls = generator_calls(module, task, batch)
    return FilterChannels.joined(
        {name: filter_channels(module.get_submodule(name), *x) for name, x in calls.items()}
    )


def generator_calls(module: nn.Module, task: GANTask, batch: Batch) -> dict[str, tuple[Any, ...]]:
    """What the batch calls the task's generator with, or by name each of its generators."""
    whole = copy.deepcopy(module).eval()
    parts = dict(whole.items()) if isinstance(whole, nn.ModuleDict) else {"": whole}
    calls: dict[str, tuple[Any, ...]] = {}

    def note(name: str) -> Any:
        def hook(part: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            bound = inspect.signature(part.forward).bind(*given, **named)
            calls.setdefault(name, bound.args)

        return hook

    hooks = [p.register_forward_pre_hook(note(n), with_kwargs=True) for n, p in parts.items()]
    with torch.no_grad():
        task.generate(whole, batch)
    for hook in hooks:
        hook.remove()
    return calls


def critic_pruner(module: nn.Module, recipe: Recipe, config: TrainConfig) -> Pruner | None:
    """D's pruner, where the row compresses D too: all its convolutions, at the same ratio."""
    if not recipe.compresses_d:
        return None
    return make_pruner(module, recipe, replace(config, include=(), exclude=()))


def quantize_networks(
    generator: nn.Module, d: nn.Module | None, recipe: Recipe, config: TrainConfig
) -> None:
    """Technique m: convolutions of few levels, in D too, in place; nothing for other rows."""
    if not recipe.quantizes:
        return
    chosen = select_layers(find_layers(generator), config.include or None, config.exclude)
    quantize(chosen, config.bits)
    if d is not None and recipe.compresses_d:
        quantize(select_layers(find_layers(d)), config.bits)
