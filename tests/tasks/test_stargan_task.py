# SPDX-License-Identifier: Apache-2.0
"""Task StarGAN against its original's formulas, written out a second time, and in the trainer."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from gansparse.compress import RECIPES, Reading, TrainConfig, Trainer
from gansparse.compress.objectives import Made, Objective
from gansparse.compress.recipes import get_recipe
from gansparse.data.batches import Batches
from gansparse.data.labelled import LabelledPictures
from gansparse.errors import InputError
from gansparse.metrics.evaluation import real_moments, score_generator
from gansparse.metrics.features import module_extractor
from gansparse.models.stargan import StarGANDiscriminator, StarGANGenerator
from gansparse.tasks.gan import detached
from gansparse.tasks.loading import load_task
from gansparse.tasks.stargan import domain_loss, gradient_penalty, stargan_task, target_labels

COLOURS = torch.tensor([[230, 30, 30], [30, 230, 30], [30, 30, 230]], dtype=torch.uint8)


def coloured(count: int = 24, size: int = 16) -> LabelledPictures:
    """Noisy squares in three colours; the colour is the class."""
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 25, (count, 3, size, size), generator=rng).to(torch.uint8)
    return LabelledPictures(COLOURS[labels][:, :, None, None] + noise, labels, augment=False)


class Attributes:
    """Two hair colours and a third attribute, in memory."""

    label_names = ("Black_Hair", "Blond_Hair", "Male")
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]] * 2)
    augment = False

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, index: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        image = torch.full((3, 16, 16), index / 8.0)
        return {"image": image, "label": self.labels[index]}


def tiny(**options):
    torch.manual_seed(1234)
    samples = coloured()
    sizes = {"conv_dim": 4, "g_repeat_num": 1, "d_repeat_num": 3}
    return stargan_task(Batches(samples, 6, seed=0), samples, **sizes | options)


def tiny_attributes(**options):
    torch.manual_seed(1234)
    samples = Attributes()
    sizes = {"conv_dim": 4, "g_repeat_num": 1, "d_repeat_num": 3}
    return stargan_task(Batches(samples, 4, seed=0), samples, **sizes | options)


def config(recipe: str, **changes) -> TrainConfig:
    settings = {"steps": 10, "sparsity": 0.5, "save_every": 0, "log_every": 1, "lr": 1e-3}
    return TrainConfig(recipe=recipe, **settings | changes)


def parameters(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


# ---- Terms ---------------------------------------------------------------------------------------


def plain_cross_entropy(logits, label, classes):
    if classes:
        return -(logits.exp() / logits.exp().sum()).log()[int(label.argmax())]
    p = 1 / (1 + (-logits).exp())
    return -sum(
        float(y) * q.log() + (1 - float(y)) * (1 - q).log() for q, y in zip(p, label, strict=True)
    )


@pytest.mark.parametrize("make", [tiny, tiny_attributes])
def test_terms_are_the_originals_formulas(make) -> None:
    task = make()
    classes = make is tiny
    batch = task.batch(3)
    fake = task.generate(task.generator, batch)
    judged_real, judged = (task.judge(task.discriminator, x, batch) for x in (batch["real"], fake))
    terms = task.generator_terms(judged, fake, batch)
    terms |= task.discriminator_terms(judged_real, judged, batch)
    terms |= {"own cla": task.real_terms(judged_real, batch)["cla"]}
    terms |= task.penalty_terms(task.discriminator, fake, batch)
    count = batch["real"].shape[0]
    assert {name: tuple(values.shape) for name, values in terms.items()} == dict.fromkeys(
        ["gen", "cla", "rec", "dis", "own cla", "gp"], (count,)
    )
    assert torch.equal(fake["fake"], task.generator(batch["real"], batch["target"]))
    assert torch.equal(fake["rec"], task.generator(fake["fake"], batch["label"]))
    for i in range(count):
        real, made, rec = (x[i].detach().double() for x in (batch["real"], *fake.values()))
        (source_r, domains_r), (source_f, domains_f) = (
            [x[0].detach().double() for x in task.discriminator(picture[None].float())]
            for picture in (real, made)
        )
        epsilon = batch["epsilon"][i].double()
        between = (epsilon * real + (1 - epsilon) * made)[None].float().requires_grad_()
        (slope,) = torch.autograd.grad(task.discriminator(between)[0].sum(), between)
        want = {
            "gen": -source_f.mean(),
            "cla": plain_cross_entropy(domains_f, batch["target"][i], classes),
            "rec": (real - rec).abs().mean(),
            "dis": source_f.mean() - source_r.mean(),
            "own cla": plain_cross_entropy(domains_r, batch["label"][i], classes),
            "gp": (slope.double().square().sum().sqrt() - 1) ** 2,
        }
        for name, value in want.items():
            assert terms[name][i].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-6), name


def test_weights_and_training_are_the_originals() -> None:
    task = tiny()
    assert dict(task.weights) == {"cla": 1.0, "rec": 10.0, "gp": 10.0}
    assert (task.lr, task.betas, task.lr_decay, task.g_every) == (1e-4, (0.5, 0.999), "half", 5)
    assert not task.g_first
    assert task.steps_per_epoch == 4


def test_targets_are_the_batchs_labels_in_another_order() -> None:
    task, again, other = tiny(), tiny(), tiny(seed=1)
    orders = set()
    for step in range(6):
        batch = task.batch(step)
        assert torch.equal(batch["label"].sum(0), batch["target"].sum(0))
        assert all(torch.equal(value, again.batch(step)[key]) for key, value in batch.items())
        assert not torch.equal(batch["epsilon"], other.batch(step)["epsilon"])
        assert float(batch["epsilon"].min()) >= 0.0
        assert float(batch["epsilon"].max()) <= 1.0
        orders.add(tuple(batch["target"].argmax(1).tolist()))
    assert len(orders) == 6


# ---- The gradient penalty ------------------------------------------------------------------------


class Linear(nn.Module):
    """Its gradient is its weight, everywhere."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        return (images.flatten(1) @ self.weight)[:, None, None, None], images.new_zeros(1, 1)


