# SPDX-License-Identifier: Apache-2.0
"""Configuration of a run, as one frozen dataclass that is saved with every checkpoint."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gansparse.compress.recipes import get_recipe
from gansparse.errors import InputError
from gansparse.sparsity import GRANULARITIES, SCOPES

D_UPDATES = ("consistency", "adversarial-original", "adversarial-compressed", "fixed")
REDUCTIONS = ("sample", "batch")
OUTPUT_TERMS = ("mse", "l1", "none")
NORMS = ("batch", "running")
MOST_BITS = 16
LR_DECAYS = ("none", "half", "linear", "cosine")
PRECISIONS = ("fp32", "bf16")
FILTERS = ("weights", "channels")
CRITERIA = ("effect", "magnitude")
ORDERS = ("given", "searched")


@dataclass(frozen=True)
class Reading:
    """What the paper leaves open, each a named option (docs/results.md compares them).

    The defaults are among the best that were measured, and nothing measured surely better: D goes
    on as the GAN's own training has it, on the compressed generator's pictures, and the output term
    keeps G_C by G_O meanwhile.

    Attributes:
        d_update: how D learns while it supervises. ``consistency``: it minimises L_DC of eq. 6
            itself; ``adversarial-original``: its own loss with G_O's pictures as the fakes;
            ``adversarial-compressed``: the same with G_C's; ``fixed``: not at all.
        reduction: |l_O - l_C| of each ``sample``, or of ``batch`` means.
        output_term: distance of the outputs beside eq. 9: ``mse`` or ``l1`` of pixels, or ``none``.
        output_weight: its weight.
        feature_weight: weight of the distance of D's features, at every layer, in addition.
        adversarial_weight: weight of G_C's own adversarial loss in addition to eq. 9.
        g_norm: BatchNorm of G_C in training: ``batch`` statistics, or ``running`` ones.
        d_norm: BatchNorm of D while it supervises: likewise.
        d_lr_factor: D's learning rate while it supervises, as a multiple of G's.
        normaliser_floor: least |l_O| that eq. 3 and 6 divide by (see `relative_gap`), as a share of
            the term's size at the first step. D, going on against G_C, soon takes G_O's pictures
            for real; then l_Gen_O nears 0, and with a small floor L_GC outweighs all else.
    """

    d_update: str = "adversarial-compressed"
    reduction: str = "sample"
    output_term: str = "mse"
    output_weight: float = 100.0
    feature_weight: float = 0.0
    adversarial_weight: float = 1.0
    g_norm: str = "batch"
    d_norm: str = "batch"
    d_lr_factor: float = 1.0
    normaliser_floor: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on besides the task.

    Attributes:
        recipe: letter of Table 1.
        steps: optimizer steps, of D where G has its turn every few of them (`GANTask.g_every`).
        sparsity: share of zeros in the pruned weights, 0 <= s < 1.
        granularity: ``element``, ``vector``, ``block``, ``kernel``, ``filter`` or ``2:4``.
        vector_size: output channels that share a pattern (granularity ``vector`` or ``block``; for
            ``block`` the CUDA kernel takes 16 and 32).
        filters: what goes with a filter (granularity ``filter``). ``weights``: nothing; its channel
            becomes a constant. ``channels``: all that makes its channel, so that the generator
            shrinks the most, at some cost in quality: filters of layers that are added to it,
            biases, scales and shifts of norms. The layer that makes the picture stays whole in
            either case, unless ``include`` names it.
        criterion: which weights go first. ``effect``: those that add least to their layer's
            normalised output (see `measure_effects`); ``magnitude``: the smallest, as in the paper.
        order: of the generator's channels (granularity ``2:4``, which keeps two of four
            neighbours). ``given``: as they are; ``searched``: that in which most of the criterion
            is kept, see `permute_channels`. The network is the same, with its weights in other
            places. More is kept indeed, but the pictures are better for it only at times.
        order_seconds: that the search may take, of all generators together. A run whose search was
            cut short, which its notes say, can't be made again from its seed; resumed, it goes on
            with the order that it had.
        bits: of one weight, in technique m, which quantizes and does not prune.
        scope: ``erk``: small layers keep more; ``layer``: the ratio holds in each alike;
            ``global``: over all of them (see `Pruner`). 2:4 is the same in each whatever this says.
        include: module names (globs) or types to prune; empty: every convolution.
        exclude: module names or types to leave dense.
        lambda_: weight of L_DC in eq. 9.
        reading: the paper's open points.
        lr: generator's learning rate; None: the task's.
        d_lr: discriminator's learning rate; None: as the generator's, for technique b times the
            reading's ``d_lr_factor``.
        lr_decay: ``none``; ``linear`` or ``cosine`` to zero over all steps; ``half``: constant for
            the first half, linear to zero in the second; None: the task's own.
        ema: decay of the exponential moving average of G_C's weights; 0: none.
        recalibration: batches whose statistics replace BatchNorm's running ones at the end.
        precision: ``fp32``, or ``bf16`` autocast.
        seed: of initial weights; the task's batches have their own.
        log_every: steps between two logged lines.
        save_every: steps between two checkpoints; 0: only at the end.
    """

    recipe: str = "b"
    steps: int = 938
    sparsity: float = 0.75
    granularity: str = "element"
    vector_size: int = 16
    filters: str = "weights"
    criterion: str = "effect"
    order: str = "given"
    order_seconds: float = 60.0
    bits: int = 4
    scope: str = "erk"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    lambda_: float = 0.5
    reading: Reading = field(default_factory=Reading)
    lr: float | None = None
    d_lr: float | None = None
    lr_decay: str | None = None
    ema: float = 0.999
    recalibration: int = 50
    precision: str = "fp32"
    seed: int = 0
    log_every: int = 10
    save_every: int = 200

    def __post_init__(self) -> None:
        """Refuses values outside their range, each with one line."""
        get_recipe(self.recipe)
        _one_of("granularity", self.granularity, GRANULARITIES)
        _one_of("scope", self.scope, SCOPES)
        reading = self.reading
        _one_of("d_update", reading.d_update, D_UPDATES)
        _one_of("reduction", reading.reduction, REDUCTIONS)
        _one_of("output_term", reading.output_term, OUTPUT_TERMS)
        _one_of("g_norm", reading.g_norm, NORMS)
        _one_of("d_norm", reading.d_norm, NORMS)
        if self.lr_decay is not None:
            _one_of("lr_decay", self.lr_decay, LR_DECAYS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("filters", self.filters, FILTERS)
        _one_of("criterion", self.criterion, CRITERIA)
        _one_of("order", self.order, ORDERS)
        _in_range("sparsity", self.sparsity, 0.0, 1.0, open_top=True)
        _in_range("ema", self.ema, 0.0, 1.0, open_top=True)
        _in_range("order_seconds", self.order_seconds, 0.0, math.inf)
        _in_range("lambda_", self.lambda_, 0.0, math.inf)
        _in_range("output_weight", reading.output_weight, 0.0, math.inf)
        _in_range("feature_weight", reading.feature_weight, 0.0, math.inf)
        _in_range("adversarial_weight", reading.adversarial_weight, 0.0, math.inf)
        _in_range("d_lr_factor", reading.d_lr_factor, 0.0, math.inf)
        if not 0.0 < reading.normaliser_floor < math.inf:
            raise InputError(f"normaliser_floor must be above 0, got {reading.normaliser_floor}")
        for name in ("lr", "d_lr"):
            if getattr(self, name) is not None:
                _in_range(name, getattr(self, name), 0.0, math.inf)
        for name, least in (
            ("steps", 1),
            ("bits", 1),
            ("log_every", 1),
            ("save_every", 0),
            ("recalibration", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be 0 to 2**32 - 1, got {self.seed}")
        if self.bits > MOST_BITS:
            raise InputError(f"bits must be at most {MOST_BITS}, got {self.bits}")

    def with_settings(self, settings: Sequence[str]) -> TrainConfig:
        """A copy with "name=value" settings, each a number or word field here or of the reading.

        Raises:
            InputError: no such field, or a value that its type or range does not allow.

        Example:
            >>> changed = TrainConfig().with_settings(["lambda_=1", "d_update=fixed"])
            >>> changed.lambda_, changed.reading.d_update
            (1.0, 'fixed')
        """
        own: dict[str, Any] = {}
        reading: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise InputError(f"a setting is NAME=VALUE, got {setting!r}")
            for target, changes in ((self, own), (self.reading, reading)):
                if name in _SETTABLE[type(target)]:
                    changes[name] = _value(name, text, _SETTABLE[type(target)][name])
                    break
            else:
                raise InputError(f"no setting {name!r}; there are: {', '.join(settable())}")
        return replace(self, **own, reading=replace(self.reading, **reading))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`.

        Raises:
            InputError: a field is unknown or missing: then another version wrote the values, and
                with today's defaults it would be another run.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for problem, names in (("unknown", set(values) - known), ("no", known - set(values))):
            if names:
                raise InputError(
                    f"configuration of another version of gansparse, with {problem} fields "
                    f"{sorted(names)}: go on with that version, or start anew in another folder"
                )
        fields = dict(values)
        fields["reading"] = Reading(**fields["reading"])
        for name in ("include", "exclude"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


# Fields that one word or number sets, and their type.
_SETTABLE: dict[type, dict[str, type]] = {
    cls: {
        f.name: {"str": str, "str | None": str, "int": int}.get(str(f.type), float)
        for f in dataclasses.fields(cls)
        if f.type in ("str", "str | None", "int", "float", "float | None")
    }
    for cls in (TrainConfig, Reading)
}


def settable() -> list[str]:
    """Names that `TrainConfig.with_settings` takes."""
    return sorted(name for fields in _SETTABLE.values() for name in fields)


def _value(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise InputError(f"{name} must be a number, got {text!r}") from None


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _in_range(name: str, value: float, low: float, high: float, open_top: bool = False) -> None:
    if not (low <= value < high if open_top else low <= value <= high) or math.isinf(value):
        bounds = f"{low:g} <= {name} {'<' if open_top else '<='} {high:g}"
        raise InputError(f"{name} must be {bounds}, got {value}")
