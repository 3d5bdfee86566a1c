# SPDX-License-Identifier: Apache-2.0
"""Task CycleGAN: pictures of domain a into b and back, without pairs (Zhu et al., ICCV 2017).

Losses, weights and update order are those of junyanz/pytorch-CycleGAN-and-pix2pix. What it calls
G_A is ``a2b`` here, G_B is ``b2a``. Its D_A judges pictures of domain B, and is ``b`` here; D_B is
``a``. Its idt_A, which is G_A(real_B), is ``idt_b``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gansparse.errors import InputError
from gansparse.models.cyclegan import ResidualBlock, ResNetGenerator
from gansparse.models.pix2pix import PatchGANDiscriminator
from gansparse.tasks.adversarial import (
    CountedBatches,
    FirstSamples,
    count_samples,
    gan_losses,
    per_sample_l1,
    width_for_share,
    with_fresh_weights,
)
from gansparse.tasks.gan import Batch, Fake, GANTask, Terms, View, pictures_of

# Direction -> the generators that are trained.
_TRAINED = {"both": ("a2b", "b2a"), "AtoB": ("a2b",), "BtoA": ("b2a",)}

Judged = Mapping[str, torch.Tensor]  # fake_a, fake_b: logits [N, 1, H, W]


def cyclegan_task(
    batches: CountedBatches,
    evaluation: CountedBatches | None = None,
    *,
    generator: nn.ModuleDict | None = None,
    discriminator: nn.ModuleDict | None = None,
    direction: str = "both",
    ngf: int = 64,
    num_blocks: int = 9,
    ndf: int = 64,
    identity: float = 0.5,
    gan_mode: str = "lsgan",
    test_sizes: tuple[int, int] | None = None,
    **options: Any,
) -> GANTask:
    """CycleGAN as in the paper: ResNets with InstanceNorm, PatchGANs, least squares, G before D.

    ====  ==========================================================================
    term  loss of a sample, the sum over both directions
    ====  ==========================================================================
    gen   D of domain b takes a2b(a) for real, mean over the patches
    rec   mean |b2a(a2b(a)) - a| + ``identity`` · mean |a2b(b) - b|, weight 10
    dis   half of: D of domain b takes b for real and a2b(a) for fake, mean over the patches
    ====  ==========================================================================

    With one ``direction`` the task's generator is that one network, bare, and its discriminator
    that of its target domain: what is pruned, counted and saved is what will be deployed, and the
    file loads wherever a CycleGAN generator does. The other generator closes the cycle: it stands
    still as it was trained, and gradients go through it. Of the sums there remains what depends on
    the trained network: its own ``gen``, ``dis`` and identity term, and both cycles.

    Args:
        batches: step -> {"a", "b"}: pictures [N, C, H, W], float in [-1, 1], of both domains, not
            paired; ``len``: batches in an epoch.
        evaluation: index -> such a batch of the test sets, in order; ``len``: batches that hold all
            of them. None: nothing to score.
        generator: the trained generators, ``a2b`` and ``b2a``; random ones where none are given.
        discriminator: the trained discriminators of domains ``a`` and ``b``; likewise.
        direction: ``both`` are trained and compressed, or only ``AtoB`` or ``BtoA``; a and b are
            the batches', whatever their folders are called.
        ngf: base width of random generators.
        num_blocks: their residual blocks.
        ndf: base width of random discriminators.
        identity: weight of the identity term within ``rec``; 0 leaves it out.
        gan_mode: ``lsgan``, ``vanilla`` or ``wgan`` (`gan_losses`).
        test_sizes: different test pictures of a, of b, where their numbers differ, since
            ``evaluation`` then repeats those of the smaller domain.
        **options: further fields of `GANTask`.

    Raises:
        InputError: no such ``direction`` or ``gan_mode``, networks with other names than these, or
            one direction without the trained pair.

    Example:
        >>> pictures = {"a": torch.zeros(1, 3, 32, 32), "b": torch.ones(1, 3, 32, 32)}
        >>> class Pictures:
        ...     def __len__(self):
        ...         return 1
        ...     def __call__(self, index):
        ...         return pictures
        >>> task = cyclegan_task(Pictures(), ngf=2, ndf=2, num_blocks=1)
        >>> sorted(task.generate(task.generator, task.batch(0)))
        ['fake_a', 'fake_b', 'idt_a', 'idt_b', 'rec_a', 'rec_b']
    """
    if direction not in _TRAINED:
        raise InputError(f"direction must be one of {', '.join(_TRAINED)}, got {direction!r}")
    trained = _TRAINED[direction]
    if generator is None and direction != "both":
        raise InputError(f"direction {direction!r} needs trained generators: give generator=")
    if generator is None or discriminator is None:
        first = batches(0)
        channels = {name: first[name].shape[1] for name in "ab"}
        if identity and channels["a"] != channels["b"]:
            raise InputError(
                f"cyclegan: a has {channels['a']} channels and b has {channels['b']}: the identity "
                "term compares them; give identity=0"
            )
        if generator is None:
            widths = {"a2b": (channels["a"], channels["b"]), "b2a": (channels["b"], channels["a"])}
            generator = nn.ModuleDict(
                {
                    name: ResNetGenerator(*sides, ngf, num_blocks=num_blocks)
                    for name, sides in widths.items()
                }
            )
        if discriminator is None:
            discriminator = nn.ModuleDict(
                {n: PatchGANDiscriminator(channels[n], ndf, norm="instance") for n in "ab"}
            )
    _check_names("generator", generator, ("a2b", "b2a"))
    _check_names("discriminator", discriminator, ("a", "b"))

    # What the task trains, and what stands still.
    original: nn.Module = generator
    critic: nn.Module = discriminator
    partner = None
    if direction != "both":
        (name,) = trained
        original, critic = generator[name], discriminator[_target(name)]
        other = next(n for n in generator if n != name)
        to: Any = copy.deepcopy(generator[other]).eval().requires_grad_(False).to
        # Its InstanceNorms' gradients are wrong in channels_last (`put_gradients_right`).
        partner = to(memory_format=torch.contiguous_format)
    cycle = _Cycle(trained, partner, identity)
    generator_loss, discriminator_loss = gan_losses(gan_mode)

    def generator_terms(judged: Judged, fake: Fake, batch: Batch) -> Terms:
        gen = torch.stack([generator_loss(logits) for logits in judged.values()]).sum(0)
        return {"gen": gen, "rec": cycle.reconstruction(fake, batch)}

    def discriminator_terms(real: Judged, fake: Judged, batch: Batch) -> Terms:
        losses = [discriminator_loss(real[name], fake[name]) for name in fake]
        return {"dis": 0.5 * torch.stack(losses).sum(0)}

    defaults: dict[str, Any] = {"weights": {"rec": 10.0}, "lr_decay": "half", "pool_size": 50}
    if all(isinstance(net, ResNetGenerator) for net in generator.values()):
        defaults["small_generator"] = lambda share: _small(original, share)
    views = () if evaluation is None else cycle.views(evaluation, test_sizes)
    return GANTask(
        name="cyclegan",
        generator=original,
        discriminator=critic,
        batch=batches,
        generate=cycle.generate,
        generator_terms=generator_terms,
        discriminator_terms=discriminator_terms,
        views=views,
        real=lambda batch: {f"fake_{_target(n)}": batch[_target(n)] for n in trained},
        judge=_judge,
        new_generator=lambda: with_fresh_weights(original),
        new_discriminator=lambda: with_fresh_weights(critic),
        g_first=True,
        steps_per_epoch=len(batches),
        **(defaults | options),
    )


@dataclass(frozen=True)
class _Cycle:
    """Both generators, of which one may stand still.

    Attributes:
        trained: names of the generators that are trained.
        partner: the one that is not, where only one is.
        identity: weight of the identity term.
    """

    trained: tuple[str, ...]
    partner: nn.Module | None
    identity: float

    def generate(self, generator: nn.Module, batch: Batch) -> Fake:
        """Each trained generator's fake and identity, and both cycles; each [N, C, H, W]."""
        a, b = batch["a"], batch["b"]
        a2b, b2a = (self._net(generator, name, a.device) for name in ("a2b", "b2a"))
        fakes = {"a": b2a(b), "b": a2b(a)}
        made = {"rec_a": b2a(fakes["b"]), "rec_b": a2b(fakes["a"])}
        for name in self.trained:
            target = _target(name)
            made[f"fake_{target}"] = fakes[target]
            if self.identity:
                made[f"idt_{target}"] = _part(generator, name)(batch[target])
        return made

    def _net(self, generator: nn.Module, name: str, device: torch.device) -> nn.Module:
        if name in self.trained:
            return _part(generator, name)
        assert self.partner is not None
        return self.partner.to(device)

    def reconstruction(self, fake: Fake, batch: Batch) -> torch.Tensor:  # [N]
        """l_Rec: both cycles, and the trained generators' identity."""
        cycles = torch.stack([per_sample_l1(fake[f"rec_{n}"], batch[n]) for n in "ab"]).sum(0)
        if not self.identity:
            return cycles
        targets = [_target(name) for name in self.trained]
        kept = torch.stack([per_sample_l1(fake[f"idt_{n}"], batch[n]) for n in targets]).sum(0)
        return cycles + self.identity * kept

    def views(
        self, evaluation: CountedBatches, test_sizes: tuple[int, int] | None
    ) -> tuple[View, ...]:
        """One a trained direction; only its generator runs."""
        if test_sizes is None:
            test_sizes = (count_samples(evaluation, "a"),) * 2
        sizes = dict(zip("ab", test_sizes, strict=True))
        return tuple(_view(evaluation, name, sizes) for name in self.trained)


