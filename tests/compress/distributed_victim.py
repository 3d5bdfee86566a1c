# SPDX-License-Identifier: Apache-2.0
"""One process of test_processes.py: short compressions, each with its history in a folder."""

import sys
from pathlib import Path

import torch
from tiny import normless_task

from gansparse.compress import Reading, TrainConfig, Trainer, distributed

if __name__ == "__main__":
    out, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    for case in cases:
        recipe, reduction, *precision = case.split("-")
        config = TrainConfig(
            recipe=recipe,
            steps=8,
            sparsity=0.5,
            log_every=1,
            save_every=4,
            precision=precision[0] if precision else "fp32",
            reading=Reading(reduction=reduction, feature_weight=1.0),
        )
        Trainer(normless_task(), config, out=Path(out, case)).run()
