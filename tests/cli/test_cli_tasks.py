# SPDX-License-Identifier: Apache-2.0
"""Each family by the command line: train, plan, compress, score; from drawn pictures."""

import json
import re
import shlex
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from gansparse.cli import app
from gansparse.cli.options import TaskName
from gansparse.cli.originals import translated
from gansparse.data import write_synthetic
from gansparse.errors import CheckpointError, InputError
from gansparse.files import load_tensors, save_tensors
from gansparse.models import (
    PatchGANDiscriminator,
    StarGANGenerator,
    UNetGenerator,
    load_generator,
)
from gansparse.tasks.loading import TASKS, load_task

pytestmark = pytest.mark.filterwarnings("ignore:srgan. no weights")  # said, not hidden

SMALL = ["--threads", "1", "--device", "cpu", "--num-workers", "0"]
SIZES = {
    "pix2pix": ["--load-size", "36", "--crop-size", "32"],
    "cyclegan": ["--load-size", "36", "--crop-size", "32"],
    "stargan": ["--image-size", "32"],
    "srgan": ["--crop-size", "32", "--batch-size", "4"],
}
NETWORKS = {
    "pix2pix": ["--ngf", "4", "--ndf", "4", "--num-downs", "5"],
    "cyclegan": ["--ngf", "4", "--ndf", "4", "--num-blocks", "1"],
    "stargan": ["--conv-dim", "4", "--g-repeat-num", "1", "--d-repeat-num", "3"],
    "srgan": ["--ngf", "8", "--ndf", "4"],
}
KINDS = {"pix2pix": "aligned", "cyclegan": "unaligned", "stargan": "classes", "srgan": "hr"}
STEPS = {"stargan": 5}  # G learns in the fifth


