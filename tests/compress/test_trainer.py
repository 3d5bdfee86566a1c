# SPDX-License-Identifier: Apache-2.0
import copy
import functools
import json

import numpy as np
import pytest
import torch
from tiny import tiny_images, tiny_task

from gansparse.compress import RECIPES, Reading, TrainConfig, Trainer, compress
from gansparse.compress.checkpointing import latest_checkpoint
from gansparse.compress.config import D_UPDATES
from gansparse.data import write_synthetic
from gansparse.errors import CheckpointError, InputError, TrainingError
from gansparse.files import save_tensors
from gansparse.models import DCGANDiscriminator, DCGANGenerator
from gansparse.sparsity import sparsity_report
from gansparse.tasks import dcgan_task


def config(recipe="b", **changes):
    settings = {"steps": 6, "sparsity": 0.75, "save_every": 0, "log_every": 1, "recalibration": 2}
    settings |= {"scope": "layer"}  # counts that a reader can check
    return TrainConfig(recipe=recipe, **{**settings, **changes})


@pytest.mark.parametrize("key", RECIPES)
def test_every_recipe_ends_at_its_sparsity(task, key):
    result = Trainer(task, config(key)).run()
    assert len(result.history) == 6
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in result.history)
    if RECIPES[key].prunes:
        assert result.masks
        for name, mask in result.masks.items():
            weight = result.generator.get_parameter(name)
            assert int(mask.sum()) == mask.numel() - round(0.75 * mask.numel())
            assert int(torch.count_nonzero(weight[~mask])) == 0
            assert int(torch.count_nonzero(weight[mask])) > 0.9 * int(mask.sum())
    else:
        assert not result.masks


def test_the_original_networks_are_untouched(task):
    before_g = copy.deepcopy(task.generator.state_dict())
    before_d = copy.deepcopy(task.discriminator.state_dict())
    Trainer(task, config("b")).run()
    for before, module in ((before_g, task.generator), (before_d, task.discriminator)):
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_small_dense_network_has_the_sparse_ones_parameter_count():
    task = dcgan_task(tiny_images(), nz=8, ngf=32, ndf=8, batch_size=8)
    result = Trainer(task, config("c")).run()
    count = sum(p.numel() for p in result.generator.parameters())
    target = 0.25 * sum(p.numel() for p in task.generator.parameters())
    assert abs(count - target) < 0.1 * target


@pytest.mark.parametrize("d_update", [u for u in D_UPDATES if u != "fixed"])
def test_d_goes_on_learning(task, d_update):
    trainer = Trainer(task, config("b", reading=Reading(d_update=d_update)))
    before = copy.deepcopy(trainer.d.state_dict())
    trainer.run()
    assert not torch.equal(before["main.0.weight"], trainer.d.state_dict()["main.0.weight"])


def test_d_stays_where_the_reading_fixes_it(task):
    trainer = Trainer(task, config("b", reading=Reading(d_update="fixed")))
    before = copy.deepcopy(trainer.d.state_dict())
    trainer.run()
    for name, value in trainer.d.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_supervisors_learning_rate(task):
    def d_lr(recipe, **changes):
        return Trainer(task, config(recipe, lr=1e-3, **changes)).opt_d.param_groups[0]["lr"]

    assert d_lr("b") == 1e-3
    assert d_lr("b", reading=Reading(d_lr_factor=2.0)) == 2e-3
    assert d_lr("d", reading=Reading(d_lr_factor=2.0)) == 1e-3
    assert d_lr("b", d_lr=7e-4) == 7e-4


