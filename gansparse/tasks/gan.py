# SPDX-License-Identifier: Apache-2.0
"""What the trainer needs to know of a GAN: its batches, its networks, its own loss terms.

A term is a tensor of shape [N]: the loss of each sample, not weighted, not averaged, because
eq. 3-8 of Yu & Pool 2020 compare terms before and after compression.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gansparse.errors import InputError

Batch = Mapping[str, torch.Tensor]
Fake = Any  # what a generator makes of a batch: pictures [N, C, H, W], or a dict of such
Terms = dict[str, torch.Tensor]  # name -> [N], one loss per sample

TERM_NAMES = ("gen", "cla", "rec", "dis", "gp")  # l_Gen, l_Cla, l_Rec, l_Dis, l_GP


def _real(batch: Batch) -> Fake:
    return batch["real"]


def _judge(discriminator: nn.Module, images: Fake, batch: Batch) -> Any:
    return discriminator(images)


def _no_penalty(discriminator: nn.Module, fake: Fake, batch: Batch) -> Terms:
    return {}


def _no_terms(judged_real: Any, batch: Batch) -> Terms:
    return {}


def pictures_of(fake: Fake) -> dict[str, torch.Tensor]:  # each [N, C, H, W]
    """The pictures a discriminator judges: of a dict those whose names begin with ``fake``.

    The others of a dict (a cycle's reconstruction, say) serve the generator's terms only.

    Example:
        >>> picture = torch.zeros(1, 1, 2, 2)
        >>> sorted(pictures_of({"fake_a": picture, "fake_b": picture, "rec_a": picture}))
        ['fake_a', 'fake_b']
    """
    if isinstance(fake, torch.Tensor):
        return {"fake": fake}
    return {name: value for name, value in fake.items() if name.startswith("fake")}


def detached(fake: Fake) -> Fake:
    """The same values, out of the graph."""
    if isinstance(fake, torch.Tensor):
        return fake.detach()
    return {name: value.detach() for name, value in fake.items()}


@dataclass(frozen=True)
class View:
    """One kind of picture that a generator makes, and the real ones it is scored against.

    Attributes:
        name: of the domain or direction, for tables ("Black_Hair", "a to b").
        pictures: real pictures [M, C, H, W], uint8 or float in the generator's range, or a function
            that gives them batch by batch, where they don't fit in memory.
        batch: index -> batch to score with; the same for all generators.
        make: (generator, batch) -> pictures [N, C, H, W] in the range of ``pictures``.
        num_samples: most pictures that ``batch`` has inputs for; None: as many as one likes.
        beside: batch -> what reports show beside the pictures made of it, in the same range and
            order: the generator's "input", and where there is one right answer the "truth"; each
            [N, C, H, W], of any size. None: nothing, as where pictures are made of noise.
        shown: index -> batch whose pictures reports show, where ``batch`` has other inputs for each
            domain and reports are to show the same for all; None: ``batch``.
    """

    name: str
    pictures: torch.Tensor | Callable[[], Iterator[torch.Tensor]]
    batch: Callable[[int], Batch]
    make: Callable[[nn.Module, Batch], torch.Tensor]
    num_samples: int | None = None
    beside: Callable[[Batch], Mapping[str, torch.Tensor]] | None = None
    shown: Callable[[int], Batch] | None = None

    @property
    def num_pictures(self) -> int | None:
        """How many real pictures there are; None: not known before they are all read."""
        return len(self.pictures) if isinstance(self.pictures, Sized) else None

    def most(self, wanted: int) -> int:
        """How many pictures are made where so many are wanted."""
        return wanted if self.num_samples is None else min(wanted, self.num_samples)


def reinitialised(module: nn.Module) -> nn.Module:
    """A copy with fresh random weights, through each layer's own ``reset_parameters``."""
    fresh = copy.deepcopy(module)
    for layer in fresh.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
        elif any(True for _ in layer.parameters(recurse=False)):
            raise InputError(
                f"{type(layer).__name__} has parameters but no reset_parameters(): "
                "pass new_generator=/new_discriminator= to the task"
            )
    return fresh


@dataclass
class GANTask:
    """A trained GAN with its data and losses, as the trainer sees it.

    The three functions that say what a generator makes and how it is judged may hold anything in
    ``Fake``: a tensor, or a dict of tensors whose pictures are named ``fake…`` (`pictures_of`).

    Attributes:
        name: for logs and reports.
        generator: the trained generator G_O; an ``nn.ModuleDict`` where there are several.
        discriminator: the trained discriminator D_O; likewise.
        batch: step -> batch. A pure function of the step, so that a resumed run sees the same
            batches.
        generate: (generator, batch) -> fake.
        generate_for_d: the same where only D is to judge it: what G's terms need beside may be left
            out; None: ``generate``.
        generator_terms: (judged fake, fake, batch) -> {"gen": [N], "cla": [N], "rec": [N]}.
        discriminator_terms: (judged real, judged fake, batch) -> {"dis": [N]}.
        pictures: the real pictures, as `View.pictures`.
        evaluation: index -> batch to score generators with; the same for all of them.
        views: what is scored, where it is not simply ``generate`` against ``pictures``.
        measures: (generator) -> further figures of it by name, PSNR of a test set say.
        real: batch -> the real pictures, in the form of a fake.
        penalty_terms: (discriminator, fake, batch) -> {"gp": [N]}, or nothing.
        real_terms: (judged real, batch) -> further terms of D's own training that don't depend on
            the generator, so have no part in eq. 6: {"cla": [N]} of an auxiliary classifier.
        regulariser: (discriminator, batch) -> a scalar that the GAN's own training adds to D's loss
            and that does not depend on the generator, so it has no part in eq. 6; or None.
        regulariser_every: D steps between two uses of it (Karras et al. 2020: lazily, times that).
        judge: (discriminator, real or fake, batch) -> what the discriminator says.
        weights: weight of each term in the GAN's own training (alpha, beta, delta of eq. 3, 6).
        new_generator: builds a randomly initialised generator (techniques a, c, f, j, k, o).
        new_discriminator: builds a randomly initialised discriminator (a, c, e, f, j, k).
        small_generator: builds a random generator with that share of the parameters (c, o).
        lr: learning rate of the GAN's own training.
        betas: Adam's betas of the GAN's own training.
        lr_decay: its schedule; see `TrainConfig`.
        g_first: G is updated before D, not after it.
        fresh_fakes: with ``g_first``: D sees what the updated G makes, not what was judged.
        g_every: steps of D to one of G (WGAN's n_critic). A step is one of D.
        pool_size: fakes kept for D to see again (Shrivastava et al. 2017); 0: none.
        steps_per_epoch: batches in one pass over the data.
        trained_steps: steps that the trained pair took, for the share of cost; None if unknown.
        trained_with: options of `load_task` that the trained pair goes with, by name, JSON-ready;
            they are kept in the header of the weights' files.
        data_name: where the data came from, for reports.
    """

    name: str
    generator: nn.Module
    discriminator: nn.Module
    batch: Callable[[int], Batch]
    generate: Callable[[nn.Module, Batch], Fake]
    generator_terms: Callable[[Any, Fake, Batch], Terms]
    discriminator_terms: Callable[[Any, Any, Batch], Terms]
    pictures: torch.Tensor | Callable[[], Iterator[torch.Tensor]] | None = None
    evaluation: Callable[[int], Batch] | None = None
    views: Sequence[View] = ()
    measures: Callable[[nn.Module], dict[str, float]] | None = None
    generate_for_d: Callable[[nn.Module, Batch], Fake] | None = None
    real: Callable[[Batch], Fake] = _real
    penalty_terms: Callable[[nn.Module, Fake, Batch], Terms] = _no_penalty
    real_terms: Callable[[Any, Batch], Terms] = _no_terms
    regulariser: Callable[[nn.Module, Batch], torch.Tensor] | None = None
    regulariser_every: int = 1
    judge: Callable[[nn.Module, Fake, Batch], Any] = _judge
    weights: Mapping[str, float] = field(default_factory=dict)
    new_generator: Callable[[], nn.Module] | None = None
    new_discriminator: Callable[[], nn.Module] | None = None
    small_generator: Callable[[float], nn.Module] | None = None
    lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    lr_decay: str = "none"
    g_first: bool = False
    fresh_fakes: bool = False
    g_every: int = 1
    pool_size: int = 0
    steps_per_epoch: int = 1
    trained_steps: int | None = None
    trained_with: Mapping[str, Any] = field(default_factory=dict)
    data_name: str = "user data"

    def __post_init__(self) -> None:
        """Refuses weights for terms that don't exist."""
        for term in self.weights:
            if term not in TERM_NAMES:
                raise InputError(
                    f"task {self.name}: weight for unknown term {term!r}; terms are {TERM_NAMES}"
                )
        if not self.views and self.pictures is not None and self.evaluation is not None:
            self.views = (View("", self.pictures, self.evaluation, self._picture),)

    def _picture(self, generator: nn.Module, batch: Batch) -> torch.Tensor:
        """What is scored where there are no views."""
        made = pictures_of(self.generate(generator, batch))
        if len(made) != 1:
            raise InputError(
                f"task {self.name}: makes {', '.join(made) or 'no pictures'}: give it views, which "
                "say what is scored against what"
            )
        return next(iter(made.values()))

    def weight(self, term: str) -> float:
        """Weight of a term in the GAN's own loss; 1 where none was given."""
        return float(self.weights.get(term, 1.0))

    def train_further(self) -> None:
        """Lets the GAN's training (technique a) start from this pair."""
        self.new_generator = lambda: copy.deepcopy(self.generator)
        self.new_discriminator = lambda: copy.deepcopy(self.discriminator)

    def fresh_generator(self) -> nn.Module:
        """A generator with random weights."""
        return self.new_generator() if self.new_generator else reinitialised(self.generator)

    def fresh_discriminator(self) -> nn.Module:
        """A discriminator with random weights."""
        if self.new_discriminator:
            return self.new_discriminator()
        return reinitialised(self.discriminator)


def weighted_mean(
    task: GANTask,
    terms: Terms,  # each [N]
) -> torch.Tensor:  # scalar
    """The GAN's own loss: the weighted sum of the terms' batch means."""
    losses = [task.weight(name) * values.mean() for name, values in terms.items()]
    return torch.stack(losses).sum()
