# SPDX-License-Identifier: Apache-2.0
"""What the kernels should show on an H200-class GPU: `make gpu` holds its measurements to it.

Needs nothing but Python, so that it can tell that nothing was measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Row = dict[str, str]


@dataclass(frozen=True)
class Goal:
    """What one number of the benchmarks should be.

    Args:
        name: in the summary.
        op: the benchmark.
        case: regular expression on the whole of the case.
        column: the number: times_ours (of the peer), share_of_limit or median_ms (of ours).
        goal: at least this, median_ms at most this.
        sparsity: "" for any.
        peer: regular expression on the candidate.
    """

    name: str
    op: str
    case: str
    column: str
    goal: float
    sparsity: str = ""
    peer: str = "gansparse"

    def best(self, rows: list[Row]) -> float | None:
        """Of our cases the best, each against the fastest peer in it."""
        cases: dict[str, list[float]] = {}
        for row in rows:
            if (
                row["op"] == self.op
                and row["device"] == "cuda"
                and re.fullmatch(self.case, row["case"])
                and re.match(self.peer, row["candidate"])
                and self.sparsity in ("", row["sparsity"])
            ):
                cases.setdefault(row["case"], []).append(float(row[self.column]))
        choose = min if self.column == "median_ms" else max
        return choose(map(min, cases.values()), default=None)

    def met(self, value: float) -> bool:
        return value <= self.goal if self.column == "median_ms" else value >= self.goal


_CUDNN, _256, _54M = "cudnn", "cyclegan-256@64", "pix2pix-unet"
_BLOCK, _VECTOR = rf"{_256} block x\d+", rf"{_256} vector x16"
GOALS = (
    Goal("2:4 conv 256 3x3, cuDNN bf16 / ours", "sparse_conv2d", rf"{_256} 2:4 x\d+", "times_ours",
         1.3, "0.5", _CUDNN),
    # Half the products of a peak twice that of the dense product: the dense product's share.
    Goal("the same, share of sparse peak", "sparse_conv2d", rf"{_256} 2:4 x\d+", "share_of_limit",
         0.0, "0.5"),
    Goal("block 75 %, cuDNN bf16 / ours", "sparse_conv2d", _BLOCK, "times_ours", 1.5, "0.75",
         _CUDNN),
    Goal("block 90 %, cuDNN bf16 / ours", "sparse_conv2d", _BLOCK, "times_ours", 3.0, "0.9",
         _CUDNN),
    Goal("vector-16 75 %, cuDNN bf16 / ours", "sparse_conv2d", _VECTOR, "times_ours", 1.5, "0.75",
         _CUDNN),
    Goal("vector-16 90 %, cuDNN bf16 / ours", "sparse_conv2d", _VECTOR, "times_ours", 3.0, "0.9",
         _CUDNN),
    Goal("element 90 %, cuDNN fp32 / ours", "sparse_conv2d", f"{_256} element float32",
         "times_ours", 2.0, "0.9", _CUDNN),
    Goal("masked_adam 54 M, fused + 2 mul / ours", "masked_adam", _54M, "times_ours", 1.7, "0.75",
         "torch"),
    Goal("the same, share of copy bandwidth", "masked_adam", _54M, "share_of_limit", 0.85, "0.75"),
    Goal("mask_update 54 M, stable sort / ours", "mask_update", _54M, "times_ours", 1.0, "0.75",
         "torch stable sort"),
    Goal("50k x 2048 statistics, ms", "feature_moments", "inception-50k", "median_ms", 10.0),
    Goal("Fréchet 2048, torchmetrics / ours", "frechet", "decaying-2048", "times_ours", 5.0,
         peer="torchmetrics"),
    Goal("StarGAN 2:4 bf16, batch 1, torch.compile / ours", "generators",
         "stargan b1 bfloat16 2:4", "times_ours", 1.2, peer="torch.compile"),
    Goal("StarGAN 2:4 bf16, batch 16, torch.compile / ours", "generators",
         "stargan b16 bfloat16 2:4", "times_ours", 1.2, peer="torch.compile"),
)  # fmt: skip


def compared(rows: list[Row]) -> list[Row]:
    """The goals, each beside its number."""
    out = []
    for goal in GOALS:
        value = goal.best(rows)
        sign = "<=" if goal.column == "median_ms" else ">="
        out.append(
            {
                "kind": "goal",
                "name": goal.name,
                "result": "not measured" if value is None else f"{value:.3g}",
                "goal": f"{sign} {goal.goal:g}" if goal.goal else "",
                "met": "" if value is None or not goal.goal else "yes" if goal.met(value) else "NO",
            }
        )
    return out
