# SPDX-License-Identifier: Apache-2.0
"""Comparisons of the tiny GAN: what is run, kept, scored again, refused, and what is written."""

import copy
import fcntl
import functools
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_task

from gansparse.compress import TrainConfig, Trainer
from gansparse.compress.compare import Comparison, Entry
from gansparse.compress.samples import LEAST_PICTURES, SHOWN_VALUES, samples
from gansparse.errors import CheckpointError, InputError, OutputError, TrainingError
from gansparse.metrics.features import get_extractor, module_extractor
from gansparse.report import load_report, load_samples, write_report
from gansparse.tasks.gan import View

PIXELS = module_extractor("pixels", lambda images: F.avg_pool2d(images, 4).flatten(1), 16)


def entry(recipe="g", label="", **changes):
    settings = {"steps": 3, "sparsity": 0.5, "recalibration": 1, "ema": 0.0, "log_every": 1}
    return Entry(TrainConfig(recipe=recipe, **{**settings, **changes}), label)


def comparison(task, out, **options):
    return Comparison(task, PIXELS, out, **{"num_samples": 20, **options})


class Watched:
    """Remembers what it is told."""

    def __init__(self):
        self.labels, self.runs, self.steps, self.found = [], [], [], []

    def start(self, label, total, found=0):
        self.labels.append(label)
        self.found.append(found)

    def advance(self, done):
        if "seed" in self.labels[-1] and "scoring" not in self.labels[-1]:
            self.steps.append(done)

    def on_runs(self, done, total):
        self.runs.append((done, total))


def trained(watched):
    return [label for label in watched.labels if "seed" in label and "scoring" not in label]


def test_finished_runs_are_kept_and_progress_counts_them(task, tmp_path):
    first, second = Watched(), Watched()
    document = comparison(task, tmp_path, watcher=first).run(
        [entry("g"), entry("d")], on_runs=first.on_runs
    )
    assert [row["key"] for row in document["runs"]] == ["g", "d"]
    assert len(trained(first)) == 2
    shares = [done for done, _ in first.runs]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 2)
    assert 0 < shares[1] < 1, "the first run is under way"
    again = comparison(task, tmp_path, watcher=second).run(
        [entry("d"), entry("b"), entry("g")], on_runs=second.on_runs
    )
    assert [row["key"] for row in again["runs"]] == ["d", "b", "g"], "the order asked for"
    assert len(trained(second)) == 1
    assert second.runs[0] == (2, 3)
    assert again["runs"][0]["fid"] == document["runs"][1]["fid"]
    assert again["runs"][2]["fid_ratio"] == again["runs"][2]["fid"] / again["dense"]["fid"]
    report = load_report(tmp_path)
    assert [run.key for run in report.runs] == ["d", "b", "g"]
    assert write_report(tmp_path).exists()


def test_another_number_of_samples_is_scored_anew_but_not_trained(task, tmp_path):
    first, second = Watched(), Watched()
    comparison(task, tmp_path, watcher=first).run([entry("g")])
    document = comparison(task, tmp_path, num_samples=30, watcher=second).run([entry("g")])
    assert (first.steps, second.steps) == ([1, 2, 3], [])
    assert document["runs"][0]["num_fake"] == document["dense"]["num_fake"] == 30


def test_a_stopped_run_goes_on_where_it_was(task, tmp_path):
    """Ctrl-C at the sixth of eight steps, with checkpoints after each fourth."""
    plan = [entry("d", steps=8, save_every=4)]
    undisturbed = comparison(tiny_task(), tmp_path / "whole").run(plan)

    class Stop(Watched):
        def advance(self, done):
            super().advance(done)
            if self.steps[-1:] == [6]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison(task, tmp_path / "stopped", watcher=Stop()).run(plan)
    watched = Watched()
    resumed = comparison(task, tmp_path / "stopped", watcher=watched).run(plan)
    assert watched.steps == [5, 6, 7, 8]
    at = watched.labels.index(trained(watched)[0])
    assert watched.found[at] == 4, "what was done before takes no part in the time left"
    assert resumed["runs"][0]["fid"] == undisturbed["runs"][0]["fid"]