class Curved(nn.Module):
    """A smooth discriminator in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1).double()
        self.last = nn.Conv2d(3, 1, 2, 2).double()

    def forward(self, images):
        return self.last(torch.tanh(self.first(images))), images.new_zeros(1, 1)


def test_penalty_of_a_plane_is_its_slopes() -> None:
    discriminator = Linear(torch.tensor([3.0, 4.0, 0.0, 0.0]))
    batch = {"real": torch.randn(2, 1, 2, 2), "epsilon": torch.rand(2, 1, 1, 1)}
    penalty = gradient_penalty(discriminator, torch.randn(2, 1, 2, 2), batch)
    assert penalty.tolist() == [16.0, 16.0]
    penalty.mean().backward()  # d/dw (|w| - 1)² = 2 (|w| - 1) w / |w|
    torch.testing.assert_close(discriminator.weight.grad, torch.tensor([4.8, 6.4, 0.0, 0.0]))


def test_penalty_of_no_slope_has_a_gradient() -> None:
    discriminator = Linear(torch.zeros(4))
    batch = {"real": torch.randn(2, 1, 2, 2), "epsilon": torch.rand(2, 1, 1, 1)}
    gradient_penalty(discriminator, torch.randn(2, 1, 2, 2), batch).mean().backward()
    assert bool(torch.isfinite(discriminator.weight.grad).all())


def test_penaltys_gradients_match_finite_differences() -> None:
    """With respect to the generator's output, through D's own gradient, and to D's weights."""
    torch.manual_seed(0)
    discriminator = Curved()
    weight = discriminator.first.weight
    real, fake = torch.randn(2, 2, 2, 4, 4, dtype=torch.float64).unbind()
    batch = {"real": real, "epsilon": torch.rand(2, 1, 1, 1, dtype=torch.float64)}

    def of_fake(fake):
        return gradient_penalty(discriminator, fake, batch)

    def of_weight(value):
        bound = {"first.weight": value}

        def judge(images):
            return torch.func.functional_call(discriminator, bound, (images,))

        return gradient_penalty(judge, fake, batch)

    assert torch.autograd.gradcheck(of_fake, (fake.clone().requires_grad_(),))
    assert torch.autograd.gradcheck(of_weight, (weight.detach().clone().requires_grad_(),))