def run(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module", params=list(SIZES))
def trained(request, tmp_path_factory):
    """A family, its data, and a pair trained for a few steps."""
    name, place = request.param, tmp_path_factory.mktemp(request.param)
    write_synthetic(KINDS[name], place / "data", count=10, size=48)
    more = [*SIZES[name], *NETWORKS[name], *SMALL, "--steps", STEPS.get(name, 2)]
    done = run("train", name, "--dataroot", place / "data", "--out", place / "pair", *more)
    assert done.exit_code == 0, done.output
    assert f"next: gansparse compress {name} --data" in done.output
    chosen = [word for word in SIZES[name] if word not in ("--batch-size", "4")]
    assert set(chosen) <= set(next_words(done)), "pictures are read again as they were"
    return name, place


def next_words(done):
    return shlex.split(re.search("next: gansparse (.*)", done.output)[1])


def paths(place):
    return [
        sorted((place / "pair").glob(f"{what}*.safetensors"))
        for what in ("generator", "discriminator")
    ]


def pair(place):
    generators, critics = paths(place)
    return [part for g in generators for part in ("--generator", g)], [
        part for d in critics for part in ("--discriminator", d)
    ]


def compress(name, place, *more):
    g, d = pair(place)
    data = ["--dataroot", place / "data", *SIZES[name], *SMALL]
    return run("compress", name, *data, *g, *d, "--steps", STEPS.get(name, 2), *more)


def test_compress_and_score(trained):
    name, place = trained
    out = place / "compressed"
    done = compress(name, place, "--sparsity", 0.5, "--out", out, "--save-every", 0)
    assert done.exit_code == 0, done.output
    _, header = load_tensors(paths(place)[0][0])
    assert header["trained_steps"] == str(STEPS.get(name, 2))
    files = sorted(out.glob("generator*.safetensors"))
    assert len(files) == (2 if name == "cyclegan" else 1)
    for file in files:
        state, _ = load_tensors(file)
        kernels = [value for value in state.values() if value.ndim == 4]
        zeros = sum(int((kernel == 0).sum()) for kernel in kernels)
        assert zeros / sum(kernel.numel() for kernel in kernels) == pytest.approx(0.5, abs=0.01)
        load_generator(file)  # in the public layout
    assert f"next: gansparse eval {name}" in done.output


def test_a_dry_run_tells_the_plan_and_writes_nothing(trained):
    name, place = trained
    done = compress(name, place, "--dry-run", "--sparsity", 0.75, "--out", place / "none")
    assert done.exit_code == 0, done.output
    for word in ("parameters", "multiply-adds a sample", "steps", "time", "peak memory", "GiB"):
        assert word in done.output
    assert not (place / "none").exists()


def test_the_originals_spelling_weights_and_a_plan_of_training(trained):
    name, place = trained
    sizes = [word.replace("-", "_") if word.startswith("--") else word for word in SIZES[name]]
    sizes = [word.replace("__", "--", 1) for word in sizes]
    more = [*sizes, *NETWORKS[name], *SMALL, "--steps", 1, "--weight", "rec=0.5"]
    data = ["--dataroot", place / "data", "--out", place / "none"]
    done = run("train", name, *data, *more, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "multiply-adds a sample" in done.output
    assert not (place / "none").exists()
    task = load_task(name, place / "data", weights={"rec": 0.5}, **sizes_of(name))
    assert task.weight("rec") == 0.5
    kept = {"stargan": "gp", "srgan": "gen"}
    if name in kept:
        assert task.weight(kept[name]) == {"gp": 10.0, "gen": 0.001}[kept[name]]


def sizes_of(name):
    words = [word.strip("-").replace("-", "_") for word in (*SIZES[name], *NETWORKS[name])]
    return {key: int(value) for key, value in zip(words[::2], words[1::2], strict=True)}


def test_damage_is_refused_or_skipped(trained, tmp_path):
    name, place = trained
    data = shutil.copytree(place / "data", tmp_path / "data")
    for file in sorted(data.rglob("*.png"))[::7]:  # the first, too
        file.write_bytes(file.read_bytes()[:60])

    def whole_epoch(**options):
        task = load_task(name, data, num_workers=0, **sizes_of(name), **options)
        for step in range(task.steps_per_epoch):
            task.batch(step)

    with pytest.raises(InputError, match=r"\.png: (damaged|not a picture)"):
        whole_epoch()
    with pytest.warns(UserWarning, match=r"\.png: (damaged|not a picture).*; skipped, the next"):
        whole_epoch(on_damaged="skip")
    compare = ["compare", "--task", name, "--extractor", "lenet-mnist"]
    trained_by = [
        [*words, *SIZES[name]] for words in (["train", name], ["compress", name], compare)
    ]
    for words in (["eval", name], *trained_by):
        with pytest.raises(InputError, match="on_damaged must be 'raise' or 'skip', got 'hide'"):
            run(*words, "--data", data, "--on-damaged", "hide", "--device", "cpu")


def test_scores(trained, tmp_path, monkeypatch):
    name, place = trained
    monkeypatch.setattr("gansparse.compress.api.get_extractor", lambda *_, **__: pixels())
    g, _ = pair(place)
    sizes = [x for x in SIZES[name] if name != "srgan"]
    extra = ["--test-set", place / "data" / "DIV2K_valid_HR"] if name == "srgan" else []
    score = tmp_path / "score.json"
    done = run(
        "eval", name, "--dataroot", place / "data", *g, *sizes, *extra, *SMALL, "--out", score
    )
    assert done.exit_code == 0, done.output
    found = json.loads(score.read_text())
    views = found.get("views", {"": found})
    expected = {"cyclegan": 2, "stargan": 5}.get(name, 1)
    assert len(views) == expected
    assert all(view["fid"] >= 0 and view["extractor"] == "pixels" for view in views.values())
    if name == "srgan":
        assert found["measures"]["DIV2K_valid_HR PSNR"] > 5


def pixels():
    from gansparse.metrics.features import module_extractor

    def features(images):
        small = torch.nn.functional.adaptive_avg_pool2d(images, 2)
        return small.flatten(1)

    return module_extractor("pixels", features, 12)


def test_the_tasks_have_one_list_of_names():
    assert [name.value for name in TaskName] == list(TASKS)


def test_a_file_of_options_gives_the_defaults(trained, tmp_path):
    name, place = trained
    file, out = tmp_path / "run.toml", tmp_path / "out"
    file.write_text('sparsity = 0.8\n"save-every" = 0\nset = "lambda_=2"\nexclude = []\nseed = 5\n')
    done = compress(name, place, "--config", file, "--seed", 7, "--out", out)
    assert done.exit_code == 0, done.output
    used = json.loads((out / "config.json").read_text())
    assert (used["sparsity"], used["lambda_"], used["save_every"]) == (0.8, 2.0, 0)
    assert used["seed"] == 7  # what is typed goes before the file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sparsty = 1", "has no option 'sparsty'"),
        ("sparsity = ", "not readable as TOML"),
        (None, "no such file"),
    ],
)
def test_a_broken_file_of_options_is_named(tmp_path, text, words):
    file = tmp_path / "run.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=words):
        run("compress", "dcgan", "--config", file)


