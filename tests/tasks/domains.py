# SPDX-License-Identifier: Apache-2.0
"""Pictures of two domains in memory, and what both tests of translation need."""

import contextlib
import copy

import torch

from gansparse.compress import TrainConfig, Trainer


class Domains:
    """Random pictures "a" and "b", batch by batch; the last batch of an epoch may be smaller."""

    def __init__(self, count=4, batch_size=2, size=32, channels=(3, 3)):
        rng = torch.Generator().manual_seed(5)
        self.batch_size = batch_size
        self.pictures = {
            name: torch.rand(count, c, size, size, generator=rng) * 2 - 1
            for name, c in zip("ab", channels, strict=True)
        }

    def __len__(self):
        return -(-self.pictures["a"].shape[0] // self.batch_size)

    def __call__(self, step):
        start = step % len(self) * self.batch_size
        return {k: v[start : start + self.batch_size] for k, v in self.pictures.items()}


def config(recipe, **changes):
    settings = {"steps": 3, "sparsity": 0.5, "save_every": 0, "log_every": 1, "recalibration": 0}
    return TrainConfig(recipe=recipe, **{**settings, "ema": 0.0, "scope": "layer", **changes})


def state_of(*modules):
    return [copy.deepcopy(module.state_dict()) for module in modules]


def same(states, others):
    """Whether all tensors of these state_dicts have the same bits."""
    return all(
        torch.equal(value, other[name])
        for state, other in zip(states, others, strict=True)
        for name, value in state.items()
    )


def stopped_and_resumed(make_task, settings, out, after):
    """A run that is stopped ``after`` some steps and its continuation, by a trainer of its own."""

    def stop(row):
        if row["step"] == after:  # that step is lost: the checkpoint is of the one before
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        Trainer(make_task(), settings, out=out).run(stop)
    return Trainer(make_task(), settings, out=out, resume=True)
