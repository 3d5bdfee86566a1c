# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch
from domains import Domains, config, same, state_of, stopped_and_resumed
from torch import nn

from gansparse.compress import RECIPES, Reading, Trainer
from gansparse.errors import InputError
from gansparse.metrics.evaluation import generated
from gansparse.models import PatchGANDiscriminator, PixelDiscriminator, UNetGenerator
from gansparse.models.pix2pix import drawn_from
from gansparse.tasks.pix2pix import pix2pix_task
from gansparse.testing import close

CRITERIA = {"vanilla": nn.BCEWithLogitsLoss(), "lsgan": nn.MSELoss()}


def tiny(batches=None, evaluation=None, **options):
    """Small networks; 64x64 pictures and 6 halvings where there is to be dropout."""
    torch.manual_seed(11)
    sizes = {"ngf": 4, "ndf": 4, "num_downs": 5}
    return pix2pix_task(batches or Domains(), evaluation, **{**sizes, **options})


def tiny_with_dropout():
    return tiny(Domains(size=64), num_downs=6)


@pytest.mark.parametrize("mode", CRITERIA)
def test_terms_are_the_originals_for_each_sample(mode):
    task, criterion = tiny(gan_mode=mode), CRITERIA[mode]
    batch = task.batch(0)
    real, fake = batch["b"], task.generate(task.generator, batch)
    logits = {
        name: task.discriminator(torch.cat([batch["a"], picture], 1))
        for name, picture in (("real", real), ("fake", fake))
    }
    judged_real = task.judge(task.discriminator, task.real(batch), batch)
    judged_fake = task.judge(task.discriminator, fake, batch)
    terms = task.generator_terms(judged_fake, fake, batch)
    terms |= task.discriminator_terms(judged_real, judged_fake, batch)
    assert {name: tuple(value.shape) for name, value in terms.items()} == {
        "gen": (2,),
        "rec": (2,),
        "dis": (2,),
    }
    for sample in range(2):
        said = {name: value[sample].double() for name, value in logits.items()}
        ones, zeros = torch.ones_like(said["real"]), torch.zeros_like(said["real"])
        want = {
            "gen": criterion(said["fake"], ones),
            "rec": nn.functional.l1_loss(fake[sample].double(), real[sample].double()),
            "dis": 0.5 * (criterion(said["fake"], zeros) + criterion(said["real"], ones)),
        }
        for name, value in want.items():
            close(terms[name][sample], value, terms=real[sample].numel(), name=name)
    assert (task.weight("gen"), task.weight("rec"), task.weight("dis")) == (1.0, 100.0, 1.0)


def test_training_is_the_originals_loop():
    """Three steps: D first, on the fake that G then learns from; Adam; the same noise."""
    task = tiny_with_dropout()
    task.train_further()
    g, d = (
        copy.deepcopy(net).to(memory_format=torch.channels_last).train()
        for net in (task.generator, task.discriminator)
    )
    settings = {"lr": 2e-4, "betas": (0.5, 0.999)}
    opt_g, opt_d = (torch.optim.Adam(net.parameters(), **settings) for net in (g, d))
    bce, want = nn.BCEWithLogitsLoss(), []
    for step in range(3):
        for optimizer in (opt_g, opt_d):
            optimizer.param_groups[0]["lr"] = 2e-4 * min(1.0, 2.0 - 2.0 * step / 3)
        batch = task.batch(step)
        a, b = batch["a"], batch["b"]
        with drawn_from(batch["noise"], a.device):
            fake = g(a)
        said_fake, said_real = d(torch.cat([a, fake.detach()], 1)), d(torch.cat([a, b], 1))
        loss_d = 0.5 * (
            bce(said_fake, torch.zeros_like(said_fake)) + bce(said_real, torch.ones_like(said_real))
        )
        opt_d.zero_grad()
        loss_d.backward()
        opt_d.step()
        said_fake = d(torch.cat([a, fake], 1))
        gen = bce(said_fake, torch.ones_like(said_fake))
        rec = 100 * (fake - b).abs().mean()
        opt_g.zero_grad()
        (gen + rec).backward()
        opt_g.step()
        want.append({"D": loss_d.item(), "gen": gen.item(), "rec": rec.item()})

    history = Trainer(task, config("a")).run().history
    for row, terms in zip(history, want, strict=True):
        for name, value in terms.items():
            got, truth = torch.tensor(row["terms"][name]), torch.tensor(value).double()
            close(got, truth, terms=fake.numel(), name=f"step {row['step']}: {name}")


@pytest.mark.parametrize("recipe", RECIPES)
def test_techniques_train(recipe):
    task = tiny()
    before = state_of(task.generator, task.discriminator)
    trainer = Trainer(task, config(recipe))
    result = trainer.run()
    assert len(result.history) == 3
    assert all(math.isfinite(row["loss"]) for row in result.history)
    for name, mask in result.masks.items():
        assert int((~mask).sum()) == round(0.5 * mask.numel())
        assert int(torch.count_nonzero(result.generator.get_parameter(name)[~mask])) == 0
    assert bool(result.masks) == RECIPES[recipe].prunes
    if recipe == "b":
        assert {"L_GC", "L_DC", "gen", "rec", "output", "D"} <= set(result.history[0]["terms"])
    assert same(before, state_of(task.generator, task.discriminator))