@pytest.mark.parametrize(
    ("decay", "wanted"),
    [
        ("none", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("half", [1, 1, 1, 0.5]),
        ("cosine", [1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_the_learning_rate_decays_as_named(task, decay, wanted):
    trainer = Trainer(task, config("b", steps=4, lr=1e-3, lr_decay=decay))
    rates = []
    trainer.run(
        lambda row: rates.append([o.param_groups[0]["lr"] for o in (trainer.opt_g, trainer.opt_d)])
    )
    assert rates == [pytest.approx([1e-3 * factor] * 2, rel=1e-5) for factor in wanted]


def test_bf16_trains_and_leaves_float32(task):
    rows = [Trainer(task, config("b", precision=p)).run() for p in ("fp32", "bf16")]
    losses = [[row["loss"] for row in result.history] for result in rows]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    assert all(p.dtype == torch.float32 for p in rows[1].generator.parameters())


@pytest.mark.parametrize(("key", "learns"), [("h", True), ("i", False), ("l", False)])
def test_whether_d_learns_is_the_rows(task, key, learns):
    trainer = Trainer(task, config(key))
    before = copy.deepcopy(trainer.d.state_dict())
    after = trainer.run().discriminator.state_dict()
    same = all(torch.equal(value, before[name]) for name, value in after.items())
    assert same != learns


def test_technique_j_takes_the_originals_pictures_for_the_real_ones(task):
    """Real pictures of NaN stop every technique whose D sees them."""
    whole = task.batch
    task.batch = lambda step: {**whole(step), "real": whole(step)["real"] * float("nan")}
    with pytest.raises(TrainingError, match="D phase: the loss is nan"):
        Trainer(task, config("h")).run()
    row = Trainer(task, config("j")).run().history[-1]
    assert {"D", "gen"} == set(row["terms"])


def test_technique_l_brings_the_inner_layers_together(task):
    result = Trainer(task, config("l", steps=100, sparsity=0.5, lr=2e-3)).run()
    distances = [row["terms"]["layers"] for row in result.history]
    assert set(result.history[0]["terms"]) == {"layers"}
    assert sum(distances[-10:]) < 0.7 * sum(distances[40:50])  # masks are final from step 50 on


def test_technique_n_prunes_d_too(task):
    result = Trainer(task, config("n")).run()
    for name, weight in result.discriminator.named_parameters():
        if weight.ndim == 4:
            zeros = int((weight == 0).sum())
            assert zeros == round(0.75 * weight.numel()), name
    dense = Trainer(task, config("h")).run().discriminator
    assert all(int((w == 0).sum()) == 0 for w in dense.parameters() if w.ndim == 4)


@pytest.mark.parametrize("bits", [1, 4])
def test_technique_m_leaves_few_levels(task, bits):
    result = Trainer(task, config("m", bits=bits)).run()
    assert result.generator.state_dict().keys() == task.generator.state_dict().keys()
    for weight in result.generator.parameters():
        if weight.ndim == 4:
            levels = weight.unique()
            assert levels.numel() == 2**bits
            gaps = levels.diff()
            assert torch.allclose(gaps, gaps.mean().expand_as(gaps), rtol=1e-4)  # evenly spaced


@pytest.mark.parametrize("reduction", ["batch", "sample"])
@pytest.mark.parametrize("output_term", ["mse", "l1", "none"])
def test_readings_train(task, reduction, output_term):
    reading = Reading(reduction=reduction, output_term=output_term, feature_weight=0.5)
    result = Trainer(task, config("b", reading=reading)).run()
    terms = result.history[-1]["terms"]
    assert {"L_GC", "L_DC", "features", "D"} <= set(terms)
    assert ("output" in terms) == (output_term != "none")


def test_the_first_unpruned_step_of_eq_9_is_zero(task):
    """G_C = G_O before pruning and both in one mode: every relative gap is exactly 0."""
    task.generator.eval()
    reading = Reading(g_norm="running", d_update="fixed")
    result = Trainer(task, config("b", sparsity=0.0, steps=1, reading=reading)).run()
    assert result.history[0]["terms"]["L_GC"] == pytest.approx(0.0, abs=1e-6)
    assert result.history[0]["terms"]["output"] == pytest.approx(0.0, abs=1e-9)


def test_distillation_brings_a_pruned_generator_back(task):
    """Technique g on a tiny net: the distance to the original's pictures must fall by half."""
    result = Trainer(task, config("g", steps=150, sparsity=0.5, lr=2e-3, ema=0.0)).run()
    outputs = [row["terms"]["output"] for row in result.history]
    assert sum(outputs[-10:]) < 0.5 * sum(outputs[:10])


def test_the_same_seed_gives_the_same_bits():
    runs = [Trainer(tiny_task(), config("b", seed=3)).run() for _ in range(2)]
    for a, b in zip(runs[0].generator.parameters(), runs[1].generator.parameters(), strict=True):
        assert torch.equal(a, b)
    other = Trainer(tiny_task(seed=1), config("b", seed=4)).run()
    assert not torch.equal(
        next(iter(runs[0].generator.parameters())), next(iter(other.generator.parameters()))
    )


def test_the_criterion_decides_what_goes(task):
    masks = {}
    for criterion in ("effect", "magnitude"):
        config = TrainConfig(steps=2, recipe="d", criterion=criterion, save_every=0)
        trainer = Trainer(task, config)
        assert bool(trainer.pruner.effects) == (criterion == "effect")
        masks[criterion] = trainer.run().masks
    assert any(not torch.equal(mask, masks["effect"][n]) for n, mask in masks["magnitude"].items())


def test_agp_reaches_its_target_half_way(task):
    history = Trainer(task, config("b", steps=40)).run().history
    assert history[0]["sparsity"] == pytest.approx(0.05, abs=0.01)
    assert history[10]["sparsity"] < 0.74
    assert all(row["sparsity"] == pytest.approx(0.75, abs=0.01) for row in history[20:])


def test_nan_stops_with_step_and_phase(task):
    broken = task.batch

    def batch(step):
        made = dict(broken(step))
        if step == 2:
            made["real"] = made["real"] * float("nan")
        return made

    task.batch = batch
    with pytest.raises(TrainingError, match="step 2, D phase: the loss is nan"):
        Trainer(task, config("d")).run()


def test_nan_in_the_generator_names_the_g_phase(task):
    broken = task.batch
    factors = [1.0, float("inf")]  # the first batch tells what weights do, too
    task.batch = lambda step: {**broken(step), "z": broken(step)["z"] * factors[min(step, 1)]}
    with pytest.raises(TrainingError, match="step 1, G phase"):
        Trainer(task, config("g")).run()
    factors[0] = float("inf")
    with pytest.raises(InputError, match="its effects are NaN or infinite, as its inputs were"):
        Trainer(task, config("g")).run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 1.5}, "sparsity must be 0 <= sparsity < 1, got 1.5"),
        ({"sparsity": float("nan")}, "sparsity must be"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"ema": 1.0}, "ema must be"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, got 'fp8'"),
        ({"lambda_": -1.0}, "lambda_ must be"),
        ({"recipe": "q"}, "a to o, got 'q'"),
        ({"recipe": "m", "bits": 17}, "bits must be at most 16, got 17"),
        ({"include": ("main.99",)}, "main.99"),
        ({"granularity": "row"}, "row"),
    ],
)
def test_refusals(task, changes, message):
    with pytest.raises(InputError, match=message):
        Trainer(task, config(**changes)).run()


def test_a_task_without_a_small_generator_says_what_to_give(task):
    task.small_generator = None
    with pytest.raises(InputError, match="small_generator="):
        Trainer(task, config("c"))


def test_resuming_with_other_settings_is_refused(task, tmp_path):
    Trainer(task, config("b", save_every=3), out=tmp_path).run()
    with pytest.raises(CheckpointError, match=r"made with another sparsity \(0.75, now 0.5\)"):
        Trainer(task, config("b", sparsity=0.5), out=tmp_path, resume=True)


def test_a_checkpoint_of_another_version_is_refused(task, tmp_path):
    settings = config("b", sparsity=0.75, save_every=1)
    Trainer(task, settings, out=tmp_path).run()
    path = latest_checkpoint(tmp_path / "checkpoints")
    before = json.loads((path / "state.json").read_text())
    for name, older in (("opt_g", None), ("opt_g", [["m"]]), ("pool", [[]]), ("g", {"weight": 1})):
        document = json.loads(json.dumps(before))
        if older is None:
            del document["state"]["parts"][name]
        else:
            document["state"]["parts"][name] = older
        (path / "state.json").write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match=f"its {name} does not fit") as caught:
            Trainer(task, settings, out=tmp_path, resume=True)
        assert "\n" not in str(caught.value)