def test_what_a_task_does_not_have_is_refused(tmp_path):
    with pytest.raises(InputError, match="task dcgan has no option direction, scale"):
        load_task("dcgan", tmp_path, direction="AtoB", scale=4)
    with pytest.raises(InputError, match="no task 'vae'"):
        load_task("vae", tmp_path)
    with pytest.raises(InputError, match="pix2pix needs --data"):
        run("compress", "pix2pix")
    write_synthetic("unaligned", tmp_path / "data", count=2, size=32)
    net = tmp_path / "g.pth"
    with pytest.raises(InputError, match="give two generators, a2b and b2a, got 1"):
        load_task("cyclegan", tmp_path / "data", generator=[net], discriminator=[net])


def test_one_direction_of_a_cyclegan_is_scored_by_its_own_file(tmp_path, monkeypatch):
    monkeypatch.setattr("gansparse.compress.api.get_extractor", lambda *_, **__: pixels())
    write_synthetic("unaligned", tmp_path / "data", count=10, size=48)
    more = ["--data", tmp_path / "data", *SIZES["cyclegan"], *SMALL, "--steps", 1]
    more += ["--identity", 0, "--out"]
    run("train", "cyclegan", *NETWORKS["cyclegan"], *more, tmp_path / "pair")
    g, d = pair(tmp_path)
    done = run("compress", "cyclegan", *g, *d, "--direction", "BtoA", *more, tmp_path / "a folder")
    words = next_words(done)
    assert words[-1] == str(tmp_path / "a folder" / "generator.safetensors")
    assert "--lambda-identity" not in words, "no matter of scoring"
    scored = run(*words, *SMALL)
    assert scored.exit_code == 0, scored.output
    assert "FID b to a" in scored.output
    assert "FID a to b" not in scored.output


def test_networks_that_do_not_fit_are_refused_by_name(tmp_path):
    write_synthetic("aligned", tmp_path / "data", count=2, size=48)
    nets = {
        "unet": UNetGenerator(ngf=2, num_downs=5),
        "star": StarGANGenerator(conv_dim=2, repeat_num=1),
        "patch": PatchGANDiscriminator(6, 2),
        "other": PatchGANDiscriminator(3, 2),
    }
    for name, net in nets.items():
        save_tensors(tmp_path / f"{name}.safetensors", net.state_dict())
    data = ["--data", tmp_path / "data", *SIZES["pix2pix"], *SMALL]

    def files(**names):
        return [
            x for what, n in names.items() for x in (f"--{what}", tmp_path / f"{n}.safetensors")
        ]

    for g, d, words in (
        ("star", "patch", "pix2pix: the generator does not take its inputs: .*labels"),
        ("unet", "other", "pix2pix: the discriminator does not take the real pictures: .*channels"),
    ):
        pair_of = files(generator=g, discriminator=d)
        with pytest.raises(InputError, match=words):
            run("compress", "pix2pix", *data, *pair_of, "--steps", 1, "--out", tmp_path / "out")
    with pytest.raises(InputError, match="pix2pix: the generator does not take its inputs"):
        run("eval", "pix2pix", *data, *files(generator="star"))


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        ("pix2pix --lambda_L1 50 --netG unet_128", "pix2pix --weight rec=50 --num-downs 7"),
        ("pix2pix --netD pixel --manualSeed=3", "pix2pix --n-layers-d 0 --seed 3"),
        ("cyclegan --lambda_A=5 --netG resnet_6blocks", "cyclegan --weight rec=5 --num-blocks 6"),
        (
            "stargan --rafd_image_dir D/train --lambda_cls 2",
            "stargan --data D/train --weight cla=2",
        ),
        ("stargan --g_lr 1e-4 --lambda_gp 1", "stargan --lr 1e-4 --weight gp=1"),
        ("dcgan --netG net.pth --netD d.pth", "dcgan --generator net.pth --discriminator d.pth"),
        (
            "dcgan --imageSize 32 --outf runs/x --lr=-1",
            "dcgan --image-size 32 --out runs/x --lr=-1",
        ),
        ("pix2pix --num_threads 2 --continue_train", "pix2pix --num-workers 2 --resume"),
    ],
)
def test_the_originals_options_are_ours(words, ours):
    assert translated(words.split()) == ours.split()


