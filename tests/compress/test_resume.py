# SPDX-License-Identifier: Apache-2.0
"""A killed run, resumed, ends with the bits of a run that nobody disturbed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from gansparse.compress.checkpointing import latest_checkpoint, load_checkpoint
from gansparse.files import load_tensors

VICTIM = Path(__file__).with_name("resume_victim.py")


def start(out):
    return subprocess.Popen(
        [sys.executable, str(VICTIM), str(out)], stderr=subprocess.PIPE, text=True
    )


def finish(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def steps_saved(out):
    path = latest_checkpoint(out / "checkpoints")
    return 0 if path is None else load_checkpoint(path)[0]


def test_sigkill_at_random_moments_changes_no_bit(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    reference = start(undisturbed)
    rng, kills = random.Random(0), 0
    for _ in range(3):
        process, before = start(killed), steps_saved(killed)
        deadline = time.monotonic() + 60
        while steps_saved(killed) == before and process.poll() is None:
            assert time.monotonic() < deadline, "the victim saved nothing for a minute"
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.3))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills >= 2, "the victim ended before it could be killed: give it more steps"
    assert steps_saved(killed) > 0
    finish(start(killed))
    finish(reference)

    for name in ("generator.safetensors", "discriminator.safetensors"):
        ours, _ = load_tensors(killed / name)
        theirs, _ = load_tensors(undisturbed / name)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), f"{name}: {key}"
    assert (killed / "history.jsonl").read_text() == (undisturbed / "history.jsonl").read_text()
