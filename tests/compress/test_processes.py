# SPDX-License-Identifier: Apache-2.0
"""Two processes of torchrun (gloo) against one: the same loss curve, the same network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gansparse.compress import distributed
from gansparse.data import write_synthetic
from gansparse.files import load_tensors

VICTIM = Path(__file__).with_name("distributed_victim.py")


CASES = tuple(f"normless-{way}" for way in ("b-sample", "b-batch", "d-sample", "l-sample"))
FAMILIES = tuple(f"{name}-b-sample" for name in ("dcgan", "pix2pix", "cyclegan", "stargan"))
HALF = "normless-b-sample-bf16"
ORDERED = "dcgan-b-sample-ordered"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def run(out, data, count):
    """Runs all cases in ``count`` processes; in one, also from weights that are a little off."""
    cases = (*CASES, *FAMILIES, HALF, ORDERED)
    if count == 1:
        cases += tuple(f"{case}-moved" for case in FAMILIES)
    started_by = () if count == 1 else (*TORCHRUN, str(count))
    done = subprocess.run(
        [sys.executable, *started_by, str(VICTIM), str(out), str(data), *cases],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    kinds = {"pix2pix": "aligned", "cyclegan": "unaligned", "stargan": "classes"}
    for family, kind in kinds.items():
        write_synthetic(kind, folder / family, count=10, size=48)
    return [run(folder / str(count), folder, count) for count in (1, 2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_loss_curve_of_one(runs, case):
    histories = [(out / case / "history.jsonl").read_text().splitlines() for out in runs]
    assert len(histories[0]) == 8
    for one, two in zip(*histories, strict=True):
        expected, found = json.loads(one)["terms"], json.loads(two)["terms"]
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    one, two = (load_tensors(out / case / "generator.safetensors")[0] for out in runs)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", FAMILIES)
def test_families_in_two_processes_differ_from_one_by_rounding(runs, case):
    """BatchNorms, InstanceNorms with statistics, dropout, a full pool, gradient penalty.

    Two steps are the same. From then on rounding grows: the measure is what weights that are off by
    1e-7 do within one process, over all terms and steps.
    """
    runs_ = ((runs[0], case), (runs[1], case), (runs[0], f"{case}-moved"))
    files = [out / name / "history.jsonl" for out, name in runs_]
    terms = [[json.loads(row)["terms"] for row in file.read_text().splitlines()] for file in files]
    one, two, moved = (torch.tensor([list(row.values()) for row in rows]) for rows in terms)
    assert len(one) == (4 if case.startswith("stargan") else 8)
    largest = one.abs().max(1, keepdim=True).values
    assert ((two - one).abs() <= 1e-3 * one.abs() + 1e-5 * largest)[:2].all()
    apart, grown = (
        float(((other - one).abs() / (one.abs() + 1e-3 * largest)).mean()) for other in (two, moved)
    )
    assert apart <= 1e-4 + 5 * grown


@pytest.mark.parametrize("case", [*CASES, *FAMILIES, HALF, ORDERED])
def test_all_processes_train_the_same_networks(runs, case):
    one, other = (torch.load(runs[1] / case / f"rank{rank}.pt") for rank in (0, 1))
    for net, same in zip(one, other, strict=True):
        assert all(torch.equal(same[name], value) for name, value in net.items())


def test_in_bf16_two_processes_differ_from_one_by_rounding(runs):
    """The first loss, of which nothing was trained yet, is the same.

    Later ones differ in any case where a batch is divided: gradients have 8 bits. The measure is
    what those 8 bits do within one process.
    """
    rows = {
        key: [
            json.loads(line) for line in (runs[i] / case / "history.jsonl").read_text().splitlines()
        ]
        for key, (i, case) in {"one": (0, HALF), "two": (1, HALF), "exact": (0, CASES[0])}.items()
    }
    first, same = (rows[key][0]["terms"]["D"] for key in ("one", "two"))
    assert same == pytest.approx(first, rel=1e-4)
    for term in ("D", "gen", "output"):
        one, two, exact = (torch.tensor([r["terms"][term] for r in rows[k]]) for k in rows)
        assert (two - one).abs().mean() <= 2 * (one - exact).abs().mean(), term


def test_one_process_takes_whole_batches():
    batch = {"real": torch.arange(3)}
    assert distributed.share(batch) is batch
    assert (distributed.rank(), distributed.processes()) == (0, 1)
