# SPDX-License-Identifier: Apache-2.0
"""A made-up comparison on disk: small noisy pictures, curves that look like curves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

TECHNIQUES = {
    "b": ("self-supervised", "ours", 1.04),
    "d": ("one-shot pruning, fine-tuning", "", 3.2),
    "k": ("knowledge distillation", "", 1.4),
}


def write_history(path: Path, terms: tuple[str, ...], steps: int) -> None:
    with path.open("w") as file:
        for step in range(steps):
            loss = 3 * math.exp(-4 * step / steps) + 0.2 + 0.1 * math.sin(step)
            row = {"step": step, "loss": loss, "sparsity": min(0.75, 2 * step / steps)}
            row["terms"] = {name: loss / (i + 2) for i, name in enumerate(terms)}
            file.write(json.dumps(row) + "\n")


def blobs(count: int, channels: int, size: int, noise: float) -> torch.Tensor:
    """Pictures [K, C, H, W] in [-1, 1]; the same scene whatever the noise."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(count, 2, 1, 1, generator=generator) * size / 2 + size / 4
    axis = torch.arange(size, dtype=torch.float32)
    squared = (axis[:, None] - centre[:, :1]) ** 2 + (axis - centre[:, 1:]) ** 2
    scene = (2 * torch.exp(-squared / (size * 2)) - 1).repeat(1, channels, 1, 1)
    return (scene + noise * torch.randn(scene.shape, generator=generator)).clamp(-1, 1)


def make_run(
    folder: Path,
    *,
    sparsities=(0.75,),
    seeds=(0,),
    channels=1,
    size=16,
    samples=16,
    steps=60,
    granularities=("element",),
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"images": blobs(samples, channels, size, 0)}, folder / "samples_dense.safetensors")
    runs = []
    for granularity in granularities:
        for sparsity in sparsities:
            for key, (technique, label, ratio) in TECHNIQUES.items():
                for seed in seeds:
                    name = f"{key}-{granularity}-{sparsity}-{seed}"
                    (folder / name).mkdir()
                    terms = ("gen", "out") if key == "b" else ("gen",)
                    write_history(folder / name / "history.jsonl", terms, steps)
                    pictures = blobs(samples, channels, size, 0.02 * ratio)
                    save_file({"images": pictures}, folder / name / "samples.safetensors")
                    fid = 27.9 * ratio * (0.6 + sparsity**2) + seed
                    runs.append(
                        {
                            "key": key,
                            "technique": technique,
                            "label": label,
                            "sparsity": sparsity,
                            "achieved_sparsity": sparsity,
                            "granularity": granularity,
                            "seed": seed,
                            "fid": fid,
                            "fid_ratio": fid / 27.9,
                            "parameters": round(3_574_000 * (1 - sparsity)),
                            "seconds": 200.0 + seed,
                            "steps": 300,
                            "share_of_training": 0.0421,
                            "history": f"{name}/history.jsonl",
                            "samples": f"{name}/samples.safetensors",
                            "config": {
                                "recipe": key, "sparsity": sparsity, "batch_size": 64, "seed": seed,
                                "lr_g": 2e-4, "betas": [0.5, 0.999], "include": [],
                                "granularity": granularity,
                            },
                        }
                    )  # fmt: skip
    document = {
        "title": "DCGAN on digits at 75 % sparsity",
        "created": "2026-01-02T03:04:05+00:00",
        "command": "gansparse demo --out runs/demo",
        "seed": 0,
        "machine": {"cpu": "Some processor", "threads": 2, "gpu": None},
        "versions": {"gansparse": "1", "torch": "2.13.0", "python": "3.11.7"},
        "task": "dcgan",
        "data": "MNIST",
        "metric": {
            "name": "FID", "extractor": "lenet-mnist", "mode": "pictures as generated",
            "num_real": 60_000, "num_fake": 10_000, "dtype": "float32",
        },
        "dense": {"fid": 27.9, "parameters": 3_576_704, "samples": "samples_dense.safetensors"},
        "runs": runs,
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(document))
    return folder