def test_penalty_within_no_grad_has_the_same_value_and_no_graph() -> None:
    task = tiny()
    batch = task.batch(0)
    fake = detached(task.generate(task.generator, batch))
    with_graph = task.penalty_terms(task.discriminator, fake, batch)["gp"]
    with torch.no_grad():
        without = task.penalty_terms(task.discriminator, fake, batch)["gp"]
    assert with_graph.requires_grad
    assert not without.requires_grad
    assert torch.equal(with_graph, without)


def test_penalty_is_computed_in_float32_under_autocast() -> None:
    task = tiny()
    batch = task.batch(0)
    fake = {"fake": torch.rand_like(batch["real"]).to(torch.bfloat16)}
    plain = task.penalty_terms(task.discriminator, fake, batch)["gp"]
    with torch.autocast("cpu", torch.bfloat16):
        assert task.discriminator(batch["real"])[0].dtype == torch.bfloat16
        within = task.penalty_terms(task.discriminator, fake, batch)["gp"]
    assert within.dtype == torch.float32
    assert torch.equal(within, plain)


def test_both_paths_of_eq_8_take_the_penalty_at_the_same_places() -> None:
    task = tiny()
    batch = task.batch(0)
    objective = Objective(task, get_recipe("b"), config("b"), "fixed")
    fake = task.generate(task.generator, batch)
    losses = objective.g_losses(task.discriminator, batch, Made(detached(fake), fake))
    assert losses["L_GC"].item() == losses["L_DC"].item() == 0.0
    moved = {**batch, "epsilon": 1 - batch["epsilon"]}
    penalties = [
        task.penalty_terms(task.discriminator, fake, places)["gp"] for places in (batch, moved)
    ]
    assert not torch.equal(*penalties)


@pytest.mark.parametrize("key", ["h", "j"])
def test_the_penalty_lies_between_what_d_tells_apart(key) -> None:
    """Real pictures and G_C's; for technique j, whose D takes G_O's for the real ones, those."""
    task = tiny()
    batch = {name: value.double() for name, value in task.batch(0).items()}
    discriminator, generator = task.discriminator.double(), task.generator.double()
    fake_o = detached(task.generate(generator, batch))
    fake_c = {"fake": torch.rand_like(batch["real"])}
    objective = Objective(task, get_recipe(key), config(key), "adversarial-compressed")
    found = objective.d_loss(discriminator, batch, fake_o, fake_c)
    real = fake_o["fake"] if key == "j" else batch["real"]
    places = batch["epsilon"] * real + (1 - batch["epsilon"]) * fake_c["fake"]
    slopes = [torch.func.grad(lambda x: discriminator(x[None])[0].sum())(x) for x in places]
    penalty = torch.stack([(slope.square().sum().sqrt() - 1) ** 2 for slope in slopes]).mean()
    source_real, source = (discriminator(pictures)[0].mean() for pictures in (real, fake_c["fake"]))
    _, domains = discriminator(batch["real"])
    own = domain_loss(domains, batch["label"], classes=True).mean()
    torch.testing.assert_close(found, source - source_real + 10.0 * penalty + own)


# ---- Labels and views ----------------------------------------------------------------------------


def test_one_hair_colour_at_a_time() -> None:
    names = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")
    label = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]])
    want = [[1, 0, 0, 1, 0], [0, 1, 0, 1, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 1, 0, 1, 1]]
    got = [target_labels(label, i, names, False).int().tolist()[0] for i in range(5)]
    assert got == want
    assert target_labels(label, 3, names, True).int().tolist() == [[0, 0, 0, 1, 0]]
    assert label.tolist() == [[0.0, 1.0, 0.0, 1.0, 0.0]]


