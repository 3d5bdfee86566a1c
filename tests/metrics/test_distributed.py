# SPDX-License-Identifier: Apache-2.0
"""Metric objects over two processes: every rank gets the number of all pictures.

The processes run once, for all tests: each rank takes its share of the pictures, and writes down
what every metric computes and what the misuses say.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from line_up import METRICS, QUARTERS, TOTAL, feed, numbers

from gansparse.errors import InputError
from gansparse.metrics import KernelInceptionDistance
from gansparse.metrics.metric import Metric

# Pictures that rank 0 takes; rank 1 takes the rest.
CUTS = {"even": 30, "uneven": 1, "none on rank 1": TOTAL}
TWO = ("fid", "kid")  # stand for all where only the exchange is in question
REORDERED = 100 * TOTAL * torch.finfo(torch.float64).eps  # as in test_metric.py


def share(metric: Metric, rank: int, cut: int) -> Metric:
    start, stop = (0, cut) if rank == 0 else (cut, TOTAL)
    return feed(metric, start, stop) if start < stop else metric


def work(rank: int, folder: str) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=120),
    )
    told: dict[str, Any] = {}
    for name, make in METRICS.items():
        for case, cut in CUTS.items():
            told[f"{name}, {case}"] = share(make(), rank, cut).result()
        own = share(make(sync_on_compute=False), rank, 30)
        told[f"{name}, own"] = numbers(own.compute())
        told[f"{name}, message"] = message(make())
    group = dist.new_group([1, 0])
    for name in TWO:
        metric = share(METRICS[name](), rank, 30)
        metric.compute()
        told[f"{name}, twice"] = numbers(metric.compute())
        metric = share(METRICS[name](process_group=group), rank, 17)
        told[f"{name}, group"] = numbers(metric.compute())
    told["interval"] = share(METRICS["fid-kept"](), rank, 17).interval(resamples=20).low
    told["other settings"] = message(KernelInceptionDistance(QUARTERS, seed=rank))
    Path(folder, f"rank{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def message(metric: Metric) -> str:
    """Of the error that `compute` raises."""
    try:
        metric.compute()
    except InputError as error:
        return str(error)
    return "no error"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank wrote down."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CUTS)
@pytest.mark.parametrize("name", METRICS)
def test_every_rank_has_the_number_of_all_pictures(ranks, name: str, case: str) -> None:
    one, other = (told[f"{name}, {case}"] for told in ranks)
    assert one == other  # to the last bit
    alone = feed(METRICS[name]()).result()
    assert one.keys() == alone.keys()
    for key, want in alone.items():
        close = isinstance(want, float)
        assert one[key] == (pytest.approx(want, rel=REORDERED) if close else want), key


@pytest.mark.parametrize("name", TWO)
def test_computing_twice_or_in_a_group_is_the_same(ranks, name: str) -> None:
    want = pytest.approx(numbers(feed(METRICS[name]()).compute()), rel=REORDERED)
    for told in ranks:
        assert told[f"{name}, twice"] == want
        # The group numbers its ranks as the world does, whatever the order it was given.
        assert told[f"{name}, group"] == want


@pytest.mark.parametrize("name", METRICS)
def test_a_rank_may_keep_to_its_own(ranks, name: str) -> None:
    for rank, told in enumerate(ranks):
        alone = share(METRICS[name](), rank, 30).compute()
        assert tuple(told[f"{name}, own"]) == numbers(alone)


@pytest.mark.parametrize("name", METRICS)
def test_no_pictures_are_refused_on_every_rank_alike(ranks, name: str) -> None:
    alone = message(METRICS[name]())
    assert "got 0" in alone
    assert [told[f"{name}, message"] for told in ranks] == [alone] * 2


def test_kept_features_are_gathered_too(ranks) -> None:
    want = feed(METRICS["fid-kept"]()).interval(resamples=20).low
    assert [told["interval"] for told in ranks] == [pytest.approx(want, rel=REORDERED)] * 2


def test_ranks_of_other_settings_are_refused_on_every_rank(ranks) -> None:
    one, other = (told["other settings"] for told in ranks)
    assert one == other
    assert "every rank needs the same settings" in one
    assert "'seed': 0} on rank 0" in one
    assert "'seed': 1} on rank 1" in one