def broken_d(task):
    """Real pictures of NaN: every technique whose D learns from them fails, g has no D."""
    whole = task.batch
    return replace(
        task, batch=lambda step: {**whole(step), "real": whole(step)["real"] * torch.nan}
    )


def test_a_failing_run_is_listed_and_the_others_go_on(task, tmp_path):
    document = comparison(broken_d(task), tmp_path).run(
        [entry("d"), entry("g"), entry("b", seed=2)]
    )
    assert [row["key"] for row in document["runs"]] == ["g"]
    d, b = document["failed"]
    assert (d["key"], b["key"], b["seed"]) == ("d", "b", 2)
    assert d["reason"].startswith("step 0, D phase: the loss is nan")
    report = load_report(tmp_path)
    assert [failure.key for failure in report.failures] == ["d", "b"]
    repaired = comparison(task, tmp_path).run([entry("d"), entry("g")])
    assert not repaired["failed"], "the next call tries it again"


def test_a_task_without_a_smaller_generator_fails_technique_c_only(task, tmp_path):
    task.small_generator = None
    document = comparison(task, tmp_path).run([entry("c"), entry("g")])
    assert "needs a smaller generator" in document["failed"][0]["reason"]


def test_where_every_run_fails_there_is_no_report(task, tmp_path):
    with pytest.raises(TrainingError, match="every run failed; the first: step 0, D phase"):
        comparison(broken_d(task), tmp_path).run([entry("d")])
    assert not (tmp_path / "report.json").exists()


def test_other_settings_in_the_same_folder_are_refused(task, tmp_path):
    comparison(task, tmp_path).run([entry("g")])
    with pytest.raises(CheckpointError, match=r"another lr \(None, now 1.0\); .* another --out"):
        comparison(task, tmp_path).run([entry("g", lr=1.0)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generator": 1e-3}, "generator"),
        ({"discriminator": 1e-3}, "discriminator"),
        ({"weights": {"gen": 7.0}}, "loss weights"),
        ({"trained_with": {"gan_mode": "lsgan"}}, "options of the task"),
        ({"batch": 4}, "size of batches"),
        ({"lr": 1e-3}, "learning rate of the task"),
        ({"betas": (0.9, 0.99)}, "betas"),
        ({"lr_decay": "linear"}, "lr_decay of the task"),
        ({"g_every": 2}, "steps of D to G's"),
        ({"pool_size": 3}, "size of the pool of fakes"),
    ],
)
def test_a_run_of_another_pair_or_task_in_the_same_folder_is_refused(task, tmp_path, change, words):
    comparison(task, tmp_path / "compared").run([entry("g")])
    config = TrainConfig("b", steps=4, sparsity=0.5, save_every=2)
    Trainer(task, config, out=tmp_path / "run").run()
    ((name, value),) = change.items()
    if name in ("generator", "discriminator"):
        with torch.no_grad():
            next(getattr(task, name).parameters()).add_(value)
    elif name == "batch":
        whole = task.batch
        task.batch = lambda step: {key: given[:value] for key, given in whole(step).items()}
    else:
        setattr(task, name, value)
    with pytest.raises(InputError, match=f"holds a comparison with another {words}; choose"):
        comparison(task, tmp_path / "compared").run([entry("g")])
    with pytest.raises(CheckpointError, match=f"was made with another {words}; resume with"):
        Trainer(task, config, out=tmp_path / "run", resume=True)


def test_two_runs_of_one_name_are_refused_before_any_is_trained(task, tmp_path):
    with pytest.raises(InputError, match="two runs are called g-element-0.5-seed0: give their"):
        comparison(task, tmp_path).run([entry("g"), entry("g", lambda_=2.0)])
    assert not [*tmp_path.glob("g-*")]