def test_the_originals_options_are_taken(tmp_path):
    write_synthetic("classes", tmp_path / "rafd", count=10, size=48)
    where = ["--rafd_image_dir", tmp_path / "rafd" / "train", "--outf", tmp_path / "pair"]
    more = [*NETWORKS["stargan"], *SIZES["stargan"], *SMALL, "--num_iters", 2]
    done = run("train", "stargan", *where, *more, "--lambda_cls", 2, "--g_lr", "1e-4")
    assert done.exit_code == 0, done.output
    (g,), (d,) = paths(tmp_path)
    pair_of = ["--generator", g, "--discriminator", d, "--steps", 1, "--save_every", 0]
    out = ["--out", tmp_path / "small", "--dry-run", *SMALL]
    done = run("compress", "stargan", "--rafd_image_dir", tmp_path / "rafd", *pair_of, *out)
    assert done.exit_code == 0, done.output
    task = load_task("stargan", tmp_path / "rafd", generator=g, discriminator=d)
    assert task.weight("cla") == 2.0
    assert len(task.views) == 5  # of the test set beside


def test_data_without_test_pictures_trains(tmp_path):
    write_synthetic("classes", tmp_path / "classes", count=6, size=48)
    shutil.rmtree(tmp_path / "classes" / "test")
    write_synthetic("hr", tmp_path / "hr", count=5, size=48)
    shutil.rmtree(tmp_path / "hr" / "DIV2K_valid_HR")
    for name, data in (("stargan", "classes"), ("srgan", "hr")):
        task = load_task(name, tmp_path / data, num_workers=0, **sizes_of(name))
        assert not task.views
        task.batch(0)
    g = tmp_path / "g.safetensors"
    save_tensors(g, StarGANGenerator(4, 5, 1).state_dict(), {})
    with pytest.raises(InputError, match="no pictures to score stargan with"):
        run("eval", "stargan", "--data", tmp_path / "classes", "--generator", g, *SMALL)


def test_a_pair_tells_how_long_it_was_trained(tmp_path):
    write_synthetic("aligned", tmp_path / "data", count=2, size=48)
    more = [*SIZES["pix2pix"], *NETWORKS["pix2pix"], *SMALL, "--steps", 3]
    run("train", "pix2pix", "--dataroot", tmp_path / "data", "--out", tmp_path / "pair", *more)
    (g,), (d,) = paths(tmp_path)
    task = load_task("pix2pix", tmp_path / "data", generator=g, discriminator=d)
    assert task.trained_steps == 3  # of which compression takes a share
    turned = load_task("pix2pix", tmp_path / "data", generator=g, discriminator=d, direction="BtoA")
    assert ([v.name for v in task.views], [v.name for v in turned.views]) == (
        ["a to b"],
        ["b to a"],
    )


