# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch
from domains import Domains, config, same, state_of, stopped_and_resumed
from torch import nn
from torch.nn.functional import l1_loss

from gansparse.compress import RECIPES, Reading, Trainer
from gansparse.compress.start import place
from gansparse.errors import InputError
from gansparse.files import load_tensors
from gansparse.metrics.evaluation import generated
from gansparse.models import PatchGANDiscriminator, ResNetGenerator, load_generator
from gansparse.tasks.cyclegan import cyclegan_task
from gansparse.testing import close


def pair(ngf=4, ndf=4, **options):
    """Networks of both directions and both domains, their weights fixed."""
    torch.manual_seed(11)
    generators = {n: ResNetGenerator(ngf=ngf, num_blocks=1, **options) for n in ("a2b", "b2a")}
    critics = {name: PatchGANDiscriminator(ndf=ndf, norm="instance") for name in "ab"}
    return {"generator": nn.ModuleDict(generators), "discriminator": nn.ModuleDict(critics)}


def tiny(direction="both", batches=None, evaluation=None, **options):
    return cyclegan_task(
        batches or Domains(), evaluation, **{**pair(), "direction": direction, **options}
    )


def lsgan(logits, target):
    return (logits - target).square().mean()


@pytest.mark.parametrize("direction", ["both", "AtoB", "BtoA"])
@pytest.mark.parametrize("identity", [0.5, 0.0])
def test_terms_are_the_originals_for_each_sample(direction, identity):
    nets, task = pair(), tiny(direction, identity=identity)
    batch = task.batch(0)
    fake = task.generate(task.generator, batch)
    judged_real = task.judge(task.discriminator, task.real(batch), batch)
    judged_fake = task.judge(task.discriminator, fake, batch)
    terms = task.generator_terms(judged_fake, fake, batch)
    terms |= task.discriminator_terms(judged_real, judged_fake, batch)

    # The originals' names: G_A paints B, and D_A judges what it paints.
    g_a, g_b = nets["generator"]["a2b"], nets["generator"]["b2a"]
    d_a, d_b = nets["discriminator"]["b"], nets["discriminator"]["a"]
    real_a, real_b = batch["a"], batch["b"]
    fake_b, fake_a = g_a(real_a), g_b(real_b)
    cycles = [(g_b(fake_b), real_a), (g_a(fake_a), real_b)]
    ways = {"AtoB": (d_a, fake_b, real_b, g_a), "BtoA": (d_b, fake_a, real_a, g_b)}
    used = list(ways.values()) if direction == "both" else [ways[direction]]
    for sample in range(2):
        want = dict.fromkeys(("gen", "rec", "dis"), torch.zeros((), dtype=torch.float64))
        for out, target in cycles:
            want["rec"] = want["rec"] + l1_loss(out[sample].double(), target[sample].double())
        for d, painted, real, g in used:
            said, of_real = d(painted)[sample].double(), d(real)[sample].double()
            want["gen"] = want["gen"] + lsgan(said, 1)
            want["dis"] = want["dis"] + 0.5 * (lsgan(said, 0) + lsgan(of_real, 1))
            kept = l1_loss(g(real)[sample].double(), real[sample].double())
            want["rec"] = want["rec"] + identity * kept
        for name, value in want.items():
            assert terms[name].shape == (2,)
            close(terms[name][sample], value, terms=real_a[sample].numel(), name=name)
    assert (task.weight("gen"), task.weight("rec"), task.weight("dis")) == (1.0, 10.0, 1.0)


def test_training_is_the_originals_loop():
    """Three steps: G first, one Adam for both; D on the fakes that G learned from."""
    task = tiny()
    task.train_further()
    g, d = (place(copy.deepcopy(net), torch.device("cpu")) for net in pair().values())
    settings = {"lr": 2e-4, "betas": (0.5, 0.999)}
    opt_g, opt_d = (torch.optim.Adam(net.parameters(), **settings) for net in (g, d))
    want = []
    for step in range(3):
        for optimizer in (opt_g, opt_d):
            optimizer.param_groups[0]["lr"] = 2e-4 * min(1.0, 2.0 - 2.0 * step / 3)
        batch = Domains()(step)
        a, b = batch["a"], batch["b"]
        fake_b, fake_a = g["a2b"](a), g["b2a"](b)
        gen = lsgan(d["b"](fake_b), 1) + lsgan(d["a"](fake_a), 1)
        rec = 10 * (l1_loss(g["b2a"](fake_b), a) + l1_loss(g["a2b"](fake_a), b))
        rec = rec + 10 * 0.5 * (l1_loss(g["a2b"](b), b) + l1_loss(g["b2a"](a), a))
        opt_g.zero_grad()
        (gen + rec).backward()
        opt_g.step()
        loss_d = sum(
            0.5 * (lsgan(d[name](real), 1) + lsgan(d[name](fake.detach()), 0))
            for name, real, fake in (("b", b, fake_b), ("a", a, fake_a))
        )
        opt_d.zero_grad()
        loss_d.backward()
        opt_d.step()
        want.append({"D": loss_d.item(), "gen": gen.item(), "rec": rec.item()})

    history = Trainer(task, config("a")).run().history
    for row, terms in zip(history, want, strict=True):
        for name, value in terms.items():
            got, truth = torch.tensor(row["terms"][name]), torch.tensor(value).double()
            close(got, truth, terms=a.numel(), name=f"step {row['step']}: {name}")