def test_compress_takes_a_task_or_a_name_with_data(task):
    with pytest.raises(InputError, match="brings its own data"):
        compress(task, "somewhere")
    with pytest.raises(InputError, match="needs data"):
        compress("dcgan")
    with pytest.raises(InputError, match="no task 'biggan'"):
        compress("biggan", "somewhere")
    with pytest.raises(InputError, match="TrainConfig has no field stepz"):
        compress(task, stepz=3)


def test_compress_hands_on_what_the_named_task_takes(tmp_path):
    write_synthetic("aligned", tmp_path, count=2, size=48)
    chosen = {"load_size": 36, "crop_size": 32, "num_downs": 5, "ngf": 2, "ndf": 2}
    run = functools.partial(compress, "pix2pix", tmp_path, steps=1, num_workers=0, **chosen)
    picture = torch.zeros(1, 3, 32, 32)
    assert run(lambda_=1.0, direction="BtoA").generator(picture).shape == picture.shape
    with pytest.raises(InputError, match="direction must be AtoB or BtoA, got 'up'"):
        run(direction="up")
    with pytest.raises(InputError, match="task pix2pix has no option scale"):
        run(scale=4)


def test_compress_a_task_by_name_from_files(tmp_path):
    digits, labels = np.zeros((70, 28, 28), np.uint8), np.zeros(70, np.int64)
    np.savez(tmp_path / "mnist.npz", x_train=digits, y_train=labels)
    nets = {"g": DCGANGenerator(4, 4, 1, 16), "d": DCGANDiscriminator(4, 1, 16)}
    for name, net in nets.items():
        save_tensors(tmp_path / f"{name}.safetensors", net.state_dict())
    files = {"generator": tmp_path / "g.safetensors", "discriminator": tmp_path / "d.safetensors"}
    result = compress("dcgan", tmp_path, sparsity=0.9, granularity="kernel", steps=2, **files)
    assert sparsity_report(result.generator).sparsity == pytest.approx(0.9, abs=0.02)
    assert result.generator.state_dict().keys() == nets["g"].state_dict().keys()