def test_training_averages_weights_where_it_is_asked_to(tmp_path):
    write_synthetic("aligned", tmp_path / "data", count=2, size=48)
    more = [*SIZES["pix2pix"], *NETWORKS["pix2pix"], *SMALL, "--steps", 3]
    states = {}
    for ema in ("0", "0.5"):
        words = ["train", "pix2pix", "--dataroot", tmp_path / "data", "--out", tmp_path / ema]
        done = run(*words, *more, "--ema", ema)
        assert done.exit_code == 0, done.output
        for name in ("generator", "discriminator"):
            (file,) = (tmp_path / ema).glob(f"{name}*.safetensors")
            states[name, ema] = load_tensors(file)[0]

    def differ(name):
        last, mean = states[name, "0"], states[name, "0.5"]
        return {key for key in last if not torch.equal(last[key], mean[key])}

    assert {key for key in differ("generator") if key.endswith("weight")}
    assert not differ("discriminator"), "the training itself is the same"


def test_a_pair_tells_what_it_was_trained_with(tmp_path):
    write_synthetic("aligned", tmp_path / "data", count=2, size=48)
    own = ["--gan-mode", "lsgan", "--direction", "BtoA", "--weight", "rec=5", "--seed", 1]
    more = [*SIZES["pix2pix"], *NETWORKS["pix2pix"], *SMALL, "--steps", 1]
    run(
        "train", "pix2pix", "--dataroot", tmp_path / "data", "--out", tmp_path / "pair", *more, *own
    )
    (g,), (d,) = paths(tmp_path)
    pair_of = {"generator": g, "discriminator": d}

    def loss(**options):
        task = load_task("pix2pix", tmp_path / "data", **pair_of, **options)
        batch = task.batch(0)
        judged = torch.linspace(-1, 1, 8).view(2, 1, 2, 2)
        gen = task.generator_terms(judged, task.real(batch), batch)["gen"]
        return task, gen, batch["a"].shape

    told = {"gan_mode": "lsgan", "direction": "BtoA", **sizes_of("pix2pix")}
    kept, terms, shape = loss()
    assert (kept.trained_with["gan_mode"], kept.trained_with["weights"]) == ("lsgan", {"rec": 5.0})
    assert (kept.views[0].name, kept.weight("rec")) == ("b to a", 5.0)
    explicit, explicit_terms, explicit_shape = loss(**told, weights={"rec": 5.0})
    assert torch.equal(terms, explicit_terms)
    assert shape == explicit_shape
    assert torch.equal(kept.batch(0)["a"], explicit.batch(0)["a"])
    other, other_terms, _ = loss(gan_mode="vanilla", direction="AtoB", weights={"rec": 7.0})
    assert not torch.equal(terms, other_terms)
    assert (other.views[0].name, other.weight("rec")) == ("a to b", 7.0)
    small = tmp_path / "small"
    files = ["--generator", g, "--discriminator", d, *SMALL, "--steps", 1, "--save-every", 0]
    words = ["compress", "pix2pix", "--data", tmp_path / "data", *files, "--out", small]
    assert run(*words).exit_code == 0
    pair_of["generator"] = small / "generator.safetensors"
    assert torch.equal(loss()[1], terms), "a compressed generator goes on telling it"


def test_pix2pix_with_statistics_that_stand_still(tmp_path, monkeypatch):
    monkeypatch.setenv("GANSPARSE_CACHE", str(tmp_path / "cache"))
    write_synthetic("aligned", tmp_path / "data", count=2, size=48)
    net, g = UNetGenerator(ngf=2, num_downs=5, norm="batch"), tmp_path / "g.safetensors"
    save_tensors(g, net.state_dict(), {})
    sizes = sizes_of("pix2pix") | {"scoring": True, "num_workers": 0}
    x = torch.rand(2, 3, 32, 32)

    def repeats(net):
        both = net.eval()(x)
        return torch.equal(both, net(x)) and torch.allclose(both[:1], net(x[:1]), atol=1e-5)

    assert not repeats(load_task("pix2pix", tmp_path / "data", generator=g, **sizes).generator)
    still = load_task("pix2pix", tmp_path / "data", generator=g, live=False, **sizes).generator
    assert repeats(still)
    for words in (
        ["deploy", g, "--out", tmp_path / "out", "--size", 32],
        ["bench", "--generator", g],
    ):
        more = ["--size", 32, "--rounds", 2, "--peer", "ncnn"] if words[0] == "bench" else []
        done = run(*words, *more, "--eval")
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize("options", ["{", "[]", '{"gan_mode": 1}', '{"weights": []}'])
def test_a_header_that_gansparse_did_not_write_is_refused(tmp_path, options):
    write_synthetic("aligned", tmp_path / "data", count=2, size=48)
    file = tmp_path / "generator.safetensors"
    net = UNetGenerator(ngf=2, num_downs=5)
    save_tensors(file, net.state_dict(), {"task": "pix2pix", "options": options})
    with pytest.raises(CheckpointError, match="did not write the options in its header"):
        load_task("pix2pix", tmp_path / "data", generator=file, scoring=True)


