# SPDX-License-Identifier: Apache-2.0
"""The demo: the shipped DCGAN, three ways to compress it, one table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gansparse import _C
from gansparse.compress.api import load_task
from gansparse.compress.compare import Comparison, Entry, Watcher
from gansparse.compress.config import TrainConfig
from gansparse.metrics.features import get_extractor

DEMO_RECIPES = ("b", "d", "k")  # ours; one-shot pruning + fine-tuning; knowledge distillation


def run_demo(
    data: str | Path,
    out: str | Path,
    *,
    sparsity: float = 0.75,
    steps: int = 120,
    num_samples: int = 5_000,
    precision: str = "auto",
    seed: int = 0,
    device: str | torch.device = "cpu",
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Compresses the shipped DCGAN with recipes b, d and k, and scores all of them.

    Args:
        data: what `gansparse.data.load_digits` reads.
        out: folder for the runs and ``report.json``; finished runs in it are not run again.
        sparsity: share of zeros.
        steps: generator steps of each technique.
        num_samples: pictures a generator is scored with.
        precision: of training: ``fp32``, ``bf16`` or ``auto``: bf16 on a processor that has
            instructions for it (1.4 to 1.7 times as fast on Zen 4), fp32 elsewhere.
        seed: of everything random.
        device: where to compute.
        watcher: gets told the progress.

    Returns:
        The report's document.
    """
    task = load_task("dcgan", data, seed=seed)
    comparison = Comparison(
        task,
        get_extractor("lenet-mnist", device),
        out,
        title=f"DCGAN on digits at {sparsity:.0%} sparsity",
        num_samples=num_samples,
        device=device,
        watcher=watcher,
    )
    if precision == "auto":
        precision = fastest_precision(torch.device(device))
    base = TrainConfig(steps=steps, sparsity=sparsity, seed=seed, precision=precision, ema=0.99)
    configs = [replace(base, recipe=key) for key in DEMO_RECIPES]
    return comparison.run([Entry(config) for config in configs])


def fastest_precision(device: torch.device) -> str:
    """``bf16`` on a processor that multiplies it in instructions of its own, ``fp32`` elsewhere."""
    native = device.type == "cpu" and _C.build_info()["native_bf16"]
    return "bf16" if native else "fp32"
