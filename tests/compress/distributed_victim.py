# SPDX-License-Identifier: Apache-2.0
"""One process of test_distributed.py: a short compression, its history to a file."""

import sys

import torch
from tiny import normless_task

from gansparse.compress import Reading, TrainConfig, Trainer, distributed

if __name__ == "__main__":
    out, recipe, reduction = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    config = TrainConfig(
        recipe=recipe,
        steps=8,
        sparsity=0.5,
        log_every=1,
        save_every=4,
        reading=Reading(reduction=reduction, feature_weight=1.0),
    )
    Trainer(normless_task(), config, out=out).run()
