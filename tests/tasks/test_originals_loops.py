# SPDX-License-Identifier: Apache-2.0
"""DCGAN, StarGAN and SRGAN in the trainer against their programs' own loops, written out here.

Those of Pix2Pix and CycleGAN are in the tests of their tasks.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from test_srgan_task import tiny as tiny_srgan
from test_stargan_task import tiny as tiny_stargan
from test_stargan_task import tiny_attributes
from torch import Tensor, nn

from gansparse.compress import TrainConfig, Trainer
from gansparse.tasks import dcgan_task
from gansparse.testing import close

STEPS = 4


def tiny_dcgan():
    torch.manual_seed(1234)
    images = torch.randint(0, 255, (64, 1, 16, 16), dtype=torch.uint8)
    return dcgan_task(images, nz=8, ngf=8, ndf=8, batch_size=8)


def networks(task) -> list[nn.Module]:
    """Copies of the pair, laid out as in training."""
    pair = (task.generator, task.discriminator)
    return [copy.deepcopy(n).to(memory_format=torch.channels_last).train() for n in pair]


def trained_alike(task, want: list[dict[str, float]], nets: list[nn.Module]) -> None:
    """Whether the trainer's logged terms and its networks are those of the loop."""
    task.train_further()
    config = TrainConfig(
        "a", steps=STEPS, sparsity=0.0, save_every=0, log_every=1, recalibration=0, ema=0.0,
        lr_decay="none",
    )  # fmt: skip
    trainer = Trainer(task, config)
    history = trainer.run().history
    assert len(history) == len(want)
    for row, terms in zip(history, want, strict=True):
        for name, value in terms.items():
            got, truth = torch.tensor(row["terms"][name]), torch.tensor(value).double()
            close(got, truth, terms=4096, name=f"step {row['step']}: {name}")
    batch = task.batch(STEPS)  # what a norm divides out, as a bias before it, may differ by chance
    (g, d), real = nets, task.real(batch)
    with torch.no_grad():
        for made, truth in (
            (task.generate(trainer.g_c.train(), batch), task.generate(g, batch)),
            (task.judge(trainer.d.train(), real, batch), task.judge(d, real, batch)),
        ):
            torch.testing.assert_close(made, truth, rtol=1e-3, atol=1e-4)


def adam(task, nets):
    return [torch.optim.Adam(net.parameters(), lr=task.lr, betas=task.betas) for net in nets]


def test_dcgans_loop():
    """D on real pictures and on fakes, then G by the D that has learnt (pytorch/examples)."""
    task = tiny_dcgan()
    assert (task.lr, task.betas) == (2e-4, (0.5, 0.999))
    g, d = nets = networks(task)
    opt_g, opt_d = adam(task, nets)
    bce, want = nn.BCEWithLogitsLoss(), []
    for step in range(STEPS):
        batch = task.batch(step)
        opt_d.zero_grad()
        real = d(batch["real"]).flatten()
        loss_real = bce(real, torch.ones_like(real))
        loss_real.backward()
        fake = g(batch["z"])
        said = d(fake.detach()).flatten()
        loss_fake = bce(said, torch.zeros_like(said))
        loss_fake.backward()
        opt_d.step()
        opt_g.zero_grad()
        said = d(fake).flatten()
        loss_g = bce(said, torch.ones_like(said))
        loss_g.backward()
        opt_g.step()
        want.append({"D": (loss_real + loss_fake).item(), "gen": loss_g.item()})
    trained_alike(task, want, nets)


@pytest.mark.parametrize("classes", [True, False])
def test_stargans_loop(classes):
    """D in each step, with the penalty; G in each second here, with the cycle (yunjey/stargan)."""
    task = (tiny_stargan if classes else tiny_attributes)(n_critic=2)
    assert (task.lr, task.betas) == (1e-4, (0.5, 0.999))
    g, d = nets = networks(task)
    opt_g, opt_d = adam(task, nets)
    want = []

    def classification(logits: Tensor, target: Tensor) -> Tensor:
        if classes:
            return F.cross_entropy(logits, target.argmax(1))
        sums = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return sums / logits.size(0)

    for step in range(STEPS):
        batch = task.batch(step)
        real, original, target = batch["real"], batch["label"], batch["target"]
        source, said = d(real)
        loss_d = -source.mean() + classification(said, original)
        fake = g(real, target)
        source, _ = d(fake.detach())
        loss_d = loss_d + source.mean()
        alpha = batch["epsilon"]
        between = (alpha * real + (1 - alpha) * fake.detach()).requires_grad_()
        source, _ = d(between)
        (slope,) = torch.autograd.grad(
            source, between, torch.ones_like(source), create_graph=True, retain_graph=True
        )
        norm = slope.reshape(slope.size(0), -1).square().sum(1).sqrt()
        penalty = (norm - 1).square().mean()
        opt_d.zero_grad()
        (loss_d + 10 * penalty).backward()
        opt_d.step()
        if step % 2 == 0:
            continue
        fake = g(real, target)
        source, said = d(fake)
        terms = {
            "gen": -source.mean(),
            "cla": classification(said, target),
            "rec": 10 * (real - g(fake, original)).abs().mean(),
        }
        opt_g.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        opt_g.step()
        want.append({name: value.item() for name, value in terms.items()})
        want[-1]["D"] = (loss_d + 10 * penalty).item()
    trained_alike(task, want, nets)


def test_srgans_loop():
    """G first, then D on what the new G makes (leftthomas/SRGAN, as its table was trained)."""
    task = tiny_srgan()
    assert (task.lr, task.betas) == (1e-3, (0.9, 0.999))
    g, d = nets = networks(task)
    opt_g, opt_d = adam(task, nets)
    want = []

    def variation(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        rows = (x[:, :, 1:] - x[:, :, :-1]).square().sum() / (c * (h - 1) * w)
        columns = (x[..., 1:] - x[..., :-1]).square().sum() / (c * h * (w - 1))
        return 2 * (rows + columns) / n

    for step in range(STEPS):
        batch = task.batch(step)
        fake = g(batch["lr"])
        gen = 1e-3 * (1 - d(fake)).mean()
        rec = F.mse_loss(fake, batch["hr"]) + 2e-8 * variation(fake)
        opt_g.zero_grad()
        (gen + rec).backward()
        opt_g.step()
        fake = g(batch["lr"]).detach()
        loss_d = 1 - d(batch["hr"]).mean() + d(fake).mean()
        opt_d.zero_grad()
        loss_d.backward()
        opt_d.step()
        want.append({"gen": gen.item(), "rec": rec.item(), "D": loss_d.item()})
    trained_alike(task, want, nets)