def test_eq_9_begins_at_zero_although_dropout_is_live():
    reading = Reading(adversarial_weight=0.0)
    history = Trainer(tiny_with_dropout(), config("b", sparsity=0.0, reading=reading)).run().history
    assert history[0]["terms"] | {"D": 0.0} == dict.fromkeys(history[0]["terms"], 0.0)
    assert history[1]["terms"]["L_GC"] == 0.0, "there was nothing to learn in the first step"


def test_resuming_repeats_the_bits(tmp_path):
    settings = config("b", steps=4, save_every=2, ema=0.9)
    straight = Trainer(tiny_with_dropout(), settings).run()
    resumed = stopped_and_resumed(tiny_with_dropout, settings, tmp_path, after=2)
    assert resumed.step == 2
    result = resumed.run()
    assert same(
        state_of(straight.generator, straight.discriminator),
        state_of(result.generator, result.discriminator),
    )
    assert result.history == straight.history


def test_noise_belongs_to_the_batch():
    task = tiny_with_dropout()
    torch.manual_seed(3)
    global_state = torch.get_rng_state()
    fakes = [task.generate(task.generator, task.batch(step)) for step in (0, 0, len(Domains()))]
    assert torch.equal(global_state, torch.get_rng_state())
    assert task.batch(0)["noise"].shape == (2,), "so that processes can share the batch"
    assert torch.equal(fakes[0], fakes[1])
    assert torch.equal(task.batch(0)["a"], task.batch(2)["a"])
    assert not torch.equal(fakes[0], fakes[2]), "dropout is not live, or this test shows nothing"


def test_scored_are_all_test_pictures_each_by_its_own_statistics():
    nets = {"generator": UNetGenerator(ngf=4, num_downs=6, dropout=False).eval()}
    made = []
    for batch_size in (1, 2, 5):
        test_set = Domains(5, batch_size, size=64)
        (view,) = tiny(Domains(size=64), test_set, **nets).views
        assert view.num_samples == 5
        assert torch.equal(torch.cat(list(view.pictures())), test_set.pictures["b"])
        made.append(torch.cat(list(generated(view, nets["generator"], 5))))
        shown, batch = view.beside(view.batch(0)), test_set(0)
        assert torch.equal(shown["input"], batch["a"])
        assert torch.equal(shown["truth"], batch["b"])
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_scores_repeat_with_dropout():
    task = tiny(Domains(size=64), Domains(3, 2, size=64), num_downs=6)
    (view,) = task.views
    first, again = (torch.cat(list(generated(view, task.generator.eval(), 3))) for _ in range(2))
    assert torch.equal(first, again)


def test_random_networks_begin_as_the_originals():
    generator = UNetGenerator(ngf=8, num_downs=5).live_in_eval(False)
    discriminator = PatchGANDiscriminator(6, ndf=8)
    for net in (generator, discriminator):
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.fill_(7.0)
    task = tiny(generator=generator, discriminator=discriminator)
    for old, new in (
        (generator, task.fresh_generator()),
        (discriminator, task.fresh_discriminator()),
    ):
        assert not same(state_of(old), state_of(new))
        kernels = torch.cat(
            [m.weight.detach().flatten() for m in new.modules() if hasattr(m, "kernel_size")]
        )
        # Five standard errors of a mean and of a standard deviation.
        allowed = 5 * 0.02 / math.sqrt(kernels.numel())
        assert abs(float(kernels.mean())) < allowed
        assert abs(float(kernels.std()) - 0.02) < allowed / math.sqrt(2)
        norms = [m for m in new.modules() if isinstance(m, nn.BatchNorm2d)]
        assert norms
        assert all(not m.running_mean.any() for m in norms)
    assert not any(getattr(m, "live", False) for m in task.fresh_generator().modules())


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_small_generator_is_like_the_dense_one_but_narrower(norm):
    generator = UNetGenerator(1, 2, 16, num_downs=6, norm=norm).live_in_eval(False)
    task = tiny(Domains(channels=(1, 2)), generator=generator)
    dense = sum(p.numel() for p in generator.parameters())
    with torch.device("meta"):
        widths = {n: UNetGenerator(1, 2, n, num_downs=6, norm=norm) for n in range(1, 17)}
    counts = {ngf: sum(p.numel() for p in net.parameters()) for ngf, net in widths.items()}
    for share in (0.01, 0.25, 0.5, 0.9, 1.0):
        small = task.small_generator(share)
        nearest = min(counts, key=lambda ngf, share=share: abs(counts[ngf] - share * dense))
        assert sum(p.numel() for p in small.parameters()) == counts[nearest]
    assert repr(small) == repr(generator)
    assert not any(getattr(m, "live", False) for m in small.modules())


def test_networks_fit_the_pictures():
    task = tiny(Domains(channels=(1, 3)), patch_layers=0)
    batch = task.batch(0)
    fake = task.generate(task.generator, batch)
    assert fake.shape == (2, 3, 32, 32)
    assert isinstance(task.discriminator, PixelDiscriminator)
    assert task.judge(task.discriminator, fake, batch).shape == (2, 1, 32, 32)
    assert (task.g_first, task.pool_size, task.lr_decay, task.lr) == (False, 0, "half", 2e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gan_mode": "hinge"}, "gan_mode must be one of vanilla, lsgan, wgan, got 'hinge'"),
        ({"pool_size": 50}, "pix2pix: pool_size must be 0"),
        ({"num_downs": 3}, "num_downs must be at least 5, got 3"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        tiny(**options)