def test_views_translate_all_others_into_each_domain() -> None:
    task = tiny()
    assert [view.name for view in task.views] == ["0", "1", "2"]
    for number, view in enumerate(task.views):
        assert view.num_samples == 16
        batch = view.batch(0)
        assert batch["target"].tolist() == torch.eye(3)[[number] * 16].tolist()
        assert set(batch["real"].mean((2, 3)).argmax(1).tolist()) == {0, 1, 2} - {number}
        real = torch.cat(list(view.pictures()))
        assert real.shape == (8, 3, 16, 16)
        assert set(real.mean((2, 3)).argmax(1).tolist()) == {number}
        assert torch.equal(
            view.make(task.generator, batch), task.generator(batch["real"], batch["target"])
        )


def test_attribute_views_change_only_their_attribute() -> None:
    views = {view.name: view for view in tiny_attributes().views}
    assert {name: view.num_samples for name, view in views.items()} == {
        "Black_Hair": 4,
        "Blond_Hair": 6,
        "Male": 4,
    }
    assert views["Black_Hair"].batch(0)["target"].tolist() == [[1, 0, 1], [1, 0, 0]] * 2
    assert views["Male"].batch(0)["target"].tolist() == [[0, 0, 1], [1, 0, 1]] * 2


class Painter(nn.Module):
    """Gives each picture the mean colour of the domain asked for, or of the next one."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, images, labels):
        colours = (COLOURS.float() + 12.0) / 127.5 - 1.0
        wanted = colours[(labels.argmax(1) + self.shift) % 3]
        mean = images.mean((2, 3), keepdim=True)
        return images - mean + wanted[:, :, None, None]


def test_a_translator_is_scored_against_the_real_pictures_of_the_domain() -> None:
    extractor = module_extractor("colour", lambda x: x.mean((2, 3)), 3)
    for view in tiny().views:
        real = real_moments(view.pictures, extractor)
        good, bad = (score_generator(view, Painter(s), real, extractor) for s in (0, 1))
        assert good.num_real == view.num_pictures == 8
        assert good.num_fake == 16
        assert good.fid < 0.01
        assert bad.fid > 1.0


# ---- Training ------------------------------------------------------------------------------------


def test_g_learns_in_every_fifth_step_only() -> None:
    trainer = Trainer(tiny(), config("a", steps=11, ema=0.0))
    before = {"g": parameters(trainer.g_c), "d": parameters(trainer.d)}
    changed = []

    def watch(row):
        g, d = parameters(trainer.g_c), parameters(trainer.d)
        assert not all(map(torch.equal, d, before["d"]))
        changed.append(not all(map(torch.equal, g, before["g"])))
        assert (row["loss"] is not None) == changed[-1]
        before.update(g=g, d=d)

    trainer.run(watch)
    assert changed == [step % 5 == 4 for step in range(11)]


@pytest.mark.parametrize("make", [tiny, tiny_attributes])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_trainer_runs_it(make, recipe: str) -> None:
    task = make()
    result = Trainer(task, config(recipe)).run()
    assert [row["step"] for row in result.history] == [4, 9]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in result.history)
    count = sum(int(p.count_nonzero()) for p in result.generator.parameters())
    dense = sum(p.numel() for p in task.generator.parameters())
    assert count < (0.75 if recipe not in "am" else 1.0) * dense + 1
    with torch.no_grad():
        picture = task.views[0].make(result.generator, task.views[0].batch(0))
    assert picture.shape[1:] == (3, 16, 16)


@pytest.mark.parametrize("d_update", ["consistency", "adversarial-original"])
def test_the_readings_run(d_update: str) -> None:
    reading = Reading(d_update=d_update, feature_weight=0.5)
    result = Trainer(tiny(), config("b", reading=reading, precision="bf16")).run()
    assert {"L_GC", "L_DC", "gen", "cla", "rec", "features", "D"} <= set(
        result.history[-1]["terms"]
    )


def test_training_tells_d_the_domains() -> None:
    """The classifier of D, trained on real pictures alone, learns the three colours."""
    task = tiny(n_critic=100)
    result = Trainer(task, config("a", steps=60, lr=5e-3)).run()
    batch = task.batch(70)
    logits = task.judge(result.discriminator, batch["real"], batch)[1]
    assert domain_loss(logits, batch["label"], True).mean().item() < 0.5  # by chance log 3 = 1.1


def test_a_run_stopped_between_two_steps_of_g_ends_with_the_same_bits(tmp_path) -> None:
    class Stopped(Exception):
        pass

    def stop(row):
        if row["step"] == 8:
            raise Stopped

    settings = config("b", steps=13, save_every=7)
    whole = Trainer(tiny(), settings).run()
    with pytest.raises(Stopped):
        Trainer(tiny(), settings, out=tmp_path).run(stop)
    second = Trainer(tiny(), settings, out=tmp_path, resume=True)
    assert second.step == 7
    resumed = second.run()
    for a, b in (
        (whole.generator, resumed.generator),
        (whole.discriminator, resumed.discriminator),
    ):
        values = b.state_dict()
        assert all(torch.equal(value, values[name]) for name, value in a.state_dict().items())
    assert resumed.history == whole.history


def test_new_and_small_generators() -> None:
    torch.manual_seed(0)
    task = tiny(generator=StarGANGenerator(16, 3, 2))
    dense = sum(p.numel() for p in task.generator.parameters())
    new = task.fresh_generator()
    assert new.state_dict().keys() == task.generator.state_dict().keys()
    assert not torch.equal(new.main[0].weight, task.generator.main[0].weight)
    for share in (0.5, 0.25):
        small = task.small_generator(share)
        counts = [
            sum(p.numel() for p in StarGANGenerator(width, 3, 2).parameters())
            for width in range(1, 17)
        ]
        count = sum(p.numel() for p in small.parameters())
        assert count == min(counts, key=lambda c: abs(c - share * dense))
    before = copy.deepcopy(task.discriminator.state_dict())
    assert not torch.equal(task.fresh_discriminator().conv1.weight, before["conv1.weight"])
    assert torch.equal(task.discriminator.conv1.weight, before["conv1.weight"])


# ---- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"generator": StarGANGenerator(4, 5, 1)},
            "the StarGANGenerator has c_dim 5, but the data 3",
        ),
        (
            {"discriminator": StarGANDiscriminator(16, 4, 8, 3)},
            "the StarGANDiscriminator has c_dim 8, but the data 3",
        ),
        (
            {"discriminator": StarGANDiscriminator(32, 4, 3, 3)},
            "the StarGANDiscriminator has image_size 32, but the data 16",
        ),
        (
            {"generator": StarGANGenerator(4, 3, 1, nc=1)},
            "the generator makes 1 channels, but the data has 3",
        ),
        ({"generator": nn.Identity()}, "needs a StarGANGenerator, got a Identity"),
    ],
)
def test_networks_that_do_not_fit_are_refused(options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny(**options)


def test_attributes_are_not_taken_for_classes() -> None:
    task = tiny_attributes(classes=True)
    with pytest.raises(InputError, match="labels must hold one class each"):
        task.batch(0)


def test_a_domain_without_pictures_is_named() -> None:
    samples = coloured(6)
    samples.labels[:, 1] = 0.0
    with pytest.raises(InputError, match="domain 1 can't be scored: the test set has 0 pictures"):
        stargan_task(Batches(coloured(6), 6, seed=0), samples, conv_dim=4, d_repeat_num=3)


def test_a_task_without_a_test_set_trains() -> None:
    task = stargan_task(Batches(coloured(), 6, seed=0), conv_dim=4, g_repeat_num=1, d_repeat_num=3)
    assert task.views == ()
    assert Trainer(task, replace(config("a"), steps=5)).run().history


def test_a_test_set_of_other_classes_is_refused(tmp_path):
    """Its classes stand where they stand in training; before, they were counted anew."""
    for place in ("train/a", "train/b", "train/c", "test/b", "test/c", "test/d"):
        (tmp_path / place).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (32, 32), (60 * index, 9, 9)).save(tmp_path / place / f"{index}.png")
    with pytest.raises(InputError, match="test: needs a folder a with the pictures of this class"):
        load_task("stargan", tmp_path, image_size=32, batch_size=2, num_workers=0)