@pytest.mark.parametrize("direction", ["both", "BtoA"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_techniques_train(recipe, direction):
    nets = pair()
    before = state_of(*nets.values())
    task = tiny(direction, **nets)
    result = Trainer(task, config(recipe)).run()
    assert len(result.history) == 3
    assert all(math.isfinite(row["loss"]) for row in result.history)
    for name, mask in result.masks.items():
        assert int((~mask).sum()) == round(0.5 * mask.numel())
        assert int(torch.count_nonzero(result.generator.get_parameter(name)[~mask])) == 0
    assert bool(result.masks) == RECIPES[recipe].prunes
    if recipe == "b":
        assert {"L_GC", "L_DC", "gen", "rec", "output", "D"} <= set(result.history[0]["terms"])
    assert same(before, state_of(*nets.values())), "the networks given are left as they were"
    parameters = [p for net in nets.values() for p in net.parameters()]
    assert all(p.requires_grad and p.grad is None for p in parameters)


def test_one_direction_is_one_network_and_its_file_a_generators(tmp_path):
    nets = pair()
    task = tiny("AtoB", **nets)
    assert task.generator is nets["generator"]["a2b"]
    assert task.discriminator is nets["discriminator"]["b"]
    assert set(task.generate(task.generator, task.batch(0))) == {
        "fake_b",
        "rec_a",
        "rec_b",
        "idt_b",
    }
    result = Trainer(task, config("b"), out=tmp_path).run()
    loaded = load_generator(tmp_path / "generator.safetensors")
    assert isinstance(loaded, ResNetGenerator)
    assert same([load_tensors(tmp_path / "generator.safetensors")[0]], state_of(result.generator))


def test_the_partner_stands_still_but_lets_gradients_through():
    """G_C's gradient of both cycles is that of a2b when both are trained."""
    gradients = []
    for direction in ("both", "AtoB"):
        task = tiny(direction, identity=0.0)
        batch = task.batch(0)
        fake = task.generate(task.generator, batch)
        task.generator_terms({"fake_b": torch.zeros(2, 1, 2, 2)}, fake, batch)[
            "rec"
        ].sum().backward()
        net = task.generator["a2b"] if direction == "both" else task.generator
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))
    assert gradients[0][0].any()