@pytest.mark.parametrize("key", ["b", "l", "m", "n"])
def test_a_run_in_two_parts_ends_as_one_in_one(key, tmp_path):
    class Stopped(Exception):
        pass

    def stop(row):
        if row["step"] == 3:
            raise Stopped

    whole = Trainer(tiny_task(), config(key)).run()
    with pytest.raises(Stopped):
        Trainer(tiny_task(), config(key, save_every=3), out=tmp_path).run(stop)
    second = Trainer(tiny_task(), config(key, save_every=3), out=tmp_path, resume=True)
    assert second.step == 3
    resumed = second.run()
    for a, b in (
        (whole.generator, resumed.generator),
        (whole.discriminator, resumed.discriminator),
    ):
        values = b.state_dict()
        assert all(torch.equal(value, values[name]) for name, value in a.state_dict().items())
    assert resumed.history == whole.history


def test_a_configuration_of_another_version_is_refused():
    config = TrainConfig(recipe="d", include=("conv*",), reading=Reading(d_update="fixed"))
    values = json.loads(json.dumps(config.to_dict()))
    assert TrainConfig.from_dict(values) == config
    with pytest.raises(InputError, match=r"with unknown fields \['later'\]"):
        TrainConfig.from_dict(values | {"later": 1})
    del values["criterion"]
    with pytest.raises(InputError, match=r"with no fields \['criterion'\]"):
        TrainConfig.from_dict(values)
