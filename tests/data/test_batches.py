# SPDX-License-Identifier: Apache-2.0
"""Batches: a function of (seed, step) whatever the workers do, and damage that is named."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import time
import warnings
from pathlib import Path

import pytest
import torch
from drawing import cut, pictures, refused

from gansparse.data import (
    AlignedFolder,
    Batches,
    ClassFolder,
    EvaluationBatches,
    LabelledPictures,
    PictureSamples,
    SuperResolutionFolder,
    UnalignedFolder,
)
from gansparse.errors import InputError


class Numbers:
    """Samples that say their index and their first random number."""

    def __init__(self, count: int, damaged: tuple[int, ...] = ()) -> None:
        self.count, self.damaged = count, damaged

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        if index in self.damaged:
            raise InputError(f"{index}.png: damaged")
        return {"index": torch.tensor(index), "drawn": torch.rand(2, generator=rng)}


@pytest.fixture
def aligned(tmp_path):
    pictures(tmp_path / "train", 7, 20, 10)
    return AlignedFolder(tmp_path, load_size=10, crop_size=8)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ---- A function of (seed, step) ------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_same_with_workers_and_in_any_order(aligned, num_workers):
    alone = Batches(aligned, 2, seed=3)
    want = [alone(step) for step in range(12)]
    assert want[0]["a"].shape == (2, 3, 8, 8)
    ahead = Batches(aligned, 2, seed=3, num_workers=num_workers)
    for step in (*range(5), 9, 10, 2, 2, 3, 11, 0):
        assert equal(ahead(step), want[step]), step


def test_an_epoch_shows_each_once_and_the_next_is_drawn_anew():
    batches = Batches(Numbers(11), 3, seed=0)
    assert len(batches) == 3
    epochs = [[batches(3 * epoch + i) for i in range(3)] for epoch in range(4)]
    shown = [torch.cat([b["index"] for b in epoch]).tolist() for epoch in epochs]
    assert all(len(set(epoch)) == 9 for epoch in shown)
    assert len({tuple(epoch) for epoch in shown}) == 4
    drawn = torch.cat([b["drawn"] for epoch in epochs for b in epoch])
    assert len(drawn.unique(dim=0)) == len(drawn)
    assert not equal(batches(0), Batches(Numbers(11), 3, seed=1)(0))


def test_without_shuffling():
    batches = Batches(Numbers(5), 2, seed=0, shuffle=False)
    assert [batches(step)["index"].tolist() for step in range(3)] == [[0, 1], [2, 3], [0, 1]]
    assert not torch.equal(batches(0)["drawn"], batches(2)["drawn"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_global_generator_is_left_alone(num_workers):
    before = torch.random.get_rng_state()
    batches = Batches(Numbers(8), 2, seed=0, num_workers=num_workers)
    for step in (0, 1, 7):
        batches(step)
    assert torch.equal(torch.random.get_rng_state(), before)


class Noting(Numbers):
    def __init__(self, count: int, log: Path) -> None:
        super().__init__(count)
        self.log = log

    def sample(self, index: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        with self.log.open("a") as file:
            file.write("1")
        return super().sample(index, rng)


def test_workers_read_ahead_and_go_on_in_turn(tmp_path):
    batches = Batches(Noting(50, tmp_path / "log"), 5, seed=0, num_workers=2)
    batches(0)
    # The first batch was replaced at once: two batches a worker are under way, 5 in all.
    deadline = time.monotonic() + 60
    while (tmp_path / "log").stat().st_size < 25:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for step in range(1, 12):  # the same workers: none of these batches is made twice
        batches(step)
    assert (tmp_path / "log").stat().st_size <= 16 * 5


def test_every_sample_set_can_be_sent_to_a_process(tmp_path):
    pictures(tmp_path / "pairs/train", 2, 12, 6)
    for side in ("trainA", "trainB", "k1", "k2"):
        pictures(tmp_path / "sets" / side, 2, 12, 12)
    small = {"load_size": 6, "crop_size": 6}
    for samples in (
        AlignedFolder(tmp_path / "pairs", **small),
        UnalignedFolder(tmp_path / "sets", **small),
        ClassFolder(tmp_path / "sets", image_size=4),
        SuperResolutionFolder(tmp_path / "sets", crop_size=8),
        PictureSamples(tmp_path / "sets", image_size=4),
        LabelledPictures(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 1])),
    ):
        batches = Batches(samples, 2, seed=0)
        assert equal(Batches(pickle.loads(pickle.dumps(samples)), 2, seed=0)(5), batches(5))


# ---- Damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_is_named_and_the_others_go_on(aligned, num_workers):
    cut(aligned.files[4])
    batches = Batches(aligned, 1, seed=0, num_workers=num_workers, shuffle=False)
    for step in range(9):
        if step == 4:
            refused(lambda: batches(4), r"04\.png: damaged or truncated .*; mend or remove it")
        else:
            assert equal(batches(step), Batches(aligned, 1, seed=0, shuffle=False)(step))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_by_choice_and_named_once(num_workers):
    samples = Numbers(8, damaged=(2, 3))
    batches = Batches(samples, 4, 0, num_workers=num_workers, on_damaged="skip", shuffle=False)
    with pytest.warns(UserWarning, match=r"\d\.png: damaged; skipped, the next") as told:
        first = batches(0)
    assert first["index"].tolist() == [0, 1, 4, 4]
    assert sum("damaged" in str(one.message) for one in told) == 2  # one core is warned of, too
    assert batches.skipped == ["2.png: damaged", "3.png: damaged"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "This DataLoader will create")
        assert batches(1)["index"].tolist() == [4, 5, 6, 7]
        assert batches(2)["index"].tolist() == [0, 1, 4, 4]
        assert equal(batches(0), first)


def test_a_damaged_counterpart_is_drawn_anew(tmp_path):
    pictures(tmp_path / "trainA", 6, 8, 8)
    pictures(tmp_path / "trainB", 2, 8, 8)
    cut(tmp_path / "trainB/00.png")
    samples = UnalignedFolder(tmp_path, load_size=8, crop_size=8, flip=False)
    one, two = (Batches(samples, 6, seed=0, on_damaged="skip", num_workers=n) for n in (0, 1))
    with pytest.warns(UserWarning, match=r"trainB/00\.png"):
        got = one(0)
    assert len(got["b"].unique(dim=0)) == 1
    with pytest.warns(UserWarning, match=r"trainB/00\.png"):
        assert equal(two(0), got)


def test_nothing_left():
    batches = Batches(Numbers(3, damaged=(0, 1, 2)), 1, seed=0, on_damaged="skip")
    with pytest.warns(UserWarning, match="skipped"):
        refused(lambda: batches(0), r"none of the samples can be used; the last: \d\.png: damaged")


class Dying(Numbers):
    def sample(self, index: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        os._exit(1)


def test_a_worker_that_dies_and_the_steps_after_it():
    batches = Batches(Dying(4), 2, seed=0, num_workers=1)
    for _ in range(2):
        refused(lambda: batches(0), "Dying: a process that reads .* use fewer workers, or 0")


class Faulty(Numbers):
    def sample(self, index: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
        raise RuntimeError("own fault")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_ones_own_is_not_taken_for_damage(num_workers):
    batches = Batches(Faulty(4), 2, seed=0, num_workers=num_workers, on_damaged="skip")
    with pytest.raises(RuntimeError, match="own fault"):
        batches(0)


# ---- Refusals, evaluation ------------------------------------------------------------------------


def test_refusals(tmp_path):
    refused(lambda: Batches(Numbers(3), 4, seed=0), r"batch size must be 1..3 .* got 4")
    refused(lambda: Batches(Numbers(3), 0, seed=0), r"batch size must be 1..3 .* got 0")
    refused(lambda: Batches(Numbers(3), 1, seed=0, on_damaged="mend"), "must be 'raise' or 'skip'")
    refused(lambda: Batches(Numbers(3), 1, seed=0, num_workers=-1), "num_workers must be at least")
    refused(lambda: Batches(Numbers(3), 1, seed=0)(-1), "step must be at least 0, got -1")
    for i, size in enumerate((8, 12)):
        pictures(tmp_path / str(i), 1, size, 8)
    whole = EvaluationBatches(SuperResolutionFolder(tmp_path, augment=False), 2)
    refused(
        lambda: whole(0),
        r"a batch has 'lr' of \[3, 2, 2\] and \[3, 2, 3\]: samples of several sizes need batches",
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_takes_each_once_in_order(num_workers):
    batches = EvaluationBatches(Numbers(7), 3, num_workers=num_workers)
    assert len(batches) == 3
    assert [batches(i)["index"].tolist() for i in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert batches(1)["index"].tolist() == [3, 4, 5]
    refused(lambda: batches(3), "evaluation batch 3 asked for, but 7 samples make only 3")
    assert len(EvaluationBatches(Numbers(2), 100)) == 1


def test_evaluation_needs_samples_as_they_are(aligned):
    refused(lambda: EvaluationBatches(aligned, 1), "build them with augment=False")


def test_workers_end_at_once_with_cyclic_garbage():
    """As a task's do: what generates refers to the task."""
    others = set(multiprocessing.active_children())
    batches = Batches(Numbers(8), 2, seed=0, num_workers=2)
    batches(0)
    holder = {"batches": batches}
    holder["itself"] = holder
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    del batches, holder
    start = time.monotonic()
    gc.collect()
    assert time.monotonic() - start < 4, "one that was not told to end is waited for 5 s"
    assert not any(worker.is_alive() for worker in workers)