def test_one_comparison_a_folder(task, tmp_path):
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is at work in it"):
            comparison(task, tmp_path).run([entry("g")])
    (tmp_path / "file").touch()
    with pytest.raises(
        OutputError, match=r"could not write .*file/run: Not a directory; free space, or choose"
    ):
        comparison(task, tmp_path / "file" / "run").run([entry("g")])


def test_a_source_gives_each_seed_its_own_batches(tmp_path):
    seeds = []

    def source(*, seed):
        seeds.append(seed)
        return tiny_task(seed)

    plan = [entry("g", seed=seed, sparsity=s) for seed in (3, 4) for s in (0.5, 0.75)]
    document = comparison(source, tmp_path).run(plan)
    assert seeds == [3, 4], "one task at a time, none made twice"
    fids = [row["fid"] for row in document["runs"]]
    assert len(set(fids)) == 4, "g starts and prunes alike: only its batches tell seeds apart"


def test_the_real_pictures_are_measured_once(task, tmp_path):
    first, second = Watched(), Watched()
    comparison(task, tmp_path, watcher=first).run([entry("g")])
    comparison(task, tmp_path, watcher=second).run([entry("d")])
    assert sum("real pictures" in label for label in first.labels) == 1
    assert not any("real pictures" in label for label in second.labels)
    other = module_extractor("corners", lambda images: images[:, :, ::15, ::15].flatten(1), 4)
    third = Watched()
    Comparison(task, other, tmp_path, num_samples=20, watcher=third).run([entry("g")])
    assert sum("real pictures" in label for label in third.labels) == 1
    (tmp_path / "dense.json").unlink()
    fourth = Watched()
    moved = replace(tiny_task(), data_name="other pictures")
    Comparison(moved, other, tmp_path, num_samples=20, watcher=fourth).run([entry("g")])
    assert sum("real pictures" in label for label in fourth.labels) == 1


def two_views(task):
    """The tiny GAN's pictures, with inputs and right answers; and the same upside down."""
    (view,) = task.views

    def beside(batch):
        pictures = batch["z"].reshape(-1, 1, 2, 4)
        return {"input": pictures, "truth": F.interpolate(pictures, size=(16, 16))}

    flipped = View(
        "flipped",
        view.pictures.flip(2),
        lambda index: view.batch(index + 1),
        lambda net, batch: view.make(net, batch).flip(2),
        num_samples=10,
        shown=view.batch,
    )
    views = (replace(view, name="upright", beside=beside), flipped)
    return replace(task, views=views, measures=lambda net: {"weights": 7.5})


def test_views_measures_inputs_and_the_yardstick(task, tmp_path):
    second = copy.deepcopy(task.generator)
    with torch.no_grad():
        next(second.parameters()).add_(0.01)
    document = comparison(two_views(task), tmp_path, yardstick=second).run([entry("g")])
    dense, (run,) = document["dense"], document["runs"]
    assert run["fid"] == pytest.approx(sum(run["views"].values()) / 2, rel=1e-15)
    assert list(dense["views"]) == ["upright", "flipped"]
    assert run["measures"] == {"weights": 7.5}
    shown = load_samples(tmp_path / run["samples"])
    assert {view: len(pictures) for view, pictures in shown.items()} == {
        "upright": 64,
        "flipped": 10,
    }
    for up, down in zip(shown["upright"], shown["flipped"], strict=False):
        assert (up == down[:, ::-1]).all(), (
            "shown of the same inputs, not of those it is scored with"
        )
    inputs = load_samples(tmp_path / dense["input"])
    z = task.views[0].batch(0)["z"][0].reshape(1, 2, 4)
    assert list(inputs) == ["upright"]
    torch.testing.assert_close(torch.tensor(inputs["upright"][0]), z, rtol=2**-11, atol=0)
    assert load_samples(tmp_path / dense["truth"])["upright"][0].shape == (1, 16, 16)
    pair = document["yardstick"]
    assert pair["fid"] not in (dense["fid"], run["fid"])
    report = load_report(tmp_path)
    assert report.yardstick == (tmp_path / dense["samples"], tmp_path / pair["samples_b"])
    assert report.scores == ("FID flipped", "FID upright", "weights")
    assert "Yardstick" in write_report(tmp_path).read_text(encoding="utf-8")

    watched = Watched()
    again = comparison(two_views(task), tmp_path, yardstick=second, watcher=watched)
    assert again.run([entry("g")])["yardstick"] == pair
    assert not watched.labels, "nothing is scored twice"


