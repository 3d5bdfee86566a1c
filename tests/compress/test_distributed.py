# SPDX-License-Identifier: Apache-2.0
"""Two processes (gloo) against one: the same loss curve, the same network."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gansparse.compress import distributed
from gansparse.files import load_tensors

VICTIM = Path(__file__).with_name("distributed_victim.py")


def run(out, recipe, reduction, count):
    """The history and final generator of ``count`` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, str(VICTIM), str(out), recipe, reduction],
            env=os.environ | world | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return rows, load_tensors(out / "generator.safetensors")[0]


@pytest.mark.parametrize(
    ("recipe", "reduction"), [("b", "sample"), ("b", "batch"), ("d", "sample"), ("l", "sample")]
)
def test_two_processes_give_the_loss_curve_of_one(tmp_path, recipe, reduction):
    (rows, net), (rows2, net2) = (
        run(tmp_path / str(count), recipe, reduction, count) for count in (1, 2)
    )
    assert len(rows) == len(rows2) == 8
    for one, two in zip(rows, rows2, strict=True):
        assert one["terms"].keys() == two["terms"].keys()
        for name, value in one["terms"].items():
            assert two["terms"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, value in net.items():
        torch.testing.assert_close(net2[name], value, rtol=1e-3, atol=1e-4)


def test_one_process_takes_whole_batches():
    batch = {"real": torch.arange(3)}
    assert distributed.share(batch) is batch
    assert (distributed.rank(), distributed.processes()) == (0, 1)
