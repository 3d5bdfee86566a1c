# SPDX-License-Identifier: Apache-2.0
"""Compresses the tiny GAN into the folder given; `test_resume.py` kills it at random moments."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny import tiny_task

from gansparse.compress import TrainConfig, Trainer

STEPS = 72


def main(out: str) -> None:
    torch.set_num_threads(1)
    config = TrainConfig(recipe="b", steps=STEPS, sparsity=0.75, save_every=4, recalibration=2)
    Trainer(tiny_task(), config, out=out, resume=True).run()


if __name__ == "__main__":
    main(sys.argv[1])