def _view(evaluation: CountedBatches, name: str, sizes: Mapping[str, int]) -> View:
    target = _target(name)
    source = "a" if target == "b" else "b"

    def make(generator: nn.Module, batch: Batch) -> torch.Tensor:  # [N, C, H, W]
        fake: torch.Tensor = _part(generator, name)(batch[source])
        return fake

    def beside(batch: Batch) -> Batch:
        return {"input": batch[source]}

    real = FirstSamples(evaluation, target, sizes[target])
    return View(f"{source} to {target}", real, evaluation, make, sizes[source], beside)


def _judge(discriminator: nn.Module, images: Fake, batch: Batch) -> Judged:
    """What D of its domain says of each kind of picture."""
    return {
        name: _part(discriminator, name[-1])(picture)
        for name, picture in pictures_of(images).items()
    }


def _target(name: str) -> str:
    """The domain that a generator paints."""
    return name[-1]


def _part(module: nn.Module, name: str) -> nn.Module:
    """The network of that name, or with one direction the only one."""
    return module[name] if isinstance(module, nn.ModuleDict) else module


def _check_names(what: str, modules: nn.ModuleDict, names: tuple[str, str]) -> None:
    if not isinstance(modules, nn.ModuleDict) or set(modules) != set(names):
        got = list(modules) if isinstance(modules, nn.ModuleDict) else type(modules).__name__
        raise InputError(
            f"cyclegan: {what} must be an nn.ModuleDict of {names[0]!r} and {names[1]!r}, got {got}"
        )


def _small(module: nn.Module, share: float) -> nn.Module:
    """Random generators like these in all but their width."""
    nets = [m for m in module.modules() if isinstance(m, ResNetGenerator)]
    layers: Any = nets[0].model
    return width_for_share(lambda ngf: _of_width(module, ngf), share, layers[1].out_channels)


def _of_width(module: nn.Module, ngf: int) -> nn.Module:
    if isinstance(module, nn.ModuleDict):
        return nn.ModuleDict({name: _of_width(net, ngf) for name, net in module.items()})
    assert isinstance(module, ResNetGenerator)
    layers: Any = module.model
    blocks = [m for m in module.modules() if isinstance(m, ResidualBlock)]
    return ResNetGenerator(
        layers[1].in_channels,
        layers[-2].out_channels,
        ngf,
        num_blocks=len(blocks),
        norm="instance" if layers[1].bias is not None else "batch",
        dropout=any(isinstance(m, nn.Dropout) for m in module.modules()),
    )