def test_a_dcgan_of_a_folder_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("gansparse.compress.api.get_extractor", lambda *_, **__: pixels())
    for number in range(10):
        picture = Image.new("RGB", (20 + number, 40), (25 * number, 0, 255))
        picture.save(tmp_path / f"{number}.png")
    small = ["--imageSize", 32, "--nz", 4, "--ngf", 2, "--ndf", 2, "--batchSize", 4, *SMALL]
    pair_of = ["--data", tmp_path, "--out", tmp_path / "pair", "--save_every", 0]
    done = run("train", "dcgan", *pair_of, *small, "--steps", 2)
    assert done.exit_code == 0, done.output
    g, d = (tmp_path / "pair" / f"{name}.safetensors" for name in ("generator", "discriminator"))
    files = ["--generator", g, "--discriminator", d, "--batch-size", 4, *SMALL]
    words = ["compress", "dcgan", "--data", tmp_path, *files, "--steps", 1, "--save-every", 0]
    assert run(*words, "--out", tmp_path / "small").exit_code == 0
    task = load_task("dcgan", tmp_path, generator=g, discriminator=d, batch_size=4)
    real = task.batch(0)["real"]
    assert real.shape == (4, 3, 32, 32)
    assert {float(blue) for blue in real[:, 2].unique()} == {1.0}
    assert len({float(red) for red in real[:, 0, 16, 16]}) == 4
    scored = ["eval", "dcgan", "--data", tmp_path, "--generator", g, "--num-samples", 9]
    shown = run(*scored, *SMALL).output
    assert "10 / 9" in shown, "all real pictures, as many as asked for of the others"
    digits = tmp_path / "digits.npz"
    np.savez(digits, x_train=np.zeros((8, 28, 28), np.uint8), y_train=np.zeros(8, np.int64))
    with pytest.raises(InputError, match="digits have 1 channel, but the pictures to make have 3"):
        load_task("dcgan", digits, generator=g, discriminator=d)


def test_srgan_without_a_perceptual_loss_says_nothing(tmp_path):
    write_synthetic("hr", tmp_path, count=2, size=48)
    more = {"crop_size": 32, "batch_size": 2, "ngf": 8, "ndf": 2, "num_workers": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_task("srgan", tmp_path, vgg=Path("none"), **more)
    with pytest.warns(UserWarning, match=r"srgan: no weights of VGG16, .*\(--vgg\)"):
        load_task("srgan", tmp_path, **more)


def test_celebas_pictures_may_be_named_by_their_own_folder(tmp_path):
    write_synthetic("attributes", tmp_path, count=120, size=32)
    more = {"crop_size": 32, "image_size": 32, "conv_dim": 2, "g_repeat_num": 1, "num_workers": 0}
    tasks = [load_task("stargan", place, **more) for place in (tmp_path, tmp_path / "images")]
    first, second = (task.batch(0) for task in tasks)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    words = ["train", "stargan", "--celeba_image_dir", tmp_path / "images", "--image_size", 32]
    with pytest.raises(InputError, match="no attribute 'Nose'"):
        run(*words, "--selected_attrs", "Black_Hair", "Nose", "--celeba_crop_size", 32, *SMALL)