def test_the_partner_lies_in_torchs_own_layout():
    """In channels_last its norms' gradients are wrong on the CPU; a trained pair may lie so."""
    given = pair()
    given["generator"].to(memory_format=torch.channels_last)
    task = cyclegan_task(Domains(), None, **given, direction="AtoB", identity=0.0)
    plain = cyclegan_task(Domains(), None, **pair(), direction="AtoB", identity=0.0)
    found = []
    for each in (task, plain):
        batch = {key: value[:1] for key, value in each.batch(0).items()}
        net = copy.deepcopy(each.generator).to(memory_format=torch.contiguous_format)
        fake = each.generate(net, batch)
        each.generator_terms({"fake_b": torch.zeros(1, 1, 2, 2)}, fake, batch)["rec"].backward()
        found.append([parameter.grad for parameter in net.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_eq_9_begins_at_zero():
    reading = Reading(adversarial_weight=0.0)
    for direction in ("both", "AtoB"):
        run = Trainer(tiny(direction), config("b", sparsity=0.0, reading=reading)).run()
        assert run.history[0]["terms"] | {"D": 0.0} == dict.fromkeys(run.history[0]["terms"], 0.0)


def test_resuming_repeats_the_bits_pool_included(tmp_path):
    def make_task():
        return tiny(pool_size=2)

    settings = config("b", steps=4, save_every=2, ema=0.9)
    straight = Trainer(make_task(), settings).run()
    nets = state_of(straight.generator, straight.discriminator)
    resumed = stopped_and_resumed(make_task, settings, tmp_path, after=2)
    assert resumed.step == 2
    result = resumed.run()
    assert same(nets, state_of(result.generator, result.discriminator))
    assert result.history == straight.history

    without = stopped_and_resumed(make_task, settings, tmp_path / "again", after=2)
    without.pool.kept = {name: value.flip(0) for name, value in without.pool.kept.items()}
    result = without.run()
    assert not same(nets, state_of(result.generator, result.discriminator)), (
        "no older fake was shown"
    )


def test_only_d_sees_older_fakes():
    task = tiny(batches=Domains(6, 1), pool_size=2)
    made, shown = [], {True: [], False: []}  # what G was judged by, what D learned from
    generate, judge = task.generate, task.judge

    def recording_generate(generator, batch):
        made.append(generate(generator, batch))
        return made[-1]

    def recording_judge(discriminator, images, batch):
        if "rec_a" in images:
            shown[images["fake_b"].requires_grad].append(images["fake_b"].detach())
        return judge(discriminator, images, batch)

    trainer = Trainer(task, config("a", steps=6))
    task.generate, task.judge = recording_generate, recording_judge
    trainer.run()
    fresh = [fake["fake_b"].detach() for fake in made]
    assert all(torch.equal(x, y) for x, y in zip(shown[True], fresh, strict=True))
    old = [not torch.equal(x, y) for x, y in zip(shown[False], fresh, strict=True)]
    assert old[:2] == [False, False]
    assert any(old)
    for step, picture in enumerate(shown[False]):
        assert any(torch.equal(picture, earlier) for earlier in fresh[: step + 1])


@pytest.mark.parametrize(
    ("direction", "order", "names"),
    [
        ("both", "ab ba", ["a to b", "b to a"]),
        ("AtoB", "ab", ["a to b"]),
        ("BtoA", "ba", ["b to a"]),
    ],
)
def test_views_score_each_direction_by_its_own_network(direction, order, names):
    test_set = Domains(5, 2)
    nets = pair()
    task = tiny(direction, evaluation=test_set, test_sizes=(3, 5), **nets)
    assert [view.name for view in task.views] == names
    assert [view.num_samples for view in task.views] == [
        {"a": 3, "b": 5}[o[0]] for o in order.split()
    ]
    for view, (source, target) in zip(task.views, order.split(), strict=True):
        count = {"a": 3, "b": 5}
        parts = list(view.pictures())
        assert all(len(part) for part in parts)
        real = torch.cat(parts)
        assert torch.equal(real, test_set.pictures[target][: count[target]])
        made = torch.cat(list(generated(view, task.generator, count[source])))
        with torch.no_grad():
            net = nets["generator"][f"{source}2{target}"]
            whole = torch.cat([net(test_set(index)[source]) for index in range(3)])
        assert torch.equal(made, whole[: count[source]])
        assert torch.equal(view.beside(view.batch(0))["input"], test_set(0)[source])


def test_without_sizes_every_test_picture_counts():
    (view,) = tiny("AtoB", evaluation=Domains(5, 2)).views
    assert (view.num_samples, sum(len(part) for part in view.pictures())) == (5, 5)


def test_random_networks_begin_as_the_originals():
    task = cyclegan_task(Domains(channels=(1, 3)), ngf=8, ndf=8, num_blocks=1, identity=0.0)
    assert task.generate(task.generator, task.batch(0))["fake_a"].shape == (2, 1, 32, 32)
    for old, new in (
        (task.generator, task.fresh_generator()),
        (task.discriminator, task.fresh_discriminator()),
    ):
        assert repr(old) == repr(new)
        assert not same(state_of(old), state_of(new))
        kernels = torch.cat([p.detach().flatten() for p in new.parameters() if p.ndim == 4])
        allowed = 5 * 0.02 / math.sqrt(kernels.numel())  # five standard errors
        assert abs(float(kernels.mean())) < allowed
        assert abs(float(kernels.std()) - 0.02) < allowed / math.sqrt(2)
        assert not any(p.any() for p in new.parameters() if p.ndim == 1)
    settings = (task.g_first, task.fresh_fakes, task.pool_size, task.lr_decay, task.lr, task.betas)
    assert settings == (True, False, 50, "half", 2e-4, (0.5, 0.999))


@pytest.mark.parametrize("direction", ["both", "AtoB"])
def test_the_small_generator_is_like_the_dense_one_but_narrower(direction):
    nets = pair(ngf=12, dropout=True)
    task = tiny(direction, **nets)

    def count(module):
        return sum(p.numel() for p in module.parameters())

    counts = [count(ResNetGenerator(ngf=ngf, num_blocks=1)) for ngf in range(1, 13)]
    nets_in_it = 2 if direction == "both" else 1
    for share in (0.05, 0.25, 0.5, 1.0):
        small = task.small_generator(share)
        nearest = min(counts, key=lambda c, share=share: abs(c - share * counts[-1]))
        assert count(small) == nets_in_it * nearest
    assert repr(small) == repr(task.generator)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batches": Domains(channels=(1, 3)), "generator": None},
            "a has 1 channels and b has 3: the identity term compares them; give identity=0",
        ),
        ({"direction": "AB"}, "direction must be one of both, AtoB, BtoA, got 'AB'"),
        ({"gan_mode": "hinge"}, "gan_mode must be one of vanilla, lsgan, wgan, got 'hinge'"),
        (
            {"direction": "AtoB", "generator": None},
            "direction 'AtoB' needs trained generators: give generator=",
        ),
        (
            {"generator": nn.ModuleDict({"A": nn.Identity()})},
            r"generator must be an nn.ModuleDict of 'a2b' and 'b2a', got \['A'\]",
        ),
        ({"discriminator": nn.Identity()}, "nn.ModuleDict of 'a' and 'b', got Identity"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        tiny(**options)