def test_few_large_pictures_are_kept_and_of_any_size(task):
    def pictures_of_width(width):
        sizes = iter(range(width, width + 100))

        def make(net, batch):
            return torch.zeros(1, 3, 512, next(sizes))

        return samples(replace(task.views[0], make=make), task.generator, torch.device("cpu"))

    large = pictures_of_width(SHOWN_VALUES // (3 * 512))
    assert len(large) == LEAST_PICTURES
    assert [picture.shape[-1] - large[0].shape[-1] for picture in large] == [0, 1, 2, 3]
    kept = pictures_of_width(400)
    values = sum(picture.numel() for picture in kept)
    assert values <= SHOWN_VALUES < values + 3 * 512 * (400 + len(kept))


def test_two_processes_give_what_one_gives(tmp_path):
    source = functools.partial(tiny_task)
    plan = [entry("g"), entry("d", lr=1e38), entry("b"), entry("h")]
    whole = Comparison(source, "lenet-mnist", tmp_path / "one", num_samples=20).run(plan)
    watched, lanes = Watched(), [Watched(), Watched()]
    several = Comparison(
        source, "lenet-mnist", tmp_path / "two", num_samples=20, watcher=watched
    ).run(
        plan,
        devices=[torch.device("cpu")] * 2,
        threads=1,
        watchers=lanes,
        on_runs=watched.on_runs,
    )
    for one, two in zip(whole["runs"], several["runs"], strict=True):
        assert (one["key"], one["fid"]) == (two["key"], two["fid"])
    assert whole["failed"] == several["failed"]
    assert [row["key"] for row in several["failed"]] == ["d"]
    assert not trained(watched)
    assert len(trained(lanes[0])) + len(trained(lanes[1])) == 4
    assert watched.runs[-1] == (4, 4)
    assert several["machine"]["processes"] == 2
    assert json.loads((tmp_path / "two" / "report.json").read_text())["failed"]


def lenet_named_anew(device):
    return replace(get_extractor("lenet-mnist", device), name="made on the device")


def test_processes_make_the_extractor_on_their_device(tmp_path):
    found = Comparison(functools.partial(tiny_task), lenet_named_anew, tmp_path, num_samples=20)
    document = found.run([entry("g")], devices=[torch.device("cpu")], threads=1)
    assert document["runs"][0]["extractor"] == "made on the device"


def test_processes_need_a_task_that_can_be_sent(task, tmp_path):
    with pytest.raises(InputError, match="several processes can't share this task"):
        comparison(task, tmp_path).run([entry("g")], devices=[torch.device("cpu")] * 2)


def exits(*, seed):
    """A task that only this process can make; any other ends without a word."""
    import multiprocessing
    import os

    if multiprocessing.parent_process() is not None:
        os._exit(7)
    return tiny_task(seed)


def test_a_process_that_dies_is_told_of(tmp_path):
    with pytest.raises(TrainingError, match=r"while at g-element-0.5-seed0 with status 7: killed"):
        Comparison(exits, "lenet-mnist", tmp_path, num_samples=20).run(
            [entry("g")], devices=[torch.device("cpu")]
        )
